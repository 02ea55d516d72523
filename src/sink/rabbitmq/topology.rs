//! The look at the exchange when a connection opens, and the topology, if the bridge may declare it.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ExchangeKind};

use super::settings::{Declare, Queue};

/// Declares what is to be declared, or only looks whether the exchange is there.
pub(super) async fn check(
    connection: &Connection,
    exchange: &ShortString,
    declare: Option<&Declare>,
) -> lapin::Result<()> {
    // Its own channel, because the broker ends it when something is missing or different.
    let channel = connection.create_channel().await?;
    let none = FieldTable::default;
    match declare {
        None => {
            let look = ExchangeDeclareOptions { passive: true, ..Default::default() };
            channel.exchange_declare(exchange.clone(), ExchangeKind::Topic, look, none()).await?;
        }
        Some(declare) => {
            let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
            let kind = ExchangeKind::Custom(declare.exchange_type.clone());
            channel.exchange_declare(exchange.clone(), kind, durable, none()).await?;
            for queue in &declare.queues {
                make(&channel, exchange, queue).await?;
            }
        }
    }
    channel.close(200, "OK".into()).await
}

async fn make(channel: &Channel, exchange: &ShortString, queue: &Queue) -> lapin::Result<()> {
    let name = ShortString::from(queue.name.as_str());
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue.r#type.as_str().into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.clone(), durable, arguments).await?;
    for binding in &queue.bindings {
        let key = ShortString::from(binding.as_str());
        channel
            .queue_bind(name.clone(), exchange.clone(), key, QueueBindOptions::default(), FieldTable::default())
            .await?;
    }
    Ok(())
}
