//! Where values come from: the TOML file, the environment over it, files that hold secrets.

use std::path::{Path, PathBuf};

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Tag, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};

use super::Fault;
use crate::domain::secret::Secret;

/// Names the configuration file where the command line does not.
pub const CONFIG_VARIABLE: &str = "SENDBIRD_BRIDGE_CONFIG";

const PREFIX: &str = "SENDBIRD_BRIDGE_";

/// Levels of a variable's key. No key has as many; thousands of them would not fit onto the stack. The parser of files
/// has a limit of its own.
const DEEPEST: usize = 8;

/// The last parts of keys that hold secrets. From the environment they are taken as they are, never as
/// numbers; each can also be given as `<key>_file`.
///
/// Here and not read from the schema, because a build without a sink or traces has no schema for them, and still may not
/// show what somebody wrote there. A test compares both lists with the schema.
pub(super) const SECRETS: [&str; 11] = [
    "api_tokens",
    "path_secret",
    "value",
    "token",
    "url",
    "password",
    "nkey_seed",
    "creds",
    "username",
    "client_id",
    "client_secret",
];

/// The last parts of keys that hold lists, which a variable may write with commas.
pub(super) const LISTS: [&str; 8] = [
    "api_tokens",
    "signature_headers",
    "networks",
    "trusted_proxies",
    "applications",
    "brokers",
    "servers",
    "categories",
];

/// Whether a part of a key names a secret, or addresses, into which somebody may have written a password.
pub(super) fn may_hold_secret(part: &str) -> bool {
    SECRETS.contains(&part) || ["brokers", "servers"].contains(&part)
}

/// The layers in their order.
pub(super) fn figment(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    faults: &mut Vec<Fault>,
) -> Figment {
    let mut figment = Figment::new();
    if let Some(file) = file {
        // figment takes a file that isn't there for an empty one.
        match std::fs::metadata(file) {
            Ok(found) if found.is_file() => match syntax(file) {
                Ok(()) => figment = figment.merge(Toml::file_exact(file)),
                Err(message) => faults.push(file_fault(file, message)),
            },
            Ok(_) => faults.push(file_fault(file, "not a regular file".into())),
            Err(error) => faults.push(file_fault(file, format!("cannot read the file: {error}"))),
        }
    }
    figment.merge(Variables::read(environment, faults))
}

/// Whether a file is TOML at all. Asked before figment does, whose message shows the line, and with it a secret.
fn syntax(file: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read the file: {error}"))?;
    let Err(error) = text.parse::<toml::Table>() else { return Ok(()) };
    let before = &text.as_bytes()[..error.span().map_or(0, |span| span.start.min(text.len()))];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    let message = error.message().replace('\n', ", ");
    Err(format!("not valid TOML: line {line}, column {column}: {message}"))
}

fn file_fault(file: &Path, message: String) -> Fault {
    Fault { key: "--config".into(), message, source: Some(file.display().to_string()) }
}

/// The variable that sets a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// The environment as a layer.
struct Variables(Dict);

impl Variables {
    fn read(environment: impl Iterator<Item = (String, String)>, faults: &mut Vec<Fault>) -> Self {
        let mut dict = Dict::new();
        for (name, text) in environment {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            if name == CONFIG_VARIABLE || is_service_link(rest, &text) {
                continue;
            }
            let path: Vec<String> = rest.to_lowercase().split("__").map(str::to_owned).collect();
            if !(2..=DEEPEST).contains(&path.len()) || path.iter().any(String::is_empty) {
                let message = "expected two underscores between the few levels of a key, as in \
                               SENDBIRD_BRIDGE_SERVER__LISTEN"
                    .to_owned();
                faults.push(Fault { key: path.join("."), message, source: Some(format!("the variable {name}")) });
                continue;
            }
            insert(&mut dict, &path, text);
        }
        Self(dict)
    }
}

/// Kubernetes puts these into every pod beside a Service whose name is ours or begins with it (`sendbird-bridge-eu`); they
/// are not meant for us.
fn is_service_link(rest: &str, text: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    !rest.contains("__")
        && (0..words.len()).any(|at| match &words[at..] {
            ["SERVICE", "HOST"] | ["SERVICE", "PORT", ..] => true,
            ["PORT"] => text.contains("://"),
            ["PORT", number, "TCP" | "UDP" | "SCTP", ..] => number.parse::<u16>().is_ok(),
            _ => false,
        })
}

