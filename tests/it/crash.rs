//! The crash test: the bridge is killed ten times under load, with all three brokers behind it.

use crate::recovery::{Load, stored_by};
use crate::support::bridge::Config;
use crate::support::broker::{Kind, Message, Place};
use crate::support::eventually;
use crate::support::oracle::{Arrived, judge, read_record};

#[test]
fn every_delivery_that_was_answered_200_is_in_every_broker_though_the_bridge_is_killed_ten_times() {
    let places: Vec<Place> = [Kind::Kafka, Kind::RabbitMq, Kind::Nats].map(|kind| kind.place().made()).into();
    let config =
        places.iter().fold(Config::new().fixed_address(), |config, place| place.sink(config, place.kind.label()));
    let mut bridge = config.start();
    let mut load = Load::start(&bridge, 6_000, 300);
    for round in 0..10 {
        let published = || bridge.metric("sendbird_bridge_sink_published_total", &[]);
        // Some rounds end while events are in flight to the brokers, some before the sinks are connected.
        eventually("deliveries come in", || stored_by(&bridge) >= 60.0 && (round % 3 == 2 || published() >= 60.0));
        assert!(load.is_running(), "the load ended too early to prove anything");
        bridge.kill_9();
        bridge = config.start();
    }
    let record = load.record.clone();
    load.finish();
    bridge.caught_up();
    let sent = read_record(&record);
    assert_eq!(sent.len(), 6_000);
    let answered = sent.iter().filter(|sent| sent.id.is_some()).count();
    assert!(answered > 3_000, "only {answered} of 6000 were answered 200");
    let stored = bridge.events().len();
    for place in &places {
        let label = place.kind.label();
        assert_eq!(bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", label)]), 0.0, "{label}");
        let arrived: Vec<Arrived> = place.consume().iter().map(Message::arrived).collect();
        let verdict = judge(&sent, &arrived);
        eprintln!("{label}: {} events, {} of them again, {answered} answered 200", verdict.events, verdict.again);
        let verdict = verdict.clean();
        assert_eq!(verdict.events, stored, "{label}");
    }
}
