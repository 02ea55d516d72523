//! Runs every file of `tests/fixtures`: a new file there is a new test.
//!
//! - `samples/NAME.json`: a complete delivery; `golden/NAME.json`: the envelope that it must become.
//! - `variants/NAME.json`: a delivery that is odd in one way (`delivery`, or `text` if it is no JSON), what
//!   it is about, and what must come of it: `refused`, or `anomalies` and `envelope`. `same_id_as` names a
//!   sample that it is another spelling of.
//!
//! With the environment variable `BLESS` set, the expectations are written instead of compared; read the
//! difference before you commit it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::category::Category;
use super::delivery::{Anomalies, Delivery, parse};
use super::normalize::{Event, Provenance, Settings, normalize};
use super::redact::redact;
use crate::domain::envelope::View;

const RECEIVED_MS: i64 = 1_767_300_000_500;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    about: String,
    #[serde(default)]
    settings: Option<Box<RawValue>>,
    #[serde(default)]
    delivery: Option<Box<RawValue>>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    same_id_as: Option<String>,
    #[serde(default)]
    refused: Option<String>,
    #[serde(default)]
    anomalies: Option<Box<RawValue>>,
    #[serde(default)]
    envelope: Option<Box<RawValue>>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn files(folder: &str) -> BTreeMap<String, String> {
    let folder = fixtures().join(folder);
    let entries = fs::read_dir(&folder).expect("the folder of fixtures");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
            (name, fs::read_to_string(&path).expect("a fixture"))
        })
        .collect()
}

fn blessing() -> bool {
    std::env::var_os("BLESS").is_some()
}

fn write(folder: &str, name: &str, text: &str) {
    fs::write(fixtures().join(folder).join(format!("{name}.json")), text).expect("a fixture to write");
}

fn event(body: &[u8], settings: &Settings) -> Event {
    normalize(&parse(body).expect("a delivery"), Provenance::at(RECEIVED_MS), settings)
}

