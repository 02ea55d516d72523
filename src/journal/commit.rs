//! What is committed together, and its transaction.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, Transaction, params};
use tokio::sync::oneshot;

use super::letters::{self, Growth};
use super::log::{self, Log};
use super::reader::checksum;
use super::{AppendError, Appended, Command, DeadLetter, Entry, Options, Resent, Shared, offers};

/// The most events and bytes of one commit: enough to spread an fsync over many, few enough to stay
/// well inside an answer's deadline on a slow disk.
const GROUP_EVENTS: usize = 512;
const GROUP_BYTES: usize = 4 * 1024 * 1024;

/// How long a cursor may wait for its commit when nothing else is written.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// What is committed together.
#[derive(Default)]
pub(super) struct Group {
    pub(super) appends: Vec<(Entry, oneshot::Sender<Result<Appended, AppendError>>)>,
    pub(super) letters: Vec<(DeadLetter, oneshot::Sender<Result<(), AppendError>>)>,
    pub(super) resent: Vec<(ResentRow, oneshot::Sender<Result<(), AppendError>>)>,
    pub(super) bytes: usize,
    pub(super) close: bool,
}

/// A resend that is dealt with.
pub(super) struct ResentRow {
    sink: String,
    seq: u64,
    position: u64,
    outcome: Resent,
}

/// What a transaction has done, to be believed once it is committed.
#[derive(Default)]
pub(super) struct Done {
    pub(super) outcomes: Vec<Result<Appended, AppendError>>,
    pub(super) stored: Vec<Stored>,
    pub(super) new_bytes: u64,
    pub(super) cursors: Vec<(String, u64)>,
    pub(super) grown: Vec<(String, Growth)>,
}

/// An event that a transaction has added.
pub(super) struct Stored {
    pub(super) id: [u8; 16],
    pub(super) position: u64,
    pub(super) accepted_ms: i64,
}

impl Group {
    fn take(&mut self, command: Command) {
        match command {
            Command::Append(entry, reply) => {
                self.bytes += entry.payload.len();
                self.appends.push((entry, reply));
            }
            Command::SetAside(letter, reply) => self.letters.push((letter, reply)),
            Command::Resent { sink, seq, position, outcome, reply } => {
                self.resent.push((ResentRow { sink, seq, position, outcome }, reply));
            }
            Command::Close => self.close = true,
        }
    }

    fn is_full(&self) -> bool {
        self.close || self.appends.len() >= GROUP_EVENTS || self.bytes >= GROUP_BYTES
    }

    /// Answers everybody who waits; `appended` is in the order of the appends. Who has hung up changes nothing.
    pub(super) fn answer(
        self,
        appended: impl IntoIterator<Item = Result<Appended, AppendError>>,
        noted: Result<(), AppendError>,
    ) {
        for ((_, reply), outcome) in self.appends.into_iter().zip(appended) {
            reply.send(outcome).ok();
        }
        let letters = self.letters.into_iter().map(|(_, reply)| reply);
        for reply in letters.chain(self.resent.into_iter().map(|(_, reply)| reply)) {
            reply.send(noted).ok();
        }
    }

    pub(super) fn refuse(self, error: AppendError) {
        self.answer(std::iter::repeat(Err(error)), Err(error));
    }
}

