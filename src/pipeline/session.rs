//! Publishing over one connection.
//!
//! A session ends with its connection. What it had in flight then has an unknown outcome and is sent once more on the
//! next one, in order; what the sink is done with stays done with, and what is parked stays parked.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, sleep};
use tokio_util::sync::CancellationToken;

use super::backlog::Backlog;
use super::failure_log::FailureLog;
use super::flight::{Answer, Attempt, Dispatch, Flight, Next};
use super::queue::{Head, Place};
use super::targets::{Moment, Scope};
use super::{DRAIN_LIMIT, Forwarder};
use crate::journal::Origin;
use crate::sink::{About, Ack, Connection, Failure, Fault, Reason};
use crate::traces::End;

/// How often a connection is asked whether it is one, and what has no event of its own is looked after.
const TICK: Duration = Duration::from_millis(500);

/// Stuck events that are recorded in one tick.
const RECORDED_PER_TICK: usize = 8192;

/// Why a connection is no longer used.
pub(super) enum Ended {
    Stopped,
    Failed(Fault),
}

/// The use of one connection.
pub(super) struct Session<'a> {
    pub(super) forwarder: &'a Forwarder,
    pub(super) connection: &'a dyn Connection,
    pub(super) backlog: &'a mut Backlog,
    log: &'a mut FailureLog,
    /// What takes a place in the window.
    pub(super) flights: FuturesUnordered<Flight>,
    /// What has given its place back, because it is without an answer for long.
    pub(super) unanswered: FuturesUnordered<Flight>,
    /// When the full window is looked at next.
    pub(super) look_at: Option<Instant>,
    /// Whether an event is being tried apart from the others, and those that wait for the same.
    is_alone: bool,
    waiting_to_be_alone: Vec<Head>,
    /// When the newest of those events was sent that the broker has acknowledged.
    pub(super) newest_acknowledged: Option<Instant>,
    /// Whether anything was published over this connection.
    pub(super) has_published: bool,
    /// Why the client had no connection when it was last asked.
    away: Option<Fault>,
    /// What has failed over this connection and has a span.
    tries: HashMap<Place, Tries>,
}

