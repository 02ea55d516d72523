//! The one thread that writes.
//!
//! It takes whatever has queued up, commits it as one group, and only then answers. Cursors and dead
//! letters ride along. A full disk rolls the group back and is tried again with the next one; any other
//! write error closes the file, and nothing is taken until it has been opened and read anew.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};
use tokio::sync::oneshot;

use super::checkpoint::{self, Checkpointer};
use super::reader::checksum;
use super::{
    AppendError, Appended, Command, DISK_RESERVE, DeadLetter, Entry, Health, Options, Shared, disk_free, retention,
    schema,
};
use crate::domain::dedup::Window;

/// The most events and bytes of one commit: enough to spread an fsync over many, few enough to stay
/// well inside an answer's deadline on a slow disk.
const GROUP_EVENTS: usize = 512;
const GROUP_BYTES: usize = 4 * 1024 * 1024;

/// How long a cursor may wait for its commit when nothing else is written.
const TICK: Duration = Duration::from_millis(100);

/// How often retention, the window and the free space are looked at, and a failed disk is tried again.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Room that must be left for the journal to call itself healthy, or a 64th of a small budget: so that
/// it does not call itself healthy while the next event no longer fits.
const HEADROOM: u64 = 1024 * 1024;

/// What a row takes besides its payload, key and type, roughly; so that `max_bytes` means the file.
const ROW_BYTES: u64 = 160;

/// What the writer knows of the file's content.
pub(super) struct Log {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Bytes ever stored before the first record, and up to and with the last.
    pub(super) start_offset: u64,
    pub(super) end_offset: u64,
    pub(super) window: Window,
    /// Rows of `seen` up to here are known to be deleted.
    pub(super) seen_deleted: u64,
    /// The durable cursors of the configured sinks.
    pub(super) cursors: BTreeMap<String, u64>,
    pub(super) dead_letters: BTreeMap<String, u64>,
}

impl Log {
    pub(super) fn bytes(&self) -> u64 {
        self.end_offset - self.start_offset
    }
}

/// Reads what the writer must know: the ends of the log, the window, the cursors.
pub(super) fn load(connection: &Connection, options: &Options) -> rusqlite::Result<Log> {
    let end = |order| {
        let sql = format!(
            "SELECT position, offset, length(payload), length(CAST(key AS BLOB)), length(CAST(kind AS BLOB))
             FROM records ORDER BY position {order} LIMIT 1"
        );
        let row = |row: &rusqlite::Row<'_>| {
            let size =
                row_size(row.get::<_, i64>(2)? as u64, row.get::<_, i64>(3)? as u64, row.get::<_, i64>(4)? as u64);
            Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64, size))
        };
        connection.query_row(&sql, [], row).optional()
    };
    let (first, first_offset, first_size) = end("ASC")?.unwrap_or_default();
    let (last, end_offset, _) = end("DESC")?.unwrap_or_default();
    let mut log = Log {
        first,
        last,
        start_offset: first_offset - first_size,
        end_offset,
        window: Window::new(options.dedup.window.as_millis(), options.dedup.max_ids),
        seen_deleted: 0,
        cursors: BTreeMap::new(),
        dead_letters: BTreeMap::new(),
    };
    load_window(connection, &mut log, options)?;
    for sink in &options.sinks {
        let stored = connection
            .query_row("SELECT position FROM cursors WHERE sink = ?1", [sink], |row| row.get::<_, i64>(0))
            .optional()?
            .map(|position| position as u64);
        log.cursors.insert(sink.clone(), starting_point(sink, stored, &log));
        let letters = "SELECT count(*) FROM dead_letters WHERE sink = ?1";
        let letters: i64 = connection.query_row(letters, [sink], |row| row.get(0))?;
        log.dead_letters.insert(sink.clone(), letters as u64);
    }
    Ok(log)
}

fn load_window(connection: &Connection, log: &mut Log, options: &Options) -> rusqlite::Result<()> {
    let now_ms = options.clock.now_ms();
    let mut statement = connection.prepare("SELECT position, accepted_ms, id FROM seen ORDER BY position")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let accepted_ms: i64 = row.get(1)?;
        if accepted_ms.saturating_add(options.dedup.window.as_millis()) > now_ms {
            log.window.insert(row.get(2)?, row.get::<_, i64>(0)? as u64, accepted_ms);
        }
    }
    Ok(())
}

