//! The judge: given what was sent and answered, and what arrived, says what is wrong.
//!
//! Every delivery that was answered 200 must have arrived, with the content that was sent, and the first appearances
//! of a key's events in the order in which they were sent. One that was not answered 200 may have arrived or not. What
//! nobody sent must not be there. An event may arrive more than once, under the same id: that is counted, not blamed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

/// A delivery as its sender saw it. Those of one key stand in the order in which they were sent.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) key: String,
    /// The id that the bridge answered, if it answered 200.
    pub(crate) id: Option<String>,
    pub(crate) body: Value,
}

/// An event as its consumer saw it. Those of one key stand in the order in which they arrived.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) id: String,
    pub(crate) key: String,
    /// The delivery as the envelope repeats it.
    pub(crate) raw: Value,
}

impl Arrived {
    /// From a structured envelope.
    pub(crate) fn envelope(envelope: &Value) -> Self {
        Self {
            id: envelope["id"].as_str().expect("an id").to_owned(),
            key: envelope["partitionkey"].as_str().expect("a partitionkey").to_owned(),
            raw: envelope["data"]["raw"].clone(),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Answered 200 and not there.
    Missing { id: String },
    /// There, with another content or key than was sent.
    Altered { id: String },
    /// First seen after an event of its key that was sent later.
    Swapped { id: String },
    /// Nobody sent it.
    Invented { id: String },
}

/// What the judge found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) faults: Vec<Fault>,
    /// How many different events arrived.
    pub(crate) events: usize,
    /// How often an event came again.
    pub(crate) again: usize,
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
    let mut by_id: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unanswered: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, sent) in sent.iter().enumerate() {
        match &sent.id {
            Some(id) => drop(by_id.entry(id).or_insert(index)),
            None => unanswered.entry(&sent.key).or_default().push(index),
        }
    }
    let mut verdict = Verdict::default();
    let mut seen = BTreeSet::new();
    let mut latest: BTreeMap<&str, usize> = BTreeMap::new();
    for event in arrived {
        let first_time = seen.insert(event.id.as_str());
        verdict.again += usize::from(!first_time);
        let same = |index: &usize| hide_secrets(&sent[*index].body) == event.raw;
        let index = by_id.get(event.id.as_str()).copied().or_else(|| {
            let candidates = unanswered.get_mut(event.key.as_str())?;
            let index = candidates.remove(candidates.iter().position(same)?);
            by_id.insert(&event.id, index);
            Some(index)
        });
        let Some(index) = index else {
            verdict.faults.push(Fault::Invented { id: event.id.clone() });
            continue;
        };
        if sent[index].key != event.key || !same(&index) {
            verdict.faults.push(Fault::Altered { id: event.id.clone() });
        }
        // The first appearance decides; what comes again may come at any time.
        if first_time {
            let latest = latest.entry(&event.key).or_insert(index);
            if index < *latest {
                verdict.faults.push(Fault::Swapped { id: event.id.clone() });
            }
            *latest = index.max(*latest);
        }
    }
    let missing = sent.iter().filter_map(|sent| sent.id.as_ref()).filter(|id| !seen.contains(id.as_str()));
    let missing: BTreeSet<&String> = missing.collect();
    verdict.faults.extend(missing.into_iter().map(|id| Fault::Missing { id: id.clone() }));
    verdict.events = seen.len();
    verdict
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
const REDACTED: &str = "[redacted]";

/// A delivery as the bridge repeats it.
pub(crate) fn hide_secrets(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let hidden = |(key, value): (&String, &Value)| {
                let secret = SECRETS.contains(&key.to_ascii_lowercase().as_str());
                (key.clone(), if secret { REDACTED.into() } else { hide_secrets(value) })
            };
            Value::Object(members.iter().map(hidden).collect())
        }
        Value::Array(items) => items.iter().map(hide_secrets).collect(),
        other => other.clone(),
    }
}

