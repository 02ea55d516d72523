//! The operator's commands beside a running bridge: `replay`, `dead-letters`, `journal`.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::bridge::{Config, command, done};
use crate::support::eventually;
use crate::support::process::Stdout;
use crate::support::samples::dial;

fn envelope(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

#[test]
fn a_replay_comes_again_with_its_ids_and_a_mark() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    let ids = ["a", "b", "a"].iter().zip(1_767_225_600_000..).map(|(key, at)| bridge.deliver(&dial(key, at)).stored());
    let ids: Vec<String> = ids.collect();
    eventually("they are printed", || bridge.printed().count() == 3);

    let counted = done(&bridge, &["replay", "--sink", "lines", "--key", "a", "--dry-run"]);
    assert!(counted.starts_with("2 events would be"), "{counted}");
    let queued = done(&bridge, &["replay", "--sink", "lines", "--key", "a"]);
    assert!(queued.starts_with("2 events queued for lines as replay 1"), "{queued}");
    eventually("they are printed again", || bridge.printed().count() == 5);
    let again: Vec<Value> = bridge.printed().so_far()[3..].iter().map(|line| envelope(line)).collect();
    let again_ids: Vec<&str> = again.iter().map(|envelope| envelope["id"].as_str().unwrap()).collect();
    assert_eq!(again_ids, [&ids[0], &ids[2]]);
    assert!(again.iter().all(|envelope| envelope["replayed"] == true));
    let first = envelope(&bridge.printed().so_far()[0]);
    assert!(first.get("replayed").is_none(), "only a replay is marked");

    done(&bridge, &["replay", "--sink", "lines", "--id", &ids[1]]);
    eventually("it is printed again", || bridge.printed().count() == 6);
    done(&bridge, &["replay", "--sink", "lines", "--type", "direct_call:dial", "--since", "1h", "--rate", "1000"]);
    eventually("all are printed again", || bridge.printed().count() == 9);
    eventually("it is counted", || bridge.metric("sendbird_bridge_sink_resent_total", &[("sink", "lines")]) == 6.0);
    eventually("nothing is left", || bridge.status()["sinks"][0]["resends_pending"] == 0);
    let none = done(&bridge, &["replay", "--sink", "lines", "--until", "1h"]);
    assert!(none.starts_with("0 events"), "{none}");
}

#[test]
fn a_replay_is_as_fast_as_wanted_and_seen_while_it_lasts() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    (0..5).for_each(|at| drop(bridge.deliver(&dial("a", 1_767_225_600_000 + at)).stored()));
    eventually("they are printed", || bridge.printed().count() == 5);
    let begun = Instant::now();
    done(&bridge, &["replay", "--sink", "lines", "--all", "--rate", "2"]);
    eventually("it has begun", || bridge.printed().count() > 5);
    assert!(bridge.status()["sinks"][0]["resends_pending"].as_u64().unwrap() > 0);
    assert!(bridge.metric("sendbird_bridge_sink_resends_pending", &[("sink", "lines")]) > 0.0);
    eventually("all are printed again", || bridge.printed().count() == 10);
    // The fifth is due two seconds after the first, and was asked for after `begun`.
    assert!(begun.elapsed() >= Duration::from_secs(2), "after {:?}", begun.elapsed());
    eventually("nothing is left", || {
        bridge.metric("sendbird_bridge_sink_resends_pending", &[("sink", "lines")]) == 0.0
    });
}

