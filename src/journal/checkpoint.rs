//! Moving committed pages from the write-ahead log into the main file, away from the commits.
//!
//! A passive checkpoint never blocks the writer, but while the writer keeps adding, the log is never
//! copied to its very end and so can't start over. The thread therefore tells the writer when the log
//! has grown past [`LONG_LOG`]; the writer then copies the short rest itself, between two commits.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;

use super::schema;

/// New bytes in the log after which the thread is woken.
pub(super) const WAKE_AFTER: u64 = 4 * 1024 * 1024;

/// Pages in the log past which the writer must help: 64 MiB.
const LONG_LOG: i64 = 16 * 1024;

/// The writer's side.
pub(super) struct Checkpointer {
    signals: Arc<Signals>,
    thread: thread::Thread,
}

#[derive(Default)]
struct Signals {
    wanted: AtomicBool,
    long: AtomicBool,
    stop: AtomicBool,
}

impl Checkpointer {
    /// Asks for a checkpoint soon.
    pub(super) fn wake(&self) {
        self.signals.wanted.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// Whether the log has grown too long for the thread alone; asking clears it.
    pub(super) fn needs_help(&self) -> bool {
        self.signals.long.swap(false, Ordering::Acquire)
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

/// Pages in the log, as SQLite counts them.
fn checkpoint(path: &std::path::Path, connection: &mut Option<Connection>) -> rusqlite::Result<i64> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(schema::open_checkpointer(path)?),
    };
    run(connection)
}

/// One passive checkpoint.
pub(super) fn run(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(1))
}
