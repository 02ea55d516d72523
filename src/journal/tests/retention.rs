//! What is kept, for how long, and what it costs.

use super::*;

/// The bytes that an event of [`Bench::entry_of`] takes, with its place in the index.
fn event_bytes(size: u64) -> u64 {
    record::size(5, 1, 0) + size + index::ENTRY_BYTES
}

/// The position of an event, if it is to be stuck.
fn only_if(stuck: bool, n: u32) -> Vec<u64> {
    if stuck { vec![n.into()] } else { Vec::new() }
}

/// What the segments take by the files themselves, without the zeros behind the newest event. An error where one was
/// removed meanwhile.
fn file_bytes(bench: &Bench) -> io::Result<u64> {
    let indexes: u64 = bench.files("idx").iter().map(|path| Ok(fs::metadata(path)?.len())).sum::<io::Result<_>>()?;
    let logs = bench.files("log");
    let logs: u64 = logs.iter().map(|path| Ok(without_zeros(fs::read(path)?).len() as u64)).sum::<io::Result<_>>()?;
    Ok(indexes + logs)
}

#[test]
fn what_is_published_is_kept_until_it_is_old() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=10, 100);
    bench.forward(25 * 3600 * 1000);
    eventually("forgetting ids", || journal.stats().dedup_ids == 0);
    assert_eq!(all(&journal).len(), 10, "no sink has published any");
    publish_but(&journal, "a", 10, &[5, 6, 7, 8, 9, 10]);
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(all(&journal).len(), 10, "not half of the segment is freed by that");
    journal.acknowledge("a", 10);
    journal.acknowledge("a", 6);
    eventually("compaction", || all(&journal) == [5, 7, 8, 9]);
    [5, 7, 8, 9].into_iter().for_each(|position| journal.acknowledge("a", position));
    eventually("retention", || all(&journal).is_empty());
    journal.close();
    let journal = bench.open();
    assert_eq!(append(&journal, bench.entry(11)), Ok(Appended::Stored(11)), "positions go on");
    let stats = journal.stats();
    assert_eq!((stats.first_position, stats.records, stats.damaged_records), (11, 1, 0));
    journal.close();
}

#[test]
fn what_is_published_is_released_by_bytes() {
    let mut bench = Bench::new();
    (bench.settings.max_bytes, bench.settings.retain_bytes) = (Size::mib(4), Size::kib(1024));
    let journal = bench.open();
    bench.fill(&journal, 1..=300, 10_000);
    publish(&journal, "a", 300);
    eventually("retention", || journal.stats().bytes < 1024 * 1024 + 300 * 1024);
    let kept = all(&journal);
    assert!((80..=130).contains(&kept.len()) && kept.last() == Some(&300), "{kept:?}");
    journal.close();
    let reopened = bench.open();
    eventually("the empty segment of the last run", || reopened.stats().bytes.abs_diff(journal.stats().bytes) < 500);
    reopened.close();
}

#[test]
fn bytes_are_those_of_the_files_through_rotation_compaction_release_and_restart() {
    let mut bench = Bench::small();
    bench.settings.retain_bytes = Size(0);
    for round in 0..3_u32 {
        let journal = bench.open();
        let begin = round * 400;
        bench.fill(&journal, begin + 1..=begin + 400, 1_000);
        // Every tenth event is stuck.
        let last = u64::from(begin) + 400;
        let stuck: Vec<u64> = (u64::from(begin) + 1..=last).filter(|position| position % 10 == 0).collect();
        publish_but(&journal, "a", last, &stuck);
        eventually("compaction", || journal.stats().records < 40 * (u64::from(round) + 1) + 70);
        eventually("the files", || {
            let stats = journal.stats();
            // The newest segment has no index file yet.
            let segments = journal.shared.chain.segments();
            let open = segments.iter().filter(|segment| !segment.is_sealed());
            let to_come: u64 = open.map(|segment| index::file_bytes(segment.count())).sum();
            // The names of the kinds and the checksums are not counted.
            file_bytes(&bench).is_ok_and(|found| stats.bytes.abs_diff(found + to_come) < 200 * (stats.segments + 2))
        });
        let stats = journal.stats();
        assert!(stats.bytes < (u64::from(round) + 1) * 40 * event_bytes(1_000) * 2 + 3 * 64 * 1024, "{stats:?}");
        assert_eq!(rows(&journal).len() as u64, stats.records);
        journal.close();
    }
}

