//! The settings of a RabbitMQ sink and their check.

use lapin::types::ShortString;
use lapin::uri::{AMQPScheme, AMQPUri};
use serde::{Deserialize, Serialize};

use super::bindings;
use crate::domain::secret::Secret;
use crate::domain::template::{AddressKind, Template};
use crate::domain::text;
use crate::sink::settings::{Create, Faults, Tls, fault, template};

/// What AMQP gives a name or a routing key.
const LONGEST_NAME: usize = 255;
/// Seconds without a sign of life from the broker, unless the URL says otherwise. Twice this ends the connection.
const HEARTBEAT: u16 = 10;
/// What a URL can set, beside where and who.
const PARAMETERS: [&str; 5] = ["heartbeat", "connection_timeout", "channel_max", "frame_max", "auth_mechanism"];
/// The least that AMQP allows (`frame-min-size`).
const SMALLEST_FRAME: u32 = 4096;
/// The types of exchanges that the broker has without plugins.
const BUILT_IN: [&str; 4] = ["topic", "direct", "fanout", "headers"];
/// What names of the broker's own begin with; nobody else may declare any.
const RESERVED: &str = "amq.";

/// Where and how to publish to RabbitMQ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The broker, `amqp://user:password@host:port/vhost` or `amqps://...`; required.
    pub url: Secret,
    /// The exchange to publish to; default `sendbird.calls`.
    pub exchange: String,
    /// The routing key, with placeholders; default `{object}.{verb}.{key}`.
    pub routing_key: String,
    /// What the names of attributes begin with in binary mode: `cloudEvents:`, or `cloudEvents_` for consumers that allow no
    /// colon in a header's name, such as selectors of JMS; default `cloudEvents:`.
    pub attribute_prefix: AttributePrefix,
    /// Whether to declare the exchange, and queues: `false`, `true` (the exchange alone) or a table;
    /// default `false`.
    pub declare: Create<Declare>,
    /// Certificates for `amqps`; default: the platform's authorities, no client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            exchange: "sendbird.calls".into(),
            routing_key: "{object}.{verb}.{key}".into(),
            attribute_prefix: AttributePrefix::default(),
            declare: Create::Never,
            tls: None,
        }
    }
}

/// The two prefixes that the CloudEvents binding for AMQP allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum AttributePrefix {
    /// `cloudEvents:id`.
    #[default]
    #[serde(rename = "cloudEvents:")]
    Colon,
    /// `cloudEvents_id`.
    #[serde(rename = "cloudEvents_")]
    Underscore,
}

impl AttributePrefix {
    /// As it stands before an attribute's name.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Colon => "cloudEvents:",
            Self::Underscore => "cloudEvents_",
        }
    }
}

/// What to declare, all of it durable. Anything finer (limits, dead-letter exchanges) is a policy's work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Declare {
    /// The type of the exchange: `topic`, `direct`, `fanout`, `headers` or a plugin's; default `topic`.
    pub exchange_type: String,
    /// Queues to declare and bind; default: none, and then every event is set aside as unroutable until
    /// somebody binds a queue.
    pub queues: Vec<Queue>,
}

impl Default for Declare {
    fn default() -> Self {
        Self { exchange_type: "topic".into(), queues: Vec::new() }
    }
}

/// A durable queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Its name; required.
    pub name: String,
    /// Its kind, `quorum` or `classic`; default `quorum`.
    pub r#type: QueueType,
    /// The binding keys between the exchange and it; default `["#"]`, everything.
    pub bindings: Vec<String>,
}

impl Default for Queue {
    fn default() -> Self {
        Self { name: String::new(), r#type: QueueType::default(), bindings: vec!["#".into()] }
    }
}

/// The kind of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// Replicated by Raft.
    #[default]
    Quorum,
    /// On one node.
    Classic,
}

impl QueueType {
    /// As the broker calls it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// The settings in the client's types.
pub(super) struct Parsed {
    pub(super) uri: AMQPUri,
    pub(super) exchange: ShortString,
    pub(super) routing_key: Template,
}

impl Settings {
    /// All faults: the key relative to the sink, and what is wrong.
    pub fn check(&self) -> Faults {
        self.parse().err().unwrap_or_default()
    }

