//! Events that nobody delivered: an operator's command offers them, the writer takes them in.
//!
//! What it promises: of a fact there is one event. An offer waits in its table, one a fact, until the writer has looked
//! through every record since whoever offers has looked himself; only then does it become a record, in the same commit
//! that takes it out of the table. Where that can't be vouched for any more, it is dropped, and says so in the log. A
//! delivery that comes late, within the window, is known by its fact. What a fact is, others say
//! ([`Options::fact_of`]): here it is sixteen bytes.

use std::collections::HashSet;

use rusqlite::{Connection, Row, params};
use tokio::sync::oneshot;

use super::commit::{Adder, Stored};
use super::desk::CHUNK;
use super::log::Log;
use super::{AppendError, Appended, Desk, EngineError, Entry, Options, Shared, schema};

/// Offers taken in by one transaction, so that no commit waits long behind it.
const BATCH: usize = 128;

/// Records looked through at a time.
const SCAN: usize = 2_000;

/// Facts remembered of them; past that, offers that wait are dropped, and must be made anew.
const MOST_FACTS: usize = 1_000_000;

/// An event that nobody delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What it tells of: first exactly, then ever less exactly. A record that tells of any of them is in its way.
    pub facts: Vec<[u8; 16]>,
    /// Up to this position the records do not tell of it; whoever offers has looked.
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

/// What a transaction has taken in.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) stored: Vec<Stored>,
    pub(super) new_bytes: u64,
    /// Their types.
    pub(super) kinds: Vec<String>,
    /// Whether others wait.
    pub(super) more: bool,
}

/// What the records after a position tell of.
pub(super) struct Told {
    from: u64,
    through: u64,
    facts: HashSet<[u8; 16]>,
}

impl Told {
    fn after(from: u64) -> Self {
        Self { from, through: from, facts: HashSet::new() }
    }

    /// Looks a little further, not beyond `last`.
    fn look(
        &mut self,
        connection: &Connection,
        last: u64,
        fact_of: fn(&[u8]) -> Option<[u8; 16]>,
    ) -> rusqlite::Result<()> {
        let sql = "SELECT position, payload FROM records WHERE position > ?1 ORDER BY position LIMIT ?2";
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![self.through as i64, SCAN as i64])?;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            self.facts.extend(row.get_ref(1)?.as_blob().ok().and_then(fact_of));
            self.through = row.get::<_, i64>(0)? as u64;
            seen += 1;
        }
        if seen < SCAN {
            self.through = self.through.max(last);
        }
        Ok(())
    }
}

/// Takes in some of what waits. `told` is kept from call to call, and is `None` at first and after a failure.
pub(super) fn take(
    connection: &mut Connection,
    log: &Log,
    options: &Options,
    shared: &Shared,
    told: &mut Option<Told>,
) -> rusqlite::Result<Taken> {
    let offers = waiting(connection)?;
    let Some(from) = offers.iter().map(|(_, offer)| offer.through).min() else { return Ok(Taken::default()) };
    if told.as_ref().is_some_and(|told| told.from > from) {
        *told = None;
    }
    let known = told.get_or_insert_with(|| Told::after(from));
    if log.first > known.through + 1 || known.facts.len() > MOST_FACTS {
        let dropped = connection.execute("DELETE FROM offers WHERE through < ?1", [known.through as i64 + 1])?;
        tracing::warn!(dropped, "too much has come in since events were offered; reconcile again");
        *told = None;
        return Ok(Taken { more: true, ..Taken::default() });
    }
    known.look(connection, log.last, options.fact_of)?;
    if known.through < log.last {
        return Ok(Taken { more: true, ..Taken::default() });
    }
    let taken = settle(connection, log, options, shared, &offers, &known.facts)?;
    if !taken.stored.is_empty() {
        tracing::info!(events = taken.stored.len(), "reconciled events are taken in");
    }
    Ok(taken)
}

/// Each offer becomes a record, or is known already; either way it waits no longer. Without room it goes on waiting.
fn settle(
    connection: &mut Connection,
    log: &Log,
    options: &Options,
    shared: &Shared,
    offers: &[(i64, Offer)],
    told: &HashSet<[u8; 16]>,
) -> rusqlite::Result<Taken> {
    let mut taken = Taken { more: offers.len() == BATCH, ..Taken::default() };
    let accepted_ms = options.clock.now_ms();
    let transaction = connection.transaction()?;
    let mut adder = Adder::new(&transaction, log, options, shared)?;
    for (seq, offer) in offers {
        let Offer { facts, id, key, kind, payload, .. } = offer;
        if !facts.iter().any(|fact| told.contains(fact)) {
            let (key, kind, payload) = (key.clone(), kind.clone(), payload.clone());
            match adder.add(&Entry { id: *id, key, kind, accepted_ms, payload })? {
                Ok(Appended::Stored(position)) => {
                    let sql = "INSERT OR REPLACE INTO reconciled (fact, key, at_ms, position, id)
                               VALUES (?1, ?2, ?3, ?4, ?5)";
                    let values = params![facts.first(), offer.key, accepted_ms, position as i64, id];
                    transaction.prepare_cached(sql)?.execute(values)?;
                    taken.kinds.push(offer.kind.clone());
                }
                Ok(Appended::Duplicate(_) | Appended::Reconciled { .. }) => {}
                Err(_no_room) => {
                    taken.more = true;
                    break;
                }
            }
        }
        transaction.prepare_cached("DELETE FROM offers WHERE seq = ?1")?.execute([seq])?;
    }
    (taken.stored, taken.new_bytes) = adder.finish();
    transaction.commit()?;
    Ok(taken)
}

