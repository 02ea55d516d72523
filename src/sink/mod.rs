//! Where events go: the seam between the pipeline and a broker's client library.
//!
//! A [`Sink`] opens [`Connection`]s; a connection publishes one event and says when the broker has
//! acknowledged it, nothing less. Each client's errors are sorted once, in the file that talks to it,
//! into [`Failure`]. Order, retries, cursors and dead letters are the pipeline's work, not a sink's: it
//! never has two events of one key in flight on a sink, so a sink may publish side by side what it is
//! given.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::domain::envelope::View;

#[cfg(any(feature = "kafka", feature = "nats", feature = "rabbitmq"))]
pub mod contract;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
pub mod settings;
pub mod stdout;
#[cfg(any(feature = "kafka", feature = "nats", feature = "rabbitmq"))]
mod tls;

/// A configured destination. Opening a connection also checks, or makes, the topics, the exchange or
/// the stream.
pub trait Sink: Send + Sync + 'static {
    /// Opens a connection, within a time of the sink's own choosing (seconds, never without end).
    ///
    /// # Errors
    /// Any [`Failure`] means that there is no connection now; the pipeline waits and tries again,
    /// whatever its kind.
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, Failure>>;

    /// Finds out, within seconds, whether each event that the sink can get could be published. Changes nothing at the
    /// broker, unless `create` says that what is missing and may be created is to be created.
    fn check(&self, create: bool) -> BoxFuture<'_, Vec<Finding>>;
}

/// What a check of a sink has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Some event could not be published now, or would not be kept.
    Fault(Fault),
    /// Every event can be published; this may lose it later, or publish it twice.
    Warning(String),
    /// It is missing, and the bridge creates it when it starts.
    WillCreate(String),
    /// It was missing, and is there now.
    Created(String),
    /// The broker does not tell this, so somebody else has to.
    NotChecked(String),
}

impl Finding {
    /// A fault.
    pub fn fault(reason: Reason, detail: impl fmt::Display) -> Self {
        Self::Fault(Fault { reason, detail: detail.to_string() })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "fault: {fault}"),
            Self::Warning(text) => write!(f, "warning: {text}"),
            Self::WillCreate(what) => write!(f, "will be created: {what}"),
            Self::Created(what) => write!(f, "created: {what}"),
            Self::NotChecked(what) => write!(f, "not checked: {what}"),
        }
    }
}

/// An open connection to a broker.
pub trait Connection: Send + Sync {
    /// Sends one event. The message is built before this returns; the future resolves when the broker
    /// has acknowledged it as durably as the broker can. A publish to a target that stays silent may never
    /// resolve: see [`Connection::unanswered`]. Dropping the future leaves the outcome unknown.
    fn publish(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>>;

    /// Publishes an event whose tries have ended the connection several times, apart from all others: on a channel
    /// or by a producer of its own, where the client has such.
    fn publish_unbatched(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>> {
        self.publish(event)
    }

    /// Where this event would go, as far as that is known before it is sent. Waits for nothing.
    fn target(&self, event: &View<'_>) -> Target;

    /// Where this event, which was sent and is still unanswered, went. Other events that go there are held up with it,
    /// so this is the narrowest place that can be silent by itself; `None` as long as that is unknown. Waits for nothing.
    fn silent_target(&self, event: &View<'_>) -> Option<Target> {
        Some(self.target(event))
    }

    /// How many publishes may wait for their acknowledgement at once. What waits inside the client can no
    /// longer be overtaken by an older event, so no more than the client makes use of.
    fn window(&self) -> usize {
        1024
    }

    /// How many publishes, beyond the window, may be left without an answer for longer than 10 s. None, where the
    /// client fails each publish within that time.
    fn unanswered(&self) -> usize {
        0
    }

    /// Whether the future of a publish without an answer may be dropped and the event be sent once more on this
    /// connection, and nothing is lost with a connection that answers nothing. `false` where the client keeps what it was
    /// given and goes on trying by itself: the connection then ends only if there are more publishes without an answer
    /// than [`Connection::unanswered`].
    fn can_abandon(&self) -> bool {
        false
    }

    /// Whether the broker can be reached and takes events, as far as the client knows; if not, why.
    ///
    /// # Errors
    /// What is in the way. A publish may wait for its end, so this is all that tells of it meanwhile; and without a
    /// publish, only [`Failure::Fatal`] from here makes the pipeline open another connection.
    fn state(&self) -> Result<(), Failure>;

    /// What may lose events that the broker has acknowledged, or leave them there twice, as far as its settings tell. May
    /// grow while the connection lasts.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Says goodbye within `limit`. What is unacknowledged then has an unknown outcome.
    fn close(self: Box<Self>, limit: Duration) -> BoxFuture<'static, ()>;
}

/// A broker's acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// The broker says that it had this id already (JetStream's duplicate window).
    pub duplicate: bool,
}

/// Why an event is not published. What a client leaves open is `Retry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// May succeed later, on this connection, unchanged.
    Retry(About, Fault),
    /// This event will never be taken: set it aside and go on.
    Reject(Fault),
    /// This connection is of no more use: open another; what was in flight has an unknown outcome.
    Fatal(Fault),
}

/// What a failure that may pass is about. Only the last two can make an event stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// Any event would have failed now: an alarm, a full client queue or stream, no connection.
    EveryEvent,
    /// Any event for this target would have failed now: a missing topic, a subject without a stream, a full queue.
    Target(Target),
    /// This event alone, as far as is known.
    Event,
}

