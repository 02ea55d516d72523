//! The brokers as their own users see them: a place for each test, and what has arrived there.
//!
//! Which ones there are, the environment says (`tests/run` sets it up). A test never shares a topic, an exchange or a
//! stream with another, so that all run side by side; one that stops a broker starts its own.

#[cfg(feature = "kafka")]
pub(crate) mod kafka;
#[cfg(feature = "nats")]
pub(crate) mod nats;
pub(crate) mod operate;
#[cfg(feature = "rabbitmq")]
pub(crate) mod rabbitmq;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
pub(crate) mod secured;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::bridge::Config;
use super::oracle::Arrived;
use super::proxy::Proxy;

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    #[cfg(feature = "kafka")]
    Kafka,
    #[cfg(feature = "rabbitmq")]
    RabbitMq,
    #[cfg(feature = "nats")]
    Nats,
}

impl Kind {
    /// The type of the sink, and the name that `tests/brokers/broker` knows.
    pub(crate) fn label(self) -> &'static str {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka => "kafka",
            #[cfg(feature = "rabbitmq")]
            Self::RabbitMq => "rabbitmq",
            #[cfg(feature = "nats")]
            Self::Nats => "nats",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka => "TEST_KAFKA_BROKERS",
            #[cfg(feature = "rabbitmq")]
            Self::RabbitMq => "TEST_RABBITMQ_URL",
            #[cfg(feature = "nats")]
            Self::Nats => "TEST_NATS_URL",
        }
    }

    /// What the CloudEvents attributes are called in the headers of a message.
    pub(crate) fn prefix(self, format: &str) -> &'static str {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka => "ce_",
            #[cfg(feature = "rabbitmq")]
            Self::RabbitMq if format == "binary" => "cloudEvents:",
            #[cfg(feature = "rabbitmq")]
            Self::RabbitMq => "ce_",
            #[cfg(feature = "nats")]
            Self::Nats => "ce-",
        }
    }

    /// A place on the broker that all tests share. Nothing is made there yet.
    pub(crate) fn place(self) -> Place {
        Place::new(self, variable(self.variable()))
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "expected the variable {name} to name a broker, but found nothing: run this through tests/run, or see \
             `tests/run --help` for brokers of your own; tests/run core does what needs none"
        )
    })
}

/// A name that no other test has.
pub(crate) fn unique(what: &str) -> String {
    format!("it-{what}-{:016x}", fastrand::u64(..))
}

/// One test's topics, exchange and queue, or stream.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    /// Of a cluster several, joined by commas.
    pub(crate) address: String,
    /// The prefix of the topics; the name of exchange and queue; the stream and the first token of its subjects.
    pub(crate) name: String,
    /// How many nodes keep it.
    pub(crate) replicas: u8,
}

/// What a place refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Messages larger than this.
    pub(crate) bytes: Option<i32>,
    /// Everything about rooms (RabbitMQ: no queue is bound for it).
    pub(crate) no_rooms: bool,
    /// More messages than these (Kafka: has no such limit).
    pub(crate) messages: Option<u32>,
}

/// A message as its consumer sees it.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The topic, or the exchange, or the stream.
    pub(crate) destination: String,
    /// The record's key, the routing key or the subject.
    pub(crate) key: String,
    /// What the broker's own consumers tell a repetition by.
    pub(crate) id: String,
    pub(crate) content_type: String,
    /// The headers, but for the content type and NATS' own.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a message of JSON")
    }

    /// For the oracle; of a structured message.
    pub(crate) fn arrived(&self) -> Arrived {
        let envelope = self.json();
        assert_eq!(envelope["id"], self.id);
        Arrived::envelope(&envelope)
    }
}

impl Place {
    pub(crate) fn new(kind: Kind, address: String) -> Self {
        Self { kind, address, name: unique(kind.label()), replicas: 1 }
    }

    /// The address of this place behind a proxy.
    pub(crate) fn through(&self, proxy: &Proxy) -> String {
        match self.address.rsplit_once("127.0.0.1:") {
            Some((before, port)) => {
                format!("{before}{}{}", proxy.address(), port.trim_start_matches(|c: char| c.is_ascii_digit()))
            }
            None => panic!("expected a loopback address, but found {}", self.address),
        }
    }

