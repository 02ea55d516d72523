//! The overview: what is known of a bridge, in one sentence and in figures. The commands `status` and `top` print it, and
//! `GET /overview` gives it.

mod activity;
mod state;
mod verdict;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::Metric;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use self::activity::{Activity, INTERVAL, Reading, Since, SinkReading};
pub use self::state::{DeadLetters, Deliveries, Failure, History, Journal, Moment, Refused, Sink, State, Window};
pub use self::verdict::{Finding, Severity, Verdict, judge};
use super::readiness::Readiness;
use super::refusals::Refusals;
use super::reply::REASONS;
use crate::domain::clock::Clock;
use crate::journal;
use crate::metrics::Metrics;
use crate::pipeline::SinkStatus;
use crate::sendbird::category::Category;

/// The windows of [`Deliveries::windows`], in seconds.
const WINDOWS: [u64; 3] = [60, 300, 3600];

const HALF_HOUR: Duration = Duration::from_secs(1800);
const HOUR: Duration = Duration::from_secs(3600);

/// What "lately" means, as in the alerts.
const LATELY: Duration = Duration::from_secs(900);

/// How a bridge is, and what is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Overview {
    /// The sentence.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The figures.
    #[serde(flatten)]
    pub state: State,
}

/// A sink as the admin endpoint knows it.
pub struct SinkEntry {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: &'static str,
    /// How it is doing.
    pub status: Arc<SinkStatus>,
}

/// What reads a bridge's state.
pub struct Observer {
    journal: journal::Journal,
    max_bytes: u64,
    metrics: Arc<Metrics>,
    sinks: Arc<[SinkEntry]>,
    clock: Clock,
    readiness: Readiness,
    refusals: Arc<Refusals>,
    started_ms: i64,
    activity: Mutex<Activity>,
}

/// What an observer looks at.
pub struct Observed {
    /// What is stored.
    pub journal: journal::Journal,
    /// `journal.max_bytes`.
    pub max_bytes: u64,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The sinks, in order of name.
    pub sinks: Arc<[SinkEntry]>,
    /// For ages.
    pub clock: Clock,
    /// Whether the bridge is ready.
    pub readiness: Readiness,
    /// What the webhook's listener has refused.
    pub refusals: Arc<Refusals>,
}

impl Observer {
    /// Of a bridge that starts now.
    pub fn new(observed: Observed) -> Self {
        let Observed { journal, max_bytes, metrics, sinks, clock, readiness, refusals } = observed;
        let started_ms = clock.now_ms();
        let activity = Mutex::new(Activity::new(Instant::now(), read(&metrics, &journal, &sinks)));
        Self { journal, max_bytes, metrics, sinks, clock, readiness, refusals, started_ms, activity }
    }

    /// Reads the counters every ten seconds, without end.
    pub async fn observe(self: Arc<Self>) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is at once, and there is a reading of that already.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let reading = read(&self.metrics, &self.journal, &self.sinks);
            self.activity.lock().unwrap_or_else(PoisonError::into_inner).add(Instant::now(), reading);
        }
    }

    /// How the bridge is now. Blocks for short reads of the journal.
    pub fn overview(&self) -> Overview {
        let state = self.state();
        Overview { verdict: judge(&state), state }
    }

    fn state(&self) -> State {
        let (at, now) = (Instant::now(), read(&self.metrics, &self.journal, &self.sinks));
        let activity = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        let within = |window: Duration| activity.since(window, at, &now);
        let growth = activity.journal_growth(LATELY, at, &now).unwrap_or(0.0);
        let stats = self.journal.stats();
        let room = self.max_bytes.saturating_sub(stats.bytes) as f64;
        let last_ms = (self.metrics.last_delivery.get() * 1000.0).round() as i64;
        let sinks = self.sinks(&within(Duration::from_secs(WINDOWS[0])), &within(LATELY));
        State {
            version: env!("CARGO_PKG_VERSION").into(),
            at: Moment(self.clock.now_ms()),
            started_at: Moment(self.started_ms),
            ready: self.readiness.check().is_ok(),
            stopping: self.readiness.is_stopping(),
            deliveries: Deliveries {
                last_at: (last_ms > 0).then_some(Moment(last_ms)),
                total: now.deliveries,
                history: history(&activity),
                windows: WINDOWS.map(|seconds| window(seconds, &within(Duration::from_secs(seconds)))).to_vec(),
            },
            refused: self.refused(&now, &within(Duration::from_secs(WINDOWS[1])), &within(HALF_HOUR), &within(HOUR)),
            journal: Journal {
                stats,
                max_bytes: self.max_bytes,
                growth_bytes_per_second: growth,
                full_in_seconds: (growth > 0.0).then(|| room / growth),
                resends_dropped_lately: within(LATELY).resends_dropped(),
            },
            sinks,
        }
    }

    fn refused(&self, now: &Reading, minutes: &Since<'_>, half_hour: &Since<'_>, hour: &Since<'_>) -> Vec<Refused> {
        let last = self.refusals.last();
        let all = REASONS.iter().enumerate().filter(|(index, _)| now.refused[*index] > 0);
        let refused = all.map(|(index, reason)| {
            let last = last.iter().find(|last| last.reason == *reason);
            Refused {
                reason: (*reason).into(),
                total: now.refused[index],
                per_second: minutes.refused(index) as f64 / minutes.seconds,
                last_half_hour: half_hour.refused(index),
                last_hour: hour.refused(index),
                last_at: last.map(|last| Moment(last.at_ms)),
                last_source: last.and_then(|last| last.source).map(|source| source.to_string()),
            }
        });
        refused.collect()
    }

    fn sinks(&self, minute: &Since<'_>, lately: &Since<'_>) -> Vec<Sink> {
        let now_ms = self.clock.now_ms();
        let groups = self.journal.dead_letter_groups().unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot read the reasons of the dead letters; only their number is known");
            Vec::new()
        });
        let sinks = self.sinks.iter().enumerate().map(|(index, SinkEntry { name, kind, status })| {
            let (journal, failures) = (&self.journal, status.failures());
            let ((before, now), (old, _)) = (minute.sink(index), lately.sink(index));
            let oldest_ms = journal.oldest_pending_ms(name).unwrap_or(now_ms);
            let (pending, stuck) = (journal.pending(name), status.stuck());
            let less = before.pending.saturating_sub(now.pending) as f64 / minute.seconds;
            let caught_up = match pending.saturating_sub(stuck) {
                0 => Some(0.0),
                waiting => (less > 0.0).then(|| waiting as f64 / less),
            };
            let dead_letters = groups.iter().filter(|group| group.sink == *name).map(|group| DeadLetters {
                reason: group.reason.clone(),
                count: group.count,
                first_at: Moment(group.first_ms),
                last_at: Moment(group.last_ms),
            });
            Sink {
                name: name.clone(),
                r#type: (*kind).into(),
                connected: status.connected(),
                connected_changed_at: Moment(status.connected_changed_ms().unwrap_or(self.started_ms)),
                last_publish_at: status.published_ms().map(Moment),
                failing_since: failures.since_ms.map(Moment),
                last_failure: failures.last.map(|(at_ms, fault)| Failure {
                    at: Moment(at_ms),
                    reason: fault.reason.as_str().into(),
                    detail: fault.detail,
                }),
                pending_records: pending,
                oldest_pending_seconds: now_ms.saturating_sub(oldest_ms).max(0) as f64 / 1000.0,
                published_per_second: now.published.saturating_sub(before.published) as f64 / minute.seconds,
                caught_up_in_seconds: caught_up,
                in_flight: status.in_flight(),
                stuck_records: stuck,
                waiting_full: status.waiting_full(),
                dead_letters_total: now.dead_letters,
                dead_letters: dead_letters.collect(),
                dead_letters_lately: i64::try_from(now.dead_letters).unwrap_or(i64::MAX)
                    - i64::try_from(old.dead_letters).unwrap_or(i64::MAX),
                gone_lately: now.gone.saturating_sub(old.gone),
                broker_duplicates_lately: now.broker_duplicates.saturating_sub(old.broker_duplicates),
                resends_pending: journal.resends(name),
                active_replays: journal.active_replays(name),
            }
        });
        sinks.collect()
    }
}

