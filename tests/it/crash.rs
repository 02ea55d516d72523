//! The crash test: the bridge is killed at random moments under load, with all three brokers behind it, and everything
//! is judged at the end.
//!
//! Ten rounds in the normal run. `tests/run crash` makes it as long as wanted, by these variables:
//!
//! - `TEST_CRASH_ROUNDS`: how often the bridge is killed;
//! - `TEST_CRASH_DELIVERIES`: how many deliveries are sent. If it is set, as fast as they are answered;
//! - `TEST_CRASH_SEED`: decides the moments; printed, and random unless set.
//!
//! The load is a process of its own that outlives every kill. A crash of the load is no part of the test: its record is
//! whole once it has ended by itself, and a record that lacks a delivery fails the test.

use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::support::bridge::{Bridge, Config};
use crate::support::broker::{Kind, Message, Place};
use crate::support::eventually;
use crate::support::load::Load;
use crate::support::oracle::{Id, Judge, Sent, Verdict};
use crate::support::samples::dial;
use crate::support::verdict::{read, sinks_table};

/// One round in so many ends while the bridge still starts.
const DURING_START: u8 = 8;

/// How long a bridge that is killed during its start has lived at most.
const LONGEST_START: Duration = Duration::from_millis(200);

#[test]
fn every_delivery_that_was_answered_200_is_in_every_broker_however_often_the_bridge_is_killed() {
    let long = std::env::var("TEST_CRASH_DELIVERIES").is_ok();
    let rounds = number("TEST_CRASH_ROUNDS").unwrap_or(10);
    let deliveries = number("TEST_CRASH_DELIVERIES").unwrap_or(6_000);
    let seed = number("TEST_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("{rounds} rounds, {deliveries} deliveries, TEST_CRASH_SEED={seed}");
    let begun = Instant::now();

    let places: Vec<Place> = [Kind::Kafka, Kind::RabbitMq, Kind::Nats].map(|kind| kind.place().made()).into();
    let config =
        places.iter().fold(Config::new().fixed_address(), |config, place| place.sink(config, place.kind.label()));
    let mut bridge = config.start();
    let pace: &[&str] = if long { &["--concurrency", "48"] } else { &["--concurrency", "16", "--rate", "300"] };
    let mut load = Load::with(&bridge, deliveries, pace);
    let mut starts_killed = 0;
    let mut rng = Rng::with_seed(seed);
    for (round, moment) in moments(&mut rng, rounds, deliveries).into_iter().enumerate() {
        reaches("deliveries come in", moment, || position(&bridge));
        assert!(load.is_running(), "the load ended too early to prove anything");
        std::thread::sleep(Duration::from_micros(rng.u64(..20_000)));
        bridge.kill_9();
        if rng.u8(..DURING_START) == 0 {
            let starting = config.process(&["serve"]);
            std::thread::sleep(LONGEST_START.mul_f64(rng.f64()));
            starting.kill_9();
            starts_killed += 1;
        }
        bridge = config.start();
        if (round + 1) % 20 == 0 {
            let (done, position) = (round + 1, position(&bridge));
            eprintln!("{done} rounds, {position} events stored, {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    let record = load.record.clone();
    load.finish_within(Duration::from_secs(3600));
    let (mut sent, answers) = read(&record);
    assert_eq!(sent.len() as u64, deliveries, "the record is not whole");
    // What was broken works again.
    let fresh = dial("fresh", 1);
    let id = Id::parse(&bridge.deliver(&fresh).stored());
    sent.push(Sent::new("fresh", Some(id), &serde_json::from_slice(&fresh).unwrap()));
    let stored = position(&bridge);
    reaches("all sinks have caught up", stored, || slowest(&bridge));
    eprintln!("caught up with {stored} events after {:.0} s", begun.elapsed().as_secs_f64());

    let verdicts: Vec<Verdict> = std::thread::scope(|scope| {
        let judging: Vec<_> = places.iter().map(|place| scope.spawn(|| judged(&sent, place))).collect();
        judging.into_iter().map(|thread| thread.join().expect("a verdict")).collect()
    });
    let sinks = || places.iter().map(|place| place.kind.label()).zip(&verdicts);
    let took = begun.elapsed().as_secs();
    let first = [
        ("rounds (kill -9 under load)", rounds),
        ("killed during the start, besides", starts_killed),
        ("seconds", took),
    ];
    eprintln!("\n{}\n{}", answers.table(&first), sinks_table(sinks()));
    for (label, _) in sinks() {
        assert_eq!(bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", label)]), 0.0, "{label}");
    }
    assert!(answers.answered() > deliveries / 2, "too few of {deliveries} were answered 200");
    for verdict in verdicts {
        assert_eq!(verdict.clean().events as u64, stored);
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("expected a number in {variable}, but found {text:?}")))
}

/// How many events are to be stored when the bridge is killed, for each round. The last comes early enough for the load
/// to be still there, though every restart costs it some deliveries.
fn moments(rng: &mut Rng, rounds: u64, deliveries: u64) -> Vec<u64> {
    let mut moments: Vec<u64> = (0..rounds).map(|_| rng.u64(..=deliveries / 100 * 85)).collect();
    moments.sort_unstable();
    moments
}

/// How many events all bridges before this one and it itself have stored: positions have no gaps.
fn position(bridge: &Bridge) -> u64 {
    bridge.status()["journal"]["last_position"].as_u64().expect("a position")
}

/// How far the slowest sink has got.
fn slowest(bridge: &Bridge) -> u64 {
    let status = bridge.status();
    let cursors = status["sinks"].as_array().unwrap().iter().map(|sink| sink["cursor"].as_u64().expect("a cursor"));
    cursors.min().expect("a sink")
}

/// Waits until a number is as large as this, as long as it grows.
#[track_caller]
fn reaches(what: &str, target: u64, mut number: impl FnMut() -> u64) {
    let mut now = number();
    while now < target {
        let before = now;
        eventually(what, || {
            now = number();
            now > before
        });
    }
}

fn judged(sent: &[Sent], place: &Place) -> Verdict {
    let mut judge = Judge::new(sent);
    place.consume_each(|message: Message| judge.hear(&message.arrived()));
    judge.verdict()
}
