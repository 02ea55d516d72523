//! The judge: given what was sent and answered, and what arrived, says what is wrong.
//!
//! Every delivery that was answered 200 must have arrived, with the content that was sent, and the first appearances
//! of a key's events in the order in which they were sent. One that was not answered 200 may have arrived or not. What
//! nobody sent must not be there. An event may arrive more than once, under the same id: that is counted, not blamed.
//!
//! One thing may come out of order: an event whose last try was never answered. Its sender gave up waiting and sent the
//! next of the key, while the request may still have been on its way, so the bridge may have read and stored it later.
//! Such events are counted ([`Verdict::late`]), not blamed; and they are blamed where the journal is known to have stored
//! them in order ([`Judge::stored`]). An answer, of whatever status, ends a try: order is promised to what was answered,
//! and to a try that found nobody to connect to.
//!
//! No order is promised to what an operator makes either: a replay is no first appearance (its events say that they are
//! replayed), and [`Judge::moved`] names what was set aside and requeued.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::LazyLock;

use ring::digest::{Context, SHA256};
use serde_json::Value;
use uuid::Uuid;

/// An event's id: 16 bytes, so that millions of them fit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id([u8; 16]);

impl Id {
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        Self(Uuid::parse_str(text).unwrap_or_else(|_| panic!("expected an id, but found {text:?}")).into_bytes())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).as_hyphenated().fmt(f)
    }
}

/// What a text or a delivery is compared by: 128 bits of SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Print([u8; 16]);

impl Print {
    fn of_text(text: &str) -> Self {
        Self::of(|hash| hash.update(text.as_bytes()))
    }

    /// Of a delivery as the bridge repeats it, that is with its secrets hidden. The order of members is no difference.
    fn of_body(body: &Value) -> Self {
        Self::of(|hash| update(hash, body))
    }

    fn of(write: impl FnOnce(&mut Context)) -> Self {
        let mut hash = Context::new(&SHA256);
        write(&mut hash);
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finish().as_ref()[..16]);
        Self(bytes)
    }
}

/// Each value with its type and its length before it, so that no two values look the same.
fn update(hash: &mut Context, value: &Value) {
    let mut part = |kind: u8, length: usize, text: &str| {
        hash.update(&[kind]);
        hash.update(&(length as u64).to_be_bytes());
        hash.update(text.as_bytes());
    };
    match value {
        Value::Null => part(0, 0, ""),
        Value::Bool(value) => part(1, usize::from(*value), ""),
        Value::Number(number) => {
            let text = number.to_string();
            part(2, text.len(), &text);
        }
        Value::String(text) => part(3, text.len(), text),
        Value::Array(items) => {
            part(4, items.len(), "");
            items.iter().for_each(|item| update(hash, item));
        }
        Value::Object(members) => {
            part(5, members.len(), "");
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            for (key, value) in members {
                hash.update(&(key.len() as u64).to_be_bytes());
                hash.update(key.as_bytes());
                let secret = SECRETS.iter().any(|secret| key.eq_ignore_ascii_case(secret));
                update(hash, if secret { &REDACTED } else { value });
            }
        }
    }
}

/// The keys whose values the bridge replaces, and what by.
const SECRETS: [&str; 6] = [
    "turn_credential",
    "sbcall_short_lived_token",
    "sbcall_session_token",
    "access_token",
    "session_token",
    "password",
];
static REDACTED: LazyLock<Value> = LazyLock::new(|| "[redacted]".into());

/// Why a try was not answered that no bridge can have read.
pub(crate) const NO_CONNECTION: &str = "no connection";

/// A delivery as its sender saw it. Those of one key stand in the order in which they were sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    key: Print,
    /// The id that the bridge answered, if it answered 200.
    pub(crate) id: Option<Id>,
    body: Print,
    /// Whether the last try may have been under way still when the next delivery was sent.
    may_be_late: bool,
}

impl Sent {
    /// A delivery whose last try had come to its end when the next was sent.
    pub(crate) fn new(key: &str, id: Option<Id>, body: &Value) -> Self {
        Self { key: Print::of_text(key), id, body: Print::of_body(body), may_be_late: false }
    }

