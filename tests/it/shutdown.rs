//! Stopping when asked: everything that was promised is kept, and it does not take for ever.

use std::io;
use std::time::{Duration, Instant};

use crate::support::bridge::{Config, signed};
use crate::support::eventually;
use crate::support::http::{Connection, Request, Response};
use crate::support::load::stored_by;
use crate::support::process::Stdout;
use crate::support::samples::dial;

/// From the signal to the end of a process that has little to do.
const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_stop_under_load_breaks_no_promise() {
    let config = Config::new().fixed_address().stdout_sink(Stdout::Read);
    let bridge = config.start();
    let webhook = bridge.webhook;
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            std::thread::spawn(move || {
                let mut answers: Vec<io::Result<Response>> = Vec::new();
                let mut connection = None;
                for n in 0.. {
                    let request = signed(&dial(&format!("sender {sender}"), n)).bytes();
                    // A connection that the bridge closes between two requests is opened again, once.
                    let opened = connection.take().map_or_else(|| Connection::try_open(webhook), Ok);
                    let Ok(mut open) = opened else { return answers };
                    let sent = open.try_write(&request).and_then(|()| open.try_response());
                    match sent {
                        Ok(response) => {
                            let closing = response.header("connection") == Some("close");
                            answers.push(Ok(response));
                            connection = (!closing).then_some(open);
                        }
                        Err(error) => {
                            answers.push(Err(error));
                            // Either it was closed before the request came, or there is no bridge any more.
                            connection = None;
                        }
                    }
                }
                answers
            })
        })
        .collect();
    eventually("deliveries are stored", || stored_by(&bridge) > 400.0);
    bridge.process.terminate();
    let ended = bridge.process.wait_within(SOON);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());

    let mut ids = Vec::new();
    let mut broken = 0;
    for sender in senders {
        for answer in sender.join().unwrap() {
            match answer {
                Ok(answer) if answer.status == 200 => ids.push(answer.accepted().0),
                Ok(answer) => panic!("answered {}: {}", answer.status, answer.text()),
                Err(_) => broken += 1,
            }
        }
    }
    // Each sender may lose two: one on its idle connection as that is closed, one that nobody accepted any more.
    assert!(broken <= 16, "{broken} requests got no answer");
    let bridge = config.start();
    let stored: std::collections::BTreeSet<String> =
        bridge.events().iter().map(|event| event.id().to_owned()).collect();
    let lost: Vec<&String> = ids.iter().filter(|id| !stored.contains(*id)).collect();
    assert!(lost.is_empty(), "{} of {} answered 200 are lost", lost.len(), ids.len());
}

#[test]
fn a_request_that_has_begun_is_answered_before_the_end() {
    let bridge = Config::new().set("server.answer_deadline", "'5s'").start();
    let request = signed(&dial("a", 1)).bytes();
    let mut begun = Connection::open(bridge.webhook);
    begun.write(&request[..request.len() - 10]);
    let mut idle = Connection::open(bridge.webhook);
    idle.send(&signed(&dial("a", 2))).stored();
    bridge.process.terminate();
    assert!(idle.is_closed(), "an idle connection is closed");
    eventually("nobody else is let in", || Connection::try_open(bridge.webhook).is_err());
    begun.write(&request[request.len() - 10..]);
    let answer = begun.response();
    answer.stored();
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(begun.is_closed());
    assert_eq!(bridge.process.wait_within(SOON).code(), Some(0));
}

#[test]
fn it_is_not_ready_while_it_stops() {
    let bridge = Config::new().set("server.answer_deadline", "'10s'").start();
    let request = signed(&dial("a", 1)).bytes();
    let mut begun = Connection::open(bridge.webhook);
    begun.write(&request[..request.len() - 10]);
    eventually("the request has begun", || bridge.metric("sendbird_bridge_connections", &[]) == 1.0);
    bridge.process.terminate();
    eventually("it is not ready", || bridge.admin("/readyz").status == 503);
    bridge.admin("/readyz").problem(503);
    assert_eq!(bridge.admin("/livez").status, 200);
    begun.write(&request[request.len() - 10..]);
    begun.response().stored();
    assert_eq!(bridge.process.wait_within(SOON).code(), Some(0));
}

#[test]
fn a_sender_that_never_finishes_does_not_hold_up_the_end() {
    let bridge = Config::new().set("server.answer_deadline", "'10s'").start();
    let request = signed(&dial("a", 1)).bytes();
    let mut begun = Connection::open(bridge.webhook);
    begun.write(&request[..request.len() - 10]);
    let mut half_head = Connection::open(bridge.webhook);
    half_head.write(b"POST ");
    eventually("both have begun", || bridge.metric("sendbird_bridge_connections", &[]) == 2.0);
    bridge.process.terminate();
    assert_eq!(bridge.process.wait_within(SOON).code(), Some(0));
}

#[test]
fn a_second_signal_stops_at_once() {
    let bridge = Config::new().set("server.answer_deadline", "'10s'").start();
    let request = signed(&dial("a", 1)).bytes();
    let mut begun = Connection::open(bridge.webhook);
    begun.write(&request[..request.len() - 10]);
    eventually("the request has begun", || bridge.metric("sendbird_bridge_connections", &[]) == 1.0);
    bridge.process.terminate();
    eventually("it is stopping", || bridge.admin("/readyz").status == 503);
    let at = Instant::now();
    bridge.process.terminate();
    let ended = bridge.process.wait_within(SOON);
    assert_eq!(ended.code(), Some(1));
    assert!(at.elapsed() < Duration::from_secs(3), "it took {:?}", at.elapsed());
}

#[test]
fn a_standard_output_that_nobody_reads_does_not_hold_up_the_end() {
    let config = Config::new().stdout_sink(Stdout::Held);
    let bridge = config.start();
    let ids: Vec<String> = (0..200).map(|n| bridge.deliver(&dial(&format!("k{n}"), n)).stored()).collect();
    let pending = || bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", "lines")]);
    assert!(pending() > 0.0, "a full pipe holds the sink up");
    bridge.process.terminate();
    let ended = bridge.process.wait_within(Duration::from_secs(25));
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
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
    let different: std::collections::BTreeSet<&String> = printed.iter().collect();
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
fn a_signal_right_at_the_start_leads_to_a_stop_in_order() {
    for _ in 0..10 {
        // As soon as it says that it listens.
        assert_eq!(Config::new().start().stop().code(), Some(0));
    }
}
