//! The contracts: documents made from the types and the effective configuration, for people and for other programs.
//!
//! JSON Schema of envelopes, of `data` and of the configuration, AsyncAPI of the messages, OpenAPI of the endpoints. Each
//! is made where what it describes is owned; here they are put together, once at the start, as the bytes that the
//! admin endpoint serves. No document holds a secret.

mod asyncapi;

use schemars::Schema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::{self, Config};
use crate::http::documents::{CONFIG, Documents, SCHEMA_JSON, SCHEMAS};
use crate::http::openapi;
use crate::sendbird::schema::SchemaDocument;

/// JSON Schema of an envelope or of `data`, with the `$id` that the configuration gives it.
pub fn schema(published: SchemaDocument, config: &Config) -> Schema {
    // It is an object, so this does not fail.
    Schema::try_from(published.document(&config.envelope.schema_base)).unwrap_or_default()
}

/// AsyncAPI 3.0 of the messages that the configured sinks publish.
pub fn asyncapi(config: &Config) -> Value {
    asyncapi::document(config)
}

/// OpenAPI 3.1 of the webhook and the admin endpoint.
pub fn openapi(config: &Config) -> Value {
    openapi::document(&config.server, &config.access, &config.admin)
}

/// A document as it is printed and served. A schema keeps the order of its own: what it is of first, definitions last.
pub fn text(document: &impl Serialize) -> String {
    // Nothing in a document can't be JSON.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}

/// All documents, as the admin endpoint serves them.
pub fn documents(config: &Config) -> Documents {
    let mut documents = Documents::default();
    let mut index = Vec::new();
    for published in SchemaDocument::all() {
        let document = schema(published, config);
        let path = format!("{SCHEMAS}/{}", published.name());
        index.push(json!({ "path": path, "id": document.get("$id"), "title": document.get("title") }));
        documents.add(path, SCHEMA_JSON, text(&document));
    }
    let document = config::schema();
    let path = format!("{SCHEMAS}/{CONFIG}");
    index.push(json!({ "path": path, "title": document.get("title") }));
    documents.add(path, SCHEMA_JSON, text(&document));
    documents.add(SCHEMAS.to_owned(), "application/json", text(&json!({ "schemas": index })));
    documents.add("/asyncapi.json".to_owned(), "application/json", text(&asyncapi(config)));
    documents.add("/openapi.json".to_owned(), "application/json", text(&openapi(config)));
    documents
}

#[cfg(test)]
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod tests;
