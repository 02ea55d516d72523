//! `reconcile` beside a bridge, against the platform that the tests play: what is missing is named, published once and
//! marked, also when it is interrupted, run twice, or the delivery comes after all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{read_to_string, write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sendbird_bridge::domain::clock::{Clock, rfc3339};
use sendbird_bridge::journal::{DedupSettings, Entry, Hook, Journal, Options, Settings};
use sendbird_bridge::sendbird::normalize::{self, Provenance, normalize};
use sendbird_bridge::sendbird::{delivery, reconcile};
use serde_json::{Value, json};

use crate::support::bridge::{Bridge, Config, TOKEN};
use crate::support::eventually;
use crate::support::platform::{API_TOKEN, APPLICATION, Fault, Platform};
use crate::support::process::{Ended, Process, Stdout, program};
use crate::support::shim::{ALWAYS, EIO, Shim};

const HOUR: i64 = 3_600_000;

/// An hour ago: when all that is looked for happened.
fn then() -> i64 {
    Clock::system().now_ms() - HOUR
}

fn time(ms: i64) -> String {
    rfc3339(ms).unwrap()
}

fn body(category: &str, at_ms: i64, about: Value) -> Vec<u8> {
    let mut body = json!({ "category": category, "occurred_at": at_ms, "application_id": APPLICATION });
    body.as_object_mut().unwrap().extend(about.as_object().unwrap().clone());
    body.to_string().into_bytes()
}

fn call_body(verb: &str, call_id: &str, at_ms: i64) -> Vec<u8> {
    body(&format!("direct_call:{verb}"), at_ms, json!({ "direct_call": { "call_id": call_id } }))
}

/// An answered call of 60 s, as the API shows it.
fn call(call_id: &str, at_ms: i64) -> Value {
    json!({
        "call_id": call_id, "call_type": "direct_call", "is_video_call": false, "state": "ended",
        "end_result": "completed", "started_by": "alice", "ended_by": "bob", "started_at": at_ms,
        "ended_at": at_ms + 63_000, "duration": 60_000, "custom_items": {},
        "participants": [{ "user_id": "alice", "role": "dc_caller" }, { "user_id": "bob", "role": "dc_callee" }],
    })
}

fn room(room_id: &str, at_ms: i64, deleted_at: Option<i64>) -> Value {
    json!({
        "room_id": room_id, "room_type": "small_room_for_video", "created_at": at_ms, "updated_at": at_ms,
        "state": if deleted_at.is_some() { "deleted" } else { "open" }, "created_by": "alice", "deleted_by": "",
        "deleted_at": deleted_at, "current_participants": [], "custom_items": {},
    })
}

fn stay(participant_id: &str, at_ms: i64, exited_at: Option<i64>) -> Value {
    json!({
        "participant_id": participant_id, "client_id": "c", "user": { "user_id": "alice" }, "entered_at": at_ms,
        "updated_at": at_ms, "state": if exited_at.is_some() { "exited" } else { "entered" }, "exited_at": exited_at,
        "duration": exited_at.map(|at| (at - at_ms) / 1000), "is_audio_on": true, "is_video_on": true,
    })
}

/// An application that delivers all.
fn platform() -> Platform {
    let platform = Platform::start();
    platform.set("enabled", json!(true));
    platform.set("enabled_events", json!(["*"]));
    platform
}

/// Writes a journal as a bridge would have, so many hours ago.
fn journal(config: &Config, hours: i64, bodies: &[Vec<u8>]) {
    let accepted_ms = Clock::system().now_ms() - hours * HOUR;
    let journal = Journal::open(Options {
        settings: Settings { dir: config.dir().join("journal"), ..Settings::default() },
        dedup: DedupSettings::default(),
        sinks: Vec::new(),
        clock: Clock::fixed(accepted_ms),
        on_commit: Box::new(|_| {}),
        backfill: Hook { fact_of: reconcile::fact_of, on_stored: Box::new(|_| {}) },
    })
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for body in bodies {
        let delivery = delivery::parse(body).unwrap();
        let event = normalize(&delivery, Provenance::at(accepted_ms), &normalize::Settings::default());
        let (id, payload) = (*event.id.as_bytes(), event.envelope);
        let entry = Entry { id, key: event.key, kind: event.kind, accepted_ms, payload };
        runtime.block_on(journal.append(entry).unwrap().durable()).unwrap();
    }
    journal.close();
}