/// Where an event goes, in words for people: a topic and its partition, a routing key at an exchange, a subject.
/// Two events go to the same place if, and only if, their targets are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(Arc<str>);

impl Target {
    /// A target by its words.
    pub fn new(words: impl Into<Arc<str>>) -> Self {
        Self(words.into())
    }

    /// The words.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The words, shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What went wrong: a reason from a closed set, for metrics, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of failure.
    pub reason: Reason,
    /// What the client or broker said; never the event's content.
    pub detail: String,
}

/// The kinds of failure, as metric labels and in dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not connected, or the connection was lost.
    Connection,
    /// No acknowledgement in time; the event may have been written.
    Timeout,
    /// The broker is there but can't take it now (no leader, not enough replicas, an alarm, a nack).
    Unavailable,
    /// The client's own queue is full.
    QueueFull,
    /// Name, password, certificate or permission refused.
    NotAuthorized,
    /// The topic, exchange or stream does not exist.
    NotFound,
    /// The broker found no queue for it.
    Unroutable,
    /// Larger than the broker takes.
    TooLarge,
    /// The broker says that the message itself is wrong.
    Invalid,
    /// The stored event can't be read.
    Damaged,
    /// Anything that no other kind describes.
    Other,
}

impl Reason {
    /// Every reason, for declaring metrics.
    pub const ALL: [Self; 11] = [
        Self::Connection,
        Self::Timeout,
        Self::Unavailable,
        Self::QueueFull,
        Self::NotAuthorized,
        Self::NotFound,
        Self::Unroutable,
        Self::TooLarge,
        Self::Invalid,
        Self::Damaged,
        Self::Other,
    ];

