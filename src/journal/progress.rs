//! What sinks have published, and what else the state file says of the segments: the rows of `sinks`, `waiting`, `durable`
//! and `released`. Each that must not be wrong has a CRC.

use roaring::RoaringTreemap;
use rusqlite::{Connection, OptionalExtension, params};

use super::chain::Released;
use super::positions;
use super::segment::{Name, Proof};
use super::sinks::Progress;
use super::sqlite::{self, crc, readable};

fn sink_crc(sink: &str, number: u64, content: &[u8]) -> u32 {
    crc(&[sink.as_bytes(), &number.to_le_bytes(), content])
}

/// The sinks that the bridge has, or had when it ran last, by name.
pub(super) fn sink_names(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT sink FROM sinks WHERE configured = 1 ORDER BY sink";
    connection.prepare(sql)?.query_map([], |row| row.get(0))?.filter_map(|name| readable(name).transpose()).collect()
}

/// Notes which sinks are configured now.
pub(super) fn configure_sinks(connection: &Connection, names: &[&str]) -> rusqlite::Result<()> {
    connection.execute("UPDATE sinks SET configured = 0", [])?;
    for name in names {
        connection.execute("UPDATE sinks SET configured = 1 WHERE sink = ?1", [name])?;
    }
    Ok(())
}