    /// Adds a sink under this name that publishes here.
    pub(crate) fn sink(&self, config: Config, name: &str) -> Config {
        let addresses = format!("['{}']", self.address.replace(',', "', '"));
        let keys = match self.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => {
                vec![("brokers", addresses), ("topic", format!("'{}.{{object}}'", self.name))]
            }
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => vec![("url", format!("'{}'", self.address)), ("exchange", format!("'{}'", self.name))],
            #[cfg(feature = "nats")]
            Kind::Nats => vec![
                ("servers", addresses),
                ("stream", format!("'{}'", self.name)),
                ("subject", format!("'{}.{{object}}.{{verb}}.{{key}}'", self.name)),
            ],
        };
        let config = config.set(&format!("sinks.{name}.type"), &format!("'{}'", self.kind.label()));
        keys.iter().fold(config, |config, (key, value)| config.set(&format!("sinks.{name}.{key}"), value))
    }

    /// The same, and the bridge is to make what is missing there.
    pub(crate) fn making_sink(&self, config: Config, name: &str) -> Config {
        let (key, value) = match self.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => ("create_topics", "{ partitions = 3 }".to_owned()),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => ("declare", format!("{{ queues = [{{ name = '{}' }}] }}", self.name)),
            #[cfg(feature = "nats")]
            Kind::Nats => ("create_stream", "true".to_owned()),
        };
        self.sink(config, name).set(&format!("sinks.{name}.{key}"), &value)
    }

    /// Makes the topics, the exchange with its queue, or the stream.
    pub(crate) fn make(&self, limits: Limits) {
        match self.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => kafka::make(self, limits),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => rabbitmq::make(self, limits),
            #[cfg(feature = "nats")]
            Kind::Nats => nats::make(self, limits),
        }
    }

    pub(crate) fn made(self) -> Self {
        self.make(Limits::default());
        self
    }

    /// Everything that has arrived here, that of one key in its order. To be called once: RabbitMQ gives it away.
    pub(crate) fn consume(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        self.consume_each(|message| messages.push(message));
        messages
    }

    /// The same, one after the other, for more than is to be kept.
    pub(crate) fn consume_each(&self, take: impl FnMut(Message)) {
        match self.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => kafka::consume(self, take),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => rabbitmq::consume(self, take),
            #[cfg(feature = "nats")]
            Kind::Nats => nats::consume(self, take),
        }
    }

    /// How many messages are here now. Takes none of them.
    pub(crate) fn count(&self) -> u64 {
        match self.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => kafka::count(self),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => rabbitmq::count(self),
            #[cfg(feature = "nats")]
            Kind::Nats => nats::count(self),
        }
    }

    /// The key of an event's message: object, verb and encoded key of the event.
    pub(crate) fn key(&self, object: &str, verb: &str, key: &str) -> String {
        match self.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => key.to_owned(),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => format!("{object}.{verb}.{key}"),
            #[cfg(feature = "nats")]
            Kind::Nats => format!("{}.{object}.{verb}.{key}", self.name),
        }
    }

    /// Where an event about this object goes.
    pub(crate) fn destination(&self, object: &str) -> String {
        match self.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => format!("{}.{object}", self.name),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => self.name.clone(),
            #[cfg(feature = "nats")]
            Kind::Nats => self.name.clone(),
        }
    }
}

/// A broker that belongs to one test, which may stop it. Stopped when dropped.
pub(crate) struct Own {
    pub(crate) kind: Kind,
    program: String,
    dir: TempDir,
}

impl Own {
    /// Starts a broker.
    pub(crate) fn start(kind: Kind) -> Self {
        let own = Self::stopped(kind);
        own.run("start");
        own
    }

    /// Starts a broker, and a proxy on a way to it that a client stays on. The broker is reached directly as well.
    pub(crate) fn behind_proxy(kind: Kind) -> (Self, Proxy) {
        let (own, proxy) = (Self::stopped(kind), Proxy::listen());
        own.run_with("start", &[("TEST_KAFKA_PROXY", proxy.address().to_string())]);
        let port = own.run(if kind.label() == "kafka" { "proxied-port" } else { "port" });
        proxy.connect_to(format!("127.0.0.1:{}", port.trim()).parse().unwrap());
        (own, proxy)
    }

    fn stopped(kind: Kind) -> Self {
        let dir = tempfile::Builder::new().prefix("sendbird-bridge-broker-").tempdir().unwrap();
        Self { kind, program: variable("TEST_BROKERS_BIN"), dir }
    }

    /// Runs a command of `tests/brokers/broker` on it: start, stop, kill, pause, resume, address.
    pub(crate) fn run(&self, command: &str) -> String {
        self.run_with(command, &[])
    }

    fn run_with(&self, command: &str, environment: &[(&str, String)]) -> String {
        let output = run(&self.program, command, self.kind, self.dir.path(), environment);
        output.unwrap_or_else(|error| panic!("{command} {}: {error}", self.kind.label()))
    }

    /// A place on it.
    pub(crate) fn place(&self) -> Place {
        Place::new(self.kind, self.run("address").trim().to_owned())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = run(&self.program, "kill", self.kind, self.dir.path(), &[]) {
            eprintln!("a broker could not be ended: {error}");
        }
    }
}

fn run(program: &str, command: &str, kind: Kind, dir: &Path, environment: &[(&str, String)]) -> Result<String, String> {
    let environment = environment.iter().map(|(name, value)| (name, value));
    let output = Command::new(program).args([command, kind.label()]).arg(dir).envs(environment).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs a client's future to its end.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(future)
}
