//! Requeued dead letters and replays.

use super::*;

fn with_dead_letters() -> (Bench, Journal) {
    let mut bench = Bench::small();
    bench.sinks.push(sink("b"));
    let journal = bench.open();
    bench.fill(&journal, 1..=30, 1_000);
    for name in ["a", "b"] {
        publish_but(&journal, name, 30, &[4, 5, 6]);
    }
    for position in [4, 5, 6] {
        block_on(journal.set_aside(dead_letter("a", position))).unwrap();
    }
    publish(&journal, "b", 30);
    (bench, journal)
}

fn next(journal: &Journal, cursor: &mut ResendCursor, limits: Limits) -> Vec<Resend> {
    journal.next_resends("a", cursor, limits).unwrap()
}

fn places(resends: &[Resend]) -> Vec<u64> {
    resends.iter().map(|resend| resend.record.position).collect()
}

fn requeue(bench: &Bench) -> usize {
    let mut admin = bench.admin();
    let stored = admin.dead_letters(Some("a"), None).unwrap();
    admin.requeue(&stored).unwrap()
}

fn publish_all(journal: &Journal, resends: &[Resend]) {
    for Resend { origin, record } in resends {
        journal.finish_resend("a", *origin, record.position, ResendOutcome::Published);
    }
}

fn replay(bench: &Bench, filter: &Filter, rate: Option<u32>) -> u64 {
    let mut admin = bench.admin();
    let (total, _) = admin.count(filter).unwrap();
    admin.replay("a", filter, total, rate, START_MS).unwrap()
}

#[test]
fn a_requeued_dead_letter_is_one_until_a_broker_has_it() {
    let (bench, journal) = with_dead_letters();
    assert_eq!((requeue(&bench), requeue(&bench)), (3, 0), "in the queue it stays once");
    eventually("the count", || journal.resends("a") == 3);
    let mut cursor = ResendCursor::default();
    let first = next(&journal, &mut cursor, Limits { rows: 2, bytes: usize::MAX });
    assert_eq!(places(&first), [4, 5]);
    assert!(first[0].record.payload.starts_with(b"payload 4 ") && journal.is_wanted(&first[0].origin));
    assert_eq!(places(&next(&journal, &mut cursor, ALL)), [6]);
    assert_eq!(places(&next(&journal, &mut cursor, ALL)), [0; 0]);
    assert_eq!(places(&next(&journal, &mut ResendCursor::default(), ALL)), [4, 5, 6], "a new session gets all");
    publish_all(&journal, &first);
    eventually("the dead letters", || journal.dead_letters("a") == 1 && journal.resends("a") == 1);
    journal.close();
    let journal = bench.open();
    assert_eq!((journal.dead_letters("a"), journal.resends("a")), (1, 1));
    let left = next(&journal, &mut ResendCursor::default(), ALL);
    let refused = DeadLetter { reason: "worse".into(), ..dead_letter("a", 6) };
    journal.finish_resend("a", left[0].origin, 6, ResendOutcome::Refused(refused));
    eventually("the queue", || journal.resends("a") == 0);
    assert_eq!(journal.dead_letters("a"), 1);
    assert_eq!(bench.admin().dead_letters(None, None).unwrap()[0].dead_letter.reason, "worse");
    journal.close();
}

#[test]
fn a_requeue_needs_neither_its_segment_nor_room() {
    let (bench, journal) = with_dead_letters();
    publish(&journal, "a", 30);
    requeue(&bench);
    bench.forward(2 * DAY_MS);
    eventually("retention", || all(&journal).is_empty());
    assert_eq!(places(&next(&journal, &mut ResendCursor::default(), ALL)), [4, 5, 6]);
    let mut n = 100;
    while append(&journal, bench.entry_of(n, 10_000)).is_ok() {
        n += 1;
    }
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(places(&next(&journal, &mut ResendCursor::default(), ALL)), [4, 5, 6], "it is never cut");
    journal.close();
}

#[test]
fn a_damaged_dead_letter_is_taken_out_of_the_queue_and_the_others_go_on() {
    let (bench, journal) = with_dead_letters();
    requeue(&bench);
    state_file(&bench).execute_batch("UPDATE dead_letters SET payload = zeroblob(1000) WHERE position = 5").unwrap();
    eventually("the count", || journal.resends("a") == 3);
    assert_eq!(places(&next(&journal, &mut ResendCursor::default(), ALL)), [4, 6]);
    eventually("the queue", || journal.resends("a") == 2);
    assert_eq!((journal.resends_dropped(), journal.dead_letters("a")), (1, 3), "it stays a dead letter");
    assert_eq!(requeue(&bench), 0, "a damaged one is not queued");
    let mut faults = Vec::new();
    bench.admin().verify(|fault| faults.push(fault)).unwrap();
    assert!(matches!(&faults[..], [Fault::DeadLetter { position: 5, .. }]), "{faults:?}");
    journal.close();
}

