//! What the log says of a sink that fails: enough to know what is wrong, at a bounded rate, and that it is over.

use std::time::Instant;

use bytes::Bytes;

use crate::domain::envelope::View;
use crate::domain::rate_limit::RateLimit;
use crate::sink::Fault;

/// In one interval of [`RateLimit`], so many failures have a line of their own because they are unlike those before: of
/// two that take turns, such as a closed connection and the reason for it, chance may pick the first each time.
const OTHERS: usize = 2;

/// A sink's failures since it last worked.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    sink: String,
    failing_since: Option<Instant>,
    failures: RateLimit,
    /// The failures that were logged in this interval.
    logged: Vec<Fault>,
    /// The newest failure, if it was not logged.
    newest: Option<Fault>,
    set_aside: RateLimit,
    stuck: RateLimit,
    /// Whether the last line about the connection says that there is none, or that it fails.
    logged_down: bool,
}

impl FailureLog {
    pub(super) fn new(sink: &str) -> Self {
        Self { sink: sink.to_owned(), logged_down: true, ..Self::default() }
    }

    /// Something failed and will be tried once more.
    pub(super) fn failed(&mut self, fault: &Fault, now: Instant) {
        self.failing_since.get_or_insert(now);
        match self.admit(fault, now) {
            Some(suppressed) => self.log(fault, suppressed),
            None => self.newest = Some(fault.clone()),
        }
    }

    /// How many failures before this one had no line, if this one is to have one.
    fn admit(&mut self, fault: &Fault, now: Instant) -> Option<u64> {
        if let Some(suppressed) = self.failures.admit(now) {
            self.logged.clear();
            return Some(suppressed);
        }
        let is_new = self.logged.len() <= OTHERS && !self.logged.contains(fault);
        // It was counted as one without a line.
        is_new.then(|| self.failures.take_suppressed().saturating_sub(1))
    }

    fn log(&mut self, fault: &Fault, suppressed: u64) {
        let reason = fault.reason.as_str();
        let suppressed = (suppressed > 0).then_some(suppressed);
        tracing::warn!(sink = self.sink, reason, detail = fault.detail, suppressed, "publish failed; retrying");
        self.logged.push(fault.clone());
        self.newest = None;
        self.logged_down = true;
    }

    /// There is a connection.
    pub(super) fn connected(&mut self) {
        self.newest = None;
        // Where no line says that it was lost, none has to say that it is back.
        if std::mem::take(&mut self.logged_down) {
            tracing::info!(sink = self.sink, "sink connected");
        }
    }

    /// An event was published and nothing is failing any more. Returns whether something was.
    pub(super) fn recovered(&mut self, now: Instant) -> bool {
        let Some(since) = self.failing_since.take() else { return false };
        self.newest = None;
        // A single failed event among many that work must not make two lines for each of its tries.
        if self.failures.last().is_some_and(|last| last >= since) {
            let after_seconds = now.duration_since(since).as_secs();
            tracing::info!(sink = self.sink, after_seconds, "sink recovered");
        }
        true
    }

    /// The event that `payload` holds, or a damaged one, became a dead letter.
    pub(super) fn set_aside(&mut self, position: u64, payload: Option<&Bytes>, fault: &Fault, now: Instant) {
        let Some(suppressed) = self.set_aside.admit(now) else { return };
        let event = payload.and_then(|payload| View::parse(payload).ok());
        tracing::error!(
            sink = self.sink,
            position,
            id = event.as_ref().map(|event| &*event.envelope().id),
            key = event.as_ref().map(View::key),
            reason = fault.reason.as_str(),
            detail = fault.detail,
            suppressed = (suppressed > 0).then_some(suppressed),
            "event became a dead letter; see: sendbird-bridge dead-letters list"
        );
    }

    /// Events are stuck, `total` of this sink by now.
    pub(super) fn stuck(&mut self, target: &str, reason: &str, total: usize, now: Instant) {
        if self.stuck.admit(now).is_some() {
            tracing::error!(
                sink = self.sink,
                target,
                reason,
                stuck = total,
                "events cannot be published and hold up their keys; see: sendbird-bridge stuck list"
            );
        }
    }

    /// Logs the newest failure and how many events were set aside, if there was no line for them yet. To be called now
    /// and then: a client that retries by itself fails only once, and its last line would be an old one.
    pub(super) fn flush(&mut self, now: Instant) {
        if let Some((fault, suppressed)) = self.flush_failures(now) {
            self.log(&fault, suppressed);
        }
        if let Some(count) = self.set_aside.flush(now) {
            tracing::error!(
                sink = self.sink,
                count,
                "events became dead letters; see: sendbird-bridge dead-letters list"
            );
        }
    }

    fn flush_failures(&mut self, now: Instant) -> Option<(Fault, u64)> {
        self.newest.as_ref()?;
        let count = self.failures.flush(now)?;
        self.logged.clear();
        Some((self.newest.take()?, count - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::rate_limit::INTERVAL;
    use crate::sink::Reason;

    fn fault(detail: &str) -> Fault {
        Fault { reason: Reason::Connection, detail: detail.into() }
    }

    #[test]
    fn a_failure_with_another_text_is_logged_at_once_but_not_for_ever() {
        let (mut log, now) = (FailureLog::new("s"), Instant::now());
        let mut admit = |text: &str| {
            let admitted = log.admit(&fault(text), now);
            admitted.inspect(|suppressed| log.log(&fault(text), *suppressed))
        };
        let lines = ["reset", "reset", "reset", "no certificate", "reset", "a", "b", "c"].map(&mut admit);
        assert_eq!(lines, [Some(0), None, None, Some(2), None, Some(1), None, None]);
    }

    #[test]
    fn the_newest_failure_is_logged_in_the_end_unless_the_sink_recovers() {
        let (mut log, begun) = (FailureLog::new("s"), Instant::now());
        for detail in ["away", "expired", "away", "expired"] {
            log.failed(&fault(detail), begun);
        }
        assert_eq!(log.flush_failures(begun), None, "too early");
        let later = begun + INTERVAL;
        assert_eq!(log.flush_failures(later), Some((fault("expired"), 1)));
        assert_eq!(log.flush_failures(later + INTERVAL), None, "everything is logged");
        log.failed(&fault("reset"), later);
        log.connected();
        assert_eq!(log.flush_failures(later + 3 * INTERVAL), None, "there is a connection");
        log.failed(&fault("closed"), later);
        assert!(log.recovered(later));
        assert_eq!(log.flush_failures(later + 3 * INTERVAL), None, "it publishes");
    }
}
