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

/// How queues are declared.
pub(super) const DURABLE: QueueDeclareOptions =
    QueueDeclareOptions { passive: false, durable: true, exclusive: false, auto_delete: false, nowait: false };

/// What a queue is declared with.
pub(super) fn arguments(queue: &Queue) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(queue.r#type.as_str().into()));
    arguments
}

async fn make(channel: &Channel, exchange: &ShortString, queue: &Queue) -> lapin::Result<()> {
    let name = ShortString::from(queue.name.as_str());
    channel.queue_declare(name.clone(), DURABLE, arguments(queue)).await?;
    for binding in &queue.bindings {
        let key = ShortString::from(binding.as_str());
        channel
            .queue_bind(name.clone(), exchange.clone(), key, QueueBindOptions::default(), FieldTable::default())
            .await?;
    }
    Ok(())
}

/// Whether a binding of a topic exchange takes every routing key of a pattern, in which `*` stands for any word.
pub(super) fn takes(binding: &str, pattern: &str) -> bool {
    fn words(binding: &[&str], pattern: &[&str]) -> bool {
        match (binding, pattern) {
            (["#", rest @ ..], _) => {
                words(rest, pattern) || pattern.split_first().is_some_and(|(_, after)| words(binding, after))
            }
            (["*", rest @ ..], [_, after @ ..]) => words(rest, after),
            ([word, rest @ ..], [same, after @ ..]) => word == same && *same != "*" && words(rest, after),
            ([], []) => true,
            _ => false,
        }
    }
    words(&binding.split('.').collect::<Vec<_>>(), &pattern.split('.').collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::takes;

    #[test]
    fn bindings_take_words() {
        for (binding, taken) in [
            ("#", true),
            ("room.#", true),
            ("room.*.*", true),
            ("*.create.*", true),
            ("room.create.#.#", true),
            ("#.*", true),
            ("room.create", false),
            ("room.create.R", false),
            ("direct_call.#", false),
            ("room.*.*.*", false),
        ] {
            assert_eq!(takes(binding, "room.create.*"), taken, "{binding}");
        }
    }
}
