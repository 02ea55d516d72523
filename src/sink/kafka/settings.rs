//! The settings of a Kafka sink and their check.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::defaults;
use super::reserved::refusal;
use super::sasl::{Mechanism, Sasl, TokenEndpoint};
use crate::domain::template::{AddressKind, Template};
use crate::sink::settings::{Create, Faults, Tls, fault, template};

/// What Kafka gives a topic's name.
const LONGEST_TOPIC: usize = 249;
/// How many categories and objects Sendbird documents.
const CATEGORIES: usize = 13;
const OBJECTS: usize = 2;

/// Where and how to publish to Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Some brokers of the cluster, each `host:port`; required.
    pub brokers: Vec<String>,
    /// The topic, with placeholders; default `sendbird.calls.{object}`.
    pub topic: String,
    /// Further properties of librdkafka, by their own names and in their own units; those that would break a
    /// promise are refused; default: none.
    #[serde(deserialize_with = "properties")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub client: BTreeMap<String, String>,
    /// Encryption; present, even empty, means that it is used; default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Who the bridge is; default: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Sasl>,
    /// Whether to create missing topics: `false`, `true` or a table; default `false`.
    pub create_topics: Create<CreateTopics>,
    /// Whether to publish to compacted topics, which keep the last event of each call or room alone; default `false`.
    pub allow_compacted: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            topic: "sendbird.calls.{object}".into(),
            client: BTreeMap::new(),
            tls: None,
            sasl: None,
            create_topics: Create::Never,
            allow_compacted: false,
        }
    }
}

/// How to create a missing topic. Everything else is as the brokers have it by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CreateTopics {
    /// How many partitions, at least 1; default: the brokers' default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u16>,
    /// How many brokers keep each partition, at least 1; default: the brokers' default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<u8>,
}

impl Settings {
    /// All faults: the key relative to the sink, and what is wrong.
    pub fn check(&self) -> Faults {
        self.parse().err().unwrap_or_default()
    }

    /// How many topics the known categories lead to, with so many applications (0: not known how many; taken for one).
    pub fn topics(&self, applications: usize) -> usize {
        let uses = |placeholder: &str| self.topic.contains(&format!("{{{placeholder}}}"));
        let categories = match (uses("category") || uses("verb"), uses("object")) {
            (true, _) => CATEGORIES,
            (false, true) => OBJECTS,
            (false, false) => 1,
        };
        categories * if uses("application_id") { applications.max(1) } else { 1 }
    }

    /// Who the bridge is to the brokers, in words.
    pub(super) fn user(&self) -> String {
        match (&self.sasl, &self.tls) {
            (Some(Sasl { username: Some(username), .. }), _) => format!("user \"{username}\""),
            (Some(_), _) => "the user of the token".into(),
            (None, Some(Tls { cert_file: Some(file), .. })) => format!("the user of {}", file.display()),
            (None, _) => "user ANONYMOUS".into(),
        }
    }

