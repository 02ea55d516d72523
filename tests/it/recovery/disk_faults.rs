//! A disk that fails: errors of write and fsync, no space, no permission to write.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::bridge::{Bridge, Config};
use crate::support::http::{Connection, Response};
use crate::support::oracle::{Arrived, Id, Sent, judge};
use crate::support::process::Stdout;
use crate::support::samples::{dial, large};
use crate::support::shim::{ALWAYS, EIO, ENOSPC, EROFS, Of, Shim};
use crate::support::{eventually, eventually_within};

/// Deliveries of one key in their order, with their answers.
#[derive(Default)]
struct Sender {
    sent: Vec<Sent>,
}

impl Sender {
    fn send(&mut self, bridge: &Bridge, body: &[u8]) -> Response {
        let answer = bridge.deliver(body);
        let id = (answer.status == 200).then(|| Id::parse(&answer.accepted().0));
        if answer.status != 200 {
            answer.problem(503);
        }
        self.sent.push(Sent::new("a", id, &serde_json::from_slice(body).unwrap()));
        answer
    }

    /// Restarts the bridge after a crash, and judges what it has.
    #[track_caller]
    fn judge(&self, bridge: Bridge, config: &Config) {
        bridge.kill_9();
        let bridge = config.start();
        let arrived: Vec<Arrived> = bridge.events().iter().map(|event| Arrived::envelope(&event.envelope)).collect();
        judge(&self.sent, &arrived).exactly_once();
        bridge.deliver(&dial("fresh", 1)).stored();
    }
}

/// The disk fails for a time, and is well again.
fn fails_and_recovers(fault: impl Fn(&Shim)) {
    let (shim, config) = Shim::under(Config::new());
    let bridge = config.start();
    let mut sender = Sender::default();
    (0..20).for_each(|at| assert_eq!(sender.send(&bridge, &dial("a", at)).status, 200));
    assert!(shim.seen() > 20, "the shim sees only {} writes", shim.seen());
    fault(&shim);
    assert_eq!(sender.send(&bridge, &dial("a", 20)).status, 503);
    assert!(shim.failed() > 0);
    bridge.admin("/readyz").problem(503);
    assert_eq!(bridge.admin("/livez").status, 200);
    assert_eq!(sender.send(&bridge, &dial("a", 21)).status, 503);
    assert_eq!(bridge.events().iter().filter(|event| event.position <= 20).count(), 20, "the feed goes on");
    shim.heal();
    eventually("it is ready again", || bridge.is_ready());
    for at in 22..40 {
        assert_eq!(sender.send(&bridge, &dial("a", at)).status, 200);
    }
    sender.judge(bridge, &config);
    let files = std::fs::read_dir(config.dir().join("journal")).unwrap().map(|entry| entry.unwrap().file_name());
    let aside: Vec<_> = files.filter(|name| name.to_string_lossy().starts_with("state-damaged")).collect();
    assert!(aside.is_empty(), "a disk that failed has damaged nothing, but there is {aside:?}");
}

#[test]
fn a_failing_fsync_loses_nothing_and_is_recovered_from() {
    fails_and_recovers(|shim| shim.fail_syncs(EIO, ALWAYS));
}

#[test]
fn a_failing_write_loses_nothing_and_is_recovered_from() {
    fails_and_recovers(|shim| shim.fail_writes(EIO, ALWAYS));
}

/// As when the system finds an error in a file system and writes to it no more.
#[test]
fn a_disk_that_becomes_read_only_loses_nothing_and_is_recovered_from() {
    fails_and_recovers(|shim| {
        shim.fail_writes(EROFS, ALWAYS);
        shim.fail_syncs(EROFS, ALWAYS);
    });
}

#[test]
fn a_journal_on_a_read_only_disk_is_a_clear_error_and_stays_as_it_is() {
    let config = Config::new();
    let bridge = config.start();
    let id = bridge.deliver(&dial("a", 1)).stored();
    bridge.kill_9();
    let ended = config.clone().read_only_disk().refused();
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
    let stderr = ended.stderr();
    assert!(stderr.contains("journal") && stderr.to_lowercase().contains("read-only"), "{stderr}");
    assert_eq!(config.start().deliver(&dial("a", 1)).duplicate(), id);
}

