//! The task that sends spans to a collector: it batches, retries, gives up after a limit, and logs that.
//!
//! Promises: it is the only one that waits for the collector; at a stop it has [`FLUSH_LIMIT`] for all that is left. Each
//! span is counted once: exported, refused by the collector, unsent, or overflowed where the queue was full.

use std::time::Duration;

use bytes::Bytes;
use prometheus::IntCounterVec;
use prost::Message;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Settings;
use super::collector::{Collector, Failure};
use super::span::{Recorder, Span, Tracer};
use super::wire::Shared;
pub use super::wire::{PATH_SECRET, Webhook};
use crate::domain::backoff::Backoff;
use crate::domain::clock::Clock;

/// Spans that may wait to be sent, some hundred bytes each; one more is dropped.
pub const QUEUE: usize = 4096;

/// Spans in one request, at most.
const BATCH: usize = 512;

/// How long a span may wait for others to go with it.
const LINGER: Duration = Duration::from_secs(1);

/// How long a collector may take for one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How often a batch is sent before it is dropped.
const TRIES: u32 = 5;

/// Pauses between those.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(5) };

/// How long a collector may tell the bridge to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// From the end of the last delivery and publish to the end of the task, at most. What is unsent then is dropped.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// While spans go on being dropped, one line in this time.
const QUIET: Duration = Duration::from_secs(60);

/// The values of the label `outcome` of the counter of spans.
pub const OUTCOMES: [&str; 4] = ["exported", "refused", "unsent", "overflowed"];

/// Sends what a [`Tracer`] makes.
pub struct Exporter {
    queue: mpsc::Receiver<Span>,
    collector: Collector,
    shared: Shared,
    spans: IntCounterVec,
    /// How many spans are in the batch under way.
    in_hand: u64,
    drop_log: DropLog,
}

/// Makes a tracer and what sends its spans; nothing is connected yet. `spans` is counted by one of [`OUTCOMES`].
///
/// # Errors
/// The settings can't be used: key and message.
pub fn new(
    settings: &Settings,
    webhook: Webhook,
    clock: Clock,
    spans: IntCounterVec,
) -> Result<(Tracer, Exporter), (&'static str, String)> {
    let collector = Collector::new(settings)?;
    let random = SystemRandom::new();
    let mut instance = [0; 16];
    random.fill(&mut instance).map_err(|_unspecified| ("endpoint", "the system has no random bytes".to_owned()))?;
    let shared = Shared {
        service: settings.service_name.clone(),
        instance: Uuid::new_v8(instance).to_string(),
        endpoint: webhook,
    };
    for outcome in OUTCOMES {
        spans.with_label_values(&[outcome]);
    }
    let (sender, queue) = mpsc::channel(QUEUE);
    let overflowed = spans.with_label_values(&["overflowed"]);
    let recorder = Recorder { queue: sender, overflowed, sample: settings.sample, random, clock };
    let drop_log = DropLog::default();
    let exporter = Exporter { queue, collector, shared, spans, in_hand: 0, drop_log };
    Ok((Tracer::new(recorder), exporter))
}

