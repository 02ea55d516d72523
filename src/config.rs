//! The whole configuration, known and checked before anything is touched.
//!
//! Each module owns its settings; this one gathers them from the file and the environment, and reports
//! every fault at once, with its key and where the value came from.

mod layers;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::{Actual, Kind};
use figment::value::{Dict, Value};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::layers::{CONFIG_VARIABLE, SecretFile};
use crate::access;
use crate::domain::envelope::Format;
use crate::http::{admin, webhook};
use crate::journal;
use crate::sendbird::category::{Category, event_type};
use crate::sendbird::normalize;
use crate::sink::settings::{Taken, Tls};
use crate::sink::stdout;
use crate::traces::Destination;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Config {
    /// `server.*`.
    pub server: webhook::Settings,
    /// `admin.*`.
    pub admin: admin::Settings,
    /// `access.*`.
    pub access: access::Settings,
    /// `journal.*`.
    pub journal: journal::Settings,
    /// `dedup.*`.
    pub dedup: journal::DedupSettings,
    /// `envelope.*`.
    pub envelope: normalize::Settings,
    /// `sinks.<name>.*`.
    pub sinks: BTreeMap<String, SinkConfig>,
    /// `traces.*`; none without the table.
    #[cfg(feature = "otlp")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<crate::traces::Settings>,
    /// The files that secrets were read from.
    #[serde(skip)]
    pub secret_files: Vec<SecretFile>,
}

/// One sink.
#[derive(Clone, Debug, Serialize)]
pub struct SinkConfig {
    /// What every sink has.
    #[serde(flatten)]
    pub kind: SinkKind,
    /// Globs over the categories that it wants; empty means all.
    pub categories: Vec<String>,
    /// The content mode of CloudEvents.
    pub format: Format,
}

/// The type of a sink with its own settings.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SinkKind {
    /// Lines on standard output.
    Stdout(stdout::Settings),
    /// Apache Kafka.
    #[cfg(feature = "kafka")]
    Kafka(crate::sink::kafka::Settings),
    /// RabbitMQ.
    #[cfg(feature = "rabbitmq")]
    Rabbitmq(crate::sink::rabbitmq::Settings),
    /// NATS JetStream.
    #[cfg(feature = "nats")]
    Nats(crate::sink::nats::Settings),
}

/// The types that this build knows.
const TYPES: &[&str] = &[
    #[cfg(feature = "kafka")]
    "kafka",
    #[cfg(feature = "rabbitmq")]
    "rabbitmq",
    #[cfg(feature = "nats")]
    "nats",
    "stdout",
];

impl SinkKind {
    /// The type's name.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Stdout(_) => "stdout",
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => "kafka",
            #[cfg(feature = "rabbitmq")]
            Self::Rabbitmq(_) => "rabbitmq",
            #[cfg(feature = "nats")]
            Self::Nats(_) => "nats",
        }
    }

    /// Where a sink of this name publishes to, as spans have it.
    pub fn destination(&self, name: &str) -> Destination {
        let template = match self {
            Self::Stdout(stdout::Settings {}) => None,
            #[cfg(feature = "kafka")]
            Self::Kafka(settings) => Some(settings.topic.clone()),
            #[cfg(feature = "rabbitmq")]
            Self::Rabbitmq(settings) => Some(format!("{}:{}", settings.exchange, settings.routing_key)),
            #[cfg(feature = "nats")]
            Self::Nats(settings) => Some(settings.subject.clone()),
        };
        Destination { sink: name.to_owned(), system: self.label(), template }
    }

    fn check(&self) -> Vec<(String, String)> {
        match self {
            Self::Stdout(stdout::Settings {}) => Vec::new(),
            #[cfg(feature = "kafka")]
            Self::Kafka(settings) => settings.check(),
            #[cfg(feature = "rabbitmq")]
            Self::Rabbitmq(settings) => settings.check(),
            #[cfg(feature = "nats")]
            Self::Nats(settings) => settings.check(),
        }
    }
}

/// A file that a sink's client reads by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFile {
    /// The key that names it, with dots between levels.
    pub key: String,
    /// Where it is.
    pub path: PathBuf,
    /// When a change of it is taken.
    pub taken: Taken,
}

