//! The journal from outside: what it promises, on a real disk, across reopening.

use super::*;
use crate::domain::units::{Size, Span};

struct Bench {
    dir: tempfile::TempDir,
    clock: Clock,
    sinks: Vec<String>,
    settings: Settings,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { dir: dir.path().join("journal"), ..Settings::default() };
        Self { dir, clock: Clock::fixed(1_000_000), sinks: vec!["a".into()], settings }
    }

    fn open(&self) -> Journal {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Journal, OpenError> {
        Journal::open(Options {
            settings: self.settings.clone(),
            dedup: DedupSettings::default(),
            sinks: self.sinks.clone(),
            clock: self.clock.clone(),
            on_commit: Box::new(|_| {}),
            fact_of: |_| None,
            on_reconciled: Box::new(|_| {}),
        })
    }

    fn entry(&self, n: u32) -> Entry {
        self.entry_of(n, 100)
    }

    fn entry_of(&self, n: u32, size: usize) -> Entry {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let mut payload = format!("payload {n} ").into_bytes();
        payload.resize(size, b'x');
        Entry { id, key: format!("key {}", n % 3), kind: "t".into(), accepted_ms: self.clock.now_ms(), payload }
    }
}

fn append(journal: &Journal, entry: Entry) -> Result<Appended, AppendError> {
    let pending = journal.append(entry)?;
    pending.0.blocking_recv().unwrap_or(Err(AppendError::Closed))
}

fn all(journal: &Journal) -> Vec<u64> {
    let limits = Limits { rows: 100_000, bytes: usize::MAX };
    let batch = journal.reader().unwrap().after(0, limits, &Filter::default()).unwrap();
    batch.rows.iter().map(Row::position).collect()
}

/// Waits for a condition, not for a time.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn stores_in_order_and_reads_back() {
    let bench = Bench::new();
    let journal = bench.open();
    for n in 1..=5 {
        assert_eq!(append(&journal, bench.entry(n)), Ok(Appended::Stored(n.into())));
    }
    let limits = Limits { rows: 2, bytes: usize::MAX };
    let batch = journal.reader().unwrap().after(2, limits, &Filter::default()).unwrap();
    assert_eq!(batch.through, 4);
    let Row::Intact(record) = &batch.rows[0] else { panic!("damaged") };
    assert!(record.payload.starts_with(b"payload 3 ") && record.position == 3 && record.accepted_ms == 1_000_000);
    assert_eq!(*journal.durable().borrow(), 5);
    assert_eq!((journal.stats().records, journal.stats().health), (5, Health::Healthy));
    journal.close();
}

#[test]
fn a_filter_looks_on_past_what_it_leaves_out() {
    let bench = Bench::new();
    let journal = bench.open();
    for n in 1..=7 {
        append(&journal, bench.entry(n)).unwrap();
    }
    let filter = Filter { key: Some("key 1".into()), kind: Some("t".into()), ..Filter::default() };
    let batch = journal.reader().unwrap().after(0, Limits { rows: 10, bytes: 1 << 20 }, &filter).unwrap();
    assert_eq!(batch.rows.iter().map(Row::position).collect::<Vec<_>>(), [1, 4, 7]);
    let nothing = Filter { kind: Some("u".into()), ..Filter::default() };
    let batch = journal.reader().unwrap().after(0, Limits { rows: 10, bytes: 1 << 20 }, &nothing).unwrap();
    assert_eq!((batch.rows.len(), batch.through), (0, 7));
    journal.close();
}

#[test]
fn a_retry_is_a_duplicate_also_after_reopening_and_not_after_the_window() {
    let bench = Bench::new();
    let journal = bench.open();
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Stored(1)));
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Duplicate(1)));
    journal.close();
    let journal = bench.open();
    bench.clock.set(1_000_000 + 3_599_999);
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Duplicate(1)));
    bench.clock.set(1_000_000 + 3_600_000);
    eventually("forgetting the id", || journal.stats().dedup_ids == 0);
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Stored(2)));
    journal.close();
    assert_eq!(bench.open().stats().dedup_ids, 1, "the forgotten id must not come back");
}

#[test]
fn twins_in_flight_share_one_commit() {
    let bench = Bench::new();
    let journal = bench.open();
    let pending: Vec<_> = (0..200).map(|n| journal.append(bench.entry(n / 2)).unwrap()).collect();
    let mut stored = 0;
    for (n, pending) in pending.into_iter().enumerate() {
        match pending.0.blocking_recv().unwrap().unwrap() {
            Appended::Stored(position) => {
                assert_eq!((n % 2, position), (0, n as u64 / 2 + 1));
                stored += 1;
            }
            Appended::Duplicate(position) => assert_eq!((n % 2, position), (1, n as u64 / 2 + 1)),
            Appended::Reconciled { .. } => panic!("nothing was offered"),
        }
    }
    assert_eq!(stored, 100);
    journal.close();
}

