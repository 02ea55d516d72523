//! `journal`: figures and checks of a journal, and the way out of a damaged one.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::select::{JournalArgs, id_text, short_type};
use super::table::counted;
use super::{Failure, print};
use crate::config::{Faults, Loaded};
use crate::domain::clock::rfc3339;
use crate::domain::units::Size;
use crate::journal::{Fault, JournalAdmin, ReplayStatus, Row, Salvaged, SinkSummary, Summary};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// What it holds, and where each sink is; the bridge may be running
    Stats {
        #[command(flatten)]
        journal: JournalArgs,
    },
    /// Read every event and check the files, and name what is damaged; exit code 1 if anything is
    Verify {
        #[command(flatten)]
        journal: JournalArgs,
    },
    /// Write all that can be read of a stopped bridge's journal into a new one
    ///
    /// Events keep their positions and ids; what sinks have published, dead letters and what is to be resent come along,
    /// so nothing is published twice. The old directory is left as it is. What is damaged is named, and lost.
    Salvage {
        #[command(flatten)]
        journal: JournalArgs,
        /// The directory of the new journal; it may not hold one
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

pub(super) fn run(command: &Command, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    match command {
        Command::Stats { journal } => {
            let journal = journal.open(load)?;
            let summary = journal.summary()?;
            let replays = journal.replays(None)?;
            print(&describe(&summary, &replays)).map(drop)
        }
        Command::Verify { journal } => verify(&journal.open(load)?),
        Command::Salvage { journal, to } => salvage(&journal.dir(load)?, to),
    }
}

fn describe(summary: &Summary, replays: &[ReplayStatus]) -> String {
    let at = |ms| rfc3339(ms).unwrap_or_default();
    let Summary { dir, first_position, last_position, records, segments, bytes, candidates, .. } = summary;
    let mut text = format!("{}\n", dir.display());
    text += &format!("events        {records}, positions {first_position} to {last_position}\n");
    if let Some((oldest, newest)) = summary.accepted_ms {
        text += &format!("accepted      {} to {}\n", at(oldest), at(newest));
    }
    if let Some((position, accepted_ms)) = summary.complete_from.filter(|(position, _)| position > first_position) {
        text += &format!("complete from {}, position {position}\n", at(accepted_ms));
    }
    text += &format!("size          {} in {}\n", Size(*bytes), counted(*segments, "segment"));
    if *candidates > 0 {
        text += &format!("backfill      {}, which the bridge has yet to store\n", counted(*candidates, "candidate"));
    }
    for SinkSummary { name, cursor, pending, stuck, dead_letters, requeued } in &summary.sinks {
        let replays = replays.iter().filter(|replay| replay.sink == *name);
        let to_replay: u64 = replays.map(|replay| replay.total.saturating_sub(replay.done)).sum();
        text += &format!(
            "sink {name}: cursor {cursor}, pending {pending}, stuck {stuck}, dead letters {dead_letters}, to requeue \
             {requeued}, to replay {to_replay}\n"
        );
    }
    text
}

fn verify(journal: &JournalAdmin) -> Result<(), Failure> {
    let mut damage = Damage::default();
    let intact = journal.verify(|fault| {
        damage.add(&fault);
        eprintln!("{}", describe_fault(&fault));
    })?;
    match damage.describe() {
        None => print(&format!("{} OK\n", counted(intact, "event"))).map(drop),
        Some(damage) => Err(Failure::Failed(format!("{} OK, {damage}", counted(intact, "event")))),
    }
}

/// How much of each kind is damaged.
#[derive(Debug, Default)]
struct Damage {
    events: u64,
    missing: u64,
    dead_letters: u64,
    index_files: u64,
    state: u64,
}

impl Damage {
    fn add(&mut self, fault: &Fault) {
        match fault {
            Fault::Damaged { .. } => self.events += 1,
            Fault::Missing { first, last } => self.missing += last.saturating_sub(*first) + 1,
            Fault::DeadLetter { .. } => self.dead_letters += 1,
            Fault::Index(_) => self.index_files += 1,
            Fault::State(_) => self.state += 1,
        }
    }

    /// "1 damaged", and what else is wrong; `None` if nothing is.
    fn describe(&self) -> Option<String> {
        let Self { events, missing, dead_letters, index_files, state } = self;
        let others = [
            (*missing, format!("{missing} missing")),
            (*dead_letters, format!("{} damaged", counted(*dead_letters, "dead letter"))),
            (*index_files, format!("{} damaged", counted(*index_files, "index file"))),
            (*state, "the state file damaged".to_owned()),
        ];
        let others: Vec<String> = others.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect();
        if *events == 0 && others.is_empty() {
            return None;
        }
        let events = format!("{events} damaged");
        Some(std::iter::once(events).chain(others).collect::<Vec<_>>().join(", "))
    }
}

fn describe_fault(fault: &Fault) -> String {
    match fault {
        Fault::Damaged { position, id, kind } => {
            format!("position {position} ({}): damaged", identity(*id, kind.as_deref()))
        }
        Fault::Missing { first, last } => format!("positions {first} to {last}: missing"),
        Fault::DeadLetter { sink, position, id } => {
            format!("dead letter of sink {sink}, position {position} (id {}): damaged", id_text(*id))
        }
        Fault::Index(file) => format!("{file}: damaged; the bridge rebuilds it from its segment"),
        Fault::State(text) => format!("state.db: {text}"),
    }
}

fn identity(id: Option<[u8; 16]>, kind: Option<&str>) -> String {
    format!("id {}, type {}", id_text(id), kind.map_or("unknown", short_type))
}

fn salvage(dir: &Path, to: &Path) -> Result<(), Failure> {
    let is_same = dir.canonicalize().ok().is_some_and(|dir| to.canonicalize().is_ok_and(|to| to == dir));
    if is_same {
        return Err(Failure::Usage("expected another directory in --to, but found that of the journal".into()));
    }
    // A mistyped directory is made otherwise, and is salvaged as an empty journal.
    if let Err(error) = std::fs::read_dir(dir) {
        return Err(Failure::Failed(format!("cannot read the journal's directory {}: {error}", dir.display())));
    }
    let Salvaged { events, damaged } = JournalAdmin::salvage(dir, to).map_err(Failure::other)?;
    // What the index still tells of them; where the state file cannot be opened, nothing.
    let mut reader = JournalAdmin::open(dir).ok().map(|journal| journal.reader());
    for position in &damaged {
        let row = reader.as_mut().and_then(|reader| reader.at(*position).ok().flatten());
        let (id, kind) = match &row {
            Some(Row::Damaged { id, kind, .. }) => (*id, kind.as_deref()),
            Some(Row::Intact(_)) | None => (None, None),
        };
        eprintln!("position {position} ({}): lost", identity(id, kind));
    }
    let (events, lost) = (counted(events, "event"), damaged.len());
    print(&format!("{events} written to {}, {lost} damaged and lost\n", to.display())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_named_by_kind_and_no_damage_is_none() {
        assert_eq!(Damage::default().describe(), None);
        let mut damage = Damage::default();
        damage.add(&Fault::Damaged { position: 3, id: None, kind: None });
        assert_eq!(damage.describe().as_deref(), Some("1 damaged"));
        damage.add(&Fault::Missing { first: 5, last: 9 });
        damage.add(&Fault::DeadLetter { sink: "a".into(), position: 2, id: None });
        damage.add(&Fault::State("page 3".into()));
        let all = "1 damaged, 5 missing, 1 dead letter damaged, the state file damaged";
        assert_eq!(damage.describe().as_deref(), Some(all));
        let mut index = Damage::default();
        index.add(&Fault::Index("events-1.idx".into()));
        assert_eq!(index.describe().as_deref(), Some("0 damaged, 1 index file damaged"));
    }

    #[test]
    fn what_is_damaged_is_named_by_position_id_and_type() {
        let kind = Some("com.sendbird.calls.room.create".to_owned());
        let known = Fault::Damaged { position: 47, id: Some([7; 16]), kind };
        let id = "07070707-0707-0707-0707-070707070707";
        assert_eq!(describe_fault(&known), format!("position 47 (id {id}, type room.create): damaged"));
        let unknown = Fault::Damaged { position: 48, id: None, kind: None };
        assert_eq!(describe_fault(&unknown), "position 48 (id unknown, type unknown): damaged");
        assert_eq!(describe_fault(&Fault::Missing { first: 5, last: 9 }), "positions 5 to 9: missing");
    }

    #[test]
    fn stats_say_from_when_on_nothing_was_released() {
        let sink = SinkSummary { name: "kafka".into(), cursor: 4, pending: 7, stuck: 2, dead_letters: 1, requeued: 1 };
        let mut summary = Summary {
            dir: "data".into(),
            first_position: 5,
            last_position: 60,
            records: 40,
            segments: 2,
            accepted_ms: Some((0, 1_000)),
            complete_from: Some((21, 500)),
            bytes: 2048,
            candidates: 1,
            sinks: vec![sink],
        };
        let replay = ReplayStatus { id: 1, sink: "kafka".into(), created_ms: 0, total: 10, done: 4, rate: None };
        let expected = "\
data
events        40, positions 5 to 60
accepted      1970-01-01T00:00:00.000Z to 1970-01-01T00:00:01.000Z
complete from 1970-01-01T00:00:00.500Z, position 21
size          2KiB in 2 segments
backfill      1 candidate, which the bridge has yet to store
sink kafka: cursor 4, pending 7, stuck 2, dead letters 1, to requeue 1, to replay 6
";
        assert_eq!(describe(&summary, &[replay]), expected);
        summary.complete_from = Some((5, 0));
        assert!(!describe(&summary, &[]).contains("complete from"), "all that is kept is complete");
    }
}
