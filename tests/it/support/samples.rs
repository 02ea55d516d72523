//! Deliveries to make, and the fixtures.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// The application that all samples name.
pub(crate) const APPLICATION: &str = "0A1B2C3D-1111-4222-8333-444455556666";

/// A delivery of a dialled call. Each pair of arguments is an event of its own.
pub(crate) fn dial(call_id: &str, occurred_at: u64) -> Vec<u8> {
    with_items(call_id, occurred_at, &json!({}))
}

/// The same with custom items.
pub(crate) fn with_items(call_id: &str, occurred_at: u64, items: &Value) -> Vec<u8> {
    let body = json!({
        "category": "direct_call:dial",
        "occurred_at": occurred_at,
        "application_id": APPLICATION,
        "direct_call": { "call_id": call_id, "caller_id": "alice", "callee_id": "bob", "custom_items": items },
    });
    body.to_string().into_bytes()
}

/// A delivery of about so many bytes.
pub(crate) fn large(call_id: &str, occurred_at: u64, bytes: usize) -> Vec<u8> {
    with_items(call_id, occurred_at, &json!({ "filler": "x".repeat(bytes) }))
}

/// The 13 samples by name (`direct_call.dial`), as Sendbird would send them.
pub(crate) fn samples() -> BTreeMap<String, Vec<u8>> {
    let samples = folder("samples");
    assert_eq!(samples.len(), 13, "one sample of each category");
    samples
}

/// The envelopes that they become.
pub(crate) fn golden() -> BTreeMap<String, Value> {
    folder("golden").into_iter().map(|(name, text)| (name, serde_json::from_slice(&text).unwrap())).collect()
}

fn folder(name: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| (file.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read(&file).unwrap())).collect()
}

/// An envelope without what differs from one acceptance to the next.
pub(crate) fn without_received_time(mut envelope: Value) -> Value {
    let received = envelope.as_object_mut().and_then(|members| members.remove("receivedtime"));
    assert!(received.as_ref().is_some_and(Value::is_string), "expected a receivedtime, but found {received:?}");
    envelope
}
