//! What a broker's acknowledgement survives, as far as its settings tell: refused, or warned of in the check, in the log and
//! in `/status`.

use crate::sinks::authentication::last_failure;
use crate::sinks::connection_check::{assert_fails, assert_passes};
use crate::sinks::for_each_broker;
use crate::support::bridge::{Bridge, Config};
use crate::support::broker::kafka::make_with;
use crate::support::broker::operate::Cluster;
use crate::support::broker::{Kind, Own, Place};
use crate::support::eventually;
use crate::support::samples::dial;

for_each_broker! {
    a_warning_is_logged_once_and_shown_in_the_status
    three_replicas_are_not_warned_of
}

/// The warnings among the findings.
fn warnings(config: &Config) -> Vec<String> {
    let found = assert_passes(config, "it");
    found.iter().filter_map(|finding| finding.strip_prefix("warning: ")).map(str::to_owned).collect()
}

/// The warnings in `/status`.
fn shown(bridge: &Bridge) -> Vec<String> {
    let status = bridge.status();
    let list = status["sinks"][0]["warnings"].as_array().unwrap_or_else(|| panic!("no warnings in {status}"));
    list.iter().map(|warning| warning.as_str().unwrap().to_owned()).collect()
}

/// A sink with a single copy of each event.
fn with_one_copy(place: &Place) -> Config {
    let config = place.sink(Config::new(), "it");
    match place.kind {
        // Only of what it declares can the bridge know.
        Kind::RabbitMq => {
            config.set("sinks.it.declare", &format!("{{ queues = [{{ name = '{}', type = 'classic' }}] }}", place.name))
        }
        Kind::Kafka | Kind::Nats => config,
    }
}

fn a_warning_is_logged_once_and_shown_in_the_status(kind: Kind) {
    let own = Own::start(kind);
    let place = own.place().made();
    let config = with_one_copy(&place);
    let expected = match kind {
        Kind::Kafka => "the replication factor is 1",
        Kind::RabbitMq => "is of the type classic",
        Kind::Nats => "it has 1 of the 3 replicas",
    };
    let found = warnings(&config);
    assert!(found.iter().any(|warning| warning.contains(expected) && warning.contains(&place.name)), "{found:?}");
    let bridge = config.start();
    let lines = || bridge.log().so_far().iter().filter(|line| line.contains(expected)).count();
    eventually("it is in the log", || lines() == 1);
    assert_eq!(shown(&bridge), found);
    own.run("stop");
    assert_eq!(bridge.deliver(&dial("later", 1)).status, 200);
    eventually("the broker is gone", || !last_failure(&bridge, "it").is_empty());
    own.run("start");
    bridge.caught_up();
    assert_eq!((lines(), shown(&bridge)), (1, found), "the same on the next connection is no news");
}

fn three_replicas_are_not_warned_of(kind: Kind) {
    let cluster = Cluster::start(kind);
    let place = cluster.place(&[1]).made();
    assert_eq!(warnings(&place.sink(Config::new(), "it")), Vec::<String>::new());
}

#[test]
fn a_compacted_topic_is_refused_unless_it_is_allowed() {
    let place = Kind::Kafka.place();
    make_with(&place, &[("cleanup.policy", "compact,delete")]);
    let config = place.sink(Config::new(), "it");
    let faults = assert_fails(&config, "it");
    let topic = format!("topic \"{}.direct_call\"", place.name);
    let named = |fault: &str| fault.starts_with(&format!("invalid: {topic}: cleanup.policy = compact,delete"));
    assert!(faults.len() == 3 && faults.iter().any(|fault| named(fault)), "{faults:?}");
    let bridge = config.start();
    assert_eq!(bridge.deliver(&dial("compacted", 1)).status, 200);
    eventually("it is not published", || named(&last_failure(&bridge, "it")));
    assert_eq!(bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", "it")]), 0.0);
    assert_eq!(bridge.stop().code(), Some(0));
    assert_eq!(place.count(), 0);
    let allowed = config.set("sinks.it.allow_compacted", "true");
    assert_passes(&allowed, "it");
    let bridge = allowed.start();
    bridge.caught_up();
    assert_eq!(place.count(), 1, "what waited is published");
}

#[test]
fn settings_of_a_topic_that_lose_events_are_warned_of() {
    let place = Kind::Kafka.place();
    let settings =
        [("retention.ms", "3600000"), ("max.message.bytes", "300000"), ("unclean.leader.election.enable", "true")];
    make_with(&place, &settings);
    let config = place.sink(Config::new(), "it");
    let found = warnings(&config);
    for words in
        settings.map(|(name, _)| name).iter().chain(&["min.insync.replicas = 1", "the replication factor is 1"])
    {
        assert!(found.iter().any(|warning| warning.contains(words)), "no {words} in {found:?}");
    }
    assert_eq!(found.len(), 5, "topics share a line: {found:?}");
    let smaller = warnings(&config.set("server.max_body", "'128KiB'"));
    assert!(smaller.len() == 4 && !smaller.iter().any(|warning| warning.contains("max.message.bytes")), "{smaller:?}");
}

#[test]
fn a_stream_in_memory_is_warned_of() {
    let place = Kind::Nats.place();
    let config = place.sink(Config::new(), "it").set("sinks.it.create_stream", "{ storage = 'memory' }");
    let created = config.process(&["config", "check", "--connect", "--create"]).wait();
    assert_eq!(created.code(), Some(0), "{}", created.stdout());
    assert!(created.stdout().contains("it is kept in memory"), "{}", created.stdout());
}
