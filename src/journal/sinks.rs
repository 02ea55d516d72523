//! What each sink has published: a cursor, and the positions beyond it that still wait.
//!
//! Published is a set. A sink has read everything up to its *frontier*; what of that it has not dealt with *waits*. The
//! cursor is what lies before the first of both, and the acknowledged ranges beyond the cursor are what does not wait.
//! The waiting positions are kept rather than the acknowledged ones, because their number is bounded, whatever is
//! acknowledged after them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::lock;
use super::positions::Positions;
use super::stuck::StuckEvent;
use crate::domain::kind;

/// A configured sink, as far as the journal has to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkSpec {
    /// Its name.
    pub name: String,
    /// Patterns of the kinds of the events that it wants; empty means all.
    pub kinds: Vec<String>,
}

impl SinkSpec {
    /// Whether it wants events of this kind.
    pub fn wants(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|pattern| kind::matches(pattern, kind))
    }

    /// Whether it may be given events of this kind by a replay, which may be of types that it does not want.
    pub(super) fn may_have(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|pattern| kind::matches_application(pattern, kind))
    }
}

/// Where a sink goes on after a start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Everything up to here has been read.
    pub frontier: u64,
    /// What of that it has not dealt with, in order of position.
    pub waiting: Vec<WaitingKey>,
}

/// A waiting position and the hash of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingKey {
    /// The position.
    pub position: u64,
    /// Equal for events of one key.
    pub key_hash: u64,
}

/// What a sink has published.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Progress {
    pub(super) frontier: u64,
    pub(super) waiting: Positions,
    /// How many events behind the frontier it wants.
    pub(super) unread: u64,
    /// None of them lies behind this position.
    pub(super) unread_through: u64,
    /// Those that are written down as stuck, and those that have ceased to be since that was last written.
    pub(super) stuck: Positions,
    pub(super) no_longer_stuck: Vec<u64>,
}

impl Progress {
    /// The last position up to which nothing waits.
    pub(super) fn cursor(&self) -> u64 {
        self.waiting.first().map_or(self.frontier, |first| first - 1)
    }

    /// A position waits no more; `false` if it did not.
    pub(super) fn remove(&mut self, position: u64) -> bool {
        let removed = self.waiting.remove(position);
        if removed && self.stuck.remove(position) {
            self.no_longer_stuck.push(position);
        }
        removed
    }

    /// Whether a segment that holds these positions may go as far as this sink is concerned.
    pub(super) fn is_done(&self, first: u64, last: u64) -> bool {
        last <= self.frontier && !self.waiting.any_in(first, last)
    }
}

/// A configured sink's state in memory.
#[derive(Debug, Default)]
pub(super) struct Sink {
    pub(super) spec: SinkSpec,
    progress: Mutex<Progress>,
    /// Whether the frontier or what waits has changed since it was last written down.
    pub(super) dirty: AtomicBool,
    pub(super) dead_letters: AtomicU64,
    /// Events that no longer wait and whose dead letters are being written: they count as pending until those are there.
    pub(super) setting_aside: AtomicU64,
    pub(super) resends: AtomicU64,
    /// The oldest position that it has not published when that was last asked, and when its event was accepted.
    pub(super) oldest_pending: Mutex<Option<(u64, i64)>>,
    /// What is to be written of its stuck events.
    pub(super) stuck: Mutex<Vec<StuckEvent>>,
    /// What an operator wants to be set aside.
    pub(super) requests: Mutex<Requests>,
}

/// What an operator wants to be set aside.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Not given to the pipeline yet.
    pub(super) new: Vec<u64>,
    /// Given, and not answered yet.
    pub(super) given: BTreeSet<u64>,
}

impl Requests {
    /// Takes up what is requested now.
    pub(super) fn update(&mut self, requested: Vec<u64>) {
        let requested: BTreeSet<u64> = requested.into_iter().collect();
        self.given.retain(|position| requested.contains(position));
        self.new = requested.difference(&self.given).copied().collect();
    }

    pub(super) fn take(&mut self) -> Vec<u64> {
        self.given.extend(&self.new);
        std::mem::take(&mut self.new)
    }
}

impl Sink {
    pub(super) fn new(spec: SinkSpec, progress: Progress) -> Self {
        Self { spec, progress: Mutex::new(progress), dirty: AtomicBool::new(true), ..Self::default() }
    }

