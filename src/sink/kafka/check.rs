//! `config check --connect`: asks the cluster, and changes nothing there.
//!
//! Each broker is connected to under the name that it advertises. Whether the user may write to a topic is answered to
//! nobody but a producer, so an empty record is produced with `acks=2`: a broker first looks whether the user may write,
//! and then refuses that number of acknowledgements, whatever the record.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::OwnedHeaders;
use tokio::time::{Instant, sleep};

use super::client::Producer;
use super::durability::{Expected, Warnings, describe, refusal, risks};
use super::errors::reason;
use super::record::Record;
use super::settings::CreateTopics;
use super::token::Tokens;
use super::topics::{Creating, TopicState, make, topic_state};
use super::{properties, run};
use crate::domain::template::{KnownValues, Template};
use crate::sink::{Failure, Finding, Reason};

/// For every broker to be connected to, and for the producer to get its id.
const CONNECT: Duration = Duration::from_secs(8);
/// Between two looks at what the client reports.
const POLL: Duration = Duration::from_millis(50);

/// What is to be asked.
pub(super) struct Check<'a> {
    pub(super) config: &'a ClientConfig,
    pub(super) tokens: Option<Arc<Tokens>>,
    /// Who the bridge is to the brokers, in words.
    pub(super) user: &'a str,
    pub(super) template: &'a Template,
    pub(super) known: &'a [KnownValues],
    pub(super) create: Option<&'a CreateTopics>,
    /// What the settings of topics are compared with.
    pub(super) expected: Expected,
    /// Whether what is missing is to be created now.
    pub(super) creating: Creating,
}