    /// What may lose acknowledged events; over AMQP a broker tells nothing of its queues.
    pub(super) fn warnings(&self) -> Vec<String> {
        let queues = self.declare.as_option().into_iter().flat_map(|declare| &declare.queues);
        let classic = queues.filter(|queue| queue.r#type == QueueType::Classic);
        let warning = |queue: &Queue| {
            format!("queue \"{}\" is of the type classic: it is on one node, and lost with its disk", queue.name)
        };
        classic.map(warning).collect()
    }

    pub(super) fn parse(&self) -> Result<Parsed, Faults> {
        let mut faults = Faults::new();
        let uri = uri(self.url.expose()).map_err(|message| faults.push(fault("url", message))).ok();
        if self.tls.is_some() && uri.as_ref().is_some_and(|uri| uri.scheme == AMQPScheme::AMQP) {
            faults.push(fault("url", "expected amqps:// because tls is set, but found amqp://"));
        }
        name("exchange", &self.exchange, &mut faults);
        let key = template("routing_key", &self.routing_key, AddressKind::RoutingKey, LONGEST_NAME);
        let key = key.map_err(|fault| faults.push(fault)).ok();
        if let Some(declare) = self.declare.as_option() {
            declare.check(&self.exchange, key.as_ref(), &mut faults);
        }
        faults.extend(self.tls.iter().flat_map(Tls::check));
        match (uri, ShortString::try_new(self.exchange.as_str()), key) {
            (Some(uri), Ok(exchange), Some(routing_key)) if faults.is_empty() => {
                Ok(Parsed { uri, exchange, routing_key })
            }
            _ => Err(faults),
        }
    }
}

impl Declare {
    fn check(&self, exchange: &str, routing_key: Option<&Template>, faults: &mut Faults) {
        name("declare.exchange_type", &self.exchange_type, faults);
        let kind = self.exchange_type.as_str();
        if !kind.is_empty() && !BUILT_IN.contains(&kind) && !kind.starts_with("x-") {
            let message = format!(
                "expected one of {}, or a plugin's type, which begins with \"x-\", but found {kind:?}",
                BUILT_IN.join(", ")
            );
            faults.push(fault("declare.exchange_type", message));
        }
        if exchange.starts_with(RESERVED) {
            // The broker has made its own ones, with types of its own.
            let message =
                "expected a name that does not begin with \"amq.\" because declare is set, but found one that does";
            faults.push(fault("exchange", message));
        }
        for (index, queue) in self.queues.iter().enumerate() {
            name(&format!("declare.queues[{index}].name"), &queue.name, faults);
            if queue.name.starts_with(RESERVED) {
                let message = "expected a name that does not begin with \"amq.\", but found one that does";
                faults.push(fault(format!("declare.queues[{index}].name"), message));
            }
            let key = format!("declare.queues[{index}].bindings");
            if queue.bindings.is_empty() {
                faults.push(fault(&key, "expected at least one binding key, but found none"));
            }
            for binding in queue.bindings.iter().filter(|binding| binding.len() > LONGEST_NAME) {
                faults.push(fault(&key, format!("expected at most {LONGEST_NAME} bytes, but found {}", binding.len())));
            }
            for binding in &queue.bindings {
                let unlike = routing_key.and_then(|routing_key| bindings::mismatch(kind, binding, routing_key));
                faults.extend(unlike.map(|message| fault(&key, message)));
            }
        }
    }
}

fn name(key: &str, text: &str, faults: &mut Faults) {
    if text.is_empty() || text.len() > LONGEST_NAME {
        faults.push(fault(key, format!("expected 1 to {LONGEST_NAME} bytes, but found {}", text.len())));
    } else if text.chars().any(char::is_control) {
        // The broker drops line breaks from the names that it is told to declare, and not from those published to.
        faults.push(fault(key, format!("expected a name without control characters, but found {text:?}")));
    }
}

/// Never echoes the text: it holds a password.
fn uri(text: &str) -> Result<AMQPUri, String> {
    const EXPECTED: &str = "expected amqp:// or amqps:// with user, password, host and vhost, but found";
    if text.is_empty() {
        return Err(format!("{EXPECTED} nothing"));
    }
    if !text.starts_with("amqp://") && !text.starts_with("amqps://") {
        return Err(format!("{EXPECTED} another scheme or none"));
    }
    if let Some(found) = text::unencoded_delimiter(text) {
        return Err(format!("{EXPECTED} {found}"));
    }
    let mut uri: AMQPUri = text.parse().map_err(|_unechoed| format!("{EXPECTED} something else"))?;
    if uri.authority.host.is_empty() {
        return Err(format!("{EXPECTED} no host"));
    }
    if uri.authority.port == 0 {
        return Err(format!("{EXPECTED} port 0"));
    }
    if let Some(address) = ipv6_host(text) {
        uri.authority.host = address;
    }
    let query = text.split_once('?').map_or("", |(_, query)| query);
    let known = |parameter: &str| PARAMETERS.contains(&parameter.split('=').next().unwrap_or_default());
    if !query.split('&').filter(|parameter| !parameter.is_empty()).all(known) {
        return Err(format!("{EXPECTED} another parameter than {}", PARAMETERS.join(", ")));
    }
    if uri.query.connection_timeout == Some(0) {
        return Err(format!("{EXPECTED} connection_timeout=0, with which no connection comes about"));
    }
    if uri.query.frame_max.is_some_and(|bytes| (1..SMALLEST_FRAME).contains(&bytes)) {
        return Err(format!("{EXPECTED} a frame_max below {SMALLEST_FRAME}, which brokers refuse"));
    }
    // A lone slash is meant as the default vhost; one with an empty name hardly exists.
    if uri.vhost.is_empty() {
        uri.vhost = "/".into();
    }
    if *uri.query.heartbeat.get_or_insert(HEARTBEAT) == 0 {
        return Err(format!("{EXPECTED} heartbeat=0, with which a dead connection is never noticed"));
    }
    Ok(uri)
}

/// The client takes an IPv6 address in a URL for none, and would connect to localhost.
fn ipv6_host(url: &str) -> Option<String> {
    let authority = url.split_once("://")?.1.split(['/', '?']).next()?;
    let host = authority.rsplit('@').next()?.strip_prefix('[')?.split(']').next()?;
    Some(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: serde_json::Value) -> Settings {
        serde_json::from_value(json).expect("settings")
    }

    #[test]
    fn the_least_is_a_url() {
        assert_eq!(settings(serde_json::json!({ "url": "amqp://guest:guest@localhost" })).check(), Faults::new());
        assert_eq!(Settings::default().check()[0].0, "url");
    }

    #[test]
    fn all_faults_are_reported_and_no_secret_is() {
        let faults = settings(serde_json::json!({
            "url": "amqp://me:canary@h",
            "exchange": "",
            "routing_key": "{kee}",
            "declare": { "exchange_type": "", "queues": [{ "bindings": [] }, { "name": "q", "bindings": ["x".repeat(256)] }] },
            "tls": { "key_file": "/nonexistent/key" },
        }))
        .check();
        let keys: Vec<_> = faults.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "url",
                "exchange",
                "routing_key",
                "declare.exchange_type",
                "declare.queues[0].name",
                "declare.queues[0].bindings",
                "declare.queues[1].bindings",
                "tls.key_file",
                "tls.cert_file",
            ]
        );
        assert!(faults.iter().all(|(_, message)| message.starts_with("expected") && !message.contains("canary")));
    }

