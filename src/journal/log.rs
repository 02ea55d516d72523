//! What is known of the file's content without looking: the ends of the log, the window, the cursors.
//!
//! Read once when the file is opened, kept up to date by the writer after each commit.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

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
}

impl Log {
    pub(super) fn bytes(&self) -> u64 {
        self.end_offset - self.start_offset
    }
}

/// The ends of the log.
pub(super) struct Ends {
    first: u64,
    last: u64,
    start_offset: u64,
    end_offset: u64,
}

impl Ends {
    /// The bytes between them.
    pub(super) fn bytes(&self) -> u64 {
        self.end_offset - self.start_offset
    }
}

/// Reads the ends of the log, which takes two look-ups however long it is.
pub(super) fn ends(connection: &Connection) -> rusqlite::Result<Ends> {
    let end = |order| {
        let sql = format!(
            "SELECT position, offset, length(payload), length(CAST(key AS BLOB)), length(CAST(kind AS BLOB))
             FROM records ORDER BY position {order} LIMIT 1"
        );
        let row = |row: &rusqlite::Row<'_>| {
            let length = |column| row.get::<_, i64>(column).map(|length| length as u64);
            Ok((length(0)?, length(1)?, row_size(length(2)?, length(3)?, length(4)?)))
        };
        connection.query_row(&sql, [], row).optional()
    };
    let (first, first_offset, first_size) = end("ASC")?.unwrap_or_default();
    let (last, end_offset, _) = end("DESC")?.unwrap_or_default();
    Ok(Ends { first, last, start_offset: first_offset - first_size, end_offset })
}

/// Reads what the writer must know: the ends of the log, the window, the cursors.
pub(super) fn load(connection: &Connection, options: &Options) -> rusqlite::Result<Log> {
    let Ends { first, last, start_offset, end_offset } = ends(connection)?;
    let mut log = Log {
        first,
        last,
        start_offset,
        end_offset,
        window: Window::new(options.dedup.window.as_millis(), options.dedup.max_ids),
        seen_deleted: 0,
        cursors: BTreeMap::new(),
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
