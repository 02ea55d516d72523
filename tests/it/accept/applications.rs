//! Several applications, each with tokens and a rate of its own.

use serde_json::{Value, json};

use crate::support::bridge::{Bridge, Config, PATH, TOKEN, done, signed_by};
use crate::support::eventually;
use crate::support::http::{Request, Response};
use crate::support::process::Stdout;

/// A delivery that names this application, or none. Each number is an event of its own.
fn body(application: Option<&str>, n: u64) -> Vec<u8> {
    let mut body = json!({ "category": "room:create", "occurred_at": n, "room": { "room_id": "canary-room" } });
    if let Some(application) = application {
        body["application_id"] = application.into();
    }
    body.to_string().into_bytes()
}

/// Delivers with a signature by this token.
fn deliver(bridge: &Bridge, token: &str, application: &str, n: u64) -> Response {
    signed_by(token, &body(Some(application), n)).send(bridge.webhook)
}

fn rejected(bridge: &Bridge, reason: &str) -> f64 {
    bridge.metric("sendbird_bridge_rejected_total", &[("reason", reason)])
}

/// The application that each event in the feed names, in their order.
fn stored(bridge: &Bridge) -> Vec<Value> {
    bridge.events().into_iter().map(|event| event.envelope["data"]["application_id"].clone()).collect()
}

/// Two applications with tokens of their own, and no token for others.
fn two() -> Config {
    Config::new()
        .unset("access.api_tokens")
        .set("applications.A-1.api_tokens", "['canary-a', 'canary-a-new']")
        .set("applications.B-2.api_tokens", "['canary-b']")
}

#[test]
fn the_token_of_one_application_opens_no_delivery_that_names_another() {
    let bridge = two().start();
    deliver(&bridge, "canary-a", "A-1", 1).stored();
    deliver(&bridge, "canary-a-new", "a-1", 2).stored();
    deliver(&bridge, "canary-b", "B-2", 3).stored();
    for (token, application) in [("canary-a", "B-2"), ("canary-b", "A-1"), ("canary-a", "C-3"), ("canary-a", "A-1 ")] {
        deliver(&bridge, token, application, 4).problem(401);
    }
    signed_by("canary-a", &body(None, 5)).send(bridge.webhook).problem(401);
    assert_eq!(rejected(&bridge, "application_token"), 5.0);
    deliver(&bridge, "canary-c", "A-1", 6).problem(401);
    deliver(&bridge, TOKEN, "C-3", 7).problem(401);
    assert_eq!(rejected(&bridge, "signature_wrong"), 2.0);
    Request::post(PATH).body(&body(Some("A-1"), 8)).send(bridge.webhook).problem(401);
    assert_eq!(rejected(&bridge, "signature_missing"), 1.0);
    assert_eq!(stored(&bridge), ["A-1", "a-1", "B-2"]);

    let line = || {
        let lines = bridge.log().so_far().into_iter().map(|line| serde_json::from_str::<Value>(&line).expect("JSON"));
        lines.filter(|line| line["reason"] == "application_token").collect::<Vec<_>>()
    };
    eventually("it is logged", || !line().is_empty());
    let line = line();
    assert_eq!(line.len(), 1, "one line for all: {line:?}");
    assert_eq!(line[0]["message"], "request refused");
    assert_eq!((&line[0]["status"], &line[0]["setting"]), (&json!(401), &json!("applications")));
    assert_eq!((&line[0]["application"], &line[0]["source"]), (&json!("B-2"), &json!("127.0.0.1")));
    let log = bridge.log().so_far().join("\n");
    assert!(!log.contains("canary"), "{log}");
}

#[test]
fn the_tokens_of_access_open_deliveries_of_all_other_applications() {
    let bridge = Config::new().set("applications.A-1.api_tokens", "['token-a']").start();
    deliver(&bridge, "token-a", "A-1", 1).stored();
    deliver(&bridge, TOKEN, "C-3", 2).stored();
    signed_by(TOKEN, &body(None, 3)).send(bridge.webhook).stored();
    deliver(&bridge, TOKEN, "A-1", 4).problem(401);
    deliver(&bridge, TOKEN, "a-1", 5).problem(401);
    deliver(&bridge, "token-a", "C-3", 6).problem(401);
    signed_by("token-a", &body(None, 7)).send(bridge.webhook).problem(401);
    assert_eq!((rejected(&bridge, "application_token"), bridge.events().len()), (4.0, 3));
}

