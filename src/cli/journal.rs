//! `journal`: figures and checks of a journal, on a stopped or running bridge's directory.

use clap::Subcommand;

use super::select::Place;
use super::{Failure, print};
use crate::config::{Faults, Loaded};
use crate::domain::clock::rfc3339;
use crate::domain::units::Size;
use crate::journal::Fault;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// What it holds, and where each sink is
    Stats {
        #[command(flatten)]
        place: Place,
    },
    /// Read every event and check the file; exit code 1 if anything is wrong
    Verify {
        #[command(flatten)]
        place: Place,
    },
}

pub(super) fn run(command: &Command, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    match command {
        Command::Stats { place } => {
            let summary = place.open(load)?.summary().map_err(Failure::other)?;
            let (first, last) = (summary.first_position, summary.last_position);
            let events = if last == 0 { 0 } else { last + 1 - first };
            let mut text = format!("{}\n", summary.path.display());
            text += &format!("events        {events}, positions {first} to {last}\n");
            if let Some((oldest, newest)) = summary.accepted_ms {
                let at = |ms| rfc3339(ms).unwrap_or_default();
                text += &format!("accepted      {} to {}\n", at(oldest), at(newest));
            }
            text += &format!("size          {}\n", Size(summary.bytes));
            text += &format!("ids in window {}\n", summary.dedup_ids);
            if summary.offers > 0 {
                text += &format!("offers        {}, which the bridge has yet to take in\n", summary.offers);
            }
            for (sink, cursor, letters, resends) in summary.sinks {
                let pending = last.saturating_sub(cursor);
                text += &format!(
                    "sink {sink}: cursor {cursor}, pending {pending}, dead letters {letters}, to publish again {resends}\n"
                );
            }
            print(&text)?;
        }
        Command::Verify { place } => {
            let desk = place.open(load)?;
            let mut faults = 0u64;
            let right = desk.verify(|fault| {
                faults += 1;
                eprintln!("{}", describe(&fault));
            });
            let right = right.map_err(Failure::other)?;
            if faults > 0 {
                return Err(Failure::Failed(format!("{right} events are right, {faults} faults")));
            }
            print(&format!("{right} events are right\n"))?;
        }
    }
    Ok(())
}

fn describe(fault: &Fault) -> String {
    match fault {
        Fault::Damaged { position, key } => format!("position {position} (key {key}): damaged"),
        Fault::Missing { first, last } => format!("positions {first} to {last}: missing"),
        Fault::Structure(text) => format!("the file: {text}"),
    }
}
