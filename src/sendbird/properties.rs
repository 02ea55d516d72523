//! What holds for every body, tried on made-up ones.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::delivery::parse;
use super::normalize::{Event, Settings, normalize};
use super::redact::{REDACTED, SECRET_KEYS, redact};

/// Keys that mean something, so that values of the wrong type come to stand in known places.
const KEYS: [&str; 30] = [
    "category", "occurred_at", "occured_at", "application_id", "direct_call", "sendbird_call", "payload", "room",
    "participant", "invitation", "inviter", "invitee", "user", "user_id", "call_id", "room_id", "participant_id",
    "custom_items", "end_result", "result", "ended_call", "is_video_call", "duration", "state", "exit_at", "password",
    "Access_Token", "turn_credential", "caller", "deleted_by",
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
            prop::collection::vec((key(), inner), 0..8).prop_map(|members| Value::Object(members.into_iter().collect())),
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
                1 => format!("{whole}0e-1"),
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
            out.push_str(Value::from(c.to_string()).to_string().trim_matches('"').replace("\\\\\"", "\\\"").as_str());
            if c == '"' {
                // The quotation marks around were trimmed together with the one that is meant.
                out.truncate(out.trim_end_matches(['\\', '"']).len());
                out.push_str("\\\"");
            }
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
            .map(|(key, value)| {
                (key.clone(), if secret(key) { Value::from(REDACTED) } else { without_secrets(value) })
            })
            .collect(),
        other => other.clone(),
    }
}

fn event(body: &str) -> Event {
    normalize(&parse(body.as_bytes()).expect("a delivery"), 0, &Settings::default())
}
