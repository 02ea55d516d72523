//! `stuck`: what sinks cannot publish although they are connected, and the way to let the rest of a key go on.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;
use uuid::Uuid;

use super::output::OutputArgs;
use super::select::{JournalArgs, check_sink, event_id, id_text, short_type};
use super::table::{counted, table};
use super::{Failure, print};
use crate::config::{Faults, Loaded};
use crate::domain::clock::{Clock, rfc3339};
use crate::domain::kind;
use crate::journal::{JournalAdmin, ListedStuckEvent, StuckEvent, StuckFilter};
use crate::sendbird::category::event_type;

/// How many events are listed if nothing else is asked for; the sums are of all.
const LISTED: usize = 50;

/// How long a running bridge may set nothing aside before it is waited for no longer.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Sums by sink, target and reason; then one line for each event
    List {
        #[command(flatten)]
        journal: JournalArgs,
        #[command(flatten)]
        which: StuckFilterArgs,
        /// At most so many events; by default 50, or with --output json all. The sums are always of all
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the envelope of a stuck event; the reason goes to standard error
    Show {
        #[command(flatten)]
        journal: JournalArgs,
        /// The event's id
        #[arg(value_parser = event_id)]
        id: Uuid,
    },
    /// Turn stuck events into dead letters, so that later events of their calls and rooms are published
    ///
    /// A running bridge does it, and is waited for; on a stopped bridge's directory it is done here.
    #[command(
        after_help = "An event that is set aside is a dead letter. If it is requeued later, it is published after \
                            events that have come since: it has no order towards its key."
    )]
    SetAside {
        #[command(flatten)]
        journal: JournalArgs,
        #[command(flatten)]
        which: StuckFilterArgs,
        /// All that are stuck; needed where nothing else narrows them down
        #[arg(long)]
        all: bool,
        /// Also the events of the same call or room that wait behind them
        #[arg(long)]
        waiting: bool,
        /// At most so many stuck events, the oldest of each sink first
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
}

/// Which stuck events.
#[derive(Debug, Default, clap::Args)]
pub(super) struct StuckFilterArgs {
    /// Only those of this sink
    #[arg(long)]
    sink: Option<String>,

    /// Only those of this call_id or room_id
    #[arg(long)]
    key: Option<String>,

    /// Only those of this event
    #[arg(long, value_name = "ID", value_parser = event_id)]
    id: Option<Uuid>,

    /// Only those for this reason, as in the list
    #[arg(long)]
    reason: Option<String>,

    /// Only those of this type or category
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
}

impl StuckFilterArgs {
    fn filter(&self, journal: &JournalAdmin) -> Result<StuckFilter, Failure> {
        if let Some(sink) = &self.sink {
            check_sink(journal, sink)?;
        }
        Ok(StuckFilter {
            sink: self.sink.clone(),
            key: self.key.clone(),
            id: self.id.map(Uuid::into_bytes),
            reason: self.reason.clone(),
            kind: self.kind.as_deref().map(event_type),
        })
    }

    fn is_empty(&self) -> bool {
        let Self { sink, key, id, reason, kind } = self;
        sink.is_none() && key.is_none() && id.is_none() && reason.is_none() && kind.is_none()
    }
}

pub(super) fn run(command: &Command, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    match command {
        Command::List { journal, which, limit, output } => list(&journal.open(load)?, which, *limit, output.is_json()),
        Command::Show { journal, id } => show(&journal.open(load)?, *id),
        Command::SetAside { journal, which, all, waiting, limit } => {
            if which.is_empty() && !all {
                return Err(Failure::Usage("expected --sink, --key, --id, --reason, --type or --all".into()));
            }
            set_aside(&mut journal.open(load)?, which, *waiting, limit.unwrap_or(usize::MAX))
        }
    }
}

fn list(journal: &JournalAdmin, which: &StuckFilterArgs, limit: Option<usize>, json: bool) -> Result<(), Failure> {
    let filter = which.filter(journal)?;
    if json {
        return list_json(journal, &filter, limit.unwrap_or(usize::MAX));
    }
    let limit = limit.unwrap_or(LISTED);
    let (mut sums, mut listed) = (Sums::default(), Vec::new());
    journal.for_each_stuck(&filter, |event| {
        sums.add(&event);
        if listed.len() < limit {
            listed.push(event_row(&event));
        }
        true
    })?;
    print(&sums.describe(listed)).map(drop)
}

fn list_json(journal: &JournalAdmin, filter: &StuckFilter, limit: usize) -> Result<(), Failure> {
    let (mut count, mut printed) = (0, Ok(true));
    journal.for_each_stuck(filter, |event| {
        if count >= limit {
            return false;
        }
        count += 1;
        printed = print(&json_line(&event));
        matches!(printed, Ok(true))
    })?;
    printed.map(drop)
}

