//! The durable, ordered journal between the webhook and the brokers.
//!
//! It owns one directory. What it promises: an append is answered only after its commit was fsynced; an event and its
//! place in the deduplication window are one commit; positions grow and are never used twice; what a commit answered
//! survives `kill -9` and a power cut; a write error is never retried and believed; damage costs the events that it hits
//! and nothing else.
//!
//! Events lie in a chain of [`segment`] files, written by one thread ([`writer`]). What is known of them beside that, such
//! as what each sink has published, is [`state`], written by another ([`state_writer`]). A third keeps the chain
//! ([`keeper`]): it closes segments and releases what nobody needs. Any number of [`Reader`]s read beside them. A segment
//! is always durable before the state that names its events.
//!
//! It knows bytes, ids, keys, kinds and positions, and nothing of HTTP, brokers or Sendbird.

mod active;
mod admin;
mod backfill;
mod cancelled;
mod chain;
mod dead_letters;
mod directory;
mod handle;
mod index;
mod inspect;
mod keeper;
mod keeper_signal;
mod open;
mod positions;
mod progress;
mod reader;
mod record;
mod repair;
mod replays;
mod resend;
mod resends;
mod salvage;
mod scan;
mod schema;
mod segment;
mod settings;
mod shared;
mod sinks;
mod sqlite;
mod state;
mod state_queue;
mod state_writer;
mod stuck;
mod stuck_admin;
mod verify;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::admin::{AdminError, JournalAdmin, SinkSummary, Summary};
pub use self::backfill::{BackfillCandidate, Hook};
pub use self::dead_letters::{DeadLetter, DeadLetterGroup, StoredDeadLetter};
pub use self::handle::{Journal, Pending};
pub use self::inspect::{Inspection, inspect};
pub use self::reader::{Batch, Filter, Limits, ReadError, Reader};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::record::fuzz_record;
pub use self::record::{Record, Row};
pub use self::replays::ReplayStatus;
pub use self::resend::{Origin, Resend, ResendCursor, ResendOutcome};
pub use self::salvage::Salvaged;
pub use self::settings::{DedupSettings, Settings};
use self::shared::{Command, Shared};
pub use self::sinks::{Resume, SinkSpec, WaitingKey};
pub use self::stuck::StuckEvent;
pub use self::stuck_admin::{ListedStuckEvent, StuckFilter};
pub use self::verify::Fault;
use crate::domain::clock::Clock;

/// Free space on the journal's disk below which no more events are taken, so that what sinks have published and dead
/// letters can still be written while the backlog drains.
pub const DISK_RESERVE: u64 = 16 * 1024 * 1024;

/// What a journal is opened with.
pub struct Options {
    /// `journal.*`.
    pub settings: Settings,
    /// `dedup.*`.
    pub dedup: DedupSettings,
    /// The sinks. What any of them has not dealt with is kept.
    pub sinks: Vec<SinkSpec>,
    /// Where retention and the window get the time from.
    pub clock: Clock,
    /// Called by the writer after each commit of events with the time that it took; must be quick.
    pub on_commit: Box<dyn Fn(Duration) + Send>,
    /// What backfilling has to know.
    pub backfill: Hook,
}

/// An event to be stored.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is recognised by.
    pub id: [u8; 16],
    /// What order is kept by.
    pub key: String,
    /// The event's type, for filters.
    pub kind: String,
    /// When it was accepted, in Unix milliseconds.
    pub accepted_ms: i64,
    /// What is stored.
    pub payload: Vec<u8>,
}

/// A durable answer to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Stored at this position.
    Stored(u64),
    /// The window knows it as the event at this position.
    Duplicate(u64),
    /// A backfilled event tells of the same fact already; only within the window, as for any duplicate.
    Backfilled {
        /// Its position.
        position: u64,
        /// Its id.
        id: [u8; 16],
    },
}

/// Why an event is not stored. In each case nothing of it is left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// More is waiting than can be written in time.
    #[error("the journal's queue is full")]
    Busy,
    /// `journal.max_bytes` or the disk is full.
    #[error("the journal is full")]
    Full,
    /// The disk failed; the event is not stored.
    #[error("the journal's disk fails")]
    Failed,
    /// The journal is being closed.
    #[error("the journal is closed")]
    Closed,
}

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("expected {dir} to be free, but another bridge holds its lock; give each its own journal.dir")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Written by the first edition of this program.
    #[error(
        "expected a journal of format {known} in {dir}, but found journal.db of format 1; start the version that wrote \
         it until every sink's sendbird_bridge_sink_pending_records is 0, stop it, and remove journal.db"
    )]
    FirstFormat {
        /// The directory.
        dir: PathBuf,
        /// The format of this program.
        known: u16,
    },
    /// Written by a version of this program whose layout this one does not know.
    #[error("expected a journal of format {known} in {path}, but found {found}; use the version that wrote it")]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The format of this program.
        known: i64,
    },
    /// Some other program's file.
    #[error("expected a journal in {path}, but found another program's database")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The directory, or a file in it, cannot be made or used.
    #[error("cannot use the journal's directory {path}")]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The storage engine's own words.
    #[error("cannot open {path}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: EngineError,
    },
}

impl OpenError {
    fn directory(path: &Path) -> impl Fn(io::Error) -> Self + Copy {
        move |error| {
            let source = io::Error::new(error.kind(), format!("{error}{}", directory::owners(path, &error)));
            Self::Directory { path: path.to_owned(), source }
        }
    }

    fn database(path: &Path) -> impl Fn(rusqlite::Error) -> Self + Copy {
        move |source| Self::Database { path: path.to_owned(), source: source.into() }
    }
}

/// What the storage engine of the state says when it fails.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EngineError(#[from] rusqlite::Error);

/// The journal was closed before something was durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal is closed")]
pub struct Closed;

/// Whether the journal takes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It does.
    Healthy,
    /// Its budget or its disk is full; it goes on draining and recovers by itself.
    Full,
    /// Its disk failed; a new segment is tried once a second.
    Failed,
    /// It was closed.
    Closed,
}

/// What the journal holds, at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Stats {
    /// Whether it takes events.
    pub health: Health,
    /// The oldest position kept; 0 when there is none.
    pub first_position: u64,
    /// The newest durable position; 0 when there is none.
    pub last_position: u64,
    /// How many events are kept.
    pub records: u64,
    /// Events that are damaged, or lie in a part of the journal that is missing.
    pub damaged_records: u64,
    /// How many files hold them.
    pub segments: u64,
    /// The bytes that they and the dead letters take, counted against `journal.max_bytes`.
    pub bytes: u64,
    /// Free bytes on the journal's disk.
    pub disk_free_bytes: u64,
    /// Ids in the deduplication window.
    pub dedup_ids: u64,
}

/// What is behind a mutex, also where a thread has panicked with it: that ends the journal by itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
