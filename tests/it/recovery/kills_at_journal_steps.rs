//! `kill -9` at each named step of an event's way, from the shim under the journal: before its commit, after it and
//! before the answer, while a segment is closed and the next begun, while old events are released, and during a start.
//!
//! A process that is killed leaves what it has written, whether or not it was fsynced; what a power cut would leave is
//! `power_cuts.rs`. The steps on the way to a broker are in `kills_at_publish.rs`.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::bridge::{Bridge, Config, signed};
use crate::support::crash_state::{closed_segments, durable_cursor, killed, newest_segment, printed, say, verify};
use crate::support::eventually;
use crate::support::load::{Load, stored_by};
use crate::support::oracle::{Arrived, Id, Judge, Sent, judge};
use crate::support::process::Stdout;
use crate::support::samples::{dial, large};
use crate::support::shim::{Of, Shim, Step};

/// Deliveries with their answers. One that was not answered the first time has the answer to its retry.
#[derive(Default)]
struct Sender {
    sent: Vec<Sent>,
}

impl Sender {
    /// A delivery that is answered 200; its id, and `stored` or `duplicate`.
    #[track_caller]
    fn send(&mut self, bridge: &Bridge, key: &str, body: &[u8]) -> (String, String) {
        let answer = bridge.deliver(body).accepted();
        self.sent.push(Sent::new(key, Some(Id::parse(&answer.0)), &serde_json::from_slice(body).unwrap()));
        answer
    }
}

fn in_feed(bridge: &Bridge) -> Vec<Arrived> {
    bridge.events().iter().map(|event| Arrived::envelope(&event.envelope)).collect()
}

#[test]
fn killed_around_a_commit_the_retry_is_answered_as_what_is_there() {
    let (shim, config) = Shim::under(Config::new());
    let mut sender = Sender::default();
    let mut at = 0;
    // The next that is written to a segment is the delivery, with one write.
    let steps = [
        ("before the commit, nothing written", Step::BeforeWrite, false),
        ("before the commit, half of it written", Step::InWrite, false),
        ("before the commit's fsync", Step::BeforeSync, true),
        ("after the commit, before the answer", Step::AfterSync, true),
    ];
    for (name, step, is_stored) in steps {
        const ROUNDS: usize = 3;
        let before = sender.sent.len();
        for _ in 0..ROUNDS {
            let bridge = config.start();
            at += 1;
            sender.send(&bridge, "k", &dial("k", at));
            at += 1;
            let body = dial("k", at);
            shim.wait_until_idle();
            shim.kill_at(Of::Events, step, 1);
            signed(&body).try_send(bridge.webhook).expect_err("a connection that breaks");
            killed(&shim, bridge);

            let bridge = config.start();
            let found = bridge.events().into_iter().find(|event| event.envelope["data"]["raw"]["occurred_at"] == at);
            let (id, status) = sender.send(&bridge, "k", &body);
            assert_eq!(status, if found.is_some() { "duplicate" } else { "stored" }, "{name}");
            if let Some(found) = &found {
                assert_eq!(found.id(), id, "{name}");
            }
            assert_eq!(found.is_some(), is_stored, "{name}");
            at += 1;
            sender.send(&bridge, "k", &dial("k", at));
            bridge.kill_9();
        }
        let verdict = judge(&sender.sent, &in_feed(&config.start())).exactly_once();
        say(name, ROUNDS, &sender.sent[before..], &[verdict]);
    }
}

