//! Reading what is stored, beside the writer and without disturbing it.

use std::hash::{DefaultHasher, Hasher};
use std::path::Path;

use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row as SqlRow, params};

use super::{log, schema};

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
    /// Only this event.
    pub id: Option<[u8; 16]>,
    /// Only this key.
    pub key: Option<String>,
    /// Only this type.
    pub kind: Option<String>,
    /// Only what was accepted at this time or later, in Unix milliseconds.
    pub since_ms: Option<i64>,
    /// Only what was accepted before this time, in Unix milliseconds.
    pub until_ms: Option<i64>,
}

/// An event that is to be published again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resend {
    /// The event. Its `position` is its place in the queue of resends, not in the journal.
    pub record: Record,
    /// Its place in the journal.
    pub position: u64,
    /// Whether it is to be marked as a replay.
    pub replayed: bool,
}

/// Resends in their order.
#[derive(Debug, Default)]
pub struct Resends {
    /// Those that are due.
    pub due: Vec<Resend>,
    /// Those that can't be published any more, because the journal no longer keeps the event.
    pub gone: Vec<u64>,
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
    /// When the disk or the file's structure fails; that is never an end of the log. Where only some of
    /// the rows can't be read, they are given as damaged instead.
    pub fn after(&self, position: u64, limits: Limits, filter: &Filter) -> Result<Batch, EngineError> {
        match self.read_after(position, limits, filter) {
            Err(error) if log::is_damage(&error) => self.around_damage(position, filter),
            other => Ok(other?),
        }
    }

    fn read_after(&self, position: u64, limits: Limits, filter: &Filter) -> rusqlite::Result<Batch> {
        let mut statement = self.connection.prepare_cached(
            "SELECT position, accepted_ms, crc, id, key, kind, payload
             FROM records WHERE position > ?1 ORDER BY position LIMIT ?2",
        )?;
        let limit = if filter.is_all() { i64::try_from(limits.rows).unwrap_or(SCAN) } else { SCAN };
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

    /// A few rows after `position`, one by one, so that a page that can't be read costs only its own.
    fn around_damage(&self, position: u64, filter: &Filter) -> Result<Batch, EngineError> {
        const ROWS: u64 = 64;
        let through = (position + ROWS).min(log::ends(&self.connection)?.last).max(position);
        let mut batch = Batch { rows: Vec::new(), through };
        for position in position + 1..=through {
            match self.at(position) {
                Ok(None) => {}
                Ok(Some(row)) => batch.rows.push(row),
                Err(_) => batch.rows.push(Row::Damaged { position }),
            }
        }
        // What can't be read can't be filtered either; those who ask for something get what is certain.
        if !filter.is_all() {
            batch.rows.clear();
            for position in position + 1..=through {
                let one = self.read_after(position - 1, Limits { rows: 1, bytes: 1 }, filter);
                batch.rows.extend(one.unwrap_or_default().rows.into_iter().filter(|row| row.position() == position));
            }
        }
        Ok(batch)
    }

    /// The row at `position`, if there is one.
    ///
    /// # Errors
    /// When the disk or the file's structure fails.
    pub fn at(&self, position: u64) -> Result<Option<Row>, EngineError> {
        let sql = "SELECT position, accepted_ms, crc, id, key, kind, payload FROM records WHERE position = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut found = statement.query([position as i64])?;
        Ok(found.next()?.map(|row| read(position, row)).transpose()?)
    }

    /// What a sink is to publish again and is due, after `seq` in the queue of resends, at most `limit`.
    ///
    /// # Errors
    /// When the disk or the file's structure fails.
    pub fn resends(&self, sink: &str, seq: u64, now_ms: i64, limit: usize) -> Result<Resends, EngineError> {
        // A dead letter is a copy that outlives its record.
        let mut statement = self.connection.prepare_cached(
            "SELECT q.seq, q.position, q.replayed, q.due_ms,
                    coalesce(r.accepted_ms, d.at_ms), coalesce(r.key, d.key), coalesce(r.kind, d.kind),
                    coalesce(r.payload, d.payload)
             FROM resends q
             LEFT JOIN records r ON r.position = q.position
             LEFT JOIN dead_letters d ON d.sink = q.sink AND d.position = q.position
             WHERE q.sink = ?1 AND q.seq > ?2 ORDER BY q.seq LIMIT ?3",
        )?;
        let mut rows = statement.query(params![sink, seq as i64, limit as i64])?;
        let mut resends = Resends::default();
        while let Some(row) = rows.next()? {
            // One replay after the other: what is not due holds back what was asked for later.
            if row.get::<_, i64>(3)? > now_ms {
                break;
            }
            let seq = row.get::<_, i64>(0)? as u64;
            match (row.get_ref(5)?, row.get_ref(6)?, row.get_ref(7)?) {
                (ValueRef::Text(key), ValueRef::Text(kind), ValueRef::Blob(payload)) => resends.due.push(Resend {
                    record: Record {
                        position: seq,
                        accepted_ms: row.get(4)?,
                        key_hash: hash(key),
                        kind: String::from_utf8_lossy(kind).into_owned(),
                        payload: Bytes::copy_from_slice(payload),
                    },
                    position: row.get::<_, i64>(1)? as u64,
                    replayed: row.get(2)?,
                }),
                _ => resends.gone.push(seq),
            }
        }
        Ok(resends)
    }
}

impl Filter {
    /// Whether everything is wanted.
    pub fn is_all(&self) -> bool {
        matches!(self, Self { id: None, key: None, kind: None, since_ms: None, until_ms: None })
    }

