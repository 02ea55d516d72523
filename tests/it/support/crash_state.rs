//! What a killed bridge leaves: its exit, its output, its journal.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use serde_json::Value;

use super::bridge::{Bridge, Config};
use super::oracle::{Arrived, Fault, Sent, Verdict};
use super::process::{Ended, Stdout};
use super::shim::Shim;

/// The figures of a test: what was killed how often, and what was left.
pub(crate) fn say(step: &str, rounds: usize, sent: &[Sent], verdicts: &[Verdict]) {
    let answered = sent.iter().filter(|sent| sent.id.is_some()).count();
    let faults = verdicts.iter().flat_map(|verdict| &verdict.faults);
    let lost = faults.filter(|fault| matches!(fault, Fault::Missing { .. })).count();
    let again: usize = verdicts.iter().map(|verdict| verdict.again).sum();
    eprintln!("{step:<44} rounds {rounds:>3}   answered 200 {answered:>5}   lost {lost}   duplicates {again:>4}");
}

/// Waits for the end of a bridge that the shim kills.
#[track_caller]
pub(crate) fn killed(shim: &Shim, bridge: Bridge) -> Ended {
    let ended = bridge.process.wait();
    assert_eq!((ended.status.signal(), shim.has_killed()), (Some(9), true), "{}", ended.stderr());
    ended
}

/// What the stdout sink has printed. The line that the crash cut off was never acknowledged.
pub(crate) fn printed(lines: &[String]) -> Vec<Arrived> {
    let whole = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    whole.map(|envelope| Arrived::envelope(&envelope)).collect()
}

/// How far the sink has got according to the file.
pub(crate) fn durable_cursor(config: &Config) -> u64 {
    let ended = config.clone().stdout(Stdout::Read).process(&["journal", "stats", "--output", "json"]).wait();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    let stats: Value = serde_json::from_str(&ended.stdout()).expect("JSON");
    stats["sinks"][0]["cursor"].as_u64().unwrap_or_else(|| panic!("a position in {stats}"))
}

/// The logs of the journal's segments, oldest first; the last may have been made ahead.
pub(crate) fn segments(config: &Config) -> Vec<PathBuf> {
    let files = fs::read_dir(config.dir().join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let is_log = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "log");
    let mut logs: Vec<PathBuf> = files.filter(is_log).collect();
    logs.sort();
    logs
}

/// Those that nothing is added to any more: they have an index.
pub(crate) fn closed_segments(config: &Config) -> Vec<PathBuf> {
    segments(config).into_iter().filter(|log| log.with_extension("idx").exists()).collect()
}

/// How long the log is that events are added to.
pub(crate) fn newest_segment(config: &Config) -> u64 {
    let open = segments(config).into_iter().filter(|log| !log.with_extension("idx").exists());
    open.map(|log| fs::metadata(log).unwrap().len()).max().expect("an open segment")
}

/// The journal is whole.
#[track_caller]
pub(crate) fn verify(config: &Config) {
    let ended = config.clone().stdout(Stdout::Read).process(&["journal", "verify"]).wait();
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout(), ended.stderr());
}