#[test]
fn killed_at_any_write_or_fsync_under_load_nothing_is_lost() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for (name, retention) in [("any write or fsync, under load", false), ("the same, while events are released", true)]
    {
        const ROUNDS: usize = 8;
        let config = Config::new().fixed_address().stdout_sink(Stdout::Read);
        // The smallest journal: segments of 64 KiB, and most of them have to be released.
        let small = |config: Config| config.set("journal.max_bytes", "'1MiB'").set("journal.retain_bytes", "'64KiB'");
        let (shim, config) = Shim::under(if retention { small(config) } else { config });
        let mut arrived = Vec::new();
        let mut bridge = config.start();
        let load = Load::start(&bridge, 2_500, 500);
        for _ in 0..ROUNDS {
            eventually("deliveries are stored", || stored_by(&bridge) >= 50.0);
            let step = *random.choice(&[Step::BeforeWrite, Step::InWrite, Step::BeforeSync, Step::AfterSync]).unwrap();
            shim.kill(step, random.i64(1..if step as i64 > 2 { 8 } else { 80 }));
            arrived.extend(printed(&killed(&shim, bridge).stdout));
            bridge = config.start();
            assert!(load.is_running(), "the load ended too early to prove anything");
        }
        let sent = load.finish().sent;
        bridge.caught_up();
        let kept = bridge.status()["journal"]["records"].as_u64().unwrap();
        assert_eq!(kept < 1_500, retention, "{kept} events are kept");
        // What is left of the order in which the events were stored: without retention, all of it.
        let stored = bridge.events();
        let stored = stored.iter().map(|event| (Id::parse(event.id()), event.position));
        arrived.extend(printed(&bridge.stop().stdout));
        let mut judge = Judge::new(&sent).stored(stored);
        arrived.iter().for_each(|event| judge.hear(event));
        let verdict = judge.verdict().clean();
        say(name, ROUNDS, &sent, &[verdict]);
        assert_eq!(sent.len(), 2_500);
    }
}

/// A journal as a crash has left it: some of its events published and some not, and the state's write-ahead log as it
/// was.
struct Backlog {
    config: Config,
    sent: Vec<Sent>,
    printed: Vec<Arrived>,
}

impl Backlog {
    /// So many deliveries to a sink that gets stuck after some of them. Half of the last record is written.
    fn new(config: Config, count: u64, bytes: usize) -> Self {
        let (shim, config) = Shim::under(config.stdout_sink(Stdout::Held));
        let mut bridge = config.start();
        let mut sender = Sender::default();
        for at in 1..=count {
            let key = format!("k{}", at % 5);
            sender.send(&bridge, &key, &large(&key, at, bytes));
        }
        eventually("what was published is durable", || durable_cursor(&config) >= 3);
        let body = dial("k0", count + 1);
        shim.wait_until_idle();
        shim.kill_at(Of::Events, Step::InWrite, 1);
        signed(&body).try_send(bridge.webhook).expect_err("a connection that breaks");
        bridge.process.read_stdout();
        let printed = printed(&killed(&shim, bridge).stdout);
        sender.sent.push(Sent::new("k0", None, &serde_json::from_slice(&body).unwrap()));
        Self { config, sent: sender.sent, printed }
    }

    /// A bridge's directory with a copy of it.
    fn copy(&self, config: Config) -> (Shim, Config) {
        let (shim, config) = Shim::under(config);
        let (from, to) = (self.config.dir().join("journal"), config.dir().join("journal"));
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(&from).unwrap() {
            let name = file.unwrap().file_name();
            std::fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
        (shim, config)
    }
}

/// Does something for each number, four at a time, until it says that this was the last.
fn each(numbers: impl Iterator<Item = i64> + Send, work: impl Fn(i64) -> bool + Sync) {
    let numbers = Mutex::new(numbers.fuse());
    let done = Mutex::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !*done.lock().unwrap() {
                    let Some(number) = numbers.lock().unwrap().next() else { return };
                    if work(number) {
                        *done.lock().unwrap() = true;
                    }
                }
            });
        }
    });
}

/// What can be killed at, by name.
const STEPS: [(&str, Step); 4] = [
    ("before its nth write", Step::BeforeWrite),
    ("in its nth write", Step::InWrite),
    ("before its nth fsync", Step::BeforeSync),
    ("after its nth fsync", Step::AfterSync),
];

/// Waits until the bridge has been killed, or has nothing more to write; whether it was killed.
fn ends_or_is_done(shim: &Shim, bridge: &mut Bridge) -> bool {
    /// The journal looks once a second at what can be released.
    const DONE: Duration = Duration::from_millis(2_500);
    let mut before = (shim.recorded(), Instant::now());
    eventually("it is killed or done", || {
        let now = shim.recorded();
        if now != before.0 {
            before = (now, Instant::now());
        }
        !bridge.process.is_running() || before.1.elapsed() >= DONE
    });
    let was_killed = !bridge.process.is_running();
    shim.spare();
    was_killed
}

