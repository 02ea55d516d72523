//! The one thread that writes.
//!
//! It takes whatever has queued up, commits it as one group, and only then answers. Cursors and dead
//! letters ride along. A full disk rolls the group back and is tried again with the next one; any other
//! write error closes the file, and nothing is taken until it has been opened and read anew.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::checkpoint::{self, Checkpointer};
use super::commit::{Done, Group, Stored, TICK, collect, write};
use super::log::{self, Log};
use super::{AppendError, Command, Health, Options, Shared, directory, letters, offers, retention, schema};

/// How often retention, the window and the free space are looked at, and a failed disk is tried again.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Room that must be left for the journal to call itself healthy, or a 64th of a small budget: so that
/// it does not call itself healthy while the next event no longer fits.
const HEADROOM: u64 = 1024 * 1024;

pub(super) fn spawn(
    connection: Connection,
    queue: Receiver<Command>,
    log: Log,
    options: Options,
    shared: Arc<Shared>,
    checkpointer: Checkpointer,
    lock: File,
) -> JoinHandle<()> {
    let writer = Writer {
        connection: Some(connection),
        log,
        options,
        shared,
        checkpointer,
        log_pages: Arc::new(AtomicU32::new(0)),
        checkpointed_at: 0,
        last_housekeeping: Instant::now(),
        damage_said: false,
        data_version: 0,
        offers_wait: true,
        last_offers: Instant::now(),
        told: None,
        _lock: lock,
    };
    thread::spawn(move || writer.run(&queue))
}

