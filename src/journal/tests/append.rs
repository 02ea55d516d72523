//! Appends, the deduplication window, and reading back.

use super::*;

#[test]
fn events_are_stored_in_order_and_read_back() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=5, 100);
    let batch = journal.reader().after(2, Limits { rows: 2, bytes: usize::MAX }, &Filter::default()).unwrap();
    assert_eq!(batch.through, 4);
    let Row::Intact(record) = &batch.rows[0] else { panic!("damaged") };
    assert!(record.payload.starts_with(b"payload 3 ") && record.position == 3 && record.accepted_ms == START_MS);
    assert_eq!((record.key.as_str(), record.kind.as_str(), record.id), ("key 0", "t", id(3)));
    assert_eq!(*journal.durable().borrow(), 5);
    assert_eq!((journal.stats().records, journal.stats().health), (5, Health::Healthy));
    assert_eq!(journal.reader().at(4).unwrap().unwrap().position(), 4);
    assert_eq!(journal.reader().at(6).unwrap(), None);
    assert_eq!(journal.reader().at(0).unwrap(), None);
    assert_eq!(journal.reader().after(u64::MAX, ALL, &Filter::default()).unwrap().rows.len(), 0);
    journal.close();
}

#[test]
fn a_batch_ends_with_the_row_that_reaches_its_bytes() {
    let bench = Bench::small();
    let journal = bench.open();
    bench.fill(&journal, 1..=200, 1_000);
    let mut reader = journal.reader();
    for (bytes, expected) in [(1, 1), (1_500, 2), (100_000, 94), (usize::MAX, 200)] {
        let batch = reader.after(0, Limits { rows: 1_000, bytes }, &Filter::default()).unwrap();
        assert_eq!((batch.rows.len(), batch.through), (expected, expected as u64), "{bytes} bytes");
    }
    journal.close();
}

#[test]
fn a_filter_looks_on_past_what_it_leaves_out() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=7, 100);
    let select = |filter: Filter| {
        let batch = journal.reader().after(0, ALL, &filter).unwrap();
        assert_eq!(batch.through, 7);
        positions_of(&batch.rows)
    };
    assert_eq!(select(Filter { key: Some("key 1".into()), kind: Some("t".into()), ..Filter::default() }), [1, 4, 7]);
    assert_eq!(select(Filter { kind: Some("u".into()), ..Filter::default() }), [0; 0]);
    assert_eq!(select(Filter { id: Some(id(5)), ..Filter::default() }), [5]);
    assert_eq!(select(Filter { since_ms: Some(START_MS + 1), ..Filter::default() }), [0; 0]);
    assert_eq!(select(Filter { until_ms: Some(START_MS + 1), ..Filter::default() }), [1, 2, 3, 4, 5, 6, 7]);
    journal.close();
}

#[test]
fn a_sparse_filter_says_how_far_each_batch_has_looked() {
    let bench = Bench::new();
    let journal = bench.open();
    append_all(&journal, (1..=25_000).map(|n| bench.entry_of(n, 1)));
    let filter = Filter { id: Some(id(24_000)), ..Filter::default() };
    let (mut reader, mut position, mut found, mut batches) = (journal.reader(), 0, Vec::new(), 0);
    while position < 25_000 {
        let batch = reader.after(position, ALL, &filter).unwrap();
        assert!(batch.through > position && batch.through - position <= 10_000);
        found.extend(positions_of(&batch.rows));
        (position, batches) = (batch.through, batches + 1);
    }
    assert_eq!((found, batches), (vec![24_000], 3));
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
    bench.forward(3_599_999);
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Duplicate(1)));
    bench.forward(1);
    eventually("forgetting the id", || journal.stats().dedup_ids == 0);
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Stored(2)));
    journal.close();
    let journal = bench.open();
    assert_eq!(journal.stats().dedup_ids, 1, "the forgotten id must not come back");
    journal.close();
}

#[test]
fn a_retry_is_a_duplicate_after_its_event_was_released() {
    let mut bench = Bench::small();
    bench.settings.retain_bytes = Size(0);
    let journal = bench.open();
    bench.fill(&journal, 1..=200, 1_000);
    publish(&journal, "a", 200);
    eventually("retention", || journal.stats().first_position > 100);
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Duplicate(1)));
    journal.close();
    assert!(!bench.files("ids").is_empty());
    let journal = bench.open();
    assert_eq!(journal.stats().dedup_ids, 200);
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Duplicate(1)));
    bench.forward(3_600_000);
    eventually("forgetting the ids", || bench.files("ids").is_empty() && journal.stats().dedup_ids == 0);
    journal.close();
}

