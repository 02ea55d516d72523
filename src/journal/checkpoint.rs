//! Moving committed pages from the write-ahead log into the main file, away from the commits.
//!
//! A passive checkpoint never blocks the writer, but the log can start over only when all of it is copied and
//! nobody reads from it, which under load hardly ever comes about by itself. Once the log is longer than
//! [`LONG_LOG`] after such a checkpoint, the thread says so, and the writer copies the short rest between two
//! commits and waits a moment for the readers ([`restart`]). It must not do so while the thread is copying: it
//! would wait for all of that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;

use super::schema;

/// New pages in the log after which the thread is woken: 4 MiB.
pub(super) const WAKE_AFTER: u32 = 1024;

/// Pages in the log past which the writer makes it start over: 64 MiB.
const LONG_LOG: u32 = 16 * 1024;

/// How long the writer may wait for readers, whose transactions take milliseconds.
const READERS: Duration = Duration::from_millis(100);

/// How long a connection waits for another's lock otherwise; what the library has by default.
const LOCKS: Duration = Duration::from_secs(5);

/// The writer's side.
pub(super) struct Checkpointer {
    signals: Arc<Signals>,
    thread: thread::Thread,
}

#[derive(Default)]
struct Signals {
    wanted: AtomicBool,
    /// A checkpoint has just ended, and the log is long all the same.
    long: AtomicBool,
    stop: AtomicBool,
}

impl Checkpointer {
    /// Asks for a checkpoint soon.
    pub(super) fn wake(&self) {
        self.signals.wanted.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// Whether this is the moment for [`restart`]; said once for each checkpoint.
    pub(super) fn log_is_long(&self) -> bool {
        self.signals.long.load(Ordering::Relaxed) && self.signals.long.swap(false, Ordering::Acquire)
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.signals.stop.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

pub(super) fn spawn(path: PathBuf) -> (Checkpointer, JoinHandle<()>) {
    let signals = Arc::new(Signals::default());
    let handle = thread::spawn({
        let signals = Arc::clone(&signals);
        move || {
            let mut connection = None;
            while !signals.stop.load(Ordering::Acquire) {
                if signals.wanted.swap(false, Ordering::Acquire) {
                    match checkpoint(&path, &mut connection) {
                        Ok(pages) => signals.long.store(pages > LONG_LOG, Ordering::Release),
                        // The log is intact and only longer; the next wake tries again, and a disk
                        // that really fails shows at the next commit.
                        Err(error) => {
                            tracing::debug!(%error, "checkpoint failed");
                            connection = None;
                        }
                    }
                }
                thread::park_timeout(Duration::from_secs(5));
            }
        }
    });
    (Checkpointer { signals, thread: handle.thread().clone() }, handle)
}

/// Copies what it can without waiting for anybody; returns the pages in the log, copied or not.
fn checkpoint(path: &Path, connection: &mut Option<Connection>) -> rusqlite::Result<u32> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(schema::open_checkpointer(path)?),
    };
    // busy, pages in the log (-1 where there is none), pages copied
    let pages = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i64>(1))?;
    Ok(u32::try_from(pages).unwrap_or(0))
}

/// Copies what is left of the log and makes the next commit start it over; called by the writer.
pub(super) fn restart(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(READERS)?;
    let restarted = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
    connection.busy_timeout(LOCKS)?;
    restarted
}
