//! The story: how a delivery becomes a message in a broker.
//!
//! ```text
//! accept():   head -> admit -> body -> verify -> parse -> normalize -> append -> durable -> 200
//! forward():  journal -> order by key -> publish -> acknowledged -> journal
//! ```
//!
//! The two halves share nothing but the journal. [`Intake`] never waits for a broker, and a
//! [`Forwarder`], one for each sink, never holds up an answer or another sink. What is certain at each
//! arrow is in its type: `Admitted`, `Verified`, `Delivery`, `Event`, a position. The second half goes on in
//! [`session`], which is the use of one connection to a broker.

mod backlog;
mod congestion;
mod failure_log;
mod fetch;
mod flight;
mod queue;
mod resends;
mod session;
mod settings;
mod status;
mod stuck;
mod targets;
mod unanswered;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use warp::http::HeaderMap;

use self::backlog::Backlog;
use self::failure_log::FailureLog;
use self::session::{Ended, Session};
pub use self::settings::StopSettings;
pub use self::status::SinkStatus;
use crate::access::{Access, Admitted, Denied};
use crate::domain::backoff::Backoff;
use crate::domain::clock::Clock;
use crate::domain::envelope::View;
use crate::domain::identity::EventId;
use crate::domain::kind;
use crate::domain::trace::TraceParent;
use crate::journal::{AppendError, Appended, Entry, Journal, Pending, Record};
use crate::metrics::Metrics;
use crate::sendbird::category::Category;
use crate::sendbird::normalize::Provenance;
use crate::sendbird::{delivery, normalize};
use crate::sink::{Fault, Reason, Sink};
use crate::traces::{self, Publisher, Tracer};

/// How long a sink may take to open a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// How long events in flight may take to be acknowledged once the bridge is stopping, and a connection
/// to be closed; what is left then is published once more after the next start, with the same ids.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Pauses between attempts, for a connection as for a target.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };

// ---------------------------------------------------------------------------------------------------
// accept: from the socket to the disk
// ---------------------------------------------------------------------------------------------------

/// Turns deliveries into durable events.
pub struct Intake {
    /// Authentication.
    pub access: Access,
    /// How envelopes are made.
    pub normalize: normalize::Settings,
    /// Where they are kept.
    pub journal: Journal,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// When they are received.
    pub clock: Clock,
    /// What makes their spans.
    pub tracer: Tracer,
}

/// Why a delivery is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Authentication failed.
    Denied(Denied),
    /// It is no delivery.
    Malformed(delivery::Refused),
    /// The journal can't take it now.
    Unavailable(AppendError),
    /// It could not be made durable before the deadline. It may be durable later: then Sendbird's next
    /// try is a known duplicate.
    Deadline,
}

/// A delivery on its way to the disk. It gets there even if this is dropped.
pub struct Accepting {
    id: EventId,
    category: Category,
    pending: Pending,
}

/// A delivery that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The event's id.
    pub id: EventId,
    /// Whether it was known already.
    pub duplicate: bool,
}

impl Intake {
    /// Decides by the head alone whether the body may be read.
    ///
    /// # Errors
    /// [`Refused::Denied`].
    pub fn admit(&self, peer: IpAddr, headers: &HeaderMap) -> Result<Admitted, Refused> {
        let present = if self.access.is_signed(headers) { "true" } else { "false" };
        self.metrics.signature_headers.with_label_values(&[present]).inc();
        self.access.admit(peer, headers).map_err(Refused::Denied)
    }

    /// Checks and translates a delivery and hands it to the journal. Nothing here waits, so a sender
    /// that hangs up can't interrupt it. `given` is the trace that the delivery says it belongs to; it
    /// decides nothing but what `span` is, which in turn is what goes on with the event.
    ///
    /// # Errors
    /// Any [`Refused`] but the deadline; nothing is stored then.
    pub fn accept(
        &self,
        admitted: Admitted,
        body: Bytes,
        given: Option<TraceParent>,
        span: &mut traces::Delivery<'_>,
    ) -> Result<Accepting, Refused> {
        let verified = self.access.verify(admitted, body).map_err(Refused::Denied)?;
        // Only now: who is not let in makes no spans.
        let trace = span.join(given);
        let delivery = delivery::parse(verified.body()).map_err(Refused::Malformed)?;
        let accepted_ms = self.clock.now_ms();
        let event = normalize::normalize(
            &delivery,
            Provenance { at_ms: accepted_ms, trace, reconciled: false },
            &self.normalize,
        );
        span.is_of(event.id, event.category.label());
        self.access.check_application(&verified, event.application_id.as_deref()).map_err(Refused::Denied)?;
        self.count_unexpected(&event);
        let entry =
            Entry { id: *event.id.as_bytes(), key: event.key, kind: event.kind, accepted_ms, payload: event.envelope };
        let pending = self.journal.append(entry).map_err(Refused::Unavailable)?;
        Ok(Accepting { id: event.id, category: event.category, pending })
    }

