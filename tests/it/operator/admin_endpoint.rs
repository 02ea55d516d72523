//! The admin endpoint: the feed of what is durable, health, status, metrics, and who may see them.

use std::fs;

use crate::support::bridge::{Config, Event, Feed, PATH};
use crate::support::eventually;
use crate::support::http::{Connection, Request};
use crate::support::metrics::Metrics;
use crate::support::process::Stdout;
use crate::support::samples::{dial, large, samples};

fn positions(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.position).collect()
}

#[test]
fn the_feed_has_every_event_in_order_under_its_position() {
    let bridge = Config::new().start();
    let ids: Vec<String> = (0..300).map(|n| bridge.deliver(&dial(&format!("k{}", n % 7), n)).stored()).collect();
    let events = bridge.events();
    assert_eq!(positions(&events), (1..=300).collect::<Vec<u64>>());
    assert_eq!(events.iter().map(Event::id).collect::<Vec<_>>(), ids);
    for event in &events {
        assert_eq!(event.envelope["specversion"], "1.0");
        assert_eq!(event.envelope["type"], "com.sendbird.calls.direct_call.dial");
        assert_eq!(event.envelope["subject"], format!("direct_calls/{}", event.key()));
    }
}

#[test]
fn a_reader_resumes_after_the_position_that_it_names() {
    let bridge = Config::new().start();
    (0..10).for_each(|n| drop(bridge.deliver(&dial("a", n)).stored()));
    assert_eq!(positions(&bridge.events_of("after=7&follow=false")), [8, 9, 10]);
    assert_eq!(positions(&bridge.events_of("after=10&follow=false")), [0_u64; 0]);
    assert_eq!(positions(&bridge.events_of("after=end&follow=false")), [0_u64; 0]);
    // A client that reconnects repeats its first address; the header knows better.
    let request = Request::get("/events?follow=false&after=2").header("last-event-id", "8");
    assert_eq!(positions(&bridge.feed(&request).rest()), [9, 10]);
}

#[test]
fn a_reader_may_ask_for_a_key_and_a_type() {
    let bridge = Config::new().start();
    for n in 0..6 {
        bridge.deliver(&dial(if n % 2 == 0 { "even/ä" } else { "odd" }, n)).stored();
    }
    samples().values().for_each(|body| drop(bridge.deliver(body).stored()));
    assert_eq!(positions(&bridge.events_of("key=odd&follow=false")), [2, 4, 6]);
    assert_eq!(positions(&bridge.events_of("key=even%2F%C3%A4&follow=false")), [1, 3, 5]);
    assert_eq!(positions(&bridge.events_of("key=none&follow=false")), [0_u64; 0]);
    let created = bridge.events_of("type=com.sendbird.calls.room.create&follow=false");
    assert_eq!(created.len(), 1);
    assert_eq!(positions(&bridge.events_of("type=room:create&follow=false")), positions(&created));
    let both = bridge.events_of("type=direct_call:dial&key=odd&after=2&follow=false");
    assert_eq!(positions(&both), [4, 6]);
}

#[test]
fn a_parameter_that_makes_no_sense_is_answered_400() {
    let bridge = Config::new().start();
    for query in ["afer=1", "after=canary", "after=-1", "follow=canary", "key=%ff", "canary", "after=17"] {
        bridge.admin(&format!("/events?{query}")).problem(400);
    }
    Request::get("/events").header("last-event-id", "canary").send(bridge.admin).problem(400);
}

#[test]
fn a_reader_that_follows_gets_what_comes_until_the_bridge_stops() {
    let bridge = Config::new().start();
    bridge.deliver(&dial("a", 1)).stored();
    let mut feed = bridge.feed(&Request::get("/events"));
    let mut newest = bridge.feed(&Request::get("/events?after=end"));
    assert_eq!(feed.next().unwrap().position, 1);
    for n in 2..20 {
        let id = bridge.deliver(&dial("a", n)).stored();
        for feed in [&mut feed, &mut newest] {
            let event = feed.next().unwrap();
            assert_eq!((event.id(), event.position), (id.as_str(), n));
        }
    }
    bridge.process.terminate();
    assert!(feed.next().is_none() && newest.next().is_none());
    assert_eq!(bridge.process.wait().code(), Some(0));
}

