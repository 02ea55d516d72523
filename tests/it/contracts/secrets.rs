//! Secrets stay secret: a canary sits in every key that holds one, and is looked for in all that the program says, shows
//! and writes.

use std::fs;
use std::path::Path;

use crate::support::bridge::{Config, signed_by};
use crate::support::eventually;
use crate::support::http::Response;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
use crate::support::metrics::Metrics;
use crate::support::verbose_bridge::{LOG_EVERYTHING, VerboseBridge};

/// In every canary, and in nothing else.
const CANARY: &str = "canary";

/// A seed is checked, so it can be no canary; it is looked for as it is. Nobody's: made for this test.
const SEED: &str = "SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4";

/// The keys of the core that hold a secret.
const CORE: [(&str, &str); 5] = [
    ("access.api_tokens", "canary-token"),
    ("access.path_secret", "canary-path"),
    ("access.header.value", "canary-header"),
    ("admin.token", "canary-admin"),
    ("applications.B-2.api_tokens", "canary-application"),
];

/// The keys of sinks that hold one. A NATS server takes one kind of credentials, so there is a sink for each.
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
const SINKS: [(&str, &str); 6] = [
    ("sinks.kafka.sasl.password", "canary-sasl"),
    ("sinks.rabbitmq.url", "amqp://user:canary-url@127.0.0.1:1/%2f"),
    ("sinks.nats-user.credentials.password", "canary-password"),
    ("sinks.nats-token.credentials.token", "canary-nats-token"),
    ("sinks.nats-nkey.credentials.nkey_seed", SEED),
    (
        "sinks.nats-creds.credentials.creds",
        "-----BEGIN NATS USER JWT-----\ncanary-creds\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n\
         SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4\n------END USER NKEY SEED------\n",
    ),
];
#[cfg(not(all(feature = "kafka", feature = "rabbitmq", feature = "nats")))]
const SINKS: [(&str, &str); 0] = [];

/// Whether this build has all of them.
const HAS_SINKS: bool = cfg!(all(feature = "kafka", feature = "rabbitmq", feature = "nats"));

/// A delivery whose TURN credentials are to be redacted.
const BODY: &[u8] = br#"{"category":"direct_call:dial","occurred_at":1,"application_id":"A","direct_call":{"call_id":"a"},"turn_credential":{"password":"canary-turn"}}"#;

/// Every secret is set, and no broker listens. In files, or in the configuration itself.
fn config(in_files: bool) -> Config {
    let mut config = Config::new().unset("access.api_tokens").set("access.header.name", "'x-key'");
    for name in SINKS.iter().filter_map(|(key, _)| key.split('.').nth(1)) {
        let kind = name.split('-').next().unwrap();
        config = config.set(&format!("sinks.{name}.type"), &format!("'{kind}'"));
        config = match kind {
            "kafka" => config.set("sinks.kafka.brokers", "['127.0.0.1:1']").set("sinks.kafka.sasl.username", "'user'"),
            "nats" => config.set(&format!("sinks.{name}.servers"), "['nats://127.0.0.1:1']"),
            _ => config,
        };
    }
    if HAS_SINKS {
        config = config.set("sinks.nats-user.credentials.username", "'user'");
    }
    for (key, canary) in CORE.iter().chain(&SINKS) {
        config = if in_files {
            let file = config.dir().join(key);
            fs::write(&file, format!("{canary}\n")).unwrap();
            config.set(&format!("{key}_file"), &format!("'{}'", file.display()))
        } else if key.ends_with(".api_tokens") {
            config.set(key, &format!("['{canary}']"))
        } else {
            config.set(key, &format!("{canary:?}"))
        };
    }
    config
}

#[track_caller]
fn assert_silent(what: &str, text: &str) {
    let line = text.lines().find(|line| line.contains(CANARY) || line.contains(SEED));
    assert!(line.is_none(), "{what} shows a secret: {line:?}");
}

/// Runs a command, which must end so, and gives what it printed.
#[track_caller]
fn run(config: &Config, code: i32, arguments: &[&str]) -> String {
    let ended = config.clone().variable("RUST_LOG", LOG_EVERYTHING).process(arguments).wait();
    let said = format!("{}\n{}", ended.stdout(), ended.stderr());
    assert_silent(&arguments.join(" "), &said);
    assert_eq!(ended.code(), Some(code), "{arguments:?}: {said}");
    said
}

#[test]
fn a_right_configuration_is_shown_without_them() {
    for in_files in [false, true] {
        let config = config(in_files);
        let shown = run(&config, 0, &["config", "show"]);
        assert_eq!(shown.matches("<hidden>").count(), CORE.len() + SINKS.len(), "{shown}");
        run(&config, 0, &["config", "check"]);
    }
    if HAS_SINKS {
        let said = run(&config(false), 1, &["config", "check", "--connect"]);
        assert_eq!(said.matches("fault: connection: ").count(), SINKS.len(), "{said}");
    }
}

