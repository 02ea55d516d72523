//! Operators' access to stuck events: listing them, and setting them aside.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::params;

use super::admin::{AdminError, CHUNK, JournalAdmin};
use super::reader::Reader;
use super::{DeadLetter, Record, Row, StuckEvent, dead_letters, progress, sqlite, stuck};
use crate::domain::kind;

/// How often a request is looked at while a running bridge carries it out.
const POLL: Duration = Duration::from_millis(100);

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

impl JournalAdmin {
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
    fn waiting_by_key(&self, sink: &str, reader: &mut Reader) -> Result<HashMap<u64, Vec<u64>>, AdminError> {
        let mut by_key = HashMap::<u64, Vec<u64>>::new();
        let progress = progress::load_progress(&self.connection, sink)?.unwrap_or_default();
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
        let mut dead_letters = BTreeMap::new();
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
            let Some(mut progress) = progress::load_progress(&self.connection, name)? else { continue };
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
                progress::store_progress(&transaction, name, &progress::ChangedProgress::of(&mut progress))?;
                transaction.commit()?;
            }
        }
        Ok(())
    }

    fn set_aside_there(&mut self, dead_letters: &[DeadLetter], patience: Duration) -> Result<(), AdminError> {
        self.write_each(dead_letters, |transaction, DeadLetter { sink, position, .. }| {
            let sql = "INSERT OR IGNORE INTO set_aside_requests (sink, position) VALUES (?1, ?2)";
            transaction.prepare_cached(sql)?.execute(params![sink, *position as i64])
        })?;
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
            let requested = sqlite::positions_of(&self.connection, "set_aside_requests", &sink[0].sink)?;
            let requested: BTreeSet<u64> = requested.into_iter().collect();
            left += sink.iter().filter(|dead_letter| requested.contains(&dead_letter.position)).count() as u64;
        }
        Ok(left)
    }
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
            && is(&self.kind, kind.map(kind::type_of))
            && self.id.is_none_or(|wanted| id == Some(wanted))
    }
}
