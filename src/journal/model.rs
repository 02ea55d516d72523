//! The journal against a simple model: any order of appends, acknowledgements, dead letters, resends, clock jumps,
//! stops and crashes, with the promises checked after every step.
//!
//! A crash is a copy of the database and its write-ahead log as they lie there at that moment, without the index
//! (`-shm`), opened in another directory. That proves recovery from the files of a killed process; what a power cut
//! takes besides is proven from outside, in `tests/it/disk.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;
use crate::domain::units::{Size, Span};

const SINKS: [&str; 2] = ["a", "b"];
const MAX_BYTES: u64 = 16 * 1024;
const RETAIN_BYTES: u64 = 6 * 1024;
const RETAIN_MS: i64 = 30_000;
const WINDOW_MS: i64 = 20_000;

#[derive(Clone, Debug)]
enum Step {
    /// Of few ids, so that many come again.
    Append {
        id: u8,
        size: usize,
    },
    /// So many events further, on one of the sinks.
    Advance {
        sink: usize,
        by: u64,
    },
    /// One of the events kept, counted from the oldest.
    SetAside {
        sink: usize,
        which: usize,
    },
    Replay {
        sink: usize,
        which: usize,
    },
    /// All that is in the queue of a sink was published.
    Resent {
        sink: usize,
    },
    /// The clock, by milliseconds, also backwards.
    Clock(i64),
    Stop,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let sink = 0..SINKS.len();
    prop_oneof![
        12 => (0u8..12, 0usize..2_500).prop_map(|(id, size)| Step::Append { id, size }),
        4 => (sink.clone(), 0u64..8).prop_map(|(sink, by)| Step::Advance { sink, by }),
        1 => (sink.clone(), 0usize..20).prop_map(|(sink, which)| Step::SetAside { sink, which }),
        1 => (sink.clone(), 0usize..20).prop_map(|(sink, which)| Step::Replay { sink, which }),
        1 => sink.prop_map(|sink| Step::Resent { sink }),
        3 => (-25_000i64..40_000).prop_map(Step::Clock),
        1 => Just(Step::Stop),
        1 => Just(Step::Crash),
    ]
}

/// What was stored under an id last.
#[derive(Clone, Copy)]
struct Known {
    position: u64,
    accepted_ms: i64,
    /// The clock was at its end, so it may be forgotten, or be known still until the next look.
    may_be_gone: bool,
    /// It had left the window when the journal was opened, which looks at each.
    is_gone: bool,
}

struct Model {
    home: tempfile::TempDir,
    runtime: Runtime,
    journal: Journal,
    options: Settings,
    homes: u32,
    clock: Clock,
    latest_ms: i64,
    /// What must be there: position, time, payload.
    kept: BTreeMap<u64, (i64, Vec<u8>)>,
    last: u64,
    ids: BTreeMap<u8, Known>,
    /// As reported, and the least of it that must be durable.
    cursors: [u64; 2],
    durable: [u64; 2],
    letters: BTreeSet<(usize, u64)>,
    /// Position by place in the queue.
    resends: Vec<(usize, u64)>,
}

fn open(settings: &Settings, clock: &Clock) -> Journal {
    Journal::open(Options {
        settings: settings.clone(),
        dedup: DedupSettings { window: Span::from_secs(WINDOW_MS as u64 / 1000), max_ids: 1000 },
        sinks: SINKS.map(str::to_owned).to_vec(),
        clock: clock.clone(),
        on_commit: Box::new(|_| {}),
        fact_of: |_| None,
        on_reconciled: Box::new(|_| {}),
    })
    .unwrap()
}

fn size_of(payload: &[u8]) -> u64 {
    log::row_size(payload.len() as u64, 1, 1)
}