impl Config {
    /// The files that the clients of the sinks read.
    pub fn client_files(&self) -> Vec<ClientFile> {
        let of_sink = |(name, sink): (&String, &SinkConfig)| {
            let (tls, taken): (Option<Tls>, Taken) = match &sink.kind {
                SinkKind::Stdout(stdout::Settings {}) => (None, Taken::NextConnection),
                #[cfg(feature = "kafka")]
                SinkKind::Kafka(settings) => (settings.tls.clone(), Taken::Restart),
                #[cfg(feature = "rabbitmq")]
                SinkKind::Rabbitmq(settings) => (settings.tls.clone(), Taken::NextConnection),
                #[cfg(feature = "nats")]
                SinkKind::Nats(settings) => (settings.tls.clone(), Taken::NextConnection),
            };
            let file =
                |(key, path): (_, &Path)| ClientFile { key: format!("sinks.{name}.{key}"), path: path.into(), taken };
            tls.unwrap_or_default().files().map(file).collect::<Vec<_>>()
        };
        self.sinks.iter().flat_map(of_sink).collect()
    }
}

impl SinkConfig {
    /// The categories as globs over types of events.
    pub fn types(&self) -> Vec<String> {
        let all = self.categories.iter().any(|pattern| pattern == "*");
        let globs = self.categories.iter().map(|pattern| event_type(pattern));
        if all { Vec::new() } else { globs.collect() }
    }
}

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, with dots between levels.
    pub key: String,
    /// What is wrong: expected X, but found Y.
    pub message: String,
    /// The file or variable that the value comes from; `None` for what is not set anywhere.
    pub source: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)?;
        self.source.as_ref().map_or(Ok(()), |source| write!(f, " (from {source})"))
    }
}

/// Everything that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} fault{}", .0.len(), if .0.len() == 1 { "" } else { "s" })]
pub struct Faults(pub Vec<Fault>);

/// A configuration that was found right, with what is needed to say where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    origin: Origin,
}

/// Where values came from.
#[derive(Debug)]
struct Origin {
    figment: Figment,
}

impl Loaded {
    /// Reads the file, if one is given, and the environment over it.
    ///
    /// # Errors
    /// All faults at once.
    pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Result<Self, Faults> {
        let (loaded, faults) = Self::read(file, environment)?;
        if faults.is_empty() { Ok(loaded) } else { Err(Faults(faults)) }
    }

    /// The same for documents, which need no token and no broker: what is missing altogether is no fault.
    ///
    /// # Errors
    /// All faults of what is there, at once.
    pub fn load_to_describe(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Faults> {
        let (loaded, mut faults) = Self::read(file, environment)?;
        faults.retain(|fault| fault.source.is_some());
        if faults.is_empty() { Ok(loaded) } else { Err(Faults(faults)) }
    }

    /// What could be read, with all that is wrong about it.
    fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<Fault>), Faults> {
        let mut faults = Vec::new();
        let figment = layers::figment(file, environment, &mut faults);
        let origin = Origin { figment };
        let mut tree: Dict = match origin.figment.extract() {
            Ok(tree) => tree,
            Err(error) => {
                // The file itself can't be read or is no TOML: nothing in it can be judged.
                faults.extend(error.into_iter().map(|error| origin.fault(String::new(), &error)));
                return Err(Faults(faults));
            }
        };
        let mut secret_files = Vec::new();
        layers::read_secret_files(&mut tree, "", &mut faults, &mut secret_files);
        let mut gather = Gather { tree, faults, origin: &origin };
        let config = Config { secret_files, ..gather.config() };
        let mut faults = gather.faults;
        for fault in &mut faults {
            fault.source = fault.source.take().or_else(|| origin.of(&fault.key));
        }
        Ok((Self { config, origin }, faults))
    }

    /// The effective values as lines, each with where it came from; secrets hidden.
    pub fn show(&self) -> String {
        show::show(&self.config, |key| self.origin.of(key))
    }
}

/// The JSON Schema of the configuration file.
pub fn schema() -> schemars::Schema {
    show::schema()
}

impl Origin {
    /// The file or variable that a key, or its `_file`, or its nearest parent was set by.
    fn of(&self, key: &str) -> Option<String> {
        // An item of a list comes from where the list does.
        let key = key.split('[').next().unwrap_or(key);
        let found = [key.to_owned(), format!("{key}_file")].into_iter().find_map(|key| {
            let metadata = self.figment.find_metadata(&key)?;
            match &metadata.source {
                Some(source) => Some(source.to_string()),
                None => Some(format!("the variable {}", layers::variable(&key))),
            }
        });
        found.map(|source| source.trim_start_matches("./").to_owned())
    }

