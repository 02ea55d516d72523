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
    /// The newest failure, if it had no line.
    unsaid: Option<Fault>,
    set_aside: Lines,
    /// Whether the log's last word is that there is no connection, or that it fails.
    said_down: bool,
}

impl Trouble {
    pub(super) fn new(sink: &str) -> Self {
        let (failures, set_aside) = (Lines::default(), Lines::default());
        Self { sink: sink.to_owned(), since: None, failures, unsaid: None, set_aside, said_down: true }
    }

    /// Something failed and will be tried again.
    pub(super) fn failed(&mut self, fault: &Fault) {
        let now = Instant::now();
        self.since.get_or_insert(now);
        match self.failures.due(now) {
            Some(more) => self.say(fault, more),
            None => self.unsaid = Some(fault.clone()),
        }
    }

    fn say(&mut self, fault: &Fault, more: u64) {
        let reason = fault.reason.as_str();
        tracing::warn!(sink = self.sink, reason, detail = fault.detail, more, "sink fails; trying again");
        self.unsaid = None;
        self.said_down = true;
    }

    /// The newest failure, and how many before it had no line either, if that is to be said now. Whoever tries on by
    /// himself fails no second time, and the log's last word on him would be an old one.
    fn newest(&mut self, now: Instant) -> Option<(Fault, u64)> {
        self.unsaid.as_ref()?;
        let unsaid = self.failures.rest(now)?;
        Some((self.unsaid.take()?, unsaid - 1))
    }

    /// There is a connection. Where the log has not said that it went, it need not say that it came.
    pub(super) fn connected(&mut self) {
        self.unsaid = None;
        if std::mem::take(&mut self.said_down) {
            tracing::info!(sink = self.sink, "sink connected");
        }
    }

    /// Something was published; says whether that ended a time of trouble.
    pub(super) fn is_over(&mut self) -> bool {
        let Some(since) = self.since.take() else { return false };
        self.unsaid = None;
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

    /// Says in the end what was left unsaid, of failures and of events set aside. To be called now and then.
    pub(super) fn say_the_rest(&mut self) {
        let now = Instant::now();
        if let Some((fault, more)) = self.newest(now) {
            self.say(&fault, more);
        }
        if let Some(more) = self.set_aside.rest(now) {
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
    use crate::sink::Reason;

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

    #[test]
    fn the_newest_failure_is_said_in_the_end_unless_it_is_over() {
        let fault = |detail: &str| Fault { reason: Reason::Connection, detail: detail.into() };
        let (mut trouble, begun) = (Trouble::new("s"), Instant::now());
        for detail in ["away", "expired", "expired still"] {
            trouble.failed(&fault(detail));
        }
        assert_eq!(trouble.newest(begun), None, "not yet");
        let later = Instant::now() + QUIET;
        assert_eq!(trouble.newest(later), Some((fault("expired still"), 1)));
        assert_eq!(trouble.newest(later + QUIET), None, "all is said");
        trouble.failed(&fault("away again"));
        trouble.connected();
        assert_eq!(trouble.newest(later + 3 * QUIET), None, "there is a connection");
        trouble.failed(&fault("and again"));
        assert!(trouble.is_over());
        assert_eq!(trouble.newest(later + 3 * QUIET), None, "it publishes");
    }
}
