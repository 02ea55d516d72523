//! How often something may be logged, and how many times it was not.

use std::time::{Duration, Instant};

/// While something goes on, one line in this time.
pub const INTERVAL: Duration = Duration::from_secs(30);

/// Lines about one thing, at most one in [`INTERVAL`].
#[derive(Debug, Default)]
pub struct RateLimit {
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// One more has happened: how many had no line since the last one, if this one is to have a line.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.is_closed(now) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(self.take_suppressed())
    }

    /// How many had no line, if that may be logged now and there are any.
    pub fn flush(&mut self, now: Instant) -> Option<u64> {
        if self.suppressed == 0 || self.is_closed(now) { None } else { self.admit(now) }
    }

    /// How many had no line; they count as logged from now on.
    pub fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }

    /// When the last line was.
    pub fn last(&self) -> Option<Instant> {
        self.last
    }

    fn is_closed(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.duration_since(last) < INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_everything_is_counted() {
        let (mut limit, begun) = (RateLimit::default(), Instant::now());
        assert_eq!(limit.admit(begun), Some(0));
        for second in 1..30 {
            assert_eq!(limit.admit(begun + Duration::from_secs(second)), None);
        }
        assert_eq!(limit.flush(begun + Duration::from_secs(29)), None, "too early");
        assert_eq!(limit.admit(begun + INTERVAL), Some(29));
        assert_eq!(limit.flush(begun + 3 * INTERVAL), None, "nothing was suppressed");
        assert_eq!(limit.admit(begun + INTERVAL + Duration::from_secs(1)), None);
        assert_eq!(limit.flush(begun + 2 * INTERVAL), Some(1));
    }
}