    /// The parts that need parsing: the topic, and where tokens come from.
    pub(super) fn parse(&self) -> Result<(Template, Option<TokenEndpoint>), Faults> {
        let mut faults = Faults::new();
        if self.brokers.is_empty() {
            faults.push(fault("brokers", "expected at least one host:port, but found none"));
        }
        for (index, broker) in self.brokers.iter().enumerate() {
            if !is_host_and_port(broker) {
                // Not echoed: somebody may have written a URL with a password.
                let found = if broker.contains("://") {
                    "a URL"
                } else if broker.contains(':') {
                    "something else"
                } else {
                    "no port"
                };
                faults.push(fault(format!("brokers[{index}]"), format!("expected host:port, but found {found}")));
            }
        }
        let topic = template("topic", &self.topic, AddressKind::Topic, LONGEST_TOPIC);
        let topic = topic.map_err(|fault| faults.push(fault)).ok();
        faults.extend(topic.as_ref().and_then(check_topic));
        let properties: Faults = self.client.iter().filter_map(|(key, value)| property(key, value)).collect();
        if properties.is_empty() && !self.client.is_empty() {
            faults.extend(defaults::check(&self.client).into_iter().map(|message| fault("client", message)));
        }
        faults.extend(properties);
        faults.extend(self.tls.iter().flat_map(Tls::check));
        let tokens = match self.sasl.as_ref().map(Sasl::parse) {
            None => None,
            Some(Ok(tokens)) => tokens,
            Some(Err(found)) => {
                faults.extend(found);
                None
            }
        };
        if let Some(Sasl { mechanism, .. }) = self.sasl.as_ref().filter(|sasl| sasl.mechanism.sends_secret())
            && self.tls.is_none()
        {
            let (mechanism, why) = (mechanism.as_str(), "which sends the secret itself");
            let message = format!("expected it because sasl.mechanism is \"{mechanism}\", {why}, but found none");
            faults.push(fault("tls", message));
        }
        let has_tokens = self.sasl.as_ref().is_some_and(|sasl| sasl.mechanism == Mechanism::OauthBearer);
        if has_tokens && self.create_topics.as_option().is_some() {
            // The client library makes them over a connection that its callback for tokens does not reach
            // (fede1024/rust-rdkafka#757).
            let message = "expected false because sasl.mechanism is \"OAUTHBEARER\", with which the client can create none, \
                           but found something else";
            faults.push(fault("create_topics", message));
        }
        if let Some(create) = self.create_topics.as_option() {
            let zeros = [
                ("partitions", create.partitions == Some(0)),
                ("replication_factor", create.replication_factor == Some(0)),
            ];
            for (key, _) in zeros.into_iter().filter(|(_, zero)| *zero) {
                faults.push(fault(format!("create_topics.{key}"), "expected at least 1, but found 0"));
            }
        }
        match topic {
            Some(topic) if faults.is_empty() => Ok((topic, tokens)),
            _ => Err(faults),
        }
    }
}

/// A topic for each call is more topics than a cluster bears, and none of them exists before the call.
fn check_topic(topic: &Template) -> Option<(String, String)> {
    if topic.uses("key") {
        let message = "expected a topic for many calls, but found {key} in it; it is the record's key already";
        return Some(fault("topic", message));
    }
    let text = topic.to_string();
    matches!(text.as_str(), "." | "..").then(|| fault("topic", format!("expected a topic, but found \"{text}\"")))
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let literal = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | '%');
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => !address.is_empty() && address.chars().all(literal),
        None => !host.is_empty() && host.chars().all(plain),
    };
    host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// What is wrong with one property. The client itself knows which there are.
fn property(key: &str, value: &str) -> Option<(String, String)> {
    let name = format!("client.\"{key}\"");
    if let Some(expected) = refusal(key) {
        return Some(fault(name, format!("expected {expected}, but found {key}")));
    }
    let mut config = ClientConfig::new();
    config.set(key, value);
    match config.create_native_config() {
        Ok(_) => None,
        Err(rdkafka::error::KafkaError::ClientConfig(_, text, ..)) => {
            Some(fault(name, format!("expected a property of librdkafka, but found: {text}")))
        }
        Err(_) => Some(fault(name, "expected a property of librdkafka, but found something else")),
    }
}

/// Property names have dots, and a table key with dots is a table of tables: both spellings are taken. Numbers
/// and booleans are as good as text.
fn properties<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let tree = BTreeMap::<String, Node>::deserialize(deserializer)?;
    let mut flat = BTreeMap::new();
    tree.into_iter().for_each(|(key, node)| node.flatten(key, &mut flat));
    Ok(flat)
}

enum Node {
    Text(String),
    Table(BTreeMap<String, Node>),
}

