//! Forwarding over one connection: from reading ahead to the cursor.
//!
//! A session ends with its connection. What it had in flight then has an unknown outcome and goes out again
//! on the next one, in order; what is dealt with stays dealt with.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::fetch::Fetch;
use super::order::Order;
use super::pace::Pace;
use super::trouble::Trouble;
use super::{BACKOFF, DRAIN_LIMIT, Forwarder};
use crate::domain::envelope::{self, View};
use crate::journal::{AppendError, Batch, DeadLetter, Filter, Limits, Record, Resend, Resends, Resent, Row};
use crate::sendbird::category::Category;
use crate::sink::{Connection, Failure, Fault, Published, Reason};
use crate::traces::{End, Publish};

/// How much is read from the journal at a time.
const AHEAD: Limits = Limits { rows: 256, bytes: 1024 * 1024 };

/// How often a connection is asked whether it is one.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why a connection is no longer used.
pub(super) enum Ended {
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

impl Lane {
    fn is_again(self) -> bool {
        matches!(self, Self::Again { .. })
    }
}

/// What a sink has before it.
pub(super) struct Lanes {
    live: Order,
    again: Order,
    /// The positions of the events in `again`, whose own place is that in the queue of resends.
    origins: HashMap<u64, u64>,
    pace: Pace,
}

impl Lanes {
    /// Nothing read yet after a sink's cursor.
    pub(super) fn after(cursor: u64) -> Self {
        let (live, again) = (Order::after(cursor), Order::after(0));
        Self { live, again, origins: HashMap::new(), pace: Pace::new() }
    }

