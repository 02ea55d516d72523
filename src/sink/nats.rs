//! Publishing to a NATS JetStream stream.
//!
//! Promises: published means that the stream has acknowledged it; the id travels as `Nats-Msg-Id`, so the
//! stream drops a second copy within its duplicate window; an event can't land in another stream. A
//! [`Connection`] is one TCP connection: when it breaks, all that is in flight fails at once as `Fatal`.
//! The client's own reconnecting is switched off, because it throws away its write buffer, later sends
//! what is still queued, and lets each acknowledgement run into its time-out.
//!
//! Leaves to others: order, retries and back-off (the pipeline); the stream's limits and its replicas (whoever
//! made the stream, unless `create_stream` is set).

mod check;
mod contract;
mod headers;
mod health;
mod settings;
mod stream;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::context::{Context, ContextBuilder, PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, ServerAddr};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use health::{Health, Waiting, inbox_refused};
pub use settings::{CreateStream, Credentials, Settings, Storage};
use stream::Asker;

use super::settings::Faults;
use super::{About, Ack, Failure, Finding, Reason, Sink, Target, tls};
use crate::domain::envelope::{Format, View};
use crate::domain::template::{KnownValues, Template};

/// For one server: TCP, TLS, INFO, CONNECT and its answer.
const DIAL: Duration = Duration::from_secs(5);
/// For a whole `connect`, with all servers and the look at the stream.
const CONNECT: Duration = Duration::from_secs(20);
/// For an acknowledgement, and for each request about the stream.
const ACKNOWLEDGE: Duration = Duration::from_secs(10);
/// Two unanswered pings end a connection, so a silent peer is noticed within three times this.
const PING: Duration = Duration::from_secs(5);
/// Commands between us and the client's task. Small: what is queued there is not on the wire.
const CAPACITY: usize = 64;
/// Acknowledgements awaited at once; above the pipeline's window, so that it never waits here.
const IN_FLIGHT: usize = 4096;
/// No server listens on port 0. With this as the only address of its pool, the client can't reconnect.
const NOWHERE: &str = "nats://127.0.0.1:0";

/// A JetStream stream.
#[derive(Debug)]
pub struct Nats {
    name: String,
    settings: Settings,
    servers: Vec<ServerAddr>,
    subject: Arc<Template>,
    format: Format,
    /// What is known ahead of the events.
    known: Vec<KnownValues>,
    /// Who the bridge is to the server, in words.
    user: String,
}

impl Nats {
    /// Takes settings that have no faults.
    ///
    /// # Errors
    /// All faults of the settings.
    pub fn new(name: &str, settings: Settings, format: Format, known: Vec<KnownValues>) -> Result<Self, Faults> {
        let (servers, subject) = settings.parse()?;
        Ok(Self {
            name: name.to_owned(),
            user: settings.user(),
            settings,
            servers,
            subject: Arc::new(subject),
            format,
            known,
        })
    }

