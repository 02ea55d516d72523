//! The journal against a simple model: any order of appends, of what sinks read, acknowledge and set aside, of resends,
//! configurations, clock jumps, damage, stops and kills, with the promises checked after every step.
//!
//! The promises, by their numbers in the checks: (1) published is a set, exact after a clean stop; (2) a stuck event
//! holds up nothing else; (3) it costs its own bytes; (4) pending counts exactly; (5) each event is as it was stored, or
//! named as damaged; (6) each resend names a configured sink and a stored event, requeued dead letters are never cut, and
//! no command makes the journal refuse deliveries; (7) damage costs what it hits, and a start always succeeds; (8) no
//! position is used twice. That the end of a thread is noticed (9) is a test of its own.
//!
//! A kill is a copy of the directory's files as they lie there at one moment. What a power cut takes besides is proven
//! from outside, in `tests/it/recovery/disk_faults.rs`; kills inside a compaction, in `tests/retention.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use proptest::prelude::*;

use super::tests::*;
use super::*;
use crate::domain::units::{Size, Span};

const NAMES: [&str; 4] = ["all", "rooms", "sometimes", "renamed"];
const KINDS: [&str; 3] = ["room:started", "room:ended", "direct:dialed"];
const RETAIN_MS: i64 = 30_000;
const WINDOW_MS: i64 = 20_000;
const MAX_BYTES: u64 = 1024 * 1024;
const RETAIN_BYTES: u64 = 128 * 1024;
const SEGMENT: u64 = 64 * 1024;

