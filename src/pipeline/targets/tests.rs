//! Parked targets: when they are tried, and how many at once.

use std::collections::{BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;
use crate::journal::WaitingKey;
use crate::pipeline::queue::KeyedQueue;
use crate::pipeline::stuck::STUCK_AFTER;

const WINDOW: usize = 1000;

/// Targets in a time of their own.
struct Bench {
    targets: Targets,
    begun: Instant,
    now: Instant,
}

fn target(n: u64) -> Scope {
    Scope::Target(Target::new(format!("topic \"{n}\"")))
}

fn head(n: u64) -> Head {
    Head::new(Place::live(n), n)
}

fn queue(events: u64) -> KeyedQueue {
    let waiting = (1..=events).map(|position| WaitingKey { position, key_hash: position });
    KeyedQueue::resume(&waiting.collect::<Vec<_>>())
}

fn fault(detail: &str) -> Fault {
    Fault { reason: Reason::NotFound, detail: detail.into() }
}

fn stuck(position: u64, scope: &Scope) -> StuckEvent {
    let (reason, detail) = ("not_found".into(), "no such topic".into());
    StuckEvent { position, since_ms: 3, tries: 1, reason, detail, target: scope.shared_words() }
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self { targets: Targets::new(now), begun: now, now }
    }

    fn moment(&self) -> Moment {
        Moment { at: self.now, connected: self.now - self.begun, unix_ms: 7, random: 1.0 }
    }

    fn failed(&mut self, scope: &Scope, n: u64) {
        let now = self.moment();
        self.targets.failed(scope, head(n), &fault("no such topic"), &now);
    }

    fn park(&mut self, scope: &Scope, head: Head) {
        self.targets.park(scope, head, self.now);
    }

    fn succeeded(&mut self, n: u64) {
        self.targets.succeeded(Place::live(n), None, WINDOW);
    }

    fn wait(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// The positions of everything that may be tried now.
    fn release(&mut self) -> Vec<u64> {
        let released = std::iter::from_fn(|| self.targets.release(self.now, WINDOW));
        released.filter_map(|head| head.place.position()).collect()
    }
}

#[test]
fn one_event_of_a_failing_target_is_tried_after_a_growing_pause() {
    let mut bench = Bench::new();
    bench.failed(&target(1), 2);
    bench.failed(&target(1), 1);
    bench.park(&target(1), head(3));
    assert!(bench.targets.holds(Place::live(4), &target(1)) && !bench.targets.holds(Place::live(4), &target(2)));
    for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
        bench.wait(pause - 1);
        assert_eq!(bench.release(), [0; 0], "{pause}");
        bench.wait(1);
        assert_eq!(bench.targets.next_release(WINDOW), Some(bench.now));
        assert_eq!(bench.release(), [2], "what failed last is tried first");
        assert!(!bench.targets.holds(Place::live(2), &target(1)));
        bench.wait(10_000);
        assert_eq!(bench.release(), [0; 0], "one at a time");
        bench.failed(&target(1), 2);
    }
}

#[test]
fn of_a_target_that_failed_before_a_restart_one_event_is_tried_and_the_others_wait() {
    let mut bench = Bench::new();
    let now = bench.moment();
    (1..=2).for_each(|n| bench.targets.resume(&stuck(n, &target(n)), None, &now));
    assert_eq!(bench.release(), [0; 0], "nothing is known to go there yet");
    assert!(bench.targets.holds(Place::live(5), &target(1)));
    bench.park(&target(1), head(5));
    bench.park(&target(1), head(6));
    assert_eq!(bench.release(), [5], "one at once");
    let mut queue = queue(6);
    let stuck = bench.targets.newly_stuck(&mut queue, Duration::ZERO, 100);
    assert!(stuck.iter().any(|event| event.position == 6 && event.since_ms == 3), "{stuck:?}");
    bench.succeeded(5);
    assert_eq!(bench.release(), [6]);
    bench.succeeded(6);
    bench.wait(EXPECTED.as_millis() as u64);
    assert_eq!(bench.release(), [0; 0]);
    assert!(bench.targets.is_empty(), "the other is forgotten");
}

