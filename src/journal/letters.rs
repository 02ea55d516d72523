//! Dead letters and resends, as the writer keeps them.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{DeadLetter, Resent};

/// By how much the two tables of a sink have grown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Growth {
    pub(super) dead_letters: i64,
    pub(super) resends: i64,
}

/// What of a record outlives it as a dead letter: id, key, type, payload.
pub(super) type Copied = (Vec<u8>, String, String, Vec<u8>);

/// Reads the record of a dead letter; `None` if it is no longer kept. A record whose page the disk has damaged
/// leaves its position and the reason, so that its absence is known. Not to be called inside of a transaction that
/// has written, which the engine gives up when it meets damage.
pub(super) fn copy(connection: &Connection, letter: &DeadLetter) -> rusqlite::Result<Option<Copied>> {
    let copy = |row: &Row<'_>| -> rusqlite::Result<Copied> { Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)) };
    let record = connection
        .prepare_cached("SELECT id, key, kind, payload FROM records WHERE position = ?1")?
        .query_row([letter.position as i64], copy)
        .optional();
    Ok(record.unwrap_or_else(|error| {
        tracing::error!(%error, position = letter.position, "a record cannot be read; only its position is kept");
        Some(Copied::default())
    }))
}

/// Keeps a copy of a record that a sink could not deliver.
pub(super) fn set_aside(
    transaction: &Transaction<'_>,
    letter: &DeadLetter,
    copied: Option<Copied>,
) -> rusqlite::Result<Growth> {
    let Some((id, key, kind, payload)) = copied else { return Ok(Growth::default()) };
    let sql = "INSERT OR IGNORE INTO dead_letters (sink, position, at_ms, reason, detail, id, key, kind, payload)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let DeadLetter { sink, position, reason, detail, at_ms } = letter;
    let values = params![sink, *position as i64, at_ms, reason, detail, id, key, kind, payload];
    let dead_letters = transaction.prepare_cached(sql)?.execute(values)? as i64;
    Ok(Growth { dead_letters, resends: 0 })
}

/// Takes a resend out of its queue, with what that means for the dead letter that it may have been.
pub(super) fn resent(
    transaction: &Transaction<'_>,
    sink: &str,
    seq: u64,
    position: u64,
    outcome: &Resent,
    copied: Option<Copied>,
) -> rusqlite::Result<Growth> {
    let mut growth = Growth::default();
    match outcome {
        Resent::Published => {
            let sql = "DELETE FROM dead_letters WHERE sink = ?1 AND position = ?2";
            growth.dead_letters -= transaction.prepare_cached(sql)?.execute(params![sink, position as i64])? as i64;
        }
        Resent::Refused(letter) => {
            growth = set_aside(transaction, letter, copied)?;
            let sql = "UPDATE dead_letters SET reason = ?3, detail = ?4, at_ms = ?5 WHERE sink = ?1 AND position = ?2";
            let values = params![sink, position as i64, letter.reason, letter.detail, letter.at_ms];
            transaction.prepare_cached(sql)?.execute(values)?;
        }
        Resent::Gone => {}
    }
    growth.resends -= transaction.prepare_cached("DELETE FROM resends WHERE seq = ?1")?.execute([seq as i64])? as i64;
    Ok(growth)
}

/// How many rows of one of the two tables are a sink's.
pub(super) fn count(connection: &Connection, table: &str, sink: &str) -> rusqlite::Result<u64> {
    let sql = format!("SELECT count(*) FROM {table} WHERE sink = ?1");
    connection.prepare_cached(&sql)?.query_row([sink], |row| row.get::<_, i64>(0)).map(|count| count as u64)
}
