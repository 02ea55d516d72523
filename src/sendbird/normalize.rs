//! From a delivery to an event: the id, the key and the envelope.
//!
//! It never fails: whatever is missing or odd is `null` in the data, and counted. The same delivery gives
//! the same id wherever and whenever it is normalised; only `receivedtime` and `traceparent` tell two copies apart.

use std::borrow::Cow;
use std::cell::Cell;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::canonical::canonical;
use super::category::{Category, event_type};
use super::data::{Data, Source};
use super::delivery::{Anomalies, Delivery, Object};
use crate::domain::clock::rfc3339;
use crate::domain::envelope::{Envelope, SPECVERSION, object};
use crate::domain::identity::EventId;
use crate::domain::kind;
use crate::domain::trace::TraceParent;

/// How envelopes are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether `data.raw` carries the delivery as received, secrets redacted; otherwise it is null.
    pub include_raw: bool,
    /// What the name of a data schema begins with; `{object}:v1` follows. Set it to the address where you
    /// publish the schemas, if consumers should fetch them.
    pub schema_base: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { include_raw: true, schema_base: "urn:sendbird-bridge:schema:".into() }
    }
}

impl Settings {
    /// Every fault, as key and message.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        // CloudEvents asks for a URI (RFC 3986): a scheme, a colon, and characters that a URI has.
        let scheme = self.schema_base.split_once(':').map_or("", |(scheme, _)| scheme);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
        if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
            && self.schema_base.bytes().all(plain)
        {
            return Vec::new();
        }
        let message = format!("expected the beginning of a URI, but found \"{}\"", self.schema_base);
        vec![("schema_base", message)]
    }
}

/// A delivery made ready to be kept.
#[derive(Clone, Debug)]
pub struct Event {
    /// Equal for every retry of the delivery.
    pub id: EventId,
    /// What order is kept by; never empty. The envelope's `partitionkey`.
    pub key: String,
    /// The category, from the closed set.
    pub category: Category,
    /// The application as it came.
    pub application_id: Option<String>,
    /// The structured CloudEvent, one line of JSON.
    pub envelope: Vec<u8>,
    /// What the journal filters by: the CloudEvents type and the application.
    pub kind: String,
    /// What was not as expected.
    pub anomalies: Anomalies,
}

/// What the envelope tells of how a delivery came; no part of what it is.
#[derive(Clone, Copy, Debug)]
pub struct Provenance {
    /// When, in Unix milliseconds.
    pub at_ms: i64,
    /// In which trace.
    pub trace: Option<TraceParent>,
    /// Whether nobody delivered it, and it was made from what the Calls Platform API knows.
    pub reconciled: bool,
}

impl Provenance {
    /// Received at `at_ms`, Unix milliseconds, in no trace.
    pub fn at(at_ms: i64) -> Self {
        Self { at_ms, trace: None, reconciled: false }
    }

    /// Made at `at_ms`, Unix milliseconds, from what the Calls Platform API knows.
    pub fn reconciled(at_ms: i64) -> Self {
        Self { at_ms, trace: None, reconciled: true }
    }
}

/// Makes the event of a delivery.
pub fn normalize(delivery: &Delivery, provenance: Provenance, settings: &Settings) -> Event {
    let odd = Cell::new(0);
    let source = Source::new(delivery.object(&odd));
    let category = delivery.category();
    let (call, room) = (source.call(category), source.room(category));
    let has_room = room.is_some();
    let data = Data {
        category: delivery.category_text(),
        application_id: source.top.text("application_id"),
        occurred_at_ms: occurred_at_ms(&source.top),
        call,
        room,
        participant: has_room.then(|| source.participant(category)),
        invitation: has_room.then(|| source.invitation(category)),
        // The text has been found valid before, so this doesn't fail.
        raw: settings.include_raw.then(|| serde_json::from_str::<&RawValue>(delivery.redacted()).ok()).flatten(),
    };
    let id = identity(category, &data).unwrap_or_else(|| EventId::of_body(canonical(delivery.redacted()).as_bytes()));
    let key = key(&data);
    let type_name = cloudevents_type(category, data.category);
    let anomalies = Anomalies { unknown_keys: unknown_keys(&source.top), unexpected_types: odd.get() };
    Event {
        id,
        category,
        application_id: delivery.application_id().map(str::to_owned),
        envelope: envelope(&id, &type_name, &key, provenance, settings, data, delivery.redacted().len()),
        kind: kind::of(&type_name, delivery.application_id()),
        key: key.into_owned(),
        anomalies,
    }
}

/// When it happened. Documented: whole milliseconds; an SDK of Sendbird's misspells the key. A number
/// below 10^11 would be 1973 in milliseconds and is taken for seconds. What no calendar has is not known.
fn occurred_at_ms(top: &Object<'_>) -> Option<i64> {
    const FIRST_IN_MILLISECONDS: i64 = 100_000_000_000;
    let at = top.integer("occurred_at").or_else(|| top.integer("occured_at"))?;
    let ms = if at < FIRST_IN_MILLISECONDS { at.checked_mul(1000) } else { Some(at) };
    ms.filter(|ms| rfc3339(*ms).is_some()).or_else(|| top.odd())
}

