//! Detects that the machine's clock was set back. librdkafka's threads wait until times of that clock, so after the
//! change they would wait longer by as much as the clock was set back.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::domain::clock::Clock;

/// A regression that is tolerated, in milliseconds: the client waits that much longer.
const TOLERATED_MS: i64 = 1_000;

/// How often the clock is polled. A clock that is set forward and back within this time may not be detected.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Watches the clock from a producer's beginning on.
#[derive(Debug)]
pub(super) struct ClockRegression {
    clock: Clock,
    start: Instant,
    /// The latest time of the clock's own zero, as far as it was seen: where it would have stood at `start`.
    origin_ms: AtomicI64,
    detected: CancellationToken,
}

impl ClockRegression {
    pub(super) fn watch(clock: Clock) -> Self {
        let origin_ms = AtomicI64::new(clock.now_ms());
        Self { clock, start: Instant::now(), origin_ms, detected: CancellationToken::new() }
    }

    /// Compares the clock with one that is never set. To be called every second or so.
    pub(super) fn check(&self) {
        let elapsed_ms = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        let origin_ms = self.clock.now_ms().saturating_sub(elapsed_ms);
        let latest_ms = self.origin_ms.fetch_max(origin_ms, Ordering::Relaxed);
        if origin_ms < latest_ms.saturating_sub(TOLERATED_MS) {
            self.detected.cancel();
        }
    }

    pub(super) fn is_detected(&self) -> bool {
        self.detected.is_cancelled()
    }

    /// Polls the clock until a regression is detected, for when nothing else calls [`Self::check`].
    pub(super) async fn detected_by_polling(&self) {
        while !self.is_detected() {
            sleep(POLL_INTERVAL).await;
            self.check();
        }
    }

    /// Waits until a regression was detected.
    pub(super) async fn detected(&self) {
        self.detected.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_is_noticed_also_after_it_was_set_forward() {
        const NOW_MS: i64 = 1_767_225_600_000;
        let clock = Clock::fixed(NOW_MS);
        let regression = ClockRegression::watch(clock.clone());
        for later_ms in [0, 500, 3_600_000, 3_600_000 - TOLERATED_MS / 2] {
            clock.set(NOW_MS + later_ms);
            regression.check();
            assert!(!regression.is_detected(), "{later_ms}");
        }
        clock.set(NOW_MS + 3_590_000);
        regression.check();
        assert!(regression.is_detected());
    }

    #[tokio::test]
    async fn it_is_noticed_also_while_nobody_else_looks() {
        const NOW_MS: i64 = 1_767_225_600_000;
        let clock = Clock::fixed(NOW_MS);
        let regression = ClockRegression::watch(clock.clone());
        let set_back = async {
            sleep(POLL_INTERVAL * 2).await;
            clock.set(NOW_MS - 3_600_000);
        };
        let all = async { tokio::join!(regression.detected_by_polling(), set_back) };
        assert!(tokio::time::timeout(Duration::from_secs(20), all).await.is_ok());
    }
}
