//! What consumers meet at Kafka, as AsyncAPI says it.

use rdkafka::message::Headers;
use serde_json::json;

use super::record::Record;
use super::{Mechanism, Settings};
use crate::domain::envelope::{Format, View};
use crate::sink::contract::{Contract, Server};

const BINDING: &str = "0.5.0";

impl Settings {
    /// What consumers meet; the headers are those of `event`.
    pub fn contract(&self, event: &View<'_>, format: Format) -> Contract {
        let tls = self.tls.as_ref();
        let mechanism = self.sasl.as_ref().map(|sasl| match sasl.mechanism {
            Mechanism::Plain => "plain",
            Mechanism::ScramSha256 => "scramSha256",
            Mechanism::ScramSha512 => "scramSha512",
            Mechanism::OauthBearer => "oauth2",
        });
        let certificate = tls.and_then(|tls| tls.cert_file.as_ref()).map(|_| "X509");
        let server = |broker: &String| Server {
            host: broker.clone(),
            protocol: if tls.is_some() { "kafka-secure" } else { "kafka" },
            pathname: None,
            security: mechanism.into_iter().chain(certificate).collect(),
        };
        let mut channel = json!({ "bindingVersion": BINDING });
        if let Some(create) = self.create_topics.as_option() {
            for (name, count) in
                [("partitions", create.partitions), ("replicas", create.replication_factor.map(u16::from))]
            {
                if let Some(count) = count {
                    channel[name] = count.into();
                }
            }
        }
        let record = Record::build(event, format, String::new(), 0);
        let headers = record.headers.iter().map(|header| {
            let value = header.value.map(String::from_utf8_lossy).unwrap_or_default();
            (header.key.to_owned(), value.into_owned())
        });
        let key = "The event's `partitionkey`: `call_id`, else `room_id`, else the application id. Its partition is the \
                   one that a Java client would choose.";
        Contract {
            protocol: "kafka",
            servers: self.brokers.iter().map(server).collect(),
            address: self.topic.clone(),
            about: "A topic. The record's timestamp is `receivedtime`, or when it was published if that was earlier."
                .into(),
            channel: Some(channel),
            operation: None,
            message: Some(json!({ "key": { "type": "string", "description": key }, "bindingVersion": BINDING })),
            headers: headers.collect(),
        }
    }
}