/// The tries of one event that have failed.
struct Tries {
    failed: u32,
    /// When the first of them began.
    begun: Instant,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        forwarder: &'a Forwarder,
        connection: &'a dyn Connection,
        backlog: &'a mut Backlog,
        log: &'a mut FailureLog,
    ) -> Self {
        Self {
            forwarder,
            connection,
            backlog,
            log,
            flights: FuturesUnordered::new(),
            unanswered: FuturesUnordered::new(),
            look_at: None,
            is_alone: false,
            waiting_to_be_alone: Vec::new(),
            newest_acknowledged: None,
            has_published: false,
            away: None,
            tries: HashMap::new(),
        }
    }

    /// Publishes until the connection fails, or until `stop` and what is in flight is acknowledged.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> Ended {
        let is_connected = self.connection.state().is_ok();
        self.set_connected(is_connected);
        if is_connected {
            self.log.connected();
        }
        self.report_warnings();
        let ended = self.publish(stop).await;
        self.set_connected(false);
        self.line_up_what_is_open();
        ended
    }

    async fn publish(&mut self, stop: &CancellationToken) -> Ended {
        let mut durable = self.forwarder.journal.durable();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (drained, wake) = (sleep(Duration::MAX), sleep(Duration::MAX));
        tokio::pin!(drained, wake);
        let mut stopping = false;
        loop {
            if stopping && self.flights.is_empty() && self.backlog.writes.is_empty() {
                return Ended::Stopped;
            }
            let mut is_waking = false;
            if !stopping {
                let next = self.send_what_is_due();
                self.backlog.read(self.forwarder, &mut durable);
                if let Some(at) = next.into_iter().chain(self.next_look()).min() {
                    is_waking = true;
                    if wake.deadline() != at {
                        wake.as_mut().reset(at);
                    }
                }
            }
            self.forwarder.status.set_in_flight(self.flights.len());
            let backlog = &mut *self.backlog;
            let outcome = tokio::select! {
                Some(answer) = self.flights.next() => self.answered(answer),
                Some(answer) = self.unanswered.next() => self.answered(answer),
                Some(head) = backlog.writes.next() => {
                    backlog.done(head);
                    backlog.carry_out_requests(self.forwarder);
                    Ok(())
                }
                batch = backlog.batches.finished() => {
                    backlog.add(self.forwarder, batch);
                    Ok(())
                }
                found = backlog.payloads.finished() => {
                    backlog.load(self.forwarder, found);
                    Ok(())
                }
                resends = backlog.resends.fetch.finished() => {
                    backlog.resends.add(&mut backlog.queue, resends);
                    Ok(())
                }
                changed = durable.changed(), if !stopping && !backlog.batches.is_running() => match changed {
                    Ok(()) => Ok(()),
                    Err(_closed) => return Ended::Stopped,
                },
                _ = tick.tick() => self.on_tick(stopping),
                () = &mut wake, if is_waking => self.give_back_slots(&self.backlog.moment(self.forwarder)),
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    drained.as_mut().reset(Instant::now() + DRAIN_LIMIT);
                    Ok(())
                }
                () = &mut drained => return Ended::Stopped,
            };
            if let Err(fault) = outcome {
                return Ended::Failed(fault);
            }
        }
    }

    /// Does what is to be done now and then; an error ends the session.
    fn on_tick(&mut self, stopping: bool) -> Result<(), Fault> {
        self.check_connection()?;
        self.report_warnings();
        self.log.flush(std::time::Instant::now());
        if stopping {
            return Ok(());
        }
        let now = self.backlog.moment(self.forwarder);
        self.give_back_slots(&now)?;
        self.record_stuck(&now);
        self.backlog.resends.tick();
        self.backlog.drop_cancelled_resends(self.forwarder);
        self.backlog.read_requests(self.forwarder);
        self.backlog.carry_out_requests(self.forwarder);
        Ok(())
    }

    /// Logs a warning once, and not once more on the next connection.
    fn report_warnings(&self) {
        for detail in self.forwarder.status.set_warnings(self.connection.warnings()) {
            tracing::warn!(sink = self.forwarder.name, detail, "the broker's settings put events at risk");
        }
    }

    /// A client that reconnects by itself (Kafka's), and one whose broker takes nothing for now (RabbitMQ's), fail no
    /// publish meanwhile, so this is where that is seen. The others lose their connection with nothing to publish as
    /// well, and would stay without one until the next event. Why a client has no connection changes while it retries:
    /// a broker that cannot be reached at first may be back with a certificate that nobody accepts.
    fn check_connection(&mut self) -> Result<(), Fault> {
        let away = match self.connection.state() {
            Err(Failure::Fatal(fault)) => return Err(fault),
            Err(failure) => Some(failure.fault().clone()),
            Ok(()) => None,
        };
        match &away {
            Some(fault) if self.away.as_ref() != Some(fault) => self.forwarder.note_failure(fault, self.log),
            None if !self.forwarder.status.connected() => self.log.connected(),
            Some(_) | None => {}
        }
        self.set_connected(away.is_none());
        self.away = away;
        Ok(())
    }

    fn set_connected(&mut self, is_connected: bool) {
        self.forwarder.status.set_connected(is_connected, self.forwarder.clock.now_ms());
        self.backlog.connected.set(is_connected, Instant::now());
    }

    fn record_stuck(&mut self, now: &Moment) {
        let Forwarder { name, journal, status, .. } = self.forwarder;
        let Backlog { queue, targets, .. } = &mut *self.backlog;
        let stuck = targets.newly_stuck(queue, now.connected, RECORDED_PER_TICK);
        status.set_stuck(queue.stuck());
        if let Some(event) = stuck.last() {
            self.log.stuck(&event.target, &event.reason, queue.stuck(), now.at.into_std());
            journal.record_stuck(name, stuck);
        }
    }

    /// Sends as much as there is room for. Returns when there will be more, if nothing else happens before.
    fn send_what_is_due(&mut self) -> Option<Instant> {
        let now = self.backlog.moment(self.forwarder);
        if let Some(end) = self.backlog.pause.ends(now.at) {
            return Some(end);
        }
        let window = self.window();
        self.backlog.release_parked(now.at, window);
        while self.flights.len() < window {
            let Backlog { queue, targets, ended_connections, .. } = &mut *self.backlog;
            let Some(item) = queue.take() else { break };
            let (head, origin, position) = (item.head(), item.origin, item.record.position);
            let dispatch = Dispatch {
                forwarder: self.forwarder,
                connection: self.connection,
                targets,
                ended_connections,
                is_alone: self.is_alone,
                now: &now,
            };
            match dispatch.next(item) {
                Next::Send(flight) => {
                    self.is_alone |= flight.attempt().is_some_and(|attempt| attempt.is_alone);
                    self.flights.push(flight);
                }
                Next::Park(scope) => {
                    queue.park(head);
                    targets.park(&scope, head, now.at);
                }
                Next::SetAside(fault) => self.set_aside((head, origin, position), fault),
                Next::Wait => self.waiting_to_be_alone.push(head),
                Next::Drop => {
                    targets.withdrawn(head.place, now.at);
                    self.backlog.done(head);
                }
            }
        }
        self.backlog.targets.next_release(window)
    }

    pub(super) fn window(&self) -> usize {
        self.backlog.congestion.size(self.connection.window())
    }

    /// An error ends the session.
    fn answered(&mut self, (attempt, result): Answer) -> Result<(), Fault> {
        if attempt.is_alone {
            self.end_alone();
        }
        match result {
            Ok(published) => self.acknowledged(&attempt, published),
            Err(failure) => return self.failed(&attempt, failure),
        }
        Ok(())
    }

    /// The next event may be tried apart from the others.
    pub(super) fn end_alone(&mut self) {
        self.is_alone = false;
        self.waiting_to_be_alone.drain(..).for_each(|head| self.backlog.queue.retry(head));
    }

    fn acknowledged(&mut self, attempt: &Attempt, ack: Ack) {
        let (now, window) = (Instant::now(), self.connection.window());
        let Forwarder { name, metrics, clock, status, .. } = self.forwarder;
        self.backlog.congestion.acknowledged(window, now);
        self.backlog.pause.succeeded();
        self.newest_acknowledged = self.newest_acknowledged.max(Some(attempt.sent));
        self.has_published = true;
        let seconds = now.duration_since(attempt.sent).as_secs_f64();
        metrics.sink_published.with_label_values(&[name.as_str(), attempt.category]).inc();
        metrics.sink_publish_seconds.with_label_values(&[name]).observe(seconds);
        if ack.duplicate {
            metrics.sink_broker_duplicates.with_label_values(&[name]).inc();
        }
        let now_ms = clock.now_ms();
        status.published(now_ms);
        if attempt.origin.is_some() {
            metrics.sink_resent.with_label_values(&[name]).inc();
        } else {
            let age_ms = now_ms.saturating_sub(attempt.accepted_ms).max(0);
            metrics.delivery_to_broker_seconds.with_label_values(&[name]).observe(age_ms as f64 / 1000.0);
        }
        let targets = &mut self.backlog.targets;
        if !targets.is_empty() {
            targets.succeeded(attempt.head.place, attempt.target.as_ref(), window);
        }
        if targets.is_empty() && self.log.recovered(now.into_std()) {
            status.recovered();
        }
        self.end_span(attempt, None);
        self.backlog.published(self.forwarder, attempt.head, attempt.origin, attempt.position);
    }

    /// An error ends the session.
    fn failed(&mut self, attempt: &Attempt, failure: Failure) -> Result<(), Fault> {
        let now = self.backlog.moment(self.forwarder);
        let is_silent = match failure.fault().reason {
            Reason::Timeout => self.backlog.congestion.late(attempt.sent),
            _ => {
                self.backlog.congestion.answered(now.at);
                false
            }
        };
        let (about, fault) = match failure {
            Failure::Reject(fault) => {
                self.end_span(attempt, Some(fault.reason));
                self.set_aside((attempt.head, attempt.origin, attempt.position), fault);
                return Ok(());
            }
            // It had a channel of its own, so that says nothing of the connection.
            Failure::Fatal(fault) if attempt.is_alone => (About::Event, fault),
            Failure::Retry(about, fault) if attempt.is_alone || !is_silent => (about, fault),
            Failure::Retry(_, fault) | Failure::Fatal(fault) => {
                *self.backlog.ended_connections.entry(attempt.head.place).or_default() += 1;
                self.line_up(attempt.head, &now);
                return Err(fault);
            }
        };
        self.forwarder.note_failure(&fault, self.log);
        if self.backlog.requested.contains(&attempt.head.place) {
            self.set_aside((attempt.head, attempt.origin, attempt.position), fault);
            return Ok(());
        }
        self.count_try(attempt);
        self.retry_later(attempt.head, about, &fault, &now);
        Ok(())
    }

    /// The event keeps its place, and its key waits with it.
    fn retry_later(&mut self, head: Head, about: About, fault: &Fault, now: &Moment) {
        let Backlog { queue, targets, pause, congestion, .. } = &mut *self.backlog;
        let scope = match about {
            About::EveryEvent => {
                targets.withdrawn(head.place, now.at);
                queue.retry(head);
                pause.failed(now);
                congestion.refused();
                return;
            }
            About::Target(target) => Scope::Target(target),
            About::Event => Scope::Event(head.place),
        };
        queue.park(head);
        targets.failed(&scope, head, fault, now);
    }

    fn set_aside(&mut self, event: (Head, Option<Origin>, u64), fault: Fault) {
        let now = Instant::now();
        let payload = self.backlog.queue.item(event.0.place).map(|item| &item.record.payload);
        self.log.set_aside(event.2, payload, &fault, now.into_std());
        self.backlog.targets.withdrawn(event.0.place, now);
        self.backlog.set_aside(self.forwarder, event, fault);
    }

    fn count_try(&mut self, attempt: &Attempt) {
        if attempt.span.is_recorded() {
            let first = Tries { failed: 0, begun: attempt.sent };
            let tries = self.tries.entry(attempt.head.place).or_insert(first);
            tries.failed = tries.failed.saturating_add(1);
        }
    }

    /// The broker has the event, or has refused it for good. What is cut off with its connection has no span: it is sent
    /// once more, and this session knows nothing of the next.
    fn end_span(&mut self, attempt: &Attempt, refused: Option<Reason>) {
        let tries = if self.tries.is_empty() { None } else { self.tries.remove(&attempt.head.place) };
        let end = End {
            begun: tries.as_ref().map_or(attempt.sent, |tries| tries.begun),
            retries: tries.as_ref().map_or(0, |tries| tries.failed),
            resend: attempt.origin.is_some(),
            category: attempt.category,
            refused: refused.map(Reason::as_str),
        };
        self.forwarder.publisher.end(&attempt.span, end);
    }

    /// An event whose outcome is unknown is lined up, or stays parked if it was without an answer for long.
    fn line_up(&mut self, head: Head, now: &Moment) {
        if self.backlog.targets.silent_scope(head.place).is_some() {
            self.give_up(head, now);
        } else {
            self.backlog.queue.retry(head);
        }
    }

    /// Whatever was in flight has an unknown outcome and is lined up, in order. What is parked stays parked.
    fn line_up_what_is_open(&mut self) {
        let now = self.backlog.moment(self.forwarder);
        self.end_alone();
        for flight in std::mem::take(&mut self.flights).into_iter().chain(std::mem::take(&mut self.unanswered)) {
            flight.attempt().into_iter().for_each(|attempt| self.line_up(attempt.head, &now));
        }
    }
}