    fn fault(&self, prefix: String, error: &figment::Error) -> Fault {
        let path = error.path.iter().map(String::as_str);
        let key =
            [prefix.as_str()].into_iter().filter(|prefix| !prefix.is_empty()).chain(path).collect::<Vec<_>>().join(".");
        let secret = key.split('.').any(layers::may_hold_secret);
        let source = error.metadata.as_ref().and_then(|metadata| metadata.source.as_ref()).map(ToString::to_string);
        Fault { key, message: message(&error.kind, secret), source }
    }
}

/// What is wrong, without the value where that may be a secret.
fn message(kind: &Kind, secret: bool) -> String {
    match kind {
        // A text in place of a table may be all that the table should have held.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected)
            if secret || in_words(expected) == "a table" =>
        {
            format!("expected {}, but found something else", in_words(expected))
        }
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            format!("expected {}, but found {}", in_words(expected), shown(found))
        }
        Kind::UnknownField(name, known) => match nearest(name, known) {
            Some(nearest) => format!("expected a known key, but found \"{name}\"; did you mean \"{nearest}\"?"),
            None => format!("expected a known key ({}), but found \"{name}\"", known.join(", ")),
        },
        Kind::UnknownVariant(name, known) => {
            let known: Vec<String> = known.iter().map(|known| format!("\"{known}\"")).collect();
            format!("expected one of {}, but found \"{name}\"", known.join(", "))
        }
        Kind::MissingField(name) => format!("expected the key \"{name}\", but found none"),
        other => other.to_string(),
    }
}

