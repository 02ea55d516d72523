//! What an operator asked for and was ended before all of it was published, so that the command which waits for it can
//! say so. Kept until the next start.

use rusqlite::{Connection, params};

pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS cancelled (
        request     TEXT    NOT NULL,
        sink        TEXT    NOT NULL,
        number      INTEGER NOT NULL,
        reason      TEXT    NOT NULL,
        PRIMARY KEY (request, sink, number)
    ) STRICT;
";

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A replay, by its number.
    Replay,
    /// A requeued dead letter, by its position.
    Requeue,
}

impl Request {
    const fn name(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Requeue => "requeue",
        }
    }
}

pub(super) fn insert(
    connection: &Connection,
    request: Request,
    sink: &str,
    number: u64,
    reason: &str,
) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO cancelled (request, sink, number, reason) VALUES (?1, ?2, ?3, ?4)";
    connection.prepare_cached(sql)?.execute(params![request.name(), sink, number as i64, reason]).map(drop)
}

/// Those of a sink, with why.
pub(super) fn of_sink(connection: &Connection, request: Request, sink: &str) -> rusqlite::Result<Vec<(u64, String)>> {
    let sql = "SELECT number, reason FROM cancelled WHERE request = ?1 AND sink = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?));
    statement.query_map([request.name(), sink], row)?.collect()
}

/// Forgets one, because the same is asked for again.
pub(super) fn delete(connection: &Connection, request: Request, sink: &str, number: u64) -> rusqlite::Result<()> {
    let sql = "DELETE FROM cancelled WHERE request = ?1 AND sink = ?2 AND number = ?3";
    connection.prepare_cached(sql)?.execute(params![request.name(), sink, number as i64]).map(drop)
}

pub(super) fn delete_all(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM cancelled", []).map(drop)
}
