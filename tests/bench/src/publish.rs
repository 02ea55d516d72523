//! The brokers' clients, used as plainly as they can be: one message, one acknowledgement, many at once.
//!
//! A publish means what it means to the bridge: Kafka `acks=all` and idempotent, JetStream's acknowledgement with an id,
//! RabbitMQ's confirmation of a persistent message that reached a durable queue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, message::PublishMessage};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::Serialize;

use crate::Result;
use crate::delivery::Template;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Broker {
    Nats,
    Kafka,
    Rabbitmq,
}

/// A destination at a broker: a stream and its subjects, a topic, or a queue, of one name.
#[derive(Clone, clap::Args)]
pub struct Destination {
    pub broker: Broker,
    /// As a client is given it: `nats://host:port`, `host:port`, `amqp://...`.
    pub broker_address: String,
    /// Of the stream, the topic or the queue.
    pub name: String,
}

/// What a client sets for Kafka, as the bridge does.
pub fn kafka(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address);
    config
}

/// A client that publishes to one destination.
#[derive(Clone)]
pub enum Publisher {
    Nats { context: jetstream::Context, name: String },
    Kafka { producer: FutureProducer, name: String },
    // The connection ends with its last handle.
    Rabbitmq { channel: lapin::Channel, name: String, _connection: std::sync::Arc<Connection> },
}

/// Ready once the broker has acknowledged the message.
pub type Acknowledgement = BoxFuture<'static, Result<()>>;

impl Publisher {
    /// `in_flight` is how many messages may wait for their acknowledgements at once.
    pub async fn connect(destination: &Destination, in_flight: usize) -> Result<Self> {
        let (address, name) = (destination.broker_address.as_str(), destination.name.clone());
        Ok(match destination.broker {
            Broker::Nats => {
                let client = async_nats::connect(address).await?;
                let context =
                    jetstream::context::ContextBuilder::new().max_ack_inflight(in_flight.max(64) * 2).build(client);
                Self::Nats { context, name }
            }
            Broker::Kafka => {
                let mut config = kafka(address);
                config
                    .set("enable.idempotence", "true")
                    .set("acks", "all")
                    .set("partitioner", "murmur2_random")
                    .set("linger.ms", "2");
                Self::Kafka { producer: config.create()?, name }
            }
            Broker::Rabbitmq => {
                let connection = Connection::connect(address, ConnectionProperties::default()).await?;
                let channel = connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                Self::Rabbitmq { channel, name, _connection: std::sync::Arc::new(connection) }
            }
        })
    }

    /// Hands a message of this call to the client.
    pub async fn publish(&self, call_id: &str, body: Bytes) -> Result<Acknowledgement> {
        match self {
            Self::Nats { context, name } => {
                let message = PublishMessage::build().message_id(call_id).payload(body);
                let sent = context.send_publish(format!("{name}.direct_call.end.{call_id}"), message).await?;
                Ok(async move {
                    sent.await?;
                    Result::<()>::Ok(())
                }
                .boxed())
            }
            Self::Kafka { producer, name } => {
                let mut record = FutureRecord::to(name).key(call_id).payload(&body[..]);
                let sent = loop {
                    match producer.send_result(record) {
                        Ok(sent) => break sent,
                        Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                            record = refused;
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                        Err((error, _)) => return Err(error.into()),
                    }
                };
                Ok(async move {
                    sent.await?.map_err(|(error, _)| error)?;
                    Result::<()>::Ok(())
                }
                .boxed())
            }
            Self::Rabbitmq { channel, name, .. } => {
                let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(call_id.into());
                let options = BasicPublishOptions { mandatory: true, immediate: false };
                let sent = channel.basic_publish("".into(), name.as_str().into(), options, &body, properties).await?;
                Ok(async move {
                    match sent.await? {
                        Confirmation::Ack(None) => Result::<()>::Ok(()),
                        other => Err(format!("expected a confirmation, but found {other:?}").into()),
                    }
                }
                .boxed())
            }
        }
    }
}

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    destination: Destination,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// The length of each message.
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// Messages that may wait for their acknowledgements at once.
    #[arg(long, default_value_t = 1024)]
    in_flight: usize,
    /// The number of the first message.
    #[arg(long, default_value_t = 0)]
    first: u64,
}

#[derive(Serialize)]
pub struct Report {
    bytes: usize,
    in_flight: usize,
    seconds: f64,
    published: u64,
    per_s: f64,
}

/// Publishes as fast as the broker acknowledges.
pub async fn run(options: &Options) -> Result<Report> {
    let publisher = Publisher::connect(&options.destination, options.in_flight).await?;
    let template = Template::new(options.bytes);
    let mut waiting: VecDeque<Acknowledgement> = VecDeque::with_capacity(options.in_flight);
    let mut published = 0;
    let begun = Instant::now();
    while begun.elapsed().as_secs_f64() < options.seconds {
        let body = template.body(options.first + published);
        let call_id = template.call_id(&body).to_owned();
        if waiting.len() >= options.in_flight
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.await?;
        }
        waiting.push_back(publisher.publish(&call_id, body.into()).await?);
        published += 1;
    }
    for left in waiting {
        left.await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Report {
        bytes: options.bytes,
        in_flight: options.in_flight,
        seconds,
        published,
        per_s: published as f64 / seconds,
    })
}
