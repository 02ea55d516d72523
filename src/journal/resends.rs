//! What is published once more because an operator wants it: requeued dead letters, and replays.
//!
//! Each resend names a configured sink and a stored event. A requeued dead letter has its own copy of the event. A
//! replay has none: it is a filter and how far it has got, and keeps the segments that it still needs. Where room is
//! short replays are cut, the newest first, so no command can keep the journal from taking events.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rusqlite::{Connection, Row as SqlRow, params};

use super::dead_letters::{self, DeadLetter};
use super::reader::{Filter, Limits, ReadError, Reader};
use super::record::{Record, Row};
use super::shared::Shared;
use super::sinks::{Progress, Sinks};
use super::state;

/// `waiting` are the positions up to `frontier` that were given to the sink and are not published yet. The checksum is
/// over what was asked for: the sink, the filter and the last position.
pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS resends (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        sink        TEXT    NOT NULL,
        position    INTEGER NOT NULL,
        UNIQUE (sink, position)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS replays (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        sink        TEXT    NOT NULL,
        filter      TEXT    NOT NULL,
        until       INTEGER NOT NULL,
        rate        INTEGER,
        created_ms  INTEGER NOT NULL,
        total       INTEGER NOT NULL,
        done        INTEGER NOT NULL,
        frontier    INTEGER NOT NULL,
        waiting     BLOB    NOT NULL,
        crc         INTEGER NOT NULL
    ) STRICT;
";

/// Where a resend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A requeued dead letter, by its number in the queue.
    Requeue {
        /// The number.
        seq: u64,
    },
    /// A replay.
    Replay {
        /// Its number.
        id: u64,
    },
}

/// An event that is to be published once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resend {
    /// Where it comes from.
    pub origin: Origin,
    /// The event.
    pub record: Record,
}

/// What became of a resend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResendOutcome {
    /// The broker has it; if it was a dead letter, it is none any more.
    Published,
    /// The broker refuses it: it is a dead letter, for this reason now.
    Refused(DeadLetter),
}

/// How far a sink has been given its resends.
#[derive(Debug, Default)]
pub struct ResendCursor {
    requeued: u64,
    /// The replays whose waiting positions of an earlier run it has been given.
    replays: HashMap<u64, Vec<u64>>,
    /// For the events of replays.
    reader: Option<Reader>,
}

/// A replay under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayStatus {
    /// Its number.
    pub id: u64,
    /// The sink.
    pub sink: String,
    /// When it was asked for, in Unix milliseconds.
    pub created_ms: i64,
    /// How many events it had to publish when it was asked for.
    pub total: u64,
    /// How many of them are dealt with.
    pub done: u64,
    /// Events a second at most.
    pub rate: Option<u32>,
}

/// A replay in memory.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) status: ReplayStatus,
    filter: Filter,
    /// The last position that belongs to it.
    until: u64,
    progress: Progress,
    pace: Pace,
    pub(super) dirty: bool,
}

/// How many events of a replay may be given, as time goes by: never more than those of one second at once.
#[derive(Debug)]
struct Pace {
    rate: Option<f64>,
    due: f64,
    at: Instant,
}

impl Pace {
    fn new(rate: Option<u32>) -> Self {
        Self { rate: rate.map(f64::from), due: 1.0, at: Instant::now() }
    }

    fn allowance(&mut self, rows: usize) -> usize {
        let Some(rate) = self.rate else { return rows };
        let elapsed = std::mem::replace(&mut self.at, Instant::now()).elapsed();
        self.due = (self.due + elapsed.as_secs_f64() * rate).min(rate.max(1.0));
        rows.min(self.due as usize)
    }

    fn given(&mut self, rows: usize) {
        self.due = (self.due - rows as f64).max(0.0);
    }
}

impl Replay {
    fn is_finished(&self) -> bool {
        self.progress.frontier >= self.until && self.progress.waiting.is_empty()
    }

