//! Telling the person on call that a sink fails, and that it works again, without telling it for ever.

use std::time::{Duration, Instant};

use crate::sink::Fault;

/// While something goes on failing, one line in this time.
const QUIET: Duration = Duration::from_secs(30);

/// Lines about one thing, at a bounded rate.
#[derive(Debug, Default)]
pub(super) struct Lines {
    last: Option<Instant>,
    unsaid: u64,
}

impl Lines {
    /// It has happened: how often it has without a line since the last one, if there is to be a line now.
    pub(super) fn due(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < QUIET) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }

    /// It has not happened again: what was left unsaid, if that is to be said now.
    fn rest(&mut self, now: Instant) -> Option<u64> {
        if self.unsaid == 0 || self.last.is_some_and(|last| now.duration_since(last) < QUIET) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// A sink's failures since it last worked.
#[derive(Debug)]
pub(super) struct Trouble {
    sink: String,
    since: Option<Instant>,
    failures: Lines,
    set_aside: Lines,
    /// Whether the log's last word is that there is no connection, or that it fails.
    said_down: bool,
}

impl Trouble {
    pub(super) fn new(sink: &str) -> Self {
        let (failures, set_aside) = (Lines::default(), Lines::default());
        Self { sink: sink.to_owned(), since: None, failures, set_aside, said_down: true }
    }

    /// Something failed and will be tried again.
    pub(super) fn failed(&mut self, fault: &Fault) {
        let now = Instant::now();
        self.since.get_or_insert(now);
        if let Some(more) = self.failures.due(now) {
            let reason = fault.reason.as_str();
            tracing::warn!(sink = self.sink, reason, detail = fault.detail, more, "sink fails; trying again");
            self.said_down = true;
        }
    }

    /// There is a connection. Where the log has not said that it went, it need not say that it came.
    pub(super) fn connected(&mut self) {
        if std::mem::take(&mut self.said_down) {
            tracing::info!(sink = self.sink, "sink connected");
        }
    }

    /// Something was published; says whether that ended a time of trouble.
    pub(super) fn is_over(&mut self) -> bool {
        let Some(since) = self.since.take() else { return false };
        // A single failed event among many that work must not make two lines for each of its tries.
        if self.failures.last.is_some_and(|last| last >= since) {
            tracing::info!(sink = self.sink, after_seconds = since.elapsed().as_secs(), "sink publishes again");
        }
        true
    }

    /// The event at `position` is set aside.
    pub(super) fn set_aside(&mut self, position: u64, fault: &Fault) {
        if let Some(more) = self.set_aside.due(Instant::now()) {
            let reason = fault.reason.as_str();
            tracing::error!(sink = self.sink, position, reason, detail = fault.detail, more, "event set aside");
        }
    }

    /// Says in the end what was left unsaid of events set aside. To be called now and then.
    pub(super) fn say_the_rest(&mut self) {
        if let Some(more) = self.set_aside.rest(Instant::now()) {
            tracing::error!(
                sink = self.sink,
                more,
                "more events were set aside; see: sendbird-bridge dead-letters list"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_all_is_counted() {
        let (mut lines, begun) = (Lines::default(), Instant::now());
        assert_eq!(lines.due(begun), Some(0));
        for second in 1..30 {
            assert_eq!(lines.due(begun + Duration::from_secs(second)), None);
        }
        assert_eq!(lines.rest(begun + Duration::from_secs(29)), None, "not yet");
        assert_eq!(lines.due(begun + QUIET), Some(29));
        assert_eq!(lines.rest(begun + 3 * QUIET), None, "all is said");
        assert_eq!(lines.due(begun + QUIET + Duration::from_secs(1)), None);
        assert_eq!(lines.rest(begun + 2 * QUIET), Some(1));
    }
}
