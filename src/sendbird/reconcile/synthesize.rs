//! Facts of the API's objects, and the deliveries and events that are made of them.

use serde_json::{Map, Value, json};

use super::{Fact, FactKind};
use crate::domain::clock::rfc3339;
use crate::sendbird::api::{DirectCall, Participant, Room};
use crate::sendbird::delivery::{self, Refused};
use crate::sendbird::normalize::{Event, Provenance, Settings, normalize};

/// What of a call is so from the first moment on; but `custom_items` are those of now, as the API can change them.
const CALL: [&str; 6] = ["call_id", "call_type", "is_video_call", "started_by", "started_at", "custom_items"];

/// What its end adds.
const ENDED: [&str; 5] = ["state", "end_result", "ended_by", "ended_at", "duration"];

/// What of a room is so from the first moment on, with the same exception.
const ROOM: [&str; 5] = ["room_id", "room_type", "created_at", "created_by", "custom_items"];

/// What its end adds.
const DELETED: [&str; 4] = ["state", "updated_at", "deleted_at", "deleted_by"];

/// What of a stay is so from the first moment on.
const ENTERED: [&str; 6] = ["participant_id", "room_id", "client_id", "user", "user_id", "entered_at"];

/// The facts of an object that can be stated, and how many cannot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// In the order in which they happened.
    pub facts: Vec<Fact>,
    /// What has happened at a time that the API does not say, or to something whose id it does not say.
    pub without_time: u32,
}

impl Facts {
    fn add(&mut self, fact: Option<Fact>) {
        match fact {
            Some(fact) => self.facts.push(fact),
            None => self.without_time += 1,
        }
    }
}

/// Of a call: that it was dialed (`started_at`; documented as just that), that it ended (`ended_at`), and, of one that
/// has a `duration`, that it was answered: documented as the time from there to the end.
pub fn of_call(application: &str, call: &DirectCall) -> Facts {
    let mut facts = Facts::default();
    let fact = |kind: FactKind, at: Option<i64>, members: &[&str]| {
        let mut object = pick(&call.raw, members);
        set(&mut object, "caller_id", call.caller_id().or_else(|| call.started_by.clone()));
        set(&mut object, "callee_id", callee_id(call));
        let made_from = json!({ "direct_call": call.raw });
        fact(application, kind, at, &call.call_id, json!({ "direct_call": object, "made_from": made_from }))
    };
    let (started, ended) = (time(call.started_at_ms), time(call.ended_at_ms));
    facts.add(fact(FactKind::Dial, started, &CALL));
    let lasted = call.duration_ms.filter(|duration| *duration > 0);
    let answered = lasted
        .and_then(|duration| ended?.checked_sub(duration))
        .filter(|at| started.is_some_and(|started| *at >= started));
    if answered.is_some() {
        facts.add(fact(FactKind::Accept, answered, &CALL));
    }
    if ended.is_some() || is(call.state.as_ref(), "ended") {
        facts.add(fact(FactKind::End, ended, &[CALL.as_slice(), ENDED.as_slice()].concat()));
    }
    facts
}

/// Of a room: that it was made (`created_at`) and deleted: `deleted_at`, or, where the API does not say, `updated_at`
/// of a deleted room, as it is not opened again (documented) and its deletion then is the last that happened to it
/// (likely).
pub fn of_room(application: &str, room: &Room) -> Facts {
    let mut facts = Facts::default();
    let fact = |kind: FactKind, at: Option<i64>, members: &[&str]| {
        let about = json!({ "room": pick(&room.raw, members), "made_from": { "room": room.raw } });
        fact(application, kind, at, &room.room_id, about)
    };
    facts.add(fact(FactKind::Create, time(room.created_at_ms), &ROOM));
    let deleted = is(room.state.as_ref(), "deleted");
    if deleted || room.deleted_at_ms.is_some() {
        let at = time(room.deleted_at_ms).or_else(|| time(room.updated_at_ms).filter(|_| deleted));
        facts.add(fact(FactKind::Delete, at, &[ROOM.as_slice(), DELETED.as_slice()].concat()));
    }
    facts
}

