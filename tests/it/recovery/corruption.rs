//! A disk that gives back something else than was written: damage costs the events that it hits and nothing else.
//!
//! A journal of many segments, some of its events published, some not and some set aside, is damaged in every tenth
//! segment, in the newest one, or in its state; by kind of damage. Then everything has to do its work for all the rest:
//! `journal verify` and `journal salvage`, a start, the feed, live publishing, replay, requeue and retention. What is
//! damaged is named, and an altered byte never reaches a sink.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::support::bridge::{Bridge, Config, command, done};
use crate::support::crash_state::{closed_segments, printed, segments};
use crate::support::eventually;
use crate::support::http::Request;
use crate::support::oracle::{Id, Judge, Sent};
use crate::support::process::Stdout;
use crate::support::samples::{dial, large};
use crate::support::shim::Shim;

const PAGE: usize = 4096;

/// What a segment has before its first record.
const HEADER: usize = 64;

/// How the bridge that has written the journal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    CleanStop,
    Kill9,
}

/// An event, and where it lies.
#[derive(Clone, Debug)]
struct Stored {
    position: u64,
    id: String,
    key: String,
    body: Value,
    /// The number of the log.
    segment: usize,
    bytes: Range<usize>,
}

/// A journal that is whole.
struct Whole {
    config: Config,
    events: Vec<Stored>,
    /// What the sink has printed: the first half.
    lines: Vec<String>,
    /// Positions of events that were set aside instead of being published.
    dead_letters: Vec<u64>,
    logs: Vec<PathBuf>,
}

/// 4 MiB, and so segments of 256 KiB, all of which are kept.
fn small(config: Config) -> Config {
    config.set("journal.max_bytes", "'4MiB'").set("journal.retain_bytes", "'4MiB'")
}

impl Whole {
    fn new(end: End) -> Arc<Self> {
        let (shim, config) = Shim::under(small(Config::new()));
        let mut sent = Vec::new();
        let mut deliver_until = |bridge: &Bridge, segments: usize, and_more: usize| {
            let mut more = and_more;
            loop {
                // Looked at once in each turn: a segment may be closed at any moment.
                if closed_segments(&config).len() >= segments {
                    if more == 0 {
                        break;
                    }
                    more -= 1;
                }
                let at = sent.len() as u64 + 1;
                let key = format!("key-{}", at % 7);
                let body = large(&key, at, 4_000);
                let id = bridge.deliver(&body).stored();
                sent.push((id, key, serde_json::from_slice::<Value>(&body).unwrap()));
            }
        };
        let bridge = config.clone().stdout_sink(Stdout::Read).start();
        deliver_until(&bridge, 6, 0);
        bridge.caught_up();
        let lines = bridge.stop().stdout;
        let bridge = config.clone().stdout_sink(Stdout::Closed).start();
        deliver_until(&bridge, 8, 0);
        shim.wait_until_idle();
        bridge.stop();
        // In a segment that stays whole, and of different keys.
        let dead_letters: Vec<u64> = (lines.len() as u64 + 1..).take(5).collect();
        set_aside(&config.clone().stdout_sink(Stdout::Read), &dead_letters);
        let bridge = config.clone().stdout_sink(Stdout::Closed).start();
        deliver_until(&bridge, 13, 8);
        shim.wait_until_idle();
        let found = bridge.events();
        match end {
            End::CleanStop => drop(bridge.stop()),
            End::Kill9 => drop(bridge.kill_9()),
        }
        let logs = segments(&config);
        let places = logs.iter().enumerate().flat_map(|(number, log)| records(number, &fs::read(log).unwrap()));
        let events =
            found.iter().zip(sent).zip(places).map(|((found, (id, key, body)), (position, segment, bytes))| {
                assert_eq!((found.id(), found.position), (&*id, position));
                Stored { position, id, key, body, segment, bytes }
            });
        let events: Vec<Stored> = events.collect();
        assert_eq!(events.len(), found.len());
        assert!(logs.len() >= 13 && lines.len() > 100 && events.len() > lines.len() + 100, "{} logs", logs.len());
        Arc::new(Self { config, events, lines, dead_letters, logs })
    }

