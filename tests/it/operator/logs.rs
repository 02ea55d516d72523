//! The log: a line for each event of a life, in both formats, at a bounded rate, and never a payload or a secret.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::bridge::{Config, signed};
use crate::support::eventually;
use crate::support::http::Request;
use crate::support::process::{self, program};
use crate::support::samples::dial;

/// Lines that have all that a line has.
#[track_caller]
fn parsed(lines: &[String]) -> Vec<Value> {
    let lines = lines.iter().map(|line| {
        let parsed: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let has = |member: &str| parsed[member].as_str().is_some_and(|text| !text.is_empty());
        assert!(["timestamp", "level", "message", "target"].into_iter().all(has), "{line}");
        parsed
    });
    lines.collect()
}

fn with_message<'a>(lines: &'a [Value], message: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["message"] == message).collect()
}

#[test]
fn a_life_has_one_line_for_each_of_its_events() {
    let config = Config::new().stdout_sink(process::Stdout::Read);
    let bridge = config.start();
    for n in 0..20 {
        bridge.deliver(&dial("a", n)).stored();
    }
    bridge.caught_up();
    let (webhook, admin) = (bridge.url(), bridge.admin_url());
    let ended = bridge.stop();
    let lines = parsed(&ended.stderr);
    let messages: Vec<&str> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    let mut expected = [
        "listening",
        "publishing",
        "ready",
        "sink connected",
        "shutting down; signal again to exit immediately",
        "sink stopped",
        "stopped",
    ];
    assert_eq!(messages.iter().take(2).collect::<Vec<_>>(), expected.iter().take(2).collect::<Vec<_>>());
    let mut sorted = messages.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sorted, expected, "each once, and nothing for a delivery");
    let listening = &lines[0];
    assert_eq!(listening["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((listening["webhook"].as_str(), listening["admin"].as_str()), (Some(&*webhook), Some(&*admin)));
    assert_eq!(listening["config"].as_str(), config.dir().join("bridge.toml").to_str());
    assert_eq!(listening["access"], "signature");
    assert_eq!(listening["journal"].as_str(), config.dir().join("journal").to_str());
    assert_eq!(with_message(&lines, "sink connected")[0]["sink"], "lines");
    let disconnected = with_message(&lines, "sink stopped")[0];
    assert_eq!((&disconnected["sink"], &disconnected["cursor"]), (&"lines".into(), &20.into()));
    assert_eq!(with_message(&lines, "shutting down; signal again to exit immediately")[0]["signal"], "SIGTERM");
}

#[test]
fn why_it_does_not_start_is_a_line_as_well() {
    let running = Config::new().start();
    let taken = Config::new().set("server.listen", &format!("'{}'", running.webhook));
    for (config, code, word) in [
        (Config::new().set("server.max_body", "'nonsense'").unset("access.api_tokens"), 64, "faults"),
        (taken, 1, "server.listen"),
        (running.config().clone(), 1, "lock"),
    ] {
        let ended = config.refused();
        assert_eq!(ended.code(), Some(code), "{}", ended.stderr());
        let lines = parsed(&ended.stderr);
        let last = lines.last().unwrap();
        assert_eq!((&last["level"], last.to_string().contains(word)), (&"ERROR".into(), true), "{last}");
    }
    // Read by a person it is what it was.
    let config = Config::new().set("server.max_body", "'nonsense'");
    let mut command = program();
    command.arg("--config").arg(config.write()).arg("serve");
    let ended = process::Process::start(command, process::Stdout::Read).wait();
    assert!(
        ended.stderr[0].starts_with("error: ") && ended.stderr[1].starts_with("  server.max_body: "),
        "{}",
        ended.stderr()
    );
}

#[test]
fn wrong_usage_is_a_line_as_well() {
    for (arguments, word) in [
        (&["serve", "--log-format", "json", "--nonsense"][..], "unexpected argument '--nonsense'"),
        (&["--log-format=json", "serv"][..], "similar subcommand exists: 'serve'"),
        (&["send", "--url", "--log-format", "json"][..], "--url"),
        (&["--log-format", "json", "replay"][..], "--sink"),
        (&["--log-format", "json"][..], "subcommand"),
        (&["--log-format", "json", "config"][..], "expected a command"),
    ] {
        let ended = process::run(arguments);
        assert_eq!((ended.code(), ended.stdout()), (Some(64), String::new()), "{arguments:?}: {}", ended.stderr());
        let lines = parsed(&ended.stderr);
        assert_eq!((lines.len(), &lines[0]["level"]), (1, &"ERROR".into()), "{arguments:?}: {}", ended.stderr());
        let message = lines[0]["message"].as_str().unwrap();
        assert!(message.contains(word) && !message.contains("Usage") && !message.contains('\n'), "{message}");
    }
    // For a person it has its usage, and help is no failure in either format.
    let ended = process::run(&["serve", "--nonsense"]);
    assert_eq!(ended.code(), Some(64));
    assert!(ended.stderr[0].starts_with("error: ") && ended.stderr().contains("Usage: "), "{}", ended.stderr());
    let help = process::run(&["--log-format", "json", "--help"]);
    assert_eq!((help.code(), help.stderr()), (Some(0), String::new()));
    assert!(help.stdout().contains("Usage: "), "{}", help.stdout());
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let config = Config::new().set("sinks.lines.type", "'stdout'");
    let mut command = program();
    command.arg("--config").arg(config.write()).args(["--log-format", "json", "serve"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let listening: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
    let address = |field: &str| {
        let url = listening[field].as_str().unwrap().strip_prefix("http://").unwrap();
        url.split('/').next().unwrap().parse().unwrap()
    };
    let (webhook, admin) = (address("webhook"), address("admin"));
    // From here on each line is an error, and the sink, whose reader is gone as well, has a lot to say.
    drop((lines, child.stdout.take()));
    let first = signed(&dial("a", 1)).send(webhook).stored();
    eventually("the sink has failed", || {
        let metrics = Request::get("/metrics").send(admin).text();
        metrics.lines().any(|line| line.starts_with("sendbird_bridge_sink_retries_total{") && !line.ends_with(" 0"))
    });
    assert_eq!(signed(&dial("a", 1)).send(webhook).duplicate(), first);
    signed(&dial("a", 2)).send(webhook).stored();
    assert_eq!(Request::get("/readyz").send(admin).status, 200);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod brokers {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::{parsed, with_message};
    use crate::sinks::messages::authority;
    use crate::support::bridge::{Bridge, Config, PATH};
    use crate::support::broker::{Kind, Limits, Place};
    use crate::support::eventually;
    use crate::support::http::{Connection, Request};
    use crate::support::samples::{dial, large};

    const SINKS: [(&str, Kind); 3] = [("k", Kind::Kafka), ("r", Kind::RabbitMq), ("n", Kind::Nats)];

    /// How many lines of one kind a time may have made.
    fn allowed(begun: Instant) -> usize {
        let half_minutes = begun.elapsed().div_duration_f64(Duration::from_secs(30));
        2 + half_minutes as usize
    }

    fn metric(bridge: &Bridge, name: &str, sink: &str) -> f64 {
        bridge.metric(&format!("sendbird_bridge_{name}"), &[("sink", sink)])
    }

    #[test]
    fn a_broker_that_is_away_has_a_line_now_and_then() {
        let begun = Instant::now();
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = SINKS.into_iter().fold(Config::new(), |config, (name, kind)| {
            let place = kind.place();
            let address = place.address.replace(&authority(&place.address), &nobody.to_string());
            Place { address, ..place }.sink(config, name)
        });
        let bridge = config.start();
        bridge.deliver(&dial("a", 1)).stored();
        let retries = |sink| {
            let reasons = ["connection", "timeout"].map(|reason| [("sink", sink), ("reason", reason)]);
            reasons.map(|labels| bridge.metric("sendbird_bridge_sink_retries_total", &labels)).iter().sum::<f64>()
        };
        eventually("each has failed, two of them often", || {
            retries("k") > 0.0 && retries("r") >= 6.0 && retries("n") >= 6.0
        });
        let ended = bridge.stop();
        let lines = parsed(&ended.stderr);
        for (name, _) in SINKS {
            let of_sink: Vec<_> = lines.iter().filter(|line| line["sink"] == name).collect();
            assert!((1..=allowed(begun)).contains(&of_sink.len()), "{of_sink:#?}");
        }
        assert!(with_message(&lines, "sink connected").is_empty());
    }

    #[test]
    fn many_events_that_are_refused_have_few_lines() {
        let begun = Instant::now();
        let place = Kind::Nats.place();
        place.make(Limits { bytes: Some(8_000), ..Limits::default() });
        let bridge = place.sink(Config::new(), "n").start();
        for n in 0..60 {
            bridge.deliver(&large(&format!("k{n}"), n, 20_000)).stored();
        }
        eventually("all are set aside", || metric(&bridge, "sink_dead_letters", "n") == 60.0);
        let ended = bridge.stop();
        let message = "event became a dead letter; see: sendbird-bridge dead-letters list";
        let lines = parsed(&ended.stderr);
        let said = with_message(&lines, message);
        assert!((1..=allowed(begun)).contains(&said.len()), "{}", ended.stderr());
        assert!(
            said[0]["key"] == "k0" && said[0]["id"].is_string() && said[0].get("suppressed").is_none(),
            "{said:#?}"
        );
    }

    /// Everything that may not be shown holds this word, however finely it is logged.
    #[test]
    fn no_line_shows_a_payload_or_a_secret() {
        let places = SINKS.map(|(name, kind)| (name, kind.place()));
        let config = places.iter().fold(Config::new(), |config, (name, place)| {
            let by_size = Limits { bytes: Some(8_000), ..Limits::default() };
            let by_kind = Limits { no_rooms: true, ..Limits::default() };
            place.make(if place.kind == Kind::RabbitMq { by_kind } else { by_size });
            place.sink(config, name)
        });
        let mut refusing = Kind::RabbitMq.place();
        refusing.address = format!("amqp://guest:canary-password@{}/%2f", authority(&refusing.address));
        let bridge = refusing
            .sink(config, "refusing")
            .set("access.api_tokens", "['canary-token']")
            .set("access.path_secret", "'canary-path'")
            .set("access.header", "{ name = 'x-key', value = 'canary-header' }")
            .set("admin.token", "'canary-admin'")
            .variable("RUST_LOG", "trace")
            .start();
        deliver_canaries(&bridge);
        for (name, _) in &places {
            eventually("all is dealt with, and something refused", || {
                metric(&bridge, "sink_pending_records", name) == 0.0 && metric(&bridge, "sink_dead_letters", name) > 0.0
            });
        }
        let refused = [("sink", "refusing"), ("reason", "not_authorized")];
        eventually("it is refused", || bridge.metric("sendbird_bridge_sink_retries_total", &refused) > 0.0);
        for (token, status) in [("canary-admin", 200), ("canary-wrong", 401)] {
            let feed = Request::get("/events?follow=false&key=canary-key");
            let answer = feed.header("authorization", &format!("Bearer {token}")).send(bridge.admin);
            assert_eq!(answer.status, status);
        }
        let ended = bridge.stop();
        assert!(!ended.stderr().to_lowercase().contains("canary"), "{}", ended.stderr());
        let lines = parsed(&ended.stderr);
        let is_ours = |line: &&serde_json::Value| line["target"].as_str().unwrap().starts_with("sendbird_bridge");
        assert!(lines.iter().any(|line| line["level"] == "DEBUG" && is_ours(&line)), "the level is in effect");
        let theirs: Vec<_> = lines.iter().filter(|line| !is_ours(line)).collect();
        assert!(theirs.iter().all(|line| line["level"] != "DEBUG" && line["level"] != "TRACE"), "{theirs:#?}");
    }

    fn deliver_canaries(bridge: &Bridge) {
        let secret_path = format!("{PATH}/canary-path");
        let deliver = |target: &str, key: &str, body: &[u8]| {
            let signature = sendbird_bridge::sendbird::signature::sign("canary-token", body);
            let request = Request::post(target).header("x-sendbird-signature", &signature).header("x-key", key);
            let request = request.header("user-agent", "canary-agent").header("x-canary", "canary-value");
            request.header("traceparent", "canary-trace").body(body).send(bridge.webhook).status
        };
        let everywhere = json!({
            "category": "direct_call:canary", "application_id": "canary-application", "occurred_at": 1,
            "canary-member": "canary-text",
            "direct_call": {
                "call_id": "canary-key", "caller_id": "canary-caller", "custom_items": { "canary-item": "canary-item" },
                "sdk": { "access_token": "canary-nested" },
            },
        });
        // Their keys are in the names of the subjects and routing keys that do not take them.
        let room = json!({ "category": "room:create", "occurred_at": 2, "room": { "room_id": "room" } });
        for body in [everywhere.to_string().into_bytes(), room.to_string().into_bytes(), large("large", 3, 20_000)] {
            assert_eq!(deliver(&secret_path, "canary-header", &body), 200);
            assert_eq!(deliver(&secret_path, "canary-guess", &body), 401);
            assert_eq!(deliver(&format!("{PATH}/canary-guess?canary=canary"), "canary-header", &body), 404);
        }
        assert_eq!(deliver(&secret_path, "canary-header", b"{\"canary\": canary}"), 400);
        // What is no request is no secret either, but might be part of one.
        for broken in [&b"POST /canary HTTP/1.1\r\ncanary canary\r\n\r\n"[..], b"canary\r\n\r\n"] {
            let mut connection = Connection::open(bridge.webhook);
            connection.write(broken);
            connection.response();
        }
    }
}
