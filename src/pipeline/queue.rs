//! The keyed queue: which event may be sent next.
//!
//! Of each key at most one event, its *head*, is out at a time; the next one follows when the sink is done with it. So
//! no broker, client, retry or reconnect can change the order of two events of one key, whatever it does with events
//! that are in flight together. Different keys never wait for each other.
//!
//! Every waiting event has its place and its key in memory, and those that can be sent soon their payload as well. The
//! payload of any other is read when its turn comes. Events of the journal and resends are in one queue, but are
//! ordered by key apart from each other.
//!
//! Pure: places, keys and records go in, decisions come out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

use crate::journal::{Origin, Record, WaitingKey};

/// Payloads held in memory, by number and by bytes; for events of the journal and for resends each.
pub(super) const OPEN_RECORDS: usize = 4096;
pub(super) const OPEN_BYTES: usize = 16 * 1024 * 1024;

/// Late events are read ahead up to this number.
const LATE_RECORDS: usize = 256;

/// Of so many turns, late events get one while others are ready.
const TURNS: u32 = 5;

/// What one waiting event takes in memory, payload excluded: its entry in the map and one in a heap of heads.
pub(super) const POSITION_BYTES: usize = 64;

/// What a resend without its payload takes besides.
const CLOSED_BYTES: usize = 96;

/// Where an event stands among all that a sink has to publish: first those of the journal by their position, then the
/// resends in the order in which they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place(u64);

impl Place {
    const FIRST_RESEND: u64 = 1 << 63;
    const LAST: Self = Self(u64::MAX);

    /// The place of the event at this position of the journal.
    pub(super) fn live(position: u64) -> Self {
        Self(position)
    }

    /// The place of the resend that was read as the `n`th.
    pub(super) fn resend(n: u64) -> Self {
        Self(Self::FIRST_RESEND | n)
    }

    pub(super) fn is_resend(self) -> bool {
        self.0 >= Self::FIRST_RESEND
    }

    /// The position in the journal, unless it is the place of a resend.
    pub(super) fn position(self) -> Option<u64> {
        (!self.is_resend()).then_some(self.0)
    }
}

/// A waiting event without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Head {
    pub(super) place: Place,
    /// The hash of its key; another one for a resend, so that neither waits for the other.
    pub(super) key_hash: u64,
}

impl Head {
    pub(super) fn new(place: Place, key_hash: u64) -> Self {
        Self { place, key_hash: if place.is_resend() { !key_hash } else { key_hash } }
    }

    /// The hash of its key as its record has it.
    fn of_record(self) -> u64 {
        if self.place.is_resend() { !self.key_hash } else { self.key_hash }
    }
}

/// Where the payload of a waiting event is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unread {
    pub(super) head: Head,
    /// The position in the journal.
    pub(super) position: u64,
    /// What it is resent for; `None` for an event of the journal whose turn it is.
    pub(super) origin: Option<Origin>,
}

/// An event to be published.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) place: Place,
    /// What it is resent for; `None` for an event of the journal whose turn it is.
    pub(super) origin: Option<Origin>,
    pub(super) record: Record,
}

impl Item {
    pub(super) fn live(record: Record) -> Self {
        Self { place: Place::live(record.position), origin: None, record }
    }

    pub(super) fn head(&self) -> Head {
        Head::new(self.place, self.record.key_hash)
    }
}

/// What is known of a waiting event.
#[derive(Clone, Copy, Debug)]
struct Mark {
    state: State,
    /// Whether it is recorded as stuck.
    stuck: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Another event of its key comes first.
    Behind,
    /// It has its payload and may be sent.
    Ready,
    /// It is in flight, or whoever has taken it is doing something else with it.
    Out,
    /// Its payload has to be read first.
    Unread,
    /// It waits for [`KeyedQueue::release`], and its key with it.
    Parked,
    /// Another event of its key comes first, and this one is not to be sent at all.
    Seized,
}

/// Everything that a sink has before it.
#[derive(Debug, Default)]
pub(super) struct KeyedQueue {
    /// By key, so that the next event of a key is found.
    waiting: BTreeMap<(u64, Place), Mark>,
    /// Those with their payload: of each key the first few that wait, without a gap.
    open: HashMap<Place, Item>,
    /// The resends without it.
    closed: HashMap<Place, Unread>,
    /// The oldest first: a crash then costs the fewest copies.
    ready: BinaryHeap<Reverse<Head>>,
    /// Those whose payload was read when their turn came: they were parked, or waited when the sink stopped. Many of
    /// them may fail once more, so while others are ready they get a part of the turns only.
    late: BinaryHeap<Reverse<Head>>,
    turn: u32,
    unread: BinaryHeap<Reverse<Head>>,
    live: Held,
    resends: Held,
    stuck: usize,
}

/// Payloads in memory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    records: usize,
    bytes: usize,
}