    /// The logs that are damaged: every tenth, one that is published and one that is not.
    fn every_tenth(&self) -> Vec<usize> {
        (2..self.logs.len()).step_by(10).collect()
    }

    /// The number of the newest log that has events.
    fn newest(&self) -> usize {
        self.events.last().expect("events").segment
    }

    fn in_segment(&self, number: usize) -> impl Iterator<Item = &Stored> {
        self.events.iter().filter(move |event| event.segment == number)
    }

    /// Those that have a byte in this part of a log.
    fn hit(&self, number: usize, part: &Range<usize>) -> BTreeSet<u64> {
        let is_hit = |event: &&Stored| event.bytes.start < part.end && part.start < event.bytes.end;
        self.in_segment(number).filter(is_hit).map(|event| event.position).collect()
    }
}

/// The records of a log: position and place.
fn records(number: usize, log: &[u8]) -> Vec<(u64, usize, Range<usize>)> {
    let (mut found, mut at) = (Vec::new(), HEADER);
    while log.get(at..at + 4) == Some(b"SBRC") {
        let length = u32::from_le_bytes(log[at + 4..at + 8].try_into().unwrap()) as usize;
        let position = u64::from_le_bytes(log[at + 16..at + 24].try_into().unwrap());
        found.push((position, number, at..at + length));
        at += length;
    }
    found
}

/// Makes dead letters of events that wait. The bridge would call them stuck if its broker did not take them.
fn set_aside(config: &Config, positions: &[u64]) {
    let state = rusqlite::Connection::open(config.dir().join("journal/state.db")).unwrap();
    for position in positions {
        let sql = "INSERT INTO stuck (sink, position, since_ms, tries, reason, detail, target)
                   VALUES ('lines', ?1, 0, 1, 'other', 'a test', '')";
        state.execute(sql, [*position as i64]).unwrap();
    }
    state.close().unwrap();
    done(config, &["stuck", "set-aside", "--sink", "lines", "--reason", "other"]);
    let listed = done(config, &["dead-letters", "list", "--output", "json"]);
    assert_eq!(listed.lines().count(), positions.len(), "{listed}");
}

/// A copy of a journal that is damaged, and what that costs.
struct Damaged {
    whole: Arc<Whole>,
    config: Config,
    /// The positions that cannot be read any more.
    lost: BTreeSet<u64>,
    /// What `journal verify` has to name besides.
    named: Vec<String>,
    /// Whether the dead letters are all there.
    keeps_dead_letters: bool,
}

impl Damaged {
    fn new(whole: &Arc<Whole>) -> Self {
        let config = Config::new().stdout_sink(Stdout::Read);
        let config = config.set("journal.max_bytes", "'64MiB'").set("journal.retain_bytes", "'64MiB'");
        let (from, to) = (whole.config.dir().join("journal"), config.dir().join("journal"));
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(&from).unwrap() {
            let name = file.unwrap().file_name();
            fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
        Self { whole: Arc::clone(whole), config, lost: BTreeSet::new(), named: Vec::new(), keeps_dead_letters: true }
    }

    fn log(&self, number: usize) -> PathBuf {
        self.config.dir().join("journal").join(self.whole.logs[number].file_name().unwrap())
    }

    fn state(&self) -> PathBuf {
        self.config.dir().join("journal/state.db")
    }

    /// Overwrites a part of a log, as a bad sector would.
    fn spoil(&mut self, number: usize, part: Range<usize>) {
        self.lost.extend(self.whole.hit(number, &part));
        spoil(&self.log(number), part);
    }

    /// Flips one bit of an event, so far behind its beginning.
    fn flip(&mut self, number: usize, nth: usize, at: usize) {
        let event = self.whole.in_segment(number).nth(nth).expect("an event");
        let at = event.bytes.start + at;
        assert!(event.bytes.contains(&at));
        self.lost.insert(event.position);
        let mut bytes = fs::read(self.log(number)).unwrap();
        bytes[at] ^= 0x20;
        fs::write(self.log(number), bytes).unwrap();
    }

    fn names(&mut self, path: &Path) {
        self.named.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }

    fn intact(&self) -> impl Iterator<Item = &Stored> {
        self.whole.events.iter().filter(|event| !self.lost.contains(&event.position))
    }

    fn intact_ids(&self) -> Vec<&str> {
        self.intact().map(|event| event.id.as_str()).collect()
    }
}

fn spoil(path: &Path, part: Range<usize>) {
    let mut bytes = fs::read(path).unwrap();
    bytes[part].fill(0xff);
    fs::write(path, bytes).unwrap();
}

/// The positions that the lines of `journal verify` name: `position 7` or `positions 7 to 9`.
fn positions_in(lines: &[String]) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for line in lines {
        let words: Vec<&str> =
            line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        match words.iter().position(|word| word.starts_with("position")) {
            Some(at) if words[at] == "positions" => {
                found.extend(number(at + 1).zip(number(at + 3)).into_iter().flat_map(|(first, last)| first..=last));
            }
            Some(at) => found.extend(number(at + 1)),
            None => {}
        }
    }
    found
}