/// Compact JSON on indented lines, everything else as it is.
fn pretty(compact: &str, depth: usize) -> String {
    let (mut out, mut depth, mut in_text, mut escaped) = (String::new(), depth, false, false);
    let mut characters = compact.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    while let Some(c) = characters.next() {
        if in_text {
            in_text = escaped || c != '"';
            escaped = !escaped && c == '\\';
            out.push(c);
            continue;
        }
        match c {
            '{' | '[' if matches!(characters.peek(), Some('}' | ']')) => {
                out.push(c);
                out.extend(characters.next());
            }
            '{' | '[' => {
                depth += 1;
                out.push(c);
                line(&mut out, depth);
            }
            '}' | ']' => {
                depth -= 1;
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => {
                in_text = c == '"';
                out.push(c);
            }
        }
    }
    out
}

/// The lines in which two texts differ, or `None`.
fn difference(name: &str, expected: &str, found: &str) -> Option<String> {
    if expected == found {
        return None;
    }
    let (expected, found): (Vec<_>, Vec<_>) = (expected.lines().collect(), found.lines().collect());
    let same = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
    let tail = expected[same..].iter().rev().zip(found[same..].iter().rev()).take_while(|(a, b)| a == b).count();
    let lines = |mark: char, lines: &[&str]| -> String {
        lines[same..lines.len() - tail].iter().map(|line| format!("  {mark} {line}\n")).collect()
    };
    Some(format!("{name}, line {}:\n{}{}", same + 1, lines('-', &expected), lines('+', &found)))
}

fn report(differences: &[String]) {
    assert!(differences.is_empty(), "- expected, + found; BLESS=1 writes what is found\n\n{}", differences.join("\n"));
}

fn anomalies(anomalies: Anomalies) -> String {
    format!("{{ \"unknown_keys\": {}, \"unexpected_types\": {} }}", anomalies.unknown_keys, anomalies.unexpected_types)
}

#[test]
fn each_sample_becomes_its_golden_envelope() {
    let mut differences = Vec::new();
    let mut golden = files("golden");
    for (name, body) in files("samples") {
        let event = event(body.as_bytes(), &Settings::default());
        assert_eq!(event.anomalies, Anomalies::default(), "{name}");
        assert_eq!(event.category.label().replace(':', "."), name);
        let found = format!("{}\n", pretty(std::str::from_utf8(&event.envelope).expect("UTF-8"), 0));
        if blessing() {
            write("golden", &name, &found);
        }
        let expected = if blessing() { found.clone() } else { golden.remove(&name).unwrap_or_default() };
        differences.extend(difference(&name, &expected, &found));
    }
    if !blessing() {
        differences.extend(golden.keys().map(|name| format!("{name}: expected a sample of this name\n")));
    }
    report(&differences);
}

#[test]
fn there_is_a_sample_of_every_category() {
    let samples = files("samples");
    for category in Category::ALL {
        assert!(samples.contains_key(&category.label().replace(':', ".")), "{category}");
    }
}

#[test]
fn each_variant_comes_out_as_expected() {
    let samples = files("samples");
    let mut differences = Vec::new();
    for (name, file) in files("variants") {
        let variant: Variant = serde_json::from_str(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        let body = variant.text.clone().or_else(|| variant.delivery.as_ref().map(|it| it.get().to_owned()));
        let body = body.unwrap_or_else(|| panic!("{name}: expected \"delivery\" or \"text\""));
        let found = outcome(&variant, &body);
        if blessing() {
            write("variants", &name, &rewritten(&variant, &found));
            continue;
        }
        differences.extend(difference(&name, &expectation(&variant), &found));
        if let Some(base) = &variant.same_id_as {
            let sample = samples.get(base).unwrap_or_else(|| panic!("{name}: expected a sample, but found {base}"));
            let id = |body: &str| event(body.as_bytes(), &Settings::default()).id;
            assert_eq!(id(&body), id(sample), "{name} is another spelling of {base}");
        }
    }
    report(&differences);
}

fn outcome(variant: &Variant, body: &str) -> String {
    let settings = variant.settings.as_ref().map(|it| serde_json::from_str(it.get()).expect("settings"));
    match parse(body.as_bytes()) {
        Err(refused) => format!("  \"refused\": \"{refused:?}\""),
        Ok(delivery) => {
            let event: Event = normalize(&delivery, Provenance::at(RECEIVED_MS), &settings.unwrap_or_default());
            check(&delivery, &event);
            let envelope = std::str::from_utf8(&event.envelope).expect("UTF-8");
            format!("  \"anomalies\": {},\n  \"envelope\": {}", anomalies(event.anomalies), pretty(envelope, 1))
        }
    }
}

/// What holds for every event.
fn check(delivery: &Delivery, event: &Event) {
    let stored = Bytes::copy_from_slice(&event.envelope);
    let view = View::parse(&stored).expect("what sinks read");
    assert_eq!(view.key(), event.key);
    assert_eq!(view.envelope().id, event.id.to_string());
    assert_eq!(view.category(), delivery.category_text());
    assert_eq!(view.values().application_id, delivery.application_id().unwrap_or_default());
    assert_eq!(event.application_id.as_deref(), delivery.application_id());
    assert!(!event.envelope.contains(&b'\n'), "one line");
}

/// What the file expects, laid out as [`outcome`] does.
fn expectation(variant: &Variant) -> String {
    if let Some(refused) = &variant.refused {
        return format!("  \"refused\": \"{refused}\"");
    }
    let text = |raw: &Option<Box<RawValue>>| raw.as_ref().map(|raw| raw.get().to_owned()).unwrap_or_default();
    let envelope = text(&variant.envelope);
    // Formatted again, in case somebody edited it by hand; the deepest one can't be.
    let envelope = redact(&envelope).map(|compact| pretty(&compact, 1)).unwrap_or(envelope);
    format!("  \"anomalies\": {},\n  \"envelope\": {envelope}", text(&variant.anomalies))
}

fn rewritten(variant: &Variant, found: &str) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut out = format!("{{\n  \"about\": {},\n", quoted(&variant.about));
    for (key, value) in [
        ("settings", variant.settings.as_ref().map(|raw| raw.get().to_owned())),
        ("delivery", variant.delivery.as_ref().map(|raw| raw.get().to_owned())),
        ("text", variant.text.as_deref().map(quoted)),
        ("same_id_as", variant.same_id_as.as_deref().map(quoted)),
    ] {
        out.extend(value.map(|value| format!("  \"{key}\": {value},\n")));
    }
    out + found + "\n}\n"
}
