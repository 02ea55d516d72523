//! Events that their target does not take, by the thousand, on a sink that has others to publish: they hold up their own
//! keys alone, cost their own bytes, are seen and freed by an operator, and arrive once, in order, when the target is
//! there.
//!
//! Small in the normal run. `tests/run stuck` makes it as large as wanted, by these variables:
//!
//! - `TEST_STUCK_EVENTS`: how many events are stuck, each with a key of its own. A tenth as many wait behind them. If it is
//!   set, everything is done with nothing stuck as well, before, and memory is compared;
//! - `TEST_STUCK_OTHERS`: how many others are published on the same sink.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::sinks::for_each_broker;
use crate::support::bridge::{Bridge, Config, command, done};
use crate::support::broker::{Kind, Limits, Message, Own, Place};
use crate::support::deliveries::{Deliveries, Planned, deliver, deliver_at, sent};
use crate::support::oracle::{Id, Judge, Verdict};
use crate::support::trial::SINK;
use crate::support::{PATIENCE, eventually, eventually_within};

for_each_broker! {
    stuck_events_hold_up_their_own_keys_alone
    a_stuck_event_that_is_set_aside_lets_its_key_go_on
    a_replay_runs_at_the_pace_of_the_sink
}

/// The bridge calls an event stuck after 30 s.
const UNTIL_STUCK: Duration = Duration::from_secs(60);

/// Deliveries a second in the normal run, which any of the brokers can take in a debug build.
const RATE: u32 = 200;
/// The same of the long form, below what one queue of RabbitMQ confirms.
const LONG_RATE: u32 = 2_000;

fn number(variable: &str) -> Option<u32> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("expected a number in {variable}, but found {text:?}")))
}

#[track_caller]
fn stop(bridge: Bridge) {
    let ended = bridge.stop();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn of_sink(bridge: &Bridge, name: &str) -> f64 {
    bridge.metric(&format!("sendbird_bridge_sink_{name}"), &[("sink", SINK)])
}

fn retries(bridge: &Bridge, reason: &str) -> f64 {
    bridge.metric("sendbird_bridge_sink_retries_total", &[("sink", SINK), ("reason", reason)])
}

/// A place whose calls are taken, and whose rooms are not until it is freed.
struct Blocked {
    place: Place,
    /// RabbitMQ: where rooms are.
    rooms: Option<Place>,
    own: Option<Own>,
}

impl Blocked {
    fn new(kind: Kind) -> Self {
        let limits = Limits { no_rooms: true, ..Limits::default() };
        match kind {
            // The queue of the rooms is there, and holds nothing.
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => {
                let own = Own::start(kind);
                let place = own.place();
                place.make(limits);
                let rooms = Place { name: format!("{}-rooms", place.name), ..place.clone() };
                crate::support::broker::rabbitmq::make_queue(&place, &rooms.name, "room.#", None);
                let policy = r#"{"max-length": 0, "overflow": "reject-publish"}"#;
                own.ctl(&["set_policy", "--apply-to", "queues", "full", &format!("^{}$", rooms.name), policy]);
                Self { place, rooms: Some(rooms), own: Some(own) }
            }
            // There is no topic for rooms, or the stream does not take their subjects.
            #[allow(unreachable_patterns, reason = "in a build with this one client there is no other")]
            _ => {
                let place = kind.place();
                place.make(limits);
                Self { place, rooms: None, own: None }
            }
        }
    }

    fn free(&self) {
        match self.place.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => crate::support::broker::kafka::make_one(&self.place, "room"),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => drop(self.own.as_ref().expect("its own broker").ctl(&["clear_policy", "full"])),
            #[cfg(feature = "nats")]
            Kind::Nats => crate::support::broker::nats::change(&self.place, Limits::default()),
        }
    }

    fn sink(&self, config: Config) -> Config {
        self.place.sink(config, SINK)
    }

    /// Why rooms are not taken.
    fn reason(&self) -> &'static str {
        if self.rooms.is_some() { "unavailable" } else { "not_found" }
    }

    /// What an event of this room is stuck on.
    fn target(&self, room: &str) -> String {
        let name = &self.place.name;
        match self.place.kind {
            #[cfg(feature = "kafka")]
            Kind::Kafka => format!("topic \"{name}.room\""),
            #[cfg(feature = "rabbitmq")]
            Kind::RabbitMq => format!("exchange \"{name}\", routing key \"room.create.{room}\""),
            #[cfg(feature = "nats")]
            Kind::Nats => format!("subject \"{name}.room.create.{room}\""),
        }
    }

    fn count(&self) -> u64 {
        self.place.count() + self.rooms.as_ref().map_or(0, Place::count)
    }

    fn consume_each(&self, mut take: impl FnMut(Message)) {
        self.place.consume_each(&mut take);
        self.rooms.iter().for_each(|rooms| rooms.consume_each(&mut take));
    }
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    stuck: u32,
    behind: u32,
    others: u32,
    /// Deliveries a second at most.
    rate: Option<u32>,
}

