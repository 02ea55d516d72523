//! The one thread that writes events.
//!
//! It takes whatever has queued up, writes it to the newest segment as one commit with one fsync, and only then answers.
//! A full disk rolls the commit back. After any other error what the disk holds is in doubt: the segment is never
//! written to again, and nothing is taken until a new one has been made on the same disk.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::active::{Active, is_full};
use super::backfill::{Backfill, Backfilled, Outcome, PlanError};
use super::index::{ENTRY_BYTES, Index, IndexEntry};
use super::reader::Reader;
use super::segment::{self, Header, Segment};
use super::shared::Spare;
use super::sinks::KindCounter;
use super::state_queue::StateOp;
use super::{AppendError, Appended, Command, Entry, Health, Options, Shared, directory, lock, record, state};
use crate::domain::dedup::Window;

/// The most events and bytes of one commit: enough to spread an fsync over many, few enough to stay well inside an
/// answer's deadline on a slow disk.
const COMMIT_EVENTS: usize = 512;
const COMMIT_BYTES: usize = 4 * 1024 * 1024;

/// How often the window, the free space and the age of the newest segment are looked at, and a failed disk is tried.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How often backfill candidates are looked at while there are some.
const BACKFILL: Duration = Duration::from_millis(100);

/// Room that must be left for the journal to call itself healthy, or a 64th of a small budget: so that it does not call
/// itself healthy while the next event no longer fits.
const HEADROOM: u64 = 1024 * 1024;

/// How long a commit waits at most for segments to be released when the budget is used up: a few fsyncs of a busy disk.
/// Where nothing can be released, it does not wait that long.
const MAKING_ROOM: Duration = Duration::from_secs(1);

/// A segment that cannot be followed by another is filled on, but not past what an index can say.
const LONGEST_SEGMENT: u64 = 2 * 1024 * 1024 * 1024;

type Reply<T> = oneshot::Sender<Result<T, AppendError>>;

pub(super) struct Writer {
    /// `None` while the disk fails.
    pub(super) active: Option<Active>,
    pub(super) next_position: u64,
    pub(super) window: Window,
    pub(super) backfill: Backfill,
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
    /// For the candidates to be backfilled, with the edition of the state file.
    pub(super) state: Option<(u64, Connection)>,
    pub(super) reader: Reader,
    pub(super) kinds: KindCounter,
    /// What the disk has refused for lack of room, whatever the system says of its room.
    pub(super) is_disk_full: bool,
}

/// What is committed together.
#[derive(Default)]
struct Group {
    appends: Vec<(Entry, Reply<Appended>)>,
    bytes: usize,
    close: bool,
}

/// A commit that is being put together.
#[derive(Default)]
struct Commit {
    bytes: Vec<u8>,
    entries: Vec<(IndexEntry, String)>,
    /// Twins inside the commit share it.
    twins: HashMap<[u8; 16], u64>,
}

impl Group {
    fn take(&mut self, command: Command) {
        match command {
            Command::Append(entry, reply) => {
                self.bytes += entry.payload.len();
                self.appends.push((entry, reply));
            }
            Command::Close => self.close = true,
            #[cfg(test)]
            Command::Panic => panic!("a panic of the writer, asked for by a test"),
        }
    }

    /// Waits for a command, at most `until`, and takes what is queued behind it.
    fn collect(queue: &Receiver<Command>, wait: Duration) -> Self {
        let mut group = Self::default();
        match queue.recv_timeout(wait) {
            Ok(command) => group.take(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => group.close = true,
        }
        while !group.close && group.appends.len() < COMMIT_EVENTS && group.bytes < COMMIT_BYTES {
            let Ok(command) = queue.try_recv() else { break };
            group.take(command);
        }
        group
    }
}

impl Writer {
    pub(super) fn run(mut self, queue: &Receiver<Command>) {
        let (mut housekeeping, mut backfilling) = (Instant::now(), Instant::now());
        loop {
            let mut wait = HOUSEKEEPING.saturating_sub(housekeeping.elapsed());
            if self.shared.candidates_wait.load(Ordering::Relaxed) {
                wait = wait.min(BACKFILL.saturating_sub(backfilling.elapsed()));
            }
            let group = Group::collect(queue, wait.max(Duration::from_millis(1)));
            let close = group.close;
            self.shared.queued_bytes.fetch_sub(group.bytes, Ordering::Relaxed);
            self.append(group);
            if close {
                break;
            }
            if self.shared.candidates_wait.load(Ordering::Relaxed) && backfilling.elapsed() >= BACKFILL {
                backfilling = Instant::now();
                self.store_candidates();
            }
            if housekeeping.elapsed() >= HOUSEKEEPING {
                housekeeping = Instant::now();
                self.housekeeping();
            }
        }
        // For whoever looks at the file; a start finds the same events either way.
        if let Some(Err(error)) = self.active.as_mut().map(Active::truncate) {
            tracing::warn!(%error, "cannot cut off the zeros at the end of the newest segment");
        }
        self.shared.set_health(Health::Closed);
    }

