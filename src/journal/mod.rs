//! The durable, ordered log between the webhook and the brokers, on SQLite.
//!
//! It owns one directory. What it promises: an append is answered only after its commit was fsynced; an
//! event and its place in the deduplication window are one commit; positions grow by one and are never
//! reused; what a commit answered survives `kill -9` and a power cut; a write error is never retried and
//! believed, the file is closed and opened again through recovery instead.
//!
//! It knows bytes, ids, keys and positions, and nothing of HTTP, brokers or Sendbird. One thread writes
//! ([`writer`]), another moves committed pages from the write-ahead log into the main file, and any
//! number of [`Reader`]s read beside them.

mod checkpoint;
mod commit;
mod desk;
mod directory;
mod letters;
mod log;
mod offers;
mod reader;
mod retention;
mod schema;
mod settings;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

pub use self::desk::{Desk, Fault, Letter, Summary};
use self::log::Log;
pub use self::offers::Offer;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::reader::fuzz_row;
pub use self::reader::{Batch, EngineError, Filter, Limits, Reader, Record, Resend, Resends, Row};
pub use self::settings::{DedupSettings, Settings};
use crate::domain::clock::Clock;

/// Commands that may wait for the writer; one more is refused, because a longer queue could not be
/// written within anyone's deadline.
const QUEUE_COMMANDS: usize = 8192;

/// Bytes that may wait for the writer, so that large bodies can't fill the memory.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;

/// Free space on the journal's disk below which nothing more is taken in, so that cursors and dead
/// letters can still be written while the backlog drains.
pub const DISK_RESERVE: u64 = 16 * 1024 * 1024;

/// What a journal is opened with.
pub struct Options {
    /// `journal.*`.
    pub settings: Settings,
    /// `dedup.*`.
    pub dedup: DedupSettings,
    /// The names of the sinks whose cursors hold events back from retention.
    pub sinks: Vec<String>,
    /// Where retention and the window get the time from.
    pub clock: Clock,
    /// Called by the writer after each commit of events with the time that it took; must be quick.
    pub on_commit: Box<dyn Fn(Duration) + Send>,
    /// What an event tells of, if that is told only once, however often and by whom: so that an [`Offer`] is no
    /// second event of a fact, and a late delivery no second one of a reconciled fact.
    pub fact_of: fn(&[u8]) -> Option<[u8; 16]>,
    /// Called by the writer with the type of each offered event that it has taken in; must be quick.
    pub on_reconciled: Box<dyn Fn(&str) + Send>,
}

/// An event to be stored.
#[derive(Debug)]
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
    /// A reconciled event tells of the same fact already; only within the window, as for any duplicate.
    Reconciled {
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
    /// The disk failed; the outcome of this append is unknown to nobody: it was rolled back.
    #[error("the journal's disk fails")]
    Failed,
    /// The journal is being closed.
    #[error("the journal is closed")]
    Closed,
}

/// An event that a broker refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The sink that could not deliver it.
    pub sink: String,
    /// The event's position.
    pub position: u64,
    /// The kind of refusal, from the sinks' closed set.
    pub reason: String,
    /// What the broker said.
    pub detail: String,
    /// When, in Unix milliseconds.
    pub at_ms: i64,
}

/// Why a journal can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("expected {dir} to be free, but another bridge holds its lock; give each its own journal.dir")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Written by a version of this program whose layout this one does not know.
    #[error("expected a journal of schema 1 to {known} in {path}, but found {found}; use the bridge that wrote it")]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema that this program knows.
        known: i64,
    },
    /// Some other program's file.
    #[error("expected a journal in {path}, but found another program's database")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The directory can't be made or used.
    #[error("cannot use the journal's directory {path}")]
    Directory {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not where damage can be read around.
    #[error(
        "cannot add to the journal {path}, as it is damaged at its newest events or ids; see what is left with \
         `sendbird-bridge journal verify`, keep the file, and start with another journal.dir"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The storage engine's words.
        source: EngineError,
    },
    /// The storage engine's own words.
    #[error("cannot open the journal {path}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: EngineError,
    },
}

/// Whether the journal takes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It does.
    Healthy,
    /// Its budget or its disk is full; it goes on draining and recovers by itself.
    Full,
    /// Its disk failed; it is being opened again.
    Failed,
    /// It was closed.
    Closed,
}

