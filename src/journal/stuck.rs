//! Events that a sink cannot publish for a reason of their own or of their target, as operators see them.

use rusqlite::{Connection, Row as SqlRow, Transaction, params};

use super::state;

/// An event that a sink could not publish for a while, although it was connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckEvent {
    /// Its position.
    pub position: u64,
    /// When it was first tried, or held because of its target, in Unix milliseconds.
    pub since_ms: i64,
    /// How often it has been tried.
    pub tries: u32,
    /// The kind of failure, from the sinks' closed set.
    pub reason: String,
    /// What the broker said last.
    pub detail: String,
    /// The topic and partition, exchange and routing key or subject; empty if it is about the event alone.
    pub target: String,
}

/// A target of which events are stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckTarget {
    /// As in [`StuckEvent::target`]; never empty.
    pub target: String,
    /// When the first of the events was tried, in Unix milliseconds.
    pub since_ms: i64,
    /// The kind of failure, from the sinks' closed set.
    pub reason: String,
    /// What the broker said.
    pub detail: String,
}

/// The tables: the stuck events themselves, and what an operator wants to be done about them. What a sink publishes or
/// sets aside leaves both.
pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS stuck (
        sink        TEXT    NOT NULL,
        position    INTEGER NOT NULL,
        since_ms    INTEGER NOT NULL,
        tries       INTEGER NOT NULL,
        reason      TEXT    NOT NULL,
        detail      TEXT    NOT NULL,
        target      TEXT    NOT NULL,
        PRIMARY KEY (sink, position)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS set_aside_requests (
        sink        TEXT    NOT NULL,
        position    INTEGER NOT NULL,
        PRIMARY KEY (sink, position)
    ) STRICT;
";

pub(super) fn record(transaction: &Transaction<'_>, sink: &str, events: &[StuckEvent]) -> rusqlite::Result<()> {
    // After a restart an event is found stuck once more; it has been since the first time.
    let sql = "INSERT INTO stuck (sink, position, since_ms, tries, reason, detail, target)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
               ON CONFLICT (sink, position) DO UPDATE SET since_ms = min(since_ms, excluded.since_ms),
               tries = excluded.tries, reason = excluded.reason, detail = excluded.detail, target = excluded.target";
    let mut insert = transaction.prepare_cached(sql)?;
    for StuckEvent { position, since_ms, tries, reason, detail, target } in events {
        insert.execute(params![sink, *position as i64, since_ms, tries, reason, detail, target])?;
    }
    Ok(())
}

/// The event waits no more: it is not stuck, and nobody has to set it aside.
pub(super) fn forget(transaction: &Transaction<'_>, sink: &str, position: u64) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM stuck WHERE sink = ?1 AND position = ?2",
        "DELETE FROM set_aside_requests WHERE sink = ?1 AND position = ?2",
    ] {
        transaction.prepare_cached(sql)?.execute(params![sink, position as i64])?;
    }
    Ok(())
}

/// The stuck events of a sink in order of position.
pub(super) fn list(connection: &Connection, sink: &str) -> rusqlite::Result<Vec<StuckEvent>> {
    let sql = "SELECT position, since_ms, tries, reason, detail, target FROM stuck WHERE sink = ?1 ORDER BY position";
    let event = |row: &SqlRow<'_>| {
        Ok(StuckEvent {
            position: row.get::<_, i64>(0)? as u64,
            since_ms: row.get(1)?,
            tries: row.get(2)?,
            reason: row.get(3)?,
            detail: row.get(4)?,
            target: row.get(5)?,
        })
    };
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_map([sink], event)?.filter_map(|event| state::readable(event).transpose()).collect()
}

/// The targets of which events are stuck.
pub(super) fn targets(connection: &Connection, sink: &str) -> rusqlite::Result<Vec<StuckTarget>> {
    // Of the other columns, SQLite gives those of the row with the least time.
    let sql =
        "SELECT target, min(since_ms), reason, detail FROM stuck WHERE sink = ?1 AND target <> '' GROUP BY target";
    let target = |row: &SqlRow<'_>| {
        Ok(StuckTarget { target: row.get(0)?, since_ms: row.get(1)?, reason: row.get(2)?, detail: row.get(3)? })
    };
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_map([sink], target)?.filter_map(|target| state::readable(target).transpose()).collect()
}

/// The positions of the stuck events of a sink.
pub(super) fn positions(connection: &Connection, sink: &str) -> rusqlite::Result<Vec<u64>> {
    let sql = "SELECT position FROM stuck WHERE sink = ?1";
    let position = |row: &SqlRow<'_>| row.get::<_, i64>(0).map(|position| position as u64);
    connection.prepare_cached(sql)?.query_map([sink], position)?.collect()
}

/// How many events of a sink are stuck.
pub(super) fn count(connection: &Connection, sink: &str) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM stuck WHERE sink = ?1";
    connection.prepare_cached(sql)?.query_row([sink], |row| row.get::<_, i64>(0)).map(|count| count as u64)
}

/// Why an event is stuck, and what its broker said last.
pub(super) fn reason(connection: &Connection, sink: &str, position: u64) -> rusqlite::Result<Option<(String, String)>> {
    let sql = "SELECT reason, detail FROM stuck WHERE sink = ?1 AND position = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    match statement.query_row(params![sink, position as i64], |row| Ok((row.get(0)?, row.get(1)?))) {
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        row => state::readable(row),
    }
}

/// The positions that an operator wants to be set aside.
pub(super) fn requests(connection: &Connection, sink: &str) -> rusqlite::Result<Vec<u64>> {
    let sql = "SELECT position FROM set_aside_requests WHERE sink = ?1 ORDER BY position";
    let position = |row: &SqlRow<'_>| row.get::<_, i64>(0).map(|position| position as u64);
    connection.prepare_cached(sql)?.query_map([sink], position)?.collect()
}
