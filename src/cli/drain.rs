//! `journal drain`: publishes what a stopped bridge has left, and says what it could not.

use std::fs::File;
use std::io::{BufWriter, IntoInnerError, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::dead_letters::description;
use super::table::counted;
use crate::app::drain::{Left, drain};
use crate::config::Loaded;
use crate::domain::units::Span;
use crate::journal::{JournalAdmin, StoredDeadLetter};
use crate::shutdown;

#[derive(Debug, clap::Args)]
pub(super) struct DrainArgs {
    /// How long to go on at most, as in "10m"; what is left then is said, and the exit code is 1
    #[arg(long, value_name = "TIME", default_value = "10m")]
    timeout: Span,

    /// Write the dead letters into this new file, one JSON object a line with the whole event, and delete them
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

pub(super) async fn run(args: DrainArgs, loaded: Loaded) -> Result<(), Failure> {
    let dir = &loaded.config.journal.dir;
    // A wrong directory is not to look like a journal with nothing left.
    JournalAdmin::open(dir).map_err(Failure::other)?;
    if let Some(file) = args.export.as_deref().filter(|file| file.exists()) {
        return Err(Failure::Usage(format!("expected a new file for --export, but {} exists", file.display())));
    }
    let stop = CancellationToken::new();
    let signalled = shutdown::on_signal(stop.clone()).map_err(Failure::other)?;
    let limit: Duration = args.timeout.0;
    let left = tokio::select! {
        left = drain(&loaded.config, limit, stop) => left.map_err(Failure::other)?,
        () = signalled => return Err(Failure::Failed("interrupted".into())),
    };
    let mut journal = JournalAdmin::open(dir).map_err(Failure::other)?;
    let mut dead_letters = journal.dead_letters(None, None)?;
    if let Some(file) = args.export.as_deref().filter(|_| !dead_letters.is_empty()) {
        export(file, &dead_letters).map_err(Failure::other)?;
        // Only now, as they are on the disk.
        let exported = journal.discard(&dead_letters)? as u64;
        eprintln!("{} exported to {}", counted(exported, "dead letter"), file.display());
        dead_letters = journal.dead_letters(None, None)?;
    }
    let mut lines: Vec<String> = left.iter().filter(|left| !left.is_nothing()).map(describe).collect();
    let candidates = journal.waiting_candidates()?;
    if candidates > 0 {
        lines.push(format!("{} that no bridge has stored yet", counted(candidates, "backfill candidate")));
    }
    if !dead_letters.is_empty() {
        let count = counted(dead_letters.len() as u64, "dead letter");
        lines.push(format!("{count}; requeue or discard them, or write them to a file with --export"));
    }
    if lines.is_empty() {
        eprintln!("nothing is left");
        return Ok(());
    }
    Err(Failure::Failed(format!("not everything was published; left: {}", lines.join("; "))))
}

fn describe(left: &Left) -> String {
    let Left { sink, pending, stuck, to_resend, last_failure } = left;
    let failure = last_failure.as_ref().map(|failure| format!(" ({failure})")).unwrap_or_default();
    format!("{sink}: {pending} pending, {stuck} of them stuck, {to_resend} to resend{failure}")
}

/// A line of the file: what is known of a dead letter, and its event as it is stored; of a damaged event there is none.
#[derive(Serialize)]
struct Exported<'a> {
    #[serde(flatten)]
    description: Value,
    envelope: Option<&'a RawValue>,
}

/// Writes dead letters durably into a new file.
fn export(file: &Path, dead_letters: &[StoredDeadLetter]) -> std::io::Result<()> {
    let mut out = BufWriter::new(File::create_new(file)?);
    for stored in dead_letters {
        let envelope = stored.event.as_ref().and_then(|event| serde_json::from_slice(&event.payload).ok());
        serde_json::to_writer(&mut out, &Exported { description: description(stored), envelope })?;
        out.write_all(b"\n")?;
    }
    let written = out.into_inner().map_err(IntoInnerError::into_error)?;
    written.sync_all()?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
