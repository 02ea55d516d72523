//! The queue by key: order, bounds, and memory.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn record(position: u64, key_hash: u64) -> Record {
    Record {
        position,
        accepted_ms: 0,
        id: [0; 16],
        key_hash,
        key: String::new(),
        kind: String::new(),
        payload: Bytes::from_static(b"12345"),
    }
}

fn live(position: u64, key_hash: u64) -> Item {
    Item::live(record(position, key_hash))
}

fn resend(n: u64, key_hash: u64) -> Item {
    let origin = Some(Origin::Requeue { seq: n });
    Item { place: Place::resend(n), origin, record: record(n, key_hash) }
}

fn head(position: u64, key_hash: u64) -> Head {
    Head::new(Place::live(position), key_hash)
}

fn queue(events: &[(u64, u64)]) -> KeyedQueue {
    let mut queue = KeyedQueue::default();
    events.iter().for_each(|(position, key)| queue.add(live(*position, *key)));
    queue
}

fn take_all(queue: &mut KeyedQueue) -> Vec<u64> {
    std::iter::from_fn(|| queue.take().map(|item| item.record.position)).collect()
}

fn assert_empty(queue: &KeyedQueue) {
    assert_eq!((queue.len(), queue.open.len(), queue.stuck()), (0, 0, 0));
    assert_eq!((&queue.live, &queue.resends), (&Held::default(), &Held::default()));
}

#[test]
fn one_event_of_each_key_is_out_and_the_oldest_goes_first() {
    let mut queue = queue(&[(11, 1), (12, 1), (13, 2), (14, 1)]);
    assert_eq!(take_all(&mut queue), [11, 13]);
    queue.finish(head(13, 2));
    assert_eq!(take_all(&mut queue), [0; 0], "11 is still out");
    queue.finish(head(11, 1));
    queue.add(live(15, 3));
    assert_eq!(take_all(&mut queue), [12, 15]);
    for (position, key) in [(12, 1), (14, 1), (15, 3)] {
        queue.finish(head(position, key));
    }
    assert_empty(&queue);
}

#[test]
fn an_event_that_is_retried_keeps_its_place() {
    let mut queue = queue(&[(1, 1), (2, 1), (3, 2)]);
    assert_eq!(take_all(&mut queue), [1, 3]);
    queue.retry(head(3, 2));
    queue.retry(head(1, 1));
    assert_eq!(take_all(&mut queue), [1, 3]);
}

#[test]
fn a_parked_event_holds_up_its_key_alone_and_costs_no_payload() {
    let mut queue = queue(&[(1, 1), (2, 1), (3, 2)]);
    assert_eq!(take_all(&mut queue), [1, 3]);
    queue.park(head(1, 1));
    queue.add(live(4, 1));
    assert_eq!((queue.open.len(), queue.live.records), (1, 1), "only 3 has its payload");
    queue.add(live(5, 2));
    queue.finish(head(3, 2));
    assert_eq!(take_all(&mut queue), [5]);
    assert!(queue.release(head(1, 1)) && !queue.release(head(1, 1)));
    assert!(take_all(&mut queue).is_empty(), "its payload has to be read");
    assert_eq!(unread(&mut queue), [head(1, 1)]);
    queue.load(head(1, 1), record(1, 1));
    assert_eq!(take_all(&mut queue), [1]);
    queue.finish(head(1, 1));
    assert_eq!(unread(&mut queue), [head(2, 1)]);
    queue.unload(head(2, 1));
    assert_eq!(unread(&mut queue), [head(2, 1)]);
}

#[test]
fn a_parked_resend_holds_no_payload_and_is_ordered_apart_from_the_journal() {
    let mut queue = queue(&[(1, 1)]);
    queue.add(resend(7, 1));
    queue.add(resend(8, 1));
    assert_eq!(take_all(&mut queue), [1, 7]);
    let first = Head::new(Place::resend(7), 1);
    queue.park(first);
    assert_eq!(queue.resends, Held::default(), "nor do those behind it");
    queue.add(resend(9, 1));
    assert_eq!(queue.resends, Held::default());
    assert_eq!(queue.all_resends().count(), 3);
    for (position, before) in [(7, first), (8, Head::new(Place::resend(8), 1)), (9, Head::new(Place::resend(9), 1))] {
        if position == 7 {
            assert!(queue.release(before));
        }
        let origin = resend(position, 1).origin;
        assert_eq!(queue.take_unread(9), [Unread { head: before, position, origin }]);
        queue.load(before, record(position, 1));
        let item = queue.take().unwrap();
        assert_eq!((item.head(), item.origin, item.record.key_hash), (before, origin, 1));
        queue.finish(before);
    }
    assert_eq!(queue.all_resends().count(), 0);
    queue.finish(head(1, 1));
    assert_empty(&queue);
}