    /// Whether it still needs events of these positions.
    fn needs(&self, first: u64, last: u64) -> bool {
        let oldest = self.progress.waiting.first().unwrap_or(self.progress.frontier.saturating_add(1));
        oldest <= last && first <= self.until
    }
}

/// The replays under way, by number.
#[derive(Debug, Default)]
pub(super) struct Replays(Mutex<BTreeMap<u64, Replay>>);

impl Replays {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Replay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up the replays that an operator has asked for, and lets go of those that he has cancelled.
    pub(super) fn update(&self, connection: &Connection, sinks: &Sinks) -> rusqlite::Result<()> {
        let mut stored = load_replays(connection)?;
        stored.retain(|replay| sinks.get(&replay.status.sink).is_some());
        let mut replays = self.lock();
        replays.retain(|id, _| stored.iter().any(|replay| replay.status.id == *id));
        for replay in stored {
            replays.entry(replay.status.id).or_insert(replay);
        }
        Ok(())
    }

    /// How many events of a sink are to come.
    pub(super) fn to_come(&self, sink: &str) -> u64 {
        let replays = self.lock();
        let of_sink = replays.values().filter(|replay| replay.status.sink == sink);
        of_sink.map(|replay| replay.status.total.saturating_sub(replay.status.done)).sum()
    }

    pub(super) fn active(&self, sink: &str) -> u64 {
        self.lock().values().filter(|replay| replay.status.sink == sink).count() as u64
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.lock().contains_key(&id)
    }

    pub(super) fn finish(&self, id: u64, position: u64) {
        if let Some(replay) = self.lock().get_mut(&id)
            && replay.progress.waiting.remove(position)
        {
            replay.status.done += 1;
            replay.dirty = true;
        }
    }

    /// Whether a replay still needs events of these positions.
    pub(super) fn need(&self, first: u64, last: u64) -> bool {
        self.lock().values().any(|replay| replay.needs(first, last))
    }

    /// Cuts the newest replay that still needs events of any of these positions.
    pub(super) fn cut_newest(&self, spans: &[(u64, u64)]) -> Option<ReplayStatus> {
        let mut replays = self.lock();
        let needs = |replay: &Replay| spans.iter().any(|(first, last)| replay.needs(*first, *last));
        let id = replays.iter().rev().find(|(_, replay)| needs(replay)).map(|(id, _)| *id)?;
        replays.remove(&id).map(|replay| replay.status)
    }

    /// The next events of the first replay of a sink. Looks past what its filter leaves out, but not for long.
    fn next(
        &self,
        sink: &str,
        cursor: &mut ResendCursor,
        reader: &mut Reader,
        limits: Limits,
    ) -> Result<Vec<Resend>, ReadError> {
        for _ in 0..MOST_LOOKS {
            let Some(step) = self.step(sink, cursor, limits.rows) else { break };
            let rows = step.read(reader, limits).inspect_err(|_| step.undo(cursor))?;
            let (given, has_moved) = self.give(&step, rows);
            if !given.is_empty() || !has_moved {
                return Ok(given);
            }
        }
        Ok(Vec::new())
    }

    /// What is to be read next; `None` if nothing may be given now.
    fn step(&self, sink: &str, cursor: &mut ResendCursor, rows: usize) -> Option<Step> {
        let mut replays = self.lock();
        let replay = replays.values_mut().find(|replay| replay.status.sink == sink && !replay.is_given(cursor))?;
        let rows = replay.pace.allowance(rows);
        if rows == 0 {
            return None;
        }
        let earlier = cursor.replays.entry(replay.status.id).or_insert_with(|| {
            let mut waiting: Vec<u64> = replay.progress.waiting.iter().collect();
            waiting.reverse();
            waiting
        });
        let mut earlier = earlier.split_off(earlier.len().saturating_sub(rows));
        earlier.reverse();
        let (frontier, until, filter) = (replay.progress.frontier, replay.until, replay.filter.clone());
        Some(Step { id: replay.status.id, earlier, frontier, until, filter, rows })
    }