#[test]
fn what_was_stuck_before_a_restart_is_tried_with_one_event_and_follows_when_it_succeeds() {
    let mut bench = Bench::new();
    let scope = target(1);
    let waiting = [4, 5, 6].map(|position| WaitingKey { position, key_hash: position });
    let mut queue = KeyedQueue::resume(&waiting);
    let now = bench.moment();
    for n in 4..=6 {
        assert!(queue.resume_stuck(head(n)));
        let since_ms = if n == 5 { 2 } else { 3 };
        let detail = format!("no such topic, {n}").into();
        bench.targets.resume(&StuckEvent { since_ms, detail, ..stuck(n, &scope) }, Some(head(n)), &now);
    }
    let parked = &bench.targets.parked[&scope];
    assert_eq!((parked.since_ms, &*parked.detail), (2, "no such topic, 5"), "of the oldest");
    check_probes(&bench.targets);
    assert_eq!(bench.release(), [4], "one at once");
    bench.failed(&scope, 4);
    bench.wait(5_000);
    assert_eq!(bench.release(), [4], "once more after a pause");
    assert!(bench.targets.newly_stuck(&mut queue, Duration::ZERO, 9).is_empty(), "they are recorded");
    bench.succeeded(4);
    assert_eq!(bench.release(), [5, 6]);
}

#[test]
fn after_a_success_the_rest_follow_in_order_and_more_at_a_time() {
    let mut bench = Bench::new();
    bench.failed(&target(1), 9);
    (1..9).rev().for_each(|n| bench.park(&target(1), head(n)));
    bench.wait(100);
    assert_eq!(bench.release(), [9]);
    bench.succeeded(9);
    assert_eq!(bench.release(), [1, 2]);
    bench.succeeded(2);
    bench.succeeded(1);
    assert_eq!(bench.release(), [3, 4, 5, 6]);
    bench.park(&target(1), head(10));
    bench.failed(&target(1), 4);
    for n in [3, 5] {
        bench.targets.withdrawn(Place::live(n), bench.now);
    }
    assert_eq!(bench.release(), [0; 0], "it fails");
    bench.wait(100);
    bench.targets.withdrawn(Place::live(6), bench.now);
    assert_eq!(bench.release(), [4]);
    bench.succeeded(4);
    assert_eq!(bench.release(), [7, 8]);
    bench.succeeded(7);
    bench.succeeded(8);
    assert_eq!(bench.release(), [10]);
    bench.succeeded(10);
    assert!(bench.targets.is_empty());
}

#[test]
fn an_event_that_fails_for_its_own_reason_is_parked_under_itself() {
    let mut bench = Bench::new();
    bench.failed(&Scope::Event(Place::live(1)), 1);
    bench.failed(&Scope::Event(Place::live(2)), 2);
    assert!(!bench.targets.holds(Place::live(3), &target(1)));
    bench.wait(100);
    assert_eq!(bench.release().into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([1, 2]));
    bench.succeeded(1);
    bench.succeeded(2);
    assert!(bench.targets.is_empty());
}

#[test]
fn an_event_may_fail_for_its_target_and_then_for_another_reason() {
    let mut bench = Bench::new();
    bench.failed(&target(1), 1);
    bench.park(&target(1), head(2));
    bench.wait(100);
    assert_eq!(bench.release(), [1]);
    bench.failed(&target(2), 1);
    assert_eq!(bench.release(), [2], "nobody knows yet how the first target is");
    bench.succeeded(2);
    assert_eq!(bench.targets.len(), 1);
    bench.wait(100);
    assert_eq!(bench.release(), [1]);
    bench.succeeded(1);
    assert!(bench.targets.is_empty());
}

#[test]
fn a_target_that_an_unparked_event_has_reached_is_tried_at_once() {
    let mut bench = Bench::new();
    bench.failed(&target(1), 1);
    bench.targets.succeeded(Place::live(5), Some(&target(1)), WINDOW);
    assert_eq!(bench.release(), [1]);
}

#[test]
fn a_silent_target_is_not_tried_until_it_answers() {
    let mut bench = Bench::new();
    let now = bench.moment();
    bench.targets.fell_silent(target(1), head(1), Duration::ZERO, &now);
    bench.park(&target(1), head(2));
    bench.wait(60_000);
    assert_eq!((bench.release(), bench.targets.next_release(WINDOW)), (vec![], None));
    bench.succeeded(1);
    assert_eq!(bench.release(), [2]);
    bench.succeeded(2);
    assert!(bench.targets.is_empty());

    let now = bench.moment();
    bench.targets.fell_silent(target(1), head(3), Duration::ZERO, &now);
    bench.failed(&target(1), 3);
    assert_eq!(bench.targets.silent_scope(Place::live(3)), None);
    bench.wait(100);
    assert_eq!(bench.release(), [3], "given up");
}

