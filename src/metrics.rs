//! Every metric, declared once, with its help text, unit and closed set of labels.
//!
//! A leaf: it is used from the pipeline up and uses nothing of this program. Labels never come from
//! what an unauthenticated sender wrote.

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Error, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Buckets for what must fit into Sendbird's one second, fine around the 800 ms deadline.
const ANSWER: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 2.5];

/// Buckets for one commit with its fsync.
const COMMIT: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Buckets from a broker's acknowledgement to an outage of hours.
const BROKER: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0, 86400.0];

/// Handles to all metrics; cheap to use from any thread.
pub struct Metrics {
    registry: Registry,
    /// Deliveries answered 200, by category and outcome.
    pub deliveries: IntCounterVec,
    /// Deliveries not answered 200, by reason.
    pub rejected: IntCounterVec,
    /// Deliveries by whether they carry a signature header.
    pub signature_headers: IntCounterVec,
    /// Members of deliveries that this program does not know, by kind.
    pub unexpected_members: IntCounterVec,
    /// Events that nobody delivered, by category.
    pub reconciled: IntCounterVec,
    /// When a delivery was answered 200 last.
    pub last_delivery: Gauge,
    /// Time to the answer, by status.
    pub answer_seconds: HistogramVec,
    /// Events stored whose delivery was answered late, 503 or not at all.
    pub late_commits: IntCounter,
    /// Time of a group commit.
    pub journal_commit_seconds: Histogram,
    /// Events kept.
    pub journal_records: IntGauge,
    /// Bytes they take.
    pub journal_bytes: IntGauge,
    /// The budget for them.
    pub journal_max_bytes: IntGauge,
    /// Free bytes on the journal's disk.
    pub journal_disk_free_bytes: IntGauge,
    /// Events that are damaged or missing.
    pub journal_damaged_records: IntGauge,
    /// Files that hold events.
    pub journal_segments: IntGauge,
    /// Resends that were dropped.
    pub resends_dropped: IntCounter,
    /// 1 while the journal takes events.
    pub journal_healthy: IntGauge,
    /// Ids in the deduplication window.
    pub dedup_ids: IntGauge,
    /// Events acknowledged, by sink and category.
    pub sink_published: IntCounterVec,
    /// From sending to acknowledgement, by sink.
    pub sink_publish_seconds: HistogramVec,
    /// From acceptance to acknowledgement, by sink.
    pub delivery_to_broker_seconds: HistogramVec,
    /// Failures that are tried again, by sink and reason.
    pub sink_retries: IntCounterVec,
    /// 1 while a sink's broker can be reached.
    pub sink_connected: IntGaugeVec,
    /// Events sent and not yet acknowledged.
    pub sink_in_flight: IntGaugeVec,
    /// Events not yet dealt with.
    pub sink_pending_records: IntGaugeVec,
    /// When each sink's broker acknowledged an event last.
    pub sink_last_publish: prometheus::GaugeVec,
    /// Age of the oldest of them.
    pub sink_oldest_pending_seconds: prometheus::GaugeVec,
    /// Events set aside and waiting for somebody.
    pub sink_dead_letters: IntGaugeVec,
    /// Events that their target does not take, by sink.
    pub sink_stuck_records: IntGaugeVec,
    /// Whether a sink reads no more because too many events wait, by sink.
    pub sink_waiting_full: IntGaugeVec,
    /// Replays under way, by sink.
    pub replays_active: IntGaugeVec,
    /// Events that an operator wants to be published again.
    pub sink_resends_pending: IntGaugeVec,
    /// Those that were, by sink.
    pub sink_resent: IntCounterVec,
    /// Events that were no longer kept when their turn came, by sink.
    pub sink_gone: IntCounterVec,
    /// Events that the broker had already.
    pub sink_broker_duplicates: IntCounterVec,
    /// Open connections to the webhook.
    pub connections: IntGauge,
}

