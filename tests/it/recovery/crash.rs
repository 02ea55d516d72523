//! The crash test: the bridge is killed at random moments under load, with all three brokers behind it, and everything
//! is judged at the end.
//!
//! Ten rounds in the normal run. `tests/run crash` makes it as long as wanted, by these variables:
//!
//! - `TEST_CRASH_ROUNDS`: how often the bridge is killed;
//! - `TEST_CRASH_DELIVERIES`: how many deliveries are sent. If it is set, as fast as they are answered;
//! - `TEST_CRASH_SEED`: decides the moments; printed, and random unless set.
//!
//! The journal is small, so segments are closed and released all the while. There is a fourth sink whose topics come and
//! go, an operator who replays, cancels, sets aside and requeues, and one of the sinks gets another name on the way.
//!
//! The load is sent by the test itself, which outlives every kill. A crash of the load is no part of the test.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;

use crate::support::bridge::{Bridge, Config};
use crate::support::broker::{Kind, Limits, Message, Place};
use crate::support::load::{Load, Outcome};
use crate::support::oracle::{Arrived, Id, Judge, Sent, Verdict};
use crate::support::process::Stdout;
use crate::support::samples::dial;
use crate::support::verdict::sinks_table;
use crate::support::{PATIENCE, eventually, eventually_within};

/// One round in so many ends while the bridge still starts.
const DURING_START: u8 = 8;

/// How long a bridge that is killed during its start has lived at most.
const LONGEST_START: Duration = Duration::from_millis(200);

/// The sink whose topics come and go, and the one that gets another name.
const LATE: &str = "late";
const RENAMED: Kind = Kind::RabbitMq;

/// How long a stuck event is waited for: the bridge calls one so after 30 s.
const UNTIL_STUCK: Duration = Duration::from_secs(90);

