//! The state file: what is known of the events beside the events themselves.
//!
//! One SQLite file, `state.db`, written by one thread ([`super::state_writer`]) and by operators' commands:
//!
//! ```text
//! sinks               one row a sink: its frontier, everything up to which it has read, and which chunks wait
//! waiting             the positions up to the frontier that it has not dealt with, 65,536 to a row
//! durable             how far the newest segment was fsynced
//! released            ranges of positions that were released on purpose, so that what is missing can be told from them
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

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use roaring::RoaringTreemap;
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

use super::segment::{MAJOR, Name, Proof, is_of_this_format};
use super::sinks::Progress;
use super::{OpenError, backfill, dead_letters, positions, resends, stuck};

/// The file's name in the journal's directory.
pub(super) const FILE: &str = "state.db";

/// "SBBS" in SQLite's `application_id`, so that `file` and we can tell it from other databases.
const APPLICATION_ID: i64 = 0x5342_4253;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS sinks (
        sink        TEXT    PRIMARY KEY,
        frontier    INTEGER NOT NULL,
        chunks      BLOB    NOT NULL,
        crc         INTEGER NOT NULL,
        configured  INTEGER NOT NULL DEFAULT 1
    ) STRICT;
    CREATE TABLE IF NOT EXISTS waiting (
        sink        TEXT    NOT NULL,
        chunk       INTEGER NOT NULL,
        positions   BLOB    NOT NULL,
        crc         INTEGER NOT NULL,
        PRIMARY KEY (sink, chunk)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS durable (
        one         INTEGER PRIMARY KEY CHECK (one = 1),
        segment     INTEGER NOT NULL,
        offset      INTEGER NOT NULL,
        position    INTEGER NOT NULL,
        crc         INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS released (
        first       INTEGER PRIMARY KEY,
        last        INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS progress (
        at_ms       INTEGER NOT NULL,
        sink        TEXT    NOT NULL,
        cursor      INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS progress_by_sink ON progress (sink, cursor);
";

/// Tables whose rows are carried over from a damaged file.
const NAMES: [&str; 12] = [
    "sinks",
    "waiting",
    "durable",
    "released",
    "progress",
    "dead_letters",
    "resends",
    "replays",
    "stuck",
    "set_aside_requests",
    "backfill_candidates",
    "backfilled",
];

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
        finish_replacement(dir)
            .map_err(|error| OpenError::Database { path: path.clone(), source: engine(&error).into() })?;
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
    let damaged = salvage(dir).map_err(|source| OpenError::Database { path: path.clone(), source: source.into() })?;
    Ok(Opened { connection: open_whole(&path)?.0, damaged: Some(damaged), is_new: false })
}

/// Whether a file that cannot be opened was damaged.
pub(super) fn is_damaged(dir: &Path, error: &OpenError) -> bool {
    match error {
        OpenError::Database { source, .. } => {
            let error = source.engine();
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
    let database = |source: rusqlite::Error| OpenError::Database { path: path.to_owned(), source: source.into() };
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
    for table in NAMES {
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

/// Whether each table has the columns that it should have. An older minor version may lack tables, a newer one may have
/// more; one that lacks some and has others was damaged.
fn schema_is_whole(connection: &Connection) -> rusqlite::Result<bool> {
    // What no file of ours is, but one whose first page was damaged may say that it is.
    let encoding: String = connection.query_row("PRAGMA encoding", [], |row| row.get(0))?;
    if encoding != "UTF-8" || pragma(connection, "auto_vacuum")? != 0 {
        return Ok(false);
    }
    let mut model = Connection::open_in_memory()?;
    create(&mut model)?;
    let names = |connection: &Connection| -> rusqlite::Result<BTreeSet<String>> {
        let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
        connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
    };
    let (expected, found) = (names(&model)?, names(connection)?);
    for table in expected.intersection(&found) {
        let found = columns(connection, table)?;
        if columns(&model, table)?.iter().any(|column| !found.contains(column)) {
            return Ok(false);
        }
    }
    Ok(expected.is_subset(&found) || found.is_subset(&expected))
}

fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT name FROM pragma_table_info(?1)";
    connection.prepare_cached(sql)?.query_map([table], |row| row.get(0))?.collect()
}

fn check_version(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let database = |source: rusqlite::Error| OpenError::Database { path: path.to_owned(), source: source.into() };
    if pragma(connection, "application_id").map_err(database)? != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let found = pragma(connection, "user_version").map_err(database)?;
    if found != i64::from(MAJOR) {
        return Err(OpenError::Schema { path: path.to_owned(), found, known: i64::from(MAJOR) });
    }
    Ok(())
}

/// Opens the file beside the bridge that owns it, for an operator's short transactions, or for reading.
pub(super) fn open_beside(dir: &Path) -> Result<Connection, OpenError> {
    let path = dir.join(FILE);
    let database = |source: rusqlite::Error| OpenError::Database { path: path.clone(), source: source.into() };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path, flags).map_err(database)?;
    check_version(&connection, &path)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(database)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        let text = format!("expected the journal mode wal, but found {mode}; does its file system have shared memory?");
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
            Some(text),
        ));
    }
    // FULL: the write-ahead log is fsynced by every commit.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", -4096)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

/// Makes the tables that are not there.
fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let all = [TABLES, dead_letters::TABLES, resends::TABLES, stuck::TABLES, backfill::TABLES];
    let names = format!("('{}')", NAMES.join("', '"));
    let found: i64 = connection.query_row(
        &format!("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN {names}"),
        [],
        |row| row.get(0),
    )?;
    if found == NAMES.len() as i64 {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for tables in all {
        transaction.execute_batch(tables)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", MAJOR)?;
    transaction.commit()
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

// ---- damage --------------------------------------------------------------------------------------------------------

/// How many damaged files are kept; a further one takes the place of the last.
const MOST_KEPT: u32 = 9;

/// Puts a damaged file aside and makes a new one of all that can be read; returns where the damaged one is.
fn salvage(dir: &Path) -> rusqlite::Result<PathBuf> {
    let making = dir.join("state.making");
    carry_over_file(dir, &making)?;
    let replace = || -> io::Result<PathBuf> {
        fs::File::open(&making)?.sync_all()?;
        fs::rename(&making, dir.join(NEXT))?;
        super::directory::sync(dir)?;
        finish_replacement(dir)
    };
    replace().map_err(|error| engine(&error))
}

/// A new file that is complete and takes the place of the damaged one.
const NEXT: &str = "state.next";

/// Puts the new file in the place of the damaged one, also after a kill in between: the write-ahead log of the old one
/// must never be found beside the new one.
fn finish_replacement(dir: &Path) -> io::Result<PathBuf> {
    let aside = |n: u32| dir.join(format!("state-damaged-{n}.db"));
    let aside = (1..MOST_KEPT).map(aside).find(|path| !path.exists()).unwrap_or_else(|| aside(MOST_KEPT));
    if dir.join(FILE).exists() {
        fs::rename(dir.join(FILE), &aside)?;
    }
    let wal = dir.join(format!("{FILE}-wal"));
    if wal.exists() {
        fs::rename(wal, aside.with_extension("db-wal"))?;
    }
    drop(fs::remove_file(dir.join(format!("{FILE}-shm"))));
    super::directory::sync(dir)?;
    fs::rename(dir.join(NEXT), dir.join(FILE))?;
    super::directory::sync(dir)?;
    Ok(aside)
}

/// What can be read of a damaged file, in memory, for commands that only read.
pub(super) fn read_damaged(dir: &Path) -> rusqlite::Result<Connection> {
    let mut fresh = Connection::open_in_memory()?;
    create(&mut fresh)?;
    carry_over_copy(dir, &mut fresh)?;
    Ok(fresh)
}

/// Makes a new state file in `to` of all that can be read of the one in `from`, and opens it.
///
/// # Errors
/// [`OpenError::Database`].
pub(super) fn salvage_into(from: &Path, to: &Path) -> Result<Connection, OpenError> {
    let path = to.join(FILE);
    let database = |source: rusqlite::Error| OpenError::Database { path: path.clone(), source: source.into() };
    carry_over_file(from, &path).map_err(database)?;
    let (connection, _) = open_whole(&path)?;
    // What of it is damaged waits from now on, and is no damage of the new file.
    for sink in sink_names(&connection).map_err(database)? {
        let mut progress = load_progress(&connection, &sink).map_err(database)?.unwrap_or_default();
        store_progress(&connection, &sink, &ChangedProgress::of(&mut progress)).map_err(database)?;
    }
    Ok(connection)
}

fn engine(error: &io::Error) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
    rusqlite::Error::SqliteFailure(code, Some(error.to_string()))
}

fn carry_over_file(dir: &Path, making: &Path) -> rusqlite::Result<()> {
    drop(fs::remove_file(making));
    let mut fresh = Connection::open(making)?;
    create(&mut fresh)?;
    carry_over_copy(dir, &mut fresh)?;
    fresh.close().map_err(|(_, error)| error)
}

/// A copy is read, so that the file itself stays as it was found.
fn carry_over_copy(dir: &Path, fresh: &mut Connection) -> rusqlite::Result<()> {
    if !dir.join(FILE).exists() {
        tracing::error!("there is no state file");
        return Ok(());
    }
    let copies = dir.join(format!("{COPY}-{}", std::process::id()));
    let copied = || -> io::Result<PathBuf> {
        drop(fs::remove_dir_all(&copies));
        fs::create_dir(&copies)?;
        let copy = copies.join(FILE);
        copy_readable(&dir.join(FILE), &copy)?;
        let wal = format!("{FILE}-wal");
        if dir.join(&wal).exists() {
            copy_readable(&dir.join(&wal), &copies.join(&wal))?;
        }
        Ok(copy)
    };
    let copy = copied().map_err(|error| engine(&error))?;
    let carried =
        repair_schema(&copy).and_then(|()| Connection::open(&copy)).and_then(|damaged| carry_over(&damaged, fresh));
    if let Err(error) = carried {
        tracing::error!(%error, "nothing of the damaged state file can be read");
    }
    fs::remove_dir_all(&copies).map_err(|error| engine(&error))
}

/// What the directory's name begins with in which a damaged file is read; what a kill leaves of it is removed at the
/// next start.
pub(super) const COPY: &str = "state.copy";

/// The size of a page, as SQLite makes it by itself.
const PAGE: usize = 4096;

/// Copies a file; what of it cannot be read is zeros in the copy.
fn copy_readable(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (fs::File::open(from)?, fs::File::create(to)?);
    let mut page = [0; PAGE];
    let length = from.metadata()?.len();
    for at in (0..length).step_by(PAGE) {
        let page = &mut page[..(length - at).min(PAGE as u64) as usize];
        if from.read_exact_at(page, at).is_err() {
            page.fill(0);
        }
        to.write_all_at(page, at)?;
    }
    Ok(())
}

/// The first pages say which tables there are and where each begins, and each state file was made by the same
/// statements: a new one says the same. Replaces them where they cannot be read.
fn repair_schema(path: &Path) -> rusqlite::Result<()> {
    let is_whole = |damaged: &Connection| {
        let sql = "SELECT count(*) > 0 FROM sqlite_schema";
        Ok(damaged.query_row(sql, [], |row| row.get::<_, bool>(0))? && schema_is_whole(damaged)?)
    };
    if Connection::open(path).and_then(|damaged| is_whole(&damaged)).unwrap_or(false) {
        return Ok(());
    }
    let model = path.with_extension("model");
    let mut fresh = Connection::open(&model)?;
    create(&mut fresh)?;
    let numbers: Vec<u32> = fresh
        .prepare("SELECT pageno FROM dbstat WHERE name = 'sqlite_schema'")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    fresh.close().map_err(|(_, error)| error)?;
    let replace = || -> io::Result<()> {
        let (model, file) = (fs::File::open(&model)?, fs::File::options().write(true).open(path)?);
        let pages = file.metadata()?.len().div_ceil(PAGE as u64) as u32;
        for number in numbers {
            let (mut page, at) = ([0; PAGE], u64::from(number - 1) * PAGE as u64);
            model.read_exact_at(&mut page, at)?;
            if number == 1 {
                // It is read with its write-ahead log; its size; and no list of free pages, as that is not known.
                page[18..20].fill(2);
                page[28..32].copy_from_slice(&pages.to_be_bytes());
                page[32..40].fill(0);
            }
            file.write_all_at(&page, at)?;
        }
        file.set_len(u64::from(pages) * PAGE as u64)
    };
    replace().map_err(|error| engine(&error))
}

fn carry_over(damaged: &Connection, fresh: &mut Connection) -> rusqlite::Result<()> {
    let transaction = fresh.transaction()?;
    for table in NAMES {
        let columns = columns(&transaction, table)?;
        let (list, places) = (columns.join(", "), vec!["?"; columns.len()].join(", "));
        let mut insert = transaction.prepare(&format!("INSERT OR IGNORE INTO {table} ({list}) VALUES ({places})"))?;
        let lost = read_rows(damaged, table, &list, columns.len(), |values| {
            match insert.execute(rusqlite::params_from_iter(values)) {
                // A value of another type than its column's is damage of this row.
                Err(error) if error.sqlite_error_code() != Some(ErrorCode::DiskFull) => Ok(false),
                inserted => inserted.map(|_| true),
            }
        })?;
        if lost > 0 {
            tracing::error!(table, lost, "rows of the damaged state file cannot be read");
        }
    }
    // A number that was given out is not given out for something else.
    let numbers = damaged
        .prepare("SELECT name, seq FROM sqlite_sequence")
        .and_then(|mut numbers| numbers.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect());
    let numbers: Vec<(String, i64)> = numbers.unwrap_or_default();
    for (table, number) in numbers.into_iter().filter(|(table, _)| NAMES.contains(&table.as_str())) {
        transaction.execute("DELETE FROM sqlite_sequence WHERE name = ?1 AND seq < ?2", params![table, number])?;
        let sql = "INSERT INTO sqlite_sequence (name, seq) SELECT ?1, ?2
                   WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1)";
        transaction.execute(sql, params![table, number])?;
    }
    transaction.commit()
}

/// Gives every row of a table that can be read, in order; where a page cannot be, goes on row by row until one can.
/// Returns how many rows, at most, were lost.
fn read_rows(
    connection: &Connection,
    table: &str,
    columns: &str,
    count: usize,
    mut take: impl FnMut(Vec<Value>) -> rusqlite::Result<bool>,
) -> rusqlite::Result<u64> {
    let select = |rest: &str| connection.prepare(&format!("SELECT rowid, {columns} FROM {table} NOT INDEXED {rest}"));
    let (mut on, mut one) = match (select("WHERE rowid > ?1 ORDER BY rowid"), select("WHERE rowid = ?1")) {
        (Ok(on), Ok(one)) => (on, one),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, table, "a table of the damaged state file cannot be read");
            return Ok(0);
        }
    };
    let values = |row: &rusqlite::Row<'_>| (1..=count).map(|column| row.get(column)).collect::<rusqlite::Result<_>>();
    let (mut lost, mut after, mut highest) = (0, 0, None);
    loop {
        let mut rows = on.query([after])?;
        let failed = loop {
            match rows.next() {
                Ok(Some(row)) => {
                    after = row.get(0).unwrap_or(after);
                    lost += u64::from(!values(row).map_or(Ok(false), &mut take)?);
                }
                Ok(None) => break false,
                Err(_unreadable) => break true,
            }
        };
        drop(rows);
        if !failed {
            return Ok(lost);
        }
        let highest = *highest.get_or_insert_with(|| highest_rowid(connection, table, after));
        loop {
            after += 1;
            if after > highest {
                return Ok(lost);
            }
            match one.query_row([after], |row| Ok(values(row))) {
                Ok(row) => {
                    lost += u64::from(!row.map_or(Ok(false), &mut take)?);
                    break;
                }
                // Its page can be read: there is none of this number.
                Err(rusqlite::Error::QueryReturnedNoRows) => break,
                Err(_unreadable) => lost += 1,
            }
        }
    }
}

/// The last rowid of a table, or more.
fn highest_rowid(connection: &Connection, table: &str, after: i64) -> i64 {
    /// Where the end of the table cannot be read: more rows than lie behind a page in the middle of it.
    const UNKNOWN: i64 = 200_000;
    const ROWS_PER_PAGE: i64 = 400;
    let last = format!("SELECT rowid FROM {table} NOT INDEXED ORDER BY rowid DESC LIMIT 1");
    if let Ok(last) = connection.query_row(&last, [], |row| row.get(0)) {
        return last;
    }
    // Where no row can be looked up, the page is lost that all others are found by.
    let look_up = format!("SELECT 1 FROM {table} NOT INDEXED WHERE rowid = ?1");
    let is_lost = |rowid: i64| {
        let found = connection.query_row(&look_up, [rowid], |_| Ok(()));
        !matches!(found, Ok(()) | Err(rusqlite::Error::QueryReturnedNoRows))
    };
    if (0..40).all(|power| is_lost(after.saturating_add(1 << power))) {
        return after;
    }
    let given_out = "SELECT seq FROM sqlite_sequence WHERE name = ?1";
    if let Ok(number) = connection.query_row(given_out, [table], |row| row.get(0)) {
        return number;
    }
    let pages = pragma(connection, "page_count").unwrap_or(1);
    after.saturating_add(UNKNOWN.min(pages.saturating_mul(ROWS_PER_PAGE)))
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

// ---- what sinks have published -------------------------------------------------------------------------------------

/// The checksum of the parts of a row.
pub(super) fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for part in parts {
        crc.update(&(part.len() as u64).to_le_bytes());
        crc.update(part);
    }
    crc.finalize()
}

fn sink_crc(sink: &str, number: u64, content: &[u8]) -> u32 {
    crc(&[sink.as_bytes(), &number.to_le_bytes(), content])
}

/// The sinks that the bridge has, or had when it ran last, by name.
pub(super) fn sink_names(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT sink FROM sinks WHERE configured = 1 ORDER BY sink";
    connection.prepare(sql)?.query_map([], |row| row.get(0))?.filter_map(|name| readable(name).transpose()).collect()
}

/// Notes which sinks are configured now.
pub(super) fn configure_sinks(connection: &Connection, names: &[&str]) -> rusqlite::Result<()> {
    connection.execute("UPDATE sinks SET configured = 0", [])?;
    for name in names {
        connection.execute("UPDATE sinks SET configured = 1 WHERE sink = ?1", [name])?;
    }
    Ok(())
}

/// The frontier of a sink and the numbers of its chunks; `Some(None)` where its row is damaged.
fn load_sink(connection: &Connection, sink: &str) -> rusqlite::Result<Option<Option<(u64, RoaringTreemap)>>> {
    let sql = "SELECT frontier, chunks, crc FROM sinks WHERE sink = ?1";
    let row = connection.query_row(sql, [sink], |row| {
        Ok((row.get::<_, i64>(0)? as u64, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
    });
    let row = match row {
        Err(rusqlite::Error::QueryReturnedNoRows) => return Ok(None),
        row => readable(row)?,
    };
    let whole = row.filter(|(frontier, chunks, stored)| *stored == i64::from(sink_crc(sink, *frontier, chunks)));
    Ok(Some(
        whole.and_then(|(frontier, chunks, _)| Some((frontier, RoaringTreemap::deserialize_from(&chunks[..]).ok()?))),
    ))
}

/// What a sink has published; `None` for one that is not known, or whose row is damaged. Where a chunk of waiting
/// positions is damaged or gone, all of its positions wait: what is published twice is not lost.
pub(super) fn load_progress(connection: &Connection, sink: &str) -> rusqlite::Result<Option<Progress>> {
    match load_with_damage(connection, sink)? {
        None => Ok(None),
        Some(None) => {
            tracing::error!(sink, "expected the cursor that was written, but its checksum does not hold");
            Ok(None)
        }
        Some(Some((mut progress, damaged))) => {
            for chunk in damaged {
                tracing::error!(
                    sink,
                    chunk,
                    "waiting positions are damaged; their events are published, possibly twice"
                );
                let (first, last) = positions::chunk_span(chunk);
                let last = last.min(progress.frontier);
                progress.waiting.insert_range(first.max(1), last);
            }
            Ok(Some(progress))
        }
    }
}

/// Of a known sink, what can be read, and the chunks of waiting positions that cannot; or `None`.
type WithDamage = Option<(Progress, RoaringTreemap)>;

fn load_with_damage(connection: &Connection, sink: &str) -> rusqlite::Result<Option<WithDamage>> {
    let Some(row) = load_sink(connection, sink)? else { return Ok(None) };
    let Some((frontier, mut missing)) = row else { return Ok(Some(None)) };
    let mut progress = Progress { frontier, ..Progress::default() };
    let mut statement = connection.prepare("SELECT chunk, positions, crc FROM waiting WHERE sink = ?1")?;
    let rows = statement.query_map([sink], |row| {
        Ok((row.get::<_, i64>(0)? as u64, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
    })?;
    for row in rows {
        let Some((chunk, bytes, stored)) = readable(row)? else { continue };
        // A chunk that is not in the list was left over by an older file.
        let is_whole = stored == i64::from(sink_crc(sink, chunk, &bytes)) && missing.contains(chunk);
        if is_whole && progress.waiting.add_chunk(chunk, &bytes).is_ok() {
            missing.remove(chunk);
        }
    }
    Ok(Some(Some((progress, missing))))
}

/// The configured sinks of which not all can be read.
pub(super) fn damaged_progress(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut damaged = Vec::new();
    for sink in sink_names(connection)? {
        let is_whole = matches!(load_with_damage(connection, &sink)?, Some(Some((_, chunks))) if chunks.is_empty());
        if !is_whole {
            damaged.push(sink);
        }
    }
    Ok(damaged)
}

/// What is to be written of a sink's progress.
pub(super) struct ChangedProgress {
    pub(super) frontier: u64,
    /// The numbers of all chunks of waiting positions.
    pub(super) chunks: RoaringTreemap,
    /// Those that have changed.
    pub(super) changed: Vec<(u64, Option<Vec<u8>>)>,
}

impl ChangedProgress {
    pub(super) fn of(progress: &mut Progress) -> Self {
        Self {
            frontier: progress.frontier,
            chunks: progress.waiting.chunk_numbers().collect(),
            changed: progress.waiting.take_changed(),
        }
    }
}

/// Writes a sink's frontier and the chunks that have changed.
pub(super) fn store_progress(connection: &Connection, sink: &str, progress: &ChangedProgress) -> rusqlite::Result<()> {
    let ChangedProgress { frontier, chunks: numbers, changed } = progress;
    let mut chunks = Vec::with_capacity(numbers.serialized_size());
    numbers.serialize_into(&mut chunks).map_err(|error| engine(&error))?;
    let sql = "INSERT INTO sinks (sink, frontier, chunks, crc) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (sink) DO UPDATE SET frontier = excluded.frontier, chunks = excluded.chunks,
               crc = excluded.crc";
    let crc = sink_crc(sink, *frontier, &chunks);
    connection.prepare_cached(sql)?.execute(params![sink, *frontier as i64, chunks, crc])?;
    for (chunk, bytes) in changed {
        let number = *chunk as i64;
        match bytes {
            Some(bytes) => {
                let sql = "INSERT INTO waiting (sink, chunk, positions, crc) VALUES (?1, ?2, ?3, ?4)
                           ON CONFLICT (sink, chunk) DO UPDATE SET positions = excluded.positions, crc = excluded.crc";
                connection.prepare_cached(sql)?.execute(params![sink, number, bytes, sink_crc(sink, *chunk, bytes)])?;
            }
            None => {
                let sql = "DELETE FROM waiting WHERE sink = ?1 AND chunk = ?2";
                connection.prepare_cached(sql)?.execute(params![sink, number])?;
            }
        }
    }
    Ok(())
}

fn proof_crc(segment: u64, proof: Proof) -> u32 {
    crc(&[&segment.to_le_bytes(), &proof.offset.to_le_bytes(), &proof.position.to_le_bytes()])
}

/// Writes how far the newest segment is known to be durable.
pub(super) fn store_proof(connection: &Connection, segment: u64, proof: Proof) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO durable (one, segment, offset, position, crc) VALUES (1, ?1, ?2, ?3, ?4)";
    let crc = proof_crc(segment, proof);
    let values = params![segment as i64, proof.offset as i64, proof.position as i64, crc];
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

/// How far the newest segment is known to be durable, with its number.
pub(super) fn load_proof(connection: &Connection) -> rusqlite::Result<(u64, Proof)> {
    let row = connection.query_row("SELECT segment, offset, position, crc FROM durable", [], |row| {
        let number = |column| row.get::<_, i64>(column).map(|number| number as u64);
        Ok((number(0)?, Proof { offset: number(1)?, position: number(2)? }, row.get::<_, i64>(3)?))
    });
    let row = readable(row.optional())?.flatten();
    let whole = row.filter(|(segment, proof, crc)| i64::from(proof_crc(*segment, *proof)) == *crc);
    Ok(whole.map(|(segment, proof, _)| (segment, proof)).unwrap_or_default())
}

/// What is known of a segment, given what [`load_proof`] said.
pub(super) fn proof_of(name: Name, (segment, proof): (u64, Proof)) -> Proof {
    if name == Name::new(segment) { proof } else { Proof::default() }
}

/// Notes that positions are no longer kept, on purpose. What lies before `oldest`, the oldest kept, becomes one range.
pub(super) fn store_released(connection: &Connection, first: u64, last: u64, oldest: u64) -> rusqlite::Result<()> {
    let (first, last, before) = (first as i64, last as i64, oldest.saturating_sub(1) as i64);
    let sql = "INSERT INTO released (first, last) VALUES (?1, ?2)
               ON CONFLICT (first) DO UPDATE SET last = max(last, excluded.last)";
    connection.prepare_cached(sql)?.execute([first, last])?;
    if before > 0 {
        connection.prepare_cached("DELETE FROM released WHERE last <= ?1")?.execute([before])?;
        connection.prepare_cached(sql)?.execute([1, before])?;
    }
    Ok(())
}

/// The ranges of positions that were released.
pub(super) fn load_released(connection: &Connection) -> rusqlite::Result<Vec<(u64, u64)>> {
    let sql = "SELECT first, last FROM released ORDER BY first";
    let range =
        |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?.max(0) as u64, row.get::<_, i64>(1)?.max(0) as u64));
    connection.prepare(sql)?.query_map([], range)?.filter_map(|range| readable(range).transpose()).collect()
}

/// How far beyond what has a checksum a position without one is believed.
const PLAUSIBLE: u64 = 1 << 40;

/// The highest position that the state or `known` names.
pub(super) fn highest_position(connection: &Connection, known: u64) -> rusqlite::Result<u64> {
    let mut highest = known.max(load_proof(connection)?.1.position);
    for sink in connection.prepare("SELECT sink FROM sinks")?.query_map([], |row| row.get::<_, String>(0))? {
        let Some(sink) = readable(sink)? else { continue };
        highest = highest.max(load_sink(connection, &sink)?.flatten().map_or(0, |(frontier, _)| frontier));
    }
    let most = highest.saturating_add(PLAUSIBLE).min(i64::MAX as u64);
    for sql in [
        "SELECT max(last) FROM released WHERE last <= ?1",
        "SELECT max(position) FROM dead_letters WHERE position <= ?1",
        "SELECT max(position) FROM resends WHERE position <= ?1",
        "SELECT max(until) FROM replays WHERE until <= ?1",
        "SELECT max(position) FROM backfilled WHERE position <= ?1",
    ] {
        let found: Option<i64> = connection.query_row(sql, [most as i64], |row| row.get(0))?;
        highest = highest.max(found.unwrap_or(0).max(0) as u64);
    }
    Ok(highest)
}