#[test]
fn health_answers_without_a_broker_in_sight() {
    let bridge = Config::new().stdout_sink(Stdout::Closed).start();
    bridge.deliver(&dial("a", 1)).stored();
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(bridge.admin(path).status, 200, "{path}");
        assert_eq!(Request::new("HEAD", path).send_head(bridge.admin), 200, "{path}");
        let answer = Request::post(path).body(b"canary").send(bridge.admin);
        assert_eq!(answer.problem(405).header("allow"), Some("GET, HEAD"));
    }
    let retried = || bridge.metrics().find("sendbird_bridge_sink_retries_total", &[("sink", "lines")]).unwrap();
    eventually("the sink fails", || retried() > 0.0);
    assert!(bridge.is_ready(), "a sink that fails is no reason to take the receiver away");
    let status = bridge.status();
    assert_eq!((&status["ready"], &status["sinks"][0]["pending_records"]), (&true.into(), &1.into()), "{status}");
    assert!(status["sinks"][0]["last_failure"].is_string(), "{status}");
}

#[test]
fn what_the_admin_endpoint_does_not_have_is_answered_404() {
    let bridge = Config::new().start();
    for path in ["/index.html", "/canary", "/metrics/", "/statu", PATH] {
        bridge.admin(path).problem(404);
    }
}

#[test]
fn status_says_what_there_is() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    (0..3).for_each(|n| drop(bridge.deliver(&dial("a", n)).stored()));
    bridge.caught_up();
    let status = bridge.status();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["ready"], &status["stopping"]), (&true.into(), &false.into()));
    let journal = &status["journal"];
    assert_eq!((&journal["records"], &journal["last_position"]), (&3.into(), &3.into()), "{journal}");
    let sink = &status["sinks"][0];
    assert_eq!((&sink["name"], &sink["type"], &sink["cursor"]), (&"lines".into(), &"stdout".into(), &3.into()));
    assert_eq!((&sink["dead_letters"], &sink["last_failure"]), (&0.into(), &serde_json::Value::Null), "{sink}");
}

#[test]
fn a_token_guards_all_but_health_and_metrics() {
    let config = Config::new().set("admin.listen", "'0.0.0.0:0'").set("admin.token", "'canary-token'");
    let bridge = config.start();
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], bridge.admin.port()));
    for path in ["/livez", "/readyz", "/startupz", "/metrics"] {
        assert_eq!(Request::get(path).send(admin).status, 200, "{path}");
    }
    for path in ["/status", "/events?follow=false", "/nothing"] {
        for authorization in [
            None,
            Some("Bearer wrong"),
            Some("canary-token"),
            Some("Bearer canary-token2"),
            Some("Bearer canary-toke"),
            Some("Bearer c"),
            Some("Bearer CANARY-TOKEN"),
            Some("Bearer  canary-token"),
            Some("Bearer canary-token, Bearer canary-token"),
            Some("Bearer "),
            Some("Bearer"),
            Some(""),
            Some("Basic canary-token"),
            Some("Basic Y2FuYXJ5LXRva2VuOg=="),
        ] {
            let mut request = Request::get(path);
            if let Some(value) = authorization {
                request = request.header("authorization", value);
            }
            let answer = request.send(admin);
            assert_eq!(answer.problem(401).header("www-authenticate"), Some("Bearer"), "{path} {authorization:?}");
        }
        // Nor does another method tell anything.
        Request::post(path).body(b"").send(admin).problem(401);
        // The scheme is one in whatever case.
        for scheme in ["Bearer", "bearer"] {
            let right = Request::get(path).header("authorization", &format!("{scheme} canary-token")).send(admin);
            assert_eq!(right.status, if path == "/nothing" { 404 } else { 200 }, "{path}");
        }
    }
}

#[test]
fn the_metrics_tell_of_what_was_published() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    bridge.deliver(&dial("a", 1)).stored();
    bridge.caught_up();
    let metrics = bridge.metrics();
    for (name, value) in [("sink_connected", 1.0), ("sink_pending_records", 0.0), ("sink_dead_letters", 0.0)] {
        assert_eq!(metrics.value(&format!("sendbird_bridge_{name}"), &[("sink", "lines")]), value, "{name}");
    }
    let published = [("sink", "lines"), ("category", "direct_call:dial")];
    assert_eq!(metrics.value("sendbird_bridge_sink_published_total", &published), 1.0);
    assert_eq!(metrics.value("sendbird_bridge_journal_records", &[]), 1.0);
    assert_eq!(metrics.value("sendbird_bridge_dedup_ids", &[]), 1.0);
}

#[test]
fn the_admin_endpoint_does_not_wait_for_a_slow_client() {
    let bridge = Config::new().start();
    let mut slow = Connection::open(bridge.admin);
    slow.write(b"GET /livez HTTP/1.1\r\n");
    assert_eq!(bridge.admin("/livez").status, 200);
    slow.write(b"host: bridge\r\n\r\n");
    assert_eq!(slow.response().status, 200);
}

