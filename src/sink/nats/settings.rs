//! The settings of a NATS sink, their check, and what they mean to the client.

use async_nats::{ConnectOptions, ServerAddr};
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};

use crate::domain::secret::Secret;
use crate::domain::template::{AddressKind, Template};
use crate::domain::units::{Size, Span};
use crate::sink::settings::{Create, Faults, Tls, fault, template};
use crate::sink::{Failure, Reason};

/// Far below a server's `max_control_line` (4 KiB), which bounds a subject.
const LONGEST_SUBJECT: usize = 1024;
/// What the server gives a stream's name.
const LONGEST_STREAM: usize = 255;
/// The server refuses a shorter time, and takes none for its own default.
const SHORTEST_TIME: Span = Span::from_millis(100);
/// Below this a stream holds no event.
const SMALLEST_STREAM: Size = Size::kib(1);

/// Where and how to publish to JetStream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The servers of one cluster, each `nats://host:port` or `tls://host:port`; required.
    pub servers: Vec<String>,
    /// The stream that must take the events; default `SENDBIRD_CALLS`.
    pub stream: String,
    /// The subject, with placeholders; default `sendbird.calls.{object}.{verb}.{key}`.
    pub subject: String,
    /// The JetStream domain that the stream is in, where the servers reach it through a leaf node; default: the servers'
    /// own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The subjects of JetStream's API, where the bridge's account imports it under another name; not with `domain`;
    /// default `$JS.API`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_prefix: Option<String>,
    /// Where the servers' answers come to, for a user who may not subscribe to `_INBOX.>`; default `_INBOX`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbox_prefix: Option<String>,
    /// Whether to create a missing stream: `false`, `true` or a table; default `false`.
    pub create_stream: Create<CreateStream>,
    /// Who the bridge is; default: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// Encryption; present, even empty, means that it is required; default: as the servers ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            stream: "SENDBIRD_CALLS".into(),
            subject: "sendbird.calls.{object}.{verb}.{key}".into(),
            domain: None,
            api_prefix: None,
            inbox_prefix: None,
            create_stream: Create::Never,
            credentials: None,
            tls: None,
        }
    }
}

/// How to create a missing stream. It takes all subjects of `subject` and keeps events by limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CreateStream {
    /// How many servers keep each event, 1 to 5; default 1.
    pub replicas: u8,
    /// Where events are kept: `file` or `memory`; default `file`.
    pub storage: Storage,
    /// How long events are kept, a duration; default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// How many bytes are kept; a full stream then refuses events, and they wait in the journal;
    /// default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Size>,
    /// How long the stream knows an id and drops a second copy, a duration; default `1h`.
    pub duplicate_window: Span,
}

impl Default for CreateStream {
    fn default() -> Self {
        Self {
            replicas: 1,
            storage: Storage::File,
            max_age: None,
            max_bytes: None,
            duplicate_window: Span::from_secs(3600),
        }
    }
}

/// Where a stream keeps events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// On disk.
    #[default]
    File,
    /// In memory: gone when the servers stop.
    Memory,
}

/// Who the bridge is to the server; exactly one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Credentials {
    /// A user's name, with `password`; default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The user's password, with `username`; default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// A token; default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// The seed of a user's nkey, `SU...`; default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey_seed: Option<Secret>,
    /// The text of a credentials file (user JWT and seed), usually given as `creds_file`; default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds: Option<Secret>,
}

impl Settings {
    /// All faults: the key relative to the sink, and what is wrong.
    pub fn check(&self) -> Faults {
        self.parse().err().unwrap_or_default()
    }

