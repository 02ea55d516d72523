//! The headers of a NATS message, after the CloudEvents binding for NATS.

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::domain::envelope::{Format, View};
use crate::domain::trace::TraceParent;

/// What the binding wants encoded in a value: all that is not printable ASCII, and these. It also keeps line
/// ends out, which would let a value forge a header.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The headers for one event, bound for `stream`.
pub(super) fn of(event: &View<'_>, format: Format, stream: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, encode(&event.envelope().id));
    // A message that another stream would take is refused instead.
    headers.insert(NATS_EXPECTED_STREAM, stream);
    // Written by this program, so it needs no encoding; its space must stay one.
    headers.insert("Content-Type", event.content_type(format).replace(['\r', '\n'], " "));
    for (name, value) in event.headers(format) {
        headers.insert(format!("ce-{name}"), encode(value));
    }
    // The other bindings have a content type for it; this one has a header as for any attribute.
    if format == Format::Binary {
        headers.insert("ce-datacontenttype", encode(&event.envelope().datacontenttype));
    }
    if let Some(trace) = event.trace() {
        headers.insert(TraceParent::NAME, encode(trace));
    }
    headers
}

fn encode(value: &str) -> String {
    utf8_percent_encode(value, ENCODED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn stored(subject: &str) -> Bytes {
        Bytes::from(format!(
            r#"{{"specversion":"1.0","id":"0a-1","source":"https://api-A.calls.sendbird.com","type":"com.sendbird.calls.room.create","subject":"{subject}","time":"2026-01-01T00:00:00.000Z","datacontenttype":"application/json","dataschema":"urn:x:room:v1","partitionkey":"R","receivedtime":"2026-01-01T00:00:00.100Z","replayed":true,"data":{{"category":"room:create"}}}}"#
        ))
    }

    fn lines(subject: &str, format: Format) -> Vec<String> {
        let stored = stored(subject);
        let headers = of(&View::parse(&stored).expect("an envelope"), format, "S");
        let mut lines: Vec<_> = headers.iter().map(|(name, values)| format!("{name}: {}", values[0])).collect();
        lines.sort();
        lines
    }

    #[test]
    fn structured_has_four_attributes() {
        assert_eq!(
            lines("rooms/R", Format::Structured),
            [
                "Content-Type: application/cloudevents+json; charset=utf-8",
                "Nats-Expected-Stream: S",
                "Nats-Msg-Id: 0a-1",
                "ce-id: 0a-1",
                "ce-subject: rooms/R",
                "ce-time: 2026-01-01T00:00:00.000Z",
                "ce-type: com.sendbird.calls.room.create",
            ]
        );
    }

    #[test]
    fn binary_has_all_attributes() {
        let lines = lines("rooms/R", Format::Binary);
        for line in [
            "Content-Type: application/json",
            "ce-datacontenttype: application/json",
            "ce-specversion: 1.0",
            "ce-partitionkey: R",
            "ce-replayed: true",
        ] {
            assert!(lines.iter().any(|have| have == line), "{line}: {lines:?}");
        }
        assert_eq!(lines.len(), 14);
    }

    #[test]
    fn a_trace_goes_on_where_consumers_look_for_it() {
        let stored =
            String::from_utf8_lossy(&stored("rooms/R")).replace("\"data\"", "\"traceparent\":\"00-a-b-01\",\"data\"");
        let stored = Bytes::from(stored);
        let view = View::parse(&stored).expect("an envelope");
        let traced = |format, name| of(&view, format, "S").get(name).map(|value| value.as_str().to_owned());
        for format in [Format::Structured, Format::Binary] {
            assert_eq!(traced(format, "traceparent").as_deref(), Some("00-a-b-01"));
        }
        assert_eq!(traced(Format::Binary, "ce-traceparent").as_deref(), Some("00-a-b-01"));
        assert_eq!(traced(Format::Structured, "ce-traceparent"), None);
    }

    #[test]
    fn no_value_forges_a_header() {
        let lines = lines(r"rooms/a b\r\nNats-Rollup: all\u0000ü%\u007f", Format::Structured);
        assert!(
            lines.contains(&"ce-subject: rooms/a%20b%0D%0ANats-Rollup:%20all%00%C3%BC%25%7F".to_owned()),
            "{lines:?}"
        );
    }
}