impl Node {
    fn flatten(self, path: String, into: &mut BTreeMap<String, String>) {
        match self {
            Self::Text(text) => {
                into.insert(path, text);
            }
            Self::Table(table) => {
                table.into_iter().for_each(|(key, node)| node.flatten(format!("{path}.{key}"), into));
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number or a boolean")
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Text(value.to_owned()))
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut table = BTreeMap::new();
                while let Some((key, node)) = map.next_entry()? {
                    table.insert(key, node);
                }
                Ok(Node::Table(table))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: serde_json::Value) -> Settings {
        serde_json::from_value(json).expect("settings")
    }

    #[test]
    fn the_least_is_a_broker() {
        assert_eq!(settings(serde_json::json!({ "brokers": ["a:9092", "[::1]:9092"] })).check(), Faults::new());
        assert_eq!(Settings::default().check()[0].0, "brokers");
    }

    #[test]
    fn properties_come_in_both_spellings() {
        let client = settings(serde_json::json!({
            "client": { "linger.ms": 5, "socket": { "keepalive": { "enable": true } }, "client.id": "x" }
        }))
        .client;
        let pairs: Vec<_> = client.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("client.id", "x"), ("linger.ms", "5"), ("socket.keepalive.enable", "true")]);
    }

    #[test]
    fn all_faults_are_reported_and_no_secret_is() {
        let faults = settings(serde_json::json!({
            "brokers": ["a", "http://me:canary@b:1", "c:0"],
            "topic": "a b",
            "client": { "acks": 1, "no.such": 1, "linger.ms": "soon", "ssl.key.password": "canary", "batch.size": 100_000 },
            "tls": { "ca_file": "/nonexistent/ca" },
            "sasl": {},
            "create_topics": { "partitions": 0, "replication_factor": 0 },
        }))
        .check();
        let keys: Vec<_> = faults.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "brokers[0]",
                "brokers[1]",
                "brokers[2]",
                "topic",
                "client.\"acks\"",
                "client.\"linger.ms\"",
                "client.\"no.such\"",
                "client.\"ssl.key.password\"",
                "tls.ca_file",
                "sasl.username",
                "sasl.password",
                "create_topics.partitions",
                "create_topics.replication_factor",
            ]
        );
        assert!(faults.iter().all(|(_, message)| message.starts_with("expected") && !message.contains("canary")));
    }

    #[test]
    fn what_kafka_would_refuse_or_ignore_is_refused() {
        let fault_of = |json: serde_json::Value| {
            let mut whole = serde_json::json!({ "brokers": ["a:1"] });
            whole.as_object_mut().expect("a table").extend(json.as_object().expect("a table").clone());
            let faults = settings(whole).check();
            assert!(faults.len() <= 1, "{faults:?}");
            faults.into_iter().next().unwrap_or_default()
        };
        for topic in ["calls.{key}", "{object}.{key}", ".", ".."] {
            assert_eq!(fault_of(serde_json::json!({ "topic": topic })).0, "topic", "{topic}");
        }
        assert_eq!(fault_of(serde_json::json!({ "topic": "{application_id}.{category}" })).0, "");
        for (client, word) in [
            (serde_json::json!({ "group.id": "bridge" }), "consumer property"),
            (serde_json::json!({ "reconnect.backoff.ms": 5000, "reconnect.backoff.max.ms": 100 }), "reconnect.backoff"),
        ] {
            let (key, message) = fault_of(serde_json::json!({ "client": client }));
            assert!(key == "client" && message.contains(word), "{key}: {message}");
        }
        assert_eq!(fault_of(serde_json::json!({ "client": { "linger.ms": 5, "compression.type": "zstd" } })).0, "");
        for (broker, word) in [("a", "no port"), ("kafka://a:1", "a URL"), ("a:0", "something else")] {
            let (key, message) = fault_of(serde_json::json!({ "brokers": [broker] }));
            assert!(key == "brokers[0]" && message.ends_with(word), "{key}: {message}");
        }
    }

    #[test]
    fn a_mechanism_that_sends_its_secret_is_only_for_tls() {
        let faults = |mechanism: &str, tls: bool| {
            let mut json = serde_json::json!({ "brokers": ["a:1"], "sasl": { "mechanism": mechanism } });
            let sasl = &mut json["sasl"];
            if mechanism == "OAUTHBEARER" {
                sasl["token_endpoint"] = "file:///t".into();
            } else {
                (sasl["username"], sasl["password"]) = ("u".into(), "p".into());
            }
            if tls {
                json["tls"] = serde_json::json!({});
            }
            settings(json).check().into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        for mechanism in ["PLAIN", "OAUTHBEARER"] {
            assert_eq!((faults(mechanism, false), faults(mechanism, true)), (vec!["tls".to_owned()], vec![]));
        }
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            assert_eq!(faults(mechanism, false), Vec::<String>::new(), "{mechanism}");
        }
    }

    #[test]
    fn what_is_shown_hides_secrets_and_can_be_read_back() {
        let shown = serde_json::to_value(settings(serde_json::json!({
            "brokers": ["a:1"],
            "create_topics": true,
            "sasl": { "mechanism": "PLAIN", "username": "u", "password": "canary" },
        })))
        .expect("json");
        assert!(!shown.to_string().contains("canary"));
        assert!(serde_json::from_value::<Settings>(shown).is_ok());
    }
}
