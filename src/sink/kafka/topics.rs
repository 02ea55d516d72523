//! Topics: whether they exist and keep what is published, and their creation, if that is allowed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{FutureProducer, Producer as _};
use tokio::runtime::Handle;

use super::client::{Events, Producer};
use super::destination::Destination;
use super::durability::{Expected, TopicSettings, Warnings, describe, refusal, risks};
use super::errors::{creating, failure, reason};
use super::run;
use super::settings::CreateTopics;
use crate::domain::template::{KnownValues, Template};
use crate::sink::{About, Failure, Reason};

/// For one answer about topics.
const ANSWER: Duration = Duration::from_secs(5);

/// What ends when a topic is ready to be published to; all who publish to it wait for the same.
type Preparation = Shared<BoxFuture<'static, Result<(), Failure>>>;

pub(super) struct Topics {
    cluster: Cluster,
    /// What this connection has found fit, or is looking at or creating.
    ready: Mutex<HashMap<String, Preparation>>,
}

/// How topics are looked at and created.
#[derive(Clone)]
struct Cluster {
    config: ClientConfig,
    create: Option<CreateTopics>,
    /// What the settings of topics are compared with; `None` if they are not asked for.
    expected: Option<Expected>,
    warnings: Arc<Mutex<Warnings>>,
}

impl Topics {
    pub(super) fn new(config: ClientConfig, create: Option<CreateTopics>, expected: Option<Expected>) -> Self {
        let cluster = Cluster { config, create, expected, warnings: Arc::default() };
        Self { cluster, ready: Mutex::default() }
    }

