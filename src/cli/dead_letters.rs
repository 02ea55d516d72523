//! `dead-letters`: what brokers refused for good, or an operator set aside.

use std::collections::{BTreeMap, BTreeSet};

use clap::Subcommand;
use uuid::Uuid;

use super::output::OutputArgs;
use super::replay::until;
use super::select::{JournalArgs, check_sink, event_id, id_text, short_type};
use super::table::counted;
use super::{Failure, print};
use crate::config::{Faults, Loaded};
use crate::domain::clock::rfc3339;
use crate::domain::kind;
use crate::journal::{AdminError, DeadLetter, JournalAdmin, StoredDeadLetter};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List them, one a line, with the reason
    List {
        #[command(flatten)]
        journal: JournalArgs,
        #[command(flatten)]
        which: DeadLetterArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the envelope of a dead letter
    Show {
        #[command(flatten)]
        journal: JournalArgs,
        /// The event's id
        #[arg(value_parser = event_id)]
        id: Uuid,
    },
    /// Publish them once more; a running bridge does so within seconds, a stopped one when it starts
    ///
    /// They stay dead letters until a broker has them, and have no order towards other events of their key. One whose
    /// event is damaged, or whose sink is not configured, cannot be requeued.
    Requeue {
        #[command(flatten)]
        change: ChangeArgs,
        /// Wait until the running bridge has dealt with all of them, and say what became of them
        #[arg(long)]
        wait: bool,
    },
    /// Delete them permanently
    Discard(ChangeArgs),
}

/// Which dead letters something is to be done with; not all of them by mistake.
#[derive(Debug, clap::Args)]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    journal: JournalArgs,
    #[command(flatten)]
    which: DeadLetterArgs,
    /// All that match the other arguments
    #[arg(long, required_unless_present = "id")]
    all: bool,
}

/// Which dead letters.
#[derive(Debug, clap::Args)]
pub(super) struct DeadLetterArgs {
    /// Only those of this sink
    #[arg(long)]
    sink: Option<String>,

    /// Only those of this event
    #[arg(long, value_name = "ID", value_parser = event_id)]
    id: Option<Uuid>,
}

impl DeadLetterArgs {
    fn find(&self, journal: &JournalAdmin) -> Result<Vec<StoredDeadLetter>, Failure> {
        let id = self.id.map(Uuid::into_bytes);
        let found = journal.dead_letters(self.sink.as_deref(), id.as_ref())?;
        // A sink that is no longer configured may have some.
        if let Some(sink) = self.sink.as_ref().filter(|_| found.is_empty()) {
            check_sink(journal, sink)?;
        }
        if found.is_empty() && self.id.is_some() {
            return Err(Failure::Failed("there is no such dead letter".into()));
        }
        Ok(found)
    }
}

pub(super) fn run(command: &Command, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    match command {
        Command::List { journal, which, output } => {
            let found = which.find(&journal.open(load)?)?;
            let line = if output.is_json() { json_line } else { table_line };
            print(&found.iter().map(line).collect::<String>())?;
            if !output.is_json() {
                print(&format!("{}\n", counted(found.len() as u64, "dead letter")))?;
            }
        }
        Command::Show { journal, id } => {
            let which = DeadLetterArgs { sink: None, id: Some(*id) };
            let found = which.find(&journal.open(load)?)?;
            let intact: Vec<_> = found.iter().filter_map(|stored| stored.event.as_ref()).collect();
            if intact.is_empty() {
                return Err(Failure::Failed("the event of this dead letter is damaged".into()));
            }
            for event in intact {
                print(&format!("{}\n", String::from_utf8_lossy(&event.payload)))?;
            }
        }
        Command::Requeue { change: ChangeArgs { journal, which, .. }, wait } => {
            let mut journal = journal.open(load)?;
            let mut found = which.find(&journal)?;
            let sinks = journal.sinks()?;
            let mut requeued = Requeued::count(&found, &sinks);
            requeued.queued = journal.requeue(&found)? as u64;
            print(&requeued.describe())?;
            if which.id.is_some() && requeued.left_out() > 0 {
                return Err(Failure::Failed("not requeued".into()));
            }
            if *wait {
                let is_queued =
                    |stored: &StoredDeadLetter| stored.event.is_some() && sinks.contains(&stored.dead_letter.sink);
                found.retain(is_queued);
                return wait_for(&journal, which, &found);
            }
        }
        Command::Discard(ChangeArgs { journal, which, .. }) => {
            let mut journal = journal.open(load)?;
            let found = which.find(&journal)?;
            let discarded = journal.discard(&found)?;
            print(&format!("{discarded} discarded\n"))?;
        }
    }
    Ok(())
}