impl Model {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(1_000_000);
        let options = Settings {
            dir: home.path().join("0"),
            max_bytes: Size(MAX_BYTES),
            retain_for: Span::from_secs(RETAIN_MS as u64 / 1000),
            retain_bytes: Size(RETAIN_BYTES),
        };
        Self {
            journal: open(&options, &clock),
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            home,
            options,
            homes: 0,
            latest_ms: clock.now_ms(),
            clock,
            kept: BTreeMap::new(),
            last: 0,
            ids: BTreeMap::new(),
            cursors: [0; 2],
            durable: [0; 2],
            letters: BTreeSet::new(),
            resends: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        self.latest_ms = self.clock.now_ms();
        match *step {
            Step::Append { id, size } => self.append(id, size),
            Step::Advance { sink, by } => {
                self.cursors[sink] = (self.cursors[sink] + by).min(self.last);
                self.journal.advance(SINKS[sink], self.cursors[sink]);
                self.journal.advance(SINKS[sink], self.cursors[sink] / 2);
            }
            Step::SetAside { sink, which } => self.set_aside(sink, which),
            Step::Replay { sink, which } => self.replay(sink, which),
            Step::Resent { sink } => self.resent(sink),
            Step::Clock(by) => self.move_clock(by),
            Step::Stop => self.stop(),
            Step::Crash => self.crash(),
        }
        self.check();
    }

