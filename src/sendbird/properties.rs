//! What holds for every body, tried on made-up ones.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::delivery::parse;
use super::normalize::{Event, Provenance, Settings, normalize};
use super::redact::{REDACTED, SECRET_KEYS, redact};
use super::schema::SchemaDocument;

/// Keys that mean something, so that values of the wrong type come to stand in known places.
const KEYS: [&str; 30] = [
    "category",
    "occurred_at",
    "occured_at",
    "application_id",
    "direct_call",
    "sendbird_call",
    "payload",
    "room",
    "participant",
    "invitation",
    "inviter",
    "invitee",
    "user",
    "user_id",
    "call_id",
    "room_id",
    "participant_id",
    "custom_items",
    "end_result",
    "result",
    "ended_call",
    "is_video_call",
    "duration",
    "state",
    "exit_at",
    "password",
    "Access_Token",
    "turn_credential",
    "caller",
    "deleted_by",
];

fn key() -> impl Strategy<Value = String> {
    prop_oneof![8 => prop::sample::select(&KEYS[..]).prop_map(String::from), 1 => "\\PC{0,6}"]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        "\\PC{0,8}|[\\x00-\\x7f]{0,4}".prop_map(Value::from),
        Just(Value::from("true")),
    ];
    leaf.prop_recursive(5, 48, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn category() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => prop::sample::select(&super::category::Category::ALL[..]).prop_map(|known| known.label().to_owned()),
        1 => "\\PC{1,12}",
    ]
}

fn any_delivery() -> impl Strategy<Value = Value> {
    (category(), prop::collection::vec((key(), any_json()), 0..10)).prop_map(|(category, members)| {
        let mut body: Map<_, _> = members.into_iter().collect();
        body.insert("category".into(), category.into());
        body.into()
    })
}

/// A delivery with all that its identity is made of.
fn telling_delivery() -> impl Strategy<Value = Value> {
    let id = || "[a-zé/]{1,6}";
    (category(), (id(), id(), id()), (id(), id(), id()), 100_000_000_000_i64..9_000_000_000_000, any_json()).prop_map(
        |(category, (application, call, room), (participant, inviter, invitee), at_ms, more)| {
            json!({
                "category": category, "occurred_at": at_ms, "application_id": application,
                "direct_call": { "call_id": call, "custom_items": { "more": more } },
                "room": { "room_id": room },
                "participant": { "participant_id": participant, "duration": 3 },
                "inviter": { "user_id": inviter }, "invitee": { "user_id": invitee },
            })
        },
    )
}

/// The same JSON in another hand: other white space, order of keys, escapes and spelling of numbers.
fn respell(value: &Value, rng: &mut fastrand::Rng, out: &mut String) {
    let space = |rng: &mut fastrand::Rng, out: &mut String| out.push_str(["", " ", "\n\t", ""][rng.usize(..4)]);
    space(rng, out);
    match value {
        Value::String(text) => respell_text(text, rng, out),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => out.push_str(&match rng.u8(..4) {
                0 => format!("{whole}.0"),
                1 if whole != 0 => format!("{whole}0e-1"),
                2 if whole % 1000 == 0 => format!("{}E+3", whole / 1000),
                _ => whole.to_string(),
            }),
            None => out.push_str(&number.to_string()),
        },
        Value::Array(elements) => {
            out.push('[');
            for (i, element) in elements.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                respell(element, rng, out);
            }
            space(rng, out);
            out.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            rng.shuffle(&mut members);
            out.push('{');
            for (i, (key, value)) in members.into_iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                space(rng, out);
                respell_text(key, rng, out);
                space(rng, out);
                out.push(':');
                respell(value, rng, out);
            }
            space(rng, out);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
    space(rng, out);
}

fn respell_text(text: &str, rng: &mut fastrand::Rng, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        if c == '/' && rng.bool() {
            out.push_str("\\/");
        } else if rng.u8(..4) == 0 {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04X}")));
        } else {
            let quoted = Value::from(c.to_string()).to_string();
            out.push_str(&quoted[1..quoted.len() - 1]);
        }
    }
    out.push('"');
}

/// What redaction must make of a value.
fn without_secrets(value: &Value) -> Value {
    let secret = |key: &str| SECRET_KEYS.contains(&key.to_ascii_lowercase().as_str());
    match value {
        Value::Array(elements) => elements.iter().map(without_secrets).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(key, value)| (key.clone(), if secret(key) { Value::from(REDACTED) } else { without_secrets(value) }))
            .collect(),
        other => other.clone(),
    }
}

/// What is wrong with an envelope by the published schemas: of any envelope, of its type, of its data.
fn faults(envelope: &Value) -> Vec<String> {
    static SCHEMAS: LazyLock<BTreeMap<String, jsonschema::Validator>> = LazyLock::new(|| {
        let schema = |published: SchemaDocument| {
            let schema = published.document("urn:");
            jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema")
        };
        SchemaDocument::all().map(|published| (published.name(), schema(published))).collect()
    });
    let dataschema = envelope["dataschema"].as_str().and_then(|name| name.rsplit_once("schema:")).expect("a name").1;
    let kind = format!("{}:v1", envelope["type"].as_str().expect("a type"));
    let judges = [("envelope:v1", envelope), (kind.as_str(), envelope), (dataschema, &envelope["data"])];
    let judges = judges.into_iter().filter_map(|(name, value)| Some((SCHEMAS.get(name)?, value)));
    judges.flat_map(|(schema, value)| schema.iter_errors(value).map(|error| error.to_string())).collect()
}

