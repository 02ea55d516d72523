//! NATS JetStream: a stream, read by a pull consumer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::{self, ErrorCode, consumer, stream};
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;

use super::{Limits, Message, Place, block_on};
use crate::support::{PATIENCE, eventually};

/// Messages asked for at a time.
const BATCH: usize = 500;

async fn connect(place: &Place) -> jetstream::Context {
    let servers: Vec<&str> = place.address.split(',').collect();
    let client = async_nats::connect(servers).await;
    jetstream::new(client.unwrap_or_else(|error| panic!("{}: {error}", place.address)))
}

pub(crate) fn make(place: &Place, limits: Limits) {
    let create = || block_on(async { connect(place).await.create_stream(config(place, limits)).await });
    eventually("a stream is made", || match create() {
        Ok(_) => true,
        // The servers of a cluster that has just started may not know of each other yet.
        Err(error) => match error.kind() {
            CreateStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::CLUSTER_NO_PEERS => false,
            _ => panic!("expected a stream, but found: {error}"),
        },
    });
}

/// Gives the stream other limits.
pub(crate) fn change(place: &Place, limits: Limits) {
    block_on(async { connect(place).await.update_stream(config(place, limits)).await }).expect("a changed stream");
}

pub(crate) fn remove(place: &Place) {
    block_on(async { connect(place).await.delete_stream(&place.name).await }).expect("a stream");
}

/// Removes the messages alone.
pub(crate) fn purge(place: &Place) {
    block_on(async { connect(place).await.get_stream(&place.name).await.expect("the stream").purge().await })
        .expect("an empty stream");
}

/// The port of the server that leads the stream. There may be none for a moment.
pub(crate) fn leader(place: &Place) -> Option<String> {
    let stream = block_on(async { connect(place).await.get_stream(&place.name).await }).ok()?;
    let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
    Some(leader.strip_prefix("bridge-").expect("a name with a port").to_owned())
}

/// Has another server lead the stream.
pub(crate) fn step_down(place: &Place) {
    let answer: serde_json::Value = block_on(async {
        let subject = format!("STREAM.LEADER.STEPDOWN.{}", place.name);
        connect(place).await.request(subject, &serde_json::json!({})).await
    })
    .expect("an answer");
    assert_eq!(answer["success"], true, "{answer}");
}

fn config(place: &Place, limits: Limits) -> stream::Config {
    let subjects = if limits.no_rooms { ".direct_call.>" } else { ".>" };
    stream::Config {
        name: place.name.clone(),
        subjects: vec![format!("{}{subjects}", place.name)],
        max_message_size: limits.bytes.unwrap_or(-1),
        max_messages: limits.messages.map_or(-1, i64::from),
        discard: stream::DiscardPolicy::New,
        duplicate_window: Duration::from_secs(3600),
        num_replicas: place.replicas.into(),
        ..stream::Config::default()
    }
}

pub(crate) fn consume(place: &Place, mut take: impl FnMut(Message)) {
    block_on(async {
        let context = connect(place).await;
        let mut stream = context.get_stream(&place.name).await.expect("the stream");
        let expected = usize::try_from(stream.info().await.expect("the stream's state").state.messages).unwrap();
        let config = consumer::pull::Config { ack_policy: consumer::AckPolicy::None, ..Default::default() };
        let consumer = stream.create_consumer(config).await.expect("a consumer");
        let mut taken = 0;
        let mut deadline = Instant::now() + PATIENCE;
        while taken < expected {
            let most = BATCH.min(expected - taken);
            let mut batch = consumer.fetch().max_messages(most).messages().await.expect("a batch");
            let mut next =
                async || tokio::time::timeout(PATIENCE, batch.next()).await.expect("the whole stream in time");
            while let Some(got) = next().await {
                // While a cluster looks for the consumer's leader, nobody answers: then it is asked again.
                let Ok(got) = got else { break };
                take(message(&place.name, &got));
                taken += 1;
                deadline = Instant::now() + PATIENCE;
            }
            if taken < expected {
                assert!(Instant::now() < deadline, "only {taken} of {expected} could be read");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
}

pub(crate) fn count(place: &Place) -> u64 {
    block_on(async {
        let mut stream = connect(place).await.get_stream(&place.name).await.expect("the stream");
        stream.info().await.expect("the stream's state").state.messages
    })
}

fn message(stream: &str, got: &jetstream::Message) -> Message {
    let mut headers = BTreeMap::new();
    for (name, values) in got.headers.as_ref().expect("headers").iter() {
        assert_eq!(values.len(), 1, "the header {name} comes {} times", values.len());
        headers.insert(name.to_string(), values[0].to_string());
    }
    let mut take = |name: &str| headers.remove(name).unwrap_or_else(|| panic!("no header {name}"));
    let (id, content_type, expected) = (take("Nats-Msg-Id"), take("Content-Type"), take("Nats-Expected-Stream"));
    assert_eq!(expected, stream);
    let decoded = |value: String| percent_decode_str(&value).decode_utf8().expect("UTF-8").into_owned();
    Message {
        destination: stream.to_owned(),
        key: got.subject.to_string(),
        id,
        content_type,
        headers: headers.into_iter().map(|(name, value)| (name, decoded(value))).collect(),
        body: got.payload.to_vec(),
    }
}