    /// Commits a group and answers it.
    fn append(&mut self, group: Group) {
        if group.appends.is_empty() {
            return;
        }
        let (entries, replies): (Vec<_>, Vec<_>) = group.appends.into_iter().unzip();
        let outcomes = self.commit(&entries);
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // Who has hung up, or was answered at the deadline, changes nothing but the count.
            if let Err(unheard) = reply.send(outcome) {
                self.shared.count_if_late(&unheard);
            }
        }
        self.rotate_if_full();
    }

    /// Stores what is new, durably, and says of each entry what has become of it.
    fn commit(&mut self, entries: &[Entry]) -> Vec<Result<Appended, AppendError>> {
        if self.active.is_none() {
            return vec![Err(AppendError::Failed); entries.len()];
        }
        self.make_room(entries);
        let mut commit = Commit::default();
        let outcomes: Vec<_> = entries.iter().map(|entry| self.add(&mut commit, entry)).collect();
        if commit.entries.is_empty() {
            return outcomes;
        }
        let (started, first_new) = (Instant::now(), self.next_position);
        if let Err(error) = self.write(&commit.bytes) {
            let refused = self.fail(&error, commit.entries.len() as u64);
            let is_new = |outcome: &Result<Appended, AppendError>| matches!(outcome, Ok(Appended::Stored(position) | Appended::Duplicate(position)) if *position >= first_new);
            return outcomes.into_iter().map(|outcome| if is_new(&outcome) { Err(refused) } else { outcome }).collect();
        }
        (self.options.on_commit)(started.elapsed());
        self.apply_committed(commit);
        outcomes
    }

    fn add(&self, commit: &mut Commit, entry: &Entry) -> Result<Appended, AppendError> {
        if let Some(position) = self.window.get(&entry.id).or_else(|| commit.twins.get(&entry.id).copied()) {
            return Ok(Appended::Duplicate(position));
        }
        let window_ms = self.options.dedup.window.as_millis();
        let after_ms = entry.accepted_ms.saturating_sub(window_ms);
        if let Some(backfilled) = self.backfill.known(entry, &self.options.backfill, after_ms) {
            return Ok(backfilled);
        }
        let size = record::size(entry.key.len(), entry.kind.len(), entry.payload.len());
        let indexed = (commit.entries.len() as u64 + 1) * ENTRY_BYTES;
        let bytes = self.shared.bytes() + commit.bytes.len() as u64 + size + indexed;
        if bytes > self.options.settings.max_bytes.0 || self.shared.disk_is_low() || self.is_disk_full {
            return Err(AppendError::Full);
        }
        let position = self.next_position + commit.entries.len() as u64;
        let offset = self.active.as_ref().map_or(0, |active| active.length()) + commit.bytes.len() as u64;
        let key_hash = record::hash(entry.key.as_bytes());
        record::encode(&mut commit.bytes, position, commit.entries.is_empty(), key_hash, entry);
        commit.twins.insert(entry.id, position);
        let index_entry = IndexEntry {
            position,
            offset: offset as u32,
            length: size as u32,
            kind: 0,
            accepted_ms: entry.accepted_ms,
            key_hash,
            id: entry.id,
        };
        commit.entries.push((index_entry, entry.kind.clone()));
        Ok(Appended::Stored(position))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(active) = &mut self.active else { return Err(io::Error::other("bug: there is no segment")) };
        active.append(bytes, self.options.settings.segment_bytes())
    }

    /// The commit is durable: everything that depends on it may now be said.
    fn apply_committed(&mut self, commit: Commit) {
        let Some(active) = &self.active else { return };
        let count = commit.entries.len() as u64;
        if let Some(mut index) = active.segment.entries_mut() {
            for (entry, kind) in &commit.entries {
                index.push_entry(*entry, kind);
            }
            index.log_bytes = active.length();
        }
        let last = self.next_position + count - 1;
        self.kinds.count(&self.shared.sinks, commit.entries.iter().map(|(_, kind)| kind.as_str()), last);
        for (entry, _) in &commit.entries {
            self.window.insert(entry.id, entry.position, entry.accepted_ms);
        }
        self.next_position += count;
        let bytes = commit.bytes.len() as u64 + count * ENTRY_BYTES;
        self.shared.account_for(bytes as i64, count as i64);
        self.shared.dedup_ids.store(self.window.len() as u64, Ordering::Relaxed);
        self.shared.set_proof(active.segment.name, active.length(), last);
        self.shared.chain.set_last(last);
        self.shared.durable.send_replace(last);
    }