/// What `send --record` wrote. A last line that is cut off, because the sender was killed, is no line.
pub(crate) fn read_record(file: &Path) -> Vec<Sent> {
    let text = std::fs::read_to_string(file).expect("a record");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of the record"));
    lines
        .map(|line| Sent {
            key: line["key"].as_str().expect("a key").to_owned(),
            id: (line["status"] == 200).then(|| line["answer"]["id"].as_str().expect("an id").to_owned()),
            body: line["body"].clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sent(key: &str, id: &str) -> Sent {
        Sent { key: key.into(), id: Some(id.into()), body: json!({ "of": id, "password": 1 }) }
    }

    fn arrived(key: &str, id: &str) -> Arrived {
        Arrived { id: id.into(), key: key.into(), raw: json!({ "of": id, "password": REDACTED }) }
    }

    fn faults(sent: &[Sent], arrived: &[Arrived]) -> Vec<Fault> {
        judge(sent, arrived).faults
    }

    fn all_sent() -> Vec<Sent> {
        vec![sent("k", "1"), sent("l", "2"), sent("k", "3"), sent("k", "4")]
    }

    #[test]
    fn what_arrived_as_it_was_sent_is_fine_also_twice_and_with_keys_interleaved() {
        let all = [("k", "1"), ("k", "3"), ("l", "2"), ("k", "1"), ("k", "4"), ("k", "3")];
        let all = all.map(|(key, id)| arrived(key, id));
        let verdict = judge(&all_sent(), &all).clean();
        assert_eq!((verdict.events, verdict.again), (4, 2));
    }

    #[test]
    fn a_dropped_event_is_reported() {
        let some = [("k", "1"), ("l", "2"), ("k", "4")].map(|(key, id)| arrived(key, id));
        assert_eq!(faults(&all_sent(), &some), [Fault::Missing { id: "3".into() }]);
    }

    #[test]
    fn an_altered_event_is_reported_also_when_only_its_second_copy_is() {
        let mut all = [("k", "1"), ("l", "2"), ("k", "3"), ("k", "4"), ("l", "2")].map(|(key, id)| arrived(key, id));
        all[4].raw["of"] = "x".into();
        assert_eq!(faults(&all_sent(), &all), [Fault::Altered { id: "2".into() }]);
        all[4] = arrived("k", "2");
        assert_eq!(faults(&all_sent(), &all), [Fault::Altered { id: "2".into() }]);
    }

    #[test]
    fn swapped_events_of_a_key_are_reported() {
        let all = [("k", "1"), ("l", "2"), ("k", "4"), ("k", "3")].map(|(key, id)| arrived(key, id));
        assert_eq!(faults(&all_sent(), &all), [Fault::Swapped { id: "3".into() }]);
    }

    #[test]
    fn an_invented_event_is_reported() {
        let all = [("k", "1"), ("l", "2"), ("k", "3"), ("k", "4"), ("k", "5")].map(|(key, id)| arrived(key, id));
        assert_eq!(faults(&all_sent(), &all), [Fault::Invented { id: "5".into() }]);
    }

    #[test]
    fn a_delivery_that_was_not_answered_may_arrive_once_under_any_id_but_in_order() {
        let mut sent = all_sent();
        sent[2].id = None;
        let without = [("k", "1"), ("l", "2"), ("k", "4")].map(|(key, id)| arrived(key, id));
        assert_eq!(faults(&sent, &without), []);
        let mut with = [("k", "1"), ("l", "2"), ("k", "3"), ("k", "4")].map(|(key, id)| arrived(key, id));
        with[2].id = "any".into();
        assert_eq!(faults(&sent, &with), []);
        with.swap(2, 3);
        assert_eq!(faults(&sent, &with), [Fault::Swapped { id: "any".into() }]);
        with.swap(2, 3);
        with[3] = Arrived { id: "other".into(), ..with[2].clone() };
        let found = faults(&sent, &with);
        assert_eq!(found, [Fault::Invented { id: "other".into() }, Fault::Missing { id: "4".into() }]);
    }
}