/// Waits for a command, at most a tick, and takes what is queued behind it.
pub(super) fn collect(queue: &Receiver<Command>) -> Group {
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
pub(super) fn write(
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
    if group.appends.is_empty() && group.letters.is_empty() && group.resent.is_empty() && done.cursors.is_empty() {
        return Ok(done);
    }
    let copies = group.letters.iter().map(|(letter, _)| letters::copy(connection, letter));
    let copies = copies.collect::<rusqlite::Result<Vec<_>>>()?;
    let refused = group.resent.iter().map(|(row, _)| match &row.outcome {
        Resent::Refused(letter) => letters::copy(connection, letter),
        Resent::Published | Resent::Gone => Ok(None),
    });
    let refused = refused.collect::<rusqlite::Result<Vec<_>>>()?;
    let told = offers::told_by_reconciled(connection, log, options, &group.appends)?;
    let transaction = connection.transaction()?;
    let mut adder = Adder::new(&transaction, log, options, shared)?;
    for ((entry, _), told) in group.appends.iter().zip(told) {
        done.outcomes.push(match told {
            Some(reconciled) => Ok(reconciled),
            None => adder.add(entry)?,
        });
    }
    (done.stored, done.new_bytes) = adder.finish();
    for ((letter, _), copied) in group.letters.iter().zip(copies) {
        done.grown.push((letter.sink.clone(), letters::set_aside(&transaction, letter, copied)?));
    }
    for ((row, _), copied) in group.resent.iter().zip(refused) {
        let growth = letters::resent(&transaction, &row.sink, row.seq, row.position, &row.outcome, copied)?;
        done.grown.push((row.sink.clone(), growth));
    }
    for (sink, position) in &done.cursors {
        let sql = "INSERT INTO cursors (sink, position) VALUES (?1, ?2)
                   ON CONFLICT (sink) DO UPDATE SET position = excluded.position";
        transaction.prepare_cached(sql)?.execute(params![sink, *position as i64])?;
    }
    transaction.commit()?;
    Ok(done)
}

/// Adds events to a transaction, each with its place in the window.
pub(super) struct Adder<'a> {
    log: &'a Log,
    max_bytes: u64,
    disk_low: bool,
    record: CachedStatement<'a>,
    seen: CachedStatement<'a>,
    /// Twins inside the transaction share the commit of the first.
    twins: HashMap<[u8; 16], u64>,
    stored: Vec<Stored>,
    new_bytes: u64,
}

impl<'a> Adder<'a> {
    pub(super) fn new(
        transaction: &'a Transaction<'_>,
        log: &'a Log,
        options: &Options,
        shared: &Shared,
    ) -> rusqlite::Result<Self> {
        let record = transaction.prepare_cached(
            "INSERT INTO records (position, offset, accepted_ms, crc, id, key, kind, payload)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        let seen = transaction.prepare_cached("INSERT INTO seen (position, accepted_ms, id) VALUES (?1, ?2, ?3)")?;
        Ok(Self {
            log,
            max_bytes: options.settings.max_bytes.0,
            disk_low: shared.disk_is_low(),
            record,
            seen,
            twins: HashMap::new(),
            stored: Vec::new(),
            new_bytes: 0,
        })
    }

    /// What is to be answered once the transaction is durable.
    pub(super) fn add(&mut self, entry: &Entry) -> rusqlite::Result<Result<Appended, AppendError>> {
        if let Some(position) = self.log.window.get(&entry.id).or_else(|| self.twins.get(&entry.id).copied()) {
            return Ok(Ok(Appended::Duplicate(position)));
        }
        let size = log::row_size(entry.payload.len() as u64, entry.key.len() as u64, entry.kind.len() as u64);
        if self.disk_low || self.log.bytes() + self.new_bytes + size > self.max_bytes {
            return Ok(Err(AppendError::Full));
        }
        self.new_bytes += size;
        let position = self.log.last + 1 + self.stored.len() as u64;
        let Entry { id, key, kind, accepted_ms, payload } = entry;
        let crc = checksum(position, *accepted_ms, id, key.as_bytes(), kind.as_bytes(), payload);
        let offset = self.log.end_offset + self.new_bytes;
        self.record.execute(params![position as i64, offset as i64, accepted_ms, crc, id, key, kind, payload])?;
        self.seen.execute(params![position as i64, accepted_ms, id])?;
        self.twins.insert(*id, position);
        self.stored.push(Stored { id: *id, position, accepted_ms: *accepted_ms });
        Ok(Ok(Appended::Stored(position)))
    }

    /// What was added, and the bytes that it takes.
    pub(super) fn finish(self) -> (Vec<Stored>, u64) {
        (self.stored, self.new_bytes)
    }
}
