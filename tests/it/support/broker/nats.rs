//! NATS JetStream: a stream, read by a pull consumer.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::{self, consumer, stream};
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;

use super::{Limits, Message, Place, block_on};
use crate::support::PATIENCE;

/// Messages asked for at a time.
const BATCH: usize = 500;

async fn connect(place: &Place) -> jetstream::Context {
    let client = async_nats::connect(&place.address).await;
    jetstream::new(client.unwrap_or_else(|error| panic!("{}: {error}", place.address)))
}

pub(crate) fn make(place: &Place, limits: Limits) {
    let subjects = if limits.no_rooms { ".direct_call.>" } else { ".>" };
    let config = stream::Config {
        name: place.name.clone(),
        subjects: vec![format!("{}{subjects}", place.name)],
        max_message_size: limits.bytes.unwrap_or(-1),
        duplicate_window: Duration::from_secs(3600),
        ..stream::Config::default()
    };
    block_on(async { connect(place).await.create_stream(config).await }).expect("a stream");
}

pub(crate) fn consume(place: &Place, mut take: impl FnMut(Message)) {
    block_on(async {
        let context = connect(place).await;
        let mut stream = context.get_stream(&place.name).await.expect("the stream");
        let expected = usize::try_from(stream.info().await.expect("the stream's state").state.messages).unwrap();
        let config = consumer::pull::Config { ack_policy: consumer::AckPolicy::None, ..Default::default() };
        let consumer = stream.create_consumer(config).await.expect("a consumer");
        let mut taken = 0;
        while taken < expected {
            let most = BATCH.min(expected - taken);
            let mut batch = consumer.fetch().max_messages(most).messages().await.expect("a batch");
            let mut next =
                async || tokio::time::timeout(PATIENCE, batch.next()).await.expect("the whole stream in time");
            let before = taken;
            while let Some(got) = next().await {
                take(message(&place.name, &got.expect("a message")));
                taken += 1;
            }
            assert!(taken > before, "only {taken} of {expected} could be read");
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
