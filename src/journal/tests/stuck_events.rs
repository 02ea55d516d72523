//! Events that their targets do not take, and setting them aside.

use super::state_file::stuck_event;
use super::*;

fn with_stuck_events() -> (Bench, Journal) {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=20, 100);
    publish_but(&journal, "a", 20, &[3, 4, 6, 9, 12]);
    journal.record_stuck("a", vec![stuck_event(3), stuck_event(4)]);
    flush(&journal);
    (bench, journal)
}

fn listed(bench: &Bench) -> Vec<u64> {
    let listed = bench.admin().stuck(&StuckFilter::default(), 100).unwrap();
    listed.iter().map(|listed| listed.stuck.position).collect()
}

#[test]
fn stuck_events_are_listed_with_their_events_and_what_waits_behind() {
    let (bench, journal) = with_stuck_events();
    let admin = bench.admin();
    let found = admin.stuck(&StuckFilter::default(), 100).unwrap();
    let [first, second] = &found[..] else { panic!("{found:?}") };
    assert_eq!((first.sink.as_str(), &first.stuck, first.waiting_behind), ("a", &stuck_event(3), 3), "6, 9 and 12");
    assert_eq!(first.event.as_ref().unwrap().key, "key 0");
    assert_eq!((second.stuck.position, second.waiting_behind), (4, 0));
    let count = |filter: StuckFilter| admin.stuck(&filter, 100).unwrap().len();
    assert_eq!(count(StuckFilter { key: Some("key 1".into()), ..StuckFilter::default() }), 1);
    assert_eq!(count(StuckFilter { id: Some(id(3)), kind: Some("t".into()), ..StuckFilter::default() }), 1);
    assert_eq!(count(StuckFilter { reason: Some("other".into()), ..StuckFilter::default() }), 0);
    assert_eq!(count(StuckFilter { sink: Some("b".into()), ..StuckFilter::default() }), 0);
    assert_eq!(admin.stuck(&StuckFilter::default(), 1).unwrap().len(), 1);
    assert_eq!(admin.summary().unwrap().sinks[0].stuck, 2);
    journal.close();
}

#[test]
fn a_start_knows_the_targets_of_what_is_stuck() {
    let (bench, journal) = with_stuck_events();
    let alone = StuckEvent { target: "".into(), ..stuck_event(6) };
    let other = StuckEvent { target: "topic \"y\"".into(), since_ms: 4, ..stuck_event(9) };
    journal.record_stuck("a", vec![alone, StuckEvent { since_ms: 5, detail: "gone".into(), ..stuck_event(12) }, other]);
    flush(&journal);
    journal.close();
    let journal = bench.open();
    let mut found = Vec::new();
    journal.for_each_stuck("a", |StuckEvent { position, target, since_ms, detail, .. }| {
        found.push((position, target.to_string(), since_ms, detail.to_string()));
    });
    let event =
        |position, target: &str, since_ms, detail: &str| (position, target.to_owned(), since_ms, detail.to_owned());
    let expected = [
        event(3, "topic \"x\"", 7, "unknown topic"),
        event(4, "topic \"x\"", 7, "unknown topic"),
        event(6, "", 7, "unknown topic"),
        event(9, "topic \"y\"", 4, "unknown topic"),
        event(12, "topic \"x\"", 5, "gone"),
    ];
    assert_eq!(found, expected);
    journal.close();
}

#[test]
fn what_is_published_is_stuck_no_more_also_after_a_restart() {
    let (bench, journal) = with_stuck_events();
    assert_eq!(listed(&bench), [3, 4]);
    journal.acknowledge("a", 3);
    flush(&journal);
    assert_eq!(listed(&bench), [4]);
    journal.close();
    let journal = bench.open();
    assert_eq!(listed(&bench), [4], "it waits still");
    // It was recorded by an earlier run, and not by this one.
    journal.acknowledge("a", 4);
    flush(&journal);
    assert_eq!(listed(&bench), [0; 0]);
    journal.close();
}

