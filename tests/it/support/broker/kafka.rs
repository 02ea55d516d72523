//! Kafka, with librdkafka's own administration and consumer.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use super::{Limits, Message, Place, block_on};
use crate::support::{PATIENCE, eventually};

const OBJECTS: [&str; 3] = ["direct_call", "room", "other"];

const PARTITIONS: i32 = 3;

fn client(place: &Place) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &place.address);
    config
}

pub(crate) fn make(place: &Place, limits: Limits) {
    let bytes = limits.bytes.map(|bytes| bytes.to_string());
    let settings = bytes.as_deref().map(|bytes| ("max.message.bytes", bytes));
    make_topics(place, settings.as_slice(), |name| !limits.no_rooms || !name.ends_with(".room"));
}

/// The same with these settings for each topic.
pub(crate) fn make_with(place: &Place, settings: &[(&str, &str)]) {
    make_topics(place, settings, |_| true);
}

fn make_topics(place: &Place, settings: &[(&str, &str)], is_wanted: impl Fn(&str) -> bool) {
    let admin: AdminClient<DefaultClientContext> = client(place).create().unwrap();
    let names = OBJECTS.map(|object| place.destination(object));
    let topics = names.iter().filter(|name| is_wanted(name)).map(|name| {
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(place.replicas.into()));
        settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
    });
    let topics: Vec<_> = topics.collect();
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for made in block_on(admin.create_topics(&topics, &options)).expect("an answer of the broker") {
        made.expect("a topic");
    }
}

pub(crate) fn remove(place: &Place) {
    let admin: AdminClient<DefaultClientContext> = client(place).create().unwrap();
    let names = OBJECTS.map(|object| place.destination(object));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for removed in block_on(admin.delete_topics(&names, &options)).expect("an answer of the broker") {
        removed.expect("a topic");
    }
}

/// The node that leads the first partition of the calls.
pub(crate) fn leader(place: &Place) -> u8 {
    let consumer: BaseConsumer = client(place).create().unwrap();
    let mut leader = None;
    // While one goes, a node may know of none, or not of the topic.
    eventually("a node leads", || {
        let metadata = consumer.fetch_metadata(Some(&place.destination("direct_call")), PATIENCE).expect("metadata");
        let first = metadata.topics().first().and_then(|topic| topic.partitions().first());
        leader = first.and_then(|partition| u8::try_from(partition.leader()).ok());
        leader.is_some()
    });
    leader.unwrap()
}

/// What a rule is about, by the number that Kafka has for it.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    Write = 4,
    Create = 5,
    Describe = 8,
    DescribeConfigs = 10,
}

/// A rule about the topics whose names begin so; a broker with an authorizer takes it to heart.
pub(crate) struct Acl<'a> {
    user: &'a str,
    prefix: &'a str,
    operation: Operation,
    allows: bool,
}

impl<'a> Acl<'a> {
    pub(crate) fn allow(user: &'a str, prefix: &'a str, operation: Operation) -> Self {
        Self { user, prefix, operation, allows: true }
    }

    pub(crate) fn add(&self, place: &Place) {
        self.send(place, 30);
    }

    pub(crate) fn remove(&self, place: &Place) {
        self.send(place, 31);
    }

    /// What the client library offers for this, its binding leaves out: CreateAcls (30) and DeleteAcls (31), version 1.
    fn send(&self, place: &Place, key: i16) {
        let mut body = vec![];
        let text = |body: &mut Vec<u8>, text: &str| {
            body.extend(i16::try_from(text.len()).unwrap().to_be_bytes());
            body.extend(text.as_bytes());
        };
        body.extend(1_i32.to_be_bytes());
        body.push(2); // a topic
        text(&mut body, self.prefix);
        body.push(4); // whose name begins so
        text(&mut body, &format!("User:{}", self.user));
        text(&mut body, "*");
        body.extend([self.operation as u8, if self.allows { 3 } else { 2 }]);
        let mut request: Vec<u8> = [key.to_be_bytes(), 1_i16.to_be_bytes()].concat();
        request.extend(7_i32.to_be_bytes());
        text(&mut request, "test");
        request.extend(body);
        let mut stream = TcpStream::connect(&place.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&i32::try_from(request.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&request).unwrap();
        // Length, correlation, throttle time, the number of results and the first one's error.
        let mut answer = [0; 18];
        stream.read_exact(&mut answer).expect("an answer of the broker");
        assert_eq!(answer[4..8], 7_i32.to_be_bytes());
        assert_eq!((&answer[12..16], &answer[16..]), (&[0, 0, 0, 1][..], &[0, 0][..]), "the broker refuses the rule");
    }
}

/// Whether anybody may write to the topics of this place.
pub(crate) fn allow_writing(place: &Place, allowed: bool) {
    let denial = Acl { user: "ANONYMOUS", prefix: &place.name, operation: Operation::Write, allows: false };
    if allowed { denial.remove(place) } else { denial.add(place) }
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

/// Makes the topic of this name behind the prefix, and puts each partition on one node of a cluster alone: the first on
/// the first, and so on.
pub(crate) fn make_spread(place: &Place, suffix: &str) {
    let admin: AdminClient<DefaultClientContext> = client(place).create().unwrap();
    let name = place.destination(suffix);
    let topic = NewTopic::new(&name, PARTITIONS, TopicReplication::Variable(&[&[1], &[2], &[3]]));
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
