//! The documents that the admin endpoint serves: ready bytes, each under its path.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use percent_encoding::percent_decode_str;

/// Where the schemas are.
pub const SCHEMAS: &str = "/schemas";

/// The name of the configuration's schema among them.
pub const CONFIG: &str = "config";

/// The content type of a JSON Schema.
pub const SCHEMA_JSON: &str = "application/schema+json";

/// Documents by path.
#[derive(Default)]
pub struct Documents(BTreeMap<String, Document>);

/// A document.
pub struct Document {
    /// Its content type.
    pub content_type: &'static str,
    /// Its bytes.
    pub body: Bytes,
}

impl Documents {
    /// Adds a document, or replaces that at the same path.
    pub fn add(&mut self, path: String, content_type: &'static str, text: String) {
        self.0.insert(path, Document { content_type, body: Bytes::from(text) });
    }

    /// The document at this path of a request. A client may encode the colon in a schema's name.
    pub fn get(&self, path: &str) -> Option<&Document> {
        let decoded = percent_decode_str(path).decode_utf8().unwrap_or(Cow::Borrowed(path));
        self.0.get(decoded.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_found_however_its_colon_is_written() {
        let mut documents = Documents::default();
        documents.add("/schemas/room:v1".into(), SCHEMA_JSON, "{}".into());
        for path in ["/schemas/room:v1", "/schemas/room%3Av1", "/schemas/room%3av1"] {
            assert_eq!(documents.get(path).map(|document| document.body.as_ref()), Some(&b"{}"[..]));
        }
        for path in ["/schemas/room", "/schemas/room:v1/", "/schemas/%ff", ""] {
            assert!(documents.get(path).is_none(), "{path}");
        }
    }
}
