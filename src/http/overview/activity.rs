//! What was counted over the last hour: the counters, read every ten seconds. Nothing of this is on the way of a delivery.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often the counters are read.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// How many readings are kept: those of an hour, and the one before it.
const KEPT: usize = 361;

/// One reading of the counters. Counts are since the start of the bridge.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Reading {
    /// Deliveries answered 200.
    pub(super) deliveries: u64,
    /// Refusals, in order of [`super::super::reply::REASONS`].
    pub(super) refused: Vec<u64>,
    /// Answers 200 and 503, by the upper bounds of their buckets in seconds, each with those of the buckets below it;
    /// without those that took longer than the last bound.
    pub(super) answers: Vec<(f64, u64)>,
    /// All of them.
    pub(super) answered: u64,
    /// Bytes in the journal.
    pub(super) journal_bytes: u64,
    /// Resends that were dropped.
    pub(super) resends_dropped: u64,
    /// The sinks, in order of name.
    pub(super) sinks: Vec<SinkReading>,
}

/// The part of a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SinkReading {
    pub(super) published: u64,
    pub(super) pending: u64,
    pub(super) dead_letters: u64,
    pub(super) gone: u64,
    pub(super) broker_duplicates: u64,
}

/// The readings of the last hour, the oldest first.
#[derive(Debug)]
pub(super) struct Activity(VecDeque<(Instant, Reading)>);

/// What has changed since an earlier reading.
pub(super) struct Since<'a> {
    before: &'a Reading,
    now: &'a Reading,
    /// How long ago that was; never 0.
    pub(super) seconds: f64,
}

impl Activity {
    /// From the counters at the start.
    pub(super) fn new(at: Instant, first: Reading) -> Self {
        Self(VecDeque::from([(at, first)]))
    }

    pub(super) fn add(&mut self, at: Instant, reading: Reading) {
        while self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back((at, reading));
    }

    /// What has changed within the window, or since the start if that was later. A window is up to ten seconds longer
    /// than it says.
    pub(super) fn since<'a>(&'a self, window: Duration, at: Instant, now: &'a Reading) -> Since<'a> {
        let is_old = |(taken, _): &&(Instant, Reading)| at.duration_since(*taken) >= window;
        // There is always one.
        let before = self.0.iter().rev().find(is_old).or(self.0.front());
        let (taken, before) = before.map_or((at, now), |(taken, before)| (*taken, before));
        Since { before, now, seconds: at.duration_since(taken).as_secs_f64().max(0.001) }
    }

    /// What has changed from each reading to the next, the oldest first, of so many at most.
    pub(super) fn steps(&self, count: usize) -> impl Iterator<Item = Since<'_>> {
        let skipped = self.0.len().saturating_sub(count + 1);
        let pairs = self.0.iter().zip(self.0.iter().skip(1)).skip(skipped);
        pairs.map(|((from, before), (to, now))| Since {
            before,
            now,
            seconds: to.duration_since(*from).as_secs_f64().max(0.001),
        })
    }

    /// By how many bytes a second the journal grows, as the line through the readings of the window says. That is what
    /// Prometheus calls `deriv`. `None` with fewer than two readings.
    pub(super) fn journal_growth(&self, window: Duration, at: Instant, now: &Reading) -> Option<f64> {
        let within = self.0.iter().filter(|(taken, _)| at.duration_since(*taken) <= window);
        let points = within.map(|(taken, reading)| (-at.duration_since(*taken).as_secs_f64(), reading.journal_bytes));
        let points: Vec<(f64, f64)> =
            points.chain([(0.0, now.journal_bytes)]).map(|(seconds, bytes)| (seconds, bytes as f64)).collect();
        let count = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
        slope.is_finite().then_some(slope)
    }
}

