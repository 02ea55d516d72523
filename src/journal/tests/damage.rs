//! Damage of segments, their indexes and ids: it costs the events that it hits and nothing else.

use super::*;
use crate::journal::index::Index;

const EVENTS: u64 = 300;

/// Several sealed segments and one that is written to, of events of 1,000 bytes.
fn with_segments() -> Bench {
    let bench = Bench::small();
    let journal = bench.open();
    bench.fill(&journal, 1..=EVENTS as u32, 1_000);
    eventually("sealing", || bench.files("idx").len() >= 4);
    journal.close();
    bench
}

/// The positions of a segment's events, by its index file.
fn positions_in(index: &Path) -> Vec<u64> {
    Index::read(index).unwrap().0.entries.iter().map(|entry| entry.position).collect()
}

/// Each row is as it was stored, or is named as damaged.
pub(super) fn check_rows(rows: &[Row], what: &str) {
    for row in rows {
        if let Row::Intact(record) = row {
            let expected = format!("payload {} ", record.position);
            assert!(record.payload.starts_with(expected.as_bytes()), "{what}: wrong bytes at {}", record.position);
            assert!(record.payload[expected.len()..].iter().all(|byte| *byte == b'x'), "{what}: {}", record.position);
        }
    }
    assert!(rows.windows(2).all(|rows| rows[0].position() < rows[1].position()), "{what}: order");
}

fn verify(bench: &Bench) -> (u64, Vec<Fault>) {
    let mut faults = Vec::new();
    let intact = bench.admin().verify(|fault| faults.push(fault)).unwrap();
    (intact, faults)
}

#[test]
fn a_damaged_event_is_named_and_the_others_are_read() {
    let bench = with_segments();
    let path = &bench.files("log")[1];
    flip(path, find_text(path, "payload 70 "));
    let (intact, faults) = verify(&bench);
    assert_eq!(intact, EVENTS - 1);
    assert_eq!(faults, [Fault::Damaged { position: 70, id: Some(id(70)), kind: Some("t".into()) }]);
    let journal = bench.open();
    let rows = rows(&journal);
    check_rows(&rows, "flipped");
    let Row::Damaged { key_hash, id: found, kind, .. } = &rows[69] else { panic!("{:?}", rows[69]) };
    assert_eq!((*key_hash, *found, kind.as_deref()), (Some(record::hash(b"key 1")), Some(id(70)), Some("t")));
    assert_eq!((damaged(&rows), rows.len() as u64), (vec![70], EVENTS));
    assert_eq!(journal.stats().damaged_records, 1);
    // A filtered read names it too, and finds the first intact event after it.
    let filter = Filter { key: Some("key 1".into()), ..Filter::default() };
    let batch = journal.reader().after(67, Limits { rows: 2, bytes: usize::MAX }, &filter).unwrap();
    assert_eq!((positions_of(&batch.rows), batch.through), (vec![70, 73], 73));
    // It is still recognised.
    assert_eq!(append(&journal, bench.entry(70)), Ok(Appended::Duplicate(70)));
    journal.close();
}

#[test]
fn damage_does_not_hold_up_retention_and_is_forgotten_with_it() {
    let bench = with_segments();
    for path in &bench.files("log")[..3] {
        zero_page(path, 9_000);
    }
    let journal = bench.open();
    let found = damaged(&rows(&journal));
    assert!((9..=18).contains(&found.len()), "{found:?}");
    assert_eq!(journal.stats().damaged_records, found.len() as u64);
    // One is stuck.
    publish_but(&journal, "a", EVENTS, &[found[0], found[0] + 20]);
    bench.forward(2 * DAY_MS);
    eventually("compaction", || all(&journal) == [found[0], found[0] + 20]);
    assert_eq!(journal.stats().damaged_records, 1, "the one that is kept");
    let rows = rows(&journal);
    assert_eq!(damaged(&rows), found[..1], "it stays named");
    journal.close();
    let journal = bench.open();
    assert_eq!((waiting(&journal.resume("a")), journal.stats().damaged_records), (vec![found[0], found[0] + 20], 1));
    journal.acknowledge("a", found[0]);
    journal.acknowledge("a", found[0] + 20);
    eventually("retention", || all(&journal).is_empty() && journal.stats().damaged_records == 0);
    journal.close();
}

