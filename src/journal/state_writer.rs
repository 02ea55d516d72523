//! The one thread that writes the state: what sinks have published, dead letters, resends.
//!
//! What has changed is committed every 100 ms, and at once where somebody waits for it. No answer to a delivery waits
//! for this thread. A failed commit is tried again with all that has changed since; only a crash in between makes sinks
//! publish something twice.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::dead_letters::{DeadLetter, Growth};
use super::progress::ChangedProgress;
use super::reader::Reader;
use super::record::Row;
use super::resend::{Origin, ResendOutcome};
use super::sinks::{Sink, add};
use super::state_queue::{StateOp, is_structural};
use super::stuck::StuckEvent;
use super::{Shared, backfill, dead_letters, lock, progress, replays, resends, sqlite, state, stuck};

/// How long what sinks have published may wait for its commit.
const TICK: Duration = Duration::from_millis(100);

/// How often each sink's progress is noted.
const PROGRESS: Duration = Duration::from_secs(1);

/// How long to wait after a failed commit.
const AFTER_ERROR: Duration = Duration::from_secs(1);

pub(super) struct StateWriter {
    /// `None` while the file cannot be written.
    pub(super) connection: Option<Connection>,
    pub(super) shared: Arc<Shared>,
    pub(super) reader: Reader,
    /// SQLite's count of commits by others, as last seen.
    pub(super) data_version: Option<i64>,
    pub(super) retain_ms: i64,
    pub(super) failing: bool,
    /// Whether a sink has got further since that was last noted.
    pub(super) has_progressed: bool,
    /// Whether the file is to be replaced by what can be read of it.
    pub(super) damaged: bool,
    /// How often that was done.
    pub(super) repairs: u32,
}

/// How often a run of the bridge repairs its state file. A file that is damaged once more after that is left alone.
const MOST_REPAIRS: u32 = 3;

/// How often what is left at the end is tried to be written.
const LAST_TRIES: u32 = 2;

impl StateWriter {
    pub(super) fn run(mut self) {
        let (mut ops, mut progress_at) = (Vec::new(), Instant::now());
        loop {
            ops.extend(self.shared.state.take(TICK));
            let close = ops.iter().any(|op| matches!(op, StateOp::Close));
            let present = self.edition();
            let is_asked = |op: &StateOp| matches!(op, StateOp::Repair { edition } if *edition == present);
            if ops.iter().any(is_asked) && self.repairs < MOST_REPAIRS {
                (self.connection, self.damaged) = (None, true);
                self.reopen();
            }
            let with_progress = self.has_progressed && progress_at.elapsed() >= PROGRESS;
            if with_progress {
                progress_at = Instant::now();
            }
            let tries = if close { LAST_TRIES } else { 1 };
            for _ in 0..tries {
                match self.commit(&ops, with_progress) {
                    Ok(()) => {
                        self.answer(std::mem::take(&mut ops));
                        break;
                    }
                    Err(error) => self.fail(&error),
                }
                if close {
                    self.reopen();
                }
            }
            self.notice_others();
            if close {
                break;
            }
            if self.failing {
                std::thread::sleep(AFTER_ERROR);
                self.reopen();
            }
        }
        if let Some(connection) = self.connection.take()
            && let Err((_, error)) = connection.close()
        {
            tracing::debug!(%error, "closing the state file");
        }
    }

    fn edition(&self) -> u64 {
        self.shared.state_edition.load(Ordering::Acquire)
    }