/// `journal verify` names all that is damaged, and nothing else.
fn is_named(damaged: &Damaged) {
    let ended = command(&damaged.config, &["journal", "verify"]);
    let said = format!("{}\n{}", ended.stdout(), ended.stderr());
    assert_eq!(ended.code(), Some(1), "{said}");
    let found = positions_in(&ended.stderr);
    assert_eq!(found, damaged.lost, "{said}");
    for name in &damaged.named {
        assert!(said.contains(name.as_str()), "{name} is not named: {said}");
    }
}

/// All that the sink was given is what was sent, and all of the rest is among it.
#[track_caller]
fn only_what_was_sent(damaged: &Damaged, fresh: &[(String, Vec<u8>)], lines: &[String], requeued: bool) {
    let mut sent = Vec::new();
    for event in &damaged.whole.events {
        // What is lost may have been published before, and so may what was set aside.
        let is_missed = requeued && damaged.keeps_dead_letters || !damaged.whole.dead_letters.contains(&event.position);
        let id = Some(Id::parse(&event.id)).filter(|_| is_missed && !damaged.lost.contains(&event.position));
        sent.push(Sent::new(&event.key, id, &event.body));
    }
    for (id, body) in fresh {
        sent.push(Sent::new("fresh", Some(Id::parse(id)), &serde_json::from_slice(body).unwrap()));
    }
    let mut all = printed(&damaged.whole.lines);
    all.extend(printed(lines));
    let dead_letters = &damaged.whole.dead_letters;
    let set_aside = damaged.whole.events.iter().filter(|event| dead_letters.contains(&event.position));
    let mut judge = Judge::new(&sent).moved(set_aside.map(|event| Id::parse(&event.id)));
    all.iter().for_each(|event| judge.hear(event));
    judge.verdict().clean();
}

fn replayed(bridge: &Bridge) -> BTreeSet<String> {
    let lines = bridge.printed().so_far();
    let envelopes = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let replayed = envelopes.filter(|envelope| envelope["replayed"] == true);
    replayed.map(|envelope| envelope["id"].as_str().unwrap().to_owned()).collect()
}

fn is_printed(bridge: &Bridge, id: &str, from: usize) -> bool {
    bridge.printed().so_far()[from..].iter().any(|line| line.contains(id))
}

/// The feed has all that can be read, in order, and names what cannot.
fn feeds(bridge: &Bridge, damaged: &Damaged) {
    let mut feed = bridge.feed(&Request::get("/events?follow=false"));
    let events = feed.rest();
    let ids: Vec<&str> = events.iter().map(|event| event.id()).collect();
    assert_eq!(ids, damaged.intact_ids(), "the feed has all that can be read");
    let named = positions_in(&feed.comments);
    assert_eq!(named, damaged.lost, "the feed names what it lacks");
}

