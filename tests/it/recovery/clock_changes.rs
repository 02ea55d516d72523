//! The wall clock is set while the bridge runs, and between two of its lives; and deliveries may carry any time at all.
//!
//! The shim puts the clock of the bridge's process ahead or back. What is measured with the monotonic clock (deadlines,
//! pauses, ticks) it leaves alone, as setting a machine's clock does.

use std::time::Duration;

use serde_json::Value;

use crate::support::bridge::{Bridge, Config, signed};
use crate::support::crash_state::printed;
use crate::support::http::Connection;
use crate::support::load::{Load, stored_by};
use crate::support::oracle::judge;
use crate::support::process::Stdout;
use crate::support::samples::dial;
use crate::support::shim::Shim;
use crate::support::{PATIENCE, eventually};

const SECOND: i64 = 1_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// Seconds, hours and days, past the window and the keep, to 2100, before 2020, nearly to 1970, and nearly to the year
/// 9999. What lies outside of those two has no `Date` in HTTP: the library panics there, and answers nothing.
const JUMPS: [i64; 10] = [
    3 * SECOND,
    -3 * SECOND,
    5 * HOUR,
    -5 * HOUR,
    40 * DAY,
    -40 * DAY,
    74 * YEAR,
    -20 * YEAR,
    -55 * YEAR,
    7_900 * YEAR,
];

/// No impossible time is reported: none is negative.
#[track_caller]
fn no_metric_is_negative(bridge: &Bridge) {
    let metrics = bridge.metrics();
    let negative: Vec<&str> =
        metrics.text.lines().filter(|line| !line.starts_with('#') && line.contains(" -")).collect();
    assert!(negative.is_empty(), "{negative:#?}");
}

/// Each event has the times that an envelope promises.
fn times_are_rfc3339(envelope: &Value) {
    for attribute in ["time", "receivedtime"] {
        let time = envelope[attribute].as_str().expect("a time");
        let parsed: Result<jiff::Timestamp, _> = time.parse();
        assert!(parsed.is_ok() && time.len() == 24 && time.ends_with('Z'), "{attribute} is {time}");
    }
}

#[test]
fn clock_jumps_under_load_cause_no_delay_duplicate_or_loss() {
    let (shim, config) = Shim::under(Config::new().fixed_address().stdout_sink(Stdout::Read));
    let bridge = config.start();
    let load = Load::start(&bridge, 3_000, 400);
    for ahead in JUMPS {
        let before = stored_by(&bridge);
        shim.set_clock_ahead(ahead);
        eventually("deliveries are stored", || stored_by(&bridge) >= before + 100.0);
        let printed = bridge.printed().count();
        eventually("events are published", || bridge.printed().count() >= printed + 100);
        no_metric_is_negative(&bridge);
        assert!(bridge.is_ready());
    }
    assert!(load.is_running(), "the load ended too early to prove anything");
    shim.set_clock_ahead(0);
    let load = load.finish();
    assert!(load.is_all_200(), "every delivery is answered 200 in time");
    bridge.caught_up();
    let lines = bridge.stop().stdout;
    lines.iter().for_each(|line| times_are_rfc3339(&serde_json::from_str(line).unwrap()));
    let verdict = judge(&load.sent, &printed(&lines)).exactly_once();
    eprintln!("{} jumps while it ran: answered 200 {}, lost 0, duplicates 0", JUMPS.len(), verdict.events);
}

