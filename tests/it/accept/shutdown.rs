//! Stopping when asked: everything that was promised is kept, and it does not take for ever.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use sendbird_bridge::app::STOP_LIMIT;
use sendbird_bridge::http::listener::DRAIN_LIMIT;

use crate::support::bridge::{Bridge, Config, signed};
use crate::support::eventually;
use crate::support::http::{Connection, Request};
use crate::support::load::{Load, Outcome, stored_by};
use crate::support::oracle::{Arrived, Id, Sent, judge};
use crate::support::process::{Ended, Stdout};
use crate::support::samples::dial;
use crate::support::senders::{Heard, Senders};
use crate::support::shim::Shim;

/// From the signal to the end of a process that has little to do.
const SOON: Duration = Duration::from_secs(15);

/// What a process may take beyond its own limit on a machine that is busy with other tests.
const MARGIN: Duration = Duration::from_secs(10);

/// A delivery whose last bytes are still to come.
struct Begun {
    connection: Connection,
    rest: Vec<u8>,
}

impl Begun {
    /// Begins one, and waits until the bridge has accepted so many connections.
    fn on(bridge: &Bridge, connections: f64) -> Self {
        let mut all = signed(&dial("begun", 1)).bytes();
        let rest = all.split_off(all.len() - 10);
        let mut connection = Connection::open(bridge.webhook);
        connection.write(&all);
        eventually("it has begun", || bridge.metric("sendbird_bridge_connections", &[]) == connections);
        Self { connection, rest }
    }

    /// Sends the rest; the answer is the last on its connection.
    fn ends(&mut self) {
        self.connection.write(&self.rest);
        let answer = self.connection.response();
        answer.stored();
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(self.connection.is_closed());
    }
}

/// A bridge on which a delivery may take longer than a stop.
fn patient() -> Config {
    Config::new().set("server.answer_deadline", "'10s'")
}

#[track_caller]
fn stops_in_order(bridge: Bridge, limit: Duration) -> Ended {
    bridge.process.terminate();
    let ended = bridge.process.wait_within(limit);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    ended
}

/// Everything in the feed is what was sent, once and in order, and nothing of it is missing.
#[track_caller]
fn all_are_kept(sent: &[Sent], bridge: &Bridge) {
    let arrived: Vec<Arrived> = bridge.events().iter().map(|event| Arrived::envelope(&event.envelope)).collect();
    judge(sent, &arrived).exactly_once();
}

