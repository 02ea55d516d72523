//! Order by key: which event may be sent next, and how far a sink has got.
//!
//! Of each key at most one event is out at a time; the next one follows when that is dealt with. So no
//! broker, client, retry or reconnect can turn two events of one key around, whatever it does with events
//! that are in flight together. Different keys never wait for each other.
//!
//! Pure: positions and records go in, decisions come out.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use crate::journal::Record;

/// Events held in memory for one sink, waiting or in flight, by number and by bytes.
const OPEN_RECORDS: usize = 4096;
const OPEN_BYTES: usize = 16 * 1024 * 1024;

/// How many events may overtake one that is stuck. They are published again, with the same ids, if the
/// bridge is restarted while it is stuck.
const AHEAD: usize = 65_536;

/// The events between a sink's cursor and what has been read.
#[derive(Debug)]
pub(super) struct Order {
    cursor: u64,
    slots: VecDeque<Slot>,
    /// Keys with an event ready or out, each with the positions that wait behind it.
    keys: HashMap<u64, VecDeque<u64>>,
    /// The oldest first: it is what the cursor waits for, and so what decides how much would go out again after a crash.
    ready: BinaryHeap<Reverse<u64>>,
    open_records: usize,
    open_bytes: usize,
}

#[derive(Debug)]
struct Slot {
    position: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// To be published; a clone of the record is out while it is.
    Open(Record),
    /// To be dealt with, but not by publishing.
    Held,
    Done,
}

impl Order {
    /// Nothing read yet after `cursor`.
    pub(super) fn after(cursor: u64) -> Self {
        Self {
            cursor,
            slots: VecDeque::new(),
            keys: HashMap::new(),
            ready: BinaryHeap::new(),
            open_records: 0,
            open_bytes: 0,
        }
    }

    /// Everything up to here is dealt with.
    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Everything up to here has been added.
    pub(super) fn through(&self) -> u64 {
        self.slots.back().map_or(self.cursor, |slot| slot.position)
    }

    /// Whether more may be added.
    pub(super) fn has_room(&self) -> bool {
        self.open_records < OPEN_RECORDS && self.open_bytes < OPEN_BYTES && self.slots.len() < AHEAD
    }

    /// Adds an event that is to be published. Positions must grow; one that has been added is left alone.
    pub(super) fn add(&mut self, record: Record) {
        if record.position <= self.through() {
            return;
        }
        self.open_records += 1;
        self.open_bytes += record.payload.len();
        self.line_up(record.position, record.key_hash);
        self.slots.push_back(Slot { position: record.position, state: State::Open(record) });
    }

    /// Adds an event that this sink has nothing to do with.
    pub(super) fn pass(&mut self, position: u64) {
        self.push(position, State::Done);
        self.move_cursor();
    }

    /// Adds an event that is dealt with otherwise, until [`Order::finish`].
    pub(super) fn hold(&mut self, position: u64) {
        self.push(position, State::Held);
    }

    /// The next event to send: the oldest one whose key has nothing out.
    pub(super) fn take(&mut self) -> Option<Record> {
        while let Some(Reverse(position)) = self.ready.pop() {
            if let Some(Slot { state: State::Open(record), .. }) = self.slot(position) {
                return Some(record.clone());
            }
        }
        None
    }

    /// An event that is out is to be sent again; it keeps its place.
    pub(super) fn again(&mut self, position: u64) {
        self.ready.push(Reverse(position));
    }

    /// The event is dealt with for good: published, or set aside.
    pub(super) fn finish(&mut self, position: u64) {
        let Some(slot) = self.slot(position) else { return };
        if let State::Open(record) = std::mem::replace(&mut slot.state, State::Done) {
            self.open_records -= 1;
            self.open_bytes -= record.payload.len();
            if let Some(behind) = self.keys.get_mut(&record.key_hash) {
                match behind.pop_front() {
                    Some(next) => self.ready.push(Reverse(next)),
                    None => {
                        self.keys.remove(&record.key_hash);
                    }
                }
            }
        }
        self.move_cursor();
    }

    /// Whatever was out has an unknown outcome: all that is not dealt with is lined up again, oldest
    /// first. What was held is forgotten and will be read again.
    pub(super) fn restart(&mut self) {
        self.keys.clear();
        self.ready.clear();
        if let Some(held) = self.slots.iter().position(|slot| matches!(slot.state, State::Held)) {
            for slot in self.slots.drain(held..) {
                if let State::Open(record) = slot.state {
                    self.open_records -= 1;
                    self.open_bytes -= record.payload.len();
                }
            }
        }
        let open = self.slots.iter().filter_map(|slot| match &slot.state {
            State::Open(record) => Some((record.position, record.key_hash)),
            State::Held | State::Done => None,
        });
        for (position, key) in open.collect::<Vec<_>>() {
            self.line_up(position, key);
        }
    }

