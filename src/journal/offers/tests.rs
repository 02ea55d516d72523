//! Offers beside deliveries of the same facts: whoever comes first, of a fact there is one event.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::{
    AppendError, Appended, DedupSettings, Desk, Entry, Filter, Journal, Options, Row, Settings, schema,
};
use super::Offer;
use crate::domain::clock::Clock;
use crate::domain::units::{Size, Span};

const WINDOW_MS: i64 = 20_000;

/// A payload is `fact who …`.
fn fact_of(payload: &[u8]) -> Option<[u8; 16]> {
    let fact = payload.first().filter(|fact| **fact != b'-')?;
    Some([*fact; 16])
}

struct Bench {
    dir: tempfile::TempDir,
    clock: Clock,
    settings: Settings,
    ids: u64,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { dir: dir.path().join("journal"), ..Settings::default() };
        Self { dir, clock: Clock::fixed(1_000_000), settings, ids: 0 }
    }

    fn open(&self) -> Journal {
        Journal::open(Options {
            settings: self.settings.clone(),
            dedup: DedupSettings { window: Span::from_secs(WINDOW_MS as u64 / 1000), max_ids: 1000 },
            sinks: vec!["a".into()],
            clock: self.clock.clone(),
            on_commit: Box::new(|_| {}),
            fact_of,
            on_reconciled: Box::new(|_| {}),
        })
        .unwrap()
    }

    fn desk(&self) -> Desk {
        Desk::open(&self.settings.dir).unwrap()
    }

    fn id(&mut self) -> [u8; 16] {
        self.ids += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.ids.to_be_bytes());
        id
    }

    /// A delivery that tells of a fact, each with an id of its own.
    fn deliver(&mut self, journal: &Journal, fact: u8) -> Result<Appended, AppendError> {
        let payload = vec![fact, b' ', b'd'];
        let entry =
            Entry { id: self.id(), key: "k".into(), kind: "t".into(), accepted_ms: self.clock.now_ms(), payload };
        journal.append(entry)?.0.blocking_recv().unwrap()
    }

    fn offer(&mut self, fact: u8, through: u64) -> Offer {
        let (key, kind, payload) = ("k".into(), "t".into(), vec![fact, b' ', b'o']);
        Offer { facts: vec![[fact; 16], [b'?'; 16]], through, id: self.id(), key, kind, payload }
    }
}

/// The records, as texts.
fn records(journal: &Journal) -> Vec<String> {
    let limits = super::super::Limits { rows: 10_000, bytes: usize::MAX };
    let rows = journal.reader().unwrap().after(0, limits, &Filter::default()).unwrap().rows;
    let text = |row: &Row| match row {
        Row::Intact(record) => String::from_utf8_lossy(&record.payload).into_owned(),
        Row::Damaged { position } => panic!("{position} is damaged"),
    };
    rows.iter().map(text).collect()
}

/// Waits until no offer waits.
#[track_caller]
fn drained(desk: &Desk) {
    let begun = Instant::now();
    while !desk.offered().unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "offers still wait");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_offer_becomes_an_event_once_and_a_late_delivery_is_known_by_its_fact() {
    let mut bench = Bench::new();
    let journal = bench.open();
    assert_eq!(bench.deliver(&journal, b'a'), Ok(Appended::Stored(1)));
    let mut desk = bench.desk();
    let (first, second) = (bench.offer(b'b', 1), bench.offer(b'b', 1));
    assert_eq!(desk.offer(&[first.clone(), second]).unwrap(), 1, "of a fact there is one");
    drained(&desk);
    assert_eq!(records(&journal), ["a d", "b o"]);
    let known = Ok(Appended::Reconciled { position: 2, id: first.id });
    assert_eq!(bench.deliver(&journal, b'b'), known);
    // Also where whoever offers has looked before.
    let third = bench.offer(b'b', 1);
    assert_eq!(desk.offer(&[third]).unwrap(), 1);
    drained(&desk);
    journal.close();
    let journal = bench.open();
    assert_eq!(bench.deliver(&journal, b'b'), known, "also after a start");
    assert_eq!(records(&journal), ["a d", "b o"]);
    bench.clock.set(1_000_000 + WINDOW_MS);
    assert_eq!(bench.deliver(&journal, b'b'), Ok(Appended::Stored(3)), "the window has passed");
    journal.close();
}

