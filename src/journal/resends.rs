//! What is published once more because an operator wants it: requeued dead letters, and replays.
//!
//! Each resend names a configured sink and a stored event. A requeued dead letter has its own copy of the event. A
//! replay has none: it is a filter and how far it has got, and keeps the segments that it still needs. Where room is
//! short replays are cut, the newest first, so no command can keep the journal from taking events.

use rusqlite::{Connection, params};

use super::dead_letters;
use super::reader::{Limits, ReadError};
use super::resend::{Origin, Resend, ResendCursor};
use super::shared::Shared;
use super::{cancelled, replays, sqlite};

pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS resends (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        sink        TEXT    NOT NULL,
        position    INTEGER NOT NULL,
        UNIQUE (sink, position)
    ) STRICT;
";

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
        let may_have = |kind: &str| shared.sinks.get(sink).is_none_or(|sink| sink.spec.may_have(kind));
        let next = shared.replays.next(sink, cursor, &mut reader, limits, may_have);
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
        let stored = if is_there { sqlite::readable(dead_letters::stored(row, 2))? } else { None };
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

/// Takes a requeued dead letter out of the queue; `false` if it was not in it.
pub(super) fn remove(connection: &Connection, seq: u64) -> rusqlite::Result<bool> {
    Ok(connection.prepare_cached("DELETE FROM resends WHERE seq = ?1")?.execute([seq as i64])? > 0)
}

/// At a start: drops what is damaged, or names no configured sink or no stored event; returns how many.
pub(super) fn drop_orphans(connection: &Connection, sinks: &[&str]) -> rusqlite::Result<u64> {
    cancelled::delete_all(connection)?;
    let mut dropped = replays::drop_damaged(connection)?;
    let names = |table: &str| -> rusqlite::Result<Vec<String>> {
        let sql = format!("SELECT DISTINCT sink FROM {table}");
        let mut statement = connection.prepare(&sql)?;
        statement.query_map([], |row| row.get(0))?.filter_map(|sink| sqlite::readable(sink).transpose()).collect()
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
