//! Publishes under way, and what is decided about an event when its turn comes.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::Forwarder;
use super::queue::{Head, Item, Place};
use super::targets::{Moment, Scope, Targets};
use crate::domain::envelope::View;
use crate::journal::Origin;
use crate::sendbird::category::Category;
use crate::sink::{Ack, Connection, Failure, Fault, Reason};
use crate::traces::Publish;

/// After so many connections that an event's tries have ended, it is tried apart from all others.
const ENDED_CONNECTIONS: u32 = 3;

/// One try at publishing one event.
pub(super) struct Attempt {
    pub(super) head: Head,
    pub(super) origin: Option<Origin>,
    pub(super) position: u64,
    pub(super) accepted_ms: i64,
    pub(super) category: &'static str,
    /// Where it goes, if that was asked for.
    pub(super) target: Option<Scope>,
    /// Whether it is tried apart from all others.
    pub(super) is_alone: bool,
    pub(super) sent: Instant,
    /// When it was sent, in connected time.
    pub(super) sent_connected: Duration,
    pub(super) span: Publish,
}

/// An attempt and its outcome.
pub(super) type Answer = (Attempt, Result<Ack, Failure>);

/// An attempt that waits for the broker, or its client, to answer.
pub(super) struct Flight {
    attempt: Option<Attempt>,
    publishing: BoxFuture<'static, Result<Ack, Failure>>,
}

impl Flight {
    pub(super) fn new(attempt: Attempt, publishing: BoxFuture<'static, Result<Ack, Failure>>) -> Self {
        Self { attempt: Some(attempt), publishing }
    }

    /// `None` once it is answered.
    pub(super) fn attempt(&self) -> Option<&Attempt> {
        self.attempt.as_ref()
    }
}

impl Future for Flight {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let outcome = ready!(self.publishing.as_mut().poll(context));
        match self.attempt.take() {
            Some(attempt) => Poll::Ready((attempt, outcome)),
            None => Poll::Pending,
        }
    }
}

/// What is to be done with the next event.
pub(super) enum Next {
    Send(Flight),
    /// It goes to a target that takes no events for now.
    Park(Scope),
    SetAside(Fault),
    /// It is to be tried apart from the others, but such a try is under way.
    Wait,
    /// Nobody wants it any more.
    Drop,
}

/// What that depends on.
pub(super) struct Dispatch<'a> {
    pub(super) forwarder: &'a Forwarder,
    pub(super) connection: &'a dyn Connection,
    pub(super) targets: &'a Targets,
    pub(super) ended_connections: &'a HashMap<Place, u32>,
    pub(super) is_alone: bool,
    pub(super) now: &'a Moment,
}

impl Dispatch<'_> {
    pub(super) fn next(&self, item: &Item) -> Next {
        if item.origin.is_some_and(|origin| !self.forwarder.journal.is_wanted(&origin)) {
            return Next::Drop;
        }
        let event = match View::parse(&item.record.payload) {
            Ok(event) => event,
            Err(error) => {
                return Next::SetAside(Fault { reason: Reason::Damaged, detail: error.to_string() });
            }
        };
        let is_alone = self.is_suspect(item.place);
        if is_alone && self.is_alone {
            return Next::Wait;
        }
        let mut target = None;
        if !self.targets.is_empty() {
            let scope = Scope::Target(self.connection.target(&event));
            if self.targets.holds(item.place, &scope) {
                return Next::Park(scope);
            }
            target = Some(scope);
        }
        let publishing =
            if is_alone { self.connection.publish_unbatched(&event) } else { self.connection.publish(&event) };
        let attempt = Attempt {
            head: item.head(),
            origin: item.origin,
            position: item.record.position,
            accepted_ms: item.record.accepted_ms,
            category: Category::of(event.category()).label(),
            target,
            is_alone,
            sent: self.now.at,
            sent_connected: self.now.connected,
            span: self.forwarder.publisher.begin(&event),
        };
        Next::Send(Flight::new(attempt, publishing))
    }

    fn is_suspect(&self, place: Place) -> bool {
        !self.ended_connections.is_empty()
            && self.ended_connections.get(&place).is_some_and(|ended| *ended >= ENDED_CONNECTIONS)
    }
}
