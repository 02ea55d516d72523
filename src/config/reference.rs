//! The files in `config/`, the README and the page about hosted brokers say what the code does: every key is in the
//! reference, every default there is the code's, and each file and example loads.
//!
//! In them a `#` before a key, without a space between, comments out an example; with a space it begins
//! a sentence.

use std::path::Path;
use std::sync::LazyLock;

use figment::Figment;
use figment::providers::{Format, Toml};
use rcgen::{CertifiedKey, KeyPair};
use serde_json::Value as Json;

use super::{Config, Loaded, TYPES, schema};

const REFERENCE: &str = include_str!("../../config/reference.toml");
const DEV: &str = include_str!("../../config/dev.toml");
const PRODUCTION: &str = include_str!("../../config/production.toml");
const README: &str = include_str!("../../README.md");

/// Where the examples say that their files lie.
const PLACES: [&str; 2] = ["/run/secrets/", "/etc/sendbird-bridge/"];

/// The one certificate of all examples, so that each key fits each certificate.
static PAIR: LazyLock<CertifiedKey<KeyPair>> =
    LazyLock::new(|| rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap());

/// Loads a text as the program loads a file; the files that it names are made first.
fn load(text: &str, variables: &[(&str, &str)]) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let here = format!("{}/", dir.path().display());
    let text = PLACES.iter().fold(text.to_owned(), |text, place| text.replace(place, &here));
    make_files(&tree(&text), dir.path());
    let file = dir.path().join("bridge.toml");
    std::fs::write(&file, &text).unwrap();
    let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    match Loaded::load(Some(&file), variables) {
        Ok(loaded) => loaded.config,
        Err(faults) => panic!("{:#?}", faults.0.iter().map(ToString::to_string).collect::<Vec<_>>()),
    }
}

fn make_files(tree: &Json, dir: &Path) {
    let Some(table) = tree.as_object() else {
        tree.as_array().into_iter().flatten().for_each(|item| make_files(item, dir));
        return;
    };
    for (key, value) in table {
        match value.as_str().filter(|path| Path::new(path).starts_with(dir)) {
            Some(path) => {
                std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
                let url = "amqps://user:password@rabbitmq.example.com:5671/%2f\n";
                let text = match key.as_str() {
                    "url_file" => url.to_owned(),
                    "ca_file" | "cert_file" | "client_ca_file" => PAIR.cert.pem(),
                    "key_file" => PAIR.signing_key.serialize_pem(),
                    "creds_file" => {
                        let seed = nkeys::KeyPair::new_user().seed().unwrap();
                        format!(
                            "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
                        )
                    }
                    _ => "a-secret-of-the-test\n".to_owned(),
                };
                std::fs::write(path, text).unwrap();
            }
            None => make_files(value, dir),
        }
    }
}

/// The text alone, as a tree.
fn tree(text: &str) -> Json {
    Figment::from(Toml::string(text)).extract().unwrap()
}

/// The text with its examples, but without the sinks and traces that this build does not know.
fn with_examples(text: &str) -> String {
    let mut out = String::new();
    let mut known = true;
    for line in text.lines() {
        let line = line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' ')).unwrap_or(line);
        if line.starts_with('[') {
            let sink = line.trim_matches(['[', ']']).strip_prefix("sinks.").and_then(|path| path.split('.').next());
            known = sink.is_none_or(|sink| TYPES.contains(&sink));
        }
        if known {
            out += &format!("{line}\n");
        }
    }
    out
}

fn without_nulls(value: Json) -> Json {
    match value {
        Json::Object(table) => table
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        other => other,
    }
}

/// Whether the text has the key between backticks, alone or as the name of a file.
fn is_explained(key: &str) -> bool {
    REFERENCE.contains(&format!("`{key}`")) || REFERENCE.contains(&format!("`{key}_file`"))
}

/// Compares a part of the schema with the same part of the tree; what is wrong goes to `wrong`.
fn compare(root: &Json, schema: &Json, tree: &Json, path: &str, wrong: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        compare(root, &root["$defs"][name.trim_start_matches("#/$defs/")], tree, path, wrong);
    }
    for list in ["allOf", "anyOf", "oneOf"] {
        for part in schema[list].as_array().into_iter().flatten() {
            compare(root, part, tree, path, wrong);
        }
    }
    if let Some(items) = schema.get("items") {
        tree.as_array().into_iter().flatten().take(1).for_each(|item| compare(root, items, item, path, wrong));
    }
    for (key, part) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        let Some(value) = tree.get(key) else {
            if tree.get(format!("{key}_file")).is_none() && !is_explained(key) {
                wrong.push(format!("{path} is not named"));
            }
            continue;
        };
        let default = &part["default"];
        let stated = default.is_number() || default.as_str().is_some_and(|text| !text.is_empty());
        if stated && default != value {
            wrong.push(format!("{path} is {value}, but its default is {default}"));
        }
        compare(root, part, value, &path, wrong);
    }
}

