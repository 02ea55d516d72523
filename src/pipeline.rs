//! The story: how a delivery becomes a message in a broker.
//!
//! ```text
//! accept():   head -> admit -> body -> verify -> parse -> normalize -> append -> durable -> 200
//! forward():  journal -> order by key -> publish -> acknowledged -> cursor
//! ```
//!
//! The two halves share nothing but the journal. [`Intake`] never waits for a broker, and a
//! [`Forwarder`], one for each sink, never holds up an answer or another sink. What is certain at each
//! arrow is in its type: `Admitted`, `Verified`, `Delivery`, `Event`, a position.

mod fetch;
mod order;
mod status;
mod trouble;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use warp::http::HeaderMap;

use self::fetch::Fetch;
use self::order::Order;
pub use self::status::SinkStatus;
use self::trouble::Trouble;
use crate::access::{Access, Admitted, Denied};
use crate::domain::backoff::Backoff;
use crate::domain::clock::Clock;
use crate::domain::envelope::{self, View};
use crate::domain::glob;
use crate::domain::identity::EventId;
use crate::journal::{
    AppendError, Appended, Batch, DeadLetter, Entry, Filter, Journal, Limits, Pending, Record, Resend, Resends, Resent,
    Row,
};
use crate::metrics::Metrics;
use crate::sendbird::category::Category;
use crate::sendbird::delivery;
use crate::sendbird::normalize;
use crate::sink::{Connection, Failure, Fault, Published, Reason, Sink};

/// Events in flight on one sink at most; each waits for its own acknowledgement.
const IN_FLIGHT: usize = 1024;

/// How long a sink may take to open a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// How long events in flight may take to be acknowledged once the bridge is stopping, and a connection
/// to be closed; what is left then is published again after the next start, with the same ids.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Pauses between attempts, for a connection as for one event.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };

/// How much is read from the journal at a time.
const AHEAD: Limits = Limits { rows: 256, bytes: 1024 * 1024 };

/// How often a connection is asked whether it is one.
const LOOK_EVERY: Duration = Duration::from_millis(500);

// ---------------------------------------------------------------------------------------------------
// accept: from the socket to the disk
// ---------------------------------------------------------------------------------------------------

/// Turns deliveries into durable events.
pub struct Intake {
    /// The locks.
    pub access: Access,
    /// How envelopes are made.
    pub normalize: normalize::Settings,
    /// Where they are kept.
    pub journal: Journal,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// When they are received.
    pub clock: Clock,
}

/// Why a delivery is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A lock did not open.
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
    /// that hangs up can't interrupt it.
    ///
    /// # Errors
    /// Any [`Refused`] but the deadline; nothing is stored then.
    pub fn accept(&self, admitted: Admitted, body: Bytes) -> Result<Accepting, Refused> {
        let verified = self.access.verify(admitted, body).map_err(Refused::Denied)?;
        let delivery = delivery::parse(verified.body()).map_err(Refused::Malformed)?;
        let accepted_ms = self.clock.now_ms();
        let event = normalize::normalize(&delivery, accepted_ms, &self.normalize);
        self.access.check_application(event.application_id.as_deref()).map_err(Refused::Denied)?;
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
        let appended = timeout_at(deadline, accepting.pending.durable())
            .await
            .map_err(|_elapsed| Refused::Deadline)?
            .map_err(Refused::Unavailable)?;
        let duplicate = matches!(appended, Appended::Duplicate(_));
        let outcome = if duplicate { "duplicate" } else { "stored" };
        self.metrics.deliveries.with_label_values(&[accepting.category.label(), outcome]).inc();
        Ok(Accepted { id: accepting.id, duplicate })
    }

    fn count_unexpected(&self, event: &normalize::Event) {
        for (kind, count) in [("key", event.oddities.unknown_keys), ("type", event.oddities.unexpected_types)] {
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
    /// Globs over the types of the events that the sink wants; empty means all.
    pub types: Vec<String>,
    /// Where the events are.
    pub journal: Journal,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// For the age of what is published.
    pub clock: Clock,
    /// What others may see of it.
    pub status: Arc<SinkStatus>,
}

/// Why a connection is no longer used.
enum Ended {
    Stopped,
    Failed(Fault),
}

/// The two queues that a sink is fed from, each with an order of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// The journal, from the cursor on.
    Live,
    /// What an operator wants to be published again, with the event's position.
    Again { position: u64 },
}