#[test]
fn a_full_journal_refuses_and_recovers_by_itself() {
    let bench = Bench::small();
    let journal = bench.open();
    let mut n = 0;
    let error = loop {
        n += 1;
        if let Err(error) = append(&journal, bench.entry_of(n, 10_000)) {
            break error;
        }
    };
    assert_eq!(error, AppendError::Full);
    assert!((90..110).contains(&n), "{n} events of 10 KB in 1 MiB");
    eventually("being full", || journal.health() == Health::Full);
    // Duplicates of what is stored are still recognised.
    assert_eq!(append(&journal, bench.entry_of(1, 10_000)), Ok(Appended::Duplicate(1)));
    publish(&journal, "a", u64::from(n) - 1);
    eventually("room", || append(&journal, bench.entry_of(n, 10_000)).is_ok());
    eventually("health", || journal.health() == Health::Healthy);
    journal.close();
}

#[test]
fn a_budget_full_of_what_is_published_refuses_nothing() {
    let bench = Bench::small();
    let journal = bench.open();
    for n in 1..=500 {
        assert_eq!(append(&journal, bench.entry_of(n, 10_000)), Ok(Appended::Stored(n.into())));
        publish(&journal, "a", n.into());
    }
    journal.close();
}

#[test]
fn without_sinks_everything_counts_as_published() {
    let mut bench = Bench::small();
    bench.sinks.clear();
    let journal = bench.open();
    bench.fill(&journal, 1..=500, 10_000);
    journal.close();
}

#[test]
fn one_stuck_event_costs_its_own_bytes() {
    let bench = Bench::small();
    let journal = bench.open();
    for n in 1..=1_000_u32 {
        assert_eq!(append(&journal, bench.entry_of(n, 10_000)), Ok(Appended::Stored(n.into())));
        publish_but(&journal, "a", n.into(), &only_if(n == 7, n));
    }
    assert_eq!((journal.pending("a"), journal.cursor("a")), (1, 6));
    bench.forward(2 * DAY_MS);
    eventually("retention", || all(&journal) == [7] && journal.stats().segments <= 2);
    assert!(journal.stats().bytes < 12_000, "{:?}", journal.stats());
    let Some(Row::Intact(record)) = journal.reader().at(7).unwrap() else { panic!("it is kept") };
    assert!(record.payload.starts_with(b"payload 7 ") && record.key == "key 1");
    journal.close();
    let journal = bench.open();
    assert_eq!((all(&journal), journal.pending("a"), journal.stats().damaged_records), (vec![7], 1, 0));
    assert_eq!(waiting(&journal.resume("a")), [7]);
    journal.close();
}