/// A bridge that was there twenty hours ago.
fn config() -> Config {
    let config = Config::new().stdout_sink(Stdout::Read);
    journal(&config, 20, &[call_body("dial", "long ago", Clock::system().now_ms() - 20 * HOUR)]);
    config
}

fn process(config: &Config, platform: &Platform, arguments: &[&str]) -> Process {
    config.write();
    process_as_written(config, platform, arguments)
}

/// Several at once must not find a configuration that is just being written.
fn process_as_written(config: &Config, platform: &Platform, arguments: &[&str]) -> Process {
    let url = platform.url();
    let whom = ["reconcile", "--application", APPLICATION, "--token", API_TOKEN, "--api-url", &url];
    let mut command = program();
    command.arg("--config").arg(config.dir().join("bridge.toml")).args(whom).args(arguments);
    Process::start(command, Stdout::Read)
}

/// Runs it to its end; nothing that it says may show the token.
#[track_caller]
fn reconcile(config: &Config, platform: &Platform, arguments: &[&str]) -> Ended {
    let ended = process(config, platform, arguments).wait();
    let said = format!("{}\n{}", ended.stdout(), ended.stderr());
    assert!(!said.contains(API_TOKEN), "the token in {said}");
    ended
}

/// What it names, without the times, and its sums.
fn named(ended: &Ended) -> (BTreeSet<String>, Value) {
    let mut lines: Vec<Value> = ended.stdout.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().expect("a summary")["summary"].take();
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or("-").to_owned();
    let line = |line: &Value| ["outcome", "category", "key", "participant_id"].map(|name| text(line, name)).join(" ");
    let named: BTreeSet<String> = lines.iter().map(line).collect();
    assert_eq!(named.len(), lines.len(), "each once: {lines:?}");
    (named, summary)
}

fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn reconciled(bridge: &Bridge) -> Vec<Value> {
    let lines = bridge.printed().so_far();
    let envelopes = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    envelopes.filter(|envelope| envelope.get("reconciled").is_some()).collect()
}

/// How many events tell of each fact.
fn events_by_fact(bridge: &Bridge) -> BTreeMap<reconcile::FactId, u32> {
    let mut events = BTreeMap::new();
    for fact in bridge.events().iter().filter_map(|event| reconcile::fact_of(event.line.as_bytes())) {
        *events.entry(fact).or_default() += 1;
    }
    events
}