/// A retry inside the window is known, wherever the clock has gone in between. Forgotten is what the clock says is past
/// the window: after a jump ahead that may be a retry that comes seconds later. It is then published again, under the
/// same id, as any that comes after the window. A jump back only makes the window longer.
#[test]
fn ids_are_known_as_long_as_the_clock_says() {
    let (shim, config) = Shim::under(Config::new());
    let mut bridge = config.start();
    let mut ids = Vec::new();
    let mut restarted = false;
    let mut at = 0;
    for ahead in [0, 20 * 60 * SECOND, -DAY, -DAY + 20 * 60 * SECOND, -20 * YEAR, -55 * YEAR] {
        shim.set_clock_ahead(ahead);
        if restarted {
            bridge.kill_9();
            bridge = config.start();
        }
        restarted = !restarted;
        at += 1;
        ids.push(bridge.deliver(&dial("a", at)).stored());
        for (at, id) in (1..).zip(&ids) {
            assert_eq!(&bridge.deliver(&dial("a", at)).duplicate(), id, "{ahead} ms ahead");
        }
    }
    assert_eq!(bridge.events().len(), ids.len());

    shim.set_clock_ahead(3 * HOUR);
    eventually("the ids are forgotten", || bridge.metric("sendbird_bridge_dedup_ids", &[]) == 0.0);
    assert_eq!(bridge.deliver(&dial("a", 1)).stored(), ids[0], "under the same id");
    // At a start, and what was accepted ahead of the clock is known for all the longer.
    shim.set_clock_ahead(6 * HOUR);
    bridge.kill_9();
    bridge = config.start();
    assert_eq!(bridge.deliver(&dial("a", 1)).stored(), ids[0]);
    shim.set_clock_ahead(0);
    bridge.kill_9();
    bridge = config.start();
    assert_eq!(bridge.deliver(&dial("a", 1)).duplicate(), ids[0]);
}

#[test]
fn what_is_not_published_is_kept_whatever_the_clock_says() {
    let (shim, config) = Shim::under(Config::new().stdout_sink(Stdout::Held));
    let mut bridge = config.start();
    let sent: Vec<String> = (0..300).map(|at| bridge.deliver(&dial("a", at)).stored()).collect();
    for (number, ahead) in (0..).zip([2 * DAY, -2 * DAY, 74 * YEAR, -55 * YEAR, 7_900 * YEAR]) {
        shim.set_clock_ahead(ahead);
        if ahead < 0 {
            bridge.deliver(&dial("b", number)).stored();
            assert!(bridge.status()["sinks"][0]["oldest_pending_seconds"].as_f64().unwrap() >= 0.0);
        } else {
            // The sweep that forgets the ids deletes old events, too.
            eventually("there was a sweep", || bridge.metric("sendbird_bridge_dedup_ids", &[]) == 0.0);
            bridge.deliver(&dial("b", number)).stored();
        }
        // A few fit into the pipe and count as published.
        let status = bridge.status();
        let (first, cursor) = (&status["journal"]["first_position"], &status["sinks"][0]["cursor"]);
        assert!(
            first.as_u64().unwrap() <= cursor.as_u64().unwrap() + 1,
            "{first} is the first kept, {cursor} the cursor"
        );
        no_metric_is_negative(&bridge);
    }
    bridge.process.read_stdout();
    eventually("all is published", || bridge.process.stdout().count() == sent.len() + 5);
    let lines = bridge.process.stdout().so_far();
    let envelopes = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ids: Vec<Value> =
        envelopes.filter(|it| it["partitionkey"] == "a").map(|envelope| envelope["id"].clone()).collect();
    assert_eq!(ids, sent);
}

#[test]
fn no_deadline_depends_on_the_wall_clock() {
    let (shim, config) = Shim::under(Config::new().set("server.answer_deadline", "'400ms'"));
    let bridge = config.start();
    for ahead in [-DAY, 30 * DAY, -55 * YEAR] {
        let all = signed(&dial("slow", 1)).bytes();
        let mut connection = Connection::open(bridge.webhook);
        let begun = std::time::Instant::now();
        connection.write(&all[..all.len() - 1]);
        std::thread::sleep(Duration::from_millis(50));
        shim.set_clock_ahead(ahead);
        connection.response().problem(408);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(400) && took < PATIENCE / 2, "answered after {took:?}");
    }
}

