//! What the client tells apart from its answers: that the connection was lost, and what the server refuses.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::{Event, ServerError};
use tokio_util::sync::CancellationToken;

use crate::sink::{Failure, Reason};

/// What the client's events say about the connection.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) broken: CancellationToken,
    /// For what the client's few places for events have dropped.
    pub(super) denied: AtomicBool,
    /// Cancelled as soon as the server refuses the subscription on which the client gets its answers.
    pub(super) inbox_refused: CancellationToken,
    /// The publishes that wait, by subject: how many, and what ends them.
    waiting: Mutex<HashMap<String, (usize, CancellationToken)>>,
}

impl Health {
    pub(super) fn record_event(&self, event: &Event) {
        match event {
            Event::Disconnected | Event::Closed => self.broken.cancel(),
            // A refused publish is not answered, only reported apart; the text holds the subject.
            Event::ServerError(ServerError::Other(text)) if text.to_lowercase().contains("permissions violation") => {
                self.denied.store(true, Ordering::Relaxed);
                let subject = text.split('"').nth(1).unwrap_or_default();
                // The client subscribes to nothing but its inbox.
                if text.to_lowercase().contains("subscription") {
                    self.inbox_refused.cancel();
                }
                if let Some((_, refused)) = self.waiting().get_mut(subject) {
                    std::mem::take(refused).cancel();
                }
            }
            _ => {}
        }
    }

    /// Waits for the answer to a request on this subject, or for the server's report that it refuses the request, or the
    /// subscription for its answer; the report says nothing of who is refused, which `user` tells.
    pub(super) async fn answer<T>(
        self: &Arc<Self>,
        subject: &str,
        user: &str,
        answer: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        let waiting = Waiting::new(self, subject);
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            () = waiting.refused.cancelled() => {
                Err(Failure::every_event(Reason::NotAuthorized, format!("{user} may not publish to \"{subject}\"")))
            }
            () = self.inbox_refused.cancelled() => Err(inbox_refused(user)),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, (usize, CancellationToken)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers do not arrive on this connection.
pub(super) fn inbox_refused(user: &str) -> Failure {
    let detail = format!(
        "{user} may not subscribe to \"_INBOX.>\" (or below inbox_prefix, if that is set), where answers and acknowledgements arrive"
    );
    Failure::fatal(Reason::NotAuthorized, detail)
}

/// A publish that waits for its acknowledgement, or for the report that the server refuses it.
pub(super) struct Waiting {
    health: Arc<Health>,
    subject: String,
    pub(super) refused: CancellationToken,
}

impl Waiting {
    pub(super) fn new(health: &Arc<Health>, subject: &str) -> Self {
        let (health, subject) = (Arc::clone(health), subject.to_owned());
        let refused = {
            let mut waiting = health.waiting();
            let (count, refused) = waiting.entry(subject.clone()).or_default();
            *count += 1;
            refused.clone()
        };
        Self { health, subject, refused }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.health.waiting();
        if let Some((count, _)) = waiting.get_mut(&self.subject) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_break_the_connection_or_explain_a_silence() {
        let health = Health::default();
        health.record_event(&Event::Connected);
        let health = Arc::new(health);
        let waiting = ["x", "x", "y"].map(|subject| Waiting::new(&health, subject));
        health
            .record_event(&Event::ServerError(ServerError::Other("Permissions Violation for Publish to \"x\"".into())));
        assert!(health.denied.load(Ordering::Relaxed) && !health.broken.is_cancelled());
        assert_eq!(waiting.each_ref().map(|one| one.refused.is_cancelled()), [true, true, false]);
        assert!(!Waiting::new(&health, "x").refused.is_cancelled(), "the next try is on its own");
        drop(waiting);
        assert!(health.waiting().is_empty());
        assert!(!health.inbox_refused.is_cancelled());
        health.record_event(&Event::ServerError(ServerError::Other(
            "Permissions Violation for Subscription to \"_INBOX.a.*\"".into(),
        )));
        assert!(health.inbox_refused.is_cancelled() && !health.broken.is_cancelled());
        health.record_event(&Event::Disconnected);
        assert!(health.broken.is_cancelled());
    }
}
