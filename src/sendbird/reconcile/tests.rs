//! Facts from both sides, and the events that are made of them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::seen_facts::{MARGIN_MS, SeenFacts, Verdict};
use super::*;
use crate::sendbird::api::{DirectCall, Participant, Room};
use crate::sendbird::delivery;
use crate::sendbird::normalize::{Provenance, Settings, normalize};

const APPLICATION: &str = "0A1B2C3D-1111-4222-8333-444455556666";

/// What the API would show of the call of the samples.
fn call() -> Value {
    json!({
        "call_id": "7F0E3C52-9A41-4D0B-8C55-0D6A1E2F3B4C", "call_type": "direct_call", "is_video_call": "true",
        "state": "ended", "end_result": "completed", "started_by": "alice", "ended_by": "bob",
        "started_at": 1_767_225_600_100_i64, "ended_at": 1_767_225_733_780_i64, "duration": 124_324,
        "participants": [{ "user_id": "alice", "role": "dc_caller" }, { "user_id": "bob", "role": "dc_callee" }],
        "custom_items": { "ticket": "42" }, "password": "canary",
    })
}

fn room() -> Value {
    json!({
        "room_id": "3c9d7f20-5b61-4e0a-a6a2-11aa22bb33cc", "room_type": "small_room_for_video", "state": "Deleted",
        "created_at": 1_767_229_199_990_i64, "updated_at": 1_767_232_799_990_i64, "created_by": "alice",
        "deleted_by": "alice", "deleted_at": 1_767_232_799_990_i64, "current_participants": [], "custom_items": {},
    })
}

fn participant() -> Value {
    json!({
        "participant_id": "b7a0c1d2-77e8-4f90-8a1b-90ab12cd34ef", "room_id": "3c9d7f20-5b61-4e0a-a6a2-11aa22bb33cc",
        "client_id": "e1d2c3b4-0000-4aaa-8bbb-cccdddeeefff", "state": "exited", "entered_at": 1_767_229_259_990_i64,
        "connected_at": 1_767_229_261_200_i64, "exited_at": 1_767_229_559_990_i64, "duration": 300,
        "user": { "user_id": "alice" }, "is_audio_on": true, "is_video_on": true,
    })
}

fn facts_of_call(value: &Value) -> Facts {
    of_call(APPLICATION, &DirectCall::parse(value).expect("a call"))
}

fn facts_of_room(value: &Value) -> Facts {
    of_room(APPLICATION, &Room::parse(value).expect("a room"))
}

fn facts_of_participant(value: &Value) -> Facts {
    let room = Room::parse(&room()).expect("a room");
    of_participant(APPLICATION, &room, &Participant::parse(value).expect("a participant"))
}

fn all() -> Vec<Fact> {
    let facts = [facts_of_call(&call()), facts_of_room(&room()), facts_of_participant(&participant())];
    assert!(facts.iter().all(|facts| facts.without_time == 0));
    facts.into_iter().flat_map(|facts| facts.facts).collect()
}

fn envelope(fact: &Fact) -> Value {
    let event = event(fact, 1_800_000_000_000, &Settings::default()).expect("an event");
    serde_json::from_slice(&event.envelope).expect("an envelope")
}

fn sample(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/samples/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let body = std::fs::read(path).expect("a sample");
    let delivery = delivery::parse(&body).expect("a delivery");
    normalize(&delivery, Provenance::at(1), &Settings::default()).envelope
}

#[test]
fn a_fact_is_the_same_whether_delivered_or_asked_for() {
    let facts = all();
    for (told, names) in [
        (FactKind::Dial, vec!["direct_call.dial"]),
        (FactKind::Accept, vec!["direct_call.accept"]),
        (FactKind::End, vec!["direct_call.end"]),
        (FactKind::Create, vec!["room.create"]),
        (FactKind::Enter, vec!["room.participant_enter"]),
        (FactKind::Leave, vec!["room.participant_exit", "room.participant_disconnect"]),
        (FactKind::Delete, vec!["room.delete"]),
    ] {
        let fact = facts.iter().find(|fact| fact.kind == told).expect("the API knows of it");
        for name in names {
            assert_eq!(fact_of(&sample(name)), fact.ids(APPLICATION).first().copied(), "{name}");
            assert_eq!(fact_of(&sample(name)), fact.ids(&APPLICATION.to_lowercase()).first().copied(), "{name}");
        }
        let made = event(fact, 5, &Settings::default()).expect("an event");
        assert_eq!(fact_of(&made.envelope), fact.ids(APPLICATION).first().copied(), "a second run finds the first's");
    }
    assert_eq!(fact_of(&sample("room.invitation_send")), None);
    assert_eq!(fact_of(b"no envelope"), None);
    let mut ids: Vec<FactId> = facts.iter().filter_map(|fact| fact.ids(APPLICATION).first().copied()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 7, "each is another");
}

