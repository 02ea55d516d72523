//! What is committed together, and its transaction.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, params};
use tokio::sync::oneshot;

use super::letters::{self, Growth};
use super::log::{self, Log};
use super::reader::checksum;
use super::{AppendError, Appended, Command, DeadLetter, Entry, Options, Resent, Shared};

/// The most events and bytes of one commit: enough to spread an fsync over many, few enough to stay
/// well inside an answer's deadline on a slow disk.
const GROUP_EVENTS: usize = 512;
const GROUP_BYTES: usize = 4 * 1024 * 1024;

/// How long a cursor may wait for its commit when nothing else is written.
const TICK: Duration = Duration::from_millis(100);

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
    pub(super) stored: Vec<(usize, u64)>,
    pub(super) new_bytes: u64,
    pub(super) cursors: Vec<(String, u64)>,
    pub(super) grown: Vec<(String, Growth)>,
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
    let transaction = connection.transaction()?;
    append(&transaction, log, options, shared, group, &mut done)?;
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
    let disk_low = shared.disk_is_low();
    let mut next = log.last + 1;
    for (index, (entry, _)) in group.appends.iter().enumerate() {
        if let Some(position) = log.window.get(&entry.id).or_else(|| in_group.get(&entry.id).copied()) {
            done.outcomes.push(Ok(Appended::Duplicate(position)));
            continue;
        }
        let size = log::row_size(entry.payload.len() as u64, entry.key.len() as u64, entry.kind.len() as u64);
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
