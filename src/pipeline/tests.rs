//! The forwarder with a broker that fails as it is told.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::*;
use crate::domain::envelope::View;
use crate::journal::{DedupSettings, Desk, Options, Settings};
use crate::metrics::Labels;
use crate::sink::{Connection, Failure, Published};

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
                Err(Failure::retry(Reason::Connection, "refused"))
            } else {
                Ok(Box::new(broker) as Box<dyn Connection>)
            }
        }
        .boxed()
    }
}

impl Connection for Broker {
    fn publish(&self, event: &View<'_>) -> BoxFuture<'static, Result<Published, Failure>> {
        let (id, key) = (event.envelope().id.to_string(), event.key().to_owned());
        let star = if event.envelope().replayed == Some(true) { "*" } else { "" };
        // Replays have an order of their own.
        let lane = format!("{key}{star}");
        assert!(self.0.lock().unwrap().out.insert(lane.clone()), "two events of {key} in flight");
        let broker = self.clone();
        async move {
            // Others may overtake this one here, as they may in a real client.
            sleep(Duration::from_millis(fastrand::u64(0..3))).await;
            let mut state = broker.0.lock().unwrap();
            state.out.remove(&lane);
            match state.script.get_mut(&id).and_then(Vec::pop) {
                Some(failure) => Err(failure()),
                None => {
                    state.taken.push(format!("{id}{star}"));
                    Ok(Published::default())
                }
            }
        }
        .boxed()
    }

    fn state(&self) -> Result<(), Failure> {
        self.0.lock().unwrap().gone.clone().map_or(Ok(()), |fault| Err(Failure::Retry(fault)))
    }

    fn close(self: Box<Self>, _: Duration) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

struct Bench {
    dir: tempfile::TempDir,
    journal: Journal,
    broker: Broker,
    metrics: Arc<Metrics>,
    status: Arc<SinkStatus>,
    publisher: Publisher,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(Options {
            settings: Settings { dir: dir.path().into(), ..Settings::default() },
            dedup: DedupSettings::default(),
            sinks: vec!["s".into()],
            clock: Clock::system(),
            on_commit: Box::new(|_| {}),
            fact_of: |_| None,
            on_reconciled: Box::new(|_| {}),
        })
        .unwrap();
        let labels = Labels { sinks: &["s"], ..Labels::default() };
        let metrics = Arc::new(Metrics::new(&labels).unwrap());
        let publisher = Publisher::default();
        Self { dir, journal, broker: Broker::default(), metrics, status: Arc::default(), publisher }
    }

    /// Stores an event and returns its id.
    async fn store(&self, n: u32, key: &str, verb: &str) -> String {
        let id = format!("event-{n}");
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        let kind = format!("com.sendbird.calls.room.{verb}");
        let envelope = serde_json::json!({
            "specversion": "1.0", "id": id, "source": "s", "type": kind, "time": "t", "datacontenttype": "j",
            "dataschema": "d", "partitionkey": key, "receivedtime": "t",
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "data": { "category": format!("room:{verb}"), "application_id": null },
        });
        let payload = envelope.to_string().into_bytes();
        let entry = Entry { id: bytes, key: key.into(), kind, accepted_ms: 0, payload };
        self.journal.append(entry).unwrap().durable().await.unwrap();
        id
    }

    /// Forwards until everything is dealt with, also what is to be published again.
    async fn forward(&self, types: &[&str]) {
        // The writer counts what the desk has queued once a second.
        let queued = self.desk().summary().unwrap().sinks.first().map_or(0, |(_, _, _, resends)| *resends);
        while self.journal.resends("s") < queued {
            sleep(Duration::from_millis(5)).await;
        }
        let dealt_with =
            || self.journal.cursor("s") >= self.journal.stats().last_position && self.journal.resends("s") == 0;
        self.forward_while(types, eventually("all is dealt with", dealt_with)).await;
    }

    /// Forwards until the script is over.
    async fn forward_while(&self, types: &[&str], script: impl Future<Output = ()>) {
        let forwarder = Forwarder {
            name: "s".into(),
            sink: Box::new(self.broker.clone()),
            types: types.iter().map(|&glob| glob.to_owned()).collect(),
            journal: self.journal.clone(),
            metrics: Arc::clone(&self.metrics),
            clock: Clock::system(),
            status: Arc::clone(&self.status),
            publisher: self.publisher.clone(),
        };
        let stop = CancellationToken::new();
        tokio::join!(forwarder.forward(stop.clone()), async {
            script.await;
            stop.cancel();
        });
    }

    fn desk(&self) -> Desk {
        Desk::open(self.dir.path()).unwrap()
    }

    fn taken(&self) -> Vec<String> {
        self.broker.0.lock().unwrap().taken.clone()
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
    Failure::retry(Reason::Unavailable, "later")
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
    assert_eq!(bench.journal.dead_letters("s"), 0);
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
    assert_eq!(bench.journal.dead_letters("s"), 1);
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
async fn what_is_no_envelope_is_set_aside() {
    let bench = Bench::new();
    let entry = Entry { id: [9; 16], key: "a".into(), kind: "t".into(), accepted_ms: 0, payload: b"{}".to_vec() };
    bench.journal.append(entry).unwrap().durable().await.unwrap();
    let next = bench.store(2, "a", "create").await;
    bench.forward(&[]).await;
    assert_eq!((bench.taken(), bench.journal.dead_letters("s")), (vec![next], 1));
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
    let mut desk = bench.desk();
    let letters = desk.dead_letters(Some("s"), None).unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].position, letters[0].reason.as_str(), letters[0].key.as_str()), (1, "too_large", "a"));
    assert_eq!(desk.requeue(&letters).unwrap(), 1);
    assert_eq!(desk.requeue(&letters).unwrap(), 0, "it is queued already");
    bench.forward(&[]).await;
    assert_eq!(bench.taken(), [other, letter]);
    assert_eq!(bench.journal.dead_letters("s"), 0);
    assert_eq!(desk.dead_letters(None, None).unwrap(), []);
}