#[test]
fn any_byte_of_a_sealed_segment_costs_one_event_at_most() {
    let bench = with_segments();
    let path = &bench.files("log")[1];
    let whole = fs::read(path).unwrap();
    // Each field of two records, the header, and a sample of the rest.
    let fields =
        (0..64).chain((64..64 + 1_070 * 2).step_by(7)).chain((0..200).map(|_| fastrand::usize(0..whole.len())));
    for at in fields {
        flip(path, at as u64);
        for rebuild in [false, true] {
            let admin = bench.admin();
            let mut rows = read(&mut admin.reader());
            if rebuild {
                // As a start rebuilds the index.
                let name = segment::Name::parse(path.file_name().unwrap().to_str().unwrap()).unwrap().0;
                let found =
                    segment::read_log(name, bench.dir(), &Index::default(), &segment::Proof::default()).unwrap();
                let expected = positions_in(&path.with_extension("idx"));
                let missing = expected.iter().filter(|position| found.index.at(**position).is_none()).count();
                // The last or the first of a segment is known by its neighbours.
                assert!(missing <= 1 && found.damaged.len() <= 1, "byte {at}: {missing}, {:?}", found.damaged);
                rows.retain(|row| !expected.contains(&row.position()) || found.index.at(row.position()).is_some());
            }
            check_rows(&rows, &format!("byte {at}"));
            assert!(damaged(&rows).len() <= 1, "byte {at}: {:?}", damaged(&rows));
        }
        fs::write(path, &whole).unwrap();
    }
}

#[test]
fn any_page_of_an_index_costs_nothing() {
    let bench = with_segments();
    let index = &bench.files("idx")[1];
    let whole = fs::read(index).unwrap();
    for at in (0..whole.len()).step_by(301) {
        for page in [false, true] {
            fs::write(index, &whole).unwrap();
            if page {
                zero_page(index, at as u64);
            } else {
                flip(index, at as u64);
            }
            let journal = bench.open();
            let found = rows(&journal);
            assert!(found.len() as u64 == EVENTS && damaged(&found).is_empty(), "{at}: {:?}", damaged(&found));
            check_rows(&found, "index");
            assert_eq!((journal.pending("a"), journal.stats().damaged_records), (EVENTS, 0), "{at}");
            eventually("a new index", || fs::read(index).unwrap() == whole);
            assert_eq!(append(&journal, bench.entry(70)), Ok(Appended::Duplicate(70)));
            journal.close();
        }
    }
    fs::write(index, &whole[..100]).unwrap();
    assert!(verify(&bench).1.iter().all(|fault| matches!(fault, Fault::Index(_))));
}

#[test]
fn unreadable_ids_shorten_the_window_and_nothing_else() {
    let mut bench = Bench::small();
    bench.settings.retain_bytes = Size(0);
    let journal = bench.open();
    bench.fill(&journal, 1..=EVENTS as u32, 1_000);
    publish(&journal, "a", EVENTS);
    eventually("retention", || bench.files("ids").len() >= 4);
    journal.close();
    let ids = bench.files("ids");
    zero_page(&ids[0], 0);
    fs::write(&ids[1], "").unwrap();
    fs::remove_file(&ids[2]).unwrap();
    let kept = positions_in(&ids[3])[0] as u32;
    let journal = bench.open();
    assert_eq!(append(&journal, bench.entry(kept)), Ok(Appended::Duplicate(kept.into())));
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Stored(EVENTS + 1)));
    assert_eq!(journal.stats().damaged_records, 0);
    journal.close();
}