#[test]
fn an_application_that_is_not_allowed_is_refused_whoever_signs() {
    let config = Config::new().set("access.applications", "['A-1', 'D-4']");
    let bridge = config.set("applications.A-1.api_tokens", "['token-a']").start();
    deliver(&bridge, "token-a", "A-1", 1).stored();
    deliver(&bridge, TOKEN, "D-4", 2).stored();
    deliver(&bridge, TOKEN, "C-3", 3).problem(403);
    deliver(&bridge, "token-a", "C-3", 4).problem(401);
    deliver(&bridge, "token-a", "D-4", 5).problem(401);
    assert_eq!(stored(&bridge), ["A-1", "D-4"]);
}

#[test]
fn an_application_with_tokens_must_sign_also_where_signatures_are_optional() {
    let bridge = two().set("access.signature", "'if-present'").set("access.path_secret", "'secret'").start();
    let unsigned = |application: &str, n| {
        let request = Request::post(&format!("{PATH}/secret")).body(&body(Some(application), n));
        request.send(bridge.webhook)
    };
    unsigned("A-1", 1).problem(401);
    unsigned("b-2", 2).problem(401);
    unsigned("C-3", 3).stored();
    let signed = |token: &str, application: &str, n| {
        signed_by(token, &body(Some(application), n)).to(&format!("{PATH}/secret")).send(bridge.webhook)
    };
    signed("canary-a", "A-1", 4).stored();
    signed("canary-a", "B-2", 5).problem(401);
    assert_eq!(stored(&bridge), ["C-3", "A-1"]);
}

#[test]
fn the_rate_of_an_application_counts_what_it_has_signed_and_nothing_else() {
    let bridge = two().set("applications.A-1.rate", "5").start();
    // Whoever cannot sign for it uses up nothing of its rate.
    for n in 0..20 {
        deliver(&bridge, "canary-c", "A-1", n).problem(401);
        deliver(&bridge, "canary-b", "A-1", n).problem(401);
    }
    let statuses: Vec<u16> = (0..40).map(|n| deliver(&bridge, "canary-a", "A-1", n).status).collect();
    assert!(statuses.iter().take(5).all(|status| *status == 200), "{statuses:?}");
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert!(refused > 0 && statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    assert_eq!(rejected(&bridge, "application_rate"), refused as f64);
    assert_eq!(bridge.events().len(), 40 - refused);
    for n in 0..20 {
        deliver(&bridge, "canary-b", "B-2", n).stored();
    }
    eventually("its rate is free again", || deliver(&bridge, "canary-a", "A-1", 50).status == 200);
}

#[test]
fn a_rate_alone_leaves_the_tokens_as_they_are() {
    let bridge = Config::new().set("applications.A-1.rate", "1000").start();
    deliver(&bridge, TOKEN, "A-1", 1).stored();
    deliver(&bridge, "another", "A-1", 2).problem(401);
}

#[test]
fn a_sink_gets_only_events_of_its_applications() {
    let config = Config::new().stdout_sink(Stdout::Read).set("sinks.lines.applications", "['a-1', 'C-3']");
    let bridge = config.start();
    for (n, application) in ["A-1", "B-2", "C-3", "A-12"].into_iter().enumerate() {
        deliver(&bridge, TOKEN, application, n as u64).stored();
    }
    signed_by(TOKEN, &body(None, 9)).send(bridge.webhook).stored();
    deliver(&bridge, TOKEN, "A-1", 10).stored();
    let printed = || {
        let lines =
            bridge.printed().so_far().into_iter().map(|line| serde_json::from_str::<Value>(&line).expect("JSON"));
        lines.map(|event| event["data"]["application_id"].clone()).collect::<Vec<_>>()
    };
    eventually("all that it wants is printed", || printed().len() >= 3);
    bridge.caught_up();
    assert_eq!(printed(), ["A-1", "C-3", "A-1"]);
    // All are in the feed, whatever its filter, and a replay gives a sink no others either.
    assert_eq!((bridge.events().len(), bridge.events_of("type=room:create&follow=false").len()), (6, 6));
    done(&bridge, &["replay", "--sink", "lines", "--type", "room:create", "--wait"]);
    assert_eq!(printed(), ["A-1", "C-3", "A-1", "A-1", "C-3", "A-1"]);
}

#[cfg(feature = "kafka")]
#[test]
fn what_is_pending_is_counted_by_application() {
    let nobody =
        Config::new().fixed_address().set("sinks.out.type", "'kafka'").set("sinks.out.brokers", "['127.0.0.1:1']");
    let config = nobody.set("sinks.out.categories", "['room:create']").set("sinks.out.applications", "['A-1']");
    let bridge = config.start();
    for n in 0..5 {
        deliver(&bridge, TOKEN, "A-1", n).stored();
        deliver(&bridge, TOKEN, "B-2", n).stored();
    }
    let pending = |bridge: &Bridge| bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", "out")]);
    assert_eq!(pending(&bridge), 5.0);
    assert_eq!(bridge.stop().code(), Some(0));
    assert_eq!(pending(&config.start()), 5.0);
}
