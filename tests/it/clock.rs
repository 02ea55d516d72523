//! The wall clock is set while the bridge runs, and between two of its lives; and deliveries tell of any time at all.
//!
//! The shim puts the clock of the bridge's process ahead or back. What is measured with the monotonic clock (deadlines,
//! pauses, ticks) it leaves alone, as setting a machine's clock does.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::aftermath::printed;
use crate::support::bridge::{Bridge, Config, signed};
use crate::support::eventually;
use crate::support::http::Connection;
use crate::support::load::{Load, stored_by};
use crate::support::oracle::{Arrived, judge, read_record};
use crate::support::process::Stdout;
use crate::support::samples::{APPLICATION, dial};
use crate::support::shim::Shim;

const SECOND: i64 = 1_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// Seconds, hours and days, past the window and the keep, before the first customer of Sendbird, before 1970, and past
/// what a calendar of four digits has.
const JUMPS: [i64; 10] =
    [3 * SECOND, -3 * SECOND, 5 * HOUR, -5 * HOUR, 40 * DAY, -40 * DAY, 74 * YEAR, -20 * YEAR, -60 * YEAR, 8_100 * YEAR];

/// No time is told that can't be: none is negative.
#[track_caller]
fn no_metric_is_negative(bridge: &Bridge) {
    let metrics = bridge.metrics();
    let negative: Vec<&str> = metrics.text.lines().filter(|line| !line.starts_with('#') && line.contains(" -")).collect();
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
fn the_clock_may_jump_under_load_and_nothing_comes_late_twice_or_never() {
    let (shim, config) = Shim::under(Config::new().fixed_address().stdout_sink(Stdout::Read));
    let bridge = config.start();
    let mut load = Load::start(&bridge, 4_000, 400);
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
    let record = load.record.clone();
    assert!(load.finish(), "every delivery is answered 200 in time");
    bridge.caught_up();
    let lines = bridge.stop().stdout;
    lines.iter().for_each(|line| times_are_rfc3339(&serde_json::from_str(line).unwrap()));
    let sent = read_record(&record);
    let verdict = judge(&sent, &printed(&lines)).exactly_once();
    eprintln!("{} jumps while it ran: answered 200 {}, lost 0, duplicates 0", JUMPS.len(), verdict.events);
}
