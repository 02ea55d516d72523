//! Positions are never used twice, whatever is lost.

use super::*;

/// What is appended next.
fn next(journal: &Journal) -> u64 {
    match append(journal, Entry { id: fastrand::u128(..).to_le_bytes(), ..Bench::new().entry(1) }) {
        Ok(Appended::Stored(position)) => position,
        other => panic!("{other:?}"),
    }
}

fn with_events() -> Bench {
    let bench = Bench::small();
    let journal = bench.open();
    bench.fill(&journal, 1..=200, 1_000);
    publish(&journal, "a", 150);
    journal.close();
    bench
}

#[test]
fn positions_go_on_when_every_segment_is_lost() {
    let bench = with_events();
    bench.files("").iter().for_each(|path| fs::remove_file(path).unwrap());
    let journal = bench.open();
    assert_eq!(next(&journal), 201, "the state knows the newest durable position");
    assert_eq!(journal.stats().damaged_records, 200, "{:?}", journal.stats());
    journal.close();
    let journal = bench.open();
    assert_eq!((all(&journal), journal.stats().damaged_records), (vec![201], 200));
    publish(&journal, "a", 201);
    bench.forward(2 * DAY_MS);
    eventually("retention", || all(&journal).is_empty());
    assert_eq!(journal.stats().damaged_records, 0, "it would be released by now");
    journal.close();
    let journal = bench.open();
    assert_eq!(journal.stats().damaged_records, 0);
    journal.close();
}

#[test]
fn positions_go_on_when_the_state_is_lost() {
    let bench = with_events();
    fs::remove_file(bench.dir().join("state.db")).unwrap();
    let journal = bench.open();
    assert_eq!(next(&journal), 201);
    assert_eq!((journal.stats().damaged_records, journal.pending("a")), (0, 201), "it is published once more");
    journal.close();
}

#[test]
fn positions_go_on_when_all_was_released_and_the_state_is_lost() {
    let bench = with_events();
    let journal = bench.open();
    bench.forward(2 * DAY_MS);
    publish(&journal, "a", 200);
    eventually("retention", || all(&journal).is_empty() && bench.files("ids").is_empty());
    journal.close();
    assert_eq!(bench.files("idx").len(), 0);
    fs::remove_file(bench.dir().join("state.db")).unwrap();
    let journal = bench.open();
    assert_eq!(next(&journal), 201, "the newest segment says what lay before it");
    assert_eq!(journal.stats().damaged_records, 0);
    journal.close();
}

#[test]
fn positions_go_on_behind_a_lost_tail_and_the_gap_is_counted() {
    let bench = with_events();
    let has_events = |path: &PathBuf| fs::metadata(path).unwrap().len() > 64;
    let last = bench.files("log").into_iter().rfind(has_events).unwrap();
    truncate(&last, 64);
    let journal = bench.open();
    let kept = all(&journal);
    assert_eq!(next(&journal), 201);
    let lost = 200 - kept.len() as u64;
    let of_them_named = damaged(&rows(&journal)).len() as u64;
    assert!(lost + of_them_named > 0);
    assert_eq!(journal.stats().damaged_records, lost + of_them_named);
    journal.close();
    let journal = bench.open();
    assert_eq!(next(&journal), 202);
    let mut missing = 0;
    bench
        .admin()
        .verify(|fault| match fault {
            Fault::Missing { first, last } => missing += last - first + 1,
            Fault::Damaged { .. } => missing += 1,
            other => panic!("{other:?}"),
        })
        .unwrap();
    assert_eq!((missing, journal.stats().damaged_records), (lost + of_them_named, missing));
    journal.close();
}

#[test]
fn a_cursor_beyond_the_log_is_believed_and_no_position_is_used_twice() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=5, 100);
    journal.enqueue("a", 1_000, &[]);
    journal.close();
    let journal = bench.open();
    assert_eq!(next(&journal), 1_001);
    journal.enqueue("a", 1_001, &[1_001]);
    assert_eq!((journal.cursor("a"), journal.pending("a")), (1_000, 1));
    journal.close();
}

#[test]
fn positions_of_a_lone_dead_letter_are_not_used_again() {
    let bench = with_events();
    let journal = bench.open();
    journal.enqueue("a", 200, &[200]);
    block_on(journal.set_aside(dead_letter("a", 200))).unwrap();
    journal.close();
    bench.files("").iter().for_each(|path| fs::remove_file(path).unwrap());
    state_file(&bench).execute_batch("DELETE FROM sinks; DELETE FROM durable").unwrap();
    let journal = bench.open();
    assert_eq!(next(&journal), 201);
    journal.close();
}

#[test]
fn a_flipped_bit_in_a_position_without_checksum_is_not_believed() {
    for sql in [
        "UPDATE dead_letters SET position = position | (1 << 61)",
        "UPDATE durable SET position = position | (1 << 61)",
        "UPDATE durable SET position = -position",
        "UPDATE sinks SET frontier = frontier | (1 << 61)",
        "UPDATE released SET last = last | (1 << 61)",
        "UPDATE durable SET segment = segment | (1 << 62)",
        "UPDATE durable SET segment = -segment",
    ] {
        let bench = with_events();
        let journal = bench.open();
        publish_but(&journal, "a", 200, &[200]);
        block_on(journal.set_aside(dead_letter("a", 200))).unwrap();
        bench.forward(2 * DAY_MS);
        eventually("retention", || all(&journal).is_empty());
        journal.close();
        state_file(&bench).execute_batch(sql).unwrap();
        let journal = bench.open();
        assert_eq!(next(&journal), 201, "{sql}");
        journal.close();
    }
}

#[test]
fn numbers_of_segments_grow_in_the_order_of_their_positions() {
    let bench = Bench::small();
    let journal = bench.open();
    bench.fill(&journal, 1..=500, 1_500);
    journal.close();
    let mut last = 0;
    for path in bench.files("idx") {
        let summary = index::Index::read_summary(&path).unwrap().unwrap();
        assert!(summary.first > last, "{}", path.display());
        last = summary.last;
    }
}

#[test]
fn an_event_that_is_set_aside_is_pending_or_a_dead_letter_at_every_moment() {
    const EVENTS: u32 = 200;
    let bench = Bench::small();
    let journal = bench.open();
    bench.fill(&journal, 1..=EVENTS, 100);
    let all: Vec<u64> = (1..=u64::from(EVENTS)).collect();
    publish_but(&journal, "a", u64::from(EVENTS), &all);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                // In this order: what becomes a dead letter in between is counted twice.
                let pending = journal.pending("a");
                let sum = pending + journal.dead_letters("a");
                assert!(sum >= u64::from(EVENTS), "{sum} of {EVENTS} are pending or dead letters");
                if pending == 0 {
                    break;
                }
            }
        });
        for position in all {
            block_on(journal.set_aside(dead_letter("a", position))).unwrap();
        }
    });
    assert_eq!((journal.pending("a"), journal.dead_letters("a")), (0, u64::from(EVENTS)));
}
