//! The properties that every client of the library gets, and whether those of an operator go with them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::producer::{BaseProducer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext, message::DeliveryResult};

/// What the bridge sets, and nobody else may.
pub(super) const OURS: &[(&str, &str)] = &[
    // The promises.
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("max.in.flight", "5"),
    // The default is not Java's, and two producers of one topic must agree.
    ("partitioner", "murmur2_random"),
    // Without a limit. The default gives up after five minutes and drops the record, although it may have been written.
    ("message.timeout.ms", "0"),
    ("allow.auto.create.topics", "false"),
    // The journal is the queue; this only has to hold the pipeline's window.
    ("queue.buffering.max.messages", "10000"),
    ("queue.buffering.max.kbytes", "65536"),
    // The only way to learn that a broker is back before the next record.
    ("statistics.interval.ms", "5000"),
    ("log.connection.close", "false"),
];
/// What an operator may set differently.
pub(super) const DEFAULTS: &[(&str, &str)] = &[
    // A little patience makes batches, which cost the broker less.
    ("linger.ms", "2"),
    // So that the broker and the topic decide how large is too large. Above 100 MiB a broker cuts the
    // connection without a word.
    ("message.max.bytes", "67108864"),
    // A topic that nobody has seen is reported as missing after this, and the pipeline tries again.
    ("topic.metadata.propagation.max.ms", "2000"),
    // A broker that neither answers nor hangs up is given up sooner than after the default minute.
    ("socket.timeout.ms", "20000"),
    ("request.timeout.ms", "15000"),
    ("socket.keepalive.enable", "true"),
    ("reconnect.backoff.ms", "100"),
    ("reconnect.backoff.max.ms", "2000"),
];

/// All of them, with an operator's between.
pub(super) fn with(client: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.extend(DEFAULTS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    config.extend(client.iter().map(|(key, value)| (key.clone(), value.clone())));
    config.extend(OURS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    config
}

/// What the library has against properties that are right one by one: two that contradict each other, or one that a
/// producer ignores. Makes a client, which knows no broker and so connects to none.
pub(super) fn check(client: &BTreeMap<String, String>) -> Option<String> {
    // Before the first client, as in `Kafka::new`.
    openssl_sys::init();
    let mut config = with(client);
    config.set_log_level(RDKafkaLogLevel::Info);
    let warnings = Warnings::default();
    match BaseProducer::from_config_and_context(&config, warnings.clone()) {
        // What it logs waits in a queue.
        Ok(producer) => producer.poll(Duration::from_millis(20)),
        Err(error) => return Some(format!("expected properties that go together, but found: {error}")),
    }
    let warnings = warnings.0.lock().unwrap_or_else(PoisonError::into_inner);
    let ignored = warnings.iter().find(|warning| warning.contains("is a consumer property"))?;
    Some(format!("expected properties of a producer, but found: {ignored}"))
}

/// Keeps what the library says of a configuration.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl ClientContext for Warnings {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "CONFWARN" {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message.to_owned());
        }
    }
}

impl ProducerContext for Warnings {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}