#[test]
fn a_single_error_costs_one_answer() {
    let (shim, config) = Shim::under(Config::new());
    let bridge = config.start();
    let mut sender = Sender::default();
    // What no answer waits for costs none.
    shim.only(Of::Events);
    let faults: [fn(&Shim); 3] =
        [|shim| shim.fail_syncs(EIO, 1), |shim| shim.fail_writes(EIO, 1), |shim| shim.fail_writes(ENOSPC, 1)];
    for (round, fault) in (0u64..).zip(faults) {
        (0..5).for_each(|at| assert_eq!(sender.send(&bridge, &dial("a", round * 10 + at)).status, 200));
        shim.wait_until_idle();
        fault(&shim);
        assert_eq!(sender.send(&bridge, &dial("a", round * 10 + 5)).status, 503);
        eventually("it is ready again", || bridge.is_ready());
        assert_eq!(shim.failed(), round as i64 + 1);
    }
    sender.judge(bridge, &config);
}

/// A quota: the disk seems to have room, and every write is refused for a long time.
#[test]
fn a_quota_keeps_the_bridge_unready_until_a_write_succeeds() {
    let (shim, config) = Shim::under(Config::new());
    let bridge = config.start();
    let mut sender = Sender::default();
    (0..5).for_each(|at| assert_eq!(sender.send(&bridge, &dial("a", at)).status, 200));
    shim.fail_writes(ENOSPC, ALWAYS);
    assert_eq!(sender.send(&bridge, &dial("a", 5)).status, 503);
    let begun = Instant::now();
    let mut at = 6;
    // Several times longer than the bridge waits before it tries the disk.
    while begun.elapsed() < Duration::from_secs(6) {
        bridge.admin("/readyz").problem(503);
        assert_eq!(bridge.metric("sendbird_bridge_journal_healthy", &[]), 0.0);
        assert_eq!(bridge.admin("/livez").status, 200);
        if at % 20 == 0 {
            assert_eq!(sender.send(&bridge, &dial("a", at)).status, 503);
        }
        at += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(at > 60, "asked only {at} times");
    let about = |line: &String| line.contains("journal") && line.contains("\"level\":\"ERROR\"");
    let errors = bridge.log().so_far().iter().filter(|line| about(line)).count();
    assert!(errors <= 2, "{errors} lines about one fault");
    shim.heal();
    eventually("it is ready again", || bridge.is_ready());
    assert_eq!(sender.send(&bridge, &dial("a", at)).status, 200);
    sender.judge(bridge, &config);
}

#[test]
fn a_disk_that_fills_in_the_middle_of_a_commit_loses_nothing() {
    let (shim, config) = Shim::under(Config::new());
    let bridge = config.start();
    let mut sender = Sender::default();
    for round in 0..4 {
        shim.leave_space(fastrand::i64(20_000..200_000));
        let refused = (0..100).find(|at| sender.send(&bridge, &large("a", round * 1_000 + at, 9_000)).status == 503);
        assert!(refused.is_some(), "100 deliveries of 9 KB into 200 KB");
        shim.heal();
        eventually("it takes events", || sender.send(&bridge, &dial("a", round * 1_000 + 999)).status == 200);
    }
    sender.judge(bridge, &config);
}

/// What `journal stats` says of a copy, as the directory itself is another process's.
fn stats(dir: &Path) -> String {
    let copy = Config::new();
    let to = copy.dir().join("copy");
    std::fs::create_dir(&to).unwrap();
    for file in std::fs::read_dir(dir).unwrap() {
        let name = file.unwrap().file_name();
        // What is removed meanwhile is not there any more.
        if !["filler", "lock", "state.db-shm"].contains(&name.to_str().unwrap()) {
            drop(std::fs::copy(dir.join(&name), to.join(&name)));
        }
    }
    let ended = copy.process(&["journal", "stats", "--output", "json", "--dir", to.to_str().unwrap()]).wait();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    ended.stdout()
}

#[test]
fn a_full_disk_drains_and_recovers_by_itself() {
    const MIB: usize = 1024 * 1024;
    let config = Config::new().small_disk(48).stdout_sink(Stdout::Held);
    let mut bridge = config.start();
    let dir = bridge.process.path(&config.dir().join("journal"));
    let filler = dir.join("filler");
    std::fs::write(&filler, vec![0; 8 * MIB]).unwrap();
    let mut sender = Sender::default();
    let mut at = 0;
    eventually("the disk is full", || {
        at += 1;
        sender.send(&bridge, &large("a", at, 100_000)).status == 503
    });
    let stored = bridge.events().len();
    assert!(stored > 50, "only {stored} of 100 KB in 48 MiB");
    eventually("it is not ready", || !bridge.is_ready());
    bridge.admin("/readyz").problem(503);

    // The reserve: what waits goes out, and how far it has got is durable.
    bridge.process.read_stdout();
    bridge.caught_up();
    eventually("the cursor is durable", || {
        let stats: serde_json::Value = serde_json::from_str(&stats(&dir)).expect("JSON");
        stats["sinks"][0]["cursor"] == stored && stats["sinks"][0]["pending"] == 0
    });

    // To the last byte: nothing at all can be written, and the bridge stays up.
    let rest = std::fs::File::create(dir.join("rest")).unwrap();
    let fill = || while std::io::Write::write(&mut &rest, &[0; 4096]).is_ok() {};
    fill();
    assert_eq!(sender.send(&bridge, &dial("a", at + 1)).status, 503);
    assert_eq!(bridge.admin("/livez").status, 200);
    std::fs::remove_file(dir.join("rest")).unwrap();
    drop(rest);
    std::fs::remove_file(&filler).unwrap();
    eventually("it takes events again", || bridge.is_ready());
    sender.send(&bridge, &dial("a", at + 2)).stored();
    eventually("all is printed", || bridge.printed().count() == stored + 1);
    let printed = bridge.stop().stdout;
    let envelopes = printed.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    judge(&sender.sent, &envelopes.map(|envelope| Arrived::envelope(&envelope)).collect::<Vec<_>>()).exactly_once();
}

#[test]
fn a_disk_that_cannot_be_written_at_start_is_a_clear_error() {
    let (shim, config) = Shim::under(Config::new());
    let bridge = config.start();
    let id = bridge.deliver(&dial("a", 1)).stored();
    bridge.stop();
    for error in [EIO, ENOSPC] {
        shim.fail_writes(error, ALWAYS);
        let ended = config.refused();
        assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
        assert!(ended.stderr().contains("cannot") && ended.stderr().contains("journal"), "{}", ended.stderr());
        shim.heal();
    }
    let bridge = config.start();
    assert_eq!(bridge.deliver(&dial("a", 1)).duplicate(), id);
    eventually_within(Duration::from_secs(5), "it is ready", || bridge.is_ready());
}

#[test]
fn connections_are_refused_until_the_journal_is_open() {
    let (shim, config) = Shim::under(Config::new().fixed_address());
    let bridge = config.start();
    let (webhook, admin) = (bridge.webhook, bridge.admin);
    let id = bridge.deliver(&dial("a", 1)).stored();
    bridge.kill_9();
    shim.delay_syncs(Duration::from_secs(5));
    let before = shim.seen();
    let bridge = std::thread::scope(|scope| {
        let starting = scope.spawn(|| config.start());
        eventually("the journal is being opened", || shim.seen() > before);
        for address in [webhook, admin] {
            let error = Connection::try_open(address).err().expect("nobody is let in");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
        assert!(!starting.is_finished(), "the start was too fast to prove anything");
        shim.heal();
        starting.join().unwrap()
    });
    assert_eq!(bridge.deliver(&dial("a", 1)).duplicate(), id);
}