#[test]
fn what_was_lost_is_named_and_with_publish_published_once_and_marked() {
    let (config, platform, at) = (config(), platform(), then());
    let bridge = config.start();
    platform.add_call(call("whole", at));
    platform.add_call(call("half", at + 5));
    platform.add_call(call("lost", at + 10));
    platform.add_call(call("too late", Clock::system().now_ms() - 1_000));
    platform.add_call(call("too early", at - 10 * HOUR));
    platform.add_room(
        room("r", at, Some(at + 400_000)),
        vec![stay("gone", at + 100, Some(at + 200)), stay("disconnected", at + 300, Some(at + 350))],
    );
    // The times of deliveries are not those of the API.
    for verb in ["dial", "accept", "end"] {
        bridge.deliver(&call_body(verb, "whole", at + 7)).stored();
    }
    bridge.deliver(&call_body("dial", "half", at + 9)).stored();
    bridge.deliver(&body("room:create", at + 3, json!({ "room": { "room_id": "r" } }))).stored();
    let of =
        |participant: &str| json!({ "room": { "room_id": "r" }, "participant": { "participant_id": participant } });
    bridge.deliver(&body("room:participant_enter", at + 101, of("gone"))).stored();
    bridge.deliver(&body("room:participant_disconnect", at + 355, of("disconnected"))).stored();
    eventually("they are printed", || bridge.printed().count() == 8);
    let missing = set(&[
        "missing direct_call:accept half -",
        "missing direct_call:end half -",
        "missing direct_call:dial lost -",
        "missing direct_call:accept lost -",
        "missing direct_call:end lost -",
        "missing room:participant_exit r gone",
        "missing room:participant_enter r disconnected",
        "missing room:delete r -",
    ]);

    let since = ["--since", "2h", "--output", "json"];
    let ended = reconcile(&config, &platform, &since);
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
    let (found, summary) = named(&ended);
    assert_eq!(found, missing);
    assert_eq!((&summary["stored"], &summary["queued"]), (&json!(7), &json!(0)));
    assert_eq!(bridge.events().len(), 8, "nothing is changed without --publish");

    let ended = reconcile(&config, &platform, &[&since[..], &["--publish"]].concat());
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    let (found, summary) = named(&ended);
    assert_eq!((found, &summary["queued"]), (missing, &json!(8)));
    eventually("they are published", || bridge.printed().count() == 16);
    let made = reconciled(&bridge);
    assert_eq!(made.len(), 8);
    assert!(made.iter().all(|envelope| envelope["reconciled"] == true));
    let end =
        made.iter().find(|it| it["data"]["category"] == "direct_call:end" && it["partitionkey"] == "lost").unwrap();
    assert_eq!((&end["data"]["call"]["duration_ms"], &end["time"]), (&json!(60_000), &json!(time(at + 63_010))));
    assert_eq!(end["source"], json!(format!("https://api-{APPLICATION}.calls.sendbird.com")));
    let of_lost = made.iter().filter(|envelope| envelope["partitionkey"] == "lost");
    let order: Vec<&str> = of_lost.map(|envelope| envelope["data"]["category"].as_str().unwrap()).collect();
    assert_eq!(order, ["direct_call:dial", "direct_call:accept", "direct_call:end"]);
    let counted = |category| bridge.metric("sendbird_bridge_reconciled_total", &[("category", category)]);
    assert_eq!((counted("direct_call:end"), counted("room:delete"), counted("other")), (2.0, 1.0, 0.0));
    let delivered = [("category", "room:delete"), ("outcome", "stored")];
    assert_eq!(bridge.metric("sendbird_bridge_deliveries_total", &delivered), 0.0, "nobody delivered it");

    let ended = reconcile(&config, &platform, &[&since[..], &["--publish"]].concat());
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert_eq!(named(&ended).0, BTreeSet::new(), "nothing is missing any more");

    // The delivery comes after all.
    let late = bridge.deliver(&call_body("end", "lost", at + 63_017));
    assert_eq!((late.status, late.json()["status"].as_str()), (200, Some("duplicate")), "{}", late.text());
    assert_eq!(late.json()["id"], end["id"], "it is that event");
    assert_eq!(bridge.events().len(), 16);
    assert!(events_by_fact(&bridge).values().all(|events| *events == 1));
}