    /// Whether it wants an event of this kind. Of a damaged event the kind may not be known: then it has to be dealt with.
    pub(super) fn wants(&self, kind: &str) -> bool {
        kind.is_empty() || self.spec.wants(kind)
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    /// Events that it wants, has not published and has not set aside.
    pub(super) fn pending(&self) -> u64 {
        let progress = self.progress();
        progress.waiting.len() + progress.unread + self.setting_aside.load(Ordering::Acquire)
    }

    /// So many new events that it wants were stored, none of them behind `last`.
    fn count_new(&self, events: u64, last: u64) {
        let mut progress = self.progress();
        progress.unread += events;
        progress.unread_through = last;
    }

    pub(super) fn enqueue(&self, through: u64, waiting: &[u64]) {
        let mut guard = self.progress();
        let progress = &mut *guard;
        for position in waiting.iter().copied().filter(|position| *position > progress.frontier && *position <= through)
        {
            if progress.waiting.insert(position) {
                progress.unread = progress.unread.saturating_sub(1);
            }
        }
        progress.frontier = progress.frontier.max(through);
        // What was counted and could not be read, because it is missing, is not waited for.
        if progress.frontier >= progress.unread_through {
            progress.unread = 0;
        }
        self.dirty.store(true, Ordering::Release);
    }

    /// `false` if it did not wait.
    pub(super) fn acknowledge(&self, position: u64) -> bool {
        // Together: who sees that it does not wait any more relies on its being written down with the next commit.
        let mut progress = self.progress();
        let removed = progress.remove(position);
        self.dirty.fetch_or(removed, Ordering::Release);
        removed
    }

    /// The events cease to wait, and their dead letters are written with the next commit. A commit that failed names its
    /// events once more.
    pub(super) fn set_aside(&self, positions: impl Iterator<Item = u64>) {
        let mut progress = self.progress();
        let mut count = 0;
        for position in positions {
            count += 1;
            self.dirty.fetch_or(progress.remove(position), Ordering::Release);
        }
        self.setting_aside.store(count, Ordering::Release);
    }
}

/// Adds to a count, or takes from it. Counts are kept by several threads, and one below zero would be shown as a very large
/// one.
pub(super) fn add(count: &AtomicU64, by: i64) {
    let sum = |count: u64| Some(count.saturating_add_signed(by));
    let added = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
    debug_assert!(added.is_ok(), "it always gives a value");
}

/// The configured sinks by name.
#[derive(Debug, Default)]
pub(super) struct Sinks(pub(super) BTreeMap<String, Sink>);

impl Sinks {
    pub(super) fn get(&self, name: &str) -> Option<&Sink> {
        self.0.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Sink> {
        self.0.values()
    }
}

/// Counts new events for the sinks that want them; asks for each kind only once.
#[derive(Debug, Default)]
pub(super) struct KindCounter {
    wanted_by: HashMap<String, Vec<String>>,
}

impl KindCounter {
    /// Kinds come from outside, so not all that ever came are remembered.
    const KINDS: usize = 1_000;

    /// Counts the events of one commit, by their kinds.
    pub(super) fn count<'a>(&mut self, sinks: &Sinks, kinds: impl Iterator<Item = &'a str>, last: u64) {
        let mut events = BTreeMap::<&'a str, u64>::new();
        kinds.for_each(|kind| *events.entry(kind).or_default() += 1);
        let mut wanted = BTreeMap::<&str, u64>::new();
        for (kind, count) in events {
            if !self.wanted_by.contains_key(kind) {
                if self.wanted_by.len() >= Self::KINDS {
                    self.wanted_by.clear();
                }
                let names = sinks.iter().filter(|sink| sink.wants(kind)).map(|sink| sink.spec.name.clone());
                self.wanted_by.insert(kind.to_owned(), names.collect());
            }
            for sink in self.wanted_by.get(kind).into_iter().flatten().filter_map(|name| sinks.get(name)) {
                *wanted.entry(&sink.spec.name).or_default() += count;
            }
        }
        for (sink, count) in wanted {
            if let Some(sink) = sinks.get(sink) {
                sink.count_new(count, last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_is_what_lies_before_the_first_that_waits() {
        let sink = Sink::new(SinkSpec::default(), Progress::default());
        assert_eq!(sink.progress().cursor(), 0);
        sink.enqueue(10, &[2, 5, 9]);
        assert_eq!(sink.progress().cursor(), 1);
        assert!(sink.acknowledge(5) && !sink.acknowledge(5) && !sink.acknowledge(4));
        assert_eq!(sink.progress().cursor(), 1);
        sink.acknowledge(2);
        assert_eq!(sink.progress().cursor(), 8);
        assert!(sink.progress().is_done(3, 8) && !sink.progress().is_done(3, 9) && !sink.progress().is_done(10, 11));
        sink.enqueue(12, &[5]);
        sink.acknowledge(9);
        assert_eq!(sink.progress().cursor(), 12, "what is behind the frontier is not read twice");
    }
}