#[test]
fn a_wrong_configuration_is_judged_without_them() {
    let core = [
        ("access.api_tokens", "'canary'"),
        ("access.api_tokens", "[['canary']]"),
        ("access.path_secret", "'canary/path'"),
        ("access.path_secret", "['canary']"),
        ("access.header", "'x-key: canary'"),
        ("access.header", "['canary']"),
        ("access.header", "{ name = 'x-key', value = { canary = 1 } }"),
        ("access.headers", "'canary'"),
        ("access.path_secret", "'canary"),
        ("access.path_secret", "canary"),
        ("admin.token", "{ token = 'canary' }"),
        ("admin", "'canary'"),
        ("applications", "'canary'"),
        ("applications.B-2", "'canary'"),
        ("applications.B-2.api_tokens", "'canary'"),
        ("applications.B-2.api_tokens", "[['canary']]"),
        ("sinks", "'canary'"),
        ("sinks.x", "'canary'"),
    ];
    let sinks = [
        ("sinks.kafka.sasl", "'user:canary'"),
        ("sinks.kafka.sasl.password", "['canary']"),
        ("sinks.kafka.brokers", "['kafka://user:canary@a:1']"),
        ("sinks.kafka.brokers", "'canary:canary@a'"),
        ("sinks.kafka.client.'sasl.password'", "'canary'"),
        ("sinks.kafka.client.'ssl.key.password'", "'canary'"),
        ("sinks.kafka.password", "'canary'"),
        ("sinks.rabbitmq.url", "'http://user:canary@a'"),
        ("sinks.rabbitmq.url", "'amqp://user:canary@a:canary'"),
        ("sinks.rabbitmq.url", "'user:canary@a'"),
        ("sinks.rabbitmq.url", "['canary']"),
        ("sinks.nats-user.servers", "['nats://user:canary@a:1']"),
        ("sinks.nats-user.servers", "'nats://user:canary@a:1'"),
        ("sinks.nats-user.credentials", "'canary'"),
        ("sinks.nats-user.credentials.token", "'canary'"),
        ("sinks.nats-creds.credentials.creds", "['canary']"),
    ];
    let sinks = sinks.iter().filter(|_| HAS_SINKS);
    for (key, value) in core.iter().chain(sinks) {
        // What is below or above the key would make the file no TOML at all.
        let mut wrong = CORE.iter().chain(&SINKS).fold(config(false), |config, (known, _)| {
            if known.starts_with(key) { config.unset(known) } else { config }
        });
        for part in ["access.header.name", "sinks.kafka.sasl.username", "sinks.nats-user.credentials.username"] {
            wrong = if part.starts_with(key) { wrong.unset(part) } else { wrong };
        }
        if *key == "admin" {
            wrong = wrong.unset("admin.listen");
        }
        if *key == "sinks" {
            wrong = Config::new();
        }
        let said = run(&wrong.set(key, value), 64, &["config", "check"]);
        assert!(said.contains("fault"), "{key} = {value}: {said}");
    }
    for key in ["-----BEGIN PRIVATE KEY-----\ncanary!\n-----END PRIVATE KEY-----\n", "canary"] {
        let config = Config::new();
        let file = config.dir().join("key");
        fs::write(&file, key).unwrap();
        let path = format!("'{}'", file.display());
        run(&config.set("server.tls.cert_file", &path).set("server.tls.key_file", &path), 64, &["config", "check"]);
    }
}

impl VerboseBridge {
    fn deliver(&self, secret: &str, key: &str, token: &str) -> Response {
        let request = signed_by(token, BODY).to(&format!("/webhooks/sendbird/{secret}"));
        request.header("x-key", key).send(self.webhook)
    }