fn event(body: &str) -> Event {
    normalize(&parse(body.as_bytes()).expect("a delivery"), Provenance::at(0), &Settings::default())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}:,\"\\\\ud83e+.0-9a\u{e9} ]{0,48}") {
        let _either = parse(&bytes);
        let _either = parse(format!("{{\"category\":{text}}}").as_bytes());
        let _either = redact(&text);
    }

    #[test]
    fn any_delivery_becomes_an_event_that_keeps_it(delivery in any_delivery()) {
        let body = delivery.to_string();
        let event = event(&body);
        let envelope: Value = serde_json::from_slice(&event.envelope).expect("JSON");
        let read: Value = serde_json::from_str(&body).expect("JSON");
        prop_assert_eq!(&envelope["data"]["raw"], &without_secrets(&read));
        prop_assert_eq!(&envelope["data"]["category"], &read["category"]);
        prop_assert!(!event.key.is_empty());
        prop_assert!(!event.envelope.contains(&b'\n'));
        for attribute in ["id", "source", "type", "time", "dataschema", "partitionkey", "receivedtime"] {
            let text = envelope[attribute].as_str().expect("a text");
            prop_assert!(!text.is_empty() && !text.contains(char::is_control), "{}", text);
        }
        let at = &envelope["data"]["occurred_at_ms"];
        prop_assert_eq!(at.is_null(), envelope["time"] == envelope["receivedtime"] && at != 0);
    }

    #[test]
    fn any_event_is_valid_by_the_published_schemas(delivery in prop_oneof![any_delivery(), telling_delivery()]) {
        let envelope: Value = serde_json::from_slice(&event(&delivery.to_string()).envelope).expect("JSON");
        prop_assert_eq!(faults(&envelope), [""; 0], "{}", envelope);
    }

    #[test]
    fn redaction_says_the_same_without_the_secrets(value in any_json()) {
        let text = value.to_string();
        let redacted = redact(&text).expect("JSON");
        let read: Value = serde_json::from_str(&text).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<Value>(&redacted).expect("JSON"), without_secrets(&read));
        prop_assert_eq!(redact(&redacted).expect("JSON"), redacted.clone());
        let mut respelled = String::new();
        respell(&value, &mut fastrand::Rng::with_seed(1), &mut respelled);
        let read: Value = serde_json::from_str(&respelled).expect("JSON");
        let again: Value = serde_json::from_str(&redact(&respelled).expect("JSON")).expect("JSON");
        prop_assert_eq!(again, without_secrets(&read));
    }

    #[test]
    fn no_secret_gets_out(
        key in prop::sample::select(&SECRET_KEYS[..]), upper: bool, secret in any_json(), around in any_delivery(), seed: u64,
    ) {
        let key = if upper { key.to_ascii_uppercase() } else { key.to_owned() };
        let hidden = json!({ "canary-4711": [secret, "canary-4711"] });
        let mut body = around;
        body["custom"] = json!([[{ (key.clone()): hidden }]]);
        body["direct_call"] = json!({ "call_id": { (key.clone()): hidden }, "custom_items": { (key): hidden } });
        let mut text = String::new();
        respell(&body, &mut fastrand::Rng::with_seed(seed), &mut text);
        let event = event(&text);
        let envelope: Value = serde_json::from_slice(&event.envelope).expect("JSON");
        prop_assert!(!envelope.to_string().contains("canary-4711") && !event.key.contains("canary-4711"));
    }

    #[test]
    fn another_spelling_is_the_same_event(delivery in prop_oneof![any_delivery(), telling_delivery()], seed: u64) {
        let mut text = String::new();
        respell(&delivery, &mut fastrand::Rng::with_seed(seed), &mut text);
        prop_assert_eq!(event(&text).id, event(&delivery.to_string()).id, "{}", text);
    }

    #[test]
    fn another_telling_part_is_another_event(delivery in telling_delivery(), which: prop::sample::Index) {
        let before = event(&delivery.to_string());
        let mut places = vec!["/category", "/application_id", "/occurred_at"];
        places.push(if before.category.is_call() { "/direct_call/call_id" } else { "/room/room_id" });
        if before.category.is_participant() {
            places.push("/participant/participant_id");
        }
        if before.category.is_invitation() {
            places.extend(["/inviter/user_id", "/invitee/user_id"]);
        }
        let place = places[which.index(places.len())];
        let mut changed = delivery.clone();
        let value = changed.pointer_mut(place).expect("a part");
        *value = match &*value {
            Value::String(text) => Value::from(format!("{text}x")),
            other => Value::from(other.as_i64().expect("a number") + 1),
        };
        prop_assert_ne!(event(&changed.to_string()).id, before.id, "{}", place);
    }

    #[test]
    fn what_does_not_tell_makes_no_other_event(delivery in telling_delivery(), more in any_json()) {
        let before = event(&delivery.to_string());
        let mut changed = delivery;
        changed["more"] = more.clone();
        changed["direct_call"]["custom_items"] = more;
        changed["application_id"] = changed["application_id"].as_str().expect("a text").to_ascii_uppercase().into();
        prop_assert_eq!(event(&changed.to_string()).id == before.id, before.category.is_known());
    }
}