#[test]
fn every_category_is_told_or_not_known_to_the_api() {
    for told in FactKind::ALL {
        assert_eq!(FactKind::by(told.category()), Some(told));
    }
    let unknown: Vec<Category> = Category::ALL.into_iter().filter(|it| FactKind::by(*it).is_none()).collect();
    assert!(unknown.iter().all(|category| category.is_invitation()) && unknown.len() == 5, "{unknown:?}");
}

#[test]
fn an_event_says_only_what_was_so_when_it_happened() {
    let of = |told: FactKind| envelope(all().iter().find(|fact| fact.kind == told).expect("a fact"));
    let dial = of(FactKind::Dial);
    assert_eq!((&dial["reconciled"], &dial["time"]), (&json!(true), &json!("2026-01-01T00:00:00.100Z")));
    assert_eq!(dial["source"], json!(format!("https://api-{APPLICATION}.calls.sendbird.com")));
    assert_eq!(dial["type"], "com.sendbird.calls.direct_call.dial");
    let call = &dial["data"]["call"];
    assert_eq!((&call["caller_id"], &call["callee_id"]), (&json!("alice"), &json!("bob")));
    assert_eq!((&call["is_video_call"], &call["custom_items"]), (&json!(true), &json!({ "ticket": "42" })));
    for later in ["end_result", "ended_by", "ended_at_ms", "duration_ms"] {
        assert_eq!(call[later], Value::Null, "{later}");
    }
    let made_from = &dial["data"]["raw"]["made_from"]["direct_call"];
    assert_eq!((&made_from["end_result"], &made_from["password"]), (&json!("completed"), &json!("[redacted]")));

    let end = of(FactKind::End);
    let call = &end["data"]["call"];
    assert_eq!((&call["end_result"], &call["ended_by"]), (&json!("completed"), &json!("bob")));
    assert_eq!((&call["duration_ms"], &call["ended_at_ms"]), (&json!(124_324), &json!(1_767_225_733_780_i64)));
    assert_eq!(of(FactKind::Accept)["data"]["occurred_at_ms"], 1_767_225_609_456_i64);

    let (create, delete) = (of(FactKind::Create), of(FactKind::Delete));
    let (create, delete) = (&create["data"]["room"], &delete["data"]["room"]);
    assert_eq!((&create["state"], &create["deleted_at_ms"]), (&Value::Null, &Value::Null));
    assert_eq!((&delete["state"], &delete["deleted_by"]), (&json!("Deleted"), &json!("alice")));

    let (enter, leave) = (of(FactKind::Enter), of(FactKind::Leave));
    let (enter, leave) = (&enter["data"]["participant"], &leave["data"]["participant"]);
    for later in ["exited_at_ms", "duration_s", "state", "is_audio_on"] {
        assert_eq!(enter[later], Value::Null, "{later}");
    }
    assert_eq!((&enter["user_id"], &leave["user_id"]), (&json!("alice"), &json!("alice")));
    assert_eq!((&leave["duration_s"], &leave["state"]), (&json!(300), &json!("exited")));
}