#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod brokers {
    use serde_json::json;

    use super::*;
    use crate::sinks::for_each_broker;
    use crate::support::broker::{Kind, Message, Own};
    use crate::support::oracle::{Arrived, Id, Sent};
    use crate::support::samples::APPLICATION;
    use crate::support::trial::Trial;

    // `for_each_broker!` looks for its tests one module up.
    for_each_broker! {
        the_clock_may_jump_while_events_are_published
        a_clock_that_is_set_back_during_an_outage_delays_nothing
        an_event_of_any_time_arrives
    }

    fn the_clock_may_jump_while_events_are_published(kind: Kind) {
        let place = kind.place().made();
        let (shim, config) = Shim::under(Config::new());
        let trial = Trial::start("the clock jumps", config, &place, None);
        for ahead in JUMPS {
            shim.set_clock_ahead(ahead);
            trial.comes_in(80.0);
            no_metric_is_negative(&trial.bridge);
        }
        shim.set_clock_ahead(0);
        trial.goes_out(100.0);
        let verdict = trial.finish();
        // Kafka's client waits for times of the wall clock, so that it starts over when that is set back.
        if kind.label() != "kafka" {
            verdict.exactly_once();
        }
    }

    /// Kafka takes nothing that is more than an hour ahead of its own clock, and takes it once the bridge's is right.
    #[cfg(feature = "kafka")]
    #[test]
    fn what_was_accepted_ahead_of_the_clock_arrives_once_that_is_right() {
        let place = Kind::Kafka.place().made();
        let (shim, config) = Shim::under(Config::new());
        let config = place.sink(config, "broker");
        shim.set_clock_ahead(2 * DAY);
        let bridge = config.start();
        let ids: Vec<String> = (0..3).map(|at| bridge.deliver(&dial("a", at)).stored()).collect();
        let refused =
            || bridge.metric("sendbird_bridge_sink_retries_total", &[("sink", "broker"), ("reason", "invalid")]);
        eventually("Kafka refuses them", || refused() > 0.0);
        assert_eq!(bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", "broker")]), 0.0);
        bridge.kill_9();
        shim.set_clock_ahead(0);
        config.start().caught_up();
        let found: Vec<String> = place.consume().into_iter().map(|message| message.id).collect();
        assert_eq!(found, ids);
    }

    fn a_clock_that_is_set_back_during_an_outage_delays_nothing(kind: Kind) {
        let broker = Own::start(kind);
        let place = broker.place().made();
        let (shim, config) = Shim::under(Config::new());
        let bridge = place.sink(config, "broker").start();
        let mut ids = vec![bridge.deliver(&dial("a", 1)).stored()];
        bridge.caught_up();
        broker.run("stop");
        ids.push(bridge.deliver(&dial("a", 2)).stored());
        eventually("it is away", || bridge.metric("sendbird_bridge_sink_connected", &[("sink", "broker")]) == 0.0);
        shim.set_clock_ahead(-30 * DAY);
        ids.push(bridge.deliver(&dial("a", 3)).stored());
        broker.run("start");
        bridge.caught_up();
        ids.push(bridge.deliver(&dial("a", 4)).stored());
        bridge.caught_up();
        let found: Vec<String> = place.consume().into_iter().map(|message| message.id).collect();
        assert_eq!(found, ids);
    }

    /// `occurred_at` is the sender's word: it decides neither what is kept nor what a broker takes.
    fn an_event_of_any_time_arrives(kind: Kind) {
        let place = kind.place().made();
        let bridge = place.sink(Config::new(), "broker").start();
        let times = [
            json!(0),
            json!(1),
            json!(-1),
            json!(-1_000_000_000_000_i64),
            json!(-62_135_596_800_i64),
            json!(i64::MIN),
            json!(4_102_444_800_000_i64),
            json!(253_402_207_199_999_i64),
            json!(253_402_300_799_999_i64),
            json!(i64::MAX - 1),
            json!(i64::MAX),
            json!(u64::MAX),
            json!(1e300),
            json!(null),
            json!("2100-01-01T00:00:00Z"),
        ];
        let mut sent = Vec::new();
        for (number, time) in (0..).zip(&times) {
            let body = json!({
                "category": "direct_call:dial",
                "occurred_at": time,
                "application_id": APPLICATION,
                "direct_call": { "call_id": format!("call-{number}"), "caller_id": "alice" },
            });
            let id = bridge.deliver(body.to_string().as_bytes()).stored();
            sent.push(Sent::new(&format!("call-{number}"), Some(Id::parse(&id)), &body));
        }
        bridge.caught_up();
        assert_eq!(bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", "broker")]), 0.0);
        let messages = place.consume();
        for message in &messages {
            let envelope = message.json();
            times_are_rfc3339(&envelope);
            let prefix = kind.prefix("structured");
            assert_eq!(message.headers[&format!("{prefix}time")], envelope["time"].as_str().unwrap());
        }
        let arrived: Vec<Arrived> = messages.iter().map(Message::arrived).collect();
        judge(&sent, &arrived).exactly_once();
    }
}
