//! What others may see of a forwarder.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::sink::Fault;

/// How a sink is doing.
#[derive(Debug, Default)]
pub struct SinkStatus {
    connected: AtomicBool,
    /// When that changed last; 0 if it never did.
    connected_changed_ms: AtomicI64,
    /// When the broker acknowledged an event last; 0 if it never did.
    published_ms: AtomicI64,
    in_flight: AtomicU64,
    stuck: AtomicU64,
    waiting_full: AtomicBool,
    failures: Mutex<Failures>,
    warnings: Mutex<Vec<String>>,
}

/// What a sink's failures were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// Since when something fails, in Unix milliseconds; `None` if everything has worked since the last failure.
    pub since_ms: Option<i64>,
    /// The last failure since the start of the bridge, and when it was.
    pub last: Option<(i64, Fault)>,
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
        let failures = self.failures();
        failures.since_ms.and(failures.last).map(|(_, fault)| fault.to_string())
    }

    /// What has failed since the start of the bridge.
    pub fn failures(&self) -> Failures {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the broker acknowledged an event last, in Unix milliseconds; `None` if it did not since the start.
    pub fn published_ms(&self) -> Option<i64> {
        Some(self.published_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }

    /// Since when the broker is connected or not, in Unix milliseconds; `None` if it is not since the start.
    pub fn connected_changed_ms(&self) -> Option<i64> {
        Some(self.connected_changed_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
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

    pub(super) fn set_connected(&self, connected: bool, now_ms: i64) {
        if self.connected.swap(connected, Ordering::Relaxed) != connected {
            self.connected_changed_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    pub(super) fn published(&self, now_ms: i64) {
        self.published_ms.store(now_ms, Ordering::Relaxed);
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

    pub(super) fn failed(&self, fault: &Fault, now_ms: i64) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.since_ms.get_or_insert(now_ms);
        failures.last = Some((now_ms, fault.clone()));
    }

    /// Nothing fails any more.
    pub(super) fn recovered(&self) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).since_ms = None;
    }
}