#[test]
fn every_second_event_stuck_costs_their_own_bytes() {
    let mut bench = Bench::small();
    bench.settings.max_bytes = Size::mib(2);
    bench.settings.retain_bytes = Size(0);
    let journal = bench.open();
    let (mut n, mut refused) = (0, 0);
    while refused == 0 {
        n += 1;
        match append(&journal, bench.entry_of(n, 1_000)) {
            Ok(_) => publish_but(&journal, "a", n.into(), &only_if(n % 2 == 0, n)),
            Err(error) => {
                assert_eq!(error, AppendError::Full);
                refused += 1;
            }
        }
        // Compaction needs a moment.
        if n % 50 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let stuck = u64::from(n / 2) * event_bytes(1_000);
    assert!(stuck > 2 * 1024 * 1024 / 100 * 75, "full with {stuck} bytes of stuck events, at {n}");
    journal.close();
    let journal = bench.open();
    assert_eq!(waiting(&journal.resume("a")).len() as u64, journal.pending("a"));
    journal.close();
}

#[test]
fn small_compacted_segments_become_one() {
    let mut bench = Bench::small();
    (bench.settings.max_bytes, bench.settings.retain_bytes) = (Size::mib(1), Size(0));
    let journal = bench.open();
    // One stuck event in each of many segments.
    for n in 1..=2_000_u32 {
        assert_eq!(append(&journal, bench.entry_of(n, 2_000)), Ok(Appended::Stored(n.into())));
        publish_but(&journal, "a", n.into(), &only_if(n % 50 == 0, n));
    }
    let expected: Vec<u64> = (1..=40).map(|n| n * 50).collect();
    bench.forward(2 * DAY_MS);
    eventually("compaction", || all(&journal) == expected && journal.stats().segments <= 12);
    assert_eq!(journal.stats().damaged_records, 0);
    journal.close();
    let journal = bench.open();
    assert_eq!((all(&journal), journal.stats().damaged_records), (expected.clone(), 0));
    assert_eq!(waiting(&journal.resume("a")), expected);
    journal.close();
}

#[test]
fn a_compaction_is_whole_or_not_begun_wherever_a_kill_comes() {
    let mut bench = Bench::small();
    bench.settings.retain_bytes = Size::mib(1);
    let journal = bench.open();
    bench.fill(&journal, 1..=100, 1_000);
    publish_but(&journal, "a", 100, &[10, 20]);
    eventually("sealing", || !bench.files("idx").is_empty());
    flush(&journal);
    let before = snapshot(bench.dir());
    bench.forward(2 * DAY_MS);
    eventually("compaction", || all(&journal) == [10, 20]);
    journal.close();
    let after = snapshot(bench.dir());
    let compacted = |ending: &str| after.iter().find(|(name, _)| name.ends_with(&format!("-1.{ending}"))).unwrap();
    let (log, index) = (compacted("log"), compacted("idx"));
    let sealed: Vec<&String> = before.keys().filter(|name| name.ends_with(".log")).collect();

    // (files that are added, files that are gone)
    let none: Vec<&String> = Vec::new();
    let first = sealed[0];
    let first_index = first.replace(".log", ".idx");
    let (first_ids, ids) = (first.replace(".log", ".ids"), before[&first_index].clone());
    let crashes = [
        (vec![("events-00000001-00000001-1.making", &log.1[..500])], none.clone(), 100),
        (vec![(log.0.as_str(), &log.1[..])], none.clone(), 0),
        (vec![(log.0.as_str(), &log.1[..]), (index.0.as_str(), &index.1[..])], none.clone(), 0),
        (
            vec![(log.0.as_str(), &log.1[..]), (index.0.as_str(), &index.1[..]), (first_ids.as_str(), &ids[..])],
            vec![&first_index],
            0,
        ),
        (
            vec![(log.0.as_str(), &log.1[..]), (index.0.as_str(), &index.1[..]), (first_ids.as_str(), &ids[..])],
            vec![first, &first_index],
            0,
        ),
    ];
    for (number, (added, gone, at_least)) in crashes.into_iter().enumerate() {
        let dir = bench.home.path().join(format!("compaction-{number}"));
        fs::create_dir(&dir).unwrap();
        for (name, bytes) in before.iter().filter(|(name, _)| !gone.contains(name)) {
            fs::write(dir.join(name), bytes).unwrap();
        }
        for (name, bytes) in added {
            fs::write(dir.join(name), bytes).unwrap();
        }
        bench.settings.dir = dir;
        bench.clock.set(START_MS);
        let journal = bench.open();
        let found = rows(&journal);
        assert!(found.len() >= at_least && damaged(&found).is_empty(), "{number}: {}", found.len());
        assert_eq!(waiting(&journal.resume("a")), [10, 20], "{number}");
        assert_eq!((journal.pending("a"), journal.stats().damaged_records), (2, 0), "{number}");
        assert_eq!(append(&journal, bench.entry(5)), Ok(Appended::Duplicate(5)), "{number}");
        assert_eq!(append(&journal, bench.entry(101)), Ok(Appended::Stored(101)), "{number}");
        eventually("files that stand for nothing", || bench.files("making").is_empty());
        journal.close();
    }
}

#[test]
fn a_kill_while_a_segment_is_released_leaves_no_gap() {
    let mut bench = Bench::small();
    bench.settings.retain_bytes = Size(0);
    let journal = bench.open();
    bench.fill(&journal, 1..=300, 1_000);
    publish_but(&journal, "a", 300, &[1, 300]);
    eventually("retention", || all(&journal).len() < 100);
    // Released segments lie between what is kept.
    bench.crash(&journal);
    let journal = bench.open();
    assert_eq!(journal.stats().damaged_records, 0);
    let mut faults = Vec::new();
    bench.admin().verify(|fault| faults.push(fault)).unwrap();
    assert_eq!(faults, []);
    journal.close();
}

/// Segments are closed, compacted and released between any two things that it reads.
#[test]
fn a_check_beside_a_busy_bridge_finds_nothing() {
    let mut bench = Bench::small();
    bench.settings.retain_bytes = Size(0);
    let journal = bench.open();
    let (done, mut checks, mut faults) = (std::sync::atomic::AtomicBool::new(false), 0, Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                if done.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let (first, last) = (round * 20 + 1, round * 20 + 20);
                bench.fill(&journal, first..=last, 1_000);
                // What is left goes with the next round.
                publish_but(&journal, "a", last.into(), &[last.into()]);
                journal.acknowledge("a", u64::from(last.saturating_sub(20)));
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(8) && faults.is_empty() {
            bench.admin().verify(|fault| faults.push(fault)).unwrap();
            checks += 1;
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(faults, [], "after {checks} checks");
    assert!(checks > 3 && journal.stats().last_position > 1_000, "{checks} checks, {:?}", journal.stats());
    journal.close();
}

#[test]
fn a_segment_is_closed_when_it_is_old_though_nothing_comes() {
    let mut bench = Bench::new();
    bench.settings.retain_for = Span::from_secs(80);
    let journal = bench.open();
    bench.fill(&journal, 1..=3, 100);
    publish(&journal, "a", 3);
    bench.forward(9_999);
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(bench.files("idx").len(), 0);
    bench.forward(1);
    eventually("closing", || bench.files("idx").len() == 1);
    bench.forward(70_000);
    eventually("retention", || all(&journal).is_empty());
    journal.close();
}

#[test]
fn a_new_sink_gets_what_another_is_stuck_on() {
    let mut bench = Bench::small();
    bench.settings.retain_bytes = Size(0);
    let journal = bench.open();
    bench.fill(&journal, 1..=300, 1_000);
    publish_but(&journal, "a", 300, &[5]);
    eventually("compaction", || all(&journal).first() == Some(&5) && all(&journal).get(1) > Some(&100));
    journal.close();
    // It is renamed: what the old one was stuck on is not lost.
    bench.sinks = vec![sink("b")];
    let journal = bench.open();
    let kept = all(&journal);
    assert_eq!((journal.cursor("b"), journal.pending("b"), kept[0]), (4, kept.len() as u64, 5));
    publish(&journal, "b", 300);
    eventually("retention", || !all(&journal).contains(&5));
    journal.close();
    // Back to the old name: it is gone, and that is no reason to wait for it.
    bench.sinks = vec![sink("a")];
    let journal = bench.open();
    assert_eq!((journal.pending("a"), waiting(&journal.resume("a"))), (0, vec![]));
    journal.close();
}

#[test]
fn dead_letters_count_against_the_budget() {
    let bench = Bench::small();
    let journal = bench.open();
    bench.fill(&journal, 1..=60, 10_000);
    journal.enqueue("a", 60, &(1..=60).collect::<Vec<_>>());
    for position in 1..=60 {
        block_on(journal.set_aside(dead_letter("a", position))).unwrap();
    }
    bench.forward(2 * DAY_MS);
    eventually("retention", || all(&journal).is_empty());
    let bytes = || journal.stats().bytes;
    eventually("the bytes", || bytes() > 60 * 10_000 && bytes() < 60 * 11_000);
    eventually("the same for a command", || bench.admin().summary().unwrap().bytes.abs_diff(bytes()) < 1_000);
    let mut admin = bench.admin();
    let stored = admin.dead_letters(None, None).unwrap();
    assert_eq!(admin.discard(&stored).unwrap(), 60);
    eventually("room", || journal.stats().bytes < 1_000);
    journal.close();
}

#[test]
fn events_are_found_while_segments_are_sealed_compacted_and_released() {
    let mut bench = Bench::small();
    bench.settings.retain_bytes = Size::kib(200);
    let journal = bench.open();
    let stop = AtomicBoolFlag::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reader = journal.reader();
                while !stop.is_set() {
                    // What waits is always found, whatever becomes of its segment meanwhile.
                    let newest = *journal.durable().borrow();
                    for position in (10..=newest).step_by(10) {
                        let Some(Row::Intact(record)) = reader.at(position).unwrap() else { panic!("{position}") };
                        assert_eq!(record.position, position);
                    }
                }
            });
        }
        for n in 1..=2_000_u32 {
            assert_eq!(append(&journal, bench.entry_of(n, 1_000)), Ok(Appended::Stored(n.into())));
            publish_but(&journal, "a", n.into(), &only_if(n % 10 == 0, n));
        }
        stop.set();
    });
    assert_eq!(journal.stats().damaged_records, 0);
    journal.close();
    let journal = bench.open();
    let expected: Vec<u64> = (1..=200).map(|n| n * 10).collect();
    assert_eq!(waiting(&journal.resume("a")), expected);
    journal.close();
}

#[derive(Default)]
struct AtomicBoolFlag(std::sync::atomic::AtomicBool);

impl AtomicBoolFlag {
    fn set(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Acquire)
    }
}
