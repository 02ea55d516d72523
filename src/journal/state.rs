//! The state file: what is known of the events beside the events themselves.
//!
//! One SQLite file, `state.db`, written by one thread ([`super::state_writer`]) and by operators' commands:
//!
//! ```text
//! sinks               one row a sink: its frontier, everything up to which it has read, and which chunks wait
//! waiting             the positions up to the frontier that it has not dealt with, 65,536 to a row
//! durable             how far the newest segment was fsynced
//! released            ranges of positions that were released on purpose, so that what is missing can be told apart from them
//! dead_letters        whole copies of events that a broker refused for good, or that an operator set aside
//! resends             dead letters that are to be published
//! replays             what an operator wants to be published once more, as a filter and how far it has got
//! stuck               events that their target does not take
//! set_aside_requests  what an operator wants to be set aside
//! backfill_candidates events that nobody delivered; backfilled: those of them that were stored
//! progress            for each sink, once a second, how far it had got
//! ```
//!
//! A segment is durable before the state that names its events. Any page and any byte of the file may be damaged: all
//! tables are read by rowid then, so a page that cannot be read costs the rows on it. What must not be wrong has a CRC
//! of its own, as SQLite has none; any other row whose values make no sense is left out, and logged.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::progress::{
    ChangedProgress, drop_damaged_ranges, highest_position, load_progress, sink_names, store_progress,
};
use super::repair::{NEXT, carry_over_file, finish_replacement, replace_damaged};
use super::schema::{NAMES, check_version, configure, create, schema_is_whole};
use super::segment::{MAJOR, is_of_this_format};
use super::sqlite::{FILE, engine, is_damage};
use super::{OpenError, dead_letters, replays};

/// An open state file.
pub(super) struct Opened {
    pub(super) connection: Connection,
    /// Where the damaged file was put, if it was damaged.
    pub(super) damaged: Option<PathBuf>,
    /// Whether there was none.
    pub(super) is_new: bool,
}

/// Opens the file for the owner of the directory, making it where there is none. A damaged one is put aside, and all
/// that can be read of it is carried over.
///
/// # Errors
/// [`OpenError::Schema`], [`OpenError::Foreign`], [`OpenError::Database`].
pub(super) fn open(dir: &Path) -> Result<Opened, OpenError> {
    let path = dir.join(FILE);
    if dir.join(NEXT).exists() {
        finish_replacement(dir).map_err(|error| OpenError::database(&path)(engine(&error)))?;
    }
    match open_whole(&path) {
        Ok((connection, is_new)) => Ok(Opened { connection, damaged: None, is_new }),
        Err(error) if is_damaged(dir, &error) => {
            tracing::error!(%error, cause = ?std::error::Error::source(&error), "damaged state file; carrying over what can be read");
            open_damaged(dir)
        }
        Err(error) => Err(error),
    }
}

/// Puts the file aside, whatever reading it says, and goes on with all that can be read of it.
///
/// # Errors
/// [`OpenError::Database`].
pub(super) fn open_damaged(dir: &Path) -> Result<Opened, OpenError> {
    let path = dir.join(FILE);
    let damaged = replace_damaged(dir).map_err(OpenError::database(&path))?;
    Ok(Opened { connection: open_whole(&path)?.0, damaged: Some(damaged), is_new: false })
}

/// Whether a file that cannot be opened was damaged.
pub(super) fn is_damaged(dir: &Path, error: &OpenError) -> bool {
    match error {
        OpenError::Database { source, .. } => {
            let error = &source.0;
            // Also where the file says that it is only for reading.
            let is_writable = || fs::File::options().write(true).open(dir.join(FILE)).is_ok();
            is_damage(error) || (error.sqlite_error_code() == Some(ErrorCode::ReadOnly) && is_writable())
        }
        // Nothing protects the file's own version. The segments' versions have checksums.
        OpenError::Schema { .. } | OpenError::Foreign { .. } => is_of_this_format(dir).unwrap_or(false),
        _ => false,
    }
}

/// Opens a file that must be whole, and says whether it is new.
fn open_whole(path: &Path) -> Result<(Connection, bool), OpenError> {
    let database = OpenError::database(path);
    let mut connection = Connection::open(path).map_err(database)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(database)?;
    if tables > 0 {
        check_version(&connection, path)?;
        if !schema_is_whole(&connection).map_err(database)? {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(database(rusqlite::Error::SqliteFailure(code, Some("damaged schema".to_owned()))));
        }
    }
    configure(&connection).map_err(database)?;
    // Also the tables that an older minor version did not have.
    create(&mut connection).map_err(database)?;
    // What recovery finds in the write-ahead log may never have been fsynced.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(database)?;
    read_all(&connection).map_err(database)?;
    // A flipped byte of the header makes a file one that is only read.
    connection.pragma_update(None, "user_version", MAJOR).map_err(database)?;
    Ok((connection, tables == 0))
}

/// Reads all that a start, a commit and a command depend on, so that damage shows now.
fn read_all(connection: &Connection) -> rusqlite::Result<()> {
    for table in NAMES.into_iter().chain(["sqlite_schema"]) {
        // There is a row a second in it, and nothing looks them up.
        let check = if table == "progress" { "quick_check" } else { "integrity_check" };
        let found: String = connection.query_row(&format!("PRAGMA {check}('{table}')"), [], |row| row.get(0))?;
        if found != "ok" {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(rusqlite::Error::SqliteFailure(code, Some(found)));
        }
    }
    connection.query_row("SELECT total(seq) FROM sqlite_sequence", [], |_| Ok(()))?;
    dead_letters::bytes(connection)?;
    highest_position(connection, u64::MAX).map(drop)
}

/// Opens the file beside the bridge that owns it, for an operator's short transactions, or for reading.
pub(super) fn open_beside(dir: &Path) -> Result<Connection, OpenError> {
    let path = dir.join(FILE);
    let database = OpenError::database(&path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path, flags).map_err(database)?;
    check_version(&connection, &path)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(database)?;
    Ok(connection)
}

/// Makes a new state file in `to` of all that can be read of the one in `from`, and opens it.
///
/// # Errors
/// [`OpenError::Database`].
pub(super) fn salvage_into(from: &Path, to: &Path) -> Result<Connection, OpenError> {
    let path = to.join(FILE);
    let database = OpenError::database(&path);
    carry_over_file(from, &path).map_err(database)?;
    let (connection, _) = open_whole(&path)?;
    // What of it is damaged waits from now on, and is no damage of the new file.
    for sink in sink_names(&connection).map_err(database)? {
        let mut progress = load_progress(&connection, &sink).map_err(database)?.unwrap_or_default();
        store_progress(&connection, &sink, &ChangedProgress::of(&mut progress)).map_err(database)?;
    }
    drop_damaged_ranges(&connection).and_then(|()| replays::drop_damaged(&connection)).map_err(database)?;
    Ok(connection)
}
