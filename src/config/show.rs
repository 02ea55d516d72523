//! The configuration as people see it: effective values with their sources, and its schema.

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;

use super::{Config, SinkKind};
use crate::access;
use crate::domain::envelope::Format;
use crate::http::{admin, webhook};
use crate::journal;
use crate::pipeline;
use crate::sendbird::{normalize, reconcile};

/// One line a value: `key = value  # source`.
pub(super) fn show(config: &Config, source: impl Fn(&str) -> Option<String>) -> String {
    let mut lines = Vec::new();
    match serde_json::to_value(config) {
        Ok(tree) => flatten(&tree, String::new(), &mut lines),
        Err(error) => lines.push(("error".to_owned(), error.to_string())),
    }
    let width = lines.iter().map(|(key, value)| key.len() + value.len()).filter(|width| *width < 70).max().unwrap_or(0);
    lines
        .into_iter()
        .map(|(key, value)| {
            let pad = " ".repeat(width.saturating_sub(key.len() + value.len()));
            let source = source(&key).unwrap_or_else(|| "default".into());
            format!("{key} = {value}{pad}  # {source}\n")
        })
        .collect()
}

fn flatten(value: &Value, key: String, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(value, key, lines);
            }
        }
        Value::Null => lines.push((key, "none".into())),
        other => lines.push((key, other.to_string())),
    }
}

/// Unknown keys are errors; any secret can also be given as the path of a file that holds it, under its key
/// with `_file`.
#[derive(JsonSchema)]
#[schemars(title = "sendbird-bridge configuration", default)]
#[allow(dead_code, reason = "the fields are read by the derived schema")]
#[derive(Default)]
struct File {
    server: webhook::Settings,
    admin: admin::Settings,
    access: access::Settings,
    /// What applications have of their own, each under its ID.
    applications: access::Applications,
    journal: journal::Settings,
    dedup: journal::DedupSettings,
    stop: pipeline::StopSettings,
    envelope: normalize::Settings,
    /// What a gap lost, asked for by the bridge itself; without it never.
    reconcile: Option<reconcile::settings::Settings>,
    /// Any number of sinks, each under its name.
    sinks: std::collections::BTreeMap<String, Sink>,
    /// Spans by OTLP; without it there are none.
    traces: Option<crate::traces::Settings>,
}

#[derive(JsonSchema)]
#[allow(dead_code, reason = "the fields are read by the derived schema")]
struct Sink {
    #[serde(flatten)]
    kind: SinkKind,
    /// Globs over the categories that the sink wants; empty means all.
    #[serde(default)]
    categories: Vec<String>,
    /// The applications whose events the sink wants; empty means all.
    #[serde(default)]
    applications: Vec<String>,
    /// The content mode of CloudEvents.
    #[serde(default)]
    format: Format,
}

/// JSON Schema, draft 2020-12.
pub(super) fn schema() -> Schema {
    let mut schema = SchemaGenerator::new(SchemaSettings::draft2020_12()).into_root_schema_for::<File>();
    if let Some(root) = schema.as_object_mut() {
        root.values_mut().for_each(offer_files);
    }
    schema
}

/// Beside each property that is a secret, the one that names a file. None of the two is then required: that one of them
/// is there, `config check` says.
fn offer_files(schema: &mut Value) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        let secrets: Vec<String> =
            properties.iter().filter(|(_, property)| is_secret(property)).map(|(name, _)| name.clone()).collect();
        for name in &secrets {
            let described =
                serde_json::json!({ "type": "string", "description": format!("A file that holds `{name}`.") });
            properties.insert(format!("{name}_file"), described);
        }
        if let Some(Value::Array(required)) = schema.get_mut("required") {
            required.retain(|required| !secrets.iter().any(|name| required == name));
        }
    }
    match schema {
        Value::Object(members) => members.values_mut().for_each(offer_files),
        Value::Array(items) => items.iter_mut().for_each(offer_files),
        _ => {}
    }
}

/// A secret, an optional one, or a list of them.
pub(super) fn is_secret(property: &Value) -> bool {
    let direct = |schema: &Value| schema["$ref"].as_str().is_some_and(|reference| reference.ends_with("/Secret"));
    let optional = property["anyOf"].as_array().is_some_and(|choices| choices.iter().any(direct));
    direct(property) || optional || direct(&property["items"])
}
