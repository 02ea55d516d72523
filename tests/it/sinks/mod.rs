//! What arrives in Kafka, RabbitMQ and NATS JetStream, in which form and order, and what happens while a broker is away,
//! refuses, or lacks a target. Most tests run against each of the three.

#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod authentication;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod connection_check;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod durability;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod leader_changes;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
pub(crate) mod messages;
#[cfg(feature = "nats")]
mod nats_accounts;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod network_faults;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod oauth_tokens;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod outages;
#[cfg(feature = "rabbitmq")]
mod rabbitmq_channels;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod rights;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod stuck;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod target_changes;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod trace_context;

/// Makes a test of each function for each broker that this build has a client for.
macro_rules! for_each_broker {
    ($($test:ident)*) => {
        #[cfg(feature = "kafka")]
        mod kafka {
            $(#[test] fn $test() { super::$test(crate::support::broker::Kind::Kafka); })*
        }
        #[cfg(feature = "rabbitmq")]
        mod rabbitmq {
            $(#[test] fn $test() { super::$test(crate::support::broker::Kind::RabbitMq); })*
        }
        #[cfg(feature = "nats")]
        mod nats {
            $(#[test] fn $test() { super::$test(crate::support::broker::Kind::Nats); })*
        }
    };
}
pub(crate) use for_each_broker;