/// What a sink has before it.
struct Lanes {
    live: Order,
    again: Order,
    /// The positions of the events in `again`, whose own place is that in the queue of resends.
    origins: HashMap<u64, u64>,
}

/// What a piece of work has come to.
enum Step {
    /// The broker, or its client, has answered.
    Answered { attempt: Attempt, result: Result<Published, Failure> },
    /// The pause after a failure is over.
    Again { lane: Lane, record: Record, retries: u32 },
    /// It is durable that an event is dealt with otherwise than by the cursor alone.
    Noted { lane: Lane, position: u64 },
}

/// One try at publishing one event.
struct Attempt {
    lane: Lane,
    record: Record,
    retries: u32,
    category: &'static str,
    sent: Instant,
}

impl Forwarder {
    /// Publishes until `stop`, through any number of connections.
    pub async fn forward(self, stop: CancellationToken) {
        let mut lanes = Lanes {
            live: Order::after(self.journal.cursor(&self.name)),
            again: Order::after(0),
            origins: HashMap::new(),
        };
        let mut trouble = Trouble::new(&self.name);
        let mut failures = 0;
        while !stop.is_cancelled() {
            let connecting = tokio::select! {
                connecting = timeout(CONNECT_LIMIT, self.sink.connect()) => connecting,
                () = stop.cancelled() => break,
            };
            let fault = match connecting {
                Ok(Ok(connection)) => {
                    self.status.set_connected(connection.connected());
                    let mut session = Session::new(&self, &*connection, &mut lanes, &mut trouble);
                    let ended = session.run(&stop).await;
                    if session.published {
                        failures = 0;
                    }
                    self.status.disconnected();
                    connection.close(DRAIN_LIMIT).await;
                    match ended {
                        Ended::Stopped => break,
                        Ended::Failed(fault) => fault,
                    }
                }
                Ok(Err(failure)) => failure.fault().clone(),
                Err(_elapsed) => Fault { reason: Reason::Timeout, detail: "no connection in time".into() },
            };
            self.note_failure(&fault, &mut trouble);
            tokio::select! {
                () = sleep(BACKOFF.pause(failures, fastrand::f64())) => failures = failures.saturating_add(1),
                () = stop.cancelled() => break,
            }
        }
    }

    fn wants(&self, record: &Record) -> bool {
        self.types.is_empty() || self.types.iter().any(|pattern| glob::matches(pattern, &record.kind))
    }

    fn note_failure(&self, fault: &Fault, trouble: &mut Trouble) {
        self.metrics.sink_retries.with_label_values(&[self.name.as_str(), fault.reason.as_str()]).inc();
        self.status.set_failure(Some(fault.to_string()));
        trouble.failed(fault);
    }
}

/// The use of one connection.
struct Session<'a> {
    forwarder: &'a Forwarder,
    connection: &'a dyn Connection,
    lanes: &'a mut Lanes,
    trouble: &'a mut Trouble,
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
    /// How many of the steps wait for the broker; the others are pauses and dead letters under way.
    in_flight: usize,
    published: bool,
}

impl<'a> Session<'a> {
    fn new(
        forwarder: &'a Forwarder,
        connection: &'a dyn Connection,
        lanes: &'a mut Lanes,
        trouble: &'a mut Trouble,
    ) -> Self {
        // What was in flight on the last connection has an unknown outcome and goes out again.
        lanes.live.restart();
        lanes.again.restart();
        Self { forwarder, connection, lanes, trouble, steps: FuturesUnordered::new(), in_flight: 0, published: false }
    }

    /// Publishes until the connection fails, or until `stop` and what is in flight is acknowledged.
    async fn run(&mut self, stop: &CancellationToken) -> Ended {
        let mut durable = self.forwarder.journal.durable();
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut fetch = Fetch::<Batch>::new(self.forwarder.journal.clone());
        let mut fetch_again = Fetch::<Resends>::new(self.forwarder.journal.clone());
        let drained = sleep(Duration::MAX);
        tokio::pin!(drained);
        let mut stopping = false;
        loop {
            if stopping && self.steps.is_empty() {
                return Ended::Stopped;
            }
            if !stopping {
                let through = self.lanes.live.through();
                if self.lanes.live.has_room() && through < *durable.borrow_and_update() {
                    fetch.start(move |reader| reader.after(through, AHEAD, &Filter::default()));
                }
                self.send_what_is_due();
            }
            self.forwarder.status.set_in_flight(self.in_flight as u64);
            tokio::select! {
                Some(step) = self.steps.next() => if let Err(fault) = self.step(step) {
                    return Ended::Failed(fault);
                },
                batch = fetch.finished() => self.take_in(batch),
                resends = fetch_again.finished() => self.take_in_again(resends),
                changed = durable.changed(), if !stopping && !fetch.is_running() => if changed.is_err() {
                    return Ended::Stopped;
                },
                _ = look.tick() => {
                    self.look();
                    if !stopping {
                        self.fetch_again(&mut fetch_again);
                    }
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    drained.as_mut().reset(Instant::now() + DRAIN_LIMIT);
                }
                () = &mut drained => return Ended::Stopped,
            }
        }
    }

