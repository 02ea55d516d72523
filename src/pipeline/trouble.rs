//! Telling the person on call that a sink fails, and that it works again, without telling it for ever.

use std::time::{Duration, Instant};

use crate::sink::Fault;

/// While a sink goes on failing, one line in this time.
const QUIET: Duration = Duration::from_secs(30);

/// A sink's failures since it last worked.
#[derive(Debug)]
pub(super) struct Trouble {
    sink: String,
    since: Option<Instant>,
    last_line: Option<Instant>,
    unsaid: u64,
}

impl Trouble {
    pub(super) fn new(sink: &str) -> Self {
        Self { sink: sink.to_owned(), since: None, last_line: None, unsaid: 0 }
    }

    /// Something failed and will be tried again.
    pub(super) fn failed(&mut self, fault: &Fault) {
        let now = Instant::now();
        self.since.get_or_insert(now);
        if self.last_line.is_some_and(|last| now.duration_since(last) < QUIET) {
            self.unsaid += 1;
            return;
        }
        self.last_line = Some(now);
        let (reason, more) = (fault.reason.as_str(), std::mem::take(&mut self.unsaid));
        tracing::warn!(sink = self.sink, reason, detail = fault.detail, more, "sink fails; trying again");
    }

    /// Something was published; says whether that ended a time of trouble.
    pub(super) fn is_over(&mut self) -> bool {
        let Some(since) = self.since.take() else { return false };
        // A single failed event among many that work must not make two lines for each of its tries.
        if self.last_line.is_some_and(|last| last >= since) {
            tracing::info!(sink = self.sink, after_seconds = since.elapsed().as_secs(), "sink publishes again");
        }
        true
    }
}