impl Check<'_> {
    pub(super) async fn run(&self) -> Vec<Finding> {
        let (config, tokens) = (properties::every_broker(self.config), self.tokens.clone());
        let connected = run(move || Producer::connect(&config, tokens)).await.and_then(|connected| connected);
        let producer = match connected {
            Ok(producer) => producer,
            Err(failure) => return vec![self.found(failure)],
        };
        let (topics, mut findings) = self.topics();
        findings.extend(self.brokers(&producer).await);
        let probe = self.probe().await;
        let of_topics = topics.iter().map(|topic| self.topic(&producer, probe.as_ref(), topic));
        let mut existing = Vec::new();
        for (topic, (replicas, found)) in topics.iter().zip(join_all(of_topics).await) {
            existing.extend(replicas.map(|replicas| (topic.clone(), replicas)));
            findings.extend(found);
        }
        findings.extend(self.durability(existing).await);
        findings.extend(probe.err().map(|failure| self.found(failure)));
        findings
    }

    /// The topics that are known ahead, and what is to be said of the others.
    fn topics(&self) -> (BTreeSet<String>, Vec<Finding>) {
        let mut topics = BTreeSet::new();
        let mut others: BTreeSet<(String, &str)> = BTreeSet::new();
        for known in self.known {
            let (topic, unknown) = self.template.render_known(known, "*");
            let first = ["application_id", "verb", "category"].into_iter().find(|name| unknown.contains(name));
            match first {
                None => {
                    topics.insert(topic);
                }
                Some(placeholder) => {
                    others.insert((topic, placeholder));
                }
            }
        }
        let findings = others.into_iter().map(|(topic, placeholder)| match placeholder {
            _ if self.create.is_some() => {
                Finding::WillCreate(format!("topics \"{topic}\", each when the first event goes there"))
            }
            "application_id" => Finding::fault(
                Reason::NotFound,
                format!("topics \"{topic}\": which there must be is not known; list the applications in access.applications"),
            ),
            _ => Finding::NotChecked(format!(
                "topics \"{topic}\" of categories that Sendbird does not document; until such a topic exists, its events wait"
            )),
        });
        (topics, findings.collect())
    }

    /// Waits until every broker is connected to and the producer has its id, and says what is not so in time.
    async fn brokers(&self, producer: &Producer) -> Vec<Finding> {
        let until = Instant::now() + CONNECT;
        let mut cluster = producer.cluster();
        let mut fatal = None;
        while Instant::now() < until {
            fatal = producer.fatal();
            let settled = cluster.has_producer_id || fatal.is_some();
            if settled && !cluster.brokers.is_empty() && cluster.brokers.values().all(|connected| *connected) {
                break;
            }
            sleep(POLL).await;
            cluster = producer.cluster();
        }
        let unreached = cluster.brokers.iter().filter(|(_, connected)| !**connected).map(|(broker, _)| {
            let (code, text) = cluster.errors.get(broker).cloned().unwrap_or_else(|| {
                (Code::BrokerTransportFailure, format!("{broker}: no connection within {CONNECT:?}"))
            });
            let fault = super::errors::said(code, &text);
            let detail = format!("a broker is not reached under the name that it advertises: {}", fault.detail);
            Finding::fault(fault.reason, detail)
        });
        let mut findings: Vec<Finding> = unreached.collect();
        match fatal {
            Some((code, text)) => {
                let detail = format!("{} may not produce: {text}", self.user);
                findings.push(Finding::fault(reason(code), detail));
            }
            // A broker that is not reached is reason enough.
            None if !cluster.has_producer_id && findings.is_empty() => {
                let detail = format!("the cluster has given the producer no id within {CONNECT:?}");
                findings.push(Finding::fault(Reason::Unavailable, detail));
            }
            None => {}
        }
        findings
    }

    /// A producer whose records are not stored.
    async fn probe(&self) -> Result<Producer, Failure> {
        let (config, tokens) = (properties::unstorable(self.config), self.tokens.clone());
        run(move || Producer::new(&config, tokens)).await.and_then(|made| made)
    }

    /// On how many brokers the topic is, if it exists, and what there is to be said of it.
    async fn topic(
        &self,
        producer: &Producer,
        probe: Result<&Producer, &Failure>,
        topic: &str,
    ) -> (Option<usize>, Vec<Finding>) {
        let (handle, name) = (producer.handle(), topic.to_owned());
        let state = run(move || handle.map_or(Ok(TopicState::Missing), |handle| topic_state(&handle, &name))).await;
        match state.and_then(|state| state) {
            Err(failure) => (None, vec![self.found(failure)]),
            Ok(TopicState::Hidden(code)) => {
                let detail = format!("topic \"{topic}\": {} may not describe it: {code}", self.user);
                (None, vec![Finding::fault(reason(code), detail)])
            }
            Ok(TopicState::Missing) => (None, vec![self.missing(topic).await]),
            Ok(TopicState::Exists { replicas, leaderless: Some(partition) }) => {
                let detail = format!("topic \"{topic}\" partition {partition} has no leader");
                (Some(replicas), vec![Finding::fault(Reason::Unavailable, detail)])
            }
            Ok(TopicState::Exists { replicas, leaderless: None }) => {
                let found = match probe {
                    Ok(probe) => self.may_write(probe, topic).await,
                    Err(_is_said_once) => None,
                };
                (Some(replicas), found.into_iter().collect())
            }
        }
    }

    /// What the acknowledgements of these topics, each on so many brokers, survive.
    async fn durability(&self, topics: Vec<(String, usize)>) -> Vec<Finding> {
        if topics.is_empty() {
            return Vec::new();
        }
        let (names, config): (Vec<String>, _) =
            (topics.iter().map(|(name, _)| name.clone()).collect(), self.config.clone());
        let not_checked = |topics: &[String], why: String| {
            let detail = format!("the settings of topics {}, such as cleanup.policy: {why}", topics.join(", "));
            Finding::NotChecked(detail)
        };
        if self.tokens.is_some() {
            return vec![not_checked(&names, "the client library asks for them without a token".into())];
        }
        let asked = names.clone();
        let described = run(move || describe(&config, &asked)).await.and_then(|described| described);
        let described = match described {
            Ok(described) => described,
            Err(failure) => return vec![not_checked(&names, failure.fault().to_string())],
        };
        let (mut findings, mut warnings, mut hidden) = (Vec::new(), Warnings::default(), Vec::new());
        for ((topic, replicas), settings) in topics.into_iter().zip(described) {
            let refused = refusal(&settings, self.expected);
            findings.extend(refused.map(|why| Finding::fault(Reason::Invalid, format!("topic \"{topic}\": {why}"))));
            warnings.set(&topic, risks(&settings, replicas, self.expected));
            if settings.is_empty() {
                hidden.push(topic);
            }
        }
        findings.extend(warnings.texts().into_iter().map(Finding::Warning));
        if !hidden.is_empty() {
            let why = format!("the cluster does not show them to {}; the right DescribeConfigs does", self.user);
            findings.push(not_checked(&hidden, why));
        }
        findings
    }

    async fn missing(&self, topic: &str) -> Finding {
        let Some(create) = self.create.cloned() else {
            let detail = format!("topic \"{topic}\" does not exist: create it, or set create_topics");
            return Finding::fault(Reason::NotFound, detail);
        };
        let (config, name, creating) = (self.config.clone(), topic.to_owned(), self.creating);
        let made = run(move || make(&config, &create, &name, creating)).await.and_then(|made| made);
        match (made, creating) {
            (Err(failure), _) => self.found(failure),
            (Ok(()), Creating::Really) => Finding::Created(format!("topic \"{topic}\"")),
            (Ok(()), Creating::OnlyAsking) => Finding::WillCreate(format!("topic \"{topic}\"")),
        }
    }

    async fn may_write(&self, probe: &Producer, topic: &str) -> Option<Finding> {
        let record = Record {
            topic: topic.to_owned(),
            key: String::new(),
            payload: Bytes::new(),
            headers: OwnedHeaders::new(),
            timestamp: None,
        };
        match probe.send(&record).await {
            Err((error, _)) if error.rdkafka_error_code() == Some(Code::InvalidRequiredAcks) => None,
            Err((_, failure)) => Some(self.found(failure)),
            Ok(()) => {
                let detail = "the broker has stored the empty record that the check asks with; it is not Apache Kafka";
                Some(Finding::Warning(format!("topic \"{topic}\": {detail}")))
            }
        }
    }

    /// A failure as it is said here: of a right that is lacking, with who lacks it.
    fn found(&self, failure: Failure) -> Finding {
        Finding::Fault(failure.naming_connection("", self.user).fault().clone())
    }
}