    #[test]
    fn what_the_broker_would_drop_or_refuse_is_refused() {
        let keys = |json: serde_json::Value| {
            let mut whole = serde_json::json!({ "url": "amqp://h" });
            whole.as_object_mut().expect("a table").extend(json.as_object().expect("a table").clone());
            settings(whole).check().into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        let declare = |json: serde_json::Value| keys(serde_json::json!({ "declare": json }));
        assert_eq!(keys(serde_json::json!({ "exchange": "a\nb" })), ["exchange"]);
        assert!(keys(serde_json::json!({ "exchange": "amq.topic" })).is_empty());
        assert_eq!(keys(serde_json::json!({ "exchange": "amq.topic", "declare": true })), ["exchange"]);
        assert_eq!(declare(serde_json::json!({ "exchange_type": "topc" })), ["declare.exchange_type"]);
        assert!(declare(serde_json::json!({ "exchange_type": "x-random" })).is_empty());
        for name in ["q\r\n", "amq.q"] {
            let queues = serde_json::json!({ "queues": [{ "name": name }] });
            assert_eq!(declare(queues), ["declare.queues[0].name"], "{name:?}");
        }
        let queues = serde_json::json!({ "exchange_type": "direct", "queues": [{ "name": "q" }] });
        assert_eq!(declare(queues), ["declare.queues[0].bindings"]);
    }

    #[test]
    fn urls_are_parsed_and_never_echoed() {
        for wrong in [
            "",
            "canary",
            "http://canary@h",
            "amqp://canary:x@",
            "amqp://u:canary@h:99999",
            "amqp://u:canary@h?heartbeat=0",
            "amqp://u:can@ary#1@h/v",
            "amqp://u:can@ary@h/v",
            "amqp://u:can/ary@h/v",
            "amqp://u:can?ary@h/v",
            "amqp://u:can%ary@h/v",
            "amqp://u:canary@h/v\n",
            "amqp://u:canary@h:0",
            "amqp://u:canary@h?hartbeat=5",
            "amqp://u:canary@h?connection_timeout=0",
            "amqp://u:canary@h?frame_max=100",
        ] {
            let message = uri(wrong).expect_err(wrong);
            assert!(message.starts_with("expected amqp://") && !message.contains("canary"), "{message}");
        }
        for (text, vhost) in [("amqp://h", "/"), ("amqp://h/", "/"), ("amqp://h/%2f", "/"), ("amqp://h/v", "v")] {
            assert_eq!(uri(text).expect("a uri").vhost, vhost, "{text}");
        }
        for (text, host) in
            [("amqp://u:p@[2001:db8::1]:5672/v", "2001:db8::1"), ("amqp://[::1]", "::1"), ("amqp://h", "h")]
        {
            assert_eq!(uri(text).expect("a uri").authority.host, host, "{text}");
        }
        assert_eq!(uri("amqp://h").expect("a uri").query.heartbeat, Some(10));
        assert_eq!(uri("amqp://h?heartbeat=3").expect("a uri").query.heartbeat, Some(3));
    }

    #[test]
    fn what_is_shown_hides_the_url_and_can_be_read_back() {
        let json = serde_json::json!({ "url": "amqp://me:canary@h", "declare": { "queues": [{ "name": "q" }] } });
        let shown = serde_json::to_value(settings(json)).expect("json");
        assert!(!shown.to_string().contains("canary"));
        assert_eq!(shown["declare"]["queues"][0]["type"], "quorum");
        assert!(serde_json::from_value::<Settings>(shown).is_ok());
    }
}
