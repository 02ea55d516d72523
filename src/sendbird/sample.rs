//! Deliveries as Sendbird would send them, for the demo, the sender and tests.
//!
//! Calls and rooms are played from end to end: a call is dialled before it is accepted, a room is made
//! before anybody enters. The same seed gives the same deliveries, byte for byte. Bodies have the shape of
//! the samples in `tests/fixtures`, secrets included, which are made up and all begin with `EXAMPLE`. Who
//! sends them, signs them or repeats them is somebody else's business.

use bytes::Bytes;
use fastrand::Rng;

use super::category::Category;

mod body;

/// One delivery to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What it tells of.
    pub category: Category,
    /// The call or the room that it is about: its event's key.
    pub key: String,
    /// The body to post.
    pub body: Bytes,
}

/// A user of the made-up application.
struct User {
    id: &'static str,
    nickname: &'static str,
}

const USERS: [User; 12] = [
    User { id: "alice", nickname: "Alice" },
    User { id: "bob", nickname: "Bob" },
    User { id: "carol", nickname: "Carol" },
    User { id: "dave", nickname: "Dave \"D\"" },
    User { id: "erin", nickname: "Erin" },
    User { id: "frank", nickname: "Frank" },
    User { id: "grace", nickname: "Grace 🎧" },
    User { id: "heidi", nickname: "Heidi" },
    User { id: "ivan", nickname: "Иван" },
    User { id: "judy", nickname: "Judy" },
    User { id: "rene", nickname: "René" },
    User { id: "zoe", nickname: "Zoë" },
];

/// An endless mix of live calls and rooms. Never finishes as an iterator.
pub struct Sampler {
    rng: Rng,
    application_id: String,
    now_ms: i64,
    live: Vec<OpenCall>,
}

impl Sampler {
    /// Plays `calls` calls and rooms at a time (at least one), from `start_ms` (Unix milliseconds) on.
    /// When one is over, another takes its place.
    pub fn new(seed: u64, calls: usize, start_ms: i64, application_id: &str) -> Self {
        let mut rng = Rng::with_seed(seed);
        let live = (0..calls.max(1)).map(|_| OpenCall::random(&mut rng)).collect();
        Self { rng, application_id: application_id.to_owned(), now_ms: start_ms, live }
    }

    /// One delivery of this category, of a call or a room of its own; [`Category::Other`] gives a category
    /// that nobody knows.
    pub fn of(&mut self, category: Category) -> Sample {
        self.tick();
        let mut live = if category.is_call() {
            OpenCall::call(&mut self.rng, "completed")
        } else {
            OpenCall::room(&mut self.rng, Vec::new())
        };
        live.age(self.now_ms.saturating_sub(60_000));
        live.deliver(&mut self.rng, Step(category, 1), self.now_ms, &self.application_id)
    }

    /// `occurred_at` moves by 1 to 40 ms from one delivery to the next.
    fn tick(&mut self) {
        self.now_ms = self.now_ms.saturating_add(self.rng.i64(1..=40));
    }
}

impl Iterator for Sampler {
    type Item = Sample;

    fn next(&mut self) -> Option<Sample> {
        self.tick();
        let slot = self.rng.usize(..self.live.len());
        let live = self.live.get_mut(slot)?;
        let step = match live.script.next() {
            Some(step) => step,
            None => {
                *live = OpenCall::random(&mut self.rng);
                live.script.next()?
            }
        };
        Some(live.deliver(&mut self.rng, step, self.now_ms, &self.application_id))
    }
}

