//! Which events: the arguments that the operator's commands share.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Failure;
use crate::config::Loaded;
use crate::domain::clock::Clock;
use crate::domain::units::Span;
use crate::journal::{Desk, Filter};
use crate::sendbird::category::event_type;

/// Where the journal is.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The journal's directory; by default journal.dir of the configuration
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Which stored events.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Only the event with this id
    #[arg(long, value_name = "ID")]
    id: Option<Uuid>,

    /// Only events of this call_id or room_id
    #[arg(long)]
    key: Option<String>,

    /// Only events of this type or category
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,

    /// Only events accepted at this time or later: RFC 3339, or how long ago, as in "2h"
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<i64>,

    /// Only events accepted before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<i64>,
}

impl Place {
    /// The directory, if one was given.
    pub(super) fn given(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Opens the journal, beside a running bridge or not.
    pub(super) fn open(&self, load: impl FnOnce() -> Result<Loaded, crate::config::Faults>) -> Result<Desk, Failure> {
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => load()?.config.journal.dir,
        };
        Desk::open(&dir).map_err(Failure::other)
    }
}

impl Which {
    pub(super) fn filter(&self) -> Filter {
        Filter {
            id: self.id.map(Uuid::into_bytes),
            key: self.key.clone(),
            kind: self.kind.as_deref().map(event_type),
            since_ms: self.since,
            until_ms: self.until,
        }
    }
}

/// A sink that the journal knows.
pub(super) fn check_sink(desk: &Desk, sink: &str) -> Result<(), Failure> {
    let sinks = desk.sinks().map_err(Failure::other)?;
    if sinks.iter().any(|known| known == sink) {
        return Ok(());
    }
    let known = if sinks.is_empty() { "none has been used yet".to_owned() } else { sinks.join(", ") };
    Err(Failure::Usage(format!("expected a sink of this journal ({known}), but found \"{sink}\"")))
}

/// Unix milliseconds from a point in time or a time ago.
pub(super) fn time(text: &str) -> Result<i64, String> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(at.as_millisecond());
    }
    let ago: Span = text.parse().map_err(|_no_time: String| {
        format!("expected a time such as \"2026-01-31T12:00:00Z\" or \"2h\" (ago), but found \"{text}\"")
    })?;
    Ok(Clock::system().now_ms().saturating_sub(ago.as_millis()))
}
