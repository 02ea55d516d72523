//! Publishes without an answer.
//!
//! Some clients never give up by themselves, and some queues and partitions never answer, while all others do. Such a
//! publish gives its place in the window back after a while. Its future goes on, its key waits, and its target is parked
//! until it is answered, so that its like do not follow it.

use std::time::Duration;

use tokio::time::Instant;

use super::flight::{Attempt, Flight};
use super::queue::Head;
use super::session::Session;
use super::stuck::STUCK_AFTER;
use super::targets::{Moment, Scope};
use crate::domain::envelope::View;
use crate::sink::{Fault, Reason};

/// A publish gives its place in the window back when it is unanswered for so long and another one, sent after it, is
/// answered.
const UNANSWERED_AFTER: Duration = Duration::from_secs(10);

/// The same where much of the window is at stake, and the other one was sent so much later.
const OVERTAKEN_BY: Duration = Duration::from_secs(1);

/// The same where others are known to be without an answer, so that their like do not take the window from all others.
const OVERTAKEN_BY_ONE_MORE: Duration = Duration::from_millis(200);

/// How often that is looked at while the window is full.
const LOOK: Duration = Duration::from_millis(100);

/// A connection ends when it has answered nothing for so long.
const SILENT_AFTER: Duration = Duration::from_secs(30);

impl Session<'_> {
    /// When [`Session::give_back_slots`] is worth a look because nothing else can be sent.
    pub(super) fn next_look(&mut self) -> Option<Instant> {
        if self.connection.unanswered() == 0 || self.flights.len() < self.window() {
            self.look_at = None;
        } else if self.look_at.is_none() {
            self.look_at = Some(Instant::now() + LOOK);
        }
        self.look_at
    }

    /// Takes out of the window what is without an answer for long; an error ends the session.
    pub(super) fn give_back_slots(&mut self, now: &Moment) -> Result<(), Fault> {
        self.look_at = None;
        let most = self.connection.unanswered();
        if most == 0 || !self.forwarder.status.connected() {
            return Ok(());
        }
        self.check_silence(now)?;
        let is_tight = !self.unanswered.is_empty() || self.flights.len() * 2 >= self.window();
        let is_overdue = |session: &Self, attempt: &Attempt| session.is_overdue(attempt, is_tight, now);
        if self.flights.iter().filter_map(Flight::attempt).any(|attempt| is_overdue(self, attempt)) {
            for flight in std::mem::take(&mut self.flights) {
                let overdue = flight.attempt().filter(|attempt| is_overdue(self, attempt));
                let scope = overdue.and_then(|attempt| self.silent_scope(attempt, now));
                match overdue.zip(scope) {
                    Some((attempt, scope)) => {
                        let (head, sent, is_alone) = (attempt.head, attempt.sent_connected, attempt.is_alone);
                        self.unanswered.push(flight);
                        self.backlog.queue.park(head);
                        self.backlog.targets.fell_silent(scope, head, sent, now);
                        if is_alone {
                            self.end_alone();
                        }
                    }
                    None => self.flights.push(flight),
                }
            }
        }
        self.bound_unanswered(most, now)
    }

    /// Ends a connection that answers nothing at all, unless its client keeps every publish and goes on trying by itself.
    fn check_silence(&mut self, now: &Moment) -> Result<(), Fault> {
        if !self.connection.can_abandon() {
            return Ok(());
        }
        let attempts = self.flights.iter().filter_map(Flight::attempt).filter(|attempt| !attempt.is_alone);
        let Some(oldest) = attempts.min_by_key(|attempt| attempt.sent) else { return Ok(()) };
        let is_late = now.connected.saturating_sub(oldest.sent_connected) >= SILENT_AFTER;
        if !is_late || !self.backlog.congestion.is_silent_since(oldest.sent) {
            return Ok(());
        }
        self.backlog.congestion.late(oldest.sent);
        *self.backlog.ended_connections.entry(oldest.head.place).or_default() += 1;
        let detail = format!("no answer to any publish for {} s", SILENT_AFTER.as_secs());
        Err(Fault { reason: Reason::Timeout, detail })
    }

    fn is_overdue(&self, attempt: &Attempt, is_tight: bool, now: &Moment) -> bool {
        let overtaken_by = self.newest_acknowledged.map(|newest| newest.saturating_duration_since(attempt.sent));
        let overtaken_by = overtaken_by.filter(|overtaken_by| !overtaken_by.is_zero());
        let enough = if self.unanswered.is_empty() { OVERTAKEN_BY } else { OVERTAKEN_BY_ONE_MORE };
        let age = now.at.saturating_duration_since(attempt.sent);
        // Where nobody is answered there is no hurry, but the events are stuck.
        now.connected.saturating_sub(attempt.sent_connected) >= STUCK_AFTER
            || overtaken_by.is_some() && age >= UNANSWERED_AFTER
            || is_tight && overtaken_by.is_some_and(|overtaken_by| overtaken_by >= enough)
    }

    /// What an overdue publish is parked under. `None` while it is not yet known where it went: it keeps its place in the
    /// window, since a wider target would hold up events that go elsewhere. When it is stuck it is parked alone.
    fn silent_scope(&self, attempt: &Attempt, now: &Moment) -> Option<Scope> {
        let place = attempt.head.place;
        let Some(Ok(event)) = self.backlog.queue.item(place).map(|item| View::parse(&item.record.payload)) else {
            return Some(Scope::Event(place));
        };
        let target = self.connection.silent_target(&event).map(Scope::Target);
        let is_stuck = now.connected.saturating_sub(attempt.sent_connected) >= STUCK_AFTER;
        target.or_else(|| is_stuck.then_some(Scope::Event(place)))
    }

    /// Gives up the oldest where there are too many, or the connection where that is not safe.
    fn bound_unanswered(&mut self, most: usize, now: &Moment) -> Result<(), Fault> {
        let too_many = self.unanswered.len().saturating_sub(most);
        if too_many == 0 {
            return Ok(());
        }
        if !self.connection.can_abandon() {
            let detail = format!("{} publishes are without an answer", self.unanswered.len());
            return Err(Fault { reason: Reason::Timeout, detail });
        }
        let mut flights: Vec<Flight> = std::mem::take(&mut self.unanswered).into_iter().collect();
        flights.sort_by_key(|flight| flight.attempt().map(|attempt| attempt.sent));
        for abandoned in flights.drain(..too_many) {
            abandoned.attempt().into_iter().for_each(|attempt| self.give_up(attempt.head, now));
        }
        self.unanswered.extend(flights);
        Ok(())
    }

    /// No answer is to be expected any more; the event stays parked, and its target is tried from now on.
    pub(super) fn give_up(&mut self, head: Head, now: &Moment) {
        let targets = &mut self.backlog.targets;
        if let Some(scope) = targets.silent_scope(head.place).cloned() {
            let fault = Fault { reason: Reason::Timeout, detail: "the broker has not answered".into() };
            targets.failed(&scope, head, &fault, now);
        }
    }
}