#[test]
fn a_dead_letter_of_another_sink_is_not_taken_for_this_ones() {
    let (bench, journal) = with_dead_letters();
    state_file(&bench).execute_batch("UPDATE dead_letters SET sink = 'b' WHERE position = 5").unwrap();
    let stored = bench.admin().dead_letters(Some("b"), None).unwrap();
    assert_eq!(stored[0].event, None, "the sink is under the checksum");
    journal.close();
}

#[test]
fn resends_of_sinks_that_are_not_configured_are_refused_or_dropped() {
    let (mut bench, journal) = with_dead_letters();
    requeue(&bench);
    replay(&bench, &Filter::default(), None);
    let mut admin = bench.admin();
    let unknown = admin.replay("z", &Filter::default(), 1, None, 0);
    assert!(matches!(unknown, Err(AdminError::UnknownSink(sink)) if sink == "z"));
    eventually("the replay", || journal.active_replays("a") == 1);
    journal.close();
    bench.sinks.remove(0);
    let journal = bench.open();
    assert_eq!((journal.resends("a"), journal.resends_dropped()), (0, 4));
    let stored = admin.dead_letters(Some("a"), None).unwrap();
    assert_eq!(admin.requeue(&stored).unwrap(), 0);
    assert!(admin.replays(None).unwrap().is_empty());
    publish(&journal, "b", 30);
    bench.forward(2 * DAY_MS);
    eventually("retention", || all(&journal).is_empty());
    journal.close();
}

#[test]
fn resends_of_discarded_dead_letters_are_dropped() {
    let (bench, journal) = with_dead_letters();
    requeue(&bench);
    let mut admin = bench.admin();
    let stored = admin.dead_letters(None, None).unwrap();
    assert_eq!(admin.discard(&stored[..1]).unwrap(), 1);
    eventually("the counts", || journal.resends("a") == 2 && journal.dead_letters("a") == 2);
    state_file(&bench).execute_batch("DELETE FROM dead_letters WHERE position = 5").unwrap();
    journal.close();
    let journal = bench.open();
    assert_eq!((journal.resends("a"), journal.resends_dropped()), (1, 1));
    journal.close();
}

#[test]
fn a_replay_gives_each_event_once_and_ends() {
    let (bench, journal) = with_dead_letters();
    let filter = Filter { key: Some("key 1".into()), ..Filter::default() };
    let id = replay(&bench, &filter, None);
    eventually("the replay", || journal.resends("a") == 10);
    let mut cursor = ResendCursor::default();
    let first = next(&journal, &mut cursor, Limits { rows: 4, bytes: usize::MAX });
    assert_eq!(places(&first), [1, 4, 7, 10]);
    assert_eq!(first[0].origin, Origin::Replay { id });
    publish_all(&journal, &first[..1]);
    assert_eq!(journal.resends("a"), 9);
    // What came later is no part of it.
    append(&journal, bench.entry_of(31, 1_000)).unwrap();
    // What was given and not published is given after a restart.
    journal.close();
    let journal = bench.open();
    let mut cursor = ResendCursor::default();
    let mut given = Vec::new();
    loop {
        let some = next(&journal, &mut cursor, Limits { rows: 2, bytes: usize::MAX });
        if some.is_empty() {
            break;
        }
        given.extend(some);
    }
    assert_eq!(places(&given), [4, 7, 10, 13, 16, 19, 22, 25, 28]);
    assert_eq!(bench.admin().replays(Some("a")).unwrap()[0].done, 1);
    publish_all(&journal, &given);
    eventually("the end", || journal.active_replays("a") == 0 && journal.resends("a") == 0);
    flush(&journal);
    assert!(bench.admin().replays(None).unwrap().is_empty());
    journal.close();
}

#[test]
fn a_replay_keeps_what_it_needs_and_is_cut_where_room_is_short() {
    let (bench, journal) = with_dead_letters();
    publish(&journal, "a", 30);
    replay(&bench, &Filter::default(), None);
    eventually("the replay", || journal.active_replays("a") == 1);
    bench.forward(2 * DAY_MS);
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(all(&journal).len(), 30);
    let mut n = 100;
    let last = loop {
        match append(&journal, bench.entry_of(n, 10_000)) {
            Ok(Appended::Stored(position)) => {
                for name in ["a", "b"] {
                    publish(&journal, name, position);
                }
            }
            other => panic!("refused for a replay: {other:?}"),
        }
        n += 1;
        if n > 400 {
            break n;
        }
    };
    assert_eq!(last, 401);
    // Where compactions have kept up with that, there was always room; beside what no sink has published there is none.
    for n in 401.. {
        if journal.active_replays("a") == 0 {
            break;
        }
        assert!(matches!(append(&journal, bench.entry_of(n, 10_000)), Ok(Appended::Stored(_))), "refused for a replay");
    }
    assert_eq!((journal.active_replays("a"), journal.resends("a"), journal.resends_dropped()), (0, 0, 30));
    flush(&journal);
    assert!(bench.admin().replays(None).unwrap().is_empty());
    assert!(!journal.is_wanted(&Origin::Replay { id: 1 }));
    let why = || bench.admin().why_cancelled("a", 1).unwrap();
    assert_eq!(why().as_deref(), Some("it was cut, because the journal is full"));
    journal.close();
    let journal = bench.open();
    assert_eq!(why(), None, "a start forgets it");
    journal.close();
}