    /// Writes what has changed as one transaction.
    fn commit(&mut self, ops: &[StateOp], with_progress: bool) -> rusqlite::Result<()> {
        let Some(connection) = &mut self.connection else { return Err(rusqlite::Error::InvalidQuery) };
        let shared = Arc::clone(&self.shared);
        // While they wait: what waits for nobody may be released.
        let rows = copies(ops, &mut self.reader);
        // In the same transaction as its dead letter, an event ceases to wait.
        for sink in shared.sinks.iter() {
            let positions = ops.iter().filter_map(|op| match op {
                StateOp::SetAside(dead_letter, _) if dead_letter.sink == sink.spec.name => Some(dead_letter.position),
                _ => None,
            });
            sink.set_aside(positions);
        }
        let is_dirty = |sink: &Sink| {
            let has_stuck = !lock(&sink.stuck).is_empty();
            sink.dirty.load(Ordering::Acquire) || has_stuck
        };
        let replays_changed = shared.replays.lock().values().any(|replay| replay.dirty);
        let writes = ops.iter().any(|op| !matches!(op, StateOp::Flush(_) | StateOp::Close | StateOp::Repair { .. }));
        let dirty: Vec<&Sink> = shared.sinks.iter().filter(|sink| is_dirty(sink)).collect();
        if dirty.is_empty() && !writes && !replays_changed && !shared.proof_changed() && !with_progress {
            return Ok(());
        }
        let proof = shared.proof();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut taken = Vec::new();
        let written = (|| {
            let mut growth = BTreeMap::new();
            for (op, row) in ops.iter().zip(&rows) {
                apply(&transaction, op, row.as_ref(), &mut growth)?;
            }
            for sink in &dirty {
                // Before it is written, so that it is put back if it cannot be.
                taken.push(Changed::of(sink));
                taken.last().map_or(Ok(()), |changed| changed.store(&transaction, &sink.spec.name))?;
            }
            if with_progress {
                note_progress(&transaction, &shared, self.retain_ms)?;
            }
            progress::store_proof(&transaction, proof.0, proof.1)?;
            let ended = replays::store_replays(&transaction, &mut shared.replays.lock())?;
            Ok((growth, ended))
        })();
        let committed = written.and_then(|done| transaction.commit().map(|()| done));
        match committed {
            Ok((growth, ended)) => {
                shared.proof_is_durable(proof);
                self.has_progressed = !with_progress && (self.has_progressed || !dirty.is_empty());
                self.apply_committed(&growth, &ended);
                Ok(())
            }
            Err(error) => {
                taken.into_iter().zip(dirty).for_each(|(taken, sink): (Changed, _)| taken.put_back(sink));
                shared.replays.lock().values_mut().for_each(|replay| replay.dirty = true);
                Err(error)
            }
        }
    }

    fn apply_committed(&self, growth: &BTreeMap<String, Grown>, ended: &[u64]) {
        for (name, grown) in growth {
            let bytes = &self.shared.dead_letter_bytes;
            add(bytes, grown.dead_letters.bytes);
            if let Some(sink) = self.shared.sinks.get(name) {
                add(&sink.dead_letters, grown.dead_letters.count);
                add(&sink.resends, grown.resends);
            }
        }
        self.shared.sinks.iter().for_each(|sink| sink.setting_aside.store(0, Ordering::Release));
        for id in ended {
            self.shared.replays.lock().remove(id);
            tracing::info!(replay = id, "replay finished");
        }
    }

    fn answer(&mut self, ops: Vec<StateOp>) {
        if std::mem::take(&mut self.failing) {
            tracing::info!("state file is writable again");
        }
        for op in ops {
            match op {
                StateOp::SetAside(_, reply) => drop(reply.send(())),
                StateOp::FinishResend { origin: Origin::Replay { id }, position, .. } => {
                    self.shared.replays.finish(id, position);
                }
                StateOp::Backfill(outcomes) => {
                    lock(&self.shared.backfilled).extend(outcomes.iter().map(|(seq, _)| *seq));
                }
                StateOp::CutReplay { id } => drop(self.shared.replays.lock().remove(&id)),
                StateOp::Flush(reply) => drop(reply.send(())),
                _ => {}
            }
        }
    }

