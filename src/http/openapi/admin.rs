//! The admin endpoint, as OpenAPI says it.

use serde_json::{Map, Value, json};

use super::{Components, SCHEMAS, answer, certificate, problems, server};
use crate::http::admin::{Settings, Status};
use crate::http::documents::{self, SCHEMA_JSON};
use crate::http::overview::Overview;
use crate::http::page;
use crate::http::reply::Problem;
use crate::metrics;
use crate::sendbird::schema::SchemaDocument;

const METHOD: Problem = Problem::Method { allow: "GET, HEAD" };

/// A path of the admin endpoint.
struct Operation<'a> {
    path: &'a str,
    id: &'a str,
    summary: &'a str,
    description: &'a str,
    answer: Value,
    problems: &'a [Problem],
    parameters: Vec<Value>,
    is_open: bool,
}

pub(super) fn paths(settings: &Settings, components: &mut Components) -> Map<String, Value> {
    let server = server(settings.listen, settings.tls.as_ref(), "`admin.listen`");
    let certificate = certificate(settings.tls.as_ref(), components);
    let token = settings.token.as_ref().map(|_| {
        let description = "`admin.token`; asked for by everything but health, metrics and the page's files.";
        components.scheme("adminToken", json!({ "type": "http", "scheme": "bearer", "description": description }))
    });
    let operations = health()
        .into_iter()
        .chain([metrics(), page(), overview(components), status(components), feed()])
        .chain(published());
    operations
        .map(|operation| {
            let token = token.as_ref().filter(|_| !operation.is_open);
            let required: Map<String, Value> =
                token.into_iter().chain(&certificate).map(|name| (name.clone(), json!([]))).collect();
            let security = if required.is_empty() { json!([]) } else { json!([required]) };
            let mut all = operation.problems.to_vec();
            all.push(METHOD);
            if token.is_some() {
                all.push(Problem::AdminToken);
            }
            let mut responses = problems(all);
            responses.insert("200".into(), operation.answer);
            let item = json!({
                "servers": [server],
                "get": {
                    "operationId": operation.id, "tags": ["admin"], "summary": operation.summary, "description": operation.description,
                    "security": security, "parameters": operation.parameters, "responses": responses,
                },
            });
            (operation.path.to_owned(), item)
        })
        .collect()
}

/// A path that asks for the token, has no parameters and no problems of its own.
fn operation<'a>(path: &'a str, id: &'a str, summary: &'a str, description: &'a str, answer: Value) -> Operation<'a> {
    Operation { path, id, summary, description, answer, problems: &[], parameters: Vec::new(), is_open: false }
}

fn health<'a>() -> [Operation<'a>; 3] {
    const NOT_READY: &[Problem] = &[Problem::NotReady { why: "the journal is full" }];
    let health = |path, id, summary, description, problems| {
        let ok = answer(summary, "text/plain; charset=utf-8", &json!({ "type": "string", "const": "ok\n" }));
        Operation { problems, is_open: true, ..operation(path, id, summary, description, ok) }
    };
    [
        health("/livez", "live", "The bridge answers.", "", &[]),
        health("/startupz", "started", "The bridge has started.", "", &[]),
        health(
            "/readyz",
            "ready",
            "The journal takes events, and the bridge is not stopping.",
            "Never depends on a broker.",
            NOT_READY,
        ),
    ]
}

fn metrics<'a>() -> Operation<'a> {
    let description = "In the text format of Prometheus.";
    let answer = answer("The metrics.", metrics::CONTENT_TYPE, &json!({ "type": "string" }));
    Operation {
        problems: &[Problem::Internal],
        is_open: true,
        ..operation("/metrics", "metrics", "Metrics for Prometheus", description, answer)
    }
}

fn page<'a>() -> Operation<'a> {
    let description = "For people. Its scripts and style sheets are beside it and change their path when they change.";
    let answer = answer("The page.", page::HTML, &json!({ "type": "string" }));
    Operation { is_open: true, ..operation("/", "page", "The operations page", description, answer) }
}

fn overview<'a>(components: &mut Components) -> Operation<'a> {
    let description = "The sentence and its reasons follow the rules of the alerts; `needs_a_person` is whether somebody has to do \
                       something. Rates and percentiles are of the counters, which are read every ten seconds.";
    let answer = answer("The overview.", "application/json", &components.schema::<Overview>());
    Operation {
        problems: &[Problem::Internal],
        ..operation("/overview", "overview", "How the bridge is, in one sentence and in figures", description, answer)
    }
}

