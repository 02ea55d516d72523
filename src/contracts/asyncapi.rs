//! AsyncAPI 3.0: a channel for each configured sink with a broker, its servers, headers and bindings, and the messages
//! that its categories let through.
//!
//! The headers are those of an example event that is published to nowhere, with the code that publishes.

#[cfg(any(feature = "kafka", feature = "nats", feature = "rabbitmq"))]
mod broker;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::config::{Config, SinkConfig, SinkKind};
use crate::domain::envelope::View;
use crate::sendbird::category::Category;
use crate::sendbird::delivery;
use crate::sendbird::normalize::{Provenance, normalize};
use crate::sendbird::sample::Sampler;
use crate::sendbird::schema::SchemaDocument;

const SCHEMAS: &str = "#/components/schemas/";

/// The document.
pub(super) fn document(config: &Config) -> Value {
    let mut parts = Parts::default();
    SchemaDocument::all()
        .filter(|published| !matches!(published, SchemaDocument::Data(_)))
        .for_each(|published| published.add_to(&mut parts.schemas, SCHEMAS));
    let example = example(config, &parts.schemas["envelope"]);
    if let Ok(event) = View::parse(&example) {
        for (name, sink) in &config.sinks {
            parts.sink(name, sink, &event);
        }
    }
    let schemas: Map<String, Value> =
        parts.schemas.into_iter().map(|(name, schema)| (name, without_siblings(schema))).collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "sendbird-bridge: Sendbird Calls events",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Every event is a CloudEvents 1.0 event, published by the bridge at least once and in order by key \
                            to each sink below. New fields and new categories may come at any time: ignore what you \
                            don't know. A sink on standard output has no broker, and no channel here; the feed is \
                            described by the OpenAPI document.",
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
        },
        "servers": parts.servers,
        "channels": parts.channels,
        "operations": parts.operations,
        "components": { "schemas": schemas, "messageTraits": parts.traits },
    })
}

/// An event with every attribute that there can be: those that a sample lacks have what the schema gives as an example.
fn example(config: &Config, schema: &Value) -> Bytes {
    const AT_MS: i64 = 1_767_225_600_000;
    let sample = Sampler::new(1, 1, AT_MS, "0A1B2C3D-1111-4222-8333-444455556666").of(Category::DirectCallDial);
    let event = delivery::parse(&sample.body)
        .map(|delivery| normalize(&delivery, Provenance::at(AT_MS), &config.envelope).envelope)
        .unwrap_or_default();
    let mut event: Value = serde_json::from_slice(&event).unwrap_or_default();
    for (name, attribute) in schema["properties"].as_object().into_iter().flatten() {
        if event.get(name).is_none() {
            event[name] = attribute.get("const").unwrap_or(&attribute["examples"][0]).clone();
        }
    }
    Bytes::from(event.to_string())
}

#[derive(Default)]
struct Parts {
    servers: Map<String, Value>,
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    traits: Map<String, Value>,
    schemas: Map<String, Value>,
}

impl Parts {
    #[cfg_attr(
        not(any(feature = "kafka", feature = "rabbitmq", feature = "nats")),
        expect(unused_variables, reason = "standard output has no broker")
    )]
    fn sink(&mut self, name: &str, sink: &SinkConfig, event: &View<'_>) {
        match &sink.kind {
            SinkKind::Stdout(_) => {}
            #[cfg(feature = "kafka")]
            SinkKind::Kafka(settings) => self.broker(name, sink, event, &settings.contract(event, sink.format)),
            #[cfg(feature = "rabbitmq")]
            SinkKind::Rabbitmq(settings) => self.broker(name, sink, event, &settings.contract(event, sink.format)),
            #[cfg(feature = "nats")]
            SinkKind::Nats(settings) => self.broker(name, sink, event, &settings.contract(event, sink.format)),
        }
    }
}

/// In AsyncAPI's own schema format nothing may stand beside a reference.
fn without_siblings(schema: Value) -> Value {
    use schemars::transform::{RemoveRefSiblings, Transform};
    match schemars::Schema::try_from(schema) {
        Ok(mut schema) => {
            RemoveRefSiblings::default().transform(&mut schema);
            schema.to_value()
        }
        Err(_neither_object_nor_boolean) => Value::Bool(true),
    }
}