    /// A delivery whose last try was never answered.
    pub(crate) fn unanswered(key: &str, body: &Value) -> Self {
        Self { may_be_late: true, ..Self::new(key, None, body) }
    }

    /// How its last try ended: with an id if it was answered 200, with another answer, or without one and why.
    pub(crate) fn ended(&mut self, last_try: Result<Option<Id>, &str>) {
        self.may_be_late = last_try.is_err_and(|why| why != NO_CONNECTION);
        self.id = last_try.ok().flatten();
    }
}

/// An event as its consumer saw it. Those of one key stand in the order in which they arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub(crate) id: Id,
    key: Print,
    /// Of the delivery as the envelope repeats it. What was left unhidden by the bridge, [`Print::of_body`] would hide,
    /// so that is looked for apart: see [`Arrived::new`].
    raw: Print,
    /// Whether an operator has asked for it.
    replayed: bool,
}

impl Arrived {
    #[track_caller]
    pub(crate) fn new(id: &str, key: &str, raw: &Value) -> Self {
        assert!(!shows_a_secret(raw), "the event {id} shows a secret");
        Self { id: Id::parse(id), key: Print::of_text(key), raw: Print::of_body(raw), replayed: false }
    }

    /// From a structured envelope.
    #[track_caller]
    pub(crate) fn envelope(envelope: &Value) -> Self {
        let id = envelope["id"].as_str().expect("an id");
        let key = envelope["partitionkey"].as_str().expect("a partitionkey");
        Self { replayed: envelope["replayed"] == true, ..Self::new(id, key, &envelope["data"]["raw"]) }
    }
}

fn shows_a_secret(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(key, value)| {
            let secret = SECRETS.iter().any(|secret| key.eq_ignore_ascii_case(secret));
            if secret { *value != *REDACTED } else { shows_a_secret(value) }
        }),
        Value::Array(items) => items.iter().any(shows_a_secret),
        _ => false,
    }
}

/// One thing that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Answered 200 and not there.
    Missing { id: Id },
    /// There, with another content or key than was sent.
    Altered { id: Id },
    /// First seen after an event of its key that was sent later.
    Swapped { id: Id },
    /// Nobody sent it.
    Invented { id: Id },
}

/// What the judge found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) faults: Vec<Fault>,
    /// How many different events arrived.
    pub(crate) events: usize,
    /// How often an event came again.
    pub(crate) again: usize,
    /// Events that first came after a later one of their key, and whose last try was never answered.
    pub(crate) late: usize,
}

impl Verdict {
    /// Nothing is wrong.
    #[track_caller]
    pub(crate) fn clean(self) -> Self {
        let shown: Vec<&Fault> = self.faults.iter().take(10).collect();
        assert!(self.faults.is_empty(), "{} faults, such as {shown:#?}", self.faults.len());
        self
    }

    /// Nothing is wrong and nothing came twice.
    #[track_caller]
    pub(crate) fn exactly_once(self) -> Self {
        let verdict = self.clean();
        assert_eq!(verdict.again, 0, "events came more than once");
        verdict
    }
}

pub(crate) fn judge(sent: &[Sent], arrived: &[Arrived]) -> Verdict {
    let mut judge = Judge::new(sent);
    arrived.iter().for_each(|event| judge.hear(event));
    judge.verdict()
}

/// Hears one event after the other, so that they need not all be kept.
pub(crate) struct Judge<'a> {
    sent: &'a [Sent],
    by_id: HashMap<Id, usize>,
    /// Those of each key that were not answered and have not arrived yet.
    unanswered: HashMap<Print, Vec<usize>>,
    seen: HashSet<Id>,
    /// Those that were not replayed.
    published: HashSet<Id>,
    /// The latest of each key that has arrived.
    latest: HashMap<Print, Latest>,
    /// Where the journal has stored each event, as far as that is known.
    stored: HashMap<Id, u64>,
    /// What no order is promised to.
    moved: HashSet<Id>,
    verdict: Verdict,
}