fn status<'a>(components: &mut Components) -> Operation<'a> {
    let description = "For people and their programs; what alerts are made of is in the metrics.";
    let answer = answer("The status.", "application/json", &components.schema::<Status<'_>>());
    Operation {
        problems: &[Problem::Internal],
        ..operation("/status", "status", "How journal and sinks are doing", description, answer)
    }
}

fn feed<'a>() -> Operation<'a> {
    let position = json!({ "anyOf": [{ "type": "integer", "format": "uint64", "minimum": 0 }, { "const": "end" }] });
    let parameter = |place: &str, name: &str, schema: Value, description: &str| json!({ "name": name, "in": place, "required": false, "schema": schema, "description": description });
    let after = "Begins after this position, which the journal must have reached, or after the newest (`end`). Without it \
                 the feed begins with the oldest event that is kept.";
    // Each event of the stream, as an object of its fields; OpenAPI 3.1 has no other words for it.
    let event = json!({
        "type": "object",
        "properties": {
            "id": { "type": "string", "pattern": "^[0-9]+$", "description": "The position in the journal." },
            "data": {
                "type": "string",
                "description": "The structured envelope.",
                "contentMediaType": "application/cloudevents+json",
                "contentSchema": { "$ref": format!("{SCHEMAS}{}", SchemaDocument::Envelope.subject()) },
            },
        },
        "required": ["id", "data"],
    });
    let description = "Server-sent events of all that is durable, published or not, in order. `id` is the position in the journal, \
                       `data` the structured envelope on one line. A comment names positions that are no longer kept, at \
                       their place, or that are damaged, and says that a quiet feed is alive. A feed that is not read for \
                       a minute while there is something to write is closed, and can be resumed. Other parameters than these are refused.";
    let answer = answer("The stream; the schema is that of each of its events.", "text/event-stream", &event);
    Operation {
        problems: &[
            Problem::Parameter { expected: "expected after and Last-Event-ID to be a position or \"end\"" },
            Problem::TooManyFeeds,
        ],
        parameters: vec![
            parameter("query", "after", position.clone(), after),
            parameter("query", "key", json!({ "type": "string" }), "Only events with this `partitionkey`."),
            parameter("query", "type", json!({ "type": "string" }), "Only events of this type, or category."),
            parameter(
                "query",
                "follow",
                json!({ "type": "boolean", "default": true }),
                "Whether to wait for what comes, or to end at the end.",
            ),
            parameter(
                "header",
                "Last-Event-ID",
                position,
                "As `after`, and stronger: what a client sends that reconnects.",
            ),
        ],
        ..operation("/events", "events", "The feed", description, answer)
    }
}

/// The documents, this one included.
fn published<'a>() -> Vec<Operation<'a>> {
    const DESCRIPTION: &str = "Made from the program and its configuration at the start; the same until the next.";
    let document = |path, id, summary, answer| operation(path, id, summary, DESCRIPTION, answer);
    let object = json!({ "type": "object" });
    let plain = |summary: &str| answer(summary, "application/json", &object);
    let index = json!({
        "type": "object",
        "properties": { "schemas": { "type": "array", "items": {
            "type": "object",
            "properties": {
                "path": { "type": "string", "description": "Where the schema is, on this endpoint." },
                "id": { "type": "string", "description": "Its `$id`, where it has one." },
                "title": { "type": "string", "description": "What it is of." },
            },
            "required": ["path", "title"],
        } } },
        "required": ["schemas"],
    });
    let names: Vec<String> =
        SchemaDocument::all().map(SchemaDocument::name).chain([documents::CONFIG.to_owned()]).collect();
    vec![
        document("/schemas", "schemas", "The list of schemas", answer("The list.", "application/json", &index)),
        Operation {
            problems: &[Problem::NotFound],
            parameters: vec![json!({
                "name": "name", "in": "path", "required": true, "schema": { "type": "string", "enum": names },
                "description": "What follows `envelope.schema_base` in the schema's `$id`, or `config`.",
            })],
            ..document(
                "/schemas/{name}",
                "schema",
                "A schema, JSON Schema 2020-12",
                answer("The schema.", SCHEMA_JSON, &object),
            )
        },
        document(
            "/asyncapi.json",
            "asyncapi",
            "AsyncAPI 3.0 of the messages that the sinks publish",
            plain("The document."),
        ),
        document("/openapi.json", "openapi", "This document", plain("The document.")),
    ]
}