#[derive(Clone, Debug)]
enum Step {
    /// So many events of ids from a few, so that some come again.
    Append {
        id: u8,
        count: u8,
        kind: usize,
        size: usize,
    },
    /// A sink reads on.
    Read {
        sink: usize,
        rows: usize,
    },
    /// It acknowledges some of what waits, from the end or from the beginning, but not what is stuck.
    Acknowledge {
        sink: usize,
        count: usize,
        from_end: bool,
    },
    /// From now on every second event of a sink is never acknowledged.
    Stick {
        sink: usize,
        stuck: bool,
    },
    SetAside {
        sink: usize,
        which: usize,
    },
    Record {
        sink: usize,
    },
    Requeue {
        sink: usize,
    },
    Replay {
        sink: usize,
        key: u8,
    },
    Cancel {
        which: usize,
    },
    /// Some resends are published, or refused.
    Resend {
        sink: usize,
        rows: usize,
        refused: bool,
    },
    Clock(i64),
    Flush,
    Stop {
        sinks: usize,
    },
    Crash {
        sinks: usize,
    },
    Damage {
        what: Damage,
        place: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    FlippedByteOfALog,
    ZeroedPageOfALog,
    TruncatedLog,
    MissingLog,
    FlippedByteOfAnIndex,
    ZeroedPageOfAnIndex,
    MissingIndex,
    FlippedByteOfIds,
    ZeroedPageOfTheState,
    FlippedByteOfTheState,
    MissingState,
}

fn step() -> impl Strategy<Value = Step> {
    let sink = 0..NAMES.len();
    let damage = prop_oneof![
        3 => Just(Damage::FlippedByteOfALog),
        3 => Just(Damage::ZeroedPageOfALog),
        1 => Just(Damage::TruncatedLog),
        1 => Just(Damage::MissingLog),
        2 => Just(Damage::FlippedByteOfAnIndex),
        1 => Just(Damage::ZeroedPageOfAnIndex),
        1 => Just(Damage::MissingIndex),
        1 => Just(Damage::FlippedByteOfIds),
        3 => Just(Damage::ZeroedPageOfTheState),
        3 => Just(Damage::FlippedByteOfTheState),
        1 => Just(Damage::MissingState),
    ];
    prop_oneof![
        14 => (any::<u8>(), 1u8..40, 0..KINDS.len(), 1usize..4_000)
            .prop_map(|(id, count, kind, size)| Step::Append { id, count, kind, size }),
        12 => (sink.clone(), 1usize..60).prop_map(|(sink, rows)| Step::Read { sink, rows }),
        12 => (sink.clone(), 1usize..80, any::<bool>())
            .prop_map(|(sink, count, from_end)| Step::Acknowledge { sink, count, from_end }),
        2 => (sink.clone(), any::<bool>()).prop_map(|(sink, stuck)| Step::Stick { sink, stuck }),
        2 => (sink.clone(), 0usize..50).prop_map(|(sink, which)| Step::SetAside { sink, which }),
        1 => sink.clone().prop_map(|sink| Step::Record { sink }),
        1 => sink.clone().prop_map(|sink| Step::Requeue { sink }),
        1 => (sink.clone(), 0u8..4).prop_map(|(sink, key)| Step::Replay { sink, key }),
        1 => (0usize..3).prop_map(|which| Step::Cancel { which }),
        3 => (sink, 1usize..30, any::<bool>()).prop_map(|(sink, rows, refused)| Step::Resend { sink, rows, refused }),
        3 => (-5_000i64..20_000).prop_map(Step::Clock),
        1 => Just(Step::Flush),
        2 => (0usize..4).prop_map(|sinks| Step::Stop { sinks }),
        2 => (0usize..4).prop_map(|sinks| Step::Crash { sinks }),
        3 => (damage, any::<u32>()).prop_map(|(what, place)| Step::Damage { what, place }),
    ]
}

/// An event that was stored.
#[derive(Clone, Debug)]
struct Stored {
    id: u8,
    accepted_ms: i64,
    key: String,
    kind: &'static str,
    payload: Vec<u8>,
}

/// What a sink has published, as it knows itself.
#[derive(Clone, Debug, Default)]
struct Published {
    frontier: u64,
    waiting: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct SinkModel {
    now: Published,
    /// As it was when the state was durable last.
    durable: Published,
    is_stuck: bool,
    is_known: bool,
    cursor: ResendCursor,
    dead_letters: BTreeSet<u64>,
    requeued: BTreeSet<u64>,
    /// Events that were released while it was not configured.
    missed: BTreeSet<u64>,
    /// Events of a replay that were given since the start, by its number.
    given: BTreeMap<u64, BTreeSet<u64>>,
}

impl SinkModel {
    fn may_publish(&self, position: u64) -> bool {
        !self.is_stuck || position % 2 == 1
    }
}

/// How a journal is reopened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    Clean,
    Killed,
    /// What the state said may be lost.
    StateDamaged,
}

struct Model {
    bench: Bench,
    journal: Journal,
    sinks: BTreeMap<&'static str, SinkModel>,
    configured: Vec<&'static str>,
    events: BTreeMap<u64, Stored>,
    last: u64,
    latest_ms: i64,
    /// Events whose bytes were touched.
    touched: BTreeSet<u64>,
    ids_are_damaged: bool,
    letters_are_damaged: bool,
    replays: BTreeMap<u64, (&'static str, String)>,
}

fn specs(names: &[&'static str]) -> Vec<SinkSpec> {
    let kinds = |name: &str| if name == "rooms" { vec!["room:*".to_owned()] } else { Vec::new() };
    names.iter().map(|name| SinkSpec { name: (*name).into(), kinds: kinds(name) }).collect()
}

fn wants(name: &str, kind: &str) -> bool {
    name != "rooms" || kind.starts_with("room:")
}

/// Which sinks there are: one comes and goes, and one is renamed.
fn configuration(number: usize) -> Vec<&'static str> {
    match number {
        0 => vec!["all", "rooms"],
        1 => vec!["all", "rooms", "sometimes"],
        2 => vec!["all", "rooms", "renamed"],
        _ => vec!["rooms"],
    }
}

impl Model {
    fn new() -> Self {
        let mut bench = Bench::new();
        bench.settings.max_bytes = Size(MAX_BYTES);
        bench.settings.retain_bytes = Size(RETAIN_BYTES);
        bench.settings.retain_for = Span::from_secs(RETAIN_MS as u64 / 1000);
        bench.dedup.window = Span::from_secs(WINDOW_MS as u64 / 1000);
        let configured = configuration(1);
        bench.sinks = specs(&configured);
        let journal = bench.open();
        let sinks =
            NAMES.map(|name| (name, SinkModel { is_known: configured.contains(&name), ..SinkModel::default() }));
        Self {
            latest_ms: bench.clock.now_ms(),
            bench,
            journal,
            sinks: sinks.into(),
            configured,
            events: BTreeMap::new(),
            last: 0,
            touched: BTreeSet::new(),
            ids_are_damaged: false,
            letters_are_damaged: false,
            replays: BTreeMap::new(),
        }
    }

