//! A sink with a broker, as AsyncAPI says it.

use serde_json::{Map, Value, json};

use super::{Parts, SCHEMAS};
use crate::config::SinkConfig;
use crate::domain::envelope::{Format, View};
use crate::domain::glob;
use crate::domain::trace::TraceParent;
use crate::sendbird::category::{Category, event_type};
use crate::sendbird::schema::{OBJECTS, SchemaDocument, data_definition};
use crate::sink::contract::{Contract, Server};

impl Parts {
    /// Adds a sink with all that belongs to it.
    pub(super) fn broker(&mut self, name: &str, sink: &SinkConfig, event: &View<'_>, contract: &Contract) {
        let mut servers = Vec::new();
        for (index, broker) in contract.servers.iter().enumerate() {
            let server_name = if contract.servers.len() == 1 { name.to_owned() } else { format!("{name}-{index}") };
            servers.push(json!({ "$ref": format!("#/servers/{server_name}") }));
            self.servers.insert(server_name, server(broker));
        }
        let kinds = messages(&sink.types());
        let reference = |kind: &String| json!({ "$ref": format!("#/channels/{name}/messages/{kind}") });
        let mut operation = json!({
            "action": "send",
            "summary": "The bridge publishes each event here, at least once.",
            "channel": { "$ref": format!("#/channels/{name}") },
            "messages": kinds.iter().map(|(kind, _)| reference(kind)).collect::<Vec<_>>(),
        });
        bind(&mut operation, contract.protocol, contract.operation.as_ref());
        self.operations.insert(format!("publish-{name}"), operation);

        let mut common =
            json!({ "contentType": event.content_type(sink.format), "headers": self.headers(event, contract) });
        bind(&mut common, contract.protocol, contract.message.as_ref());
        self.traits.insert(name.to_owned(), common);

        let messages: Map<String, Value> = kinds
            .into_iter()
            .map(|(kind, category)| (kind.clone(), message(name, &kind, category, sink.format)))
            .collect();
        let mut channel = json!({
            "address": contract.address,
            "title": name,
            "description": contract.about,
            "servers": servers,
            "parameters": parameters(&contract.address),
            "messages": messages,
        });
        bind(&mut channel, contract.protocol, contract.channel.as_ref());
        self.channels.insert(name.to_owned(), channel);
    }

    /// The headers of a message: attributes under the binding's prefix, and what else the sink sends with it.
    fn headers(&self, event: &View<'_>, contract: &Contract) -> Value {
        let id = event.envelope().id.as_ref();
        let (mut properties, mut required) = (Map::new(), Vec::new());
        let attributes = &self.schemas["envelope"];
        let always = attributes["required"].as_array();
        for (name, value) in &contract.headers {
            let attribute =
                ["ce_", "ce-", "cloudEvents:", "cloudEvents_"].iter().find_map(|prefix| name.strip_prefix(prefix));
            let attribute = attribute.or((name == TraceParent::NAME).then_some(TraceParent::NAME));
            let (schema, is_required) = match attribute {
                Some(attribute) => {
                    let is_required = always.is_some_and(|always| always.iter().any(|name| name == attribute));
                    (as_text(&attributes["properties"][attribute]), is_required)
                }
                None if value == id => (json!({ "type": "string", "description": "The event's id." }), true),
                None => (json!({ "type": "string", "const": value }), true),
            };
            properties.insert(name.clone(), schema);
            if is_required {
                required.push(name.as_str());
            }
        }
        json!({ "type": "object", "properties": properties, "required": required })
    }
}

/// The schema of an attribute where it is a header, and so a text.
fn as_text(attribute: &Value) -> Value {
    let mut schema = attribute.clone();
    if schema["type"] != "string" {
        schema["const"] = schema["const"].to_string().into();
        schema["type"] = "string".into();
    }
    schema
}

fn server(server: &Server) -> Value {
    let security = server.security.iter().map(|kind| match *kind {
        "apiKey" => json!({ "type": kind, "in": "password" }),
        // Where a consumer has its tokens from is the issuer's affair, not this bridge's.
        "oauth2" => json!({ "type": kind, "flows": {} }),
        kind => json!({ "type": kind }),
    });
    let mut value = json!({ "host": server.host, "protocol": server.protocol });
    if let Some(pathname) = &server.pathname {
        value["pathname"] = pathname.as_str().into();
    }
    if !server.security.is_empty() {
        value["security"] = security.collect();
    }
    value
}

/// The known types that these globs let through, and `other`, for what is not known yet.
fn messages(types: &[String]) -> Vec<(String, Option<Category>)> {
    let wanted = |kind: &str| types.is_empty() || types.iter().any(|pattern| glob::matches(pattern, kind));
    let known = Category::ALL.map(|category| (event_type(category.label()), Some(category)));
    let unknown = |pattern: &String| pattern.contains('*') || known.iter().all(|(kind, _)| kind != pattern);
    let other = (types.is_empty() || types.iter().any(unknown)).then(|| ("other".to_owned(), None));
    known.iter().filter(|(kind, _)| wanted(kind)).cloned().chain(other).collect()
}

fn message(sink: &str, kind: &str, category: Option<Category>, format: Format) -> Value {
    let payload = match (format, category) {
        (Format::Binary, category) => data_definition(category).to_owned(),
        (Format::Structured, Some(category)) => SchemaDocument::Type(category).subject(),
        (Format::Structured, None) => SchemaDocument::Envelope.subject(),
    };
    let summary = match category {
        Some(category) => format!("An event of the category {category}."),
        None => "An event of a category that this version does not know.".to_owned(),
    };
    json!({
        "name": kind,
        "summary": summary,
        "payload": { "$ref": format!("{SCHEMAS}{payload}") },
        "traits": [{ "$ref": format!("#/components/messageTraits/{sink}") }],
    })
}

/// The placeholders of an address.
fn parameters(address: &str) -> Map<String, Value> {
    let known = [
        ("object", json!({ "description": "What the event is about.", "enum": OBJECTS })),
        (
            "verb",
            json!({ "description": "What follows the colon in the category; an open set.", "examples": ["dial", "participant_enter"] }),
        ),
        (
            "key",
            json!({ "description": "`call_id`, else `room_id`, else the application id; encoded where it has characters that \
                        have no place here." }),
        ),
        (
            "category",
            json!({ "description": "The category, encoded where its colon has no place; an open set.", "examples": ["direct_call:dial"] }),
        ),
        ("application_id", json!({ "description": "The Sendbird application, `_` where a delivery names none." })),
    ];
    let used = known.into_iter().filter(|(name, _)| address.contains(&format!("{{{name}}}")));
    used.map(|(name, parameter)| (name.to_owned(), parameter)).collect()
}

fn bind(to: &mut Value, protocol: &str, binding: Option<&Value>) {
    if let Some(binding) = binding {
        to["bindings"] = json!({ protocol: binding });
    }
}
