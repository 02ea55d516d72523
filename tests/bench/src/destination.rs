//! Streams, topics and queues: created as the bridge creates its own, deleted, counted and read.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, consumer, stream};
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde::Serialize;
use tokio::time::timeout;

use crate::Result;
use crate::delivery::number_in;
use crate::publish::{Broker, Destination, kafka};

const PARTITIONS: i32 = 12;

/// How long a broker may take for an answer, and for its next message.
const BROKER_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn create(destination: &Destination) -> Result<()> {
    match destination.broker {
        Broker::Nats => {
            let config = stream::Config {
                name: destination.name.clone(),
                subjects: vec![format!("{}.*.*.*", destination.name)],
                discard: stream::DiscardPolicy::New,
                duplicate_window: Duration::from_secs(3600),
                ..stream::Config::default()
            };
            jetstream(destination).await?.create_stream(config).await?;
        }
        Broker::Kafka => {
            let topic = NewTopic::new(&destination.name, PARTITIONS, TopicReplication::Fixed(1));
            let options = AdminOptions::new().operation_timeout(Some(BROKER_TIMEOUT));
            for made in admin(destination)?.create_topics([&topic], &options).await? {
                made.map_err(|(topic, error)| format!("{topic}: {error}"))?;
            }
        }
        Broker::Rabbitmq => {
            let (connection, channel) = channel(destination).await?;
            let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
            channel.queue_declare(destination.name.as_str().into(), durable, arguments).await?;
            connection.close(200, "done".into()).await?;
        }
    }
    Ok(())
}

/// Deletes it, and the exchange of the same name.
pub async fn delete(destination: &Destination) -> Result<()> {
    match destination.broker {
        Broker::Nats => {
            jetstream(destination).await?.delete_stream(&destination.name).await?;
        }
        Broker::Kafka => {
            let options = AdminOptions::new().operation_timeout(Some(BROKER_TIMEOUT));
            for removed in admin(destination)?.delete_topics(&[&destination.name], &options).await? {
                removed.map_err(|(topic, error)| format!("{topic}: {error}"))?;
            }
        }
        Broker::Rabbitmq => {
            let (connection, channel) = channel(destination).await?;
            channel.queue_delete(destination.name.as_str().into(), QueueDeleteOptions::default()).await?;
            channel.exchange_delete(destination.name.as_str().into(), ExchangeDeleteOptions::default()).await?;
            connection.close(200, "done".into()).await?;
        }
    }
    Ok(())
}

/// How many messages the broker holds there.
pub async fn count(destination: &Destination) -> Result<u64> {
    Ok(match destination.broker {
        Broker::Nats => jetstream(destination).await?.get_stream(&destination.name).await?.info().await?.state.messages,
        Broker::Kafka => {
            let consumer: BaseConsumer = kafka(&destination.broker_address).create()?;
            let mut messages = 0;
            for partition in 0..PARTITIONS {
                let (low, high) = consumer.fetch_watermarks(&destination.name, partition, BROKER_TIMEOUT)?;
                messages += u64::try_from(high - low)?;
            }
            messages
        }
        Broker::Rabbitmq => {
            let (connection, channel) = channel(destination).await?;
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue = channel.queue_declare(destination.name.as_str().into(), passive, FieldTable::default()).await?;
            connection.close(200, "done".into()).await?;
            u64::from(queue.message_count())
        }
    })
}

#[derive(clap::Args)]
pub struct ReadOptions {
    #[command(flatten)]
    destination: Destination,
    /// The numbers of the deliveries that were answered with 200, as `load --answered` writes them.
    answered: PathBuf,
}

#[derive(Serialize)]
pub struct Report {
    /// Deliveries that were answered with 200.
    answered: usize,
    /// Messages at the broker.
    messages: usize,
    /// Deliveries among them.
    arrived: usize,
    /// Deliveries that were answered with 200 and did not arrive.
    missing: usize,
}

/// Compares what was answered with 200 with what arrived.
pub async fn read(options: &ReadOptions) -> Result<Report> {
    let lines = fs::read_to_string(&options.answered)?;
    let answered = lines.lines().map(str::parse).collect::<std::result::Result<HashSet<u64>, _>>()?;
    let destination = &options.destination;
    let mut messages = Vec::new();
    let mut take = |body: &[u8]| messages.push(number_in(body));
    match destination.broker {
        Broker::Nats => read_nats(destination, &mut take).await?,
        Broker::Kafka => read_kafka(destination, &mut take)?,
        Broker::Rabbitmq => read_rabbitmq(destination, &mut take).await?,
    }
    let arrived: HashSet<u64> = messages.iter().copied().flatten().collect();
    let missing = answered.difference(&arrived).count();
    Ok(Report { answered: answered.len(), messages: messages.len(), arrived: arrived.len(), missing })
}

async fn read_nats(destination: &Destination, take: &mut impl FnMut(&[u8])) -> Result<()> {
    let mut stream = jetstream(destination).await?.get_stream(&destination.name).await?;
    let mut left = stream.info().await?.state.messages;
    let config = consumer::pull::Config { ack_policy: consumer::AckPolicy::None, ..Default::default() };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    while left > 0 {
        let message = timeout(BROKER_TIMEOUT, messages.next()).await?.ok_or("the stream ended early")??;
        take(&message.payload);
        left -= 1;
    }
    Ok(())
}

fn read_kafka(destination: &Destination, take: &mut impl FnMut(&[u8])) -> Result<()> {
    let mut config = kafka(&destination.broker_address);
    let consumer: BaseConsumer =
        config.set("group.id", &destination.name).set("enable.auto.commit", "false").create()?;
    let mut partitions = TopicPartitionList::new();
    let mut left = 0;
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(&destination.name, partition, BROKER_TIMEOUT)?;
        left += high - low;
        partitions.add_partition_offset(&destination.name, partition, Offset::Beginning)?;
    }
    consumer.assign(&partitions)?;
    let mut deadline = Instant::now() + BROKER_TIMEOUT;
    while left > 0 {
        match consumer.poll(Duration::from_millis(200)) {
            Some(record) => {
                take(record?.payload().unwrap_or_default());
                left -= 1;
                deadline = Instant::now() + BROKER_TIMEOUT;
            }
            None if Instant::now() > deadline => return Err(format!("{left} records could not be read").into()),
            None => {}
        }
    }
    Ok(())
}

async fn read_rabbitmq(destination: &Destination, take: &mut impl FnMut(&[u8])) -> Result<()> {
    let (connection, channel) = channel(destination).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(destination.name.as_str().into(), passive, FieldTable::default()).await?;
    let mut left = queue.message_count();
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let name = destination.name.as_str().into();
    let mut consumer = channel.basic_consume(name, "reader".into(), options, FieldTable::default()).await?;
    while left > 0 {
        let message = timeout(BROKER_TIMEOUT, consumer.next()).await?.ok_or("the queue ended early")??;
        take(&message.data);
        left -= 1;
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

async fn jetstream(destination: &Destination) -> Result<jetstream::Context> {
    Ok(jetstream::new(async_nats::connect(&destination.broker_address).await?))
}

fn admin(destination: &Destination) -> Result<AdminClient<DefaultClientContext>> {
    Ok(kafka(&destination.broker_address).create()?)
}

/// With its connection, which must live as long.
async fn channel(destination: &Destination) -> Result<(Connection, lapin::Channel)> {
    let connection = Connection::connect(&destination.broker_address, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}
