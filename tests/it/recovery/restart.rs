//! `kill -9` and what is left: every delivery that was answered 200, once, in order by key.

use std::collections::BTreeMap;
use std::fs;

use crate::support::bridge::Config;
use crate::support::crash_state::{segments, verify};
use crate::support::eventually;
use crate::support::load::{CONCURRENCY, Load, stored_by};
use crate::support::oracle::{Arrived, judge};
use crate::support::process::Stdout;
use crate::support::samples::dial;

#[test]
fn what_was_answered_200_survives_kill_9_once_and_in_order() {
    let config = Config::new().fixed_address();
    let mut bridge = config.start();
    let load = Load::start(&bridge, 3_000, 400);
    for _ in 0..5 {
        eventually("deliveries are stored", || stored_by(&bridge) >= 100.0);
        bridge.kill_9();
        bridge = config.start();
        assert!(bridge.is_ready(), "no repair is needed");
        assert!(load.is_running(), "the load ended too early to prove anything");
    }
    let sent = load.finish().sent;
    assert_eq!(sent.len(), 3_000);
    let answered = sent.iter().filter(|sent| sent.id.is_some()).count();
    assert!(answered > 1_000, "only {answered} of 3000 were answered 200");
    let events = bridge.events();
    let positions: Vec<u64> = events.iter().map(|event| event.position).collect();
    assert_eq!(positions, (1..=events.len() as u64).collect::<Vec<_>>(), "positions have no gaps");
    let arrived: Vec<Arrived> = events.iter().map(|event| Arrived::envelope(&event.envelope)).collect();
    judge(&sent, &arrived).exactly_once();
}

/// Of a delivery that was under way when its sender crashed nobody knows the answer: it may have been stored, once.
#[test]
fn a_sender_that_crashes_makes_no_event_lost_double_or_out_of_order() {
    const CRASHES: usize = 5;
    /// How many are stored by each load at least.
    const EACH: u32 = 300;
    let bridge = Config::new().start();
    let (mut sent, mut answered) = (Vec::new(), 0);
    for _ in 0..CRASHES {
        let load = Load::as_fast_as_answered(&bridge, 100_000, CONCURRENCY);
        let stored = stored_by(&bridge);
        eventually("deliveries are stored", || stored_by(&bridge) >= stored + f64::from(EACH));
        assert!(load.is_running(), "the load ended too early to prove anything");
        let crashed = load.crash();
        answered += crashed.answers.answered();
        sent.extend(crashed.sent);
    }
    let last = Load::start(&bridge, EACH.into(), 1_000).finish();
    assert!(last.is_all_200());
    answered += last.answers.answered();
    sent.extend(last.sent);
    let arrived: Vec<Arrived> = bridge.events().iter().map(|event| Arrived::envelope(&event.envelope)).collect();
    let verdict = judge(&sent, &arrived).exactly_once();
    let unknown = sent.len() as u64 - answered;
    eprintln!(
        "sender crashed {CRASHES} times: sent {}, answered 200 {answered}, answer unknown {unknown}, of these stored {}, \
         lost 0",
        sent.len(),
        verdict.events as u64 - answered,
    );
    assert!(sent.len() >= EACH as usize * (CRASHES + 1), "only {} were sent", sent.len());
    assert!(unknown <= (CONCURRENCY * CRASHES) as u64, "{unknown} have no answer");
}

#[test]
fn a_sink_goes_on_where_it_was_after_kill_9() {
    let config = Config::new().fixed_address().stdout_sink(Stdout::Read);
    let mut bridge = config.start();
    let load = Load::start(&bridge, 2_000, 400);
    let mut arrived = Vec::new();
    let read = |lines: Vec<String>, arrived: &mut Vec<Arrived>| {
        // The line that the crash cut off was never acknowledged.
        let whole = lines.iter().filter_map(|line| serde_json::from_str(line).ok());
        arrived.extend(whole.map(|envelope| Arrived::envelope(&envelope)));
    };
    for _ in 0..3 {
        let printed = bridge.printed();
        eventually("events are printed", || printed.count() >= 100);
        read(bridge.kill_9().stdout, &mut arrived);
        bridge = config.start();
        assert!(load.is_running(), "the load ended too early to prove anything");
    }
    let sent = load.finish().sent;
    bridge.caught_up();
    let stored = bridge.events().len();
    read(bridge.stop().stdout, &mut arrived);
    let verdict = judge(&sent, &arrived).clean();
    assert_eq!(verdict.events, stored);
    assert!(verdict.again < 3_000, "{} events were printed again after three crashes", verdict.again);
}