#[test]
fn what_waited_when_the_sink_stopped_gets_a_part_of_the_turns() {
    let waiting = (1..=10).map(|position| WaitingKey { position, key_hash: position });
    let mut queue = KeyedQueue::resume(&waiting.collect::<Vec<_>>());
    for Unread { head, position, .. } in queue.take_unread(10) {
        queue.load(head, record(position, position));
    }
    (101..=120).for_each(|position| queue.add(live(position, position)));
    let order = take_all(&mut queue);
    let late = |part: &[u64]| part.iter().filter(|position| **position <= 10).count();
    assert_eq!((late(&order[..10]), late(&order[..25])), (2, 5), "{order:?}");
    assert_eq!(order.len(), 30, "and all of them when nothing else is ready");
}

#[test]
fn no_more_late_events_are_read_than_are_taken() {
    let waiting = (1..=1_000).map(|position| WaitingKey { position, key_hash: position });
    let mut queue = KeyedQueue::resume(&waiting.collect::<Vec<_>>());
    let load = |queue: &mut KeyedQueue| {
        while queue.wants_payloads() {
            for Unread { head, position, .. } in queue.take_unread(100) {
                queue.load(head, record(position, position));
            }
        }
        queue.live.records
    };
    assert_eq!(load(&mut queue), 300);
    assert_eq!(take_all(&mut queue).len(), 300);
    assert_eq!(load(&mut queue), 600);
}

fn unread(queue: &mut KeyedQueue) -> Vec<Head> {
    queue.take_unread(2).iter().map(|unread| unread.head).collect()
}

#[test]
fn after_a_start_the_first_event_of_each_key_is_read_first() {
    let waiting = [(1, 5), (2, 4), (3, 5), (9, 6)].map(|(position, key_hash)| WaitingKey { position, key_hash });
    let mut queue = KeyedQueue::resume(&waiting);
    queue.add(live(10, 4));
    assert!(take_all(&mut queue).is_empty());
    assert_eq!(unread(&mut queue), [head(1, 5), head(2, 4)]);
    assert_eq!(unread(&mut queue), [head(9, 6)]);
    queue.load(head(2, 4), record(2, 4));
    assert_eq!(take_all(&mut queue), [2]);
    queue.finish(head(2, 4));
    assert_eq!(unread(&mut queue), [head(10, 4)]);
}

#[test]
fn what_was_stuck_is_parked_from_the_start_if_it_is_the_first_of_its_key() {
    let waiting = [(1, 5), (2, 4), (3, 5), (9, 6)].map(|(position, key_hash)| WaitingKey { position, key_hash });
    let mut queue = KeyedQueue::resume(&waiting);
    let stuck = [head(1, 5), head(3, 5), head(9, 6), head(12, 1)];
    assert_eq!(stuck.map(|head| queue.resume_stuck(head)), [true, false, true, false]);
    assert_eq!(queue.stuck(), 2);
    assert!(!queue.mark_stuck(head(1, 5)) && queue.mark_stuck(head(3, 5)), "the first is recorded already");
    assert_eq!(unread(&mut queue), [head(2, 4)]);
    assert!(queue.release(head(1, 5)));
    assert_eq!(unread(&mut queue), [head(1, 5)]);
    queue.load(head(1, 5), record(1, 5));
    assert_eq!(take_all(&mut queue), [1]);
    queue.finish(head(1, 5));
    assert_eq!(unread(&mut queue), [head(3, 5)], "it waited behind the first");
}

#[test]
fn a_seized_event_is_not_sent_and_its_key_goes_on_without_it() {
    let mut queue = queue(&[(1, 1), (2, 1), (3, 1), (4, 2)]);
    assert_eq!(take_all(&mut queue), [1, 4]);
    assert!(!queue.seize(head(1, 1)), "it is out");
    assert!(queue.seize(head(2, 1)) && !queue.seize(head(2, 1)));
    queue.finish(head(1, 1));
    assert!(take_all(&mut queue).is_empty(), "2 is still being set aside");
    queue.finish(head(2, 1));
    assert_eq!(take_all(&mut queue), [3]);
    queue.park(head(3, 1));
    assert!(queue.seize(head(3, 1)) && !queue.release(head(3, 1)));
    assert!(!queue.seize(head(5, 1)), "it is unknown");
}

#[test]
fn stuck_events_are_counted_until_they_are_finished() {
    let mut queue = queue(&[(1, 1), (2, 2)]);
    assert_eq!(
        [head(1, 1), head(2, 2), head(1, 1), head(3, 3)].map(|head| queue.mark_stuck(head)),
        [true, true, false, false]
    );
    assert_eq!(queue.stuck(), 2);
    queue.finish(head(1, 1));
    assert_eq!(queue.stuck(), 1);
}

