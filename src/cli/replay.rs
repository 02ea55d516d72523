//! `replay`: publishes stored events again.

use super::select::{Place, Which, check_sink};
use super::{Failure, print};
use crate::config::{Faults, Loaded};
use crate::domain::clock::Clock;
use crate::journal::Row;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,

    /// The sink to publish to
    #[arg(long)]
    sink: String,

    #[command(flatten)]
    which: Which,

    /// All events that are kept; needed where nothing else narrows them down
    #[arg(long)]
    all: bool,

    /// Events per second at most; by default as fast as the broker takes them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,

    /// Only count them
    #[arg(long)]
    dry_run: bool,
}

/// Ids stay the same, and each envelope says `"replayed": true`. JetStream drops a replay whose id it still
/// has in its duplicate window.
pub(super) fn run(args: &Args, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    let filter = args.which.filter();
    if !args.all && filter.is_all() {
        return Err(Failure::Usage("expected --id, --key, --type, --since, --until or --all".into()));
    }
    let mut desk = args.place.open(load)?;
    check_sink(&desk, &args.sink)?;
    let mut positions = Vec::new();
    let mut damaged = 0u64;
    desk.select(&filter, |rows| {
        for row in rows {
            match row {
                Row::Intact(record) => positions.push(record.position),
                Row::Damaged { .. } => damaged += 1,
            }
        }
    })
    .map_err(Failure::other)?;
    if damaged > 0 {
        eprintln!("{damaged} damaged events are left out; see: sendbird-bridge journal verify");
    }
    if args.dry_run {
        print(&format!("{} events would be published again to {}\n", positions.len(), args.sink))?;
        return Ok(());
    }
    let now_ms = Clock::system().now_ms();
    let queued = desk.replay(&args.sink, &positions, now_ms, args.rate).map_err(Failure::other)?;
    print(&format!("{queued} events are published again to {}\n", args.sink))?;
    Ok(())
}