#[test]
fn duplicates_are_known_after_a_crash_and_after_a_stop() {
    let config = Config::new();
    let bridge = config.start();
    let ids: Vec<String> = (0..50).map(|n| bridge.deliver(&dial("a", n)).stored()).collect();
    bridge.kill_9();
    let bridge = config.start();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(&bridge.deliver(&dial("a", n as u64)).duplicate(), id);
    }
    assert_eq!(bridge.stop().code(), Some(0));
    let bridge = config.start();
    assert_eq!(&bridge.deliver(&dial("a", 0)).duplicate(), &ids[0]);
    assert_eq!(bridge.events().len(), 50);
    assert_eq!(bridge.metric("sendbird_bridge_dedup_ids", &[]), 50.0);
}

#[test]
fn a_second_bridge_on_the_same_directory_is_refused() {
    let config = Config::new();
    let bridge = config.start();
    let ended = config.refused();
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
    let said = ended.stderr();
    assert!(said.contains("another bridge holds its lock") && said.contains("journal"), "{said}");
    bridge.deliver(&dial("a", 1)).stored();
    bridge.kill_9();
    config.start().deliver(&dial("a", 1)).duplicate();
}

#[test]
fn the_feed_is_the_same_after_a_crash() {
    let config = Config::new();
    let bridge = config.start();
    (0..200).for_each(|n| drop(bridge.deliver(&dial(&format!("k{}", n % 5), n)).stored()));
    let before: Vec<String> = bridge.events().into_iter().map(|event| event.line).collect();
    bridge.kill_9();
    let bridge = config.start();
    let after: Vec<String> = bridge.events().into_iter().map(|event| event.line).collect();
    assert_eq!(before, after);
    assert_eq!(bridge.deliver(&dial("new", 1)).accepted().1, "stored");
    assert_eq!(bridge.events().last().unwrap().position, 201);
}

/// What the files of the journal's directory hold, but for the lock file.
fn contents(config: &Config) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(config.dir().join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let files = files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()));
    files.filter(|(name, _)| name != "lock" && !name.ends_with("-shm")).collect()
}

/// The bridge does not start, says all of this, and leaves the files as they are. Nor do the commands read them.
#[track_caller]
fn is_refused(config: &Config, words: &[&str]) {
    let before = contents(config);
    for arguments in [&["serve"][..], &["journal", "stats"], &["journal", "verify"]] {
        let ended = config.process(arguments).wait();
        assert_eq!(ended.code(), Some(1), "{arguments:?}: {}", ended.stderr());
        let said = ended.stderr();
        assert!(words.iter().all(|word| said.contains(word)), "{arguments:?}: {said}");
    }
    assert!(contents(config) == before, "the files have been changed");
}

#[test]
fn a_state_file_of_another_program_is_refused_and_left_alone() {
    let config = Config::new();
    let bridge = config.start();
    bridge.deliver(&dial("a", 1)).stored();
    bridge.stop();
    let file = config.dir().join("journal/state.db");
    fs::remove_file(&file).unwrap();
    // With a segment beside it, it would be the bridge's own file with a damaged header.
    segments(&config).iter().for_each(|path| fs::remove_file(path).unwrap());
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("CREATE TABLE things (one)").unwrap();
    other.close().unwrap();
    is_refused(&config, &["expected a journal", "state.db", "another program's database"]);
}

