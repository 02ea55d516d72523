//! Whether a schema is compatible: compares the schemas of now with those of a released version.
//!
//! Both must hold: who reads by the old schema can read what is written now, and what was written then is valid by the new
//! one. So a property may be added that need not be there, and nothing else may change but words.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Keywords that say nothing of what is valid.
const WORDS: [&str; 7] = ["$id", "$schema", "$defs", "$comment", "title", "description", "examples"];

/// Keywords that the comparison looks into.
const PARTS: [&str; 8] = ["properties", "required", "additionalProperties", "items", "allOf", "anyOf", "oneOf", "type"];

/// A document and the part of it that is compared.
#[derive(Clone, Copy)]
struct Part<'a> {
    root: &'a Value,
    schema: &'a Value,
}

impl<'a> Part<'a> {
    fn of(root: &'a Value) -> Self {
        Self { root, schema: root }
    }

    fn at(self, schema: &'a Value) -> Self {
        Self { schema, ..self }
    }

    /// The schema that a reference leads to; beside one there are only words.
    fn resolved(self) -> Self {
        match self.schema["$ref"].as_str() {
            None => self,
            Some(reference) => {
                let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
                let target = target.unwrap_or_else(|| panic!("expected something at {reference}, but found nothing"));
                self.at(target).resolved()
            }
        }
    }

    fn keywords(self) -> &'a Map<String, Value> {
        self.schema.as_object().unwrap_or_else(|| panic!("expected a schema, but found {}", self.schema))
    }

    fn names(self, keyword: &str) -> BTreeSet<&'a str> {
        match &self.schema[keyword] {
            Value::String(name) => BTreeSet::from([name.as_str()]),
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            _ => BTreeSet::new(),
        }
    }
}

/// What is not compatible from `old` to `new`, each with where it is.
pub(crate) fn breaks(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(Part::of(old), Part::of(new), "", &mut found);
    found
}

fn compare(old: Part<'_>, new: Part<'_>, path: &str, found: &mut Vec<String>) {
    let (old, new) = (old.resolved(), new.resolved());
    if old.names("type") != new.names("type") {
        found.push(format!("{path}: retyped from {} to {}", old.schema["type"], new.schema["type"]));
    }
    properties(old, new, path, found);
    for keyword in ["additionalProperties", "items"] {
        match (&old.schema[keyword], &new.schema[keyword]) {
            (Value::Object(_), Value::Object(_)) => {
                let (old, new) = (old.at(&old.schema[keyword]), new.at(&new.schema[keyword]));
                compare(old, new, &format!("{path}/{keyword}"), found);
            }
            // Absent and `true` mean the same.
            (before, after) if before == after => {}
            (Value::Null | Value::Bool(true), Value::Null | Value::Bool(true)) => {}
            (_, after) => found.push(format!("{path}: {keyword} was closed, or changed, to {after}")),
        }
    }
    for keyword in ["allOf", "anyOf", "oneOf"] {
        let choices = |part: Part<'_>| part.schema[keyword].as_array().map_or(0, Vec::len);
        if choices(old) != choices(new) {
            found.push(format!("{path}: {keyword} has {} choices, which had {}", choices(new), choices(old)));
            continue;
        }
        for index in 0..choices(old) {
            let (old, new) = (old.at(&old.schema[keyword][index]), new.at(&new.schema[keyword][index]));
            compare(old, new, &format!("{path}/{keyword}/{index}"), found);
        }
    }
    rest(old, new, path, found);
}

fn properties(old: Part<'_>, new: Part<'_>, path: &str, found: &mut Vec<String>) {
    let (required_before, required) = (old.names("required"), new.names("required"));
    found.extend(required.difference(&required_before).map(|name| format!("{path}/{name}: newly required")));
    found.extend(required_before.difference(&required).map(|name| format!("{path}/{name}: no longer required")));
    let (before, after) = (&old.schema["properties"], &new.schema["properties"]);
    for (name, property) in before.as_object().into_iter().flatten() {
        let path = format!("{path}/{name}");
        match after.get(name) {
            None => found.push(format!("{path}: removed")),
            Some(now) => compare(old.at(property), new.at(now), &path, found),
        }
    }
    for (name, property) in after.as_object().into_iter().flatten() {
        if before.get(name).is_none() && property == &Value::Bool(false) {
            found.push(format!("{path}/{name}: forbidden"));
        }
    }
}

/// All other keywords: a bound, a pattern, a set. One more closes what was open, one less opens what readers count on.
fn rest(old: Part<'_>, new: Part<'_>, path: &str, found: &mut Vec<String>) {
    let judged = |keyword: &&String| {
        let known = WORDS.iter().chain(&PARTS).any(|known| keyword == known);
        !known && *keyword != "$ref"
    };
    for keyword in new.keywords().keys().filter(judged) {
        match old.schema.get(keyword) {
            None => found.push(format!("{path}: narrowed by {keyword} {}", new.schema[keyword])),
            Some(before) if *before != new.schema[keyword] => {
                found.push(format!("{path}: {keyword} changed from {before} to {}", new.schema[keyword]));
            }
            Some(_) => {}
        }
    }
    for keyword in old.keywords().keys().filter(judged).filter(|keyword| new.schema.get(*keyword).is_none()) {
        found.push(format!("{path}: widened, {keyword} {} is gone", old.schema[keyword]));
    }
}