    fn fail(&mut self, error: &rusqlite::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            let path = self.shared.chain.dir.join(sqlite::FILE);
            tracing::error!(%error, path = %path.display(), "cannot write what sinks have published; retrying, and after a crash events since now are published twice");
        }
        if error.sqlite_error_code() != Some(rusqlite::ErrorCode::DiskFull) {
            self.connection = None;
        }
        self.damaged |= is_structural(error);
    }

    /// Opens the file again. If it is damaged, all that can be read is carried over, and what is in memory is written.
    fn reopen(&mut self) {
        if self.connection.is_some() {
            return;
        }
        let dir = &self.shared.chain.dir;
        let repair = self.damaged && self.repairs < MOST_REPAIRS;
        match if repair { state::open_damaged(dir) } else { state::open(dir) } {
            Ok(opened) => {
                if let Some(path) = opened.damaged {
                    tracing::error!(path = %path.display(), "the state file was damaged; what can be read was carried over");
                    self.repairs += 1;
                    self.shared.state_edition.fetch_add(1, Ordering::Release);
                    lock(&self.shared.state_reader).take();
                }
                self.damaged = false;
                for sink in self.shared.sinks.iter() {
                    let mut guard = sink.progress();
                    let progress = &mut *guard;
                    progress.waiting.put_back_changed(progress.waiting.chunk_numbers().collect::<Vec<_>>());
                    sink.dirty.store(true, Ordering::Release);
                }
                self.shared.replays.lock().values_mut().for_each(|replay| replay.dirty = true);
                self.connection = Some(opened.connection);
                self.data_version = None;
            }
            Err(error) => tracing::debug!(%error, "cannot open the state file yet"),
        }
    }

    /// Operators' commands write to the file too; then, and only then, it is read.
    fn notice_others(&mut self) {
        let Some(connection) = &self.connection else { return };
        let Ok(version) = connection.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0)) else {
            return;
        };
        if self.data_version.replace(version) == Some(version) {
            return;
        }
        if let Err(error) = read_requests(connection, &self.shared) {
            tracing::debug!(%error, "cannot read what operators have asked for");
            self.data_version = None;
            self.shared.state.report(&error, self.edition());
        }
    }
}