#[test]
fn the_active_segment_keeps_what_is_behind_the_damage_after_a_kill() {
    for (what, expected) in [("flip", 1), ("page", 5), ("first page", 5), ("header", 0)] {
        let mut bench = Bench::new();
        let journal = bench.open();
        bench.fill(&journal, 1..=100, 1_000);
        flush(&journal);
        bench.crash(&journal);
        let path = &bench.files("log")[0];
        match what {
            "flip" => flip(path, find_text(path, "payload 50 ")),
            "page" => zero_page(path, find_text(path, "payload 50 ")),
            "first page" => zero_page(path, 0),
            _ => flip(path, 17),
        }
        let journal = bench.open();
        let found = rows(&journal);
        check_rows(&found, what);
        let lost = damaged(&found);
        let stats = journal.stats();
        let missing = 100 - found.len() as u64;
        let hit = lost.len() + missing as usize;
        assert!(hit <= expected && (hit > 0) == (expected > 0), "{what}: {lost:?}");
        assert_eq!((stats.damaged_records, stats.last_position), (lost.len() as u64 + missing, 100), "{what}");
        assert!(missing <= 5, "{what}: {missing}");
        assert_eq!(append(&journal, bench.entry(101)), Ok(Appended::Stored(101)), "{what}");
        journal.close();
    }
}

#[test]
fn a_last_event_that_was_answered_is_damaged_and_one_that_was_not_is_torn() {
    let mut bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=10, 1_000);
    flush(&journal);
    bench.crash(&journal);
    let path = &bench.files("log")[0];
    truncate(path, records_of(path).len() as u64 - 10);
    let journal = bench.open();
    assert_eq!((damaged(&rows(&journal)), journal.stats().damaged_records), (vec![10], 1), "the state knows of it");
    assert_eq!(append(&journal, bench.entry(11)), Ok(Appended::Stored(11)));
    eventually("sealing", || bench.files("idx").len() == 1);
    flush(&journal);
    bench.crash(&journal);
    // The beginning of a commit that a kill has cut off.
    let path = &bench.files("log")[1];
    let mut bytes = records_of(path);
    let mut torn = Vec::new();
    record::encode(&mut torn, 12, true, 1, &bench.entry(12));
    bytes.extend(&torn[..80]);
    fs::write(path, bytes).unwrap();
    let journal = bench.open();
    assert_eq!((damaged(&rows(&journal)), journal.stats().damaged_records), (vec![10], 1));
    assert_eq!(append(&journal, bench.entry(12)), Ok(Appended::Stored(12)));
    journal.close();
}

#[test]
fn a_whole_active_segment_that_is_lost_is_counted_and_kept_aside() {
    let mut bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=50, 1_000);
    flush(&journal);
    bench.crash(&journal);
    let path = &bench.files("log")[0];
    let length = fs::metadata(path).unwrap().len() as usize;
    fs::write(path, vec![0; length]).unwrap();
    let journal = bench.open();
    let found = damaged(&rows(&journal));
    assert_eq!(journal.stats().damaged_records, 50, "{found:?}");
    assert_eq!(append(&journal, bench.entry(51)), Ok(Appended::Stored(51)));
    journal.close();
    let journal = bench.open();
    assert_eq!(journal.stats().damaged_records, 50, "also at the next start");
    journal.close();
}

#[test]
fn a_missing_segment_is_counted_and_all_others_are_read() {
    let bench = with_segments();
    let (log, index) = (&bench.files("log")[1], &bench.files("idx")[1]);
    let lost = positions_in(index);
    fs::remove_file(log).unwrap();
    let (intact, faults) = verify(&bench);
    assert_eq!((intact, faults.len()), (EVENTS - lost.len() as u64, lost.len()));
    let journal = bench.open();
    assert_eq!(damaged(&rows(&journal)), lost);
    assert_eq!(journal.stats().damaged_records, lost.len() as u64);
    eventually("sealing", || {
        journal.shared.chain.segments().iter().filter(|segment| !segment.is_sealed()).count() == 1
    });
    journal.close();
    // With its index too.
    fs::remove_file(index).unwrap();
    let (first, last) = (lost[0], *lost.last().unwrap());
    assert_eq!(verify(&bench).1, [Fault::Missing { first, last }]);
    let journal = bench.open();
    let found = rows(&journal);
    assert_eq!((found.len() as u64, damaged(&found).len()), (EVENTS - lost.len() as u64, 0));
    assert_eq!((journal.stats().damaged_records, journal.pending("a")), (lost.len() as u64, found.len() as u64));
    journal.close();
}

