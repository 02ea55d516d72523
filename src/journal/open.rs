//! Opening a journal: what the directory holds, what of it each sink has still to publish, and the threads.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::watch;

use super::backfill::Backfill;
use super::chain::{self, Chain, Found, Released};
use super::handle::Threads;
use super::index::Index;
use super::keeper::{Keeper, KeeperOptions};
use super::keeper_signal::KeeperSignal;
use super::reader::Reader;
use super::replays::Replays;
use super::segment::{self, MAJOR, Name, Segment};
use super::shared::{Newest, Shared};
use super::sinks::{KindCounter, Progress, Sink, Sinks, WaitingKey};
use super::state_queue::{StateOp, StateQueue};
use super::state_writer::{StateWriter, read_requests};
use super::writer::Writer;
use super::{Health, Journal, OpenError, Options, directory, lock, progress, repair, resends, sqlite, state};
use crate::domain::dedup::Window;

/// Commands that may wait for the writer; one more is refused, because a longer queue could not be written within
/// anyone's deadline.
const QUEUE_COMMANDS: usize = 8192;

/// The file of the first edition.
const FIRST_FORMAT: &str = "journal.db";

/// How long a start waits for the state that says which sinks there are.
const FIRST_STATE: Duration = Duration::from_secs(5);

impl Journal {
    /// Opens the journal in `options.settings.dir`, making it where there is none. Blocks for the disk. Damage of any
    /// file is no error: what is damaged is logged and counted.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let dir = options.settings.dir.clone();
        let dir_lock = directory::lock(&dir)?;
        refuse_first_format(&dir)?;
        let state_file = dir.join(sqlite::FILE);
        let (database, files) = (OpenError::database(&state_file), OpenError::directory(&dir));
        // Before anything is written.
        segment::is_of_this_format(&dir).map_err(|source| unreadable(&dir, source))?;
        let opened = state::open(&dir)?;
        if let Some(path) = &opened.damaged {
            tracing::error!(path = %path.display(), "the state file was damaged; what can be read was carried over");
        }
        let is_whole = opened.damaged.is_none() && !opened.is_new;
        let found = find(&dir, &opened.connection, is_whole)?;
        if opened.is_new && !found.segments.is_empty() {
            tracing::error!("there is no state file; every sink starts with the oldest event kept");
        }
        let (connection, stored) = match read_state(&opened.connection, &options, &found) {
            Ok(stored) => (opened.connection, stored),
            // Damage that opening the file has not met.
            Err(error) if sqlite::is_damage(&error) && opened.damaged.is_none() => {
                tracing::error!(%error, "damaged state file; carrying over what can be read");
                drop(opened.connection);
                let repaired = state::open_damaged(&dir)?.connection;
                let stored = read_state(&repaired, &options, &found).map_err(database)?;
                (repaired, stored)
            }
            Err(error) => return Err(database(error)),
        };
        let ids = clean_up(&dir, &found).map_err(files)?;

        let mut loaded = Loaded::new(&options, stored.progress);
        loaded.read(&dir, &found, &ids, &options).map_err(files)?;
        let shared = Arc::new(loaded.shared(&dir, &found, &options, (stored.highest, stored.number), is_whole));
        shared.resends_dropped.store(stored.resends_dropped, Ordering::Relaxed);
        *lock(&shared.lock) = Some(dir_lock);
        // Before the first segment may be released: a replay may need it.
        read_requests(&connection, &shared).map_err(database)?;
        let mut backfill = stored.backfill;
        let now_ms = options.clock.now_ms();
        let outcomes = backfill.find_stored(&connection, &loaded.window, now_ms).map_err(database)?;
        if !outcomes.is_empty() {
            shared.state.push(StateOp::Backfill(outcomes));
        }
        start(options, connection, shared, loaded.window, backfill, ids).map_err(files)
    }
}

pub(super) fn refuse_first_format(dir: &Path) -> Result<(), OpenError> {
    if dir.join(FIRST_FORMAT).exists() {
        return Err(OpenError::FirstFormat { dir: dir.to_owned(), known: MAJOR });
    }
    Ok(())
}

/// `is_whole` says whether the state file can say what was released.
fn find(dir: &Path, connection: &Connection, is_whole: bool) -> Result<Found, OpenError> {
    let mut released = progress::load_released(connection).unwrap_or_default();
    if !released.is_complete {
        tracing::error!("damaged list of released positions; positions that no file holds are taken for released");
    }
    released.is_complete &= is_whole;
    let found = find_chain(dir, connection, || released.clone())?;
    // Nobody will ever know; from now on it counts as released. Only then do the damaged rows go: a kill in between must not
    // leave a list that seems complete.
    let mut unknown = found.unknown.iter();
    let stored = unknown.try_for_each(|(first, last)| progress::store_released(connection, *first, *last, 0));
    if let Err(error) = stored.and_then(|()| progress::drop_damaged_ranges(connection)) {
        tracing::warn!(%error, "cannot write down which positions were released");
    }
    for (first, last) in &found.gaps {
        tracing::error!(first, last, "events are missing from the journal; see: sendbird-bridge journal verify");
    }
    if found.damaged_bytes > 0 {
        tracing::error!(bytes = found.damaged_bytes, "damaged part in the newest segment of the journal");
    }
    Ok(found)
}

