//! `replay`: publishes stored events once more, lists the replays under way, cancels them.

use std::time::Duration;

use clap::Subcommand;

use super::output::OutputArgs;
use super::select::{EventFilterArgs, JournalArgs, check_sink};
use super::table::{counted, table};
use super::{Failure, print};
use crate::config::{Faults, Loaded};
use crate::domain::clock::{Clock, rfc3339};
use crate::journal::{JournalAdmin, ReplayStatus};

/// Between two looks at what a bridge is doing.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Publish stored events once more, with the same ids; list or cancel what is under way
///
/// Each envelope says "replayed": true. A running bridge begins within a second, a stopped one when it starts, and a
/// replay goes on over restarts. JetStream drops an event whose id it still has in its duplicate window. Events of
/// applications that the sink does not get (sinks.NAME.applications) are counted, and not published.
#[derive(Debug, clap::Args)]
#[command(subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    journal: JournalArgs,

    /// The sink to publish to
    #[arg(long, required = true)]
    sink: Option<String>,

    #[command(flatten)]
    which: EventFilterArgs,

    /// All events that are kept; needed where nothing else narrows them down
    #[arg(long)]
    all: bool,

    /// Events per second at most; by default as fast as the broker takes them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// Only count them
    #[arg(long)]
    dry_run: bool,

    /// Wait until the running bridge has dealt with all of them, and say what became of them
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the replays under way with their progress
    List {
        #[command(flatten)]
        journal: JournalArgs,
        /// Only those of this sink
        #[arg(long)]
        sink: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Cancel replays; what they have published stays published
    Cancel {
        #[command(flatten)]
        journal: JournalArgs,
        #[command(flatten)]
        which: CancelArgs,
    },
}

/// Which replays.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct CancelArgs {
    /// The number of one, as in the list
    #[arg(value_name = "ID")]
    id: Option<u64>,

    /// All of this sink
    #[arg(long)]
    sink: Option<String>,

    /// All
    #[arg(long)]
    all: bool,
}

pub(super) fn run(args: &Args, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    let Some(command) = &args.command else { return start(args, load) };
    if args.sink.is_some() || !args.which.is_empty() || args.all || args.rate.is_some() || args.dry_run || args.wait {
        return Err(Failure::Usage(
            "expected the arguments of `replay list` and `replay cancel` after the subcommand".into(),
        ));
    }
    match command {
        Command::List { journal, sink, output } => {
            let journal = journal.or(&args.journal).open(load)?;
            if let Some(sink) = sink {
                check_sink(&journal, sink)?;
            }
            list(&journal, sink.as_deref(), output.is_json())
        }
        Command::Cancel { journal, which } => cancel(&mut journal.or(&args.journal).open(load)?, which),
    }
}

fn start(args: &Args, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    let Some(sink) = &args.sink else { return Err(Failure::Usage("expected --sink".into())) };
    if !args.all && args.which.is_empty() {
        return Err(Failure::Usage("expected --id, --key, --type, --since, --until or --all".into()));
    }
    let filter = args.which.filter()?;
    let mut journal = args.journal.open(load)?;
    check_sink(&journal, sink)?;
    let (intact, damaged) = journal.count(&filter)?;
    if damaged > 0 {
        eprintln!("{} left out; see: sendbird-bridge journal verify", counted(damaged, "damaged event"));
    }
    let events = counted(intact, "event");
    if args.dry_run || intact == 0 {
        return print(&format!("{events} would be replayed to {sink}\n")).map(drop);
    }
    if let Some(id) = journal.same_replay(sink, &filter)? {
        return Err(Failure::Failed(format!(
            "nothing was queued: the same events are under way to {sink} as replay {id}; see: sendbird-bridge replay list"
        )));
    }
    let now_ms = Clock::system().now_ms();
    let id = journal.replay(sink, &filter, intact, args.rate, now_ms)?;
    let when =
        if journal.is_in_use() { "the bridge publishes them now" } else { "the bridge publishes them when it starts" };
    print(&format!("{events} queued for {sink} as replay {id}; {when}. See: sendbird-bridge replay list\n"))?;
    if args.wait { wait(&journal, sink, id, intact, now_ms) } else { Ok(()) }
}

/// Waits until a replay is over, and says what became of its events.
fn wait(journal: &JournalAdmin, sink: &str, id: u64, total: u64, since_ms: i64) -> Result<(), Failure> {
    until(journal, || {
        let replays = journal.replays(Some(sink))?;
        Ok(replays.iter().all(|replay| replay.id != id))
    })?;
    if let Some(reason) = journal.why_cancelled(sink, id)? {
        return Err(Failure::Failed(format!("replay {id} ended before all of its events were published: {reason}")));
    }
    let dead = journal.dead_letters(Some(sink), None)?;
    let dead = dead.iter().filter(|stored| stored.dead_letter.at_ms >= since_ms).count() as u64;
    print(&format!("replay {id} is over: {} dealt with\n", counted(total, "event")))?;
    match dead {
        0 => Ok(()),
        dead => Err(Failure::Failed(format!(
            "{sink} has {} since then; see: sendbird-bridge dead-letters list --sink {sink}",
            counted(dead, "more dead letter")
        ))),
    }
}