    fn line_up(&mut self, position: u64, key: u64) {
        match self.keys.get_mut(&key) {
            Some(behind) => behind.push_back(position),
            None => {
                self.keys.insert(key, VecDeque::new());
                self.ready.push(Reverse(position));
            }
        }
    }

    fn push(&mut self, position: u64, state: State) {
        if position > self.through() {
            self.slots.push_back(Slot { position, state });
        }
    }

    fn slot(&mut self, position: u64) -> Option<&mut Slot> {
        let index = self.slots.binary_search_by_key(&position, |slot| slot.position).ok()?;
        self.slots.get_mut(index)
    }

    fn move_cursor(&mut self) {
        while let Some(Slot { position, state: State::Done }) = self.slots.front() {
            self.cursor = *position;
            self.slots.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn record(position: u64, key_hash: u64) -> Record {
        Record { position, accepted_ms: 0, key_hash, kind: String::new(), payload: Bytes::from_static(b"12345") }
    }

    fn take_all(order: &mut Order) -> Vec<u64> {
        std::iter::from_fn(|| order.take()).map(|record| record.position).collect()
    }

    #[test]
    fn one_of_each_key_is_out() {
        let mut order = Order::after(10);
        for (position, key) in [(11, 1), (12, 1), (13, 2), (14, 1)] {
            order.add(record(position, key));
        }
        assert_eq!(take_all(&mut order), [11, 13]);
        order.finish(13);
        assert_eq!((order.cursor(), take_all(&mut order)), (10, vec![]), "11 is still out");
        order.finish(11);
        assert_eq!((order.cursor(), take_all(&mut order)), (11, vec![12]));
        order.finish(12);
        order.finish(14);
        assert_eq!((order.cursor(), order.open_records, order.open_bytes, order.keys.len()), (14, 0, 0, 0));
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut order = Order::after(0);
        for (position, key) in [(1, 1), (2, 1), (3, 2), (4, 3)] {
            order.add(record(position, key));
        }
        assert_eq!(order.take().map(|record| record.position), Some(1));
        order.finish(1);
        assert_eq!(take_all(&mut order), [2, 3, 4], "2 became due last and is what the cursor waits for");
    }

    #[test]
    fn passed_and_held_events_move_the_cursor_in_their_turn() {
        let mut order = Order::after(0);
        order.pass(1);
        assert_eq!(order.cursor(), 1);
        order.hold(2);
        order.pass(3);
        assert_eq!(order.cursor(), 1);
        order.finish(2);
        assert_eq!((order.cursor(), order.through()), (3, 3));
    }

    #[test]
    fn a_restart_sends_again_what_is_open_and_nothing_else() {
        let mut order = Order::after(0);
        for (position, key) in [(1, 1), (2, 2), (3, 1), (4, 3)] {
            order.add(record(position, key));
        }
        order.hold(5);
        order.add(record(6, 4));
        assert_eq!(take_all(&mut order), [1, 2, 4, 6]);
        order.finish(2);
        order.restart();
        assert_eq!(order.through(), 4, "what was held, and all after it, is read again");
        assert_eq!(take_all(&mut order), [1, 4]);
        assert_eq!((order.open_records, order.open_bytes), (3, 15));
    }

    #[test]
    fn room_is_bounded() {
        let mut order = Order::after(0);
        let mut position = 0;
        while order.has_room() {
            position += 1;
            order.add(record(position, 1));
        }
        assert_eq!(position, OPEN_RECORDS as u64);
        order.take();
        order.finish(1);
        assert!(order.has_room());
    }

    proptest! {
        /// Whatever finishes or restarts in whatever order: each key's events are first sent in order,
        /// never two at once, and in the end all are dealt with.
        #[test]
        fn order_holds(keys in prop::collection::vec(0u64..5, 1..60), choices: Vec<u8>) {
            let mut order = Order::after(0);
            for (index, key) in keys.iter().enumerate() {
                order.add(record(index as u64 + 1, *key));
            }
            let mut out: Vec<Record> = Vec::new();
            let mut last_sent: HashMap<u64, u64> = HashMap::new();
            let mut choices = choices.into_iter().chain(std::iter::repeat(1));
            while order.cursor() < keys.len() as u64 {
                while let Some(record) = order.take() {
                    prop_assert!(out.iter().all(|other| other.key_hash != record.key_hash));
                    let last = last_sent.entry(record.key_hash).or_default();
                    prop_assert!(record.position >= *last, "{} after {}", record.position, last);
                    *last = record.position;
                    out.push(record);
                }
                match choices.next() {
                    Some(0) => {
                        out.clear();
                        order.restart();
                    }
                    choice => {
                        let record = out.swap_remove(usize::from(choice.unwrap_or(1)) % out.len());
                        order.finish(record.position);
                    }
                }
            }
            prop_assert_eq!((order.open_records, order.open_bytes, order.keys.len()), (0, 0, 0));
        }
    }
}
