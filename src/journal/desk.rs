//! The operator's desk: dead letters, replays, figures and checks, beside a running bridge or on a stopped
//! one's directory.
//!
//! It writes only to `dead_letters`, `resends` and `offers` ([`super::offers`]), in transactions short enough not to hold
//! up the bridge's own commits, and never to the log itself.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, Row as SqlRow, params};

use super::reader::{Reader, Row};
use super::{EngineError, Filter, Limits, OpenError, schema};

/// Rows written in one transaction.
pub(super) const CHUNK: usize = 500;

/// How much is read at a time.
const LIMITS: Limits = Limits { rows: CHUNK, bytes: 8 * 1024 * 1024 };

/// A dead letter as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The sink that could not deliver it.
    pub sink: String,
    /// The event's position.
    pub position: u64,
    /// When it was set aside, in Unix milliseconds.
    pub at_ms: i64,
    /// The kind of refusal.
    pub reason: String,
    /// What the broker said.
    pub detail: String,
    /// The event's id; empty if the event itself could not be read.
    pub id: Vec<u8>,
    /// What order is kept by.
    pub key: String,
    /// The event's type.
    pub kind: String,
    /// The structured envelope.
    pub payload: Vec<u8>,
}

/// What a journal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The file.
    pub path: PathBuf,
    /// The oldest position kept; 0 when there is none.
    pub first_position: u64,
    /// The newest position; 0 when there is none.
    pub last_position: u64,
    /// Acceptance of the oldest and of the newest event, in Unix milliseconds.
    pub accepted_ms: Option<(i64, i64)>,
    /// Bytes of the events kept, as counted against `journal.max_bytes`.
    pub bytes: u64,
    /// Ids in the deduplication window, or about to be forgotten.
    pub dedup_ids: u64,
    /// Events that `reconcile` offers and the writer has not yet taken in.
    pub offers: u64,
    /// Each sink that was ever configured: name, cursor, dead letters, resends.
    pub sinks: Vec<(String, u64, u64, u64)>,
}

/// Something wrong with a journal's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A row that can't be read, or whose checksum does not hold.
    Damaged {
        /// Its position.
        position: u64,
        /// Its key; "?" where that can't be read either.
        key: String,
    },
    /// Positions that should be there and are not.
    Missing {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// The file's structure, in the engine's words.
    Structure(String),
}

/// A connection of the operator's.
pub struct Desk {
    pub(super) connection: Connection,
    reader: Reader,
    path: PathBuf,
}

