//! The program in its image: not as root, its files read-only, with names from DNS. `tests/run image` has these tests run
//! the one in the container.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::bridge::Config;
use crate::support::broker::Kind;
use crate::support::broker::secured::{Fault, SecuredBroker};
use crate::support::process::run;
use crate::support::samples::samples;

/// What the name server of `tests/deploy/image` knows, and nothing else does.
const HOST: &str = "broker.test";

#[test]
#[ignore = "needs the image: tests/run image"]
fn the_demo_runs() {
    let ended = run(&["demo"]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert_eq!(ended.stdout.len(), 81, "one line for each event");
}

#[test]
#[ignore = "needs the image: tests/run image"]
fn signed_deliveries_reach_kafka_by_its_name_over_tls() {
    reach(Kind::Kafka);
}

#[test]
#[ignore = "needs the image: tests/run image"]
fn signed_deliveries_reach_rabbitmq_by_its_name_over_tls() {
    reach(Kind::RabbitMq);
}

#[test]
#[ignore = "needs the image: tests/run image"]
fn signed_deliveries_reach_nats_by_its_name_over_tls() {
    reach(Kind::Nats);
}

fn reach(kind: Kind) {
    let secured = SecuredBroker::start_as(kind, HOST);
    let place = secured.broker.place();
    // The journal lies where the image says, on its volume.
    let config = secured.sink(Config::new().unset("journal.dir"), "broker", &place, Fault::Nothing);
    config.write();
    for dir in [config.dir(), secured.broker.dir()] {
        let_others_read(dir);
    }
    let bridge = config.start();
    let samples = samples();
    for body in samples.values() {
        bridge.deliver(body).stored();
    }
    bridge.caught_up();
    assert_eq!(secured.count(&place), samples.len() as u64);
    assert_eq!(bridge.stop().code(), Some(0));
}

/// The user in the container is not the one who wrote the files.
fn let_others_read(dir: &Path) {
    set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
}