impl Metrics {
    /// Declares and registers everything, with zeroes for every label that is known beforehand, so that
    /// a rate has something to start from.
    ///
    /// # Errors
    /// Only if two metrics had the same name.
    pub fn new(known: &Labels<'_>) -> Result<Self, Error> {
        let declare = Declare(Registry::new());
        let metrics = Self {
            deliveries: declare.counters(
                "deliveries_total",
                "Deliveries answered 200, by category and outcome.",
                &["category", "outcome"],
            )?,
            rejected: declare.counters("rejected_total", "Deliveries not answered 200, by reason.", &["reason"])?,
            signature_headers: declare.counters(
                "signature_headers_total",
                "Deliveries by whether they carry one of the signature headers.",
                &["present"],
            )?,
            unexpected_members: declare.counters(
                "unexpected_members_total",
                "Members of deliveries that are unknown or of an unexpected type, by kind; they are passed on.",
                &["kind"],
            )?,
            reconciled: declare.counters(
                "reconciled_total",
                "Events made of what the Calls Platform API knows, as no delivery of them was stored, by category.",
                &["category"],
            )?,
            last_delivery: declare.add(Gauge::with_opts(Opts::new(
                name("last_delivery_timestamp_seconds"),
                "When a delivery was answered 200 last, in Unix seconds; 0 if none was since the start.",
            ))?)?,
            answer_seconds: declare.histograms(
                "answer_seconds",
                "Seconds from a delivery's head to its answer, by status.",
                &["status"],
                ANSWER,
            )?,
            late_commits: declare.counter(
                "late_commits_total",
                "Events stored whose delivery was answered late, 503 or not at all, so that its sender tries again.",
            )?,
            journal_commit_seconds: declare.add(Histogram::with_opts(
                HistogramOpts::new(name("journal_commit_seconds"), "Seconds of a group commit with its fsync.")
                    .buckets(COMMIT.to_vec()),
            )?)?,
            journal_records: declare.gauge("journal_records", "Events kept, published or not.")?,
            journal_bytes: declare.gauge("journal_bytes", "Bytes of the events kept.")?,
            journal_max_bytes: declare.gauge("journal_max_bytes", "The budget for journal_bytes.")?,
            journal_disk_free_bytes: declare
                .gauge("journal_disk_free_bytes", "Free bytes on the disk that holds the journal.")?,
            journal_damaged_records: declare.gauge(
                "journal_damaged_records",
                "Events that are damaged, or lie in a part of the journal that is missing.",
            )?,
            journal_segments: declare.gauge("journal_segments", "Files that hold the events.")?,
            resends_dropped: declare.counter(
                "resends_dropped_total",
                "Resends that were dropped: to make room, or because their event or their sink is gone.",
            )?,
            journal_healthy: declare.gauge("journal_healthy", "1 while the journal takes events, else 0.")?,
            dedup_ids: declare.gauge("dedup_ids", "Ids in the deduplication window.")?,
            sink_published: declare.counters(
                "sink_published_total",
                "Events acknowledged by the broker, by sink and category.",
                &["sink", "category"],
            )?,
            sink_publish_seconds: declare.histograms(
                "sink_publish_seconds",
                "Seconds from sending an event to its acknowledgement, by sink.",
                &["sink"],
                BROKER,
            )?,
            delivery_to_broker_seconds: declare.histograms(
                "delivery_to_broker_seconds",
                "Seconds from accepting a delivery to its acknowledgement by the broker, by sink.",
                &["sink"],
                BROKER,
            )?,
            sink_retries: declare.counters(
                "sink_retries_total",
                "Failures to connect or publish that are tried again, by sink and reason.",
                &["sink", "reason"],
            )?,
            sink_connected: declare
                .gauges("sink_connected", "1 while the sink's broker can be reached and takes events, else 0.")?,
            sink_in_flight: declare.gauges("sink_in_flight", "Events sent and not yet acknowledged.")?,
            sink_pending_records: declare.gauges("sink_pending_records", "Events that the sink has yet to publish.")?,
            sink_oldest_pending_seconds: declare.add(prometheus::GaugeVec::new(
                Opts::new(
                    name("sink_oldest_pending_seconds"),
                    "Age of the oldest event that the sink has yet to publish.",
                ),
                &["sink"],
            )?)?,
            sink_last_publish: declare.add(prometheus::GaugeVec::new(
                Opts::new(
                    name("sink_last_publish_timestamp_seconds"),
                    "When the broker acknowledged an event last, in Unix seconds; 0 if it did not since the start.",
                ),
                &["sink"],
            )?)?,
            sink_stuck_records: declare
                .gauges("sink_stuck_records", "Events that their target does not take; each holds up its own key.")?,
            sink_waiting_full: declare.gauges(
                "sink_waiting_full",
                "1 while so many events wait that no more are read until some are published or set aside, else 0.",
            )?,
            replays_active: declare.gauges("replays_active", "Replays under way.")?,
            sink_dead_letters: declare.gauges(
                "sink_dead_letters",
                "Events set aside because the broker refused them, because they are damaged, or by an operator.",
            )?,
            sink_resends_pending: declare.gauges(
                "sink_resends_pending",
                "Replays and requeued dead letters that the sink has yet to publish.",
            )?,
            sink_resent: declare
                .sink_counters("sink_resent_total", "Replays and requeued dead letters acknowledged by the broker.")?,
            sink_gone: declare.sink_counters(
                "sink_gone_records_total",
                "Events that were no longer kept when their turn came, and so were not published, by sink.",
            )?,
            sink_broker_duplicates: declare
                .sink_counters("sink_broker_duplicates_total", "Events that the broker says it had already.")?,
            connections: declare.gauge("connections", "Open connections to the webhook listener.")?,
            registry: declare.0.clone(),
        };
        let build = Gauge::with_opts(
            Opts::new(name("build_info"), "1, labelled with what is running.")
                .const_label("version", env!("CARGO_PKG_VERSION"))
                .const_label("features", known.features),
        )?;
        build.set(1.0);
        declare.add(build)?;
        declare.0.register(Box::new(ProcessCollector::for_self()))?;
        metrics.start_at_zero(known);
        Ok(metrics)
    }

