//! What an operator does about events that cannot be published, and about a journal that is damaged: `stuck`,
//! `dead-letters requeue`, `journal salvage`.
//!
//! The bridge calls an event stuck after 30 s, and only about a broker; here its row is written by the test.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::bridge::{Bridge, Config, command, done};
use crate::support::crash_state::segments;
use crate::support::eventually;
use crate::support::process::Stdout;
use crate::support::samples::dial;

fn state(config: &Config) -> rusqlite::Connection {
    rusqlite::Connection::open(config.dir().join("journal/state.db")).unwrap()
}

/// Writes down that an event is stuck.
fn is_stuck(config: &Config, position: i64, target: &str) {
    let sql = "INSERT INTO stuck (sink, position, since_ms, tries, reason, detail, target)
               VALUES ('lines', ?1, 1767225600000, 7, 'not_found', 'no such topic', ?2)";
    state(config).execute(sql, rusqlite::params![position, target]).unwrap();
}

/// A bridge whose sink has read six events, three of "a", two of "b" and one of "c", and published none.
fn bridge_without_reader() -> (Bridge, Vec<String>) {
    let bridge = Config::new().stdout_sink(Stdout::Closed).start();
    let keys = ["a", "b", "a", "a", "b", "c"].iter().zip(1..);
    let ids = keys.map(|(key, at)| bridge.deliver(&dial(key, at)).stored()).collect();
    eventually("all are read", || {
        let sql = "SELECT frontier FROM sinks WHERE sink = 'lines'";
        state(bridge.config()).query_row(sql, [], |row| row.get::<_, i64>(0)).is_ok_and(|frontier| frontier == 6)
    });
    (bridge, ids)
}

