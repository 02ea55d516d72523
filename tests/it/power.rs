//! Power cuts: what was answered 200 is there, though the disk lost all that it was not told to keep.
//!
//! A shim under the bridge records every write and every fsync of the journal's files in their order, and each answer
//! notes how long that record was when it came. A cut at any place of the record then gives the files that a machine
//! would find after it: what was fsynced, and of the rest nothing, or a random part in sectors of 512 bytes. The real
//! program opens them, and the oracle compares.
//!
//! Proven: the bridge asks for the fsyncs that its answers depend on, in time and in the right order, during start,
//! commits and checkpoints, and recovers from what is left. Not proven: that the disk, its cache and the file system
//! do what an fsync asks for; and that new names of files are durable, since a file counts here as there once its
//! content was fsynced.

use std::sync::Mutex;

use serde_json::Value;

use crate::support::bridge::{Bridge, Config};
use crate::support::eventually;
use crate::support::oracle::{Arrived, Fault, Id, Sent, Verdict, judge};
use crate::support::samples::{dial, large};
use crate::support::shim::{ALWAYS, DATABASE, Done, EIO, Files, Loss, Operation, Shim};

/// A delivery, with the length of the record when it was answered 200.
struct Delivery {
    key: String,
    body: Value,
    answered: Option<(String, u64)>,
}

/// Delivers `count` bodies of each of four keys, one key beside the other.
fn load(bridge: &Bridge, shim: &Shim, count: u64, bytes: usize) -> Vec<Delivery> {
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for key in ["a", "b", "c", "d"] {
            let all = &all;
            scope.spawn(move || {
                for at in 1..=count {
                    let delivery = deliver(bridge, shim, key, &large(key, at, bytes));
                    all.lock().unwrap().push(delivery);
                }
            });
        }
    });
    all.into_inner().unwrap()
}

fn deliver(bridge: &Bridge, shim: &Shim, key: &str, body: &[u8]) -> Delivery {
    let answer = bridge.deliver(body);
    let answered = (answer.status == 200).then(|| (answer.accepted().0, shim.recorded()));
    Delivery { key: key.into(), body: serde_json::from_slice(body).unwrap(), answered }
}

/// Starts the program on what is left, and judges it by what was answered before the cut.
fn verdict(files: &Files, deliveries: &[Delivery], cut: u64) -> Verdict {
    let config = Config::new();
    files.write(&config);
    let bridge = config.start();
    let arrived: Vec<Arrived> = bridge.events().iter().map(|event| Arrived::envelope(&event.envelope)).collect();
    bridge.deliver(&dial("fresh", 1)).stored();
    bridge.kill_9();
    let before =
        |delivery: &Delivery| delivery.answered.clone().filter(|(_, at)| *at <= cut).map(|(id, _)| Id::parse(&id));
    let sent = deliveries.iter().map(|delivery| Sent::new(&delivery.key, before(delivery), &delivery.body));
    judge(&sent.collect::<Vec<_>>(), &arrived)
}

/// Cuts in the start, anywhere, and while pages were moved into the database.
fn cuts(operations: &[Operation], random: &mut fastrand::Rng) -> Vec<usize> {
    let moved = |index: &usize| {
        operations[*index].file == DATABASE && *index > 40 && matches!(operations[*index].done, Done::Write { .. })
    };
    let moving: Vec<usize> = (0..operations.len()).filter(moved).collect();
    assert!(moving.len() > 100, "expected a checkpoint in the record, but found {} writes", moving.len());
    let mut cuts = vec![operations.len()];
    cuts.extend((0..3).map(|_| random.usize(1..40)));
    cuts.extend((0..4).map(|_| random.usize(40..operations.len())));
    cuts.extend((0..4).map(|_| moving[random.usize(..moving.len())]));
    cuts
}

#[test]
fn what_was_answered_200_survives_a_power_cut() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (shim, config) = Shim::under(Config::new());
    let bridge = config.start();
    let deliveries = load(&bridge, &shim, 60, 25_000);
    bridge.kill_9();
    assert!(deliveries.iter().all(|delivery| delivery.answered.is_some()));
    let operations = shim.record();
    for count in cuts(&operations, &mut random) {
        let (operations, cut) = (&operations[..count], operations[count - 1].end);
        verdict(&Files::after(operations, Loss::Everything, |_| true), &deliveries, cut).exactly_once();
        verdict(&Files::after(operations, Loss::Some(&mut random), |_| true), &deliveries, cut).exactly_once();
    }

    // A disk that does not keep its word from the middle on: the judge must see what that costs.
    let middle = operations[operations.len() / 2].end;
    let files = Files::after(&operations, Loss::Everything, |sync| sync.end <= middle);
    let faults = verdict(&files, &deliveries, u64::MAX).faults;
    assert!(faults.len() > 20 && faults.iter().all(|fault| matches!(fault, Fault::Missing { .. })), "{faults:?}");
}

#[test]
fn what_is_answered_after_a_failed_fsync_survives_a_power_cut_too() {
    let (shim, config) = Shim::under(Config::new());
    let bridge = config.start();
    let mut deliveries = load(&bridge, &shim, 5, 1_000);
    shim.fail_syncs(EIO, ALWAYS);
    deliveries.push(deliver(&bridge, &shim, "e", &dial("e", 1)));
    assert!(deliveries.iter().last().unwrap().answered.is_none());
    // Closing the file has failed as well, and so have attempts to open it again.
    let failed = shim.failed();
    eventually("it was tried again", || shim.failed() > failed + 2);
    shim.heal();
    eventually("it is ready again", || bridge.is_ready());
    deliveries.extend((1..=5).map(|at| deliver(&bridge, &shim, "f", &dial("f", at))));
    bridge.kill_9();
    let operations = shim.record();
    verdict(&Files::after(&operations, Loss::Everything, |_| true), &deliveries, u64::MAX).exactly_once();
}
