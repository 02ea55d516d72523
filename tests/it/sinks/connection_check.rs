//! `config check --connect`: it fails if an event could not be published, says why for every sink, and changes nothing at a
//! broker.

use crate::sinks::for_each_broker;
use crate::support::bridge::Config;
use crate::support::broker::{Kind, Limits, Place};
use crate::support::process::Ended;

for_each_broker! {
    a_check_of_a_complete_sink_passes_and_leaves_no_message
    a_check_creates_nothing_unless_it_is_told_to
    a_check_fails_where_something_is_missing
}

/// What `config check --connect` makes of these sinks.
pub(crate) fn check(config: &Config) -> Ended {
    config.process(&["config", "check", "--connect"]).wait()
}

/// The findings on one sink.
pub(crate) fn findings(ended: &Ended, name: &str) -> Vec<String> {
    let prefix = format!("sinks.{name} (");
    let lines = ended.stdout.iter().filter(|line| line.starts_with(&prefix));
    lines.map(|line| line.split_once("): ").expect("a finding").1.to_owned()).collect()
}

/// Asserts that the check has no fault of this sink.
#[track_caller]
pub(crate) fn assert_passes(config: &Config, name: &str) -> Vec<String> {
    let ended = check(config);
    let found = findings(&ended, name);
    assert_eq!((ended.code(), found.first().map(String::as_str)), (Some(0), Some("OK")), "{}", ended.stdout());
    found
}

/// Asserts that the check fails, and returns the faults of this sink.
#[track_caller]
pub(crate) fn assert_fails(config: &Config, name: &str) -> Vec<String> {
    let ended = check(config);
    assert_eq!(ended.code(), Some(1), "{}", ended.stdout());
    assert!(ended.stderr().contains("cannot publish every event now"), "{}", ended.stderr());
    let found = findings(&ended, name);
    let faults: Vec<String> =
        found.iter().filter_map(|finding| finding.strip_prefix("fault: ")).map(str::to_owned).collect();
    assert!(!faults.is_empty() && !found.contains(&"OK".to_owned()), "{}", ended.stdout());
    faults
}

fn a_check_of_a_complete_sink_passes_and_leaves_no_message(kind: Kind) {
    let place = kind.place().made();
    let config = place.sink(Config::new(), "it");
    let found = assert_passes(&config, "it");
    assert_eq!(place.count(), 0);
    let can_see_all = kind.label() != "rabbitmq";
    let is_not_checked = found.iter().any(|finding| finding.starts_with("not checked: whether a queue is bound"));
    assert_eq!(is_not_checked, !can_see_all, "{found:?}");
}

/// What the sink needs there, as the check names it.
fn needed(place: &Place) -> Vec<String> {
    match place.kind.label() {
        "kafka" => ["direct_call", "other", "room"].map(|object| format!("topic \"{}.{object}\"", place.name)).to_vec(),
        "rabbitmq" => ["exchange", "queue"].map(|what| format!("{what} \"{}\"", place.name)).to_vec(),
        _ => vec![format!("stream {}", place.name)],
    }
}

fn a_check_creates_nothing_unless_it_is_told_to(kind: Kind) {
    let place = kind.place();
    let (plain, creating) = (place.sink(Config::new(), "it"), place.making_sink(Config::new(), "it"));
    for _ in 0..2 {
        let found = assert_passes(&creating, "it");
        for what in needed(&place) {
            let line = format!("will be created: {what}");
            assert!(found.iter().any(|finding| finding.starts_with(&line)), "no \"{line}\" in {found:?}");
        }
        assert_fails(&plain, "it");
    }
    let refused = plain.process(&["config", "check", "--create"]).wait();
    assert_eq!(refused.code(), Some(64), "without --connect: {}", refused.stderr());
    let created = creating.process(&["config", "check", "--connect", "--create"]).wait();
    assert_eq!(created.code(), Some(0), "{}", created.stdout());
    let found = findings(&created, "it");
    for what in needed(&place) {
        let line = format!("created: {what}");
        assert!(found.iter().any(|finding| finding.starts_with(&line)), "no \"{line}\" in {found:?}");
    }
    assert_eq!(place.count(), 0);
    assert_passes(&plain, "it");
    let found = assert_passes(&creating, "it");
    assert!(!found.iter().any(|finding| finding.contains("created")), "{found:?}");
}

