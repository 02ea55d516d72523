//! What consumers meet at a sink's broker, in the words of AsyncAPI: where it is, what it is addressed by, which headers
//! a message has. Each sink tells it of itself, from the settings and with the code that it publishes with, and never
//! tells a secret.

use serde_json::Value;

/// A sink as consumers see it.
#[derive(Debug)]
pub struct Contract {
    /// The protocol's name in AsyncAPI's bindings: `kafka`, `amqp`, `nats`.
    pub protocol: &'static str,
    /// The brokers, in the order of the settings.
    pub servers: Vec<Server>,
    /// The topic, routing key or subject, with its placeholders.
    pub address: String,
    /// What else is to be known of the channel, in a sentence or two.
    pub about: String,
    /// The binding of the channel; `None` where the protocol has none.
    pub channel: Option<Value>,
    /// The binding of the operation that publishes; `None` where the protocol has none.
    pub operation: Option<Value>,
    /// The binding of each message; `None` where the protocol has none.
    pub message: Option<Value>,
    /// The headers of the message that a given event becomes, as they are sent.
    pub headers: Vec<(String, String)>,
}

/// A broker.
#[derive(Debug, PartialEq, Eq)]
pub struct Server {
    /// `host:port`.
    pub host: String,
    /// The protocol, which says whether TLS is used where the protocol's names can.
    pub protocol: &'static str,
    /// What stands behind the host in a URL: the virtual host of RabbitMQ.
    pub pathname: Option<String>,
    /// What clients show, as AsyncAPI's types of security schemes.
    pub security: Vec<&'static str>,
}
