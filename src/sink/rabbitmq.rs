//! Publishing to a RabbitMQ exchange over AMQP 0-9-1.
//!
//! Promises: published means that the broker has confirmed the message and has routed it to a queue; a
//! message that no queue took is rejected, never lost. A [`Connection`] is one TCP connection; when it is
//! in doubt everything in flight fails as `Fatal`. Every wait has a limit.
//!
//! Publishes share a few channels, with a bound for each. The client gives a returned message to whichever
//! confirmation comes next on its channel, and the broker ends a channel, with all that is in flight on it, for
//! the fault of one message. So returned messages are sorted by their id, and after a channel's end each
//! publish is tried on a channel of its own.
//!
//! Leaves to others: order, retries and back-off (the pipeline); queues and policies (whoever runs the broker,
//! unless `declare` is set).

mod bindings;
mod channels;
mod check;
mod confirm_channel;
mod contract;
mod dial;
mod errors;
mod message;
mod settings;
mod settlement;
mod topology;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::BasicProperties;
use lapin::types::{ShortString, ShortStringError};
use tokio::time::{sleep, timeout};

use channels::Channels;
use errors::{answered, connecting, lost};
use settings::AttributePrefix;
pub use settings::{Declare, Queue, QueueType, Settings};

use super::settings::Faults;
use super::{About, Ack, Failure, Finding, Reason, Sink, Target};
use crate::domain::envelope::{Format, View};
use crate::domain::template::{KnownValues, Template};

/// For a whole `connect`: TCP, TLS, the handshake and the look at the exchange.
const CONNECT: Duration = Duration::from_secs(10);

/// Between an exchange's declaration and the binding of its queue.
const BINDING: Duration = Duration::from_millis(500);

/// A RabbitMQ exchange.
#[derive(Debug)]
pub struct RabbitMq {
    name: String,
    settings: Settings,
    uri: lapin::uri::AMQPUri,
    exchange: ShortString,
    routing_key: Template,
    format: Format,
    /// What is known ahead of the events.
    known: Vec<KnownValues>,
}

impl RabbitMq {
    /// Takes settings that have no faults.
    ///
    /// # Errors
    /// All faults of the settings.
    pub fn new(name: &str, settings: Settings, format: Format, known: Vec<KnownValues>) -> Result<Self, Faults> {
        let settings::Parsed { uri, exchange, routing_key } = settings.parse()?;
        Ok(Self { name: name.to_owned(), settings, uri, exchange, routing_key, format, known })
    }

    /// `host:port` of the broker.
    fn address(&self) -> String {
        let (host, port) = (&self.uri.authority.host, self.uri.authority.port);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Who the bridge is to the broker, in words.
    fn user(&self) -> String {
        format!("user \"{}\"", self.uri.authority.userinfo.username)
    }

    /// What an error means that is about no message.
    fn unconnected(&self, error: &lapin::Error) -> Failure {
        Failure::Retry(About::EveryEvent, connecting(error)).naming_connection(&self.address(), &self.user())
    }

    async fn dial(&self) -> Result<(lapin::Connection, dial::Hangup), Failure> {
        let tls = self.settings.tls.clone();
        let encrypted = self.uri.scheme == lapin::uri::AMQPScheme::AMQPS;
        // Reads files, so not on an async thread; each time, because certificates are rotated.
        let tls = tokio::task::spawn_blocking(move || encrypted.then(|| dial::tls(tls.as_ref())).transpose())
            .await
            .map_err(|error| Failure::every_event(Reason::Other, error))?
            .map_err(|error| Failure::every_event(Reason::Connection, error))?;
        let dialed = dial::dial(&self.uri, tls, &self.name).await;
        dialed.map_err(|error| self.unconnected(&error))
    }

    async fn open(&self) -> Result<Connection, Failure> {
        let (connection, hangup) = self.dial().await?;
        let checked = topology::check(&connection, &self.exchange, self.settings.declare.as_option()).await;
        checked.map_err(|error| self.unconnected(&error))?;
        Ok(Connection {
            channels: Arc::new(Channels::new(connection)),
            hangup,
            peer: Arc::new((self.address(), self.user())),
            warnings: self.settings.warnings(),
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            format: self.format,
            attribute_prefix: self.settings.attribute_prefix,
        })
    }
}

impl Sink for RabbitMq {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn super::Connection>, Failure>> {
        async move {
            match timeout(CONNECT, self.open()).await {
                Ok(Ok(connection)) => Ok(Box::new(connection) as Box<dyn super::Connection>),
                Ok(Err(failure)) => Err(failure),
                Err(_) => Err(Failure::every_event(
                    Reason::Timeout,
                    format!("{}: no connection within {CONNECT:?}", self.address()),
                )),
            }
        }
        .boxed()
    }