/// The id over the parts that tell this event from any other, or `None` where one of them is not known.
fn identity(category: Category, data: &Data<'_>) -> Option<EventId> {
    let application = data.application_id.as_ref()?.to_ascii_uppercase();
    let occurred = data.occurred_at_ms?.to_string();
    let room_id = || data.room.as_ref()?.room_id.as_deref();
    let participant = || data.participant.as_ref()?.as_ref()?.participant_id.as_deref();
    let invitation = || data.invitation.as_ref()?.as_ref();
    let tuple = |key: &str, rest: &[&str]| {
        let parts = [application.as_str(), category.label(), key, occurred.as_str()];
        EventId::of_parts(parts.iter().chain(rest).map(|part| part.as_bytes()))
    };
    Some(if category.is_call() {
        tuple(data.call.as_ref()?.call_id.as_deref()?, &[])
    } else if category.is_participant() {
        tuple(room_id()?, &[participant()?])
    } else if category.is_invitation() {
        let invitation = invitation()?;
        tuple(room_id()?, &[invitation.inviter_id.as_deref()?, invitation.invitee_id.as_deref()?])
    } else if category.is_known() {
        tuple(room_id()?, &[])
    } else {
        return None;
    })
}

fn key<'a>(data: &Data<'a>) -> Cow<'a, str> {
    let call_id = data.call.as_ref().and_then(|call| call.call_id.clone());
    let key = call_id
        .or_else(|| data.room.as_ref()?.room_id.clone())
        .or_else(|| data.application_id.clone())
        .unwrap_or(Cow::Borrowed("unknown"));
    attribute(key)
}

/// The CloudEvents type: the category in its documented spelling where it is known.
fn cloudevents_type(category: Category, text: &str) -> String {
    let name = if category.is_known() { category.label() } else { text };
    attribute(Cow::Owned(event_type(name))).into_owned()
}

fn envelope(
    id: &EventId,
    kind: &str,
    key: &str,
    provenance: Provenance,
    settings: &Settings,
    data: Data<'_>,
    raw_length: usize,
) -> Vec<u8> {
    const AROUND_RAW: usize = 2048;
    let time = |ms| rfc3339(ms).map(Cow::Owned);
    let received = time(provenance.at_ms).unwrap_or(Cow::Borrowed("1970-01-01T00:00:00.000Z"));
    let call_id = data.call.as_ref().and_then(|call| call.call_id.as_deref());
    let room_id = data.room.as_ref().and_then(|room| room.room_id.as_deref());
    let subject = call_id
        .map(|id| format!("direct_calls/{id}"))
        .or_else(|| room_id.map(|id| format!("rooms/{id}")))
        .map(|subject| attribute(Cow::Owned(subject)));
    let envelope = Envelope {
        specversion: SPECVERSION.into(),
        id: id.to_string().into(),
        source: source(data.application_id.as_deref()).into(),
        r#type: kind.into(),
        time: data.occurred_at_ms.and_then(time).unwrap_or_else(|| received.clone()),
        datacontenttype: "application/json".into(),
        dataschema: format!("{}{}:v1", settings.schema_base, object(data.category, subject.as_deref())).into(),
        subject,
        partitionkey: key.into(),
        receivedtime: received,
        traceparent: provenance.trace.as_ref().map(|trace| trace.as_str().into()),
        replayed: None,
        reconciled: provenance.reconciled.then_some(true),
        data,
    };
    let mut out = Vec::with_capacity(AROUND_RAW + raw_length);
    serde_json::to_writer(&mut out, &envelope).expect("texts, numbers and lists are always written to memory");
    out
}

/// The application's address. Documented: the host name that its REST API has.
fn source(application_id: Option<&str>) -> String {
    const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    let name = application_id.unwrap_or("unknown");
    format!("https://api-{}.calls.sendbird.com", utf8_percent_encode(name, UNRESERVED))
}

/// A text as CloudEvents allows it in an attribute: control characters and code points that are no
/// characters are percent-encoded. No id that Sendbird makes has any.
fn attribute(text: Cow<'_, str>) -> Cow<'_, str> {
    let forbidden = |c: char| c.is_control() || matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    if !text.contains(forbidden) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if forbidden(c) {
            out.extend(utf8_percent_encode(c.encode_utf8(&mut [0; 4]), NON_ALPHANUMERIC));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// How many keys of the outermost object are not documented.
fn unknown_keys(top: &Object<'_>) -> u32 {
    const KNOWN: [&str; 31] = [
        "category",
        "occurred_at",
        "application_id",
        "direct_call",
        "room",
        "participant",
        "inviter",
        "invitee",
        "sendbird_call",
        "result",
        "end_result",
        "reason",
        "occured_at",
        "invitation",
        "room_invitation",
        "room_id",
        "inviter_id",
        "invitee_id",
        // A flat participant.
        "participant_id",
        "user",
        "user_id",
        "client_id",
        "state",
        "entered_at",
        "connected_at",
        "updated_at",
        "exited_at",
        "exit_at",
        "duration",
        "is_audio_on",
        "is_video_on",
    ];
    let unknown = top.members().filter(|(key, _)| !KNOWN.contains(&key.as_ref())).count();
    u32::try_from(unknown).unwrap_or(u32::MAX)
}
