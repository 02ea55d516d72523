//! What is refused: an answer that says why, a count by reason, and a line in the log by which a stranger finds the cause.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::tls::{ADDRESS, with_certificate};
use crate::support::bridge::{Bridge, Config, PATH, signed, signed_by};
use crate::support::certificates::Authority;
use crate::support::http::{Connection, Request};
use crate::support::repository::read;
use crate::support::samples::dial;
use crate::support::tls::connect;
use crate::support::{eventually, eventually_within};

/// In all that is refused and is not to be logged.
const CANARY: &str = "canary-5f3a";

/// How version 2 of the PROXY protocol begins.
const PROXY_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The lines about refusals, in their order.
fn refusals(bridge: &Bridge) -> Vec<Value> {
    let lines = bridge.log().so_far().into_iter().map(|line| serde_json::from_str(&line).expect("JSON"));
    lines.filter(|line: &Value| line["message"] == "request refused").collect()
}

/// The one line about refusals for this reason, waiting for it.
#[track_caller]
fn refusal(bridge: &Bridge, reason: &str) -> Value {
    let of = || refusals(bridge).into_iter().filter(|line| line["reason"] == reason).collect::<Vec<_>>();
    eventually(&format!("a line about {reason}"), || !of().is_empty());
    let lines = of();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["level"], "WARN");
    lines[0].clone()
}

fn rejected(bridge: &Bridge, reason: &str) -> f64 {
    bridge.metric("sendbird_bridge_rejected_total", &[("reason", reason)])
}

fn texts<'a, const N: usize>(line: &'a Value, members: [&str; N]) -> [Option<&'a str>; N] {
    members.map(|member| line[member].as_str())
}

/// Writes bytes over a connection of its own and gives the status of the problem that they are answered with.
#[track_caller]
fn answered(bridge: &Bridge, bytes: &[u8], status: u16) {
    let mut connection = Connection::open(bridge.webhook);
    connection.write(bytes);
    let answer = connection.response();
    assert_eq!(answer.problem(status).header("connection"), Some("close"));
    assert!(connection.is_closed());
}

