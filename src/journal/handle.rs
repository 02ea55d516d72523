//! The handle to an open journal.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::reader::ReadError;
use super::resends::{self, NextError};
use super::sinks::Sink;
use super::state_queue::StateOp;
use super::state_writer::open_for_reading;
use super::{
    AppendError, Appended, Closed, Command, DeadLetter, DeadLetterGroup, Entry, Health, Limits, Origin, Reader, Resend,
    ResendCursor, ResendOutcome, Resume, Row, Shared, Stats, StuckEvent, dead_letters, lock, stuck,
};

/// Bytes that may wait for the writer, so that large bodies cannot fill the memory.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;

/// A handle to an open journal; clones share it.
#[derive(Clone)]
pub struct Journal {
    pub(super) commands: SyncSender<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) threads: Arc<Mutex<Threads>>,
}

/// The threads of a journal, in the order in which they are ended.
#[derive(Default)]
pub(super) struct Threads {
    pub(super) writer: Option<JoinHandle<()>>,
    pub(super) keeper: Option<JoinHandle<()>>,
    pub(super) state: Option<JoinHandle<()>>,
}

/// An append under way. It goes on to its end even if this is dropped; an event that is stored then is a late commit.
pub struct Pending {
    answer: oneshot::Receiver<Result<Appended, AppendError>>,
    shared: Arc<Shared>,
}

impl Pending {
    /// Waits for the commit, without a limit.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn durable(mut self) -> Result<Appended, AppendError> {
        (&mut self.answer).await.unwrap_or(Err(AppendError::Closed))
    }

    /// Waits for the commit until `deadline`; `None` if there is none by then.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub async fn durable_by(mut self, deadline: Instant) -> Option<Result<Appended, AppendError>> {
        let answer = timeout_at(deadline, &mut self.answer).await.ok()?.unwrap_or(Err(AppendError::Closed));
        // On a busy machine the answer may be here in time and this run after it.
        if Instant::now() > deadline {
            self.shared.count_if_late(&answer);
        }
        Some(answer)
    }
}

#[cfg(test)]
impl Pending {
    /// Waits for the commit on a thread that may block.
    pub(super) fn wait(mut self) -> Result<Appended, AppendError> {
        let (_, nothing) = oneshot::channel();
        std::mem::replace(&mut self.answer, nothing).blocking_recv().unwrap_or(Err(AppendError::Closed))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Closed first: either the writer finds that nobody waits, or its answer is here.
        self.answer.close();
        if let Ok(answer) = self.answer.try_recv() {
            self.shared.count_if_late(&answer);
        }
    }
}