#[test]
fn a_replay_is_listed_and_cancelled_with_and_without_a_bridge() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    (0..20).for_each(|at| drop(bridge.deliver(&dial("a", 1_767_225_600_000 + at)).stored()));
    eventually("they are printed", || bridge.printed().count() == 20);
    done(&bridge, &["replay", "--sink", "lines", "--all", "--rate", "1"]);
    done(&bridge, &["replay", "--sink", "lines", "--key", "a", "--rate", "1"]);
    let listed = done(&bridge, &["replay", "list", "--output", "json"]);
    let listed: Vec<Value> = listed.lines().map(envelope).collect();
    let numbers: Vec<u64> = listed.iter().map(|replay| replay["id"].as_u64().unwrap()).collect();
    assert_eq!((numbers, &listed[0]["total"], &listed[0]["rate"]), (vec![1, 2], &20.into(), &1.into()));
    eventually("what is done is counted", || {
        let first = envelope(done(&bridge, &["replay", "list", "--output", "json"]).lines().next().unwrap());
        let (done, to_come) = (first["done"].as_u64().unwrap(), first["to_come"].as_u64().unwrap());
        assert_eq!(done + to_come, 20);
        done > 0
    });
    let cancelled = done(&bridge, &["replay", "cancel", "1"]);
    assert!(
        cancelled.starts_with("replay 1 to lines cancelled, ") && cancelled.ends_with(" of 20 done"),
        "{cancelled}"
    );
    assert_eq!(command(&bridge, &["replay", "cancel", "1"]).code(), Some(1));
    assert!(done(&bridge, &["replay", "list"]).ends_with("1 replay under way"));
    let cancelled = done(&bridge, &["replay", "cancel", "--sink", "lines"]);
    assert!(cancelled.starts_with("replay 2 to lines cancelled"), "{cancelled}");
    eventually("nothing is to come", || {
        bridge.metric("sendbird_bridge_sink_resends_pending", &[("sink", "lines")]) == 0.0
    });
    assert_eq!(done(&bridge, &["replay", "list"]), "0 replays under way");
    assert_eq!(done(&bridge, &["replay", "cancel", "--all"]), "0 replays cancelled");
    assert!(bridge.printed().count() < 40);

    let config = bridge.config().clone();
    bridge.stop();
    let runs = |arguments: &[&str]| {
        let ended = config.process(arguments).wait();
        assert_eq!(ended.code(), Some(0), "{arguments:?}: {}", ended.stderr());
        ended.stdout()
    };
    runs(&["replay", "--sink", "lines", "--all"]);
    assert!(runs(&["replay", "list", "--sink", "lines"]).contains("3       lines  0     20       any "));
    runs(&["replay", "cancel", "--all"]);
    let bridge = config.start();
    bridge.deliver(&dial("a", 1)).stored();
    eventually("what is new is printed", || bridge.printed().count() > 0);
    assert_eq!(bridge.stop().stdout.len(), 1, "nothing is replayed");
}

#[test]
fn who_waits_for_a_replay_is_told_that_it_was_cancelled() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    (0..20).for_each(|at| drop(bridge.deliver(&dial("a", 1_767_225_600_000 + at)).stored()));
    eventually("they are printed", || bridge.printed().count() == 20);
    let waiting = bridge.config().process(&["replay", "--sink", "lines", "--all", "--rate", "1", "--wait"]);
    eventually("it is under way", || done(&bridge, &["replay", "list"]).ends_with("1 replay under way"));
    done(&bridge, &["replay", "cancel", "1"]);
    let ended = waiting.wait();
    assert_eq!(ended.code(), Some(1), "{}", ended.stdout());
    assert!(
        ended.stderr().contains("replay 1 ended before all of its events were published: it was cancelled"),
        "{}",
        ended.stderr()
    );
    assert!(!ended.stdout().contains("dealt with"), "{}", ended.stdout());
}

