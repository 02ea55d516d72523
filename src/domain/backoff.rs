//! How long to wait before retrying.
//!
//! Exponential with equal jitter: half of the step is certain, half is random, so that many waiters
//! spread out and yet none returns at once.

use std::time::Duration;

/// The bounds of a growing pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first step; the shortest pause is half of it.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Backoff {
    /// The pause before retry number `attempt` (0 is the first retry); `random` lies in `0.0..=1.0`.
    pub fn pause(&self, attempt: u32, random: f64) -> Duration {
        let step = self.first.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(self.longest);
        let half = step / 2;
        half + half.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SINK: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };

    #[test]
    fn doubles_up_to_the_longest() {
        let full: Vec<_> = (0..8).map(|attempt| SINK.pause(attempt, 1.0).as_millis()).collect();
        assert_eq!(full, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(SINK.pause(u32::MAX, 0.0), Duration::from_millis(2500));
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(attempt: u32, random in -1.0f64..2.0) {
            let pause = SINK.pause(attempt, random);
            prop_assert!(pause >= SINK.first / 2 && pause <= SINK.longest);
        }
    }
}