fn a_check_fails_where_something_is_missing(kind: Kind) {
    let place = kind.place();
    let faults = assert_fails(&place.sink(Config::new(), "it"), "it");
    assert!(faults.iter().all(|fault| fault.starts_with("not_found: ")), "{faults:?}");
    let topics = if kind.label() == "kafka" { needed(&place) } else { vec![place.name.clone()] };
    for what in topics {
        assert!(faults.iter().any(|fault| fault.contains(&what)), "no {what} in {faults:?}");
    }
    // Rooms have no topic, or no subject of the stream; no binding, which AMQP does not show.
    place.make(Limits { no_rooms: true, ..Limits::default() });
    let config = place.sink(Config::new(), "it");
    if kind.label() == "rabbitmq" {
        let queues =
            format!("{{ queues = [{{ name = '{}', type = 'classic', bindings = ['direct_call.#'] }}] }}", place.name);
        let found = assert_passes(&config.clone().set("sinks.it.declare", &queues), "it");
        let unbound = found.iter().find(|finding| finding.contains("no queue under declare.queues is"));
        let unbound = unbound.unwrap_or_else(|| panic!("nothing about bindings in {found:?}"));
        assert!(unbound.contains("\"room.create.*\"") && !unbound.contains("direct_call"), "{unbound}");
    } else {
        let faults = assert_fails(&config, "it");
        assert!(faults.iter().all(|fault| fault.starts_with("not_found: ") && fault.contains("room")), "{faults:?}");
    }
    let calls = config.set("sinks.it.categories", "['direct_call:*']");
    assert_passes(&calls, "it");
}

#[cfg(feature = "kafka")]
mod of_kafka {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::support::broker::Own;

    #[test]
    fn every_topic_of_a_template_is_checked() {
        let place = Kind::Kafka.place();
        let config =
            place.sink(Config::new(), "it").set("sinks.it.topic", &format!("'{}.{{object}}.{{verb}}'", place.name));
        let config = config.set("sinks.it.categories", "['direct_call:dial', 'room:*']");
        let ended = check(&config);
        let found = findings(&ended, "it");
        let missing = |name: &str| {
            let topic = format!("topic \"{}.{name}\" does not exist", place.name);
            found.iter().any(|finding| finding.starts_with("fault: not_found: ") && finding.contains(&topic))
        };
        assert!(missing("direct_call.dial") && missing("room.participant_enter"), "{found:?}");
        assert_eq!(found.iter().filter(|finding| finding.starts_with("fault: ")).count(), 11, "{found:?}");
        let rest =
            format!("not checked: topics \"{}.room.*\" of categories that Sendbird does not document", place.name);
        assert!(found.iter().any(|finding| finding.starts_with(&rest)), "{found:?}");
        assert_eq!(ended.code(), Some(1));
    }