/// `tests/fixtures/journal` keeps a journal that a version wrote whose format this one does not read.
#[test]
fn a_journal_of_the_first_edition_is_refused_with_a_way_out() {
    let config = Config::new();
    let journal = config.dir().join("journal");
    fs::create_dir(&journal).unwrap();
    fs::copy("tests/fixtures/journal/v1.db", journal.join("journal.db")).unwrap();
    let way_out = "start the version that wrote it until every sink's sendbird_bridge_sink_pending_records is 0, stop it, \
                   and remove journal.db";
    is_refused(&config, &["expected a journal of format 2", "found journal.db of format 1", way_out]);
    fs::remove_file(journal.join("journal.db")).unwrap();
    config.start().deliver(&dial("a", 1)).stored();
}

/// Where a segment's header says its format, and where its checksum stands.
const MAJOR: usize = 8;
const MINOR: usize = 10;
const CHECKSUM: usize = 60;

/// A stopped bridge's journal with one event; its id.
fn stopped() -> (Config, String) {
    let config = Config::new();
    let bridge = config.start();
    let id = bridge.deliver(&dial("a", 1)).stored();
    bridge.stop();
    (config, id)
}

/// Writes another format into the header of each segment.
fn set_format(config: &Config, at: usize, version: u8) {
    for path in segments(config) {
        let mut bytes = fs::read(&path).unwrap();
        // One that was made ahead has no header yet.
        if bytes.is_empty() {
            continue;
        }
        bytes[at] = version;
        let checksum = crc32fast::hash(&bytes[..CHECKSUM]);
        bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.to_le_bytes());
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn segments_of_another_major_format_are_refused() {
    for major in [1, 3] {
        let (config, id) = stopped();
        set_format(&config, MAJOR, major);
        is_refused(
            &config,
            &["expected a journal of format 2", &format!("but found {major}"), "use the version that wrote it"],
        );
        set_format(&config, MAJOR, 2);
        assert_eq!(config.start().deliver(&dial("a", 1)).duplicate(), id);
    }
}

/// So that a release can be rolled back: what a later one of the same major format adds, this one can do without.
#[test]
fn segments_of_another_minor_format_are_read() {
    for minor in [1, 255] {
        let (config, id) = stopped();
        set_format(&config, MINOR, minor);
        let bridge = config.start();
        assert_eq!(bridge.events().iter().map(|event| event.id().to_owned()).collect::<Vec<_>>(), [&*id]);
        assert_eq!(bridge.deliver(&dial("a", 1)).duplicate(), id);
        bridge.deliver(&dial("a", 2)).stored();
        bridge.stop();
        verify(&config);
    }
}

#[test]
fn a_state_file_of_another_major_format_is_refused_unless_the_segments_are_of_this_one() {
    for major in [1, 3] {
        let (config, id) = stopped();
        let set = |version: i64| {
            let state = rusqlite::Connection::open(config.dir().join("journal/state.db")).unwrap();
            state.pragma_update(None, "user_version", version).unwrap();
            state.close().unwrap();
        };
        // The segments' formats have checksums, and what they say is believed.
        set(major);
        assert_eq!(config.start().deliver(&dial("a", 1)).duplicate(), id);
        verify(&config);
        set(major);
        segments(&config).iter().for_each(|path| fs::remove_file(path).unwrap());
        is_refused(&config, &["expected a journal of format 2", "state.db", &format!("but found {major}")]);
    }
}

#[test]
fn an_id_is_forgotten_when_it_leaves_the_window() {
    let bridge = Config::new().set("dedup.window", "'10s'").start();
    let id = bridge.deliver(&dial("a", 1)).stored();
    assert_eq!(bridge.deliver(&dial("a", 1)).duplicate(), id);
    let at = std::time::Instant::now();
    let mut again = (String::new(), String::new());
    eventually("it is stored again", || {
        again = bridge.deliver(&dial("a", 1)).accepted();
        again.1 == "stored"
    });
    assert!(at.elapsed() > std::time::Duration::from_secs(8), "forgotten after {:?}", at.elapsed());
    assert_eq!(again.0, id, "under the same id");
    assert_eq!(bridge.events().len(), 2);
}