    /// The parts that need parsing.
    pub(super) fn parse(&self) -> Result<(Vec<ServerAddr>, Template), Faults> {
        let mut faults = Faults::new();
        if self.servers.is_empty() {
            faults.push(fault("servers", "expected at least one nats://host:port or tls://host:port, but found none"));
        }
        let mut servers = Vec::new();
        for (index, text) in self.servers.iter().enumerate() {
            match server(text) {
                Ok(address) => servers.push(address),
                Err(message) => faults.push(fault(format!("servers[{index}]"), message)),
            }
        }
        if self.stream.is_empty() || self.stream.contains(['.', '*', '>', '/', '\\']) || !printable(&self.stream) {
            let message =
                format!("expected a stream's name without dots, wildcards and spaces, but found {:?}", self.stream);
            faults.push(fault("stream", message));
        } else if self.stream.len() > LONGEST_STREAM {
            let length = self.stream.len();
            faults.push(fault("stream", format!("expected at most {LONGEST_STREAM} bytes, but found {length}")));
        }
        let subject = template("subject", &self.subject, AddressKind::Subject, LONGEST_SUBJECT);
        let subject = subject.map_err(|fault| faults.push(fault)).ok();
        faults.extend(self.check_prefixes());
        if let Some(create) = self.create_stream.as_option() {
            faults.extend(create.check());
            let mut tokens = self.subject.split('.');
            if tokens.next().is_some_and(|first| first.contains('{')) && tokens.next().is_some() {
                // Such a stream would also take the subjects of the server and of replies, and the server refuses it.
                let message =
                    "expected a first token without a placeholder because create_stream is set, but found one";
                faults.push(fault("subject", message));
            }
        }
        faults.extend(self.credentials.iter().flat_map(Credentials::check));
        faults.extend(self.tls.iter().flat_map(Tls::check));
        match subject {
            Some(subject) if faults.is_empty() => Ok((servers, subject)),
            _ => Err(faults),
        }
    }

    /// Who the bridge is to the servers, in words.
    pub(super) fn user(&self) -> String {
        match &self.credentials {
            Some(Credentials { username: Some(name), .. }) => format!("user \"{name}\""),
            Some(Credentials { token: Some(_), .. }) => "the user of credentials.token".into(),
            Some(Credentials { nkey_seed: Some(_), .. }) => "the user of credentials.nkey_seed".into(),
            Some(Credentials { creds: Some(_), .. }) => "the user of credentials.creds".into(),
            Some(_) | None => "a user without credentials".into(),
        }
    }

    fn check_prefixes(&self) -> Faults {
        let mut faults = Faults::new();
        let given = [
            ("domain", &self.domain, "a name without dots, wildcards and spaces", false),
            ("api_prefix", &self.api_prefix, "a subject without wildcards and spaces", true),
            ("inbox_prefix", &self.inbox_prefix, "a subject without wildcards and spaces", true),
        ];
        for (key, value, expected, dots) in given {
            let Some(text) = value else { continue };
            let is_token = |token: &str| !token.is_empty() && !token.contains(['*', '>']) && printable(token);
            if !text.split('.').all(is_token) || (text.contains('.') && !dots) {
                faults.push(fault(key, format!("expected {expected}, but found {text:?}")));
            }
        }
        if self.domain.is_some() && self.api_prefix.is_some() {
            faults.push(fault("api_prefix", "expected either domain or api_prefix, but found both"));
        }
        faults
    }

    /// What the subjects of JetStream's API begin with.
    pub(super) fn api_prefix(&self) -> String {
        match (&self.domain, &self.api_prefix) {
            (Some(domain), _) => format!("$JS.{domain}.API"),
            (None, Some(prefix)) => prefix.clone(),
            (None, None) => "$JS.API".to_owned(),
        }
    }

    /// Adds the prefix of inboxes, credentials and TLS to the client's options.
    pub(super) fn apply(&self, mut options: ConnectOptions) -> Result<ConnectOptions, Failure> {
        if let Some(prefix) = &self.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        if let Some(tls) = &self.tls {
            options = options.require_tls(true);
            if let Some(ca_file) = &tls.ca_file {
                options = options.add_root_certificates(ca_file.clone());
            }
            if let (Some(cert_file), Some(key_file)) = (&tls.cert_file, &tls.key_file) {
                options = options.add_client_certificate(cert_file.clone(), key_file.clone());
            }
        }
        let Some(credentials) = &self.credentials else { return Ok(options) };
        Ok(match credentials {
            Credentials { username: Some(name), password: Some(password), .. } => {
                options.user_and_password(name.clone(), password.expose().to_owned())
            }
            Credentials { token: Some(token), .. } => options.token(token.expose().to_owned()),
            Credentials { nkey_seed: Some(seed), .. } => options.nkey(seed.expose().to_owned()),
            Credentials { creds: Some(creds), .. } => options.credentials(&lines(creds)).map_err(|_unechoed| {
                Failure::every_event(Reason::NotAuthorized, "expected a user JWT and a seed in credentials.creds")
            })?,
            _ => options,
        })
    }
}