fn insert(dict: &mut Dict, path: &[String], text: String) {
    match path {
        [] => {}
        [leaf] => {
            dict.insert(leaf.clone(), value(leaf, text));
        }
        [first, rest @ ..] => {
            let inner = dict.entry(first.clone()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = inner {
                insert(inner, rest, text);
            }
        }
    }
}

fn value(leaf: &str, text: String) -> Value {
    if LISTS.contains(&leaf) {
        let list = text.trim();
        let list = list.strip_prefix('[').and_then(|list| list.strip_suffix(']')).unwrap_or(list);
        let unquoted = |item: &str| item.trim().trim_matches(['"', '\'']).to_owned();
        let items: Vec<String> = list.split(',').map(unquoted).filter(|item| !item.is_empty()).collect();
        return Value::from(items);
    }
    if SECRETS.contains(&leaf) {
        return Value::from(text);
    }
    as_toml(&text).unwrap_or_else(|| Value::from(text))
}

/// A number, a boolean, a table or a quoted text, as a file would have it. All else is text as it is. Not by figment's
/// own parser, which panics at some texts.
fn as_toml(text: &str) -> Option<Value> {
    let parsed: toml::Table = format!("value = {text}").parse().ok()?;
    let value = parsed.get("value").filter(|value| parsed.len() == 1 && !value.is_datetime())?;
    Value::serialize(value).ok()
}

impl Provider for Variables {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.0.clone()))
    }
}

/// A secret that comes from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// The secret's key, with dots between levels and without `_file`.
    pub key: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it held when the configuration was read.
    pub held: Vec<Secret>,
}

impl SecretFile {
    /// What the file holds now: one secret, or one a line where there may be several.
    ///
    /// # Errors
    /// The file can't be read, or holds nothing.
    pub fn read(&self) -> Result<Vec<Secret>, String> {
        let text = std::fs::read_to_string(&self.path)
            .map_err(|error| format!("cannot read {}: {error}", self.path.display()))?;
        let last = self.key.rsplit('.').next().unwrap_or_default();
        let secrets = secrets(&held(last, &text));
        if secrets.is_empty() {
            return Err(format!("expected a secret, but found an empty file at {}", self.path.display()));
        }
        Ok(secrets)
    }
}

/// Replaces every `<secret>_file` by what the file holds, without the line break at its end, and notes which they were.
pub(super) fn read_secret_files(dict: &mut Dict, prefix: &str, faults: &mut Vec<Fault>, files: &mut Vec<SecretFile>) {
    let keys: Vec<String> = dict.keys().cloned().collect();
    for key in keys {
        let full = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if let Some(Value::Dict(_, inner)) = dict.get_mut(&key) {
            read_secret_files(inner, &full, faults, files);
            continue;
        }
        let Some(secret) = key.strip_suffix("_file").filter(|secret| SECRETS.contains(secret)) else { continue };
        let Some(path) = dict.remove(&key) else { continue };
        let fault = |message: String| Fault { key: full.clone(), message, source: None };
        if dict.contains_key(secret) {
            faults.push(fault(format!("expected {secret} or {key}, but found both")));
            continue;
        }
        let Some(path) = path.as_str() else {
            faults.push(fault("expected the path of a file as text".into()));
            continue;
        };
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let value = held(secret, &text);
                let key = full.trim_end_matches("_file").to_owned();
                files.push(SecretFile { key, path: path.into(), held: secrets(&value) });
                dict.insert(secret.to_owned(), value);
            }
            Err(error) => faults.push(fault(format!("cannot read {path}: {error}"))),
        }
    }
}

/// What a file holds: one secret, or one a line where there may be several.
fn held(secret: &str, text: &str) -> Value {
    if LISTS.contains(&secret) {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        return Value::Array(Tag::Default, lines.map(Value::from).collect());
    }
    Value::from(text.trim_end_matches(['\r', '\n']))
}

/// The texts of what a file holds.
fn secrets(held: &Value) -> Vec<Secret> {
    match held {
        Value::Array(_, lines) => lines.iter().filter_map(Value::as_str).map(Secret::new).collect(),
        one => one.as_str().filter(|text| !text.is_empty()).map(Secret::new).into_iter().collect(),
    }
}