#[test]
fn a_part_of_a_target_that_falls_silent_leaves_the_rest_to_be_tried() {
    let mut bench = Bench::new();
    bench.failed(&target(1), 1);
    bench.park(&target(1), head(2));
    bench.wait(1_000);
    assert_eq!(bench.release(), [1]);
    let now = bench.moment();
    bench.targets.fell_silent(target(2), head(1), Duration::ZERO, &now);
    bench.wait(1_000);
    assert_eq!(bench.release(), [2]);
    bench.succeeded(2);
    bench.succeeded(1);
    assert!(bench.targets.is_empty());
}

#[test]
fn of_many_events_that_are_stuck_at_once_some_are_recorded_in_each_tick() {
    let mut bench = Bench::new();
    let mut queue = queue(9);
    bench.failed(&target(1), 1);
    bench.wait(STUCK_AFTER.as_millis() as u64);
    let recorded = |bench: &mut Bench, queue: &mut KeyedQueue| {
        let connected = bench.moment().connected;
        bench.targets.newly_stuck(queue, connected, 3).iter().map(|event| event.position).collect::<Vec<_>>()
    };
    assert_eq!(recorded(&mut bench, &mut queue), [1]);
    (2..=9).for_each(|n| bench.park(&target(1), head(n)));
    assert_eq!(recorded(&mut bench, &mut queue), [2, 3, 4]);
    assert_eq!(recorded(&mut bench, &mut queue), [5, 6, 7]);
    assert_eq!(recorded(&mut bench, &mut queue), [8, 9]);
}

#[test]
fn events_of_a_target_are_stuck_after_30_s_of_failures() {
    let (mut bench, mut queue) = (Bench::new(), queue(5));
    for scope in [target(1), Scope::Event(Place::live(3))] {
        bench.failed(&scope, if scope == target(1) { 1 } else { 3 });
    }
    bench.park(&target(1), head(2));
    let stuck = |bench: &mut Bench, queue: &mut KeyedQueue, most| {
        let connected = bench.moment().connected;
        let events = bench.targets.newly_stuck(queue, connected, most);
        events.into_iter().map(|event| (event.position, event.target, event.detail)).collect::<BTreeSet<_>>()
    };
    bench.now += STUCK_AFTER - Duration::from_millis(1);
    assert_eq!(stuck(&mut bench, &mut queue, 9), BTreeSet::new());
    bench.wait(1);
    let event = |position, target: &str| (position, Arc::from(target), Arc::from("no such topic"));
    let expected = [event(1, "topic \"1\""), event(2, "topic \"1\""), event(3, "")];
    assert_eq!(stuck(&mut bench, &mut queue, 9), BTreeSet::from(expected));
    assert_eq!((stuck(&mut bench, &mut queue, 9), queue.stuck()), (BTreeSet::new(), 3), "once");
    bench.park(&target(1), head(4));
    assert_eq!(stuck(&mut bench, &mut queue, 9), BTreeSet::from([event(4, "topic \"1\"")]), "at once");
    while !bench.release().contains(&1) {
        bench.wait(100);
    }
    bench.succeeded(1);
    queue.finish(head(1));
    bench.park(&target(1), head(5));
    assert_eq!((stuck(&mut bench, &mut queue, 9), queue.stuck()), (BTreeSet::new(), 3), "the target works");
}

#[test]
fn many_stuck_events_are_returned_in_parts() {
    let (mut bench, mut queue) = (Bench::new(), queue(1000));
    bench.failed(&target(1), 1);
    (2..=1000).for_each(|n| bench.park(&target(1), head(n)));
    let mut found = HashSet::new();
    for _ in 0..11 {
        let events = bench.targets.newly_stuck(&mut queue, STUCK_AFTER, 100);
        assert!(events.len() <= 101);
        found.extend(events.into_iter().map(|event| event.position));
    }
    assert_eq!((found.len(), queue.stuck()), (1000, 1000));
}

/// Lets all targets be tried for `seconds`, and `works` says whether a try succeeds. Returns how many were made.
fn run(bench: &mut Bench, seconds: u64, works: bool) -> usize {
    let (mut tries, end) = (0, bench.now + Duration::from_secs(seconds));
    while bench.now < end && !bench.targets.is_empty() {
        for n in bench.release() {
            tries += 1;
            if works { bench.succeeded(n) } else { bench.failed(&target(n), n) }
        }
        bench.wait(2);
    }
    tries
}