#[test]
fn past_max_ids_the_oldest_ids_are_forgotten_also_by_a_start() {
    let mut bench = Bench::new();
    bench.dedup.max_ids = 1_000;
    let journal = bench.open();
    bench.fill(&journal, 1..=1_100, 10);
    assert_eq!(journal.stats().dedup_ids, 1_000);
    journal.close();
    let journal = bench.open();
    assert_eq!(journal.stats().dedup_ids, 1_000);
    assert_eq!(append(&journal, bench.entry(101)), Ok(Appended::Duplicate(101)));
    assert_eq!(append(&journal, bench.entry(100)), Ok(Appended::Stored(1_101)));
    journal.close();
}

#[test]
fn twins_in_flight_share_one_commit() {
    let bench = Bench::new();
    let journal = bench.open();
    let pending: Vec<_> = (0..200).map(|n| journal.append(bench.entry(n / 2)).unwrap()).collect();
    let mut stored = 0;
    for (n, pending) in pending.into_iter().enumerate() {
        match pending.wait().unwrap() {
            Appended::Stored(position) => {
                assert_eq!((n % 2, position), (0, n as u64 / 2 + 1));
                stored += 1;
            }
            Appended::Duplicate(position) => assert_eq!((n % 2, position), (1, n as u64 / 2 + 1)),
            Appended::Backfilled { .. } => panic!("there is no candidate"),
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
fn an_append_that_nobody_hears_of_is_one_late_commit_whenever_it_is_dropped() {
    let bench = Bench::new();
    let journal = bench.open();
    for n in 0..200_u64 {
        let pending = journal.append(bench.entry(n as u32)).unwrap();
        // Before the commit, after it, and in between.
        if n % 2 == 0 {
            eventually("the commit", || *journal.durable().borrow() == n + 1);
        }
        drop(pending);
        eventually("it is counted", || journal.late_commits() == n + 1);
    }
    assert_eq!(append(&journal, bench.entry(1_000)), Ok(Appended::Stored(201)));
    drop(journal.append(bench.entry(1_000)).unwrap());
    assert_eq!(append(&journal, bench.entry(1_001)), Ok(Appended::Stored(202)));
    assert_eq!(journal.late_commits(), 200, "what somebody has heard of, and a duplicate, are none");
    journal.close();
}

#[tokio::test]
async fn an_answer_after_the_deadline_is_a_late_commit() {
    let bench = Bench::new();
    let journal = bench.open();
    let deadline = |pending: Pending, at| async move { pending.durable_by(at).await };
    let future = tokio::time::Instant::now() + Duration::from_secs(60);
    let in_time = deadline(journal.append(bench.entry(1)).unwrap(), future).await;
    assert_eq!((in_time, journal.late_commits()), (Some(Ok(Appended::Stored(1))), 0));
    let pending = journal.append(bench.entry(2)).unwrap();
    eventually("the commit", || *journal.durable().borrow() == 2);
    let late = deadline(pending, tokio::time::Instant::now()).await;
    assert_eq!(late, Some(Ok(Appended::Stored(2))), "what is here is said");
    assert_eq!(journal.late_commits(), 1);
    journal.close();
}

#[test]
fn a_queue_that_is_full_of_bytes_refuses() {
    let bench = Bench::new();
    let journal = bench.open();
    let huge = Entry { payload: vec![0; 33 * 1024 * 1024], ..bench.entry(1) };
    assert!(matches!(journal.append(huge), Err(AppendError::Busy)));
    assert_eq!(append(&journal, bench.entry(2)), Ok(Appended::Stored(1)));
    journal.close();
}

#[test]
fn events_of_many_threads_are_each_stored_once() {
    let bench = Bench::small();
    let journal = bench.open();
    let mut found = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8_u32)
            .map(|thread| {
                let (journal, bench) = (journal.clone(), &bench);
                scope.spawn(move || {
                    (0..100)
                        .map(|n| append(&journal, bench.entry_of(thread * 100 + n, 500)).unwrap())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    found.sort_by_key(|appended| match appended {
        Appended::Stored(position) => *position,
        other => panic!("{other:?}"),
    });
    assert_eq!(found, (1..=800).map(Appended::Stored).collect::<Vec<_>>());
    assert_eq!(all(&journal), (1..=800).collect::<Vec<_>>());
    journal.close();
    let journal = bench.open();
    assert_eq!(all(&journal), (1..=800).collect::<Vec<_>>());
    journal.close();
}

#[test]
fn a_clock_that_jumps_forgets_at_most_ids_and_never_what_waits() {
    let mut bench = Bench::new();
    bench.settings.retain_for = Span::from_secs(3600);
    let journal = bench.open();
    bench.fill(&journal, 1..=3, 100);
    // Back by a year: nothing is forgotten or released early, and what is new goes on behind it.
    bench.clock.set(START_MS - 365 * DAY_MS);
    append(&journal, bench.entry(4)).unwrap();
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Duplicate(1)));
    journal.close();
    let journal = bench.open();
    for n in 1..=4 {
        assert_eq!(append(&journal, bench.entry(n)), Ok(Appended::Duplicate(n.into())));
    }
    // Forward by ten years: the ids go, what no sink has had stays.
    bench.clock.set(START_MS + 10 * 365 * DAY_MS);
    eventually("forgetting the ids", || journal.stats().dedup_ids == 0);
    assert_eq!(all(&journal), [1, 2, 3, 4]);
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Stored(5)));
    bench.clock.set(START_MS);
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Duplicate(5)));
    journal.close();
}