    /// One client on the first server that answers. Each server is tried apart, so that the client's limit
    /// of attempts can be one: that is what ends it after the connection was lost.
    async fn dial(&self, health: &Arc<Health>) -> Result<(Client, String), Failure> {
        let mut last = Failure::every_event(Reason::Connection, "no server to connect to");
        let mut servers = self.servers.clone();
        fastrand::shuffle(&mut servers);
        for server in servers {
            let address = address(&server);
            match self.dial_one(server, health).await {
                Ok(client) => return Ok((client, address)),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn dial_one(&self, server: ServerAddr, health: &Arc<Health>) -> Result<Client, Failure> {
        let address = address(&server);
        let named = |failure: Failure| failure.naming_connection(&address, &self.user);
        let client = self.options(health).map_err(named)?.connect(server).await;
        let client = client.map_err(|error| named(refused(error.kind(), &error.to_string())))?;
        let pool = client.set_server_pool(NOWHERE).await;
        pool.map_err(|error| named(Failure::every_event(Reason::Connection, error)))?;
        Ok(client)
    }

    fn options(&self, health: &Arc<Health>) -> Result<ConnectOptions, Failure> {
        let health = Arc::clone(health);
        let options = ConnectOptions::new()
            .name(format!("sendbird-bridge {}", self.name))
            .connection_timeout(DIAL)
            .request_timeout(Some(ACKNOWLEDGE))
            .ping_interval(PING)
            .client_capacity(CAPACITY)
            .max_reconnects(1)
            .ignore_discovered_servers()
            .event_callback(move |event| {
                health.record_event(&event);
                async {}
            });
        self.settings.apply(options)
    }
}

impl Sink for Nats {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn super::Connection>, Failure>> {
        async move {
            let health = Arc::new(Health::default());
            let opened = timeout(CONNECT, async {
                let (client, address) = self.dial(&health).await?;
                let api_prefix = self.settings.api_prefix();
                let context = ContextBuilder::new()
                    .api_prefix(&api_prefix)
                    .timeout(ACKNOWLEDGE)
                    .max_ack_inflight(IN_FLIGHT)
                    .build(client.clone());
                let version = client.server_info().version;
                let asker = Asker {
                    context: &context,
                    api_prefix: &api_prefix,
                    health: &health,
                    user: &self.user,
                    version: &version,
                };
                let opened = stream::open(&asker, &self.settings, &self.subject).await;
                let warnings = opened.map_err(|failure| failure.naming_connection(&address, &self.user))?;
                Ok(Connection {
                    client,
                    context,
                    health,
                    peer: Arc::new((address, self.user.clone())),
                    warnings,
                    subject: Arc::clone(&self.subject),
                    stream: self.settings.stream.clone(),
                    format: self.format,
                })
            });
            match opened.await {
                Ok(Ok(connection)) => Ok(Box::new(connection) as Box<dyn super::Connection>),
                Ok(Err(failure)) => Err(failure),
                Err(_) => Err(Failure::every_event(Reason::Timeout, format!("no connection within {CONNECT:?}"))),
            }
        }
        .boxed()
    }

    fn check(&self, create: bool) -> BoxFuture<'_, Vec<Finding>> {
        check::check(self, create).boxed()
    }
}

struct Connection {
    client: Client,
    context: Context,
    health: Arc<Health>,
    /// Where the server is, and who the bridge is there.
    peer: Arc<(String, String)>,
    /// What was found of the server and the stream when the connection was opened.
    warnings: Vec<String>,
    subject: Arc<Template>,
    stream: String,
    format: Format,
}

impl super::Connection for Connection {
    fn publish(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>> {
        let subject = self.subject.render(&event.values());
        let message = jetstream::message::PublishMessage::build()
            .headers(headers::of(event, self.format, &self.stream))
            .payload(event.body(self.format));
        let (context, health, peer) = (self.context.clone(), Arc::clone(&self.health), Arc::clone(&self.peer));
        async move {
            let (target, waiting) = (target(&subject), Waiting::new(&health, &subject));
            let acknowledged = async { context.send_publish(subject, message).await?.await };
            let failure = tokio::select! {
                biased;
                () = health.broken.cancelled() => lost(),
                result = acknowledged => match result {
                    Ok(ack) => {
                        health.denied.store(false, Ordering::Relaxed);
                        return Ok(Ack { duplicate: ack.duplicate });
                    }
                    Err(error) => failure(&error, &target, health.denied.load(Ordering::Relaxed)),
                },
                () = waiting.refused.cancelled() => denied(&target),
                () = health.inbox_refused.cancelled() => inbox_refused(&peer.1),
            };
            Err(failure.naming(&target).naming_connection(&peer.0, &peer.1))
        }
        .boxed()
    }

    fn target(&self, event: &View<'_>) -> Target {
        target(&self.subject.render(&event.values()))
    }

    fn state(&self) -> Result<(), Failure> {
        let connected = self.client.connection_state() == async_nats::connection::State::Connected;
        if connected && !self.health.broken.is_cancelled() {
            return Ok(());
        }
        Err(lost().naming_connection(&self.peer.0, &self.peer.1))
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn close(self: Box<Self>, limit: Duration) -> BoxFuture<'static, ()> {
        async move {
            // Only a courtesy, so neither its failure nor its time-out matters. Dropping the last client
            // ends the client's task and with it the connection.
            let _best_effort = timeout(limit, self.client.flush()).await;
            self.health.broken.cancel();
        }
        .boxed()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Publishes that still wait hold a client each; this lets them go.
        self.health.broken.cancel();
    }
}

/// `host:port`.
fn address(server: &ServerAddr) -> String {
    format!("{}:{}", server.host(), server.port())
}

fn lost() -> Failure {
    Failure::fatal(Reason::Connection, "the connection to the server broke")
}

fn target(subject: &str) -> Target {
    Target::new(format!("subject \"{subject}\""))
}

fn denied(target: &Target) -> Failure {
    let detail = "the server does not let the user publish to it (permissions violation)";
    Failure::retry(About::Target(target.clone()), Reason::NotAuthorized, detail)
}

/// What a failed connect means. Nothing here is permanent: servers and credentials change.
fn refused(kind: ConnectErrorKind, detail: &str) -> Failure {
    let reason = match kind {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => Reason::NotAuthorized,
        ConnectErrorKind::TimedOut => Reason::Timeout,
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::Tls
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => Reason::Connection,
    };
    match tls::explained(detail) {
        Some(fault) => Failure::Retry(About::EveryEvent, fault),
        None => Failure::every_event(reason, detail),
    }
}

/// What a failed publish to this target means; `denied` is whether the server has refused one since its last
/// acknowledgement.
fn failure(error: &PublishError, target: &Target, denied: bool) -> Failure {
    let about_target = || About::Target(target.clone());
    match error.kind() {
        // Nobody listens on the subject: no such stream, or its leader is being elected.
        PublishErrorKind::StreamNotFound => {
            Failure::retry(about_target(), Reason::NotFound, "no stream takes the subject now")
        }
        PublishErrorKind::TimedOut if denied => self::denied(target),
        PublishErrorKind::TimedOut => {
            Failure::retry(about_target(), Reason::Timeout, format!("no acknowledgement within {ACKNOWLEDGE:?}"))
        }
        PublishErrorKind::BrokenPipe => lost(),
        PublishErrorKind::MaxAckPending => Failure::every_event(Reason::QueueFull, error),
        PublishErrorKind::MaxPayloadExceeded => Failure::reject(Reason::TooLarge, error),
        // Only asked for by headers that are never sent.
        PublishErrorKind::WrongLastMessageId | PublishErrorKind::WrongLastSequence => {
            Failure::retry(About::Event, Reason::Other, error)
        }
        PublishErrorKind::Other => other(error, target),
    }
}

/// The errors that the client doesn't name: the stream's answer, or the client's own end.
fn other(error: &PublishError, target: &Target) -> Failure {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(answer) = cause.downcast_ref::<jetstream::Error>() {
            return answered(answer.error_code(), answer.code(), &answer.to_string(), About::Target(target.clone()));
        }
        if cause.is::<async_nats::SubjectError>() {
            return Failure::reject(Reason::Invalid, error);
        }
        source = cause.source();
    }
    // Its text could hold the command, and so the event.
    Failure::retry(About::Event, Reason::Other, "the client could not send the message or read the answer")
}
/// What an error that JetStream answered means; `status` is its HTTP-like class, `asked` what was asked about.
fn answered(code: ErrorCode, status: usize, detail: &str, asked: About) -> Failure {
    let (about, reason) = match code {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => return Failure::reject(Reason::TooLarge, detail),
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::STREAM_NOT_MATCH => (asked, Reason::NotFound),
        // The limits of each subject have no code of their own.
        ErrorCode::STREAM_STORE_FAILED if detail.contains("per subject") => (asked, Reason::Unavailable),
        // Stream full with `discard: new`, disk or account limits: somebody makes room, then it goes on.
        ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::JETSTREAM_NOT_ENABLED
        | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => (About::EveryEvent, Reason::Unavailable),
        _ if status == 503 => (About::EveryEvent, Reason::Unavailable),
        _ if status == 404 => (asked, Reason::NotFound),
        _ => (About::Event, Reason::Other),
    };
    Failure::retry(about, reason, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(kind: PublishErrorKind, denied: bool) -> Failure {
        failure(&PublishError::new(kind), &target("s"), denied)
    }

    fn answer(code: u64, status: usize, description: &str) -> Failure {
        let json = format!(r#"{{"code":{status},"err_code":{code},"description":"{description}"}}"#);
        let error: jetstream::Error = serde_json::from_str(&json).expect("an error");
        failure(&PublishError::with_source(PublishErrorKind::Other, error), &target("s"), false)
    }

    #[test]
    fn publish_errors_are_sorted() {
        for (kind, denied, expected) in [
            (PublishErrorKind::StreamNotFound, false, ("target", Reason::NotFound)),
            (PublishErrorKind::TimedOut, false, ("target", Reason::Timeout)),
            (PublishErrorKind::TimedOut, true, ("target", Reason::NotAuthorized)),
            (PublishErrorKind::BrokenPipe, false, ("fatal", Reason::Connection)),
            (PublishErrorKind::MaxAckPending, false, ("every event", Reason::QueueFull)),
            (PublishErrorKind::MaxPayloadExceeded, false, ("reject", Reason::TooLarge)),
            (PublishErrorKind::WrongLastMessageId, false, ("event", Reason::Other)),
            (PublishErrorKind::WrongLastSequence, false, ("event", Reason::Other)),
            (PublishErrorKind::Other, false, ("event", Reason::Other)),
        ] {
            assert_eq!(publish(kind, denied).sorted(), expected, "{kind:?}");
        }
    }

    #[test]
    fn answers_are_sorted() {
        for (code, status, expected) in [
            (10_054, 400, ("reject", Reason::TooLarge)),
            (10_059, 404, ("target", Reason::NotFound)),
            (10_060, 400, ("target", Reason::NotFound)),
            (10_077, 503, ("every event", Reason::Unavailable)),
            (10_023, 503, ("every event", Reason::Unavailable)),
            (10_002, 400, ("every event", Reason::Unavailable)),
            (10_047, 500, ("every event", Reason::Unavailable)),
            (10_008, 503, ("every event", Reason::Unavailable)),
            (10_076, 503, ("every event", Reason::Unavailable)),
            (10_039, 503, ("every event", Reason::Unavailable)),
            (99_999, 503, ("every event", Reason::Unavailable)),
            (99_999, 404, ("target", Reason::NotFound)),
            (99_999, 400, ("event", Reason::Other)),
        ] {
            assert_eq!(answer(code, status, "d").sorted(), expected, "{code}");
        }
        let full = answer(10_077, 503, "maximum messages per subject exceeded");
        assert_eq!(full.sorted(), ("target", Reason::Unavailable));
    }

    #[test]
    fn an_invalid_subject_is_the_events_fault() {
        let error = PublishError::with_source(PublishErrorKind::Other, async_nats::SubjectError::InvalidFormat);
        assert_eq!(failure(&error, &target("s"), false).sorted(), ("reject", Reason::Invalid));
    }

    #[test]
    fn refused_connects_are_sorted() {
        for (kind, reason) in [
            (ConnectErrorKind::AuthorizationViolation, Reason::NotAuthorized),
            (ConnectErrorKind::Authentication, Reason::NotAuthorized),
            (ConnectErrorKind::TimedOut, Reason::Timeout),
            (ConnectErrorKind::Io, Reason::Connection),
            (ConnectErrorKind::Tls, Reason::Connection),
            (ConnectErrorKind::Dns, Reason::Connection),
        ] {
            assert_eq!(refused(kind, "x"), Failure::every_event(reason, "x"));
        }
    }
}