#[test]
fn a_stuck_event_that_is_recorded_after_a_restart_is_stuck_since_the_first_time() {
    let (bench, journal) = with_stuck_events();
    journal.close();
    let journal = bench.open();
    let later = StuckEvent { since_ms: 99, tries: 8, detail: "still".into(), ..stuck_event(3) };
    journal.record_stuck("a", vec![later]);
    flush(&journal);
    let found = bench.admin().stuck(&StuckFilter::default(), 1).unwrap();
    let stuck = &found[0].stuck;
    assert_eq!((stuck.since_ms, stuck.tries, &*stuck.detail), (7, 8, "still"));
    journal.close();
}

#[test]
fn what_does_not_wait_is_not_stuck() {
    let (bench, journal) = with_stuck_events();
    journal.record_stuck("a", vec![stuck_event(5), stuck_event(6)]);
    flush(&journal);
    assert_eq!(listed(&bench), [3, 4, 6]);
    journal.close();
}

#[test]
fn a_dead_letter_is_kept_once_and_its_event_waits_no_more() {
    let (bench, journal) = with_stuck_events();
    block_on(journal.set_aside(dead_letter("a", 3))).unwrap();
    block_on(journal.set_aside(DeadLetter { detail: "newer".into(), ..dead_letter("a", 3) })).unwrap();
    assert_eq!((journal.dead_letters("a"), journal.pending("a")), (1, 4));
    assert_eq!(listed(&bench), [4]);
    journal.close();
    let journal = bench.open();
    assert_eq!((journal.dead_letters("a"), journal.pending("a")), (1, 4));
    let stored = bench.admin().dead_letters(Some("a"), Some(&id(3))).unwrap();
    assert_eq!((stored.len(), stored[0].dead_letter.detail.as_str()), (1, "newer"));
    let event = stored[0].event.as_ref().unwrap();
    assert!(event.payload.starts_with(b"payload 3 ") && event.key == "key 0" && event.position == 3);
    journal.close();
}

#[test]
fn what_is_no_longer_kept_becomes_no_dead_letter() {
    let (_bench, journal) = with_stuck_events();
    block_on(journal.set_aside(dead_letter("a", 999))).unwrap();
    assert_eq!(journal.dead_letters("a"), 0);
    journal.close();
}

/// What the pipeline does with the requests that it is given.
fn carry_out(journal: &Journal, requests: &[u64]) {
    let set_aside = |position| DeadLetter {
        reason: "set_aside".into(),
        detail: "set aside by an operator".into(),
        ..dead_letter("a", position)
    };
    let is_waiting = |position| journal.shared.sinks.get("a").unwrap().progress().waiting.contains(position);
    let (waiting, gone): (Vec<u64>, Vec<u64>) = requests.iter().copied().partition(|position| is_waiting(*position));
    waiting.into_iter().for_each(|position| block_on(journal.set_aside(set_aside(position))).unwrap());
    journal.decline_set_aside("a", &gone);
}

#[test]
fn a_running_bridge_sets_aside_what_an_operator_asks_for() {
    let (bench, journal) = with_stuck_events();
    let mut admin = bench.admin();
    let events = admin.stuck(&StuckFilter::default(), 100).unwrap();
    // Meanwhile one is published, before the bridge has seen the request.
    journal.acknowledge("a", 4);
    let command = std::thread::spawn(move || admin.set_aside(&events, true, 9, Duration::from_secs(20)).unwrap());
    let mut given = Vec::new();
    eventually("the requests", || {
        let requests = journal.set_aside_requests("a");
        carry_out(&journal, &requests);
        given.extend(requests);
        command.is_finished()
    });
    given.sort_unstable();
    given.dedup();
    assert!(given == [3, 6, 9, 12] || given == [3, 4, 6, 9, 12], "{given:?}");
    assert_eq!(command.join().unwrap(), (4, 1));
    assert_eq!((journal.dead_letters("a"), journal.pending("a"), listed(&bench).len()), (4, 0, 0));
    let stored = bench.admin().dead_letters(None, Some(&id(3))).unwrap();
    let DeadLetter { reason, detail, .. } = &stored[0].dead_letter;
    assert_eq!((reason.as_str(), detail.as_str()), ("no_target", "set aside by an operator: unknown topic"));
    let stored = bench.admin().dead_letters(None, Some(&id(6))).unwrap();
    assert_eq!(stored[0].dead_letter.reason, "set_aside", "it was never tried");
    journal.close();
}