#[test]
fn a_hundred_thousand_failing_targets_cost_few_tries_and_are_drained_in_seconds_when_they_work() {
    let mut bench = Bench::new();
    (1..=100_000).for_each(|n| bench.failed(&target(n), n));
    bench.wait(100);
    let tries = run(&mut bench, 60, false);
    assert!((2900..=3010).contains(&tries), "{tries} in 60 s");
    let begun = bench.now;
    run(&mut bench, 60, true);
    let seconds = (bench.now - begun).as_secs();
    assert!(bench.targets.is_empty() && seconds < 10, "{} are left after {seconds} s", bench.targets.len());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// An event is tried.
    Try {
        target: u64,
    },
    /// A released event succeeds, fails for its target, for itself, or falls silent.
    Answer {
        choice: usize,
        outcome: u8,
    },
    /// A silent one is answered.
    Late {
        choice: usize,
        outcome: u8,
    },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0u64..4).prop_map(|target| Step::Try { target }),
        4 => (any::<usize>(), 0u8..5).prop_map(|(choice, outcome)| Step::Answer { choice, outcome }),
        1 => (any::<usize>(), 0u8..3).prop_map(|(choice, outcome)| Step::Late { choice, outcome }),
        2 => (0u64..6000).prop_map(Step::Wait),
    ]
}

/// Each target that has a probe due is in the list once, under the one copy of its name.
fn check_probes(targets: &Targets) {
    let due: BTreeSet<_> = targets.parked.iter().filter_map(|(scope, parked)| Some((parked.due?, scope))).collect();
    assert!(due.iter().copied().eq(targets.probes.iter().map(|(due, scope)| (*due, scope))), "{targets:?}");
    for ((_, scope), (_, probed)) in due.into_iter().zip(&targets.probes) {
        let (Scope::Target(scope), Scope::Target(probed)) = (scope, probed) else { continue };
        assert!(Arc::ptr_eq(&scope.shared(), &probed.shared()), "two copies of {scope}");
    }
}

proptest! {
    /// Whatever fails and falls silent: each event is released once at a time, and when everything succeeds all are
    /// released in the end and nothing is left.
    #[test]
    fn no_parked_event_is_forgotten(steps in prop::collection::vec(step(), 1..100)) {
        let mut bench = Bench::new();
        let (mut n, mut out, mut silent) = (0, Vec::<u64>::new(), Vec::<u64>::new());
        let mut parked = BTreeSet::new();
        let goes_to = |n: u64| target(n % 4);
        for step in steps {
            match step {
                Step::Try { target: to } => {
                    n += 4;
                    let event = n + to;
                    if bench.targets.holds(Place::live(event), &goes_to(event)) {
                        bench.park(&goes_to(event), head(event));
                    } else {
                        bench.failed(&goes_to(event), event);
                    }
                    parked.insert(event);
                }
                Step::Answer { choice, outcome } => {
                    if out.is_empty() { continue }
                    let event = out.swap_remove(choice % out.len());
                    let now = bench.moment();
                    match outcome {
                        0 => bench.succeeded(event),
                        1 => bench.failed(&goes_to(event), event),
                        2 => bench.failed(&Scope::Event(Place::live(event)), event),
                        3 => bench.targets.fell_silent(goes_to(event), head(event), now.connected, &now),
                        _ => bench.targets.withdrawn(Place::live(event), bench.now),
                    }
                    match outcome {
                        1 | 2 => drop(parked.insert(event)),
                        3 => silent.push(event),
                        _ => {}
                    }
                }
                Step::Late { choice, outcome } => {
                    if silent.is_empty() { continue }
                    let event = silent.swap_remove(choice % silent.len());
                    match outcome {
                        0 => bench.succeeded(event),
                        1 => {
                            bench.failed(&goes_to(event), event);
                            parked.insert(event);
                        }
                        _ => bench.targets.withdrawn(Place::live(event), bench.now),
                    }
                }
                Step::Wait(ms) => bench.wait(ms),
            }
            for event in bench.release() {
                prop_assert!(parked.remove(&event), "{} was not parked", event);
                out.push(event);
            }
            check_probes(&bench.targets);
        }
        out.drain(..).chain(silent.drain(..)).for_each(|event| bench.succeeded(event));
        for _ in 0..2000 {
            for event in bench.release() {
                prop_assert!(parked.remove(&event));
                bench.succeeded(event);
            }
            bench.wait(20);
        }
        prop_assert_eq!(parked, BTreeSet::new());
        prop_assert!(bench.targets.is_empty() && bench.targets.probing == 0 && bench.targets.released.is_empty());
    }
}