#[test]
fn an_append_is_stored_though_nobody_waits_for_it() {
    let bench = Bench::new();
    let journal = bench.open();
    drop(journal.append(bench.entry(1)).unwrap());
    eventually("the commit", || *journal.durable().borrow() == 1);
    journal.close();
}

#[test]
fn the_directory_has_one_owner() {
    let bench = Bench::new();
    let journal = bench.open();
    assert!(matches!(bench.try_open(), Err(OpenError::InUse { .. })));
    journal.close();
    bench.open().close();
}

#[test]
fn refuses_unknown_schemas_and_foreign_files() {
    let bench = Bench::new();
    bench.open().close();
    let path = bench.settings.dir.join(schema::FILE);
    let edit = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    for other in [99, 0] {
        edit(&format!("PRAGMA user_version = {other}"));
        assert!(matches!(bench.try_open(), Err(OpenError::Schema { found, .. }) if found == other));
    }
    edit("PRAGMA user_version = 1; PRAGMA application_id = 7");
    assert!(matches!(bench.try_open(), Err(OpenError::Foreign { .. })));
}

#[test]
fn cursors_survive_and_new_sinks_start_with_the_oldest() {
    let mut bench = Bench::new();
    let journal = bench.open();
    for n in 1..=5 {
        append(&journal, bench.entry(n)).unwrap();
    }
    journal.advance("a", 3);
    journal.advance("a", 2);
    journal.close();
    bench.sinks.push("b".into());
    let journal = bench.open();
    assert_eq!((journal.cursor("a"), journal.cursor("b")), (3, 0));
    journal.close();
}

#[test]
fn keeps_what_is_not_published_and_retires_the_rest_by_age() {
    let bench = Bench::new();
    let journal = bench.open();
    for n in 1..=10 {
        append(&journal, bench.entry(n)).unwrap();
    }
    bench.clock.set(1_000_000 + 25 * 3600 * 1000);
    eventually("forgetting ids", || journal.stats().dedup_ids == 0);
    assert_eq!(all(&journal).len(), 10, "no sink has published any");
    journal.advance("a", 4);
    eventually("retention", || all(&journal) == [5, 6, 7, 8, 9, 10]);
    journal.advance("a", 10);
    eventually("retention", || all(&journal) == [10]);
    journal.close();
    let journal = bench.open();
    assert_eq!(append(&journal, bench.entry(11)), Ok(Appended::Stored(11)), "positions go on");
    let stats = journal.stats();
    assert_eq!((stats.first_position, stats.records), (10, 2));
    journal.close();
}

#[test]
fn retires_by_bytes() {
    let mut bench = Bench::new();
    bench.settings.retain_bytes = Size::kib(100);
    let journal = bench.open();
    for n in 1..=100 {
        append(&journal, bench.entry_of(n, 10_000)).unwrap();
    }
    journal.advance("a", 100);
    eventually("retention", || journal.stats().bytes < 130 * 1024);
    let kept = all(&journal);
    assert!((8..=12).contains(&kept.len()) && kept.last() == Some(&100), "{kept:?}");
    journal.close();
    let reopened = bench.open();
    assert_eq!(reopened.stats().bytes, journal.stats().bytes, "bytes are the same after reopening");
    reopened.close();
}

#[test]
fn a_full_journal_refuses_and_recovers_by_itself() {
    let mut bench = Bench::new();
    bench.settings.max_bytes = Size::mib(1);
    bench.settings.retain_bytes = Size::mib(1);
    let journal = bench.open();
    let mut n = 0;
    let error = loop {
        n += 1;
        if let Err(error) = append(&journal, bench.entry_of(n, 10_000)) {
            break error;
        }
    };
    assert_eq!(error, AppendError::Full);
    assert!((90..110).contains(&n), "{n} records of 10 KB in 1 MiB");
    eventually("being full", || journal.health() == Health::Full);
    // Duplicates of what is stored are still recognised, and smaller events may still fit.
    assert_eq!(append(&journal, bench.entry_of(1, 10_000)), Ok(Appended::Duplicate(1)));
    journal.advance("a", u64::from(n) - 1);
    eventually("room", || append(&journal, bench.entry_of(n, 10_000)).is_ok());
    eventually("health", || journal.health() == Health::Healthy);
    journal.close();
}

