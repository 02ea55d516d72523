//! Candidates beside deliveries of the same facts: whoever comes first, of a fact there is one event.

use proptest::prelude::*;

use super::*;

const WINDOW_MS: i64 = 20_000;

/// A payload is `fact who …`.
fn fact_of(payload: &[u8]) -> Option<[u8; 16]> {
    let fact = payload.first().filter(|fact| **fact != b'-')?;
    Some([*fact; 16])
}

struct Facts {
    bench: Bench,
    ids: u32,
}

impl Facts {
    fn new() -> Self {
        let mut bench = Bench::new();
        bench.dedup.window = Span::from_secs(WINDOW_MS as u64 / 1000);
        bench.fact_of = fact_of;
        Self { bench, ids: 0 }
    }

    fn open(&self) -> Journal {
        self.bench.open()
    }

    fn id(&mut self) -> [u8; 16] {
        self.ids += 1;
        id(self.ids)
    }

    /// A delivery that tells of a fact, each with an id of its own.
    fn deliver(&mut self, journal: &Journal, fact: u8) -> Result<Appended, AppendError> {
        self.deliver_of(journal, fact, 3)
    }

    fn deliver_of(&mut self, journal: &Journal, fact: u8, size: usize) -> Result<Appended, AppendError> {
        let mut payload = vec![fact, b' ', b'd'];
        payload.resize(size, b' ');
        let (id, accepted_ms) = (self.id(), self.bench.clock.now_ms());
        append(journal, Entry { id, key: "k".into(), kind: "t".into(), accepted_ms, payload })
    }

    fn candidate(&mut self, fact: u8, through: u64) -> BackfillCandidate {
        let (key, kind, payload) = ("k".into(), "t".into(), vec![fact, b' ', b'c']);
        BackfillCandidate { facts: vec![[fact; 16], [b'?'; 16]], through, id: self.id(), key, kind, payload }
    }

    fn add(&mut self, fact: u8, through: u64) {
        let candidate = self.candidate(fact, through);
        self.bench.admin().add_candidates(&[candidate]).unwrap();
    }

    /// Waits until no candidate waits.
    #[track_caller]
    fn drained(&self) {
        let admin = self.bench.admin();
        eventually("storing the candidates", || admin.waiting_candidates().unwrap() == 0);
    }
}

/// The events, as texts.
fn texts(journal: &Journal) -> Vec<String> {
    let text = |row: &Row| match row {
        Row::Intact(record) => String::from_utf8_lossy(&record.payload).trim_end().to_owned(),
        Row::Damaged { position, .. } => panic!("{position} is damaged"),
    };
    rows(journal).iter().map(text).collect()
}

#[test]
fn a_candidate_becomes_an_event_once_and_a_late_delivery_is_known_by_its_fact() {
    let mut facts = Facts::new();
    let journal = facts.open();
    assert_eq!(facts.deliver(&journal, b'a'), Ok(Appended::Stored(1)));
    let (first, second) = (facts.candidate(b'b', 1), facts.candidate(b'b', 1));
    assert_eq!(facts.bench.admin().add_candidates(&[first.clone(), second]).unwrap(), 1, "of a fact there is one");
    facts.drained();
    assert_eq!(texts(&journal), ["a d", "b c"]);
    let known = Ok(Appended::Backfilled { position: 2, id: first.id });
    assert_eq!(facts.deliver(&journal, b'b'), known);
    assert_eq!(journal.pending("a"), 2);
    // Also where whoever adds candidates has read the events before.
    facts.add(b'b', 1);
    facts.drained();
    journal.close();
    let journal = facts.open();
    assert_eq!(facts.deliver(&journal, b'b'), known, "also after a start");
    assert_eq!(texts(&journal), ["a d", "b c"]);
    facts.bench.forward(WINDOW_MS);
    assert_eq!(facts.deliver(&journal, b'b'), Ok(Appended::Stored(3)), "the window has passed");
    journal.close();
}

#[test]
fn a_candidate_waits_for_a_bridge_that_is_stopped_and_gives_way_to_what_came_since() {
    let mut facts = Facts::new();
    let journal = facts.open();
    facts.deliver(&journal, b'a').unwrap();
    journal.close();
    let candidates = [facts.candidate(b'a', 1), facts.candidate(b'b', 1), facts.candidate(b'c', 1)];
    let mut admin = facts.bench.admin();
    assert_eq!(admin.add_candidates(&candidates).unwrap(), 3);
    assert_eq!((admin.candidate_facts().unwrap().len(), admin.summary().unwrap().candidates), (3, 3));
    let journal = facts.open();
    facts.deliver(&journal, b'b').unwrap();
    facts.drained();
    let found = texts(&journal);
    for fact in ['b', 'c'] {
        assert_eq!(found.iter().filter(|text| text.starts_with(fact)).count(), 1, "{found:?}");
    }

    // A delivery that does not say of what it tells may be it.
    let through = found.len() as u64;
    facts.deliver(&journal, b'?').unwrap();
    facts.add(b'd', through);
    facts.drained();
    assert_eq!(texts(&journal).len(), found.len() + 1, "nothing was added on a guess");
    journal.close();
}

#[test]
fn a_candidate_waits_for_room() {
    let mut facts = Facts::new();
    facts.bench.settings.max_bytes = Size::mib(1);
    facts.bench.settings.retain_bytes = Size(0);
    let journal = facts.open();
    let mut stored = 0;
    while facts.deliver_of(&journal, b'-', 100_000).is_ok() {
        stored += 1;
    }
    while facts.deliver(&journal, b'-').is_ok() {
        stored += 1;
    }
    facts.add(b'c', stored);
    assert_eq!(facts.deliver(&journal, b'd'), Err(AppendError::Full));
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(facts.bench.admin().waiting_candidates().unwrap(), 1, "nothing is dropped for lack of room");
    publish(&journal, "a", stored);
    facts.drained();
    assert!(texts(&journal).contains(&"c c".to_owned()));
    journal.close();
}

