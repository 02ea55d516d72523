//! Latencies as people read them.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::Failure;

/// How long answers took.
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Result<Self, Failure> {
        const MINUTE_IN_US: u64 = 60_000_000;
        const SIGNIFICANT_DIGITS: u8 = 3;
        Histogram::new_with_max(MINUTE_IN_US, SIGNIFICANT_DIGITS).map(Self).map_err(Failure::other)
    }

    pub(super) fn add(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// A table of two lines; nothing where nothing was answered.
    pub(super) fn table(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1000.0;
        let longest = self.0.max() as f64 / 1000.0;
        format!(
            "answers        p50        p90        p99      p99.9    longest\n\
             {:>7} {:>7.2} ms {:>7.2} ms {:>7.2} ms {:>7.2} ms {:>7.2} ms\n",
            self.0.len(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            longest
        )
    }
}