#[test]
fn a_replay_is_waited_for_queued_once_and_logged() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    let ids: Vec<String> = (0..30).map(|at| bridge.deliver(&dial("a", 1_767_225_600_000 + at)).stored()).collect();
    eventually("they are printed", || bridge.printed().count() == 30);
    let said = done(&bridge, &["replay", "--sink", "lines", "--all", "--wait"]);
    assert!(said.contains("the bridge publishes them now") && said.ends_with("30 events dealt with"), "{said}");
    eventually("they are printed again", || bridge.printed().count() == 60);
    for message in ["replay begins", "replay finished"] {
        let logged = |line: &String| line.contains(message) && line.contains("\"replay\":1");
        eventually(message, || bridge.log().so_far().iter().any(logged));
    }
    done(&bridge, &["replay", "--sink", "lines", "--key", "a", "--rate", "1"]);
    let again = command(&bridge, &["replay", "--sink", "lines", "--key", "a"]);
    assert_eq!(again.code(), Some(1));
    assert!(again.stderr().contains("nothing was queued") && again.stderr().contains("replay 2"), "{}", again.stderr());
    let has_logged = |message: &str| {
        let of_the_second = |line: &String| line.contains(message) && line.contains("\"replay\":2");
        bridge.log().so_far().iter().any(of_the_second)
    };
    eventually("it is under way", || has_logged("replay begins"));
    done(&bridge, &["replay", "cancel", "--all"]);
    eventually("it is logged", || has_logged("replay cancelled"));

    let config = bridge.config().clone();
    bridge.stop();
    let ended = config.process(&["replay", "--sink", "lines", "--id", &ids[0], "--wait"]).wait();
    assert_eq!(ended.code(), Some(1));
    assert!(
        ended.stdout().contains("when it starts") && ended.stderr().contains("no bridge runs"),
        "{}",
        ended.stderr()
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    for (arguments, word) in [
        (vec!["replay", "--sink", "lines"], "--all"),
        (vec!["replay", "--sink", "other", "--all"], "lines"),
        (vec!["replay", "--sink", "lines", "--since", "yesterday"], "yesterday"),
        (vec!["replay", "--sink", "lines", "--since", "1h", "--until", "2h"], "before --until"),
        (vec!["replay", "--sink", "lines", "list"], "after the subcommand"),
        (vec!["replay", "list", "--sink", "other"], "lines"),
        (vec!["replay", "cancel"], "--all"),
        (vec!["stuck", "set-aside"], "--all"),
        (vec!["stuck", "list", "--sink", "other"], "lines"),
        (vec!["stuck", "show", "no-id"], "a UUID"),
        (vec!["dead-letters", "list", "--sink", "other"], "lines"),
        (vec!["dead-letters", "discard"], "--all"),
    ] {
        let ended = command(&bridge, &arguments);
        assert_eq!(ended.code(), Some(64), "{arguments:?}: {}", ended.stderr());
        assert!(ended.stderr().contains(word), "{arguments:?}: {}", ended.stderr());
    }
    for arguments in [
        vec!["replay", "cancel", "7"],
        vec!["stuck", "set-aside", "--id", "5a3b0a8b-a655-8799-986b-1897eba43203"],
        vec!["stuck", "show", "5a3b0a8b-a655-8799-986b-1897eba43203"],
        vec!["dead-letters", "requeue", "--id", "5a3b0a8b-a655-8799-986b-1897eba43203"],
    ] {
        let ended = command(&bridge, &arguments);
        assert_eq!(ended.code(), Some(1), "{arguments:?}: {}", ended.stderr());
        assert!(ended.stderr().contains("there is no "), "{arguments:?}: {}", ended.stderr());
    }
    let ended = command(&bridge, &["journal", "stats", "--dir", "/nonexistent"]);
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stderr().contains("/nonexistent"), "{}", ended.stderr());
}