/// The log of a segment is missing, and then its index is damaged: the events of the others are found and compacted.
#[test]
fn a_missing_segment_whose_index_is_damaged_costs_no_other_its_events() {
    // A byte of the summary, and one of the entries.
    for (at, is_running) in [(33, false), (33, true), (300, false), (300, true)] {
        let bench = with_segments();
        let index = &bench.files("idx")[1];
        let lost = positions_in(index);
        fs::remove_file(&bench.files("log")[1]).unwrap();
        let all_are_sealed = |journal: &Journal| {
            eventually("sealing", || {
                journal.shared.chain.segments().iter().filter(|segment| !segment.is_sealed()).count() == 1
            });
        };
        let journal = bench.open();
        all_are_sealed(&journal);
        if !is_running {
            journal.close();
        }
        flip(index, at);
        let journal = if is_running { journal } else { bench.open() };
        // Without the summary, a start knows from the neighbours how many are missing.
        let named = if at == 33 && !is_running { Vec::new() } else { lost.clone() };
        assert_eq!(damaged(&rows(&journal)), named, "byte {at}");
        assert_eq!(journal.stats().damaged_records, lost.len() as u64, "byte {at}");
        all_are_sealed(&journal);
        eventually("the index", || journal.shared.chain.damaged_index().is_none());
        let kept: Vec<u64> = (1..=EVENTS).filter(|position| !lost.contains(position)).collect();
        let is_intact = |position: &u64| matches!(journal.reader().at(*position), Ok(Some(Row::Intact(_))));
        assert!(kept.iter().all(is_intact), "byte {at}");
        // Every tenth waits; all others go.
        let waiting: Vec<u64> = (1..=EVENTS).filter(|position| position.is_multiple_of(10)).collect();
        publish_but(&journal, "a", EVENTS, &waiting);
        bench.forward(30 * DAY_MS);
        eventually("compaction", || journal.stats().records < EVENTS / 2);
        let waiting: Vec<u64> = waiting.into_iter().filter(|position| !lost.contains(position)).collect();
        assert!(waiting.iter().all(is_intact), "byte {at}");
        journal.close();
    }
}

#[test]
fn a_start_does_not_wait_for_a_missing_segment_twice() {
    let bench = with_segments();
    truncate(&bench.files("log")[1], 20_000);
    for _ in 0..2 {
        let journal = bench.open();
        let found = rows(&journal);
        assert_eq!(found.len() as u64, EVENTS);
        assert!((20..60).contains(&damaged(&found).len()));
        eventually("sealing", || {
            let segments = journal.shared.chain.segments();
            segments.iter().filter(|segment| !segment.is_sealed()).count() == 1
        });
        journal.close();
    }
    let found = chain::find(bench.dir(), |_| segment::Proof::default(), chain::Released::default).unwrap();
    assert!(found.segments.iter().rev().skip(1).all(|segment| segment.is_sealed()));
}

#[test]
fn an_event_that_comes_back_with_its_file_is_read() {
    let bench = with_segments();
    let log = &bench.files("log")[1];
    let away = bench.home.path().join("away");
    fs::rename(log, &away).unwrap();
    let journal = bench.open();
    assert!(!damaged(&rows(&journal)).is_empty());
    journal.close();
    fs::rename(&away, log).unwrap();
    let journal = bench.open();
    let found = rows(&journal);
    assert_eq!((damaged(&found), found.len() as u64), (vec![], EVENTS));
    journal.close();
}

