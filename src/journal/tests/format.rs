//! Opening and closing, versions, and who owns a directory.

use super::*;
use crate::journal::segment::{HEADER, MAJOR};

#[test]
fn the_directory_has_one_owner() {
    let bench = Bench::new();
    let journal = bench.open();
    assert!(matches!(bench.try_open(), Err(OpenError::InUse { .. })));
    journal.close();
    bench.open().close();
}

#[test]
fn nothing_is_left_over_by_opening_and_closing() {
    let bench = Bench::new();
    for _ in 0..5 {
        bench.open().close();
    }
    assert!(bench.files("").len() <= 2, "{:?}", bench.files(""));
    let journal = bench.open();
    eventually("the empty segments of earlier runs", || journal.stats().segments == 1);
    assert!(journal.stats().bytes < 200, "{:?}", journal.stats());
    journal.close();
}

/// Writes another version into a segment's header, with its checksum.
fn set_version(path: &Path, at: usize, version: u16) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at..at + 2].copy_from_slice(&version.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..HEADER - 4]);
    bytes[HEADER - 4..HEADER].copy_from_slice(&crc.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn another_minor_version_of_a_segment_is_read() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=3, 100);
    journal.close();
    set_version(&bench.files("log")[0], 10, 7);
    let journal = bench.open();
    assert_eq!(all(&journal), [1, 2, 3]);
    journal.close();
}

#[test]
fn another_major_version_of_a_segment_is_refused() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=3, 100);
    journal.close();
    set_version(&bench.files("log")[0], 8, MAJOR + 1);
    let Err(error) = bench.try_open() else { panic!("opened") };
    assert!(matches!(error, OpenError::Schema { found: 3, known: 2, .. }), "{error:?}");
    let said = error.to_string();
    assert!(said.starts_with("expected a journal of format 2 in ") && said.contains("but found 3"), "{said}");
    assert!(matches!(JournalAdmin::open(bench.dir()), Err(OpenError::Schema { .. })));
}

#[test]
fn a_newer_minor_version_of_the_state_is_read_and_written() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=3, 100);
    journal.close();
    state_file(&bench)
        .execute_batch(
            "CREATE TABLE something_new (a TEXT) STRICT;
             ALTER TABLE sinks ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
             ALTER TABLE dead_letters ADD COLUMN note TEXT;",
        )
        .unwrap();
    let journal = bench.open();
    journal.enqueue("a", 3, &[2]);
    block_on(journal.set_aside(dead_letter("a", 2))).unwrap();
    journal.close();
    let journal = bench.open();
    assert_eq!((journal.cursor("a"), journal.dead_letters("a")), (3, 1));
    journal.close();
    assert_eq!(bench.files("damaged").len(), 0);
}

#[test]
fn an_older_minor_version_of_the_state_gets_its_tables() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=3, 100);
    publish(&journal, "a", 2);
    journal.close();
    state_file(&bench).execute_batch("DROP TABLE backfilled; DROP TABLE stuck").unwrap();
    let journal = bench.open();
    assert_eq!(journal.cursor("a"), 2);
    journal.close();
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('backfilled', 'stuck')";
    assert_eq!(state_file(&bench).query_row(tables, [], |row| row.get::<_, i64>(0)).unwrap(), 2);
    assert!(!bench.dir().join("state-damaged-1.db").exists());
}

#[test]
fn another_major_version_of_the_state_is_refused() {
    let bench = Bench::new();
    bench.open().close();
    bench.files("log").iter().for_each(|path| fs::remove_file(path).unwrap());
    for other in [99, 0] {
        state_file(&bench).execute_batch(&format!("PRAGMA user_version = {other}")).unwrap();
        assert!(matches!(bench.try_open(), Err(OpenError::Schema { found, .. }) if found == other));
    }
    state_file(&bench).execute_batch("PRAGMA user_version = 2; PRAGMA application_id = 7").unwrap();
    assert!(matches!(bench.try_open(), Err(OpenError::Foreign { .. })));
}

#[test]
fn a_state_of_another_version_beside_segments_of_another_is_refused() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=3, 100);
    journal.close();
    set_version(&bench.files("log")[0], 8, MAJOR + 1);
    state_file(&bench).execute_batch("PRAGMA user_version = 3").unwrap();
    assert!(matches!(bench.try_open(), Err(OpenError::Schema { found: 3, .. })));
}

#[test]
fn a_flipped_version_beside_segments_of_this_one_is_damage() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=3, 100);
    publish(&journal, "a", 2);
    journal.close();
    for sql in ["PRAGMA user_version = 6", "PRAGMA application_id = 7"] {
        state_file(&bench).execute_batch(sql).unwrap();
        let journal = bench.open();
        assert_eq!((journal.cursor("a"), all(&journal).len()), (2, 3), "{sql}");
        journal.close();
    }
    assert!(bench.dir().join("state-damaged-2.db").exists());
}

#[test]
fn the_first_edition_is_refused_with_the_way_out() {
    let bench = Bench::new();
    fs::create_dir_all(bench.dir()).unwrap();
    fs::write(bench.dir().join("journal.db"), "SQLite format 3").unwrap();
    let Err(error) = bench.try_open() else { panic!("opened") };
    let said = error.to_string();
    assert!(said.contains("journal.db of format 1; start the version that wrote it until every sink's"), "{said}");
    assert!(said.contains("and remove journal.db"), "{said}");
    assert!(matches!(JournalAdmin::open(bench.dir()), Err(OpenError::FirstFormat { .. })));
}

#[test]
fn a_command_does_not_make_a_journal() {
    let bench = Bench::new();
    assert!(matches!(JournalAdmin::open(bench.dir()), Err(OpenError::Directory { .. })));
    assert!(!bench.dir().exists());
}

#[test]
fn a_replacement_of_the_state_that_was_killed_is_finished() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=3, 100);
    publish(&journal, "a", 2);
    journal.close();
    // The new file is complete; the old one is still there.
    fs::copy(bench.dir().join("state.db"), bench.dir().join("state.next")).unwrap();
    fs::write(bench.dir().join("state.db"), "broken").unwrap();
    fs::write(bench.dir().join("state.db-wal"), "of the old one").unwrap();
    let journal = bench.open();
    assert_eq!(journal.cursor("a"), 2);
    journal.close();
    assert!(!bench.dir().join("state.next").exists());
}
