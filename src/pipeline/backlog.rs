//! What a sink has before it, and keeps from one connection to the next: the queue of its events, what is parked, and
//! the reads and dead letters under way.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout};

use super::congestion::CongestionWindow;
use super::fetch::{Fetch, READ_AHEAD};
use super::queue::{Head, Item, KeyedQueue, Place, Unread};
use super::resends::{ResendReader, marked};
use super::targets::{Moment, TARGET_BYTES, Targets};
use super::{BACKOFF, Forwarder};
use crate::journal::{
    Batch, DeadLetter, Filter, Journal, Origin, ReadError, Reader, ResendOutcome, Resume, Row, WaitingKey,
};
use crate::sink::{Fault, Reason};

/// The memory for events that wait, payloads excluded: a million of them, each parked with a key of its own, under one
/// target; or 115,000, each under a target of its own. Beyond that no more events are read until some are published or
/// set aside.
pub(super) const WAITING_BYTES: usize = 64 * 1024 * 1024;

/// Dead letters on their way to the disk at once, of those that an operator wants.
const WRITES: usize = 256;

/// Why an event is set aside that no broker has refused.
const BY_OPERATOR: (&str, &str) = ("set_aside", "set aside by an operator");

/// Everything that a sink has before it.
pub(super) struct Backlog {
    pub(super) queue: KeyedQueue,
    pub(super) targets: Targets,
    pub(super) congestion: CongestionWindow,
    pub(super) pause: Pause,
    pub(super) connected: ConnectedTime,
    /// How many connections an event's tries have ended.
    pub(super) ended_connections: HashMap<Place, u32>,
    /// What an operator wants to be set aside.
    requests: VecDeque<Head>,
    /// Those of them that were in flight: they are set aside if they fail.
    pub(super) requested: HashSet<Place>,
    /// Dead letters on their way to the disk.
    pub(super) writes: FuturesUnordered<BoxFuture<'static, Head>>,
    pub(super) batches: Fetch<Batch>,
    pub(super) payloads: Fetch<Vec<(Head, Option<Row>)>>,
    pub(super) resends: ResendReader,
    /// The events whose payloads are being read.
    pub(super) reading: Vec<Unread>,
    /// Everything up to here has been read.
    frontier: u64,
}

impl Backlog {
    /// Reads where the sink goes on, on a thread that may block.
    ///
    /// # Errors
    /// When that thread panics.
    pub(super) async fn resume(forwarder: &Forwarder) -> Result<Self, JoinError> {
        let (name, journal) = (forwarder.name.clone(), forwarder.journal.clone());
        let (now, unix_ms) = (Instant::now(), forwarder.clock.now_ms());
        let (queue, targets, frontier) = tokio::task::spawn_blocking(move || {
            let Resume { frontier, waiting } = journal.resume(&name);
            let mut queue = KeyedQueue::resume(&waiting);
            let begun = Moment { at: now, connected: Duration::ZERO, unix_ms, random: 0.0 };
            let mut targets = Targets::new(now);
            journal.for_each_stuck(&name, |event| {
                // What was stuck for a reason of its own is tried.
                if !event.target.is_empty() {
                    let head = head_at(&waiting, event.position).filter(|head| queue.resume_stuck(*head));
                    targets.resume(&event, head, &begun);
                }
            });
            (queue, targets, frontier)
        })
        .await?;
        let journal = &forwarder.journal;
        Ok(Self {
            queue,
            targets,
            congestion: CongestionWindow::new(now),
            pause: Pause::default(),
            connected: ConnectedTime::default(),
            ended_connections: HashMap::new(),
            requests: VecDeque::new(),
            requested: HashSet::new(),
            writes: FuturesUnordered::new(),
            batches: Fetch::new(journal.clone()),
            payloads: Fetch::new(journal.clone()),
            resends: ResendReader::new(journal.clone()),
            reading: Vec::new(),
            frontier,
        })
    }