impl Desk {
    /// Opens the journal in `dir`, which must exist; a running bridge is not disturbed.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(schema::FILE);
        std::fs::metadata(&path).map_err(|source| OpenError::Directory { path: path.clone(), source })?;
        let connection = schema::open_desk(&path)?;
        let reader = Reader::open(&path).map_err(|source| OpenError::Database { path: path.clone(), source })?;
        Ok(Self { connection, reader, path })
    }

    /// The sinks that the bridge has ever had.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn sinks(&self) -> Result<Vec<String>, EngineError> {
        let mut statement = self.connection.prepare("SELECT sink FROM cursors ORDER BY sink")?;
        let sinks = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(sinks)
    }

    /// The dead letters, oldest position first, of one sink or of all.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn dead_letters(&self, sink: Option<&str>, id: Option<&[u8; 16]>) -> Result<Vec<Letter>, EngineError> {
        let mut statement = self.connection.prepare(
            "SELECT sink, position, at_ms, reason, detail, id, key, kind, payload FROM dead_letters
             WHERE (?1 IS NULL OR sink = ?1) AND (?2 IS NULL OR id = ?2) ORDER BY sink, position",
        )?;
        let letters = statement.query_map(params![sink, id], letter)?.collect::<Result<_, _>>()?;
        Ok(letters)
    }

    /// Puts dead letters into the queue of what is published again; those in it already stay once. They
    /// remain dead letters until a broker has them.
    ///
    /// # Errors
    /// When the engine fails; what was queued before stays queued.
    pub fn requeue(&mut self, letters: &[Letter]) -> Result<usize, EngineError> {
        let mut queued = 0;
        for chunk in letters.chunks(CHUNK) {
            let transaction = self.connection.transaction()?;
            for letter in chunk {
                let sql = "INSERT INTO resends (sink, position, due_ms, replayed) SELECT ?1, ?2, 0, 0
                           WHERE NOT EXISTS (SELECT 1 FROM resends WHERE sink = ?1 AND position = ?2 AND replayed = 0)";
                queued += transaction.prepare_cached(sql)?.execute(params![letter.sink, letter.position as i64])?;
            }
            transaction.commit()?;
        }
        Ok(queued)
    }

    /// Deletes dead letters for good.
    ///
    /// # Errors
    /// When the engine fails; what was deleted before stays deleted.
    pub fn discard(&mut self, letters: &[Letter]) -> Result<usize, EngineError> {
        let mut discarded = 0;
        for chunk in letters.chunks(CHUNK) {
            let transaction = self.connection.transaction()?;
            for letter in chunk {
                let values = params![letter.sink, letter.position as i64];
                let sql = "DELETE FROM resends WHERE sink = ?1 AND position = ?2 AND replayed = 0";
                transaction.prepare_cached(sql)?.execute(values)?;
                let sql = "DELETE FROM dead_letters WHERE sink = ?1 AND position = ?2";
                discarded += transaction.prepare_cached(sql)?.execute(values)?;
            }
            transaction.commit()?;
        }
        Ok(discarded)
    }

    /// The stored events that a filter lets through, in order of position; `each` is called with a batch
    /// of rows at a time.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn select(&self, filter: &Filter, each: impl FnMut(&[Row])) -> Result<(), EngineError> {
        self.select_after(0, filter, each).map(drop)
    }

    /// The same after a position; returns the last one that was looked at.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn select_after(
        &self,
        mut position: u64,
        filter: &Filter,
        mut each: impl FnMut(&[Row]),
    ) -> Result<u64, EngineError> {
        loop {
            let batch = self.reader.after(position, LIMITS, filter)?;
            if batch.through == position {
                return Ok(position);
            }
            position = batch.through;
            each(&batch.rows);
        }
    }

    /// Queues events to be published again to a sink, marked as replays: the first at once, the others
    /// after it at `per_second`, or as fast as the broker takes them.
    ///
    /// # Errors
    /// When the engine fails; what was queued before stays queued.
    pub fn replay(
        &mut self,
        sink: &str,
        positions: &[u64],
        now_ms: i64,
        per_second: Option<u32>,
    ) -> Result<usize, EngineError> {
        let due_ms =
            |index: usize| per_second.map_or(0, |rate| now_ms + (index as i64 * 1000) / i64::from(rate.max(1)));
        let mut index = 0;
        for chunk in positions.chunks(CHUNK) {
            let transaction = self.connection.transaction()?;
            for position in chunk {
                let sql = "INSERT INTO resends (sink, position, due_ms, replayed) VALUES (?1, ?2, ?3, 1)";
                transaction.prepare_cached(sql)?.execute(params![sink, *position as i64, due_ms(index)])?;
                index += 1;
            }
            transaction.commit()?;
        }
        Ok(index)
    }

    /// What the journal holds.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn summary(&self) -> Result<Summary, EngineError> {
        let one = |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
        let ends = super::log::ends(&self.connection)?;
        let accepted = |position: u64| {
            self.connection
                .query_row("SELECT accepted_ms FROM records WHERE position = ?1", [position as i64], |row| row.get(0))
        };
        // Not told where a page at an end can't be read.
        let accepted_ms = accepted(ends.first).ok().zip(accepted(ends.last).ok());
        let mut statement = self.connection.prepare(
            "SELECT sink, position, (SELECT count(*) FROM dead_letters d WHERE d.sink = c.sink),
                    (SELECT count(*) FROM resends q WHERE q.sink = c.sink) FROM cursors c ORDER BY sink",
        )?;
        let counted = |row: &SqlRow<'_>, column| row.get::<_, i64>(column).map(|count| count as u64);
        let sinks = statement
            .query_map([], |row| Ok((row.get(0)?, counted(row, 1)?, counted(row, 2)?, counted(row, 3)?)))?
            .collect::<Result<_, _>>()?;
        Ok(Summary {
            path: self.path.clone(),
            first_position: ends.first,
            last_position: ends.last,
            accepted_ms,
            bytes: ends.bytes(),
            dedup_ids: one("SELECT count(*) FROM seen")?.unwrap_or(0) as u64,
            offers: self.waiting()?,
            sinks,
        })
    }

    /// Looks at every row and at the file's structure, and names all that is wrong; returns how many rows
    /// are right.
    ///
    /// # Errors
    /// When not even the file's first page can be read.
    pub fn verify(&self, mut found: impl FnMut(Fault)) -> Result<u64, EngineError> {
        let Summary { first_position, last_position, .. } = self.summary()?;
        let mut right = 0;
        let mut position = first_position.saturating_sub(1);
        while position < last_position {
            let batch = self.reader.after(position, LIMITS, &Filter::default())?;
            if batch.through == position {
                found(Fault::Missing { first: position + 1, last: last_position });
                break;
            }
            for row in &batch.rows {
                if row.position() > position + 1 {
                    found(Fault::Missing { first: position + 1, last: row.position() - 1 });
                }
                position = row.position();
                match row {
                    Row::Intact(_) => right += 1,
                    Row::Damaged { position } => {
                        found(Fault::Damaged { position: *position, key: self.key_of(*position) })
                    }
                }
            }
            if batch.through > position {
                found(Fault::Missing { first: position + 1, last: batch.through });
                position = batch.through;
            }
        }
        self.structure(&mut found);
        Ok(right)
    }

    fn key_of(&self, position: u64) -> String {
        let sql = "SELECT CAST(key AS BLOB) FROM records WHERE position = ?1";
        let key = self.connection.query_row(sql, [position as i64], |row| row.get::<_, Vec<u8>>(0));
        key.map_or_else(|_unreadable| "?".to_owned(), |key| String::from_utf8_lossy(&key).into_owned())
    }

    fn structure(&self, found: &mut impl FnMut(Fault)) {
        let check = || -> rusqlite::Result<Vec<String>> {
            self.connection.prepare("PRAGMA integrity_check(20)")?.query_map([], |row| row.get(0))?.collect()
        };
        match check() {
            Ok(lines) => lines.into_iter().filter(|line| line != "ok").for_each(|line| found(Fault::Structure(line))),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
                found(Fault::Structure(error.to_string()));
            }
            Err(error) => found(Fault::Structure(format!("cannot be checked: {error}"))),
        }
    }
}

fn letter(row: &SqlRow<'_>) -> rusqlite::Result<Letter> {
    Ok(Letter {
        sink: row.get(0)?,
        position: row.get::<_, i64>(1)? as u64,
        at_ms: row.get(2)?,
        reason: row.get(3)?,
        detail: row.get(4)?,
        id: row.get(5)?,
        key: row.get(6)?,
        kind: row.get(7)?,
        payload: row.get(8)?,
    })
}