/// Takes up what commands have written.
pub(super) fn read_requests(connection: &Connection, shared: &Shared) -> rusqlite::Result<()> {
    for sink in shared.sinks.iter() {
        let name = &sink.spec.name;
        let dead_letters = sqlite::count_of(connection, "dead_letters", name)?;
        let requeued = sqlite::count_of(connection, "resends", name)?;
        let discarded = sink.dead_letters.swap(dead_letters, Ordering::Relaxed).saturating_sub(dead_letters);
        if discarded > 0 {
            tracing::info!(sink = name, dead_letters = discarded, "an operator discarded dead letters");
        }
        let more = requeued.saturating_sub(sink.resends.swap(requeued, Ordering::Relaxed));
        if more > 0 {
            tracing::info!(sink = name, dead_letters = more, "requeued dead letters are published once more");
        }
        let requests = sqlite::positions_of(connection, "set_aside_requests", name)?;
        lock(&sink.requests).update(requests);
    }
    shared.dead_letter_bytes.store(dead_letters::bytes(connection)?, Ordering::Relaxed);
    shared.replays.update(connection, &shared.sinks)?;
    if backfill::count(connection)? > 0 {
        shared.candidates_wait.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Of each op, the event that it makes a dead letter of. Read before the transaction.
fn copies(ops: &[StateOp], reader: &mut Reader) -> Vec<Option<Row>> {
    let mut copy = |op: &StateOp| {
        let position = match op {
            StateOp::SetAside(dead_letter, _)
            | StateOp::FinishResend { outcome: ResendOutcome::Refused(dead_letter), .. } => dead_letter.position,
            _ => return None,
        };
        reader.at(position).unwrap_or_else(|error| {
            tracing::error!(%error, position, "cannot read the event of a dead letter; keeping its position");
            Some(Row::Damaged { position, key_hash: None, id: None, kind: None })
        })
    };
    ops.iter().map(&mut copy).collect()
}

/// By how much the tables of a sink have grown.
#[derive(Default)]
struct Grown {
    dead_letters: Growth,
    resends: i64,
}

impl Grown {
    fn add(&mut self, growth: Growth) {
        self.dead_letters.count += growth.count;
        self.dead_letters.bytes += growth.bytes;
    }
}

fn apply(
    transaction: &Transaction<'_>,
    op: &StateOp,
    row: Option<&Row>,
    growth: &mut BTreeMap<String, Grown>,
) -> rusqlite::Result<()> {
    match op {
        StateOp::SetAside(dead_letter, _) => {
            let dead_letter = dead_letters::with_reason(transaction, dead_letter)?;
            let DeadLetter { sink, position, .. } = &dead_letter;
            growth.entry(sink.clone()).or_default().add(dead_letters::insert(transaction, &dead_letter, row)?);
            stuck::forget(transaction, sink, *position)?;
        }
        StateOp::FinishResend { sink, origin, position, outcome } => {
            let grown = growth.entry(sink.clone()).or_default();
            if let Origin::Requeue { seq } = origin {
                grown.resends -= i64::from(resends::remove(transaction, *seq)?);
            }
            match outcome {
                ResendOutcome::Published if matches!(origin, Origin::Requeue { .. }) => {
                    grown.add(dead_letters::delete(transaction, sink, *position)?);
                }
                ResendOutcome::Published => {}
                ResendOutcome::Refused(dead_letter) => {
                    grown.add(dead_letters::insert(transaction, dead_letter, row)?);
                }
            }
        }
        StateOp::DeclineSetAside { sink, positions } => {
            for position in positions {
                stuck::forget(transaction, sink, *position)?;
            }
        }
        StateOp::Backfill(outcomes) => backfill::store(transaction, outcomes)?,
        StateOp::ForgetBackfilled { before_ms } => backfill::delete_before(transaction, *before_ms)?,
        StateOp::DropRequeued { sink, seqs } => {
            for seq in seqs {
                let removed = i64::from(resends::remove(transaction, *seq)?);
                growth.entry(sink.clone()).or_default().resends -= removed;
            }
        }
        StateOp::CutReplay { id } => {
            replays::cancel_replay(transaction, *id, "it was cut, because the journal is full")?;
        }
        StateOp::Release { first, last, oldest } => progress::store_released(transaction, *first, *last, *oldest)?,
        StateOp::Flush(_) | StateOp::Close | StateOp::Repair { .. } => {}
    }
    Ok(())
}

/// What of a sink is being written.
struct Changed {
    progress: ChangedProgress,
    stuck: Vec<StuckEvent>,
    no_longer_stuck: Vec<u64>,
}

impl Changed {
    fn of(sink: &Sink) -> Self {
        sink.dirty.store(false, Ordering::Release);
        let mut stuck = std::mem::take(&mut *lock(&sink.stuck));
        let mut progress = sink.progress();
        // What has been published since it was reported is not stuck.
        stuck.retain(|event| progress.waiting.contains(event.position));
        for event in &stuck {
            progress.stuck.insert(event.position);
        }
        Self {
            progress: ChangedProgress::of(&mut progress),
            stuck,
            no_longer_stuck: std::mem::take(&mut progress.no_longer_stuck),
        }
    }

    fn put_back(self, sink: &Sink) {
        let mut progress = sink.progress();
        progress.waiting.put_back_changed(self.progress.changed.into_iter().map(|(chunk, _)| chunk));
        progress.no_longer_stuck.extend(self.no_longer_stuck);
        let mut stuck = lock(&sink.stuck);
        stuck.splice(0..0, self.stuck);
        sink.dirty.store(true, Ordering::Release);
    }

    fn store(&self, transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<()> {
        progress::store_progress(transaction, name, &self.progress)?;
        stuck::record(transaction, name, &self.stuck)?;
        self.no_longer_stuck.iter().try_for_each(|position| stuck::forget(transaction, name, *position))
    }
}

/// For stories: when each sink had got how far, for as long as its events are kept.
fn note_progress(transaction: &Transaction<'_>, shared: &Shared, retain_ms: i64) -> rusqlite::Result<()> {
    let now_ms = shared.clock.now_ms();
    let sql = "INSERT INTO progress (at_ms, sink, cursor) SELECT ?1, ?2, ?3
               WHERE ?3 > coalesce((SELECT max(cursor) FROM progress WHERE sink = ?2), 0)";
    for sink in shared.sinks.iter() {
        let cursor = sink.progress().cursor() as i64;
        transaction.prepare_cached(sql)?.execute(rusqlite::params![now_ms, sink.spec.name, cursor])?;
    }
    let sql =
        "DELETE FROM progress WHERE rowid IN (SELECT rowid FROM progress WHERE at_ms < ?1 ORDER BY rowid LIMIT 100)";
    transaction.prepare_cached(sql)?.execute([now_ms.saturating_sub(retain_ms)]).map(drop)
}

/// Opens a connection for reading beside the thread that writes.
pub(super) fn open_for_reading(dir: &Path) -> rusqlite::Result<Connection> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(dir.join(sqlite::FILE), flags)
}
