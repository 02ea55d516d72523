//! The window in which a delivery that comes again is recognised.
//!
//! It remembers ids in the order in which they were accepted and forgets them by age and by number.
//! It decides nothing about durability: the journal adds an id only together with its event.

use std::collections::{HashMap, VecDeque};

/// Remembered ids with the position of their event.
#[derive(Debug)]
pub struct Window {
    length_ms: i64,
    max_ids: usize,
    positions: HashMap<[u8; 16], u64>,
    by_age: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    accepted_ms: i64,
    position: u64,
    id: [u8; 16],
}

impl Window {
    /// A window of `length_ms` milliseconds and at most `max_ids` ids; past that number the oldest are
    /// forgotten early, and a retry that late would be published again, under the same id.
    pub fn new(length_ms: i64, max_ids: usize) -> Self {
        Self { length_ms, max_ids, positions: HashMap::new(), by_age: VecDeque::new() }
    }

    /// The position of the event that this id was accepted as, if it is remembered.
    pub fn get(&self, id: &[u8; 16]) -> Option<u64> {
        self.positions.get(id).copied()
    }

    /// Remembers an id. Positions must grow from call to call.
    pub fn insert(&mut self, id: [u8; 16], position: u64, accepted_ms: i64) {
        self.positions.insert(id, position);
        self.by_age.push_back(Entry { accepted_ms, position, id });
        while self.by_age.len() > self.max_ids {
            self.forget_oldest();
        }
    }

    /// Forgets what is older than the window and returns the newest position forgotten so far in this
    /// call: all entries up to it are gone.
    pub fn expire(&mut self, now_ms: i64) -> Option<u64> {
        let mut last = None;
        while let Some(oldest) = self.by_age.front() {
            if oldest.accepted_ms.saturating_add(self.length_ms) > now_ms {
                break;
            }
            last = Some(oldest.position);
            self.forget_oldest();
        }
        last
    }

    /// How many ids are remembered.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    fn forget_oldest(&mut self) {
        if let Some(entry) = self.by_age.pop_front()
            // An id that was accepted again after it had been forgotten belongs to the newer entry.
            && self.positions.get(&entry.id) == Some(&entry.position)
        {
            self.positions.remove(&entry.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> [u8; 16] {
        [n; 16]
    }

    #[test]
    fn remembers_inside_the_window_and_forgets_after_it() {
        let mut window = Window::new(1000, 10);
        window.insert(id(1), 1, 0);
        window.insert(id(2), 2, 500);
        assert_eq!(window.expire(999), None);
        assert_eq!(window.get(&id(1)), Some(1));
        assert_eq!(window.expire(1000), Some(1));
        assert_eq!(window.get(&id(1)), None);
        assert_eq!(window.get(&id(2)), Some(2));
        assert_eq!(window.by_age.front().map(|entry| entry.position), Some(2));
    }

    #[test]
    fn past_its_number_the_oldest_goes_first() {
        let mut window = Window::new(1000, 2);
        for n in 1..=3 {
            window.insert(id(n), n.into(), 0);
        }
        assert_eq!((window.get(&id(1)), window.get(&id(2)), window.len()), (None, Some(2), 2));
    }

    proptest! {
        /// Against the obvious model: a list of all that was ever inserted.
        #[test]
        fn equals_the_model(steps in prop::collection::vec((0u8..20, 0i64..300), 1..200)) {
            let (length, max) = (1000, 15);
            let mut window = Window::new(length, max);
            let mut model: Vec<([u8; 16], u64, i64)> = Vec::new();
            let mut now = 0;
            for (position, (n, pause)) in steps.into_iter().enumerate() {
                now += pause;
                window.expire(now);
                model.retain(|(_, _, at)| at + length > now);
                let known = model.iter().rev().find(|(known, _, _)| *known == id(n)).map(|(_, at, _)| *at);
                prop_assert_eq!(window.get(&id(n)), known);
                if known.is_none() {
                    window.insert(id(n), position as u64, now);
                    model.push((id(n), position as u64, now));
                    if model.len() > max {
                        model.remove(0);
                    }
                }
                prop_assert_eq!(window.len(), model.len());
            }
        }
    }
}
