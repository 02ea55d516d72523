//! Publishing to a RabbitMQ exchange over AMQP 0-9-1.
//!
//! Promises: published means that the broker has confirmed the message and has routed it to a queue; a
//! message that no queue took is rejected, never lost. A [`Connection`] is one TCP connection; when it is
//! in doubt everything in flight fails as `Fatal`. Every wait has a limit.
//!
//! One publish at a time goes through a channel, many channels run side by side. That is on purpose: the
//! client gives a returned message to whichever confirmation comes next on its channel, and the broker ends
//! a channel, with all that is pending on it, for the fault of one message. With one message on a channel
//! both can only mean that message.
//!
//! Leaves to others: order, retries and back-off (the pipeline); queues and policies (whoever runs the broker,
//! unless `declare` is set).

mod bindings;
mod channels;
mod check;
mod contract;
mod dial;
mod errors;
mod message;
mod settings;
mod topology;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::options::BasicPublishOptions;
use lapin::types::{ShortString, ShortStringError};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep, timeout};

use channels::Channels;
use errors::{blocked, confirmed, connecting, failure, lost};
use settings::AttributePrefix;
pub use settings::{Declare, Queue, QueueType, Settings};

use super::settings::Faults;
use super::{About, Ack, Failure, Finding, Reason, Sink, Target};
use crate::domain::envelope::{Format, View};
use crate::domain::template::{KnownValues, Template};

/// For a whole `connect`: TCP, TLS, the handshake and the look at the exchange.
const CONNECT: Duration = Duration::from_secs(10);
/// For one confirmation, before the publish gives its place in the pool to another and waits on beside it. Half of
/// what the pipeline waits for, so that what had to wait for a channel is not counted as unanswered as well. A dead
/// connection is found by the heartbeat.
const CONFIRM: Duration = Duration::from_secs(5);

/// The same for a publish that is overtaken by another one: its queue is silent or slow, and the pool is there for all.
const OVERTAKEN: Duration = Duration::from_millis(100);

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
    fn begin(&self, event: &View<'_>, kind: ChannelKind) -> BoxFuture<'static, Result<Ack, Failure>> {
        let routing_key = self.routing_key.render(&event.values());
        let target = target(&self.exchange, &routing_key);
        let properties = message::properties(event, self.format, self.attribute_prefix);
        let body = event.body(self.format);
        let message = Message::build(properties, body, &self.exchange, routing_key, target.clone());
        let (channels, peer) = (Arc::clone(&self.channels), Arc::clone(&self.peer));
        async move {
            let message = message?;
            tokio::select! {
                biased;
                result = send_until_routed(&channels, &message, kind) => {
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
        self.begin(event, ChannelKind::Pool)
    }

    fn publish_unbatched(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>> {
        self.begin(event, ChannelKind::Own)
    }

    fn target(&self, event: &View<'_>) -> Target {
        target(&self.exchange, &self.routing_key.render(&event.values()))
    }

    fn window(&self) -> usize {
        channels::WINDOW
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

/// On which channel a message goes.
#[derive(Clone, Copy)]
enum ChannelKind {
    /// One of the pool's.
    Pool,
    /// One that is opened for it.
    Own,
}

fn target(exchange: &ShortString, routing_key: &str) -> Target {
    Target::new(format!("exchange \"{exchange}\", routing key \"{routing_key}\""))
}

/// All that goes to the broker for one event.
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

    async fn publish_on(&self, channel: &Channel) -> lapin::Result<Confirmation> {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let (exchange, routing_key) = (self.exchange.clone(), self.routing_key.clone());
        channel.basic_publish(exchange, routing_key, options, &self.body, self.properties.clone()).await?.await
    }
}

/// An exchange and its bindings can't be made in one step, so what no queue took is sent once more before
/// it counts as unroutable. Meanwhile it holds no channel.
async fn send_until_routed(channels: &Channels, message: &Message, kind: ChannelKind) -> Result<Ack, Failure> {
    match send(channels, message, kind).await {
        Err(Failure::Reject(fault)) if fault.reason == Reason::Unroutable => {
            sleep(BINDING).await;
            send(channels, message, kind).await
        }
        result => result,
    }
}

async fn send(channels: &Channels, message: &Message, kind: ChannelKind) -> Result<Ack, Failure> {
    let (channel, permit) = match kind {
        ChannelKind::Pool => channels.take(&message.target).await?,
        ChannelKind::Own => (channels.open(&message.target).await?, None),
    };
    let confirmation = confirmation(channels, message, &channel, permit).await?;
    // Only now is the channel known to be clean; in every other case it is closed here.
    if matches!(kind, ChannelKind::Pool) {
        channels.put_back(channel);
    }
    confirmed(confirmation, message.properties.message_id().as_ref(), &message.target)
}

/// Waits for as long as it takes, but only at first with the permit of the pool: a silent queue must not keep other
/// publishes from a channel, unless too many are silent.
async fn confirmation(
    channels: &Channels,
    message: &Message,
    channel: &Channel,
    permit: Option<SemaphorePermit<'_>>,
) -> Result<Confirmation, Failure> {
    let number = channels.begin();
    let mut confirming = pin!(message.publish_on(channel));
    let confirmation = tokio::select! {
        biased;
        confirmation = &mut confirming => confirmation,
        // The broker does not read while it is blocked, and does when it is done: nothing is broken.
        () = is_left_behind(channels, number) => if channels.is_blocked() {
            return Err(blocked());
        } else {
            tokio::select! {
                confirmation = &mut confirming => confirmation,
                _unanswered = channels.unanswered.acquire() => {
                    drop(permit);
                    confirming.await
                }
            }
        },
    };
    if confirmation.is_ok() {
        channels.confirmed(number);
    }
    confirmation.map_err(|error| failure(&error, channels.is_connected(), &message.target))
}

/// Waits until a publish is to give its place in the pool to another.
async fn is_left_behind(channels: &Channels, number: u64) {
    let until = Instant::now() + CONFIRM;
    while Instant::now() < until && !channels.is_overtaken(number) {
        sleep(OVERTAKEN).await;
    }
}