    pub(super) fn moment(&self, forwarder: &Forwarder) -> Moment {
        let at = Instant::now();
        let connected = self.connected.until(at);
        Moment { at, connected, unix_ms: forwarder.clock.now_ms(), random: fastrand::f64() }
    }

    /// Starts the reads that there is room for.
    pub(super) fn read(&mut self, forwarder: &Forwarder, durable: &mut watch::Receiver<u64>) {
        if self.queue.has_room() {
            self.read_payloads(forwarder);
            let frontier = self.frontier;
            if frontier < *durable.borrow_and_update() && !self.is_full(forwarder) {
                self.batches.start(move |reader| reader.after(frontier, READ_AHEAD, &Filter::default()));
            }
        }
        if self.queue.has_room_for_resends() && !self.is_full(forwarder) {
            self.resends.start(&forwarder.name);
        }
    }

    /// Lines up the parked events that may be tried.
    pub(super) fn release_parked(&mut self, now: Instant, window: usize) {
        if self.targets.is_empty() {
            return;
        }
        while let Some(head) = self.targets.release(now, window) {
            if !self.queue.release(head) {
                self.targets.withdrawn(head.place, now);
            }
        }
    }

    /// Whether so many events wait that no more may be read.
    fn is_full(&self, forwarder: &Forwarder) -> bool {
        let bytes = self.queue.waiting_bytes() + self.targets.len() * TARGET_BYTES;
        let is_full = bytes >= WAITING_BYTES;
        if forwarder.status.set_waiting_full(is_full) && is_full {
            tracing::error!(
                sink = forwarder.name,
                waiting = self.queue.len(),
                targets = self.targets.len(),
                "too many events wait; no more are read until some are published or set aside, \
                 see: sendbird-bridge stuck list"
            );
        }
        is_full
    }

    fn read_payloads(&mut self, forwarder: &Forwarder) {
        if self.queue.wants_payloads() && !self.payloads.is_running() {
            let (journal, sink) = (forwarder.journal.clone(), forwarder.name.clone());
            let unread = self.queue.take_unread(READ_AHEAD.rows);
            self.reading.clone_from(&unread);
            self.payloads.start(move |reader| read_each(&journal, &sink, reader, &unread));
        }
    }

    /// Lines up what was read.
    pub(super) fn add(&mut self, forwarder: &Forwarder, batch: Batch) {
        let mut waiting = Vec::with_capacity(batch.rows.len());
        let mut damaged = Vec::new();
        for row in batch.rows {
            match row {
                Row::Intact(record) if forwarder.wants_record(&record) => {
                    waiting.push(record.position);
                    self.queue.add(Item::live(record));
                }
                Row::Damaged { position, kind, .. } if kind.as_deref().is_none_or(|kind| forwarder.wants(kind)) => {
                    waiting.push(position);
                    damaged.push(position);
                }
                Row::Intact(_) | Row::Damaged { .. } => {}
            }
        }
        self.frontier = self.frontier.max(batch.through);
        forwarder.journal.enqueue(&forwarder.name, self.frontier, &waiting);
        for position in damaged {
            // It holds up no key: which one is not certain.
            self.set_aside_damaged(forwarder, Head::new(Place::live(position), 0), position);
        }
    }

    /// Lines up events whose payloads were read.
    pub(super) fn load(&mut self, forwarder: &Forwarder, found: Vec<(Head, Option<Row>)>) {
        let mut found = found.into_iter().peekable();
        let mut dropped = Vec::new();
        for unread in std::mem::take(&mut self.reading) {
            match (found.next_if(|(read, _)| *read == unread.head), unread.origin) {
                (Some((_, Some(Row::Intact(record)))), origin) => self.queue.load(unread.head, marked(origin, record)),
                (Some(_), Some(origin)) => {
                    dropped.push((origin, unread.position));
                    self.done(unread.head);
                    self.targets.withdrawn(unread.head.place, Instant::now());
                }
                (Some((_, row)), None) => self.give_up(forwarder, unread, row.is_some()),
                // Left out for an error, or because the others are large.
                (None, _) => self.queue.unload(unread.head),
            }
        }
        forwarder.journal.drop_resends(&forwarder.name, &dropped);
    }

