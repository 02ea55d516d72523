//! What consumers meet at RabbitMQ, as AsyncAPI says it.

use lapin::types::AMQPValue;
use lapin::uri::AMQPScheme;
use serde_json::json;

use super::Settings;
use super::message::{PERSISTENT, properties};
use super::settings::AttributePrefix;
use crate::domain::envelope::{Format, View};
use crate::sink::contract::{Contract, Server};

const BINDING: &str = "0.3.0";

/// The types of exchanges that the binding knows; a plugin's own type has no place in it.
const EXCHANGE_TYPES: [&str; 4] = ["topic", "direct", "fanout", "headers"];

impl Settings {
    /// What consumers meet; the headers are those of `event`.
    pub fn contract(&self, event: &View<'_>, format: Format) -> Contract {
        // Settings that are wrong were refused before; without a URL there is no server to name.
        let uri = self.parse().ok().map(|parsed| parsed.uri);
        let mut exchange = json!({ "name": self.exchange });
        let server = uri.map(|uri| {
            let (host, port) = (uri.authority.host, uri.authority.port);
            exchange["vhost"] = uri.vhost.as_str().into();
            let host = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            let tls = uri.scheme == AMQPScheme::AMQPS;
            let certificate = self.tls.as_ref().and_then(|tls| tls.cert_file.as_ref()).map(|_| "X509");
            Server {
                host,
                protocol: if tls { "amqps" } else { "amqp" },
                pathname: Some(format!("/{}", uri.vhost.replace('/', "%2F"))),
                security: ["userPassword"].into_iter().chain(certificate).collect(),
            }
        });
        if let Some(declare) = self.declare.as_option() {
            if EXCHANGE_TYPES.contains(&declare.exchange_type.as_str()) {
                exchange["type"] = declare.exchange_type.as_str().into();
            }
            exchange["durable"] = true.into();
            exchange["autoDelete"] = false.into();
        }
        Contract {
            protocol: "amqp",
            servers: server.into_iter().collect(),
            address: self.routing_key.clone(),
            about:
                "The routing key; bind a queue of your own to the exchange. `message_id` is the event's id, and the \
                    message's timestamp is `time` in seconds."
                    .into(),
            channel: Some(json!({ "is": "routingKey", "exchange": exchange, "bindingVersion": BINDING })),
            operation: Some(json!({
                "deliveryMode": PERSISTENT, "mandatory": true, "timestamp": true, "bindingVersion": BINDING,
            })),
            message: None,
            headers: headers(event, format, self.attribute_prefix),
        }
    }
}

fn headers(event: &View<'_>, format: Format, prefix: AttributePrefix) -> Vec<(String, String)> {
    let Ok(properties) = properties(event, format, prefix) else { return Vec::new() };
    let headers = properties.headers().iter().flat_map(|table| table.inner());
    headers
        .filter_map(|(name, value)| match value {
            AMQPValue::LongString(value) => Some((name.to_string(), value.to_string())),
            _ => None,
        })
        .collect()
}