    /// Spans by what became of them; declared only where traces are configured. To be called once.
    ///
    /// # Errors
    /// It is declared already.
    pub fn declare_spans(&self) -> Result<IntCounterVec, Error> {
        let help = "Spans of traces, by what became of them.";
        Declare(self.registry.clone()).counters("trace_spans_total", help, &["outcome"])
    }

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    /// When a metric can't be written, which would be a mistake in its declaration.
    pub fn render(&self) -> Result<Vec<u8>, Error> {
        let mut text = Vec::with_capacity(32 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    fn start_at_zero(&self, known: &Labels<'_>) {
        for category in known.categories {
            for outcome in ["stored", "duplicate"] {
                self.deliveries.with_label_values(&[category, outcome]);
            }
            self.reconciled.with_label_values(&[category]);
        }
        for reason in known.rejections {
            self.rejected.with_label_values(&[reason]);
        }
        for status in known.statuses {
            self.answer_seconds.with_label_values(&[status]);
        }
        for present in ["true", "false"] {
            self.signature_headers.with_label_values(&[present]);
        }
        for kind in ["key", "type"] {
            self.unexpected_members.with_label_values(&[kind]);
        }
        for sink in known.sinks {
            for category in known.categories {
                self.sink_published.with_label_values(&[sink, category]);
            }
            for reason in known.sink_reasons {
                self.sink_retries.with_label_values(&[sink, reason]);
            }
            self.sink_publish_seconds.with_label_values(&[sink]);
            self.delivery_to_broker_seconds.with_label_values(&[sink]);
            self.sink_broker_duplicates.with_label_values(&[sink]);
            self.sink_resent.with_label_values(&[sink]);
            self.sink_gone.with_label_values(&[sink]);
        }
    }
}

/// The closed sets of label values.
#[derive(Default)]
pub struct Labels<'a> {
    /// The known categories and `other`.
    pub categories: &'a [&'a str],
    /// Why a delivery is not answered 200.
    pub rejections: &'a [&'a str],
    /// The statuses that a delivery is answered with.
    pub statuses: &'a [&'a str],
    /// The configured sinks.
    pub sinks: &'a [&'a str],
    /// The kinds of failure of a sink.
    pub sink_reasons: &'a [&'a str],
    /// The compiled-in broker clients.
    pub features: &'a str,
}

struct Declare(Registry);

impl Declare {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counters(&self, suffix: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.add(IntCounterVec::new(Opts::new(name(suffix), help), labels)?)
    }

    fn sink_counters(&self, suffix: &str, help: &str) -> Result<IntCounterVec, Error> {
        self.counters(suffix, help, &["sink"])
    }

    fn histograms(&self, suffix: &str, help: &str, labels: &[&str], buckets: &[f64]) -> Result<HistogramVec, Error> {
        self.add(HistogramVec::new(HistogramOpts::new(name(suffix), help).buckets(buckets.to_vec()), labels)?)
    }

    fn counter(&self, suffix: &str, help: &str) -> Result<IntCounter, Error> {
        self.add(IntCounter::new(name(suffix), help)?)
    }

    fn gauge(&self, suffix: &str, help: &str) -> Result<IntGauge, Error> {
        self.add(IntGauge::new(name(suffix), help)?)
    }

    fn gauges(&self, suffix: &str, help: &str) -> Result<IntGaugeVec, Error> {
        self.add(IntGaugeVec::new(Opts::new(name(suffix), help), &["sink"])?)
    }
}

fn name(suffix: &str) -> String {
    format!("sendbird_bridge_{suffix}")
}
