//! Carrying over what can be read of a damaged state file.
//!
//! Every table is read by rowid, so a page that cannot be read costs the rows on it. The damaged file is kept beside the
//! new one, as `state-damaged-N.db`.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, params};

use super::directory;
use super::schema::{NAMES, columns, create, pragma, schema_is_whole};
use super::sqlite::{FILE, engine};

/// How many damaged files are kept; a further one takes the place of the last.
const MOST_KEPT: u32 = 9;

/// Puts a damaged file aside and makes a new one of all that can be read; returns where the damaged one is.
pub(super) fn replace_damaged(dir: &Path) -> rusqlite::Result<PathBuf> {
    let making = dir.join("state.making");
    carry_over_file(dir, &making)?;
    let replace = || -> io::Result<PathBuf> {
        fs::File::open(&making)?.sync_all()?;
        fs::rename(&making, dir.join(NEXT))?;
        directory::sync(dir)?;
        finish_replacement(dir)
    };
    replace().map_err(|error| engine(&error))
}

/// A new file that is complete and takes the place of the damaged one.
pub(super) const NEXT: &str = "state.next";

/// Puts the new file in the place of the damaged one, also after a kill in between: the write-ahead log of the old one
/// must never be found beside the new one.
pub(super) fn finish_replacement(dir: &Path) -> io::Result<PathBuf> {
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
    directory::sync(dir)?;
    fs::rename(dir.join(NEXT), dir.join(FILE))?;
    directory::sync(dir)?;
    Ok(aside)
}

/// What can be read of a damaged file, in memory, for commands that only read.
pub(super) fn read_damaged(dir: &Path) -> rusqlite::Result<Connection> {
    let mut fresh = Connection::open_in_memory()?;
    create(&mut fresh)?;
    carry_over_copy(dir, &mut fresh)?;
    Ok(fresh)
}

pub(super) fn carry_over_file(dir: &Path, making: &Path) -> rusqlite::Result<()> {
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
