//! Which journal, and which of its events: the arguments that the operator's commands share.

use std::path::PathBuf;

use uuid::Uuid;

use super::Failure;
use crate::config::{Faults, Loaded};
use crate::domain::clock::Clock;
use crate::domain::kind;
use crate::domain::units::Span;
use crate::journal::{Filter, JournalAdmin};
use crate::sendbird::category::event_type;

/// Where the journal is.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct JournalArgs {
    /// The journal's directory; by default journal.dir of the configuration
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Which stored events.
#[derive(Debug, clap::Args)]
pub(super) struct EventFilterArgs {
    /// Only the event with this id
    #[arg(long, value_name = "ID", value_parser = event_id)]
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

impl JournalArgs {
    /// The journal's directory.
    pub(super) fn dir(&self, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<PathBuf, Failure> {
        match &self.dir {
            Some(dir) => Ok(dir.clone()),
            None => match load() {
                Ok(loaded) => Ok(loaded.config.journal.dir),
                Err(faults) if faults.is_nothing_given() => {
                    Err(Failure::Usage("expected --dir, or --config with journal.dir, but found neither".into()))
                }
                Err(faults) => Err(faults.into()),
            },
        }
    }

    /// Opens the journal, beside a running bridge or not.
    pub(super) fn open(&self, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<JournalAdmin, Failure> {
        JournalAdmin::open(&self.dir(load)?).map_err(Failure::other)
    }

    /// These, or those of a subcommand where it has its own.
    pub(super) fn or(&self, outer: &Self) -> Self {
        Self { dir: self.dir.clone().or_else(|| outer.dir.clone()) }
    }
}

impl EventFilterArgs {
    pub(super) fn filter(&self) -> Result<Filter, Failure> {
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since >= until
        {
            return Err(Failure::Usage("expected --since before --until, but found it after".into()));
        }
        Ok(Filter {
            id: self.id.map(Uuid::into_bytes),
            key: self.key.clone(),
            kind: self.kind.as_deref().map(event_type),
            since_ms: self.since,
            until_ms: self.until,
        })
    }

    /// Whether nothing was given.
    pub(super) fn is_empty(&self) -> bool {
        let Self { id, key, kind, since, until } = self;
        id.is_none() && key.is_none() && kind.is_none() && since.is_none() && until.is_none()
    }
}

/// Refuses a sink that is not configured.
pub(super) fn check_sink(journal: &JournalAdmin, sink: &str) -> Result<(), Failure> {
    let sinks = journal.sinks()?;
    if sinks.iter().any(|known| known == sink) {
        return Ok(());
    }
    let known = if sinks.is_empty() { "it has none".to_owned() } else { sinks.join(", ") };
    Err(Failure::Usage(format!("expected a sink of this journal's bridge ({known}), but found \"{sink}\"")))
}

/// An event's id.
pub(super) fn event_id(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|_no_id| format!("expected an event's id (a UUID), but found \"{text}\""))
}

/// An id as it is printed; that of a damaged event may not be known.
pub(super) fn id_text(id: Option<[u8; 16]>) -> String {
    id.map_or_else(|| "unknown".to_owned(), |id| Uuid::from_bytes(id).to_string())
}

/// The type of a kind as it is printed in tables, without what all types have in common.
pub(super) fn short_type(kind: &str) -> &str {
    let event_type = kind::type_of(kind);
    event_type.strip_prefix("com.sendbird.calls.").unwrap_or(event_type)
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
