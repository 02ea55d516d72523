//! How other threads talk to the keeper.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lock;

/// How often retention is looked at without being asked to.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// How others talk to the keeper.
#[derive(Debug, Default)]
pub(super) struct KeeperSignal {
    state: Mutex<Signals>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Signals {
    woken: bool,
    room_wanted: bool,
    close: bool,
    /// Passes that were made to find room.
    passes: u64,
    /// When such a pass found none.
    hopeless_at: Option<Instant>,
}

impl KeeperSignal {
    fn with<T>(&self, change: impl FnOnce(&mut Signals) -> T) -> T {
        change(&mut lock(&self.state))
    }

    pub(super) fn wake(&self) {
        self.with(|signals| signals.woken = true);
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        self.with(|signals| signals.close = true);
        self.changed.notify_all();
    }

    /// Asks for room, and waits until the keeper has looked for some, unless it has just found none.
    pub(super) fn make_room(&self, limit: Duration) {
        let mut signals = lock(&self.state);
        if signals.hopeless_at.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        let passes = signals.passes;
        signals.room_wanted = true;
        self.changed.notify_all();
        drop(self.changed.wait_timeout_while(signals, limit, |signals| signals.passes == passes));
    }

    /// Waits for work; what is wanted, and whether the journal is being closed.
    pub(super) fn wait(&self) -> (bool, bool) {
        let signals = lock(&self.state);
        let is_idle = |signals: &mut Signals| !signals.woken && !signals.room_wanted && !signals.close;
        let (mut signals, _) =
            self.changed.wait_timeout_while(signals, EVERY, is_idle).unwrap_or_else(PoisonError::into_inner);
        signals.woken = false;
        (std::mem::take(&mut signals.room_wanted), signals.close)
    }

    pub(super) fn looked_for_room(&self, found: bool) {
        self.with(|signals| {
            signals.passes += 1;
            signals.hopeless_at = (!found).then(Instant::now);
        });
        self.changed.notify_all();
    }
}