struct Writer {
    /// `None` while the disk fails.
    connection: Option<Connection>,
    log: Log,
    options: Options,
    shared: Arc<Shared>,
    checkpointer: Checkpointer,
    /// Pages in the write-ahead log after the last commit, as SQLite says, and when a checkpoint was last asked for.
    log_pages: Arc<AtomicU32>,
    checkpointed_at: u32,
    last_housekeeping: Instant,
    damage_said: bool,
    /// SQLite's count of commits by others, as last seen.
    data_version: i64,
    /// Whether there may be offers, when the last were taken, and what is told by records since they were made.
    offers_wait: bool,
    last_offers: Instant,
    told: Option<offers::Told>,
    _lock: File,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Command>) {
        self.watch_log();
        loop {
            let group = collect(queue);
            let close = group.close;
            self.shared.queued_bytes.fetch_sub(group.bytes, Ordering::Relaxed);
            self.commit(group);
            if self.offers_wait && self.last_offers.elapsed() >= TICK && !close {
                self.last_offers = Instant::now();
                self.take_offers();
            }
            if self.last_housekeeping.elapsed() >= HOUSEKEEPING {
                self.last_housekeeping = Instant::now();
                self.housekeeping();
            }
            if close {
                break;
            }
        }
        self.commit(Group::default());
        self.shared.set_health(Health::Closed);
    }

    fn commit(&mut self, group: Group) {
        let Some(connection) = &mut self.connection else {
            return group.refuse(AppendError::Failed);
        };
        let room = self.log.bytes() + group.bytes as u64 + log::row_size(0, 0, 0) * group.appends.len() as u64;
        if room > self.options.settings.max_bytes.0
            && let Err(error) = retention::retire(connection, &mut self.log, &self.options, &self.shared)
            && !is_old_damage(&error, &mut self.damage_said)
        {
            return self.fail(&error, group);
        }
        let started = Instant::now();
        match write(connection, &self.log, &self.options, &self.shared, &group) {
            Ok(done) => self.believe(done, group, started.elapsed()),
            Err(error) => self.fail(&error, group),
        }
    }

    /// The transaction is durable: everything that depends on it may now be said.
    fn believe(&mut self, done: Done, group: Group, took: Duration) {
        if !done.stored.is_empty() {
            (self.options.on_commit)(took);
        }
        self.added(&done.stored, done.new_bytes);
        self.log.cursors.extend(done.cursors);
        self.publish_numbers();
        for (sink, growth) in &done.grown {
            let counts = [(&self.shared.dead_letters, growth.dead_letters), (&self.shared.resends, growth.resends)];
            for (counts, growth) in counts {
                if let Some(count) = counts.get(sink) {
                    let grown = count.load(Ordering::Relaxed).saturating_add_signed(growth);
                    count.store(grown, Ordering::Relaxed);
                }
            }
        }
        group.answer(done.outcomes, Ok(()));
        self.checkpoint_if_due();
    }

    fn added(&mut self, stored: &[Stored], new_bytes: u64) {
        for &Stored { id, position, accepted_ms } in stored {
            self.log.window.insert(id, position, accepted_ms);
            if self.log.first == 0 {
                self.log.first = position;
            }
            self.log.last = position;
        }
        self.log.end_offset += new_bytes;
    }

    /// Takes in what was offered, some at a time. Refused for lack of room, it stays and is tried again.
    fn take_offers(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        match offers::take(connection, &self.log, &self.options, &self.shared, &mut self.told) {
            Ok(taken) => {
                self.added(&taken.stored, taken.new_bytes);
                self.log.reconciled += taken.stored.len() as u64;
                self.publish_numbers();
                taken.kinds.iter().for_each(|kind| (self.options.on_reconciled)(kind));
                self.offers_wait = taken.more;
                self.checkpoint_if_due();
            }
            Err(error) if is_old_damage(&error, &mut self.damage_said) => self.offers_wait = false,
            Err(error) => self.fail(&error, Group::default()),
        }
        if !self.offers_wait {
            self.told = None;
        }
    }

    fn publish_numbers(&self) {
        let shared = &self.shared;
        shared.first.store(self.log.first, Ordering::Relaxed);
        shared.bytes.store(self.log.bytes(), Ordering::Relaxed);
        shared.dedup_ids.store(self.log.window.len() as u64, Ordering::Relaxed);
        shared.durable.send_if_modified(|durable| std::mem::replace(durable, self.log.last) != self.log.last);
    }

    fn watch_log(&mut self) {
        let pages = Arc::clone(&self.log_pages);
        let hook = move |_: &mut _, n| {
            pages.store(u32::try_from(n).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        };
        if let Some(connection) = &mut self.connection
            && let Err(error) = connection.wal_hook(Some(hook))
        {
            tracing::error!(%error, "the write-ahead log cannot be watched and may grow");
        }
    }

    fn checkpoint_if_due(&mut self) {
        let pages = self.log_pages.load(Ordering::Relaxed);
        if pages < self.checkpointed_at {
            // The log has started over.
            self.checkpointed_at = 0;
        }
        if self.checkpointer.log_is_long() {
            if let Some(connection) = &self.connection
                && let Err(error) = checkpoint::restart(connection)
            {
                tracing::debug!(%error, "the write-ahead log cannot start over yet");
            }
        } else if pages - self.checkpointed_at >= checkpoint::WAKE_AFTER {
            self.checkpointed_at = pages;
            self.checkpointer.wake();
        }
    }

    /// A write failed and was rolled back. A full disk may have room for the next one; after any other
    /// error what the disk holds is in doubt, so the file is closed and later read anew.
    fn fail(&mut self, error: &rusqlite::Error, group: Group) {
        let full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        let health = if full { Health::Full } else { Health::Failed };
        if self.shared.set_health(health) != health {
            tracing::error!(%error, path = %self.shared.path.display(), "the journal cannot be written; deliveries are answered 503");
        }
        if !full {
            self.connection = None;
        }
        group.refuse(if full { AppendError::Full } else { AppendError::Failed });
    }

    fn housekeeping(&mut self) {
        self.shared.disk_free.store(directory::free(&self.options.settings.dir), Ordering::Relaxed);
        if self.connection.is_none() {
            self.reopen();
        }
        if let Some(connection) = &self.connection {
            match schema::reusable_bytes(connection) {
                Ok(bytes) => self.shared.reusable.store(bytes, Ordering::Relaxed),
                Err(error) => tracing::debug!(%error, "cannot see how much of the file is free"),
            }
        }
        self.count_letters();
        if let Some(connection) = &mut self.connection
            && let Err(error) = retention::sweep(connection, &mut self.log, &self.options, &self.shared)
            && !is_old_damage(&error, &mut self.damage_said)
        {
            return self.fail(&error, Group::default());
        }
        if self.connection.is_some() {
            self.publish_numbers();
            let health = if self.has_room() { Health::Healthy } else { Health::Full };
            let before = self.shared.set_health(health);
            if before != health {
                match health {
                    Health::Healthy => tracing::info!("the journal takes events again"),
                    _ => tracing::error!(bytes = self.log.bytes(), "the journal is full; deliveries are answered 503"),
                }
            }
        }
    }

    /// An operator's commands change dead letters and resends from another process; then, and only then,
    /// they are counted anew.
    fn count_letters(&mut self) {
        let Some(connection) = &self.connection else { return };
        match connection.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0)) {
            Ok(version) if version == self.data_version => return,
            Ok(version) => {
                self.data_version = version;
                self.offers_wait = true;
            }
            Err(error) => tracing::debug!(%error, "cannot see whether others have written"),
        }
        let tables = [("dead_letters", &self.shared.dead_letters), ("resends", &self.shared.resends)];
        for (table, counts) in tables {
            for (sink, count) in counts {
                match letters::count(connection, table, sink) {
                    Ok(found) => count.store(found, Ordering::Relaxed),
                    Err(error) => tracing::debug!(%error, table, "cannot count"),
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        let budget = self.options.settings.max_bytes.0;
        self.log.bytes() + HEADROOM.min(budget / 64) < budget && !self.shared.disk_is_low()
    }

    fn reopen(&mut self) {
        let opened = schema::open_writer(&self.shared.path).map_err(|error| error.to_string());
        match opened.and_then(|mut connection| {
            if !schema::settle(&connection).map_err(|error| error.to_string())? {
                return Err("a reader is in the way of emptying its log".to_owned());
            }
            schema::prove_writable(&mut connection).map_err(|error| error.to_string())?;
            schema::add_tables(&connection).map_err(|error| error.to_string())?;
            let mut log = log::load(&connection, &self.options).map_err(|error| error.to_string())?;
            log.reconciled = offers::count_reconciled(&connection).map_err(|error| error.to_string())?;
            Ok((connection, log))
        }) {
            Ok((connection, log)) => {
                tracing::info!(last_position = log.last, "the journal was opened again");
                self.connection = Some(connection);
                self.log = log;
                self.watch_log();
            }
            Err(error) => tracing::debug!(%error, "the journal still cannot be opened"),
        }
    }
}

/// A damaged page among old events keeps them from being deleted, and is no reason to refuse new ones.
fn is_old_damage(error: &rusqlite::Error, said: &mut bool) -> bool {
    let damage = error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt);
    if damage && !std::mem::replace(said, true) {
        tracing::error!(%error, "a damaged part of the journal cannot be retired; see: sendbird-bridge journal verify");
    }
    damage
}