#[test]
fn each_refusal_has_a_line_with_its_reason_and_source_and_no_more_than_one() {
    let bridge = Config::new()
        .set("access.applications", "['0A1B2C3D']")
        .set("access.header", "{ name = 'x-key', value = 'right' }")
        .set("server.max_body", "'2KiB'")
        .start();
    let keyed = |request: Request| request.header("x-key", "right").header("user-agent", CANARY);
    let body = |text: &str| format!("{{\"secret\":\"{CANARY}\",{text}}}").into_bytes();
    let kinds = [
        (keyed(signed(&body(""))), 400, "malformed", None),
        (keyed(signed(&body(r#""application_id":"0a1b2c3d""#))), 400, "no_category", None),
        (keyed(Request::post(PATH).body(&dial(CANARY, 1))), 401, "signature_missing", Some("access.api_tokens")),
        (keyed(signed_by(CANARY, &dial(CANARY, 1))), 401, "signature_wrong", Some("access.api_tokens")),
        (signed(&dial(CANARY, 1)).header("x-key", CANARY), 401, "header", Some("access.header")),
        (
            keyed(signed(&body(r#""category":"room:create","application_id":"E4F5""#))),
            403,
            "application",
            Some("access.applications"),
        ),
        (keyed(Request::post("/elsewhere").body(&dial(CANARY, 1))), 404, "not_found", Some("server.path")),
        (keyed(Request::get(&format!("{PATH}?{CANARY}"))), 405, "method", None),
        (keyed(signed(&[b'x'; 3000])), 413, "too_large", Some("server.max_body")),
    ];
    for _ in 0..20 {
        for (request, status, ..) in &kinds {
            request.send(bridge.webhook).problem(*status);
        }
    }
    for (_, status, reason, setting) in &kinds {
        let line = refusal(&bridge, reason);
        assert_eq!((&line["status"], line["setting"].as_str()), (&(*status).into(), *setting), "{line}");
        let known = texts(&line, ["listener", "source", "source_from"]);
        assert_eq!(known, [Some("webhook"), Some("127.0.0.1"), Some("peer")], "{line}");
        assert!(line["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{line}");
        assert_eq!(rejected(&bridge, reason), 20.0);
    }
    assert_eq!(refusal(&bridge, "application")["application"], "E4F5");
    let elsewhere = refusal(&bridge, "not_found");
    assert_eq!(
        texts(&elsewhere, ["path", "detail", "method"]),
        [Some("/elsewhere"), Some("expected the path /webhooks/sendbird"), Some("POST")]
    );
    assert_eq!(refusal(&bridge, "method")["method"], "GET");

    // Those that had no line are told of, though nothing more is refused.
    let rest = || {
        let lines = bridge.log().so_far().into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
        let rest = lines.filter(|line| line["message"] == "requests refused");
        rest.map(|line| (line["reason"].as_str().unwrap().to_owned(), line["suppressed"].as_u64().unwrap()))
            .collect::<BTreeMap<_, _>>()
    };
    eventually_within(Duration::from_secs(60), "the others are counted", || rest().len() == kinds.len());
    assert!(rest().values().all(|count| *count == 19), "{:?}", rest());
    let all = bridge.log().so_far().join("\n");
    assert!(!all.contains(CANARY), "{all}");
}

#[test]
fn every_reason_is_explained() {
    let bridge = Config::new().start();
    let explained = read("docs/refusals.md");
    let scrape = bridge.metrics().text;
    let reasons = scrape.lines().filter_map(|line| line.strip_prefix("sendbird_bridge_rejected_total{reason=\""));
    let reasons: Vec<&str> = reasons.map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(reasons.len() > 20, "{reasons:?}");
    let rows: Vec<&str> = explained.lines().filter(|line| line.starts_with("| `")).collect();
    for reason in &reasons {
        let named = |row: &&&str| row.split('|').nth(1).unwrap().contains(&format!("`{reason}`"));
        assert_eq!(rows.iter().filter(named).count(), 1, "{reason}");
    }
}

#[test]
fn a_debug_log_has_a_line_for_each_refusal() {
    let bridge = Config::new().variable("RUST_LOG", "sendbird_bridge=debug").start();
    for n in 0..5 {
        Request::post(PATH).body(&dial("a", n)).send(bridge.webhook).problem(401);
    }
    eventually("each has a line", || refusals(&bridge).len() == 5);
    let levels: Vec<Value> = refusals(&bridge).iter().map(|line| line["level"].clone()).collect();
    assert_eq!(levels, ["WARN", "DEBUG", "DEBUG", "DEBUG", "DEBUG"]);
}

#[test]
fn no_line_holds_a_path_secret_or_what_may_be_one() {
    let secret = Config::new().set("access.path_secret", "'canary-5f3a'").set("server.path", "'/hooks/sendbird'");
    for (path, shown) in [
        ("/hooks/sendbird/canary-5f3", "/hooks/sendbird/…"),
        ("/hooks/sendbird/canary-5f3a/", "/hooks/sendbird/…"),
        ("/hooks/sendbird", "/hooks/sendbird"),
        ("/hook/sendbird/canary-5f3a", "/…"),
        ("/hooks/canary-5f3a", "/hooks/…"),
        ("/canary-5f3a", "/…"),
    ] {
        let bridge = secret.start();
        signed(&dial("a", 1)).to(path).send(bridge.webhook).problem(404);
        let line = refusal(&bridge, "not_found");
        assert_eq!(line["path"], shown);
        assert_eq!(line["detail"], "expected the path /hooks/sendbird/ and the path secret");
        assert!(!bridge.log().so_far().join("\n").contains("canary"));
        bridge.stop();
    }
    // Nor where none is set, because it may be one of another bridge, or of yesterday.
    let bridge = Config::new().start();
    signed(&dial("a", 1)).to(&format!("{PATH}/{CANARY}")).send(bridge.webhook).problem(404);
    assert_eq!(refusal(&bridge, "not_found")["path"], format!("{PATH}/…"));
    // A long path is not the log's burden.
    let bridge = Config::new().start();
    signed(&dial("a", 1)).to(&format!("/{}", "x".repeat(5_000))).send(bridge.webhook).problem(404);
    let path = refusal(&bridge, "not_found")["path"].as_str().unwrap().to_owned();
    assert!(path.starts_with("/xxx") && path.ends_with('…') && path.len() < 110, "{path}");
}

#[test]
fn a_line_says_how_the_source_was_found() {
    let behind = |proxies: &str| {
        let config = Config::new().set("access.networks", "['10.0.0.0/8']");
        config.set("access.trusted_proxies", proxies).start()
    };
    let expected = "x-forwarded-for: entry 2 from the end";
    for (proxies, forwarded, source, from) in [
        ("[]", None, Some("127.0.0.1"), "peer"),
        (
            "[]",
            Some("10.1.2.3"),
            Some("127.0.0.1"),
            "peer; it is not in access.trusted_proxies, so its x-forwarded-for does not count",
        ),
        ("['127.0.0.1', '192.0.2.0/24']", Some("10.1.2.3, 203.0.113.7, 192.0.2.1"), Some("203.0.113.7"), expected),
        ("['127.0.0.1']", Some("10.1.2.3, canary"), None, "x-forwarded-for: entry 1 from the end, which is no address"),
        ("['127.0.0.1']", None, Some("127.0.0.1"), "peer"),
    ] {
        let bridge = behind(proxies);
        let request = signed(&dial("a", 1));
        let request = forwarded.iter().fold(request, |request, value| request.header("x-forwarded-for", value));
        request.send(bridge.webhook).problem(403);
        let line = refusal(&bridge, "network");
        assert_eq!(texts(&line, ["source", "source_from"]), [source, Some(from)], "{proxies} {forwarded:?}");
        assert!(!line.to_string().contains("canary"));
    }
}

#[test]
fn what_is_no_request_is_answered_with_a_problem_counted_and_logged() {
    let bridge = Config::new().start();
    let head = |headers: &str| format!("POST {PATH} HTTP/1.1\r\nhost: bridge\r\n{headers}\r\n").into_bytes();
    let large = head(&format!("x-canary: {}\r\n", "canary ".repeat(10_000)));
    let many: String = (0..200).map(|n| format!("x-canary-{n}: canary\r\n")).collect();
    let kinds: [(&str, Vec<u8>, u16, &str); 12] = [
        ("a large head", large, 431, "head_too_large"),
        ("many headers", head(&many), 431, "head_too_large"),
        ("two lengths", head("content-length: 3\r\ncontent-length: 4\r\n"), 400, "invalid_head"),
        ("a length that is no number", head("content-length: canary\r\n"), 400, "invalid_head"),
        ("no chunks", head("transfer-encoding: gzip\r\n"), 400, "invalid_head"),
        ("no header", head("canary\r\n"), 400, "invalid_head"),
        ("another protocol", b"SSH-2.0-canary\r\n\r\n".to_vec(), 400, "invalid_head"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 400, "invalid_head"),
        ("another version", b"GET / HTTP/3.0\r\n\r\n".to_vec(), 400, "invalid_head"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03canary".to_vec(), 400, "tls"),
        ("PROXY 1", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n\r\n".to_vec(), 400, "proxy_protocol"),
        ("PROXY 2", [PROXY_2, b"\x21\x11\x00\x0c\x7f\0\0\x01\x7f\0\0\x01\0\x01\0\x02"].concat(), 400, "proxy_protocol"),
    ];
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, bytes, status, reason) in &kinds {
        eprintln!("{name}");
        answered(&bridge, bytes, *status);
        *counts.entry(reason).or_default() += 1.0;
        assert_eq!(rejected(&bridge, reason), counts[reason], "{name}");
    }
    for reason in counts.keys() {
        let line = refusal(&bridge, reason);
        assert_eq!(texts(&line, ["source", "source_from"]), [Some("127.0.0.1"), Some("peer")]);
    }
    assert_eq!(refusals(&bridge).len(), counts.len());
    assert!(!bridge.log().so_far().join("\n").contains("canary"));
    bridge.deliver(&dial("a", 1)).stored();
}

#[test]
fn the_line_about_lengths_that_contradict_each_other_says_so() {
    let bridge = Config::new().start();
    answered(&bridge, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n", 400);
    assert_eq!(refusal(&bridge, "invalid_head")["detail"], "invalid content-length parsed");
}

#[test]
fn what_follows_a_delivery_and_is_no_request_is_answered_after_it() {
    let bridge = Config::new().start();
    for n in 0..20 {
        let mut connection = Connection::open(bridge.webhook);
        connection.write(&[signed(&dial("a", n)).bytes(), b"nonsense\r\n\r\n".to_vec()].concat());
        connection.response().stored();
        connection.response().problem(400);
        assert!(connection.is_closed());
    }
    assert_eq!(rejected(&bridge, "invalid_head"), 20.0);
}

#[test]
fn the_admin_endpoint_answers_what_is_no_request_with_a_problem_too() {
    let bridge = Config::new().start();
    for (bytes, status) in [(&b"nonsense\r\n\r\n"[..], 400), (b"\x16\x03\x01\x02\x00\x01\x00", 400)] {
        let mut connection = Connection::open(bridge.admin);
        connection.write(bytes);
        connection.response().problem(status);
    }
    assert_eq!(refusal(&bridge, "tls")["listener"], "admin");
    assert_eq!(rejected(&bridge, "tls"), 0.0, "it is no delivery");
}

#[test]
fn connections_over_the_limit_have_a_line() {
    let bridge = Config::new().set("server.max_connections", "1").start();
    let mut only = Connection::open(bridge.webhook);
    only.send(&signed(&dial("a", 1))).stored();
    for _ in 0..10 {
        Connection::open(bridge.webhook).response().problem(503);
    }
    let line = refusal(&bridge, "connections");
    assert_eq!((&line["status"], &line["setting"]), (&503.into(), &"server.max_connections".into()));
}

#[test]
fn failed_handshakes_are_counted_and_logged() {
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str| Authority::new(&dir.path().join(name));
    let (servers, clients) = (of("servers"), of("clients"));
    let ca_file = format!("'{}'", clients.ca_file.display());
    let config = with_certificate(Config::new(), "server", &servers.issue(ADDRESS));
    let bridge = config.set("server.tls.client_ca_file", &ca_file).start();
    let mut plain = Connection::open(bridge.webhook);
    plain.write(&signed(&dial("canary", 1)).bytes());
    assert!(plain.try_response().is_err());
    eventually("plain HTTP is counted", || rejected(&bridge, "handshake") == 1.0);
    let line = refusal(&bridge, "handshake");
    assert_eq!((&line["status"], &line["source"]), (&Value::Null, &"127.0.0.1".into()), "{line}");
    assert!(line["detail"].as_str().unwrap().starts_with("TLS handshake failed: "), "{line}");
    let deliver = |ca_file: &Path| {
        let mut connection = connect(bridge.webhook, ca_file, None)?;
        connection.try_write(&signed(&dial("canary", 1)).bytes())?;
        connection.try_response()
    };
    assert!(deliver(&servers.ca_file).is_err(), "no certificate is shown");
    assert!(deliver(&clients.ca_file).is_err(), "the bridge's is not trusted");
    eventually("both are counted", || rejected(&bridge, "handshake") == 3.0);
    // A load balancer that only looks whether somebody listens is no refusal.
    drop(Connection::open(bridge.webhook));
    eventually("it is gone", || bridge.metric("sendbird_bridge_connections", &[]) == 0.0);
    assert_eq!(rejected(&bridge, "handshake"), 3.0);
    assert!(!bridge.log().so_far().join("\n").contains("canary"));
}