#[tokio::test]
async fn a_dead_letter_that_is_refused_again_stays_with_its_new_reason() {
    let bench = Bench::new();
    let letter = bench.store(1, "a", "create").await;
    bench.fail(&letter, &[|| Failure::reject(Reason::Invalid, "still"), reject]);
    bench.forward(&[]).await;
    let mut desk = bench.desk();
    let letters = desk.dead_letters(None, None).unwrap();
    desk.requeue(&letters).unwrap();
    bench.forward(&[]).await;
    let letters = desk.dead_letters(None, None).unwrap();
    assert_eq!((letters.len(), letters[0].reason.as_str(), letters[0].detail.as_str()), (1, "invalid", "still"));
    assert_eq!(desk.discard(&letters).unwrap(), 1);
    assert_eq!(desk.dead_letters(None, None).unwrap(), []);
}

#[tokio::test]
async fn a_replay_is_marked_and_keeps_order_and_ids() {
    let bench = Bench::new();
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(bench.store(n, "a", "create").await);
    }
    bench.forward(&[]).await;
    let mut desk = bench.desk();
    assert_eq!(desk.replay("s", &[2, 3, 5], 0, None).unwrap(), 3);
    bench.forward(&[]).await;
    let starred = [1, 2, 4].map(|n: usize| format!("{}*", ids[n]));
    assert_eq!(bench.taken()[5..], starred);
}

#[cfg(feature = "otlp")]
#[tokio::test]
async fn an_event_has_one_span_when_the_sink_is_done_with_it() {
    let (tracer, mut watched) = Tracer::watched();
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
    let told: Vec<_> = spans.iter().map(|(id, end, _)| (id.as_str(), end.retries, end.again, end.refused)).collect();
    let expected = [(&*good, 0, false, None), (&*late, 2, false, None), (&*refused, 1, false, Some("too_large"))];
    assert_eq!(told, expected);
    let shortest = BACKOFF.pause(0, 0.0) + BACKOFF.pause(1, 0.0);
    assert!(spans[1].2 >= shortest, "from the first try on, but it took {:?}", spans[1].2);

    let mut told =
        || watched.publishes().into_iter().map(|(id, end, _)| (id, end.retries, end.again)).collect::<Vec<_>>();
    let mut desk = bench.desk();
    let letters = desk.dead_letters(None, None).unwrap();
    desk.requeue(&letters).unwrap();
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
            go(Some(Fault::unreachable()));
            eventually("it is away", || !bench.status.connected()).await;
            assert!(failure().contains("cannot be reached"), "{}", failure());
            go(Some(Fault { reason: Reason::NotAuthorized, detail: "expired".into() }));
            eventually("the new reason is known", || failure() == "not_authorized: expired").await;
            go(None);
            eventually("it is connected again", || bench.status.connected()).await;
            go(Some(Fault::unreachable()));
            eventually("it is away again", || !bench.status.connected()).await;
        })
        .await;
    assert_eq!((count("connection"), count("not_authorized")), (2, 1), "each is counted when it is new");
}
