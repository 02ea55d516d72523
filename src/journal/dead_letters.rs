//! Dead letters: whole copies of events that a broker refused for good, or that an operator set aside.

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

use super::record::{Record, Row};
use super::sqlite;

/// Why an event is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The sink that could not deliver it.
    pub sink: String,
    /// The event's position.
    pub position: u64,
    /// The kind of refusal, from the sinks' closed set.
    pub reason: String,
    /// What the broker said.
    pub detail: String,
    /// When, in Unix milliseconds.
    pub at_ms: i64,
}

/// A dead letter with its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDeadLetter {
    /// Why it is one.
    pub dead_letter: DeadLetter,
    /// Its event; `None` if that was damaged, when it was copied or since.
    pub event: Option<Record>,
    /// The event's id, if it is known.
    pub id: Option<[u8; 16]>,
}

/// `id` is empty where nothing of the event was known, `key` and `payload` where it could not be read. The checksum is
/// over the sink and the event.
pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS dead_letters (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        sink        TEXT    NOT NULL,
        position    INTEGER NOT NULL,
        at_ms       INTEGER NOT NULL,
        reason      TEXT    NOT NULL,
        detail      TEXT    NOT NULL,
        accepted_ms INTEGER NOT NULL,
        id          BLOB    NOT NULL,
        key         TEXT    NOT NULL,
        kind        TEXT    NOT NULL,
        payload     BLOB    NOT NULL,
        crc         INTEGER NOT NULL,
        UNIQUE (sink, position)
    ) STRICT;
";

/// What a dead letter takes besides its event, roughly.
const ROW_BYTES: u64 = 256;

/// The columns that [`stored`] reads.
pub(super) const COLUMNS: &str =
    "d.sink, d.position, d.at_ms, d.reason, d.detail, d.accepted_ms, d.id, d.key, d.kind, d.payload, d.crc";

/// By how much the number and the bytes of the dead letters have grown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Growth {
    pub(super) count: i64,
    pub(super) bytes: i64,
}

/// Keeps a copy of an event, or the new reason where there is one already. Without a row the event is no longer kept,
/// and there is nothing to set aside.
pub(super) fn insert(connection: &Connection, dead_letter: &DeadLetter, row: Option<&Row>) -> rusqlite::Result<Growth> {
    let DeadLetter { sink, position, reason, detail, at_ms } = dead_letter;
    let sql = "UPDATE dead_letters SET reason = ?3, detail = ?4, at_ms = ?5 WHERE sink = ?1 AND position = ?2";
    let values = params![sink, *position as i64, reason, detail, at_ms];
    if connection.prepare_cached(sql)?.execute(values)? > 0 {
        return Ok(Growth::default());
    }
    let damaged = |id: Option<[u8; 16]>| (0, id.map_or_else(Vec::new, Vec::from), "", "", &[][..]);
    let (accepted_ms, id, key, kind, payload) = match row {
        Some(Row::Intact(Record { accepted_ms, id, key, kind, payload, .. })) => {
            (*accepted_ms, id.to_vec(), key.as_str(), kind.as_str(), &payload[..])
        }
        Some(Row::Damaged { id, .. }) => damaged(*id),
        None => return Ok(Growth::default()),
    };
    let sql = "INSERT INTO dead_letters
                   (sink, position, at_ms, reason, detail, accepted_ms, id, key, kind, payload, crc)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let crc = checksum(sink, *position, accepted_ms, &id, key.as_bytes(), kind.as_bytes(), payload);
    let values = params![sink, *position as i64, at_ms, reason, detail, accepted_ms, id, key, kind, payload, crc];
    connection.prepare_cached(sql)?.execute(values)?;
    Ok(Growth { count: 1, bytes: (payload.len() as u64 + ROW_BYTES) as i64 })
}

/// Deletes one.
pub(super) fn delete(connection: &Connection, sink: &str, position: u64) -> rusqlite::Result<Growth> {
    let sql = "DELETE FROM dead_letters WHERE sink = ?1 AND position = ?2 RETURNING length(payload)";
    let values = params![sink, position as i64];
    let bytes = connection.prepare_cached(sql)?.query_row(values, |row| row.get::<_, i64>(0)).optional()?;
    Ok(bytes.map_or_else(Growth::default, |bytes| Growth { count: -1, bytes: -(bytes + ROW_BYTES as i64) }))
}

/// Those of a sink, of an event or all, in order of sink and position.
pub(super) fn select(
    connection: &Connection,
    sink: Option<&str>,
    id: Option<&[u8; 16]>,
) -> rusqlite::Result<Vec<StoredDeadLetter>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM dead_letters d WHERE (?1 IS NULL OR d.sink = ?1) AND (?2 IS NULL OR d.id = ?2)
         ORDER BY d.sink, d.position"
    );
    let mut statement = connection.prepare(&sql)?;
    let found = statement.query_map(params![sink, id], |row| stored(row, 0))?;
    found.filter_map(|stored| sqlite::readable(stored).transpose()).collect()
}