fn ids(lines: &[String]) -> Vec<String> {
    let envelopes = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    envelopes.map(|envelope| envelope["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn stuck_events_of_a_stopped_bridge_are_listed_and_set_aside() {
    let (bridge, sent) = bridge_without_reader();
    let config = bridge.config().clone();
    bridge.stop();
    is_stuck(&config, 1, "topic \"t\"");
    is_stuck(&config, 2, "topic \"t\"");
    is_stuck(&config, 6, "");

    let list = done(&config, &["stuck", "list"]);
    assert!(list.starts_with("SINK   TARGET            REASON     STUCK  WAIT BEHIND  SINCE"), "{list}");
    assert!(list.contains("lines  topic \"t\"         not_found  2      3 "), "{list}");
    assert!(list.contains("lines  the event itself  not_found  1      0 "), "{list}");
    assert!(list.contains("3 events stuck, and 3 later events of their keys waiting behind"), "{list}");
    let one = done(&config, &["stuck", "list", "--limit", "1"]);
    assert!(one.contains(&sent[0]) && !one.contains(&sent[1]) && one.contains("2 more are not listed"), "{one}");
    let json = done(&config, &["stuck", "list", "--output", "json", "--key", "a"]);
    let found: Value = serde_json::from_str(&json).unwrap();
    let expected = serde_json::json!({
        "sink": "lines", "position": 1, "id": sent[0], "key": "a", "type": "com.sendbird.calls.direct_call.dial",
        "since": "2026-01-01T00:00:00.000Z", "tries": 7, "reason": "not_found", "detail": "no such topic",
        "target": "topic \"t\"", "waiting_behind": 2,
    });
    assert_eq!(found, expected);
    assert_eq!(done(&config, &["stuck", "list", "--reason", "timeout"]), "0 events are stuck");
    let shown = command(&config, &["stuck", "show", &sent[5]]);
    assert_eq!(ids(&shown.stdout), [&*sent[5]]);
    assert!(shown.stderr().contains("the event itself"), "{}", shown.stderr());

    assert_eq!(done(&config, &["stuck", "set-aside", "--key", "a"]), "1 set aside, 0 published meanwhile");
    let waiting_too = done(&config, &["stuck", "set-aside", "--type", "direct_call:dial", "--limit", "1", "--waiting"]);
    assert_eq!(waiting_too, "2 set aside, 0 published meanwhile", "of \"b\"");
    let listed = done(&config, &["dead-letters", "list", "--output", "json"]);
    let dead_letters: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let positions: Vec<u64> =
        dead_letters.iter().map(|dead_letter| dead_letter["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, [1, 2, 5]);
    let reasons: Vec<&str> = dead_letters.iter().map(|dead_letter| dead_letter["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["not_found", "not_found", "set_aside"], "the last had not failed");

    let bridge = config.stdout(Stdout::Read).start();
    eventually("the rest is printed", || bridge.printed().count() == 3);
    let mut rest = ids(&bridge.printed().so_far());
    assert!(rest.iter().position(|id| *id == sent[2]) < rest.iter().position(|id| *id == sent[3]), "in order");
    rest.sort();
    let mut expected = vec![sent[2].clone(), sent[3].clone(), sent[5].clone()];
    expected.sort();
    assert_eq!(rest, expected);
    eventually("what is published is not stuck", || done(bridge.config(), &["stuck", "list"]) == "0 events are stuck");
    assert_eq!(done(bridge.config(), &["dead-letters", "requeue", "--all"]), "3 requeued");
    eventually("they are printed", || bridge.printed().count() == 6);
}

#[test]
fn stuck_events_are_dead_lettered_unless_published_meanwhile() {
    let (bridge, sent) = bridge_without_reader();
    is_stuck(bridge.config(), 1, "topic \"t\"");
    let set_aside = done(bridge.config(), &["stuck", "set-aside", "--id", &sent[0], "--waiting"]);
    assert_eq!(set_aside, "3 set aside, 0 published meanwhile");
    let dead = || bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", "lines")]);
    eventually("they are dead letters", || dead() == 3.0);
    let config = bridge.config().clone();
    bridge.stop();

    let bridge = config.stdout(Stdout::Read).start();
    eventually("the rest is printed", || bridge.printed().count() == 3);
    bridge.caught_up();
    is_stuck(bridge.config(), 2, "topic \"t\"");
    assert_eq!(done(bridge.config(), &["stuck", "set-aside", "--all"]), "0 set aside, 1 published meanwhile");
    assert_eq!(done(bridge.config(), &["stuck", "list"]), "0 events are stuck");
}

#[test]
fn dead_letters_that_cannot_be_requeued_are_counted_and_kept() {
    let (bridge, sent) = bridge_without_reader();
    let config = bridge.config().clone();
    bridge.stop();
    (1..=3).for_each(|position| is_stuck(&config, position, ""));
    assert_eq!(done(&config, &["stuck", "set-aside", "--all"]), "3 set aside, 0 published meanwhile");
    state(&config).execute("UPDATE dead_letters SET payload = x'7b7d' WHERE position = 1", []).unwrap();

    let ended = command(&config, &["dead-letters", "requeue", "--id", &sent[0]]);
    assert_eq!((ended.code(), ended.stdout()), (Some(1), "0 requeued, 1 left out, as their events are damaged".into()));
    assert_eq!(done(&config, &["dead-letters", "requeue", "--id", &sent[1]]), "1 requeued");
    let all = done(&config, &["dead-letters", "requeue", "--all"]);
    let expected = "1 requeued, 1 requeued before, and not published yet, 1 left out, as their events are damaged";
    assert_eq!(all, expected);

    // Under another name the sink is another one.
    let renamed = config.unset("sinks.lines.type").set("sinks.others.type", "'stdout'");
    renamed.start().stop();
    let all = done(&renamed, &["dead-letters", "requeue", "--sink", "lines", "--all"]);
    assert_eq!(all, "0 requeued, 3 left out, as their sinks are not configured");
    assert_eq!(command(&renamed, &["dead-letters", "requeue", "--id", &sent[1]]).code(), Some(1));
    assert_eq!(command(&renamed, &["replay", "--sink", "lines", "--all"]).code(), Some(64));
    assert_eq!(done(&renamed, &["dead-letters", "discard", "--sink", "lines", "--all"]), "3 discarded");
}

/// Changes one byte of the event with this key.
fn damage(config: &Config, key: &str) {
    for log in segments(config) {
        let mut bytes = fs::read(&log).unwrap();
        if let Some(at) = bytes.windows(key.len()).rposition(|window| window == key.as_bytes()) {
            bytes[at] ^= 1;
            return fs::write(&log, bytes).unwrap();
        }
    }
    panic!("no event with the key {key}");
}

#[test]
fn salvage_keeps_readable_events_and_names_the_lost_ones() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    (1..=20).for_each(|at| drop(bridge.deliver(&dial(&format!("key-{at:02}-"), at)).stored()));
    bridge.caught_up();
    let config = bridge.config().clone();
    let to = config.dir().join("salvaged");
    let to = to.to_str().unwrap();
    let running = command(&config, &["journal", "salvage", "--to", to]);
    assert_eq!(running.code(), Some(1));
    assert!(running.stderr().contains("holds its lock"), "{}", running.stderr());
    bridge.stop();
    damage(&config, "key-07-");

    // The id of a damaged event is read from the index, which the newest segment has not yet.
    let verified = command(&config, &["journal", "verify"]);
    assert_eq!(verified.code(), Some(1), "{}", verified.stderr());
    assert!(verified.stderr().contains("position 7 (id unknown, type unknown): damaged"), "{}", verified.stderr());
    assert!(verified.stderr().contains("19 events OK, 1 damaged"), "{}", verified.stderr());
    let verified = command(&config, &["journal", "verify", "--output", "json"]);
    assert_eq!(verified.code(), Some(1), "{}", verified.stderr());
    let lines: Vec<Value> = verified.stdout.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let fault = json!({ "fault": "damaged", "position": 7, "id": null, "type": null });
    assert_eq!(lines, [fault, json!({ "intact": 19 })]);

    let same = config.dir().join("journal");
    assert_eq!(command(&config, &["journal", "salvage", "--to", same.to_str().unwrap()]).code(), Some(64));
    let missing = ["journal", "salvage", "--dir", "/nonexistent", "--to", to];
    assert_eq!(command(&config, &missing).code(), Some(1));
    assert!(!Path::new("/nonexistent").exists());

    let salvaged = command(&config, &["journal", "salvage", "--to", to]);
    assert_eq!(salvaged.code(), Some(0), "{}", salvaged.stderr());
    assert_eq!(salvaged.stdout(), format!("19 events written to {to}, 1 damaged and lost"));
    assert!(salvaged.stderr().contains("position 7 (id unknown, type unknown): lost"), "{}", salvaged.stderr());
    assert_eq!(done(&config, &["journal", "verify", "--dir", to]), "19 events OK");
    let twice = command(&config, &["journal", "salvage", "--to", to]);
    assert_eq!(twice.code(), Some(1), "{}", twice.stderr());

    let bridge = config.set("journal.dir", &format!("'{to}'")).start();
    bridge.deliver(&dial("new", 1)).stored();
    eventually("what is new is printed", || bridge.printed().count() > 0);
    let positions: Vec<u64> = bridge.events().iter().map(|event| event.position).collect();
    assert_eq!(positions, (1..=21).filter(|position| *position != 7).collect::<Vec<u64>>());
    assert_eq!(bridge.stop().stdout.len(), 1, "what was published is not published a second time");
}
