//! From page to page of the API's lists: facts, what is known of them, backfill candidates.

use std::ops::Bound;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::{Instant, sleep};

use super::read_on;
use super::state::{Phase, State};
use crate::cli::platform::{Http, explain};
use crate::cli::table::counted;
use crate::cli::{Failure, print};
use crate::domain::clock::{Clock, rfc3339};
use crate::journal::{BackfillCandidate, JournalAdmin};
use crate::sendbird::api::{self, Api, Page, Pagination, Room, RoomsQuery};
use crate::sendbird::normalize::Settings;
use crate::sendbird::reconcile::seen_facts::{SeenFacts, Verdict};
use crate::sendbird::reconcile::{Fact, FactKind, Facts, event, of_call, of_participant, of_room};

/// Entries on a page; the most that Sendbird gives.
const PAGE: u32 = 100;

/// Rooms asked for by their ids at once; documented as the most.
const ROOMS: usize = 10;

/// Candidates that may wait for the bridge; before there are more, it must store some.
const MOST_WAITING: u64 = 5_000;

/// How long none of them may be stored, and how often that is checked. A bridge checks once a second.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(200);

/// One run.
pub(super) struct Reconciler {
    pub(super) api: Api<Http>,
    pub(super) journal: JournalAdmin,
    pub(super) seen: SeenFacts,
    /// As deliveries spell it.
    pub(super) application: String,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) dir: PathBuf,
    pub(super) bar: ProgressBar,
    pub(super) json: bool,
    pub(super) state: State,
}

impl Reconciler {
    pub(super) async fn run(&mut self) -> Result<(), Failure> {
        self.state.save(&self.dir)?;
        loop {
            let wanted = |kinds: &[FactKind]| kinds.iter().any(|kind| self.state.scope.kinds.contains(kind));
            let rooms = wanted(&[FactKind::Create, FactKind::Enter, FactKind::Leave, FactKind::Delete]);
            let next = match self.state.phase {
                Phase::Calls => {
                    if wanted(&[FactKind::Dial, FactKind::Accept, FactKind::End]) {
                        self.calls().await?;
                    }
                    Phase::Rooms
                }
                Phase::Rooms => {
                    if rooms {
                        self.rooms().await?;
                    }
                    Phase::Older
                }
                Phase::Older => {
                    if rooms {
                        self.older_rooms().await?;
                    }
                    Phase::Done
                }
                Phase::Done => return Ok(()),
            };
            (self.state.phase, self.state.cursor) = (next, None);
            self.state.save(&self.dir)?;
        }
    }

    async fn calls(&mut self) -> Result<(), Failure> {
        let (mut pagination, mut order) = (Pagination::default(), ListOrder::default());
        // Where an earlier run has got to; a cursor that is no longer good is the only one of them that can be refused.
        let mut from = self.state.cursor.take();
        loop {
            let page = match self.api.direct_calls(PAGE, from.as_deref().or(pagination.cursor())).await {
                Err(refused) if from.take().is_some() && is_of_the_cursor(&refused) => continue,
                page => page.map_err(|failure| explain(&failure, &self.api))?,
            };
            from = None;
            let (begin, until) = (self.state.scope.begin_ms(), self.state.scope.until_ms);
            let mut facts = Facts::default();
            for call in
                page.items.iter().filter(|call| call.started_at_ms.is_none_or(|at| (begin..until).contains(&at)))
            {
                self.state.counts.calls += 1;
                add(&mut facts, of_call(&self.application, call));
            }
            let enough = order.is_past(page.items.iter().filter_map(|call| call.started_at_ms), begin, until);
            self.record_facts(facts, order.last).await?;
            if !self.step(&mut pagination, page.next)? || enough {
                return Ok(());
            }
        }
    }

    async fn rooms(&mut self) -> Result<(), Failure> {
        let (begin, until) = (self.state.scope.begin_ms(), self.state.scope.until_ms);
        let (from, to) = (Some(begin), Some(until));
        let query = RoomsQuery {
            limit: Some(PAGE),
            created_at_start_date: from,
            created_at_end_date: to,
            ..RoomsQuery::default()
        };
        let mut pagination = Pagination::default();
        let mut from = self.state.cursor.take();
        loop {
            let page: Page<Room> = match self.api.rooms(&query, from.as_deref().or(pagination.cursor())).await {
                Err(refused) if from.take().is_some() && is_of_the_cursor(&refused) => continue,
                page => page.map_err(|failure| explain(&failure, &self.api))?,
            };
            from = None;
            for room in page.items.iter().filter(|room| room.created_at_ms.is_none_or(|at| at < until)) {
                self.room(room).await?;
            }
            if !self.step(&mut pagination, page.next)? {
                return Ok(());
            }
        }
    }

