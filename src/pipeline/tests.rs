//! The forwarder with a broker that fails as a script says.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proptest::prelude::*;

use super::queue::KeyedQueue;
use super::*;
use crate::domain::envelope::View;
use crate::journal::{
    Batch, DedupSettings, Filter, Hook, JournalAdmin, ListedStuckEvent, Options, Row, Settings, SinkSpec, StuckEvent,
    WaitingKey,
};
use crate::metrics::Labels;
use crate::sink::{About, Ack, Connection, Failure, Finding, Target};

/// What the broker does with an event, by its id, on each try; after the last it acknowledges.
type Script = HashMap<String, Vec<fn() -> Failure>>;

#[derive(Clone, Default)]
struct Broker(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    script: Script,
    refuse_connections: u32,
    connections: u32,
    /// Ids in the order in which the broker took them; a replay has a star.
    taken: Vec<String>,
    /// Keys that have an event in flight, to see that no key has two.
    out: HashSet<String>,
    /// What its client says when it is asked whether there is a connection, if there is none.
    gone: Option<Fault>,
    /// Targets that do not exist, and those that never answer.
    missing: HashSet<&'static str>,
    silent: HashSet<&'static str>,
    /// Whether its client does not know yet where events go: they all seem to go to one target.
    is_vague: bool,
    /// Whether it takes no event at all.
    alarm: bool,
    /// How often it was tried to publish something, and what was published alone.
    tries: u32,
    alone: Vec<String>,
    /// What it makes use of, if not the default.
    window: Option<usize>,
}

impl Sink for Broker {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, Failure>> {
        let mut state = self.0.lock().unwrap();
        state.connections += 1;
        state.out.clear();
        let refused = state.refuse_connections > 0;
        state.refuse_connections = state.refuse_connections.saturating_sub(1);
        let broker = self.clone();
        async move {
            if refused {
                Err(Failure::every_event(Reason::Connection, "refused"))
            } else {
                Ok(Box::new(broker) as Box<dyn Connection>)
            }
        }
        .boxed()
    }

    fn check(&self, _create: bool) -> BoxFuture<'_, Vec<Finding>> {
        async { Vec::new() }.boxed()
    }
}

