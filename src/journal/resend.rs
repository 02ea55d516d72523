//! Stored events that are published once more: where each comes from, and what became of it.

use std::collections::HashMap;

use super::dead_letters::DeadLetter;
use super::reader::Reader;
use super::record::Record;

/// Where a resend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A requeued dead letter, by its number in the queue.
    Requeue {
        /// The number.
        seq: u64,
    },
    /// A replay.
    Replay {
        /// Its number.
        id: u64,
    },
}

/// An event that is to be published once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resend {
    /// Where it comes from.
    pub origin: Origin,
    /// The event.
    pub record: Record,
}

/// What became of a resend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResendOutcome {
    /// The broker has it; if it was a dead letter, it is none any more.
    Published,
    /// The broker refuses it: it is a dead letter, for this reason now.
    Refused(DeadLetter),
}

/// How far a sink has been given its resends.
#[derive(Debug, Default)]
pub struct ResendCursor {
    pub(super) requeued: u64,
    /// The replays whose waiting positions of an earlier run it has been given.
    pub(super) replays: HashMap<u64, Vec<u64>>,
    /// For the events of replays.
    pub(super) reader: Option<Reader>,
}
