//! Reading what an operator wants to be published once more: requeued dead letters and replays.
//!
//! Resends are read whenever there is room for them, so they run at the pace of the sink, or at that of a replay with a
//! rate. From then on they are items of the queue like any other, with an order by key of their own, and stay in it from
//! one connection to the next.

use std::sync::{Arc, Mutex, PoisonError};

use super::fetch::{Fetch, READ_AHEAD};
use super::queue::{Item, KeyedQueue, Place};
use crate::domain::envelope;
use crate::journal::{Journal, Origin, Record, Resend, ResendCursor};

/// Reads the resends of one sink.
pub(super) struct ResendReader {
    journal: Journal,
    pub(super) fetch: Fetch<Vec<Resend>>,
    cursor: Arc<Mutex<ResendCursor>>,
    /// How many were read.
    read: u64,
    /// There was nothing to read; that is looked at on the next tick.
    is_idle: bool,
}

impl ResendReader {
    pub(super) fn new(journal: Journal) -> Self {
        let fetch = Fetch::new(journal.clone());
        Self { journal, fetch, cursor: Arc::default(), read: 0, is_idle: false }
    }

    /// Some time has passed: there may be new ones, or more of a replay with a rate are due.
    pub(super) fn tick(&mut self) {
        self.is_idle = false;
    }

    /// Starts a read, if there is anything to read.
    pub(super) fn start(&mut self, sink: &str) {
        if self.is_idle || self.fetch.is_running() {
            return;
        }
        if self.journal.resends(sink) == 0 {
            self.is_idle = true;
            return;
        }
        let (journal, cursor, sink) = (self.journal.clone(), Arc::clone(&self.cursor), sink.to_owned());
        self.fetch.start(move |_| {
            let mut cursor = cursor.lock().unwrap_or_else(PoisonError::into_inner);
            journal.next_resends(&sink, &mut cursor, READ_AHEAD)
        });
    }

    /// Lines up what was read.
    pub(super) fn add(&mut self, queue: &mut KeyedQueue, resends: Vec<Resend>) {
        self.is_idle = resends.is_empty();
        for Resend { origin, record } in resends {
            let record = marked(Some(origin), record);
            self.read += 1;
            queue.add(Item { place: Place::resend(self.read), origin: Some(origin), record });
        }
    }
}

/// The event as it is published: that of a replay says that it is one.
pub(super) fn marked(origin: Option<Origin>, mut record: Record) -> Record {
    // What is no envelope is found out when it is sent.
    if matches!(origin, Some(Origin::Replay { .. }))
        && let Ok(marked) = envelope::replayed(&record.payload)
    {
        record.payload = marked;
    }
    record
}
