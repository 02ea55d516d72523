//! `GET /overview`, and the commands that print it.

use serde_json::Value;

use crate::support::bridge::{Bridge, Config, command, done, signed_by};
use crate::support::eventually;
use crate::support::http::Request;
use crate::support::process::Stdout;
use crate::support::samples::dial;

fn overview(bridge: &Bridge) -> Value {
    bridge.admin("/overview").json()
}

#[test]
fn the_sentence_follows_the_deliveries() {
    let bridge = Config::new().fixed_address().stdout_sink(Stdout::Read).start();
    eventually("the sink is connected", || overview(&bridge)["sentence"] == "No delivery yet.");
    assert_eq!(overview(&bridge)["deliveries"]["last_at"], Value::Null);
    bridge.deliver(&dial("a", 1)).stored();
    bridge.caught_up();
    let found = overview(&bridge);
    assert_eq!((&found["sentence"], &found["needs_a_person"]), (&"Receiving and publishing.".into(), &false.into()));
    assert_eq!(
        (&found["deliveries"]["total"], &found["deliveries"]["windows"][0]["deliveries"]),
        (&1.into(), &1.into())
    );
    assert!(found["deliveries"]["windows"][0]["answer_seconds_p99"].as_f64().unwrap() > 0.0, "{found}");
    assert!(found["deliveries"]["last_at"].is_string() && found["sinks"][0]["last_publish_at"].is_string(), "{found}");
    let text = done(&bridge, &["status"]);
    assert!(text.starts_with("Receiving and publishing.\n") && text.contains("lines"), "{text}");
    let json: Value = serde_json::from_str(&done(&bridge, &["status", "--output", "json"])).unwrap();
    assert_eq!(json["sentence"], "Receiving and publishing.");
}

#[test]
fn a_refusal_is_told_with_its_reason_its_time_and_its_source() {
    let bridge = Config::new().fixed_address().start();
    for _ in 0..3 {
        assert_eq!(signed_by("another", &dial("a", 1)).send(bridge.webhook).status, 401);
    }
    let found = overview(&bridge);
    let refused = &found["refused"][0];
    assert_eq!(
        (&refused["reason"], &refused["total"], &refused["last_hour"]),
        (&"signature_wrong".into(), &3.into(), &3.into())
    );
    assert!(refused["last_at"].is_string() && refused["last_source"].as_str().unwrap().starts_with("127."), "{found}");
    let ended = command(&bridge, &["status"]);
    assert_eq!(ended.code(), Some(1), "{}", ended.stdout());
    assert!(ended.stdout().contains("SendbirdBridgeSignaturesRejected"), "{}", ended.stdout());
    assert!(ended.stderr().contains("SendbirdBridgeRefusesEverything"), "{}", ended.stderr());
}

#[test]
fn the_overview_asks_for_the_admin_token_and_status_finds_it() {
    let bridge = Config::new().fixed_address().set("admin.token", "'canary-token'").start();
    Request::get("/overview").send(bridge.admin).problem(401);
    let ended = command(&bridge, &["status"]);
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout(), ended.stderr());
    assert!(ended.stdout().starts_with("No delivery yet; no sink is configured."), "{}", ended.stdout());
    assert!(!ended.stdout().contains("canary"), "{}", ended.stdout());
}

#[test]
fn status_of_a_bridge_that_hangs_ends_and_says_so() {
    let bridge = Config::new().fixed_address().start();
    bridge.process.freeze();
    let ended = command(&bridge, &["status"]);
    bridge.process.thaw();
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stderr().contains("expected an answer of the bridge within 10 s"), "{}", ended.stderr());
}