    /// A configured sink.
    fn sink(&self, number: usize) -> &'static str {
        self.configured[number % self.configured.len()]
    }

    fn of(&mut self, sink: &'static str) -> &mut SinkModel {
        self.sinks.get_mut(sink).unwrap()
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Append { id, count, kind, size } => {
                // No id is all zeros.
                (0..count).for_each(|n| self.append(id.wrapping_add(n).max(1), KINDS[kind], size));
            }
            Step::Read { sink, rows } => self.read(self.sink(sink), rows),
            Step::Acknowledge { sink, count, from_end } => self.acknowledge(self.sink(sink), count, from_end),
            Step::Stick { sink, stuck } => self.of(NAMES[sink]).is_stuck = stuck,
            Step::SetAside { sink, which } => self.set_aside(self.sink(sink), which),
            Step::Record { sink } => self.record(self.sink(sink)),
            Step::Requeue { sink } => self.requeue(self.sink(sink)),
            Step::Replay { sink, key } => self.replay(self.sink(sink), key),
            Step::Cancel { which } => self.cancel(which),
            Step::Resend { sink, rows, refused } => self.resend(self.sink(sink), rows, refused),
            Step::Clock(by) => {
                self.bench.forward(by);
                self.latest_ms = self.latest_ms.max(self.bench.clock.now_ms());
            }
            Step::Flush => self.flush(),
            Step::Stop { sinks } => {
                self.close();
                self.reopen(Restart::Clean, sinks);
            }
            Step::Crash { sinks } => {
                let journal = self.journal.clone();
                self.bench.crash(&journal);
                self.reopen(Restart::Killed, sinks);
            }
            Step::Damage { what, place } => {
                self.close();
                let damaged = self.damage(what, place as usize);
                self.reopen(if damaged { Restart::StateDamaged } else { Restart::Clean }, 1);
            }
        }
        self.check();
    }

    // ---- steps -----------------------------------------------------------------------------------------------------

    fn append(&mut self, id: u8, kind: &'static str, size: usize) {
        let accepted_ms = self.bench.clock.now_ms();
        let (key, payload) = (format!("key {}", id % 4), format!("{id} ").repeat(size / 4 + 1).into_bytes());
        let entry =
            || Entry { id: [id; 16], key: key.clone(), kind: kind.into(), accepted_ms, payload: payload.clone() };
        let mut answer = append(&self.journal, entry());
        for _ in 0..30 {
            if answer != Err(AppendError::Full) {
                break;
            }
            // Compaction may need a moment.
            std::thread::sleep(Duration::from_millis(50));
            answer = append(&self.journal, entry());
        }
        let known = self.events.iter().rev().find(|(_, stored)| stored.id == id);
        match answer {
            Ok(Appended::Duplicate(position)) => {
                let known = known.expect("a duplicate of something");
                assert_eq!(position, *known.0, "a duplicate of the newest event of this id");
            }
            Ok(Appended::Stored(position)) => {
                if let Some((_, known)) = known {
                    let may_be_forgotten = known.accepted_ms + WINDOW_MS <= self.latest_ms || self.ids_are_damaged;
                    assert!(may_be_forgotten, "a duplicate inside the window is stored again");
                }
                assert!(position > self.last, "(8) {position} after {}", self.last);
                self.last = position;
                self.events.insert(position, Stored { id, accepted_ms, key, kind, payload });
            }
            Err(AppendError::Full) => {
                let needed = self.needed_bytes() * 8 / 7;
                let size = payload.len() as u64 + 200;
                assert!(
                    needed + size + 3 * SEGMENT > MAX_BYTES,
                    "(3, 6) refused with {needed} bytes that are needed of {:?}",
                    self.journal.stats()
                );
            }
            other => panic!("{other:?}"),
        }
    }