impl Sizes {
    fn rooms(self) -> u32 {
        self.stuck + self.behind
    }

    /// A budget that the others alone would fill several times.
    fn config(self) -> Config {
        let stuck_bytes = u64::from(self.rooms()) * EVENT_BYTES;
        let (max, retain) = (8 * MIB + 3 * stuck_bytes, MIB / 2);
        Config::new()
            .fixed_address()
            .set("journal.max_bytes", &format!("'{}KiB'", max / 1024))
            .set("journal.retain_bytes", &format!("'{}KiB'", retain / 1024))
    }

    /// What the journal may keep once it has had the time: what is stuck, in segments that hold no more than as much of what
    /// is published, and some segments.
    fn journal_bytes(self) -> u64 {
        let stuck_bytes = u64::from(self.rooms()) * EVENT_BYTES;
        2 * stuck_bytes + 4 * MIB + (8 * MIB + 3 * stuck_bytes) / 16 * 3
    }
}

const MIB: u64 = 1024 * 1024;

/// What an event of a room takes in the journal, about, with its index.
const EVENT_BYTES: u64 = 900;

/// What is found out on the way.
#[derive(Debug, Default)]
struct Figures {
    rows: Vec<(&'static str, String)>,
    /// The most memory that any of the processes has had.
    memory: u64,
    /// How many of the others took longer than 1, 5 and 30 s to the broker.
    later: [u64; 3],
}

impl Figures {
    fn add(&mut self, what: &'static str, value: impl ToString) {
        self.rows.push((what, value.to_string()));
    }

    fn seconds(&mut self, what: &'static str, since: Instant) {
        self.add(what, format!("{:.1}", since.elapsed().as_secs_f64()));
    }

    fn look_at(&mut self, bridge: &Bridge) {
        self.memory = self.memory.max(bridge.process.memory());
    }
}

fn stuck_events_hold_up_their_own_keys_alone(kind: Kind) {
    let long = number("TEST_STUCK_EVENTS");
    let stuck = long.unwrap_or(1_000);
    let others = number("TEST_STUCK_OTHERS").unwrap_or(5 * stuck);
    // In the long form the run without stuck events shows what the sink can take. RabbitMQ takes fewer events than the
    // bridge stores: without a limit the others alone would fill the journal, stuck events or not.
    let rate = match long {
        None => Some(RATE),
        Some(_) => (kind.label() == "rabbitmq").then_some(LONG_RATE),
    };
    let sizes = Sizes { stuck, behind: stuck / 10, others, rate };
    let without = long.map(|_| run(kind, sizes, false));
    let with = run(kind, sizes, true);
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / MIB as f64);
    let mut table = format!("\n{}\n{:<52}{:>12}{:>12}\n", kind.label(), "", "with", "without");
    let found: BTreeMap<_, _> = without.iter().flat_map(|figures| figures.rows.iter().cloned()).collect();
    let memory = ("most memory, MiB", mib(with.memory));
    for (what, value) in with.rows.iter().chain([&memory]) {
        let other = match &without {
            Some(figures) if *what == memory.0 => mib(figures.memory),
            _ => found.get(what).cloned().unwrap_or_default(),
        };
        table += &format!("{what:<52}{value:>12}{other:>12}\n");
    }
    eprintln!("{table}");
    if let Some(without) = &without {
        assert!(with.memory < without.memory + 64 * MIB, "stuck events take too much memory");
    }
    let later_without = without.map_or([0; 3], |figures| figures.later);
    // A few seconds pass after each start until a client is sure that a target is missing.
    let few = u64::from(others) / 20;
    let [_, later_than_5s, later_than_30s] = with.later;
    assert!(
        later_than_5s <= later_without[1] + few && later_than_30s <= later_without[2],
        "not up to date all the while: {later_than_5s} took longer than 5 s, {later_than_30s} than 30 s"
    );
}