    /// An event of the journal cannot be read: it is damaged, or gone.
    fn give_up(&mut self, forwarder: &Forwarder, Unread { head, position, .. }: Unread, is_damaged: bool) {
        if is_damaged {
            self.set_aside_damaged(forwarder, head, position);
        } else {
            forwarder.metrics.sink_gone.with_label_values(&[forwarder.name.as_str()]).inc();
            tracing::error!(sink = forwarder.name, position, "event is no longer kept; it cannot be published");
            forwarder.journal.acknowledge(&forwarder.name, position);
            self.done(head);
        }
        self.targets.withdrawn(head.place, Instant::now());
    }

    /// The broker has the event.
    pub(super) fn published(&mut self, forwarder: &Forwarder, head: Head, origin: Option<Origin>, position: u64) {
        let Forwarder { name, journal, .. } = forwarder;
        match origin {
            None => journal.acknowledge(name, position),
            Some(origin) => journal.finish_resend(name, origin, position, ResendOutcome::Published),
        }
        self.done(head);
    }

    /// Makes a dead letter of an event that was taken out of the queue.
    pub(super) fn set_aside(
        &mut self,
        forwarder: &Forwarder,
        (head, origin, position): (Head, Option<Origin>, u64),
        fault: Fault,
    ) {
        let reason = fault.reason.as_str();
        match origin {
            None => self.write_dead_letter(forwarder, head, dead_letter(forwarder, position, reason, fault.detail)),
            Some(origin) => {
                let outcome = ResendOutcome::Refused(dead_letter(forwarder, position, reason, fault.detail));
                forwarder.journal.finish_resend(&forwarder.name, origin, position, outcome);
                self.done(head);
            }
        }
    }

    fn set_aside_damaged(&mut self, forwarder: &Forwarder, head: Head, position: u64) {
        let detail = "the stored event does not match its checksum".into();
        let dead_letter = dead_letter(forwarder, position, Reason::Damaged.as_str(), detail);
        self.write_dead_letter(forwarder, head, dead_letter);
    }

    /// Only once the dead letter is durable may the rest of its key go on.
    fn write_dead_letter(&mut self, forwarder: &Forwarder, head: Head, dead_letter: DeadLetter) {
        let journal = forwarder.journal.clone();
        self.writes.push(Box::pin(async move {
            if journal.set_aside(dead_letter).await.is_err() {
                tracing::debug!("the journal is closed; an event is set aside after the next start");
            }
            head
        }));
    }

    /// Waits for the dead letters under way, which need no connection. Those that take longer go on with the next one.
    pub(super) async fn finish_writes(&mut self, limit: Duration) {
        let written = timeout(limit, async {
            while let Some(head) = self.writes.next().await {
                self.done(head);
            }
        });
        if written.await.is_err() {
            tracing::debug!(left = self.writes.len(), "dead letters are not durable yet");
        }
    }

    /// The sink is done with an event, and the next one of its key may go.
    pub(super) fn done(&mut self, head: Head) {
        self.queue.finish(head);
        if !self.ended_connections.is_empty() {
            self.ended_connections.remove(&head.place);
        }
        if !self.requested.is_empty() {
            self.requested.remove(&head.place);
        }
    }

    /// Asks what an operator wants to be set aside.
    pub(super) fn read_requests(&mut self, forwarder: &Forwarder) {
        let mut positions: HashSet<u64> = forwarder.journal.set_aside_requests(&forwarder.name).into_iter().collect();
        if positions.is_empty() {
            return;
        }
        let heads = self.queue.find(&positions);
        for position in heads.iter().filter_map(|head| head.place.position()) {
            positions.remove(&position);
        }
        self.requests.extend(heads);
        let missing: Vec<u64> = positions.into_iter().collect();
        forwarder.journal.decline_set_aside(&forwarder.name, &missing);
    }