/// Comes again and again until it is refused, which is not to take longer than to be let in: a handshake that got no
/// answer would be tried again after a second.
#[track_caller]
fn nobody_is_let_in(bridge: &Bridge) {
    eventually("nobody else is let in", || {
        let at = Instant::now();
        let opened = Connection::try_open(bridge.webhook);
        assert!(at.elapsed() < Duration::from_millis(900), "who came waited {:?}", at.elapsed());
        opened.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
}

#[track_caller]
fn nothing_but_200_or_refused(heard: &Heard, least: usize) {
    let Heard { sent, refused, others } = heard;
    eprintln!("{:>8} answered 200\n{refused:>8} refused\n{:>8} others {others:?}", sent.len(), others.len());
    assert!(others.is_empty(), "{others:?}");
    assert!(sent.len() >= least, "only {} were answered", sent.len());
}

#[test]
fn a_stop_under_load_breaks_no_promise() {
    let config = Config::new().fixed_address().stdout_sink(Stdout::Read);
    for _ in 0..3 {
        let config = config.clone().set("journal.dir", &format!("'{}/{}'", config.dir().display(), fastrand::u64(..)));
        let bridge = config.start();
        let senders = Senders::start(bridge.webhook, 8);
        eventually("deliveries are stored", || stored_by(&bridge) > 400.0);
        stops_in_order(bridge, SOON);
        let heard = senders.finish();
        nothing_but_200_or_refused(&heard, 400);
        assert!(heard.refused > 0, "nobody was sending when the bridge was gone");
        all_are_kept(&heard.sent, &config.start());
    }
}

#[test]
fn a_rolling_restart_under_load_loses_nothing() {
    let config = Config::new().fixed_address();
    let mut bridge = config.start();
    let load = Load::start(&bridge, 2_500, 250);
    let senders = Senders::start(bridge.webhook, 2);
    for _ in 0..4 {
        eventually("deliveries are stored", || stored_by(&bridge) > 200.0);
        assert!(load.is_running(), "the load ended too early to prove anything");
        stops_in_order(bridge, SOON);
        bridge = config.start();
    }
    let Outcome { mut sent, answers } = load.finish();
    let heard = senders.finish();
    nothing_but_200_or_refused(&heard, 400);
    assert!(heard.refused > 0, "nobody was sending while there was no bridge");
    eprintln!("{}", answers.table(&[]));
    let others: Vec<&String> = answers.others.keys().filter(|other| *other != "no connection").collect();
    assert!(others.is_empty(), "{others:?}");
    sent.extend(heard.sent);
    all_are_kept(&sent, &bridge);
}

#[test]
fn a_request_that_has_begun_is_answered_before_the_end() {
    let bridge = patient().start();
    let mut begun = Begun::on(&bridge, 1.0);
    bridge.process.terminate();
    nobody_is_let_in(&bridge);
    begun.ends();
    assert_eq!(bridge.process.wait_within(SOON).code(), Some(0));
}

#[test]
fn connections_that_wait_to_be_accepted_at_a_stop_are_answered() {
    let bridge = patient().start();
    bridge.process.freeze();
    // They are open as far as their senders can tell, for the system accepts them.
    let waiting: Vec<Connection> = (0..500)
        .map(|n| {
            let mut connection = Connection::open(bridge.webhook);
            connection.write(&signed(&dial(&format!("waiting {n}"), 1)).bytes());
            connection
        })
        .collect();
    bridge.process.terminate();
    bridge.process.thaw();
    for mut connection in waiting {
        connection.response().stored();
    }
    assert_eq!(bridge.process.wait_within(SOON).code(), Some(0));
}

#[test]
fn a_connection_that_is_idle_at_a_stop_may_send_once_more() {
    let bridge = Config::new().start();
    let mut busy = Connection::open(bridge.webhook);
    busy.send(&signed(&dial("a", 1))).stored();
    let mut new = Connection::open(bridge.webhook);
    let mut idle = Connection::open(bridge.webhook);
    idle.send(&signed(&dial("a", 2))).stored();
    eventually("all are open", || bridge.metric("sendbird_bridge_connections", &[]) == 3.0);
    bridge.process.terminate();
    eventually("it is stopping", || bridge.admin("/readyz").status == 503);
    for (n, connection) in [(3, &mut busy), (4, &mut new)] {
        let answer = connection.send(&signed(&dial("a", n)));
        answer.stored();
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(connection.is_closed());
    }
    assert!(idle.is_closed(), "an idle connection is closed");
    assert_eq!(bridge.process.wait_within(SOON).code(), Some(0));
}

#[test]
fn without_linger_an_idle_connection_does_not_delay_a_stop() {
    // One is enough to hold up the end for as long as it may linger.
    let stop = |linger: &str| {
        let bridge = Config::new().set("server.linger", linger).start();
        let mut idle = Connection::open(bridge.webhook);
        idle.send(&signed(&dial("a", 1))).stored();
        let begun = Instant::now();
        bridge.process.terminate();
        assert!(idle.is_closed(), "an idle connection is closed");
        let closed = begun.elapsed();
        assert_eq!(bridge.process.wait_within(SOON).code(), Some(0));
        closed
    };
    let (without, with) = (stop("'0s'"), stop("'3s'"));
    assert!(without < Duration::from_secs(2), "closed after {without:?}");
    assert!(with >= Duration::from_secs(3), "closed after {with:?}");
}

#[test]
fn it_is_not_ready_while_it_stops() {
    let bridge = patient().start();
    let mut begun = Begun::on(&bridge, 1.0);
    bridge.process.terminate();
    eventually("it is not ready", || bridge.admin("/readyz").status == 503);
    bridge.admin("/readyz").problem(503);
    assert_eq!(bridge.admin("/livez").status, 200);
    begun.ends();
    assert_eq!(bridge.process.wait_within(SOON).code(), Some(0));
}

#[test]
fn unfinished_requests_are_cut_off_and_answered_ones_are_kept() {
    let config = patient();
    let bridge = config.start();
    let body = dial("answered", 1);
    let answered = Sent::new(
        "answered",
        Some(Id::parse(&bridge.deliver(&body).stored())),
        &serde_json::from_slice(&body).unwrap(),
    );
    let _begun = Begun::on(&bridge, 1.0);
    let mut half_head = Connection::open(bridge.webhook);
    half_head.write(b"POST ");
    eventually("both have begun", || bridge.metric("sendbird_bridge_connections", &[]) == 2.0);
    let at = Instant::now();
    let ended = stops_in_order(bridge, SOON);
    assert!(at.elapsed() >= DRAIN_LIMIT, "they were given their time, but it took {:?}", at.elapsed());
    assert!(ended.stderr().contains("drain timed out; closed remaining connections"), "{}", ended.stderr());
    all_are_kept(&[answered], &config.start());
}

#[test]
fn a_second_signal_stops_at_once() {
    let bridge = patient().start();
    let _begun = Begun::on(&bridge, 1.0);
    bridge.process.terminate();
    eventually("it is stopping", || bridge.admin("/readyz").status == 503);
    let at = Instant::now();
    bridge.process.terminate();
    let ended = bridge.process.wait_within(SOON);
    assert_eq!(ended.code(), Some(1));
    assert!(at.elapsed() < DRAIN_LIMIT, "it took {:?}", at.elapsed());
}

#[test]
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
fn brokers_that_nobody_reaches_do_not_hold_up_the_end() {
    use crate::support::broker::{Kind, Place};
    let places = [
        Place::new(Kind::Kafka, "127.0.0.1:1".into()),
        Place::new(Kind::RabbitMq, "amqp://guest:guest@127.0.0.1:1/%2f".into()),
        Place::new(Kind::Nats, "nats://127.0.0.1:1".into()),
    ];
    let config = places.iter().fold(Config::new(), |config, place| place.sink(config, place.kind.label()));
    let bridge = config.start();
    let senders = Senders::start(bridge.webhook, 2);
    eventually("deliveries are stored", || stored_by(&bridge) > 100.0);
    let at = Instant::now();
    stops_in_order(bridge, STOP_LIMIT + MARGIN);
    eprintln!("stopped within {:?}", at.elapsed());
    let heard = senders.finish();
    nothing_but_200_or_refused(&heard, 100);
    let bridge = config.start();
    all_are_kept(&heard.sent, &bridge);
    for place in &places {
        let pending = bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", place.kind.label())]);
        assert_eq!(pending, heard.sent.len() as f64, "what was not published stays to be published");
    }
}

#[test]
fn a_standard_output_that_nobody_reads_does_not_hold_up_the_end() {
    let config = Config::new().stdout_sink(Stdout::Held);
    let bridge = config.start();
    let ids: Vec<String> = (0..200).map(|n| bridge.deliver(&dial(&format!("k{n}"), n)).stored()).collect();
    let pending = || bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", "lines")]);
    assert!(pending() > 0.0, "a full pipe holds the sink up");
    stops_in_order(bridge, STOP_LIMIT + MARGIN);
    // What was not printed is printed after the next start.
    let config = config.stdout(Stdout::Read);
    let bridge = config.start();
    bridge.caught_up();
    assert_eq!(bridge.events().len(), ids.len());
    assert!(bridge.printed().count() > 0);
}

#[test]
fn events_in_flight_are_published_before_the_end_and_once() {
    let config = Config::new().stdout_sink(Stdout::Read);
    let bridge = config.start();
    (0..500).for_each(|n| drop(bridge.deliver(&dial(&format!("k{}", n % 50), n)).stored()));
    let first = bridge.stop();
    assert_eq!(first.code(), Some(0));
    let bridge = config.start();
    bridge.caught_up();
    let second = bridge.stop();
    let id =
        |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    let printed: Vec<String> = first.stdout.iter().chain(&second.stdout).map(id).collect();
    let different: BTreeSet<&String> = printed.iter().collect();
    assert_eq!((printed.len(), different.len()), (500, 500), "a polite stop leaves nothing to print again");
}

#[test]
fn it_stops_politely_on_the_admin_side_too() {
    let bridge = Config::new().start();
    bridge.deliver(&dial("a", 1)).stored();
    let mut feed = bridge.feed(&Request::get("/events"));
    feed.next().unwrap();
    let mut kept = Connection::open(bridge.admin);
    assert_eq!(kept.send(&Request::get("/livez")).status, 200);
    bridge.process.terminate();
    assert!(feed.next().is_none());
    assert!(kept.is_closed());
    assert_eq!(bridge.process.wait_within(SOON).code(), Some(0));
}

#[test]
fn a_disk_that_hangs_does_not_hold_up_the_end() {
    let (shim, config) = Shim::under(Config::new());
    let bridge = config.start();
    let id = bridge.deliver(&dial("answered", 1)).stored();
    shim.delay_syncs(STOP_LIMIT * 3);
    bridge.deliver(&dial("hangs", 2)).problem(503);
    let at = Instant::now();
    bridge.process.terminate();
    let ended = bridge.process.wait_within(STOP_LIMIT * 4);
    assert!(at.elapsed() < STOP_LIMIT + Duration::from_secs(3), "it took {:?}", at.elapsed());
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
    assert!(ended.stderr().contains("cannot close the journal"), "{}", ended.stderr());
    shim.heal();
    assert_eq!(config.start().events()[0].id(), id, "what was answered 200 is kept");
}

#[test]
fn a_signal_right_at_the_start_leads_to_a_stop_in_order() {
    for _ in 0..10 {
        // As soon as it says that it listens.
        assert_eq!(Config::new().start().stop().code(), Some(0));
    }
}

/// A bridge with events that wait for a standard output that nobody reads, and how many were delivered.
fn with_pending_events(publish_for: &str) -> (Bridge, usize) {
    const EVENTS: usize = 400;
    let config = Config::new().set("stop.publish_for", publish_for).stdout_sink(Stdout::Held);
    let bridge = config.start();
    (0..EVENTS as u64).for_each(|n| drop(bridge.deliver(&dial(&format!("k{n}"), n)).stored()));
    let pending = || bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", "lines")]);
    assert!(pending() > 100.0, "a full pipe holds the sink up");
    (bridge, EVENTS)
}

#[test]
fn a_stopping_bridge_publishes_what_is_pending_before_the_end() {
    let (mut bridge, events) = with_pending_events("'60s'");
    let config = bridge.config().clone();
    bridge.process.terminate();
    nobody_is_let_in(&bridge);
    assert_eq!(bridge.admin("/readyz").status, 503, "it does not come back");
    let log = bridge.log();
    eventually("it says so", || log.so_far().iter().any(|line| line.contains("publishing what is pending")));
    bridge.process.read_stdout();
    let at = Instant::now();
    let ended = bridge.process.wait_within(Duration::from_secs(40));
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    eprintln!("published {events} events and stopped within {:?}", at.elapsed());
    assert_eq!(ended.stdout.len(), events, "all of them, each once");
    let bridge = config.stdout(Stdout::Read).start();
    assert_eq!(bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", "lines")]), 0.0);
}

#[test]
fn a_stopping_bridge_publishes_for_no_longer_than_it_may_and_keeps_the_rest() {
    let (bridge, events) = with_pending_events("'2s'");
    let config = bridge.config().clone();
    let at = Instant::now();
    let ended = stops_in_order(bridge, STOP_LIMIT + Duration::from_secs(2) + MARGIN);
    assert!(at.elapsed() >= Duration::from_secs(2), "{:?}", at.elapsed());
    assert!(ended.stderr().contains("not all was published within stop.publish_for"), "{}", ended.stderr());
    let bridge = config.stdout(Stdout::Read).start();
    bridge.caught_up();
    assert_eq!(bridge.events().len(), events);
}

#[test]
fn a_second_signal_ends_a_bridge_that_still_publishes() {
    let (bridge, _) = with_pending_events("'60s'");
    let log = bridge.log();
    bridge.process.terminate();
    eventually("it publishes", || log.so_far().iter().any(|line| line.contains("publishing what is pending")));
    bridge.process.terminate();
    assert_eq!(bridge.process.wait_within(SOON).code(), Some(1));
}