impl Since<'_> {
    pub(super) fn deliveries(&self) -> u64 {
        self.now.deliveries.saturating_sub(self.before.deliveries)
    }

    /// Refusals for the reason of this index.
    pub(super) fn refused(&self, reason: usize) -> u64 {
        let of = |reading: &Reading| reading.refused.get(reason).copied().unwrap_or(0);
        of(self.now).saturating_sub(of(self.before))
    }

    pub(super) fn refused_in_all(&self) -> u64 {
        (0..self.now.refused.len()).map(|reason| self.refused(reason)).sum()
    }

    pub(super) fn resends_dropped(&self) -> u64 {
        self.now.resends_dropped.saturating_sub(self.before.resends_dropped)
    }

    /// The sink of this index before and now.
    pub(super) fn sink(&self, index: usize) -> (SinkReading, SinkReading) {
        let of = |reading: &Reading| reading.sinks.get(index).copied().unwrap_or_default();
        (of(self.before), of(self.now))
    }

    /// The time in seconds within which this share of the answers was given, as Prometheus' `histogram_quantile` says it:
    /// within a bucket, answers are taken to be spread evenly. `None` where nothing was answered.
    pub(super) fn answer_quantile(&self, share: f64) -> Option<f64> {
        let count = |index: usize| {
            let of = |reading: &Reading| reading.answers.get(index).map_or(0, |(_, count)| *count);
            of(self.now).saturating_sub(of(self.before)) as f64
        };
        let answered = self.now.answered.saturating_sub(self.before.answered) as f64;
        if answered == 0.0 {
            return None;
        }
        let rank = share * answered;
        let (mut low, mut below) = (0.0, 0.0);
        for (index, (bound, _)) in self.now.answers.iter().enumerate() {
            let upto = count(index);
            if upto >= rank {
                return Some(low + (bound - low) * (rank - below) / (upto - below).max(f64::MIN_POSITIVE));
            }
            (low, below) = (*bound, upto);
        }
        // Longer than the last bound, by how much is not known.
        Some(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(deliveries: u64, bytes: u64) -> Reading {
        Reading { deliveries, journal_bytes: bytes, ..Reading::default() }
    }

    #[test]
    fn a_window_begins_at_the_newest_reading_that_is_as_old() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut activity = Activity::new(start, reading(0, 0));
        for tick in 1..=400 {
            activity.add(at(10 * tick), reading(10 * tick, 0));
        }
        assert_eq!(activity.0.len(), KEPT);
        let steps: Vec<_> = activity.steps(90).map(|step| (step.deliveries(), step.seconds)).collect();
        assert_eq!(steps, [(10, 10.0); 90]);
        let (mut young, tick) = (Activity::new(start, reading(5, 0)), at(10));
        assert_eq!(young.steps(90).count(), 0);
        young.add(tick, reading(9, 0));
        assert_eq!(young.steps(90).map(|step| step.deliveries()).collect::<Vec<_>>(), [4]);
        let now = reading(4_007, 0);
        let within = |seconds| {
            let since = activity.since(Duration::from_secs(seconds), at(4_007), &now);
            (since.deliveries(), since.seconds)
        };
        assert_eq!(within(60), (67, 67.0));
        assert_eq!(within(3_600), (3_607, 3_607.0), "the whole hour is kept");
        assert_eq!(within(36_000), (3_607, 3_607.0), "and no more");
        let young = Activity::new(start, reading(5, 0));
        let since = young.since(Duration::from_secs(3_600), at(2), &reading(9, 0)).deliveries();
        assert_eq!(since, 4, "since the start");
    }

    #[test]
    fn growth_is_the_slope_of_the_readings() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut activity = Activity::new(start, reading(0, 1_000));
        assert_eq!(activity.journal_growth(INTERVAL, start, &reading(0, 1_000)), None, "no time has passed");
        for tick in 1..=9 {
            activity.add(at(10 * tick), reading(0, 1_000 + 50 * tick));
        }
        let growth = activity.journal_growth(Duration::from_secs(900), at(100), &reading(0, 1_500)).unwrap();
        assert!((growth - 5.0).abs() < 1e-9, "{growth}");
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let start = Instant::now();
        let answers = |counts: [u64; 3]| [0.1, 0.2, 0.4].into_iter().zip(counts).collect();
        let before = Reading { answers: answers([5, 5, 5]), answered: 5, ..Reading::default() };
        let activity = Activity::new(start, before);
        let now = Reading { answers: answers([55, 95, 104]), answered: 105, ..Reading::default() };
        let since = activity.since(Duration::from_secs(1), start, &now);
        let quantile = |share| (since.answer_quantile(share).unwrap() * 1e6).round() / 1e6;
        assert_eq!(quantile(0.5), 0.1);
        assert_eq!(quantile(0.7), 0.15, "half way through the second bucket");
        assert_eq!(quantile(1.0), 0.4, "beyond the last bound");
        let unanswered = activity.since(Duration::from_secs(1), start, &activity.0[0].1);
        assert_eq!(unanswered.answer_quantile(0.5), None);
    }
}