    /// The bytes of what some sink lacks, and of dead letters.
    fn needed_bytes(&self) -> u64 {
        let frontier = self.configured.iter().map(|sink| self.sinks[sink].now.frontier).min().unwrap_or(u64::MAX);
        let lacks = |position: &u64| {
            *position > frontier || self.configured.iter().any(|sink| self.sinks[sink].now.waiting.contains(position))
        };
        let size = |stored: &Stored| stored.payload.len() as u64 + 150;
        let events = self.events.iter().filter(|(position, _)| lacks(position)).map(|(_, stored)| size(stored));
        events.sum::<u64>() + self.journal.shared.dead_letter_bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn read(&mut self, sink: &'static str, rows: usize) {
        let frontier = self.sinks[sink].now.frontier;
        let limits = Limits { rows, bytes: 1 << 20 };
        let batch = self.journal.reader().after(frontier, limits, &Filter::default()).unwrap();
        assert!(batch.through > frontier || frontier >= self.last, "(2) nothing holds up what comes later");
        let is_wanted = |row: &&Row| match row {
            Row::Intact(record) => wants(sink, &record.kind),
            Row::Damaged { kind, .. } => kind.as_deref().is_none_or(|kind| wants(sink, kind)),
        };
        let waiting: Vec<u64> = batch.rows.iter().filter(is_wanted).map(Row::position).collect();
        self.journal.enqueue(sink, batch.through, &waiting);
        let model = self.of(sink);
        model.now.frontier = batch.through;
        model.now.waiting.extend(waiting);
    }

    fn acknowledge(&mut self, sink: &'static str, count: usize, from_end: bool) {
        let model = &self.sinks[sink];
        let mut positions: Vec<u64> =
            model.now.waiting.iter().copied().filter(|position| model.may_publish(*position)).collect();
        if from_end {
            positions.reverse();
        }
        for position in positions.into_iter().take(count) {
            self.journal.acknowledge(sink, position);
            self.of(sink).now.waiting.remove(&position);
        }
    }

    fn set_aside(&mut self, sink: &'static str, which: usize) {
        let waiting = &self.sinks[sink].now.waiting;
        let Some(position) = waiting.iter().nth(which % waiting.len().max(1)).copied() else { return };
        block_on(self.journal.set_aside(dead_letter(sink, position))).unwrap();
        let model = self.of(sink);
        model.now.waiting.remove(&position);
        model.dead_letters.insert(position);
        // It is durable with all that came before it.
        model.durable.waiting.remove(&position);
    }

    fn record(&mut self, sink: &'static str) {
        let stuck = |position: &u64| StuckEvent {
            position: *position,
            since_ms: 1,
            tries: 2,
            reason: "no_target".into(),
            detail: "unknown topic".into(),
            target: "".into(),
        };
        let events = self.sinks[sink].now.waiting.iter().take(3).map(stuck).collect();
        self.journal.record_stuck(sink, events);
        self.flush();
        let listed = self.bench.admin().stuck(&StuckFilter::default(), 1_000).unwrap();
        for listed in listed {
            let sink = &self.sinks[listed.sink.as_str()];
            assert!(sink.now.waiting.contains(&listed.stuck.position), "(4) {} is published", listed.stuck.position);
        }
    }

    fn requeue(&mut self, sink: &'static str) {
        let mut admin = self.bench.admin();
        let stored = admin.dead_letters(Some(sink), None).unwrap();
        let queued = admin.requeue(&stored).unwrap();
        let usable = stored.iter().filter(|stored| stored.event.is_some()).map(|stored| stored.dead_letter.position);
        let model = self.of(sink);
        let before = model.requeued.len();
        model.requeued.extend(usable);
        assert!(self.letters_are_damaged || self.sinks[sink].requeued.len() - before == queued, "(6)");
    }

    fn replay(&mut self, sink: &'static str, key: u8) {
        let key = format!("key {key}");
        let filter = Filter { key: Some(key.clone()), ..Filter::default() };
        let mut admin = self.bench.admin();
        let (total, _) = admin.count(&filter).unwrap();
        let id = admin.replay(sink, &filter, total, None, 0).unwrap();
        self.replays.insert(id, (sink, key));
    }

    fn cancel(&mut self, which: usize) {
        let Some(id) = self.replays.keys().nth(which).copied() else { return };
        self.bench.admin().cancel_replay(id).unwrap();
        self.replays.remove(&id);
        eventually("the cancellation", || !self.journal.is_wanted(&Origin::Replay { id }));
    }

    fn resend(&mut self, sink: &'static str, rows: usize, refused: bool) {
        let mut cursor = std::mem::take(&mut self.of(sink).cursor);
        let limits = Limits { rows, bytes: 1 << 20 };
        let given = self.journal.next_resends(sink, &mut cursor, limits).unwrap();
        self.of(sink).cursor = cursor;
        for Resend { origin, record } in given {
            let position = record.position;
            self.check_record(&record);
            let outcome =
                if refused { ResendOutcome::Refused(dead_letter(sink, position)) } else { ResendOutcome::Published };
            self.journal.finish_resend(sink, origin, position, outcome);
            let replay = self.replays.get(&match origin {
                Origin::Replay { id } => id,
                Origin::Requeue { .. } => 0,
            });
            match (origin, replay.cloned()) {
                (Origin::Requeue { .. }, _) => {
                    let model = self.of(sink);
                    let was_queued = model.requeued.remove(&position);
                    assert!(was_queued || self.letters_are_damaged, "(6) {position} was not requeued");
                    if !refused {
                        self.of(sink).dead_letters.remove(&position);
                    }
                }
                (Origin::Replay { id }, Some((of, key))) => {
                    assert!(of == sink && record.key == key, "(6) replay {id} gives what nobody asked for");
                    assert!(self.of(sink).given.entry(id).or_default().insert(position), "{position} is given twice");
                    if refused {
                        self.of(sink).dead_letters.insert(position);
                    }
                }
                (Origin::Replay { id }, None) => panic!("(6) replay {id} was cancelled"),
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        flush(&self.journal);
        self.note_durable();
    }

    fn note_durable(&mut self) {
        for sink in self.configured.clone() {
            let model = self.of(sink);
            model.durable = model.now.clone();
        }
    }

    // ---- restarts and damage ---------------------------------------------------------------------------------------

    fn close(&mut self) {
        self.journal.close();
        self.note_durable();
    }

    fn reopen(&mut self, restart: Restart, sinks: usize) {
        let before = std::mem::replace(&mut self.configured, configuration(sinks));
        self.bench.sinks = specs(&self.configured);
        self.journal = self.bench.try_open().unwrap_or_else(|error| panic!("(7) {error:?}"));
        let rows = rows(&self.journal);
        for name in NAMES {
            let is_configured = self.configured.contains(&name);
            let mut model = std::mem::take(self.of(name));
            model.cursor = ResendCursor::default();
            model.given.clear();
            if !is_configured {
                model.requeued.clear();
                self.replays.retain(|_, (sink, _)| *sink != name);
                // What was not durable when it was configured last is not known, nor anything without the state.
                model.now = model.durable.clone();
                model.is_known &= restart != Restart::StateDamaged;
            } else {
                let resume = self.journal.resume(name);
                let found = Published { frontier: resume.frontier, waiting: waiting(&resume).into_iter().collect() };
                let was_configured = before.contains(&name) && model.is_known;
                self.check_restart(name, &model, &found, restart, was_configured, &rows);
                (model.now, model.durable, model.is_known) = (found.clone(), found, true);
                // What it had published may have been released, and without its state it has published nothing.
                if !was_configured || restart == Restart::StateDamaged {
                    let kept: BTreeSet<u64> = rows.iter().map(Row::position).collect();
                    model.missed = self.events.keys().copied().filter(|position| !kept.contains(position)).collect();
                }
            }
            *self.of(name) = model;
        }
        if restart == Restart::StateDamaged {
            self.learn_what_is_left();
        }
    }

    /// (1) and (7): what was published, and is known durably to be, is not published again; what was not is not lost.
    fn check_restart(
        &self,
        name: &str,
        model: &SinkModel,
        found: &Published,
        restart: Restart,
        was_configured: bool,
        rows: &[Row],
    ) {
        let kept: BTreeSet<u64> = rows.iter().map(Row::position).collect();
        let lacks = |published: &Published, position: u64| {
            position > published.frontier || published.waiting.contains(&position)
        };
        for (position, stored) in self.events.iter().filter(|(_, stored)| wants(name, stored.kind)) {
            let may_be_gone = self.touched.contains(position) || model.missed.contains(position);
            if was_configured && lacks(&model.now, *position) && !may_be_gone {
                assert!(kept.contains(position), "(5, 7) {position} is lost for {name}");
                assert!(lacks(found, *position), "(1) {position} would not be published by {name}");
            }
            if restart != Restart::StateDamaged && model.is_known && !lacks(&model.durable, *position) {
                assert!(!lacks(found, *position), "(1) {position} of {} is published again by {name}", stored.kind);
            }
        }
        if restart == Restart::Clean && was_configured && self.touched.is_empty() {
            assert_eq!((found.frontier, &found.waiting), (model.now.frontier, &model.now.waiting), "(1) of {name}");
        }
        let unknown = found.waiting.iter().find(|position| !kept.contains(position));
        assert_eq!(unknown, None, "what waits is kept");
    }

    /// Dead letters, resends and replays on a damaged page are lost; what is left is right.
    fn learn_what_is_left(&mut self) {
        self.letters_are_damaged = true;
        let admin = self.bench.admin();
        let replays: BTreeSet<u64> = admin.replays(None).unwrap().into_iter().map(|replay| replay.id).collect();
        self.replays.retain(|id, _| replays.contains(id));
        let stored = admin.dead_letters(None, None).unwrap();
        for stored in &stored {
            if let Some(record) = &stored.event {
                self.check_record(record);
            }
        }
        for name in NAMES {
            let of_sink = stored.iter().filter(|stored| stored.dead_letter.sink == name);
            self.of(name).dead_letters = of_sink.map(|stored| stored.dead_letter.position).collect();
        }
    }

    /// Damages a file; whether that may have been the state.
    fn damage(&mut self, what: Damage, place: usize) -> bool {
        let pick = |mut files: Vec<std::path::PathBuf>| {
            files.retain(|path| fs::metadata(path).unwrap().len() > segment::HEADER as u64);
            if files.is_empty() { None } else { Some(files[place % files.len()].clone()) }
        };
        let path = match what {
            Damage::FlippedByteOfALog | Damage::ZeroedPageOfALog | Damage::TruncatedLog | Damage::MissingLog => {
                pick(self.bench.files("log"))
            }
            Damage::FlippedByteOfAnIndex | Damage::ZeroedPageOfAnIndex | Damage::MissingIndex => {
                pick(self.bench.files("idx"))
            }
            Damage::FlippedByteOfIds => pick(self.bench.files("ids")),
            Damage::ZeroedPageOfTheState | Damage::FlippedByteOfTheState | Damage::MissingState => {
                Some(self.bench.dir().join(sqlite::FILE))
            }
        };
        let Some(path) = path else { return false };
        let length = fs::metadata(&path).unwrap().len();
        let at = (place as u64).wrapping_mul(2_654_435_761) % length;
        match what {
            Damage::FlippedByteOfALog => self.touch(&path, at, at + 1),
            Damage::ZeroedPageOfALog => self.touch(&path, at / 4096 * 4096, at / 4096 * 4096 + 4096),
            Damage::TruncatedLog => self.touch(&path, at, u64::MAX),
            Damage::MissingLog => self.touch(&path, 0, u64::MAX),
            _ => {}
        }
        match what {
            Damage::FlippedByteOfALog | Damage::FlippedByteOfAnIndex | Damage::FlippedByteOfIds => flip(&path, at),
            Damage::FlippedByteOfTheState => flip(&path, at),
            Damage::ZeroedPageOfALog | Damage::ZeroedPageOfAnIndex | Damage::ZeroedPageOfTheState => {
                zero_page(&path, at);
            }
            Damage::TruncatedLog => truncate(&path, at),
            Damage::MissingLog | Damage::MissingIndex | Damage::MissingState => fs::remove_file(&path).unwrap(),
        }
        let of_the_state = path.ends_with(sqlite::FILE);
        self.ids_are_damaged |= !of_the_state;
        of_the_state
    }

    /// Notes the events that lie in this part of a segment.
    fn touch(&mut self, path: &std::path::Path, from: u64, to: u64) {
        let file = fs::File::open(path).unwrap();
        let touched = &mut self.touched;
        scan::scan(&file, segment::HEADER as u64, |found| {
            if let scan::Scanned::Record { offset, record } = found
                && offset < to
                && offset + record.length as u64 > from
            {
                touched.insert(record.position);
            }
        })
        .unwrap();
    }

    // ---- checks ----------------------------------------------------------------------------------------------------

    fn check_record(&self, record: &Record) {
        let stored = self.events.get(&record.position).unwrap_or_else(|| panic!("(5) nobody stored {record:?}"));
        assert_eq!((record.id, record.accepted_ms), ([stored.id; 16], stored.accepted_ms), "(5)");
        assert_eq!((&record.key, record.kind.as_str()), (&stored.key, stored.kind), "(5)");
        assert!(record.payload == stored.payload, "(5) payload of {}", record.position);
    }

    fn check(&self) {
        let rows = rows(&self.journal);
        let mut kept = BTreeSet::new();
        for row in &rows {
            match row {
                Row::Intact(record) => self.check_record(record),
                Row::Damaged { position, .. } => {
                    assert!(self.touched.contains(position), "(7) {position} was not touched, and is damaged");
                }
            }
            assert!(kept.insert(row.position()));
        }
        for name in &self.configured {
            let model = &self.sinks[name];
            // (5, 7) Whatever a sink lacks is kept.
            for (position, stored) in &self.events {
                let lacks = *position > model.now.frontier || model.now.waiting.contains(position);
                let may_be_gone = self.touched.contains(position) || model.missed.contains(position);
                if lacks && wants(name, stored.kind) && !may_be_gone {
                    assert!(kept.contains(position), "(5) {position} is lost for {name}");
                }
            }
            // (5) Nor is it released after it was read above: by its position it is found as well.
            let mut reader = self.journal.reader();
            let lacks = |position| position > model.now.frontier || model.now.waiting.contains(&position);
            for row in rows.iter().filter(|row| lacks(row.position())).step_by(7) {
                assert_eq!(reader.at(row.position()).unwrap().as_ref(), Some(row), "(5) of {name}");
            }
            // (4) Of damaged events that are wholly unknown only the count can be off, until the sink has read on.
            let is_wanted = |row: &&Row| match row {
                Row::Intact(record) => wants(name, &record.kind),
                Row::Damaged { kind, .. } => kind.as_deref().is_none_or(|kind| wants(name, kind)),
            };
            let unread = rows.iter().filter(|row| row.position() > model.now.frontier).filter(is_wanted).count();
            let pending = self.journal.pending(name);
            assert_eq!(pending, (model.now.waiting.len() + unread) as u64, "(4) of {name}");
            let cursor = model.now.waiting.first().map_or(model.now.frontier, |first| first - 1);
            assert_eq!(self.journal.cursor(name), cursor);
            let letters = self.journal.dead_letters(name);
            assert!(self.letters_are_damaged || letters == model.dead_letters.len() as u64, "dead letters of {name}");
        }
        assert!(*self.journal.durable().borrow() >= self.last);
    }

    /// (2, 3): at the end every sink publishes all that is not stuck; then only that is left.
    fn finish(mut self) {
        self.bench.forward(10 * RETAIN_MS.max(WINDOW_MS));
        self.latest_ms = self.bench.clock.now_ms();
        for sink in self.configured.clone() {
            while self.sinks[sink].now.frontier < *self.journal.durable().borrow() {
                self.read(sink, 1_000);
            }
            self.acknowledge(sink, usize::MAX, true);
        }
        for id in self.replays.keys().copied().collect::<Vec<_>>() {
            self.bench.admin().cancel_replay(id).unwrap();
        }
        self.check();
        let needed = self.needed_bytes();
        let mut last = None;
        eventually("retention", || {
            let stats = self.journal.stats();
            let (bytes, settled) = (stats.bytes, last == Some(stats.bytes));
            last = Some(bytes);
            // A segment is compacted when half of it is freed; and the newest is not closed yet.
            settled && bytes <= 2 * needed + SEGMENT + SEGMENT / 2 + 200 * stats.segments
        });
        self.check();
        self.journal.close();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_journal_keeps_its_promises_whatever_happens(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
        }
        model.finish();
    }
}