    /// Gives what was read, and says whether the replay has moved on.
    fn give(&self, step: &Step, (rows, through): (Vec<Row>, u64)) -> (Vec<Resend>, bool) {
        let mut replays = self.lock();
        let Some(replay) = replays.get_mut(&step.id) else { return (Vec::new(), true) };
        let id = step.id;
        let has_moved = through > replay.progress.frontier || !step.earlier.is_empty();
        replay.progress.frontier = replay.progress.frontier.max(through);
        replay.dirty |= has_moved;
        for position in &step.earlier {
            replay.progress.waiting.remove(*position);
        }
        let gone = step.earlier.len().saturating_sub(rows.len()) as u64;
        replay.status.done += gone;
        let mut given = Vec::with_capacity(rows.len());
        for row in rows {
            match row {
                Row::Intact(record) => {
                    replay.progress.waiting.insert(record.position);
                    given.push(Resend { origin: Origin::Replay { id }, record });
                }
                Row::Damaged { position, .. } => {
                    replay.status.done += 1;
                    tracing::warn!(replay = id, position, "damaged event; not replayed");
                }
            }
        }
        replay.pace.given(given.len());
        (given, has_moved)
    }
}

/// How often events are read for a replay before its sink is given none.
const MOST_LOOKS: u32 = 20;

/// What is to be read of a replay.
struct Step {
    id: u64,
    /// Positions that were given in an earlier run, or to another cursor, and are not published.
    earlier: Vec<u64>,
    frontier: u64,
    until: u64,
    filter: Filter,
    rows: usize,
}

impl Step {
    /// The rows, and up to where all has been looked at.
    fn read(&self, reader: &mut Reader, limits: Limits) -> Result<(Vec<Row>, u64), ReadError> {
        if self.earlier.is_empty() {
            let batch = reader.after(self.frontier, Limits { rows: self.rows, ..limits }, &self.filter)?;
            let mut rows = batch.rows;
            rows.retain(|row| row.position() <= self.until);
            return Ok((rows, batch.through.min(self.until)));
        }
        let mut rows = Vec::new();
        for position in &self.earlier {
            rows.extend(reader.at(*position)?);
        }
        Ok((rows, self.frontier))
    }

    /// What could not be read now is read the next time.
    fn undo(&self, cursor: &mut ResendCursor) {
        if let Some(earlier) = cursor.replays.get_mut(&self.id) {
            earlier.extend(self.earlier.iter().rev());
        }
    }
}

impl Replay {
    /// Whether there is nothing more to give, though not all may be published.
    fn is_given(&self, cursor: &ResendCursor) -> bool {
        let earlier = match cursor.replays.get(&self.status.id) {
            Some(earlier) => !earlier.is_empty(),
            None => !self.progress.waiting.is_empty(),
        };
        self.progress.frontier >= self.until && !earlier
    }
}

/// The next resends of a sink that this cursor has not been given yet: requeued dead letters first. What is damaged or
/// gone is left out, and the second list names it, to be taken out of the queue.
pub(super) fn next(
    connection: &Connection,
    shared: &Shared,
    sink: &str,
    cursor: &mut ResendCursor,
    limits: Limits,
) -> Result<(Vec<Resend>, Vec<u64>), NextError> {
    let (mut resends, unusable) = requeued(connection, sink, cursor, limits).map_err(NextError::Engine)?;
    if resends.len() < limits.rows {
        let limits = Limits { rows: limits.rows - resends.len(), ..limits };
        let mut reader = cursor.reader.take().unwrap_or_else(|| shared.reader());
        let next = shared.replays.next(sink, cursor, &mut reader, limits);
        cursor.reader = Some(reader);
        resends.extend(next.map_err(NextError::Read)?);
    }
    Ok((resends, unusable))
}

