//! What the documents say of a configuration, with all the clients built in.

use std::collections::BTreeSet;
use std::io::Write;

use serde_json::{Value, json};

use super::{asyncapi, documents, openapi};
use crate::config::{Config, Loaded};

fn config(toml: &str) -> Config {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    Loaded::load_to_describe(Some(file.path()), std::iter::empty()).unwrap().config
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

const THREE: &str = "
    [sinks.events]
    type = 'kafka'
    brokers = ['a:9092', 'b:9092']
    [sinks.rabbit]
    type = 'rabbitmq'
    url = 'amqp://user:canary@r.example.com/%2f'
    routing_key = '{category}'
    format = 'binary'
    [sinks.jets]
    type = 'nats'
    servers = ['nats://n.example.com:4222']
    subject = 'calls.{application_id}.{key}'
    credentials = { username = 'u', password = 'canary' }
    [sinks.lines]
    type = 'stdout'
";

#[test]
fn each_sink_with_a_broker_has_a_channel() {
    let document = asyncapi(&config(THREE));
    assert_eq!(keys(&document["channels"]), BTreeSet::from(["events", "rabbit", "jets"]));
    assert_eq!(keys(&document["servers"]), BTreeSet::from(["events-0", "events-1", "rabbit", "jets"]));
    assert!(!document.to_string().contains("canary"));
    let channel = |name: &str| &document["channels"][name];
    assert_eq!(channel("events")["address"], "sendbird.calls.{object}");
    assert_eq!(keys(&channel("events")["parameters"]), BTreeSet::from(["object"]));
    assert_eq!(keys(&channel("rabbit")["parameters"]), BTreeSet::from(["category"]));
    assert_eq!(keys(&channel("jets")["parameters"]), BTreeSet::from(["application_id", "key"]));
    let exchange = &channel("rabbit")["bindings"]["amqp"]["exchange"];
    assert_eq!(exchange, &json!({ "name": "sendbird.calls", "vhost": "/" }), "its type is whoever made it's to say");
    assert_eq!(document["servers"]["rabbit"]["pathname"], "/%2F");
    assert_eq!(document["servers"]["jets"]["security"], json!([{ "type": "userPassword" }]));
}

#[test]
fn headers_are_those_that_are_sent() {
    let document = asyncapi(&config(THREE));
    let headers = |name: &str| &document["components"]["messageTraits"][name]["headers"];
    let names = BTreeSet::from(["content-type", "ce_id", "ce_type", "ce_subject", "ce_time", "traceparent"]);
    assert_eq!(keys(&headers("events")["properties"]), names);
    assert_eq!(headers("events")["properties"]["content-type"]["const"], "application/cloudevents+json; charset=utf-8");
    assert_eq!(headers("events")["required"], json!(["content-type", "ce_id", "ce_type", "ce_time"]));
    let attributes = [
        "specversion",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "dataschema",
        "partitionkey",
        "receivedtime",
        "traceparent",
        "replayed",
        "reconciled",
    ];
    let all = attributes.map(|name| format!("cloudEvents:{name}"));
    let all = all.iter().map(String::as_str).chain(["traceparent"]).collect::<BTreeSet<_>>();
    assert_eq!(keys(&headers("rabbit")["properties"]), all);
    assert_eq!(headers("rabbit")["properties"]["cloudEvents:replayed"]["const"], "true", "a header is a text");
    let names = BTreeSet::from([
        "Content-Type",
        "Nats-Expected-Stream",
        "Nats-Msg-Id",
        "ce-id",
        "ce-type",
        "ce-subject",
        "ce-time",
        "traceparent",
    ]);
    assert_eq!(keys(&headers("jets")["properties"]), names);
    assert_eq!(headers("jets")["properties"]["Nats-Expected-Stream"]["const"], "SENDBIRD_CALLS");
}

#[test]
fn a_payload_is_the_envelope_or_its_data() {
    let document = asyncapi(&config(THREE));
    let payload =
        |channel: &str, kind: &str| document["channels"][channel]["messages"][kind]["payload"]["$ref"].clone();
    let dial = "com.sendbird.calls.direct_call.dial";
    assert_eq!(payload("events", dial), "#/components/schemas/com.sendbird.calls.direct_call.dial");
    assert_eq!(payload("events", "other"), "#/components/schemas/envelope");
    assert_eq!(payload("rabbit", dial), "#/components/schemas/DirectCallData");
    assert_eq!(payload("rabbit", "com.sendbird.calls.room.invitation_send"), "#/components/schemas/InvitationData");
    assert_eq!(payload("rabbit", "other"), "#/components/schemas/Data");
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
}

#[test]
fn categories_decide_which_messages_there_are() {
    let messages = |categories: &str| {
        let document =
            asyncapi(&config(&format!("[sinks.a]\ntype = 'kafka'\nbrokers = ['a:1']\ncategories = {categories}")));
        let messages: Vec<String> =
            keys(&document["channels"]["a"]["messages"]).into_iter().map(str::to_owned).collect();
        assert_eq!(document["operations"]["publish-a"]["messages"].as_array().unwrap().len(), messages.len());
        messages
    };
    assert_eq!(messages("[]").len(), 14);
    assert_eq!(messages("['*']").len(), 14);
    assert_eq!(messages("['direct_call:dial']"), ["com.sendbird.calls.direct_call.dial"]);
    let rooms = messages("['room:*']");
    assert_eq!((rooms.len(), rooms[10].as_str()), (11, "other"), "a new category of rooms would come too: {rooms:?}");
    assert_eq!(messages("['direct_call:hold']"), ["other"]);
}

#[test]
fn without_a_configuration_there_are_documents_too() {
    let nothing = config("");
    assert_eq!(asyncapi(&nothing)["channels"], json!({}));
    assert!(openapi(&nothing)["paths"]["/webhooks/sendbird"]["post"].is_object());
    for path in ["/schemas", "/schemas/envelope:v1", "/schemas/config", "/asyncapi.json", "/openapi.json"] {
        assert!(documents(&nothing).get(path).is_some(), "{path}");
    }
}

#[test]
fn what_is_wrong_in_a_configuration_is_described_by_no_document() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[server]\npath = 'x'\n").unwrap();
    let faults = Loaded::load_to_describe(Some(file.path()), std::iter::empty()).unwrap_err().0;
    assert_eq!(faults.iter().map(|fault| fault.key.as_str()).collect::<Vec<_>>(), ["server.path"]);
}
