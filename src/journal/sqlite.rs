//! What the tables of the state file need of SQLite: the file's name, which errors are damage, and checks of rows.

use std::io;

use rusqlite::{Connection, ErrorCode};

/// The file's name in the journal's directory.
pub(super) const FILE: &str = "state.db";

/// Whether the file does not hold what was written to it, or cannot be read: whatever is not the fault of a disk that
/// takes no writes, of another process or of who may open it.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use ErrorCode as Code;
    use rusqlite::ffi::{SQLITE_IOERR_CORRUPTFS, SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ};
    let extended = error.sqlite_error().map(|error| error.extended_code);
    match error.sqlite_error_code() {
        Some(Code::SystemIoFailure) => {
            let is_read = |code| [SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ, SQLITE_IOERR_CORRUPTFS].contains(&code);
            extended.is_some_and(is_read)
        }
        // The engine gave a value that is not of its column.
        None => !matches!(error, rusqlite::Error::InvalidQuery | rusqlite::Error::InvalidPath(_)),
        Some(
            Code::DatabaseBusy
            | Code::DatabaseLocked
            | Code::FileLockingProtocolFailed
            | Code::DiskFull
            | Code::CannotOpen
            | Code::PermissionDenied
            | Code::ReadOnly
            | Code::OutOfMemory
            | Code::OperationInterrupted
            | Code::OperationAborted,
        ) => false,
        Some(_) => true,
    }
}

/// An error of the file system, as one of the engine.
pub(super) fn engine(error: &io::Error) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
    rusqlite::Error::SqliteFailure(code, Some(error.to_string()))
}

/// A row that can be read, or `None` for one whose values are not of their columns' types.
///
/// # Errors
/// The engine's.
pub(super) fn readable<T>(row: rusqlite::Result<T>) -> rusqlite::Result<Option<T>> {
    match row {
        Ok(row) => Ok(Some(row)),
        Err(error) if error.sqlite_error_code().is_none() => {
            tracing::error!(%error, "left out a damaged row of the state file");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// How many rows a table has of a sink.
pub(super) fn count_of(connection: &Connection, table: &str, sink: &str) -> rusqlite::Result<u64> {
    let sql = format!("SELECT count(*) FROM {table} WHERE sink = ?1");
    connection.prepare_cached(&sql)?.query_row([sink], |row| row.get::<_, i64>(0)).map(|count| count as u64)
}

/// The positions that a table has of a sink, in order.
pub(super) fn positions_of(connection: &Connection, table: &str, sink: &str) -> rusqlite::Result<Vec<u64>> {
    let sql = format!("SELECT position FROM {table} WHERE sink = ?1 ORDER BY position");
    let position = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0).map(|position| position as u64);
    connection.prepare_cached(&sql)?.query_map([sink], position)?.collect()
}

/// The checksum of the parts of a row.
pub(super) fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for part in parts {
        crc.update(&(part.len() as u64).to_le_bytes());
        crc.update(part);
    }
    crc.finalize()
}