#[test]
fn a_panic_of_the_writer_ends_the_journal() {
    let bench = Bench::new();
    let journal = bench.open();
    append(&journal, bench.entry(1)).unwrap();
    journal.panic();
    block_on(async { tokio::time::timeout(Duration::from_secs(10), journal.ended()).await }).expect("it has ended");
    assert_eq!(journal.health(), Health::Closed);
    assert!(matches!(journal.append(bench.entry(2)), Err(AppendError::Closed)));
    assert!(matches!(bench.try_open(), Err(OpenError::InUse { .. })), "its other threads still run");
    journal.close();
    let journal = bench.open();
    assert_eq!(all(&journal), [1]);
    journal.close();
}

#[test]
fn a_stop_that_was_asked_for_is_no_end() {
    let bench = Bench::new();
    let journal = bench.open();
    journal.close();
    let ended = block_on(async { tokio::time::timeout(Duration::from_millis(50), journal.ended()).await });
    assert!(ended.is_err(), "no thread has exited");
    assert_eq!(journal.health(), Health::Closed);
    assert!(matches!(journal.append(bench.entry(1)), Err(AppendError::Closed)));
    journal.close();
}

#[test]
fn a_close_answers_what_was_queued_before() {
    let bench = Bench::new();
    let journal = bench.open();
    let pending: Vec<_> = (1..=500).map(|n| journal.append(bench.entry(n)).unwrap()).collect();
    journal.close();
    for (pending, position) in pending.into_iter().zip(1..) {
        assert_eq!(pending.wait(), Ok(Appended::Stored(position)));
    }
    let journal = bench.open();
    assert_eq!(all(&journal).len(), 500);
    journal.close();
}

#[test]
fn zeros_behind_the_newest_event_are_no_damage_and_are_cut_off() {
    let mut bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=3, 100);
    let length = |bench: &Bench| fs::metadata(&bench.files("log")[0]).unwrap().len();
    let (with_zeros, records) = (length(&bench), journal.stats().bytes);
    assert!(with_zeros > 200_000 && records < 3_000, "{with_zeros} bytes, of which {records} are counted");
    bench.fill(&journal, 4..=5, 100);
    assert_eq!(length(&bench), with_zeros, "the next commits overwrite them");
    let stopped = bench.settings.dir.clone();
    bench.crash(&journal);
    let kept = std::mem::replace(&mut bench.settings.dir, stopped);
    assert!(length(&bench) < 2_000, "a stop cuts them off");
    bench.settings.dir = kept;
    assert_eq!(length(&bench), with_zeros);
    let mut faults = Vec::new();
    assert_eq!(bench.admin().verify(|fault| faults.push(fault)).unwrap(), 5);
    assert_eq!(faults, []);
    let journal = bench.open();
    assert_eq!((all(&journal), damaged(&rows(&journal))), ((1..=5).collect(), vec![]));
    eventually("the segment is closed", || length(&bench) < 2_000);
    assert!(journal.stats().bytes < 3_000);
    journal.close();
}
