//! Events that nobody delivered: a command adds candidates, the writer stores those that no record tells of.
//!
//! What it promises: of a fact there is one event. A candidate waits in its table, one a fact, until the writer has read
//! every event stored since whoever added it has read them; only then is it stored. Where that can no longer be said for
//! certain, it is dropped, and the log says so. A delivery that comes late, within the deduplication window, is
//! recognised by its fact. What a fact is, the [`Hook`] says: here it is sixteen bytes.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, Row as SqlRow, params};

use super::reader::{Filter, Limits, ReadError, Reader};
use super::record::Row;
use super::{Appended, Entry, sqlite};
use crate::domain::dedup::Window;

/// Candidates stored at a time, so that no commit waits long behind them.
const BATCH: usize = 128;

/// Events read at a time.
const SCAN: Limits = Limits { rows: 2_000, bytes: 8 * 1024 * 1024 };

/// Facts remembered while candidates wait; past that they are dropped, and must be found again.
const MOST_FACTS: usize = 1_000_000;

/// What the journal has to know about events to backfill them.
pub struct Hook {
    /// The fact that a stored event states, if a fact is stated only once.
    pub fact_of: fn(&[u8]) -> Option<[u8; 16]>,
    /// Called by the writer with the kind of each candidate that it has stored; must be quick.
    pub on_stored: Box<dyn Fn(&str) + Send>,
}

/// An event that nobody delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackfillCandidate {
    /// What it tells of: first exactly, then ever less exactly. A stored event that tells of any of them is the same.
    pub facts: Vec<[u8; 16]>,
    /// Up to this position no event tells of it; whoever adds the candidate has read them.
    pub through: u64,
    /// What it is recognised by.
    pub id: [u8; 16],
    /// What order is kept by.
    pub key: String,
    /// The event's type.
    pub kind: String,
    /// What is stored.
    pub payload: Vec<u8>,
}

/// `vague` holds the facts after the first; the checksum is over all columns but the number. `backfilled` are the facts of those that were stored, for as long as a late
/// delivery is recognised.
pub(super) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS backfill_candidates (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        fact        BLOB    NOT NULL UNIQUE,
        vague       BLOB    NOT NULL,
        through     INTEGER NOT NULL,
        id          BLOB    NOT NULL,
        key         TEXT    NOT NULL,
        kind        TEXT    NOT NULL,
        payload     BLOB    NOT NULL,
        crc         INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS backfilled (
        fact        BLOB    PRIMARY KEY,
        key         TEXT    NOT NULL,
        at_ms       INTEGER NOT NULL,
        position    INTEGER NOT NULL,
        id          BLOB    NOT NULL
    ) STRICT;
";

/// A candidate that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backfilled {
    pub(super) fact: [u8; 16],
    pub(super) key: String,
    pub(super) at_ms: i64,
    pub(super) position: u64,
    pub(super) id: [u8; 16],
}

/// A candidate that waits no more: its number, and what was stored, if it was.
pub(super) type Outcome = (i64, Option<Backfilled>);

/// What the writer knows of candidates and of those that were stored.
#[derive(Default)]
pub(super) struct Backfill {
    /// The facts of the events after a position, and the ids of those events; `None` before the first look.
    seen: Option<SeenFacts>,
    /// Candidates that are dealt with, until that is durable.
    in_hand: HashSet<i64>,
    /// Stored candidates by fact, and how many of them each key has.
    stored: HashMap<[u8; 16], Backfilled>,
    keys: HashMap<String, usize>,
}

struct SeenFacts {
    from: u64,
    through: u64,
    facts: HashMap<[u8; 16], ([u8; 16], u64)>,
    /// Whether an event in between is no longer kept, or damaged.
    incomplete: bool,
}

/// What is to be done with the candidates that wait.
#[derive(Default)]
pub(super) struct Plan {
    /// To be stored, with the number of the candidate.
    pub(super) entries: Vec<(i64, [u8; 16], Entry)>,
    /// Known already.
    pub(super) outcomes: Vec<Outcome>,
    /// Whether more is to be done soon.
    pub(super) more: bool,
}

