//! What is deleted, and when: published events by age and bytes, ids that left the window.
//!
//! Nothing that a configured sink has not dealt with is ever deleted, and never the newest record,
//! because the next position is derived from it.

use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension, params};

use super::log::Log;
use super::{Options, Shared, offers};

/// Rows deleted in one transaction, so that no commit waits long behind it.
const CHUNK: u64 = 2_000;

/// Chunks deleted in one sweep; the next sweep goes on.
const CHUNKS: usize = 20;

/// The regular sweep.
pub(super) fn sweep(
    connection: &mut Connection,
    log: &mut Log,
    options: &Options,
    shared: &Shared,
) -> rusqlite::Result<()> {
    forget_ids(connection, log, options)?;
    offers::forget(connection, log, options)?;
    retire(connection, log, options, shared)
}

fn forget_ids(connection: &mut Connection, log: &mut Log, options: &Options) -> rusqlite::Result<()> {
    log.window.expire(options.clock.now_ms());
    // Rows below the oldest remembered id are of no more use, also those that `max_ids` pushed out.
    let target = log.window.oldest().map_or(log.last, |oldest| oldest - 1);
    for _ in 0..CHUNKS {
        if log.seen_deleted >= target {
            break;
        }
        let first: Option<i64> = connection.query_row("SELECT min(position) FROM seen", [], |row| row.get(0))?;
        let Some(first) = first.map(|position| position as u64).filter(|first| *first <= target) else {
            log.seen_deleted = target;
            break;
        };
        let through = target.min(first + CHUNK);
        connection.prepare_cached("DELETE FROM seen WHERE position <= ?1")?.execute([through as i64])?;
        log.seen_deleted = through;
    }
    Ok(())
}

/// Published events make way: those past their keep, and more of them when the budget is used up.
pub(super) fn retire(
    connection: &mut Connection,
    log: &mut Log,
    options: &Options,
    shared: &Shared,
) -> rusqlite::Result<()> {
    for _ in 0..CHUNKS {
        // The cursors as the forwarders report them are ahead of the durable ones. Only the durable ones
        // may be believed here: after a crash the sinks start from those.
        let dealt_with = log.cursors.values().copied().min().unwrap_or(log.last);
        let limit = dealt_with.min(log.last.saturating_sub(1)).min(before_resends(connection)?);
        if log.first == 0 || log.first > limit {
            return Ok(());
        }
        let Some((through, offset)) = retirable(connection, log, options, limit)? else { return Ok(()) };
        connection.prepare_cached("DELETE FROM records WHERE position <= ?1")?.execute([through as i64])?;
        log.first = through + 1;
        log.start_offset = offset;
        shared.first.store(log.first, Ordering::Relaxed);
    }
    Ok(())
}

/// What an operator wants to be published again stays until it is.
fn before_resends(connection: &Connection) -> rusqlite::Result<u64> {
    let first: Option<i64> =
        connection.prepare_cached("SELECT min(position) FROM resends")?.query_row([], |row| row.get(0))?;
    Ok(first.map_or(u64::MAX, |first| (first as u64).saturating_sub(1)))
}

/// The last of the oldest published records that are too old or too many, with its offset.
fn retirable(
    connection: &Connection,
    log: &Log,
    options: &Options,
    limit: u64,
) -> rusqlite::Result<Option<(u64, u64)>> {
    let settings = &options.settings;
    let published_end: Option<i64> = connection
        .prepare_cached("SELECT offset FROM records WHERE position = ?1")?
        .query_row([limit as i64], |row| row.get(0))
        .optional()?;
    let Some(published_end) = published_end.map(|offset| offset as u64) else { return Ok(None) };
    let waiting = log.end_offset - published_end;
    // Room for what waits goes before keeping what is published; a sixteenth stays free for the next.
    let budget = settings.max_bytes.0 - settings.max_bytes.0 / 16;
    let keep = settings.retain_bytes.0.min(budget.saturating_sub(waiting));
    let too_old_ms = options.clock.now_ms().saturating_sub(settings.retain_for.as_millis());

    let mut rows = connection.prepare_cached(
        "SELECT position, offset, accepted_ms FROM records WHERE position <= ?1 ORDER BY position LIMIT ?2",
    )?;
    let mut rows = rows.query(params![limit as i64, CHUNK as i64])?;
    let (mut found, mut before) = (None, log.start_offset);
    while let Some(row) = rows.next()? {
        let (position, offset, accepted_ms): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if accepted_ms > too_old_ms && published_end - before <= keep {
            break;
        }
        found = Some((position as u64, offset as u64));
        before = offset as u64;
    }
    Ok(found)
}