/// Why resends cannot be read now.
pub(super) enum NextError {
    Engine(rusqlite::Error),
    Read(ReadError),
}

impl From<rusqlite::Error> for NextError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Engine(error)
    }
}

fn requeued(
    connection: &Connection,
    sink: &str,
    cursor: &mut ResendCursor,
    limits: Limits,
) -> rusqlite::Result<(Vec<Resend>, Vec<u64>)> {
    let sql = format!(
        "SELECT q.seq, d.seq, {} FROM resends q
         LEFT JOIN dead_letters d ON d.sink = q.sink AND d.position = q.position
         WHERE q.sink = ?1 AND q.seq > ?2 ORDER BY q.seq LIMIT ?3",
        dead_letters::COLUMNS
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params![sink, cursor.requeued as i64, limits.rows as i64])?;
    let (mut resends, mut unusable, mut bytes) = (Vec::new(), Vec::new(), 0);
    while let Some(row) = rows.next()? {
        if bytes >= limits.bytes {
            break;
        }
        let seq = row.get::<_, i64>(0)? as u64;
        cursor.requeued = seq;
        let is_there = row.get::<_, Option<i64>>(1)?.is_some();
        let stored = if is_there { state::readable(dead_letters::stored(row, 2))? } else { None };
        match stored.and_then(|stored| stored.event) {
            Some(record) => {
                bytes += record.payload.len();
                resends.push(Resend { origin: Origin::Requeue { seq }, record });
            }
            None => unusable.push(seq),
        }
    }
    Ok((resends, unusable))
}

/// How many requeued dead letters of a sink wait.
pub(super) fn count(connection: &Connection, sink: &str) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM resends WHERE sink = ?1";
    connection.prepare_cached(sql)?.query_row([sink], |row| row.get::<_, i64>(0)).map(|count| count as u64)
}

/// Takes a requeued dead letter out of the queue; `false` if it was not in it.
pub(super) fn remove(connection: &Connection, seq: u64) -> rusqlite::Result<bool> {
    Ok(connection.prepare_cached("DELETE FROM resends WHERE seq = ?1")?.execute([seq as i64])? > 0)
}

/// Drops what names no configured sink, or no stored event; returns how many.
pub(super) fn drop_orphans(connection: &Connection, sinks: &[&str]) -> rusqlite::Result<u64> {
    let mut dropped = 0;
    let names = |table: &str| -> rusqlite::Result<Vec<String>> {
        let sql = format!("SELECT DISTINCT sink FROM {table}");
        let mut statement = connection.prepare(&sql)?;
        statement.query_map([], |row| row.get(0))?.filter_map(|sink| state::readable(sink).transpose()).collect()
    };
    for table in ["resends", "replays"] {
        for sink in names(table)?.iter().filter(|sink| !sinks.contains(&sink.as_str())) {
            let count = connection.execute(&format!("DELETE FROM {table} WHERE sink = ?1"), [sink])? as u64;
            tracing::warn!(sink, dropped = count, "dropped {table} of a sink that is no longer configured");
            dropped += count;
        }
    }
    let sql = "DELETE FROM resends WHERE NOT EXISTS
               (SELECT 1 FROM dead_letters d WHERE d.sink = resends.sink AND d.position = resends.position)";
    let count = connection.execute(sql, [])? as u64;
    if count > 0 {
        tracing::warn!(dropped = count, "dropped resends whose dead letter is gone");
    }
    Ok(dropped + count)
}

/// Adds a replay; returns its number.
pub(super) fn insert_replay(
    connection: &Connection,
    status: &ReplayStatus,
    filter: &Filter,
    until: u64,
) -> rusqlite::Result<u64> {
    let filter =
        serde_json::to_string(filter).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let sql = "INSERT INTO replays (sink, filter, until, rate, created_ms, total, done, frontier, waiting, crc)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, 0, x'', ?7)";
    let crc = checksum(&status.sink, &filter, until);
    let values = params![status.sink, filter, until as i64, status.rate, status.created_ms, status.total as i64, crc];
    connection.execute(sql, values)?;
    Ok(connection.last_insert_rowid() as u64)
}

