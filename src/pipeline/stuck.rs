//! Stuck events: what cannot be published for a reason of its own or of its target, and which operators are shown.
//!
//! An event is stuck if it is parked under a target that has failed for [`STUCK_AFTER`] of connected time without a
//! success. It stays in the list until the sink is done with it.

use std::sync::Arc;
use std::time::Duration;

use super::queue::{Head, KeyedQueue};
use super::targets::{Parked, Scope, Targets};
use crate::journal::StuckEvent;

/// For how long a target fails, while the sink is connected, until its events are stuck.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(30);

impl Targets {
    /// The events that are stuck and were not returned before, about `most` of them.
    pub(super) fn newly_stuck(&mut self, queue: &mut KeyedQueue, connected: Duration, most: usize) -> Vec<StuckEvent> {
        self.find_stuck(connected);
        let mut events = self.freshly_parked(queue, most);
        while let Some(scope) = self.stuck.unrecorded.pop_front() {
            if events.len() >= most {
                self.stuck.unrecorded.push_front(scope);
                break;
            }
            let silent = self.silent_of(&scope);
            let Some(parked) = self.parked_mut(&scope) else { continue };
            parked.is_unrecorded = false;
            if !parked.is_stuck {
                continue;
            }
            let end = parked.heads.len().min(parked.recorded + most);
            let heads = parked.heads.as_slice().get(parked.recorded..end).unwrap_or_default();
            let heads = heads.iter().map(|head| head.0).chain(parked.candidate).chain(silent);
            events.extend(heads.filter(|head| is_new(queue, *head)).filter_map(|head| event(&scope, parked, head)));
            parked.recorded = end;
            if end < parked.heads.len() {
                parked.is_unrecorded = true;
                self.stuck.unrecorded.push_front(scope);
            }
        }
        events
    }

    fn freshly_parked(&mut self, queue: &mut KeyedQueue, most: usize) -> Vec<StuckEvent> {
        let some = self.stuck.fresh.len().min(most);
        let fresh: Vec<_> = self.stuck.fresh.drain(..some).collect();
        let events = fresh.into_iter().filter_map(|(scope, head)| {
            let parked = self.parked_mut(&scope).filter(|parked| parked.is_stuck)?;
            is_new(queue, head).then(|| event(&scope, parked, head)).flatten()
        });
        events.collect()
    }

    fn find_stuck(&mut self, connected: Duration) {
        let mut found = Vec::new();
        for (scope, parked) in self.all_parked() {
            let is_due = parked.failing_since.is_some_and(|since| connected.saturating_sub(since) >= STUCK_AFTER);
            if is_due && !std::mem::replace(&mut parked.is_stuck, true) && !parked.is_unrecorded {
                parked.is_unrecorded = true;
                found.push(scope.clone());
            }
        }
        self.stuck.unrecorded.extend(found);
    }
}

/// A resend is known as what it is, and is not listed.
fn is_new(queue: &mut KeyedQueue, head: Head) -> bool {
    !head.place.is_resend() && queue.mark_stuck(head)
}

fn event(scope: &Scope, parked: &Parked, head: Head) -> Option<StuckEvent> {
    Some(StuckEvent {
        position: head.place.position()?,
        since_ms: parked.since_ms,
        tries: parked.tries,
        reason: parked.reason.as_str().into(),
        detail: Arc::clone(&parked.detail),
        target: scope.shared_words(),
    })
}
