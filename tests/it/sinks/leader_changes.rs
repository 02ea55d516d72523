//! Clusters of three whose leaders go: by a crash, by an ordered stop, by stepping down. Each one of its test's own.

use crate::support::bridge::Config;
use crate::support::broker::operate::Cluster;
use crate::support::broker::{Kind, Place};
use crate::support::eventually;
use crate::support::trial::Trial;

/// Events that must go out after each fault.
const SOME: f64 = 300.0;

/// Under a load of its own, makes a fault and sees that events go out after it, in whose midst it may still be.
fn trial(place: &Place, what: &str, fault: impl FnOnce(), repair: impl FnOnce()) {
    let trial = Trial::start(what, Config::new(), place, None);
    fault();
    trial.goes_out(SOME);
    repair();
    trial.finish();
}

#[cfg(feature = "kafka")]
#[test]
fn a_kafka_leader_that_goes_costs_nothing() {
    use crate::support::broker::kafka::leader;
    let cluster = Cluster::start(Kind::Kafka);
    for (what, command) in [("partition leader killed", "kill"), ("partition leader stopped", "stop")] {
        let place = cluster.place(&[1, 2, 3]).made();
        let node = leader(&place);
        trial(&place, what, || drop(cluster.run(command, node)), || drop(cluster.run("start", node)));
    }
}

#[cfg(feature = "nats")]
#[test]
fn a_nats_leader_that_goes_costs_nothing() {
    use crate::support::broker::nats;
    let cluster = Cluster::start(Kind::Nats);
    // All of them now, because a cluster that lacks a server makes no stream of three.
    let [killed, stopped, stepping] = [(); 3].map(|()| cluster.place(&[1, 2, 3]).made());
    let leader = |place: &Place| {
        let mut found = None;
        eventually("the stream has a leader", || {
            found = nats::leader(place);
            found.is_some()
        });
        cluster.node_of(&found.unwrap())
    };
    for (place, what, command) in
        [(&killed, "stream leader killed", "kill"), (&stopped, "stream leader stopped", "stop")]
    {
        let node = leader(place);
        trial(place, what, || drop(cluster.run(command, node)), || drop(cluster.run("start", node)));
    }
    let first = leader(&stepping);
    trial(
        &stepping,
        "stream leader stepped down twice",
        || nats::step_down(&stepping),
        || {
            eventually("another one leads", || leader(&stepping) != first);
            nats::step_down(&stepping);
        },
    );
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_rabbitmq_leader_that_goes_costs_nothing() {
    let cluster = Cluster::start(Kind::RabbitMq);
    // The bridge has the address of one node only. A queue is led by the node through which it was made.
    let made_through = |node: u8| {
        let place = cluster.place(&[node]).made();
        Place { address: cluster.address(1), ..place }
    };
    for (node, what, command) in [
        (2, "queue leader killed", "kill"),
        (3, "queue leader stopped", "stop"),
        (1, "queue leader killed that the bridge is connected to", "kill"),
    ] {
        let place = made_through(node);
        let said = cluster.ctl(1, &["--silent", "list_queues", "name", "leader"]);
        let port = cluster.run("port", node);
        let leads = |line: &str| line.contains(&place.name) && line.contains(&format!("bridge-{port}@"));
        assert!(said.lines().any(leads), "the node {node} with the port {port} leads {}: {said}", place.name);
        let start = || drop(cluster.run("start", node));
        if node == 1 {
            // Nothing goes out until it is there again.
            trial(
                &place,
                what,
                || {
                    cluster.run(command, node);
                    start();
                },
                || {},
            );
        } else {
            trial(&place, what, || drop(cluster.run(command, node)), start);
        }
    }
}
