//! The client library's producer, with its callbacks, its waits and its end.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::{Client, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::future_producer::FutureProducerContext;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _, PurgeConfig};
use rdkafka::statistics::Statistics;
use rdkafka::{ClientConfig, ClientContext};

use super::destination::{Destination, Partitions};
use super::errors::{connecting, creating, failure, unreachable};
use super::record::Record;
use super::token::Tokens;
use crate::sink::{Failure, Fault, Reason};

/// For a first answer of the cluster.
const CONNECT: Duration = Duration::from_secs(8);

/// A producer that never blocks an async thread when it goes.
pub(super) struct Producer {
    inner: Option<FutureProducer<Events>>,
    state: Arc<ClientState>,
}

/// What the callbacks of the client have reported.
#[derive(Debug, Default)]
pub(super) struct ClientState {
    reachable: AtomicBool,
    partitions: Partitions,
    last_error: Mutex<Option<(RDKafkaErrorCode, String)>>,
    cluster: Mutex<ClusterState>,
}

/// What the client knows of the brokers that the cluster has named.
#[derive(Clone, Debug, Default)]
pub(super) struct ClusterState {
    /// Each by its address and number, such as `kafka-1.example.com:9092/1`, and whether it is connected.
    pub(super) brokers: BTreeMap<String, bool>,
    /// Whether the brokers have let the producer in: they have given it an id.
    pub(super) has_producer_id: bool,
    /// The last error of each broker, by the same name.
    pub(super) errors: BTreeMap<String, (RDKafkaErrorCode, String)>,
}

impl ClusterState {
    /// How many brokers have their last error kept.
    const ERRORS: usize = 1024;

    fn update(&mut self, statistics: &Statistics) {
        let named = statistics.brokers.values().filter(|broker| broker.nodeid >= 0);
        let is_up = |state: &str| matches!(state, "UP" | "UPDATE");
        self.brokers = named.map(|broker| (without_protocol(&broker.name).into(), is_up(&broker.state))).collect();
        self.has_producer_id = statistics.eos.as_ref().is_some_and(|eos| eos.idemp_state == "Assigned");
    }

    /// Errors about a broker begin with its name.
    fn record_error(&mut self, code: RDKafkaErrorCode, text: &str) {
        if let Some((broker, _)) = text.split_once(": ")
            && (self.errors.len() < Self::ERRORS || self.errors.contains_key(broker))
        {
            self.errors.insert(without_protocol(broker).into(), (code, text.into()));
        }
    }
}

/// The name of a broker, without the `sasl_ssl://` before it.
fn without_protocol(broker: &str) -> &str {
    broker.split_once("://").map_or(broker, |(_, name)| name)
}

/// The client's callbacks.
#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    state: Arc<ClientState>,
    tokens: Option<Arc<Tokens>>,
}

impl ClientContext for Events {
    /// Only a client of OAUTHBEARER asks.
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let tokens = self.tokens.as_ref().ok_or("expected a source of tokens, but found none")?;
        let token = tokens.current()?;
        // What the brokers said of the one before is no longer of interest.
        *self.state.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(OAuthToken {
            token: token.text.expose().to_owned(),
            // Whose it is the brokers read in the token itself.
            principal_name: env!("CARGO_PKG_NAME").to_owned(),
            lifetime_ms: token.until_ms,
        })
    }

    /// Debug for all levels: what matters comes back as an error, and a cluster that is down would be
    /// reported at error level for every attempt of every broker.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", severity = ?level, facility, "{message}");
    }

    fn stats(&self, statistics: Statistics) {
        if statistics.brokers.values().any(|broker| broker.state == "UP") {
            self.state.reachable.store(true, Ordering::Relaxed);
        }
        self.state.partitions.update(&statistics);
        self.state.cluster.lock().unwrap_or_else(PoisonError::into_inner).update(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        if code == RDKafkaErrorCode::AllBrokersDown {
            self.state.reachable.store(false, Ordering::Relaxed);
        } else {
            *self.state.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some((code, reason.to_owned()));
        }
        self.state.cluster.lock().unwrap_or_else(PoisonError::into_inner).record_error(code, reason);
        tracing::debug!(target: "librdkafka", ?code, "{reason}");
    }
}

impl Producer {
    /// A producer, not yet connected. Reads certificates and starts threads.
    pub(super) fn new(config: &ClientConfig, tokens: Option<Arc<Tokens>>) -> Result<Self, Failure> {
        let events = Events { state: Arc::default(), tokens };
        let state = Arc::clone(&events.state);
        let inner = config.create_with_context(events).map_err(|error| creating(&error))?;
        Ok(Self { inner: Some(inner), state })
    }