    /// Rooms that are in use for longer than is looked back are not in the list, but records tell of them.
    async fn older_rooms(&mut self) -> Result<(), Failure> {
        loop {
            let after = self.state.cursor.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let rooms =
                self.seen.rooms().range::<String, _>((after, Bound::Unbounded)).filter(|id| can_be_asked_for(id));
            let room_ids: Vec<String> = rooms.take(ROOMS).cloned().collect();
            let Some(last) = room_ids.last().cloned() else { return Ok(()) };
            let query = RoomsQuery { limit: Some(PAGE), room_ids, ..RoomsQuery::default() };
            let page = self.api.rooms(&query, None).await.map_err(|failure| explain(&failure, &self.api))?;
            let begin = self.state.scope.begin_ms();
            for room in page.items.iter().filter(|room| room.created_at_ms.is_some_and(|at| at < begin)) {
                self.room(room).await?;
            }
            self.state.cursor = Some(last);
            self.state.save(&self.dir)?;
        }
    }

    /// A room and all who were or are in it.
    async fn room(&mut self, room: &Room) -> Result<(), Failure> {
        self.state.counts.rooms += 1;
        let mut facts = of_room(&self.application, room);
        let gone =
            facts.facts.iter().any(|fact| fact.kind == FactKind::Delete && fact.at_ms < self.state.scope.since_ms);
        let stays = [FactKind::Enter, FactKind::Leave].iter().any(|kind| self.state.scope.kinds.contains(kind));
        if let Some(room_id) = room.room_id.as_deref().filter(|_| stays && !gone) {
            let mut pagination = Pagination::default();
            loop {
                let page = self
                    .api
                    .participants(room_id, PAGE, pagination.cursor())
                    .await
                    .map_err(|failure| explain(&failure, &self.api))?;
                for participant in &page.items {
                    self.state.counts.participants += 1;
                    add(&mut facts, of_participant(&self.application, room, participant));
                }
                if !pagination.step(page.next).map_err(|failure| explain(&failure, &self.api))? {
                    break;
                }
            }
        }
        self.record_facts(facts, room.created_at_ms).await
    }

    /// Goes to the next page and remembers it; `false` says that there is none.
    fn step(&mut self, pagination: &mut Pagination, next: Option<String>) -> Result<bool, Failure> {
        self.state.cursor.clone_from(&next);
        let more = pagination.step(next).map_err(|failure| explain(&failure, &self.api))?;
        if more {
            self.state.save(&self.dir)?;
        }
        Ok(more)
    }

    /// Counts facts by what is known of them now. What is missing is printed, and becomes a candidate if that is wanted.
    async fn record_facts(&mut self, found: Facts, at_ms: Option<i64>) -> Result<(), Failure> {
        let scope = &self.state.scope;
        let mut facts = found.facts;
        facts.retain(|fact| scope.kinds.contains(&fact.kind) && (scope.since_ms..scope.until_ms).contains(&fact.at_ms));
        // In the order in which they are to be published.
        facts.sort_by_key(|fact| (fact.at_ms, fact.kind));
        if scope.publish {
            self.wait_for_the_bridge().await?;
        }
        read_on(&mut self.journal, &mut self.seen)?;
        let scope = &self.state.scope;
        let mut candidates = Vec::new();
        let mut lines = String::new();
        for fact in &facts {
            let counts = &mut self.state.counts;
            let outcome = match self.seen.verdict(&self.application, fact) {
                Verdict::Stored => {
                    counts.stored += 1;
                    continue;
                }
                Verdict::Candidate => {
                    counts.candidates += 1;
                    continue;
                }
                Verdict::Unknown => {
                    counts.unknown += 1;
                    "not known"
                }
                Verdict::Missing => {
                    *counts.missing.entry(fact.kind.category().label().to_owned()).or_default() += 1;
                    if scope.publish {
                        candidates.push(self.candidate(fact)?);
                    }
                    "missing"
                }
            };
            lines += &self.line(fact, outcome);
        }
        self.state.counts.without_time += u64::from(found.without_time);
        let queued = self.journal.add_candidates(&candidates)?;
        self.state.counts.queued += queued as u64;
        self.seen.add_candidates(candidates.iter().filter_map(|candidate| candidate.facts.first().copied()));
        if !lines.is_empty() {
            self.bar.suspend(|| print(&lines))?;
        }
        self.show(at_ms);
        Ok(())
    }

