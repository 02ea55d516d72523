//! The tables of the state file, and what tells a whole one from a damaged one.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::Connection;

use super::segment::MAJOR;
use super::{OpenError, backfill, cancelled, dead_letters, replays, resends, stuck};

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
        last        INTEGER NOT NULL,
        crc         INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS progress (
        at_ms       INTEGER NOT NULL,
        sink        TEXT    NOT NULL,
        cursor      INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS progress_by_sink ON progress (sink, cursor);
";

/// Tables whose rows are carried over from a damaged file.
pub(super) const NAMES: [&str; 13] = [
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
    "cancelled",
];

/// Whether each table has the columns that it should have. An older minor version may lack tables, a newer one may have
/// more; one that lacks some and has others was damaged.
pub(super) fn schema_is_whole(connection: &Connection) -> rusqlite::Result<bool> {
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

pub(super) fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT name FROM pragma_table_info(?1)";
    connection.prepare_cached(sql)?.query_map([table], |row| row.get(0))?.collect()
}

pub(super) fn check_version(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let database = OpenError::database(path);
    if pragma(connection, "application_id").map_err(database)? != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let found = pragma(connection, "user_version").map_err(database)?;
    if found != i64::from(MAJOR) {
        return Err(OpenError::Schema { path: path.to_owned(), found, known: i64::from(MAJOR) });
    }
    Ok(())
}

pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
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
pub(super) fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let all = [
        TABLES,
        dead_letters::TABLES,
        replays::TABLES,
        resends::TABLES,
        stuck::TABLES,
        backfill::TABLES,
        cancelled::TABLES,
    ];
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

pub(super) fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}
