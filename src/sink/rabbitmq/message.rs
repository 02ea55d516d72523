//! The properties and headers of a RabbitMQ message.
//!
//! In the binary form the attributes have the names of the CloudEvents binding for AMQP (`cloudEvents:id`, `cloudEvents_id`);
//! in the structured form four of them are repeated under names that a headers exchange or a consumer finds
//! handy (`ce_id`).

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString, ShortStringError};

use super::settings::AttributePrefix;
use crate::domain::envelope::{Format, View};
use crate::domain::trace::TraceParent;

/// Written to disk by the broker before it confirms.
pub(super) const PERSISTENT: u8 = 2;

/// The properties for one event.
///
/// # Errors
/// The id or the content type is too long for its field.
pub(super) fn properties(
    event: &View<'_>,
    format: Format,
    prefix: AttributePrefix,
) -> Result<BasicProperties, ShortStringError> {
    let properties = BasicProperties::default()
        .with_message_id(ShortString::try_new(event.envelope().id.as_ref())?)
        .with_content_type(ShortString::try_new(event.content_type(format))?)
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers(event, format, prefix));
    Ok(match seconds(&event.envelope().time) {
        Some(seconds) => properties.with_timestamp(seconds),
        None => properties,
    })
}

fn headers(event: &View<'_>, format: Format, prefix: AttributePrefix) -> FieldTable {
    let prefix = match format {
        Format::Structured => "ce_",
        Format::Binary => prefix.as_str(),
    };
    let mut table = FieldTable::default();
    for (name, value) in event.headers(format) {
        table.insert(format!("{prefix}{name}").into(), AMQPValue::LongString(value.into()));
    }
    if let Some(trace) = event.trace() {
        table.insert(TraceParent::NAME.into(), AMQPValue::LongString(trace.into()));
    }
    table
}

/// AMQP counts in seconds; a time before 1970 has no place there.
fn seconds(time: &str) -> Option<u64> {
    u64::try_from(time.parse::<jiff::Timestamp>().ok()?.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const STORED: &str = r#"{"specversion":"1.0","id":"0a-1","source":"https://api-A.calls.sendbird.com","type":"com.sendbird.calls.room.create","subject":"rooms/R","time":"2026-01-01T00:00:01.234Z","datacontenttype":"application/json","dataschema":"urn:x:room:v1","partitionkey":"R","receivedtime":"2026-01-01T00:00:00.100Z","data":{"category":"room:create"}}"#;

    fn of(stored: &str, format: Format) -> Result<BasicProperties, ShortStringError> {
        with_prefix(stored, format, AttributePrefix::Colon)
    }

    fn with_prefix(stored: &str, format: Format, prefix: AttributePrefix) -> Result<BasicProperties, ShortStringError> {
        properties(&View::parse(&Bytes::copy_from_slice(stored.as_bytes())).expect("an envelope"), format, prefix)
    }

    fn names(properties: &BasicProperties) -> Vec<String> {
        let headers = properties.headers().as_ref().expect("headers");
        headers.inner().keys().map(ToString::to_string).collect()
    }

    #[test]
    fn structured_has_four_attributes() {
        let properties = of(STORED, Format::Structured).expect("properties");
        assert_eq!(names(&properties), ["ce_id", "ce_subject", "ce_time", "ce_type"]);
        assert_eq!(properties.message_id().as_ref().map(ShortString::as_str), Some("0a-1"));
        assert_eq!(
            properties.content_type().as_ref().map(ShortString::as_str),
            Some("application/cloudevents+json; charset=utf-8")
        );
        assert_eq!((properties.delivery_mode(), properties.timestamp()), (&Some(2), &Some(1_767_225_601)));
    }

    #[test]
    fn binary_has_all_attributes() {
        let all =
            ["dataschema", "id", "partitionkey", "receivedtime", "source", "specversion", "subject", "time", "type"];
        for prefix in [AttributePrefix::Colon, AttributePrefix::Underscore] {
            let properties = with_prefix(STORED, Format::Binary, prefix).expect("properties");
            assert_eq!(names(&properties), all.map(|name| format!("{}{name}", prefix.as_str())));
        }
        let properties = of(STORED, Format::Binary).expect("properties");
        assert_eq!(properties.content_type().as_ref().map(ShortString::as_str), Some("application/json"));
    }

    #[test]
    fn a_trace_goes_on_where_consumers_look_for_it() {
        let stored = STORED.replace("\"data\"", "\"traceparent\":\"00-a-b-01\",\"data\"");
        let traced = |format| {
            let names = names(&of(&stored, format).expect("properties"));
            names.into_iter().filter(|name| name.ends_with("traceparent")).collect::<Vec<_>>()
        };
        assert_eq!(traced(Format::Structured), ["traceparent"]);
        assert_eq!(traced(Format::Binary), ["cloudEvents:traceparent", "traceparent"]);
    }

    #[test]
    fn what_does_not_fit_is_an_error_or_left_out() {
        assert!(of(&STORED.replace("0a-1", &"x".repeat(256)), Format::Structured).is_err());
        let timeless = of(&STORED.replace("2026-01-01T00:00:01.234Z", "soon"), Format::Structured);
        assert_eq!(timeless.expect("properties").timestamp(), &None);
    }
}
