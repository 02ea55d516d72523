//! More than the bridge can do: every delivery is answered 200 or 503 in time, what was answered 200 is kept, memory has
//! a bound, and it recovers by itself.
//!
//! The machine of the tests is made slow where it matters, at the disk, so that a flood of a few thousand deliveries
//! is many times too much. How long an answer took, the bridge says itself: the flood's clients share its processors.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::bridge::{Bridge, Config, PATH, signed};
use crate::support::flood::{Flood, Tally};
use crate::support::http::Request;
use crate::support::process::Stdout;
use crate::support::samples::dial;
use crate::support::shim::Shim;
use crate::support::{eventually, eventually_within};

/// What the process may have in memory at most, in each of these tests.
const MEMORY: u64 = 256 * 1024 * 1024;

/// How long the answers to whole deliveries took, as the bridge has measured it: most within the second that Sendbird
/// waits, and few of them much longer, though the bridge has to share its processors with those who flood it.
#[track_caller]
fn answers_in_time(bridge: &Bridge) {
    let metrics = bridge.metrics();
    let count = |le| -> f64 {
        let of = |status| metrics.find("sendbird_bridge_answer_seconds_bucket", &[("status", status), ("le", le)]);
        ["200", "503"].into_iter().filter_map(of).sum()
    };
    let all = count("+Inf");
    for le in ["0.8", "0.9", "1", "2.5"] {
        eprintln!("{:<34}{:>9.1}%", format!("answered within {le} s"), count(le) / all * 100.0);
    }
    assert!(count("1") > all * 0.5, "{} of {all} within a second", count("1"));
    assert!(count("2.5") > all * 0.9, "{} of {all} within 2.5 seconds", count("2.5"));
}

#[track_caller]
fn memory_has_a_bound(bridge: &Bridge) {
    let peak = bridge.process.memory();
    eprintln!("{:<34}{:>10}", "most memory, MiB", peak / 1024 / 1024);
    assert!(peak < MEMORY, "{peak} bytes");
}

#[track_caller]
fn recovers(bridge: &Bridge) {
    let at = Instant::now();
    eventually_within(Duration::from_secs(10), "a fresh delivery is stored", || {
        signed(&dial("fresh", 1)).try_send(bridge.webhook).is_ok_and(|answer| answer.status == 200)
    });
    eprintln!("{:<34}{:>10}", "a fresh delivery again after, ms", at.elapsed().as_millis());
    assert!(bridge.is_ready());
    let at = Instant::now();
    bridge.deliver(&dial("fresh", 2)).stored();
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
}

#[track_caller]
fn nothing_is_lost(tally: &Tally, bridge: &Bridge) {
    let stored: BTreeSet<String> = bridge.events().iter().map(|event| event.id().to_owned()).collect();
    let lost = tally.ids.iter().filter(|id| !stored.contains(*id)).count();
    eprintln!("{:<34}{:>10}\n{:<34}{lost:>10}", "in the feed", stored.len(), "answered 200 and lost");
    assert_eq!(lost, 0, "of {} answered 200", tally.ids.len());
}

/// Ends a flood: what must hold after any of them.
#[track_caller]
fn ends_well(flood: Flood, bridge: Bridge) -> Tally {
    let tally = flood.finish();
    eprintln!("{tally}");
    recovers(&bridge);
    answers_in_time(&bridge);
    memory_has_a_bound(&bridge);
    let config = bridge.config().clone();
    bridge.kill_9();
    nothing_is_lost(&tally, &config.start());
    tally
}

#[test]
fn ten_times_the_disks_capacity_is_answered_in_time_without_loss() {
    let (shim, config) = Shim::under(Config::new());
    let bridge = config.start();
    let mut flood = Flood::towards(bridge.webhook);
    flood.senders("flood", 400);
    let more = |count| {
        let before = flood.answered();
        eventually("answers go on", || flood.answered() > before + count);
    };
    more(1_000);
    // An fsync is for 512 deliveries at most, so that is 51 in a second; the senders make 500.
    shim.delay_syncs(Duration::from_secs(10));
    more(2_400);
    shim.heal();
    more(1_000);
    let tally = ends_well(flood, bridge);
    tally.only_200_and_503();
    assert!(tally.count(200) > 1_000 && tally.count(503) > 1_200, "it was not too much, or nothing else");
}