impl Connection for Broker {
    fn publish(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>> {
        let (id, key) = (event.envelope().id.to_string(), event.key().to_owned());
        let star = if event.envelope().replayed == Some(true) { "*" } else { "" };
        // Replays have an order of their own.
        let ordered_by = format!("{key}{star}");
        let target = target_of(event);
        let broker = self.clone();
        {
            let mut state = self.0.lock().unwrap();
            state.tries += 1;
            assert!(state.out.insert(ordered_by.clone()), "two events of {key} in flight");
        }
        async move {
            // Others may overtake this one here, as they may in a real client.
            sleep(Duration::from_millis(fastrand::u64(0..3))).await;
            while broker.0.lock().unwrap().silent.contains(target) {
                sleep(Duration::from_millis(5)).await;
            }
            let mut state = broker.0.lock().unwrap();
            state.out.remove(&ordered_by);
            if state.alarm {
                return Err(Failure::every_event(Reason::Unavailable, "alarm"));
            }
            if state.missing.contains(target) {
                return Err(Failure::retry(About::Target(Target::new(target)), Reason::NotFound, "it is missing"));
            }
            match state.script.get_mut(&id).and_then(Vec::pop) {
                Some(failure) => Err(failure()),
                None => {
                    state.taken.push(format!("{id}{star}"));
                    Ok(Ack::default())
                }
            }
        }
        .boxed()
    }

    fn publish_unbatched(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>> {
        self.0.lock().unwrap().alone.push(event.envelope().id.to_string());
        self.publish(event)
    }

    fn target(&self, event: &View<'_>) -> Target {
        let is_vague = self.0.lock().unwrap().is_vague;
        Target::new(if is_vague { "anywhere" } else { target_of(event) })
    }

    fn silent_target(&self, event: &View<'_>) -> Option<Target> {
        let is_vague = self.0.lock().unwrap().is_vague;
        (!is_vague).then(|| self.target(event))
    }

    fn window(&self) -> usize {
        self.0.lock().unwrap().window.unwrap_or(1024)
    }

    fn unanswered(&self) -> usize {
        1024
    }

    fn state(&self) -> Result<(), Failure> {
        self.0.lock().unwrap().gone.clone().map_or(Ok(()), |fault| Err(Failure::Retry(About::EveryEvent, fault)))
    }

    fn close(self: Box<Self>, _: Duration) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

fn open(dir: &Path) -> Journal {
    Journal::open(Options {
        settings: Settings { dir: dir.into(), ..Settings::default() },
        dedup: DedupSettings::default(),
        sinks: vec![SinkSpec { name: "s".into(), kinds: Vec::new() }],
        clock: Clock::system(),
        on_commit: Box::new(|_| {}),
        backfill: Hook { fact_of: |_| None, on_stored: Box::new(|_| {}) },
    })
    .unwrap()
}

/// Each verb goes to a target of its own.
fn target_of(event: &View<'_>) -> &'static str {
    if event.category().ends_with("create") { "creates" } else { "others" }
}

struct Bench {
    dir: tempfile::TempDir,
    journal: RefCell<Journal>,
    /// Whether anything has been forwarded since the journal was opened.
    has_run: Cell<bool>,
    broker: Broker,
    metrics: Arc<Metrics>,
    status: Arc<SinkStatus>,
    publisher: Publisher,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = RefCell::new(open(dir.path()));
        let labels = Labels { sinks: &["s"], ..Labels::default() };
        let metrics = Arc::new(Metrics::new(&labels).unwrap());
        let publisher = Publisher::default();
        let (has_run, broker, status) = (Cell::new(false), Broker::default(), Arc::default());
        Self { dir, journal, has_run, broker, metrics, status, publisher }
    }

    fn journal(&self) -> Journal {
        self.journal.borrow().clone()
    }

    fn dead_letters(&self) -> usize {
        self.admin().dead_letters(Some("s"), None).unwrap().len()
    }

    /// Stores an event and returns its id.
    async fn store(&self, n: u32, key: &str, verb: &str) -> String {
        let (id, pending) = self.append(n, key, verb);
        pending.durable().await.unwrap();
        id
    }

    fn append(&self, n: u32, key: &str, verb: &str) -> (String, crate::journal::Pending) {
        let id = format!("event-{n}");
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        let kind = format!("com.sendbird.calls.room.{verb}");
        let envelope = serde_json::json!({
            "specversion": "1.0", "id": id, "source": "s", "type": kind, "time": "t", "datacontenttype": "j",
            "dataschema": "d", "partitionkey": key, "receivedtime": "t",
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "data": { "category": format!("room:{verb}"), "application_id": key },
        });
        let payload = envelope.to_string().into_bytes();
        let entry = Entry { id: bytes, key: key.into(), kind, accepted_ms: Clock::system().now_ms(), payload };
        (id, self.journal().append(entry).unwrap())
    }

    /// Forwards until everything is dealt with, also what is to be published again.
    async fn forward(&self, types: &[&str]) {
        self.forward_while(types, self.done()).await;
    }

    /// Waits until everything is dealt with.
    async fn done(&self) {
        let journal = self.journal();
        let is_done = || journal.cursor("s") >= journal.stats().last_position && journal.resends("s") == 0;
        eventually("all is dealt with", is_done).await;
    }

    /// Forwards until the script is over. Each time is a new start of the bridge.
    async fn forward_while(&self, types: &[&str], script: impl Future<Output = ()>) {
        if self.has_run.get() {
            self.restart();
        }
        self.has_run.set(true);
        let forwarder = self.forwarder(types);
        let stop = CancellationToken::new();
        tokio::join!(forwarder.forward(stop.clone()), async {
            script.await;
            stop.cancel();
        });
    }

    fn forwarder(&self, types: &[&str]) -> Forwarder {
        Forwarder {
            name: "s".into(),
            sink: Box::new(self.broker.clone()),
            kinds: types.iter().map(|&glob| glob.to_owned()).collect(),
            journal: self.journal(),
            metrics: Arc::clone(&self.metrics),
            clock: Clock::system(),
            status: Arc::clone(&self.status),
            publisher: self.publisher.clone(),
        }
    }

    /// Stops and starts the bridge between two times of forwarding.
    fn restart(&self) {
        self.journal().close();
        self.journal.replace(open(self.dir.path()));
        self.has_run.set(false);
    }

    fn admin(&self) -> JournalAdmin {
        JournalAdmin::open(self.dir.path()).unwrap()
    }

    /// Requeues all dead letters; returns how many are new in the queue.
    async fn requeue(&self) -> usize {
        let mut admin = self.admin();
        let dead_letters = admin.dead_letters(Some("s"), None).unwrap();
        let queued = admin.requeue(&dead_letters).unwrap();
        self.restart();
        let journal = self.journal();
        eventually("they are queued", || journal.resends("s") >= queued as u64).await;
        queued
    }

    async fn replay(&self, filter: &Filter) -> u64 {
        let mut admin = self.admin();
        let (total, _) = admin.count(filter).unwrap();
        admin.replay("s", filter, total, None, 0).unwrap();
        self.restart();
        let journal = self.journal();
        eventually("it is under way", || journal.resends("s") >= total).await;
        total
    }

    fn taken(&self) -> Vec<String> {
        self.broker.0.lock().unwrap().taken.clone()
    }

    fn broker(&self) -> std::sync::MutexGuard<'_, State> {
        self.broker.0.lock().unwrap()
    }

    /// How many tries and connections there were.
    fn counts(&self) -> (u32, u32) {
        let state = self.broker();
        (state.tries, state.connections)
    }

    /// Each event was published once, and in order by key.
    fn assert_published(&self, ids: &[(String, String)]) {
        let taken = self.taken();
        for key in ids.iter().map(|(key, _)| key).collect::<HashSet<_>>() {
            let expected: Vec<_> = ids.iter().filter(|(other, _)| other == key).map(|(_, id)| id).collect();
            let found: Vec<_> = taken.iter().filter(|id| expected.contains(id)).collect();
            assert_eq!(found, expected, "{key}");
        }
    }

    fn fail(&self, id: &str, failures: &[fn() -> Failure]) {
        self.broker.0.lock().unwrap().script.insert(id.to_owned(), failures.to_vec());
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not in time: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

fn retry() -> Failure {
    Failure::retry(About::Event, Reason::Unavailable, "later")
}

fn reject() -> Failure {
    Failure::reject(Reason::TooLarge, "too large")
}

fn fatal() -> Failure {
    Failure::fatal(Reason::Connection, "gone")
}

#[tokio::test]
async fn every_key_keeps_its_order_through_all_failures() {
    let bench = Bench::new();
    let mut by_key: HashMap<String, Vec<String>> = HashMap::new();
    for n in 0..300 {
        let key = format!("key {}", n % 7);
        let id = bench.store(n, &key, "create").await;
        let failures: &[fn() -> Failure] = match n % 50 {
            3 => &[retry, retry],
            20 => &[fatal],
            31 => &[retry, fatal],
            _ => &[],
        };
        bench.fail(&id, failures);
        by_key.entry(key).or_default().push(id);
    }
    bench.broker.0.lock().unwrap().refuse_connections = 2;
    bench.forward(&[]).await;
    let taken = bench.taken();
    for (key, ids) in by_key {
        let mut first = HashSet::new();
        let seen: Vec<_> = taken.iter().filter(|id| ids.contains(id) && first.insert((*id).clone())).collect();
        assert_eq!(seen, ids.iter().collect::<Vec<_>>(), "{key}");
    }
    assert!(bench.broker.0.lock().unwrap().connections > 2 + 6);
    assert!(bench.metrics.sink_retries.with_label_values(&["s", "unavailable"]).get() >= 12);
    assert_eq!(bench.dead_letters(), 0);
    assert_eq!(bench.status.last_failure(), None, "it works again");
}

#[tokio::test]
async fn a_refused_event_is_set_aside_and_holds_back_nothing() {
    let bench = Bench::new();
    let first = bench.store(1, "a", "create").await;
    let second = bench.store(2, "a", "delete").await;
    bench.fail(&first, &[reject]);
    bench.forward(&[]).await;
    assert_eq!(bench.taken(), [second]);
    assert_eq!(bench.dead_letters(), 1);
}

#[tokio::test]
async fn a_sink_gets_only_what_it_wants() {
    let bench = Bench::new();
    bench.store(1, "a", "create").await;
    let wanted = bench.store(2, "b", "delete").await;
    bench.forward(&["com.sendbird.calls.*.delete"]).await;
    assert_eq!(bench.taken(), [wanted]);
}

#[tokio::test]
async fn an_event_whose_kind_names_no_application_is_judged_by_its_envelope() {
    let bench = Bench::new();
    let wanted = bench.store(1, "A-1", "create").await;
    bench.store(2, "B-2", "create").await;
    bench.store(3, "A-1", "delete").await;
    bench.forward(&[&kind::of("*.create", Some("a-1"))]).await;
    assert_eq!(bench.taken(), [wanted]);
}

#[tokio::test]
async fn what_is_no_envelope_is_set_aside() {
    let bench = Bench::new();
    let entry = Entry {
        id: [9; 16],
        key: "a".into(),
        kind: "t".into(),
        accepted_ms: Clock::system().now_ms(),
        payload: b"{}".to_vec(),
    };
    bench.journal().append(entry).unwrap().durable().await.unwrap();
    let next = bench.store(2, "a", "create").await;
    bench.forward(&[]).await;
    assert_eq!((bench.taken(), bench.dead_letters()), (vec![next], 1));
}

#[tokio::test]
async fn one_event_that_cannot_go_holds_back_only_its_key() {
    let bench = Bench::new();
    let stuck = bench.store(1, "a", "create").await;
    let behind = bench.store(2, "a", "delete").await;
    let other = bench.store(3, "b", "create").await;
    bench.fail(&stuck, &[retry, retry, retry]);
    bench.forward(&[]).await;
    assert_eq!(bench.taken(), [other, stuck, behind]);
}

#[tokio::test]
async fn a_requeued_dead_letter_is_published_and_gone() {
    let bench = Bench::new();
    let letter = bench.store(1, "a", "create").await;
    let other = bench.store(2, "a", "delete").await;
    bench.fail(&letter, &[reject]);
    bench.forward(&[]).await;
    let dead_letters = bench.admin().dead_letters(Some("s"), None).unwrap();
    assert_eq!(dead_letters.len(), 1);
    let dead_letter = &dead_letters[0].dead_letter;
    assert_eq!((dead_letter.position, dead_letter.reason.as_str()), (1, "too_large"));
    assert_eq!(bench.requeue().await, 1);
    assert_eq!(bench.admin().requeue(&dead_letters).unwrap(), 0, "it is queued already");
    bench.forward(&[]).await;
    assert_eq!(bench.taken(), [other, letter]);
    assert_eq!(bench.dead_letters(), 0);
    bench.restart();
    assert_eq!(bench.admin().dead_letters(None, None).unwrap(), []);
}

#[tokio::test]
async fn a_dead_letter_that_is_refused_again_stays_with_its_new_reason() {
    let bench = Bench::new();
    let letter = bench.store(1, "a", "create").await;
    bench.fail(&letter, &[|| Failure::reject(Reason::Invalid, "still"), reject]);
    bench.forward(&[]).await;
    bench.requeue().await;
    bench.forward(&[]).await;
    bench.restart();
    let mut admin = bench.admin();
    let dead_letters = admin.dead_letters(None, None).unwrap();
    let dead_letter = &dead_letters[0].dead_letter;
    assert_eq!((dead_letter.reason.as_str(), dead_letter.detail.as_str()), ("invalid", "still"));
    assert_eq!(admin.discard(&dead_letters).unwrap(), 1);
    assert_eq!(admin.dead_letters(None, None).unwrap(), []);
}

#[tokio::test]
async fn a_replay_is_marked_and_keeps_order_and_ids() {
    let bench = Bench::new();
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(bench.store(n, "a", if [1, 2, 4].contains(&n) { "delete" } else { "create" }).await);
    }
    bench.forward(&[]).await;
    let filter = Filter { kind: Some("com.sendbird.calls.room.delete".into()), ..Filter::default() };
    assert_eq!(bench.replay(&filter).await, 3);
    bench.forward(&[]).await;
    let starred = [1, 2, 4].map(|n: usize| format!("{}*", ids[n]));
    assert_eq!(bench.taken()[5..], starred);
}

#[tokio::test]
async fn an_event_has_one_span_when_the_sink_is_done_with_it() {
    let (tracer, mut watched) = Tracer::recording();
    let destination = traces::Destination { sink: "s".into(), system: "stdout", template: None };
    let bench = Bench { publisher: tracer.publisher(destination), ..Bench::new() };
    let good = bench.store(1, "a", "create").await;
    let late = bench.store(2, "b", "create").await;
    let refused = bench.store(3, "c", "create").await;
    bench.fail(&late, &[retry, retry]);
    // The last comes first.
    bench.fail(&refused, &[reject, retry]);
    bench.forward(&[]).await;
    let mut spans = watched.publishes();
    spans.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let told: Vec<_> = spans.iter().map(|(id, end, _)| (id.as_str(), end.retries, end.resend, end.refused)).collect();
    let expected = [(&*good, 0, false, None), (&*late, 2, false, None), (&*refused, 1, false, Some("too_large"))];
    assert_eq!(told, expected);
    let shortest = BACKOFF.pause(0, 0.0) + BACKOFF.pause(1, 0.0);
    assert!(spans[1].2 >= shortest, "from the first try on, but it took {:?}", spans[1].2);

    let mut told =
        || watched.publishes().into_iter().map(|(id, end, _)| (id, end.retries, end.resend)).collect::<Vec<_>>();
    bench.requeue().await;
    bench.forward(&[]).await;
    assert_eq!(told(), [(refused, 0, true)]);
    // What is cut off with its connection has a span only once it is through.
    let cut = bench.store(4, "d", "create").await;
    bench.fail(&cut, &[fatal]);
    bench.forward(&[]).await;
    assert_eq!(told(), [(cut, 0, false)]);
}

#[tokio::test]
async fn what_a_client_that_tries_on_by_itself_says_last_is_known() {
    let bench = Bench::new();
    let count = |reason| bench.metrics.sink_retries.with_label_values(&["s", reason]).get();
    let failure = || bench.status.last_failure().unwrap_or_default();
    let go = |fault: Option<Fault>| bench.broker.0.lock().unwrap().gone = fault;
    bench
        .forward_while(&[], async {
            eventually("it is connected", || bench.status.connected()).await;
            go(Some(Fault { reason: Reason::Connection, detail: "the broker cannot be reached".into() }));
            eventually("it is away", || !bench.status.connected()).await;
            assert!(failure().contains("cannot be reached"), "{}", failure());
            go(Some(Fault { reason: Reason::NotAuthorized, detail: "expired".into() }));
            eventually("the new reason is known", || failure() == "not_authorized: expired").await;
            go(None);
            eventually("it is connected again", || bench.status.connected()).await;
            go(Some(Fault { reason: Reason::Connection, detail: "the broker cannot be reached".into() }));
            eventually("it is away again", || !bench.status.connected()).await;
        })
        .await;
    assert_eq!((count("connection"), count("not_authorized")), (2, 1), "each is counted when it is new");
}

#[tokio::test]
async fn a_missing_target_holds_up_its_own_keys_and_is_tried_rarely() {
    let bench = Bench::new();
    let (mut missing, mut others) = (Vec::new(), Vec::new());
    for n in 0..200 {
        let (key, verb) = (format!("key {}", n % 50), if n % 2 == 0 { "create" } else { "delete" });
        let id = bench.store(n, &key, verb).await;
        if n % 2 == 0 { &mut missing } else { &mut others }.push((key, id));
    }
    bench.broker().missing.insert("creates");
    let script = async {
        eventually("the others are published", || bench.taken().len() == 100).await;
        sleep(Duration::from_millis(300)).await;
        assert!(bench.counts().0 <= 100 + 25 + 5, "{} tries", bench.counts().0);
        assert!(bench.status.last_failure().unwrap().contains("it is missing"), "although others are published");
    };
    bench.forward_while(&[], script).await;
    bench.assert_published(&others);
    assert_eq!(bench.journal().cursor("s"), 0);

    // After a clean stop, what is published is not sent a second time.
    let script = async {
        sleep(Duration::from_millis(300)).await;
        assert_eq!(bench.taken().len(), 100);
        bench.broker().missing.clear();
        bench.done().await;
    };
    bench.forward_while(&[], script).await;
    bench.assert_published(&missing);
    assert_eq!((bench.taken().len(), bench.counts().1), (200, 2));
    assert_eq!(bench.status.last_failure(), None);
}

#[tokio::test]
async fn a_silent_target_that_is_not_known_yet_holds_up_no_other() {
    let bench = Bench::new();
    (bench.broker().window, bench.broker().is_vague) = (Some(8), true);
    bench.broker().silent.insert("creates");
    let mut sent = Vec::new();
    for n in 0..6 {
        sent.push((format!("silent {n}"), bench.store(n, &format!("silent {n}"), "create").await));
    }
    let script = async {
        for n in 100..400 {
            sent.push((format!("key {}", n % 5), bench.store(n, &format!("key {}", n % 5), "delete").await));
            sleep(Duration::from_millis(8)).await;
            // Later than a publish would be taken out of the window.
            bench.broker().is_vague = n < 300;
        }
        eventually("the others are published", || bench.taken().len() == 300).await;
        eventually("no place in the window is taken", || bench.status.in_flight() == 0).await;
        bench.broker().silent.clear();
        bench.done().await;
    };
    bench.forward_while(&[], script).await;
    bench.assert_published(&sent);
}

#[tokio::test]
async fn publishes_without_an_answer_do_not_fill_the_window() {
    let bench = Bench::new();
    bench.broker().window = Some(8);
    bench.broker().silent.insert("creates");
    let (mut silent, mut others) = (Vec::new(), Vec::new());
    for n in 0..12 {
        silent.push((format!("silent {}", n % 6), bench.store(n, &format!("silent {}", n % 6), "create").await));
    }
    let script = async {
        for n in 100..400 {
            others.push((format!("key {}", n % 5), bench.store(n, &format!("key {}", n % 5), "delete").await));
            sleep(Duration::from_millis(8)).await;
        }
        eventually("the others are published", || bench.taken().len() == 300).await;
        eventually("no place in the window is taken", || bench.status.in_flight() == 0).await;
        assert_eq!(bench.counts(), (306, 1));
        bench.broker().silent.clear();
        bench.done().await;
    };
    bench.forward_while(&[], script).await;
    bench.assert_published(&silent);
    bench.assert_published(&others);
}

#[tokio::test]
async fn an_alarm_pauses_the_whole_sink_and_a_stop_does_not_wait_for_pauses() {
    let bench = Bench::new();
    let mut ids = Vec::new();
    for n in 0..50 {
        ids.push((format!("key {n}"), bench.store(n, &format!("key {n}"), "create").await));
    }
    bench.broker().alarm = true;
    let began = Instant::now();
    bench.forward_while(&[], sleep(Duration::from_millis(1500))).await;
    assert!(began.elapsed() < Duration::from_millis(1900), "{:?}", began.elapsed());
    let (tries, _) = bench.counts();
    assert!((51..=60).contains(&tries), "{tries} tries");
    bench.broker().alarm = false;
    bench.forward(&[]).await;
    bench.assert_published(&ids);
}

#[tokio::test]
async fn an_event_that_ends_the_connection_three_times_is_tried_alone() {
    let bench = Bench::new();
    let first = bench.store(1, "a", "create").await;
    let other = bench.store(2, "a", "create").await;
    bench.fail(&first, &[fatal, fatal, fatal, fatal]);
    bench.forward(&[]).await;
    assert_eq!(bench.taken(), [first.clone(), other]);
    assert_eq!((bench.counts(), bench.broker().alone.clone()), ((6, 4), vec![first.clone(), first]));
}

#[tokio::test]
async fn an_operator_sets_a_waiting_event_aside_and_its_key_goes_on() {
    let bench = Bench::new();
    bench.store(1, "a", "create").await;
    let next = bench.store(2, "a", "delete").await;
    bench.broker().missing.insert("creates");
    let [waiting, unknown] = [1, 7].map(|position| ListedStuckEvent {
        sink: "s".into(),
        stuck: StuckEvent {
            position,
            since_ms: 0,
            tries: 1,
            reason: "not_found".into(),
            detail: "".into(),
            target: "".into(),
        },
        event: None,
        waiting_behind: 0,
    });
    let mut admin = bench.admin();
    let script = async {
        eventually("it is tried", || bench.counts().0 > 0).await;
        let patience = Duration::from_secs(20);
        let set_aside = move || admin.set_aside(&[waiting, unknown], false, 0, patience).unwrap();
        assert_eq!(tokio::task::spawn_blocking(set_aside).await.unwrap(), (1, 1));
        bench.done().await;
    };
    bench.forward_while(&[], script).await;
    assert_eq!((bench.taken(), bench.dead_letters()), (vec![next], 1));
}

#[tokio::test]
async fn an_event_that_is_no_longer_kept_is_counted_and_holds_up_nothing() {
    let bench = Bench::new();
    let forwarder = bench.forwarder(&[]);
    bench.journal().enqueue("s", 1, &[1]);
    let mut backlog = Backlog::resume(&forwarder).await.unwrap();
    backlog.queue = KeyedQueue::resume(&[1, 2].map(|position| WaitingKey { position, key_hash: 7 }));
    backlog.reading = backlog.queue.take_unread(9);
    let found = backlog.reading.iter().map(|unread| (unread.head, None)).collect();
    backlog.load(&forwarder, found);
    assert_eq!((bench.journal().cursor("s"), backlog.queue.len(), backlog.queue.wants_payloads()), (1, 1, true));
    assert_eq!(bench.metrics.sink_gone.with_label_values(&["s"]).get(), 1);
}

#[tokio::test]
async fn a_damaged_event_of_a_type_that_a_sink_does_not_want_is_not_set_aside() {
    let bench = Bench::new();
    let forwarder = bench.forwarder(&["room:*"]);
    let mut backlog = Backlog::resume(&forwarder).await.unwrap();
    let damaged = |position, kind: Option<&str>| Row::Damaged {
        position,
        key_hash: None,
        id: None,
        kind: kind.map(str::to_owned),
    };
    let rows = vec![damaged(1, Some("direct_call:dial")), damaged(2, Some("room:create")), damaged(3, None)];
    backlog.add(&forwarder, Batch { rows, through: 3 });
    assert_eq!(backlog.writes.len(), 2, "what it wants, and what it may want");
    assert_eq!(bench.journal().pending("s"), 2);
}

#[tokio::test]
async fn a_resend_whose_connection_ends_is_sent_on_the_next_one() {
    let bench = Bench::new();
    let refused = bench.store(1, "a", "create").await;
    bench.fail(&refused, &[fatal, reject]);
    bench.forward(&[]).await;
    bench.requeue().await;
    bench.forward(&[]).await;
    assert_eq!((bench.taken(), bench.dead_letters()), (vec![refused], 0));
}

#[tokio::test]
async fn a_resend_whose_target_is_missing_is_read_once_more_when_that_is_there() {
    let bench = Bench::new();
    let (refused, other) = (bench.store(1, "a", "create").await, bench.store(2, "b", "delete").await);
    bench.fail(&refused, &[reject]);
    bench.forward(&[]).await;
    assert_eq!((bench.taken(), bench.dead_letters()), (vec![other.clone()], 1));
    assert_eq!(bench.requeue().await, 1);
    assert_eq!(bench.replay(&Filter::default()).await, 2);
    bench.broker().missing.insert("creates");
    let script = async {
        eventually("what goes elsewhere is published", || bench.taken().len() == 2).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(bench.journal().resends("s"), 2, "the dead letter, and the same event replayed");
        bench.broker().missing.clear();
        bench.done().await;
    };
    bench.forward_while(&[], script).await;
    assert_eq!(
        (bench.taken().split_off(1), bench.dead_letters()),
        (vec![format!("{other}*"), refused.clone(), format!("{refused}*")], 0)
    );
}

#[tokio::test]
async fn a_resend_that_is_gone_when_it_is_read_once_more_is_dropped() {
    let bench = Bench::new();
    let refused = bench.store(1, "a", "create").await;
    bench.fail(&refused, &[reject]);
    bench.forward(&[]).await;
    bench.requeue().await;
    bench.broker().missing.insert("creates");
    let script = async {
        let is_parked = || bench.status.last_failure().is_some_and(|failure| failure.contains("it is missing"));
        eventually("it is parked", is_parked).await;
        let mut admin = bench.admin();
        let letters = admin.dead_letters(Some("s"), None).unwrap();
        assert_eq!(admin.discard(&letters).unwrap(), 1);
        bench.broker().missing.clear();
        let journal = bench.journal();
        eventually("it is dropped", || journal.resends("s") == 0 && journal.resends_dropped() == 1).await;
    };
    bench.forward_while(&[], script).await;
    assert!(bench.taken().is_empty());
}

#[tokio::test]
async fn a_replay_runs_at_the_pace_of_the_sink() {
    let bench = Bench::new();
    let pending: Vec<_> = (0..3000).map(|n| bench.append(n, &format!("key {}", n % 500), "create").1).collect();
    for pending in pending {
        pending.durable().await.unwrap();
    }
    let began = Instant::now();
    bench.forward(&[]).await;
    let catching_up = began.elapsed();
    assert_eq!(bench.replay(&Filter::default()).await, 3000);
    let began = Instant::now();
    bench.forward(&[]).await;
    let replaying = began.elapsed();
    assert!(replaying < 2 * catching_up + Duration::from_secs(1), "{replaying:?}, and {catching_up:?} before");
    assert_eq!(bench.taken().len(), 6000);
}

/// What the broker does with a try.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Event,
    Target,
    EveryEvent,
    Reject,
    Fatal,
}

impl Outcome {
    fn failure(self) -> fn() -> Failure {
        match self {
            Self::Event => retry,
            Self::Target => || Failure::retry(About::Target(Target::new("creates")), Reason::Unavailable, "full"),
            Self::EveryEvent => || Failure::every_event(Reason::QueueFull, "alarm"),
            Self::Reject => reject,
            Self::Fatal => fatal,
        }
    }
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let all = [Outcome::Event, Outcome::Target, Outcome::EveryEvent, Outcome::Reject, Outcome::Fatal];
    prop::sample::select(all.to_vec())
}

/// Stores events with these keys and failures, and forwards them with clean stops after these times.
async fn check_forwarding(events: Vec<(u8, bool, Vec<Outcome>)>, stops: Vec<u64>) {
    let bench = Bench::new();
    let (mut published, mut refused) = (Vec::new(), 0);
    for (n, (key, is_create, failures)) in events.into_iter().enumerate() {
        let key = format!("key {key}");
        let id = bench.store(n as u32, &key, if is_create { "create" } else { "delete" }).await;
        // The last of them comes first, and nothing comes after a refusal.
        let is_refused = failures.contains(&Outcome::Reject);
        bench.fail(&id, &failures.into_iter().map(Outcome::failure).collect::<Vec<_>>());
        refused += usize::from(is_refused);
        if !is_refused {
            published.push((key, id));
        }
    }
    for ms in stops {
        bench.forward_while(&[], sleep(Duration::from_millis(ms))).await;
    }
    bench.forward(&[]).await;
    bench.assert_published(&published);
    assert_eq!((bench.taken().len(), bench.dead_letters()), (published.len(), refused));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever fails, and however often the forwarder is stopped: each event is published once, or refused and set
    /// aside, and in order by key.
    #[test]
    fn each_event_is_published_once_and_in_order(
        events in prop::collection::vec(
            (0u8..6, any::<bool>(), prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(outcome(), 1..3)]),
            1..40,
        ),
        stops in prop::collection::vec(0u64..250, 0..3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check_forwarding(events, stops));
    }
}