#[test]
fn every_stored_delivery_reaches_every_broker_through_random_kills() {
    let long = std::env::var("TEST_CRASH_DELIVERIES").is_ok();
    let rounds = number("TEST_CRASH_ROUNDS").unwrap_or(10);
    let deliveries = number("TEST_CRASH_DELIVERIES").unwrap_or(6_000);
    let seed = number("TEST_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("{rounds} rounds, {deliveries} deliveries, TEST_CRASH_SEED={seed}");
    let begun = Instant::now();

    let places: Vec<Place> = [Kind::Kafka, Kind::RabbitMq, Kind::Nats].map(|kind| kind.place().made()).into();
    let mut late = ComingAndGoing::new();
    let base = Config::new().fixed_address();
    let base = base.set("journal.max_bytes", "'8MiB'").set("journal.retain_bytes", "'512KiB'");
    let named = |is_renamed: bool| {
        let config = late_sink(&late.place, base.clone());
        places.iter().fold(config, |config, place| place.sink(config, &name_of(place, is_renamed)))
    };
    let (first_config, renamed_config) = (named(false), named(true));
    let mut config = &first_config;
    let mut bridge = config.start();
    let load =
        if long { Load::as_fast_as_answered(&bridge, deliveries, 48) } else { Load::start(&bridge, deliveries, 300) };
    let mut starts_killed = 0;
    let mut rng = Rng::with_seed(seed);
    let mut operator = Operator::default();
    for (round, moment) in (1..).zip(moments(&mut rng, rounds, deliveries)) {
        reaches("deliveries come in", moment, || {
            let now = position(&bridge);
            late.comes_back_at(now);
            now
        });
        assert!(load.is_running(), "the load ended too early to prove anything");
        operator.does_something(&bridge, &mut rng);
        std::thread::sleep(Duration::from_micros(rng.u64(..20_000)));
        bridge.kill_9();
        if rng.u8(..DURING_START) == 0 {
            let starting = config.process(&["serve"]);
            std::thread::sleep(LONGEST_START.mul_f64(rng.f64()));
            starting.kill_9();
            starts_killed += 1;
        }
        if round == rounds / 2 {
            config = &renamed_config;
        }
        // Nobody publishes meanwhile, so nothing is in the topics but what is looked at.
        if round == rounds || round % 3 == 0 {
            late.goes(moment + rng.u64(500..2_500));
        }
        bridge = config.start();
        if round % 20 == 0 {
            let position = position(&bridge);
            eprintln!("{round} rounds, {position} events stored, {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    // The last time it stays away for long enough to be noticed.
    operator.sets_stuck_events_aside(&bridge, &mut late);
    let Outcome { mut sent, answers } = load.finish_within(Duration::from_secs(3600));
    assert_eq!(sent.len() as u64, deliveries);
    // What was broken works again.
    let fresh = dial("fresh", 1);
    let mut id = None;
    eventually("a fresh event is stored", || {
        let answer = bridge.deliver(&fresh);
        id = (answer.status == 200).then(|| Id::parse(&answer.accepted().0));
        id.is_some()
    });
    sent.push(Sent::new("fresh", id, &serde_json::from_slice(&fresh).unwrap()));
    operator.requeues(&bridge);
    let stored = position(&bridge);
    reaches("all sinks have caught up", stored, || slowest(&bridge));
    operator.leaves_nothing(&bridge);
    eprintln!("caught up with {stored} events after {:.0} s", begun.elapsed().as_secs_f64());

    let mut verdicts: Vec<Verdict> = std::thread::scope(|scope| {
        let judging: Vec<_> = places.iter().map(|place| scope.spawn(|| judged(&sent, place))).collect();
        judging.into_iter().map(|thread| thread.join().expect("a verdict")).collect()
    });
    verdicts.push(late.judged(&sent, &operator.moved));
    let sinks = || places.iter().map(|place| place.kind.label()).chain([LATE]).zip(&verdicts);
    let took = begun.elapsed().as_secs();
    let first = [
        ("rounds (kill -9 under load)", rounds),
        ("killed during the start, besides", starts_killed),
        ("the fourth sink's topics went", late.went),
        ("replays", operator.replays),
        ("replays cancelled", operator.cancelled),
        ("set aside and requeued", operator.moved.len() as u64),
        ("seconds", took),
    ];
    eprintln!("\n{}\n{}", answers.table(&first), sinks_table(sinks()));
    assert!(answers.answered() > deliveries / 2, "too few of {deliveries} were answered 200");
    for verdict in verdicts {
        assert_eq!(verdict.clean().events as u64, stored);
    }
    assert!(first_position(&bridge) > stored / 2, "the journal still begins at {}", first_position(&bridge));
}

/// A sink's name, before and after one of them gets another.
fn name_of(place: &Place, is_renamed: bool) -> String {
    let label = place.kind.label();
    if is_renamed && place.kind == RENAMED { format!("{label}-renamed") } else { label.to_owned() }
}

fn late_sink(place: &Place, config: Config) -> Config {
    place.sink(config, LATE)
}

/// Topics that are deleted and created again. What was in them is looked at before.
struct ComingAndGoing {
    place: Place,
    arrived: Vec<Arrived>,
    /// From how many events on they are to be there; `None` while they are.
    away_until: Option<u64>,
    went: u64,
}

impl ComingAndGoing {
    fn new() -> Self {
        Self { place: Kind::Kafka.place().made(), arrived: Vec::new(), away_until: None, went: 0 }
    }

    fn collect(&mut self) {
        let arrived = &mut self.arrived;
        self.place.consume_each(|message: Message| arrived.push(message.arrived()));
    }

    /// To be called while no bridge runs.
    fn goes(&mut self, until: u64) {
        if self.away_until.is_none() {
            self.collect();
            self.place.remove();
            self.went += 1;
        }
        self.away_until = Some(until);
    }

    fn comes_back_at(&mut self, position: u64) {
        if self.away_until.is_some_and(|until| position >= until) {
            self.place.make(Limits::default());
            self.away_until = None;
        }
    }

    fn judged(&mut self, sent: &[Sent], moved: &HashSet<Id>) -> Verdict {
        self.collect();
        let mut judge = Judge::new(sent).moved(moved.iter().copied());
        self.arrived.iter().for_each(|event| judge.hear(event));
        judge.verdict()
    }
}

/// Somebody at the command line.
#[derive(Default)]
struct Operator {
    replays: u64,
    cancelled: u64,
    /// What was set aside.
    moved: HashSet<Id>,
}

impl Operator {
    #[track_caller]
    fn runs(bridge: &Bridge, arguments: &[&str]) -> String {
        let ended = bridge.config().clone().stdout(Stdout::Read).process(arguments).wait();
        assert_eq!(ended.code(), Some(0), "{arguments:?}: {}", ended.stderr());
        ended.stdout()
    }

    fn does_something(&mut self, bridge: &Bridge, rng: &mut Rng) {
        let sinks = bridge.status()["sinks"].as_array().unwrap().clone();
        let sink = rng.choice(&sinks).unwrap()["name"].as_str().unwrap().to_owned();
        match rng.u8(..4) {
            0 => {
                Self::runs(bridge, &["replay", "--sink", &sink, "--since", "1m"]);
                self.replays += 1;
            }
            1 => {
                Self::runs(bridge, &["replay", "--sink", &sink, "--since", "1m", "--rate", "50"]);
                self.replays += 1;
            }
            2 => {
                Self::runs(bridge, &["replay", "cancel", "--all"]);
                self.cancelled += 1;
            }
            _ => self.requeues(bridge),
        }
    }

    /// Dead letters of any sink: there are only those that were set aside.
    fn requeues(&mut self, bridge: &Bridge) {
        let listed = Self::runs(bridge, &["dead-letters", "list", "--output", "json"]);
        for line in listed.lines() {
            let dead_letter: Value = serde_json::from_str(line).unwrap();
            assert_eq!(dead_letter["sink"], LATE, "{dead_letter}");
            self.moved.insert(Id::parse(dead_letter["id"].as_str().unwrap()));
        }
        Self::runs(bridge, &["dead-letters", "requeue", "--all"]);
    }

    /// The topics are away until events are stuck; some of them are set aside, and then the topics are there.
    fn sets_stuck_events_aside(&mut self, bridge: &Bridge, late: &mut ComingAndGoing) {
        assert!(late.away_until.is_some());
        let stuck = || bridge.metrics().find("sendbird_bridge_sink_stuck_records", &[("sink", LATE)]).unwrap_or(0.0);
        eventually_within(UNTIL_STUCK, "events are stuck", || stuck() > 3.0);
        // The metric is there before the rows that commands read.
        eventually("they are listed", || {
            Self::runs(bridge, &["stuck", "list", "--output", "json"]).lines().count() >= 3
        });
        Self::runs(bridge, &["stuck", "set-aside", "--sink", LATE, "--limit", "3"]);
        let dead = || bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", LATE)]);
        assert_eq!(dead(), 3.0, "set aside");
        late.comes_back_at(u64::MAX);
        self.requeues(bridge);
        eventually("they are published", || dead() == 0.0);
    }

    /// Waits for replays, as far as they are not cancelled, and makes sure that nothing is set aside.
    fn leaves_nothing(&mut self, bridge: &Bridge) {
        Self::runs(bridge, &["replay", "cancel", "--all"]);
        let left = |name: &str| bridge.metrics().find(name, &[]).unwrap_or(0.0);
        eventually_within(PATIENCE * 2, "nothing is left to resend", || {
            left("sendbird_bridge_sink_resends_pending") == 0.0 && left("sendbird_bridge_sink_dead_letters") == 0.0
        });
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

fn first_position(bridge: &Bridge) -> u64 {
    bridge.status()["journal"]["first_position"].as_u64().expect("a position")
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