/// What a directory holds, with what the state file knows of its newest segment.
pub(super) fn find_chain(
    dir: &Path,
    connection: &Connection,
    released: impl Fn() -> Released,
) -> Result<Found, OpenError> {
    let proof = progress::load_proof(connection).unwrap_or_default();
    chain::find(dir, |name| progress::proof_of(name, proof), released).map_err(|source| unreadable(dir, source))
}

/// Why a directory cannot be read.
fn unreadable(dir: &Path, source: io::Error) -> OpenError {
    if source.kind() == io::ErrorKind::Unsupported {
        let found = source.to_string().parse().unwrap_or(-1);
        return OpenError::Schema { path: dir.to_owned(), found, known: i64::from(MAJOR) };
    }
    OpenError::directory(dir)(source)
}

/// What the state file says.
struct Stored {
    progress: BTreeMap<String, Progress>,
    /// The highest position that anything names, and the number of the newest segment.
    highest: u64,
    number: u64,
    resends_dropped: u64,
    backfill: Backfill,
}

fn read_state(connection: &Connection, options: &Options, found: &Found) -> rusqlite::Result<Stored> {
    let names: Vec<&str> = options.sinks.iter().map(|sink| sink.name.as_str()).collect();
    let mut progress = BTreeMap::new();
    for name in &names {
        let mut loaded = progress::load_progress(connection, name)?.unwrap_or_default();
        for position in sqlite::positions_of(connection, "stuck", name)? {
            if loaded.waiting.contains(position) {
                loaded.stuck.insert(position);
            } else {
                loaded.no_longer_stuck.push(position);
            }
        }
        progress.insert((*name).to_owned(), loaded);
    }
    progress::configure_sinks(connection, &names)?;
    Ok(Stored {
        progress,
        highest: progress::highest_position(connection, found.last)?,
        number: found.number.max(progress::load_proof(connection)?.0.min(u64::MAX / 2)),
        resends_dropped: resends::drop_orphans(connection, &names)?,
        backfill: Backfill::load(connection)?,
    })
}

/// Removes what stands for nothing any more. Returns the released segments whose ids are kept, with the newest time of
/// each.
fn clean_up(dir: &Path, found: &Found) -> io::Result<Vec<(Name, i64)>> {
    let mut ids = found.ids.clone();
    for path in &found.obsolete {
        let name = path.file_name().and_then(|file| file.to_str()).and_then(Name::parse);
        match name {
            // A kill came between a compaction and the end of what it replaces.
            Some((name, "idx")) if path.exists() && !ids.contains(&name) => {
                fs::rename(path, name.ids(dir))?;
                ids.push(name);
            }
            _ if path.exists() => fs::remove_file(path)?,
            _ => {}
        }
    }
    // Nothing of it can be read here, but somebody may want to look at it.
    for path in &found.unreadable {
        let name = path.file_name().map(|name| format!("damaged-{}", name.to_string_lossy())).unwrap_or_default();
        tracing::error!(path = %path.display(), name, "nothing of this segment can be read; renamed it");
        fs::rename(path, dir.join(name))?;
    }
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(repair::COPY) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    for segment in found.segments.iter().filter(|segment| !segment.is_sealed()) {
        // What a killed process has written may not be durable yet, and is about to be believed.
        if let Some(Err(error)) = segment.file()?.map(|file| file.sync_all()) {
            tracing::error!(%error, path = %segment.name.log(dir).display(), "cannot fsync a segment");
        }
    }
    directory::sync(dir)?;
    let newest = |name: Name| Ok((name, Index::read_summary(&name.ids(dir))?.map_or(0, |summary| summary.newest_ms)));
    ids.into_iter().map(newest).collect()
}

/// What has been read of the segments.
struct Loaded {
    sinks: BTreeMap<String, Sink>,
    waiting: BTreeMap<String, Vec<WaitingKey>>,
    window: Window,
    damaged: Vec<u64>,
}

impl Loaded {
    fn new(options: &Options, mut progress: BTreeMap<String, Progress>) -> Self {
        let mut sinks = BTreeMap::new();
        for spec in &options.sinks {
            let known = progress.remove(&spec.name).unwrap_or_default();
            sinks.insert(spec.name.clone(), Sink::new(spec.clone(), known));
        }
        let window = Window::new(options.dedup.window.as_millis(), options.dedup.max_ids);
        Self { sinks, waiting: BTreeMap::new(), window, damaged: Vec::new() }
    }