/// All of it, with rooms that are stuck or, to compare with, with none.
fn run(kind: Kind, sizes: Sizes, is_blocked: bool) -> Figures {
    let blocked = Blocked::new(kind);
    if !is_blocked {
        blocked.free();
    }
    let pending_at_rest = if is_blocked { f64::from(sizes.rooms()) } else { 0.0 };
    let config = blocked.sink(sizes.config());
    let mut bridge = config.start();
    let address = bridge.webhook;
    let mut figures = Figures::default();
    figures.add("events stuck", sizes.stuck);
    figures.add("events waiting behind them", sizes.behind);
    figures.add("others", sizes.others);
    let rests = |bridge: &Bridge, what: &str| {
        eventually_within(PATIENCE * 3, what, || of_sink(bridge, "pending_records") == pending_at_rest);
    };

    // A half of the rooms alone, then each between two calls.
    let begun = Instant::now();
    let calls = |from: u32, to: u32| (from..to).map(|n| Planned::call(n % 20_011, n / 20_011));
    let rooms = (0..sizes.rooms()).map(|n| Planned::room(n % sizes.stuck, n / sizes.stuck));
    let (alone, between) = (rooms.clone().take(sizes.stuck as usize / 2), rooms.skip(sizes.stuck as usize / 2));
    let interleaved = between.clone().count() as u32;
    let third = (sizes.others - interleaved) / 3 + interleaved;
    let mut planned: Vec<Planned> = alone.collect();
    planned.extend(between.zip(calls(0, interleaved)).flat_map(|(room, call)| [room, call]));
    let mut made = deliver_at(sizes.rate, address, planned);
    rests(&bridge, "the others are published while as many get stuck");
    figures.add("interleaved: deliveries a second", per_second(made.len(), begun));
    let mut prompt = Promptness::default();
    prompt.look_at(&bridge);

    // After them, with a crash in the middle.
    let begun = Instant::now();
    let deliveries = Deliveries::start(sizes.rate, address, calls(interleaved, third).collect());
    let half = u64::from(third - interleaved) / 2;
    eventually_within(PATIENCE * 10, "a half is delivered", || deliveries.progress.made() >= half);
    figures.look_at(&bridge);
    prompt.look_at(&bridge);
    prompt.restart();
    assert!(deliveries.are_under_way(), "the load ended too early to prove anything");
    bridge.kill_9();
    bridge = config.start();
    made.extend(deliveries.finish());
    rests(&bridge, "the others are published after a crash");
    figures.add("after them: deliveries a second, one kill -9", per_second((third - interleaved) as usize, begun));
    let expected = |calls: u32, rooms: u32| u64::from(calls) + u64::from(rooms);
    let published_rooms = if is_blocked { 0 } else { sizes.rooms() };
    let copies = blocked.count() - expected(third, published_rooms);
    figures.add("copies after kill -9", copies);

    // A clean restart.
    let before = blocked.count();
    prompt.look_at(&bridge);
    prompt.restart();
    figures.look_at(&bridge);
    let begun = Instant::now();
    stop(bridge);
    figures.seconds("seconds to stop", begun);
    let begun = Instant::now();
    bridge = config.start();
    figures.seconds("seconds to start", begun);
    assert_eq!(of_sink(&bridge, "pending_records"), pending_at_rest, "known from the start");
    if is_blocked {
        eventually("what is stuck is tried", || retries(&bridge, blocked.reason()) > 0.0);
    }
    let begun = Instant::now();
    made.extend(deliver_at(sizes.rate, address, calls(third, sizes.others).collect()));
    rests(&bridge, "the others are published after a restart");
    figures.add("after a restart: deliveries a second", per_second((sizes.others - third) as usize, begun));
    prompt.look_at(&bridge);
    figures.later = prompt.later();
    figures.add("others that took longer than 1 s to the broker", figures.later[0]);
    figures.add("others that took longer than 5 s to the broker", figures.later[1]);
    figures.add("others that took longer than 30 s to the broker", figures.later[2]);
    let copies = blocked.count() - before - expected(sizes.others - third, 0);
    figures.add("copies after a clean restart", copies);
    assert_eq!((copies, of_sink(&bridge, "broker_duplicates_total")), (0, 0.0), "a clean restart publishes no copies");

    let bytes = || bridge.metric("sendbird_bridge_journal_bytes", &[]) as u64;
    if is_blocked {
        is_seen(&bridge, &blocked, sizes);
        eventually(&format!("the journal keeps less than {} bytes", sizes.journal_bytes()), || {
            bytes() < sizes.journal_bytes()
        });
        assert_eq!(of_sink(&bridge, "dead_letters"), 0.0);
    }
    figures.add("journal, MiB", format!("{:.1}", bytes() as f64 / MIB as f64));
    figures.add("journal, events", bridge.metric("sendbird_bridge_journal_records", &[]));
    figures.look_at(&bridge);

    if is_blocked {
        let begun = Instant::now();
        blocked.free();
        eventually_within(PATIENCE * 5, "what was stuck is published", || of_sink(&bridge, "pending_records") == 0.0);
        figures.seconds("seconds until all that was stuck is published", begun);
        eventually("nothing is stuck", || of_sink(&bridge, "stuck_records") == 0.0);
        // The command reads the state file, which is written after the figure is.
        eventually("nothing is listed", || done(&bridge, &["stuck", "list", "--output", "json"]).is_empty());
        figures.look_at(&bridge);
    }
    let (verdict, rooms) = judged(&blocked, &made);
    figures.add("copies in all", verdict.again);
    let verdict = verdict.clean();
    assert_eq!(verdict.events, made.len());
    // What was in flight, or acknowledged in the last moments before the crash.
    assert!(verdict.again <= 1024 + made.len() / 20, "{} copies", verdict.again);
    if is_blocked {
        let twice = rooms.values().filter(|times| **times > 1).count();
        assert_eq!((rooms.len(), twice), (sizes.rooms() as usize, 0), "each that was stuck arrives once");
    }
    figures
}