    /// Until there is room for candidates.
    async fn wait_for_the_bridge(&self) -> Result<(), Failure> {
        let (mut fewest, mut stored_at) = (u64::MAX, Instant::now());
        loop {
            let waiting = self.journal.waiting_candidates()?;
            if waiting < MOST_WAITING {
                return Ok(());
            }
            if waiting < fewest {
                (fewest, stored_at) = (waiting, Instant::now());
            } else if stored_at.elapsed() > PATIENCE {
                return Err(Failure::Failed(format!(
                    "expected the bridge to store backfill candidates, but {waiting} wait: is it running, and has its journal room?"
                )));
            }
            sleep(POLL).await;
        }
    }

    fn candidate(&self, fact: &Fact) -> Result<BackfillCandidate, Failure> {
        let event = event(fact, self.clock.now_ms(), &self.settings)
            .map_err(|refused| Failure::Failed(format!("{} of Sendbird's cannot be read: {refused}", fact.key)))?;
        Ok(BackfillCandidate {
            facts: fact.ids(&self.application),
            through: self.seen.through(),
            id: *event.id.as_bytes(),
            key: event.key,
            kind: event.kind,
            payload: event.envelope,
        })
    }

    fn line(&self, fact: &Fact, outcome: &str) -> String {
        let at = rfc3339(fact.at_ms).unwrap_or_default();
        let category = fact.kind.category().label();
        if self.json {
            let line = serde_json::json!({
                "at": at, "category": category, "key": fact.key, "participant_id": fact.participant_id,
                "outcome": outcome,
            });
            return format!("{line}\n");
        }
        let participant = fact.participant_id.as_deref().map(|id| format!("  {id}")).unwrap_or_default();
        format!("{at}  {outcome}  {category}  {}{participant}\n", fact.key)
    }

    /// Lists begin with what is newest, mostly.
    fn show(&self, at_ms: Option<i64>) {
        let counts = &self.state.counts;
        let missing: u64 = counts.missing.values().sum();
        let [calls, rooms, missing] = [(counts.calls, "call"), (counts.rooms, "room"), (missing, "event")]
            .map(|(count, what)| counted(count, what));
        self.bar.set_message(format!("{calls}, {rooms}, {missing} missing"));
        let back = at_ms.map(|at| self.state.scope.until_ms.saturating_sub(at));
        if let Some(back) = back.and_then(|back| u64::try_from(back).ok()) {
            self.bar.set_position(back.min(self.bar.length().unwrap_or(back)));
        }
    }
}

fn add(all: &mut Facts, more: Facts) {
    all.facts.extend(more.facts);
    all.without_time += more.without_time;
}

/// Whether an id can stand in a list of ids in a URL. Those that Sendbird makes have 36 characters.
fn can_be_asked_for(room_id: &str) -> bool {
    const LONGEST: usize = 128;
    room_id.len() <= LONGEST && !room_id.contains(',')
}

/// What Sendbird may say of a cursor that it no longer knows.
fn is_of_the_cursor(failure: &api::Failure) -> bool {
    matches!(failure, api::Failure::Refused(_) | api::Failure::NotFound(_))
}

/// The order of a list, as far as it was seen. None is documented for calls, so none is relied on before it was seen.
#[derive(Default)]
struct ListOrder {
    last: Option<i64>,
    rises: bool,
    falls: bool,
}

impl ListOrder {
    /// Whether all that a page and those after it can have is out of the time from `begin` to `until`.
    fn is_past(&mut self, page: impl Iterator<Item = i64>, begin: i64, until: i64) -> bool {
        for at in page {
            if let Some(last) = self.last {
                self.rises |= at > last;
                self.falls |= at < last;
            }
            self.last = Some(at);
        }
        match (self.last, self.rises, self.falls) {
            (Some(last), false, true) => last < begin,
            (Some(last), true, false) => last >= until,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ListOrder;

    #[test]
    fn the_order_of_a_list_is_relied_on_once_it_was_seen() {
        let mut newest_first = ListOrder::default();
        assert!(!newest_first.is_past([9, 8].into_iter(), 5, 10));
        assert!(!newest_first.is_past([6, 5].into_iter(), 5, 10));
        assert!(newest_first.is_past([5, 4].into_iter(), 5, 10));

        let mut oldest_first = ListOrder::default();
        assert!(!oldest_first.is_past([1, 2].into_iter(), 5, 10), "what is to come may be in time");
        assert!(!oldest_first.is_past([6, 9].into_iter(), 5, 10));
        assert!(oldest_first.is_past([9, 10].into_iter(), 5, 10));

        let mut neither = ListOrder::default();
        assert!(!neither.is_past([9, 4, 12].into_iter(), 5, 10));
        assert!(!neither.is_past([1].into_iter(), 5, 10));
        assert!(!ListOrder::default().is_past([4].into_iter(), 5, 10), "one has no order");
    }
}