/// The latest event of a key that has arrived.
#[derive(Clone, Copy, Debug)]
struct Latest {
    /// Which delivery it was.
    index: usize,
    /// The last position of any that has arrived.
    position: Option<u64>,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(sent: &'a [Sent]) -> Self {
        let mut by_id = HashMap::with_capacity(sent.len());
        let mut unanswered: HashMap<Print, Vec<usize>> = HashMap::new();
        for (index, sent) in sent.iter().enumerate() {
            match sent.id {
                Some(id) => drop(by_id.entry(id).or_insert(index)),
                None => unanswered.entry(sent.key).or_default().push(index),
            }
        }
        Self {
            sent,
            by_id,
            unanswered,
            seen: HashSet::with_capacity(sent.len()),
            published: HashSet::with_capacity(sent.len()),
            latest: HashMap::new(),
            stored: HashMap::new(),
            moved: HashSet::new(),
            verdict: Verdict::default(),
        }
    }

    /// In which order the journal has stored the events: then what came late must have been stored late.
    pub(crate) fn stored(mut self, positions: impl IntoIterator<Item = (Id, u64)>) -> Self {
        self.stored = positions.into_iter().collect();
        self
    }

    /// Events that an operator has set aside or requeued: they must be there, and may come at any time.
    pub(crate) fn moved(mut self, ids: impl IntoIterator<Item = Id>) -> Self {
        self.moved = ids.into_iter().collect();
        self
    }

    pub(crate) fn hear(&mut self, event: &Arrived) {
        let first_time = self.seen.insert(event.id);
        self.verdict.again += usize::from(!first_time);
        let Some(index) = self.sent_as(event) else {
            return self.verdict.faults.push(Fault::Invented { id: event.id });
        };
        let sent = self.sent[index];
        if (sent.key, sent.body) != (event.key, event.raw) {
            self.verdict.faults.push(Fault::Altered { id: event.id });
        }
        // The first appearance decides; what comes again may come at any time.
        let decides = !event.replayed && self.published.insert(event.id);
        if decides && !self.moved.contains(&event.id) {
            let position = self.stored.get(&event.id).copied();
            let latest = self.latest.entry(event.key).or_insert(Latest { index, position });
            if index < latest.index {
                let is_stored_in_order = position.is_some() && position < latest.position;
                if sent.may_be_late && !is_stored_in_order {
                    self.verdict.late += 1;
                } else {
                    self.verdict.faults.push(Fault::Swapped { id: event.id });
                }
            }
            *latest = Latest { index: index.max(latest.index), position: position.max(latest.position) };
        }
    }

    /// Which delivery it is.
    fn sent_as(&mut self, event: &Arrived) -> Option<usize> {
        match self.by_id.entry(event.id) {
            Entry::Occupied(known) => Some(*known.get()),
            Entry::Vacant(unknown) => {
                let candidates = self.unanswered.get_mut(&event.key)?;
                let found = candidates.iter().position(|&index| self.sent[index].body == event.raw)?;
                Some(*unknown.insert(candidates.remove(found)))
            }
        }
    }

