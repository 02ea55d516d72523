//! What arrives in each broker, and how. Every test here runs against each of them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::sinks::for_each_broker;
use crate::support::bridge::{Bridge, Config};
use crate::support::broker::{Kind, Limits, Message, Place};
use crate::support::eventually;
use crate::support::samples::{dial, golden, large, samples, with_items, without_received_time};

for_each_broker! {
    each_sample_arrives_once_as_it_should
    keys_that_could_break_out_of_their_place_are_encoded
    a_message_that_is_refused_is_set_aside_and_holds_back_nothing
    what_is_missing_is_waited_for
    what_is_missing_is_made_where_that_is_configured
    each_sink_gets_the_categories_that_it_wants
    a_sink_that_is_new_starts_with_what_is_kept
    a_check_of_the_configuration_may_reach_the_broker
}

fn object_and_verb(envelope: &Value) -> (String, String) {
    let category = envelope["data"]["category"].as_str().unwrap();
    let (object, verb) = category.split_once(':').unwrap();
    (object.to_owned(), verb.to_owned())
}

fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.id.as_str()).collect()
}

fn pending(bridge: &Bridge, sink: &str) -> f64 {
    bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", sink)])
}

fn dead_letters(bridge: &Bridge, sink: &str) -> f64 {
    bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", sink)])
}

fn each_sample_arrives_once_as_it_should(kind: Kind) {
    let (structured, binary) = (kind.place().made(), kind.place().made());
    let config = binary.sink(structured.sink(Config::new(), "structured"), "binary");
    let bridge = config.set("sinks.binary.format", "'binary'").start();
    let mut answered = BTreeSet::new();
    for body in samples().values() {
        let id = bridge.deliver(body).stored();
        assert_eq!(bridge.deliver(body).duplicate(), id, "a retry");
        answered.insert(id);
    }
    bridge.caught_up();
    let golden: Vec<Value> = golden().into_values().map(without_received_time).collect();
    let stored: Vec<Value> = bridge.events().into_iter().map(|event| event.envelope).collect();

    for (place, format) in [(&structured, "structured"), (&binary, "binary")] {
        let messages = place.consume();
        assert_eq!(messages.len(), 13, "{format}: each sample once");
        let found: BTreeSet<String> = messages.iter().map(|message| message.id.clone()).collect();
        assert_eq!(found, answered, "{format}: under the ids that were answered");
        for message in messages {
            let stored = stored.iter().find(|envelope| envelope["id"] == message.id).unwrap();
            check(place, format, &message, stored);
            let golden = golden.iter().find(|envelope| envelope["id"] == message.id).unwrap();
            assert_eq!(&without_received_time(stored.clone()), golden, "{format}");
        }
        let published = bridge.metric("sendbird_bridge_sink_published_total", &[("sink", format)]);
        assert_eq!((published, dead_letters(&bridge, format)), (13.0, 0.0));
    }
}

/// A message is what the contract makes of this envelope.
#[track_caller]
fn check(place: &Place, format: &str, message: &Message, envelope: &Value) {
    let (object, verb) = object_and_verb(envelope);
    let key = envelope["partitionkey"].as_str().unwrap();
    assert_eq!(message.key, place.key(&object, &verb, key));
    assert_eq!(message.destination, place.destination(&object));
    let prefix = place.kind.prefix(format);
    let attributes: Vec<&str> = if format == "structured" {
        assert_eq!(message.content_type, "application/cloudevents+json; charset=utf-8");
        assert_eq!(&message.json(), envelope);
        vec!["id", "type", "subject", "time"]
    } else {
        assert_eq!(message.content_type, "application/json");
        assert_eq!(message.json(), envelope["data"]);
        let mut all = vec![
            "id",
            "type",
            "subject",
            "time",
            "specversion",
            "source",
            "dataschema",
            "partitionkey",
            "receivedtime",
        ];
        // The binding for NATS has a header for this one too.
        all.extend(Some("datacontenttype").filter(|_| place.kind.label() == "nats"));
        all
    };
    for name in &attributes {
        let found = message.headers.get(&format!("{prefix}{name}"));
        assert_eq!(found.map(String::as_str), envelope[name].as_str(), "the attribute {name} in {:?}", message.headers);
    }
    assert_eq!(message.headers.len(), attributes.len(), "{:?}", message.headers);
}