    #[test]
    fn topics_that_cannot_be_known_are_named() {
        let place = Kind::Kafka.place();
        let topic = format!("'{}.{{application_id}}'", place.name);
        let by_application = place.sink(Config::new(), "it").set("sinks.it.topic", &topic);
        let faults = assert_fails(&by_application, "it");
        assert!(faults.len() == 1 && faults[0].contains("access.applications"), "{faults:?}");
        let faults = assert_fails(&by_application.set("access.applications", "['A', 'B']"), "it");
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn each_broker_is_reached_under_the_name_that_it_advertises() {
        let (own, proxy) = Own::behind_proxy(Kind::Kafka);
        let place = own.place().made();
        let proxied = format!("'127.0.0.1:{}'", own.run("proxied-port").trim());
        let config = place.sink(Config::new(), "it").set("sinks.it.brokers", &format!("[{proxied}]"));
        assert_passes(&config, "it");
        let advertised = proxy.address().to_string();
        drop(proxy);
        let faults = assert_fails(&config, "it");
        let named = format!("connection: a broker is not reached under the name that it advertises: {advertised}/1");
        assert!(faults.iter().any(|fault| fault.starts_with(&named)), "{faults:?}");
    }

    #[test]
    fn all_sinks_are_asked_at_once_and_every_fault_is_named() {
        let mut config = Config::new();
        for sink in 0..6 {
            let dead = Place { address: "127.0.0.1:1".into(), ..Kind::Kafka.place() };
            config = dead.sink(config, &format!("dead{sink}"));
        }
        let place = Kind::Kafka.place();
        let config = place.sink(config, "missing");
        let begun = Instant::now();
        let ended = check(&config);
        let took = begun.elapsed();
        assert_eq!(ended.code(), Some(1));
        assert!(ended.stderr().contains("7 of 7 sinks cannot publish every event now"), "{}", ended.stderr());
        for sink in 0..6 {
            let found = findings(&ended, &format!("dead{sink}"));
            assert!(found[0].starts_with("fault: connection: 127.0.0.1:1/bootstrap: "), "{found:?}");
        }
        assert_eq!(findings(&ended, "missing").len(), 3, "{}", ended.stdout());
        // One after the other they would take six times the eight seconds of the client.
        assert!(took < Duration::from_secs(25), "{took:?}");
    }
}

#[cfg(feature = "nats")]
mod of_nats {
    use super::*;

    #[test]
    fn one_server_that_is_not_reached_is_warned_of() {
        let place = Kind::Nats.place().made();
        let both = format!("['nats://127.0.0.1:1', '{}']", place.address);
        let config = place.sink(Config::new(), "it").set("sinks.it.servers", &both);
        let found = assert_passes(&config, "it");
        assert!(
            found.iter().any(|finding| finding.starts_with("warning: ") && finding.contains("127.0.0.1:1")),
            "{found:?}"
        );
        let faults = assert_fails(&config.set("sinks.it.servers", "['nats://127.0.0.1:1']"), "it");
        assert!(faults[0].starts_with("connection: 127.0.0.1:1: "), "{faults:?}");
    }

    #[test]
    fn a_stream_that_would_overlap_another_is_named() {
        let (place, other) = (Kind::Nats.place(), Kind::Nats.place().made());
        let config = place.making_sink(Config::new(), "it");
        let config = config.set("sinks.it.subject", &format!("'{}.{{object}}.{{verb}}.{{key}}'", other.name));
        let faults = assert_fails(&config, "it");
        let named = format!("the stream cannot be created while stream {} takes", other.name);
        assert!(faults.len() == 1 && faults[0].contains(&named), "{faults:?}");
        assert_eq!(other.count(), 0);
    }
}

#[cfg(feature = "rabbitmq")]
mod of_rabbitmq {
    use super::*;

    #[test]
    fn an_exchange_of_another_type_is_a_fault() {
        let place = Kind::RabbitMq.place().made();
        let config = place.sink(Config::new(), "it").set("sinks.it.declare", "{ exchange_type = 'direct' }");
        let faults = assert_fails(&config, "it");
        assert!(faults.len() == 1 && faults[0].contains("inequivalent arg 'type'"), "{faults:?}");
        assert!(faults[0].contains(place.address.split('@').nth(1).unwrap().trim_end_matches("/%2f")), "{faults:?}");
        let nowhere = place.sink(Config::new(), "it").set("sinks.it.url", "'amqp://guest:canary@127.0.0.1:1/%2f'");
        let faults = assert_fails(&nowhere, "it");
        assert!(faults[0].starts_with("connection: 127.0.0.1:1: ") && !faults[0].contains("canary"), "{faults:?}");
    }
}
