//! Where values come from: the TOML file, the environment over it, files that hold secrets.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Tag, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};

use super::Fault;
use crate::domain::secret::Secret;
use crate::domain::text;

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
///
/// # Errors
/// The file can't be read, or is no TOML: nothing can be said of what it should hold.
pub(super) fn figment(
    file: Option<&Path>,
    environment: impl Iterator<Item = (OsString, OsString)>,
    faults: &mut Vec<Fault>,
) -> Result<Figment, Fault> {
    let mut figment = Figment::new();
    if let Some(file) = file {
        let text = read_text(file).map_err(|found| {
            Fault::of_the_file(format!("cannot read the configuration file {}: {found}", file.display()))
        })?;
        // Before figment reads it, whose message shows the line, and with it a secret.
        check_syntax(&text).map_err(|(line, column, found)| {
            Fault::of_the_file(format!("{}:{line}:{column}: not valid TOML: {found}", file.display()))
        })?;
        figment = figment.merge(Toml::file_exact(file));
    }
    Ok(figment.merge(Variables::read(environment, faults)))
}

/// The text of a file, or what was found instead.
fn read_text(file: &Path) -> Result<String, String> {
    let found = std::fs::metadata(file).map_err(|error| without_number(&error))?;
    if found.is_dir() {
        return Err("it is a directory".to_owned());
    }
    let bytes = std::fs::read(file).map_err(|error| without_number(&error))?;
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("it is UTF-16; save it as UTF-8".to_owned());
    }
    String::from_utf8(bytes).map_err(|_not_utf8| "it is not UTF-8".to_owned())
}

/// What the system says, for people: "no such file or directory".
fn without_number(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// Line, column and what is wrong there.
fn check_syntax(text: &str) -> Result<(), (usize, usize, String)> {
    let Err(error) = text.parse::<toml::Table>() else { return Ok(()) };
    let before = &text.as_bytes()[..error.span().map_or(0, |span| span.start.min(text.len()))];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    Err((line, column, error.message().replace('\n', ", ")))
}

/// The variable that sets a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// The environment as a layer.
struct Variables(Dict);

impl Variables {
    fn read(environment: impl Iterator<Item = (OsString, OsString)>, faults: &mut Vec<Fault>) -> Self {
        let mut dict = Dict::new();
        for (name, text) in environment {
            let name = name.to_string_lossy();
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            if name == CONFIG_VARIABLE || is_service_link(rest, &text.to_string_lossy()) {
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
            match text.into_string() {
                Ok(text) => insert(&mut dict, &path, text),
                Err(_not_utf8) => {
                    let message = "expected UTF-8, but found other bytes".to_owned();
                    faults.push(Fault { key: path.join("."), message, source: Some(format!("the variable {name}")) });
                }
            }
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
        let text = read_secret(&self.path)?;
        let last = self.key.rsplit('.').next().unwrap_or_default();
        let secrets = secrets(&held(last, &text));
        if secrets.is_empty() {
            return Err(format!("expected a secret, but found an empty file at {}", self.path.display()));
        }
        match secrets.iter().find_map(|secret| suspicion(last, secret.expose()).filter(|suspicion| suspicion.certain)) {
            Some(Suspicion { found, .. }) => {
                Err(format!("expected a secret alone, but found {found}, at {}", self.path.display()))
            }
            None => Ok(secrets),
        }
    }
}

fn read_secret(path: &Path) -> Result<String, String> {
    read_text(path).map_err(|found| format!("cannot read {}: {found}", path.display()))
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
        match read_secret(Path::new(path)) {
            Ok(text) => {
                let value = held(secret, &text);
                let key = full.trim_end_matches("_file").to_owned();
                files.push(SecretFile { key, path: path.into(), held: secrets(&value) });
                dict.insert(secret.to_owned(), value);
            }
            Err(message) => {
                faults.push(fault(message));
                // So that nothing else complains that there is none.
                dict.insert(secret.to_owned(), held(secret, "unreadable"));
            }
        }
    }
}

/// Why a secret is probably not what it should be.
struct Suspicion {
    /// What was found in it or around it.
    found: &'static str,
    /// A password may begin with a space or a quote. One that has a byte order mark or a second line is none.
    certain: bool,
}

fn suspicion(key: &str, text: &str) -> Option<Suspicion> {
    const OF_ANY_TEXT: [&str; 5] = ["password", "client_secret", "username", "client_id", "value"];
    // The text of a whole file, which its client reads line by line.
    let found = text::surroundings(text).filter(|_| key != "creds")?;
    let never = |c: char| c == '\u{feff}' || c.is_control();
    Some(Suspicion { found, certain: !OF_ANY_TEXT.contains(&key) || text.contains(never) })
}

/// Finds what has slipped into secrets unseen, wherever they come from.
pub(super) fn check_secrets(dict: &Dict, prefix: &str, faults: &mut Vec<Fault>, warnings: &mut Vec<Fault>) {
    let mut check = |name: &str, full: String, text: &str| {
        let Some(Suspicion { found, certain }) = suspicion(name, text) else { return };
        let message = format!("expected a secret alone, but found {found}");
        let found = Fault { key: full, message, source: None };
        if certain { faults.push(found) } else { warnings.push(found) }
    };
    let mut tables = Vec::new();
    for (name, value) in dict {
        let full = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Dict(_, inner) => tables.push((inner, full)),
            Value::String(_, text) if SECRETS.contains(&name.as_str()) => check(name, full, text),
            Value::Array(_, items) if SECRETS.contains(&name.as_str()) => {
                for (index, text) in items.iter().enumerate().filter_map(|(i, item)| Some((i, item.as_str()?))) {
                    check(name, format!("{full}[{index}]"), text);
                }
            }
            _ => {}
        }
    }
    for (inner, full) in tables {
        check_secrets(inner, &full, faults, warnings);
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