impl KeyedQueue {
    /// What was waiting when the sink stopped.
    pub(super) fn resume(waiting: &[WaitingKey]) -> Self {
        let mut order: Vec<_> = waiting.iter().map(|event| (event.key_hash, Place::live(event.position))).collect();
        order.sort_unstable();
        let (mut unread, mut last) = (Vec::new(), None);
        let marked = order.into_iter().map(|(key_hash, place)| {
            let is_first = last.replace(key_hash) != Some(key_hash);
            let state = if is_first { State::Unread } else { State::Behind };
            if is_first {
                unread.push(Reverse(Head { place, key_hash }));
            }
            ((key_hash, place), Mark { state, stuck: false })
        });
        let waiting = marked.collect();
        Self { waiting, unread: BinaryHeap::from(unread), ..Self::default() }
    }

    /// An event that was recorded as stuck when the sink stopped is parked unread. `false` if it is not the first of its key.
    pub(super) fn resume_stuck(&mut self, head: Head) -> bool {
        self.change(head, State::Unread, State::Parked) && self.mark_stuck(head)
    }

    /// How many events wait or are in flight.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The memory that they take, payloads excluded.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.len() * POSITION_BYTES + self.closed.len() * CLOSED_BYTES
    }

    /// How many of them are recorded as stuck.
    pub(super) fn stuck(&self) -> usize {
        self.stuck
    }

    /// Whether there is room for more payloads of the journal's events.
    pub(super) fn has_room(&self) -> bool {
        self.live.has_room()
    }

    /// Whether there is room for more resends.
    pub(super) fn has_room_for_resends(&self) -> bool {
        self.resends.has_room()
    }

    /// Adds an event behind all others of its key. One that waits already is left alone.
    pub(super) fn add(&mut self, item: Item) {
        let Head { place, key_hash } = item.head();
        let last = self.waiting.range((key_hash, Place(0))..=(key_hash, Place::LAST)).next_back();
        let (is_head, keep) = match last {
            Some(((_, last), _)) if *last >= place => return,
            Some(((_, last), _)) => (false, self.open.contains_key(last)),
            None => (true, true),
        };
        let state = if is_head { State::Ready } else { State::Behind };
        self.waiting.insert((key_hash, place), Mark { state, stuck: false });
        if is_head {
            self.ready.push(Reverse(Head { place, key_hash }));
        }
        if keep {
            self.hold(item);
        } else {
            self.close(&item);
        }
    }

    /// The next event to send: the oldest one whose key has nothing out. It is out until [`KeyedQueue::finish`],
    /// [`KeyedQueue::retry`] or [`KeyedQueue::park`].
    pub(super) fn take(&mut self) -> Option<&Item> {
        loop {
            let Reverse(head) = self.pop()?;
            if self.change(head, State::Ready, State::Out) {
                return self.open.get(&head.place);
            }
        }
    }

    fn pop(&mut self) -> Option<Reverse<Head>> {
        self.turn = (self.turn + 1) % TURNS;
        let (first, second) =
            if self.turn == 0 { (&mut self.late, &mut self.ready) } else { (&mut self.ready, &mut self.late) };
        first.pop().or_else(|| second.pop())
    }

    /// The payload of an event that is held in memory.
    pub(super) fn item(&self, place: Place) -> Option<&Item> {
        self.open.get(&place)
    }

    /// The sink is done with the event: published, or set aside. The next one of its key may follow. `false` if it was
    /// not waiting.
    pub(super) fn finish(&mut self, head: Head) -> bool {
        let Some(mark) = self.waiting.remove(&(head.key_hash, head.place)) else { return false };
        self.stuck -= usize::from(mark.stuck);
        if self.drop_payload(head.place).is_none() {
            self.closed.remove(&head.place);
        }
        if !matches!(mark.state, State::Behind | State::Seized) {
            let mut rest = self.waiting.range((head.key_hash, head.place)..=(head.key_hash, Place::LAST));
            if let Some(((_, next), _)) = rest.next() {
                self.line_up(Head { place: *next, ..head });
            }
        }
        true
    }

    /// An event that is out is to be sent once more; it keeps its place.
    pub(super) fn retry(&mut self, head: Head) {
        if self.change(head, State::Out, State::Behind) {
            self.line_up(head);
        } else {
            self.release(head);
        }
    }

    /// An event that is out is to wait, and its key with it. Their payloads are dropped, and read when their turn comes.
    pub(super) fn park(&mut self, head: Head) {
        if !self.change(head, State::Out, State::Parked) {
            return;
        }
        let behind = self.waiting.range((head.key_hash, head.place)..=(head.key_hash, Place::LAST));
        let open = behind.map(|((_, place), _)| *place).take_while(|place| self.open.contains_key(place));
        for place in open.collect::<Vec<_>>() {
            if let Some(item) = self.drop_payload(place) {
                self.close(&item);
            }
        }
    }

    /// A parked event is to be tried. `false` if it is not parked any more.
    pub(super) fn release(&mut self, head: Head) -> bool {
        let is_parked = self.change(head, State::Parked, State::Behind);
        if is_parked {
            self.line_up(head);
        }
        is_parked
    }

    /// The oldest events whose payload has to be read before they can be sent, at most `most`. Each of them is out until
    /// [`KeyedQueue::load`], [`KeyedQueue::unload`] or [`KeyedQueue::finish`].
    pub(super) fn take_unread(&mut self, most: usize) -> Vec<Unread> {
        let mut taken = Vec::new();
        while taken.len() < most {
            let Some(Reverse(head)) = self.unread.pop() else { break };
            if self.change(head, State::Unread, State::Out) {
                let live = head.place.position().map(|position| Unread { head, position, origin: None });
                taken.extend(live.or_else(|| self.closed.get(&head.place).copied()));
            }
        }
        taken
    }

    /// Whether [`KeyedQueue::take_unread`] may find any, and there is room for them.
    pub(super) fn wants_payloads(&self) -> bool {
        !self.unread.is_empty() && self.late.len() < LATE_RECORDS
    }

    /// The payload has been read.
    pub(super) fn load(&mut self, head: Head, mut record: Record) {
        if self.change(head, State::Out, State::Ready) {
            // What it was lined up by: there is one answer to what its key is.
            record.key_hash = head.of_record();
            let origin = self.closed.remove(&head.place).and_then(|closed| closed.origin);
            self.hold(Item { place: head.place, origin, record });
            self.late.push(Reverse(head));
        }
    }

    /// The payload has not been read.
    pub(super) fn unload(&mut self, head: Head) {
        if self.change(head, State::Out, State::Unread) {
            self.unread.push(Reverse(head));
        }
    }

    /// Takes an event out of the line, wherever it stands, until [`KeyedQueue::finish`]. `false` if it does not wait or is
    /// out already.
    pub(super) fn seize(&mut self, head: Head) -> bool {
        let Some(mark) = self.waiting.get_mut(&(head.key_hash, head.place)) else { return false };
        mark.state = match mark.state {
            State::Out | State::Seized => return false,
            State::Behind => State::Seized,
            State::Ready | State::Unread | State::Parked => State::Out,
        };
        true
    }

    pub(super) fn contains(&self, head: Head) -> bool {
        self.waiting.contains_key(&(head.key_hash, head.place))
    }

    /// Marks a waiting event as stuck. `false` if it is already, or waits no more.
    pub(super) fn mark_stuck(&mut self, head: Head) -> bool {
        let Some(mark) = self.waiting.get_mut(&(head.key_hash, head.place)) else { return false };
        let is_new = !std::mem::replace(&mut mark.stuck, true);
        self.stuck += usize::from(is_new);
        is_new
    }

    /// The waiting events of the journal at these positions. Looks at everything that waits, so it is for an operator's
    /// request, not for each event.
    pub(super) fn find(&self, positions: &HashSet<u64>) -> Vec<Head> {
        let heads = self.waiting.keys().map(|(key_hash, place)| Head { place: *place, key_hash: *key_hash });
        heads.filter(|head| head.place.position().is_some_and(|position| positions.contains(&position))).collect()
    }

    /// All resends, with what they are resent for.
    pub(super) fn all_resends(&self) -> impl Iterator<Item = (Head, Origin)> {
        let open = self.open.values().filter_map(|item| item.origin.map(|origin| (item.head(), origin)));
        open.chain(self.closed.values().filter_map(|closed| closed.origin.map(|origin| (closed.head, origin))))
    }

    /// Makes `head` the head of its key.
    fn line_up(&mut self, head: Head) {
        let is_open = self.open.contains_key(&head.place);
        let Some(mark) = self.waiting.get_mut(&(head.key_hash, head.place)) else { return };
        mark.state = match mark.state {
            State::Seized => State::Out,
            _ if is_open => State::Ready,
            _ => State::Unread,
        };
        match mark.state {
            State::Ready => self.ready.push(Reverse(head)),
            State::Unread => self.unread.push(Reverse(head)),
            _ => {}
        }
    }

    fn change(&mut self, head: Head, from: State, to: State) -> bool {
        match self.waiting.get_mut(&(head.key_hash, head.place)) {
            Some(mark) if mark.state == from => {
                mark.state = to;
                true
            }
            _ => false,
        }
    }

    fn held(&mut self, place: Place) -> &mut Held {
        if place.is_resend() { &mut self.resends } else { &mut self.live }
    }

    fn hold(&mut self, item: Item) {
        let held = self.held(item.place);
        held.records += 1;
        held.bytes += item.record.payload.len();
        self.open.insert(item.place, item);
    }

    fn drop_payload(&mut self, place: Place) -> Option<Item> {
        let item = self.open.remove(&place)?;
        let held = self.held(place);
        held.records -= 1;
        held.bytes -= item.record.payload.len();
        Some(item)
    }

    /// Remembers where the payload of a resend is read.
    fn close(&mut self, item: &Item) {
        if item.place.is_resend() {
            let closed = Unread { head: item.head(), position: item.record.position, origin: item.origin };
            self.closed.insert(item.place, closed);
        }
    }
}

impl Held {
    fn has_room(&self) -> bool {
        self.records < OPEN_RECORDS && self.bytes < OPEN_BYTES
    }
}

#[cfg(test)]
mod tests;
