//! `dead-letters`: what brokers refused for good.

use clap::Subcommand;
use uuid::Uuid;

use super::select::{Place, check_sink};
use super::{Failure, print};
use crate::config::{Faults, Loaded};
use crate::domain::clock::rfc3339;
use crate::journal::{Desk, Letter};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// One line for each, with its reason
    List {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        of: Of,
        /// JSON lines instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Print the envelope of one
    Show {
        #[command(flatten)]
        place: Place,
        /// The event's id
        id: Uuid,
    },
    /// Publish again; a running bridge does so within seconds, a stopped one when it starts
    Requeue {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        of: Of,
        /// All that the other arguments allow
        #[arg(long, required_unless_present = "id")]
        all: bool,
    },
    /// Delete for good
    Discard {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        of: Of,
        /// All that the other arguments allow
        #[arg(long, required_unless_present = "id")]
        all: bool,
    },
}

/// Which dead letters.
#[derive(Debug, clap::Args)]
pub(super) struct Of {
    /// Only those of this sink
    #[arg(long)]
    sink: Option<String>,

    /// Only those of this event
    #[arg(long)]
    id: Option<Uuid>,
}

impl Of {
    fn find(&self, desk: &Desk) -> Result<Vec<Letter>, Failure> {
        if let Some(sink) = &self.sink {
            check_sink(desk, sink)?;
        }
        let id = self.id.map(Uuid::into_bytes);
        let letters = desk.dead_letters(self.sink.as_deref(), id.as_ref()).map_err(Failure::other)?;
        if letters.is_empty() && self.id.is_some() {
            return Err(Failure::Failed("there is no such dead letter".into()));
        }
        Ok(letters)
    }
}

pub(super) fn run(command: &Command, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    match command {
        Command::List { place, of, json } => {
            let letters = of.find(&place.open(load)?)?;
            let lines: String =
                letters.iter().map(|letter| if *json { json_line(letter) } else { table_line(letter) }).collect();
            print(&lines)?;
            if !json {
                print(&format!("{} dead letter{}\n", letters.len(), if letters.len() == 1 { "" } else { "s" }))?;
            }
        }
        Command::Show { place, id } => {
            let of = Of { sink: None, id: Some(*id) };
            for letter in of.find(&place.open(load)?)? {
                print(&format!("{}\n", String::from_utf8_lossy(&letter.payload)))?;
            }
        }
        Command::Requeue { place, of, .. } => {
            let mut desk = place.open(load)?;
            let letters = of.find(&desk)?;
            let queued = desk.requeue(&letters).map_err(Failure::other)?;
            print(&format!("{queued} requeued\n"))?;
        }
        Command::Discard { place, of, .. } => {
            let mut desk = place.open(load)?;
            let letters = of.find(&desk)?;
            let discarded = desk.discard(&letters).map_err(Failure::other)?;
            print(&format!("{discarded} discarded\n"))?;
        }
    }
    Ok(())
}

fn id(letter: &Letter) -> String {
    Uuid::from_slice(&letter.id).map_or_else(|_unreadable| "unreadable".into(), |id| id.to_string())
}

fn table_line(letter: &Letter) -> String {
    let Letter { sink, position, at_ms, reason, detail, key, kind, .. } = letter;
    let at = rfc3339(*at_ms).unwrap_or_default();
    let kind = kind.strip_prefix("com.sendbird.calls.").unwrap_or(kind);
    format!("{at}  {sink}  {position}  {}  {kind}  {key}  {reason}: {detail}\n", id(letter))
}

fn json_line(letter: &Letter) -> String {
    let Letter { sink, position, at_ms, reason, detail, key, kind, .. } = letter;
    let line = serde_json::json!({
        "sink": sink, "position": position, "id": id(letter), "key": key, "type": kind,
        "reason": reason, "detail": detail, "at": rfc3339(*at_ms),
    });
    format!("{line}\n")
}