/// A working day from `start_ms` (Unix milliseconds) on: some 80 deliveries of all 13 categories, in the
/// order in which they occur. Among them calls that are missed, declined, canceled and cut, a room of
/// three, and invitations with every answer.
pub fn day(seed: u64, start_ms: i64, application_id: &str) -> Vec<Sample> {
    let mut rng = Rng::with_seed(seed);
    let mut plays = Vec::new();
    for result in ["completed", "no_answer", "declined", "canceled", "connection_lost"] {
        plays.push(OpenCall::call(&mut rng, result));
    }
    plays.extend((0..9).map(|_| OpenCall::call(&mut rng, "completed")));
    plays.push(OpenCall::room(&mut rng, room_with_everything()));
    for _ in 0..2 {
        let script = room_script(&mut rng);
        plays.push(OpenCall::room(&mut rng, script));
    }
    const WORKING_DAY_MS: i64 = 9 * 3_600_000;
    let mut steps = Vec::new();
    for (play, live) in plays.iter_mut().enumerate() {
        let mut at_ms = start_ms.saturating_add(rng.i64(1..WORKING_DAY_MS));
        for step in std::mem::take(&mut live.script) {
            steps.push((at_ms, play, step));
            at_ms = at_ms.saturating_add(live.pause_ms(&mut rng));
        }
    }
    steps.sort_by_key(|(at_ms, ..)| *at_ms);
    let mut last_ms = start_ms;
    let deliver = |(at_ms, play, step): (i64, usize, Step)| {
        last_ms = at_ms.max(last_ms.saturating_add(1));
        Some(plays.get_mut(play)?.deliver(&mut rng, step, last_ms, application_id))
    };
    steps.into_iter().filter_map(deliver).collect()
}

/// What happens, and to which of the people.
#[derive(Clone, Copy)]
struct Step(Category, usize);

/// A call or a room that is under way.
struct OpenCall {
    id: String,
    /// In a call the caller and the callee; in a room the host and the guests.
    people: Vec<Person>,
    script: std::vec::IntoIter<Step>,
    /// How the call ends.
    end_result: &'static str,
    is_video: bool,
    is_large: bool,
    born_ms: i64,
    /// When the call was accepted.
    accepted_ms: Option<i64>,
    ticket: u32,
}

struct Person {
    user: &'static User,
    participant_id: String,
    client_id: String,
    entered_ms: i64,
}

impl OpenCall {
    fn new(rng: &mut Rng, id: String, people: usize, script: Vec<Step>) -> Self {
        let first = rng.usize(..USERS.len());
        let people = USERS.iter().cycle().skip(first).take(people.min(USERS.len()));
        Self {
            id,
            people: people.map(|user| Person::new(user, 0)).collect(),
            script: script.into_iter(),
            end_result: "completed",
            is_video: rng.bool(),
            is_large: rng.u8(..8) == 0,
            born_ms: 0,
            accepted_ms: None,
            ticket: rng.u32(1..100_000),
        }
    }

    fn random(rng: &mut Rng) -> Self {
        if rng.u8(..5) < 3 {
            let result = match rng.usize(..8) {
                ..4 => "completed",
                4 => "no_answer",
                5 => "declined",
                6 => "canceled",
                _ => "connection_lost",
            };
            Self::call(rng, result)
        } else {
            let script = room_script(rng);
            Self::room(rng, script)
        }
    }

    fn call(rng: &mut Rng, end_result: &'static str) -> Self {
        let mut script = vec![Step(Category::DirectCallDial, 0)];
        if matches!(end_result, "completed" | "connection_lost") {
            script.push(Step(Category::DirectCallAccept, 1));
        }
        script.push(Step(Category::DirectCallEnd, usize::from(rng.bool())));
        // Calls have upper-case ids, rooms lower-case ones, as in what Sendbird shows.
        let id = uuid(rng).to_ascii_uppercase();
        Self { end_result, ..Self::new(rng, id, 2, script) }
    }

    fn room(rng: &mut Rng, script: Vec<Step>) -> Self {
        let id = uuid(rng);
        Self::new(rng, id, 6, script)
    }

    /// As if it had been going on since then.
    fn age(&mut self, since_ms: i64) {
        self.born_ms = since_ms;
        self.accepted_ms = Some(since_ms.saturating_add(5_000));
        for person in &mut self.people {
            person.entered_ms = since_ms.saturating_add(5_000);
        }
    }