/// What the journal holds, at this moment.
#[derive(Clone, Debug, Serialize, schemars::JsonSchema)]
pub struct Stats {
    /// Whether it takes events.
    pub health: Health,
    /// The oldest position kept; 0 when there is none.
    pub first_position: u64,
    /// The newest durable position; 0 when there is none.
    pub last_position: u64,
    /// How many events are kept.
    pub records: u64,
    /// The bytes they take, counted against `journal.max_bytes`.
    pub bytes: u64,
    /// Free bytes on the journal's disk.
    pub disk_free_bytes: u64,
    /// Ids in the deduplication window.
    pub dedup_ids: u64,
}

/// A handle to an open journal; clones share it.
#[derive(Clone)]
pub struct Journal {
    commands: SyncSender<Command>,
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// What the writer and the handles share.
struct Shared {
    path: PathBuf,
    queued_bytes: AtomicUsize,
    health: AtomicU8,
    durable: watch::Sender<u64>,
    first: AtomicU64,
    bytes: AtomicU64,
    disk_free: AtomicU64,
    /// Bytes inside the file that its next rows go into: it never shrinks, so what was retired is room too.
    reusable: AtomicU64,
    dedup_ids: AtomicU64,
    /// Where each sink has got to, as its forwarder says; the writer makes it durable with the next
    /// commit, or within a tick.
    cursors: BTreeMap<String, AtomicU64>,
    dead_letters: BTreeMap<String, AtomicU64>,
    resends: BTreeMap<String, AtomicU64>,
}

/// What became of a resend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resent {
    /// The broker has it; if it was a dead letter, it is none any more.
    Published,
    /// The broker refuses it: it is a dead letter, for this reason now.
    Refused(DeadLetter),
    /// There is nothing left to publish.
    Gone,
}

enum Command {
    Append(Entry, oneshot::Sender<Result<Appended, AppendError>>),
    SetAside(DeadLetter, oneshot::Sender<Result<(), AppendError>>),
    Resent { sink: String, seq: u64, position: u64, outcome: Resent, reply: oneshot::Sender<Result<(), AppendError>> },
    Close,
}

/// An append under way. It goes on to its end even if this is dropped.
pub struct Pending(oneshot::Receiver<Result<Appended, AppendError>>);

impl Pending {
    /// Waits for the commit.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn durable(self) -> Result<Appended, AppendError> {
        self.0.await.unwrap_or(Err(AppendError::Closed))
    }
}

impl Journal {
    /// Opens the journal in `options.settings.dir`, making it where there is none. Blocks for the
    /// disk; an existing journal needs no repair step.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let dir = options.settings.dir.clone();
        let lock = directory::lock(&dir)?;
        let path = dir.join(schema::FILE);
        let mut connection = schema::open_writer(&path)?;
        let database = |error: rusqlite::Error| {
            let (damaged, path, source) = (log::is_damage(&error), path.clone(), error.into());
            if damaged { OpenError::Damaged { path, source } } else { OpenError::Database { path, source } }
        };
        let mut found = log::load(&connection, &options).map_err(database)?;
        // A long check by an operator may be in the way of the first; the commit then fsyncs what is there.
        schema::settle(&connection).map_err(database)?;
        schema::prove_writable(&mut connection).map_err(database)?;
        schema::add_tables(&connection).map_err(database)?;
        found.reconciled = offers::count_reconciled(&connection).map_err(database)?;
        directory::sync(&dir).map_err(|source| OpenError::Directory { path: dir.clone(), source })?;

        let dead_letters = counts(&connection, "dead_letters", &found).map_err(database)?;
        let resends = counts(&connection, "resends", &found).map_err(database)?;