#[test]
fn an_offer_waits_for_a_bridge_that_is_stopped_and_gives_way_to_what_came_since() {
    let mut bench = Bench::new();
    let journal = bench.open();
    bench.deliver(&journal, b'a').unwrap();
    journal.close();
    let mut desk = bench.desk();
    let offers = [bench.offer(b'a', 1), bench.offer(b'b', 1), bench.offer(b'c', 1)];
    assert_eq!(desk.offer(&offers).unwrap(), 3);
    assert_eq!(desk.offered().unwrap().len(), 3);
    let journal = bench.open();
    bench.deliver(&journal, b'b').unwrap();
    drained(&desk);
    // It was right to say that "a" is not told by what came since: whoever offers has looked at the first.
    let mut found = records(&journal);
    found.sort();
    assert_eq!(found.iter().filter(|record| record.starts_with('b')).count(), 1, "{found:?}");
    assert_eq!(found.iter().filter(|record| record.starts_with('c')).count(), 1, "{found:?}");

    // A delivery that does not say of what it tells may be it.
    let through = found.len() as u64;
    bench.deliver(&journal, b'?').unwrap();
    let offer = bench.offer(b'd', through);
    desk.offer(&[offer]).unwrap();
    drained(&desk);
    assert_eq!(records(&journal).len(), found.len() + 1, "nothing was added on a guess");
    journal.close();
}

#[test]
fn an_offer_waits_for_room() {
    let mut bench = Bench::new();
    bench.settings.max_bytes = Size(400);
    let journal = bench.open();
    bench.deliver(&journal, b'a').unwrap();
    bench.deliver(&journal, b'b').unwrap();
    let mut desk = bench.desk();
    let offer = bench.offer(b'c', 2);
    desk.offer(&[offer]).unwrap();
    assert_eq!(bench.deliver(&journal, b'd'), Err(AppendError::Full));
    assert_eq!(desk.offered().unwrap().len(), 1, "nothing is dropped for lack of room");
    // Published, and past its keep: it makes way.
    journal.advance("a", 2);
    bench.clock.set(1_000_000 + 25 * 3600 * 1000);
    drained(&desk);
    assert!(records(&journal).contains(&"c o".to_owned()));
    journal.close();
}

#[test]
fn what_can_no_longer_be_vouched_for_is_dropped() {
    let mut bench = Bench::new();
    let journal = bench.open();
    for fact in *b"abc" {
        bench.deliver(&journal, fact).unwrap();
    }
    journal.advance("a", 3);
    bench.clock.set(1_000_000 + 25 * 3600 * 1000);
    let begun = Instant::now();
    while records(&journal).len() > 1 {
        assert!(begun.elapsed() < Duration::from_secs(20), "retention");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut desk = bench.desk();
    let (too_old, in_time) = (bench.offer(b'd', 1), bench.offer(b'e', 3));
    desk.offer(&[too_old, in_time]).unwrap();
    drained(&desk);
    assert_eq!(records(&journal), ["c d", "e o"], "nobody can say that 2 did not tell of it");
    journal.close();
}

#[test]
fn a_journal_of_an_older_program_gets_its_tables() {
    let mut bench = Bench::new();
    let journal = bench.open();
    bench.deliver(&journal, b'a').unwrap();
    journal.close();
    let file = rusqlite::Connection::open(bench.settings.dir.join(schema::FILE)).unwrap();
    file.execute_batch("DROP TABLE offers; DROP TABLE reconciled").unwrap();
    drop(file);
    let mut desk = bench.desk();
    assert_eq!(desk.summary().unwrap().offers, 0);
    assert!(desk.offered().unwrap().is_empty());
    let offer = bench.offer(b'b', 1);
    desk.offer(&[offer]).unwrap();
    let journal = bench.open();
    drained(&desk);
    assert_eq!(records(&journal), ["a d", "b o"]);
    journal.close();
    assert!(bench.dir.path().exists());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Deliver(u8),
    /// Whoever offers looks at all there is.
    Look,
    /// He offers what he has not seen when he looked.
    Offer(u8),
    Reopen,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn of_a_fact_that_was_reconciled_there_is_one_event(steps in prop::collection::vec(prop_oneof![
        4 => (b'a'..b'f').prop_map(Step::Deliver),
        2 => Just(Step::Look),
        4 => (b'a'..b'f').prop_map(Step::Offer),
        1 => Just(Step::Reopen),
    ], 1..40)) {
        let mut bench = Bench::new();
        let mut journal = bench.open();
        bench.deliver(&journal, b'-').unwrap();
        let mut seen = records(&journal);
        for step in steps {
            match step {
                Step::Deliver(fact) => drop(bench.deliver(&journal, fact).unwrap()),
                Step::Look => seen = records(&journal),
                Step::Offer(fact) => {
                    if !seen.iter().any(|record| record.as_bytes()[0] == fact) {
                        let offer = bench.offer(fact, seen.len() as u64);
                        bench.desk().offer(&[offer]).unwrap();
                    }
                }
                Step::Reopen => {
                    journal.close();
                    journal = bench.open();
                }
            }
        }
        drained(&bench.desk());
        let mut made: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for record in records(&journal) {
            made.entry(record.as_bytes()[0]).or_default().push(record.as_bytes()[2]);
        }
        for (fact, who) in made {
            prop_assert!(!who.contains(&b'o') || who.len() == 1, "{}: {:?}", char::from(fact), who);
        }
        journal.close();
    }
}