#[test]
fn what_did_not_happen_or_has_no_time_is_no_fact() {
    let with = |mut value: Value, changes: Value| {
        let changes = changes.as_object().expect("an object").clone();
        value.as_object_mut().expect("an object").extend(changes);
        value
    };
    let told = |facts: Facts| (facts.facts.iter().map(|fact| fact.kind).collect::<Vec<_>>(), facts.without_time);
    use FactKind::{Accept, Create, Delete, Dial, End, Enter};
    for (changes, expected) in [
        (json!({ "state": "current", "ended_at": null, "duration": null }), (vec![Dial], 0)),
        (json!({ "duration": 0, "end_result": "no_answer" }), (vec![Dial, End], 0)),
        // In seconds, as an old page has it, it would still be in the call; longer than the call it is not understood.
        (json!({ "duration": 1_000_000_000 }), (vec![Dial, End], 0)),
        (json!({ "ended_at": null }), (vec![Dial], 1)),
        (json!({ "started_at": 0, "duration": null }), (vec![End], 1)),
        (json!({ "started_at": 1, "duration": null }), (vec![End], 1)),
        (json!({ "started_at": null, "duration": 1_767_225_733_000_i64 }), (vec![End], 1)),
        (json!({ "started_at": 1_767_225_600 }), (vec![Dial, Accept, End], 0)),
        (json!({ "call_id": null, "duration": null }), (vec![], 2)),
    ] {
        assert_eq!(told(facts_of_call(&with(call(), changes.clone()))), expected, "{changes}");
    }
    for (changes, expected) in [
        (json!({ "state": "open", "deleted_at": null }), (vec![Create], 0)),
        (json!({ "deleted_at": null }), (vec![Create, Delete], 0)),
        (json!({ "deleted_at": null, "updated_at": null }), (vec![Create], 1)),
    ] {
        assert_eq!(told(facts_of_room(&with(room(), changes.clone()))), expected, "{changes}");
    }
    let inside = with(participant(), json!({ "exited_at": null, "state": "connected" }));
    assert_eq!(told(facts_of_participant(&inside)), (vec![Enter], 0));
    let untimed = with(participant(), json!({ "exited_at": null }));
    assert_eq!(told(facts_of_participant(&untimed)), (vec![Enter], 1));
}

#[test]
fn the_other_one_of_two_was_called() {
    let mut call = call();
    call["participants"] = json!([{ "user_id": "bob" }, { "user_id": "alice" }]);
    let dial = envelope(&facts_of_call(&call).facts[0]);
    let found = (&dial["data"]["call"]["caller_id"], &dial["data"]["call"]["callee_id"]);
    assert_eq!(found, (&json!("alice"), &json!("bob")));
    call["participants"] = json!([{ "user_id": "bob" }]);
    assert_eq!(envelope(&facts_of_call(&call).facts[0])["data"]["call"]["callee_id"], Value::Null, "no guess");
}

/// Before the facts of the samples.
const EARLY: i64 = 1_767_225_600_000 - 2 * MARGIN_MS;

