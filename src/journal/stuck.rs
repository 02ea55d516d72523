//! Events that a sink cannot publish for a reason of their own or of their target, as operators see them.

use std::sync::Arc;

use rusqlite::{Connection, Row as SqlRow, Transaction, params};

use super::sqlite;

/// An event that a sink could not publish for a while, although it was connected. There may be a hundred thousand of
/// them, so those that say the same share the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckEvent {
    /// Its position.
    pub position: u64,
    /// When it was first tried, or held because of its target, in Unix milliseconds.
    pub since_ms: i64,
    /// How often it has been tried.
    pub tries: u32,
    /// The kind of failure, from the sinks' closed set.
    pub reason: Arc<str>,
    /// What the broker said last.
    pub detail: Arc<str>,
    /// The topic and partition, exchange and routing key or subject; empty if it is about the event alone.
    pub target: Arc<str>,
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
    let mut listed = Vec::new();
    for_each(connection, sink, |event| listed.push(event))?;
    Ok(listed)
}

/// Calls `each` with the stuck events of a sink in order of position: there may be many.
pub(super) fn for_each(connection: &Connection, sink: &str, mut each: impl FnMut(StuckEvent)) -> rusqlite::Result<()> {
    let sql = "SELECT position, since_ms, tries, reason, detail, target FROM stuck WHERE sink = ?1 ORDER BY position";
    let [mut reasons, mut details, mut targets] = [(); 3].map(|()| Repeated::default());
    let event = |row: &SqlRow<'_>| {
        Ok(StuckEvent {
            position: row.get::<_, i64>(0)? as u64,
            since_ms: row.get(1)?,
            tries: row.get(2)?,
            reason: reasons.share(row.get_ref(3)?.as_str()?),
            detail: details.share(row.get_ref(4)?.as_str()?),
            target: targets.share(row.get_ref(5)?.as_str()?),
        })
    };
    let mut statement = connection.prepare_cached(sql)?;
    for row in statement.query_map([sink], event)? {
        sqlite::readable(row)?.into_iter().for_each(&mut each);
    }
    Ok(())
}

/// A text that is often the same as that of the row before.
#[derive(Default)]
struct Repeated(Arc<str>);

impl Repeated {
    fn share(&mut self, text: &str) -> Arc<str> {
        if *self.0 != *text {
            self.0 = text.into();
        }
        Arc::clone(&self.0)
    }
}

/// Why an event is stuck, and what its broker said last.
pub(super) fn reason(connection: &Connection, sink: &str, position: u64) -> rusqlite::Result<Option<(String, String)>> {
    let sql = "SELECT reason, detail FROM stuck WHERE sink = ?1 AND position = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    match statement.query_row(params![sink, position as i64], |row| Ok((row.get(0)?, row.get(1)?))) {
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        row => sqlite::readable(row),
    }
}
