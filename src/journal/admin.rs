//! What an operator does to a journal: from another process, beside a running bridge or on a stopped one's directory.
//!
//! It reads segments and writes only to the state file, in transactions short enough not to hold up the bridge. What a
//! running bridge has to do itself, such as setting a stuck event aside, is written down as a request; on a stopped
//! one's directory it is done here, under the directory's lock.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use super::chain::{self, Chain, Released};
use super::dead_letters;
use super::reader::Reader;
use super::resends;
use super::{
    BackfillCandidate, DeadLetter, EngineError, Filter, Limits, OpenError, ReadError, Record, ReplayStatus, Row,
    StoredDeadLetter, StuckEvent, backfill, directory, state, stuck,
};

/// Rows written in one transaction.
const CHUNK: usize = 500;

/// How much is read at a time.
const LIMITS: Limits = Limits { rows: CHUNK, bytes: 8 * 1024 * 1024 };

/// How often a request is looked at while a running bridge carries it out.
const POLL: Duration = Duration::from_millis(100);

/// What a journal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The directory.
    pub dir: PathBuf,
    /// The oldest position kept; 0 when there is none.
    pub first_position: u64,
    /// The newest position; 0 when there is none.
    pub last_position: u64,
    /// How many events are kept.
    pub records: u64,
    /// How many files hold them.
    pub segments: u64,
    /// Acceptance of the oldest and of the newest event, in Unix milliseconds.
    pub accepted_ms: Option<(i64, i64)>,
    /// From this position on, and so from this acceptance on, every event is kept: nothing was released in between.
    pub complete_from: Option<(u64, i64)>,
    /// Bytes of segments and dead letters, as counted against `journal.max_bytes`.
    pub bytes: u64,
    /// Backfill candidates that the bridge has yet to store.
    pub candidates: u64,
    /// Each configured sink.
    pub sinks: Vec<SinkSummary>,
}

/// What a journal knows of a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkSummary {
    /// Its name.
    pub name: String,
    /// The position up to which it has dealt with everything.
    pub cursor: u64,
    /// Everything up to here has been read by it.
    pub frontier: u64,
    /// What of that it has not published, and what it has not read yet, whether or not it wants it.
    pub pending: u64,
    /// Its stuck events.
    pub stuck: u64,
    /// Its dead letters.
    pub dead_letters: u64,
    /// Its requeued dead letters.
    pub requeued: u64,
}

/// Which stuck events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StuckFilter {
    /// Only those of this sink.
    pub sink: Option<String>,
    /// Only those of this key.
    pub key: Option<String>,
    /// Only this event.
    pub id: Option<[u8; 16]>,
    /// Only those of this reason.
    pub reason: Option<String>,
    /// Only those of this kind.
    pub kind: Option<String>,
}

/// A stuck event with what the journal holds of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedStuckEvent {
    /// The sink.
    pub sink: String,
    /// Why it is stuck.
    pub stuck: StuckEvent,
    /// The event, where it can be read.
    pub event: Option<Record>,
    /// How many events of its key wait behind it.
    pub waiting_behind: u64,
}

/// Access to a journal's directory for commands.
pub struct JournalAdmin {
    pub(super) connection: Connection,
    /// Why the state file cannot be opened. What can be read of it is in memory then, and nothing is written.
    pub(super) damage: Option<String>,
    pub(super) chain: Arc<Chain>,
    pub(super) dir: PathBuf,
}

/// Why an operator's command fails.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The state file.
    #[error(transparent)]
    State(#[from] EngineError),
    /// A segment.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The directory.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A command that writes cannot: the state file is damaged.
    #[error("the journal's state file is damaged ({0}); the next start of the bridge repairs it")]
    Damaged(String),
    /// A replay for a sink that there is not.
    #[error("expected a configured sink, but found {0:?}")]
    UnknownSink(String),
    /// The bridge that owns the directory does not carry a request out.
    #[error(
        "the running bridge has set none of {left} events aside for {seconds} s; they stay requested, and it does so \
         when it can"
    )]
    NotCarriedOut {
        /// How many are left.
        left: u64,
        /// How long it has done none of it.
        seconds: u64,
    },
}

