//! The record for one event: key, value, time and headers.

use bytes::Bytes;
use rdkafka::message::{Header, OwnedHeaders};

use crate::domain::envelope::{Format, View};
use crate::domain::trace::TraceParent;

pub(super) struct Record {
    pub(super) topic: String,
    pub(super) key: String,
    pub(super) payload: Bytes,
    pub(super) headers: OwnedHeaders,
    /// When the bridge accepted the event, in milliseconds since 1970. Not when it happened: a broker refuses
    /// records from its future, and deletes by age, so a sender's wrong clock would lose events. And no later than
    /// now: what was accepted while our clock was ahead can then be published as soon as it is right again.
    pub(super) timestamp: Option<i64>,
}

impl Record {
    pub(super) fn build(event: &View<'_>, format: Format, topic: String, now_ms: i64) -> Self {
        Self {
            topic,
            key: event.key().to_owned(),
            payload: event.body(format),
            headers: headers(event, format),
            timestamp: millis(&event.envelope().receivedtime).map(|received_ms| received_ms.min(now_ms)),
        }
    }
}

fn headers(event: &View<'_>, format: Format) -> OwnedHeaders {
    let first = OwnedHeaders::new().insert(Header { key: "content-type", value: Some(event.content_type(format)) });
    let attributes = event.headers(format).fold(first, |headers, (name, value)| {
        headers.insert(Header { key: &format!("ce_{name}"), value: Some(value) })
    });
    match event.trace() {
        Some(trace) => attributes.insert(Header { key: TraceParent::NAME, value: Some(trace) }),
        None => attributes,
    }
}

/// A record has no time before 1970.
fn millis(time: &str) -> Option<i64> {
    time.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond).filter(|millis| *millis >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::message::Headers;

    const STORED: &str = r#"{"specversion":"1.0","id":"0a-1","source":"https://api-A.calls.sendbird.com","type":"com.sendbird.calls.room.create","subject":"rooms/R","time":"2026-01-01T00:00:01.234Z","datacontenttype":"application/json","dataschema":"urn:x:room:v1","partitionkey":"R","receivedtime":"2026-01-01T00:00:00.100Z","data":{"category":"room:create"}}"#;

    fn record(format: Format) -> Record {
        published_at(i64::MAX, format)
    }

    fn published_at(now_ms: i64, format: Format) -> Record {
        let stored = Bytes::from_static(STORED.as_bytes());
        Record::build(&View::parse(&stored).expect("an envelope"), format, "t".into(), now_ms)
    }

    fn lines(record: &Record) -> Vec<String> {
        let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        record.headers.as_borrowed().iter().map(|header| format!("{}: {}", header.key, text(header.value))).collect()
    }

    #[test]
    fn structured_is_the_envelope_and_four_attributes() {
        let record = record(Format::Structured);
        assert_eq!(
            lines(&record),
            [
                "content-type: application/cloudevents+json; charset=utf-8",
                "ce_id: 0a-1",
                "ce_type: com.sendbird.calls.room.create",
                "ce_subject: rooms/R",
                "ce_time: 2026-01-01T00:00:01.234Z",
            ]
        );
        assert_eq!((record.key.as_str(), record.timestamp), ("R", Some(1_767_225_600_100)));
        assert_eq!(record.payload, STORED);
    }

    #[test]
    fn binary_is_the_data_and_all_attributes() {
        let record = record(Format::Binary);
        let lines = lines(&record);
        assert_eq!(lines[0], "content-type: application/json");
        assert_eq!(lines.len(), 10);
        assert!(lines.contains(&"ce_specversion: 1.0".to_owned()), "{lines:?}");
        assert_eq!(record.payload, r#"{"category":"room:create"}"#);
    }

    #[test]
    fn a_trace_goes_on_where_consumers_look_for_it() {
        let stored = Bytes::from(STORED.replace("\"data\"", "\"traceparent\":\"00-a-b-01\",\"data\""));
        let view = View::parse(&stored).expect("an envelope");
        let traced = |format| {
            let lines = lines(&Record::build(&view, format, "t".into(), 0));
            lines.into_iter().filter(|line| line.contains("traceparent")).collect::<Vec<_>>()
        };
        assert_eq!(traced(Format::Structured), ["traceparent: 00-a-b-01"]);
        assert_eq!(traced(Format::Binary), ["ce_traceparent: 00-a-b-01", "traceparent: 00-a-b-01"]);
    }

    #[test]
    fn a_record_is_never_of_the_future() {
        assert_eq!(published_at(1_767_225_600_099, Format::Structured).timestamp, Some(1_767_225_600_099));
        assert_eq!(published_at(1_767_225_600_101, Format::Structured).timestamp, Some(1_767_225_600_100));
    }

    #[test]
    fn a_time_that_kafka_lacks_is_left_out() {
        assert_eq!(millis("1969-12-31T23:59:59Z"), None);
        assert_eq!(millis("soon"), None);
    }
}
