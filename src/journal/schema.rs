//! The layout of the file and how its connections are set up.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::OpenError;

/// The database's name in the journal's directory.
pub(super) const FILE: &str = "journal.db";

/// The newest layout that this program knows, in SQLite's `user_version`.
const VERSION: i64 = 1;

/// "SBBJ" in SQLite's `application_id`, so that `file` and we can tell it from other databases.
const APPLICATION_ID: i64 = 0x5342_424a;

/// The tables of version 1.
///
/// `records` has no index besides its position: random inserts would cost more than all else. `offset`
/// is the number of bytes ever stored up to and with this record, so the size of any stretch is a
/// difference of two rows. `seen` repeats the ids, so that the window is read at start without the
/// payloads, and outlives the records that retention removes. `dead_letters` are whole copies, so they
/// outlive them too. `resends` are what an operator wants to be published again: dead letters, or records.
const TABLES: &str = "
    CREATE TABLE records (
        position    INTEGER PRIMARY KEY,
        offset      INTEGER NOT NULL,
        accepted_ms INTEGER NOT NULL,
        crc         INTEGER NOT NULL,
        id          BLOB    NOT NULL,
        key         TEXT    NOT NULL,
        kind        TEXT    NOT NULL,
        payload     BLOB    NOT NULL
    ) STRICT;
    CREATE TABLE seen (
        position    INTEGER PRIMARY KEY,
        accepted_ms INTEGER NOT NULL,
        id          BLOB    NOT NULL
    ) STRICT;
    CREATE TABLE cursors (
        sink        TEXT    PRIMARY KEY,
        position    INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE dead_letters (
        sink        TEXT    NOT NULL,
        position    INTEGER NOT NULL,
        at_ms       INTEGER NOT NULL,
        reason      TEXT    NOT NULL,
        detail      TEXT    NOT NULL,
        id          BLOB    NOT NULL,
        key         TEXT    NOT NULL,
        kind        TEXT    NOT NULL,
        payload     BLOB    NOT NULL,
        PRIMARY KEY (sink, position)
    ) STRICT;
    CREATE INDEX dead_letters_by_sink ON dead_letters (sink);
    CREATE TABLE resends (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        sink        TEXT    NOT NULL,
        position    INTEGER NOT NULL,
        due_ms      INTEGER NOT NULL,
        replayed    INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX resends_by_sink ON resends (sink);
";

/// What came later, and what an older program of version 1 does no harm to: it does not see it.
///
/// `offers` are events that nobody delivered, waiting for the writer; of a fact there is one at most. `through` is the
/// position up to which whoever offers has looked for the fact. `reconciled` are the facts of those taken in, for as
/// long as a late delivery is looked for.
const LATER_TABLES: &str = "
    CREATE TABLE IF NOT EXISTS offers (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        fact        BLOB    NOT NULL UNIQUE,
        vague       BLOB    NOT NULL,
        through     INTEGER NOT NULL,
        id          BLOB    NOT NULL,
        key         TEXT    NOT NULL,
        kind        TEXT    NOT NULL,
        payload     BLOB    NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS reconciled (
        fact        BLOB    PRIMARY KEY,
        key         TEXT    NOT NULL,
        at_ms       INTEGER NOT NULL,
        position    INTEGER NOT NULL,
        id          BLOB    NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS reconciled_by_key ON reconciled (key);
";

/// Makes the tables that an older program did not; writes nothing where they are there.
pub(super) fn add_tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(LATER_TABLES)
}

/// Opens the connection that writes, making the tables where there are none.
pub(super) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let database = |error: rusqlite::Error| OpenError::Database { path: path.to_owned(), source: error.into() };
    let mut connection = Connection::open(path).map_err(database)?;
    let version: i64 = pragma(&connection, "user_version").map_err(database)?;
    let application: i64 = pragma(&connection, "application_id").map_err(database)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(database)?;
    if tables > 0 && application != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    if tables > 0 && !(1..=VERSION).contains(&version) {
        return Err(OpenError::Schema { path: path.to_owned(), found: version, known: VERSION });
    }
    configure(&connection).map_err(database)?;
    if tables == 0 {
        create(&mut connection).map_err(database)?;
    }
    Ok(connection)
}

/// Writes something that changes nothing, down to the fsync: what a journal that failed must be able to
/// do before it is trusted again.
pub(super) fn prove_writable(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

/// Moves all of the write-ahead log into the main file, fsyncs that, and empties the log; `false` if a reader is
/// in the way. What recovery finds in the log may have been written and never fsynced, by a process that was killed
/// in between or whose fsync failed; a later fsync of the log would not bring back what the system has dropped.
pub(super) fn settle(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok(row.get::<_, i64>(0)? == 0))
}

/// Opens a connection beside the writer's, for an operator's short transactions.
pub(super) fn open_desk(path: &Path) -> Result<Connection, OpenError> {
    let database = |error: rusqlite::Error| OpenError::Database { path: path.to_owned(), source: error.into() };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(database)?;
    let version: i64 = pragma(&connection, "user_version").map_err(database)?;
    let application: i64 = pragma(&connection, "application_id").map_err(database)?;
    if application != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    if version != VERSION {
        return Err(OpenError::Schema { path: path.to_owned(), found: version, known: VERSION });
    }
    connection.pragma_update(None, "synchronous", "FULL").map_err(database)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(())).map_err(database)?;
    Ok(connection)
}

/// Opens a connection that only reads.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.pragma_update(None, "cache_size", -1024)?;
    Ok(connection)
}

/// Opens the connection that only moves pages from the log to the main file.
pub(super) fn open_checkpointer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -1024)?;
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    // FULL: the write-ahead log is fsynced by every commit; NORMAL would lose the last ones in a power cut.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Another connection checkpoints, so that no commit has to wait for it.
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", -8192)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

/// Bytes of the file that are free for new rows.
pub(super) fn reusable_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    Ok((pragma(connection, "freelist_count")? * pragma(connection, "page_size")?) as u64)
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}
