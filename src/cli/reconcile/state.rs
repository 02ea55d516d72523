//! How far a run has got, in a file beside the journal, so that an interrupted one goes on where it was.
//!
//! It is written after each page. The candidates of a page are durable before, so a run that goes on from here leaves nothing
//! out; what it reads a second time is known by then.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cli::Failure;
use crate::sendbird::reconcile::FactKind;

/// The file's name in the journal's directory.
const FILE: &str = "reconcile.json";

/// What a run looks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunScope {
    pub(super) application: String,
    pub(super) since_ms: i64,
    pub(super) until_ms: i64,
    pub(super) publish: bool,
    pub(super) kinds: BTreeSet<FactKind>,
    pub(super) lookback_ms: i64,
    /// Other bridges whose events are known.
    pub(super) others: usize,
}

impl RunScope {
    /// The earliest beginning of a call or room that is looked at.
    pub(super) fn begin_ms(&self) -> i64 {
        self.since_ms.saturating_sub(self.lookback_ms).max(0)
    }
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// At the list of calls.
    Calls,
    /// At the list of rooms.
    Rooms,
    /// At rooms that the journal tells of and that are older than those of the list.
    Older,
    /// Behind all.
    Done,
}

/// What was found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Objects looked at.
    pub(super) calls: u64,
    pub(super) rooms: u64,
    pub(super) participants: u64,
    /// Facts that are stored.
    pub(super) stored: u64,
    /// Facts of which an earlier run has added a candidate, which is not stored yet.
    #[serde(rename = "offered")]
    pub(super) candidates: u64,
    /// Facts of which there is neither, by category.
    pub(super) missing: BTreeMap<String, u64>,
    /// Those of them of which this run has added a candidate.
    pub(super) queued: u64,
    /// Facts that the journal can't say anything of.
    pub(super) unknown: u64,
    /// What happened at a time that the API does not say.
    pub(super) without_time: u64,
}

/// How far a run has got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) scope: RunScope,
    pub(super) phase: Phase,
    /// Of the next page; `None` is the first. Of older rooms, the last that was looked at.
    pub(super) cursor: Option<String>,
    pub(super) counts: Counts,
}

impl State {
    pub(super) fn begin(scope: RunScope) -> Self {
        Self { scope, phase: Phase::Calls, cursor: None, counts: Counts::default() }
    }

    pub(super) fn load(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(FILE);
        let text = std::fs::read(&path).map_err(|error| {
            Failure::Failed(format!("expected an interrupted run in {}, but found none: {error}", path.display()))
        })?;
        serde_json::from_slice(&text).map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
    }

    /// Written whole or not at all.
    pub(super) fn save(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(FILE);
        let written = serde_json::to_vec(self).map_err(std::io::Error::from).and_then(|text| {
            let file = tempfile::NamedTempFile::new_in(dir)?;
            std::fs::write(file.path(), text)?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        });
        written.map_err(|error| Failure::Failed(format!("cannot write {}: {error}", path.display())))
    }

    /// There is nothing to go on with. A file that stays is written over by the next run.
    pub(super) fn done(dir: &Path) {
        std::fs::remove_file(dir.join(FILE)).ok();
    }
}
