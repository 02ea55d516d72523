//! Brokers that go away, freeze and come back, each one of its test's own.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::sinks::for_each_broker;
use crate::support::bridge::{Bridge, Config};
use crate::support::broker::{Kind, Message, Own};
use crate::support::eventually;
use crate::support::load::{Load, stored_by};
use crate::support::oracle::{Arrived, judge};
use crate::support::process::Stdout;
use crate::support::samples::{dial, samples};

for_each_broker! {
    a_broker_that_was_away_gets_everything_in_order
    a_broker_that_freezes_holds_up_nobody
}

fn published(bridge: &Bridge, sink: &str) -> f64 {
    bridge.metric("sendbird_bridge_sink_published_total", &[("sink", sink)])
}

fn arrived(messages: &[Message]) -> Vec<Arrived> {
    messages.iter().map(Message::arrived).collect()
}

fn a_broker_that_was_away_gets_everything_in_order(kind: Kind) {
    let broker = Own::start(kind);
    let place = broker.place().made();
    broker.run("stop");

    // It is away when the bridge starts.
    let bridge = place.sink(Config::new().stdout_sink(Stdout::Read), "broker").start();
    let early: BTreeSet<String> = samples().values().map(|body| bridge.deliver(body).stored()).collect();
    eventually("the other sink goes on", || published(&bridge, "lines") == 13.0);
    assert_eq!(published(&bridge, "broker"), 0.0);
    assert_eq!(bridge.metric("sendbird_bridge_sink_connected", &[("sink", "broker")]), 0.0);
    assert!(bridge.is_ready(), "readiness does not depend on a broker");
    broker.run("start");
    bridge.caught_up();
    assert_eq!(published(&bridge, "broker"), 13.0);

    // It goes under load and comes back.
    let load = Load::start(&bridge, 3_000, 400);
    eventually("the load is published", || published(&bridge, "broker") > 300.0);
    broker.run("stop");
    let (stored, before) = (stored_by(&bridge), published(&bridge, "lines"));
    eventually("answers go on", || stored_by(&bridge) > stored + 500.0);
    eventually("the other sink goes on", || published(&bridge, "lines") > before + 500.0);
    let load = load.finish();
    assert!(load.is_all_200(), "every delivery is answered 200 in time while a broker is away");
    let pending = bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", "broker")]);
    assert!(pending > 0.0, "the broker came back too early to prove anything");
    broker.run("start");
    bridge.caught_up();
    assert_eq!(bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", "broker")]), 0.0);
    // Kafka's client is asked every second.
    eventually("it is connected", || bridge.metric("sendbird_bridge_sink_connected", &[("sink", "broker")]) == 1.0);

    let (early_messages, messages): (Vec<_>, Vec<_>) =
        place.consume().into_iter().partition(|message| early.contains(&message.id));
    let found: BTreeSet<String> = early_messages.into_iter().map(|message| message.id).collect();
    assert_eq!(found, early);
    let sent = load.sent;
    let verdict = judge(&sent, &arrived(&messages)).clean();
    assert_eq!(verdict.events, 3_000);
    // What was in flight when it went may have been written; nothing else comes again.
    assert!(verdict.again <= 1_024, "{} came again", verdict.again);
    let lines: Vec<Arrived> = bridge
        .printed()
        .so_far()
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|envelope| !early.contains(envelope["id"].as_str().unwrap()))
        .map(|envelope| Arrived::envelope(&envelope))
        .collect();
    judge(&sent, &lines).exactly_once();
    let said = bridge.log().so_far().iter().filter(|line| line.contains("\"sink\":\"broker\"")).count();
    assert!(said < 30, "{said} lines about one outage");
}

fn a_broker_that_freezes_holds_up_nobody(kind: Kind) {
    let broker = Own::start(kind);
    let place = broker.place().made();
    let bridge = place.sink(Config::new(), "broker").start();
    let mut answered = vec![bridge.deliver(&dial("before", 1)).stored()];
    bridge.caught_up();
    broker.run("pause");
    answered.extend((0..50).map(|n| bridge.deliver(&dial("meanwhile", n)).stored()));
    let pending = bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", "broker")]);
    assert_eq!(pending, 50.0, "a frozen broker acknowledges nothing");
    // A stop does not wait for it for ever, and loses nothing.
    let config = bridge.config().clone();
    let ended = bridge.stop();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    let bridge = config.start();
    answered.push(bridge.deliver(&dial("meanwhile", 1_000)).stored());
    broker.run("resume");
    bridge.caught_up();
    let messages = place.consume();
    let mut seen = BTreeSet::new();
    let first: Vec<&str> = messages.iter().map(|it| it.id.as_str()).filter(|id| seen.insert(*id)).collect();
    let of_key = |key: &str| {
        let of_key = messages.iter().filter(|message| message.json()["partitionkey"] == key);
        of_key.map(|message| message.id.clone()).collect::<BTreeSet<_>>()
    };
    assert_eq!(first.len(), 52);
    let in_order: Vec<&str> = first.iter().copied().filter(|id| of_key("meanwhile").contains(*id)).collect();
    assert_eq!(in_order, answered[1..]);
}
