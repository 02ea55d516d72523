//! Publishing to Kafka.
//!
//! Promises: published means that all in-sync replicas have the record; the client's own resends never double
//! or reorder records (idempotent producer); the partition of a key is the one that Java clients choose.
//!
//! A publish waits for as long as the client keeps trying: it knows the record's place and its sequence
//! number, and would lose both by giving up after a time. What the client gives up on is tried again by the
//! pipeline; a producer that failed for good ends as `Fatal`, and the next connection has a new one.
//!
//! Leaves to others: order by key, retries and back-off (the pipeline); topics and their configuration (whoever
//! runs the cluster, unless `create_topics` is set).

mod check;
mod client;
mod clock_regression;
mod contract;
mod defaults;
mod destination;
mod durability;
mod errors;
mod properties;
mod record;
mod reserved;
mod sasl;
mod settings;
mod token;
mod topics;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rdkafka::ClientConfig;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

pub use sasl::{Mechanism, Sasl};
pub use settings::{CreateTopics, Settings};

use super::settings::Faults;
use super::{About, Ack, Failure, Fault, Finding, Reason, Sink, Target};
use crate::domain::clock::Clock;
use crate::domain::envelope::{Format, View};
use crate::domain::template::{KnownValues, Template};
use check::Check;
use client::Producer;
use clock_regression::ClockRegression;
use durability::Expected;
use errors::of_the_whole_batch;
use record::Record;
use sasl::TokenEndpoint;
use token::Tokens;
use topics::{Creating, Topics};

/// How long brokers may refuse a token before the connection is given up: longer than what passes by itself, as where one
/// token follows another too soon for them.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// How many records may be left with the client without an answer, as for a partition without a leader. Together with
/// the window they are half of what its queue holds.
const UNANSWERED: usize = 4096;

/// A Kafka cluster.
#[derive(Debug)]
pub struct Kafka {
    name: String,
    config: ClientConfig,
    topic: Template,
    tokens: Option<TokenEndpoint>,
    create: Option<CreateTopics>,
    expected: Expected,
    format: Format,
    /// What is known ahead of the events.
    known: Vec<KnownValues>,
    /// Who the bridge is to the brokers, in words.
    user: String,
    clock: Clock,
}

impl Kafka {
    /// Takes settings that have no faults. No event has more than `largest` bytes.
    ///
    /// # Errors
    /// All faults of the settings.
    pub fn new(
        name: &str,
        settings: Settings,
        format: Format,
        known: Vec<KnownValues>,
        largest: u64,
        clock: Clock,
    ) -> Result<Self, Faults> {
        let (topic, tokens) = settings.parse()?;
        // Before the first client: OpenSSL then does not tidy up at exit, while threads of clients may still be in it. Once
        // a bridge with clients in failing handshakes ended by a signal; this is the likely cause, not a proven one.
        openssl_sys::init();
        let config = properties::all(name, &settings);
        let create = settings.create_topics.as_option().cloned();
        let expected = Expected { largest, allow_compacted: settings.allow_compacted };
        Ok(Self {
            name: name.to_owned(),
            config,
            topic,
            tokens,
            create,
            expected,
            format,
            known,
            user: settings.user(),
            clock,
        })
    }
}

impl Sink for Kafka {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn super::Connection>, Failure>> {
        async move {
            // The client library asks about topics over a connection of its own, which can use no token.
            let expected = self.tokens.is_none().then_some(self.expected);
            let topics = Topics::new(self.config.clone(), self.create.clone(), expected);
            let config = self.config.clone();
            // From before there is a client: its threads wait for times of the clock from the first moment on.
            let regression = ClockRegression::watch(self.clock.clone());
            let connecting = async {
                let tokens = self.tokens().await?;
                let given = tokens.clone();
                let producer = run(move || Producer::connect(&config, given)).await??;
                topics.check_topics(&self.name, &producer, &self.topic, &self.known).await?;
                Ok::<_, Failure>((producer, tokens))
            };
            let (producer, tokens) = tokio::select! {
                connected = connecting => connected.map_err(|failure| self.named(failure))?,
                () = regression.detected_by_polling() => return Err(Failure::Fatal(set_back())),
            };
            let (topic, clock) = (self.topic.clone(), self.clock.clone());
            let config = self.config.clone();
            let (unbatched_producer, refused_since) = (OnceCell::new(), Mutex::default());
            let user = self.user.clone();
            let shared =
                Shared { producer, unbatched_producer, config, tokens, refused_since, user, topics, regression };
            Ok(Box::new(Connection { shared: Arc::new(shared), topic, format: self.format, clock })
                as Box<dyn super::Connection>)
        }
        .boxed()
    }

    fn check(&self, create: bool) -> BoxFuture<'_, Vec<Finding>> {
        async move {
            let tokens = match self.tokens().await {
                Ok(tokens) => tokens,
                Err(failure) => return vec![Finding::Fault(self.named(failure).fault().clone())],
            };
            let check = Check {
                config: &self.config,
                tokens,
                user: &self.user,
                template: &self.topic,
                known: &self.known,
                create: self.create.as_ref(),
                expected: self.expected,
                creating: if create { Creating::Really } else { Creating::OnlyAsking },
            };
            check.run().await
        }
        .boxed()
    }
}

impl Kafka {
    /// The brokers that the settings name, and who the bridge is to them.
    fn named(&self, failure: Failure) -> Failure {
        // The client names the broker itself.
        failure.naming_connection("", &self.user)
    }

    /// Where this connection has its tokens from, if it needs any.
    async fn tokens(&self) -> Result<Option<Arc<Tokens>>, Failure> {
        let Some(source) = &self.tokens else { return Ok(None) };
        let tokens = Tokens::open(&self.name, source, self.clock.clone())
            .await
            .map_err(|fault| Failure::Retry(About::EveryEvent, fault))?;
        Ok(Some(Arc::new(tokens)))
    }
}