#[test]
fn a_request_is_given_once() {
    let (bench, journal) = with_stuck_events();
    let request = |position: i64| {
        let sql = "INSERT INTO set_aside_requests (sink, position) VALUES ('a', ?1)";
        state_file(&bench).execute(sql, [position]).unwrap();
    };
    request(3);
    eventually("the request", || journal.set_aside_requests("a") == [3]);
    request(4);
    eventually("the other", || journal.set_aside_requests("a") == [4]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(journal.set_aside_requests("a"), [0; 0]);
    journal.close();
    let journal = bench.open();
    assert_eq!(journal.set_aside_requests("a"), [3, 4], "after a start they are given again");
    journal.close();
}

#[test]
fn a_bridge_that_does_not_answer_leaves_the_request() {
    let (bench, journal) = with_stuck_events();
    let mut admin = bench.admin();
    let events = admin.stuck(&StuckFilter::default(), 1).unwrap();
    let outcome = admin.set_aside(&events, false, 9, Duration::from_millis(300));
    assert!(matches!(outcome, Err(AdminError::NotCarriedOut { left: 1, .. })), "{outcome:?}");
    eventually("the request", || journal.set_aside_requests("a") == [3]);
    journal.close();
}

#[test]
fn on_a_stopped_directory_events_are_set_aside_at_once() {
    let (bench, journal) = with_stuck_events();
    journal.close();
    let mut admin = bench.admin();
    let events = admin.stuck(&StuckFilter::default(), 100).unwrap();
    assert_eq!(admin.set_aside(&events, false, 9, Duration::ZERO).unwrap(), (2, 0));
    assert_eq!(admin.set_aside(&events, false, 9, Duration::ZERO).unwrap(), (0, 2), "they wait no more");
    assert!(admin.stuck(&StuckFilter::default(), 100).unwrap().is_empty());
    let stored = admin.dead_letters(None, None).unwrap();
    assert_eq!(stored.iter().map(|stored| stored.dead_letter.reason.as_str()).collect::<Vec<_>>(), ["no_target"; 2]);
    let journal = bench.open();
    assert_eq!((journal.dead_letters("a"), waiting(&journal.resume("a"))), (2, vec![6, 9, 12]));
    journal.close();
}

#[test]
fn a_damaged_event_is_set_aside_and_named() {
    let (bench, journal) = with_stuck_events();
    journal.close();
    let path = &bench.files("log")[0];
    flip(path, find_text(path, "payload 3 "));
    let journal = bench.open();
    assert!(matches!(journal.reader().at(3).unwrap(), Some(Row::Damaged { position: 3, .. })));
    block_on(journal.set_aside(dead_letter("a", 3))).unwrap();
    let stored = bench.admin().dead_letters(None, None).unwrap();
    assert_eq!((stored.len(), &stored[0].event), (1, &None));
    assert_eq!(bench.admin().requeue(&stored).unwrap(), 0, "nothing can be published");
    journal.close();
}

#[test]
fn a_million_waiting_positions_take_little_room() {
    let mut positions = crate::journal::positions::Positions::default();
    for n in 0..1_000_000_u64 {
        positions.insert(n * 2 + 7);
    }
    let bytes: usize = positions.take_changed().iter().map(|(_, bytes)| bytes.as_ref().unwrap().len()).sum();
    assert!(bytes < 300_000, "{bytes}");
}
