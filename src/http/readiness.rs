//! Whether the bridge is ready: the journal takes events, and the bridge is not stopping. It never depends on a broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::journal::{Health, Journal};

/// What readiness is judged by; clones are of one bridge.
#[derive(Clone)]
pub struct Readiness {
    journal: Journal,
    stopping: Arc<AtomicBool>,
}

impl Readiness {
    /// Of a bridge with this journal.
    pub fn new(journal: Journal) -> Self {
        Self { journal, stopping: Arc::default() }
    }

    /// The bridge begins to stop, and is not ready from now on.
    pub fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether it is stopping.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// # Errors
    /// Why the bridge is not ready.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.is_stopping() {
            return Err("stopping");
        }
        match self.journal.health() {
            Health::Healthy => Ok(()),
            Health::Full => Err("the journal is full"),
            Health::Failed => Err("the journal's disk fails"),
            Health::Closed => Err("the journal is closed"),
        }
    }
}
