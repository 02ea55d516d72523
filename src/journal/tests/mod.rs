//! The journal from outside: what it promises, on a real disk, across reopening and damage.

mod append;
mod backfill;
mod damage;
mod format;
mod matrix;
mod positions;
mod resends;
mod retention;
mod state_file;
mod stuck_events;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::*;
use crate::domain::units::{Size, Span};

/// When the fixed clock of a test begins.
pub(super) const START_MS: i64 = 1_000_000;

pub(super) const DAY_MS: i64 = 24 * 3600 * 1000;

pub(super) const ALL: Limits = Limits { rows: 1_000_000, bytes: usize::MAX };

/// A directory, and what its journal is opened with.
pub(super) struct Bench {
    pub(super) home: tempfile::TempDir,
    pub(super) clock: Clock,
    pub(super) settings: Settings,
    pub(super) dedup: DedupSettings,
    pub(super) sinks: Vec<SinkSpec>,
    pub(super) fact_of: fn(&[u8]) -> Option<[u8; 16]>,
}

/// A directory in memory where there is such a place, so that the many fsyncs of the tests cost nothing.
fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub(super) fn sink(name: &str) -> SinkSpec {
    SinkSpec { name: name.into(), kinds: Vec::new() }
}

impl Bench {
    pub(super) fn new() -> Self {
        let home = memory_dir();
        let settings = Settings { dir: home.path().join("journal"), ..Settings::default() };
        let (clock, sinks) = (Clock::fixed(START_MS), vec![sink("a")]);
        Self { home, clock, settings, dedup: DedupSettings::default(), sinks, fact_of: |_| None }
    }

    /// With segments of 64 KiB.
    pub(super) fn small() -> Self {
        let mut bench = Self::new();
        (bench.settings.max_bytes, bench.settings.retain_bytes) = (Size::mib(1), Size::mib(1));
        bench
    }

    pub(super) fn open(&self) -> Journal {
        self.try_open().unwrap()
    }

    pub(super) fn try_open(&self) -> Result<Journal, OpenError> {
        Journal::open(Options {
            settings: self.settings.clone(),
            dedup: self.dedup.clone(),
            sinks: self.sinks.clone(),
            clock: self.clock.clone(),
            on_commit: Box::new(|_| {}),
            backfill: Hook { fact_of: self.fact_of, on_stored: Box::new(|_| {}) },
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.settings.dir
    }

    pub(super) fn admin(&self) -> JournalAdmin {
        JournalAdmin::open(self.dir()).unwrap()
    }

    pub(super) fn entry(&self, n: u32) -> Entry {
        self.entry_of(n, 100)
    }

    pub(super) fn entry_of(&self, n: u32, size: usize) -> Entry {
        let mut payload = format!("payload {n} ").into_bytes();
        payload.resize(size, b'x');
        Entry { id: id(n), key: format!("key {}", n % 3), kind: "t".into(), accepted_ms: self.clock.now_ms(), payload }
    }

    /// Stores events of this size, with numbers that are their positions in a new journal.
    pub(super) fn fill(&self, journal: &Journal, numbers: std::ops::RangeInclusive<u32>, size: usize) {
        for n in numbers {
            assert_eq!(append(journal, self.entry_of(n, size)), Ok(Appended::Stored(n.into())));
        }
    }

    pub(super) fn forward(&self, by_ms: i64) {
        self.clock.set(self.clock.now_ms() + by_ms);
    }

    /// The directory as a kill leaves it at this moment, in a new place that is opened from now on.
    pub(super) fn crash(&mut self, journal: &Journal) {
        let files = snapshot(self.dir());
        let dir = self.home.path().join(format!("crash-{}", fastrand::u64(..)));
        fs::create_dir(&dir).unwrap();
        for (name, bytes) in files {
            fs::write(dir.join(name), bytes).unwrap();
        }
        journal.close();
        self.settings.dir = dir;
    }

    /// The files of the segments with this ending, in order.
    pub(super) fn files(&self, ending: &str) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(self.dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("events-") && name.ends_with(ending)
        });
        files.sort();
        files
    }
}

/// A segment without the zeros behind its last record.
pub(super) fn records_of(path: &Path) -> Vec<u8> {
    without_zeros(fs::read(path).unwrap())
}

fn without_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    bytes
}