impl Journal {
    /// Hands an event to the writer. This never waits: once it has returned `Ok`, the event will be committed whatever
    /// becomes of the caller.
    ///
    /// # Errors
    /// [`AppendError::Busy`] when too much is waiting, otherwise what is already known to be wrong.
    pub fn append(&self, entry: Entry) -> Result<Pending, AppendError> {
        match self.health() {
            Health::Healthy | Health::Full => {}
            Health::Failed => return Err(AppendError::Failed),
            Health::Closed => return Err(AppendError::Closed),
        }
        let size = entry.payload.len();
        if self.shared.queued_bytes.fetch_add(size, Ordering::Relaxed) + size > QUEUE_BYTES {
            self.shared.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            return Err(AppendError::Busy);
        }
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(Command::Append(entry, reply)).map_err(|error| {
            self.shared.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => AppendError::Busy,
                TrySendError::Disconnected(_) => AppendError::Closed,
            }
        })?;
        Ok(Pending { answer, shared: Arc::clone(&self.shared) })
    }

    // ---- what a sink does ------------------------------------------------------------------------------------------

    /// Where a sink goes on after a start. The waiting positions are given once.
    pub fn resume(&self, sink: &str) -> Resume {
        let waiting = lock(&self.shared.resume).remove(sink);
        let frontier = self.shared.sinks.get(sink).map_or(0, |sink| sink.progress().frontier);
        Resume { frontier, waiting: waiting.unwrap_or_default() }
    }

    /// Calls `each` with the events of a sink that are stuck, in order of position, as far as they can be read. Blocks.
    pub fn for_each_stuck(&self, sink: &str, each: impl FnMut(StuckEvent)) {
        let read = self.read_state(|connection| stuck::for_each(connection, sink, each).map_err(NextError::Engine));
        // The connection would keep many of the pages that it has read.
        lock(&self.shared.state_reader).take();
        if let Err(error) = read {
            tracing::error!(%error, sink, "cannot read which events are stuck; trying them");
        }
    }

    /// Records that a sink has read everything up to `through`, and that of it the positions of `waiting` are to be
    /// published. Durable within 100 ms.
    pub fn enqueue(&self, sink: &str, through: u64, waiting: &[u64]) {
        if let Some(sink) = self.shared.sinks.get(sink) {
            sink.enqueue(through, waiting);
        }
    }

    /// Records that a sink has published the event at `position`. Durable within 100 ms.
    pub fn acknowledge(&self, sink: &str, position: u64) {
        if let Some(sink) = self.shared.sinks.get(sink) {
            sink.acknowledge(position);
        }
    }

    /// The position up to which a sink has dealt with everything.
    pub fn cursor(&self, sink: &str) -> u64 {
        self.shared.sinks.get(sink).map_or(0, |sink| sink.progress().cursor())
    }

    /// How many events a sink wants and has not published.
    pub fn pending(&self, sink: &str) -> u64 {
        self.shared.sinks.get(sink).map_or(0, Sink::pending)
    }

    /// When the oldest of them was accepted, in Unix milliseconds. Blocks for a short read, where it is another one than
    /// the last time.
    pub fn oldest_pending_ms(&self, sink: &str) -> Option<i64> {
        let sink = self.shared.sinks.get(sink).filter(|sink| sink.pending() > 0)?;
        let (first, frontier) = {
            let progress = sink.progress();
            (progress.waiting.first(), progress.frontier)
        };
        let mut oldest = lock(&sink.oldest_pending);
        let position = first.unwrap_or(frontier + 1);
        if let Some((_, accepted_ms)) = oldest.filter(|(known, _)| *known == position) {
            return Some(accepted_ms);
        }
        let mut reader = self.reader();
        let found = match first {
            Some(position) => reader.entry(position),
            None => reader.first_entry(frontier, |kind| sink.wants(kind)),
        };
        match found {
            Ok(found) => *oldest = found.map(|entry| (position, entry.accepted_ms)),
            // What was the oldest is no younger.
            Err(error) => tracing::debug!(%error, "cannot read when the oldest pending event was accepted"),
        }
        oldest.map(|(_, accepted_ms)| accepted_ms)
    }

    /// Keeps an event that a broker refused for good as a dead letter, with its reason; it waits no more. Returns once
    /// that is durable, however long a failing disk takes. For an event that is a dead letter already, the reason is
    /// replaced.
    ///
    /// # Errors
    /// [`Closed`]; nothing is set aside then.
    pub async fn set_aside(&self, dead_letter: DeadLetter) -> Result<(), Closed> {
        let (reply, answer) = oneshot::channel();
        self.shared.state.push(StateOp::SetAside(dead_letter, reply));
        answer.await.map_err(|_dropped| Closed)
    }

    /// Writes down which events a sink cannot publish, for operators to see. They are forgotten as they are published
    /// or set aside.
    pub fn record_stuck(&self, sink: &str, events: Vec<StuckEvent>) {
        if let Some(sink) = self.shared.sinks.get(sink) {
            lock(&sink.stuck).extend(events);
        }
    }

    /// The positions that an operator wants to be set aside; each is given once.
    pub fn set_aside_requests(&self, sink: &str) -> Vec<u64> {
        let requests = self.shared.sinks.get(sink).map(|sink| &sink.requests);
        requests.map(|requests| lock(requests).take()).unwrap_or_default()
    }

    /// Says of requested positions that there is nothing to set aside any more.
    pub fn decline_set_aside(&self, sink: &str, positions: &[u64]) {
        if !positions.is_empty() {
            let (sink, positions) = (sink.to_owned(), positions.to_vec());
            self.shared.state.push(StateOp::DeclineSetAside { sink, positions });
        }
    }

    // ---- resends ---------------------------------------------------------------------------------------------------

    /// How many events a sink is to publish once more.
    pub fn resends(&self, sink: &str) -> u64 {
        let requeued = self.shared.sinks.get(sink).map_or(0, |sink| sink.resends.load(Ordering::Relaxed));
        requeued + self.shared.replays.to_come(sink)
    }

    /// How many replays a sink has.
    pub fn active_replays(&self, sink: &str) -> u64 {
        self.shared.replays.active(sink)
    }

    /// How many resends were dropped since the start: of sinks that are not configured any more, without an event, or to
    /// make room.
    pub fn resends_dropped(&self) -> u64 {
        self.shared.resends_dropped.load(Ordering::Relaxed)
    }

    /// The next resends of a sink that `cursor` has not been given yet. What is damaged or gone is left out, and logged.
    /// Blocks.
    ///
    /// # Errors
    /// When they cannot be read now.
    pub fn next_resends(
        &self,
        sink: &str,
        cursor: &mut ResendCursor,
        limits: Limits,
    ) -> Result<Vec<Resend>, ReadError> {
        let (given, unusable) = self.read_state(|state| resends::next(state, &self.shared, sink, cursor, limits))?;
        self.drop_requeued(sink, unusable);
        Ok(given)
    }

    /// One resend that was given before; `None` where it is gone. Blocks.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub fn resend_at(
        &self,
        sink: &str,
        origin: Origin,
        position: u64,
        reader: &mut Reader,
    ) -> Result<Option<Row>, ReadError> {
        match origin {
            Origin::Replay { .. } => reader.at(position),
            Origin::Requeue { .. } => {
                let event = self.read_state(|state| Ok(dead_letters::event(state, sink, position)?))?;
                Ok(event.map(Row::Intact))
            }
        }
    }

    /// Says of resends that they cannot be read any more; each with its position.
    pub fn drop_resends(&self, sink: &str, dropped: &[(Origin, u64)]) {
        let mut requeued = Vec::new();
        for (origin, position) in dropped {
            match *origin {
                Origin::Replay { id } => self.shared.replays.finish(id, *position),
                Origin::Requeue { seq } => requeued.push(seq),
            }
        }
        self.drop_requeued(sink, requeued);
    }

    fn drop_requeued(&self, sink: &str, seqs: Vec<u64>) {
        if seqs.is_empty() {
            return;
        }
        let dropped = seqs.len() as u64;
        tracing::warn!(
            sink,
            dropped,
            "dropped requeued events that are damaged or gone; see: sendbird-bridge dead-letters list"
        );
        self.shared.resends_dropped.fetch_add(dropped, Ordering::Relaxed);
        self.shared.state.push(StateOp::DropRequeued { sink: sink.to_owned(), seqs });
    }

    /// Reads the state file beside the thread that writes it.
    fn read_state<T>(&self, read: impl FnOnce(&Connection) -> Result<T, NextError>) -> Result<T, ReadError> {
        let edition = self.shared.state_edition.load(Ordering::Acquire);
        let failed = |error| ReadError::of_state(&self.shared.chain.dir, error);
        let mut connection = lock(&self.shared.state_reader);
        let open = match connection.take() {
            Some(open) => open,
            None => open_for_reading(&self.shared.chain.dir).map_err(failed)?,
        };
        let found = read(connection.insert(open));
        found.map_err(|error| match error {
            NextError::Read(error) => error,
            NextError::Engine(error) => {
                *connection = None;
                self.shared.state.report(&error, edition);
                failed(error)
            }
        })
    }

    /// Records what became of a resend. Durable within 100 ms.
    pub fn finish_resend(&self, sink: &str, origin: Origin, position: u64, outcome: ResendOutcome) {
        match (origin, &outcome) {
            (Origin::Replay { id }, ResendOutcome::Published) => self.shared.replays.finish(id, position),
            _ => {
                let sink = sink.to_owned();
                self.shared.state.push(StateOp::FinishResend { sink, origin, position, outcome });
            }
        }
    }

    /// Whether a resend is still wanted: its replay may have been cancelled.
    pub fn is_wanted(&self, origin: &Origin) -> bool {
        match *origin {
            Origin::Requeue { .. } => true,
            Origin::Replay { id } => self.shared.replays.has(id),
        }
    }

    // ---- what others see -------------------------------------------------------------------------------------------

    /// Follows the newest durable position.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.shared.durable.subscribe()
    }

    /// How many events were stored since the start although their sender had no answer in time that says so: nobody
    /// waited for the commit any more, or it came after the deadline.
    pub fn late_commits(&self) -> u64 {
        self.shared.late_commits.load(Ordering::Relaxed)
    }

    /// How many dead letters a sink has.
    pub fn dead_letters(&self, sink: &str) -> u64 {
        self.shared.sinks.get(sink).map_or(0, |sink| sink.dead_letters.load(Ordering::Relaxed))
    }

    /// The dead letters by sink and reason, those of sinks that are no longer configured among them. Blocks.
    ///
    /// # Errors
    /// When they cannot be read now.
    pub fn dead_letter_groups(&self) -> Result<Vec<DeadLetterGroup>, ReadError> {
        self.read_state(|connection| dead_letters::groups(connection).map_err(NextError::Engine))
    }

    /// A reader of its own; nothing is opened yet.
    pub fn reader(&self) -> Reader {
        self.shared.reader()
    }

    /// Whether it takes events.
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// What it holds.
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let segments = shared.chain.segments();
        Stats {
            health: self.health(),
            first_position: shared.chain.first(),
            last_position: *shared.durable.borrow(),
            records: shared.records.load(Ordering::Relaxed),
            damaged_records: shared.chain.damaged_count(),
            segments: segments.len() as u64,
            bytes: shared.bytes(),
            disk_free_bytes: shared.disk_free.load(Ordering::Relaxed),
            dedup_ids: shared.dedup_ids.load(Ordering::Relaxed),
        }
    }

    /// Waits until one of its threads has ended without being asked to. Nothing is taken any more then.
    pub async fn ended(&self) {
        let mut ended = self.shared.ended.subscribe();
        // The sender lives as long as this handle.
        drop(ended.wait_for(|ended| *ended).await);
    }

    /// Commits what is queued and what sinks have published, closes the files and gives the directory back. Blocks.
    pub fn close(&self) {
        let threads = std::mem::take(&mut *lock(&self.threads));
        self.shared.closing.store(true, Ordering::Release);
        // A full queue is drained by the writer, so this waits for a place, and not without end.
        if self.commands.send(Command::Close).is_err() {
            tracing::debug!("the journal's writer had stopped already");
        }
        join(threads.writer);
        self.shared.keeper.close();
        join(threads.keeper);
        lock(&self.shared.state_reader).take();
        self.shared.state.push(StateOp::Close);
        join(threads.state);
        // Only now may another process have the directory.
        lock(&self.shared.lock).take();
    }

    #[cfg(test)]
    pub(crate) fn panic(&self) {
        drop(self.commands.send(Command::Panic));
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("a thread of the journal panicked");
    }
}