    /// Plays one step.
    fn deliver(&mut self, rng: &mut Rng, Step(category, who): Step, at_ms: i64, application_id: &str) -> Sample {
        match category {
            Category::DirectCallDial | Category::RoomCreate => self.born_ms = at_ms,
            Category::DirectCallAccept => self.accepted_ms = Some(at_ms),
            Category::RoomParticipantEnter => {
                if let Some(person) = self.people.get_mut(who) {
                    *person = Person::new(person.user, at_ms);
                }
            }
            _ => {}
        }
        if let Some(person) = self.people.get_mut(who).filter(|person| person.participant_id.is_empty()) {
            person.participant_id = uuid(rng);
            person.client_id = uuid(rng);
        }
        let body = body::write(self, rng, Step(category, who), at_ms, application_id);
        Sample { category, key: self.id.clone(), body: Bytes::from(body) }
    }

    /// How long until the next step of a realistic day.
    fn pause_ms(&self, rng: &mut Rng) -> i64 {
        match self.end_result {
            "completed" => rng.i64(2_000..300_000),
            _ => rng.i64(2_000..45_000),
        }
    }
}

impl Person {
    fn new(user: &'static User, entered_ms: i64) -> Self {
        Self { user, participant_id: String::new(), client_id: String::new(), entered_ms }
    }
}

/// A room of three, and invitations with every answer.
fn room_with_everything() -> Vec<Step> {
    use Category as C;
    let invited = |guest, answer| [Step(C::RoomInvitationSend, guest), Step(answer, guest)];
    let mut script = vec![Step(C::RoomCreate, 0), Step(C::RoomParticipantEnter, 0)];
    for guest in [1, 2] {
        script.extend(invited(guest, C::RoomInvitationAccept));
        script.push(Step(C::RoomParticipantEnter, guest));
    }
    script.extend(invited(3, C::RoomInvitationDecline));
    script.extend(invited(4, C::RoomInvitationCancel));
    script.extend(invited(5, C::RoomInvitationNoAnswer));
    script.extend([Step(C::RoomParticipantDisconnect, 2), Step(C::RoomParticipantExit, 1)]);
    script.extend([Step(C::RoomParticipantExit, 0), Step(C::RoomDelete, 0)]);
    script
}

/// A room from its making to its deletion: up to four guests are invited, and who is in leaves.
fn room_script(rng: &mut Rng) -> Vec<Step> {
    use Category as C;
    const ANSWERS: [Category; 5] = [
        C::RoomInvitationAccept,
        C::RoomInvitationAccept,
        C::RoomInvitationCancel,
        C::RoomInvitationDecline,
        C::RoomInvitationNoAnswer,
    ];
    let mut script = vec![Step(C::RoomCreate, 0), Step(C::RoomParticipantEnter, 0)];
    let mut inside = vec![0];
    for guest in 1..=rng.usize(1..=4) {
        let answer = ANSWERS[rng.usize(..ANSWERS.len())];
        script.extend([Step(C::RoomInvitationSend, guest), Step(answer, guest)]);
        if answer == C::RoomInvitationAccept {
            script.push(Step(C::RoomParticipantEnter, guest));
            inside.push(guest);
        }
    }
    rng.shuffle(&mut inside);
    for guest in inside {
        let leaves = if rng.u8(..4) == 0 { C::RoomParticipantDisconnect } else { C::RoomParticipantExit };
        script.push(Step(leaves, guest));
    }
    script.push(Step(C::RoomDelete, 0));
    script
}