        let (commands, queue) = sync_channel(QUEUE_COMMANDS);
        let shared = Arc::new(Shared {
            path,
            queued_bytes: AtomicUsize::new(0),
            health: AtomicU8::new(Health::Healthy as u8),
            durable: watch::Sender::new(found.last),
            first: AtomicU64::new(found.first),
            bytes: AtomicU64::new(found.bytes()),
            disk_free: AtomicU64::new(directory::free(&dir)),
            reusable: AtomicU64::new(0),
            dedup_ids: AtomicU64::new(found.window.len() as u64),
            cursors: found.cursors.iter().map(|(sink, at)| (sink.clone(), AtomicU64::new(*at))).collect(),
            dead_letters,
            resends,
        });
        let (checkpointer, checkpoints) = checkpoint::spawn(shared.path.clone());
        let writer = writer::spawn(connection, queue, found, options, Arc::clone(&shared), checkpointer, lock);
        let threads = Arc::new(Mutex::new(vec![writer, checkpoints]));
        Ok(Self { commands, shared, threads })
    }

    /// Hands an event to the writer. This never waits: once it has returned `Ok`, the event will be
    /// committed whatever becomes of the caller.
    ///
    /// # Errors
    /// [`AppendError::Busy`] when too much is waiting, otherwise what is already known to be wrong.
    pub fn append(&self, entry: Entry) -> Result<Pending, AppendError> {
        match self.health() {
            Health::Healthy | Health::Full => {}
            Health::Failed => return Err(AppendError::Failed),
            Health::Closed => return Err(AppendError::Closed),
        }
        let size = entry.payload.len();
        if self.shared.queued_bytes.fetch_add(size, Ordering::Relaxed) + size > QUEUE_BYTES {
            self.shared.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            return Err(AppendError::Busy);
        }
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(Command::Append(entry, reply)).map_err(|error| {
            self.shared.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => AppendError::Busy,
                TrySendError::Disconnected(_) => AppendError::Closed,
            }
        })?;
        Ok(Pending(answer))
    }

    /// Records that a sink has dealt with every event up to `position`. Durable within a tick or with
    /// the next commit, whichever comes first.
    pub fn advance(&self, sink: &str, position: u64) {
        if let Some(cursor) = self.shared.cursors.get(sink) {
            cursor.fetch_max(position, Ordering::Relaxed);
        }
    }

    /// Where a sink has got to; the position of the last event that it has dealt with.
    pub fn cursor(&self, sink: &str) -> u64 {
        self.shared.cursors.get(sink).map_or(0, |cursor| cursor.load(Ordering::Relaxed))
    }

    /// Keeps an event that a broker refused for good, with its reason, and waits until that is durable.
    /// Setting the same event aside again changes nothing.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing is set aside then, and the caller must not go on as if it were.
    pub async fn set_aside(&self, letter: DeadLetter) -> Result<(), AppendError> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(Command::SetAside(letter, reply)).map_err(|error| match error {
            TrySendError::Full(_) => AppendError::Busy,
            TrySendError::Disconnected(_) => AppendError::Closed,
        })?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Records what became of a resend, and waits until that is durable.
    ///
    /// # Errors
    /// See [`AppendError`]; the resend then stays in its queue.
    pub async fn resent(&self, sink: &str, seq: u64, position: u64, outcome: Resent) -> Result<(), AppendError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Resent { sink: sink.to_owned(), seq, position, outcome, reply };
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => AppendError::Busy,
            TrySendError::Disconnected(_) => AppendError::Closed,
        })?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// How many events a sink is to publish again.
    pub fn resends(&self, sink: &str) -> u64 {
        self.shared.resends.get(sink).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Follows the newest durable position.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.shared.durable.subscribe()
    }

    /// How many dead letters a sink has.
    pub fn dead_letters(&self, sink: &str) -> u64 {
        self.shared.dead_letters.get(sink).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Opens a reader of its own.
    ///
    /// # Errors
    /// When the engine can't open the file.
    pub fn reader(&self) -> Result<Reader, EngineError> {
        Reader::open(&self.shared.path)
    }

    /// Whether it takes events.
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// What it holds.
    pub fn stats(&self) -> Stats {
        let first_position = self.shared.first.load(Ordering::Relaxed);
        let last_position = *self.shared.durable.borrow();
        Stats {
            health: self.health(),
            first_position,
            last_position,
            records: if first_position == 0 { 0 } else { last_position + 1 - first_position },
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            disk_free_bytes: self.shared.disk_free.load(Ordering::Relaxed),
            dedup_ids: self.shared.dedup_ids.load(Ordering::Relaxed),
        }
    }

    /// Commits what is queued and the cursors, closes the file and gives the directory back. Blocks.
    pub fn close(&self) {
        // A full queue is drained by the writer, so this waits for a place and not for ever.
        if self.commands.send(Command::Close).is_err() {
            tracing::debug!("the journal's writer had stopped already");
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the journal panicked");
            }
        }
    }
}

fn counts(connection: &Connection, table: &str, found: &Log) -> rusqlite::Result<BTreeMap<String, AtomicU64>> {
    let count = |sink: &String| Ok((sink.clone(), AtomicU64::new(letters::count(connection, table, sink)?)));
    found.cursors.keys().map(count).collect()
}

impl Shared {
    /// Whether the disk has too little room to take anything in.
    fn disk_is_low(&self) -> bool {
        self.disk_free.load(Ordering::Relaxed) + self.reusable.load(Ordering::Relaxed) < DISK_RESERVE
    }

    fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            0 => Health::Healthy,
            1 => Health::Full,
            2 => Health::Failed,
            _ => Health::Closed,
        }
    }

    fn set_health(&self, health: Health) -> Health {
        let before = self.health();
        self.health.store(health as u8, Ordering::Relaxed);
        before
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
