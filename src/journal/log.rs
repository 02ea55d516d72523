//! What is known of the file's content without looking: the ends of the log, the window, the cursors.
//!
//! Read once when the file is opened, kept up to date by the writer after each commit.

use std::collections::BTreeMap;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::Options;
use crate::domain::dedup::Window;

/// What a row takes besides its payload, key and type, roughly; so that `max_bytes` means the file.
const ROW_BYTES: u64 = 160;

/// What the writer knows of the file's content.
pub(super) struct Log {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Bytes ever stored before the first record, and up to and with the last.
    pub(super) start_offset: u64,
    pub(super) end_offset: u64,
    pub(super) window: Window,
    /// Rows of `seen` up to here are known to be deleted.
    pub(super) seen_deleted: u64,
    /// The durable cursors of the configured sinks.
    pub(super) cursors: BTreeMap<String, u64>,
    /// Facts that an offer was taken in for, and that a late delivery may still tell of.
    pub(super) reconciled: u64,
}

impl Log {
    pub(super) fn bytes(&self) -> u64 {
        self.end_offset - self.start_offset
    }
}

/// The ends of the log.
pub(super) struct Ends {
    pub(super) first: u64,
    pub(super) last: u64,
    start_offset: u64,
    end_offset: u64,
    /// Why the newest rows can't be read: then nothing can be added either.
    newest: Option<rusqlite::Error>,
}

impl Ends {
    /// The bytes between them.
    pub(super) fn bytes(&self) -> u64 {
        self.end_offset - self.start_offset
    }
}

/// A row at an end: its position, its offset, its size.
type End = (u64, u64, u64);

/// Reads the ends of the log, which takes two look-ups however long it is. Where a page at an end can't be read,
/// the nearest readable row gives the bytes, and the position is what else in the file tells of it.
pub(super) fn ends(connection: &Connection) -> rusqlite::Result<Ends> {
    let (newest, (last, end_offset, _)) = match newest(connection, u64::MAX) {
        Err(error) if is_damage(&error) => (Some(error), search(0, u64::MAX, |at| newest(connection, at))?),
        found => (None, found?),
    };
    let (mut first, first_offset, first_size) = match oldest(connection, 0) {
        Err(error) if is_damage(&error) => {
            let found = search(last, 0, |at| oldest(connection, at))?;
            // All that a sink waits for is kept, so it is on the page that can't be read.
            let waits = largest(connection, "SELECT min(position) + 1 FROM cursors")?;
            (if waits == 0 { found.0 } else { found.0.min(waits) }, found.1, found.2)
        }
        found => found?,
    };
    let mut known = last;
    if newest.is_some() {
        for sql in ["SELECT max(position) FROM seen", "SELECT max(position) FROM cursors"] {
            known = known.max(largest(connection, sql)?);
        }
        first = first.max(u64::from(known > 0));
    }
    Ok(Ends { first, last: known, start_offset: first_offset - first_size, end_offset, newest })
}

fn oldest(connection: &Connection, from: u64) -> rusqlite::Result<End> {
    end(connection, "position >= ?1 ORDER BY position", from)
}

fn newest(connection: &Connection, to: u64) -> rusqlite::Result<End> {
    end(connection, "position <= ?1 ORDER BY position DESC", to)
}

fn end(connection: &Connection, which: &str, bound: u64) -> rusqlite::Result<End> {
    let sql = format!(
        "SELECT position, offset, length(payload), length(CAST(key AS BLOB)), length(CAST(kind AS BLOB))
         FROM records WHERE {which} LIMIT 1"
    );
    let row = |row: &rusqlite::Row<'_>| {
        let length = |column| row.get::<_, i64>(column).map(|length| length as u64);
        Ok((length(0)?, length(1)?, row_size(length(2)?, length(3)?, length(4)?)))
    };
    let bound = i64::try_from(bound).unwrap_or(i64::MAX);
    connection.query_row(&sql, [bound], row).optional().map(Option::unwrap_or_default)
}

/// The row next to a page that can't be read: halves the way from a bound that reads to one that does not.
fn search(mut reads: u64, mut fails: u64, read: impl Fn(u64) -> rusqlite::Result<End>) -> rusqlite::Result<End> {
    let mut found = End::default();
    while reads.abs_diff(fails) > 1 {
        let middle = reads.min(fails) + reads.abs_diff(fails) / 2;
        match read(middle) {
            Ok(end) => (reads, found) = (middle, end),
            Err(error) if is_damage(&error) => fails = middle,
            Err(error) => return Err(error),
        }
    }
    if found == End::default() { read(reads) } else { Ok(found) }
}

fn largest(connection: &Connection, sql: &str) -> rusqlite::Result<u64> {
    let found: Option<i64> = connection.query_row(sql, [], |row| row.get(0))?;
    Ok(found.map_or(0, |position| position as u64))
}

/// Whether the file does not hold what was written to it.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
}

/// Reads what the writer must know: the ends of the log, the window, the cursors.
pub(super) fn load(connection: &Connection, options: &Options) -> rusqlite::Result<Log> {
    let Ends { first, last, start_offset, end_offset, newest } = ends(connection)?;
    if let Some(error) = newest {
        return Err(error);
    }
    let mut log = Log {
        first,
        last,
        start_offset,
        end_offset,
        window: Window::new(options.dedup.window.as_millis(), options.dedup.max_ids),
        seen_deleted: 0,
        cursors: BTreeMap::new(),
        reconciled: 0,
    };
    load_window(connection, &mut log, options)?;
    for sink in &options.sinks {
        let stored = connection
            .query_row("SELECT position FROM cursors WHERE sink = ?1", [sink], |row| row.get::<_, i64>(0))
            .optional()?
            .map(|position| position as u64);
        let position = starting_point(sink, stored, &log);
        // So that a sink is known from its first start on, also to those who look from outside.
        let sql = "INSERT OR IGNORE INTO cursors (sink, position) VALUES (?1, ?2)";
        connection.execute(sql, params![sink, position as i64])?;
        log.cursors.insert(sink.clone(), position);
    }
    Ok(log)
}

fn load_window(connection: &Connection, log: &mut Log, options: &Options) -> rusqlite::Result<()> {
    let now_ms = options.clock.now_ms();
    let mut statement = connection.prepare("SELECT position, accepted_ms, id FROM seen ORDER BY position")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let accepted_ms: i64 = row.get(1)?;
        if accepted_ms.saturating_add(options.dedup.window.as_millis()) > now_ms {
            log.window.insert(row.get(2)?, row.get::<_, i64>(0)? as u64, accepted_ms);
        }
    }
    Ok(())
}

/// A sink that is new, or was renamed, starts with the oldest event kept: twice with the same id is
/// better than not at all.
fn starting_point(sink: &str, stored: Option<u64>, log: &Log) -> u64 {
    let oldest = log.first.saturating_sub(1);
    match stored {
        Some(position) if position < oldest => {
            tracing::warn!(
                sink,
                cursor = position,
                oldest = log.first,
                "events after this sink's cursor are no longer kept"
            );
            oldest
        }
        Some(position) => position,
        None => oldest,
    }
}

/// The bytes that a row counts for.
pub(super) fn row_size(payload: u64, key: u64, kind: u64) -> u64 {
    payload + key + kind + ROW_BYTES
}