    /// Reads the indexes of the segments in which a sink or the window needs something.
    fn read(&mut self, dir: &Path, found: &Found, released: &[(Name, i64)], options: &Options) -> io::Result<()> {
        let since_ms = options.clock.now_ms().saturating_sub(options.dedup.window.as_millis());
        self.damaged.extend(&found.damaged);
        let mut ids = Vec::new();
        for (name, _) in released.iter().filter(|(_, newest_ms)| *newest_ms > since_ms) {
            ids.extend(ids_since(&Index::read(&name.ids(dir))?.0, since_ms));
        }
        let mut kept = BTreeMap::<String, Vec<u64>>::new();
        for segment in &found.segments {
            let (first, last) = segment.span();
            let summary = segment.is_sealed().then(|| segment.summary());
            let in_window = summary.as_ref().is_none_or(|summary| summary.newest_ms > since_ms);
            let is_damaged = summary.as_ref().is_none_or(|summary| summary.damaged > 0);
            let is_needed = self.sinks.values().any(|sink| !sink.progress().is_done(first, last));
            if !(in_window || is_damaged || is_needed) {
                continue;
            }
            let (index, _) = segment.load()?;
            self.damaged.extend(index.entries.iter().filter(|entry| entry.length == 0).map(|entry| entry.position));
            for sink in self.sinks.values() {
                let waiting = self.waiting.entry(sink.spec.name.clone()).or_default();
                let kept = kept.entry(sink.spec.name.clone()).or_default();
                count_pending(sink, &index, waiting, kept);
            }
            if in_window {
                ids.extend(ids_since(&index, since_ms));
            }
        }
        for sink in self.sinks.values() {
            drop_what_is_gone(sink, kept.get(&sink.spec.name).map_or(&[], Vec::as_slice), found);
        }
        fill_window(&mut self.window, options.dedup.max_ids, ids);
        Ok(())
    }

    fn shared(
        &mut self,
        dir: &Path,
        found: &Found,
        options: &Options,
        (highest, number): (u64, u64),
        is_whole: bool,
    ) -> Shared {
        let chain = Chain::new(dir, found.segments.clone(), highest, true);
        self.damaged.iter().for_each(|position| chain.note_damaged(*position));
        let mut gaps = found.gaps.clone();
        // The state names events behind the last that a segment or a header does.
        if is_whole && highest > found.last {
            tracing::error!(first = found.last + 1, last = highest, "the newest events are missing from the journal");
            gaps.push((found.last + 1, highest));
        }
        chain.set_gaps(gaps);
        let sum = |of: fn(&Segment) -> u64| found.segments.iter().map(|segment| of(segment)).sum::<u64>();
        Shared {
            chain: Arc::new(chain),
            clock: options.clock.clone(),
            queued_bytes: AtomicUsize::new(0),
            health: AtomicU8::new(Health::Healthy as u8),
            durable: watch::Sender::new(highest),
            ended: watch::Sender::new(false),
            log_bytes: AtomicU64::new(sum(Segment::bytes)),
            records: AtomicU64::new(sum(Segment::count)),
            dead_letter_bytes: AtomicU64::new(0),
            disk_free: AtomicU64::new(directory::free(dir)),
            dedup_ids: AtomicU64::new(self.window.len() as u64),
            sinks: Sinks(std::mem::take(&mut self.sinks)),
            replays: Replays::default(),
            resends_dropped: AtomicU64::new(0),
            late_commits: AtomicU64::new(0),
            state: StateQueue::default(),
            keeper: KeeperSignal::default(),
            next_number: AtomicU64::new(number + 1),
            spare: Mutex::default(),
            newest: Mutex::new(Newest::default()),
            candidates_wait: AtomicBool::new(true),
            backfilled: Mutex::default(),
            resume: Mutex::new(std::mem::take(&mut self.waiting)),
            state_reader: Mutex::default(),
            state_edition: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            lock: Mutex::default(),
        }
    }
}

/// Counts what a sink wants of a segment and has not published, and notes the keys of what waits.
fn count_pending(sink: &Sink, index: &Index, waiting: &mut Vec<WaitingKey>, kept: &mut Vec<u64>) {
    let wants: Vec<bool> = index.kinds.iter().map(|(kind, _)| sink.wants(kind)).collect();
    let mut progress = sink.progress();
    for entry in &index.entries {
        if entry.position > progress.frontier {
            if wants.get(entry.kind as usize).copied().unwrap_or(true) {
                progress.unread += 1;
                progress.unread_through = entry.position;
            }
        } else if progress.waiting.contains(entry.position) {
            waiting.push(WaitingKey { position: entry.position, key_hash: entry.key_hash });
            kept.push(entry.position);
        }
    }
}

