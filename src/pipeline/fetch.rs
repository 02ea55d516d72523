//! Reading ahead in the journal, away from the async threads, one batch at a time.

use std::future::pending;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::journal::{Batch, EngineError, Filter, Journal, Limits, Reader};

/// How much is read at a time.
const LIMITS: Limits = Limits { rows: 256, bytes: 1024 * 1024 };

/// How long to wait after a read error. The events are still there, so it is never the end of the log.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// At most one read under way.
pub(super) struct Fetch {
    journal: Journal,
    reader: Option<Reader>,
    running: Option<JoinHandle<Answer>>,
}

type Answer = (Option<Reader>, Result<Batch, EngineError>);

impl Fetch {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, reader: None, running: None }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Starts reading after `position`, unless a read is under way.
    pub(super) fn start(&mut self, position: u64) {
        if self.running.is_none() {
            let (journal, reader) = (self.journal.clone(), self.reader.take());
            self.running = Some(tokio::task::spawn_blocking(move || read(&journal, reader, position)));
        }
    }

    /// Waits for the read under way, or for ever where there is none. May be dropped and called again.
    pub(super) async fn finished(&mut self) -> Batch {
        let Some(running) = &mut self.running else { return pending().await };
        let answer = running.await;
        let problem = match answer {
            Ok((reader, Ok(batch))) => {
                self.running = None;
                self.reader = reader;
                return batch;
            }
            Ok((_, Err(error))) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(error = problem, "cannot read the journal; trying again");
        self.running = Some(tokio::task::spawn_blocking(|| {
            std::thread::sleep(AFTER_ERROR);
            (None, Ok(Batch::default()))
        }));
        pending().await
    }
}

fn read(journal: &Journal, reader: Option<Reader>, position: u64) -> Answer {
    let reader = match reader.map_or_else(|| journal.reader(), Ok) {
        Ok(reader) => reader,
        Err(error) => return (None, Err(error)),
    };
    let batch = reader.after(position, LIMITS, &Filter::default());
    (Some(reader), batch)
}