    /// A client that reconnects by itself (Kafka's) fails no publish meanwhile, so its outage must be seen
    /// and said here.
    fn look(&mut self) {
        let Forwarder { status, .. } = self.forwarder;
        let connected = self.connection.connected();
        if status.connected() && !connected {
            let fault = Fault { reason: Reason::Connection, detail: "the broker cannot be reached".into() };
            self.forwarder.note_failure(&fault, self.trouble);
        }
        status.set_connected(connected);
    }

    /// Reads what an operator wants to be published again.
    fn fetch_again(&self, fetch: &mut Fetch<Resends>) {
        let Forwarder { name, journal, clock, .. } = self.forwarder;
        if journal.resends(name) > 0 && self.lanes.again.has_room() {
            let (sink, through, now_ms) = (name.clone(), self.lanes.again.through(), clock.now_ms());
            fetch.start(move |reader| reader.resends(&sink, through, now_ms, AHEAD.rows));
        }
    }

    /// Puts what was read in line, by its key.
    fn take_in(&mut self, batch: Batch) {
        for row in batch.rows {
            match row {
                Row::Intact(record) if self.forwarder.wants(&record) => self.lanes.live.add(record),
                Row::Intact(record) => self.lanes.live.pass(record.position),
                Row::Damaged { position } => {
                    self.lanes.live.hold(position);
                    let detail = "the stored event does not match its checksum";
                    self.set_aside(Lane::Live, position, Fault { reason: Reason::Damaged, detail: detail.into() });
                }
            }
        }
        self.advance();
    }

    fn take_in_again(&mut self, resends: Resends) {
        for Resend { mut record, position, replayed } in resends.due {
            if record.position <= self.lanes.again.through() {
                continue;
            }
            // What is no envelope is found out when it is sent.
            if replayed && let Ok(marked) = envelope::replayed(&record.payload) {
                record.payload = marked;
            }
            self.lanes.origins.insert(record.position, position);
            self.lanes.again.add(record);
        }
        for seq in resends.gone {
            tracing::warn!(sink = self.forwarder.name, "an event to be published again is no longer kept");
            self.lanes.again.hold(seq);
            self.note(Lane::Again { position: 0 }, seq, Resent::Gone);
        }
    }

    fn send_what_is_due(&mut self) {
        while self.in_flight < IN_FLIGHT {
            if let Some(record) = self.lanes.live.take() {
                self.send(Lane::Live, record, 0);
            } else if let Some(record) = self.lanes.again.take() {
                let position = self.lanes.origins.get(&record.position).copied().unwrap_or_default();
                self.send(Lane::Again { position }, record, 0);
            } else {
                return;
            }
        }
    }

    fn send(&mut self, lane: Lane, record: Record, retries: u32) {
        let (publishing, category) = match View::parse(&record.payload) {
            Ok(event) => (self.connection.publish(&event), Category::of(event.category()).label()),
            Err(error) => {
                let fault = Fault { reason: Reason::Damaged, detail: error.to_string() };
                return self.set_aside(lane, record.position, fault);
            }
        };
        let attempt = Attempt { lane, record, retries, category, sent: Instant::now() };
        self.in_flight += 1;
        self.steps.push(Box::pin(async move { Step::Answered { attempt, result: publishing.await } }));
    }

