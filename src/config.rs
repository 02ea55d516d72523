//! The whole configuration, known and checked before anything is touched.
//!
//! Each module owns its settings; this one gathers them from the file and the environment, and reports
//! every fault at once, with its key and where the value came from.

mod faults;
mod layers;
mod show;
mod sinks;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;

use figment::Figment;
use figment::error::Kind;
use figment::value::{Dict, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::faults::message;
pub(crate) use self::faults::nearest;
pub use self::faults::{Fault, Faults};
pub use self::layers::{CONFIG_VARIABLE, SecretFile};
use self::sinks::TYPES;
pub use self::sinks::{ClientFile, SinkConfig, SinkKind};
use crate::access;
use crate::domain::envelope::Format;
use crate::http::{admin, webhook};
use crate::journal;
use crate::pipeline;
use crate::sendbird::api::ApplicationId;
use crate::sendbird::category::Category;
use crate::sendbird::{normalize, reconcile};

/// How many topics a sink may need.
#[cfg(feature = "kafka")]
const MOST_TOPICS: usize = 1_000;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Config {
    /// `server.*`.
    pub server: webhook::Settings,
    /// `admin.*`.
    pub admin: admin::Settings,
    /// `access.*`.
    pub access: access::Settings,
    /// `applications.*`.
    #[serde(skip_serializing_if = "access::Applications::is_empty")]
    pub applications: access::Applications,
    /// `journal.*`.
    pub journal: journal::Settings,
    /// `dedup.*`.
    pub dedup: journal::DedupSettings,
    /// `stop.*`.
    pub stop: pipeline::StopSettings,
    /// `envelope.*`.
    pub envelope: normalize::Settings,
    /// `reconcile.*`; none without the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<reconcile::settings::Settings>,
    /// `sinks.<name>.*`.
    pub sinks: BTreeMap<String, SinkConfig>,
    /// `traces.*`; none without the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<crate::traces::Settings>,
    /// The files that secrets were read from.
    #[serde(skip)]
    pub secret_files: Vec<SecretFile>,
}

/// A configuration that was found right, with what is needed to say where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What can be meant so, and most often is not.
    pub warnings: Vec<Fault>,
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
    pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Faults> {
        let (loaded, faults) = Self::read(file, environment)?;
        match faults {
            faults if faults.is_empty() => Ok(loaded),
            // Whatever is missing then, a configuration is.
            _ if file.is_none() && !loaded.origin.has_values() => Err(Faults(vec![Fault::nothing_given()])),
            faults => Err(Faults(faults)),
        }
    }

    /// The same for documents, which need no token and no broker: what is missing altogether is no fault.
    ///
    /// # Errors
    /// All faults of what is there, at once.
    pub fn load_to_describe(
        file: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Faults> {
        let (loaded, mut faults) = Self::read(file, environment)?;
        faults.retain(|fault| fault.source.is_some());
        if faults.is_empty() { Ok(loaded) } else { Err(Faults(faults)) }
    }

    /// What could be read, with all that is wrong about it.
    fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Vec<Fault>), Faults> {
        let mut faults = Vec::new();
        let figment = layers::figment(file, environment, &mut faults).map_err(|fault| Faults(vec![fault]))?;
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
        let mut warnings = Vec::new();
        layers::read_secret_files(&mut tree, "", &mut faults, &mut secret_files);
        layers::check_secrets(&tree, "", &mut faults, &mut warnings);
        let mut gather = Gather { tree, faults, origin: &origin };
        let config = Config { secret_files, ..gather.config() };
        let mut faults = gather.faults;
        warnings.extend(warnings::of(&config));
        for fault in faults.iter_mut().chain(&mut warnings) {
            fault.source = fault.source.take().or_else(|| origin.of(&fault.key));
        }
        Ok((Self { config, warnings, origin }, faults))
    }

    /// Whether there is a file or a variable at all.
    pub fn is_given(&self) -> bool {
        self.origin.has_values()
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
    fn has_values(&self) -> bool {
        self.figment.extract::<Dict>().is_ok_and(|tree| !tree.is_empty())
    }

    /// The file or variable that a key, or its `_file`, or its nearest parent was set by.
    fn of(&self, key: &str) -> Option<String> {
        // An item of a list comes from where the list does.
        let key = key.split('[').next().unwrap_or(key);
        let is_index = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let key = key.rsplit_once('.').filter(|(_, last)| is_index(last)).map_or(key, |(list, _)| list);
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
            "applications",
            "journal",
            "dedup",
            "stop",
            "envelope",
            "reconcile",
            "sinks",
            "traces",
        ];
        let unknown: Vec<String> = self.tree.keys().filter(|key| !SECTIONS.contains(&key.as_str())).cloned().collect();
        for key in unknown {
            let message = message(&Kind::UnknownField(key.clone(), SECTIONS), false);
            self.fault(&key, message);
        }
        let config = Config {
            server: self.section("server"),
            admin: self.section("admin"),
            access: self.section("access"),
            applications: self.section("applications"),
            journal: self.section("journal"),
            dedup: self.section("dedup"),
            stop: self.section("stop"),
            envelope: self.section("envelope"),
            reconcile: self.section("reconcile"),
            sinks: self.sinks(),
            traces: self.section("traces"),
            secret_files: Vec::new(),
        };
        self.checked("server", config.server.check(!config.access.trusted_proxies.is_empty()));
        self.checked("admin", config.admin.check());
        self.checked("access", config.access.check(&config.applications));
        for (key, message) in config.access.check_applications(&config.applications) {
            self.fault(&key, message);
        }
        self.checked("journal", config.journal.check());
        self.check_addresses(&config);
        self.check_applications_of_sinks(&config);
        #[cfg(feature = "kafka")]
        self.check_topics(&config);
        self.checked("dedup", config.dedup.check());
        self.checked("stop", config.stop.check());
        self.checked("envelope", config.envelope.check());
        let allowed = &config.access.applications;
        let reconcile = config.reconcile.as_ref().map(|settings| {
            let application = settings.application(allowed).unwrap_or_default();
            settings.check(allowed, config.applications.tokens_of(application, &config.access.api_tokens).1)
        });
        self.checked("reconcile", reconcile.unwrap_or_default());
        self.checked("traces", config.traces.as_ref().map(crate::traces::Settings::check).unwrap_or_default());
        config
    }

    /// Two listeners cannot have one port, unless their addresses differ and neither is every address.
    fn check_addresses(&mut self, config: &Config) {
        let (webhook, admin) = (config.server.listen, config.admin.listen);
        let (a, b) = (webhook.ip().to_canonical(), admin.ip().to_canonical());
        if webhook.port() == admin.port() && webhook.port() != 0 && (a == b || a.is_unspecified() || b.is_unspecified())
        {
            let message = format!("expected another port than server.listen ({webhook}), but found {admin}");
            self.fault("admin.listen", message);
        }
    }

    /// A sink cannot get events of an application whose deliveries are refused.
    fn check_applications_of_sinks(&mut self, config: &Config) {
        for (name, sink) in &config.sinks {
            for application in &sink.applications {
                let is_allowed = |allowed: &[String]| {
                    allowed.is_empty() || allowed.iter().any(|known| known.eq_ignore_ascii_case(application))
                };
                let message = match application.parse::<ApplicationId>() {
                    Err(message) => message,
                    Ok(_) if is_allowed(&config.access.applications) => continue,
                    Ok(_) => format!("expected some of access.applications, but found \"{application}\""),
                };
                self.fault(&format!("sinks.{name}.applications"), message);
            }
        }
    }

    /// A topic is a set of files and memory on every broker that has it.
    #[cfg(feature = "kafka")]
    fn check_topics(&mut self, config: &Config) {
        for (name, sink) in &config.sinks {
            let SinkKind::Kafka(settings) = &sink.kind else { continue };
            let topics = settings.topics(sink.known_applications(&config.access).len());
            if topics > MOST_TOPICS {
                let message = format!("expected a pattern of at most {MOST_TOPICS} topics, but found one of {topics}");
                self.fault(&format!("sinks.{name}.topic"), message);
            }
        }
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
        let applications: Vec<String> = self.take(&mut table, &key, "applications").unwrap_or_default();
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
                let hint = other.and_then(|other| nearest(other, TYPES));
                let hint = hint.map(|nearest| format!("; did you mean \"{nearest}\"?")).unwrap_or_default();
                let message = format!("expected one of {}, but found {found}{hint}", TYPES.join(", "));
                self.fault(&format!("{key}.type"), message);
                return None;
            }
        };
        for (field, message) in kind.check() {
            self.fault(&format!("{key}.{field}"), message);
        }
        Some(SinkConfig { kind, categories, applications, format })
    }

    fn check_categories(&mut self, key: &str, categories: &[String]) {
        for pattern in categories {
            let known = Category::LABELS.iter().any(|label| crate::domain::glob::matches(pattern, label));
            // A new category of Sendbird's may be named before this program knows it, but only in full.
            let strange = !pattern.bytes().all(|byte| byte.is_ascii_graphic());
            if !known && (strange || pattern.contains('*') || !pattern.contains(':')) {
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
        // A value that could not be read was replaced; what that leads to is not news.
        let is_known = |fault: &Fault| {
            let list = fault.key.split('[').next().unwrap_or_default();
            let is_below = fault.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
            fault.key == key || list == key || list.strip_suffix("_file") == Some(key) || is_below
        };
        if !self.faults.iter().any(is_known) {
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