    pub(crate) fn verdict(mut self) -> Verdict {
        let missing = self.sent.iter().filter_map(|sent| sent.id).filter(|id| !self.seen.contains(id));
        let missing: BTreeSet<Id> = missing.collect();
        self.verdict.faults.extend(missing.into_iter().map(|id| Fault::Missing { id }));
        self.verdict.events = self.seen.len();
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn uuid(n: u8) -> String {
        Uuid::from_u128(n.into()).to_string()
    }

    fn id(n: u8) -> Id {
        Id::parse(&uuid(n))
    }

    fn sent(key: &str, n: u8) -> Sent {
        Sent::new(key, Some(id(n)), &json!({ "of": n, "password": 1 }))
    }

    fn arrived(key: &str, n: u8) -> Arrived {
        Arrived::new(&uuid(n), key, &json!({ "password": "[redacted]", "of": n }))
    }

    fn faults(sent: &[Sent], arrived: &[Arrived]) -> Vec<Fault> {
        judge(sent, arrived).faults
    }

    fn all_sent() -> Vec<Sent> {
        vec![sent("k", 1), sent("l", 2), sent("k", 3), sent("k", 4)]
    }

    #[test]
    fn duplicates_and_interleaved_keys_are_no_faults() {
        let all = [("k", 1), ("k", 3), ("l", 2), ("k", 1), ("k", 4), ("k", 3)];
        let all = all.map(|(key, id)| arrived(key, id));
        let verdict = judge(&all_sent(), &all).clean();
        assert_eq!((verdict.events, verdict.again), (4, 2));
    }

    #[test]
    fn a_dropped_event_is_reported() {
        let some = [("k", 1), ("l", 2), ("k", 4)].map(|(key, id)| arrived(key, id));
        assert_eq!(faults(&all_sent(), &some), [Fault::Missing { id: id(3) }]);
    }

    #[test]
    fn an_altered_event_is_reported_also_when_only_its_second_copy_is() {
        let mut all = [("k", 1), ("l", 2), ("k", 3), ("k", 4), ("l", 2)].map(|(key, id)| arrived(key, id));
        all[4].raw = arrived("l", 9).raw;
        assert_eq!(faults(&all_sent(), &all), [Fault::Altered { id: id(2) }]);
        all[4] = arrived("k", 2);
        assert_eq!(faults(&all_sent(), &all), [Fault::Altered { id: id(2) }]);
    }

    #[test]
    fn swapped_events_of_a_key_are_reported() {
        let all = [("k", 1), ("l", 2), ("k", 4), ("k", 3)].map(|(key, id)| arrived(key, id));
        assert_eq!(faults(&all_sent(), &all), [Fault::Swapped { id: id(3) }]);
    }

    #[test]
    fn an_invented_event_is_reported() {
        let all = [("k", 1), ("l", 2), ("k", 3), ("k", 4), ("k", 5)].map(|(key, id)| arrived(key, id));
        assert_eq!(faults(&all_sent(), &all), [Fault::Invented { id: id(5) }]);
    }

    #[test]
    fn an_unanswered_delivery_may_arrive_once_in_order_under_any_id() {
        let mut sent = all_sent();
        sent[2].id = None;
        let without = [("k", 1), ("l", 2), ("k", 4)].map(|(key, id)| arrived(key, id));
        assert_eq!(faults(&sent, &without), []);
        let mut with = [("k", 1), ("l", 2), ("k", 3), ("k", 4)].map(|(key, id)| arrived(key, id));
        with[2].id = id(8);
        assert_eq!(faults(&sent, &with), []);
        with.swap(2, 3);
        assert_eq!(faults(&sent, &with), [Fault::Swapped { id: id(8) }]);
        with.swap(2, 3);
        with[3] = Arrived { id: id(9), ..with[2] };
        let found = faults(&sent, &with);
        assert_eq!(found, [Fault::Invented { id: id(9) }, Fault::Missing { id: id(4) }]);
    }

    /// The third of [`all_sent`] was answered otherwise or not at all, and is stored under the id 8.
    fn third_comes_last(third: Sent) -> (Vec<Sent>, [Arrived; 4]) {
        let mut sent = all_sent();
        sent[2] = third;
        let mut arrived = [("k", 1), ("l", 2), ("k", 4), ("k", 3)].map(|(key, id)| arrived(key, id));
        arrived[3].id = id(8);
        (sent, arrived)
    }

    #[test]
    fn an_event_stored_without_an_answer_may_be_late_and_is_counted() {
        let (sent, arrived) = third_comes_last(Sent::unanswered("k", &json!({ "of": 3, "password": 1 })));
        let verdict = judge(&sent, &arrived).clean();
        assert_eq!((verdict.late, verdict.events, verdict.again), (1, 4, 0));
        // What was answered is not excused by that: the event before it comes last.
        let [first, other, last, late] = arrived;
        assert_eq!(faults(&sent, &[other, late, last, first]), [Fault::Swapped { id: id(1) }]);
        assert_eq!(faults(&sent, &[late, other, first, last]), [Fault::Swapped { id: id(1) }]);
    }

    #[test]
    fn an_event_that_was_stored_in_order_may_not_come_late() {
        let (sent, arrived) = third_comes_last(Sent::unanswered("k", &json!({ "of": 3, "password": 1 })));
        let verdict = |order: [u8; 4]| {
            let mut judge = Judge::new(&sent).stored(order.into_iter().map(id).zip(1..));
            arrived.iter().for_each(|event| judge.hear(event));
            judge.verdict()
        };
        assert_eq!(verdict([1, 2, 4, 8]).clean().late, 1);
        assert_eq!(verdict([1, 2, 8, 4]).faults, [Fault::Swapped { id: id(8) }]);
    }

    #[test]
    fn an_event_that_was_refused_may_not_come_late() {
        let (sent, arrived) = third_comes_last(Sent::new("k", None, &json!({ "of": 3, "password": 1 })));
        assert_eq!(faults(&sent, &arrived), [Fault::Swapped { id: id(8) }]);
    }

    #[test]
    fn an_event_moved_by_an_operator_may_come_late_but_must_come() {
        let mut all = [("k", 1), ("l", 2), ("k", 4), ("k", 3)].map(|(key, id)| arrived(key, id)).to_vec();
        let sent = all_sent();
        let verdict = |arrived: &[Arrived]| {
            let mut judge = Judge::new(&sent).moved([id(3)]);
            arrived.iter().for_each(|event| judge.hear(event));
            judge.verdict()
        };
        verdict(&all).exactly_once();
        all.swap(0, 2);
        assert_eq!(verdict(&all).faults, [Fault::Swapped { id: id(1) }]);
        assert_eq!(verdict(&all[..3]).faults, [Fault::Swapped { id: id(1) }, Fault::Missing { id: id(3) }]);
    }

    #[test]
    fn a_replay_says_nothing_of_the_order_but_counts_as_there() {
        let mut all = [("k", 4), ("l", 2), ("k", 1), ("k", 3), ("k", 4)].map(|(key, id)| arrived(key, id)).to_vec();
        all[0].replayed = true;
        assert_eq!(judge(&all_sent(), &all).clean().again, 1);
        assert_eq!(faults(&all_sent(), &all[..4]), []);
        all.swap(3, 4);
        assert_eq!(faults(&all_sent(), &all), [Fault::Swapped { id: id(3) }]);
    }

    #[test]
    fn only_a_last_try_without_an_answer_may_be_late() {
        let may_be_late = |last_try| {
            let mut sent = Sent::unanswered("k", &json!({}));
            sent.ended(last_try);
            sent.may_be_late
        };
        assert!(may_be_late(Err("no answer in time")) && may_be_late(Err("the connection was lost")));
        assert!(!may_be_late(Err(NO_CONNECTION)) && !may_be_late(Ok(None)) && !may_be_late(Ok(Some(id(1)))));
    }

    #[test]
    fn values_that_differ_have_different_prints() {
        let values = [
            json!(null),
            json!(false),
            json!(true),
            json!(1),
            json!(1.0),
            json!("1"),
            json!([]),
            json!({}),
            json!([1, 2]),
            json!([[1], 2]),
            json!([[1, 2]]),
            json!({ "a": 1 }),
            json!({ "a": "1" }),
            json!({ "b": 1 }),
            json!({ "a": { "b": 1 } }),
            json!({ "a": {}, "b": 1 }),
            json!(["ab", "c"]),
            json!(["a", "bc"]),
        ];
        let prints: HashSet<Print> = values.iter().map(Print::of_body).collect();
        assert_eq!(prints.len(), values.len());
        let [one, other] = [r#"{"a":1,"b":[2]}"#, r#"{"b":[2],"a":1}"#].map(|text| serde_json::from_str(text).unwrap());
        assert_eq!(Print::of_body(&one), Print::of_body(&other));
    }

    #[test]
    #[should_panic(expected = "shows a secret")]
    fn a_secret_that_came_through_is_reported() {
        Arrived::new(&uuid(1), "k", &json!({ "users": [{ "Access_Token": "EXAMPLE" }] }));
    }
}