#[test]
fn a_reader_that_does_not_read_holds_up_nobody() {
    let bridge = Config::new().start();
    let mut deaf = bridge.feed(&Request::get("/events"));
    for n in 0..200 {
        bridge.deliver(&large("a", n, 40_000)).stored();
    }
    assert_eq!(bridge.events().len(), 200);
    for n in 1..=200 {
        assert_eq!(deaf.next().unwrap().position, n);
    }
}

#[test]
fn the_feed_names_the_positions_that_are_no_longer_kept() {
    let config = Config::new().set("journal.max_bytes", "'1MiB'").set("journal.retain_bytes", "'100KiB'");
    let bridge = config.start();
    (0..60).for_each(|n| drop(bridge.deliver(&large("a", n, 20_000)).stored()));
    eventually("old events make way", || bridge.status()["journal"]["first_position"].as_u64() > Some(10));
    let (mut found, mut comments) = (Vec::new(), Vec::new());
    // More may be deleted between two looks.
    eventually("without a position it begins with the oldest", || {
        let mut feed = bridge.feed(&Request::get("/events?after=3&follow=false"));
        found = positions(&feed.rest());
        comments = feed.comments;
        positions(&bridge.events()) == found
    });
    let first = found[0];
    assert_eq!(found, (first..=60).collect::<Vec<_>>());
    assert_eq!(comments, [format!("positions 4 to {} are no longer kept", first - 1)]);
}

/// Reads a feed on to `last`. Positions may be left out only where a comment names them.
fn reads_to(feed: &mut Feed, mut position: u64, last: u64) -> usize {
    let comments_before = feed.comments.len();
    while position < last {
        let seen = feed.comments.len();
        let event = feed.next().expect("a feed that goes on");
        if event.position != position + 1 {
            let gap = format!("positions {} to {} are no longer kept", position + 1, event.position - 1);
            assert_eq!(feed.comments[seen..], [gap], "before position {}", event.position);
        }
        position = event.position;
    }
    feed.comments.len() - comments_before
}

#[test]
fn a_follower_behind_retention_gets_the_positions_it_missed() {
    let small = Config::new().set("journal.max_bytes", "'8MiB'");
    let bridge = small.set("journal.retain_bytes", "'100KiB'").start();
    bridge.deliver(&large("a", 0, 40_000)).stored();
    let mut feeds = ["/events", "/events?key=a"].map(|target| bridge.feed(&Request::get(target)));
    for feed in &mut feeds {
        assert_eq!(feed.next().unwrap().position, 1);
    }
    // More than the buffers between the bridge and a follower that does not read can hold.
    (1..300).for_each(|n| drop(bridge.deliver(&large("a", n, 40_000)).stored()));
    eventually("old events are deleted", || bridge.status()["journal"]["first_position"].as_u64() > Some(250));
    for feed in &mut feeds {
        assert!(reads_to(feed, 1, 300) > 0, "the follower did not fall behind");
    }
}

#[test]
fn health_is_answered_however_many_feeds_are_open() {
    let bridge = Config::new().start();
    let mut feeds = Vec::new();
    let refused = loop {
        let mut feed = Connection::open(bridge.admin);
        feed.write(&Request::get("/events").bytes());
        match feed.try_head().unwrap() {
            (200, _) => feeds.push(feed),
            (503, headers) => break headers,
            (status, _) => panic!("{status}"),
        }
    };
    assert!(refused.contains(&("retry-after".into(), "1".into())), "{refused:?}");
    for path in ["/livez", "/readyz", "/startupz", "/metrics", "/status"] {
        assert_eq!(bridge.admin(path).status, 200, "{path} with {} feeds", feeds.len());
    }
    // A follower that leaves makes room as soon as the bridge has something to write to it.
    drop(feeds.pop());
    eventually("there is room again", || {
        bridge.deliver(&dial("a", fastrand::u64(..1_000_000))).accepted();
        bridge.admin("/events?follow=false").status == 200
    });
}

#[test]
fn a_scrape_opens_no_file() {
    let bridge = Config::new().file_descriptors(64).stdout_sink(Stdout::Closed).start();
    bridge.deliver(&dial("a", 1)).stored();
    let mut scraper = Connection::open(bridge.admin);
    let mut oldest_pending = || {
        let metrics = Metrics::parse(scraper.send(&Request::get("/metrics")).text());
        metrics.value("sendbird_bridge_sink_oldest_pending_seconds", &[("sink", "lines")])
    };
    eventually("an event is pending", || oldest_pending() > 0.0);
    let others: Vec<Connection> = (0..64).map(|_| Connection::open(bridge.admin)).collect();
    let open = || fs::read_dir(bridge.process.proc("fd")).unwrap().count();
    eventually("no file descriptor is left", || open() >= 64);
    assert!(oldest_pending() > 0.0);
    drop(others);
}