    fn append(&mut self, id: u8, size: usize) {
        let accepted_ms = self.clock.now_ms();
        let payload = vec![id; size];
        let cursors = self.cursors;
        let entry = Entry { id: [id; 16], key: "k".into(), kind: "t".into(), accepted_ms, payload: payload.clone() };
        let answer = self.runtime.block_on(self.journal.append(entry).unwrap().durable());
        let known = self.ids.get(&id).copied();
        match answer {
            Ok(Appended::Duplicate(position)) => {
                let known = known.expect("a duplicate of something");
                assert!(position == known.position && !known.is_gone, "a duplicate of {position}, forgotten");
            }
            Ok(Appended::Stored(position)) => {
                assert!(known.is_none_or(|known| known.may_be_gone), "a duplicate inside the window is stored again");
                assert_eq!(position, self.last + 1, "no gap, and no position twice");
                self.last = position;
                self.durable = cursors;
                self.kept.insert(position, (accepted_ms, payload));
                self.ids.insert(id, Known { position, accepted_ms, may_be_gone: false, is_gone: false });
            }
            Ok(Appended::Reconciled { .. }) => panic!("nothing was offered"),
            Err(AppendError::Full) => {
                assert!(known.is_none_or(|known| known.may_be_gone), "a duplicate needs no room");
                self.take_note_of_retention();
                assert!(self.bytes() + size_of(&payload) > MAX_BYTES, "refused with {} bytes", self.bytes());
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn position(&self, which: usize) -> Option<u64> {
        self.kept.keys().nth(which % self.kept.len().max(1)).copied()
    }

    fn set_aside(&mut self, sink: usize, which: usize) {
        let Some(position) = self.position(which) else { return };
        let letter = DeadLetter {
            sink: SINKS[sink].into(),
            position,
            reason: "r".into(),
            detail: String::new(),
            at_ms: self.clock.now_ms(),
        };
        self.runtime.block_on(self.journal.set_aside(letter)).unwrap();
        // Retention may have been faster; then there is nothing left to copy.
        if self.first() <= position {
            self.letters.insert((sink, position));
        } else {
            self.letters.remove(&(sink, position));
        }
    }

    fn replay(&mut self, sink: usize, which: usize) {
        let Some(position) = self.position(which) else { return };
        Desk::open(&self.options.dir).unwrap().replay(SINKS[sink], &[position], 0, None).unwrap();
        self.resends.push((sink, position));
    }

    fn resent(&mut self, sink: usize) {
        let resends = self.journal.reader().unwrap().resends(SINKS[sink], 0, i64::MAX, 100).unwrap();
        let due: Vec<u64> = resends.due.iter().map(|resend| resend.position).collect();
        let expected: Vec<u64> = self.resends.iter().filter(|(of, _)| *of == sink).map(|(_, at)| *at).collect();
        assert_eq!((due, resends.gone), (expected, vec![]), "what is to be published again, in its order");
        for resend in resends.due {
            let seq = resend.record.position;
            let done = self.journal.resent(SINKS[sink], seq, resend.position, Resent::Published);
            self.runtime.block_on(done).unwrap();
            self.letters.remove(&(sink, resend.position));
        }
        self.resends.retain(|(of, _)| *of != sink);
    }

    fn move_clock(&mut self, by: i64) {
        let now_ms = self.clock.now_ms() + by;
        self.clock.set(now_ms);
        self.latest_ms = self.latest_ms.max(now_ms);
        for known in self.ids.values_mut() {
            known.may_be_gone |= known.accepted_ms + WINDOW_MS <= now_ms;
        }
    }

    fn stop(&mut self) {
        self.journal.close();
        self.durable = self.cursors;
        self.reopen();
    }

    fn crash(&mut self) {
        self.homes += 1;
        let dir = self.home.path().join(self.homes.to_string());
        fs::create_dir(&dir).unwrap();
        for file in ["journal.db", "journal.db-wal"] {
            fs::copy(self.options.dir.join(file), dir.join(file)).unwrap();
        }
        self.journal.close();
        self.options.dir = dir;
        self.reopen();
    }

    fn reopen(&mut self) {
        self.journal = open(&self.options, &self.clock);
        for known in self.ids.values_mut() {
            known.is_gone = known.accepted_ms + WINDOW_MS <= self.clock.now_ms();
        }
        for (index, sink) in SINKS.into_iter().enumerate() {
            let found = self.journal.cursor(sink);
            let expected = self.durable[index]..=self.cursors[index];
            assert!(expected.contains(&found), "cursor {found} of {sink}, expected {expected:?}");
            self.cursors[index] = found;
            self.durable[index] = found;
        }
    }

    fn rows(&self) -> Vec<Row> {
        let limits = Limits { rows: 10_000, bytes: usize::MAX };
        self.journal.reader().unwrap().after(0, limits, &Filter::default()).unwrap().rows
    }

    fn first(&self) -> u64 {
        self.rows().first().map_or(0, Row::position)
    }

    fn bytes(&self) -> u64 {
        self.kept.values().map(|(_, payload)| size_of(payload)).sum()
    }

    /// What is no longer there may go only by the rules.
    fn take_note_of_retention(&mut self) {
        let first = self.first();
        while let Some((&position, &(accepted_ms, _))) = self.kept.first_key_value()
            && position < first
        {
            assert!(position < self.last, "the newest is never retired");
            assert!(self.cursors.iter().all(|cursor| *cursor >= position), "{position} still waits");
            assert!(self.resends.iter().all(|(_, resend)| *resend > position), "{position} is to be sent again");
            let too_old = accepted_ms + RETAIN_MS <= self.latest_ms;
            assert!(too_old || self.bytes() > RETAIN_BYTES, "{position} is neither old nor too much");
            self.kept.remove(&position);
        }
    }

    fn check(&mut self) {
        self.take_note_of_retention();
        let rows = self.rows();
        assert_eq!(rows.len(), self.kept.len(), "{:?} of {:?}", rows, self.kept.keys());
        for (row, (position, (accepted_ms, payload))) in rows.iter().zip(&self.kept) {
            let Row::Intact(record) = row else { panic!("{row:?}") };
            assert_eq!((record.position, record.accepted_ms), (*position, *accepted_ms));
            assert!(record.payload == *payload, "payload of {position}");
        }
        let stats = self.journal.stats();
        assert_eq!(stats.last_position, self.last);
        assert_eq!(stats.bytes, self.bytes(), "bytes are what the rows add up to, also after reopening");
        for (index, sink) in SINKS.into_iter().enumerate() {
            assert_eq!(self.journal.cursor(sink), self.cursors[index]);
            let letters = self.letters.iter().filter(|(of, _)| *of == index).count() as u64;
            assert_eq!(self.journal.dead_letters(sink), letters, "dead letters of {sink}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keeps_its_promises_whatever_happens(steps in prop::collection::vec(step(), 1..80)) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
        }
        model.journal.close();
    }
}