/// Cancels a replay; `false` if there is none of that number.
pub(super) fn delete_replay(connection: &Connection, id: u64) -> rusqlite::Result<bool> {
    Ok(connection.execute("DELETE FROM replays WHERE id = ?1", [id as i64])? > 0)
}

/// Writes how far the replays have got, and deletes those that have ended. Returns the numbers of the latter.
pub(super) fn store_replays(
    connection: &Connection,
    replays: &mut BTreeMap<u64, Replay>,
) -> rusqlite::Result<Vec<u64>> {
    let mut ended = Vec::new();
    for (id, replay) in replays.iter_mut() {
        if replay.is_finished() {
            delete_replay(connection, *id)?;
            ended.push(*id);
        } else if std::mem::take(&mut replay.dirty) {
            let waiting: Vec<u8> = replay.progress.waiting.iter().flat_map(u64::to_le_bytes).collect();
            let sql = "UPDATE replays SET done = ?2, frontier = ?3, waiting = ?4 WHERE id = ?1";
            let (done, frontier) = (replay.status.done as i64, replay.progress.frontier as i64);
            connection.prepare_cached(sql)?.execute(params![*id as i64, done, frontier, waiting])?;
        }
    }
    Ok(ended)
}

fn checksum(sink: &str, filter: &str, until: u64) -> u32 {
    state::crc(&[sink.as_bytes(), filter.as_bytes(), &until.to_le_bytes()])
}

/// The replays under way, oldest first. A damaged one is left out: nobody knows what it asked for.
pub(super) fn load_replays(connection: &Connection) -> rusqlite::Result<Vec<Replay>> {
    read_replays(connection).map(|(replays, damaged)| {
        for id in damaged {
            tracing::error!(id, "damaged replay; ask for it anew");
        }
        replays
    })
}

/// The numbers of those that are damaged.
pub(super) fn damaged_replays(connection: &Connection) -> rusqlite::Result<Vec<i64>> {
    read_replays(connection).map(|(_, damaged)| damaged)
}

fn read_replays(connection: &Connection) -> rusqlite::Result<(Vec<Replay>, Vec<i64>)> {
    let sql = "SELECT id, sink, filter, until, rate, created_ms, total, done, frontier, waiting, crc
               FROM replays ORDER BY id";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let (mut replays, mut damaged) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        match state::readable(load_replay(row))?.flatten() {
            Some(replay) => replays.push(replay),
            None => damaged.push(row.get(0)?),
        }
    }
    Ok((replays, damaged))
}

fn load_replay(row: &SqlRow<'_>) -> rusqlite::Result<Option<Replay>> {
    let number = |column| row.get::<_, i64>(column).map(|number| number.max(0) as u64);
    let (filter, waiting): (String, Vec<u8>) = (row.get(2)?, row.get(9)?);
    let (until, frontier) = (number(3)?, number(8)?);
    let mut progress = Progress { frontier: frontier.min(until), ..Progress::default() };
    for position in waiting.as_chunks().0.iter().map(|position| u64::from_le_bytes(*position)) {
        if position <= progress.frontier {
            progress.waiting.insert(position);
        }
    }
    let status = ReplayStatus {
        id: number(0)?,
        sink: row.get(1)?,
        created_ms: row.get(5)?,
        total: number(6)?,
        done: number(7)?,
        rate: row.get(4)?,
    };
    if row.get::<_, i64>(10)? != i64::from(checksum(&status.sink, &filter, until)) {
        return Ok(None);
    }
    let pace = Pace::new(status.rate);
    Ok(serde_json::from_str(&filter).ok().map(|filter| Replay { status, filter, until, progress, pace, dirty: false }))
}
