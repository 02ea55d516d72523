//! The envelope: one CloudEvents 1.0 event, its structured JSON form and what a binary form is made of.
//!
//! The structured form is written once, when a delivery is accepted, and stored as it is. Whoever
//! publishes it reads it through a [`View`], which borrows from the stored bytes and copies nothing.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::template::Values;
use super::trace::TraceParent;

/// The content type of the structured form.
pub const STRUCTURED: &str = "application/cloudevents+json; charset=utf-8";

/// The only version of CloudEvents that is written.
pub const SPECVERSION: &str = "1.0";

/// The two content modes of CloudEvents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The message is the whole envelope.
    #[default]
    Structured,
    /// The message is `data`; the attributes are headers.
    Binary,
}

/// The attributes of an event and its data. The attributes for `schemars` are what consumers read in the published
/// schema.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Envelope<'a, D> {
    /// Always [`SPECVERSION`].
    #[serde(borrow)]
    #[schemars(description = "The version of CloudEvents.", extend("const" = SPECVERSION))]
    pub specversion: Cow<'a, str>,
    /// A UUIDv8, equal for every retry of a delivery.
    #[serde(borrow)]
    #[schemars(extend(
        "format" = "uuid",
        "pattern" = "^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
    ))]
    pub id: Cow<'a, str>,
    /// The application's address at Sendbird.
    #[serde(borrow)]
    #[schemars(extend(
        "format" = "uri",
        "pattern" = "^https://api-[A-Za-z0-9._~%-]+\\.calls\\.sendbird\\.com$",
        "examples" = ["https://api-0A1B2C3D-1111-4222-8333-444455556666.calls.sendbird.com"]
    ))]
    pub source: Cow<'a, str>,
    /// `com.sendbird.calls.` and the category, with dots for colons.
    #[serde(borrow)]
    #[schemars(
        description = "`com.sendbird.calls.` and the category, with dots for colons. An open set: a new category of \
                       Sendbird's gives a new type.",
        extend("pattern" = "^com\\.sendbird\\.calls\\.", "examples" = ["com.sendbird.calls.direct_call.dial"])
    )]
    pub r#type: Cow<'a, str>,
    /// `direct_calls/{call_id}` or `rooms/{room_id}`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "Cow<'a, str>",
        description = "`direct_calls/{call_id}` or `rooms/{room_id}`; absent where neither is known.",
        extend("minLength" = 1, "examples" = ["direct_calls/7F0E3C52-9A41-4D0B-8C55-0D6A1E2F3B4C"])
    )]
    pub subject: Option<Cow<'a, str>>,
    /// When it happened; RFC 3339, UTC, milliseconds.
    #[serde(borrow)]
    #[schemars(
        description = "When it happened; RFC 3339, UTC, milliseconds. Where the delivery doesn't say, when the bridge \
                       accepted it.",
        extend("format" = "date-time", "pattern" = TIME_PATTERN)
    )]
    pub time: Cow<'a, str>,
    /// Always `application/json`.
    #[serde(borrow)]
    #[schemars(description = "The content type of `data`.", extend("const" = "application/json"))]
    pub datacontenttype: Cow<'a, str>,
    /// Names the schema of `data` and its version.
    #[serde(borrow)]
    #[schemars(extend("format" = "uri", "examples" = ["urn:sendbird-bridge:schema:direct_call:v1"]))]
    pub dataschema: Cow<'a, str>,
    /// What order is kept by.
    #[serde(borrow)]
    #[schemars(
        description = "What order is kept by: `call_id`, else `room_id`, else the application id.",
        extend("minLength" = 1)
    )]
    pub partitionkey: Cow<'a, str>,
    /// When the bridge accepted it.
    #[serde(borrow)]
    #[schemars(
        description = "When the bridge accepted it; RFC 3339, UTC, milliseconds.",
        extend("format" = "date-time", "pattern" = TIME_PATTERN)
    )]
    pub receivedtime: Cow<'a, str>,
    /// The trace that the delivery belongs to (the Distributed Tracing extension); absent where it named none.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Cow<'a, str>", extend(
        "pattern" = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        "examples" = ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]
    ))]
    pub traceparent: Option<Cow<'a, str>>,
    /// `true` on a replay, otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool", extend("const" = true))]
    pub replayed: Option<bool>,
    /// `true` where nobody delivered it: it was made from what the Calls Platform API knows. Otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool", extend("const" = true))]
    pub reconciled: Option<bool>,
    /// Version 1 of the data.
    pub data: D,
}

/// Milliseconds and UTC, of the years 0 to 9999.
const TIME_PATTERN: &str = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$";