    fn check(&self, create: bool) -> BoxFuture<'_, Vec<Finding>> {
        check::check(self, create).boxed()
    }
}

struct Connection {
    channels: Arc<Channels>,
    hangup: dial::Hangup,
    /// Where the broker is, and who the bridge is there.
    peer: Arc<(String, String)>,
    warnings: Vec<String>,
    exchange: ShortString,
    routing_key: Template,
    format: Format,
    attribute_prefix: AttributePrefix,
}

impl Connection {
    fn begin(&self, event: &View<'_>, is_alone: bool) -> BoxFuture<'static, Result<Ack, Failure>> {
        let routing_key = self.routing_key.render(&event.values());
        let target = target(&self.exchange, &routing_key);
        let properties = message::properties(event, self.format, self.attribute_prefix);
        let body = event.body(self.format);
        let message = Message::build(properties, body, &self.exchange, routing_key, target.clone());
        let (channels, peer) = (Arc::clone(&self.channels), Arc::clone(&self.peer));
        async move {
            let message = Arc::new(message?);
            tokio::select! {
                biased;
                result = send_until_routed(&channels, &message, is_alone) => {
                    if matches!(result, Err(Failure::Fatal(_))) {
                        channels.broken.cancel();
                    }
                    result
                }
                () = channels.broken.cancelled() => Err(lost()),
            }
        }
        .map(move |result| result.map_err(|failure| failure.naming(&target).naming_connection(&peer.0, &peer.1)))
        .boxed()
    }
}

impl super::Connection for Connection {
    fn publish(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>> {
        self.begin(event, false)
    }

    fn publish_unbatched(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>> {
        self.begin(event, true)
    }

    fn target(&self, event: &View<'_>) -> Target {
        target(&self.exchange, &self.routing_key.render(&event.values()))
    }

    fn window(&self) -> usize {
        self.channels.window
    }

    fn unanswered(&self) -> usize {
        self.channels.most_unanswered
    }

    fn can_abandon(&self) -> bool {
        // Its channel is closed with it.
        true
    }

    fn state(&self) -> Result<(), Failure> {
        let usable = if self.channels.broken.is_cancelled() { Err(lost()) } else { self.channels.usable() };
        usable.map_err(|failure| failure.naming_connection(&self.peer.0, &self.peer.1))
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn close(self: Box<Self>, limit: Duration) -> BoxFuture<'static, ()> {
        async move {
            if self.channels.connection.status().connected() {
                // Only a courtesy: a failure or a time-out changes nothing, the socket is cut all the same.
                let _best_effort = timeout(limit, self.channels.connection.close(200, "OK".into())).await;
            }
        }
        .boxed()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.channels.broken.cancel();
        self.hangup.now();
    }
}

fn target(exchange: &ShortString, routing_key: &str) -> Target {
    Target::new(format!("exchange \"{exchange}\", routing key \"{routing_key}\""))
}

/// All that goes to the broker for one event.
#[derive(Debug)]
struct Message {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Bytes,
    target: Target,
}

impl Message {
    fn build(
        properties: Result<BasicProperties, ShortStringError>,
        body: Bytes,
        exchange: &ShortString,
        routing_key: String,
        target: Target,
    ) -> Result<Self, Failure> {
        let invalid = |error| Failure::reject(Reason::Invalid, error);
        Ok(Self {
            exchange: exchange.clone(),
            routing_key: ShortString::try_new(routing_key).map_err(invalid)?,
            properties: properties.map_err(invalid)?,
            body,
            target,
        })
    }
}

/// An exchange and its bindings can't be made in one step, so what no queue took is sent once more before
/// it counts as unroutable. Meanwhile it holds no place on a channel.
async fn send_until_routed(channels: &Channels, message: &Arc<Message>, is_alone: bool) -> Result<Ack, Failure> {
    match send(channels, message, is_alone).await {
        Err(Failure::Reject(fault)) if fault.reason == Reason::Unroutable => {
            sleep(BINDING).await;
            send(channels, message, is_alone).await
        }
        result => result,
    }
}

async fn send(channels: &Channels, message: &Arc<Message>, is_alone: bool) -> Result<Ack, Failure> {
    let answer = if is_alone { channels.publish_unbatched(message).await? } else { channels.publish(message).await? };
    answered(answer, channels.is_connected(), &message.target)
}
