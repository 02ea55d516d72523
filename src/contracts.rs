//! The contracts: documents made from the types and the effective configuration, for people and for other programs.
//!
//! JSON Schema of envelopes, of `data` and of the configuration, AsyncAPI of the messages, OpenAPI of the endpoints. Each
//! is made where what it describes is owned; here they are put together, once at the start, as the bytes that the
//! admin endpoint serves. No document holds a secret.

mod asyncapi;

use serde_json::{Value, json};

use crate::config::{self, Config};
use crate::http::documents::{CONFIG, Documents, SCHEMA_JSON, SCHEMAS};
use crate::http::openapi;
use crate::sendbird::schema::Published;

/// JSON Schema of an envelope or of `data`, with the `$id` that the configuration gives it.
pub fn schema(published: Published, config: &Config) -> Value {
    published.document(&config.envelope.schema_base)
}

/// AsyncAPI 3.0 of the messages that the configured sinks publish.
pub fn asyncapi(config: &Config) -> Value {
    asyncapi::document(config)
}

/// OpenAPI 3.1 of the webhook and the admin endpoint.
pub fn openapi(config: &Config) -> Value {
    openapi::document(&openapi::Endpoints { server: &config.server, access: &config.access, admin: &config.admin })
}

/// All documents, as the admin endpoint serves them.
pub fn documents(config: &Config) -> Documents {
    let mut documents = Documents::default();
    let mut index = Vec::new();
    for published in Published::all() {
        let document = schema(published, config);
        let path = format!("{SCHEMAS}/{}", published.name());
        index.push(json!({ "path": path, "id": document["$id"], "title": document["title"] }));
        documents.add(path, SCHEMA_JSON, &document);
    }
    let document = config::schema().to_value();
    let path = format!("{SCHEMAS}/{CONFIG}");
    index.push(json!({ "path": path, "title": document["title"] }));
    documents.add(path, SCHEMA_JSON, &document);
    documents.add(SCHEMAS.to_owned(), "application/json", &json!({ "schemas": index }));
    documents.add("/asyncapi.json".to_owned(), "application/json", &asyncapi(config));
    documents.add("/openapi.json".to_owned(), "application/json", &openapi(config));
    documents
}

#[cfg(test)]
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod tests;