impl From<rusqlite::Error> for AdminError {
    fn from(error: rusqlite::Error) -> Self {
        if state::is_damage(&error) { Self::Damaged(error.to_string()) } else { Self::State(error.into()) }
    }
}

impl JournalAdmin {
    /// Opens the journal in `dir`, which must exist; a running bridge is not disturbed.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        if let Err(source) = std::fs::metadata(dir.join(state::FILE)) {
            super::open::refuse_first_format(dir)?;
            return Err(OpenError::Directory { path: dir.join(state::FILE), source });
        }
        let (connection, damage) = match state::open_beside(dir) {
            Ok(connection) => (connection, None),
            Err(error) if state::is_damaged(dir, &error) => {
                let found = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                let database = |source: rusqlite::Error| OpenError::Database {
                    path: dir.join(state::FILE),
                    source: source.into(),
                };
                (state::read_damaged(dir).map_err(database)?, Some(found))
            }
            Err(error) => return Err(error),
        };
        let (chain, _) = find(dir, &connection)?;
        Ok(Self { connection, damage, chain: Arc::new(chain), dir: dir.to_owned() })
    }

    /// Refuses to write to a damaged file.
    fn writable(&mut self) -> Result<&mut Connection, AdminError> {
        match &self.damage {
            Some(damage) => Err(AdminError::Damaged(damage.clone())),
            None => Ok(&mut self.connection),
        }
    }

    /// A reader of the events.
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.chain))
    }

    /// The sinks that the bridge has, or had when it ran last.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn sinks(&self) -> Result<Vec<String>, AdminError> {
        Ok(state::sink_names(&self.connection)?)
    }

    /// Takes the directory's lock, if no bridge runs on it.
    pub(super) fn lock(&self) -> Result<Option<File>, OpenError> {
        match directory::lock(&self.dir) {
            Ok(lock) => Ok(Some(lock)),
            Err(OpenError::InUse { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    // ---- dead letters ----------------------------------------------------------------------------------------------

    /// The dead letters in order of sink and position. Of a damaged state file, those that can be read.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn dead_letters(&self, sink: Option<&str>, id: Option<&[u8; 16]>) -> Result<Vec<StoredDeadLetter>, AdminError> {
        let select = |connection: &Connection| dead_letters::select(connection, sink, id);
        match select(&self.connection) {
            Err(error) if state::is_damage(&error) && self.damage.is_none() => {
                tracing::error!(%error, "the state file is damaged; listing the dead letters that can be read");
                Ok(select(&state::read_damaged(&self.dir)?)?)
            }
            selected => Ok(selected?),
        }
    }

    /// Puts dead letters into the queue of what is published once more; those in it already stay once. They remain dead
    /// letters until a broker has them. Those whose event is damaged, and those of a sink that is not configured, are
    /// left out. Returns how many are new in the queue.
    ///
    /// # Errors
    /// When the state file cannot be written; what was queued before stays queued.
    pub fn requeue(&mut self, dead_letters: &[StoredDeadLetter]) -> Result<usize, AdminError> {
        let sinks = self.sinks()?;
        let mut queued = 0;
        for chunk in dead_letters.chunks(CHUNK) {
            let transaction = self.writable()?.transaction()?;
            let usable =
                |stored: &&StoredDeadLetter| stored.event.is_some() && sinks.contains(&stored.dead_letter.sink);
            for DeadLetter { sink, position, .. } in chunk.iter().filter(usable).map(|stored| &stored.dead_letter) {
                let sql = "INSERT OR IGNORE INTO resends (sink, position) VALUES (?1, ?2)";
                queued += transaction.prepare_cached(sql)?.execute(params![sink, *position as i64])?;
            }
            transaction.commit()?;
        }
        Ok(queued)
    }

    /// Deletes dead letters for good.
    ///
    /// # Errors
    /// When the state file cannot be written; what was deleted before stays deleted.
    pub fn discard(&mut self, dead_letters: &[StoredDeadLetter]) -> Result<usize, AdminError> {
        let mut discarded = 0;
        for chunk in dead_letters.chunks(CHUNK) {
            let transaction = self.writable()?.transaction()?;
            for DeadLetter { sink, position, .. } in chunk.iter().map(|stored| &stored.dead_letter) {
                let sql = "DELETE FROM resends WHERE sink = ?1 AND position = ?2";
                transaction.prepare_cached(sql)?.execute(params![sink, *position as i64])?;
                let deleted = dead_letters::delete(&transaction, sink, *position)?;
                discarded += usize::try_from(-deleted.count).unwrap_or(0);
            }
            transaction.commit()?;
        }
        Ok(discarded)
    }

    // ---- stored events ---------------------------------------------------------------------------------------------

    /// The stored events after a position that a filter lets through, in order; `each` is called with a batch of rows at
    /// a time. Returns the last position that was looked at.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn select_after(
        &self,
        mut position: u64,
        filter: &Filter,
        mut each: impl FnMut(&[Row]),
    ) -> Result<u64, AdminError> {
        let mut reader = self.reader();
        loop {
            let batch = reader.after(position, LIMITS, filter)?;
            if batch.through == position {
                return Ok(position);
            }
            position = batch.through;
            each(&batch.rows);
        }
    }

    /// How many events a replay of this filter would publish, and how many of them are damaged.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn count(&self, filter: &Filter) -> Result<(u64, u64), AdminError> {
        let (mut intact, mut damaged) = (0, 0);
        self.select_after(0, filter, |rows| {
            for row in rows {
                *(if matches!(row, Row::Intact(_)) { &mut intact } else { &mut damaged }) += 1;
            }
        })?;
        Ok((intact, damaged))
    }

    // ---- replays ---------------------------------------------------------------------------------------------------

    /// Asks for stored events to be published once more to a sink, marked as replays: `total` of them, as
    /// [`JournalAdmin::count`] says, `rate` a second at most, or as fast as the broker takes them.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn replay(
        &mut self,
        sink: &str,
        filter: &Filter,
        total: u64,
        rate: Option<u32>,
        now_ms: i64,
    ) -> Result<u64, AdminError> {
        if !self.sinks()?.iter().any(|known| known == sink) {
            return Err(AdminError::UnknownSink(sink.to_owned()));
        }
        let (until, status) = (
            self.chain.last(),
            ReplayStatus { id: 0, sink: sink.to_owned(), created_ms: now_ms, total, done: 0, rate },
        );
        Ok(resends::insert_replay(self.writable()?, &status, filter, until)?)
    }

    /// The replays under way, of one sink or of all.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn replays(&self, sink: Option<&str>) -> Result<Vec<ReplayStatus>, AdminError> {
        let replays = resends::load_replays(&self.connection)?.into_iter().map(|replay| replay.status);
        Ok(replays.filter(|replay| sink.is_none_or(|sink| replay.sink == sink)).collect())
    }

    /// Cancels a replay: what is not published of it is not published. `false` if there is none of that number.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn cancel_replay(&mut self, id: u64) -> Result<bool, AdminError> {
        Ok(resends::delete_replay(self.writable()?, id)?)
    }

    // ---- stuck events ----------------------------------------------------------------------------------------------

    /// The stuck events, in order of sink and position, at most `limit`.
    ///
    /// # Errors
    /// When the state file or a segment cannot be read.
    pub fn stuck(&self, filter: &StuckFilter, limit: usize) -> Result<Vec<ListedStuckEvent>, AdminError> {
        let mut listed = Vec::new();
        self.for_each_stuck(filter, |event| {
            listed.push(event);
            listed.len() < limit
        })?;
        listed.truncate(limit);
        Ok(listed)
    }

    /// Calls `each` with the stuck events in order of sink and position, for as long as it returns `true`. Of the
    /// events themselves one at a time is in memory: many may be stuck.
    ///
    /// # Errors
    /// When the state file or a segment cannot be read.
    pub fn for_each_stuck(
        &self,
        filter: &StuckFilter,
        mut each: impl FnMut(ListedStuckEvent) -> bool,
    ) -> Result<(), AdminError> {
        let mut reader = self.reader();
        for sink in self.sinks()?.into_iter().filter(|sink| filter.sink.as_ref().is_none_or(|wanted| wanted == sink)) {
            let stuck = stuck::list(&self.connection, &sink)?;
            if stuck.is_empty() {
                continue;
            }
            let behind = self.waiting_by_key(&sink, &mut reader)?;
            for stuck in stuck {
                let Some(row) = reader.at(stuck.position)? else { continue };
                if !filter.lets_through(&stuck, &row) {
                    continue;
                }
                let key_hash = match &row {
                    Row::Intact(record) => Some(record.key_hash),
                    Row::Damaged { key_hash, .. } => *key_hash,
                };
                let waiting = key_hash.and_then(|hash| behind.get(&hash)).map_or(&[][..], Vec::as_slice);
                let before = waiting.partition_point(|position| *position <= stuck.position);
                let waiting_behind = (waiting.len() - before) as u64;
                let event = if let Row::Intact(record) = row { Some(record) } else { None };
                if !each(ListedStuckEvent { sink: sink.clone(), stuck, event, waiting_behind }) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The waiting positions of a sink by the hash of their key.
    fn waiting_by_key(
        &self,
        sink: &str,
        reader: &mut Reader,
    ) -> Result<std::collections::HashMap<u64, Vec<u64>>, AdminError> {
        let mut by_key = std::collections::HashMap::<u64, Vec<u64>>::new();
        let progress = state::load_progress(&self.connection, sink)?.unwrap_or_default();
        for position in progress.waiting.iter() {
            if let Some(entry) = reader.entry(position)? {
                by_key.entry(entry.key_hash).or_default().push(position);
            }
        }
        Ok(by_key)
    }

    /// Makes dead letters of stuck events, so that the rest of their keys goes on; with `and_waiting` also of the events
    /// of the key that wait behind. A running bridge does it, and is waited for; on a stopped one's directory it is done
    /// here. Returns how many events became dead letters, and how many were published meanwhile.
    ///
    /// # Errors
    /// [`AdminError::NotCarriedOut`] when a running bridge does nothing of it for `patience`, and what is wrong with a
    /// file.
    pub fn set_aside(
        &mut self,
        events: &[ListedStuckEvent],
        and_waiting: bool,
        now_ms: i64,
        patience: Duration,
    ) -> Result<(u64, u64), AdminError> {
        self.writable()?;
        let dead_letters = self.to_set_aside(events, and_waiting, now_ms)?;
        let before = self.count_dead_letters(&dead_letters)?;
        match self.lock()? {
            Some(_lock) => self.set_aside_here(&dead_letters)?,
            None => self.set_aside_there(&dead_letters, patience)?,
        }
        let set_aside = self.count_dead_letters(&dead_letters)?.saturating_sub(before);
        Ok((set_aside, (dead_letters.len() as u64).saturating_sub(set_aside)))
    }

    fn to_set_aside(
        &self,
        events: &[ListedStuckEvent],
        and_waiting: bool,
        at_ms: i64,
    ) -> Result<Vec<DeadLetter>, AdminError> {
        let mut dead_letters = std::collections::BTreeMap::new();
        let mut reader = self.reader();
        for sink in self.sinks()? {
            let behind = if and_waiting { self.waiting_by_key(&sink, &mut reader)? } else { Default::default() };
            for ListedStuckEvent { stuck, event, .. } in events.iter().filter(|event| event.sink == sink) {
                let position = &stuck.position;
                let waiting = event.as_ref().and_then(|event| behind.get(&event.key_hash));
                let behind = waiting.into_iter().flatten().copied().filter(|behind| behind > position);
                for position in std::iter::once(*position).chain(behind) {
                    let (reason, detail) = (dead_letters::SET_ASIDE.to_owned(), "set aside by an operator".to_owned());
                    let dead_letter = DeadLetter { sink: sink.clone(), position, reason, detail, at_ms };
                    dead_letters.entry((sink.clone(), position)).or_insert(dead_letter);
                }
            }
        }
        Ok(dead_letters.into_values().collect())
    }

    fn count_dead_letters(&self, dead_letters: &[DeadLetter]) -> Result<u64, AdminError> {
        let sql = "SELECT count(*) FROM dead_letters WHERE sink = ?1 AND position = ?2";
        let mut count = 0;
        for DeadLetter { sink, position, .. } in dead_letters {
            let mut statement = self.connection.prepare_cached(sql)?;
            count += statement.query_row(params![sink, *position as i64], |row| row.get::<_, i64>(0))? as u64;
        }
        Ok(count)
    }

    fn set_aside_here(&mut self, dead_letters: &[DeadLetter]) -> Result<(), AdminError> {
        let mut reader = self.reader();
        for sink in dead_letters.chunk_by(|a, b| a.sink == b.sink) {
            let name = &sink[0].sink;
            let Some(mut progress) = state::load_progress(&self.connection, name)? else { continue };
            for chunk in sink.chunks(CHUNK) {
                let mut rows = Vec::with_capacity(chunk.len());
                // What was published meanwhile stays so.
                for dead_letter in chunk.iter().filter(|dead_letter| progress.waiting.contains(dead_letter.position)) {
                    rows.push((dead_letter, reader.at(dead_letter.position)?));
                }
                let transaction = self.connection.transaction()?;
                for (dead_letter, row) in rows {
                    progress.waiting.remove(dead_letter.position);
                    let dead_letter = dead_letters::with_reason(&transaction, dead_letter)?;
                    dead_letters::insert(&transaction, &dead_letter, row.as_ref())?;
                    stuck::forget(&transaction, name, dead_letter.position)?;
                }
                state::store_progress(&transaction, name, &state::ChangedProgress::of(&mut progress))?;
                transaction.commit()?;
            }
        }
        Ok(())
    }

    fn set_aside_there(&mut self, dead_letters: &[DeadLetter], patience: Duration) -> Result<(), AdminError> {
        for chunk in dead_letters.chunks(CHUNK) {
            let transaction = self.connection.transaction()?;
            for DeadLetter { sink, position, .. } in chunk {
                let sql = "INSERT OR IGNORE INTO set_aside_requests (sink, position) VALUES (?1, ?2)";
                transaction.prepare_cached(sql)?.execute(params![sink, *position as i64])?;
            }
            transaction.commit()?;
        }
        let (mut fewest, mut until) = (u64::MAX, Instant::now() + patience);
        loop {
            let left = self.count_requests(dead_letters)?;
            if left == 0 {
                return Ok(());
            }
            if left < fewest {
                (fewest, until) = (left, Instant::now() + patience);
            } else if Instant::now() >= until {
                return Err(AdminError::NotCarriedOut { left, seconds: patience.as_secs() });
            }
            thread::sleep(POLL);
        }
    }

    /// How many of these are still requested.
    fn count_requests(&self, dead_letters: &[DeadLetter]) -> Result<u64, AdminError> {
        let mut left = 0;
        for sink in dead_letters.chunk_by(|a, b| a.sink == b.sink) {
            let requested: BTreeSet<u64> = stuck::requests(&self.connection, &sink[0].sink)?.into_iter().collect();
            left += sink.iter().filter(|dead_letter| requested.contains(&dead_letter.position)).count() as u64;
        }
        Ok(left)
    }

    // ---- backfilling -----------------------------------------------------------------------------------------------

    /// Adds events that nobody delivered; of a fact that has a candidate already nothing is added. A running bridge
    /// stores them within seconds, a stopped one when it starts. Returns how many are new.
    ///
    /// # Errors
    /// When the state file cannot be written; what was added before stays so.
    pub fn add_candidates(&mut self, candidates: &[BackfillCandidate]) -> Result<usize, AdminError> {
        Ok(backfill::insert(self.writable()?, candidates)?)
    }

    /// How many candidates wait.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn waiting_candidates(&self) -> Result<u64, AdminError> {
        Ok(backfill::count(&self.connection)?)
    }

    /// The facts of the candidates that wait. To be asked for before the events are read: what is stored meanwhile is
    /// then in one of the two.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn candidate_facts(&self) -> Result<Vec<[u8; 16]>, AdminError> {
        Ok(backfill::facts(&self.connection)?)
    }

    /// Reads the chain anew: what has been appended since this was opened is seen then.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn refresh(&mut self) -> Result<(), AdminError> {
        self.chain = Arc::new(find(&self.dir, &self.connection)?.0);
        Ok(())
    }

    // ---- figures ---------------------------------------------------------------------------------------------------

    /// What the journal holds.
    ///
    /// # Errors
    /// When the state file or a segment cannot be read.
    pub fn summary(&self) -> Result<Summary, AdminError> {
        let segments = self.chain.segments();
        let (first_position, last_position) = (self.chain.first(), self.chain.last());
        let mut reader = self.reader();
        let mut accepted = |position: u64| reader.entry(position).map(|entry| entry.map(|entry| entry.accepted_ms));
        let accepted_ms = accepted(first_position)?.zip(accepted(last_position)?);
        let complete = self.complete_from(&segments);
        let complete_from = match complete {
            Some(position) => accepted(position)?.map(|at_ms| (position, at_ms)),
            None => None,
        };
        let mut sinks = Vec::new();
        for name in self.sinks()? {
            let progress = state::load_progress(&self.connection, &name)?.unwrap_or_default();
            sinks.push(SinkSummary {
                cursor: progress.cursor(),
                frontier: progress.frontier,
                pending: progress.waiting.len() + self.after(&segments, progress.frontier),
                stuck: stuck::count(&self.connection, &name)?,
                dead_letters: dead_letters::count(&self.connection, &name)?,
                requeued: resends::count(&self.connection, &name)?,
                name,
            });
        }
        Ok(Summary {
            dir: self.dir.clone(),
            first_position,
            last_position,
            records: segments.iter().map(|segment| segment.count()).sum(),
            segments: segments.len() as u64,
            accepted_ms,
            complete_from,
            bytes: segments.iter().map(|segment| segment.bytes()).sum::<u64>() + dead_letters::bytes(&self.connection)?,
            candidates: self.waiting_candidates()?,
            sinks,
        })
    }

    /// How many events are kept after a position.
    fn after(&self, segments: &[Arc<super::segment::Segment>], position: u64) -> u64 {
        let count = |segment: &Arc<super::segment::Segment>| match segment.span() {
            (first, _) if first > position => segment.count(),
            (_, last) if last <= position => 0,
            _ => segment.load().map_or(0, |(index, _)| (index.entries.len() - index.after(position)) as u64),
        };
        segments.iter().map(count).sum()
    }

    /// The first position behind which nothing was released.
    fn complete_from(&self, segments: &[Arc<super::segment::Segment>]) -> Option<u64> {
        let mut complete = None;
        let mut expected = self.chain.last() + 1;
        for segment in segments.iter().rev().filter(|segment| segment.count() > 0) {
            let (first, last) = segment.span();
            if segment.name.generation > 0 || last + 1 != expected {
                break;
            }
            (complete, expected) = (Some(first), first);
        }
        complete
    }
}

/// The chain as a directory holds it now, and the runs of positions that are missing.
pub(super) fn find(dir: &Path, connection: &Connection) -> Result<(Chain, Vec<(u64, u64)>), OpenError> {
    let proof = state::load_proof(connection).unwrap_or_default();
    let released = state::load_released(connection).map(|ranges| Released { ranges, is_complete: true });
    let found = chain::find(dir, |name| state::proof_of(name, proof), &released.unwrap_or_default())
        .map_err(|source| super::open::unreadable(dir, source))?;
    Ok((Chain::new(dir, found.segments, found.last, false), found.gaps))
}

impl StuckFilter {
    fn lets_through(&self, stuck: &StuckEvent, row: &Row) -> bool {
        let is =
            |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|wanted| found == Some(wanted));
        let (id, key, kind) = match row {
            Row::Intact(record) => (Some(record.id), Some(record.key.as_str()), Some(record.kind.as_str())),
            Row::Damaged { id, kind, .. } => (*id, None, kind.as_deref()),
        };
        is(&self.reason, Some(&stuck.reason))
            && is(&self.key, key)
            && is(&self.kind, kind)
            && self.id.is_none_or(|wanted| id == Some(wanted))
    }
}
