//! Targets that take no events for now, and what is parked because of them.
//!
//! An event that fails for a reason of its target (a topic, a queue, a subject) is parked under it, and so is every other
//! event that would go there: they are not sent at all. One of them at a time is tried, the *probe*, after a pause that
//! grows from try to try. When a probe succeeds, the rest follow in order of their places: first two, then four, and so
//! on, so that a queue with room for a few does not refuse the others by the thousand. An event that fails for a reason
//! of its own is parked under itself.
//!
//! All probes together are bounded, and each success earns more of them: a hundred thousand targets that fail cost
//! [`PROBES_PER_SECOND`] tries, and when they work they are all found out about within seconds.
//!
//! A target is also parked by *silence*: a publish to it is unanswered for long. Its answer says how it goes on, so
//! there is no probe while one may still come.
//!
//! Pure: time and randomness come in as arguments.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::BACKOFF;
use super::queue::{Head, Place};
use crate::journal::StuckEvent;
use crate::sink::{Fault, Reason, Target};

/// How many events for parked targets are tried in a second, all targets together, if none of them succeeds.
pub(super) const PROBES_PER_SECOND: u32 = 50;

/// How many of these may be saved up.
const BURST: f64 = 5.0;

/// The part of the window that probes may take, as a divisor.
const PROBE_SHARE: usize = 10;

/// For how long a target that failed when the sink stopped is remembered with nothing that goes there.
const EXPECTED: Duration = Duration::from_secs(600);

/// What one parked target takes in memory, about.
pub(super) const TARGET_BYTES: usize = 512;

/// What events are parked under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope {
    Target(Target),
    /// An event that fails for a reason of its own.
    Event(Place),
}

impl Scope {
    /// The target in words; nothing for an event.
    pub(super) fn words(&self) -> &str {
        match self {
            Self::Target(target) => target.as_str(),
            Self::Event(_) => "",
        }
    }

    pub(super) fn shared_words(&self) -> Arc<str> {
        match self {
            Self::Target(target) => target.shared(),
            Self::Event(_) => Arc::default(),
        }
    }
}

/// When something happens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) at: Instant,
    /// For how long the sink has been connected, all connections together.
    pub(super) connected: Duration,
    pub(super) unix_ms: i64,
    /// For the jitter of pauses, in `0.0..=1.0`.
    pub(super) random: f64,
}

/// All parked targets of a sink.
#[derive(Debug)]
pub(super) struct Targets {
    parked: HashMap<Scope, Box<Parked>>,
    /// When the next probe of each target is due: [`Parked::due`] of each target that has one.
    probes: BTreeSet<(Instant, Scope)>,
    /// Targets that may have more events in flight than they have.
    recovering: VecDeque<Scope>,
    /// Events of parked targets that are on their way to the broker, or about to be.
    released: HashMap<Place, Release>,
    /// Events without an answer.
    silent: HashMap<Place, (Head, Scope)>,
    /// How many of the released ones are probes.
    probing: usize,
    tokens: f64,
    refilled: Instant,
    /// Most failures say the same, so they share their text.
    last_detail: Arc<str>,
    pub(super) stuck: Stuck,
}

#[derive(Debug)]
struct Release {
    scope: Scope,
    is_probe: bool,
}

/// A target that takes no events, or did not until just now.
#[derive(Debug)]
pub(super) struct Parked {
    /// What waits, the oldest first.
    pub(super) heads: BinaryHeap<Reverse<Head>>,
    /// What failed last; it is tried first.
    pub(super) candidate: Option<Head>,
    /// When the next probe may go, unless one is on its way.
    due: Option<Instant>,
    /// The connected time at the first failure since the last success.
    pub(super) failing_since: Option<Duration>,
    pub(super) since_ms: i64,
    pub(super) reason: Reason,
    pub(super) detail: Arc<str>,
    pub(super) tries: u32,
    /// Failures in a row.
    failures: u32,
    /// How many of its events are released, and how many may be.
    released: u32,
    allowance: u32,
    pub(super) silent: u32,
    /// Whether it has failed for so long that its events are stuck.
    pub(super) is_stuck: bool,
    /// Whether it is in [`Stuck::unrecorded`].
    pub(super) is_unrecorded: bool,
    /// It failed when the sink stopped, and nothing was lined up for it since.
    is_expected: bool,
    /// How many of `heads` were looked at to be recorded.
    pub(super) recorded: usize,
}

