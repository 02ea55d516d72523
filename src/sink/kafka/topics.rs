//! Topics: the look at those that are known ahead, and their creation, if that is allowed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
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
use super::errors::{creating, failure, reason};
use super::run;
use super::settings::CreateTopics;
use crate::domain::template::{Template, Values};
use crate::sink::{About, Failure};

/// For one answer about topics.
const ANSWER: Duration = Duration::from_secs(5);
/// What `{object}` is for everything that Sendbird documents.
const DOCUMENTED: [&str; 2] = ["direct_call", "room"];
/// What `{object}` is for the rest.
const REST: &str = "other";

/// What ends when a topic exists; all who publish to it wait for the same.
type Creation = Shared<BoxFuture<'static, Result<(), Failure>>>;

pub(super) struct Topics {
    config: ClientConfig,
    create: Option<CreateTopics>,
    /// What this connection has created, found, or is creating.
    existing: Mutex<HashMap<String, Creation>>,
}

impl Topics {
    pub(super) fn new(config: ClientConfig, create: Option<CreateTopics>) -> Self {
        Self { config, create, existing: Mutex::default() }
    }

    /// Creates what is missing, or says once that it is, as far as the topics are known ahead.
    pub(super) async fn check_topics(
        &self,
        sink: &str,
        producer: &Producer,
        template: &Template,
    ) -> Result<(), Failure> {
        // A topic for the rest may never be needed, so its absence is no news.
        let rest = self.create.as_ref().map(|_| REST);
        for topic in known(template, DOCUMENTED.into_iter().chain(rest)) {
            if self.create.is_some() {
                match self.ensure(producer, &topic).await {
                    Err(Failure::Retry(About::Target(_), fault)) => {
                        tracing::warn!(sink, detail = fault.detail, "cannot create a topic; its events wait");
                    }
                    result => result?,
                }
            } else if !exists(producer.handle(), &topic).await? {
                tracing::warn!(sink, topic, "topic does not exist; its events wait until it is created");
            }
        }
        Ok(())
    }

    /// Creates a topic that this connection has not seen yet, if that is allowed. Holds up nobody but those who publish
    /// to this topic.
    pub(super) async fn ensure(&self, producer: &Producer, topic: &str) -> Result<(), Failure> {
        let Some(create) = &self.create else { return Ok(()) };
        let creation = self
            .existing()
            .entry(topic.to_owned())
            .or_insert_with(|| {
                create_missing(producer.handle(), self.config.clone(), create.clone(), topic.to_owned())
                    .boxed()
                    .shared()
            })
            .clone();
        let created = creation.clone().await;
        if created.is_err() {
            // Unless somebody has begun to recreate it.
            let mut existing = self.existing();
            if existing.get(topic).is_some_and(|other| other.ptr_eq(&creation)) {
                existing.remove(topic);
            }
        }
        created
    }

    /// The topic is gone, and may be created when somebody publishes to it.
    pub(super) fn forget(&self, topic: &str) {
        self.existing().remove(topic);
    }

    fn existing(&self) -> MutexGuard<'_, HashMap<String, Creation>> {
        self.existing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The topics that the template can give, where it depends on nothing but the object.
fn known<'a>(template: &Template, objects: impl Iterator<Item = &'a str>) -> Vec<String> {
    if ["verb", "key", "category", "application_id"].into_iter().any(|name| template.uses(name)) {
        return Vec::new();
    }
    let render = |object| template.render(&Values { object, verb: "", key: "", category: "", application_id: "" });
    let mut topics: Vec<_> = objects.map(render).collect();
    topics.dedup();
    topics
}

async fn create_missing(
    producer: Option<FutureProducer<Events>>,
    config: ClientConfig,
    create: CreateTopics,
    topic: String,
) -> Result<(), Failure> {
    if !exists(producer, &topic).await? {
        let name = topic.clone();
        run(move || make(&config, &create, &name, Creating::Really)).await??;
        tracing::info!(topic, "created the topic");
    }
    Ok(())
}

async fn exists(producer: Option<FutureProducer<Events>>, topic: &str) -> Result<bool, Failure> {
    let topic = topic.to_owned();
    run(move || {
        let Some(producer) = producer else { return Ok(false) };
        // Not to be seen is not the same as missing.
        Ok(!matches!(topic_state(&producer, &topic)?, TopicState::Missing))
    })
    .await?
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::template::AddressKind;

    #[test]
    fn topics_are_known_when_only_the_object_varies() {
        let known = |text| known(&Template::parse(text, AddressKind::Topic).expect("template"), DOCUMENTED.into_iter());
        assert_eq!(known("c.{object}"), ["c.direct_call", "c.room"]);
        assert_eq!(known("c"), ["c"]);
        assert!(known("c.{object}.{verb}").is_empty());
    }
}
