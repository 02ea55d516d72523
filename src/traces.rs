//! Spans of the bridge's own: one for each authenticated delivery, one for each event that a sink is done with.
//!
//! It has one face and two insides. With the feature `otlp` spans are made where `traces` is configured, queued without
//! waiting, and sent by one task ([`export`]). Without it the types have no size and the functions are empty, so nothing
//! is left of the calls.
//!
//! Promises: no answer, no publish and no stop waits for a collector; what does not fit or can't be sent is dropped,
//! counted and logged. In a span there is nothing that a sender wrote, but for the ids of the trace that it gave.
//! Leaves to others: which deliveries there are and what became of them (`http`, `pipeline`), the task's owner (`app`).

#[cfg(feature = "otlp")]
mod collector;
#[cfg(feature = "otlp")]
pub mod export;
#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(feature = "otlp")]
mod settings;
#[cfg(feature = "otlp")]
mod span;
#[cfg(feature = "otlp")]
mod wire;

use tokio::time::Instant;

#[cfg(not(feature = "otlp"))]
pub use self::off::{Delivery, Publish, Publisher, Tracer};
#[cfg(feature = "otlp")]
pub use self::settings::Settings;
#[cfg(feature = "otlp")]
pub use self::span::{Delivery, Publish, Publisher, Tracer};

/// What a delivery was answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable.
    Stored,
    /// It was durable already.
    Duplicate,
    /// It was not taken, for a reason from a closed set.
    Refused(&'static str),
}

/// Where a sink publishes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The sink's name.
    pub sink: String,
    /// Its type.
    pub system: &'static str,
    /// The topic, exchange and routing key, or subject, with its placeholders.
    pub template: Option<String>,
}

/// What became of an event at a sink.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// When it was first sent.
    pub begun: Instant,
    /// How often it failed and was sent again.
    pub retries: u32,
    /// Whether an operator wanted it to be published again.
    pub resend: bool,
    /// The category, from the closed set.
    pub category: &'static str,
    /// Why it was set aside, from a closed set; `None` for what the broker has acknowledged.
    pub refused: Option<&'static str>,
}