    fn lets_through(&self, row: &SqlRow<'_>) -> rusqlite::Result<bool> {
        // What is damaged is not what was asked for.
        let ValueRef::Integer(accepted_ms) = row.get_ref(1)? else { return Ok(self.is_all()) };
        if self.since_ms.is_some_and(|since| accepted_ms < since)
            || self.until_ms.is_some_and(|until| accepted_ms >= until)
        {
            return Ok(false);
        }
        if let Some(id) = &self.id
            && !matches!(row.get_ref(3)?, ValueRef::Blob(found) if found == id)
        {
            return Ok(false);
        }
        let is = |wanted: &Option<String>, column: usize| -> rusqlite::Result<bool> {
            let Some(wanted) = wanted else { return Ok(true) };
            // A damaged text may not be UTF-8; it is then not what was asked for.
            Ok(matches!(row.get_ref(column)?, ValueRef::Text(text) if text == wanted.as_bytes()))
        };
        Ok(is(&self.key, 4)? && is(&self.kind, 5)?)
    }
}

fn read(position: u64, row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let (
        ValueRef::Integer(accepted_ms),
        ValueRef::Integer(stored),
        ValueRef::Blob(id),
        ValueRef::Text(key),
        ValueRef::Text(kind),
        ValueRef::Blob(payload),
    ) = (row.get_ref(1)?, row.get_ref(2)?, row.get_ref(3)?, row.get_ref(4)?, row.get_ref(5)?, row.get_ref(6)?)
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

/// A row of columns of any type is never a panic or an error, one that was stored is read, and one of which a bit has
/// changed is damaged. The first bytes choose the types and the bit, the rest is content.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_row(data: &[u8]) {
    use rusqlite::types::Value;

    thread_local! {
        static MEMORY: Connection = Connection::open_in_memory().expect("memory");
    }
    let decode = |columns: [Value; 7]| {
        MEMORY.with(|memory| {
            let mut statement = memory.prepare_cached("SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7").expect("SQL");
            let row = statement.query_row(rusqlite::params_from_iter(columns), |row| {
                let filter = Filter { key: Some("key".into()), since_ms: Some(1), ..Filter::default() };
                filter.lets_through(row).and(read(7, row))
            });
            row.expect("no error")
        })
    };
    let Some((&[types, flip], payload)) = data.split_first_chunk() else { return };
    let any = |column: usize| match (types >> (column % 4)) & 3 {
        0 => Value::Null,
        1 => Value::Real(f64::from(flip)),
        2 => Value::Text(String::from_utf8_lossy(payload).into_owned()),
        _ => Value::Blob(payload.to_vec()),
    };
    assert_eq!(decode(std::array::from_fn(any)), Row::Damaged { position: 7 });

    let id = vec![flip; 16];
    let crc = checksum(7, 5, &id, b"key", b"kind", payload);
    let row = |payload: &[u8]| {
        let numbers = [7, 5, i64::from(crc)].map(Value::Integer);
        let [key, kind] = ["key", "kind"].map(|text| Value::Text(text.to_owned()));
        let [position, accepted_ms, crc] = numbers;
        [position, accepted_ms, crc, Value::Blob(id.clone()), key, kind, Value::Blob(payload.to_vec())]
    };
    assert!(matches!(decode(row(payload)), Row::Intact(record) if record.payload == payload));
    let mut spoilt = payload.to_vec();
    let bit = usize::from(flip) % (payload.len() * 8).max(1);
    match spoilt.get_mut(bit / 8) {
        Some(byte) => *byte ^= 1 << (bit % 8),
        None => spoilt.push(types),
    }
    assert_eq!(decode(row(&spoilt)), Row::Damaged { position: 7 }, "a wrong row is believed");
}