impl CreateStream {
    fn check(&self) -> Faults {
        let mut faults = Faults::new();
        if !(1..=5).contains(&self.replicas) {
            let message = format!("expected 1 to 5, but found {}", self.replicas);
            faults.push(fault("create_stream.replicas", message));
        }
        if self.duplicate_window < SHORTEST_TIME {
            let message = format!("expected at least {SHORTEST_TIME}, but found {}", self.duplicate_window);
            faults.push(fault("create_stream.duplicate_window", message));
        }
        if let Some(size) = self.max_bytes.filter(|size| *size < SMALLEST_STREAM) {
            let message = format!("expected at least {SMALLEST_STREAM}, but found {size}");
            faults.push(fault("create_stream.max_bytes", message));
        }
        match self.max_age {
            // The server refuses such a stream.
            Some(age) if age < self.duplicate_window => {
                let message = format!("expected at most max_age ({age}), but found {}", self.duplicate_window);
                faults.push(fault("create_stream.duplicate_window", message));
            }
            _ => {}
        }
        faults
    }
}

impl Credentials {
    fn check(&self) -> Faults {
        let mut faults = Faults::new();
        if self.username.is_some() != self.password.is_some() {
            faults.push(fault("credentials", "expected username and password together, but found one alone"));
        }
        let user = self.username.is_some() || self.password.is_some();
        let kinds = [user, self.token.is_some(), self.nkey_seed.is_some(), self.creds.is_some()];
        let count = kinds.into_iter().filter(|given| *given).count();
        if count != 1 {
            let message =
                format!("expected one of username and password, token, nkey_seed or creds, but found {count}");
            faults.push(fault("credentials", message));
        }
        let is_users =
            |seed: &str| KeyPair::from_seed(seed).is_ok_and(|pair| pair.key_pair_type() == KeyPairType::User);
        if self.nkey_seed.as_ref().is_some_and(|seed| !is_users(seed.expose())) {
            faults.push(fault(
                "credentials.nkey_seed",
                "expected the seed of a user's nkey (SU...), but found something else",
            ));
        }
        if self.creds.as_ref().is_some_and(|creds| ConnectOptions::new().credentials(&lines(creds)).is_err()) {
            let message = "expected a user's JWT and seed, as in a credentials file, but found something else";
            faults.push(fault("credentials.creds", message));
        }
        faults
    }
}

/// The text of a credentials file. The client wants a line break at its end, which a secret from a file has lost.
fn lines(creds: &Secret) -> String {
    format!("{}\n", creds.expose())
}

