//! Reading in the journal, away from the async threads, one read at a time.

use std::future::pending;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::trouble::Lines;
use crate::journal::{EngineError, Journal, Reader};

/// How long to wait after a read error. The events are still there, so it is never the end of the log.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// At most one read of a `T` under way.
pub(super) struct Fetch<T> {
    journal: Journal,
    reader: Option<Reader>,
    running: Option<JoinHandle<Answer<T>>>,
    failures: Lines,
}

type Answer<T> = (Option<Reader>, Result<T, EngineError>);

impl<T: Default + Send + 'static> Fetch<T> {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, reader: None, running: None, failures: Lines::default() }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Starts a read, unless one is under way.
    pub(super) fn start(&mut self, read: impl FnOnce(&Reader) -> Result<T, EngineError> + Send + 'static) {
        if self.running.is_none() {
            let (journal, reader) = (self.journal.clone(), self.reader.take());
            self.running =
                Some(tokio::task::spawn_blocking(move || match reader.map_or_else(|| journal.reader(), Ok) {
                    Ok(reader) => {
                        let answer = read(&reader);
                        (Some(reader), answer)
                    }
                    Err(error) => (None, Err(error)),
                }));
        }
    }

    /// Waits for the read under way, or for ever where there is none. May be dropped and called again.
    pub(super) async fn finished(&mut self) -> T {
        let Some(running) = &mut self.running else { return pending().await };
        let answer = running.await;
        // A panic's message may quote what was read, so its line in the log is all that is said of it.
        let problem = match answer {
            Ok((reader, Ok(found))) => {
                self.running = None;
                self.reader = reader;
                return found;
            }
            Ok((_, Err(error))) => error.to_string(),
            Err(_panicked) => "the read panicked".into(),
        };
        if let Some(more) = self.failures.due(Instant::now()) {
            tracing::warn!(error = problem, more, "cannot read the journal; trying again");
        }
        self.running = Some(tokio::task::spawn_blocking(|| {
            std::thread::sleep(AFTER_ERROR);
            (None, Ok(T::default()))
        }));
        pending().await
    }
}