/// The client's calls wait for the network and for its threads, so they run where that is allowed.
async fn run<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    spawn_blocking(call).await.map_err(|error| Failure::fatal(Reason::Other, error))
}

struct Connection {
    shared: Arc<Shared>,
    topic: Template,
    format: Format,
    clock: Clock,
}

struct Shared {
    producer: Producer,
    /// Sends each record in a batch of its own; created on first use.
    unbatched_producer: OnceCell<Producer>,
    config: ClientConfig,
    tokens: Option<Arc<Tokens>>,
    refused_since: Mutex<Option<Instant>>,
    /// Who the bridge is to the brokers, in words.
    user: String,
    topics: Topics,
    regression: ClockRegression,
}

impl Connection {
    /// Builds the record, and publishes it as soon as the future is polled.
    fn begin(&self, event: &View<'_>, unbatched: bool) -> BoxFuture<'static, Result<Ack, Failure>> {
        let record = Record::build(event, self.format, self.topic.render(&event.values()), self.clock.now_ms());
        let shared = Arc::clone(&self.shared);
        // The periodic check runs once a second; the clock may have been set back since.
        shared.regression.check();
        async move {
            tokio::select! {
                result = shared.publish(&record, unbatched) => match result {
                    Ok(()) => Ok(Ack::default()),
                    Err(failure) => Err(failure.naming_connection("", &shared.user)),
                },
                () = shared.regression.detected() => Err(Failure::Fatal(set_back())),
            }
        }
        .boxed()
    }
}

impl super::Connection for Connection {
    fn publish(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>> {
        self.begin(event, false)
    }

    fn publish_unbatched(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>> {
        self.begin(event, true)
    }

    fn target(&self, event: &View<'_>) -> Target {
        self.shared.producer.destination(&self.topic.render(&event.values()), event.key()).target()
    }

    fn silent_target(&self, event: &View<'_>) -> Option<Target> {
        let topic = self.topic.render(&event.values());
        self.shared.producer.counted_destination(&topic, event.key()).map(|destination| destination.target())
    }

    fn unanswered(&self) -> usize {
        UNANSWERED
    }

    fn state(&self) -> Result<(), Failure> {
        self.shared.regression.check();
        if self.shared.regression.is_detected() {
            return Err(Failure::Fatal(set_back()));
        }
        if let Some(error) = self.shared.tokens.as_ref().and_then(|tokens| tokens.missing_token_error()) {
            return Err(Failure::every_event(Reason::NotAuthorized, error));
        }
        if self.shared.producer.reachable() {
            self.shared.refused_since.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Ok(());
        }
        let failure = Failure::Fatal(self.shared.producer.unreachable()).naming_connection("", &self.shared.user);
        let fault = failure.fault().clone();
        if self.shared.is_refused(&fault) {
            Err(Failure::Fatal(fault))
        } else {
            Err(Failure::Retry(About::EveryEvent, fault))
        }
    }

    fn warnings(&self) -> Vec<String> {
        self.shared.topics.warnings()
    }

    fn close(self: Box<Self>, limit: Duration) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        async move {
            let (until, flushed) = (Instant::now() + limit, Arc::clone(&shared));
            let flushing = run(move || {
                for producer in flushed.producers() {
                    producer.flush(until.saturating_duration_since(Instant::now()));
                }
            });
            // Only a courtesy: what is unacknowledged after it has an unknown outcome, as after a crash. The client counts
            // its limit by the clock, and would wait on if that is set back.
            let courtesy = async {
                tokio::select! {
                    biased;
                    () = shared.regression.detected_by_polling() => {}
                    _best_effort = flushing => {}
                }
            };
            let _too_long = timeout(limit, courtesy).await;
            drop(self);
        }
        .boxed()
    }
}

fn set_back() -> Fault {
    let detail = "the machine's clock was set back; reconnecting, because the client may wait for the old time";
    Fault { reason: Reason::Connection, detail: detail.into() }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Lets go of the publishes that still wait; each holds the producer.
        self.shared.producers().for_each(Producer::purge);
    }
}

impl Shared {
    fn producers(&self) -> impl Iterator<Item = &Producer> {
        std::iter::once(&self.producer).chain(self.unbatched_producer.get())
    }

    /// Whether the brokers have refused a token for so long that another connection, with another token, is better. The
    /// client would show this one until it is old.
    fn is_refused(&self, fault: &Fault) -> bool {
        let mut since = self.refused_since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.tokens.is_none() || fault.reason != Reason::NotAuthorized {
            *since = None;
            return false;
        }
        since.get_or_insert_with(Instant::now).elapsed() >= REFUSED_FOR
    }

    async fn publish(&self, record: &Record, unbatched: bool) -> Result<(), Failure> {
        self.topics.ensure(&self.producer, &record.topic).await?;
        let failure = if unbatched {
            self.unbatched_producer().await?.send(record).await
        } else {
            match self.producer.send(record).await {
                // The broker judges a batch as a whole, and one bad record must not condemn its neighbours.
                Err((error, _)) if of_the_whole_batch(&error) => self.unbatched_producer().await?.send(record).await,
                result => result,
            }
        };
        let Err((_, failure)) = failure else { return Ok(()) };
        if failure.fault().reason == Reason::NotFound {
            self.topics.forget(&record.topic);
        }
        Err(failure)
    }

    async fn unbatched_producer(&self) -> Result<&Producer, Failure> {
        self.unbatched_producer
            .get_or_try_init(|| async {
                let (config, tokens) = (properties::unbatched(&self.config), self.tokens.clone());
                run(move || Producer::new(&config, tokens)).await?
            })
            .await
    }
}