fn uuid(rng: &mut Rng) -> String {
    let id = uuid::Builder::from_random_bytes(rng.u128(..).to_be_bytes()).into_uuid();
    id.as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use serde_json::Value;

    use super::*;
    use crate::sendbird::delivery::{Anomalies, parse};
    use crate::sendbird::normalize::{Provenance, Settings, normalize};

    const APPLICATION: &str = "0A1B2C3D-1111-4222-8333-444455556666";
    const START_MS: i64 = 1_767_225_600_000;

    fn rank(category: Category) -> usize {
        match category {
            Category::DirectCallDial | Category::RoomCreate => 0,
            Category::DirectCallEnd | Category::RoomDelete => 2,
            _ => 1,
        }
    }

    /// Normalises each and checks what holds for all; returns how many there are of each category.
    fn check(samples: &[Sample]) -> HashMap<Category, usize> {
        let mut ids = HashSet::new();
        let mut ranks: HashMap<&str, usize> = HashMap::new();
        let mut last_ms = START_MS;
        let mut count = HashMap::new();
        for sample in samples {
            let delivery = parse(&sample.body).expect("a delivery");
            let event = normalize(&delivery, Provenance::at(0), &Settings::default());
            let envelope: Value = serde_json::from_slice(&event.envelope).expect("JSON");
            assert_eq!((event.category, &event.key), (sample.category, &sample.key));
            assert_eq!(event.anomalies, Anomalies::default(), "{envelope:#}");
            assert!(ids.insert(event.id), "each has an id of its own: {envelope:#}");
            assert!(!String::from_utf8_lossy(&event.envelope).contains("EXAMPLE"), "{envelope:#}");
            let at_ms = envelope["data"]["occurred_at_ms"].as_i64().expect("a time");
            assert!(at_ms > last_ms);
            last_ms = at_ms;
            let before = ranks.insert(&sample.key, rank(sample.category));
            assert_eq!(before.is_none(), rank(sample.category) == 0, "what begins, begins once: {envelope:#}");
            assert!(before.is_none_or(|before| before <= rank(sample.category) && before < 2), "{envelope:#}");
            *count.entry(sample.category).or_default() += 1;
        }
        count
    }

    #[test]
    fn a_mix_of_calls_and_rooms_in_their_natural_order() {
        let samples: Vec<_> = Sampler::new(1, 20, START_MS, APPLICATION).take(2_000).collect();
        assert_eq!(check(&samples).len(), Category::ALL.len());
        let keys: Vec<_> = samples.iter().map(|sample| &sample.key).collect();
        assert!(keys.windows(2).filter(|pair| pair[0] != pair[1]).count() > 1_800, "interleaved");
    }

    #[test]
    fn a_day_has_everything() {
        for seed in 0..20 {
            let samples = day(seed, START_MS, APPLICATION);
            assert!((60..=100).contains(&samples.len()), "{}", samples.len());
            assert_eq!(check(&samples).len(), Category::ALL.len());
            let text: String = samples.iter().map(|sample| String::from_utf8_lossy(&sample.body)).collect();
            for result in ["no_answer", "declined", "canceled", "connection_lost", "completed"] {
                assert!(text.contains(&format!("\"end_result\":\"{result}\"")), "{result}");
            }
        }
    }

    #[test]
    fn the_seed_decides() {
        let take = |seed| Sampler::new(seed, 3, START_MS, APPLICATION).take(50).collect::<Vec<_>>();
        assert_eq!(take(7), take(7));
        assert_ne!(take(7), take(8));
        assert_eq!(day(7, START_MS, APPLICATION), day(7, START_MS, APPLICATION));
    }

    #[test]
    fn one_of_each_category() {
        let mut sampler = Sampler::new(1, 0, START_MS, "an \"odd\" \\ name");
        for category in Category::ALL.into_iter().chain([Category::Other]) {
            let sample = sampler.of(category);
            let event = normalize(&parse(&sample.body).expect("a delivery"), Provenance::at(0), &Settings::default());
            assert_eq!((event.category, &event.key), (category, &sample.key));
            assert_eq!(
                (event.anomalies, event.application_id.as_deref()),
                (Anomalies::default(), Some("an \"odd\" \\ name"))
            );
        }
    }

    #[test]
    fn has_the_shape_of_the_fixtures() {
        /// Every path to a member, in order; times, ids and texts apart.
        fn shape(value: &Value, path: &str, out: &mut Vec<String>) {
            match value {
                Value::Object(members) => {
                    for (key, value) in members {
                        shape(value, &format!("{path}.{key}"), out);
                    }
                }
                _ => out.push(path.to_owned()),
            }
        }
        let mut sampler = Sampler::new(3, 1, START_MS, APPLICATION);
        for category in Category::ALL {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/samples");
            let fixture = std::fs::read(folder.join(format!("{}.json", category.label().replace(':', "."))));
            let [fixture, sample] = [fixture.expect("a fixture"), sampler.of(category).body.to_vec()].map(|body| {
                let mut paths = Vec::new();
                shape(&serde_json::from_slice(&body).expect("JSON"), "", &mut paths);
                paths
            });
            assert_eq!(sample, fixture, "{category}");
        }
    }
}
