//! What Kafka's acknowledgement of a record survives, as far as the settings of its topic say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::config::FromClientConfigAndContext;
use tokio::runtime::Handle;

use super::client::Events;
use super::destination::Destination;
use super::errors::{creating, failure};
use crate::domain::units::{Size, Span};
use crate::sink::Failure;

/// For one answer about topics.
const ANSWER: Duration = Duration::from_secs(5);
/// A topic that deletes its events sooner leaves no time to repair a consumer.
const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// The settings of one topic, by name.
pub(super) type TopicSettings = HashMap<String, String>;

/// What is expected of every topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// The largest event, in bytes.
    pub(super) largest: u64,
    /// Whether a compacted topic is what the operator wants.
    pub(super) allow_compacted: bool,
}

/// The settings of these topics, each in its place; none of a topic whose settings the user may not read. Blocks for seconds.
pub(super) fn describe(config: &ClientConfig, topics: &[String]) -> Result<Vec<TopicSettings>, Failure> {
    let admin = AdminClient::from_config_and_context(config, Events::default()).map_err(|error| creating(&error))?;
    let resources: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let options = AdminOptions::new().request_timeout(Some(ANSWER));
    let described = Handle::current().block_on(admin.describe_configs(&resources, &options));
    let described = described.map_err(|error| failure(&error, None, &Destination::topic(&topics.join(", "))))?;
    // Where the cluster refuses it, the binding of the client library returns a topic without settings.
    let settings = described.into_iter().map(|resource| {
        let entries = resource.map(|resource| resource.entries).unwrap_or_default().into_iter();
        entries.filter_map(|entry| Some((entry.name, entry.value?))).collect()
    });
    Ok(settings.collect())
}

/// Why no event may go to a topic with these settings.
pub(super) fn refusal(settings: &TopicSettings, expected: Expected) -> Option<String> {
    let policy = settings.get("cleanup.policy").filter(|policy| policy.contains("compact"))?;
    (!expected.allow_compacted).then(|| {
        format!(
            "cleanup.policy = {policy} keeps the last event of each call or room and deletes the others; set it to delete, or \
             set allow_compacted"
        )
    })
}

/// What may lose acknowledged events of a topic with these settings on so many brokers.
pub(super) fn risks(settings: &TopicSettings, replicas: usize, expected: Expected) -> Vec<String> {
    let number = |name: &str| settings.get(name).and_then(|value| value.parse::<i64>().ok());
    let is_set = |name: &str| settings.get(name).is_some_and(|value| value == "true");
    let mut risks = Vec::new();
    if replicas < 3 {
        risks.push(format!(
            "the replication factor is {replicas}, and 3 or more is advised: the loss of a disk can lose events"
        ));
    }
    if let Some(least) = number("min.insync.replicas").filter(|least| *least < 2) {
        let detail = "an event that a single broker has is acknowledged";
        risks.push(format!("min.insync.replicas = {least}, and 2 or more is advised: {detail}"));
    }
    if is_set("unclean.leader.election.enable") {
        let detail = "a broker that lacks acknowledged events can become leader, and they are lost";
        risks.push(format!("unclean.leader.election.enable = true: {detail}"));
    }
    // Redpanda's.
    if is_set("write.caching") {
        risks.push("write.caching = true: events are acknowledged before they are on a disk".to_owned());
    }
    if let Some(most) = number("max.message.bytes").and_then(|most| u64::try_from(most).ok())
        && most < expected.largest
    {
        let largest = Size(expected.largest);
        risks.push(format!(
            "max.message.bytes = {most}, but an event can have {largest} (twice server.max_body and its attributes): larger ones become \
             dead letters"
        ));
    }
    if let Some(kept) = number("retention.ms").and_then(|kept| u64::try_from(kept).ok())
        && Duration::from_millis(kept) < RETENTION
    {
        let kept = Span(Duration::from_millis(kept));
        risks.push(format!("retention.ms deletes events after {kept}, sooner than in a day"));
    }
    risks
}

/// Warnings, each with the topics that it is about.
#[derive(Debug, Default)]
pub(super) struct Warnings(BTreeMap<String, BTreeSet<String>>);

impl Warnings {
    /// Takes the warnings about a topic in place of those before.
    pub(super) fn set(&mut self, topic: &str, texts: impl IntoIterator<Item = String>) {
        self.0.values_mut().for_each(|topics| {
            topics.remove(topic);
        });
        self.0.retain(|_, topics| !topics.is_empty());
        for text in texts {
            self.0.entry(text).or_default().insert(topic.to_owned());
        }
    }

    pub(super) fn texts(&self) -> Vec<String> {
        let text = |(text, topics): (&String, &BTreeSet<String>)| {
            let names: Vec<String> = topics.iter().map(|topic| format!("\"{topic}\"")).collect();
            format!("topic {}: {text}", names.join(", "))
        };
        self.0.iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: Expected = Expected { largest: 1000, allow_compacted: false };

    fn settings(pairs: &[(&str, &str)]) -> TopicSettings {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_compacted_topic_is_refused_unless_it_is_wanted() {
        for (policy, refused) in [("delete", false), ("compact", true), ("compact,delete", true)] {
            let settings = settings(&[("cleanup.policy", policy)]);
            assert_eq!(refusal(&settings, EXPECTED).is_some(), refused, "{policy}");
            assert_eq!(refusal(&settings, Expected { allow_compacted: true, ..EXPECTED }), None);
        }
        assert_eq!(refusal(&TopicSettings::new(), EXPECTED), None);
    }

    #[test]
    fn what_may_lose_events_is_named() {
        let safe = [
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
            ("write.caching", "false"),
            ("max.message.bytes", "1000"),
            ("retention.ms", "86400000"),
        ];
        assert_eq!(risks(&settings(&safe), 3, EXPECTED), Vec::<String>::new());
        assert_eq!(risks(&settings(&[("retention.ms", "-1")]), 3, EXPECTED), Vec::<String>::new());
        for (name, value) in [
            ("min.insync.replicas", "1"),
            ("unclean.leader.election.enable", "true"),
            ("write.caching", "true"),
            ("max.message.bytes", "999"),
            ("retention.ms", "3600000"),
        ] {
            let risks = risks(&settings(&[(name, value)]), 3, EXPECTED);
            assert!(risks.len() == 1 && risks[0].starts_with(name), "{risks:?}");
        }
        assert_eq!(risks(&TopicSettings::new(), 1, EXPECTED).len(), 1);
    }

    #[test]
    fn topics_share_a_warning() {
        let mut warnings = Warnings::default();
        for topic in ["b", "a", "b"] {
            warnings.set(topic, ["x".to_owned()]);
        }
        assert_eq!(warnings.texts(), ["topic \"a\", \"b\": x"]);
        warnings.set("a", ["y".to_owned()]);
        assert_eq!(warnings.texts(), ["topic \"b\": x", "topic \"a\": y"]);
        warnings.set("b", []);
        assert_eq!(warnings.texts(), ["topic \"a\": y"]);
    }
}
