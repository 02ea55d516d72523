//! The webhook, as OpenAPI says it.

use serde_json::{Map, Value, json};

use super::{Components, answer, certificate, problems, server};
use crate::access::{self, Denied, SignatureMode};
use crate::domain::trace::TraceParent;
use crate::http::reply::{AcceptedDocument, Problem};
use crate::http::webhook::{self, NOT_READY};
use crate::journal::AppendError;
use crate::pipeline::Refused;
use crate::sendbird::category::Category;
use crate::sendbird::delivery;

/// All that a delivery can be answered with but 200.
const PROBLEMS: [Problem; 26] = [
    Problem::Refused(Refused::Malformed(delivery::Refused::NotAnObject)),
    Problem::Refused(Refused::Malformed(delivery::Refused::NoCategory)),
    Problem::Interrupted,
    Problem::InvalidHead,
    Problem::Tls,
    Problem::ProxyProtocol { expected: "expected a PROXY protocol header" },
    Problem::Refused(Refused::Denied(Denied::SignatureMissing)),
    Problem::Refused(Refused::Denied(Denied::SignatureWrong)),
    Problem::Refused(Refused::Denied(Denied::ApplicationToken)),
    Problem::Refused(Refused::Denied(Denied::Header)),
    Problem::Refused(Refused::Denied(Denied::Network)),
    Problem::Refused(Refused::Denied(Denied::Application)),
    Problem::NotFound,
    Problem::Method { allow: "POST" },
    Problem::TooSlow,
    Problem::TooLarge,
    Problem::HeadTooLarge,
    Problem::Encoded,
    Problem::Refused(Refused::Denied(Denied::TooMany)),
    Problem::Refused(Refused::Denied(Denied::ApplicationRate)),
    Problem::Refused(Refused::Unavailable(AppendError::Busy)),
    Problem::Refused(Refused::Unavailable(AppendError::Full)),
    Problem::Refused(Refused::Unavailable(AppendError::Failed)),
    Problem::Refused(Refused::Unavailable(AppendError::Closed)),
    Problem::Refused(Refused::Deadline),
    Problem::TooManyConnections,
];

pub(super) fn paths(
    settings: &webhook::Settings,
    access: &access::Settings,
    components: &mut Components,
) -> Map<String, Value> {
    let with_secret = access.path_secret.is_some();
    let path = if with_secret {
        format!("{}/{{path_secret}}", settings.path.trim_end_matches('/'))
    } else {
        settings.path.clone()
    };
    let mut item = json!({
        "servers": [server(settings.listen, settings.tls.as_ref(), "`server.listen`")],
        "post": deliver(settings, access, components),
    });
    if with_secret {
        item["parameters"] = json!([{
            "name": "path_secret", "in": "path", "required": true, "schema": { "type": "string" },
            "description": "The secret last segment; a wrong one is answered 404, like any unknown path.",
        }]);
    }
    let mut paths = Map::from_iter([(path, item)]);
    if !settings.health_path.is_empty() {
        let item = paths.entry(&settings.health_path).or_insert_with(|| json!({}));
        item["servers"] = json!([server(settings.listen, settings.tls.as_ref(), "`server.listen`")]);
        item["get"] = health(settings, components);
    }
    paths
}

/// What a load balancer asks.
fn health(settings: &webhook::Settings, components: &mut Components) -> Value {
    let certificate = certificate(settings.tls.as_ref(), components);
    let security = certificate.map_or_else(|| json!([]), |name| json!([{ name: [] }]));
    let mut responses = problems([NOT_READY]);
    let schema = json!({ "type": "string", "const": "ok\n" });
    responses.insert("200".into(), answer("The bridge is ready.", "text/plain; charset=utf-8", &schema));
    json!({
        "operationId": "health",
        "tags": ["webhook"],
        "summary": "The journal takes events, and the bridge is not stopping.",
        "description": "For load balancers: needs no authentication, and counts neither as a delivery nor towards a rate.",
        "security": security,
        "responses": responses,
    })
}

fn deliver(settings: &webhook::Settings, access: &access::Settings, components: &mut Components) -> Value {
    let accepted = components.schema::<AcceptedDocument>();
    let mut responses = problems(PROBLEMS);
    responses.insert("200".into(), answer("The event is durable.", "application/json", &accepted));
    let security = security(settings, access, components);
    let body = format!(
        "At most {}, nested at most {} levels deep. Read with tolerance: only what is no JSON object, or has no text as \
         `category`, is refused. A byte order mark is skipped. The content type does not matter; a content encoding is refused.",
        settings.max_body,
        crate::sendbird::redact::DEEPEST,
    );
    json!({
        "operationId": "deliver",
        "tags": ["webhook"],
        "summary": "Delivers an event",
        "description": format!(
            "Answered within {} of the end of its head. 200 means that the event is on disk; a retry of a delivery is \
             answered 200 `duplicate`. After anything else but 400, 401, 403 and 404, try again.",
            settings.answer_deadline
        ),
        "security": security,
        "parameters": [{
            "name": TraceParent::NAME, "in": "header", "required": false, "schema": { "type": "string" },
            "description": "The trace that the delivery belongs to (W3C Trace Context); one that is not valid is ignored.",
        }],
        "requestBody": {
            "required": true,
            "description": body,
            "content": { "application/json": { "schema": {
                "type": "object",
                "properties": { "category": {
                    "type": "string", "minLength": 1,
                    "description": "What the delivery tells of; an open set.",
                    "examples": Category::ALL.map(Category::label),
                } },
                "required": ["category"],
            } } },
        },
        "responses": responses,
    })
}

/// All authentication methods together; of several signature headers any one.
fn security(settings: &webhook::Settings, access: &access::Settings, components: &mut Components) -> Value {
    let mut always = Map::new();
    let access::Settings { signature, signature_headers, header, .. } = access;
    let mut require = |name: String| always.insert(name, json!([]));
    if let Some(header) = header {
        let description = "A secret that each delivery carries.";
        require(components.scheme(
            "secretHeader",
            json!({ "type": "apiKey", "in": "header", "name": header.name, "description": description }),
        ));
    }
    if let Some(name) = certificate(settings.tls.as_ref(), components) {
        require(name);
    }
    let mut choices = Vec::new();
    if *signature != SignatureMode::Off {
        for (index, header) in signature_headers.iter().enumerate() {
            let name = if index == 0 { "signature".to_owned() } else { format!("signature{}", index + 1) };
            let description = "HMAC-SHA256 over the bytes of the body, keyed with the master API token; hexadecimal.";
            let scheme = json!({ "type": "apiKey", "in": "header", "name": header, "description": description });
            let mut choice = always.clone();
            choice.insert(components.scheme(&name, scheme), json!([]));
            choices.push(Value::Object(choice));
        }
    }
    // Without a signature the other authentication methods alone decide.
    if *signature != SignatureMode::Required && !(choices.is_empty() && always.is_empty()) {
        choices.push(Value::Object(always));
    }
    Value::Array(choices)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::reply::REASONS;

    #[test]
    fn every_reason_is_described() {
        let described: BTreeSet<&str> = PROBLEMS.into_iter().map(Problem::reason).collect();
        // Neither has an answer.
        let described: BTreeSet<&str> = described.into_iter().chain(["handshake", "write_timeout"]).collect();
        assert_eq!(described, REASONS.iter().copied().collect());
    }
}