    /// The reason with this label.
    pub fn parse(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == label)
    }

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::QueueFull => "queue_full",
            Self::NotAuthorized => "not_authorized",
            Self::NotFound => "not_found",
            Self::Unroutable => "unroutable",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::Damaged => "damaged",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Failure {
    /// May succeed later, as may whatever else it is about.
    pub fn retry(about: About, reason: Reason, detail: impl fmt::Display) -> Self {
        Self::Retry(about, Fault { reason, detail: detail.to_string() })
    }

    /// May succeed later; nothing does now.
    pub fn every_event(reason: Reason, detail: impl fmt::Display) -> Self {
        Self::retry(About::EveryEvent, reason, detail)
    }

    /// Never will.
    pub fn reject(reason: Reason, detail: impl fmt::Display) -> Self {
        Self::Reject(Fault { reason, detail: detail.to_string() })
    }

    /// Needs another connection.
    pub fn fatal(reason: Reason, detail: impl fmt::Display) -> Self {
        Self::Fatal(Fault { reason, detail: detail.to_string() })
    }

    /// The same, and its detail begins with what it is about: a target, or where this event was to go.
    #[must_use]
    pub fn naming(mut self, destination: &Target) -> Self {
        let (target, fault) = match &mut self {
            Self::Retry(About::Target(target), fault) => (&*target, fault),
            Self::Retry(About::Event, fault) | Self::Reject(fault) => (destination, fault),
            Self::Retry(About::EveryEvent, _) | Self::Fatal(_) => return self,
        };
        fault.detail = format!("{target}: {}", fault.detail);
        self
    }

    /// The same, with what else is to be known of it: where the broker is, if it is about no target, and who the bridge is
    /// there, if it lacks a right. What the detail says already is not repeated.
    #[must_use]
    pub fn naming_connection(mut self, address: &str, user: &str) -> Self {
        let is_about_broker = matches!(self, Self::Retry(About::EveryEvent, _) | Self::Fatal(_));
        let (Self::Retry(_, fault) | Self::Reject(fault) | Self::Fatal(fault)) = &mut self;
        if is_about_broker && !fault.detail.contains(address) {
            fault.detail = format!("{address}: {}", fault.detail);
        }
        // A broker may quote the name in its own way.
        let name = user.split('"').nth(1).unwrap_or(user);
        if fault.reason == Reason::NotAuthorized && !fault.detail.contains(name) {
            fault.detail = format!("{} ({user})", fault.detail);
        }
        self
    }

    /// What went wrong, whatever is to be done about it.
    pub fn fault(&self) -> &Fault {
        match self {
            Self::Retry(_, fault) | Self::Reject(fault) | Self::Fatal(fault) => fault,
        }
    }

    /// What is to be done and what it is about, in a word each: for the tests of the tables.
    #[cfg(all(test, any(feature = "kafka", feature = "rabbitmq", feature = "nats")))]
    pub(crate) fn sorted(&self) -> (&'static str, Reason) {
        let kind = match self {
            Self::Retry(About::EveryEvent, _) => "every event",
            Self::Retry(About::Target(_), _) => "target",
            Self::Retry(About::Event, _) => "event",
            Self::Reject(_) => "reject",
            Self::Fatal(_) => "fatal",
        };
        (kind, self.fault().reason)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_what_it_is_about() {
        let (topic, partition) = (Target::new("topic \"t\""), Target::new("topic \"t\" partition 2"));
        let detail = |failure: Failure| failure.naming(&partition).fault().detail.clone();
        assert_eq!(detail(Failure::retry(About::Target(topic), Reason::NotFound, "no")), "topic \"t\": no");
        assert_eq!(detail(Failure::retry(About::Event, Reason::Other, "no")), "topic \"t\" partition 2: no");
        assert_eq!(detail(Failure::reject(Reason::TooLarge, "no")), "topic \"t\" partition 2: no");
        assert_eq!(detail(Failure::every_event(Reason::QueueFull, "no")), "no");
        assert_eq!(detail(Failure::fatal(Reason::Connection, "no")), "no");
    }

    #[test]
    fn a_failure_names_the_broker_and_the_user_once() {
        let detail = |failure: Failure| failure.naming_connection("h:1", "user \"u1\"").fault().detail.clone();
        assert_eq!(detail(Failure::fatal(Reason::Connection, "cut")), "h:1: cut");
        assert_eq!(detail(Failure::every_event(Reason::Connection, "h:1: cut")), "h:1: cut");
        assert_eq!(detail(Failure::every_event(Reason::NotAuthorized, "no")), "h:1: no (user \"u1\")");
        assert_eq!(detail(Failure::retry(About::Event, Reason::NotAuthorized, "not for 'u1'")), "not for 'u1'");
        assert_eq!(detail(Failure::retry(About::Event, Reason::Other, "no")), "no");
    }
}
