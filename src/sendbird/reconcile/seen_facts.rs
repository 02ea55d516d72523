//! The facts of which a journal has events, and from when on one without an event is missing.
//!
//! A journal releases what it has published, and a disk can damage what it keeps. So that nothing is called missing on a
//! guess, this remembers from when on every record was seen, and between which times some could not be read. What lies
//! before that can be events that a sink still needs, with everything around them released: of such a time nothing is
//! called missing.

use std::collections::{BTreeSet, HashSet};

use super::{Category, Fact, FactId, Stored};

/// How much earlier or later than a fact a delivery of it may have been accepted: Sendbird's tries and two clocks.
pub const MARGIN_MS: i64 = 5 * 60 * 1000;

/// What is known of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an event of it.
    Stored,
    /// There is a backfill candidate of it, which is not stored yet.
    Candidate,
    /// There is neither.
    Missing,
    /// It is not known: the records of that time are gone or damaged, or one of them does not say of what it tells.
    Unknown,
}

/// What is known of a journal's records, which are shown to it in the order of their positions.
#[derive(Debug, Default)]
pub struct SeenFacts {
    facts: HashSet<FactId>,
    candidates: HashSet<FactId>,
    applications: BTreeSet<String>,
    rooms: BTreeSet<String>,
    through: u64,
    /// When the oldest record since which all were seen was accepted.
    whole_since_ms: Option<i64>,
    /// From then on the journal keeps everything, by its own account; `None` if it says so of nothing.
    complete_from_ms: Option<i64>,
    /// The same of the journals that share the deliveries: the latest of them.
    others_since_ms: Option<i64>,
    /// When the newest record was accepted.
    newest_ms: Option<i64>,
    /// Of what could not be read, when the records around it were accepted.
    blind: Vec<(i64, i64)>,
    blind_since_ms: Option<i64>,
}

impl SeenFacts {
    /// The facts of backfill candidates that are not stored yet. Those that were there before the records are to be
    /// added before the records are shown.
    pub fn add_candidates(&mut self, facts: impl IntoIterator<Item = FactId>) {
        self.candidates.extend(facts);
    }

    /// From when on the journal keeps everything that it has stored, by its own account before the records were shown;
    /// `None` if it keeps nothing so.
    pub fn complete_from(&mut self, accepted_ms: Option<i64>) {
        self.complete_from_ms = accepted_ms;
    }

    /// All that is kept up to this position was shown.
    pub fn end(&mut self, through: u64) {
        if through > self.through {
            self.step(through + 1);
            self.through = through;
        }
    }

    /// A record.
    pub fn add_record(&mut self, position: u64, accepted_ms: i64, envelope: &[u8]) {
        self.step(position);
        if let Some(since) = self.blind_since_ms.take() {
            self.blind.push((since, accepted_ms));
        }
        self.whole_since_ms.get_or_insert(accepted_ms);
        self.newest_ms = Some(accepted_ms);
        self.add_event(envelope);
    }

    /// An event of another journal, which shares the deliveries with this one.
    pub fn add_event(&mut self, envelope: &[u8]) {
        let Some(stored) = Stored::read(envelope) else { return };
        self.facts.extend(stored.fact());
        if let Some(application) = &stored.data.application_id
            && !self.applications.contains(application.as_ref())
        {
            self.applications.insert(application.to_string());
        }
        if Category::of(&stored.data.category).is_room()
            && let Some(room) = stored.room_id()
            && !self.rooms.contains(room)
        {
            self.rooms.insert(room.to_owned());
        }
    }

    /// When the oldest event of another journal was accepted, Unix milliseconds.
    pub fn others_since(&mut self, accepted_ms: i64) {
        self.others_since_ms = self.others_since_ms.max(Some(accepted_ms));
    }

    /// A record that can't be read.
    pub fn add_damaged(&mut self, position: u64) {
        self.step(position);
        let since = self.newest_ms.unwrap_or(i64::MIN);
        self.blind_since_ms.get_or_insert(since);
    }

    /// Records between two that were shown are gone: retention was faster.
    fn step(&mut self, position: u64) {
        if position > self.through + 1 {
            self.whole_since_ms = None;
        }
        self.through = position;
    }

    /// The position up to which records were shown.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// The earliest time of a fact that can be called missing; `None` if there is no such time.
    pub fn since_ms(&self) -> Option<i64> {
        let own = self.whole_since_ms?.max(self.complete_from_ms?);
        Some(Some(own).max(self.others_since_ms).unwrap_or(own).saturating_add(MARGIN_MS))
    }

    /// The rooms of the records.
    pub fn rooms(&self) -> &BTreeSet<String> {
        &self.rooms
    }

    /// How the records spell an application: it is a part of the envelope's `source`.
    pub fn spelling(&self, application: &str) -> Option<&str> {
        self.applications.iter().map(String::as_str).find(|known| known.eq_ignore_ascii_case(application))
    }

    /// What is known of a fact.
    pub fn verdict(&self, application: &str, fact: &Fact) -> Verdict {
        let ids = fact.ids(application);
        let is_stored = |id: &FactId| self.facts.contains(id);
        if ids.first().is_some_and(is_stored) {
            return Verdict::Stored;
        }
        if ids.first().is_some_and(|id| self.candidates.contains(id)) {
            return Verdict::Candidate;
        }
        let too_early = self.since_ms().is_none_or(|since| fact.at_ms < since);
        let open = self.blind_since_ms.map(|since| (since, i64::MAX));
        let blind =
            self.blind.iter().copied().chain(open).any(|(from, to)| {
                (from.saturating_sub(MARGIN_MS)..=to.saturating_add(MARGIN_MS)).contains(&fact.at_ms)
            });
        if too_early || blind || ids.iter().any(is_stored) { Verdict::Unknown } else { Verdict::Missing }
    }
}