/// Waits until none of these is queued any more, and says what became of them.
fn wait_for(journal: &JournalAdmin, which: &DeadLetterArgs, found: &[StoredDeadLetter]) -> Result<(), Failure> {
    let mut asked = BTreeMap::<&str, BTreeSet<u64>>::new();
    for StoredDeadLetter { dead_letter: DeadLetter { sink, position, .. }, .. } in found {
        asked.entry(sink).or_default().insert(*position);
    }
    // How many of them are among the positions of their sinks.
    let among = |positions: fn(&JournalAdmin, &str) -> Result<Vec<u64>, AdminError>| {
        let mut count = 0;
        for (sink, asked) in &asked {
            count += positions(journal, sink)?.iter().filter(|position| asked.contains(position)).count();
        }
        Ok::<_, AdminError>(count)
    };
    until(journal, || Ok(among(JournalAdmin::requeued)? == 0))?;
    let id = which.id.map(Uuid::into_bytes);
    let left = journal.dead_letters(which.sink.as_deref(), id.as_ref())?;
    let is_asked = |of: &DeadLetter| asked.get(of.sink.as_str()).is_some_and(|asked| asked.contains(&of.position));
    let refused: Vec<_> = left.iter().filter(|stored| is_asked(&stored.dead_letter)).collect();
    let discarded = among(JournalAdmin::discarded_while_requeued)?;
    let published = found.len().saturating_sub(refused.len() + discarded);
    let meanwhile = if discarded > 0 { format!("{discarded} discarded meanwhile, ") } else { String::new() };
    print(&format!("{published} published, {meanwhile}{} still\n", counted(refused.len() as u64, "dead letter")))?;
    match refused.first() {
        None if discarded > 0 => Err(Failure::Failed(format!("{discarded} of {} were discarded", found.len()))),
        None => Ok(()),
        Some(stored) => {
            let DeadLetter { reason, detail, .. } = &stored.dead_letter;
            Err(Failure::Failed(format!("{} of {} were refused again: {reason}: {detail}", refused.len(), found.len())))
        }
    }
}

/// What became of dead letters that were to be requeued.
#[derive(Debug, Default, PartialEq, Eq)]
struct Requeued {
    /// All of them.
    found: u64,
    /// New in the queue.
    queued: u64,
    /// Whose sink is not configured.
    without_sink: u64,
    /// Whose event is damaged.
    damaged: u64,
}

impl Requeued {
    fn count(found: &[StoredDeadLetter], sinks: &[String]) -> Self {
        let mut counts = Self { found: found.len() as u64, ..Self::default() };
        for stored in found {
            if !sinks.contains(&stored.dead_letter.sink) {
                counts.without_sink += 1;
            } else if stored.event.is_none() {
                counts.damaged += 1;
            }
        }
        counts
    }

    fn left_out(&self) -> u64 {
        self.without_sink + self.damaged
    }

    fn describe(&self) -> String {
        let mut text = format!("{} requeued", self.queued);
        for (count, what) in [
            (self.found.saturating_sub(self.left_out() + self.queued), "requeued before, and not published yet"),
            (self.damaged, "left out, as their events are damaged"),
            (self.without_sink, "left out, as their sinks are not configured"),
        ] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        text + "\n"
    }
}

fn table_line(stored: &StoredDeadLetter) -> String {
    let DeadLetter { sink, position, at_ms, reason, detail } = &stored.dead_letter;
    let at = rfc3339(*at_ms).unwrap_or_default();
    let event = stored.event.as_ref();
    let (kind, key) = event.map_or(("unknown", "unknown"), |event| (short_type(&event.kind), event.key.as_str()));
    format!("{at}  {sink}  {position}  {}  {kind}  {key}  {reason}: {detail}\n", id_text(stored.id))
}

fn json_line(stored: &StoredDeadLetter) -> String {
    format!("{}\n", description(stored))
}

/// What is known of a dead letter, without its event.
pub(super) fn description(stored: &StoredDeadLetter) -> serde_json::Value {
    let DeadLetter { sink, position, at_ms, reason, detail } = &stored.dead_letter;
    let event = stored.event.as_ref();
    serde_json::json!({
        "sink": sink, "position": position, "id": stored.id.map(|id| id_text(Some(id))),
        "key": event.map(|event| &event.key), "type": event.map(|event| kind::type_of(&event.kind)),
        "reason": reason, "detail": detail, "at": rfc3339(*at_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Record;

    fn stored(sink: &str, is_damaged: bool) -> StoredDeadLetter {
        let (reason, detail) = ("unroutable".to_owned(), "NO_ROUTE".to_owned());
        let event = Record {
            position: 5,
            accepted_ms: 0,
            id: [7; 16],
            key_hash: 1,
            key: "room-1".into(),
            kind: "com.sendbird.calls.room.create".into(),
            payload: "{}".into(),
        };
        let dead_letter = DeadLetter { sink: sink.to_owned(), position: 5, reason, detail, at_ms: 0 };
        StoredDeadLetter { dead_letter, id: Some(event.id), event: (!is_damaged).then_some(event) }
    }

    #[test]
    fn what_cannot_be_requeued_is_counted_by_its_cause() {
        let found =
            [stored("a", false), stored("a", false), stored("a", true), stored("gone", true), stored("gone", false)];
        let mut requeued = Requeued::count(&found, &["a".to_owned()]);
        assert_eq!(requeued, Requeued { found: 5, queued: 0, without_sink: 2, damaged: 1 });
        requeued.queued = 1;
        assert_eq!(
            requeued.describe(),
            "1 requeued, 1 requeued before, and not published yet, 1 left out, as their events are damaged, 2 left out, \
             as their sinks are not configured\n"
        );
        assert_eq!(Requeued { found: 2, queued: 2, ..Requeued::default() }.describe(), "2 requeued\n");
    }

    #[test]
    fn a_damaged_event_is_named_as_far_as_it_is_known() {
        let id = "07070707-0707-0707-0707-070707070707";
        let line = table_line(&stored("a", true));
        assert_eq!(line, format!("1970-01-01T00:00:00.000Z  a  5  {id}  unknown  unknown  unroutable: NO_ROUTE\n"));
        let line: serde_json::Value = serde_json::from_str(&json_line(&stored("a", true))).expect("JSON");
        assert_eq!((line["id"].as_str(), &line["key"]), (Some(id), &serde_json::Value::Null));
        assert!(table_line(&stored("a", false)).contains("  room.create  room-1  "));
    }
}