    /// Delivers and asks, rightly and wrongly. No answer tells a secret, also not a wrong one.
    fn use_it(&self) {
        let mut answers = vec![
            self.deliver("canary-path", "canary-header", "canary-token"),
            self.deliver("canary-path", "canary-header", "canary-token"),
            self.deliver("canary-path", "canary-header", "canary-wrong"),
            self.deliver("canary-path", "canary-wrong", "canary-token"),
            self.deliver("canary-wrong", "canary-header", "canary-token"),
        ];
        for (path, status) in [("/status", 200), ("/metrics", 200), ("/events?follow=false", 200), ("/canary", 404)] {
            answers.push(self.ask(path, "canary-admin"));
            assert_eq!(answers.last().unwrap().status, status, "{path}");
            answers.push(self.ask(path, "canary-wrong"));
        }
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 200, 401, 401, 404, 200, 401, 200, 200, 200, 401, 404, 401]);
        for answer in answers {
            assert_silent("an answer", &format!("{:?}\n{}", answer.headers, answer.text()));
        }
    }

    /// Waits until each sink has tried and failed.
    fn sinks_failed(&self) {
        eventually("every sink has failed", || {
            let status = self.ask("/status", "canary-admin").json();
            status["sinks"].as_array().unwrap().iter().all(|sink| sink["last_failure"].is_string())
        });
        for path in ["/status", "/metrics"] {
            assert_silent(path, &self.ask(path, "canary-admin").text());
        }
    }

    /// Changes files: one rightly, one wrongly, one of those that are read at the start alone.
    fn renew(&self) {
        for (key, text, logged) in [
            ("admin.token", "canary-renewed", "using the renewed secret"),
            ("access.path_secret", "canary/renewed", "cannot use the renewed secret"),
            ("sinks.nats-token.credentials.token", "canary-renewed", "restart the bridge to use it"),
        ] {
            let file = self.config.dir().join(key);
            if !file.exists() {
                continue;
            }
            fs::write(file, text).unwrap();
            eventually("the change is logged", || {
                self.process.stderr().so_far().iter().any(|line| line.contains(key) && line.contains(logged))
            });
        }
        assert_eq!(self.ask("/status", "canary-renewed").status, 200);
        // The commands that follow read it too.
        fs::write(self.config.dir().join("access.path_secret"), "canary-fixed").unwrap();
    }

    /// What the operator's commands print, the log, and the files of the journal.
    fn end(self) {
        for arguments in [
            &["journal", "stats"][..],
            &["journal", "verify"],
            &["dead-letters", "list"],
            &["dead-letters", "list", "--output", "json"],
        ] {
            run(&self.config, 0, arguments);
        }
        files_are_silent(&self.config.dir().join("journal"));
        self.process.terminate();
        let ended = self.process.wait();
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
        // Without the brokers' clients nobody has anything to say at these levels.
        let is_verbose = ended.stderr.iter().any(|line| line.contains("TRACE") || line.contains("DEBUG"));
        assert!(is_verbose || !HAS_SINKS, "a verbose log");
        assert_silent("the log", &ended.stderr());
        assert_silent("standard output", &ended.stdout());
        files_are_silent(&self.config.dir().join("journal"));
    }
}

fn files_are_silent(dir: &Path) {
    let files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 1, "{files:?}");
    for file in files {
        let bytes = fs::read(&file).unwrap_or_default();
        let found = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!found(CANARY) && !found(SEED), "{} holds a secret", file.display());
    }
}

#[test]
fn a_running_bridge_never_tells_them() {
    for (format, in_files) in [("json", false), ("text", true)] {
        let bridge = VerboseBridge::start(config(in_files), format);
        bridge.use_it();
        bridge.sinks_failed();
        if in_files {
            bridge.renew();
        }
        bridge.end();
    }
}

/// Clients say more where a broker answers: one takes any token, the others refuse.
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
#[test]
fn nor_does_one_whose_brokers_answer() {
    use crate::support::broker::Kind;

    let (kafka, rabbitmq, nats) = (Kind::Kafka.place(), Kind::RabbitMq.place(), Kind::Nats.place());
    let (host, vhost) = rabbitmq.address.rsplit_once('@').and_then(|(_, rest)| rest.split_once('/')).unwrap();
    let servers = format!("['{}']", nats.address);
    let mut config = config(false)
        .set("sinks.kafka.brokers", &format!("['{}']", kafka.address))
        .set("sinks.rabbitmq.url", &format!("'amqp://guest:canary-url@{host}/{vhost}'"));
    for name in ["user", "token", "nkey", "creds"] {
        config = config.set(&format!("sinks.nats-{name}.servers"), &servers);
    }
    // An exchange without a queue, so that there are dead letters.
    let bridge = VerboseBridge::start(rabbitmq.sink(config, "good").set("sinks.good.declare", "true"), "json");
    bridge.use_it();
    let dead = || Metrics::parse(bridge.ask("/metrics", "").text());
    eventually("it is set aside", || dead().value("sendbird_bridge_sink_dead_letters", &[("sink", "good")]) == 1.0);
    eventually("the others have failed", || {
        let status = bridge.ask("/status", "canary-admin").json();
        let failed = |sink: &&serde_json::Value| sink["name"] != "good" && sink["last_failure"].is_string();
        status["sinks"].as_array().unwrap().iter().filter(failed).count() == SINKS.len()
    });
    let list = run(&bridge.config, 0, &["dead-letters", "list", "--output", "json"]);
    let dead_letter =
        list.lines().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).expect("a dead letter");
    run(&bridge.config, 0, &["dead-letters", "show", dead_letter["id"].as_str().unwrap()]);
    bridge.end();
}