fn history(activity: &Activity) -> History {
    let slots = (LATELY.as_secs() / INTERVAL.as_secs()) as usize;
    let mut history = History { step_seconds: INTERVAL.as_secs(), slots, ..History::default() };
    for step in activity.steps(slots) {
        history.deliveries_per_second.push(rounded(step.deliveries() as f64 / step.seconds));
        history.refused_per_second.push(rounded(step.refused_in_all() as f64 / step.seconds));
        history.answer_seconds_p99.push(step.answer_quantile(0.99).map(rounded));
    }
    history
}

/// To four digits behind the point: 90 numbers with all of theirs would be most of the answer.
fn rounded(number: f64) -> f64 {
    (number * 10_000.0).round() / 10_000.0
}

fn window(seconds: u64, since: &Since<'_>) -> Window {
    Window {
        seconds,
        deliveries: since.deliveries(),
        deliveries_per_second: since.deliveries() as f64 / since.seconds,
        refused: since.refused_in_all(),
        answer_seconds_p50: since.answer_quantile(0.5),
        answer_seconds_p90: since.answer_quantile(0.9),
        answer_seconds_p99: since.answer_quantile(0.99),
    }
}

/// Reads the counters.
fn read(metrics: &Metrics, journal: &journal::Journal, sinks: &[SinkEntry]) -> Reading {
    let deliveries = |outcome: &'static str| {
        Category::LABELS.iter().map(move |label| metrics.deliveries.with_label_values(&[label, outcome]).get())
    };
    let (mut answers, mut answered) = (Vec::new(), 0);
    for status in ["200", "503"] {
        let metric = metrics.answer_seconds.with_label_values(&[status]).metric();
        let histogram = metric.get_histogram();
        answered += histogram.get_sample_count();
        for (index, bucket) in histogram.get_bucket().iter().filter(|b| b.upper_bound().is_finite()).enumerate() {
            match answers.get_mut(index) {
                None => answers.push((bucket.upper_bound(), bucket.cumulative_count())),
                Some((_, count)) => *count += bucket.cumulative_count(),
            }
        }
    }
    let sink = |SinkEntry { name, .. }: &SinkEntry| {
        let published =
            Category::LABELS.iter().map(|label| metrics.sink_published.with_label_values(&[name.as_str(), label]));
        SinkReading {
            published: published.map(|counter| counter.get()).sum(),
            pending: journal.pending(name),
            dead_letters: journal.dead_letters(name),
            gone: metrics.sink_gone.with_label_values(&[name]).get(),
            broker_duplicates: metrics.sink_broker_duplicates.with_label_values(&[name]).get(),
        }
    };
    Reading {
        deliveries: deliveries("stored").chain(deliveries("duplicate")).sum(),
        refused: REASONS.iter().map(|reason| metrics.rejected.with_label_values(&[reason]).get()).collect(),
        answers,
        answered,
        journal_bytes: journal.stats().bytes,
        resends_dropped: journal.resends_dropped(),
        sinks: sinks.iter().map(sink).collect(),
    }
}