fn keys_that_could_break_out_of_their_place_are_encoded(kind: Kind) {
    let place = kind.place().made();
    let bridge = place.sink(Config::new(), "broker").start();
    let keys = [
        "a.b".to_owned(),
        "*".to_owned(),
        ">".to_owned(),
        "a b\r\nNats-Rollup: all".to_owned(),
        "\u{0}".to_owned(),
        "ключ/鍵".to_owned(),
        "#".to_owned(),
        "x".repeat(2_000),
        format!("{}y", "x".repeat(2_000)),
    ];
    let mut answered = Vec::new();
    for key in &keys {
        answered.push(bridge.deliver(&dial(key, 1)).stored());
    }
    // And one of no known kind, without any key at all.
    let stray = br#"{"category":"some.thing *>:new one","occurred_at":1}"#;
    answered.push(bridge.deliver(stray).stored());
    bridge.caught_up();
    assert_eq!(dead_letters(&bridge, "broker"), 0.0, "{}", bridge.status());
    let messages = place.consume();
    assert_eq!(ids(&messages).into_iter().collect::<BTreeSet<_>>(), answered.iter().map(String::as_str).collect());
    let different: BTreeSet<&str> = messages.iter().map(|message| message.key.as_str()).collect();
    assert_eq!(different.len(), keys.len() + 1, "different keys stay different: {different:?}");
    for (id, key) in answered.iter().zip(&keys) {
        let message = messages.iter().find(|message| &message.id == id).unwrap();
        assert_eq!(message.json()["data"]["call"]["call_id"], key.as_str());
    }
}

fn a_message_that_is_refused_is_set_aside_and_holds_back_nothing(kind: Kind) {
    let place = kind.place();
    let bytes = Some(8_000);
    // RabbitMQ has no such limit for a queue, but it sends back what no queue wants.
    let by_size = match kind {
        #[cfg(feature = "rabbitmq")]
        Kind::RabbitMq => false,
        #[allow(unreachable_patterns, reason = "in a build with this one client there is no other")]
        _ => true,
    };
    place.make(if by_size {
        Limits { bytes, ..Limits::default() }
    } else {
        Limits { no_rooms: true, ..Limits::default() }
    });
    let bridge = place.sink(Config::new(), "broker").start();
    let mut expected = vec![bridge.deliver(&dial("same", 1)).stored()];
    let refused = if by_size {
        bridge.deliver(&large("same", 2, 20_000)).stored()
    } else {
        bridge.deliver(&samples()["room.create"]).stored()
    };
    // Behind it: of its own key and of others.
    expected.push(bridge.deliver(&dial("same", 3)).stored());
    expected.extend((0..50).map(|n| bridge.deliver(&dial(&format!("k{n}"), n)).stored()));
    bridge.caught_up();
    assert_eq!(dead_letters(&bridge, "broker"), 1.0);
    assert_eq!(bridge.status()["sinks"][0]["dead_letters"], 1, "{}", bridge.status());
    let log = bridge.log().so_far();
    let reason = if by_size { "too_large" } else { "unroutable" };
    assert!(log.iter().any(|line| line.contains("became a dead letter") && line.contains(reason)), "{log:#?}");
    let messages = place.consume();
    assert!(!ids(&messages).contains(&refused.as_str()));
    assert_eq!(ids(&messages).into_iter().collect::<BTreeSet<_>>(), expected.iter().map(String::as_str).collect());
    assert_eq!(messages.len(), expected.len());
    // It is not tried again after a restart either.
    let config = bridge.config().clone();
    assert_eq!(bridge.stop().code(), Some(0));
    let bridge = config.start();
    assert_eq!((dead_letters(&bridge, "broker"), pending(&bridge, "broker")), (1.0, 0.0));
}

fn what_is_missing_is_waited_for(kind: Kind) {
    let place = kind.place();
    let bridge = place.sink(Config::new(), "broker").start();
    let answered: Vec<String> = samples().values().map(|body| bridge.deliver(body).stored()).collect();
    let retries =
        || bridge.metric("sendbird_bridge_sink_retries_total", &[("sink", "broker"), ("reason", "not_found")]);
    eventually("the missing target is reported", || retries() > 0.0);
    assert_eq!((pending(&bridge, "broker"), dead_letters(&bridge, "broker")), (13.0, 0.0));
    assert!(bridge.is_ready(), "readiness does not depend on a broker");
    place.make(Limits::default());
    bridge.caught_up();
    assert_eq!(dead_letters(&bridge, "broker"), 0.0);
    let messages = place.consume();
    assert_eq!(ids(&messages).into_iter().collect::<BTreeSet<_>>(), answered.iter().map(String::as_str).collect());
    let warnings = bridge.log().so_far().iter().filter(|line| line.contains("\"WARN\"")).count();
    assert!(warnings < 10, "{warnings} warnings: {:#?}", bridge.log().so_far());
}