/// Of a stay in a room: that it began (`entered_at`) and ended (`exited_at`).
pub fn of_participant(application: &str, room: &Room, participant: &Participant) -> Facts {
    let mut facts = Facts::default();
    let fact = |kind: FactKind, at: Option<i64>, stay: Map<String, Value>| {
        let made_from = json!({ "room": room.raw, "participant": participant.raw });
        let about = json!({ "room": pick(&room.raw, &ROOM), "participant": stay, "made_from": made_from });
        let participant_id = Some(participant.participant_id.clone()?);
        Some(Fact { participant_id, ..fact(application, kind, at, &room.room_id, about)? })
    };
    facts.add(fact(FactKind::Enter, time(participant.entered_at_ms), pick(&participant.raw, &ENTERED)));
    if participant.exited_at_ms.is_some() || is(participant.state.as_ref(), "exited") {
        let whole = participant.raw.as_object().cloned().unwrap_or_default();
        facts.add(fact(FactKind::Leave, time(participant.exited_at_ms), whole));
    }
    facts
}

/// Makes the event of a fact. The same object gives the same id, whoever asks and when; the delivery's own if that
/// happened at the same millisecond. Received at `now_ms`, Unix milliseconds.
///
/// # Errors
/// The object is nested too deep for a delivery.
pub fn event(fact: &Fact, now_ms: i64, settings: &Settings) -> Result<Event, Refused> {
    let delivery = delivery::parse(fact.delivery.as_bytes())?;
    Ok(normalize(&delivery, Provenance::reconciled(now_ms), settings))
}

/// A fact and the delivery that tells of it; `None` where the API does not say when it happened, or to what.
fn fact(application: &str, kind: FactKind, at: Option<i64>, key: &Option<String>, mut delivery: Value) -> Option<Fact> {
    let (at_ms, key) = (at?, key.clone()?);
    delivery["category"] = kind.category().label().into();
    delivery["occurred_at"] = at_ms.into();
    delivery["application_id"] = application.into();
    Some(Fact { kind, at_ms, key, participant_id: None, delivery: delivery.to_string() })
}

/// Who was called: whom the API calls so, or the other one of the two (documented: calls are one to one).
fn callee_id(call: &DirectCall) -> Option<String> {
    let other = || {
        let [one, two] = &call.participants[..] else { return None };
        let (one, two, caller) = (one.user_id.as_ref()?, two.user_id.as_ref()?, call.started_by.as_ref()?);
        match (one == caller, two == caller) {
            (true, false) => Some(two.clone()),
            (false, true) => Some(one.clone()),
            _ => None,
        }
    };
    call.callee_id().or_else(other)
}

fn pick(from: &Value, members: &[&str]) -> Map<String, Value> {
    let found = members.iter().filter_map(|name| Some(((*name).to_owned(), from.get(*name)?.clone())));
    found.collect()
}

fn set(object: &mut Map<String, Value>, name: &str, text: Option<String>) {
    if let Some(text) = text {
        object.insert(name.into(), text.into());
    }
}

fn is(text: Option<&String>, state: &str) -> bool {
    text.is_some_and(|text| text.eq_ignore_ascii_case(state))
}

/// Unix milliseconds that a calendar has; as everywhere, a number below 10^11 is taken for seconds. What is then still
/// below, before 1973, is no time: a delivery that says it in milliseconds would be taken to say seconds.
fn time(at: Option<i64>) -> Option<i64> {
    const FIRST_IN_MILLISECONDS: i64 = 100_000_000_000;
    let at = at?;
    let ms = if at < FIRST_IN_MILLISECONDS { at.checked_mul(1000)? } else { at };
    (ms >= FIRST_IN_MILLISECONDS && rfc3339(ms).is_some()).then_some(ms)
}