#[test]
fn what_was_retired_is_room_in_the_file() {
    let bench = Bench::new();
    let journal = bench.open();
    for n in 1..=100 {
        append(&journal, bench.entry_of(n, 10_000)).unwrap();
    }
    assert_eq!(journal.shared.reusable.load(Ordering::Relaxed), 0);
    bench.clock.set(1_000_000 + 25 * 3600 * 1000);
    journal.advance("a", 100);
    eventually("room in the file", || journal.shared.reusable.load(Ordering::Relaxed) > 900_000);
    journal.close();
}

#[test]
fn without_sinks_everything_counts_as_published() {
    let mut bench = Bench::new();
    bench.sinks.clear();
    bench.settings.max_bytes = Size::mib(1);
    bench.settings.retain_bytes = Size::mib(1);
    let journal = bench.open();
    for n in 1..=500 {
        assert_eq!(append(&journal, bench.entry_of(n, 10_000)), Ok(Appended::Stored(n.into())));
    }
    journal.close();
}

#[test]
fn dead_letters_are_kept_once() {
    let bench = Bench::new();
    let journal = bench.open();
    append(&journal, bench.entry(1)).unwrap();
    let letter = DeadLetter {
        sink: "a".into(),
        position: 1,
        reason: "too_large".into(),
        detail: "expected less".into(),
        at_ms: 5,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(journal.set_aside(letter.clone())).unwrap();
    runtime.block_on(journal.set_aside(letter)).unwrap();
    assert_eq!(journal.dead_letters("a"), 1);
    journal.close();
    let journal = bench.open();
    assert_eq!(journal.dead_letters("a"), 1);
    journal.close();
}

#[test]
fn a_damaged_row_is_named_and_the_others_are_read() {
    let bench = Bench::new();
    let journal = bench.open();
    for n in 1..=3 {
        append(&journal, bench.entry(n)).unwrap();
    }
    journal.close();
    rusqlite::Connection::open(bench.settings.dir.join(schema::FILE))
        .unwrap()
        .execute_batch("UPDATE records SET payload = zeroblob(100) WHERE position = 2")
        .unwrap();
    let journal = bench.open();
    let batch = journal.reader().unwrap().after(0, Limits { rows: 9, bytes: 1 << 20 }, &Filter::default()).unwrap();
    assert!(matches!(&batch.rows[..], [Row::Intact(_), Row::Damaged { position: 2 }, Row::Intact(_)]));
    journal.close();
}

#[test]
fn verify_finds_every_fault_and_reads_the_rest() {
    let bench = Bench::new();
    let journal = bench.open();
    for n in 1..=200 {
        append(&journal, bench.entry_of(n, 1000)).unwrap();
    }
    journal.close();
    let path = bench.settings.dir.join(schema::FILE);
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch(
            "UPDATE records SET payload = zeroblob(1000) WHERE position = 7;
             DELETE FROM records WHERE position BETWEEN 20 AND 21;",
        )
        .unwrap();
    let verify = || {
        let mut faults = Vec::new();
        let right = Desk::open(&bench.settings.dir).unwrap().verify(|fault| faults.push(fault)).unwrap();
        (right, faults)
    };
    let (right, faults) = verify();
    assert_eq!(right, 197);
    assert_eq!(faults, [Fault::Damaged { position: 7, key: "key 1".into() }, Fault::Missing { first: 20, last: 21 }]);

    // A page in the middle of the file, as a bad sector leaves it.
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"payload 100 ";
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    let page = at / 4096 * 4096;
    bytes[page..page + 4096].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    let (right, faults) = verify();
    let unreadable: Vec<u64> = faults
        .iter()
        .filter_map(|fault| match fault {
            Fault::Damaged { position, key } if key == "?" => Some(*position),
            _ => None,
        })
        .collect();
    assert!(unreadable.contains(&100) && unreadable.len() <= 4, "{faults:?}");
    assert!(matches!(faults.last(), Some(Fault::Structure(_))), "{faults:?}");
    assert_eq!(right, 197 - unreadable.len() as u64);

    // The bridge reads around it: each row is either intact or known to be damaged.
    let journal = bench.open();
    let reader = journal.reader().unwrap();
    let (mut position, mut seen) = (0, Vec::new());
    loop {
        let batch = reader.after(position, Limits { rows: 50, bytes: 1 << 20 }, &Filter::default()).unwrap();
        if batch.through == position {
            break;
        }
        position = batch.through;
        seen.extend(batch.rows);
    }
    let damaged: Vec<u64> = seen.iter().filter(|row| matches!(row, Row::Damaged { .. })).map(Row::position).collect();
    let expected: Vec<u64> = [7].into_iter().chain(unreadable).collect();
    assert_eq!((seen.len(), damaged), (198, expected));

    // What can't be deleted is no reason to refuse what is new.
    journal.advance("a", 200);
    bench.clock.set(1_000_000 + 25 * 3600 * 1000);
    eventually("housekeeping", || journal.stats().dedup_ids == 0);
    assert_eq!(append(&journal, bench.entry(201)), Ok(Appended::Stored(201)));
    assert_eq!(journal.health(), Health::Healthy);
    journal.close();
}

#[test]
fn the_desk_works_beside_a_running_bridge() {
    let bench = Bench::new();
    let journal = bench.open();
    for n in 1..=3 {
        append(&journal, bench.entry(n)).unwrap();
    }
    journal.advance("a", 2);
    let mut desk = Desk::open(&bench.settings.dir).unwrap();
    eventually("the cursor", || desk.summary().unwrap().sinks == [("a".to_owned(), 2, 0, 0)]);
    let summary = desk.summary().unwrap();
    assert_eq!((summary.first_position, summary.last_position, summary.dedup_ids), (1, 3, 3));
    assert_eq!(summary.bytes, journal.stats().bytes);
    assert_eq!(desk.replay("a", &[1, 3], 0, Some(1)).unwrap(), 2);
    eventually("the count", || journal.resends("a") == 2);
    let reader = journal.reader().unwrap();
    let resends = reader.resends("a", 0, 999, 10).unwrap();
    assert_eq!(resends.due.iter().map(|resend| resend.position).collect::<Vec<_>>(), [1], "the second is due later");
    assert_eq!(reader.resends("a", 0, 1000, 10).unwrap().due.len(), 2);
    assert_eq!(append(&journal, bench.entry(4)), Ok(Appended::Stored(4)));
    journal.close();
    assert!(matches!(Desk::open(bench.dir.path()), Err(OpenError::Directory { .. })));
}

#[test]
fn what_is_to_be_published_again_is_not_retired() {
    let bench = Bench::new();
    let journal = bench.open();
    for n in 1..=10 {
        append(&journal, bench.entry(n)).unwrap();
    }
    Desk::open(&bench.settings.dir).unwrap().replay("a", &[4], 0, None).unwrap();
    bench.clock.set(1_000_000 + 25 * 3600 * 1000);
    journal.advance("a", 10);
    eventually("retention", || all(&journal) == [4, 5, 6, 7, 8, 9, 10]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(journal.resent("a", 1, 4, Resent::Published)).unwrap();
    eventually("retention", || all(&journal) == [10]);
    journal.close();
}

#[test]
fn an_unreadable_disk_is_refused_and_then_recovered_from() {
    let bench = Bench::new();
    let journal = bench.open();
    append(&journal, bench.entry(1)).unwrap();
    // Another connection holding the write lock makes commits fail, which is not a full disk.
    let other = rusqlite::Connection::open(bench.settings.dir.join(schema::FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(append(&journal, bench.entry(2)), Err(AppendError::Failed));
    assert_eq!(journal.health(), Health::Failed);
    assert!(matches!(journal.append(bench.entry(3)), Err(AppendError::Failed)));
    other.execute_batch("ROLLBACK").unwrap();
    eventually("recovery", || journal.health() == Health::Healthy);
    assert_eq!(append(&journal, bench.entry(2)), Ok(Appended::Stored(2)));
    journal.close();
    assert!(bench.dir.path().exists());
}

#[test]
fn a_clock_that_jumps_forgets_at_most_ids_and_never_what_waits() {
    let mut bench = Bench::new();
    bench.settings.retain_for = Span::from_secs(3600);
    let journal = bench.open();
    for n in 1..=3 {
        append(&journal, bench.entry(n)).unwrap();
    }
    // Back by a year: nothing is forgotten or deleted early, and what is new goes on behind it.
    bench.clock.set(1_000_000 - 365 * 86_400_000);
    append(&journal, bench.entry(4)).unwrap();
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Duplicate(1)));
    journal.close();
    let journal = bench.open();
    for n in 1..=4 {
        assert_eq!(append(&journal, bench.entry(n)), Ok(Appended::Duplicate(n.into())));
    }
    // Forward by ten years: the ids go, what no sink has had stays.
    bench.clock.set(1_000_000 + 10 * 365 * 86_400_000);
    eventually("forgetting the ids", || journal.stats().dedup_ids == 0);
    assert_eq!(all(&journal), [1, 2, 3, 4]);
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Stored(5)));
    bench.clock.set(1_000_000);
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Duplicate(5)));
    journal.close();
}