/// A sink that was not configured for a while may wait for what has been released meanwhile. A new one starts with the
/// oldest event kept: twice with the same id is better than not at all.
fn drop_what_is_gone(sink: &Sink, kept: &[u64], found: &Found) {
    let oldest = found.segments.first().map(|segment| segment.span().0);
    let mut guard = sink.progress();
    let progress = &mut *guard;
    let mut gone = progress.waiting.len();
    if gone > kept.len() as u64 {
        let waiting: Vec<u64> = progress.waiting.iter().filter(|at| kept.binary_search(at).is_err()).collect();
        for position in waiting {
            progress.remove(position);
        }
    }
    gone -= progress.waiting.len();
    let skipped = oldest.map_or(0, |oldest| oldest - 1).saturating_sub(progress.frontier);
    if progress.frontier > 0 && (skipped > 0 || gone > 0) {
        let (sink, cursor) = (&sink.spec.name, progress.frontier);
        tracing::warn!(sink, cursor, gone, oldest, "events that this sink has not published are no longer kept");
    }
    progress.frontier = progress.frontier.max(oldest.map_or(found.last, |oldest| oldest - 1));
}

/// Begins a new segment, which proves that the disk can be written, and starts the threads.
fn start(
    options: Options,
    connection: Connection,
    shared: Arc<Shared>,
    window: Window,
    backfill: Backfill,
    ids: Vec<(Name, i64)>,
) -> io::Result<Journal> {
    let (commands, queue) = sync_channel(QUEUE_COMMANDS);
    let keeper = Keeper { shared: Arc::clone(&shared), options: KeeperOptions::of(&options), ids, failing: false };
    let state = StateWriter {
        connection: Some(connection),
        reader: Reader::new(Arc::clone(&shared.chain)),
        shared: Arc::clone(&shared),
        data_version: None,
        retain_ms: options.settings.retain_for.as_millis(),
        failing: false,
        has_progressed: false,
        damaged: false,
        repairs: 0,
    };
    let mut writer = Writer {
        active: None,
        next_position: shared.chain.last() + 1,
        window,
        backfill,
        options,
        state: None,
        reader: Reader::new(Arc::clone(&shared.chain)),
        kinds: KindCounter::default(),
        is_disk_full: false,
        shared: Arc::clone(&shared),
    };
    match writer.next_segment() {
        Ok(active) => writer.active = Some(active),
        // On a full disk nothing is taken, but what is there is published, and that makes room.
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            tracing::error!(%error, "no room on the journal's disk; answering deliveries 503");
            shared.set_health(Health::Failed);
        }
        Err(error) => return Err(error),
    }
    let threads = Threads {
        writer: Some(supervised("journal-writer", &shared, move || writer.run(&queue))?),
        keeper: Some(supervised("journal-keeper", &shared, move || keeper.run())?),
        state: Some(supervised("journal-state", &shared, move || state.run())?),
    };
    // What the last run has left open is closed.
    shared.keeper.wake();
    if !shared.state.flush(FIRST_STATE) {
        tracing::warn!("the state file cannot be written yet");
    }
    Ok(Journal { commands, shared, threads: Arc::new(Mutex::new(threads)) })
}

/// A thread whose end is noticed, however it ends.
fn supervised(name: &str, shared: &Arc<Shared>, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    struct Ended(Arc<Shared>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.set_health(Health::Closed);
            if thread::panicking() || !self.0.closing.load(Ordering::Acquire) {
                self.0.ended.send_replace(true);
            }
        }
    }
    let ended = Ended(Arc::clone(shared));
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ended = ended;
        run();
    })
}

/// An id that was accepted. Of an index it is all that the window needs, and there may be a million.
struct AcceptedId {
    position: u64,
    accepted_ms: i64,
    id: [u8; 16],
}

/// The ids that were accepted within the window, as far as an index file tells them.
fn ids_since(index: &Index, since_ms: i64) -> impl Iterator<Item = AcceptedId> {
    let known = index.entries.iter().filter(move |entry| entry.accepted_ms > since_ms && entry.id != [0; 16]);
    known.map(|entry| AcceptedId { position: entry.position, accepted_ms: entry.accepted_ms, id: entry.id })
}

/// Remembers the newest ids, oldest first.
fn fill_window(window: &mut Window, max_ids: usize, mut ids: Vec<AcceptedId>) {
    // A compacted segment holds again what the released one held.
    ids.sort_unstable_by_key(|id| id.position);
    ids.dedup_by_key(|id| id.position);
    let skip = ids.len().saturating_sub(max_ids);
    for AcceptedId { position, accepted_ms, id } in ids.into_iter().skip(skip) {
        window.insert(id, position, accepted_ms);
    }
}
