//! `sinks.<name>`: what every sink has, and the types that this build knows.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use super::Config;
use crate::access;
use crate::domain::envelope::{Format, object, verb};
use crate::domain::template::KnownValues;
use crate::domain::{glob, kind};
use crate::sendbird::category::{Category, event_type};
use crate::sink::settings::{ReloadPolicy, Tls};
use crate::sink::stdout;
use crate::traces::Destination;

/// One sink.
#[derive(Clone, Debug, Serialize)]
pub struct SinkConfig {
    /// What every sink has.
    #[serde(flatten)]
    pub kind: SinkKind,
    /// Globs over the categories that it wants; empty means all.
    pub categories: Vec<String>,
    /// The applications whose events it wants; empty means all.
    pub applications: Vec<String>,
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
pub(super) const TYPES: &[&str] = &[
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

    pub(super) fn check(&self) -> Vec<(String, String)> {
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
    /// When a change of it takes effect.
    pub reload: ReloadPolicy,
}

impl Config {
    /// The files that the clients of the sinks read.
    pub fn client_files(&self) -> Vec<ClientFile> {
        let of_sink = |(name, sink): (&String, &SinkConfig)| {
            let (tls, reload): (Option<Tls>, ReloadPolicy) = match &sink.kind {
                SinkKind::Stdout(stdout::Settings {}) => (None, ReloadPolicy::NextConnection),
                #[cfg(feature = "kafka")]
                SinkKind::Kafka(settings) => (settings.tls.clone(), ReloadPolicy::Restart),
                #[cfg(feature = "rabbitmq")]
                SinkKind::Rabbitmq(settings) => (settings.tls.clone(), ReloadPolicy::NextConnection),
                #[cfg(feature = "nats")]
                SinkKind::Nats(settings) => (settings.tls.clone(), ReloadPolicy::NextConnection),
            };
            let file =
                |(key, path): (_, &Path)| ClientFile { key: format!("sinks.{name}.{key}"), path: path.into(), reload };
            tls.unwrap_or_default().files().map(file).collect::<Vec<_>>()
        };
        self.sinks.iter().flat_map(of_sink).collect()
    }
}

/// Names that stand for the categories of each object that Sendbird does not document.
const UNDOCUMENTED: [&str; 3] = ["direct_call:undocumented", "room:undocumented", "undocumented"];

impl SinkConfig {
    /// What is known ahead of the events that it can get, where deliveries of these applications are accepted; none stands
    /// for all.
    pub fn known_values(&self, applications: &[String]) -> Vec<KnownValues> {
        let wanted = |category: &str| {
            self.categories.is_empty() || self.categories.iter().any(|pattern| glob::matches(pattern, category))
        };
        let named = |category: Category| (category.label(), Some((verb(category.label()), category.label())));
        let documented = Category::ALL.into_iter().map(named);
        let all = documented.chain(UNDOCUMENTED.map(|name| (name, None)));
        let applications: Vec<Option<String>> = match applications {
            [] => vec![None],
            some => some.iter().cloned().map(Some).collect(),
        };
        all.filter(|(name, _)| wanted(name))
            .flat_map(|(name, category)| {
                let with = move |application_id: &Option<String>| KnownValues {
                    object: object(name, None),
                    category,
                    application_id: application_id.clone(),
                };
                applications.iter().map(with).collect::<Vec<_>>()
            })
            .collect()
    }

    /// The applications that it can get events of, where that is known; empty means any.
    pub fn known_applications<'a>(&'a self, access: &'a access::Settings) -> &'a [String] {
        if self.applications.is_empty() { &access.applications } else { &self.applications }
    }

    /// The categories as globs over types of events.
    pub fn types(&self) -> Vec<String> {
        let all = self.categories.iter().any(|pattern| pattern == "*");
        let globs = self.categories.iter().map(|pattern| event_type(pattern));
        if all { Vec::new() } else { globs.collect() }
    }

    /// Patterns of the kinds of events that it wants: of each type with each application.
    pub fn kinds(&self) -> Vec<String> {
        let mut types = self.types();
        if self.applications.is_empty() {
            return types;
        }
        if types.is_empty() {
            types.push("*".into());
        }
        let applications = self.applications.iter();
        applications.flat_map(|id| types.iter().map(|event_type| kind::of(event_type, Some(id)))).collect()
    }
}