#[test]
fn what_can_no_longer_be_vouched_for_is_dropped() {
    let mut facts = Facts::new();
    facts.bench.settings.max_bytes = Size::mib(1);
    facts.bench.settings.retain_bytes = Size(0);
    let journal = facts.open();
    for fact in *b"ab" {
        facts.deliver_of(&journal, fact, 70_000).unwrap();
    }
    facts.deliver(&journal, b'c').unwrap();
    publish(&journal, "a", 2);
    eventually("retention", || texts(&journal) == ["c d"]);
    let candidates = [facts.candidate(b'd', 1), facts.candidate(b'e', 3)];
    facts.bench.admin().add_candidates(&candidates).unwrap();
    facts.drained();
    assert_eq!(texts(&journal), ["c d", "e c"], "nobody can say that 2 did not tell of it");
    journal.close();
}

#[test]
fn what_a_damaged_event_told_is_not_guessed() {
    let mut facts = Facts::new();
    let journal = facts.open();
    for fact in *b"abc" {
        facts.deliver(&journal, fact).unwrap();
    }
    journal.close();
    let path = &facts.bench.files("log")[0];
    flip(path, find_text(path, "b d"));
    facts.add(b'b', 1);
    facts.add(b'e', 3);
    let journal = facts.open();
    facts.drained();
    let found: Vec<u64> = all(&journal);
    assert_eq!(found, [1, 2, 3, 4], "only the one that has seen the damaged event");
    journal.close();
}

#[test]
fn a_damaged_candidate_is_dropped_and_the_others_are_stored() {
    let mut facts = Facts::new();
    let journal = facts.open();
    facts.deliver(&journal, b'a').unwrap();
    journal.close();
    facts.add(b'b', 1);
    facts.add(b'c', 1);
    facts.add(b'd', 1);
    state_file(&facts.bench)
        .execute_batch(
            "UPDATE backfill_candidates SET payload = 'x b' WHERE seq = 1;
             UPDATE backfill_candidates SET id = x'0011' WHERE seq = 2;",
        )
        .unwrap_err();
    state_file(&facts.bench)
        .execute_batch(
            "UPDATE backfill_candidates SET payload = x'4142' WHERE seq = 1;
             UPDATE backfill_candidates SET id = x'0011' WHERE seq = 2;",
        )
        .unwrap();
    let journal = facts.open();
    facts.drained();
    assert_eq!(texts(&journal), ["a d", "d c"]);
    journal.close();
}

#[test]
fn a_kill_between_an_event_and_its_row_stores_it_once() {
    let mut facts = Facts::new();
    let journal = facts.open();
    facts.deliver(&journal, b'a').unwrap();
    let candidate = facts.candidate(b'b', 1);
    facts.bench.admin().add_candidates(std::slice::from_ref(&candidate)).unwrap();
    facts.drained();
    journal.close();
    // As if the state had not been written yet.
    state_file(&facts.bench).execute_batch("DELETE FROM backfilled").unwrap();
    facts.bench.admin().add_candidates(std::slice::from_ref(&candidate)).unwrap();
    let journal = facts.open();
    facts.drained();
    assert_eq!(texts(&journal), ["a d", "b c"]);
    assert_eq!(facts.deliver(&journal, b'b'), Ok(Appended::Backfilled { position: 2, id: candidate.id }));
    journal.close();
}

#[test]
fn many_candidates_are_stored_in_batches() {
    let mut facts = Facts::new();
    let journal = facts.open();
    append_all(&journal, (100_001..=105_000).map(|n| Entry { payload: b"-".to_vec(), ..facts.bench.entry(n) }));
    let candidates: Vec<_> = (0..600_u32)
        .map(|n| BackfillCandidate { facts: vec![id(n + 1_000_000)], ..facts.candidate(b'-', 0) })
        .collect();
    assert_eq!(facts.bench.admin().add_candidates(&candidates).unwrap(), 600);
    facts.drained();
    assert_eq!(journal.stats().records, 5_600);
    journal.close();
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Deliver(u8),
    /// Whoever adds candidates reads all events.
    Read,
    /// Of what was not seen then.
    Add(u8),
    Reopen,
    Crash,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn of_a_fact_that_was_backfilled_there_is_one_event(steps in prop::collection::vec(prop_oneof![
        4 => (b'a'..b'f').prop_map(Step::Deliver),
        2 => Just(Step::Read),
        4 => (b'a'..b'f').prop_map(Step::Add),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ], 1..40)) {
        let mut facts = Facts::new();
        let mut journal = facts.open();
        facts.deliver(&journal, b'-').unwrap();
        let mut seen = texts(&journal);
        for step in steps {
            match step {
                Step::Deliver(fact) => assert!(facts.deliver(&journal, fact).is_ok()),
                Step::Read => seen = texts(&journal),
                Step::Add(fact) => {
                    if !seen.iter().any(|text| text.as_bytes()[0] == fact) {
                        facts.add(fact, seen.len() as u64);
                    }
                }
                Step::Reopen => {
                    journal.close();
                    journal = facts.open();
                }
                Step::Crash => {
                    facts.bench.crash(&journal);
                    journal = facts.open();
                }
            }
        }
        facts.drained();
        let mut made: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for text in texts(&journal) {
            made.entry(text.as_bytes()[0]).or_default().push(text.as_bytes()[2]);
        }
        for (fact, who) in made {
            prop_assert!(!who.contains(&b'c') || who.len() == 1, "{}: {:?}", char::from(fact), who);
        }
        journal.close();
    }
}
