//! The published schemas as a judge: every event that a test reads is valid by them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jsonschema::Validator;
use sendbird_bridge::sendbird::schema::{OBJECTS, SchemaDocument};
use serde_json::Value;

const BASE: &str = "urn:sendbird-bridge:schema:";

/// By subject: `envelope`, `room`, `com.sendbird.calls.room.create`.
static SCHEMAS: LazyLock<BTreeMap<String, Validator>> = LazyLock::new(|| {
    let validators = SchemaDocument::all().map(|published| (published.subject(), validator(&published.document(BASE))));
    validators.collect()
});

/// A validator that also looks at formats.
pub(crate) fn validator(schema: &Value) -> Validator {
    jsonschema::meta::validate(schema).unwrap_or_else(|error| panic!("{error} in {schema}"));
    jsonschema::options().should_validate_formats(true).build(schema).unwrap_or_else(|error| panic!("{error}"))
}

/// What is wrong with an envelope by the schemas: of any envelope, of its type, and of its data.
pub(crate) fn faults(envelope: &Value) -> Vec<String> {
    let text = |name: &str| envelope[name].as_str().unwrap_or_default();
    // The base is a matter of configuration.
    let object =
        text("dataschema").strip_suffix(":v1").and_then(|name| OBJECTS.into_iter().find(|it| name.ends_with(it)));
    let Some(object) = object else { return vec![format!("its dataschema names no schema: {envelope}")] };
    let judges = [("envelope", envelope), (text("type"), envelope), (object, &envelope["data"])];
    let judges = judges.into_iter().filter_map(|(subject, value)| Some((subject, SCHEMAS.get(subject)?, value)));
    judges
        .flat_map(|(subject, schema, value)| {
            schema.iter_errors(value).map(move |error| format!("by {subject} at {}: {error}", error.instance_path()))
        })
        .collect()
}

/// Fails the test if an envelope is not valid by the schemas.
#[track_caller]
pub(crate) fn judge(envelope: &Value) {
    let faults = faults(envelope);
    assert!(faults.is_empty(), "{}\n{envelope:#}", faults.join("\n"));
}