impl Backfill {
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut backfill = Self::default();
        let sql = "SELECT fact, key, at_ms, position, id FROM backfilled";
        let row = |row: &SqlRow<'_>| {
            Ok(Backfilled {
                fact: row.get(0)?,
                key: row.get(1)?,
                at_ms: row.get(2)?,
                position: row.get::<_, i64>(3)? as u64,
                id: row.get(4)?,
            })
        };
        for stored in connection.prepare(sql)?.query_map([], row)? {
            if let Some(stored) = sqlite::readable(stored)? {
                backfill.add(stored);
            }
        }
        Ok(backfill)
    }

    /// Candidates that were stored, though a kill came before that was written down: a delivery that comes now must be
    /// recognised by them.
    pub(super) fn find_stored(
        &mut self,
        connection: &Connection,
        window: &Window,
        now_ms: i64,
    ) -> rusqlite::Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        let row = |row: &SqlRow<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
        let sql = "SELECT seq, fact, key, id FROM backfill_candidates";
        for candidate in connection.prepare(sql)?.query_map([], row)? {
            let Some((seq, fact, key, id)) = sqlite::readable(candidate)? else { continue };
            if let Some(position) = window.get(&id) {
                let stored = Backfilled { fact, key, at_ms: now_ms, position, id };
                self.add(stored.clone());
                self.in_hand.insert(seq);
                outcomes.push((seq, Some(stored)));
            }
        }
        Ok(outcomes)
    }

    pub(super) fn add(&mut self, stored: Backfilled) {
        let key = stored.key.clone();
        if self.stored.insert(stored.fact, stored).is_none_or(|before| before.key != key) {
            *self.keys.entry(key).or_default() += 1;
        }
    }

    /// The event that was backfilled for what this delivery tells. Costs nothing where none was.
    pub(super) fn known(&self, entry: &Entry, hook: &Hook, after_ms: i64) -> Option<Appended> {
        if self.keys.is_empty() || !self.keys.contains_key(&entry.key) {
            return None;
        }
        let stored = self.stored.get(&(hook.fact_of)(&entry.payload)?)?;
        (stored.key == entry.key && stored.at_ms > after_ms)
            .then_some(Appended::Backfilled { position: stored.position, id: stored.id })
    }

    /// Forgets facts that have left the window; says whether there were any.
    pub(super) fn forget(&mut self, before_ms: i64) -> bool {
        let count = self.stored.len();
        self.stored.retain(|_, stored| stored.at_ms > before_ms);
        if self.stored.len() < count {
            self.keys.clear();
            for stored in self.stored.values() {
                *self.keys.entry(stored.key.clone()).or_default() += 1;
            }
        }
        self.stored.len() < count
    }

    /// What is written down of these candidates is durable.
    pub(super) fn release(&mut self, seqs: &[i64]) {
        for seq in seqs {
            self.in_hand.remove(seq);
        }
    }

    /// Decides about the candidates that wait. Reads a little further at each call; nothing waits while it does.
    pub(super) fn plan(
        &mut self,
        connection: &Connection,
        reader: &mut Reader,
        hook: &Hook,
        now_ms: i64,
    ) -> Result<Plan, PlanError> {
        let (candidates, damaged) = waiting(connection)?;
        let damaged: Vec<_> = damaged.into_iter().filter(|seq| self.in_hand.insert(*seq)).collect();
        if !damaged.is_empty() {
            tracing::error!(dropped = damaged.len(), "damaged backfill candidates dropped; run reconcile again");
            let outcomes = damaged.into_iter().map(|seq| (seq, None)).collect();
            return Ok(Plan { outcomes, more: true, ..Plan::default() });
        }
        let candidates: Vec<_> = candidates.into_iter().filter(|(seq, _)| !self.in_hand.contains(seq)).collect();
        let Some(from) = candidates.iter().map(|(_, candidate)| candidate.through).min() else {
            // What was seen is of use for the candidates behind those in hand.
            if self.in_hand.is_empty() {
                self.seen = None;
            }
            return Ok(Plan { more: !self.in_hand.is_empty(), ..Plan::default() });
        };
        if self.seen.as_ref().is_some_and(|seen| seen.from > from) {
            self.seen = None;
        }
        let seen = self.seen.get_or_insert_with(|| SeenFacts {
            from,
            through: from,
            facts: HashMap::new(),
            incomplete: false,
        });
        let last = reader.ends().1;
        seen.read_on(reader, hook)?;
        if seen.incomplete || seen.facts.len() > MOST_FACTS {
            let through = seen.through;
            self.seen = None;
            let dropped = candidates.iter().filter(|(_, candidate)| candidate.through < through);
            let outcomes: Vec<_> = dropped.map(|(seq, _)| (*seq, None)).collect();
            tracing::warn!(
                dropped = outcomes.len(),
                "backfill candidates dropped: events stored since they were found are no longer kept; run reconcile again"
            );
            self.in_hand.extend(outcomes.iter().map(|(seq, _)| *seq));
            return Ok(Plan { outcomes, more: true, ..Plan::default() });
        }
        if seen.through < last {
            return Ok(Plan { more: true, ..Plan::default() });
        }
        let mut plan = Plan { more: candidates.len() == BATCH, ..Plan::default() };
        for (seq, candidate) in candidates {
            plan.decide(seq, candidate, &seen.facts, now_ms);
        }
        self.in_hand.extend(plan.outcomes.iter().map(|(seq, _)| *seq));
        self.in_hand.extend(plan.entries.iter().map(|(seq, ..)| *seq));
        Ok(plan)
    }
}

