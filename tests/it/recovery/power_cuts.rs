//! Power cuts: what was answered 200 is there, though the disk lost everything that was not fsynced.
//!
//! A shim under the bridge records every write, rename, deletion and fsync of the journal's files in their order, with
//! what is printed between them, and each answer notes how long that record was when it came. A cut at any place of the
//! record then gives the files that a machine would find after it: what was fsynced, and of the rest nothing, or a random
//! part: sectors of 512 bytes, and each rename and deletion for itself. The real program opens them, and the oracle
//! compares.
//!
//! Proven: the bridge asks for the fsyncs that its answers depend on, in time and in the right order, during start,
//! commits, and while segments are closed and released, and recovers from what is left; what is released has been
//! published for good. Not proven: that the disk, its cache and the file system do what an fsync asks for; and that new
//! names of files are durable, since a file counts here as there once its content was fsynced.

use std::sync::Mutex;

use serde_json::Value;

use crate::support::bridge::{Bridge, Config};
use crate::support::crash_state::printed;
use crate::support::eventually;
use crate::support::oracle::{Arrived, Fault, Id, Sent, Verdict, judge};
use crate::support::process::Stdout;
use crate::support::samples::{dial, large};
use crate::support::shim::{ALWAYS, Done, EIO, Files, Loss, Operation, Shim};

/// A delivery, with the length of the record when it was answered 200.
struct Delivery {
    key: String,
    body: Value,
    answered: Option<(String, u64)>,
}

impl Delivery {
    /// What its sender knew of it when the record had this length.
    fn before(&self, cut: u64) -> Sent {
        let id = self.answered.as_ref().filter(|(_, at)| *at <= cut).map(|(id, _)| Id::parse(id));
        Sent::new(&self.key, id, &self.body)
    }
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
    let sent = deliveries.iter().map(|delivery| delivery.before(cut));
    judge(&sent.collect::<Vec<_>>(), &arrived)
}

/// Up to where the record is the start.
const START: usize = 40;

/// The places in the record, after the start, where something else is done than to add events or to write the state.
fn maintenance(operations: &[Operation]) -> Vec<usize> {
    let is_maintenance = |operation: &Operation| match &operation.done {
        Done::Rename(_) | Done::Unlink | Done::Create | Done::Truncate(_) => true,
        Done::Print { .. } => false,
        _ => !operation.name.ends_with(".log") && !operation.name.starts_with("state.db"),
    };
    (START..operations.len()).filter(|index| is_maintenance(&operations[*index])).collect()
}

/// Cuts at the end, in the start, anywhere, while pages were moved into the state file, and while segments were closed
/// and released.
fn cuts(operations: &[Operation], random: &mut fastrand::Rng) -> Vec<usize> {
    let maintenance = maintenance(operations);
    assert!(maintenance.len() > 20, "expected segments to be closed, but found {} operations", maintenance.len());
    let moves_pages =
        |index: &usize| operations[*index].name == "state.db" && matches!(operations[*index].done, Done::Write { .. });
    let moving: Vec<usize> = (START..operations.len()).filter(moves_pages).collect();
    let mut cuts = vec![operations.len()];
    cuts.extend((0..3).map(|_| random.usize(1..START)));
    cuts.extend((0..4).map(|_| random.usize(START..operations.len())));
    cuts.extend((0..6).map(|_| maintenance[random.usize(..maintenance.len())]));
    cuts.extend((0..2).filter(|_| !moving.is_empty()).map(|_| moving[random.usize(..moving.len())]));
    cuts
}

fn say_cut(operations: &[Operation]) {
    let Operation { name, done, .. } = operations.last().expect("an operation");
    let done = format!("{done:?}");
    let done = done.split([' ', '(']).next().unwrap_or_default();
    eprintln!("cut after operation {}: {done} {name}", operations.len());
}

fn seeded() -> fastrand::Rng {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    fastrand::Rng::with_seed(seed)
}

/// A journal of many segments: half a MiB each.
fn many_segments(config: Config) -> Config {
    config.set("journal.max_bytes", "'8MiB'").set("journal.retain_bytes", "'8MiB'")
}