fn show(journal: &JournalAdmin, id: Uuid) -> Result<(), Failure> {
    let filter = StuckFilter { id: Some(id.into_bytes()), ..StuckFilter::default() };
    let events = journal.stuck(&filter, usize::MAX)?;
    if events.is_empty() {
        return Err(not_stuck());
    }
    for event in events {
        eprint!("{}", describe(&event));
        match &event.event {
            Some(record) => drop(print(&format!("{}\n", String::from_utf8_lossy(&record.payload)))?),
            None => eprintln!("the event is damaged; see: sendbird-bridge journal verify"),
        }
    }
    Ok(())
}

fn set_aside(journal: &mut JournalAdmin, which: &StuckFilterArgs, waiting: bool, limit: usize) -> Result<(), Failure> {
    let filter = which.filter(journal)?;
    let mut events = Vec::new();
    journal.for_each_stuck(&filter, |mut event| {
        if events.len() >= limit {
            return false;
        }
        // Many may be stuck, and what they say is not needed for this.
        event.event.iter_mut().for_each(|record| record.payload.clear());
        events.push(event);
        true
    })?;
    if events.is_empty() && which.id.is_some() {
        return Err(not_stuck());
    }
    let now_ms = Clock::system().now_ms();
    let (set_aside, published) = journal.set_aside(&events, waiting, now_ms, PATIENCE)?;
    print(&format!("{set_aside} set aside, {published} published meanwhile\n")).map(drop)
}

fn not_stuck() -> Failure {
    Failure::Failed("there is no such stuck event".into())
}

/// Sums by sink, target and reason.
#[derive(Debug, Default)]
struct Sums {
    by_cause: BTreeMap<(String, String, String), Sum>,
    events: u64,
    waiting_behind: u64,
}

#[derive(Debug, Default)]
struct Sum {
    events: u64,
    waiting_behind: u64,
    since_ms: i64,
    /// What the broker said last of the oldest of them.
    detail: String,
}

impl Sums {
    fn add(&mut self, event: &ListedStuckEvent) {
        let StuckEvent { reason, detail, target, since_ms, .. } = &event.stuck;
        self.events += 1;
        self.waiting_behind += event.waiting_behind;
        let sum = self.by_cause.entry((event.sink.clone(), target.to_string(), reason.to_string())).or_default();
        if sum.events == 0 || *since_ms < sum.since_ms {
            (sum.since_ms, sum.detail) = (*since_ms, detail.to_string());
        }
        sum.events += 1;
        sum.waiting_behind += event.waiting_behind;
    }

    /// The sums, then the listed events, then what to do.
    fn describe(&self, listed: Vec<Vec<String>>) -> String {
        let Some(((sink, _, reason), _)) = self.by_cause.iter().max_by_key(|(_, sum)| sum.events) else {
            return "0 events are stuck\n".to_owned();
        };
        let rows = self.by_cause.iter().map(|((sink, target, reason), sum)| {
            let Sum { events, waiting_behind, since_ms, detail } = sum;
            let (events, waiting_behind) = (events.to_string(), waiting_behind.to_string());
            let target = of_target(target);
            vec![sink.clone(), target, reason.clone(), events, waiting_behind, at(*since_ms), detail.clone()]
        });
        let names = ["SINK", "TARGET", "REASON", "STUCK", "WAIT BEHIND", "SINCE", "DETAIL"];
        let mut text = table(&names, rows.collect());
        let shown = listed.len() as u64;
        if shown > 0 {
            let names = ["SINK", "POSITION", "ID", "TYPE", "KEY", "SINCE", "TRIES", "BEHIND", "TARGET", "REASON"];
            text += &format!("\n{}", table(&names, listed));
        }
        if self.events > shown {
            text += &format!("{} more are not listed (--limit)\n", self.events - shown);
        }
        let (stuck, behind) = (counted(self.events, "event"), counted(self.waiting_behind, "later event"));
        text += &format!("\n{stuck} stuck, and {behind} of their keys waiting behind\n");
        text += "what to do: fix the cause, and the bridge publishes them by itself, in order; or let the rest of their keys\n";
        text += &format!("go on without them: sendbird-bridge stuck set-aside --sink {sink} --reason {reason}\n");
        text
    }
}

fn at(ms: i64) -> String {
    rfc3339(ms).unwrap_or_else(|| "unknown".to_owned())
}

/// A failure without a target is about the event alone.
fn of_target(target: &str) -> String {
    if target.is_empty() { "the event itself".to_owned() } else { target.to_owned() }
}

