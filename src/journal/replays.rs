//! Replays: what an operator wants to be published once more, as a filter and how far it has got.
//!
//! A replay copies nothing; it keeps the segments that it still needs. Where room is short replays are cut, the newest
//! first.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

use super::cancelled::{self, Request};
use super::reader::{Filter, Limits, ReadError, Reader};
use super::record::Row;
use super::resend::{Origin, Resend, ResendCursor};
use super::sinks::{Progress, Sinks};
use super::{lock, sqlite};

/// `waiting` are the positions up to `frontier` that were given to the sink and are not published yet. The checksum is
/// over what was asked for: the sink, the filter and the last position.
pub(super) const TABLES: &str = "
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
    pace: RateLimiter,
    pub(super) dirty: bool,
}

/// How many events of a replay may be given, as time goes by: never more than those of one second at once.
#[derive(Debug)]
struct RateLimiter {
    rate: Option<f64>,
    due: f64,
    at: Instant,
}

impl RateLimiter {
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

    /// Whether there is nothing more to give, though not all may be published.
    fn is_given(&self, cursor: &ResendCursor) -> bool {
        let earlier = match cursor.replays.get(&self.status.id) {
            Some(earlier) => !earlier.is_empty(),
            None => !self.progress.waiting.is_empty(),
        };
        self.progress.frontier >= self.until && !earlier
    }
}

/// The replays under way, by number.
#[derive(Debug, Default)]
pub(super) struct Replays(Mutex<BTreeMap<u64, Replay>>);

impl Replays {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Replay>> {
        lock(&self.0)
    }

    /// Takes up the replays that an operator has asked for, and lets go of those that he has cancelled.
    pub(super) fn update(&self, connection: &Connection, sinks: &Sinks) -> rusqlite::Result<()> {
        let mut stored = load_replays(connection)?;
        stored.retain(|replay| sinks.get(&replay.status.sink).is_some());
        let mut replays = self.lock();
        replays.retain(|id, replay| {
            let kept = stored.iter().any(|stored| stored.status.id == *id);
            if !kept {
                let ReplayStatus { sink, done, total, .. } = &replay.status;
                tracing::info!(replay = id, sink, done, events = total, "replay cancelled");
            }
            kept
        });
        for replay in stored {
            let ReplayStatus { id, sink, done, total, .. } = &replay.status;
            if !replays.contains_key(id) {
                tracing::info!(replay = id, sink, done, events = total, "replay begins");
            }
            replays.entry(*id).or_insert(replay);
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

    /// The next events of the first replay of a sink, of the kinds that it may have. Looks past what its filter leaves
    /// out, but not for long.
    pub(super) fn next(
        &self,
        sink: &str,
        cursor: &mut ResendCursor,
        reader: &mut Reader,
        limits: Limits,
        may_have: impl Fn(&str) -> bool,
    ) -> Result<Vec<Resend>, ReadError> {
        for _ in 0..MOST_LOOKS {
            let Some(step) = self.step(sink, cursor, limits.rows) else { break };
            let rows = step.read(reader, limits).inspect_err(|_| step.undo(cursor))?;
            let (given, has_moved) = self.give(&step, rows, &may_have);
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
    fn give(
        &self,
        step: &Step,
        (rows, through): (Vec<Row>, u64),
        may_have: &impl Fn(&str) -> bool,
    ) -> (Vec<Resend>, bool) {
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
                Row::Intact(record) if !may_have(&record.kind) => replay.status.done += 1,
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

/// The number of a replay under way of the same events to the same sink.
pub(super) fn find_same(connection: &Connection, sink: &str, filter: &Filter) -> rusqlite::Result<Option<u64>> {
    let same =
        load_replays(connection)?.into_iter().find(|replay| replay.status.sink == sink && replay.filter == *filter);
    Ok(same.map(|replay| replay.status.id))
}

/// Ends a replay before all of it is published; `false` if there is none of that number.
pub(super) fn cancel_replay(connection: &Connection, id: u64, reason: &str) -> rusqlite::Result<bool> {
    let sql = "DELETE FROM replays WHERE id = ?1 RETURNING sink";
    let sink: Option<String> = connection.prepare_cached(sql)?.query_row([id as i64], |row| row.get(0)).optional()?;
    if let Some(sink) = &sink {
        cancelled::insert(connection, Request::Replay, sink, id, reason)?;
    }
    Ok(sink.is_some())
}

/// Writes how far the replays have got, and deletes those that have ended. Returns the numbers of the latter.
pub(super) fn store_replays(
    connection: &Connection,
    replays: &mut BTreeMap<u64, Replay>,
) -> rusqlite::Result<Vec<u64>> {
    let mut ended = Vec::new();
    for (id, replay) in replays.iter_mut() {
        if replay.is_finished() {
            connection.prepare_cached("DELETE FROM replays WHERE id = ?1")?.execute([*id as i64])?;
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
    sqlite::crc(&[sink.as_bytes(), filter.as_bytes(), &until.to_le_bytes()])
}

/// The replays under way, oldest first. A damaged one is left out: nobody knows what it asked for.
pub(super) fn load_replays(connection: &Connection) -> rusqlite::Result<Vec<Replay>> {
    read_replays(connection).map(|(replays, damaged)| {
        for id in damaged {
            tracing::error!(id, "damaged replay; request it again");
        }
        replays
    })
}

/// Removes those that are damaged; returns how many.
pub(super) fn drop_damaged(connection: &Connection) -> rusqlite::Result<u64> {
    let damaged = damaged_replays(connection)?;
    for id in &damaged {
        tracing::error!(id, "removed a damaged replay; request it again");
        connection.execute("DELETE FROM replays WHERE id = ?1", [id])?;
    }
    Ok(damaged.len() as u64)
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
        match sqlite::readable(load_replay(row))?.flatten() {
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
    let pace = RateLimiter::new(status.rate);
    Ok(serde_json::from_str(&filter).ok().map(|filter| Replay { status, filter, until, progress, pace, dirty: false }))
}