/// A boolean attribute as the binary form writes it (CloudEvents 1.0, "Type System").
fn boolean(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// A stored event as a sink sees it.
#[derive(Debug)]
pub struct View<'a> {
    structured: &'a Bytes,
    envelope: Envelope<'a, &'a RawValue>,
    head: Head<'a>,
}

/// The members of `data` that templates and filters need.
#[derive(Debug, Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    category: Cow<'a, str>,
    #[serde(borrow)]
    application_id: Option<Cow<'a, str>>,
}

impl<'a> View<'a> {
    /// Reads a structured envelope.
    ///
    /// # Errors
    /// When the bytes are not an envelope that this program wrote.
    pub fn parse(structured: &'a Bytes) -> Result<Self, serde_json::Error> {
        let envelope: Envelope<'a, &'a RawValue> = serde_json::from_slice(structured)?;
        let head = serde_json::from_str(envelope.data.get())?;
        Ok(Self { structured, envelope, head })
    }

    /// The attributes.
    pub fn envelope(&self) -> &Envelope<'a, &'a RawValue> {
        &self.envelope
    }

    /// The category as Sendbird wrote it.
    pub fn category(&self) -> &str {
        &self.head.category
    }

    /// The application, where the delivery named one.
    pub fn application_id(&self) -> Option<&str> {
        self.head.application_id.as_deref()
    }

    /// The trace that the delivery belongs to. In each form it is also a header without a prefix, named
    /// [`TraceParent::NAME`], where consumers that know nothing of CloudEvents look for it.
    pub fn trace(&self) -> Option<&str> {
        self.envelope.traceparent.as_deref()
    }

    /// What order is kept by.
    pub fn key(&self) -> &str {
        &self.envelope.partitionkey
    }

    /// What goes into the message's body; shares the stored bytes.
    pub fn body(&self, format: Format) -> Bytes {
        match format {
            Format::Structured => self.structured.clone(),
            Format::Binary => self.structured.slice_ref(self.envelope.data.get().as_bytes()),
        }
    }

    /// The message's content type.
    pub fn content_type(&self, format: Format) -> &str {
        match format {
            Format::Structured => STRUCTURED,
            Format::Binary => &self.envelope.datacontenttype,
        }
    }

    /// The attributes that become headers, each under the name that the binding prefixes (`ce_`,
    /// `cloudEvents:`, `ce-`). In the structured form four of them, for consumers that filter without
    /// parsing; in the binary form all.
    pub fn headers(&self, format: Format) -> impl Iterator<Item = (&'static str, &str)> {
        let e = &self.envelope;
        let binary = format == Format::Binary;
        let rest = [
            ("specversion", Some(&*e.specversion)),
            ("source", Some(&*e.source)),
            ("dataschema", Some(&*e.dataschema)),
            ("partitionkey", Some(&*e.partitionkey)),
            ("receivedtime", Some(&*e.receivedtime)),
            (TraceParent::NAME, self.trace()),
            ("replayed", e.replayed.map(boolean)),
            ("reconciled", e.reconciled.map(boolean)),
        ];
        [("id", Some(&*e.id)), ("type", Some(&*e.r#type)), ("subject", e.subject.as_deref()), ("time", Some(&*e.time))]
            .into_iter()
            .chain(rest.into_iter().filter(move |_| binary))
            .filter_map(|(name, value)| value.map(|value| (name, value)))
    }

    /// The values of a template's placeholders.
    pub fn values(&self) -> Values<'_> {
        Values {
            object: object(&self.head.category, self.envelope.subject.as_deref()),
            verb: verb(&self.head.category),
            key: &self.envelope.partitionkey,
            category: &self.head.category,
            application_id: self.head.application_id.as_deref().unwrap_or(""),
        }
    }
}

/// The same event, marked as a replay.
///
/// # Errors
/// When the bytes are not an envelope that this program wrote.
pub fn replayed(structured: &[u8]) -> Result<Bytes, serde_json::Error> {
    let mut envelope: Envelope<'_, &RawValue> = serde_json::from_slice(structured)?;
    envelope.replayed = Some(true);
    serde_json::to_vec(&envelope).map(Bytes::from)
}

/// What an event is about, from a closed set: `direct_call`, `room` or `other`. A category that is
/// neither by its name is what its subject says.
pub fn object(category: &str, subject: Option<&str>) -> &'static str {
    let name = category.split(':').next().unwrap_or_default();
    let subject = subject.unwrap_or_default();
    if name.eq_ignore_ascii_case("direct_call") {
        "direct_call"
    } else if name.eq_ignore_ascii_case("room") {
        "room"
    } else if subject.starts_with("direct_calls/") {
        "direct_call"
    } else if subject.starts_with("rooms/") {
        "room"
    } else {
        "other"
    }
}

/// What follows the first colon of a category, or all of it where there is none.
pub fn verb(category: &str) -> &str {
    category.split_once(':').map_or(category, |(_, verb)| verb)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: &str = r#"{"specversion":"1.0","id":"i","source":"https://api-A.calls.sendbird.com","type":"com.sendbird.calls.room.create","subject":"rooms/R","time":"2026-01-01T00:00:00.000Z","datacontenttype":"application/json","dataschema":"urn:sendbird-bridge:schema:room:v1","partitionkey":"R","receivedtime":"2026-01-01T00:00:00.100Z","data":{"category":"room:create","application_id":"A","occurred_at_ms":1,"raw":{"category":"room:create"}}}"#;

    #[test]
    fn a_view_shares_the_stored_bytes() {
        let stored = Bytes::from_static(STORED.as_bytes());
        let view = View::parse(&stored).expect("an envelope");
        assert_eq!((view.category(), view.key()), ("room:create", "R"));
        assert_eq!(view.body(Format::Structured), stored);
        let data = view.body(Format::Binary);
        assert!(data.starts_with(b"{\"category\"") && stored.as_ptr_range().contains(&data.as_ptr()));
        assert_eq!(view.values().object, "room");
        assert_eq!(view.values().verb, "create");
    }

    #[test]
    fn headers_are_four_or_all() {
        let stored = Bytes::from_static(STORED.as_bytes());
        let view = View::parse(&stored).expect("an envelope");
        let names = |format| view.headers(format).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(Format::Structured), ["id", "type", "subject", "time"]);
        assert_eq!(
            names(Format::Binary),
            ["id", "type", "subject", "time", "specversion", "source", "dataschema", "partitionkey", "receivedtime"]
        );
    }