/// A sink that is new, or was renamed, starts with the oldest event kept: twice with the same id is
/// better than not at all.
fn starting_point(sink: &str, stored: Option<u64>, log: &Log) -> u64 {
    let oldest = log.first.saturating_sub(1);
    match stored {
        Some(position) if position < oldest => {
            tracing::warn!(
                sink,
                cursor = position,
                oldest = log.first,
                "events after this sink's cursor are no longer kept"
            );
            oldest
        }
        Some(position) => position,
        None => oldest,
    }
}

fn row_size(payload: u64, key: u64, kind: u64) -> u64 {
    payload + key + kind + ROW_BYTES
}

pub(super) fn spawn(
    connection: Connection,
    queue: Receiver<Command>,
    log: Log,
    options: Options,
    shared: Arc<Shared>,
    checkpointer: Checkpointer,
    lock: File,
) -> JoinHandle<()> {
    let writer = Writer {
        connection: Some(connection),
        log,
        options,
        shared,
        checkpointer,
        since_checkpoint: 0,
        last_housekeeping: Instant::now(),
        _lock: lock,
    };
    thread::spawn(move || writer.run(&queue))
}

struct Writer {
    /// `None` while the disk fails.
    connection: Option<Connection>,
    log: Log,
    options: Options,
    shared: Arc<Shared>,
    checkpointer: Checkpointer,
    since_checkpoint: u64,
    last_housekeeping: Instant,
    _lock: File,
}

/// What is committed together.
#[derive(Default)]
struct Group {
    appends: Vec<(Entry, oneshot::Sender<Result<Appended, AppendError>>)>,
    letters: Vec<(DeadLetter, oneshot::Sender<Result<(), AppendError>>)>,
    bytes: usize,
    close: bool,
}