/// 1 MiB, and so segments of 64 KiB.
fn small_segments() -> Config {
    Config::new().set("journal.max_bytes", "'1MiB'").set("journal.retain_bytes", "'1MiB'")
}

#[test]
fn killed_while_old_events_are_released_nothing_unpublished_is_lost() {
    const HOURS_AHEAD: i64 = 25;
    let backlog = Backlog::new(small_segments(), 120, 2_000);
    let sent = &backlog.sent;
    let published = backlog.printed.len();
    assert!((3..60).contains(&published), "{published} of 120 were published");
    for (name, step) in STEPS {
        let verdicts = Mutex::new(Vec::new());
        each(1.., |nth| {
            // Nobody reads from the sink, so what it prints first fills the pipe, and then only retention writes.
            let (shim, config) = backlog.copy(small_segments().stdout_sink(Stdout::Held));
            let mut bridge = config.start();
            // Not by the cursor: which lines come first is nobody's promise, and one that is left over holds it.
            let printed_so_far = || bridge.metric("sendbird_bridge_sink_published_total", &[("sink", "lines")]);
            eventually("the pipe is full", || {
                let before = printed_so_far();
                std::thread::sleep(Duration::from_millis(300));
                before > 0.0 && printed_so_far() == before
            });
            shim.wait_until_idle();
            let records = || bridge.status()["journal"]["records"].as_u64().unwrap();
            let kept = records();
            shim.kill(step, nth);
            shim.set_clock_ahead(HOURS_AHEAD * 3_600_000);
            let was_killed = ends_or_is_done(&shim, &mut bridge);
            if !was_killed {
                let left = bridge.status()["journal"]["records"].as_u64().unwrap();
                assert!(left < kept && left >= 50, "of {kept} events {left} are left");
            }
            bridge.process.read_stdout();
            let ended = if was_killed { killed(&shim, bridge) } else { bridge.kill_9() };
            let mut arrived = backlog.printed.clone();
            arrived.extend(printed(&ended.stdout));
            verify(&config);

            let bridge = config.clone().stdout(Stdout::Read).start();
            bridge.caught_up();
            eventually("the rest is released", || bridge.status()["journal"]["records"] == 0);
            assert_eq!(bridge.metric("sendbird_bridge_dedup_ids", &[]), 0.0);
            bridge.deliver(&dial("fresh", 1)).stored();
            let last = || bridge.printed().so_far().last().is_some_and(|line| line.contains("fresh"));
            eventually("the sink goes on", last);
            let mut lines = bridge.stop().stdout;
            lines.pop();
            arrived.extend(printed(&lines));
            verify(&config);
            let verdict = judge(sent, &arrived).clean();
            if was_killed {
                verdicts.lock().unwrap().push(verdict);
            }
            !was_killed
        });
        let verdicts = verdicts.into_inner().unwrap();
        say(&format!("while old events are released, {name}"), verdicts.len(), sent, &verdicts);
        assert!(!verdicts.is_empty() || step == Step::InWrite, "{name}: nothing was killed");
    }
}