fn other(position: u64) -> Vec<u8> {
    let text =
        format!(r#"{{"data":{{"category":"room:create","application_id":"A","room":{{"room_id":"{position}"}}}}}}"#);
    text.into_bytes()
}

fn verdicts(known: &SeenFacts) -> Vec<Verdict> {
    all().iter().map(|fact| known.verdict(APPLICATION, fact)).collect()
}

#[test]
fn nothing_is_missing_before_the_journal_began() {
    let mut known = SeenFacts::default();
    assert_eq!((known.since_ms(), verdicts(&known)), (None, vec![Verdict::Unknown; 7]));
    known.add_record(5, EARLY, &other(5));
    assert_eq!(verdicts(&known), [Verdict::Unknown; 7], "the journal keeps nothing without holes");
    known.complete_from(Some(EARLY - 1));
    assert_eq!((known.since_ms(), known.through()), (Some(EARLY + MARGIN_MS), 5));
    assert_eq!(verdicts(&known), [Verdict::Missing; 7]);
    known.add_record(6, EARLY + 1, &sample("direct_call.end"));
    let fact = &all()[2];
    assert_eq!((fact.kind, known.verdict(APPLICATION, fact)), (FactKind::End, Verdict::Stored));
    let dial = &all()[0];
    known.add_candidates(dial.ids(APPLICATION).into_iter().take(1));
    assert_eq!(known.verdict(APPLICATION, dial), Verdict::Candidate);
    assert_eq!(known.spelling(&APPLICATION.to_lowercase()), Some(APPLICATION));

    // Retention was faster than the reader: 7 is gone, and with it the fact that it stated.
    known.add_record(8, 1_767_225_700_000, &other(8));
    assert_eq!(known.verdict(APPLICATION, &all()[1]), Verdict::Unknown);
    assert_eq!(known.verdict(APPLICATION, fact), Verdict::Stored, "what was seen was seen");
    assert_eq!(known.verdict(APPLICATION, &all()[4]), Verdict::Missing, "of what is later all is known");
}

fn complete() -> SeenFacts {
    let mut known = SeenFacts::default();
    known.complete_from(Some(i64::MIN));
    known
}

#[test]
fn nothing_is_missing_of_a_time_of_which_the_journal_keeps_only_what_a_sink_needs() {
    let mut known = SeenFacts::default();
    known.complete_from(Some(1_767_225_700_000));
    known.add_record(5, EARLY, &other(5));
    known.add_record(6, 1_767_225_700_000, &other(6));
    let found = verdicts(&known);
    assert_eq!((found[0], found[3]), (Verdict::Unknown, Verdict::Missing));

    // What was stored after the last record that is kept was released before it.
    known.end(6);
    assert_eq!((verdicts(&known)[3], known.through()), (Verdict::Missing, 6));
    known.end(9);
    assert_eq!((verdicts(&known), known.through()), (vec![Verdict::Unknown; 7], 9));
    known.add_record(10, 1_767_225_700_000, &other(10));
    assert_eq!(verdicts(&known)[3], Verdict::Missing);
}

#[test]
fn what_another_bridge_has_stored_is_not_missing_and_it_must_reach_back_as_far() {
    let mut known = complete();
    known.others_since(EARLY);
    known.add_event(&sample("direct_call.end"));
    assert_eq!((known.since_ms(), known.verdict(APPLICATION, &all()[2])), (None, Verdict::Stored));
    known.add_record(1, EARLY - 7, &other(1));
    assert_eq!(known.since_ms(), Some(EARLY + MARGIN_MS));
    known.others_since(EARLY + 5);
    known.others_since(EARLY);
    assert_eq!(known.since_ms(), Some(EARLY + 5 + MARGIN_MS), "the latest of all");
}

#[test]
fn what_can_not_be_read_may_tell_of_anything_of_its_time() {
    let mut known = complete();
    known.add_record(1, EARLY, &other(1));
    known.add_damaged(2);
    assert_eq!(verdicts(&known), [Verdict::Unknown; 7], "nobody knows of how long a time");
    known.add_record(3, 1_767_225_600_000, &other(3));
    let found = verdicts(&known);
    assert_eq!(found[..3], [Verdict::Unknown; 3], "the call is near");
    assert_eq!(found[3..], [Verdict::Missing; 4], "the room is an hour later");
}

#[test]
fn an_event_that_does_not_say_of_which_participant_it_tells_may_tell_of_each() {
    let mut known = complete();
    known.add_record(1, EARLY, &other(1));
    let nobody = String::from_utf8(sample("room.participant_enter")).expect("UTF-8");
    let nobody = nobody.replace("b7a0c1d2-77e8-4f90-8a1b-90ab12cd34ef", "");
    known.add_record(2, EARLY, nobody.replace("\"participant_id\":\"\"", "\"participant_id\":null").as_bytes());
    for fact in all() {
        let expected = if fact.kind == FactKind::Enter { Verdict::Unknown } else { Verdict::Missing };
        assert_eq!(known.verdict(APPLICATION, &fact), expected, "{:?}", fact.kind);
    }
    assert!(known.rooms().contains("3c9d7f20-5b61-4e0a-a6a2-11aa22bb33cc"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0i64..3_000_000_000_000).prop_map(Value::from),
        (-5i64..5).prop_map(Value::from),
        "[0-9]{1,14}".prop_map(Value::from),
        "[a-z0-9\\\\\"é]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,4}", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_api_says_each_fact_has_one_event_and_that_tells_of_it(
        which in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 0..6),
        now_ms in 1_700_000_000_000i64..1_900_000_000_000,
    ) {
        let mut object = [call(), room(), participant()][which].clone();
        let names: Vec<String> = object.as_object().unwrap().keys().cloned().collect();
        for (name, value) in changes {
            object[names[name.index(names.len())].as_str()] = value;
        }
        let facts = [facts_of_call, facts_of_room, facts_of_participant][which](&object);
        for fact in &facts.facts {
            let made = event(fact, now_ms, &Settings::default()).unwrap();
            let again = event(fact, now_ms + 1, &Settings::default()).unwrap();
            prop_assert_eq!(made.id, again.id);
            prop_assert_eq!(made.category, fact.kind.category());
            prop_assert_eq!(&made.key, &again.key);
            prop_assert_eq!(fact_of(&made.envelope), fact.ids(APPLICATION).first().copied());
            let text: Value = serde_json::from_slice(&made.envelope).unwrap();
            prop_assert_eq!(&text["data"]["occurred_at_ms"], &json!(fact.at_ms));
        }
    }
}
