//! What is known of a bridge at one moment; all that its verdict is made of.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::clock::rfc3339;
use crate::journal::{Health, Stats};

/// A moment in Unix milliseconds, written as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl Moment {
    /// Seconds from this moment to `later`, at least 0.
    pub fn seconds_until(self, later: Self) -> f64 {
        later.0.saturating_sub(self.0).max(0) as f64 / 1000.0
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        rfc3339(self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let at: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
        Ok(Self(at.as_millisecond()))
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time", "description": "RFC 3339, in UTC, with milliseconds." })
    }
}

/// What is known of a bridge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct State {
    /// The program's version.
    pub version: String,
    /// When this was said.
    pub at: Moment,
    /// When the bridge started. Totals are since then.
    pub started_at: Moment,
    /// Whether the journal takes events and the bridge is not stopping.
    pub ready: bool,
    /// Whether the bridge is stopping.
    pub stopping: bool,
    /// What was accepted.
    pub deliveries: Deliveries,
    /// What was refused, for each reason of which there was one since the start.
    pub refused: Vec<Refused>,
    /// What the journal holds.
    pub journal: Journal,
    /// The sinks, in order of name.
    pub sinks: Vec<Sink>,
}

/// What was accepted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Deliveries {
    /// When a delivery was answered 200 last.
    pub last_at: Option<Moment>,
    /// How many were, since the start; retries among them.
    pub total: u64,
    /// The last minute, five minutes and hour.
    pub windows: Vec<Window>,
    /// The last quarter of an hour, step by step.
    pub history: History,
}

/// The last quarter of an hour in steps, the oldest first, with a number for each in each list; fewer after a start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// How long a step is.
    pub step_seconds: u64,
    /// How many steps there are once the bridge has run for long enough.
    pub slots: usize,
    /// Deliveries answered 200, a second.
    pub deliveries_per_second: Vec<f64>,
    /// Requests that were refused, a second.
    pub refused_per_second: Vec<f64>,
    /// The time within which 99 in 100 of the deliveries were answered 200 or 503; null where none was.
    pub answer_seconds_p99: Vec<Option<f64>>,
}

/// What was answered within some time, or since the start of the bridge if that was later.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Window {
    /// The time.
    pub seconds: u64,
    /// Deliveries answered 200.
    pub deliveries: u64,
    /// The same, a second.
    pub deliveries_per_second: f64,
    /// Requests that were refused.
    pub refused: u64,
    /// The time within which half of the deliveries were answered 200 or 503; null where none was.
    pub answer_seconds_p50: Option<f64>,
    /// The same of nine in ten.
    pub answer_seconds_p90: Option<f64>,
    /// The same of 99 in 100.
    pub answer_seconds_p99: Option<f64>,
}

/// What was refused for one reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// The reason, as in `rejected_total`.
    pub reason: String,
    /// How many, since the start.
    pub total: u64,
    /// Of the last five minutes, a second.
    pub per_second: f64,
    /// How many within half an hour.
    pub last_half_hour: u64,
    /// How many within an hour.
    pub last_hour: u64,
    /// When the last was.
    pub last_at: Option<Moment>,
    /// The address that was judged by then; null where it could not be read.
    pub last_source: Option<String>,
}

/// What the journal holds, and what it may.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Journal {
    /// What it holds.
    #[serde(flatten)]
    pub stats: Stats,
    /// `journal.max_bytes`.
    pub max_bytes: u64,
    /// By how many bytes a second it has grown within 15 minutes.
    pub growth_bytes_per_second: f64,
    /// When it is full if it goes on growing so; null where it does not grow.
    pub full_in_seconds: Option<f64>,
    /// Replays and requeued dead letters that were dropped within 15 minutes.
    pub resends_dropped_lately: u64,
}

/// How a sink is doing. "Lately" is within 15 minutes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sink {
    /// Its name.
    pub name: String,
    /// Its type.
    pub r#type: String,
    /// Whether its broker can be reached and takes events.
    pub connected: bool,
    /// Since when that is so.
    pub connected_changed_at: Moment,
    /// When its broker acknowledged an event last; null where it did not since the start.
    pub last_publish_at: Option<Moment>,
    /// Since when something fails; null where all has worked since the last failure.
    pub failing_since: Option<Moment>,
    /// The last failure since the start.
    pub last_failure: Option<Failure>,
    /// Events that it wants and has not published.
    pub pending_records: u64,
    /// Since the oldest of them was accepted; 0 where there is none.
    pub oldest_pending_seconds: f64,
    /// Events published in the last minute, a second.
    pub published_per_second: f64,
    /// When nothing waits any more, if what waits goes on getting less as it did in the last minute; 0 where nothing waits,
    /// null where it gets no less. Without stuck events.
    pub caught_up_in_seconds: Option<f64>,
    /// Events that are sent and not acknowledged.
    pub in_flight: u64,
    /// Events that are stuck; each holds up its own key.
    pub stuck_records: u64,
    /// Whether so many events wait that no more are read.
    pub waiting_full: bool,
    /// How many dead letters there are.
    pub dead_letters_total: u64,
    /// The same by reason; empty where the journal cannot be read now.
    pub dead_letters: Vec<DeadLetters>,
    /// How many dead letters were added lately, less those that were requeued or discarded.
    pub dead_letters_lately: i64,
    /// Events that were no longer kept when their turn came, lately.
    pub gone_lately: u64,
    /// Events that the broker said it had already, lately.
    pub broker_duplicates_lately: u64,
    /// Replays and requeued dead letters that are still to come.
    pub resends_pending: u64,
    /// Replays under way.
    pub active_replays: u64,
}

/// A failure of a sink.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// When it was.
    pub at: Moment,
    /// The kind of failure.
    pub reason: String,
    /// What the client or broker said.
    pub detail: String,
}

/// The dead letters of a sink for one reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetters {
    /// The kind of refusal.
    pub reason: String,
    /// How many there are.
    pub count: u64,
    /// When the first of them became one.
    pub first_at: Moment,
    /// When the last of them did.
    pub last_at: Moment,
}

impl State {
    /// A bridge that has just started, with an empty journal and no sink.
    pub fn idle(at: Moment, max_bytes: u64) -> Self {
        let stats = Stats {
            health: Health::Healthy,
            first_position: 0,
            last_position: 0,
            records: 0,
            damaged_records: 0,
            segments: 1,
            bytes: 0,
            disk_free_bytes: max_bytes,
            dedup_ids: 0,
        };
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            at,
            started_at: at,
            ready: true,
            stopping: false,
            deliveries: Deliveries::default(),
            refused: Vec::new(),
            journal: Journal {
                stats,
                max_bytes,
                growth_bytes_per_second: 0.0,
                full_in_seconds: None,
                resends_dropped_lately: 0,
            },
            sinks: Vec::new(),
        }
    }

    /// The window of so many seconds.
    pub fn window(&self, seconds: u64) -> Window {
        self.deliveries.windows.iter().find(|window| window.seconds == seconds).cloned().unwrap_or_default()
    }
}
