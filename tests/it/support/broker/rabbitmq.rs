//! RabbitMQ: a topic exchange and a classic queue, read by a consumer.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};

use super::{Limits, Message, Place, block_on};
use crate::support::PATIENCE;

/// Messages that the broker sends ahead.
const UNACKNOWLEDGED: u16 = 1000;

fn with_channel<T>(place: &Place, work: impl AsyncFnOnce(&Channel) -> lapin::Result<T>) -> T {
    block_on(async {
        let connection = Connection::connect(&place.address, ConnectionProperties::default()).await?;
        // Kept until the end: the client stumbles over a channel that is dropped while the connection closes.
        let channel = connection.create_channel().await?;
        let done = work(&channel).await?;
        connection.close(200, "done".into()).await?;
        Ok::<T, lapin::Error>(done)
    })
    .unwrap_or_else(|error| panic!("{}: {error}", place.address))
}

pub(crate) fn make(place: &Place, limits: Limits) {
    let name = || place.name.clone().into();
    with_channel(place, async |channel| {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(name(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        if place.replicas > 1 {
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        }
        if let Some(most) = limits.messages {
            arguments.insert("x-max-length".into(), AMQPValue::LongUInt(most));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        }
        channel.queue_declare(name(), durable, arguments).await?;
        let binding = if limits.no_rooms { "direct_call.#" } else { "#" };
        channel.queue_bind(name(), name(), binding.into(), QueueBindOptions::default(), FieldTable::default()).await
    });
}

/// One more durable queue of the place's exchange, of this name and for this binding, which holds at most so many messages
/// and refuses more.
pub(crate) fn make_queue(place: &Place, name: &str, binding: &str, most: Option<u32>) {
    with_channel(place, async |channel| {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        if let Some(most) = most {
            arguments.insert("x-max-length".into(), AMQPValue::LongUInt(most));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        }
        channel.queue_declare(name.into(), durable, arguments).await?;
        let (exchange, options) = (place.name.clone().into(), QueueBindOptions::default());
        channel.queue_bind(name.into(), exchange, binding.into(), options, FieldTable::default()).await
    });
}

/// The exchange first: what no queue takes is refused for good, what finds no exchange is not.
pub(crate) fn remove(place: &Place) {
    let name = || place.name.clone().into();
    with_channel(place, async |channel| {
        channel.exchange_delete(name(), ExchangeDeleteOptions::default()).await?;
        channel.queue_delete(name(), QueueDeleteOptions::default()).await
    });
}

pub(crate) fn consume(place: &Place, mut take: impl FnMut(Message)) {
    let name = || place.name.clone().into();
    with_channel(place, async |channel| {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let mut left = channel.queue_declare(name(), passive, FieldTable::default()).await?.message_count();
        channel.basic_qos(UNACKNOWLEDGED, BasicQosOptions::default()).await?;
        let (options, tag) = (BasicConsumeOptions::default(), "the test");
        let mut consumer = channel.basic_consume(name(), tag.into(), options, FieldTable::default()).await?;
        while left > 0 {
            let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
            let got = next.expect("the whole queue in time").expect("a message")?;
            left -= 1;
            if left == 0 || left.is_multiple_of(u32::from(UNACKNOWLEDGED) / 2) {
                channel.basic_ack(got.delivery_tag, BasicAckOptions { multiple: true }).await?;
            }
            take(message(&got));
        }
        channel.basic_cancel(tag.into(), BasicCancelOptions::default()).await?;
        Ok(())
    });
}

pub(crate) fn count(place: &Place) -> u64 {
    with_channel(place, async |channel| {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(place.name.clone().into(), passive, FieldTable::default()).await?;
        Ok(queue.message_count().into())
    })
}

fn message(delivery: &lapin::message::Delivery) -> Message {
    let properties = &delivery.properties;
    assert_eq!(properties.delivery_mode(), &Some(2), "expected a persistent message");
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => text.to_string(),
        other => panic!("expected a text, but found {other:?}"),
    };
    let headers: BTreeMap<String, String> = properties
        .headers()
        .as_ref()
        .expect("headers")
        .inner()
        .iter()
        // The broker's own, such as how often a quorum queue has delivered it.
        .filter(|(name, _)| !name.as_str().starts_with("x-"))
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect();
    Message {
        destination: delivery.exchange.to_string(),
        key: delivery.routing_key.to_string(),
        id: properties.message_id().as_ref().expect("a message id").to_string(),
        content_type: properties.content_type().as_ref().expect("a content type").to_string(),
        headers,
        body: delivery.data.clone(),
    }
}