    #[test]
    fn writing_and_reading_agree() {
        let envelope: Envelope<'_, &RawValue> = serde_json::from_str(STORED).expect("an envelope");
        assert_eq!(serde_json::to_string(&envelope).expect("json"), STORED);
    }

    #[test]
    fn a_replay_differs_in_its_mark_alone() {
        let marked = replayed(STORED.as_bytes()).expect("an envelope");
        assert_eq!(STORED.replace("\"data\"", "\"replayed\":true,\"data\""), String::from_utf8_lossy(&marked));
        let view = View::parse(&marked).expect("an envelope");
        assert!(view.headers(Format::Binary).any(|header| header == ("replayed", "true")));
    }

    #[test]
    fn what_was_reconciled_says_so_as_a_boolean_and_in_headers_of_the_binary_form_alone() {
        let marked = STORED.replace("\"data\"", "\"reconciled\":true,\"data\"");
        let envelope: Envelope<'_, &RawValue> = serde_json::from_str(&marked).expect("an envelope");
        assert_eq!(serde_json::to_string(&envelope).expect("json"), marked);
        let stored = Bytes::from(marked);
        let view = View::parse(&stored).expect("an envelope");
        let mark = |format| view.headers(format).find(|(name, _)| *name == "reconciled");
        assert_eq!(mark(Format::Binary), Some(("reconciled", "true")));
        assert_eq!(mark(Format::Structured), None);
    }

    #[test]
    fn a_trace_is_an_attribute_of_the_binary_form_and_a_header_of_both() {
        const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let traced = STORED.replace("\"data\"", &format!("\"traceparent\":\"{TRACE}\",\"data\""));
        let envelope: Envelope<'_, &RawValue> = serde_json::from_str(&traced).expect("an envelope");
        assert_eq!(serde_json::to_string(&envelope).expect("json"), traced);
        let stored = Bytes::from(traced);
        let view = View::parse(&stored).expect("an envelope");
        let attribute = |format| view.headers(format).find(|(name, _)| *name == "traceparent");
        assert_eq!(attribute(Format::Binary), Some(("traceparent", TRACE)));
        assert_eq!(attribute(Format::Structured), None);
        assert_eq!(view.trace(), Some(TRACE));
    }

    #[test]
    fn objects_are_a_closed_set() {
        assert_eq!(object("Direct_Call:dial", None), "direct_call");
        assert_eq!(object("call:new", Some("direct_calls/x")), "direct_call");
        assert_eq!(object("x:y", Some("rooms/x")), "room");
        assert_eq!(object("x", None), "other");
        assert_eq!((verb("a:b:c"), verb("a")), ("b:c", "a"));
    }
}
