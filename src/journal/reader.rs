//! Reading what is stored, beside the writer and without disturbing it.

use std::hash::{DefaultHasher, Hasher};
use std::path::Path;

use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row as SqlRow, params};

use super::schema;

/// How many rows one batch looks at, however few of them a filter lets through.
const SCAN: i64 = 10_000;

/// What the storage engine says when it fails.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EngineError(#[from] rusqlite::Error);

/// A connection of one's own; a batch is a short read transaction, so checkpoints are not held up.
pub struct Reader {
    connection: Connection,
}

/// A stored event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the journal.
    pub position: u64,
    /// When it was accepted, in Unix milliseconds.
    pub accepted_ms: i64,
    /// Equal for events of one key; two keys may rarely share it.
    pub key_hash: u64,
    /// The event's type.
    pub kind: String,
    /// What was stored.
    pub payload: Bytes,
}

/// A row, which the disk may have damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// As it was stored: its checksum holds.
    Intact(Record),
    /// The row is there, but its checksum does not hold.
    Damaged {
        /// Its place in the journal.
        position: u64,
    },
}

impl Row {
    /// Its place in the journal.
    pub fn position(&self) -> u64 {
        match self {
            Self::Intact(record) => record.position,
            Self::Damaged { position } => *position,
        }
    }
}

/// Which events are wanted; `None` means all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only this key.
    pub key: Option<String>,
    /// Only this type.
    pub kind: Option<String>,
}

/// How much one batch may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// At most so many rows.
    pub rows: usize,
    /// No more once so many bytes are reached; the row that reaches them is included.
    pub bytes: usize,
}

/// Rows in order of position.
#[derive(Debug, Default)]
pub struct Batch {
    /// The rows that the filter let through.
    pub rows: Vec<Row>,
    /// Everything up to here has been looked at; the next batch goes on after it.
    pub through: u64,
}

impl Reader {
    /// Opens a journal's file for reading.
    ///
    /// # Errors
    /// When the engine can't.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        Ok(Self { connection: schema::open_reader(path)? })
    }

    /// The durable rows after `position`, oldest first.
    ///
    /// # Errors
    /// When the disk or the file's structure fails; that is never an end of the log.
    pub fn after(&self, position: u64, limits: Limits, filter: &Filter) -> Result<Batch, EngineError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT position, accepted_ms, crc, id, key, kind, payload
             FROM records WHERE position > ?1 ORDER BY position LIMIT ?2",
        )?;
        let unfiltered = filter.key.is_none() && filter.kind.is_none();
        let limit = if unfiltered { i64::try_from(limits.rows).unwrap_or(SCAN) } else { SCAN };
        let mut found = statement.query(params![position as i64, limit])?;
        let mut batch = Batch { rows: Vec::new(), through: position };
        let mut bytes = 0;
        while let Some(row) = found.next()? {
            let position = row.get::<_, i64>(0)? as u64;
            batch.through = position;
            if !filter.lets_through(row)? {
                continue;
            }
            let row = read(position, row)?;
            if let Row::Intact(record) = &row {
                bytes += record.payload.len();
            }
            batch.rows.push(row);
            if batch.rows.len() >= limits.rows || bytes >= limits.bytes {
                break;
            }
        }
        Ok(batch)
    }
}

impl Filter {
    fn lets_through(&self, row: &SqlRow<'_>) -> rusqlite::Result<bool> {
        let is = |wanted: &Option<String>, column: usize| -> rusqlite::Result<bool> {
            let Some(wanted) = wanted else { return Ok(true) };
            // A damaged text may not be UTF-8; it is then not what was asked for.
            Ok(matches!(row.get_ref(column)?, ValueRef::Text(text) if text == wanted.as_bytes()))
        };
        Ok(is(&self.key, 4)? && is(&self.kind, 5)?)
    }
}

fn read(position: u64, row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let accepted_ms: i64 = row.get(1)?;
    let stored: i64 = row.get(2)?;
    let (ValueRef::Blob(id), ValueRef::Text(key), ValueRef::Text(kind), ValueRef::Blob(payload)) =
        (row.get_ref(3)?, row.get_ref(4)?, row.get_ref(5)?, row.get_ref(6)?)
    else {
        return Ok(Row::Damaged { position });
    };
    if stored != i64::from(checksum(position, accepted_ms, id, key, kind, payload)) {
        return Ok(Row::Damaged { position });
    }
    Ok(Row::Intact(Record {
        position,
        accepted_ms,
        key_hash: hash(key),
        kind: String::from_utf8_lossy(kind).into_owned(),
        payload: Bytes::copy_from_slice(payload),
    }))
}

fn hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    hasher.finish()
}

/// CRC-32 over all of a record, its position included, so that a row can't pass for another.
pub(super) fn checksum(position: u64, accepted_ms: i64, id: &[u8], key: &[u8], kind: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&position.to_le_bytes());
    crc.update(&accepted_ms.to_le_bytes());
    for part in [id, key, kind, payload] {
        crc.update(&(part.len() as u64).to_le_bytes());
        crc.update(part);
    }
    crc.finalize()
}