/// What a type is called by those who write configurations.
fn in_words(expected: &str) -> &str {
    match expected {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number, not negative",
        "a nonzero u32" | "NonZeroU32" => "a whole number, at least 1",
        "a boolean" => "true or false",
        "a string" => "a text",
        "a sequence" => "a list",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

/// A value as it was written.
fn shown(found: &Actual) -> String {
    match found {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        Actual::Str(value) => format!("\"{value}\""),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// The known word that a wrong one was probably meant to be.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|known| (strsim::damerau_levenshtein(word, known), *known));
    scored.min().filter(|(distance, known)| *distance <= known.len().div_ceil(3)).map(|(_, known)| known)
}

/// Gathers the settings from the tree.
struct Gather<'a> {
    tree: Dict,
    faults: Vec<Fault>,
    origin: &'a Origin,
}

impl Gather<'_> {
    fn config(&mut self) -> Config {
        const SECTIONS: &[&str] = &[
            "server",
            "admin",
            "access",
            "journal",
            "dedup",
            "envelope",
            "sinks",
            #[cfg(feature = "otlp")]
            "traces",
        ];
        #[cfg(not(feature = "otlp"))]
        if self.tree.remove("traces").is_some() {
            self.fault("traces", "expected a build with the feature \"otlp\", but found one without it".into());
        }
        let unknown: Vec<String> = self.tree.keys().filter(|key| !SECTIONS.contains(&key.as_str())).cloned().collect();
        for key in unknown {
            let message = message(&Kind::UnknownField(key.clone(), SECTIONS), false);
            self.fault(&key, message);
        }
        let config = Config {
            server: self.section("server"),
            admin: self.section("admin"),
            access: self.section("access"),
            journal: self.section("journal"),
            dedup: self.section("dedup"),
            envelope: self.section("envelope"),
            sinks: self.sinks(),
            #[cfg(feature = "otlp")]
            traces: self.section("traces"),
            secret_files: Vec::new(),
        };
        self.checked("server", config.server.check());
        self.checked("admin", config.admin.check());
        self.checked("access", config.access.check());
        self.checked("journal", config.journal.check());
        self.checked("dedup", config.dedup.check());
        self.checked("envelope", config.envelope.check());
        #[cfg(feature = "otlp")]
        self.checked("traces", config.traces.as_ref().map(crate::traces::Settings::check).unwrap_or_default());
        config
    }

    fn section<T: DeserializeOwned + Default>(&mut self, key: &str) -> T {
        self.tree.remove(key).map(|value| self.read(key, value)).unwrap_or_default()
    }

    fn sinks(&mut self) -> BTreeMap<String, SinkConfig> {
        let sinks = match self.tree.remove("sinks") {
            None => return BTreeMap::new(),
            Some(Value::Dict(_, sinks)) => sinks,
            Some(_) => {
                self.fault("sinks", "expected a table of sinks, each under its name".into());
                return BTreeMap::new();
            }
        };
        sinks.into_iter().filter_map(|(name, value)| self.sink(&name, value).map(|sink| (name, sink))).collect()
    }

    fn sink(&mut self, name: &str, value: Value) -> Option<SinkConfig> {
        let key = format!("sinks.{name}");
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
            self.fault(&key, format!("expected a name of a-z, 0-9, \"_\" and \"-\", but found \"{name}\""));
        }
        let Value::Dict(tag, mut table) = value else {
            self.fault(&key, "expected a table with a type".into());
            return None;
        };
        let kind: Option<String> = self.take(&mut table, &key, "type");
        let categories: Vec<String> = self.take(&mut table, &key, "categories").unwrap_or_default();
        let format: Format = self.take(&mut table, &key, "format").unwrap_or_default();
        self.check_categories(&key, &categories);
        let table = Value::Dict(tag, table);
        let kind = match kind.as_deref() {
            Some("stdout") => SinkKind::Stdout(self.read(&key, table)),
            #[cfg(feature = "kafka")]
            Some("kafka") => SinkKind::Kafka(self.read(&key, table)),
            #[cfg(feature = "rabbitmq")]
            Some("rabbitmq") => SinkKind::Rabbitmq(self.read(&key, table)),
            #[cfg(feature = "nats")]
            Some("nats") => SinkKind::Nats(self.read(&key, table)),
            other => {
                let found = other.map_or_else(|| "none".to_owned(), |other| format!("\"{other}\""));
                self.fault(&format!("{key}.type"), format!("expected one of {}, but found {found}", TYPES.join(", ")));
                return None;
            }
        };
        for (field, message) in kind.check() {
            self.fault(&format!("{key}.{field}"), message);
        }
        Some(SinkConfig { kind, categories, format })
    }

    fn check_categories(&mut self, key: &str, categories: &[String]) {
        for pattern in categories {
            let known = Category::LABELS.iter().any(|label| crate::domain::glob::matches(pattern, label));
            // A new category of Sendbird's may be named before this program knows it, but only in full.
            if !known && (pattern.contains('*') || !pattern.contains(':')) {
                let message = format!("expected a pattern that some category matches, but found \"{pattern}\"");
                self.fault(&format!("{key}.categories"), message);
            }
        }
    }

    /// Takes one key out of a table, because it is not the type's own.
    fn take<T: DeserializeOwned>(&mut self, table: &mut Dict, prefix: &str, key: &str) -> Option<T> {
        let value = table.remove(key)?;
        value.deserialize().map_err(|error| self.deserialize_faults(&format!("{prefix}.{key}"), error)).ok()
    }

    /// Deserialises a section, taking out one wrong value after the other until the rest is right: so
    /// each is named, and none hides the next.
    fn read<T: DeserializeOwned + Default>(&mut self, key: &str, mut value: Value) -> T {
        let mut named = BTreeSet::new();
        loop {
            let error = match value.deserialize::<T>() {
                Ok(settings) => return settings,
                Err(error) => error,
            };
            let path = error.path.clone();
            self.deserialize_faults(key, error);
            if !named.insert(path.clone()) || !remove(&mut value, &path) {
                return T::default();
            }
        }
    }

    fn deserialize_faults(&mut self, prefix: &str, error: figment::Error) {
        let faults = error.into_iter().map(|error| self.origin.fault(prefix.to_owned(), &error));
        self.faults.extend(faults);
    }

    fn checked(&mut self, section: &str, faults: Vec<(&'static str, String)>) {
        for (key, message) in faults {
            self.fault(&format!("{section}.{key}"), message);
        }
    }

    fn fault(&mut self, key: &str, message: String) {
        // A value that could not be read was replaced by its default; what that leads to is not news.
        if self.faults.iter().all(|fault| fault.key != key) {
            self.faults.push(Fault { key: key.to_owned(), message, source: None });
        }
    }
}

/// Removes the value at a path, or the list that it is in.
fn remove(value: &mut Value, path: &[String]) -> bool {
    let (Value::Dict(_, dict), [first, rest @ ..]) = (value, path) else { return false };
    match dict.get_mut(first) {
        Some(inner @ Value::Dict(..)) if !rest.is_empty() => remove(inner, rest),
        Some(_) => dict.remove(first).is_some(),
        None => false,
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