#[test]
fn the_reference_is_the_defaults() {
    let expected = serde_json::to_value(Config::default()).unwrap();
    // Each of the two ways to start hides one value, and not the same one.
    let mut token = load(REFERENCE, &[("SENDBIRD_BRIDGE_ACCESS__API_TOKENS", "t")]);
    assert_eq!(token.access.api_tokens.len(), 1);
    token.access.api_tokens.clear();
    assert_eq!(serde_json::to_value(token).unwrap(), expected);
    let mut open = load(REFERENCE, &[("SENDBIRD_BRIDGE_ACCESS__OPEN", "true")]);
    assert!(std::mem::replace(&mut open.access.open, false));
    assert_eq!(serde_json::to_value(open).unwrap(), expected);
}

#[test]
fn the_reference_says_every_default() {
    let mut expected = without_nulls(serde_json::to_value(Config::default()).unwrap());
    assert_eq!(expected.as_object_mut().unwrap().remove("sinks"), Some(serde_json::json!({})));
    assert_eq!(tree(REFERENCE), expected);
}

#[test]
fn the_reference_names_every_key() {
    let schema = serde_json::to_value(schema()).unwrap();
    let tree = tree(&with_examples(REFERENCE));
    let mut wrong = Vec::new();
    compare(&schema, &schema, &tree, "", &mut wrong);
    let (_, application) = tree["applications"].as_object().unwrap().iter().next().unwrap();
    compare(&schema, &schema["$defs"]["Application"], application, "applications", &mut wrong);
    // The schema of a sink: what all have, and for each type its own.
    let sink = schema["properties"]["sinks"]["additionalProperties"]["$ref"].as_str().unwrap();
    let sink = &schema["$defs"][sink.trim_start_matches("#/$defs/")];
    let kinds = sink["oneOf"].as_array().unwrap();
    assert_eq!(kinds.len(), TYPES.len());
    for kind in kinds {
        let name = kind["properties"]["type"]["const"].as_str().unwrap();
        let common = serde_json::json!({ "properties": sink["properties"] });
        let example = &tree["sinks"][name];
        assert_eq!(example["type"], name);
        compare(&schema, kind, example, &format!("sinks.{name}"), &mut wrong);
        compare(&schema, &common, example, &format!("sinks.{name}"), &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_examples_load() {
    let config = load(&with_examples(REFERENCE), &[("SENDBIRD_BRIDGE_ACCESS__API_TOKENS", "t")]);
    assert_eq!(config.sinks.len(), TYPES.len());
    for name in TYPES {
        assert_eq!(config.sinks[*name].kind.label(), *name);
    }
    assert!(!config.applications.is_empty());
    assert!(config.access.path_secret.is_some() && config.access.header.is_some() && config.admin.token.is_some());
}

#[test]
fn the_other_files_load() {
    let dev = load(DEV, &[]);
    assert!(dev.server.listen.ip().is_loopback() && dev.admin.listen.ip().is_loopback());
    assert_eq!(dev.sinks["stdout"].kind.label(), "stdout");
    let production = load(&with_examples(PRODUCTION), &[]);
    assert!(production.access.has_authentication(&production.applications) && !production.access.networks.is_empty());
    assert_eq!(production.sinks.contains_key("kafka"), cfg!(feature = "kafka"));
}

#[test]
fn the_example_of_the_traces_loads() {
    const TRACES: &str = include_str!("../../docs/traces.md");
    let example = TRACES.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let config = load(&with_examples(example), &[("SENDBIRD_BRIDGE_ACCESS__OPEN", "true")]);
    assert_eq!(config.traces.unwrap().sample, 0.1);
}

/// The blocks of TOML in a document, and the files that its commands write.
fn toml_blocks(document: &str) -> Vec<&str> {
    let fenced = document.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let written = document.split("<<'TOML'\n").skip(1).filter_map(|rest| rest.split("TOML\n").next());
    fenced.chain(written).collect()
}

#[test]
fn the_examples_of_the_readme_load() {
    let blocks = toml_blocks(README);
    assert!(blocks.len() >= 6, "{} blocks", blocks.len());
    for block in blocks {
        load(&with_examples(block), &[("SENDBIRD_BRIDGE_ACCESS__OPEN", "true")]);
    }
}

#[test]
fn the_examples_for_hosted_brokers_load() {
    const HOSTED: &str = include_str!("../../docs/hosted-brokers.md");
    let sections = HOSTED.split("\n## ").skip(1);
    let services: Vec<_> = sections.filter(|section| !section.starts_with("Sources\n")).collect();
    assert!(services.len() >= 7, "{} services", services.len());
    for service in services {
        let blocks = toml_blocks(service);
        assert!(!blocks.is_empty(), "no block of TOML in {service}");
        for block in blocks {
            let sinks = load(&with_examples(block), &[("SENDBIRD_BRIDGE_ACCESS__OPEN", "true")]).sinks;
            let known = TYPES.iter().any(|name| block.starts_with(&format!("[sinks.{name}]\n")));
            assert_eq!(sinks.len(), usize::from(known), "{block}");
        }
    }
}