/// All files but the lock, as they were at one moment.
pub(super) fn snapshot(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = || {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name != "lock" && !name.ends_with("-shm") {
                files.insert(name, fs::read(&path).unwrap_or_default());
            }
        }
        files
    };
    let mut before = read();
    loop {
        let now = read();
        if before == now {
            return now;
        }
        before = now;
    }
}

pub(super) fn id(n: u32) -> [u8; 16] {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    id[15] = 1;
    id
}

pub(super) fn append(journal: &Journal, entry: Entry) -> Result<Appended, AppendError> {
    let pending = journal.append(entry)?;
    pending.wait()
}

/// Appends many events with few commits; each must be stored.
pub(super) fn append_all(journal: &Journal, entries: impl Iterator<Item = Entry>) {
    let mut pending = std::collections::VecDeque::new();
    let stored = |pending: Pending| assert!(matches!(pending.wait(), Ok(Appended::Stored(_))));
    for entry in entries {
        if pending.len() >= 1_000 {
            pending.drain(..500).for_each(stored);
        }
        pending.push_back(journal.append(entry).unwrap());
    }
    pending.into_iter().for_each(stored);
}

pub(super) fn rows(journal: &Journal) -> Vec<Row> {
    read(&mut journal.reader())
}

pub(super) fn read(reader: &mut Reader) -> Vec<Row> {
    let (mut rows, mut position) = (Vec::new(), 0);
    loop {
        let batch = reader.after(position, Limits { rows: 1_000, bytes: 1 << 20 }, &Filter::default()).unwrap();
        rows.extend(batch.rows);
        if batch.through == position {
            return rows;
        }
        position = batch.through;
    }
}

pub(super) fn positions_of(rows: &[Row]) -> Vec<u64> {
    rows.iter().map(Row::position).collect()
}

pub(super) fn all(journal: &Journal) -> Vec<u64> {
    positions_of(&rows(journal))
}

pub(super) fn damaged(rows: &[Row]) -> Vec<u64> {
    rows.iter().filter(|row| matches!(row, Row::Damaged { .. })).map(Row::position).collect()
}

/// The sink reads everything up to `last` and publishes it.
pub(super) fn publish(journal: &Journal, sink: &str, last: u64) {
    publish_but(journal, sink, last, &[]);
    let waiting: Vec<u64> = journal.shared.sinks.get(sink).unwrap().progress().waiting.iter().collect();
    waiting.iter().filter(|position| **position <= last).for_each(|position| journal.acknowledge(sink, *position));
}

/// The sink reads everything up to `last`, and publishes all of that but `stuck`.
pub(super) fn publish_but(journal: &Journal, sink: &str, last: u64, stuck: &[u64]) {
    let progress = journal.shared.sinks.get(sink).unwrap();
    let frontier = progress.progress().frontier;
    let mut reader = journal.reader();
    let mut batch = reader
        .after(frontier, Limits { rows: (last.saturating_sub(frontier)) as usize, ..ALL }, &Filter::default())
        .unwrap();
    batch.rows.retain(|row| row.position() <= last);
    let read = positions_of(&batch.rows);
    journal.enqueue(sink, last, &read);
    read.iter().filter(|position| !stuck.contains(position)).for_each(|position| journal.acknowledge(sink, *position));
}

pub(super) fn flush(journal: &Journal) {
    assert!(journal.shared.state.flush(Duration::from_secs(10)), "the state is not durable");
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

pub(super) fn dead_letter(sink: &str, position: u64) -> DeadLetter {
    DeadLetter { sink: sink.into(), position, reason: "too_large".into(), detail: "expected less".into(), at_ms: 5 }
}

pub(super) fn waiting(resume: &Resume) -> Vec<u64> {
    resume.waiting.iter().map(|waiting| waiting.position).collect()
}

/// Waits for a condition, not for a time.
#[track_caller]
pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where a text lies in a file.
pub(super) fn find_text(path: &Path, text: &str) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap() as u64
}

pub(super) fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// A page of zeros, as a bad sector leaves it once it has been rewritten.
pub(super) fn zero_page(path: &Path, at: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let (page, length) = (at / 4096 * 4096, file.metadata().unwrap().len());
    file.write_all_at(&vec![0; (length - page).min(4096) as usize], page).unwrap();
}

pub(super) fn truncate(path: &Path, length: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

/// What the file of the state holds, for a test that changes it by hand.
pub(super) fn state_file(bench: &Bench) -> rusqlite::Connection {
    rusqlite::Connection::open(bench.dir().join(sqlite::FILE)).unwrap()
}