#[test]
fn what_was_answered_200_survives_a_power_cut() {
    let mut random = seeded();
    let (shim, config) = Shim::under(many_segments(Config::new()));
    let bridge = config.start();
    // Twice as much in the journal, and all of it has room.
    let deliveries = load(&bridge, &shim, 60, 11_000);
    bridge.kill_9();
    assert!(deliveries.iter().all(|delivery| delivery.answered.is_some()));
    let operations = shim.record();
    for count in cuts(&operations, &mut random) {
        let (operations, cut) = (&operations[..count], operations[count - 1].end);
        say_cut(operations);
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
    // The bridge has tried to go on in another file, and that has failed as well.
    let failed = shim.failed();
    eventually("it was tried again", || shim.failed() > failed + 2);
    shim.heal();
    eventually("it is ready again", || bridge.is_ready());
    deliveries.extend((1..=5).map(|at| deliver(&bridge, &shim, "f", &dial("f", at))));
    bridge.kill_9();
    let operations = shim.record();
    verdict(&Files::after(&operations, Loss::Everything, |_| true), &deliveries, u64::MAX).exactly_once();
}

fn lines_printed(operation: &Operation) -> usize {
    if let Done::Print { lines } = operation.done { lines } else { 0 }
}

/// An event that was being written when the power was cut may be torn, and is then named as damaged. Nothing else is.
#[track_caller]
fn names_only_what_was_not_answered(config: &Config, deliveries: &[Delivery], cut: u64) {
    let ended = config.clone().stdout(Stdout::Read).process(&["journal", "verify"]).wait();
    // No file, no dead letter and no other position: a fault of an event begins so, and the last line has the sums.
    let named = ended.stderr();
    let is_known = |line: &str| line.starts_with("position ") || line.starts_with('{') && line.contains(" damaged\"");
    assert!(named.lines().all(is_known), "{named}");
    assert_eq!(ended.code(), Some(i32::from(!named.is_empty())), "{named}{}", ended.stdout());
    let answered = deliveries.iter().filter_map(|delivery| delivery.answered.as_ref());
    for (id, _) in answered.filter(|(_, at)| *at <= cut) {
        assert!(!named.contains(id.as_str()), "{named}");
    }
}

/// Published events are released all the while. Whatever is cut off, each event has been printed before or is there.
#[test]
fn what_is_released_has_been_published_for_good() {
    let mut random = seeded();
    let (shim, config) = Shim::under(many_segments(Config::new().stdout_sink(Stdout::Read)));
    let config = config.set("journal.retain_bytes", "'64KiB'");
    let bridge = config.start();
    let deliveries = load(&bridge, &shim, 60, 25_000);
    bridge.caught_up();
    eventually("old events are released", || bridge.status()["journal"]["records"].as_u64().unwrap() < 120);
    let lines = bridge.kill_9().stdout;
    let operations = shim.record();
    let removed = operations.iter().filter(|operation| matches!(operation.done, Done::Unlink)).count();
    assert!(removed > 5, "only {removed} files were removed");
    assert_eq!(operations.iter().map(lines_printed).sum::<usize>(), lines.len());
    for count in cuts(&operations, &mut random) {
        let (operations, cut) = (&operations[..count], operations[count - 1].end);
        say_cut(operations);
        let printed_before: usize = operations.iter().map(lines_printed).sum();
        for files in [
            Files::after(operations, Loss::Everything, |_| true),
            Files::after(operations, Loss::Some(&mut random), |_| true),
        ] {
            let config = Config::new().stdout_sink(Stdout::Read);
            files.write(&config);
            let bridge = config.start();
            bridge.caught_up();
            let mut arrived = printed(&lines[..printed_before]);
            arrived.extend(printed(&bridge.stop().stdout));
            names_only_what_was_not_answered(&config, &deliveries, cut);
            let sent: Vec<Sent> = deliveries.iter().map(|delivery| delivery.before(cut)).collect();
            judge(&sent, &arrived).clean();
        }
    }
}