#[test]
fn a_kill_during_segment_rotation_loses_nothing() {
    for (name, step) in STEPS {
        let rounds = Mutex::new(0);
        each(1.., |nth| {
            let (shim, config) = Shim::under(small_segments());
            let mut bridge = config.start();
            let mut sender = Sender::default();
            // Up to the brink: the one after the next closes the segment at the latest.
            let mut at = 0;
            while newest_segment(&config) < 64 * 1024 - 3_500 {
                at += 1;
                sender.send(&bridge, "k", &large("k", at, 1_000));
            }
            assert!(closed_segments(&config).is_empty(), "a segment is closed too early to prove anything");
            shim.wait_until_idle();
            shim.kill(step, nth);
            for at in at + 1..=at + 3 {
                let body = large("k", at, 1_000);
                let answer = signed(&body).try_send(bridge.webhook).map(|answer| answer.accepted().0);
                let body = serde_json::from_slice(&body).unwrap();
                sender.sent.push(Sent::new("k", answer.as_ref().ok().map(|id| Id::parse(id)), &body));
                if answer.is_err() {
                    break;
                }
            }
            let was_killed = ends_or_is_done(&shim, &mut bridge);
            if was_killed {
                drop(killed(&shim, bridge))
            } else {
                drop(bridge.kill_9())
            }
            assert!(was_killed || closed_segments(&config).len() == 1, "no segment was closed");
            let bridge = config.start();
            sender.send(&bridge, "k", &dial("k", at + 4));
            judge(&sender.sent, &in_feed(&bridge)).exactly_once();
            bridge.stop();
            verify(&config);
            *rounds.lock().unwrap() += u32::from(was_killed);
            !was_killed
        });
        let rounds = rounds.into_inner().unwrap();
        eprintln!("a segment is closed, {name:<24} rounds {rounds:>3}   each answered event is there once");
        assert!(rounds > 3, "{name}: killed only {rounds} times");
    }
}

/// Starts a bridge that is to be killed during its start; whether it was, or came through.
fn start_is_killed(shim: &Shim, config: &Config, step: Step, nth: i64) -> bool {
    shim.kill(step, nth);
    let mut process = config.process(&["serve"]);
    let log = process.stderr();
    eventually("it is ready or killed", || {
        !process.is_running() || log.so_far().iter().any(|line| line.contains("\"message\":\"ready\""))
    });
    shim.spare();
    let ended = process.kill_9();
    assert_eq!(ended.status.signal(), Some(9), "{}", ended.stderr());
    shim.has_killed()
}

#[test]
fn killed_during_its_first_start_the_next_one_is_whole() {
    for (name, step) in STARTS {
        let rounds = Mutex::new(BTreeSet::new());
        each(1.., |nth| {
            let (shim, config) = Shim::under(Config::new());
            let was_killed = start_is_killed(&shim, &config, step, nth);
            let bridge = config.start();
            assert!(bridge.events().is_empty() && bridge.is_ready());
            let mut sender = Sender::default();
            assert_eq!(sender.send(&bridge, "k", &dial("k", 1)).1, "stored");
            judge(&sender.sent, &in_feed(&bridge)).exactly_once();
            if was_killed {
                rounds.lock().unwrap().insert(nth);
            }
            !was_killed
        });
        let rounds = rounds.into_inner().unwrap();
        eprintln!("first start, {name:<31} rounds {:>3}   then whole, and the first delivery is stored", rounds.len());
        assert!(rounds.len() > 3, "killed only at {rounds:?}");
    }
}

const STARTS: [(&str, Step); 3] = [
    ("before its nth write, creation or rename", Step::BeforeWrite),
    ("in its nth write", Step::InWrite),
    ("after its nth fsync", Step::AfterSync),
];

#[test]
fn killed_during_a_start_after_a_crash_nothing_is_lost() {
    let backlog = Backlog::new(Config::new(), 30, 2_500);
    let pending = backlog.sent.len() - backlog.printed.len();
    assert!(pending > 5, "only {pending} were left to publish");
    for (name, step) in STARTS {
        let verdicts = Mutex::new(Vec::new());
        each(1.., |nth| {
            let (shim, config) = backlog.copy(Config::new().stdout_sink(Stdout::Closed));
            let was_killed = start_is_killed(&shim, &config, step, nth);
            let bridge = config.clone().stdout(Stdout::Read).start();
            judge(&backlog.sent, &in_feed(&bridge)).exactly_once();
            bridge.caught_up();
            let mut arrived = backlog.printed.clone();
            arrived.extend(printed(&bridge.stop().stdout));
            verify(&config);
            let verdict = judge(&backlog.sent, &arrived).clean();
            if was_killed {
                verdicts.lock().unwrap().push(verdict);
            }
            !was_killed
        });
        let verdicts = verdicts.into_inner().unwrap();
        say(&format!("start after a crash, {name}"), verdicts.len(), &backlog.sent, &verdicts);
        assert!(verdicts.len() > 1);
    }
}