#[test]
fn thousands_of_senders_that_say_little_hold_up_nobody() {
    let config = Config::new();
    let bridge = config.start();
    let open = || bridge.metric("sendbird_bridge_connections", &[]);
    let request = signed(&dial("slow", 1)).bytes();
    let head = request.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
    let mut flood = Flood::towards(bridge.webhook);
    flood.senders("busy", 96);
    let _idle = flood.open(1_500, b"");
    let half_heads = flood.open(1_000, &request[..head / 2]);
    let half_bodies = flood.open(500, &request[..request.len() - 5]);
    // Each starts over as soon as it is cut off.
    flood.drips(1_000, &request[..head]);
    let before = flood.answered();
    eventually("answers go on", || flood.answered() > before + 1_000);
    eventually("thousands are open", || open() > 2_500.0);
    assert_eq!(flood.answers(half_bodies).statuses, [(408, 500)].into());
    assert_eq!(flood.answers(half_heads).statuses, [(408, 1_000)].into());
    let tally = ends_well(flood, bridge);
    assert_eq!(tally.statuses.keys().collect::<Vec<_>>(), [&200], "{tally}");
    tally.only_200_and_503();
}

#[test]
fn connections_over_the_limit_are_refused_and_others_continue() {
    let config = Config::new();
    let bridge = config.start();
    let mut flood = Flood::towards(bridge.webhook);
    flood.senders("early", 96);
    eventually("all are open", || bridge.metric("sendbird_bridge_connections", &[]) == 96.0);
    let idle = flood.open(4_000, b"");
    eventually("there is no room", || bridge.metric("sendbird_bridge_connections", &[]) == 4_096.0);
    flood.senders("late", 400);
    let refused = || bridge.metric("sendbird_bridge_rejected_total", &[("reason", "connections")]);
    eventually("connections are refused", || refused() > 1_000.0);
    let before = flood.answered();
    eventually("answers go on", || flood.answered() > before + 1_000);
    drop(idle);
    eventually("there is room again", || bridge.metric("sendbird_bridge_connections", &[]) == 496.0);
    let tally = ends_well(flood, bridge);
    tally.only_200_and_503();
    assert!(tally.refused > 1_000, "{tally}");
}

#[test]
fn a_limit_of_file_descriptors_leaves_some_to_the_rest() {
    let config = Config::new().file_descriptors(512).stdout_sink(Stdout::Read);
    let bridge = config.start();
    let mut flood = Flood::towards(bridge.webhook);
    let idle = flood.open(200, b"");
    flood.senders("many", 600);
    let refused = || bridge.metric("sendbird_bridge_rejected_total", &[("reason", "connections")]);
    eventually("connections are refused", || refused() > 1_000.0);
    let before = flood.answered();
    eventually("answers go on", || flood.answered() > before + 1_000);
    assert_eq!(bridge.metric("sendbird_bridge_connections", &[]), 256.0, "half of what there is");
    assert!(bridge.is_ready());
    let mut feed = bridge.feed(&Request::get("/events"));
    feed.next().expect("a feed that can open the journal");
    drop(idle);
    let tally = flood.finish();
    eprintln!("{tally}");
    recovers(&bridge);
    bridge.caught_up();
    assert!(bridge.printed().count() >= tally.ids.len(), "what was answered 200 is published");
    bridge.kill_9();
    nothing_is_lost(&tally, &config.start());
    tally.only_200_and_503();
}

#[test]
fn bodies_and_heads_that_do_not_end_do_not_fill_the_memory() {
    let bridge = Config::new().set("server.answer_deadline", "'3s'").start();
    let mut flood = Flood::towards(bridge.webhook);
    flood.senders("small", 32);
    // As large as a body may be, half a GiB together; only the end of each is missing.
    let large = signed(&vec![b'x'; 256 * 1024]).bytes();
    let bodies = flood.answers(flood.open(2_000, &large[..large.len() - 1]));
    let long = format!("POST {PATH} HTTP/1.1\r\nhost: bridge\r\nx-long: {}", "x".repeat(15_000));
    let heads = flood.answers(flood.open(2_000, long.as_bytes()));
    let tally = flood.finish();
    eprintln!("{tally}\n{:<34}{:?}\n{:<34}{:?}", "half bodies", bodies.statuses, "half heads", heads.statuses);
    recovers(&bridge);
    memory_has_a_bound(&bridge);
    // What does not end is late; what there was no room for is answered so.
    assert_eq!((bodies.count(408) + bodies.count(503), heads.count(408)), (2_000, 2_000));
    assert!(bodies.count(503) > 0, "all were kept");
    assert_eq!(tally.statuses.keys().collect::<Vec<_>>(), [&200], "what comes in one piece has its room");
    nothing_is_lost(&tally, &bridge);
}
