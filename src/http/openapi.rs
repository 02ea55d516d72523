//! OpenAPI 3.1 of the webhook and the admin endpoint, as configured.
//!
//! Answers are made from the types that they are written from, and problems from [`Problem`] itself: status, headers
//! and document are those that a request gets. Locks become security schemes by their headers' names; no document
//! holds a secret.

mod admin;
mod webhook;

use std::net::SocketAddr;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use warp::Reply;
use warp::http::header::CONTENT_TYPE;

use super::reply::{PROBLEM, Problem, ProblemDocument};
use super::{admin as admin_endpoint, tls, webhook as webhook_endpoint};
use crate::access;
use crate::sendbird::schema::SchemaDocument;

/// Where a reference to a schema begins.
const SCHEMAS: &str = "#/components/schemas/";

/// The document, from `server.*`, `access.*` and `admin.*`.
pub fn document(
    server: &webhook_endpoint::Settings,
    access: &access::Settings,
    admin: &admin_endpoint::Settings,
) -> Value {
    let mut components = Components::default();
    components.schema::<ProblemDocument>();
    SchemaDocument::Envelope.add_to(&mut components.schemas, SCHEMAS);
    let mut paths = webhook::paths(server, access, &mut components);
    paths.extend(admin::paths(admin, &mut components));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "sendbird-bridge",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Receives the webhooks of Sendbird Calls; shows health, metrics, status and the feed.",
            "description": "Two endpoints on addresses of their own. Errors are RFC 9457 problem documents. Each path of the \
                            admin endpoint also answers HEAD. Members may be added to any answer: ignore what you don't \
                            know.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "tags": [
            { "name": "webhook", "description": "Where Sendbird delivers." },
            { "name": "admin", "description": "Where operators and their programs look." },
        ],
        "paths": paths,
        "components": { "schemas": components.schemas, "securitySchemes": components.security },
    })
}

/// What paths refer to.
#[derive(Default)]
struct Components {
    schemas: Map<String, Value>,
    security: Map<String, Value>,
}

impl Components {
    /// Adds the schema of a type with what it refers to, and gives a reference to it.
    fn schema<T: JsonSchema>(&mut self) -> Value {
        let settings = SchemaSettings::draft2020_12().for_serialize();
        let settings = settings.with(|settings| settings.definitions_path = "/components/schemas".into());
        let mut generator = settings.into_generator();
        let reference = generator.subschema_for::<T>().to_value();
        self.schemas.extend(generator.take_definitions(true));
        reference
    }

    /// Adds a security scheme, and gives its name.
    fn scheme(&mut self, name: &str, scheme: Value) -> String {
        self.security.insert(name.to_owned(), scheme);
        name.to_owned()
    }
}

/// The answers that problems are given, by status; those of one status share an answer, with an example of each.
fn problems(problems: impl IntoIterator<Item = Problem>) -> Map<String, Value> {
    let mut answers = Map::new();
    for problem in problems {
        let response = problem.into_response();
        let status = problem.status();
        let answer = answers.entry(status.as_str()).or_insert_with(|| {
            json!({
                "description": status.canonical_reason().unwrap_or_default(),
                "content": { PROBLEM: { "schema": { "$ref": format!("{SCHEMAS}Problem") }, "examples": {} } },
            })
        });
        for (name, value) in response.headers().iter().filter(|(name, _)| *name != CONTENT_TYPE) {
            let value = value.to_str().unwrap_or_default();
            answer["headers"][name.as_str()] = json!({ "schema": { "type": "string" }, "example": value });
        }
        let document: Value = serde_json::from_str(&problem.document()).unwrap_or_default();
        answer["content"][PROBLEM]["examples"][problem.reason()] = json!({ "value": document });
    }
    answers
}

/// An answer with a body.
fn answer(description: &str, content_type: &str, schema: &Value) -> Value {
    json!({ "description": description, "content": { content_type: { "schema": schema } } })
}

/// Where a listener is found, from the machine that it is on where it listens on all addresses.
fn server(listen: SocketAddr, tls: Option<&tls::Settings>, description: &str) -> Value {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let host = if listen.ip().is_unspecified() { "localhost".to_owned() } else { listen.ip().to_string() };
    let host = if listen.is_ipv6() && !listen.ip().is_unspecified() { format!("[{host}]") } else { host };
    json!({
        "url": format!("{scheme}://{{address}}"),
        "description": description,
        "variables": { "address": { "default": format!("{host}:{}", listen.port()) } },
    })
}

/// The certificate that a listener wants of its clients, as a security scheme; `None` where it wants none.
fn certificate(tls: Option<&tls::Settings>, components: &mut Components) -> Option<String> {
    tls?.client_ca_file.as_ref()?;
    let description = "A certificate that one of the configured authorities has signed.";
    Some(components.scheme("clientCertificate", json!({ "type": "mutualTLS", "description": description })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::secret::Secret;

    fn endpoints(access: &access::Settings, admin: &admin_endpoint::Settings) -> Value {
        document(&webhook_endpoint::Settings::default(), access, admin)
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = endpoints(&access::Settings::default(), &admin_endpoint::Settings::default());
        let text = document.to_string();
        let references: Vec<&str> =
            text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(references.len() > 20);
        for reference in references {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }

    #[test]
    fn authentication_is_described_and_secrets_are_not() {
        let secret = |text: &str| Some(Secret::new(text));
        let header = serde_json::from_value(json!({ "name": "x-secret", "value": "canary" })).unwrap();
        let access = access::Settings {
            api_tokens: secret("canary").into_iter().collect(),
            path_secret: secret("canary"),
            header: Some(header),
            ..access::Settings::default()
        };
        let admin = admin_endpoint::Settings { token: secret("canary"), ..admin_endpoint::Settings::default() };
        let document = endpoints(&access, &admin);
        assert!(!document.to_string().contains("canary"));
        let post = &document["paths"]["/webhooks/sendbird/{path_secret}"]["post"];
        assert_eq!(post["security"], json!([{ "signature": [], "secretHeader": [] }]));
        assert_eq!(document["components"]["securitySchemes"]["secretHeader"]["name"], "x-secret");
        assert_eq!(document["paths"]["/status"]["get"]["security"], json!([{ "adminToken": [] }]));
        assert_eq!(document["paths"]["/metrics"]["get"]["security"], json!([]));
    }

    #[test]
    fn an_address_that_is_every_address_is_localhost_to_its_machine() {
        let of = |listen: &str| server(listen.parse().unwrap(), None, "")["variables"]["address"]["default"].clone();
        assert_eq!(of("0.0.0.0:8080"), "localhost:8080");
        assert_eq!(of("[::]:8080"), "localhost:8080");
        assert_eq!(of("127.0.0.1:9090"), "127.0.0.1:9090");
        assert_eq!(of("[::1]:9090"), "[::1]:9090");
    }
}