impl Exporter {
    /// Sends until `stop`, then what is left, but no longer than [`FLUSH_LIMIT`].
    pub async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = self.send_all(&stop) => {}
            () = async { stop.cancelled().await; sleep(FLUSH_LIMIT).await } => {
                let left = self.in_hand + u64::try_from(self.queue.len()).unwrap_or(u64::MAX);
                self.drop_unsent(left, "the collector did not accept them before the shutdown");
            }
        }
        self.count_overflowed();
        self.drop_log.log_suppressed();
    }

    async fn send_all(&mut self, stop: &CancellationToken) {
        loop {
            let batch = self.batch(stop).await;
            if batch.is_empty() {
                return;
            }
            self.in_hand = count(&batch);
            self.send(&batch, stop).await;
            self.in_hand = 0;
            self.count_overflowed();
        }
    }

    /// What is to be sent together. Empty only once nothing is left after `stop`.
    async fn batch(&mut self, stop: &CancellationToken) -> Vec<Span> {
        let mut batch = Vec::with_capacity(BATCH);
        tokio::select! {
            // Those who make spans live as long as the bridge does.
            _ = self.queue.recv_many(&mut batch, BATCH) => {}
            () = stop.cancelled() => {}
        }
        let due = sleep(LINGER);
        tokio::pin!(due);
        while batch.len() < BATCH && !stop.is_cancelled() {
            let room = BATCH - batch.len();
            tokio::select! {
                taken = self.queue.recv_many(&mut batch, room) => if taken == 0 { break },
                () = stop.cancelled() => {}
                () = &mut due => break,
            }
        }
        while batch.len() < BATCH {
            let Ok(span) = self.queue.try_recv() else { break };
            batch.push(span);
        }
        batch
    }

    /// Tries as often as is sensible; each span is exported or dropped then.
    async fn send(&mut self, batch: &[Span], stop: &CancellationToken) {
        let body = Bytes::from(self.shared.request(batch).encode_to_vec());
        let all = count(batch);
        for attempt in 0..TRIES {
            let answered = timeout(REQUEST_LIMIT, self.collector.post(body.clone())).await;
            let failure = match answered {
                Ok(Ok(refused)) => {
                    let refused = refused.min(all);
                    self.count("exported", all - refused);
                    return match refused {
                        0 => self.drop_log.recovered(),
                        some => self.drop_refused(some, "the collector rejected a part of the batch"),
                    };
                }
                Ok(Err(failure)) => failure,
                Err(_elapsed) => {
                    Failure::Retry(format!("no answer within {} s", REQUEST_LIMIT.as_secs()), Duration::ZERO)
                }
            };
            let (detail, wait) = match failure {
                Failure::Refused(detail) => return self.drop_refused(all, &detail),
                Failure::Retry(detail, wait) => (detail, wait),
            };
            if attempt + 1 == TRIES || stop.is_cancelled() {
                return self.drop_unsent(all, &detail);
            }
            tracing::debug!(detail, "export of spans failed; retrying");
            self.count_overflowed();
            let pause = BACKOFF.pause(attempt, fastrand::f64()).max(wait.min(LONGEST_WAIT));
            tokio::select! {
                () = sleep(pause) => {}
                // One more try, and no pause.
                () = stop.cancelled() => {}
            }
        }
    }

    fn drop_refused(&mut self, spans: u64, detail: &str) {
        self.count("refused", spans);
        self.drop_log.dropped(spans, detail);
    }

    fn drop_unsent(&mut self, spans: u64, detail: &str) {
        self.count("unsent", spans);
        self.drop_log.dropped(spans, detail);
    }

    fn count_overflowed(&mut self) {
        let overflowed = self.spans.with_label_values(&["overflowed"]).get();
        let new = overflowed - std::mem::replace(&mut self.drop_log.overflowed, overflowed);
        if new > 0 {
            self.drop_log.dropped(new, "the queue of spans is full");
        }
    }

    fn count(&self, outcome: &str, spans: u64) {
        self.spans.with_label_values(&[outcome]).inc_by(spans);
    }
}

fn count(batch: &[Span]) -> u64 {
    u64::try_from(batch.len()).unwrap_or(u64::MAX)
}

/// Logs when spans are dropped and when export has recovered, at a limited rate.
#[derive(Default)]
struct DropLog {
    logged: Option<Instant>,
    suppressed: u64,
    /// How many did not fit, when that was last looked at.
    overflowed: u64,
}

impl DropLog {
    fn dropped(&mut self, spans: u64, detail: &str) {
        self.suppressed += spans;
        if self.logged.is_none_or(|logged| logged.elapsed() >= QUIET) {
            self.logged = Some(Instant::now());
            let count = std::mem::take(&mut self.suppressed);
            tracing::warn!(count, detail, "spans dropped; deliveries and events are not affected");
        }
    }

    /// A whole batch was accepted. Nothing is logged shortly after another line, so a collector that comes and goes does not
    /// flood the log.
    fn recovered(&mut self) {
        if self.logged.is_some_and(|logged| logged.elapsed() >= QUIET) {
            self.log_suppressed();
            self.logged = None;
            tracing::info!("export of spans recovered");
        }
    }

    fn log_suppressed(&mut self) {
        if self.suppressed > 0 {
            tracing::warn!(count = std::mem::take(&mut self.suppressed), "more spans were dropped");
        }
    }
}
