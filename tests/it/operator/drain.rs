//! `journal drain`: what a replica that does not come back has left.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::bridge::{Bridge, Config, command, done};
use crate::support::eventually;
use crate::support::process::{Ended, Stdout};
use crate::support::samples::dial;

fn id(line: &str) -> String {
    serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned()
}

fn drain(of: &Config, arguments: &[&str]) -> Ended {
    command(of, &[&["journal", "drain"], arguments].concat())
}

/// A stopped bridge that has published none of these events.
fn stopped_with(events: u64) -> (Config, Vec<String>) {
    let bridge = Config::new().stdout_sink(Stdout::Closed).start();
    let ids = (0..events).map(|n| bridge.deliver(&dial(&format!("k{}", n % 7), n)).stored()).collect();
    let config = bridge.config().clone();
    assert_eq!(bridge.stop().code(), Some(0));
    (config, ids)
}

/// The same, and all of them are dead letters.
fn stopped_with_dead_letters(events: u64) -> (Config, Vec<String>) {
    let (config, sent) = stopped_with(events);
    // The sink is to have read them.
    let bridge = config.clone().stdout(Stdout::Closed).start();
    eventually("all are read", || {
        let state = rusqlite::Connection::open(config.dir().join("journal/state.db")).unwrap();
        let sql = "SELECT frontier FROM sinks WHERE sink = 'lines'";
        state.query_row(sql, [], |row| row.get::<_, i64>(0)).is_ok_and(|frontier| frontier == events as i64)
    });
    bridge.stop();
    let state = rusqlite::Connection::open(config.dir().join("journal/state.db")).unwrap();
    let sql = "INSERT INTO stuck (sink, position, since_ms, tries, reason, detail, target)
               VALUES ('lines', ?1, 1767225600000, 7, 'not_found', 'no such topic', '')";
    for position in 1..=events {
        state.execute(sql, [position as i64]).unwrap();
    }
    done(&config, &["stuck", "set-aside", "--all"]);
    (config, sent)
}

fn pending(bridge: &Bridge) -> f64 {
    bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", "lines")])
}

#[test]
fn everything_pending_is_published_once_and_nothing_is_left() {
    let (config, sent) = stopped_with(300);
    let ended = drain(&config, &[]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert_eq!(ended.stdout.iter().map(|line| id(line)).collect::<Vec<_>>().len(), sent.len());
    let mut published: Vec<String> = ended.stdout.iter().map(|line| id(line)).collect();
    let mut expected = sent;
    published.sort();
    expected.sort();
    assert_eq!(published, expected);
    assert!(ended.stderr().contains("nothing is left"), "{}", ended.stderr());
    // What was published is known as published: by a second drain, and by a bridge.
    let again = drain(&config, &[]);
    assert_eq!((again.code(), again.stdout.len()), (Some(0), 0), "{}", again.stderr());
    let bridge = config.stdout(Stdout::Read).start();
    assert_eq!(pending(&bridge), 0.0);
}

#[test]
fn a_replay_is_published_too() {
    let (config, sent) = stopped_with(3);
    assert_eq!(drain(&config, &[]).code(), Some(0));
    done(&config, &["replay", "--sink", "lines", "--id", &sent[1]]);
    let ended = drain(&config, &[]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert_eq!(ended.stdout.iter().map(|line| id(line)).collect::<Vec<_>>(), [sent[1].clone()]);
}

#[test]
fn requeued_dead_letters_are_published_too() {
    let (config, sent) = stopped_with_dead_letters(2);
    done(&config, &["dead-letters", "requeue", "--all"]);
    let ended = drain(&config, &[]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert_eq!(ended.stdout.iter().map(|line| id(line)).collect::<Vec<_>>(), sent);
}

#[test]
fn dead_letters_are_left_until_they_are_exported() {
    let (config, sent) = stopped_with_dead_letters(2);
    let ended = drain(&config, &[]);
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stderr().contains("left: 2 dead letters; requeue or discard them"), "{}", ended.stderr());

    let file = config.dir().join("dead-letters.jsonl");
    let argument = file.to_str().unwrap();
    fs::write(&file, "kept").unwrap();
    assert_eq!(drain(&config, &["--export", argument]).code(), Some(64), "a file that is there is not overwritten");
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    fs::remove_file(&file).unwrap();

    let ended = drain(&config, &["--export", argument]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    let exported: Vec<Value> =
        fs::read_to_string(&file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = exported.iter().map(|line| line["envelope"]["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [&sent[0], &sent[1]]);
    assert_eq!((&exported[0]["sink"], &exported[0]["reason"]), (&"lines".into(), &"not_found".into()));
    assert_eq!(done(&config, &["dead-letters", "list"]), "0 dead letters");
    assert_eq!(drain(&config, &[]).code(), Some(0));
}

#[test]
fn what_cannot_be_published_within_the_time_limit_is_named_and_kept() {
    let (config, sent) = stopped_with(300);
    let begun = Instant::now();
    let ended = config.clone().stdout(Stdout::Closed).process(&["journal", "drain", "--timeout", "1s"]).wait();
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(ended.stderr().contains("left: lines: 300 pending, 0 of them stuck, 0 to resend"), "{}", ended.stderr());
    let ended = drain(&config, &[]);
    assert_eq!((ended.code(), ended.stdout.len()), (Some(0), sent.len()), "{}", ended.stderr());
}

#[test]
fn a_running_bridge_and_a_directory_without_a_journal_are_refused() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    let ended = drain(bridge.config(), &[]);
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stderr().contains("another bridge holds its lock"), "{}", ended.stderr());
    let ended = drain(&Config::new().stdout_sink(Stdout::Read), &[]);
    assert_eq!(ended.code(), Some(1));
    assert!(!ended.stderr().contains("nothing is left"), "{}", ended.stderr());
}
