//! What others may see of a forwarder.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How a sink is doing.
#[derive(Debug, Default)]
pub struct SinkStatus {
    connected: AtomicBool,
    in_flight: AtomicU64,
    stuck: AtomicU64,
    waiting_full: AtomicBool,
    last_failure: Mutex<Option<String>>,
    warnings: Mutex<Vec<String>>,
}

impl SinkStatus {
    /// Whether the broker can be reached.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Events sent and not yet acknowledged.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Events that cannot be published for a reason of their own or of their target, and hold up their keys.
    pub fn stuck(&self) -> u64 {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Whether so many events wait that no more are read until some of them are published or set aside.
    pub fn waiting_full(&self) -> bool {
        self.waiting_full.load(Ordering::Relaxed)
    }

    /// The last failure, unless everything has worked since.
    pub fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What may lose acknowledged events at the broker, as the last connection has found it.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns those that are new.
    pub(super) fn set_warnings(&self, warnings: Vec<String>) -> Vec<String> {
        let mut before = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let new = warnings.iter().filter(|warning| !before.contains(warning)).cloned().collect();
        *before = warnings;
        new
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub(super) fn set_in_flight(&self, events: usize) {
        self.in_flight.store(events as u64, Ordering::Relaxed);
    }

    pub(super) fn set_stuck(&self, events: usize) {
        self.stuck.store(events as u64, Ordering::Relaxed);
    }

    /// Returns whether that is a change.
    pub(super) fn set_waiting_full(&self, full: bool) -> bool {
        self.waiting_full.swap(full, Ordering::Relaxed) != full
    }

    pub(super) fn set_failure(&self, failure: Option<String>) {
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}
