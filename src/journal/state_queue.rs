//! What waits to be written into the state file.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::backfill::Outcome;
use super::dead_letters::DeadLetter;
use super::resend::{Origin, ResendOutcome};
use super::{lock, sqlite};

/// What is to be written besides what sinks have published.
pub(super) enum StateOp {
    SetAside(DeadLetter, oneshot::Sender<()>),
    FinishResend {
        sink: String,
        origin: Origin,
        position: u64,
        outcome: ResendOutcome,
    },
    /// Requests that were not carried out, as the events wait no more.
    DeclineSetAside {
        sink: String,
        positions: Vec<u64>,
    },
    Backfill(Vec<Outcome>),
    ForgetBackfilled {
        before_ms: i64,
    },
    CutReplay {
        id: u64,
    },
    /// Positions that are about to be released.
    Release {
        first: u64,
        last: u64,
        oldest: u64,
    },
    /// Somebody who reads this edition of the file has found it damaged.
    Repair {
        edition: u64,
    },
    /// Requeued events that cannot be published.
    DropRequeued {
        sink: String,
        seqs: Vec<u64>,
    },
    /// Tells that all that was published before is durable.
    Flush(std::sync::mpsc::SyncSender<()>),
    Close,
}

impl StateOp {
    fn is_waited_for(&self) -> bool {
        matches!(self, Self::SetAside(..) | Self::Flush(_) | Self::Close | Self::Repair { .. })
    }
}

/// What waits to be written. It has no bound of its own: what is pushed here is in flight on a sink, or in a batch of
/// candidates, and those are bounded.
#[derive(Default)]
pub(super) struct StateQueue {
    ops: Mutex<Vec<StateOp>>,
    changed: Condvar,
}

impl StateQueue {
    pub(super) fn push(&self, op: StateOp) {
        let wake = op.is_waited_for();
        self.lock().push(op);
        if wake {
            self.changed.notify_one();
        }
    }

    /// Has this edition of the file repaired if the error says that it is damaged.
    pub(super) fn report(&self, error: &rusqlite::Error, edition: u64) {
        if is_structural(error) {
            self.push(StateOp::Repair { edition });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<StateOp>> {
        lock(&self.ops)
    }

    pub(super) fn take(&self, wait: Duration) -> Vec<StateOp> {
        let ops = self.lock();
        let is_idle = |ops: &mut Vec<StateOp>| !ops.iter().any(StateOp::is_waited_for);
        let (mut ops, _) = self.changed.wait_timeout_while(ops, wait, is_idle).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *ops)
    }

    /// Waits until all that sinks have published up to now is durable; `false` if it is not within `limit`.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.push(StateOp::Flush(reply));
        answer.recv_timeout(limit).is_ok()
    }
}

/// Whether the error says that the file is damaged, and not that the disk fails now.
pub(super) fn is_structural(error: &rusqlite::Error) -> bool {
    sqlite::is_damage(error)
        && error.sqlite_error_code().is_some_and(|code| code != rusqlite::ErrorCode::SystemIoFailure)
}
