//! `kill -9` and what is left: every delivery that was answered 200, once, in order by key.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::bridge::{Bridge, Config, TOKEN};
use crate::support::oracle::{Arrived, judge, read_record};
use crate::support::process::{Process, Stdout, program};
use crate::support::samples::dial;
use crate::support::{PATIENCE, eventually};

/// Load on a bridge, from a process of its own.
pub(crate) struct Load {
    process: Process,
    pub(crate) record: PathBuf,
}

impl Load {
    /// Starts `send` towards the bridge, and goes on through its restarts.
    pub(crate) fn start(bridge: &Bridge, count: u64, rate: u32) -> Self {
        Self::with(bridge, count, &["--concurrency", "16", "--rate", &rate.to_string()])
    }

    /// The same, with other arguments of `send`.
    pub(crate) fn with(bridge: &Bridge, count: u64, arguments: &[&str]) -> Self {
        let record = bridge.config().dir().join("record.jsonl");
        let mut command = program();
        command.args(["send", "--all", "--token", TOKEN, "--url", &bridge.url(), "--count", &count.to_string()]);
        command.args(arguments);
        command.arg("--record").arg(&record);
        Self { process: Process::start(command, Stdout::Read), record }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Waits until all is sent, and says whether all was answered 200.
    pub(crate) fn finish(self) -> bool {
        self.finish_within(PATIENCE * 3)
    }

    pub(crate) fn finish_within(self, limit: Duration) -> bool {
        self.process.wait_within(limit).code() == Some(0)
    }
}

/// Deliveries that this process of the bridge has stored.
pub(crate) fn stored_by(bridge: &Bridge) -> f64 {
    bridge.metric("sendbird_bridge_deliveries_total", &[("outcome", "stored")])
}

#[test]
fn what_was_answered_200_survives_kill_9_once_and_in_order() {
    let config = Config::new().fixed_address();
    let mut bridge = config.start();
    let mut load = Load::start(&bridge, 3_000, 400);
    for _ in 0..5 {
        eventually("deliveries are stored", || stored_by(&bridge) >= 100.0);
        bridge.kill_9();
        bridge = config.start();
        assert!(bridge.is_ready(), "no repair is needed");
        assert!(load.is_running(), "the load ended too early to prove anything");
    }
    let record = load.record.clone();
    load.finish();
    let sent = read_record(&record);
    assert_eq!(sent.len(), 3_000);
    let answered = sent.iter().filter(|sent| sent.id.is_some()).count();
    assert!(answered > 1_000, "only {answered} of 3000 were answered 200");
    let events = bridge.events();
    let positions: Vec<u64> = events.iter().map(|event| event.position).collect();
    assert_eq!(positions, (1..=events.len() as u64).collect::<Vec<_>>(), "positions have no gaps");
    let arrived: Vec<Arrived> = events.iter().map(|event| Arrived::envelope(&event.envelope)).collect();
    judge(&sent, &arrived).exactly_once();
}

#[test]
fn a_sink_goes_on_where_it_was_after_kill_9() {
    let config = Config::new().fixed_address().stdout_sink(Stdout::Read);
    let mut bridge = config.start();
    let mut load = Load::start(&bridge, 2_000, 400);
    let mut arrived = Vec::new();
    let read = |lines: Vec<String>, arrived: &mut Vec<Arrived>| {
        // The line that the crash cut off was never acknowledged.
        let whole = lines.iter().filter_map(|line| serde_json::from_str(line).ok());
        arrived.extend(whole.map(|envelope| Arrived::envelope(&envelope)));
    };
    for _ in 0..3 {
        let printed = bridge.printed();
        eventually("events are printed", || printed.count() >= 100);
        read(bridge.kill_9().stdout, &mut arrived);
        bridge = config.start();
        assert!(load.is_running(), "the load ended too early to prove anything");
    }
    let record = load.record.clone();
    load.finish();
    bridge.caught_up();
    let stored = bridge.events().len();
    read(bridge.stop().stdout, &mut arrived);
    let verdict = judge(&read_record(&record), &arrived).clean();
    assert_eq!(verdict.events, stored);
    assert!(verdict.again < 3_000, "{} events were printed again after three crashes", verdict.again);
}

#[test]
fn duplicates_are_known_after_a_crash_and_after_a_stop() {
    let config = Config::new();
    let bridge = config.start();
    let ids: Vec<String> = (0..50).map(|n| bridge.deliver(&dial("a", n)).stored()).collect();
    bridge.kill_9();
    let bridge = config.start();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(&bridge.deliver(&dial("a", n as u64)).duplicate(), id);
    }
    assert_eq!(bridge.stop().code(), Some(0));
    let bridge = config.start();
    assert_eq!(&bridge.deliver(&dial("a", 0)).duplicate(), &ids[0]);
    assert_eq!(bridge.events().len(), 50);
    assert_eq!(bridge.metric("sendbird_bridge_dedup_ids", &[]), 50.0);
}

#[test]
fn a_second_bridge_on_the_same_directory_is_refused() {
    let config = Config::new();
    let bridge = config.start();
    let ended = config.refused();
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
    let said = ended.stderr();
    assert!(said.contains("another bridge holds its lock") && said.contains("journal"), "{said}");
    bridge.deliver(&dial("a", 1)).stored();
    bridge.kill_9();
    config.start().deliver(&dial("a", 1)).duplicate();
}

#[test]
fn the_feed_is_the_same_after_a_crash() {
    let config = Config::new();
    let bridge = config.start();
    (0..200).for_each(|n| drop(bridge.deliver(&dial(&format!("k{}", n % 5), n)).stored()));
    let before: Vec<String> = bridge.events().into_iter().map(|event| event.line).collect();
    bridge.kill_9();
    let bridge = config.start();
    let after: Vec<String> = bridge.events().into_iter().map(|event| event.line).collect();
    assert_eq!(before, after);
    assert_eq!(bridge.deliver(&dial("new", 1)).accepted().1, "stored");
    assert_eq!(bridge.events().last().unwrap().position, 201);
}

#[test]
fn a_journal_of_another_program_is_refused_and_left_alone() {
    let config = Config::new();
    let dir = config.dir().join("journal");
    let bridge = config.start();
    bridge.deliver(&dial("a", 1)).stored();
    bridge.stop();
    let file = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let file = file
        .filter(|path| path.file_name().is_some_and(|name| name != "lock"))
        .max_by_key(|path| std::fs::metadata(path).unwrap().len());
    let file = file.unwrap();
    std::fs::write(&file, b"something else entirely, and more than sixteen bytes of it").unwrap();
    let ended = config.refused();
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
    assert!(ended.stderr().contains(file.file_name().unwrap().to_str().unwrap()), "{}", ended.stderr());
    assert!(std::fs::read(&file).unwrap().starts_with(b"something else"), "it is left alone");
}

#[test]
fn an_id_is_forgotten_when_it_leaves_the_window() {
    let bridge = Config::new().set("dedup.window", "'10s'").start();
    let id = bridge.deliver(&dial("a", 1)).stored();
    assert_eq!(bridge.deliver(&dial("a", 1)).duplicate(), id);
    let at = std::time::Instant::now();
    let mut again = (String::new(), String::new());
    eventually("it is stored again", || {
        again = bridge.deliver(&dial("a", 1)).accepted();
        again.1 == "stored"
    });
    assert!(at.elapsed() > std::time::Duration::from_secs(8), "forgotten after {:?}", at.elapsed());
    assert_eq!(again.0, id, "under the same id");
    assert_eq!(bridge.events().len(), 2);
}
