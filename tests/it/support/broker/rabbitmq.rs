//! RabbitMQ: a topic exchange and a classic queue, read by basic.get.

use std::collections::BTreeMap;

use lapin::options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};

use super::{Limits, Message, Place, block_on};

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
        channel.queue_declare(name(), durable, FieldTable::default()).await?;
        let binding = if limits.no_rooms { "direct_call.#" } else { "#" };
        channel.queue_bind(name(), name(), binding.into(), QueueBindOptions::default(), FieldTable::default()).await
    });
}

pub(crate) fn consume(place: &Place) -> Vec<Message> {
    with_channel(place, async |channel| {
        let mut messages = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(got) = channel.basic_get(place.name.clone().into(), options).await? {
            messages.push(message(&got.delivery));
        }
        Ok(messages)
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
