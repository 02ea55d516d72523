//! Reading in the journal, away from the async threads, one read at a time.

use std::error::Error;
use std::future::pending;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::domain::rate_limit::RateLimit;
use crate::journal::{Journal, Limits, ReadError, Reader};

/// How much is read from the journal at a time.
pub(super) const READ_AHEAD: Limits = Limits { rows: 256, bytes: 1024 * 1024 };

/// How long to wait after a read error. The events are still there, so it is never the end of the log.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// At most one read of a `T` under way.
pub(super) struct Fetch<T> {
    journal: Journal,
    reader: Option<Reader>,
    running: Option<JoinHandle<Answer<T>>>,
    failures: RateLimit,
}

type Answer<T> = (Option<Reader>, Result<T, ReadError>);

impl<T: Default + Send + 'static> Fetch<T> {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, reader: None, running: None, failures: RateLimit::default() }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Starts a read, unless one is under way.
    pub(super) fn start(&mut self, read: impl FnOnce(&mut Reader) -> Result<T, ReadError> + Send + 'static) {
        if self.running.is_none() {
            let mut reader = self.reader.take().unwrap_or_else(|| self.journal.reader());
            self.running = Some(tokio::task::spawn_blocking(move || {
                let answer = read(&mut reader);
                (Some(reader), answer)
            }));
        }
    }

    /// Waits for the read under way, or without end where there is none. May be dropped and called once more. After an
    /// error it returns an empty `T`, a little later.
    pub(super) async fn finished(&mut self) -> T {
        loop {
            let Some(running) = &mut self.running else { return pending().await };
            // A panic's message may quote what was read, so its own line in the log has to do.
            let error: Box<dyn Error + Send + Sync> = match running.await {
                Ok((reader, Ok(found))) => {
                    self.running = None;
                    self.reader = reader;
                    return found;
                }
                Ok((_, Err(error))) => error.into(),
                Err(_panicked) => "the read panicked".into(),
            };
            if let Some(suppressed) = self.failures.admit(Instant::now()) {
                tracing::warn!(error = &*error as &dyn Error, suppressed, "cannot read the journal; retrying");
            }
            self.running = Some(tokio::task::spawn_blocking(|| {
                std::thread::sleep(AFTER_ERROR);
                (None, Ok(T::default()))
            }));
        }
    }
}