#[test]
fn salvage_brings_everything_back_but_the_damaged_events() {
    let mut bench = Bench::small();
    bench.settings.retain_bytes = Size::kib(100);
    bench.sinks.push(sink("b"));
    let journal = bench.open();
    bench.fill(&journal, 1..=EVENTS as u32, 1_000);
    publish_but(&journal, "a", 200, &[10, 20, 30]);
    publish(&journal, "b", 250);
    block_on(journal.set_aside(dead_letter("a", 20))).unwrap();
    journal.record_stuck("a", vec![super::state_file::stuck_event(10)]);
    eventually("retention", || all(&journal).len() < 200 && !bench.files("ids").is_empty());
    let mut admin = bench.admin();
    let stored = admin.dead_letters(None, None).unwrap();
    admin.requeue(&stored).unwrap();
    admin.replay("b", &Filter { id: Some(id(240)), ..Filter::default() }, 1, None, START_MS).unwrap();
    let kept = all(&journal);
    journal.close();
    let damage: Vec<u64> = [230, 270].into();
    for position in &damage {
        let text = format!("payload {position} ");
        let holds = |path: &&PathBuf| {
            let bytes = fs::read(path).unwrap();
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        };
        let files = bench.files("log");
        let path = files.iter().find(holds).unwrap();
        flip(path, find_text(path, &text));
    }
    zero_page(&bench.dir().join("state.db"), 0);
    let to = bench.home.path().join("salvaged");
    let before = snapshot(bench.dir());
    let salvaged = JournalAdmin::salvage(bench.dir(), &to).unwrap();
    assert_eq!((salvaged.events, &salvaged.damaged), (kept.len() as u64 - 2, &damage));
    assert_eq!(snapshot(bench.dir()), before, "what is there stays as it is");
    assert!(JournalAdmin::salvage(bench.dir(), &to).is_err(), "there is a journal already");

    bench.settings.dir = to;
    let journal = bench.open();
    let found = rows(&journal);
    check_rows(&found, "salvaged");
    assert_eq!(
        positions_of(&found),
        kept.iter().copied().filter(|position| !damage.contains(position)).collect::<Vec<_>>()
    );
    assert_eq!(waiting(&journal.resume("a")), [10, 30]);
    assert_eq!((journal.pending("a"), journal.pending("b")), (2 + 98, 49));
    assert_eq!((journal.dead_letters("a"), journal.resends("a"), journal.resends("b")), (1, 1, 1));
    assert_eq!(append(&journal, bench.entry(1)), Ok(Appended::Duplicate(1)), "released long ago");
    assert_eq!(append(&journal, bench.entry(299)), Ok(Appended::Duplicate(299)));
    assert_eq!(append(&journal, bench.entry(301)), Ok(Appended::Stored(301)));
    assert_eq!(journal.stats().damaged_records, 0);
    let stuck = bench.admin().stuck(&StuckFilter::default(), 10).unwrap();
    assert_eq!((stuck.len(), stuck[0].stuck.position), (1, 10));
    assert_eq!(verify(&bench), (kept.len() as u64 - 1, vec![]));
    publish(&journal, "a", 301);
    publish(&journal, "b", 301);
    bench.forward(2 * DAY_MS);
    drop(journal.next_resends("b", &mut ResendCursor::default(), ALL));
    journal.finish_resend("b", Origin::Replay { id: 1 }, 240, ResendOutcome::Published);
    eventually("retention", || all(&journal).is_empty());
    journal.close();
}

#[test]
fn salvage_of_a_running_journal_is_refused() {
    let bench = with_segments();
    let journal = bench.open();
    let to = bench.home.path().join("salvaged");
    assert!(matches!(JournalAdmin::salvage(bench.dir(), &to), Err(AdminError::Open(OpenError::InUse { .. }))));
    journal.close();
}

#[test]
fn salvage_without_a_state_file_brings_the_events_back() {
    let mut bench = with_segments();
    fs::remove_file(bench.dir().join("state.db")).unwrap();
    let to = bench.home.path().join("salvaged");
    assert_eq!(JournalAdmin::salvage(bench.dir(), &to).unwrap().events, EVENTS);
    bench.settings.dir = to;
    let journal = bench.open();
    assert_eq!((all(&journal).len() as u64, journal.pending("a")), (EVENTS, EVENTS));
    journal.close();
}

#[test]
fn a_start_takes_what_a_kill_left_behind_away() {
    let bench = with_segments();
    for name in ["events-00000099-00000099-1.making", "state.making"] {
        fs::write(bench.dir().join(name), "half").unwrap();
    }
    fs::create_dir(bench.dir().join("state.copy-77")).unwrap();
    fs::write(bench.dir().join("state.copy-77/state.db"), "half").unwrap();
    let journal = bench.open();
    assert_eq!(all(&journal).len() as u64, EVENTS);
    journal.close();
    assert!(!bench.dir().join("state.copy-77").exists());
    assert!(bench.files("making").is_empty());
}