#[test]
fn a_stopped_bridge_publishes_when_it_starts() {
    let (config, platform, at) = (config(), platform(), then());
    platform.add_call(call("lost", at));
    let ended = reconcile(&config, &platform, &["--since", "2h", "--publish"]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert!(ended.stdout().contains("3 are left to the bridge"), "{}", ended.stdout());
    let stats = config.clone().stdout(Stdout::Read).process(&["journal", "stats"]).wait();
    assert!(stats.stdout().contains("backfill        3 candidates,"), "{}", stats.stdout());
    let again = reconcile(&config, &platform, &["--since", "2h", "--publish", "--output", "json"]);
    let (found, summary) = named(&again);
    assert_eq!((found, &summary["offered"], again.code()), (BTreeSet::new(), &json!(3), Some(0)));
    let bridge = config.start();
    eventually("they are published", || reconciled(&bridge).len() == 3);
    assert_eq!(bridge.events().len(), 4);
}

#[test]
fn two_at_once_publish_once() {
    let (config, platform, at) = (config(), platform(), then());
    platform.limits(1_000, 5);
    (0..250).for_each(|n| platform.add_call(call(&format!("call {n}"), at + n)));
    let bridge = config.start();
    let since = time(at - HOUR);
    let runs: Vec<Process> =
        (0..3).map(|_| process_as_written(&config, &platform, &["--since", &since, "--publish"])).collect();
    for ended in runs.into_iter().map(Process::wait) {
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    }
    eventually("all are stored", || reconciled(&bridge).len() >= 750);
    bridge.caught_up();
    let events = events_by_fact(&bridge);
    assert_eq!((events.len(), bridge.events().len()), (751, 751));
}

/// How many pages of calls it was asked for.
fn pages(platform: &Platform) -> usize {
    platform.asked().iter().filter(|asked| asked.starts_with("GET /direct_calls")).count()
}

/// Starts a run over five pages and kills it after the second.
fn interrupted(config: &Config, platform: &Platform, at: i64) {
    (0..450).for_each(|n| platform.add_call(call(&format!("call {n}"), at + n)));
    platform.limits(2, 5);
    let running = process(config, platform, &["--since", "2h", "--publish"]);
    eventually("the third page is refused for now", || pages(platform) == 3);
    running.kill_9();
    platform.limits(1_000, 5);
}

#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    let (config, platform, at) = (config(), platform(), then());
    let bridge = config.start();
    interrupted(&config, &platform, at);
    let ended = reconcile(&config, &platform, &["--resume"]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert_eq!(pages(&platform), 3 + 3, "the first two are not asked for again");
    assert!(ended.stdout().contains("450 calls"), "{}", ended.stdout());
    eventually("all are stored", || reconciled(&bridge).len() >= 1_350);
    bridge.caught_up();
    assert_eq!((events_by_fact(&bridge).len(), bridge.events().len()), (1_351, 1_351));
    let none = reconcile(&config, &platform, &["--resume"]);
    assert_eq!(none.code(), Some(1), "there is nothing to go on with");
}

#[test]
fn an_expired_page_token_restarts_the_run_and_publishes_once() {
    let (config, platform, at) = (config(), platform(), then());
    let bridge = config.start();
    interrupted(&config, &platform, at);
    platform.fail("GET", Fault::Json(401, json!({ "error": true, "code": 401_120 })));
    let failed = reconcile(&config, &platform, &["--resume"]);
    assert_eq!(failed.code(), Some(1), "{}", failed.stderr());
    assert!(failed.stderr().contains("reconcile --resume"), "{}", failed.stderr());
    platform.fail("GET", Fault::Json(400, json!({ "error": true, "code": 400_111 })));
    let before = pages(&platform);
    let ended = reconcile(&config, &platform, &["--resume"]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert_eq!(pages(&platform) - before, 1 + 5);
    eventually("all are stored", || reconciled(&bridge).len() >= 1_350);
    bridge.caught_up();
    assert_eq!((events_by_fact(&bridge).len(), bridge.events().len()), (1_351, 1_351));
}

#[test]
fn nothing_is_called_missing_on_a_guess() {
    let (config, platform, at) = (config(), platform(), then());
    platform.add_call(call("lost", at));
    let bridge = config.start();
    let refused = |code: i32, arguments: &[&str], word: &str| {
        let ended = reconcile(&config, &platform, arguments);
        assert_eq!(ended.code(), Some(code), "{arguments:?}: {}", ended.stderr());
        assert!(ended.stderr().contains(word), "{arguments:?}: {}", ended.stderr());
    };
    refused(1, &["--since", "21h"], "expected --since");
    refused(64, &["--since", "2h", "--until", "1s"], "may still be delivered");
    refused(64, &["--since", "2h", "--until", "3h"], "expected --since before");
    refused(64, &["--since", "2h", "--category", "room:invitation_send"], "does not know");
    refused(64, &[], "--since");
    platform.set("enabled_events", json!(["room:create"]));
    let ended = reconcile(&config, &platform, &["--since", "2h"]);
    assert_eq!(ended.code(), Some(0), "a dial was not to be delivered: {}", ended.stdout());
    refused(1, &["--since", "2h", "--category", "direct_call:dial"], "1 event missing; publish with --publish");
    platform.set("enabled", json!(false));
    refused(1, &["--since", "2h"], "not enabled");
    bridge.stop();

    let fresh = Config::new();
    drop(fresh.start());
    let ended = reconcile(&fresh, &platform, &["--since", "2h", "--category", "direct_call:dial"]);
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stderr().contains("has no complete record"), "{}", ended.stderr());

    let other = config.set("access.applications", "['1B2C3D4E-1111-4222-8333-444455556666']");
    let ended = reconcile(&other, &platform, &["--since", "2h", "--category", "direct_call:dial"]);
    assert_eq!(ended.code(), Some(64), "{}", ended.stderr());
}

#[test]
fn unordered_lists_are_read_and_rooms_missing_from_them_fetched() {
    let (config, platform, at) = (Config::new(), platform(), then());
    let old = at - 72 * HOUR;
    let of = |room: &str| json!({ "room": { "room_id": room }, "participant": { "participant_id": "first" } });
    journal(&config, 20, &[body("room:participant_enter", at - 19 * HOUR, of("old"))]);
    platform.add_room(room("old", old, None), vec![stay("first", at - 19 * HOUR, None), stay("second", at, None)]);
    // Nobody knows that this one is in use.
    platform.add_room(room("forgotten", old, None), vec![stay("third", at, None)]);
    (0..230).for_each(|n| platform.add_call(call(&format!("old {n}"), at - 40 * HOUR + n)));
    (0..3).for_each(|n| platform.add_call(call(&format!("lost {n}"), at + n)));
    let mut found = Vec::new();
    for newest_first in [true, false] {
        platform.newest_first(newest_first);
        let ended = reconcile(&config, &platform, &["--since", "2h", "--output", "json"]);
        assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
        let (missing, summary) = named(&ended);
        assert_eq!((&summary["rooms"], &summary["calls"]), (&json!(1), &json!(3)));
        assert!(missing.contains("missing room:participant_enter old second"), "{missing:?}");
        found.push(missing);
    }
    assert_eq!((found[0].len(), &found[0]), (10, &found[1]));
    assert_eq!(pages(&platform), 1 + 3, "newest first, one page was enough");
    let ended = reconcile(&config, &platform, &["--since", "2h", "--lookback", "96h", "--output", "json"]);
    assert!(named(&ended).0.contains("missing room:participant_enter forgotten third"));
}

#[test]
fn what_another_bridge_has_stored_is_not_missing() {
    let (config, platform, at) = (config(), platform(), then());
    let others = self::config();
    let other = others.start();
    platform.add_call(call("there", at));
    platform.add_call(call("nowhere", at));
    for verb in ["dial", "accept", "end"] {
        other.deliver(&call_body(verb, "there", at + 2)).stored();
    }
    let feed: Vec<String> = other.events().into_iter().map(|event| event.line).collect();
    let files = [("one", feed.join("\n")), ("empty", String::new()), ("two", format!("{}\n\n", feed.join("\n")))];
    let path = |name: &str| config.dir().join(name).display().to_string();
    for (name, text) in &files {
        std::fs::write(path(name), text).unwrap();
    }
    let run = |also: &[&str]| {
        let also: Vec<String> = also.iter().flat_map(|name| ["--also".to_owned(), path(name)]).collect();
        let also: Vec<&str> = also.iter().map(String::as_str).collect();
        reconcile(&config, &platform, &[&["--since", "2h", "--output", "json"][..], &also].concat())
    };
    let (alone, summary) = named(&run(&[]));
    assert_eq!((alone.len(), &summary["stored"]), (6, &json!(0)));
    let (together, summary) = named(&run(&["one"]));
    assert!(together.len() == 3 && together.iter().all(|line| line.contains("nowhere")), "{together:?}");
    assert_eq!(summary["stored"], 3);
    for wrong in [&["empty"][..], &["one", "two"]] {
        let ended = run(wrong);
        assert_eq!(ended.code(), Some(64), "{}", ended.stderr());
        assert!(ended.stderr().contains("events of a bridge"), "{}", ended.stderr());
    }
}

/// Has the bridge look for gaps every second; it was there once, and all was well.
fn looking_for_gaps(config: Config, platform: &Platform) -> Config {
    let config = config
        .set("access.applications", &format!("['{APPLICATION}']"))
        .set("reconcile.every", "'1s'")
        .set("reconcile.api_url", &format!("'{}'", platform.url()));
    let bridge = config.start();
    eventually("it has seen that all is well", || until(&config).exists());
    let ended = bridge.stop();
    assert!(!ended.stderr().contains("a gap"), "{}", ended.stderr());
    config
}

/// Where a bridge notes until when there was no gap.
fn until(config: &Config) -> PathBuf {
    config.dir().join("journal/reconciled-until")
}

#[test]
fn automatic_reconciliation_runs_only_after_a_gap() {
    const MINUTE: i64 = 60_000;
    let platform = platform();
    let (shim, config) = Shim::under(config().set("access.api_tokens", &format!("['{API_TOKEN}', '{TOKEN}']")));
    let config = looking_for_gaps(config, &platform);
    let until = until(&config);

    // It was away for two hours.
    shim.set_clock_ahead(2 * HOUR);
    let now = Clock::system().now_ms();
    platform.add_call(call("while away", now + HOUR));
    let bridge = config.start();
    let log = bridge.log();
    let ends = || log.so_far().iter().filter(|line| line.contains("\"gap reconciled\"")).count();
    shim.set_clock_ahead(2 * HOUR + 10 * MINUTE);
    eventually("what it missed is published", || reconciled(&bridge).len() == 3 && ends() == 1);

    // It is there, but its disk is not.
    shim.fail_syncs(EIO, ALWAYS);
    // By the clock of now: on a busy machine the part before this takes a while.
    let refused_at = Clock::system().now_ms() + 2 * HOUR + 10 * MINUTE;
    bridge.deliver(&call_body("dial", "refused", refused_at)).problem(503);
    shim.heal();
    eventually("it is ready again", || bridge.is_ready());
    platform.add_call(call("refused", refused_at));
    let mut ahead = 2 * HOUR + 10 * MINUTE;
    eventually("what it refused is published", || {
        ahead += MINUTE;
        shim.set_clock_ahead(ahead);
        reconciled(&bridge).len() == 6 && ends() == 2
    });

    // Without a gap nobody is asked.
    let (asked, well) = (platform.asked().len(), read_to_string(&until).unwrap());
    eventually("it goes on looking", || read_to_string(&until).unwrap() > well);
    assert_eq!((platform.asked().len(), ends()), (asked, 2));
    assert!(events_by_fact(&bridge).values().all(|events| *events == 1));
    assert!(!bridge.stop().stderr().contains(API_TOKEN));
}

#[test]
fn a_failed_reconciliation_is_retried_with_growing_delays() {
    let platform = platform();
    let config = config();
    let file = config.dir().join("tokens");
    write(&file, "another-token\n").unwrap();
    let config = config.unset("access.api_tokens").set("access.api_tokens_file", &format!("'{}'", file.display()));
    let (shim, config) = Shim::under(config);
    let config = looking_for_gaps(config, &platform);

    shim.set_clock_ahead(2 * HOUR);
    let bridge = config.start();
    shim.set_clock_ahead(3 * HOUR);
    let log = bridge.log();
    let said = |what: &str| log.so_far().iter().filter(|line| line.contains(what)).count();
    eventually("it is refused", || said("cannot reconcile a gap") == 1);
    let begun = Instant::now();
    eventually("it tries again", || said("cannot reconcile a gap") >= 4);
    // At least 1, 2 and 4 s between them.
    assert!(begun.elapsed() > Duration::from_millis(6_500), "{:?}", begun.elapsed());
    write(&file, format!("{API_TOKEN}\n")).unwrap();
    eventually("it is reconciled once it can be", || said("\"gap reconciled\"") == 1);
}

#[test]
fn a_bridge_that_is_killed_while_it_stores_candidates_has_each_once() {
    let (config, platform, at) = (config().fixed_address(), platform(), then());
    platform.limits(1_000, 5);
    (0..900).for_each(|n| platform.add_call(call(&format!("call {n}"), at + n)));
    let ended = reconcile(&config, &platform, &["--since", "2h", "--publish"]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    let mut kept = 1.0;
    for _ in 0..4 {
        let bridge = config.start();
        let records = || bridge.metric("sendbird_bridge_journal_records", &[]);
        // A fast disk has them all before it is killed for the fourth time.
        eventually("some are stored", || records() > kept || kept >= 2_701.0);
        kept = records();
        bridge.kill_9();
    }
    let bridge = config.start();
    eventually("all are stored", || bridge.events().len() >= 2_701);
    let again = reconcile(&config, &platform, &["--since", "2h", "--publish"]);
    assert_eq!(again.code(), Some(0), "{}", again.stderr());
    assert!(again.stdout().contains("2700 events are stored"), "{}", again.stdout());
    assert_eq!((events_by_fact(&bridge).len(), bridge.events().len()), (2_701, 2_701));
}

#[test]
fn backfill_beyond_the_offline_limit_waits_for_a_running_bridge() {
    let (config, platform, at) = (config(), platform(), then());
    platform.limits(1_000, 5);
    (0..1_900).for_each(|n| platform.add_call(call(&format!("call {n}"), at + n)));
    let ended = reconcile(&config, &platform, &["--since", "2h", "--publish"]);
    assert_eq!(ended.code(), Some(1), "{}", ended.stdout());
    assert!(ended.stderr().contains("5100 wait: is it running"), "{}", ended.stderr());
    let bridge = config.start();
    let ended = reconcile(&config, &platform, &["--resume"]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    eventually("all are stored", || bridge.metric("sendbird_bridge_journal_records", &[]) >= 5_701.0);
    assert_eq!((events_by_fact(&bridge).len(), bridge.events().len()), (5_701, 5_701));
}

#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod in_brokers {
    use super::*;
    use crate::sinks::for_each_broker;
    use crate::support::broker::Kind;

    for_each_broker! {
        a_reconciled_event_arrives_with_its_mark_in_either_form
    }

    fn a_reconciled_event_arrives_with_its_mark_in_either_form(kind: Kind) {
        let (structured, binary) = (kind.place().made(), kind.place().made());
        let (config, platform, at) = (config().unset("sinks.lines.type"), platform(), then());
        let config = binary.sink(structured.sink(config, "structured"), "binary");
        let config = config.set("sinks.binary.format", "'binary'");
        let bridge = config.start();
        platform.add_call(call("lost", at));
        let ended = reconcile(&config, &platform, &["--since", "2h", "--publish"]);
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
        eventually("they are taken in", || bridge.events().len() == 4);
        bridge.caught_up();
        let mark = format!("{}reconciled", kind.prefix("binary"));
        for (place, is_binary) in [(&structured, false), (&binary, true)] {
            let messages = place.consume();
            let of_lost: Vec<_> = messages.iter().filter(|message| message.key.contains("lost")).collect();
            assert_eq!((messages.len(), of_lost.len()), (4, 3), "in {:?}", place.kind);
            for message in of_lost {
                let header = message.headers.get(&mark).map(String::as_str);
                assert_eq!(header, is_binary.then_some("true"), "{:?}", message.headers);
                let inside = message.json().get("reconciled").cloned();
                assert_eq!(inside, (!is_binary).then_some(json!(true)));
            }
        }
    }
}
