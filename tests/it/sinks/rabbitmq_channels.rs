//! Several publishes share a channel of RabbitMQ: what comes back, and what ends the channel, is told apart from what is
//! published beside it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::bridge::{Bridge, Config, done};
use crate::support::broker::{Kind, Limits, Own, Place};
use crate::support::deliveries::{Planned, deliver};
use crate::support::eventually;
use crate::support::oracle::Id;
use crate::support::trial::SINK;

const EVENTS: u32 = 400;

/// Stores calls and rooms in turn, each with a key of its own, while the broker stands still, so that they are all
/// published at once when it goes on. Returns the ids of the calls and of the rooms.
fn published_at_once(own: &Own, bridge: &Bridge) -> (BTreeSet<Id>, BTreeSet<Id>) {
    eventually("connected", || bridge.metric("sendbird_bridge_sink_connected", &[("sink", SINK)]) == 1.0);
    own.run("pause");
    let planned = (0..EVENTS).flat_map(|n| [Planned::call(n, 1), Planned::room(n, 1)]).collect();
    let made = deliver(bridge.webhook, planned);
    own.run("resume");
    let (rooms, calls): (Vec<_>, Vec<_>) = made.into_iter().partition(|(planned, _)| planned.is_room());
    let ids = |made: Vec<(Planned, Id)>| made.into_iter().map(|(_, id)| id).collect();
    (ids(calls), ids(rooms))
}

fn arrived(place: &Place) -> BTreeMap<Id, usize> {
    let mut times = BTreeMap::new();
    place.consume().into_iter().for_each(|message| *times.entry(Id::parse(&message.id)).or_default() += 1);
    times
}

#[test]
fn messages_that_come_back_are_told_apart_from_those_beside_them() {
    let own = Own::start(Kind::RabbitMq);
    let place = own.place();
    place.make(Limits { no_rooms: true, ..Limits::default() });
    let bridge = place.sink(Config::new(), SINK).start();
    let (calls, rooms) = published_at_once(&own, &bridge);
    bridge.caught_up();
    let listed = done(bridge.config(), &["dead-letters", "list", "--output", "json"]);
    let dead_letters: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(dead_letters.iter().all(|dead_letter| dead_letter["reason"] == "unroutable"), "{listed}");
    let set_aside: BTreeSet<_> =
        dead_letters.iter().map(|dead_letter| Id::parse(dead_letter["id"].as_str().unwrap())).collect();
    assert_eq!(dead_letters.len(), set_aside.len());
    assert_eq!(set_aside, rooms, "the rooms, for which there is no queue");
    let arrived = arrived(&place);
    assert_eq!(arrived.keys().copied().collect::<BTreeSet<_>>(), calls);
    assert!(arrived.values().all(|times| *times == 1), "each once: {arrived:?}");
}

#[test]
fn a_key_that_may_not_be_written_to_costs_those_beside_it_one_copy_at_most() {
    let own = Own::start(Kind::RabbitMq);
    let place = own.place().made();
    own.ctl(&["add_user", "writer", "password"]);
    own.ctl(&["set_permissions", "writer", "", &place.name, ""]);
    own.ctl(&["set_topic_permissions", "writer", &place.name, "^direct_call[.]", ""]);
    let as_writer = Place { address: place.address.replace("guest:guest", "writer:password"), ..place.clone() };
    let bridge = as_writer.sink(Config::new(), SINK).start();
    let (calls, rooms) = published_at_once(&own, &bridge);
    let published = || bridge.metric("sendbird_bridge_sink_published_total", &[("sink", SINK)]);
    eventually("all calls are published", || published() == f64::from(EVENTS));
    let times = arrived(&place);
    assert_eq!(times.keys().copied().collect::<BTreeSet<_>>(), calls);
    let copies: usize = times.values().map(|times| times - 1).sum();
    assert!(copies < 240 && times.values().all(|times| *times <= 2), "{copies} copies: {times:?}");

    own.ctl(&["clear_topic_permissions", "writer", &place.name]);
    bridge.caught_up();
    let rest = arrived(&place);
    assert_eq!(rest.keys().copied().collect::<BTreeSet<_>>(), rooms);
    assert!(rest.values().all(|times| *times == 1), "what was refused arrives once: {rest:?}");
}