/// Which targets have failed for long, for [`super::stuck`].
#[derive(Debug, Default)]
pub(super) struct Stuck {
    /// Targets that have failed for long, and whose events are not all recorded yet.
    pub(super) unrecorded: VecDeque<Scope>,
    /// What was parked under such targets since.
    pub(super) fresh: Vec<(Scope, Head)>,
}

impl Targets {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            parked: HashMap::new(),
            probes: BTreeSet::new(),
            recovering: VecDeque::new(),
            released: HashMap::new(),
            silent: HashMap::new(),
            probing: 0,
            tokens: BURST,
            refilled: now,
            last_detail: Arc::from(""),
            stuck: Stuck::default(),
        }
    }

    /// An event was stuck when the sink stopped; `head`, if it is parked still. It and what else goes to its target wait,
    /// and one of them is tried at once: were all of them tried, they would hold up all other events at every start.
    pub(super) fn resume(&mut self, stuck: &StuckEvent, head: Option<Head>, now: &Moment) {
        let scope = Scope::Target(Target::new(Arc::clone(&stuck.target)));
        let detail = self.shared_detail(&stuck.detail);
        let parked = self.parked.entry(scope.clone()).or_insert_with(|| {
            let mut parked = Parked::new(Arc::clone(&detail));
            (parked.since_ms, parked.failing_since) = (i64::MAX, Some(now.connected));
            (parked.is_stuck, parked.is_expected) = (true, true);
            Box::new(parked)
        });
        // What is said of a target is what is known of the event that was stuck first.
        if stuck.since_ms < parked.since_ms {
            (parked.since_ms, parked.detail) = (stuck.since_ms, detail);
            parked.reason = Reason::parse(&stuck.reason).unwrap_or(Reason::Other);
        }
        match (head, parked.candidate) {
            (Some(head), Some(_)) => parked.push(head),
            (Some(_), None) => (parked.candidate, parked.is_expected) = (head, false),
            (None, _) => {}
        }
        // Should nothing be lined up for it, it is forgotten then.
        let due = if parked.is_expected { now.at + EXPECTED } else { now.at };
        self.schedule(&scope, Some(due));
    }

    /// Whether no target is parked, so that there is nothing to ask for.
    pub(super) fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.parked.len()
    }

    /// Whether an event that would go there is to be parked instead of being sent.
    pub(super) fn holds(&self, place: Place, scope: &Scope) -> bool {
        self.parked.contains_key(scope) && !self.released.contains_key(&place)
    }

    /// An event that goes to a parked target is parked unsent.
    pub(super) fn park(&mut self, scope: &Scope, head: Head, now: Instant) {
        self.leave(head.place);
        let Some(parked) = self.parked.get_mut(scope) else { return };
        parked.push(head);
        let was_expected = std::mem::take(&mut parked.is_expected);
        if parked.failing_since.is_none() {
            self.recovering.push_back(scope.clone());
        }
        if was_expected {
            self.schedule(scope, Some(now));
        }
        self.record_soon(scope, head);
    }

    /// A try has failed, and the event is parked.
    pub(super) fn failed(&mut self, scope: &Scope, head: Head, fault: &Fault, now: &Moment) {
        let left = self.leave(head.place);
        let detail = self.detail(scope, fault);
        let parked = self.fail(scope, fault.reason, detail, now.connected, now.unix_ms);
        parked.tries = parked.tries.saturating_add(1);
        match parked.candidate {
            None => parked.candidate = Some(head),
            Some(_) => parked.push(head),
        }
        // Of many that fail together one makes the pause longer.
        if parked.due.is_none() && parked.silent == 0 {
            let due = now.at + BACKOFF.pause(parked.failures, now.random);
            parked.failures = parked.failures.saturating_add(1);
            self.schedule(scope, Some(due));
        }
        self.record_soon(scope, head);
        if let Some(other) = left.filter(|left| left != scope) {
            self.reschedule(&other, now.at);
        }
    }

    /// An event has been sent long ago, `sent` in connected time, and is not answered.
    pub(super) fn fell_silent(&mut self, scope: Scope, head: Head, sent: Duration, now: &Moment) {
        let left = self.leave(head.place);
        let detail = Arc::from("the broker has not answered");
        let parked = self.fail(&scope, Reason::Timeout, detail, sent, now.unix_ms);
        parked.tries = parked.tries.saturating_add(1);
        parked.silent += 1;
        self.schedule(&scope, None);
        self.record_soon(&scope, head);
        let other = left.filter(|left| *left != scope);
        self.silent.insert(head.place, (head, scope));
        // What it was tried for is not shown by a narrower target that is silent.
        if let Some(other) = other {
            self.reschedule(&other, now.at);
        }
    }

    /// What an event without an answer is parked under.
    pub(super) fn silent_scope(&self, place: Place) -> Option<&Scope> {
        self.silent.get(&place).map(|(_, scope)| scope)
    }

    /// The broker has an event; `target` is where it went, if that is known.
    pub(super) fn succeeded(&mut self, place: Place, target: Option<&Scope>, window: usize) {
        if self.released.get(&place).is_some_and(|release| release.is_probe) {
            self.tokens = (self.tokens + 2.0).min(probes_at_once(window) as f64).max(self.tokens);
        }
        let scope = self.leave(place).or_else(|| target.cloned());
        let Some(scope) = scope else { return };
        self.schedule(&scope, None);
        let Some(parked) = self.parked.get_mut(&scope) else { return };
        parked.allowance = parked.allowance.saturating_add(1);
        (parked.failures, parked.failing_since) = (0, None);
        (parked.is_stuck, parked.recorded) = (false, 0);
        if parked.is_idle() {
            self.parked.remove(&scope);
        } else {
            self.recovering.push_back(scope);
        }
    }

    /// The sink is done with an event in another way, or somebody else takes care of it.
    pub(super) fn withdrawn(&mut self, place: Place, now: Instant) {
        if let Some(scope) = self.leave(place) {
            self.reschedule(&scope, now);
        }
    }

    /// The next parked event to be tried now, if there is one.
    pub(super) fn release(&mut self, now: Instant, window: usize) -> Option<Head> {
        while let Some(scope) = self.recovering.pop_front() {
            if let Some(head) = self.release_of(&scope, false) {
                self.recovering.push_front(scope);
                return Some(head);
            }
        }
        self.refill(now);
        while self.probing < probes_at_once(window) && self.tokens >= 1.0 {
            let (due, scope) = self.probes.first()?.clone();
            if due > now {
                return None;
            }
            self.schedule(&scope, None);
            if let Some(head) = self.release_of(&scope, true) {
                self.tokens -= 1.0;
                return Some(head);
            }
        }
        None
    }

    /// When [`Targets::release`] may have another one, unless something else happens before.
    pub(super) fn next_release(&self, window: usize) -> Option<Instant> {
        if !self.recovering.is_empty() {
            return Some(self.refilled);
        }
        if self.probing >= probes_at_once(window) {
            return None;
        }
        let (due, _) = self.probes.first()?;
        let missing = (1.0 - self.tokens).max(0.0) / f64::from(PROBES_PER_SECOND);
        Some((*due).max(self.refilled + Duration::from_secs_f64(missing)))
    }

    pub(super) fn parked_mut(&mut self, scope: &Scope) -> Option<&mut Parked> {
        self.parked.get_mut(scope).map(|parked| &mut **parked)
    }

    /// All parked targets.
    pub(super) fn all_parked(&mut self) -> impl Iterator<Item = (&Scope, &mut Parked)> {
        self.parked.iter_mut().map(|(scope, parked)| (scope, &mut **parked))
    }

    /// The events without an answer that went there.
    pub(super) fn silent_of(&self, scope: &Scope) -> Vec<Head> {
        if self.parked.get(scope).is_none_or(|parked| parked.silent == 0) {
            return Vec::new();
        }
        self.silent.values().filter(|(_, other)| other == scope).map(|(head, _)| *head).collect()
    }

    /// The target fails, from `since` on if it did not before.
    fn fail(&mut self, scope: &Scope, reason: Reason, detail: Arc<str>, since: Duration, unix_ms: i64) -> &mut Parked {
        let parked = self.parked.entry(scope.clone()).or_insert_with(|| Box::new(Parked::new(Arc::clone(&detail))));
        if parked.failing_since.is_none() {
            parked.failing_since = Some(since);
            parked.since_ms = unix_ms;
        }
        (parked.reason, parked.detail, parked.allowance) = (reason, detail, 1);
        parked
    }

    fn release_of(&mut self, scope: &Scope, is_probe: bool) -> Option<Head> {
        let parked = self.parked.get_mut(scope)?;
        if is_probe && (parked.silent > 0 || parked.released > 0) || parked.released >= parked.allowance {
            return None;
        }
        if !is_probe && parked.failing_since.is_some() {
            return None;
        }
        let Some(head) = parked.candidate.take().or_else(|| parked.pop()) else {
            if parked.is_idle() {
                self.remove(scope);
            }
            return None;
        };
        parked.released += 1;
        self.probing += usize::from(is_probe);
        self.released.insert(head.place, Release { scope: scope.clone(), is_probe });
        Some(head)
    }

    /// The event is neither on its way nor without an answer any more. Returns what it was parked under.
    fn leave(&mut self, place: Place) -> Option<Scope> {
        if let Some(Release { scope, is_probe }) = self.released.remove(&place) {
            self.probing -= usize::from(is_probe);
            if let Some(parked) = self.parked.get_mut(&scope) {
                parked.released -= 1;
            }
            return Some(scope);
        }
        let (_, scope) = self.silent.remove(&place)?;
        if let Some(parked) = self.parked.get_mut(&scope) {
            parked.silent -= 1;
        }
        Some(scope)
    }

    /// The try that was to show how the target is has shown nothing.
    fn reschedule(&mut self, scope: &Scope, now: Instant) {
        let Some(parked) = self.parked.get_mut(scope) else { return };
        if parked.is_idle() {
            self.remove(scope);
        } else if parked.failing_since.is_none() {
            self.recovering.push_back(scope.clone());
        } else if parked.due.is_none() && parked.silent == 0 && parked.released == 0 {
            self.schedule(scope, Some(now));
        }
    }

    /// Sets when the next probe of a target is due.
    fn schedule(&mut self, scope: &Scope, due: Option<Instant>) {
        let Some((scope, parked)) = self.parked.get_key_value(scope) else { return };
        if parked.due == due {
            return;
        }
        let before = parked.due;
        // The name that the map has, not another copy of it: there may be many targets.
        let scope = scope.clone();
        if let Some(parked) = self.parked.get_mut(&scope) {
            parked.due = due;
        }
        if let Some(before) = before {
            self.probes.remove(&(before, scope.clone()));
        }
        if let Some(due) = due {
            self.probes.insert((due, scope));
        }
    }

    fn remove(&mut self, scope: &Scope) {
        self.schedule(scope, None);
        self.parked.remove(scope);
    }

    fn record_soon(&mut self, scope: &Scope, head: Head) {
        if self.parked.get(scope).is_some_and(|parked| parked.is_stuck) {
            self.stuck.fresh.push((scope.clone(), head));
        }
    }

    /// The detail without the target's name, which is kept once.
    fn detail(&mut self, scope: &Scope, fault: &Fault) -> Arc<str> {
        let words = scope.words();
        let detail = fault.detail.strip_prefix(words).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&fault.detail);
        self.shared_detail(detail)
    }

    fn shared_detail(&mut self, detail: &str) -> Arc<str> {
        if *self.last_detail != *detail {
            self.last_detail = Arc::from(detail);
        }
        Arc::clone(&self.last_detail)
    }

    fn refill(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.refilled).as_secs_f64() * f64::from(PROBES_PER_SECOND);
        self.tokens = (self.tokens + earned).min(BURST).max(self.tokens);
        self.refilled = self.refilled.max(now);
    }
}

impl Parked {
    fn new(detail: Arc<str>) -> Self {
        Self {
            heads: BinaryHeap::new(),
            candidate: None,
            due: None,
            failing_since: None,
            since_ms: 0,
            reason: Reason::Other,
            detail,
            tries: 0,
            failures: 0,
            released: 0,
            allowance: 1,
            silent: 0,
            is_stuck: false,
            is_unrecorded: false,
            is_expected: false,
            recorded: 0,
        }
    }

    /// Whether nothing waits for it or is under way.
    fn is_idle(&self) -> bool {
        self.heads.is_empty() && self.candidate.is_none() && self.released == 0 && self.silent == 0
    }

    fn push(&mut self, head: Head) {
        if self.heads.len() == self.heads.capacity() {
            // Less than the doubling of a vector: there may be a million of them.
            self.heads.reserve_exact((self.heads.len() / 4).max(2));
        }
        self.heads.push(Reverse(head));
    }

    fn pop(&mut self) -> Option<Head> {
        // The others change their places in the heap.
        self.recorded = 0;
        self.heads.pop().map(|Reverse(head)| head)
    }
}

fn probes_at_once(window: usize) -> usize {
    (window / PROBE_SHARE).max(1)
}

#[cfg(test)]
mod tests;
