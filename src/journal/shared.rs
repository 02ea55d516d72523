//! What the threads of an open journal and its handles share.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::chain::Chain;
use super::keeper_signal::KeeperSignal;
use super::reader::Reader;
use super::replays::Replays;
use super::segment::{self, Name, Proof};
use super::sinks::{Sinks, WaitingKey, add};
use super::state_queue::StateQueue;
use super::{AppendError, Appended, DISK_RESERVE, Entry, Health, lock};
use crate::domain::clock::Clock;

/// What the writer is asked for.
pub(super) enum Command {
    Append(Entry, oneshot::Sender<Result<Appended, AppendError>>),
    Close,
    #[cfg(test)]
    Panic,
}

/// A segment that was made ahead, so that no answer waits for its file.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) name: Name,
    pub(super) file: File,
}

pub(super) struct Shared {
    pub(super) chain: Arc<Chain>,
    pub(super) clock: Clock,
    pub(super) queued_bytes: AtomicUsize,
    pub(super) health: AtomicU8,
    pub(super) durable: watch::Sender<u64>,
    /// Whether a thread has ended that should not have.
    pub(super) ended: watch::Sender<bool>,
    /// Bytes of the segments with their indexes, and how many events they hold.
    pub(super) log_bytes: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) dead_letter_bytes: AtomicU64,
    pub(super) disk_free: AtomicU64,
    pub(super) dedup_ids: AtomicU64,
    pub(super) sinks: Sinks,
    pub(super) replays: Replays,
    pub(super) resends_dropped: AtomicU64,
    /// Events that were stored after their sender had an answer, or had none.
    pub(super) late_commits: AtomicU64,
    pub(super) state: StateQueue,
    pub(super) keeper: KeeperSignal,
    /// The number of the next segment.
    pub(super) next_number: AtomicU64,
    pub(super) spare: Mutex<Option<Spare>>,
    pub(super) newest: Mutex<Newest>,
    /// Whether there may be backfill candidates.
    pub(super) candidates_wait: AtomicBool,
    /// Candidates whose outcome is durable.
    pub(super) backfilled: Mutex<Vec<i64>>,
    /// What each sink goes on with after a start, until it asks.
    pub(super) resume: Mutex<BTreeMap<String, Vec<WaitingKey>>>,
    /// For reading resends, and at a start what is stuck.
    pub(super) state_reader: Mutex<Option<Connection>>,
    /// How often the state file was replaced by a new one: connections to the one before see nothing new.
    pub(super) state_edition: AtomicU64,
    /// Whether the threads are asked to end.
    pub(super) closing: AtomicBool,
    /// The directory's lock: no other process may have it before the last thread has ended.
    pub(super) lock: Mutex<Option<File>>,
}

/// How far the newest segment is durable.
#[derive(Debug, Default)]
pub(super) struct Newest {
    segment: u64,
    proof: Proof,
    written_down: Option<(u64, Proof)>,
}

impl Shared {
    /// What counts against `journal.max_bytes`.
    pub(super) fn bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed) + self.dead_letter_bytes.load(Ordering::Relaxed)
    }

    /// Whether the disk has too little room to take any more events.
    pub(super) fn disk_is_low(&self) -> bool {
        self.disk_free.load(Ordering::Relaxed) < DISK_RESERVE
    }

    pub(super) fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            0 => Health::Healthy,
            1 => Health::Full,
            2 => Health::Failed,
            _ => Health::Closed,
        }
    }

    /// Returns what it was. A journal that is closed, or of which a thread has ended, stays so.
    pub(super) fn set_health(&self, health: Health) -> Health {
        let closed = Health::Closed as u8;
        let next = |before| (before != closed).then_some(health as u8);
        match self.health.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(before) if before == Health::Healthy as u8 => Health::Healthy,
            Ok(before) if before == Health::Full as u8 => Health::Full,
            Ok(_) => Health::Failed,
            Err(_closed) => health,
        }
    }

    /// Notes an answer to an append that reaches its sender too late, or not at all.
    pub(super) fn count_if_late(&self, answer: &Result<Appended, AppendError>) {
        if matches!(answer, Ok(Appended::Stored(_))) {
            self.late_commits.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.chain))
    }

    /// The newest segment is durable up to here.
    pub(super) fn set_proof(&self, name: Name, offset: u64, position: u64) {
        let mut newest = lock(&self.newest);
        (newest.segment, newest.proof) = (name.first, Proof { offset, position });
    }

    pub(super) fn proof(&self) -> (u64, Proof) {
        let newest = lock(&self.newest);
        (newest.segment, newest.proof)
    }

    pub(super) fn proof_changed(&self) -> bool {
        let newest = lock(&self.newest);
        newest.written_down != Some((newest.segment, newest.proof))
    }

    pub(super) fn proof_is_durable(&self, proof: (u64, Proof)) {
        lock(&self.newest).written_down = Some(proof);
    }

    fn new_spare(&self) -> io::Result<Spare> {
        let name = Name::new(self.next_number.fetch_add(1, Ordering::Relaxed));
        let file = segment::create(name, &self.chain.dir)?;
        Ok(Spare { name, file })
    }

    /// The segment that was made ahead, or else a new one. One at a time is made, so that their numbers grow in the
    /// order in which they are used.
    pub(super) fn take_spare(&self) -> io::Result<Spare> {
        let mut spare = lock(&self.spare);
        spare.take().map_or_else(|| self.new_spare(), Ok)
    }

    /// Makes the next segment ahead, unless it has been made.
    pub(super) fn make_spare(&self) -> io::Result<()> {
        let mut spare = lock(&self.spare);
        if spare.is_none() && self.health() != Health::Failed {
            *spare = Some(self.new_spare()?);
        }
        Ok(())
    }

    /// What a segment takes more, or less, than before.
    pub(super) fn account_for(&self, bytes: i64, records: i64) {
        add(&self.log_bytes, bytes);
        add(&self.records, records);
    }
}