fn waiting(connection: &Connection) -> rusqlite::Result<Vec<(i64, Offer)>> {
    let sql = "SELECT seq, fact, vague, through, id, key, kind, payload FROM offers ORDER BY seq LIMIT ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let offer = |row: &Row<'_>| {
        let vague: Vec<u8> = row.get(2)?;
        let facts = std::iter::once(row.get(1)).chain(vague.as_chunks().0.iter().copied().map(Ok));
        let offer = Offer {
            facts: facts.collect::<rusqlite::Result<_>>()?,
            through: row.get::<_, i64>(3)? as u64,
            id: row.get(4)?,
            key: row.get(5)?,
            kind: row.get(6)?,
            payload: row.get(7)?,
        };
        Ok((row.get(0)?, offer))
    };
    statement.query_map([BATCH as i64], offer)?.collect()
}

/// For each append, the reconciled event that tells of the same. Costs nothing where there are none.
pub(super) fn told_by_reconciled(
    connection: &Connection,
    log: &Log,
    options: &Options,
    appends: &[(Entry, oneshot::Sender<Result<Appended, AppendError>>)],
) -> rusqlite::Result<Vec<Option<Appended>>> {
    if log.reconciled == 0 || appends.is_empty() {
        return Ok(vec![None; appends.len()]);
    }
    let after_ms = options.clock.now_ms().saturating_sub(options.dedup.window.as_millis());
    let sql = "SELECT fact, position, id FROM reconciled WHERE key = ?1 AND at_ms > ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let told = |entry: &Entry| {
        let mut rows = statement.query(params![entry.key, after_ms])?;
        let mut fact = None;
        while let Some(row) = rows.next()? {
            let fact = *fact.get_or_insert_with(|| (options.fact_of)(&entry.payload));
            if fact.is_some() && fact == row.get(0)? {
                let position = row.get::<_, i64>(1)? as u64;
                return Ok(Some(Appended::Reconciled { position, id: row.get(2)? }));
            }
        }
        Ok(None)
    };
    appends.iter().map(|(entry, _)| entry).map(told).collect()
}

/// Forgets facts that have left the window.
pub(super) fn forget(connection: &Connection, log: &mut Log, options: &Options) -> rusqlite::Result<()> {
    if log.reconciled > 0 {
        let before_ms = options.clock.now_ms().saturating_sub(options.dedup.window.as_millis());
        let sql = "DELETE FROM reconciled WHERE fact IN (SELECT fact FROM reconciled WHERE at_ms <= ?1 LIMIT ?2)";
        let forgotten = connection.prepare_cached(sql)?.execute(params![before_ms, SCAN as i64])?;
        log.reconciled = log.reconciled.saturating_sub(forgotten as u64);
    }
    Ok(())
}

pub(super) fn count_reconciled(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT count(*) FROM reconciled", [], |row| row.get::<_, i64>(0)).map(|count| count as u64)
}

impl Desk {
    /// Offers events that nobody delivered; of a fact that is offered already nothing is added. A running bridge
    /// takes them in within seconds, a stopped one when it starts. Returns how many are new.
    ///
    /// # Errors
    /// When the engine fails; what was offered before stays so.
    pub fn offer(&mut self, offers: &[Offer]) -> Result<usize, EngineError> {
        schema::add_tables(&self.connection)?;
        let mut added = 0;
        for chunk in offers.chunks(CHUNK) {
            let transaction = self.connection.transaction()?;
            for Offer { facts, through, id, key, kind, payload } in chunk {
                let Some((fact, vague)) = facts.split_first() else { continue };
                let sql = "INSERT OR IGNORE INTO offers (fact, vague, through, id, key, kind, payload)
                           VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
                let values = params![fact, vague.concat(), *through as i64, id, key, kind, payload];
                added += transaction.prepare_cached(sql)?.execute(values)?;
            }
            transaction.commit()?;
        }
        Ok(added)
    }

    /// How many offers wait.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn waiting(&self) -> Result<u64, EngineError> {
        // An older program's journal has no such table, and only looking is no reason to make it.
        let is_there = "SELECT count(*) FROM sqlite_schema WHERE name = 'offers'";
        if self.connection.query_row(is_there, [], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(0);
        }
        let count = "SELECT count(*) FROM offers";
        Ok(self.connection.query_row(count, [], |row| row.get::<_, i64>(0)).map(|count| count as u64)?)
    }

    /// The facts of the offers that wait. To be asked for before the records are read: what is taken in meanwhile is
    /// then in one of the two.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn offered(&self) -> Result<Vec<[u8; 16]>, EngineError> {
        schema::add_tables(&self.connection)?;
        let mut statement = self.connection.prepare("SELECT fact FROM offers")?;
        let facts = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(facts)
    }
}

#[cfg(test)]
mod tests;