fn per_second(count: usize, since: Instant) -> String {
    format!("{:.0}", count as f64 / since.elapsed().as_secs_f64())
}

/// What has arrived, and how often each room's event.
fn judged(blocked: &Blocked, made: &[(Planned, Id)]) -> (Verdict, HashMap<Id, u32>) {
    let rooms: HashSet<Id> = made.iter().filter(|(planned, _)| planned.is_room()).map(|(_, id)| *id).collect();
    let sent = sent(made);
    let (mut judge, mut heard) = (Judge::new(&sent), HashMap::new());
    blocked.consume_each(|message| {
        let arrived = message.arrived();
        judge.hear(&arrived);
        if rooms.contains(&arrived.id) {
            *heard.entry(arrived.id).or_default() += 1;
        }
    });
    (judge.verdict(), heard)
}

/// How many events took how long to the broker, of those that were published while others were stuck.
#[derive(Debug, Default)]
struct Promptness {
    /// Later than 1, 5 and 30 s: by processes that have ended, and by the one that runs.
    before: [u64; 3],
    now: [u64; 3],
}

impl Promptness {
    fn look_at(&mut self, bridge: &Bridge) {
        let metrics = bridge.metrics();
        let name = |suffix: &str| format!("sendbird_bridge_delivery_to_broker_seconds_{suffix}");
        let all = metrics.value(&name("count"), &[("sink", SINK)]);
        let within = |le: &str| metrics.value(&name("bucket"), &[("sink", SINK), ("le", le)]);
        self.now = ["1", "5", "30"].map(|le| (all - within(le)) as u64);
    }

    /// The process ends.
    fn restart(&mut self) {
        self.before = self.later();
        self.now = [0; 3];
    }

    fn later(&self) -> [u64; 3] {
        std::array::from_fn(|n| self.before[n] + self.now[n])
    }
}

