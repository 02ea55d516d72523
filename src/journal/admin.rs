//! What an operator does to a journal: from another process, beside a running bridge or on a stopped one's directory.
//!
//! It reads segments and writes only to the state file, in transactions short enough not to hold up the bridge. What a
//! running bridge has to do itself, such as setting a stuck event aside, is written down as a request; on a stopped
//! one's directory it is done here, under the directory's lock.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, Transaction, params};

use super::cancelled::{self, Request};
use super::chain::Chain;
use super::open::{find_chain, refuse_first_format};
use super::reader::Reader;
use super::{
    BackfillCandidate, DeadLetter, EngineError, Filter, OpenError, ReadError, ReplayStatus, Row, StoredDeadLetter,
    backfill, dead_letters, directory, inspect, progress, repair, replays, sqlite, state,
};

/// Rows written in one transaction.
pub(super) const CHUNK: usize = 500;

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
    /// What it has read and not published, and what it has not read yet, whether or not it wants it.
    pub pending: u64,
    /// Its stuck events.
    pub stuck: u64,
    /// Its dead letters.
    pub dead_letters: u64,
    /// Its requeued dead letters.
    pub requeued: u64,
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
        if sqlite::is_damage(&error) { Self::Damaged(error.to_string()) } else { Self::State(error.into()) }
    }
}