/// All that can be read of the journal is in a new one, which is whole.
fn is_salvaged(damaged: &Damaged) {
    let to = damaged.config.dir().join("salvaged");
    done(&damaged.config, &["journal", "salvage", "--to", to.to_str().unwrap()]);
    let config = damaged.config.clone().set("journal.dir", &format!("'{}'", to.display()));
    done(&config, &["journal", "verify"]);
    let bridge = config.start();
    let events = bridge.events();
    let found: Vec<(u64, &str)> = events.iter().map(|event| (event.position, event.id())).collect();
    let expected: Vec<(u64, &str)> = damaged.intact().map(|event| (event.position, &*event.id)).collect();
    assert_eq!(found, expected, "what is salvaged");
    bridge.caught_up();
    if damaged.keeps_dead_letters {
        assert!(bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", "lines")]) >= 5.0);
    }
    let known = damaged.intact().last().expect("an event");
    assert_eq!(bridge.deliver(&known.body.to_string().into_bytes()).duplicate(), known.id);
    only_what_was_sent(damaged, &[], &bridge.stop().stdout, false);
    // Not a second time: what it has published is salvaged as well.
    let bridge = config.start();
    bridge.caught_up();
    assert_eq!(bridge.stop().stdout.len(), 0);
}

/// Everything does its work for all that is not damaged.
fn lives(damaged: &Damaged) {
    let bridge = damaged.config.start();
    assert!(bridge.is_ready());
    let mut fresh = Vec::new();
    let mut deliver = |bridge: &Bridge| {
        let body = dial("fresh", fresh.len() as u64 + 1);
        let id = bridge.deliver(&body).stored();
        fresh.push((id.clone(), body));
        id
    };
    feeds(&bridge, damaged);
    bridge.caught_up();
    let first = deliver(&bridge);
    eventually("a fresh event is printed", || is_printed(&bridge, &first, 0));
    let newest = bridge.events().last().unwrap().position;
    assert!(newest > damaged.whole.events.len() as u64, "a position is used twice");

    // Pending events that were lost are dead letters now; what was set aside before can be requeued.
    let before = bridge.printed().count();
    done(&damaged.config, &["dead-letters", "requeue", "--sink", "lines", "--all"]);
    let requeued = damaged.whole.events.iter().filter(|event| damaged.whole.dead_letters.contains(&event.position));
    for event in requeued.filter(|_| damaged.keeps_dead_letters) {
        eventually("a dead letter is printed", || is_printed(&bridge, &event.id, before));
    }

    done(&damaged.config, &["replay", "--sink", "lines", "--all"]);
    let mut expected: BTreeSet<String> = damaged.intact().map(|event| event.id.clone()).collect();
    expected.insert(first);
    eventually("all is replayed", || replayed(&bridge).is_superset(&expected));
    assert_eq!(replayed(&bridge), expected);
    deliver(&bridge);
    bridge.caught_up();
    let mut lines = bridge.stop().stdout;

    // Retention: whatever is damaged goes like everything else.
    let config = damaged.config.clone().set("journal.retain_bytes", "'64KiB'");
    let bridge = config.start();
    bridge.caught_up();
    let files = || segments(&config).iter().map(|log| fs::metadata(log).map_or(0, |found| found.len())).sum::<u64>();
    eventually("the space is released", || files() < 400 * 1024);
    assert_eq!(bridge.metric("sendbird_bridge_journal_damaged_records", &[]), 0.0);
    deliver(&bridge);
    eventually("the sink goes on", || is_printed(&bridge, &fresh.last().unwrap().0, 0));
    lines.extend(bridge.stop().stdout);
    only_what_was_sent(damaged, &fresh, &lines, true);
}

/// What is to do its work for all the rest.
type Work = fn(&Damaged);

/// Each kind of damage in its own copy, two at a time. All of them are tried, and what fails is named at the end.
fn each_kind(kinds: Vec<(String, Damaged)>) {
    assert!(!kinds.is_empty());
    let (kinds, failed) = (Mutex::new(kinds.into_iter()), Mutex::new(Vec::new()));
    let works: [(&str, Work); 3] = [("verify", is_named), ("salvage", is_salvaged), ("the bridge", lives)];
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((kind, damaged)) = kinds.lock().unwrap().next() else { return };
                    eprintln!("{kind}: {} events are lost", damaged.lost.len());
                    for (name, work) in works {
                        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&damaged))).is_err() {
                            eprintln!("FAILED: {kind}: {name}");
                            failed.lock().unwrap().push(format!("{kind}: {name}"));
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of these damages cost more than they may: {failed:#?}", failed.len());
}

/// The same damage in each of some logs.
fn in_logs(whole: &Arc<Whole>, logs: &[usize], kind: &str, damage: impl Fn(&mut Damaged, usize)) -> (String, Damaged) {
    let mut damaged = Damaged::new(whole);
    for number in logs {
        damage(&mut damaged, *number);
    }
    (kind.to_owned(), damaged)
}

#[test]
fn damaged_records_cost_their_own_events() {
    let whole = Whole::new(End::CleanStop);
    let logs = whole.every_tenth();
    assert!(logs.len() >= 2, "{} logs are too few", whole.logs.len());
    let kind = |name: &str, damage: fn(&mut Damaged, usize)| in_logs(&whole, &logs, name, damage);
    each_kind(vec![
        kind("a record's magic number", |damaged, log| damaged.flip(log, 5, 1)),
        kind("a record's length", |damaged, log| damaged.flip(log, 5, 5)),
        kind("a record's checksum", |damaged, log| damaged.flip(log, 5, 8)),
        kind("a record's position", |damaged, log| damaged.flip(log, 5, 16)),
        kind("a record's id", |damaged, log| damaged.flip(log, 5, 45)),
        kind("a record's payload", |damaged, log| damaged.flip(log, 5, 1_000)),
        kind("the first and the last record", |damaged, log| {
            damaged.flip(log, 0, 500);
            let last = damaged.whole.in_segment(log).count() - 1;
            damaged.flip(log, last, 500);
        }),
        kind("a page in the middle", |damaged, log| damaged.spoil(log, 20 * PAGE..21 * PAGE)),
        kind("the first page, with the header", |damaged, log| damaged.spoil(log, 0..PAGE)),
        kind("the last page", |damaged, log| {
            let end = fs::metadata(damaged.log(log)).unwrap().len() as usize;
            damaged.spoil(log, end - PAGE..end);
        }),
    ]);
}

#[test]
fn damaged_and_missing_files_of_a_segment_cost_its_own_events() {
    let whole = Whole::new(End::CleanStop);
    let logs = whole.every_tenth();
    let kind = |name: &str, damage: fn(&mut Damaged, usize)| in_logs(&whole, &logs, name, damage);
    each_kind(vec![
        kind("the index file's first page", |damaged, log| {
            let index = damaged.log(log).with_extension("idx");
            let end = fs::metadata(&index).unwrap().len() as usize;
            spoil(&index, 0..end.min(PAGE));
            damaged.names(&index);
        }),
        kind("an entry in the index file", |damaged, log| {
            let index = damaged.log(log).with_extension("idx");
            let end = fs::metadata(&index).unwrap().len() as usize;
            spoil(&index, end / 2..end / 2 + 20);
            damaged.names(&index);
        }),
        kind("an index file that is cut off", |damaged, log| {
            let index = damaged.log(log).with_extension("idx");
            fs::File::options().write(true).open(&index).unwrap().set_len(100).unwrap();
            damaged.names(&index);
        }),
        kind("a missing index file", |damaged, log| {
            let index = damaged.log(log).with_extension("idx");
            fs::remove_file(&index).unwrap();
            damaged.names(&index);
        }),
        kind("a log that is cut off", |damaged, log| {
            let end = fs::metadata(damaged.log(log)).unwrap().len() as usize;
            fs::File::options().write(true).open(damaged.log(log)).unwrap().set_len(end as u64 / 2).unwrap();
            damaged.lost.extend(damaged.whole.hit(log, &(end / 2..end)));
        }),
        kind("an empty log", |damaged, log| {
            fs::write(damaged.log(log), b"").unwrap();
            damaged.lost.extend(damaged.whole.hit(log, &(0..usize::MAX)));
        }),
        kind("a missing log", |damaged, log| {
            fs::remove_file(damaged.log(log)).unwrap();
            damaged.lost.extend(damaged.whole.hit(log, &(0..usize::MAX)));
        }),
        kind("a missing log and its index file", |damaged, log| {
            fs::remove_file(damaged.log(log)).unwrap();
            fs::remove_file(damaged.log(log).with_extension("idx")).unwrap();
            damaged.lost.extend(damaged.whole.hit(log, &(0..usize::MAX)));
        }),
        kind("a damaged log and a damaged index file", |damaged, log| {
            damaged.spoil(log, 10 * PAGE..11 * PAGE);
            let index = damaged.log(log).with_extension("idx");
            spoil(&index, 0..70);
            damaged.names(&index);
        }),
    ]);
}

#[test]
fn a_damaged_newest_segment_costs_its_own_events() {
    let mut kinds = Vec::new();
    for end in [End::CleanStop, End::Kill9] {
        let whole = Whole::new(end);
        let mut kind = |name: &str, damage: fn(&mut Damaged, usize)| {
            kinds.push(in_logs(&whole, &[whole.newest()], &format!("{name}, after {end:?}"), damage));
        };
        kind("the newest segment's payload", |damaged, log| damaged.flip(log, 0, 300));
        kind("the newest event", |damaged, log| {
            let last = damaged.whole.in_segment(log).count() - 1;
            damaged.flip(log, last, 300);
        });
        kind("every event of the newest segment", |damaged, log| {
            let end = damaged.whole.in_segment(log).last().unwrap().bytes.end;
            damaged.spoil(log, HEADER..end);
        });
        kind("the newest segment's first page", |damaged, log| damaged.spoil(log, 0..PAGE));
        kind("the newest segment, cut off", |damaged, log| {
            let end = damaged.whole.in_segment(log).last().unwrap().bytes.end;
            fs::File::options().write(true).open(damaged.log(log)).unwrap().set_len(end as u64 - 100).unwrap();
            damaged.lost.extend(damaged.whole.hit(log, &(end - 100..end)));
        });
        kind("the newest segment, missing", |damaged, log| {
            fs::remove_file(damaged.log(log)).unwrap();
            damaged.lost.extend(damaged.whole.hit(log, &(0..usize::MAX)));
        });
    }
    each_kind(kinds);
}

/// What the state file has, each with its first page.
fn pages_of_state(path: &Path) -> Vec<(String, usize)> {
    let state = rusqlite::Connection::open(path).unwrap();
    let mut statement = state.prepare("SELECT name, rootpage FROM sqlite_schema WHERE rootpage > 0").unwrap();
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as usize))).unwrap();
    found.collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_damaged_state_costs_no_event() {
    let whole = Whole::new(End::CleanStop);
    let mut kinds = Vec::new();
    let mut kind = |name: String, damage: &dyn Fn(&Path), keeps_dead_letters: bool| {
        let mut damaged = Damaged::new(&whole);
        damage(&damaged.state());
        damaged.named.push("state".into());
        damaged.keeps_dead_letters = keeps_dead_letters;
        kinds.push((name, damaged));
    };
    let spoil_page = |page: usize| move |path: &Path| spoil(path, (page - 1) * PAGE..page * PAGE);
    kind("the first page of the state".into(), &spoil_page(1), true);
    for (name, page) in pages_of_state(&Damaged::new(&whole).state()) {
        // A table's own root page leads to all of its rows.
        let keeps_dead_letters = name != "dead_letters";
        kind(format!("the root page of {name}"), &spoil_page(page), keeps_dead_letters);
    }
    kind("a state that is no database".into(), &|path| fs::write(path, b"something else entirely").unwrap(), false);
    kind("an empty state".into(), &|path| fs::write(path, b"").unwrap(), false);
    kind("a missing state".into(), &|path| fs::remove_file(path).unwrap(), false);
    each_kind(kinds);
}

#[test]
fn garbage_at_the_end_of_the_newest_segment_is_cut_off() {
    let config = Config::new();
    let bridge = config.start();
    let ids: Vec<String> = (1..=20).map(|at| bridge.deliver(&dial("a", at)).stored()).collect();
    bridge.kill_9();
    let newest = segments(&config).into_iter().max_by_key(|log| fs::metadata(log).unwrap().len()).unwrap();
    let whole = fs::read(&newest).unwrap();
    // The second half of the last commits, once more, and what was never written.
    let torn = [&whole[..], &whole[whole.len() - 900..], &[0xa5; 3 * PAGE + 17]].concat();
    fs::write(&newest, torn).unwrap();
    let bridge = config.start();
    let found: Vec<String> = bridge.events().iter().map(|event| event.id().to_owned()).collect();
    assert_eq!(found, ids);
    assert_eq!(bridge.metric("sendbird_bridge_journal_damaged_records", &[]), 0.0);
    bridge.deliver(&dial("a", 20)).duplicate();
    bridge.deliver(&dial("a", 21)).stored();
}