/// Asks again and again until something is so, as long as a bridge runs that can bring it about.
pub(super) fn until(journal: &JournalAdmin, mut is_so: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
    while !is_so()? {
        if !journal.is_in_use() {
            return Err(Failure::Failed(
                "no bridge runs on this journal: what is queued stays queued until one does".into(),
            ));
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    Ok(())
}

fn list(journal: &JournalAdmin, sink: Option<&str>, json: bool) -> Result<(), Failure> {
    let replays = journal.replays(sink)?;
    print(&if json { replays.iter().map(json_line).collect() } else { describe(&replays) }).map(drop)
}

fn cancel(journal: &mut JournalAdmin, which: &CancelArgs) -> Result<(), Failure> {
    if let Some(sink) = &which.sink {
        check_sink(journal, sink)?;
    }
    let mut replays = journal.replays(which.sink.as_deref())?;
    if let Some(id) = which.id {
        replays.retain(|replay| replay.id == id);
        if replays.is_empty() {
            return Err(Failure::Failed(format!(
                "there is no replay {id} under way; see: sendbird-bridge replay list"
            )));
        }
    }
    let mut text = String::new();
    let mut cancelled = 0;
    for replay in &replays {
        // It may have come to its end since it was listed.
        if journal.cancel_replay(replay.id)? {
            let ReplayStatus { id, sink, done, total, .. } = replay;
            text += &format!("replay {id} to {sink} cancelled, {done} of {total} done\n");
            cancelled += 1;
        }
    }
    if cancelled == 0 {
        text += "0 replays cancelled\n";
    }
    print(&text).map(drop)
}

fn to_come(replay: &ReplayStatus) -> u64 {
    replay.total.saturating_sub(replay.done)
}

fn describe(replays: &[ReplayStatus]) -> String {
    let mut text = String::new();
    if !replays.is_empty() {
        let rows = replays.iter().map(|replay| {
            let rate = replay.rate.map_or_else(|| "any".to_owned(), |rate| rate.to_string());
            let (done, to_come) = (replay.done.to_string(), to_come(replay).to_string());
            let since = rfc3339(replay.created_ms).unwrap_or_default();
            vec![replay.id.to_string(), replay.sink.clone(), done, to_come, rate, since]
        });
        text += &table(&["REPLAY", "SINK", "DONE", "TO COME", "PER SECOND", "SINCE"], rows.collect());
    }
    text + &format!("{} under way\n", counted(replays.len() as u64, "replay"))
}

fn json_line(replay: &ReplayStatus) -> String {
    let ReplayStatus { id, sink, created_ms, total, done, rate } = replay;
    let line = serde_json::json!({
        "id": id, "sink": sink, "since": rfc3339(*created_ms), "total": total, "done": done,
        "to_come": to_come(replay), "rate": rate,
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::output::Output;
    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(arguments: &str) -> Result<Args, clap::Error> {
        Cli::try_parse_from(["replay"].into_iter().chain(arguments.split(' '))).map(|cli| cli.args)
    }

    #[test]
    fn without_a_subcommand_a_sink_is_needed() {
        let args = parse("--sink kafka --key a --rate 5").expect("a replay");
        assert!(args.command.is_none() && args.sink.as_deref() == Some("kafka") && args.rate == Some(5));
        assert!(parse("--key a").is_err_and(|error| error.to_string().contains("--sink")));
        assert!(parse("--sink kafka --rate 0").is_err());
    }

    #[test]
    fn a_subcommand_needs_no_sink() {
        let args = parse("list --output json").expect("a list");
        assert!(matches!(
            args.command,
            Some(Command::List { sink: None, output: OutputArgs { output: Output::Json }, .. })
        ));
        let args = parse("--dir here cancel 7").expect("a cancellation");
        assert!(matches!(args.command, Some(Command::Cancel { which: CancelArgs { id: Some(7), .. }, .. })));
        for wrong in ["cancel", "cancel 7 --all", "cancel --sink a --all", "cancel seven", "list --key a"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn replays_are_listed_with_what_is_to_come() {
        let replay = |id, rate| ReplayStatus {
            id,
            sink: "kafka".into(),
            created_ms: 1_767_225_600_000,
            total: 2_000,
            done: 500,
            rate,
        };
        let expected = "\
REPLAY  SINK   DONE  TO COME  PER SECOND  SINCE
1       kafka  500   1500     any         2026-01-01T00:00:00.000Z
12      kafka  500   1500     100         2026-01-01T00:00:00.000Z
2 replays under way
";
        assert_eq!(describe(&[replay(1, None), replay(12, Some(100))]), expected);
        assert_eq!(describe(&[]), "0 replays under way\n");
        let line: serde_json::Value = serde_json::from_str(&json_line(&replay(3, None))).expect("JSON");
        assert_eq!((&line["to_come"], &line["rate"]), (&1_500.into(), &().into()));
    }
}