    /// Waits until the delivery is durable, or until `deadline`.
    ///
    /// # Errors
    /// [`Refused::Unavailable`] and [`Refused::Deadline`].
    pub async fn durable(&self, accepting: Accepting, deadline: Instant) -> Result<Accepted, Refused> {
        let durable = accepting.pending.durable_by(deadline).await;
        let appended = durable.ok_or(Refused::Deadline)?.map_err(Refused::Unavailable)?;
        let (id, duplicate) = match appended {
            Appended::Stored(_) => (accepting.id, false),
            Appended::Duplicate(_) => (accepting.id, true),
            Appended::Backfilled { id, .. } => (EventId::from_bytes(id), true),
        };
        let outcome = if duplicate { "duplicate" } else { "stored" };
        self.metrics.deliveries.with_label_values(&[accepting.category.label(), outcome]).inc();
        self.metrics.last_delivery.set(self.clock.now_ms() as f64 / 1000.0);
        Ok(Accepted { id, duplicate })
    }

    fn count_unexpected(&self, event: &normalize::Event) {
        for (kind, count) in [("key", event.anomalies.unknown_keys), ("type", event.anomalies.unexpected_types)] {
            if count > 0 {
                self.metrics.unexpected_members.with_label_values(&[kind]).inc_by(count.into());
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------
// forward: from the disk to a broker
// ---------------------------------------------------------------------------------------------------

/// Publishes what the journal holds to one sink.
pub struct Forwarder {
    /// The sink's name.
    pub name: String,
    /// The broker.
    pub sink: Box<dyn Sink>,
    /// Patterns of the kinds of the events that the sink wants; empty means all.
    pub kinds: Vec<String>,
    /// Where the events are.
    pub journal: Journal,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// For the age of what is published.
    pub clock: Clock,
    /// What others may see of it.
    pub status: Arc<SinkStatus>,
    /// What makes the spans of what it publishes.
    pub publisher: Publisher,
}

impl Forwarder {
    /// Publishes until `stop`, through any number of connections.
    pub async fn forward(self, stop: CancellationToken) {
        let resumed = tokio::select! {
            resumed = Backlog::resume(&self) => resumed,
            () = stop.cancelled() => return,
        };
        let mut backlog = match resumed {
            Ok(backlog) => backlog,
            // Its own line in the log says why; the end of this task ends the service.
            Err(_panicked) => return,
        };
        let mut log = FailureLog::new(&self.name);
        self.report_resumed(&mut backlog, &mut log);
        let mut failures = 0;
        while let Some(connecting) = stop.run_until_cancelled(timeout(CONNECT_LIMIT, self.sink.connect())).await {
            let fault = match connecting {
                Ok(Ok(connection)) => {
                    let mut session = Session::new(&self, &*connection, &mut backlog, &mut log);
                    let ended = session.run(&stop).await;
                    if session.has_published {
                        failures = 0;
                    }
                    self.status.set_in_flight(0);
                    connection.close(DRAIN_LIMIT).await;
                    backlog.finish_writes(DRAIN_LIMIT).await;
                    match ended {
                        Ended::Stopped => break,
                        Ended::Failed(fault) => fault,
                    }
                }
                Ok(Err(failure)) => failure.fault().clone(),
                Err(_elapsed) => Fault { reason: Reason::Timeout, detail: "no connection in time".into() },
            };
            self.note_failure(&fault, &mut log);
            let pause = BACKOFF.pause(failures, fastrand::f64());
            failures = failures.saturating_add(1);
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                break;
            }
        }
        tracing::info!(sink = self.name, cursor = self.journal.cursor(&self.name), "sink stopped");
    }

    /// What was stuck when the sink stopped is stuck still.
    fn report_resumed(&self, backlog: &mut Backlog, log: &mut FailureLog) {
        let total = backlog.queue.stuck();
        self.status.set_stuck(total);
        let mut targets = backlog.targets.all_parked();
        if let Some((scope, parked)) = targets.find(|(_, parked)| parked.candidate.is_some()) {
            log.stuck(scope.words(), parked.reason.as_str(), total, std::time::Instant::now());
        }
    }

    fn wants(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|pattern| kind::matches(pattern, kind))
    }

    /// The same of an event that can be read: one whose kind does not name its application was stored by an earlier
    /// version, and its envelope does.
    fn wants_record(&self, record: &Record) -> bool {
        let decides = |kind: &String| kind::names_application(kind);
        if kind::names_application(&record.kind) || !self.kinds.iter().any(decides) {
            return self.wants(&record.kind);
        }
        match View::parse(&record.payload) {
            Ok(view) => self.wants(&kind::of(&record.kind, view.application_id())),
            Err(_) => self.wants(&record.kind),
        }
    }

    fn note_failure(&self, fault: &Fault, log: &mut FailureLog) {
        self.metrics.sink_retries.with_label_values(&[self.name.as_str(), fault.reason.as_str()]).inc();
        self.status.failed(fault, self.clock.now_ms());
        log.failed(fault, std::time::Instant::now());
    }
}

#[cfg(test)]
mod tests;