impl Plan {
    fn decide(
        &mut self,
        seq: i64,
        candidate: BackfillCandidate,
        seen: &HashMap<[u8; 16], ([u8; 16], u64)>,
        now_ms: i64,
    ) {
        let BackfillCandidate { facts, id, key, kind, payload, .. } = candidate;
        let Some(fact) = facts.first().copied() else { return self.outcomes.push((seq, None)) };
        match facts.iter().find_map(|fact| seen.get(fact)) {
            // A kill came between the event and its row.
            Some((stored_id, position)) if *stored_id == id => {
                self.outcomes.push((seq, Some(Backfilled { fact, key, at_ms: now_ms, position: *position, id })));
            }
            Some(_) => self.outcomes.push((seq, None)),
            None => self.entries.push((seq, fact, Entry { id, key, kind, accepted_ms: now_ms, payload })),
        }
    }
}

impl SeenFacts {
    fn read_on(&mut self, reader: &mut Reader, hook: &Hook) -> Result<(), ReadError> {
        let batch = reader.after(self.through, SCAN, &Filter::default())?;
        let mut expected = self.through + 1;
        for row in &batch.rows {
            self.incomplete |= row.position() != expected;
            expected = row.position() + 1;
            match row {
                Row::Intact(record) => {
                    let fact = (hook.fact_of)(&record.payload);
                    self.facts.extend(fact.map(|fact| (fact, (record.id, record.position))));
                }
                Row::Damaged { .. } => self.incomplete = true,
            }
        }
        self.incomplete |= expected != batch.through + 1;
        self.through = batch.through;
        Ok(())
    }
}

/// Why no plan can be made now.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    #[error(transparent)]
    Engine(#[from] rusqlite::Error),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A candidate and its number.
type Numbered = (i64, BackfillCandidate);

/// The first candidates, and the numbers of those that are damaged.
fn waiting(connection: &Connection) -> rusqlite::Result<(Vec<Numbered>, Vec<i64>)> {
    let sql =
        "SELECT seq, fact, vague, through, id, key, kind, payload, crc FROM backfill_candidates ORDER BY seq LIMIT ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([BATCH as i64])?;
    let (mut candidates, mut damaged) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        match sqlite::readable(candidate(row))?.flatten() {
            Some(candidate) => candidates.push((seq, candidate)),
            None => damaged.push(seq),
        }
    }
    Ok((candidates, damaged))
}

fn candidate(row: &SqlRow<'_>) -> rusqlite::Result<Option<BackfillCandidate>> {
    let vague: Vec<u8> = row.get(2)?;
    let facts = std::iter::once(row.get(1)).chain(vague.as_chunks().0.iter().copied().map(Ok));
    let candidate = BackfillCandidate {
        facts: facts.collect::<rusqlite::Result<_>>()?,
        through: row.get::<_, i64>(3)? as u64,
        id: row.get(4)?,
        key: row.get(5)?,
        kind: row.get(6)?,
        payload: row.get(7)?,
    };
    Ok((row.get::<_, i64>(8)? == i64::from(candidate.checksum())).then_some(candidate))
}

impl BackfillCandidate {
    fn checksum(&self) -> u32 {
        let Self { facts, through, id, key, kind, payload } = self;
        sqlite::crc(&[&facts.concat(), &through.to_le_bytes(), id, key.as_bytes(), kind.as_bytes(), payload])
    }
}

/// Writes down what became of candidates.
pub(super) fn store(connection: &Connection, outcomes: &[Outcome]) -> rusqlite::Result<()> {
    for (seq, stored) in outcomes {
        if let Some(Backfilled { fact, key, at_ms, position, id }) = stored {
            let sql = "INSERT OR REPLACE INTO backfilled (fact, key, at_ms, position, id) VALUES (?1, ?2, ?3, ?4, ?5)";
            connection.prepare_cached(sql)?.execute(params![fact, key, at_ms, *position as i64, id])?;
        }
        connection.prepare_cached("DELETE FROM backfill_candidates WHERE seq = ?1")?.execute([seq])?;
    }
    Ok(())
}

/// Deletes the facts that have left the window.
pub(super) fn delete_before(connection: &Connection, before_ms: i64) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM backfilled WHERE at_ms <= ?1")?.execute([before_ms]).map(drop)
}

/// Adds a candidate, unless its fact has one already; returns how many that makes.
pub(super) fn insert(connection: &Connection, candidate: &BackfillCandidate) -> rusqlite::Result<usize> {
    let BackfillCandidate { facts, through, id, key, kind, payload } = candidate;
    let Some((fact, vague)) = facts.split_first() else { return Ok(0) };
    let sql = "INSERT OR IGNORE INTO backfill_candidates (fact, vague, through, id, key, kind, payload, crc)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let values = params![fact, vague.concat(), *through as i64, id, key, kind, payload, candidate.checksum()];
    connection.prepare_cached(sql)?.execute(values)
}

/// How many candidates wait.
pub(super) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .query_row("SELECT count(*) FROM backfill_candidates", [], |row| row.get::<_, i64>(0))
        .map(|count| count as u64)
}

/// The facts of the candidates that wait.
pub(super) fn facts(connection: &Connection) -> rusqlite::Result<Vec<[u8; 16]>> {
    let mut statement = connection.prepare("SELECT fact FROM backfill_candidates")?;
    statement.query_map([], |row| row.get(0))?.filter_map(|fact| sqlite::readable(fact).transpose()).collect()
}
