//! The one place that asks the machine for the time, so that tests can set it.
//!
//! Times are Unix milliseconds in an `i64`, named `*_ms` everywhere; but for those of spans, which are nanoseconds in a
//! `u64`, named `*_ns`, as OTLP has them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A source of wall-clock time, cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    fixed: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still at `now_ms` until [`Clock::set`] moves it.
    pub fn fixed(now_ms: i64) -> Self {
        Self { fixed: Some(Arc::new(AtomicI64::new(now_ms))) }
    }

    /// Moves a fixed clock, in either direction; the machine's clock is left alone.
    pub fn set(&self, now_ms: i64) {
        if let Some(fixed) = &self.fixed {
            fixed.store(now_ms, Ordering::Relaxed);
        }
    }

    /// Unix milliseconds; 0 if the machine's clock stands before 1970.
    pub fn now_ms(&self) -> i64 {
        match &self.fixed {
            Some(fixed) => fixed.load(Ordering::Relaxed),
            None => i64::try_from(since_1970().as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// Unix nanoseconds; 0 if the clock stands before 1970.
    pub fn now_ns(&self) -> u64 {
        match &self.fixed {
            Some(fixed) => u64::try_from(fixed.load(Ordering::Relaxed)).unwrap_or(0).saturating_mul(1_000_000),
            None => u64::try_from(since_1970().as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "this is the one clock")]
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// RFC 3339 in UTC with milliseconds (`2026-01-01T00:02:13.789Z`), or `None` before the year 0000,
/// which RFC 3339 can't write, and in the last days of 9999, where the calendar library ends.
pub fn rfc3339(ms: i64) -> Option<String> {
    const YEAR_0: i64 = -62_167_219_200_000;
    if ms < YEAR_0 {
        return None;
    }
    jiff::Timestamp::from_millisecond(ms).ok().map(|at| format!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_has_milliseconds_even_when_they_are_zero() {
        assert_eq!(rfc3339(1_767_225_733_789).as_deref(), Some("2026-01-01T00:02:13.789Z"));
        assert_eq!(rfc3339(0).as_deref(), Some("1970-01-01T00:00:00.000Z"));
        assert_eq!(rfc3339(-1).as_deref(), Some("1969-12-31T23:59:59.999Z"));
    }

    #[test]
    fn rfc3339_refuses_what_it_cannot_write() {
        assert_eq!(rfc3339(i64::MAX), None);
        assert_eq!(rfc3339(253_402_207_199_999).as_deref(), Some("9999-12-30T21:59:59.999Z"));
        assert_eq!(rfc3339(253_402_300_800_000), None);
        assert_eq!(rfc3339(-62_167_219_200_000).as_deref(), Some("0000-01-01T00:00:00.000Z"));
    }
}
