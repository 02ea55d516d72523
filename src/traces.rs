//! Spans of the bridge's own: one for each authenticated delivery, one for each event that a sink is done with.
//!
//! Where `traces` is configured, spans are made, queued without waiting, and sent by one task ([`export`]). Without it
//! each call is one branch.
//!
//! Promises: no answer, no publish and no stop waits for a collector; what does not fit or can't be sent is dropped,
//! counted and logged. In a span there is nothing that a sender wrote, but for the ids of the trace that it gave.
//! Leaves to others: which deliveries there are and what became of them (`http`, `pipeline`), the task's owner (`app`).

mod collector;
pub mod export;
mod settings;
mod span;
mod wire;

use tokio::time::Instant;

pub use self::settings::Settings;
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