    /// Does what follows from a step; an error ends the session.
    fn step(&mut self, step: Step) -> Result<(), Fault> {
        if let Step::Answered { .. } = step {
            self.in_flight -= 1;
        }
        match step {
            Step::Answered { attempt, result: Ok(published) } => self.acknowledged(&attempt, published),
            Step::Answered { attempt, result: Err(Failure::Retry(fault)) } => self.pause(attempt, &fault),
            Step::Answered { attempt, result: Err(Failure::Reject(fault)) } => {
                self.set_aside(attempt.lane, attempt.record.position, fault);
            }
            Step::Answered { result: Err(Failure::Fatal(fault)), .. } => return Err(fault),
            Step::Again { lane, record, retries } => self.send(lane, record, retries),
            Step::Noted { lane, position } => self.finish(lane, position),
        }
        Ok(())
    }

    fn acknowledged(&mut self, attempt: &Attempt, published: Published) {
        let Forwarder { name, metrics, clock, status, .. } = self.forwarder;
        let sent = attempt.sent.elapsed().as_secs_f64();
        metrics.sink_published.with_label_values(&[name.as_str(), attempt.category]).inc();
        metrics.sink_publish_seconds.with_label_values(&[name]).observe(sent);
        if published.duplicate {
            metrics.sink_broker_duplicates.with_label_values(&[name]).inc();
        }
        if self.trouble.is_over() {
            status.set_failure(None);
        }
        self.published = true;
        match attempt.lane {
            Lane::Live => {
                let age_ms = clock.now_ms().saturating_sub(attempt.record.accepted_ms).max(0);
                metrics.delivery_to_broker_seconds.with_label_values(&[name]).observe(age_ms as f64 / 1000.0);
                self.finish(Lane::Live, attempt.record.position);
            }
            lane @ Lane::Again { .. } => {
                metrics.sink_resent.with_label_values(&[name]).inc();
                self.note(lane, attempt.record.position, Resent::Published);
            }
        }
    }

    /// The event is dealt with, and nothing about it is left to be written down.
    fn finish(&mut self, lane: Lane, position: u64) {
        match lane {
            Lane::Live => {
                self.lanes.live.finish(position);
                self.advance();
            }
            Lane::Again { .. } => {
                self.lanes.again.finish(position);
                self.lanes.origins.remove(&position);
            }
        }
    }

    /// Keeps the event's place, and with it its key's, until the pause is over.
    fn pause(&mut self, attempt: Attempt, fault: &Fault) {
        self.forwarder.note_failure(fault, self.trouble);
        let Attempt { lane, record, retries, .. } = attempt;
        let pause = BACKOFF.pause(retries, fastrand::f64());
        self.steps.push(Box::pin(async move {
            sleep(pause).await;
            Step::Again { lane, record, retries: retries.saturating_add(1) }
        }));
    }

    /// Only once the dead letter is durable may the events behind it go on.
    fn set_aside(&mut self, lane: Lane, position: u64, fault: Fault) {
        let Forwarder { name, journal, clock, .. } = self.forwarder;
        let origin = if let Lane::Again { position } = lane { position } else { position };
        tracing::error!(
            sink = name,
            position = origin,
            reason = fault.reason.as_str(),
            detail = fault.detail,
            "event set aside"
        );
        let letter = DeadLetter {
            sink: name.clone(),
            position: origin,
            reason: fault.reason.as_str().into(),
            detail: fault.detail,
            at_ms: clock.now_ms(),
        };
        if let Lane::Again { .. } = lane {
            return self.note(lane, position, Resent::Refused(letter));
        }
        let journal = journal.clone();
        self.steps.push(Box::pin(async move {
            until_durable(|| journal.set_aside(letter.clone())).await;
            Step::Noted { lane, position }
        }));
    }

    /// Writes down what became of a resend.
    fn note(&mut self, lane: Lane, seq: u64, outcome: Resent) {
        let Forwarder { name, journal, .. } = self.forwarder;
        let (name, journal) = (name.clone(), journal.clone());
        let origin = if let Lane::Again { position } = lane { position } else { seq };
        self.steps.push(Box::pin(async move {
            until_durable(|| journal.resent(&name, seq, origin, outcome.clone())).await;
            Step::Noted { lane, position: seq }
        }));
    }

    fn advance(&mut self) {
        self.forwarder.journal.advance(&self.forwarder.name, self.lanes.live.cursor());
    }
}

/// Writes until the journal has it. A journal that can't be written answers no deliveries either, and
/// is being opened again meanwhile.
async fn until_durable<W: Future<Output = Result<(), AppendError>>>(write: impl Fn() -> W) {
    while let Err(error) = write().await {
        tracing::debug!(%error, "not written down yet");
        sleep(BACKOFF.longest).await;
    }
}

#[cfg(test)]
mod tests;
