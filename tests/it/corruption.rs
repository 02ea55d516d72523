//! A disk that gives back something else than was written: damage is named and set apart, the rest stays readable.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::support::bridge::{Bridge, Config};
use crate::support::eventually;
use crate::support::http::Request;
use crate::support::process::Stdout;
use crate::support::samples::{dial, large};

const PAGE: usize = 4096;

/// A stopped bridge's journal with 300 events of about 1.5 KB, none of which a sink has had.
fn stopped() -> (Config, Vec<String>) {
    let config = Config::new().stdout_sink(Stdout::Closed);
    let bridge = config.start();
    let ids = (1..=300).map(|at| bridge.deliver(&large(&format!("key-{at:03}-"), at, 1_000)).stored()).collect();
    bridge.stop();
    assert!(!config.dir().join("journal/journal.db-wal").exists(), "a clean stop leaves one file");
    (config.stdout(Stdout::Read), ids)
}

fn file(config: &Config) -> PathBuf {
    config.dir().join("journal/journal.db")
}

/// Where the key of this position's event stands in its row, with the type and the payload after it.
fn row_of(bytes: &[u8], position: u64) -> usize {
    let key = format!("key-{position:03}-");
    let is_row = |window: &[u8]| window.starts_with(key.as_bytes()) && window[key.len()].is_ascii_alphabetic();
    // A page that was split keeps a copy that nothing refers to; it comes earlier in the file.
    bytes.windows(key.len() + 1).rposition(is_row).expect("an event")
}

/// Overwrites the page of an event, as a bad sector would.
fn spoil_page(config: &Config, position: u64) {
    let mut bytes = fs::read(file(config)).unwrap();
    let page = row_of(&bytes, position) / PAGE * PAGE;
    bytes[page..page + PAGE].fill(0xff);
    fs::write(file(config), bytes).unwrap();
}

/// The positions that `journal verify` calls damaged.
fn named(config: &Config) -> BTreeSet<u64> {
    let ended = config.process(&["journal", "verify"]).wait();
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
    let position = |line: &String| line.strip_prefix("position ")?.split(' ').next()?.parse().ok();
    ended.stderr.iter().filter(|line| line.ends_with("damaged")).filter_map(position).collect()
}

/// The bridge starts, serves and prints all but the damaged, names those in the feed and sets them aside.
fn lives_with(config: &Config, ids: &[String], damaged: &BTreeSet<u64>) -> Bridge {
    let bridge = config.start();
    bridge.caught_up();
    let right: Vec<&String> = (1u64..).zip(ids).filter(|(at, _)| !damaged.contains(at)).map(|(_, id)| id).collect();
    let mut feed = bridge.feed(&Request::get("/events?follow=false"));
    let events = feed.rest();
    assert_eq!(events.iter().map(|event| event.id()).collect::<Vec<_>>(), right);
    let comments: Vec<String> = damaged.iter().map(|position| format!("position {position} is damaged")).collect();
    assert_eq!(feed.comments, comments);
    eventually("the others are printed", || bridge.printed().count() >= right.len());
    let printed: Vec<serde_json::Value> =
        bridge.printed().so_far().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Between keys there is no order.
    let printed: BTreeSet<&str> = printed.iter().map(|envelope| envelope["id"].as_str().unwrap()).collect();
    assert_eq!(printed, right.iter().map(|id| id.as_str()).collect());
    let dead = || bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", "lines")]);
    eventually("the damaged are dead letters", || dead() == damaged.len() as f64);
    bridge.deliver(&dial("fresh", 1)).stored();
    assert_eq!(bridge.events().last().unwrap().position, ids.len() as u64 + 1, "no position is used twice");
    bridge
}

#[test]
fn flipped_bytes_cost_their_event_alone() {
    let (config, ids) = stopped();
    let mut bytes = fs::read(file(&config)).unwrap();
    let mut damaged = BTreeSet::new();
    for position in [1, 2, 77, 150, 299, 300] {
        let inside_of_the_payload = row_of(&bytes, position) + 200;
        bytes[inside_of_the_payload] ^= 0x20;
        damaged.insert(position);
    }
    fs::write(file(&config), bytes).unwrap();
    assert_eq!(named(&config), damaged);
    lives_with(&config, &ids, &damaged);
}

#[test]
fn a_lost_page_costs_its_events_alone() {
    for position in [150, 1] {
        let (config, ids) = stopped();
        spoil_page(&config, position);
        let damaged = named(&config);
        assert!(damaged.contains(&position) && damaged.len() <= 4, "{position}: {damaged:?}");
        lives_with(&config, &ids, &damaged);
    }
}

#[test]
fn without_its_newest_page_a_journal_is_refused_with_a_way_out() {
    let (config, _) = stopped();
    spoil_page(&config, 300);
    let before = fs::read(file(&config)).unwrap();
    let ended = config.refused();
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
    let said = ended.stderr();
    assert!(said.contains("journal.db") && said.contains("journal verify") && said.contains("journal.dir"), "{said}");
    assert_eq!(fs::read(file(&config)).unwrap(), before, "it is left alone");
    assert!(named(&config).contains(&300));
}

#[test]
fn garbage_at_the_end_of_the_write_ahead_log_is_cut_off() {
    let config = Config::new();
    let bridge = config.start();
    let ids: Vec<String> = (1..=20).map(|at| bridge.deliver(&dial("a", at)).stored()).collect();
    bridge.kill_9();
    let log = config.dir().join("journal/journal.db-wal");
    let whole = fs::read(&log).unwrap();
    let torn = [&whole[..], &whole[whole.len() - 3 * PAGE..], &[0xa5; 3 * PAGE + 17]].concat();
    fs::write(&log, torn).unwrap();
    let bridge = config.start();
    let found: Vec<String> = bridge.events().iter().map(|event| event.id().to_owned()).collect();
    assert_eq!(found, ids);
    bridge.deliver(&dial("a", 20)).duplicate();
    bridge.deliver(&dial("a", 21)).stored();
}