impl JournalAdmin {
    /// Opens the journal in `dir`, which must exist; a running bridge is not disturbed.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let state_file = dir.join(sqlite::FILE);
        if let Err(error) = std::fs::metadata(&state_file) {
            refuse_first_format(dir)?;
            return Err(OpenError::directory(&state_file)(error));
        }
        let (connection, damage) = match state::open_beside(dir) {
            Ok(connection) => (connection, None),
            Err(error) if state::is_damaged(dir, &error) => {
                let found = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                (repair::read_damaged(dir).map_err(OpenError::database(&state_file))?, Some(found))
            }
            Err(error) => return Err(error),
        };
        let (chain, _) = find(dir, &connection)?;
        Ok(Self { connection, damage, chain: Arc::new(chain), dir: dir.to_owned() })
    }

    /// Refuses to write to a damaged file.
    pub(super) fn writable(&mut self) -> Result<&mut Connection, AdminError> {
        match &self.damage {
            Some(damage) => Err(AdminError::Damaged(damage.clone())),
            None => Ok(&mut self.connection),
        }
    }

    /// Writes something for each of these, in transactions of [`CHUNK`]; returns how many rows that were.
    pub(super) fn write_each<T>(
        &mut self,
        all: &[T],
        mut write: impl FnMut(&Transaction<'_>, &T) -> rusqlite::Result<usize>,
    ) -> Result<usize, AdminError> {
        let mut written = 0;
        for chunk in all.chunks(CHUNK) {
            let transaction = self.writable()?.transaction()?;
            for one in chunk {
                written += write(&transaction, one)?;
            }
            transaction.commit()?;
        }
        Ok(written)
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
        Ok(progress::sink_names(&self.connection)?)
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
            Err(error) if sqlite::is_damage(&error) && self.damage.is_none() => {
                tracing::error!(%error, "the state file is damaged; listing the dead letters that can be read");
                Ok(select(&repair::read_damaged(&self.dir)?)?)
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
        self.write_each(dead_letters, |transaction, stored| {
            let DeadLetter { sink, position, .. } = &stored.dead_letter;
            if stored.event.is_none() || !sinks.contains(sink) {
                return Ok(0);
            }
            cancelled::delete(transaction, Request::Requeue, sink, *position)?;
            let sql = "INSERT OR IGNORE INTO resends (sink, position) VALUES (?1, ?2)";
            transaction.prepare_cached(sql)?.execute(params![sink, *position as i64])
        })
    }

    /// Deletes dead letters for good.
    ///
    /// # Errors
    /// When the state file cannot be written; what was deleted before stays deleted.
    pub fn discard(&mut self, dead_letters: &[StoredDeadLetter]) -> Result<usize, AdminError> {
        self.write_each(dead_letters, |transaction, stored| {
            let DeadLetter { sink, position, .. } = &stored.dead_letter;
            let sql = "DELETE FROM resends WHERE sink = ?1 AND position = ?2";
            if transaction.prepare_cached(sql)?.execute(params![sink, *position as i64])? > 0 {
                cancelled::insert(transaction, Request::Requeue, sink, *position, "it was discarded")?;
            }
            let deleted = dead_letters::delete(transaction, sink, *position)?;
            Ok(usize::try_from(-deleted.count).unwrap_or(0))
        })
    }

    // ---- stored events ---------------------------------------------------------------------------------------------

    /// The stored events after a position that a filter lets through, in order; `each` is called with a batch of rows at
    /// a time. Returns the last position that was looked at.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn select_after(
        &self,
        position: u64,
        filter: &Filter,
        mut each: impl FnMut(&[Row]),
    ) -> Result<u64, AdminError> {
        self.reader().all_after(position, filter, |rows| {
            each(&rows);
            Ok(())
        })
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
        Ok(replays::insert_replay(self.writable()?, &status, filter, until)?)
    }

    /// The replays under way, of one sink or of all.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn replays(&self, sink: Option<&str>) -> Result<Vec<ReplayStatus>, AdminError> {
        let replays = replays::load_replays(&self.connection)?.into_iter().map(|replay| replay.status);
        Ok(replays.filter(|replay| sink.is_none_or(|sink| replay.sink == sink)).collect())
    }

    /// The number of a replay under way of the same events to the same sink.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn same_replay(&self, sink: &str, filter: &Filter) -> Result<Option<u64>, AdminError> {
        Ok(replays::find_same(&self.connection, sink, filter)?)
    }

    /// Why a replay ended before all of it was published; `None` if it did not, or if that was before the last start.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn why_cancelled(&self, sink: &str, id: u64) -> Result<Option<String>, AdminError> {
        let cancelled = cancelled::of_sink(&self.connection, Request::Replay, sink)?;
        Ok(cancelled.into_iter().find(|(number, _)| *number == id).map(|(_, reason)| reason))
    }

    /// The positions of the requeued dead letters of a sink that wait to be published.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn requeued(&self, sink: &str) -> Result<Vec<u64>, AdminError> {
        Ok(sqlite::positions_of(&self.connection, "resends", sink)?)
    }

    /// The positions of the dead letters of a sink that were discarded while they waited to be published, since the last
    /// start.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub fn discarded_while_requeued(&self, sink: &str) -> Result<Vec<u64>, AdminError> {
        let cancelled = cancelled::of_sink(&self.connection, Request::Requeue, sink)?;
        Ok(cancelled.into_iter().map(|(position, _)| position).collect())
    }

    /// Whether a bridge runs on this journal.
    pub fn is_in_use(&self) -> bool {
        inspect::is_locked(&self.dir.join("lock"))
    }

    /// Cancels a replay: what is not published of it is not published. `false` if there is none of that number.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn cancel_replay(&mut self, id: u64) -> Result<bool, AdminError> {
        let transaction = self.writable()?.transaction()?;
        let was_cancelled = replays::cancel_replay(&transaction, id, "it was cancelled")?;
        transaction.commit()?;
        Ok(was_cancelled)
    }

    // ---- backfilling -----------------------------------------------------------------------------------------------

    /// Adds events that nobody delivered; of a fact that has a candidate already nothing is added. A running bridge
    /// stores them within seconds, a stopped one when it starts. Returns how many are new.
    ///
    /// # Errors
    /// When the state file cannot be written; what was added before stays so.
    pub fn add_candidates(&mut self, candidates: &[BackfillCandidate]) -> Result<usize, AdminError> {
        self.write_each(candidates, |transaction, candidate| backfill::insert(transaction, candidate))
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

    /// Reads the chain again: what has been appended since this was opened is seen then.
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
            let progress = progress::load_progress(&self.connection, &name)?.unwrap_or_default();
            sinks.push(SinkSummary {
                cursor: progress.cursor(),
                pending: progress.waiting.len() + self.after(&segments, progress.frontier),
                stuck: sqlite::count_of(&self.connection, "stuck", &name)?,
                dead_letters: sqlite::count_of(&self.connection, "dead_letters", &name)?,
                requeued: sqlite::count_of(&self.connection, "resends", &name)?,
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
    let found = find_chain(dir, connection, || progress::load_released(connection).unwrap_or_default())?;
    Ok((Chain::new(dir, found.segments, found.last, false), found.gaps))
}