/// What a transaction has done, to be believed once it is committed.
#[derive(Default)]
struct Done {
    outcomes: Vec<Result<Appended, AppendError>>,
    stored: Vec<(usize, u64)>,
    new_bytes: u64,
    letters: Vec<String>,
    cursors: Vec<(String, u64)>,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Command>) {
        loop {
            let group = collect(queue);
            let close = group.close;
            self.shared.queued_bytes.fetch_sub(group.bytes, Ordering::Relaxed);
            self.commit(group);
            if self.last_housekeeping.elapsed() >= HOUSEKEEPING {
                self.last_housekeeping = Instant::now();
                self.housekeeping();
            }
            if close {
                break;
            }
        }
        self.commit(Group::default());
        self.shared.set_health(Health::Closed);
    }

    fn commit(&mut self, group: Group) {
        let Some(connection) = &mut self.connection else {
            return group.refuse(AppendError::Failed);
        };
        let room = self.log.bytes() + group.bytes as u64 + group.appends.len() as u64 * ROW_BYTES;
        if room > self.options.settings.max_bytes.0
            && let Err(error) = retention::retire(connection, &mut self.log, &self.options, &self.shared)
        {
            return self.fail(&error, group);
        }
        let started = Instant::now();
        match write(connection, &self.log, &self.options, &self.shared, &group) {
            Ok(done) => self.believe(done, group, started.elapsed()),
            Err(error) => self.fail(&error, group),
        }
    }

    /// The transaction is durable: everything that depends on it may now be said.
    fn believe(&mut self, done: Done, group: Group, took: Duration) {
        if !done.stored.is_empty() {
            (self.options.on_commit)(took);
        }
        for &(index, position) in &done.stored {
            let entry = &group.appends[index].0;
            self.log.window.insert(entry.id, position, entry.accepted_ms);
            if self.log.first == 0 {
                self.log.first = position;
            }
            self.log.last = position;
        }
        self.log.end_offset += done.new_bytes;
        self.since_checkpoint += done.new_bytes;
        for sink in done.letters {
            if let Some(count) = self.shared.dead_letters.get(&sink) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.log.cursors.extend(done.cursors);
        self.publish_numbers();
        for ((_, reply), outcome) in group.appends.into_iter().zip(done.outcomes) {
            // The sender may have hung up; the event is stored all the same.
            reply.send(outcome).ok();
        }
        for (_, reply) in group.letters {
            reply.send(Ok(())).ok();
        }
        self.checkpoint_if_due();
    }

    fn publish_numbers(&self) {
        let shared = &self.shared;
        shared.first.store(self.log.first, Ordering::Relaxed);
        shared.bytes.store(self.log.bytes(), Ordering::Relaxed);
        shared.dedup_ids.store(self.log.window.len() as u64, Ordering::Relaxed);
        shared.durable.send_if_modified(|durable| std::mem::replace(durable, self.log.last) != self.log.last);
    }

    fn checkpoint_if_due(&mut self) {
        if self.since_checkpoint < checkpoint::WAKE_AFTER {
            return;
        }
        self.since_checkpoint = 0;
        if self.checkpointer.needs_help()
            && let Some(connection) = &self.connection
            && let Err(error) = checkpoint::run(connection)
        {
            tracing::debug!(%error, "checkpoint between commits failed");
        }
        self.checkpointer.wake();
    }

    /// A write failed and was rolled back. A full disk may have room for the next one; after any other
    /// error what the disk holds is in doubt, so the file is closed and later read anew.
    fn fail(&mut self, error: &rusqlite::Error, group: Group) {
        let full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        let health = if full { Health::Full } else { Health::Failed };
        if self.shared.set_health(health) != health {
            tracing::error!(%error, path = %self.shared.path.display(), "the journal cannot be written; deliveries are answered 503");
        }
        if !full {
            self.connection = None;
        }
        group.refuse(if full { AppendError::Full } else { AppendError::Failed });
    }

    fn housekeeping(&mut self) {
        self.shared.disk_free.store(disk_free(&self.options.settings.dir), Ordering::Relaxed);
        if self.connection.is_none() {
            self.reopen();
        }
        if let Some(connection) = &mut self.connection
            && let Err(error) = retention::sweep(connection, &mut self.log, &self.options, &self.shared)
        {
            return self.fail(&error, Group::default());
        }
        if self.connection.is_some() {
            self.publish_numbers();
            let health = if self.has_room() { Health::Healthy } else { Health::Full };
            let before = self.shared.set_health(health);
            if before != health {
                match health {
                    Health::Healthy => tracing::info!("the journal takes events again"),
                    _ => tracing::error!(bytes = self.log.bytes(), "the journal is full; deliveries are answered 503"),
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        let budget = self.options.settings.max_bytes.0;
        self.log.bytes() + HEADROOM.min(budget / 64) < budget
            && self.shared.disk_free.load(Ordering::Relaxed) >= DISK_RESERVE
    }

    fn reopen(&mut self) {
        let opened = schema::open_writer(&self.shared.path).map_err(|error| error.to_string());
        match opened.and_then(|mut connection| {
            schema::prove_writable(&mut connection).map_err(|error| error.to_string())?;
            let log = load(&connection, &self.options).map_err(|error| error.to_string())?;
            Ok((connection, log))
        }) {
            Ok((connection, log)) => {
                tracing::info!(last_position = log.last, "the journal was opened again");
                self.connection = Some(connection);
                self.log = log;
            }
            Err(error) => tracing::debug!(%error, "the journal still cannot be opened"),
        }
    }
}

impl Group {
    fn take(&mut self, command: Command) {
        match command {
            Command::Append(entry, reply) => {
                self.bytes += entry.payload.len();
                self.appends.push((entry, reply));
            }
            Command::SetAside(letter, reply) => self.letters.push((letter, reply)),
            Command::Close => self.close = true,
        }
    }

    fn is_full(&self) -> bool {
        self.close || self.appends.len() >= GROUP_EVENTS || self.bytes >= GROUP_BYTES
    }

    fn refuse(self, error: AppendError) {
        for (_, reply) in self.appends {
            reply.send(Err(error)).ok();
        }
        for (_, reply) in self.letters {
            reply.send(Err(error)).ok();
        }
    }
}

/// Waits for a command, at most a tick, and takes what is queued behind it.
fn collect(queue: &Receiver<Command>) -> Group {
    let mut group = Group::default();
    match queue.recv_timeout(TICK) {
        Ok(command) => group.take(command),
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => group.close = true,
    }
    while !group.is_full() {
        let Ok(command) = queue.try_recv() else { break };
        group.take(command);
    }
    group
}

/// One transaction: events with their places in the window, dead letters, cursors.
fn write(
    connection: &mut Connection,
    log: &Log,
    options: &Options,
    shared: &Shared,
    group: &Group,
) -> rusqlite::Result<Done> {
    let mut done = Done::default();
    done.cursors.extend(shared.cursors.iter().filter_map(|(sink, cursor)| {
        let position = cursor.load(Ordering::Relaxed);
        (log.cursors.get(sink) != Some(&position)).then(|| (sink.clone(), position))
    }));
    if group.appends.is_empty() && group.letters.is_empty() && done.cursors.is_empty() {
        return Ok(done);
    }
    let transaction = connection.transaction()?;
    append(&transaction, log, options, shared, group, &mut done)?;
    set_aside(&transaction, group, &mut done)?;
    for (sink, position) in &done.cursors {
        let sql = "INSERT INTO cursors (sink, position) VALUES (?1, ?2)
                   ON CONFLICT (sink) DO UPDATE SET position = excluded.position";
        transaction.prepare_cached(sql)?.execute(params![sink, *position as i64])?;
    }
    transaction.commit()?;
    Ok(done)
}

fn append(
    transaction: &Transaction<'_>,
    log: &Log,
    options: &Options,
    shared: &Shared,
    group: &Group,
    done: &mut Done,
) -> rusqlite::Result<()> {
    let mut record = transaction.prepare_cached(
        "INSERT INTO records (position, offset, accepted_ms, crc, id, key, kind, payload)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let mut seen = transaction.prepare_cached("INSERT INTO seen (position, accepted_ms, id) VALUES (?1, ?2, ?3)")?;
    // Twins inside the group share the commit of the first.
    let mut in_group: HashMap<[u8; 16], u64> = HashMap::with_capacity(group.appends.len());
    let disk_low = shared.disk_free.load(Ordering::Relaxed) < DISK_RESERVE;
    let mut next = log.last + 1;
    for (index, (entry, _)) in group.appends.iter().enumerate() {
        if let Some(position) = log.window.get(&entry.id).or_else(|| in_group.get(&entry.id).copied()) {
            done.outcomes.push(Ok(Appended::Duplicate(position)));
            continue;
        }
        let size = row_size(entry.payload.len() as u64, entry.key.len() as u64, entry.kind.len() as u64);
        if disk_low || log.bytes() + done.new_bytes + size > options.settings.max_bytes.0 {
            done.outcomes.push(Err(AppendError::Full));
            continue;
        }
        done.new_bytes += size;
        let crc =
            checksum(next, entry.accepted_ms, &entry.id, entry.key.as_bytes(), entry.kind.as_bytes(), &entry.payload);
        record.execute(params![
            next as i64,
            (log.end_offset + done.new_bytes) as i64,
            entry.accepted_ms,
            crc,
            entry.id,
            entry.key,
            entry.kind,
            entry.payload,
        ])?;
        seen.execute(params![next as i64, entry.accepted_ms, entry.id])?;
        in_group.insert(entry.id, next);
        done.stored.push((index, next));
        done.outcomes.push(Ok(Appended::Stored(next)));
        next += 1;
    }
    Ok(())
}

fn set_aside(transaction: &Transaction<'_>, group: &Group, done: &mut Done) -> rusqlite::Result<()> {
    let sql = "INSERT OR IGNORE INTO dead_letters (sink, position, at_ms, reason, detail, id, key, kind, payload)
               SELECT ?1, position, ?3, ?4, ?5, id, key, kind, payload FROM records WHERE position = ?2";
    for (letter, _) in &group.letters {
        let values = params![letter.sink, letter.position as i64, letter.at_ms, letter.reason, letter.detail];
        if transaction.prepare_cached(sql)?.execute(values)? > 0 {
            done.letters.push(letter.sink.clone());
        }
    }
    Ok(())
}
