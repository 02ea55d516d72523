//! Kafka, with librdkafka's own administration and consumer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use super::{Limits, Message, Place, block_on};
use crate::support::PATIENCE;

const OBJECTS: [&str; 3] = ["direct_call", "room", "other"];

const PARTITIONS: i32 = 3;

fn client(place: &Place) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &place.address);
    config
}

pub(crate) fn make(place: &Place, limits: Limits) {
    let admin: AdminClient<DefaultClientContext> = client(place).create().unwrap();
    let names = OBJECTS.map(|object| place.destination(object));
    let bytes = limits.bytes.map(|bytes| bytes.to_string());
    let topics = names.iter().filter(|name| !limits.no_rooms || !name.ends_with(".room")).map(|name| {
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        bytes.iter().fold(topic, |topic, bytes| topic.set("max.message.bytes", bytes))
    });
    let topics: Vec<_> = topics.collect();
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for made in block_on(admin.create_topics(&topics, &options)).expect("an answer of the broker") {
        made.expect("a topic");
    }
}

/// Makes the topic of this name behind the prefix.
pub(crate) fn make_one(place: &Place, suffix: &str) {
    let admin: AdminClient<DefaultClientContext> = client(place).create().unwrap();
    let name = place.destination(suffix);
    let topic = NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for made in block_on(admin.create_topics([&topic], &options)).expect("an answer of the broker") {
        made.expect("a topic");
    }
}

/// Reads all partitions from their beginnings to where they end now.
pub(crate) fn consume(place: &Place, mut take: impl FnMut(Message)) {
    let consumer: BaseConsumer =
        client(place).set("group.id", &place.name).set("enable.auto.commit", "false").create().unwrap();
    let metadata = consumer.fetch_metadata(None, PATIENCE).expect("metadata");
    let mut partitions = TopicPartitionList::new();
    let mut left: BTreeMap<(String, i32), i64> = BTreeMap::new();
    for topic in metadata.topics().iter().filter(|topic| topic.name().starts_with(&format!("{}.", place.name))) {
        for partition in topic.partitions() {
            let (low, high) = consumer.fetch_watermarks(topic.name(), partition.id(), PATIENCE).expect("watermarks");
            if low < high {
                left.insert((topic.name().to_owned(), partition.id()), high);
                partitions.add_partition_offset(topic.name(), partition.id(), Offset::Beginning).unwrap();
            }
        }
    }
    consumer.assign(&partitions).unwrap();
    let mut deadline = Instant::now() + PATIENCE;
    while !left.is_empty() {
        assert!(Instant::now() < deadline, "not all of {} could be read: {left:?}", place.name);
        let Some(record) = consumer.poll(Duration::from_millis(200)) else { continue };
        let record = record.expect("a record");
        take(message(&record));
        deadline = Instant::now() + PATIENCE;
        let partition = (record.topic().to_owned(), record.partition());
        if left.get(&partition).is_some_and(|high| record.offset() + 1 >= *high) {
            left.remove(&partition);
        }
    }
}

pub(crate) fn count(place: &Place) -> u64 {
    let consumer: BaseConsumer = client(place).create().unwrap();
    let metadata = consumer.fetch_metadata(None, PATIENCE).expect("metadata");
    let topics = metadata.topics().iter().filter(|topic| topic.name().starts_with(&format!("{}.", place.name)));
    let ends = topics.flat_map(|topic| topic.partitions().iter().map(|partition| (topic.name(), partition.id())));
    ends.map(|(topic, partition)| {
        let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE).expect("watermarks");
        (high - low) as u64
    })
    .sum()
}

fn message(record: &rdkafka::message::BorrowedMessage<'_>) -> Message {
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).expect("UTF-8");
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for header in record.headers().expect("headers").iter() {
        let before = headers.insert(header.key.to_owned(), text(header.value));
        assert!(before.is_none(), "the header {} comes twice", header.key);
    }
    Message {
        destination: record.topic().to_owned(),
        key: text(record.key()),
        id: headers.get("ce_id").expect("the header ce_id").clone(),
        content_type: headers.remove("content-type").expect("a content type"),
        headers,
        body: record.payload().unwrap_or_default().to_vec(),
    }
}

/// Where the partition of each key is.
pub(crate) fn partitions(place: &Place, topic: &str) -> BTreeMap<String, i32> {
    let consumer: BaseConsumer =
        client(place).set("group.id", &place.name).set("enable.partition.eof", "true").create().unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut found = BTreeMap::new();
    let mut ends = 0;
    let deadline = Instant::now() + PATIENCE;
    while ends < PARTITIONS {
        assert!(Instant::now() < deadline, "not all of {topic} could be read");
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Err(_end_of_partition)) => ends += 1,
            Some(Ok(record)) => {
                let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
                found.insert(key, record.partition());
            }
        }
    }
    found
}