#[test]
fn a_journal_is_verified_while_the_bridge_runs_and_after_its_stop() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    for at in 0..20 {
        bridge.deliver(&dial("a", 1_767_225_600_000 + at)).stored();
    }
    eventually("they are printed", || bridge.printed().count() == 20);
    eventually("the cursor is durable", || {
        let stats = envelope(&done(&bridge, &["journal", "stats", "--output", "json"]));
        assert_eq!(
            (&stats["events"], &stats["first_position"], &stats["last_position"]),
            (&20.into(), &1.into(), &20.into())
        );
        stats["sinks"][0]["cursor"] == 20 && stats["sinks"][0]["pending"] == 0
    });
    let stats = done(&bridge, &["journal", "stats"]);
    assert!(stats.contains("events          20, positions 1 to 20"), "{stats}");
    let row = stats.lines().find(|line| line.starts_with("lines ")).expect("a row of the sink");
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["lines", "20", "0", "0", "0", "0", "0"]);
    assert_eq!(done(&bridge, &["journal", "verify"]), "20 events OK");
    assert_eq!(done(&bridge, &["journal", "verify", "--output", "json"]), "{\"intact\":20}");
    let config = bridge.config().clone();
    bridge.stop();
    let ended = config.stdout(Stdout::Read).process(&["journal", "verify"]).wait();
    assert_eq!((ended.code(), ended.stdout()), (Some(0), "20 events OK".to_owned()));
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_dead_letter_is_listed_shown_requeued_and_delivered() {
    use crate::support::broker::Kind;

    let place = Kind::RabbitMq.place();
    // An exchange without a queue: the broker has nowhere to put what comes.
    let bridge = place.sink(Config::new(), "broker").set("sinks.broker.declare", "true").start();
    let ids: Vec<String> = (0..3).map(|at| bridge.deliver(&dial("a", 1_767_225_600_000 + at)).stored()).collect();
    let dead = || bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", "broker")]);
    eventually("they are set aside", || dead() == 3.0);

    let list = done(&bridge, &["dead-letters", "list"]);
    assert!(ids.iter().all(|id| list.contains(id)) && list.contains("unroutable"), "{list}");
    let json = done(&bridge, &["dead-letters", "list", "--output", "json", "--id", &ids[1]]);
    assert_eq!(
        (envelope(&json)["id"].as_str(), envelope(&json)["reason"].as_str()),
        (Some(&*ids[1]), Some("unroutable"))
    );
    let shown = done(&bridge, &["dead-letters", "show", &ids[0]]);
    assert_eq!(envelope(&shown)["id"].as_str(), Some(&*ids[0]));

    let refused = command(&bridge, &["dead-letters", "requeue", "--id", &ids[1], "--wait"]);
    assert_eq!(refused.code(), Some(1));
    assert!(refused.stdout().contains("0 published, 1 dead letter still"), "{}", refused.stdout());
    assert!(refused.stderr().contains("1 of 1 were refused again: unroutable"), "{}", refused.stderr());

    bridge.process.freeze();
    let waiting = bridge.config().process(&["dead-letters", "requeue", "--id", &ids[1], "--wait"]);
    eventually("it is queued", || waiting.stdout().so_far().iter().any(|line| line == "1 requeued"));
    assert_eq!(done(&bridge, &["dead-letters", "discard", "--id", &ids[1]]), "1 discarded");
    bridge.process.thaw();
    let ended = waiting.wait();
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stdout().contains("0 published, 1 discarded meanwhile, 0 dead letters still"), "{}", ended.stdout());
    eventually("it is counted", || dead() == 2.0);
    for message in ["an operator discarded dead letters", "requeued dead letters are published once more"] {
        eventually(message, || bridge.log().so_far().iter().any(|line| line.contains(message)));
    }
    place.make(crate::support::broker::Limits::default());
    assert_eq!(done(&bridge, &["dead-letters", "requeue", "--sink", "broker", "--all"]), "2 requeued");
    eventually("they are delivered", || dead() == 0.0);
    let messages = place.consume();
    let arrived: Vec<&str> = messages.iter().map(|message| message.id.as_str()).collect();
    assert_eq!(arrived, [&ids[0], &ids[2]]);
    assert!(messages.iter().all(|message| message.json().get("replayed").is_none()));
    assert_eq!(command(&bridge, &["dead-letters", "show", &ids[0]]).code(), Some(1));
}