fn printable(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Never echoes the text: it may hold a password.
fn server(text: &str) -> Result<ServerAddr, String> {
    const EXPECTED: &str = "expected nats://host:port or tls://host:port, but found";
    let Some((scheme, rest)) = text.split_once("://") else { return Err(format!("{EXPECTED} no scheme")) };
    if !matches!(scheme, "nats" | "tls") {
        return Err(format!("{EXPECTED} another scheme"));
    }
    let address: ServerAddr = text.parse().map_err(|_unechoed| format!("{EXPECTED} something else"))?;
    if address.has_user_pass() || address.password().is_some() {
        return Err(format!("{EXPECTED} a name or password in it; they belong in credentials"));
    }
    if address.host().is_empty() {
        return Err(format!("{EXPECTED} no host"));
    }
    // The client ignores them without a word.
    if rest.trim_end_matches('/').contains(|c: char| "/?#,\\".contains(c) || c.is_whitespace()) {
        return Err(format!("{EXPECTED} more than a host and a port"));
    }
    if address.port() == 0 {
        return Err(format!("{EXPECTED} port 0"));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: serde_json::Value) -> Settings {
        serde_json::from_value(json).expect("settings")
    }

    #[test]
    fn the_least_is_a_server() {
        assert_eq!(settings(serde_json::json!({ "servers": ["nats://a:4222", "tls://b"] })).check(), Faults::new());
        assert_eq!(Settings::default().check()[0].0, "servers");
    }

    #[test]
    fn all_faults_are_reported_and_no_secret_is() {
        let faults = settings(serde_json::json!({
            "servers": ["a:4222", "http://a", "nats://me:canary@a:1"],
            "stream": "a.b",
            "subject": "a..{key}",
            "create_stream": { "replicas": 0, "max_age": "1m" },
            "credentials": { "username": "me", "token": "canary" },
            "tls": { "cert_file": "/nonexistent/cert" },
        }))
        .check();
        let keys: Vec<_> = faults.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "servers[0]",
                "servers[1]",
                "servers[2]",
                "stream",
                "subject",
                "create_stream.replicas",
                "create_stream.duplicate_window",
                "credentials",
                "credentials",
                "tls.cert_file",
                "tls.key_file",
            ]
        );
        assert!(faults.iter().all(|(_, message)| message.starts_with("expected") && !message.contains("canary")));
    }

    #[test]
    fn prefixes_are_subjects_and_at_most_one_is_of_the_api() {
        let faults = |key: &str, value: &str| {
            let mut json = serde_json::json!({ "servers": ["nats://a"] });
            json[key] = value.into();
            settings(json).check().into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        for (key, right) in [("domain", "hub"), ("api_prefix", "$JS.hub.API"), ("inbox_prefix", "_INBOX.bridge")] {
            assert_eq!(faults(key, right), Vec::<String>::new(), "{key}");
            for wrong in ["", "a b", "a.*", "a.>", "a.", ".a", "a..b", "ä"] {
                assert_eq!(faults(key, wrong), [key], "{key} = {wrong:?}");
            }
        }
        assert_eq!(faults("domain", "a.b"), ["domain"]);
        let both = serde_json::json!({ "servers": ["nats://a"], "domain": "hub", "api_prefix": "a" });
        assert_eq!(settings(both).check()[0].0, "api_prefix");
    }

    #[test]
    fn what_the_server_would_refuse_or_read_differently_is_refused() {
        let keys = |json: serde_json::Value| {
            let mut whole = serde_json::json!({ "servers": ["nats://a:4222"] });
            whole.as_object_mut().expect("a table").extend(json.as_object().expect("a table").clone());
            let faults = settings(whole).check();
            assert!(faults.iter().all(|(_, message)| !message.contains("canary")), "{faults:?}");
            faults.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        for wrong in
            ["nats://a:4222/canary", "nats://a?canary", "nats://a:0", "nats://a#canary", "nats://a,b", "nats:// a"]
        {
            assert_eq!(keys(serde_json::json!({ "servers": [wrong] })), ["servers[0]"], "{wrong}");
        }
        assert!(keys(serde_json::json!({ "servers": ["nats://a:4222/", "tls://[::1]:4222"] })).is_empty());
        assert_eq!(keys(serde_json::json!({ "stream": "S".repeat(256) })), ["stream"]);
        let any = serde_json::json!({ "subject": "{object}.{key}" });
        assert!(keys(any).is_empty(), "somebody may have made such a stream");
        let any = serde_json::json!({ "subject": "{object}.{key}", "create_stream": true });
        assert_eq!(keys(any), ["subject"]);
        let zeros = serde_json::json!({ "create_stream": { "max_bytes": "0B", "duplicate_window": "0s" } });
        assert_eq!(keys(zeros), ["create_stream.duplicate_window", "create_stream.max_bytes"]);
        let seed = |pair: KeyPair| pair.seed().expect("a seed");
        for (seed, fine) in
            [(seed(KeyPair::new_user()), true), (seed(KeyPair::new_account()), false), ("canary".into(), false)]
        {
            let found = keys(serde_json::json!({ "credentials": { "nkey_seed": seed } }));
            assert_eq!(found.is_empty(), fine, "{found:?}");
        }
        assert_eq!(keys(serde_json::json!({ "credentials": { "creds": "canary" } })), ["credentials.creds"]);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{}\n\
             ------END USER NKEY SEED------",
            seed(KeyPair::new_user())
        );
        let found = keys(serde_json::json!({ "credentials": { "creds": text } }));
        assert!(found.is_empty(), "also without a line break at the end: {found:?}");
    }

    #[test]
    fn what_is_shown_hides_secrets_and_can_be_read_back() {
        let json =
            serde_json::json!({ "servers": ["nats://a"], "create_stream": true, "credentials": { "token": "canary" } });
        let shown = serde_json::to_value(settings(json)).expect("json");
        assert!(!shown.to_string().contains("canary"));
        assert_eq!(shown["create_stream"]["duplicate_window"], "1h");
        assert!(serde_json::from_value::<Settings>(shown).is_ok());
        assert!(serde_json::from_value::<Settings>(serde_json::json!({ "server": [] })).is_err());
    }
}