fn event_row(listed: &ListedStuckEvent) -> Vec<String> {
    let StuckEvent { position, since_ms, tries, reason, target, .. } = &listed.stuck;
    let id = listed.event.as_ref().map(|event| event.id);
    let (kind, key) = listed.event.as_ref().map_or(("", ""), |event| (short_type(&event.kind), event.key.as_str()));
    vec![
        listed.sink.clone(),
        position.to_string(),
        id_text(id),
        kind.to_owned(),
        key.to_owned(),
        at(*since_ms),
        tries.to_string(),
        listed.waiting_behind.to_string(),
        of_target(target),
        reason.to_string(),
    ]
}

fn describe(listed: &ListedStuckEvent) -> String {
    let StuckEvent { position, since_ms, tries, reason, detail, target } = &listed.stuck;
    let facts = [
        ("sink", listed.sink.clone()),
        ("position", position.to_string()),
        ("target", of_target(target)),
        ("reason", format!("{reason}: {detail}")),
        (
            "stuck since",
            format!("{}, {}", at(*since_ms), if *tries == 1 { "1 try".to_owned() } else { format!("{tries} tries") }),
        ),
        ("waiting behind", counted(listed.waiting_behind, "event")),
    ];
    facts.iter().map(|(name, value)| format!("{name:<16}{value}\n")).collect()
}

fn json_line(listed: &ListedStuckEvent) -> String {
    let StuckEvent { position, since_ms, tries, reason, detail, target } = &listed.stuck;
    let event = listed.event.as_ref();
    let line = serde_json::json!({
        "sink": listed.sink, "position": position, "id": event.map(|event| id_text(Some(event.id))),
        "key": event.map(|event| &event.key), "type": event.map(|event| kind::type_of(&event.kind)),
        "since": rfc3339(*since_ms), "tries": tries, "reason": **reason, "detail": **detail, "target": **target,
        "waiting_behind": listed.waiting_behind,
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Record;

    fn stuck(position: u64, target: &str, waiting_behind: u64) -> ListedStuckEvent {
        let (reason, detail) = ("not_found".into(), format!("no such topic, try of {position}").into());
        let since_ms = 1_767_225_600_000 - position as i64;
        let stuck = StuckEvent { position, since_ms, tries: 7, reason, detail, target: target.into() };
        let event = Record {
            position,
            accepted_ms: 0,
            id: [7; 16],
            key_hash: 1,
            key: "room-1".into(),
            kind: "com.sendbird.calls.room.create".into(),
            payload: "{}".into(),
        };
        ListedStuckEvent { sink: "kafka".into(), stuck, event: Some(event), waiting_behind }
    }

    #[test]
    fn sums_come_first_and_are_of_all() {
        let events = [stuck(3, "topic \"a\"", 4), stuck(5, "topic \"a\"", 1), stuck(9, "", 0)];
        let mut sums = Sums::default();
        events.iter().for_each(|event| sums.add(event));
        let text = sums.describe(vec![event_row(&events[0])]);
        let lines: Vec<&str> = text.lines().collect();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(lines[0]), "SINK TARGET REASON STUCK WAIT BEHIND SINCE DETAIL");
        assert_eq!(
            words(lines[1]),
            "kafka the event itself not_found 1 0 2025-12-31T23:59:59.991Z no such topic, try of 9"
        );
        let of_the_topic = "kafka topic \"a\" not_found 2 5 2025-12-31T23:59:59.995Z no such topic, try of 5";
        assert_eq!(words(lines[2]), of_the_topic);
        assert!(lines[5].starts_with("kafka  3         07070707-0707-0707-0707-070707070707  room.create"), "{text}");
        assert_eq!(lines[6], "2 more are not listed (--limit)");
        assert_eq!(lines[8], "3 events stuck, and 5 later events of their keys waiting behind");
        assert!(text.ends_with("sendbird-bridge stuck set-aside --sink kafka --reason not_found\n"), "{text}");
        assert_eq!(Sums::default().describe(Vec::new()), "0 events are stuck\n");
    }

    #[test]
    fn a_json_line_has_all_that_is_known() {
        let line: serde_json::Value = serde_json::from_str(&json_line(&stuck(3, "subject \"s\"", 2))).expect("JSON");
        let expected = serde_json::json!({
            "sink": "kafka", "position": 3, "id": "07070707-0707-0707-0707-070707070707", "key": "room-1",
            "type": "com.sendbird.calls.room.create", "since": "2025-12-31T23:59:59.997Z", "tries": 7,
            "reason": "not_found", "detail": "no such topic, try of 3", "target": "subject \"s\"", "waiting_behind": 2,
        });
        assert_eq!(line, expected);
        let damaged = ListedStuckEvent { event: None, ..stuck(3, "", 0) };
        let line: serde_json::Value = serde_json::from_str(&json_line(&damaged)).expect("JSON");
        assert_eq!((&line["id"], &line["key"], &line["position"]), (&().into(), &().into(), &3.into()));
    }
}