    /// A producer whose cluster has answered. Blocks for seconds.
    pub(super) fn connect(config: &ClientConfig, tokens: Option<Arc<Tokens>>) -> Result<Self, Failure> {
        // The client would say so only after its time.
        if let Some(Err(none)) = tokens.as_ref().map(|tokens| tokens.current()) {
            return Err(Failure::every_event(Reason::NotAuthorized, none));
        }
        let producer = Self::new(config, tokens)?;
        let answered = producer.client().is_some_and(|client| client.fetch_cluster_id(CONNECT).is_some());
        if !answered {
            let last = producer.state.last_error.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(connecting(last, config.get("bootstrap.servers").unwrap_or_default(), CONNECT));
        }
        producer.state.reachable.store(true, Ordering::Relaxed);
        Ok(producer)
    }

    /// Hands the record over and waits for the report on it. A failure comes with the error that it was made of.
    pub(super) async fn send(&self, record: &Record) -> Result<(), (KafkaError, Failure)> {
        let (error, partition) = match self.deliver(record).await {
            Ok(()) => {
                self.state.reachable.store(true, Ordering::Relaxed);
                self.state.partitions.record_outcome(&record.topic, false);
                return Ok(());
            }
            Err(failed) => failed,
        };
        let failure = failure(&error, self.fatal(), &Destination { topic: &record.topic, partition });
        let topic = Destination::topic(&record.topic).about_topic();
        if matches!(&failure, Failure::Retry(about, _) if *about == topic) {
            self.state.partitions.record_outcome(&record.topic, true);
        }
        Err((error, failure))
    }

    async fn deliver(&self, record: &Record) -> Result<(), (KafkaError, Option<i32>)> {
        let inner = self.inner.as_ref().ok_or((KafkaError::Canceled, None))?;
        let message = FutureRecord {
            topic: &record.topic,
            partition: None,
            payload: Some(record.payload.as_ref()),
            key: Some(record.key.as_str()),
            timestamp: record.timestamp,
            headers: Some(record.headers.clone()),
        };
        // Not `send`: that waits and retries by itself when the queue is full, and so changes the order.
        let report = inner.send_result::<str, [u8]>(message).map_err(|(error, _)| (error, None))?;
        match report.await {
            Ok(Ok(_)) => Ok(()),
            // A record that was given up on before it had a partition has a negative one.
            Ok(Err((error, message))) => Err((error, Some(message.partition()).filter(|number| *number >= 0))),
            Err(_canceled) => Err((KafkaError::Canceled, None)),
        }
    }

    /// Where a record of this topic with this key would go.
    pub(super) fn destination<'a>(&self, topic: &'a str, key: &str) -> Destination<'a> {
        self.state.partitions.destination(topic, key)
    }

    /// The partition of a record of this topic with this key, as soon as the topic's partitions are counted.
    pub(super) fn counted_destination<'a>(&self, topic: &'a str, key: &str) -> Option<Destination<'a>> {
        self.state.partitions.counted_destination(topic, key)
    }

    pub(super) fn reachable(&self) -> bool {
        self.state.reachable.load(Ordering::Relaxed)
    }

    /// What is known of the brokers by now.
    pub(super) fn cluster(&self) -> ClusterState {
        self.state.cluster.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why no broker is reached; the client's own words have the address.
    pub(super) fn unreachable(&self) -> Fault {
        let last = self.state.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        unreachable(last.as_ref())
    }

    /// Why this producer can't produce any more, if it can't.
    pub(super) fn fatal(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.client()?.fatal_error()
    }

    pub(super) fn client(&self) -> Option<&Client<FutureProducerContext<Events>>> {
        self.inner.as_ref().map(FutureProducer::client)
    }

    /// Waits until all is reported, at most for `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        if let Some(inner) = &self.inner {
            // A time-out is all that can go wrong, and the reports tell what was left.
            let _timed_out = inner.flush(limit);
        }
    }

    /// Gives up on all that is unreported; each record is then reported as given up on.
    pub(super) fn purge(&self) {
        if let Some(inner) = &self.inner {
            inner.purge(PurgeConfig::default().queue().inflight());
        }
    }

    /// A second handle, for a blocking call elsewhere.
    pub(super) fn handle(&self) -> Option<FutureProducer<Events>> {
        self.inner.clone()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let inner = self.inner.take();
        // The last handle waits for the client's threads, up to a second. If there can't be a thread, it
        // waits here.
        let _detached = std::thread::Builder::new().name("kafka-end".into()).spawn(move || drop(inner));
    }
}