#[test]
fn a_replay_that_keeps_nothing_is_not_cut() {
    let (bench, journal) = with_dead_letters();
    let mut n = 100;
    while append(&journal, bench.entry_of(n, 10_000)).is_ok() {
        n += 1;
    }
    // Of what no sink has published yet.
    let filter = Filter { id: Some(id(n - 1)), ..Filter::default() };
    replay(&bench, &filter, None);
    eventually("the replay", || journal.active_replays("a") == 1);
    let mut cursor = ResendCursor::default();
    while next(&journal, &mut cursor, ALL).is_empty() {}
    for n in 1_000..1_020 {
        assert_eq!(append(&journal, bench.entry_of(n, 10_000)), Err(AppendError::Full));
    }
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!((journal.active_replays("a"), journal.resends_dropped()), (1, 0));
    journal.close();
}

#[test]
fn a_replay_can_be_cancelled() {
    let (bench, journal) = with_dead_letters();
    let (first, second) = (replay(&bench, &Filter::default(), None), replay(&bench, &Filter::default(), None));
    eventually("the replays", || journal.active_replays("a") == 2);
    let mut cursor = ResendCursor::default();
    let given = next(&journal, &mut cursor, Limits { rows: 3, bytes: usize::MAX });
    let mut admin = bench.admin();
    assert_eq!(admin.replays(None).unwrap().len(), 2);
    assert!(admin.cancel_replay(first).unwrap() && !admin.cancel_replay(first).unwrap());
    eventually("the cancellation", || !journal.is_wanted(&given[0].origin));
    publish_all(&journal, &given);
    flush(&journal);
    let given = next(&journal, &mut cursor, Limits { rows: 1, bytes: usize::MAX });
    assert_eq!((given[0].origin, given[0].record.position), (Origin::Replay { id: second }, 1));
    journal.close();
}

#[test]
fn a_rate_bounds_a_replay_and_does_not_save_up() {
    let (bench, journal) = with_dead_letters();
    replay(&bench, &Filter::default(), Some(10));
    eventually("the replay", || journal.active_replays("a") == 1);
    // Nobody asks for a while: that is no reason to give everything then.
    std::thread::sleep(Duration::from_millis(2_500));
    let begun = Instant::now();
    let (mut cursor, mut given) = (ResendCursor::default(), 0);
    while given < 20 {
        given += next(&journal, &mut cursor, ALL).len();
        let due = 11.0 + begun.elapsed().as_secs_f64() * 10.0;
        assert!((given as f64) <= due, "{given} of {due}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() > Duration::from_millis(800), "{:?}", begun.elapsed());
    journal.close();
}

#[test]
fn a_sparse_replay_is_found_at_once() {
    let bench = Bench::new();
    let journal = bench.open();
    append_all(&journal, (1..=60_000).map(|n| bench.entry_of(n, 1)));
    publish(&journal, "a", 60_000);
    replay(&bench, &Filter { id: Some(id(59_999)), ..Filter::default() }, None);
    eventually("the replay", || journal.active_replays("a") == 1);
    assert_eq!(places(&next(&journal, &mut ResendCursor::default(), ALL)), [59_999]);
    journal.close();
}

#[test]
fn a_replay_passes_over_damaged_events() {
    let (bench, journal) = with_dead_letters();
    publish(&journal, "a", 30);
    journal.close();
    let path = &bench.files("log")[0];
    flip(path, find_text(path, "payload 2 "));
    let journal = bench.open();
    replay(&bench, &Filter::default(), None);
    eventually("the replay", || journal.active_replays("a") == 1);
    let given = next(&journal, &mut ResendCursor::default(), ALL);
    assert_eq!(places(&given), (1..=30).filter(|position| *position != 2).collect::<Vec<_>>());
    publish_all(&journal, &given);
    eventually("the end", || journal.active_replays("a") == 0);
    journal.close();
}

#[test]
fn a_damaged_replay_is_named_and_nothing_is_published_for_it() {
    let (bench, journal) = with_dead_letters();
    replay(&bench, &Filter { key: Some("key 1".into()), ..Filter::default() }, None);
    journal.close();
    state_file(&bench).execute_batch("UPDATE replays SET filter = replace(filter, 'key 1', 'key 2')").unwrap();
    let mut faults = Vec::new();
    bench.admin().verify(|fault| faults.push(fault)).unwrap();
    assert!(matches!(&faults[..], [Fault::State(text)] if text == "replay 1 is damaged"), "{faults:?}");
    let journal = bench.open();
    assert_eq!((journal.active_replays("a"), next(&journal, &mut ResendCursor::default(), ALL).len()), (0, 0));
    journal.close();
}

#[test]
fn a_replay_is_known_before_the_first_segment_is_released() {
    let (bench, journal) = with_dead_letters();
    publish(&journal, "a", 30);
    replay(&bench, &Filter::default(), None);
    journal.close();
    bench.forward(2 * DAY_MS);
    let journal = bench.open();
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(places(&next(&journal, &mut ResendCursor::default(), ALL)).len(), 30);
    journal.close();
}