#[test]
fn payloads_are_bounded_by_number_and_by_bytes() {
    let mut queue = KeyedQueue::default();
    let mut position = 0;
    while queue.has_room() {
        position += 1;
        queue.add(live(position, position));
    }
    assert_eq!(position, OPEN_RECORDS as u64);
    assert!(queue.has_room_for_resends());
    queue.take();
    queue.finish(head(1, 1));
    assert!(queue.has_room());
    let payload = Bytes::from(vec![0; OPEN_BYTES]);
    queue.add(Item::live(Record { payload, ..record(position + 1, 0) }));
    assert!(!queue.has_room());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Add { key: u64, is_resend: bool },
    Finish(usize),
    Retry(usize),
    Park(usize),
    Release(usize),
    Seize(usize),
    Load,
    ParkAll,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..5, any::<bool>()).prop_map(|(key, is_resend)| Step::Add { key, is_resend }),
        4 => any::<usize>().prop_map(Step::Finish),
        1 => any::<usize>().prop_map(Step::Retry),
        2 => any::<usize>().prop_map(Step::Park),
        2 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Seize),
        2 => Just(Step::Load),
        1 => Just(Step::ParkAll),
    ]
}

/// The queue, what is out of it, and what must be sent.
#[derive(Default)]
struct Model {
    queue: KeyedQueue,
    added: u64,
    out: Vec<Head>,
    parked: Vec<Head>,
    seized: Vec<Head>,
    records: HashMap<Place, Record>,
    waiting: BTreeSet<(u64, Place)>,
}

impl Model {
    fn add(&mut self, key: u64, is_resend: bool) {
        self.added += 1;
        let item = if is_resend { resend(self.added, key) } else { live(self.added, key) };
        self.waiting.insert((item.head().key_hash, item.place));
        self.records.insert(item.place, item.record.clone());
        self.queue.add(item);
    }

    /// Takes everything that may be sent; it must be the first of its key that nobody has seized.
    fn take(&mut self) {
        while let Some(head) = self.queue.take().map(Item::head) {
            let first = self.waiting.range((head.key_hash, Place(0))..).next();
            assert_eq!(first, Some(&(head.key_hash, head.place)), "the first of its key");
            assert!(!self.seized.contains(&head) && !self.parked.contains(&head) && !self.out.contains(&head));
            self.out.push(head);
        }
    }

    fn finish(&mut self, head: Head) {
        assert!(self.queue.finish(head));
        self.waiting.remove(&(head.key_hash, head.place));
    }

    fn load(&mut self) {
        for Unread { head, .. } in self.queue.take_unread(2) {
            self.queue.load(head, self.records[&head.place].clone());
        }
    }

    fn apply(&mut self, step: Step) {
        let pick = |from: &mut Vec<Head>, n: usize| (!from.is_empty()).then(|| from.swap_remove(n % from.len()));
        match step {
            Step::Add { key, is_resend } => self.add(key, is_resend),
            Step::Finish(n) => pick(&mut self.out, n).into_iter().for_each(|head| self.finish(head)),
            Step::Retry(n) => pick(&mut self.out, n).into_iter().for_each(|head| self.queue.retry(head)),
            Step::Park(n) => {
                if let Some(head) = pick(&mut self.out, n) {
                    self.queue.park(head);
                    self.parked.push(head);
                }
            }
            Step::Release(n) => {
                if let Some(head) = pick(&mut self.parked, n) {
                    assert_eq!(self.queue.release(head), !self.seized.contains(&head) && self.queue.contains(head));
                }
            }
            Step::Seize(n) => {
                let Some((key_hash, place)) = self.waiting.iter().nth(n % self.waiting.len().max(1)).copied() else {
                    return;
                };
                let head = Head { place, key_hash };
                let is_idle = !self.out.contains(&head) && !self.seized.contains(&head);
                assert_eq!(self.queue.seize(head), is_idle);
                if is_idle {
                    self.seized.push(head);
                }
            }
            Step::Load => self.load(),
            Step::ParkAll => {
                for head in std::mem::take(&mut self.out) {
                    self.queue.park(head);
                    self.parked.push(head);
                }
            }
        }
    }
}

proptest! {
    /// Whatever is finished, retried, parked, released and seized in whatever order: what is sent is the first of its
    /// key, and in the end everything is finished and nothing is held.
    #[test]
    fn order_by_key_holds(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model::default();
        for step in steps {
            model.apply(step);
            model.take();
            let Model { queue, .. } = &model;
            prop_assert_eq!(queue.len(), model.waiting.len());
            prop_assert_eq!(queue.open.len(), queue.live.records + queue.resends.records);
        }
        while !model.waiting.is_empty() {
            let before = model.waiting.len();
            for head in std::mem::take(&mut model.parked) {
                model.queue.release(head);
            }
            for head in std::mem::take(&mut model.seized).into_iter().chain(std::mem::take(&mut model.out)) {
                model.finish(head);
            }
            (0..before).for_each(|_| model.load());
            model.take();
        }
        assert_empty(&model.queue);
    }
}