    /// What may lose events of the topics that were looked at.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.cluster.warnings().texts()
    }

    /// Looks at the topics that are known ahead, and creates those that are missing or says once that they are.
    pub(super) async fn check_topics(
        &self,
        sink: &str,
        producer: &Producer,
        template: &Template,
        known: &[KnownValues],
    ) -> Result<(), Failure> {
        // Each with whether events of a documented category go there.
        let mut topics: BTreeMap<String, bool> = BTreeMap::new();
        for known in known {
            let (topic, unknown) = template.render_known(known, "*");
            if unknown.is_empty() {
                *topics.entry(topic).or_default() |= known.category.is_some();
            }
        }
        let (cluster, handle) = (self.cluster.clone(), producer.handle());
        let (topics, is_needed): (Vec<String>, Vec<bool>) = topics.into_iter().unzip();
        let prepared = run(move || {
            let prepared = cluster.prepare(handle.as_ref(), &topics);
            topics.into_iter().zip(prepared).collect::<Vec<_>>()
        });
        for ((topic, prepared), is_needed) in prepared.await?.into_iter().zip(is_needed) {
            match prepared {
                Ok(Prepared::Fit) => {
                    self.ready().insert(topic, async { Ok(()) }.boxed().shared());
                }
                Ok(Prepared::Missing) if is_needed => {
                    tracing::warn!(sink, topic, "topic does not exist; its events wait until it is created");
                }
                // A topic for what is not documented may never be needed, so its absence is no news.
                Ok(Prepared::Missing) => {}
                Err(Failure::Retry(About::Target(_), fault)) => {
                    tracing::warn!(sink, detail = fault.detail, "topic cannot be published to; its events wait");
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Looks at a topic that this connection has not seen yet, and creates it if that is allowed. Holds up nobody but those
    /// who publish to this topic.
    pub(super) async fn ensure(&self, producer: &Producer, topic: &str) -> Result<(), Failure> {
        let preparation = self
            .ready()
            .entry(topic.to_owned())
            .or_insert_with(|| self.cluster.clone().prepare_one(producer.handle(), topic.to_owned()).boxed().shared())
            .clone();
        // Most have been looked at long ago.
        let prepared = match preparation.peek() {
            Some(prepared) => prepared.clone(),
            None => preparation.clone().await,
        };
        if prepared.is_err() {
            // Unless somebody has begun to look at it again.
            let mut ready = self.ready();
            if ready.get(topic).is_some_and(|other| other.ptr_eq(&preparation)) {
                ready.remove(topic);
            }
        }
        prepared
    }

    /// The topic is gone, and is looked at when somebody publishes to it.
    pub(super) fn forget(&self, topic: &str) {
        self.ready().remove(topic);
    }

    fn ready(&self) -> MutexGuard<'_, HashMap<String, Preparation>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a topic that was looked at.
#[derive(Clone, Copy)]
enum Prepared {
    /// It exists, and nothing speaks against it.
    Fit,
    /// It does not exist, and is not to be created.
    Missing,
}

impl Cluster {
    fn warnings(&self) -> MutexGuard<'_, Warnings> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn prepare_one(self, producer: Option<FutureProducer<Events>>, topic: String) -> Result<(), Failure> {
        let prepared = run(move || self.prepare(producer.as_ref(), &[topic])).await?;
        // What is missing the broker says of the record.
        prepared.into_iter().next().map_or(Ok(()), |prepared| prepared.map(|_| ()))
    }

    /// Looks at topics, creates what is missing if that is allowed, and compares their settings. Blocks for seconds.
    fn prepare(&self, producer: Option<&FutureProducer<Events>>, topics: &[String]) -> Vec<Result<Prepared, Failure>> {
        let Some(producer) = producer else { return Vec::new() };
        let states: Vec<_> = topics.iter().map(|topic| self.exists(producer, topic)).collect();
        let existing: Vec<String> = topics
            .iter()
            .zip(&states)
            .filter(|(_, state)| matches!(state, Ok(Some(_))))
            .map(|(topic, _)| topic.clone())
            .collect();
        let settings = self.settings(&existing);
        let outcomes = topics.iter().zip(states).map(|(topic, state)| {
            let Some(replicas) = state? else { return Ok(Prepared::Missing) };
            let (Some(expected), Some(settings)) = (self.expected, settings.get(topic)) else {
                return Ok(Prepared::Fit);
            };
            self.warnings().set(topic, risks(settings, replicas, expected));
            match refusal(settings, expected) {
                None => Ok(Prepared::Fit),
                Some(why) => {
                    let destination = Destination::topic(topic);
                    let refused = Failure::retry(destination.about_topic(), Reason::Invalid, why);
                    Err(refused.naming(&destination.target()))
                }
            }
        });
        outcomes.collect()
    }

    /// On how many brokers each partition of the topic is, or nothing if it does not exist.
    fn exists(&self, producer: &FutureProducer<Events>, topic: &str) -> Result<Option<usize>, Failure> {
        let mut state = topic_state(producer, topic)?;
        if state == TopicState::Missing {
            let Some(create) = &self.create else { return Ok(None) };
            make(&self.config, create, topic, Creating::Really)?;
            tracing::info!(topic, "created the topic");
            state = topic_state(producer, topic)?;
        }
        match state {
            TopicState::Exists { replicas, .. } => Ok(Some(replicas)),
            // Not to be seen, or not yet, is not the same as missing; and nothing speaks against it.
            TopicState::Hidden(_) | TopicState::Missing => Ok(Some(usize::MAX)),
        }
    }

    /// The settings of these topics, as far as the cluster tells them.
    fn settings(&self, topics: &[String]) -> HashMap<String, TopicSettings> {
        if self.expected.is_none() || topics.is_empty() {
            return HashMap::new();
        }
        match describe(&self.config, topics) {
            Ok(described) => topics.iter().cloned().zip(described).collect(),
            Err(failure) => {
                tracing::debug!(detail = failure.fault().detail, "cannot read the settings of topics");
                HashMap::new()
            }
        }
    }
}

/// What the cluster says of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopicState {
    /// There is none of this name.
    Missing,
    /// The cluster does not describe it.
    Hidden(Code),
    /// It is there.
    Exists {
        /// On how many brokers each partition is, at least.
        replicas: usize,
        /// A partition without a leader, if there is one.
        leaderless: Option<i32>,
    },
}

/// Blocks for seconds.
pub(super) fn topic_state(producer: &FutureProducer<Events>, topic: &str) -> Result<TopicState, Failure> {
    let metadata = producer
        .client()
        .fetch_metadata(Some(topic), ANSWER)
        .map_err(|error| failure(&error, None, &Destination::topic(topic)))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(TopicState::Missing);
    };
    match found.error().map(Code::from) {
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(TopicState::Missing),
        // Some partition has none; the partitions say which.
        None | Some(Code::LeaderNotAvailable) => {
            let partitions = found.partitions();
            Ok(TopicState::Exists {
                replicas: partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
                leaderless: partitions.iter().find(|partition| partition.leader() < 0).map(|partition| partition.id()),
            })
        }
        Some(code) => Ok(TopicState::Hidden(code)),
    }
}

/// Whether the topic is really to be created, or the cluster is only asked whether it would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Creating {
    Really,
    OnlyAsking,
}

/// Blocks for seconds.
pub(super) fn make(
    config: &ClientConfig,
    create: &CreateTopics,
    topic: &str,
    purpose: Creating,
) -> Result<(), Failure> {
    let destination = Destination::topic(topic);
    let admin = AdminClient::from_config_and_context(config, Events::default()).map_err(|error| creating(&error))?;
    let new = NewTopic::new(
        topic,
        create.partitions.map_or(-1, i32::from),
        TopicReplication::Fixed(create.replication_factor.map_or(-1, i32::from)),
    );
    let options = AdminOptions::new()
        .request_timeout(Some(ANSWER))
        .operation_timeout(Some(ANSWER))
        .validate_only(purpose == Creating::OnlyAsking);
    let results = Handle::current().block_on(admin.create_topics([&new], &options));
    for result in results.map_err(|error| failure(&error, None, &destination))? {
        match result {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            // Whatever it is, other topics may exist.
            Err((_, code)) => {
                let failure = Failure::retry(destination.about_topic(), reason(code), format!("creating it: {code}"));
                return Err(failure.naming(&destination.target()));
            }
        }
    }
    Ok(())
}
