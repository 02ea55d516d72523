//! Telling the person on call that a sink fails, and that it works again, without telling it for ever.

use std::time::{Duration, Instant};

use crate::sink::Fault;

/// While something goes on failing, one line in this time.
const QUIET: Duration = Duration::from_secs(30);

/// In that time, so many more failures of a sink have a line of their own if they say what none before has said: of two
/// that take turns, such as a closed connection and the reason for it, chance may pick the first each time.
const OTHERS: usize = 2;

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

    /// What it says is new, and worth a line that is not due: how often it has happened without one before.
    fn early(&mut self) -> u64 {
        std::mem::take(&mut self.unsaid).saturating_sub(1)
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
    /// What was said since a line was due.
    told: Vec<Fault>,
    /// The newest failure, if it had no line.
    unsaid: Option<Fault>,
    set_aside: Lines,
    /// Whether the log's last word is that there is no connection, or that it fails.
    said_down: bool,
}

impl Trouble {
    pub(super) fn new(sink: &str) -> Self {
        let (failures, set_aside) = (Lines::default(), Lines::default());
        let (told, unsaid) = (Vec::new(), None);
        Self { sink: sink.to_owned(), since: None, failures, told, unsaid, set_aside, said_down: true }
    }

    /// Something failed and will be tried again.
    pub(super) fn failed(&mut self, fault: &Fault) {
        let now = Instant::now();
        self.since.get_or_insert(now);
        if let Some(more) = self.due(fault, now) {
            self.say(fault, more);
        } else {
            self.unsaid = Some(fault.clone());
        }
    }

    /// How many failures before this one had no line, if this one is to have one.
    fn due(&mut self, fault: &Fault, now: Instant) -> Option<u64> {
        if let Some(more) = self.failures.due(now) {
            self.told.clear();
            return Some(more);
        }
        let is_new = self.told.len() <= OTHERS && !self.told.contains(fault);
        is_new.then(|| self.failures.early())
    }

    fn say(&mut self, fault: &Fault, more: u64) {
        let reason = fault.reason.as_str();
        tracing::warn!(sink = self.sink, reason, detail = fault.detail, more, "sink fails; trying again");
        self.told.push(fault.clone());
        self.unsaid = None;
        self.said_down = true;
    }

    /// The newest failure, and how many before it had no line either, if that is to be said now. Whoever tries on by
    /// himself fails no second time, and the log's last word on him would be an old one.
    fn newest(&mut self, now: Instant) -> Option<(Fault, u64)> {
        self.unsaid.as_ref()?;
        let unsaid = self.failures.rest(now)?;
        self.told.clear();
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
    fn a_failure_that_says_something_else_has_a_line_at_once_but_not_for_ever() {
        let (mut trouble, now) = (Trouble::new("s"), Instant::now());
        let mut said = |text: &str| {
            let fault = Fault { reason: Reason::Connection, detail: text.into() };
            let more = trouble.due(&fault, now);
            more.inspect(|more| trouble.say(&fault, *more))
        };
        let lines = ["reset", "reset", "reset", "no certificate", "reset", "a", "b", "c"].map(&mut said);
        assert_eq!(lines, [Some(0), None, None, Some(2), None, Some(1), None, None]);
    }

    #[test]
    fn the_newest_failure_is_said_in_the_end_unless_it_is_over() {
        let fault = |detail: &str| Fault { reason: Reason::Connection, detail: detail.into() };
        let (mut trouble, begun) = (Trouble::new("s"), Instant::now());
        for detail in ["away", "expired", "away", "expired"] {
            trouble.failed(&fault(detail));
        }
        assert_eq!(trouble.newest(begun), None, "not yet");
        let later = Instant::now() + QUIET;
        assert_eq!(trouble.newest(later), Some((fault("expired"), 1)));
        assert_eq!(trouble.newest(later + QUIET), None, "all is said");
        trouble.failed(&fault("away again"));
        trouble.connected();
        assert_eq!(trouble.newest(later + 3 * QUIET), None, "there is a connection");
        trouble.failed(&fault("and again"));
        assert!(trouble.is_over());
        assert_eq!(trouble.newest(later + 3 * QUIET), None, "it publishes");
    }
}