/// What is stuck is in the metrics, the status, the log and the list, with its name and that of its target.
fn is_seen(bridge: &Bridge, blocked: &Blocked, sizes: Sizes) {
    let stuck = f64::from(sizes.stuck);
    eventually_within(UNTIL_STUCK, "they count as stuck", || of_sink(bridge, "stuck_records") == stuck);
    assert_eq!(of_sink(bridge, "pending_records"), f64::from(sizes.rooms()));
    assert_eq!(of_sink(bridge, "waiting_full"), 0.0);
    let status = bridge.status();
    let sink = &status["sinks"][0];
    assert_eq!((&sink["stuck_records"], &sink["pending_records"]), (&sizes.stuck.into(), &sizes.rooms().into()));
    let failure = sink["last_failure"].as_str().unwrap_or_default();
    let place = &blocked.place.name;
    assert!(failure.starts_with(blocked.reason()) && failure.contains(place.as_str()), "{failure}");
    let log = bridge.log().so_far();
    let names = |words: &str| log.iter().any(|line| line.contains(words) && line.contains(place.as_str()));
    assert!(names("publish failed; retrying") && names("hold up their keys"), "{log:#?}");
    assert!(log.len() < 60, "{} lines about one target", log.len());

    let mut listed = Vec::new();
    eventually("all are listed", || {
        listed = lines(&done(bridge, &["stuck", "list", "--output", "json"]));
        listed.len() == sizes.stuck as usize
    });
    let mut keys = HashSet::new();
    let mut behind = 0;
    for event in &listed {
        let key = event["key"].as_str().expect("a key");
        assert_eq!((&event["sink"], &event["reason"]), (&SINK.into(), &blocked.reason().into()), "{event}");
        assert_eq!(
            (&event["target"], event["type"].as_str()),
            (&blocked.target(key).into(), Some("com.sendbird.calls.room.create"))
        );
        assert!(event["id"].is_string() && event["since"].is_string() && event["tries"].is_u64(), "{event}");
        assert!(event["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{event}");
        keys.insert(key.to_owned());
        behind += event["waiting_behind"].as_u64().expect("a number");
    }
    assert_eq!((keys.len(), behind), (sizes.stuck as usize, u64::from(sizes.behind)), "each a key of its own");
    let table = done(bridge, &["stuck", "list"]);
    assert!(table.contains(&format!("{} events stuck", sizes.stuck)) && table.contains(place.as_str()), "{table}");
    let id = listed[0]["id"].as_str().expect("an id");
    assert!(done(bridge, &["stuck", "show", id]).contains(id));
}

fn a_stuck_event_that_is_set_aside_lets_its_key_go_on(kind: Kind) {
    const ROOMS: u32 = 6;
    let blocked = Blocked::new(kind);
    let bridge = blocked.sink(Config::new()).start();
    // Of each room an event, a call of the same key, and one more event.
    let key = |n: u32| Planned::room(n, 0).name();
    let call = |n: u32| crate::support::samples::dial(&key(n), 1_767_225_700_000);
    let firsts: Vec<String> = (0..ROOMS).map(|n| bridge.deliver(&Planned::room(n, 0).body()).stored()).collect();
    let calls: Vec<String> = (0..ROOMS).map(|n| bridge.deliver(&call(n)).stored()).collect();
    let lasts: Vec<String> = (0..ROOMS).map(|n| bridge.deliver(&Planned::room(n, 1).body()).stored()).collect();
    eventually_within(UNTIL_STUCK, "they are listed", || {
        lines(&done(&bridge, &["stuck", "list", "--output", "json"])).len() == ROOMS as usize
    });
    assert_eq!(of_sink(&bridge, "stuck_records"), f64::from(ROOMS));
    assert_eq!(of_sink(&bridge, "published_total"), 0.0, "each key is held up");

    // One alone: the call behind it is published, and then the last one is in the way.
    let set_aside = |arguments: &[&str]| done(&bridge, &[&["stuck", "set-aside", "--sink", SINK], arguments].concat());
    assert_eq!(set_aside(&["--key", &key(0)]), "1 set aside, 0 published meanwhile");
    eventually("the call behind it is published", || of_sink(&bridge, "published_total") == 1.0);
    assert_eq!(set_aside(&["--id", &firsts[1]]), "1 set aside, 0 published meanwhile");
    eventually("the call behind it is published", || of_sink(&bridge, "published_total") == 2.0);
    // With all that is behind it.
    assert_eq!(set_aside(&["--key", &key(2), "--waiting"]), "3 set aside, 0 published meanwhile");
    assert_eq!(of_sink(&bridge, "dead_letters"), 5.0);
    assert_eq!(of_sink(&bridge, "published_total"), 2.0);
    assert_eq!(of_sink(&bridge, "pending_records"), f64::from(3 * ROOMS - 7));
    let none = command(&bridge, &["stuck", "set-aside", "--id", &calls[5]]);
    assert_eq!(none.code(), Some(1), "it waits, and is not stuck: {}", none.stdout());
    assert_eq!(command(&bridge, &["stuck", "set-aside", "--sink", SINK]).code(), Some(0), "the sink narrows it down");
    let dead = || lines(&done(&bridge, &["dead-letters", "list", "--output", "json"]));
    let found = dead();
    for id in firsts.iter().chain([&calls[2], &lasts[2]]) {
        let letter = found.iter().find(|letter| letter["id"] == id.as_str());
        let letter = letter.unwrap_or_else(|| panic!("{id} is not in {found:#?}"));
        let is_head = firsts.contains(id);
        assert!(!is_head || letter["reason"] == blocked.reason(), "{letter}");
        assert!(letter["reason"].is_string() && letter["detail"].is_string(), "{letter}");
    }
    eventually("the calls behind them are published", || of_sink(&bridge, "published_total") == f64::from(ROOMS - 1));

    blocked.free();
    bridge.caught_up();
    done(&bridge, &["dead-letters", "requeue", "--sink", SINK, "--all"]);
    eventually("what was set aside is delivered", || of_sink(&bridge, "dead_letters") == 0.0);
    eventually("nothing is left to resend", || of_sink(&bridge, "resends_pending") == 0.0);
    let mut arrived = Vec::new();
    blocked.consume_each(|message| arrived.push(message.id));
    arrived.sort_unstable();
    let mut all = [firsts, calls, lasts].concat();
    all.sort_unstable();
    assert_eq!(arrived, all, "each once");
}

fn a_replay_runs_at_the_pace_of_the_sink(kind: Kind) {
    const EVENTS: u32 = 20_000;
    // Kept until there is a sink.
    let config = Config::new().fixed_address();
    let bridge = config.start();
    deliver(bridge.webhook, (0..EVENTS).map(|n| Planned::call(n % 2_003, n / 2_003)).collect());
    stop(bridge);
    let place = kind.place().made();
    let bridge = place.sink(config, SINK).start();
    let seconds = |what: &str, metric: &str| {
        let mut begun = None;
        eventually_within(PATIENCE * 3, what, || {
            let found = of_sink(&bridge, metric);
            if found > 0.0 && begun.is_none() {
                begun = Some((Instant::now(), found));
            }
            found >= f64::from(EVENTS)
        });
        begun.map_or(0.0, |(begun, _)| begun.elapsed().as_secs_f64())
    };
    let catching_up = seconds("the sink catches up", "published_total");
    done(&bridge, &["replay", "--sink", SINK, "--all"]);
    let replaying = seconds("all is replayed", "resent_total");
    eprintln!(
        "{}: {EVENTS} events, {:.0}/s catching up, {:.0}/s replayed",
        kind.label(),
        f64::from(EVENTS) / catching_up,
        f64::from(EVENTS) / replaying
    );
    // A half, and a little for a machine that has other things to do.
    assert!(replaying <= 2.5 * catching_up + 2.0, "{replaying:.1} s, which were {catching_up:.1} s");
    eventually("it has ended", || of_sink(&bridge, "resends_pending") == 0.0);
    eventually("none is listed", || done(&bridge, &["replay", "list", "--output", "json"]).is_empty());
    // A stream drops them on their way in, and says so.
    let dropped = of_sink(&bridge, "broker_duplicates_total") as u64;
    assert_eq!(place.count() + dropped, 2 * u64::from(EVENTS));
    assert!(dropped == 0 || kind.label() == "nats");

    // A slow one is seen, and ended.
    done(&bridge, &["replay", "--sink", SINK, "--all", "--rate", "100"]);
    eventually("it is under way", || of_sink(&bridge, "resent_total") > f64::from(EVENTS));
    let listed = lines(&done(&bridge, &["replay", "list", "--output", "json"]));
    assert_eq!((listed.len(), &listed[0]["sink"], &listed[0]["rate"]), (1, &SINK.into(), &100.into()), "{listed:?}");
    assert_eq!(listed[0]["total"], EVENTS);
    assert_eq!(bridge.metric("sendbird_bridge_replays_active", &[("sink", SINK)]), 1.0);
    done(&bridge, &["replay", "cancel", &listed[0]["id"].to_string()]);
    eventually("it has ended", || of_sink(&bridge, "resends_pending") == 0.0);
    eventually("none is listed", || done(&bridge, &["replay", "list", "--output", "json"]).is_empty());
    let resent = of_sink(&bridge, "resent_total");
    assert!(resent < f64::from(EVENTS + EVENTS / 2), "{resent} were resent");
    bridge.deliver(&Planned::call(0, EVENTS).body()).stored();
    bridge.caught_up();
    assert_eq!(of_sink(&bridge, "resent_total"), resent, "nothing of it comes any more");
}

/// Two queues, and one of them is full: what is in the other is published once.
#[cfg(feature = "rabbitmq")]
#[test]
fn a_full_rabbitmq_queue_costs_the_other_no_copies() {
    use crate::support::broker::rabbitmq::make_queue;
    const ROOM_FOR: u32 = 10;
    const ROOMS: u32 = 30;
    const CALLS: u32 = 300;
    let place = Kind::RabbitMq.place();
    place.make(Limits { no_rooms: true, ..Limits::default() });
    let rooms = Place { name: format!("{}-rooms", place.name), ..place.clone() };
    make_queue(&place, &rooms.name, "room.#", Some(ROOM_FOR));
    let config = place.sink(Config::new().fixed_address(), SINK);
    let bridge = config.start();
    let mut made = deliver(bridge.webhook, (0..ROOMS).map(|n| Planned::room(n % 15, n / 15)).collect());
    made.extend(deliver(bridge.webhook, (0..CALLS).map(|n| Planned::call(n % 50, n / 50)).collect()));
    let pending = f64::from(ROOMS - ROOM_FOR);
    eventually("the rest is published", || of_sink(&bridge, "pending_records") == pending);
    assert_eq!((place.count(), rooms.count()), (CALLS.into(), ROOM_FOR.into()));
    stop(bridge);
    let bridge = config.start();
    eventually("the full queue is tried", || retries(&bridge, "unavailable") > 3.0);
    assert_eq!((place.count(), rooms.count()), (CALLS.into(), ROOM_FOR.into()), "no copies");
    assert_eq!(of_sink(&bridge, "pending_records"), pending);
    // Somebody reads what is there.
    let mut messages = place.consume();
    eventually("all is published", || {
        messages.extend(rooms.consume());
        of_sink(&bridge, "pending_records") == 0.0
    });
    messages.extend(rooms.consume());
    let arrived: Vec<_> = messages.iter().map(Message::arrived).collect();
    let verdict = crate::support::oracle::judge(&sent(&made), &arrived).exactly_once();
    assert_eq!(verdict.events, made.len());
}

/// A queue whose process is suspended is given messages and confirms none.
#[cfg(feature = "rabbitmq")]
#[test]
fn a_rabbitmq_queue_that_does_not_confirm_costs_the_other_no_speed() {
    const SILENT: u32 = 2_000;
    const EACH: u32 = 5_000;
    let own = Own::start(Kind::RabbitMq);
    let place = own.place();
    place.make(Limits { no_rooms: true, ..Limits::default() });
    let rooms = Place { name: format!("{}-rooms", place.name), ..place.clone() };
    crate::support::broker::rabbitmq::make_queue(&place, &rooms.name, "room.#", None);
    let bridge = place.sink(Config::new(), SINK).start();
    let published = |what: &str, events: u32| {
        let begun = Instant::now();
        eventually_within(PATIENCE * 2, what, || of_sink(&bridge, "published_total") >= f64::from(events));
        begun.elapsed()
    };
    let calls = |from: u32| (from..from + EACH).map(|n| Planned::call(n % 499, n / 499));
    let begun = Instant::now();
    let mut made = deliver(bridge.webhook, calls(0).collect());
    published("all are published", EACH);
    let before = begun.elapsed();

    let process = |verb: &str| {
        let name = format!("rabbit_misc:r(<<\"/\">>, queue, <<\"{}\">>)", rooms.name);
        let call = format!("{{ok, Q}} = rabbit_amqqueue:lookup({name}), sys:{verb}(amqqueue:get_pid(Q)).");
        own.ctl(&["eval", &call]);
    };
    process("suspend");
    let mut planned = Vec::new();
    for (n, call) in calls(EACH).enumerate() {
        let n = n as u32;
        planned.extend((n < SILENT).then(|| Planned::room(n % (SILENT / 2), n / (SILENT / 2))));
        planned.push(call);
    }
    let begun = Instant::now();
    made.extend(deliver(bridge.webhook, planned));
    published("the other queue has all", 2 * EACH);
    let meanwhile = begun.elapsed();
    eprintln!("{EACH} calls: {before:?} before, {meanwhile:?} with {SILENT} for a silent queue between them");
    assert_eq!(place.count(), 2 * u64::from(EACH));
    assert_eq!(of_sink(&bridge, "pending_records"), f64::from(SILENT));
    // What fills the window first is without an answer for a while until that is noticed.
    assert!(meanwhile < before * 3 + Duration::from_secs(15), "{meanwhile:?}, which were {before:?}");

    eventually_within(UNTIL_STUCK, "they count as stuck", || of_sink(&bridge, "stuck_records") > 0.0);
    let listed = lines(&done(&bridge, &["stuck", "list", "--output", "json"]));
    assert!(listed.iter().all(|event| event["reason"] == "timeout"), "{listed:#?}");
    assert!(listed.iter().all(|event| event["target"].as_str().is_some_and(|it| it.contains("room.create."))));
    let made_later = deliver(bridge.webhook, calls(2 * EACH).collect());
    made.extend(made_later);
    published("the other queue has all", 3 * EACH);
    process("resume");
    bridge.caught_up();
    let connections = bridge.log().so_far().iter().filter(|line| line.contains("sink connected")).count();
    assert_eq!(connections, 1, "all over one connection");
    let mut arrived: Vec<_> = place.consume().iter().map(Message::arrived).collect();
    arrived.extend(rooms.consume().iter().map(Message::arrived));
    let verdict = crate::support::oracle::judge(&sent(&made), &arrived).clean();
    eprintln!("{} copies of what was without an answer", verdict.again);
    assert_eq!(verdict.events, made.len());
}

/// The only node that has one of a topic's partitions is away.
#[cfg(feature = "kafka")]
#[test]
fn a_kafka_partition_without_a_leader_holds_up_no_other_partition() {
    use crate::sinks::messages::murmur2;
    use crate::support::broker::kafka::make_spread;
    use crate::support::broker::operate::Cluster;
    const LOST: usize = 2_000;
    const OTHERS: usize = 6_000;
    let cluster = Cluster::start(Kind::Kafka);
    let place = cluster.place(&[1, 2, 3]);
    make_spread(&place, "direct_call");
    let config = place.sink(Config::new(), SINK);
    let bridge = config.start();
    let partition = |key: u32| (murmur2(Planned::call(key, 0).name().as_bytes()) & 0x7fff_ffff) % 3;
    let of_lost = (0..).filter(|key| partition(*key) == 2).take(LOST).collect::<Vec<u32>>();
    let (of_lost, of_lost_later) = of_lost.split_at(LOST / 2);
    let of_others = (0..).filter(|key| partition(*key) != 2).take(1_000).collect::<Vec<u32>>();
    let mut made = deliver(bridge.webhook, (0..60).map(|key| Planned::call(key, 0)).collect());
    bridge.caught_up();
    let topic = place.destination("direct_call");
    cluster.run("kill", 3);

    let nth = |keys: &[u32], n: usize| Planned::call(keys[n % keys.len()], 1 + (n / keys.len()) as u32);
    let mut planned = Vec::new();
    for n in 0..OTHERS {
        planned.extend((n < LOST).then(|| nth(of_lost, n)));
        planned.push(nth(&of_others, n));
    }
    let begun = Instant::now();
    made.extend(deliver(bridge.webhook, planned));
    // Long: three nodes, and the tests beside this one, share the machine.
    eventually_within(PATIENCE * 4, "the other partitions have all", || {
        of_sink(&bridge, "published_total") == (60 + OTHERS) as f64
    });
    eprintln!("{OTHERS} for the other partitions were published within {:?}", begun.elapsed());
    assert_eq!(of_sink(&bridge, "pending_records"), LOST as f64);
    eventually_within(UNTIL_STUCK * 2, "they count as stuck", || {
        of_sink(&bridge, "stuck_records") == of_lost.len() as f64
    });
    let target = format!("topic \"{topic}\" partition 2");
    eventually("all are listed", || {
        let listed = lines(&done(&bridge, &["stuck", "list", "--output", "json"]));
        assert!(listed.iter().all(|event| event["target"] == target.as_str()), "{:?}", listed.last());
        listed.len() == of_lost.len()
    });
    // Those that come now are published at once.
    let begun = Instant::now();
    made.extend(deliver(bridge.webhook, (OTHERS..2 * OTHERS).map(|n| nth(&of_others, n)).collect()));
    eventually("the other partitions have all", || of_sink(&bridge, "published_total") == (60 + 2 * OTHERS) as f64);
    eprintln!("{OTHERS} more within {:?}", begun.elapsed());
    // Those that come first after a start are sent before the client has counted the partitions.
    stop(bridge);
    let bridge = config.start();
    let mut planned = Vec::new();
    for n in 0..OTHERS {
        planned.extend((n < LOST).then(|| nth(of_lost_later, n)));
        planned.push(nth(&of_others, 2 * OTHERS + n));
    }
    made.extend(deliver(bridge.webhook, planned));
    eventually("the other partitions have all", || of_sink(&bridge, "published_total") == OTHERS as f64);
    assert_eq!(of_sink(&bridge, "pending_records"), 2.0 * LOST as f64);
    cluster.run("start", 3);
    eventually_within(PATIENCE * 2, "all is published", || of_sink(&bridge, "pending_records") == 0.0);
    assert_eq!(of_sink(&bridge, "dead_letters"), 0.0);
    let arrived: Vec<_> = place.consume().iter().map(Message::arrived).collect();
    let verdict = crate::support::oracle::judge(&sent(&made), &arrived).exactly_once();
    assert_eq!(verdict.events, made.len());
}