    fn order(&mut self, lane: Lane) -> &mut Order {
        match lane {
            Lane::Live => &mut self.live,
            Lane::Again { .. } => &mut self.again,
        }
    }
}

/// What a piece of work has come to.
enum Step {
    /// The broker, or its client, has answered.
    Answered { attempt: Attempt, result: Result<Published, Failure> },
    /// The pause after a failure is over.
    Due { lane: Lane, position: u64 },
    /// It is durable that an event is dealt with otherwise than by the cursor alone.
    Noted { lane: Lane, position: u64 },
}

/// One try at publishing one event.
struct Attempt {
    lane: Lane,
    record: Record,
    category: &'static str,
    sent: Instant,
    span: Publish,
}

/// The tries of one event that have failed.
struct Tries {
    failed: u32,
    /// When the first of them began.
    begun: Instant,
}

/// The use of one connection.
pub(super) struct Session<'a> {
    forwarder: &'a Forwarder,
    connection: &'a dyn Connection,
    lanes: &'a mut Lanes,
    trouble: &'a mut Trouble,
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
    /// How many of the steps wait for the broker; the others are pauses and dead letters under way.
    in_flight: usize,
    /// What has failed, by its place and whether it is a resend.
    retries: HashMap<(bool, u64), Tries>,
    /// Whether anything was published over this connection.
    pub(super) published: bool,
    /// Why the last look found no connection, if it did not.
    gone: Option<Fault>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        forwarder: &'a Forwarder,
        connection: &'a dyn Connection,
        lanes: &'a mut Lanes,
        trouble: &'a mut Trouble,
    ) -> Self {
        // What was in flight on the last connection has an unknown outcome and goes out again.
        lanes.live.restart();
        lanes.again.restart();
        let (steps, retries) = (FuturesUnordered::new(), HashMap::new());
        Self { forwarder, connection, lanes, trouble, steps, in_flight: 0, retries, published: false, gone: None }
    }

    /// Publishes until the connection fails, or until `stop` and what is in flight is acknowledged.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> Ended {
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
                    if let Err(fault) = self.look() {
                        return Ended::Failed(fault);
                    }
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

    /// A client that reconnects by itself (Kafka's), and one whose broker takes nothing for now (RabbitMQ's), fail
    /// no publish meanwhile, so that must be seen and said here. The others lose their connection with nothing to
    /// publish as well, and would stay without one until the next event. What such a client says of why changes while
    /// it tries on: who cannot be reached at first may be back with a certificate that nobody takes.
    fn look(&mut self) -> Result<(), Fault> {
        let Forwarder { status, .. } = self.forwarder;
        let gone = match self.connection.state() {
            Err(Failure::Fatal(fault)) => return Err(fault),
            Err(failure) => Some(failure.fault().clone()),
            Ok(()) => None,
        };
        match &gone {
            Some(fault) if self.gone.as_ref() != Some(fault) => self.forwarder.note_failure(fault, self.trouble),
            None if !status.connected() => self.trouble.connected(),
            Some(_) | None => {}
        }
        status.set_connected(gone.is_none());
        self.gone = gone;
        self.trouble.say_the_rest();
        Ok(())
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
        let window = self.lanes.pace.window(self.connection.window());
        while self.in_flight < window {
            if let Some(record) = self.lanes.live.take() {
                self.send(Lane::Live, record);
            } else if let Some(record) = self.lanes.again.take() {
                let position = self.lanes.origins.get(&record.position).copied().unwrap_or_default();
                self.send(Lane::Again { position }, record);
            } else {
                return;
            }
        }
    }

    fn send(&mut self, lane: Lane, record: Record) {
        let (publishing, category, span) = match View::parse(&record.payload) {
            Ok(event) => {
                let span = self.forwarder.publisher.begin(&event);
                (self.connection.publish(&event), Category::of(event.category()).label(), span)
            }
            Err(error) => {
                let fault = Fault { reason: Reason::Damaged, detail: error.to_string() };
                return self.set_aside(lane, record.position, fault);
            }
        };
        let attempt = Attempt { lane, record, category, sent: Instant::now(), span };
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
            Step::Answered { attempt, result: Err(failure) } => return self.failed(&attempt, failure),
            Step::Due { lane, position } => self.lanes.order(lane).again(position),
            Step::Noted { lane, position } => self.finish(lane, position),
        }
        Ok(())
    }

    /// An error ends the session.
    fn failed(&mut self, attempt: &Attempt, failure: Failure) -> Result<(), Fault> {
        let silent = match failure.fault().reason {
            Reason::Timeout => self.lanes.pace.late(attempt.sent),
            _ => {
                self.lanes.pace.heard();
                false
            }
        };
        match failure {
            Failure::Retry(fault) if !silent => self.pause(attempt, &fault),
            Failure::Reject(fault) => {
                self.end_span(attempt, Some(fault.reason));
                self.set_aside(attempt.lane, attempt.record.position, fault);
            }
            Failure::Retry(fault) | Failure::Fatal(fault) => return Err(fault),
        }
        Ok(())
    }

    fn acknowledged(&mut self, attempt: &Attempt, published: Published) {
        self.lanes.pace.acknowledged(self.connection.window());
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
        self.end_span(attempt, None);
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

    /// The broker has the event, or has refused it for good. What is cut off with its connection has no span: it goes out
    /// again, and this session knows nothing of the next.
    fn end_span(&self, attempt: &Attempt, refused: Option<Reason>) {
        let tries = self.retries.get(&(attempt.lane.is_again(), attempt.record.position));
        let end = End {
            begun: tries.map_or(attempt.sent, |tries| tries.begun),
            retries: tries.map_or(0, |tries| tries.failed),
            again: attempt.lane.is_again(),
            category: attempt.category,
            refused: refused.map(Reason::as_str),
        };
        self.forwarder.publisher.end(&attempt.span, end);
    }

    /// The event is dealt with, and nothing about it is left to be written down.
    fn finish(&mut self, lane: Lane, position: u64) {
        self.retries.remove(&(lane.is_again(), position));
        self.lanes.order(lane).finish(position);
        match lane {
            Lane::Live => self.advance(),
            Lane::Again { .. } => drop(self.lanes.origins.remove(&position)),
        }
    }

    /// Keeps the event's place, and with it its key's, until the pause is over.
    fn pause(&mut self, attempt: &Attempt, fault: &Fault) {
        self.forwarder.note_failure(fault, self.trouble);
        let (lane, position) = (attempt.lane, attempt.record.position);
        let first = Tries { failed: 0, begun: attempt.sent };
        let tries = self.retries.entry((lane.is_again(), position)).or_insert(first);
        let pause = BACKOFF.pause(tries.failed, fastrand::f64());
        tries.failed = tries.failed.saturating_add(1);
        self.steps.push(Box::pin(async move {
            sleep(pause).await;
            Step::Due { lane, position }
        }));
    }

    /// Only once the dead letter is durable may the events behind it go on.
    fn set_aside(&mut self, lane: Lane, position: u64, fault: Fault) {
        let Forwarder { name, journal, clock, .. } = self.forwarder;
        let origin = if let Lane::Again { position } = lane { position } else { position };
        self.trouble.set_aside(origin, &fault);
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