/// The frontier of a sink and the numbers of its chunks; `Some(None)` where its row is damaged.
fn load_sink(connection: &Connection, sink: &str) -> rusqlite::Result<Option<Option<(u64, RoaringTreemap)>>> {
    let sql = "SELECT frontier, chunks, crc FROM sinks WHERE sink = ?1";
    let row = connection.query_row(sql, [sink], |row| {
        Ok((row.get::<_, i64>(0)? as u64, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
    });
    let row = match row {
        Err(rusqlite::Error::QueryReturnedNoRows) => return Ok(None),
        row => readable(row)?,
    };
    let whole = row.filter(|(frontier, chunks, stored)| *stored == i64::from(sink_crc(sink, *frontier, chunks)));
    Ok(Some(
        whole.and_then(|(frontier, chunks, _)| Some((frontier, RoaringTreemap::deserialize_from(&chunks[..]).ok()?))),
    ))
}

/// What a sink has published; `None` for one that is not known, or whose row is damaged. Where a chunk of waiting
/// positions is damaged or gone, all of its positions wait: what is published twice is not lost.
pub(super) fn load_progress(connection: &Connection, sink: &str) -> rusqlite::Result<Option<Progress>> {
    match load_with_damage(connection, sink)? {
        None => Ok(None),
        Some(None) => {
            tracing::error!(sink, "expected the cursor that was written, but its checksum does not hold");
            Ok(None)
        }
        Some(Some((mut progress, damaged))) => {
            for chunk in damaged {
                tracing::error!(
                    sink,
                    chunk,
                    "waiting positions are damaged; their events are published, possibly twice"
                );
                let (first, last) = positions::chunk_span(chunk);
                let last = last.min(progress.frontier);
                progress.waiting.insert_range(first.max(1), last);
            }
            Ok(Some(progress))
        }
    }
}

/// Of a known sink, what can be read, and the chunks of waiting positions that cannot; or `None`.
type WithDamage = Option<(Progress, RoaringTreemap)>;

fn load_with_damage(connection: &Connection, sink: &str) -> rusqlite::Result<Option<WithDamage>> {
    let Some(row) = load_sink(connection, sink)? else { return Ok(None) };
    let Some((frontier, mut missing)) = row else { return Ok(Some(None)) };
    let mut progress = Progress { frontier, ..Progress::default() };
    let mut statement = connection.prepare("SELECT chunk, positions, crc FROM waiting WHERE sink = ?1")?;
    let rows = statement.query_map([sink], |row| {
        Ok((row.get::<_, i64>(0)? as u64, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
    })?;
    for row in rows {
        let Some((chunk, bytes, stored)) = readable(row)? else { continue };
        // A chunk that is not in the list was left over by an older file.
        let is_whole = stored == i64::from(sink_crc(sink, chunk, &bytes)) && missing.contains(chunk);
        if is_whole && progress.waiting.add_chunk(chunk, &bytes).is_ok() {
            missing.remove(chunk);
        }
    }
    Ok(Some(Some((progress, missing))))
}

/// The configured sinks of which not all can be read.
pub(super) fn damaged_progress(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut damaged = Vec::new();
    for sink in sink_names(connection)? {
        let is_whole = matches!(load_with_damage(connection, &sink)?, Some(Some((_, chunks))) if chunks.is_empty());
        if !is_whole {
            damaged.push(sink);
        }
    }
    Ok(damaged)
}

/// What is to be written of a sink's progress.
pub(super) struct ChangedProgress {
    pub(super) frontier: u64,
    /// The numbers of all chunks of waiting positions.
    pub(super) chunks: RoaringTreemap,
    /// Those that have changed.
    pub(super) changed: Vec<(u64, Option<Vec<u8>>)>,
}

impl ChangedProgress {
    pub(super) fn of(progress: &mut Progress) -> Self {
        Self {
            frontier: progress.frontier,
            chunks: progress.waiting.chunk_numbers().collect(),
            changed: progress.waiting.take_changed(),
        }
    }
}

/// Writes a sink's frontier and the chunks that have changed.
pub(super) fn store_progress(connection: &Connection, sink: &str, progress: &ChangedProgress) -> rusqlite::Result<()> {
    let ChangedProgress { frontier, chunks: numbers, changed } = progress;
    let mut chunks = Vec::with_capacity(numbers.serialized_size());
    numbers.serialize_into(&mut chunks).map_err(|error| sqlite::engine(&error))?;
    let sql = "INSERT INTO sinks (sink, frontier, chunks, crc) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (sink) DO UPDATE SET frontier = excluded.frontier, chunks = excluded.chunks,
               crc = excluded.crc";
    let crc = sink_crc(sink, *frontier, &chunks);
    connection.prepare_cached(sql)?.execute(params![sink, *frontier as i64, chunks, crc])?;
    for (chunk, bytes) in changed {
        let number = *chunk as i64;
        match bytes {
            Some(bytes) => {
                let sql = "INSERT INTO waiting (sink, chunk, positions, crc) VALUES (?1, ?2, ?3, ?4)
                           ON CONFLICT (sink, chunk) DO UPDATE SET positions = excluded.positions, crc = excluded.crc";
                connection.prepare_cached(sql)?.execute(params![sink, number, bytes, sink_crc(sink, *chunk, bytes)])?;
            }
            None => {
                let sql = "DELETE FROM waiting WHERE sink = ?1 AND chunk = ?2";
                connection.prepare_cached(sql)?.execute(params![sink, number])?;
            }
        }
    }
    Ok(())
}

fn proof_crc(segment: u64, proof: Proof) -> u32 {
    crc(&[&segment.to_le_bytes(), &proof.offset.to_le_bytes(), &proof.position.to_le_bytes()])
}

/// Writes how far the newest segment is known to be durable.
pub(super) fn store_proof(connection: &Connection, segment: u64, proof: Proof) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO durable (one, segment, offset, position, crc) VALUES (1, ?1, ?2, ?3, ?4)";
    let crc = proof_crc(segment, proof);
    let values = params![segment as i64, proof.offset as i64, proof.position as i64, crc];
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

/// How far the newest segment is known to be durable, with its number.
pub(super) fn load_proof(connection: &Connection) -> rusqlite::Result<(u64, Proof)> {
    let row = connection.query_row("SELECT segment, offset, position, crc FROM durable", [], |row| {
        let number = |column| row.get::<_, i64>(column).map(|number| number as u64);
        Ok((number(0)?, Proof { offset: number(1)?, position: number(2)? }, row.get::<_, i64>(3)?))
    });
    let row = readable(row.optional())?.flatten();
    let whole = row.filter(|(segment, proof, crc)| i64::from(proof_crc(*segment, *proof)) == *crc);
    Ok(whole.map(|(segment, proof, _)| (segment, proof)).unwrap_or_default())
}

/// What is known of a segment, given what [`load_proof`] said.
pub(super) fn proof_of(name: Name, (segment, proof): (u64, Proof)) -> Proof {
    if name == Name::new(segment) { proof } else { Proof::default() }
}

fn range_crc(first: u64, last: u64) -> u32 {
    crc(&[&first.to_le_bytes(), &last.to_le_bytes()])
}

/// Notes that positions are no longer kept, on purpose. What lies before `oldest`, the oldest kept, becomes one range.
pub(super) fn store_released(connection: &Connection, first: u64, last: u64, oldest: u64) -> rusqlite::Result<()> {
    let before = oldest.saturating_sub(1);
    store_range(connection, first, last)?;
    if before > 0 {
        connection.prepare_cached("DELETE FROM released WHERE last <= ?1")?.execute([before as i64])?;
        store_range(connection, 1, before)?;
    }
    Ok(())
}

/// A range that begins at the same position may be longer.
fn store_range(connection: &Connection, first: u64, last: u64) -> rusqlite::Result<()> {
    let sql = "SELECT first, last, crc FROM released WHERE first = ?1";
    let stored = connection.prepare_cached(sql)?.query_row([first as i64], released_range).optional();
    let last = readable(stored)?.flatten().flatten().map_or(last, |(_, stored)| last.max(stored));
    let sql = "INSERT OR REPLACE INTO released (first, last, crc) VALUES (?1, ?2, ?3)";
    let values = params![first as i64, last as i64, range_crc(first, last)];
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

/// One range of `first, last, crc`; `None` if it is damaged.
fn released_range(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<(u64, u64)>> {
    let (first, last) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
    Ok((row.get::<_, i64>(2)? == i64::from(range_crc(first, last))).then_some((first, last)))
}

/// The ranges of positions that were released. They are not all where a row is damaged.
pub(super) fn load_released(connection: &Connection) -> rusqlite::Result<Released> {
    let mut released = Released { ranges: Vec::new(), is_complete: true };
    let mut statement = connection.prepare("SELECT first, last, crc FROM released ORDER BY first")?;
    for range in statement.query_map([], released_range)? {
        match readable(range)?.flatten() {
            Some(range) => released.ranges.push(range),
            None => released.is_complete = false,
        }
    }
    Ok(released)
}

/// Removes the damaged ones of these ranges.
pub(super) fn drop_damaged_ranges(connection: &Connection) -> rusqlite::Result<()> {
    let whole = load_released(connection)?.ranges;
    let firsts: Vec<i64> =
        connection.prepare("SELECT first FROM released")?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for first in firsts.into_iter().filter(|first| !whole.iter().any(|range| range.0 == *first as u64)) {
        connection.execute("DELETE FROM released WHERE first = ?1", [first])?;
    }
    Ok(())
}

/// How far beyond what has a checksum a position without one is believed.
const PLAUSIBLE: u64 = 1 << 40;

/// The highest position that the state or `known` names.
pub(super) fn highest_position(connection: &Connection, known: u64) -> rusqlite::Result<u64> {
    let mut highest = known.max(load_proof(connection)?.1.position);
    for sink in connection.prepare("SELECT sink FROM sinks")?.query_map([], |row| row.get::<_, String>(0))? {
        let Some(sink) = readable(sink)? else { continue };
        highest = highest.max(load_sink(connection, &sink)?.flatten().map_or(0, |(frontier, _)| frontier));
    }
    highest = load_released(connection)?.ranges.iter().map(|(_, last)| *last).fold(highest, u64::max);
    let most = highest.saturating_add(PLAUSIBLE).min(i64::MAX as u64);
    for sql in [
        "SELECT max(position) FROM dead_letters WHERE position <= ?1",
        "SELECT max(position) FROM resends WHERE position <= ?1",
        "SELECT max(until) FROM replays WHERE until <= ?1",
        "SELECT max(position) FROM backfilled WHERE position <= ?1",
    ] {
        let found: Option<i64> = connection.query_row(sql, [most as i64], |row| row.get(0))?;
        highest = highest.max(found.unwrap_or(0).max(0) as u64);
    }
    Ok(highest)
}