    /// Sets aside what an operator wants, a bounded number at a time.
    pub(super) fn carry_out_requests(&mut self, forwarder: &Forwarder) {
        while self.writes.len() < WRITES {
            let Some(head) = self.requests.pop_front() else { return };
            let Some(position) = head.place.position() else { continue };
            if self.queue.seize(head) {
                self.targets.withdrawn(head.place, Instant::now());
                let (reason, detail) = BY_OPERATOR;
                let dead_letter = dead_letter(forwarder, position, reason, detail.into());
                self.write_dead_letter(forwarder, head, dead_letter);
            } else if self.queue.contains(head) {
                self.requested.insert(head.place);
            }
        }
    }

    /// Drops the resends that nobody wants any more.
    pub(super) fn drop_cancelled_resends(&mut self, forwarder: &Forwarder) {
        let resends = self.queue.all_resends();
        let cancelled = resends.filter(|(_, origin)| !forwarder.journal.is_wanted(origin)).map(|(head, _)| head);
        for head in cancelled.collect::<Vec<_>>() {
            if self.queue.seize(head) {
                self.targets.withdrawn(head.place, Instant::now());
                self.done(head);
            }
        }
    }
}

/// The event at this position, if it is among those that wait in order of position.
fn head_at(waiting: &[WaitingKey], position: u64) -> Option<Head> {
    let found = waiting.binary_search_by_key(&position, |waiting| waiting.position).ok()?;
    waiting.get(found).map(|waiting| Head::new(Place::live(position), waiting.key_hash))
}

fn read_each(
    journal: &Journal,
    sink: &str,
    reader: &mut Reader,
    unread: &[Unread],
) -> Result<Vec<(Head, Option<Row>)>, ReadError> {
    let (mut found, mut bytes, mut failed) = (Vec::with_capacity(unread.len()), 0, None);
    for Unread { head, position, origin } in unread {
        let row = match origin {
            None => reader.at(*position),
            Some(origin) => journal.resend_at(sink, *origin, *position, reader),
        };
        match row {
            Ok(row) => {
                if let Some(Row::Intact(record)) = &row {
                    bytes += record.payload.len();
                }
                found.push((*head, row));
            }
            Err(error) => failed = Some(error),
        }
        if bytes >= READ_AHEAD.bytes {
            break;
        }
    }
    match failed {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

fn dead_letter(forwarder: &Forwarder, position: u64, reason: &str, detail: String) -> DeadLetter {
    let (sink, at_ms) = (forwarder.name.clone(), forwarder.clock.now_ms());
    DeadLetter { sink, position, reason: reason.into(), detail, at_ms }
}

/// The pause of a whole sink after a failure that is about every event.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    failures: u32,
}

impl Pause {
    pub(super) fn failed(&mut self, now: &Moment) {
        // What was sent before the pause and fails in it says nothing new.
        if self.ends(now.at).is_none() {
            self.until = Some(now.at + BACKOFF.pause(self.failures, now.random));
            self.failures = self.failures.saturating_add(1);
        }
    }

    /// When the pause ends, if there is one.
    pub(super) fn ends(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }
}

/// For how long the sink has been connected, all connections together.
#[derive(Debug, Default)]
pub(super) struct ConnectedTime {
    before: Duration,
    since: Option<Instant>,
}

impl ConnectedTime {
    pub(super) fn set(&mut self, is_connected: bool, now: Instant) {
        if !is_connected {
            self.before = self.until(now);
            self.since = None;
        } else if self.since.is_none() {
            self.since = Some(now);
        }
    }

    pub(super) fn until(&self, now: Instant) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests;