/// How many dead letters a sink has for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterGroup {
    /// The sink.
    pub sink: String,
    /// The kind of refusal, from the sinks' closed set.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// When the first of them became one, in Unix milliseconds.
    pub first_ms: i64,
    /// When the last of them did.
    pub last_ms: i64,
}

/// The dead letters by sink and reason, the most frequent first.
pub(super) fn groups(connection: &Connection) -> rusqlite::Result<Vec<DeadLetterGroup>> {
    let sql = "SELECT sink, reason, count(*), min(at_ms), max(at_ms) FROM dead_letters
               GROUP BY sink, reason ORDER BY sink, count(*) DESC, reason";
    let mut statement = connection.prepare_cached(sql)?;
    let groups = statement.query_map([], |row| {
        Ok(DeadLetterGroup {
            sink: row.get(0)?,
            // Text for people, outside of the checksum.
            reason: String::from_utf8_lossy(row.get_ref(1)?.as_bytes()?).into_owned(),
            count: row.get::<_, i64>(2)? as u64,
            first_ms: row.get(3)?,
            last_ms: row.get(4)?,
        })
    })?;
    groups.collect()
}

/// The event of one; `None` where that is damaged, or there is none.
pub(super) fn event(connection: &Connection, sink: &str, position: u64) -> rusqlite::Result<Option<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM dead_letters d WHERE d.sink = ?1 AND d.position = ?2");
    let found = connection.prepare_cached(&sql)?.query_row(params![sink, position as i64], |row| stored(row, 0));
    Ok(sqlite::readable(found.optional())?.flatten().and_then(|stored| stored.event))
}

/// The bytes of all of them.
pub(super) fn bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT coalesce(sum(length(payload)), 0) + count(*) * ?1 FROM dead_letters";
    connection.query_row(sql, [ROW_BYTES as i64], |row| row.get::<_, i64>(0)).map(|bytes| bytes as u64)
}

/// An event that an operator wants to be set aside is a dead letter for what it was stuck for.
pub(super) fn with_reason(connection: &Connection, dead_letter: &DeadLetter) -> rusqlite::Result<DeadLetter> {
    let stuck = match dead_letter.reason.as_str() {
        SET_ASIDE => super::stuck::reason(connection, &dead_letter.sink, dead_letter.position)?,
        _ => None,
    };
    Ok(match stuck {
        Some((reason, detail)) => {
            DeadLetter { reason, detail: format!("{}: {detail}", dead_letter.detail), ..dead_letter.clone() }
        }
        None => dead_letter.clone(),
    })
}

/// The reason of an event that an operator wants to be set aside and that never failed.
pub(super) const SET_ASIDE: &str = "set_aside";

/// Reads [`COLUMNS`] from `first` on, and checks that the event is what was stored.
pub(super) fn stored(row: &SqlRow<'_>, first: usize) -> rusqlite::Result<StoredDeadLetter> {
    let position = row.get::<_, i64>(first + 1)? as u64;
    let dead_letter = DeadLetter {
        sink: row.get(first)?,
        position,
        at_ms: row.get(first + 2)?,
        // Text for people, outside of the checksum.
        reason: String::from_utf8_lossy(row.get_ref(first + 3)?.as_bytes()?).into_owned(),
        detail: String::from_utf8_lossy(row.get_ref(first + 4)?.as_bytes()?).into_owned(),
    };
    let (accepted_ms, id): (i64, Vec<u8>) = (row.get(first + 5)?, row.get(first + 6)?);
    let (key, kind): (String, String) = (row.get(first + 7)?, row.get(first + 8)?);
    let (payload, crc): (Vec<u8>, i64) = (row.get(first + 9)?, row.get(first + 10)?);
    let (key_bytes, kind_bytes) = (key.as_bytes(), kind.as_bytes());
    let expected = checksum(&dead_letter.sink, position, accepted_ms, &id, key_bytes, kind_bytes, &payload);
    let is_whole = crc == i64::from(expected);
    let id: Option<[u8; 16]> = id.try_into().ok();
    let event = id.filter(|_| is_whole && !(payload.is_empty() && key.is_empty())).map(|id| Record {
        position,
        accepted_ms,
        id,
        key_hash: super::record::hash(key.as_bytes()),
        key,
        kind,
        payload: payload.into(),
    });
    Ok(StoredDeadLetter { dead_letter, event, id })
}

fn checksum(sink: &str, position: u64, accepted_ms: i64, id: &[u8], key: &[u8], kind: &[u8], payload: &[u8]) -> u32 {
    sqlite::crc(&[sink.as_bytes(), &position.to_le_bytes(), &accepted_ms.to_le_bytes(), id, key, kind, payload])
}
