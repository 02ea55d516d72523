//! `journal`: figures and checks of a journal, and the way out of a damaged one.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use indicatif::{BinaryBytes, HumanCount};
use serde_json::{Value, json};

use super::drain::{self, DrainArgs};
use super::output::OutputArgs;
use super::select::{JournalArgs, id_text, short_type};
use super::table::{counted, table};
use super::{Failure, block_on, print};
use crate::config::{Faults, Loaded};
use crate::domain::clock::{Clock, rfc3339};
use crate::journal::{Fault, JournalAdmin, ReplayStatus, Row, Salvaged, SinkSummary, Summary};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// What it holds, and where each sink is; the bridge may be running
    Stats {
        #[command(flatten)]
        journal: JournalArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Read every event and check the files, and name what is damaged; exit code 1 if anything is
    Verify {
        #[command(flatten)]
        journal: JournalArgs,
        #[command(flatten)]
        output: OutputArgs,
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
    /// Publish what a stopped bridge has left; exit code 1 if anything could not be published
    ///
    /// Takes no deliveries and binds no address. Exit code 0 says that nothing is pending, stuck, to be resent or a dead letter,
    /// so that the directory can be deleted. It needs the bridge's configuration, and its journal.
    Drain(DrainArgs),
}

pub(super) fn run(command: Command, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    match command {
        Command::Stats { journal, output } => {
            let journal = journal.open(load)?;
            let (summary, replays) = (journal.summary()?, journal.replays(None)?);
            let text = if output.is_json() {
                format!("{}\n", as_json(&summary, &replays))
            } else {
                describe(&summary, &replays, Clock::system().now_ms())
            };
            print(&text).map(drop)
        }
        Command::Verify { journal, output } => verify(&journal.open(load)?, output.is_json()),
        Command::Salvage { journal, to } => salvage(&journal.dir(load)?, &to),
        Command::Drain(args) => block_on(drain::run(args, load()?)),
    }
}

fn describe(summary: &Summary, replays: &[ReplayStatus], now_ms: i64) -> String {
    let at = |ms| {
        let age = jiff::SignedDuration::from_secs(now_ms.saturating_sub(ms).max(0) / 1000);
        format!("{} ({age:#} ago)", rfc3339(ms).unwrap_or_default())
    };
    let Summary { dir, first_position, last_position, records, segments, bytes, candidates, .. } = summary;
    let mut text = format!("{}\n", dir.display());
    let mut line = |name: &str, value: String| text += &format!("{name:<16}{value}\n");
    line("events", format!("{}, positions {first_position} to {last_position}", HumanCount(*records)));
    if let Some((oldest, newest)) = summary.accepted_ms {
        line("oldest", at(oldest));
        line("newest", at(newest));
    }
    if let Some((position, accepted_ms)) = summary.complete_from.filter(|(position, _)| position > first_position) {
        line("complete from", format!("{}, position {position}", rfc3339(accepted_ms).unwrap_or_default()));
    }
    line("size", format!("{} in {}", BinaryBytes(*bytes), counted(*segments, "segment")));
    if *candidates > 0 {
        line("backfill", format!("{}, which the bridge has yet to store", counted(*candidates, "candidate")));
    }
    let rows = summary.sinks.iter().map(|sink| {
        let numbers =
            [sink.cursor, sink.pending, sink.stuck, sink.dead_letters, sink.requeued, to_replay(sink, replays)];
        std::iter::once(sink.name.clone()).chain(numbers.map(|number| number.to_string())).collect()
    });
    let names = ["SINK", "CURSOR", "PENDING", "STUCK", "DEAD LETTERS", "TO REQUEUE", "TO REPLAY"];
    if summary.sinks.is_empty() { text } else { text + "\n" + &table(&names, rows.collect()) }
}

fn to_replay(sink: &SinkSummary, replays: &[ReplayStatus]) -> u64 {
    let replays = replays.iter().filter(|replay| replay.sink == sink.name);
    replays.map(|replay| replay.total.saturating_sub(replay.done)).sum()
}

fn as_json(summary: &Summary, replays: &[ReplayStatus]) -> Value {
    let (oldest, newest) = summary.accepted_ms.unzip();
    let at = |ms: Option<i64>| ms.and_then(rfc3339);
    let sinks = summary.sinks.iter().map(|sink| {
        json!({
            "name": sink.name, "cursor": sink.cursor, "pending": sink.pending, "stuck": sink.stuck,
            "dead_letters": sink.dead_letters, "to_requeue": sink.requeued, "to_replay": to_replay(sink, replays),
        })
    });
    json!({
        "dir": summary.dir, "events": summary.records, "first_position": summary.first_position,
        "last_position": summary.last_position, "oldest": at(oldest), "newest": at(newest),
        "complete_from": summary.complete_from.map(|(position, _)| position), "segments": summary.segments,
        "bytes": summary.bytes, "backfill_candidates": summary.candidates, "sinks": sinks.collect::<Vec<_>>(),
    })
}

fn verify(journal: &JournalAdmin, as_json: bool) -> Result<(), Failure> {
    let mut damage = Damage::default();
    let mut printed = Ok(true);
    let intact = journal.verify(|fault| {
        damage.add(&fault);
        if !as_json {
            eprintln!("{}", describe_fault(&fault));
        } else if matches!(printed, Ok(true)) {
            printed = print(&format!("{}\n", fault_as_json(&fault)));
        }
    })?;
    printed?;
    if as_json {
        print(&format!("{}\n", json!({ "intact": intact })))?;
    }
    match damage.describe() {
        None if as_json => Ok(()),
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

fn fault_as_json(fault: &Fault) -> Value {
    match fault {
        Fault::Damaged { position, id, kind } => {
            json!({ "fault": "damaged", "position": position, "id": id.map(|id| id_text(Some(id))), "type": kind })
        }
        Fault::Missing { first, last } => json!({ "fault": "missing", "first": first, "last": last }),
        Fault::DeadLetter { sink, position, id } => {
            let id = id.map(|id| id_text(Some(id)));
            json!({ "fault": "dead_letter", "sink": sink, "position": position, "id": id })
        }
        Fault::Index(file) => json!({ "fault": "index", "file": file }),
        Fault::State(text) => json!({ "fault": "state", "detail": text }),
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
            records: 1_040,
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
events          1,040, positions 5 to 60
oldest          1970-01-01T00:00:00.000Z (1m 2s ago)
newest          1970-01-01T00:00:01.000Z (1m 1s ago)
complete from   1970-01-01T00:00:00.500Z, position 21
size            2.00 KiB in 2 segments
backfill        1 candidate, which the bridge has yet to store

SINK   CURSOR  PENDING  STUCK  DEAD LETTERS  TO REQUEUE  TO REPLAY
kafka  4       7        2      1             1           6
";
        assert_eq!(describe(&summary, std::slice::from_ref(&replay), 62_000), expected);
        summary.complete_from = Some((5, 0));
        assert_eq!(as_json(&summary, &[replay])["sinks"][0]["to_replay"], 6);
        assert!(!describe(&summary, &[], 0).contains("complete from"), "all that is kept is complete");
    }
}
