//! Faults on the way to a broker, and a broker that crashes: under load, each ends with the oracle's verdict.

use crate::sinks::for_each_broker;
use crate::support::bridge::Config;
use crate::support::broker::{Kind, Own};
use crate::support::eventually;
use crate::support::oracle::Verdict;
use crate::support::proxy::Proxy;
use crate::support::trial::Trial;

for_each_broker! {
    a_broker_that_crashes_gets_everything_in_order
    a_connection_that_is_cut_in_mid_publish_costs_nothing
    a_route_that_goes_silent_is_noticed_and_left
    a_slow_route_is_slow_and_nothing_else
    an_acknowledgement_that_gets_lost_is_asked_for_again
}

/// A load on a bridge that reaches its broker through a proxy.
fn through_a_proxy(kind: Kind, what: &str, fault: impl FnOnce(&Trial, &Proxy)) -> Verdict {
    let (broker, proxy) = Own::behind_proxy(kind);
    let place = broker.place().made();
    let trial = Trial::start(what, Config::new(), &place, Some(place.through(&proxy)));
    assert!(proxy.to_broker() > 10_000, "the bridge goes past the proxy");
    fault(&trial, &proxy);
    trial.finish()
}

/// How often a fault that is over at once is made.
const ROUNDS: u32 = 3;

fn a_broker_that_crashes_gets_everything_in_order(kind: Kind) {
    let broker = Own::start(kind);
    let place = broker.place().made();
    let trial = Trial::start("killed", Config::new(), &place, None);
    broker.run("kill");
    trial.comes_in(300.0);
    broker.run("start");
    trial.goes_out(100.0);
    // Once more while it still catches up.
    broker.run("kill");
    broker.run("start");
    trial.finish();
}

fn a_connection_that_is_cut_in_mid_publish_costs_nothing(kind: Kind) {
    through_a_proxy(kind, "connection cut in mid-publish", |trial, proxy| {
        for round in 1..=ROUNDS {
            proxy.cut_after(fastrand::u32(1..20_000));
            eventually("it is cut", || proxy.cuts() == u64::from(round));
            trial.goes_out(100.0);
        }
    });
}

fn a_route_that_goes_silent_is_noticed_and_left(kind: Kind) {
    through_a_proxy(kind, "black hole", |trial, proxy| {
        let retries = trial.retries();
        proxy.silent(true);
        trial.comes_in(300.0);
        eventually("it is noticed", || trial.retries() > retries);
        assert!(trial.pending() > 0.0);
        proxy.silent(false);
        trial.goes_out(100.0);
    });
}

fn a_slow_route_is_slow_and_nothing_else(kind: Kind) {
    // Kafka's client sends a request that takes longer than 15 s once more from its beginning: at 1 KiB a second one of
    // more than 15 KiB, which is a few events, never gets through.
    let (kib, events) = if kind == Kind::Kafka { (8, 40.0) } else { (1, 5.0) };
    through_a_proxy(kind, &format!("{kib} KiB a second"), |trial, proxy| {
        proxy.slow(kib * 1024);
        trial.comes_in(300.0);
        trial.goes_out(events);
        proxy.slow(0);
    });
}

fn an_acknowledgement_that_gets_lost_is_asked_for_again(kind: Kind) {
    let verdict = through_a_proxy(kind, "acknowledgement lost", |trial, proxy| {
        for _ in 0..ROUNDS {
            let (held, given) = (proxy.held(), proxy.to_broker());
            proxy.hold_answers(true);
            eventually("acknowledgements are held", || proxy.held() > held && proxy.to_broker() > given);
            proxy.cut();
            proxy.hold_answers(false);
            trial.goes_out(100.0);
        }
    });
    // Kafka's idempotent producer and JetStream's window know what they have already.
    match kind.label() {
        "rabbitmq" => assert!(verdict.again > 0, "nothing was asked for again"),
        _ => assert_eq!(verdict.again, 0),
    }
}