fn what_is_missing_is_made_where_that_is_configured(kind: Kind) {
    let place = kind.place();
    let bridge = place.making_sink(Config::new(), "broker").start();
    let answered: Vec<String> = samples().values().map(|body| bridge.deliver(body).stored()).collect();
    bridge.caught_up();
    assert_eq!(dead_letters(&bridge, "broker"), 0.0);
    let messages = place.consume();
    assert_eq!(ids(&messages).into_iter().collect::<BTreeSet<_>>(), answered.iter().map(String::as_str).collect());
    // Where it is there already, it is taken as it is.
    let config = bridge.config().clone();
    assert_eq!(bridge.stop().code(), Some(0));
    let bridge = config.start();
    bridge.deliver(&dial("again", 1)).stored();
    bridge.caught_up();
}

fn each_sink_gets_the_categories_that_it_wants(kind: Kind) {
    let [rooms, ends, all] = [(); 3].map(|()| kind.place().made());
    let config = all.sink(ends.sink(rooms.sink(Config::new(), "rooms"), "ends"), "all");
    let config = config
        .set("sinks.rooms.categories", "['room:*']")
        .set("sinks.ends.categories", "['direct_call:end', 'room:delete']");
    let bridge = config.start();
    samples().values().for_each(|body| drop(bridge.deliver(body).stored()));
    bridge.deliver(br#"{"category":"room:renovated","occurred_at":1,"room":{"room_id":"r"}}"#).stored();
    bridge.caught_up();
    let categories = |place: &Place| {
        let categories = place.consume().into_iter().map(|message| message.json()["data"]["category"].clone());
        categories.map(|category| category.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let found = categories(&rooms);
    assert!(found.iter().all(|category| category.starts_with("room:")), "{found:?}");
    assert_eq!(found.len(), 11, "{found:?}");
    assert_eq!(categories(&ends), ["direct_call:end", "room:delete"].map(str::to_owned).into());
    assert_eq!(categories(&all).len(), 14);
}

fn a_sink_that_is_new_starts_with_what_is_kept(kind: Kind) {
    let config = Config::new();
    let bridge = config.start();
    let items = json!({ "note": "stored before there was a sink" });
    let before = bridge.deliver(&with_items("a", 1, &items)).stored();
    assert_eq!(bridge.stop().code(), Some(0));
    let place = kind.place().made();
    let bridge = place.sink(config, "broker").start();
    let after = bridge.deliver(&dial("a", 2)).stored();
    bridge.caught_up();
    let messages = place.consume();
    assert_eq!(ids(&messages), [before.as_str(), after.as_str()]);
}

fn a_check_of_the_configuration_may_reach_the_broker(kind: Kind) {
    let place = kind.place();
    let config = place.sink(Config::new(), "broker");
    let check = |config: &Config| config.process(&["config", "check", "--connect"]).wait();
    let missing = check(&config);
    let said = format!("{}{}", missing.stdout(), missing.stderr());
    assert!(missing.code() == Some(1) && said.contains("fault: not_found"), "{said}");
    place.make(Limits::default());
    let found = check(&config);
    assert_eq!(found.code(), Some(0), "{}{}", found.stdout(), found.stderr());
    assert!(found.stdout().contains(&format!("sinks.broker ({}): OK", kind.label())), "{}", found.stdout());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = Place { address: place.address.replace(&authority(&place.address), &nobody.to_string()), ..place };
    let unreached = check(&away.sink(Config::new(), "broker"));
    assert_eq!(unreached.code(), Some(1), "{}", unreached.stdout());
    let fault = format!("fault: connection: {nobody}");
    assert!(unreached.stdout().contains(&fault), "{}", unreached.stdout());
}

/// The host and port of a broker's address.
pub(crate) fn authority(address: &str) -> String {
    let after_scheme = address.rsplit_once("://").map_or(address, |(_, rest)| rest);
    let after_user = after_scheme.rsplit_once('@').map_or(after_scheme, |(_, rest)| rest);
    after_user.split('/').next().unwrap().to_owned()
}

#[cfg(feature = "rabbitmq")]
#[test]
fn attributes_can_be_named_without_a_colon() {
    let place = Kind::RabbitMq.place().made();
    let bridge = place
        .sink(Config::new(), "broker")
        .set("sinks.broker.format", "'binary'")
        .set("sinks.broker.attribute_prefix", "'cloudEvents_'")
        .start();
    let id = bridge.deliver(&dial("a", 1)).stored();
    bridge.caught_up();
    let message = &place.consume()[0];
    assert_eq!(message.headers.get("cloudEvents_id"), Some(&id));
    assert!(message.headers.keys().all(|name| name.starts_with("cloudEvents_")), "{:?}", message.headers);
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_password_that_is_refused_is_never_said() {
    let mut place = Kind::RabbitMq.place().made();
    place.address = format!("amqp://guest:canary-password@{}/%2f", authority(&place.address));
    let bridge = place.sink(Config::new(), "broker").variable("RUST_LOG", "debug").start();
    bridge.deliver(&dial("a", 1)).stored();
    let refused = [("sink", "broker"), ("reason", "not_authorized")];
    eventually("it is refused", || bridge.metric("sendbird_bridge_sink_retries_total", &refused) > 0.0);
    assert_eq!((pending(&bridge, "broker"), dead_letters(&bridge, "broker")), (1.0, 0.0));
    assert!(!bridge.status().to_string().contains("canary"), "{}", bridge.status());
    let ended = bridge.stop();
    assert!(!ended.stderr().contains("canary"), "{}", ended.stderr());
}

#[cfg(feature = "kafka")]
#[test]
fn a_topic_that_is_missing_holds_up_only_its_own_events() {
    use crate::support::broker::kafka::make_one;
    let place = Kind::Kafka.place();
    make_one(&place, "dial");
    let config = place.sink(Config::new(), "broker");
    let bridge = config.set("sinks.broker.topic", &format!("'{}.{{verb}}'", place.name)).start();
    // More keys than may be in flight, all of them stuck.
    for n in 0..1_500 {
        let body = format!(r#"{{"category":"room:create","occurred_at":{n},"room":{{"room_id":"r{n}"}}}}"#);
        bridge.deliver(body.as_bytes()).stored();
    }
    let calls: BTreeSet<String> = (0..100).map(|n| bridge.deliver(&dial(&format!("k{n}"), n)).stored()).collect();
    let published = [("sink", "broker"), ("category", "direct_call:dial")];
    eventually("calls go on", || bridge.metric("sendbird_bridge_sink_published_total", &published) >= 100.0);
    assert_eq!(dead_letters(&bridge, "broker"), 0.0);
    assert!(pending(&bridge, "broker") >= 1_500.0, "what is behind the cursor is pending");
    make_one(&place, "create");
    bridge.caught_up();
    let found = place.consume();
    let different: BTreeSet<&str> = found.iter().map(|message| message.id.as_str()).collect();
    assert_eq!(different.len(), 1_600);
    assert!(calls.iter().all(|id| different.contains(id.as_str())));
}

#[cfg(feature = "kafka")]
#[test]
fn keys_have_the_partitions_that_java_gives_them() {
    let place = Kind::Kafka.place().made();
    let bridge = place.sink(Config::new(), "broker").start();
    for key in ["a", "alice", "7F0E3C52-9A41-4D0B-8C55-0D6A1E2F3B4C", "ключ"] {
        bridge.deliver(&dial(key, 1)).stored();
    }
    bridge.caught_up();
    let found = crate::support::broker::kafka::partitions(&place, &place.destination("direct_call"));
    for (key, partition) in found {
        assert_eq!(partition, (murmur2(key.as_bytes()) & 0x7fff_ffff) % 3, "{key}");
    }
}

/// As in Apache Kafka's `Utils.murmur2`.
#[cfg(feature = "kafka")]
pub(crate) fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c_u32 ^ u32::try_from(data.len()).unwrap();
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        h = h.wrapping_mul(M) ^ k;
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * index);
        }
        h = h.wrapping_mul(M);
    }
    h = (h ^ (h >> 13)).wrapping_mul(M);
    (h ^ (h >> 15)).cast_signed()
}