    /// After the answers, so that none of them waits for it.
    fn rotate_if_full(&mut self) {
        let limit = self.options.settings.segment_bytes();
        if self.active.as_ref().is_some_and(|active| active.length() >= limit) {
            self.rotate();
        }
    }

    /// Goes on in a new segment. Where none can be made, the one that is there is filled on.
    fn rotate(&mut self) {
        match self.next_segment() {
            Ok(active) => self.replace_active(Some(active)),
            Err(error) => {
                tracing::warn!(%error, "cannot make a new segment; filling the present one on");
                let is_longest = |active: &Active| active.length() >= LONGEST_SEGMENT;
                if self.active.as_ref().is_some_and(is_longest) {
                    self.report(Health::Failed, &error);
                    self.replace_active(None);
                }
            }
        }
        self.shared.keeper.wake();
    }

    /// Nothing is written to the segment before any more.
    fn replace_active(&mut self, active: Option<Active>) {
        if let Some(before) = std::mem::replace(&mut self.active, active) {
            before.segment.finish();
        }
    }

    /// Takes the segment that was made ahead, or makes one.
    pub(super) fn next_segment(&self) -> io::Result<Active> {
        let Spare { name, file } = self.shared.take_spare()?;
        let header = Header { previous_last: self.shared.chain.last(), through: 0 };
        // Durable with the first commit, as it is in the same file. After a failure this proves that the disk is back.
        let sync = self.shared.health() == Health::Failed;
        let written = segment::write_header(&file, header).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            drop(std::fs::remove_file(name.log(&self.shared.chain.dir)));
            return Err(error);
        }
        let length = segment::HEADER as u64;
        let index = Index::of_bytes(length);
        let segment = Arc::new(Segment::active(name, &self.shared.chain.dir, index, header));
        self.shared.set_proof(name, length, 0);
        self.shared.account_for(segment.bytes() as i64, 0);
        self.shared.chain.push(Arc::clone(&segment));
        Ok(Active::new(segment, file, length))
    }

    /// The budget is used up: waits a moment for what is published to be released.
    fn make_room(&self, entries: &[Entry]) {
        let size = |entry: &Entry| record::size(entry.key.len(), entry.kind.len(), entry.payload.len());
        let bytes = entries.iter().map(|entry| size(entry) + ENTRY_BYTES).sum::<u64>();
        if self.shared.bytes() + bytes > self.options.settings.max_bytes.0 {
            self.shared.keeper.make_room(MAKING_ROOM);
        }
    }

    /// A write failed. A full disk may have room for the next one, and the file is as it was. After any other error the
    /// positions and the segment are not used any more.
    fn fail(&mut self, error: &io::Error, positions: u64) -> AppendError {
        let is_as_before = self.active.as_mut().is_some_and(|active| active.truncate().is_ok());
        if is_full(error) && is_as_before {
            self.is_disk_full = true;
            self.report(Health::Full, error);
            return AppendError::Full;
        }
        self.report(Health::Failed, error);
        // What was refused may be on the disk nevertheless: its positions are not used for anything else.
        self.next_position += positions;
        self.replace_active(None);
        self.shared.keeper.wake();
        AppendError::Failed
    }

    fn report(&self, health: Health, error: &io::Error) {
        if self.shared.set_health(health) != health {
            let path = self.shared.chain.dir.display();
            tracing::error!(%error, %path, "cannot write the journal; answering deliveries 503");
        }
    }

    fn housekeeping(&mut self) {
        let now_ms = self.options.clock.now_ms();
        self.shared.disk_free.store(directory::free(&self.shared.chain.dir), Ordering::Relaxed);
        self.window.expire(now_ms);
        self.shared.dedup_ids.store(self.window.len() as u64, Ordering::Relaxed);
        let before_ms = now_ms.saturating_sub(self.options.dedup.window.as_millis());
        if self.backfill.forget(before_ms) {
            self.shared.state.push(StateOp::ForgetBackfilled { before_ms });
        }
        if self.active.is_none() {
            self.reopen();
        }
        if self.is_disk_full {
            self.is_disk_full = self.probe().is_err();
        }
        if self.is_old(now_ms) {
            self.rotate();
        }
        self.shared.keeper.wake();
        self.update_health();
    }

    fn update_health(&self) {
        if self.active.is_none() {
            return;
        }
        let health = if self.has_room() { Health::Healthy } else { Health::Full };
        if self.shared.set_health(health) != health {
            match health {
                Health::Healthy => tracing::info!("journal is writable again"),
                _ => tracing::error!(bytes = self.shared.bytes(), "journal is full; answering deliveries 503"),
            }
        }
    }

    /// Whether the newest segment has to be closed, so that what is in it can be released by age.
    fn is_old(&self, now_ms: i64) -> bool {
        let age_ms = self.options.settings.retain_for.as_millis() / 8;
        let oldest = self.active.as_ref().and_then(|active| active.segment.entries()?.entries.first().copied());
        oldest.is_some_and(|oldest| oldest.accepted_ms.saturating_add(age_ms) <= now_ms)
    }

    fn has_room(&self) -> bool {
        let budget = self.options.settings.max_bytes.0;
        let is_within = self.shared.bytes() + HEADROOM.min(budget / 64) < budget;
        is_within && !self.shared.disk_is_low() && !self.is_disk_full
    }

    /// Whether there is room for an event: a quota is not seen in the free space of the disk.
    fn probe(&mut self) -> io::Result<()> {
        self.active.as_mut().map_or(Ok(()), |active| active.probe(COMMIT_BYTES / 4))
    }

    fn reopen(&mut self) {
        // What is in the segment before is settled first: once sinks have gone on beyond it, what a start found there
        // in addition would never be published, and yet be recognised.
        if self.shared.chain.segments().iter().any(|segment| !segment.is_sealed()) {
            self.shared.keeper.wake();
            return;
        }
        match self.next_segment() {
            Ok(active) => {
                tracing::info!(position = self.next_position, "journal goes on in a new segment");
                self.active = Some(active);
                self.shared.keeper.wake();
            }
            Err(error) => tracing::debug!(%error, "cannot make a new segment yet"),
        }
    }

    /// Stores backfill candidates, some at a time. Refused for lack of room, they are tried again.
    fn store_candidates(&mut self) {
        let released = std::mem::take(&mut *lock(&self.shared.backfilled));
        self.backfill.release(&released);
        let edition = self.shared.state_edition.load(Ordering::Acquire);
        if self.state.as_ref().is_none_or(|(opened, _)| *opened != edition) {
            self.state = state::open_beside(&self.shared.chain.dir).ok().map(|connection| (edition, connection));
        }
        let (Some((_, connection)), true) = (&self.state, self.active.is_some()) else { return };
        let now_ms = self.options.clock.now_ms();
        let plan = match self.backfill.plan(connection, &mut self.reader, &self.options.backfill, now_ms) {
            Ok(plan) => plan,
            Err(error) => {
                tracing::debug!(%error, "cannot read backfill candidates");
                if let PlanError::Engine(error) = &error {
                    self.shared.state.report(error, edition);
                }
                self.state = None;
                return;
            }
        };
        let more = plan.more || !plan.entries.is_empty() || !plan.outcomes.is_empty();
        self.shared.candidates_wait.store(more, Ordering::Relaxed);
        let (numbers, entries): (Vec<_>, Vec<_>) =
            plan.entries.into_iter().map(|(seq, fact, entry)| ((seq, fact), entry)).unzip();
        let mut outcomes = plan.outcomes;
        let (mut refused, mut stored) = (Vec::new(), 0);
        let committed = self.commit(&entries);
        self.rotate_if_full();
        for (((seq, fact), entry), outcome) in numbers.into_iter().zip(entries).zip(committed) {
            match outcome {
                Ok(Appended::Stored(position)) => {
                    (self.options.backfill.on_stored)(&entry.kind);
                    stored += 1;
                    let Entry { id, key, .. } = entry;
                    outcomes.push((seq, Some(Backfilled { fact, key, at_ms: now_ms, position, id })));
                }
                Ok(_) => outcomes.push((seq, None)),
                Err(_) => refused.push(seq),
            }
        }
        self.backfill.release(&refused);
        if stored > 0 {
            tracing::info!(events = stored, "stored backfilled events");
        }
        self.note_outcomes(outcomes);
    }

    fn note_outcomes(&mut self, outcomes: Vec<Outcome>) {
        for stored in outcomes.iter().filter_map(|(_, stored)| stored.clone()) {
            self.backfill.add(stored);
        }
        if !outcomes.is_empty() {
            self.shared.state.push(StateOp::Backfill(outcomes));
        }
    }
}
