//! What the webhook answers, to whom, and what of it is durable.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::bridge::{Config, PATH, TOKEN, signed, signed_by};
use crate::support::http::{Connection, Request};
use crate::support::process::Stdout;
use crate::support::samples::{dial, golden, large, samples, without_received_time};
use crate::support::shim::Shim;
use crate::support::{eventually, eventually_within};

/// In the path, the headers and the body of what is refused; no answer may hold it.
const CANARY: &str = "canary-5f3a";

fn with_canary(request: Request) -> Request {
    request.header("x-canary", CANARY).header("user-agent", CANARY)
}

#[test]
fn a_delivery_is_stored_once_and_its_retries_get_the_same_id() {
    let bridge = Config::new().start();
    let body = br#"{"category":"direct_call:dial","occurred_at":1767225600123,"application_id":"A","direct_call":{"call_id":"C/1","caller_id":"a"}}"#;
    let id = bridge.deliver(body).stored();
    assert_eq!(bridge.deliver(body).duplicate(), id);
    let spelled_differently = br#" {
        "direct_call" : {"caller_id":"\u0061", "call_id":"C\/1"},
        "application_id":"A",
        "occurred_at": 1767225600123,
        "category":"direct\u005fcall:dial"
    } "#;
    assert_eq!(bridge.deliver(spelled_differently).duplicate(), id);
    let events = bridge.events();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].id(), events[0].key()), (id.as_str(), "C/1"));
    assert_eq!(id.len(), 36);
    assert_eq!(&id[14..15], "8", "expected a UUIDv8, but found {id}");

    let metric = |outcome| {
        let labels = [("category", "direct_call:dial"), ("outcome", outcome)];
        bridge.metric("sendbird_bridge_deliveries_total", &labels)
    };
    assert_eq!((metric("stored"), metric("duplicate")), (1.0, 2.0));
}

#[test]
fn different_events_have_different_ids() {
    let bridge = Config::new().start();
    let bodies = [dial("a", 1), dial("a", 2), dial("b", 1)];
    let ids: BTreeSet<String> = bodies.iter().map(|body| bridge.deliver(body).stored()).collect();
    assert_eq!(ids.len(), 3);
}

#[test]
fn twins_in_flight_are_stored_once_and_all_get_the_same_id() {
    let bridge = Config::new().start();
    for round in 0..5 {
        let request = signed(&dial("twins", round));
        let answers: Vec<_> = std::thread::scope(|scope| {
            let twins: Vec<_> = (0..16).map(|_| scope.spawn(|| request.send(bridge.webhook).accepted())).collect();
            twins.into_iter().map(|twin| twin.join().unwrap()).collect()
        });
        let ids: BTreeSet<&String> = answers.iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|(_, status)| status == "stored").count(), 1, "{answers:?}");
    }
    assert_eq!(bridge.events().len(), 5);
}

#[test]
fn each_sample_is_accepted_and_is_in_the_feed_as_its_golden_envelope() {
    let bridge = Config::new().start();
    let mut ids = Vec::new();
    let mut expected = Vec::new();
    let mut golden = golden();
    for (name, body) in samples() {
        ids.push(bridge.deliver(&body).stored());
        expected.push(without_received_time(golden.remove(&name).unwrap()));
    }
    let events = bridge.events();
    let found: Vec<&str> = events.iter().map(|event| event.id()).collect();
    assert_eq!(found, ids);
    for (event, expected) in events.iter().zip(expected) {
        assert_eq!(without_received_time(event.envelope.clone()), expected);
    }
}

#[test]
fn what_is_no_delivery_is_answered_400() {
    let bridge = Config::new().start();
    let bodies = [
        format!("not JSON {CANARY}"),
        String::new(),
        format!(r#"[{{"category":"{CANARY}"}}]"#),
        format!(r#""{CANARY}""#),
        format!(r#"{{"application_id":"{CANARY}"}}"#),
        format!(r#"{{"category":17,"application_id":"{CANARY}"}}"#),
        format!(r#"{{"category":null,"application_id":"{CANARY}"}}"#),
        format!(r#"{{"category":"","application_id":"{CANARY}"}}"#),
        format!(r#"{{"category":"room:create","application_id":"{CANARY}""#),
        format!(r#"{{"category":"room:create","application_id":"{CANARY}"}} {{}}"#),
    ];
    for body in &bodies {
        with_canary(signed(body.as_bytes())).send(bridge.webhook).problem(400);
    }
    // Neither is a text that is no UTF-8.
    with_canary(signed(b"{\"category\":\"\xff\"}")).send(bridge.webhook).problem(400);
    // Nor a POST without any body.
    let empty = sendbird_bridge::sendbird::signature::sign(TOKEN, b"");
    with_canary(Request::post(PATH).header("x-sendbird-signature", &empty)).send(bridge.webhook).problem(400);
    let rejected = |reason| bridge.metric("sendbird_bridge_rejected_total", &[("reason", reason)]);
    assert_eq!(rejected("malformed") + rejected("no_category"), bodies.len() as f64 + 2.0);
    assert!(bridge.events().is_empty());
}

#[test]
fn a_signature_that_is_missing_or_wrong_is_answered_401() {
    let bridge = Config::new().start();
    let body = dial(CANARY, 1);
    let unsigned = with_canary(Request::post(PATH).body(&body));
    unsigned.send(bridge.webhook).problem(401);
    let wrong = [signed_by("another token", &body), signed(&dial("other", 1)).body(&body)];
    for request in wrong {
        with_canary(request).send(bridge.webhook).problem(401);
    }
    for value in ["", CANARY, "sha256=00", &"0".repeat(64)] {
        with_canary(Request::post(PATH).header("x-sendbird-signature", value).body(&body))
            .send(bridge.webhook)
            .problem(401);
    }
    let rejected = |reason| bridge.metric("sendbird_bridge_rejected_total", &[("reason", reason)]);
    assert_eq!((rejected("signature_missing"), rejected("signature_wrong")), (1.0, 6.0));
    let present = |present| bridge.metric("sendbird_bridge_signature_headers_total", &[("present", present)]);
    assert_eq!((present("false"), present("true")), (1.0, 6.0));
    assert!(bridge.events().is_empty());
}

#[test]
fn a_signature_by_any_of_the_tokens_is_right_over_the_raw_bytes() {
    let bridge = Config::new().set("access.api_tokens", "['old-token', 'new-token']").start();
    signed_by("old-token", &dial("a", 1)).send(bridge.webhook).stored();
    signed_by("new-token", &dial("a", 2)).send(bridge.webhook).stored();
    signed_by("new-token", &dial("a", 2)).send(bridge.webhook).duplicate();
    signed_by("third-token", &dial("a", 3)).send(bridge.webhook).problem(401);
    // Worked out elsewhere: printf '%s' '{"category":"a\/b"}' | openssl dgst -sha256 -hmac 'old-token'
    let known = "435892599be79addad8c225738bfb3b305fd3552461ff1174d85c164bebd7e15";
    let request = Request::post(PATH).header("X-Sendbird-Signature", known).body(br#"{"category":"a\/b"}"#);
    request.send(bridge.webhook).stored();
}

#[test]
fn the_signature_may_be_optional_beside_another_authentication_method() {
    let config = Config::new().set("access.signature", "'if-present'").set("access.path_secret", "'s3cret'");
    let bridge = config.start();
    let path = format!("{PATH}/s3cret");
    Request::post(&path).body(&dial("a", 1)).send(bridge.webhook).stored();
    let wrong = Request::post(&path).header("x-sendbird-signature", "00").body(&dial("a", 2));
    wrong.send(bridge.webhook).problem(401);
}

#[test]
fn an_unknown_path_and_a_wrong_path_secret_are_answered_404_alike() {
    let bridge = Config::new().start();
    for path in ["/", "/webhooks", "/webhooks/sendbird/", "/webhooks/sendbird/canary", "/WEBHOOKS/sendbird", "/canary"]
    {
        for method in ["POST", "GET"] {
            let request = Request::new(method, path).body(&dial("a", 1));
            with_canary(request).send(bridge.webhook).problem(404);
        }
    }
    let secret = Config::new().set("access.path_secret", "'right-secret'").start();
    let mut answers = Vec::new();
    for path in
        ["/canary", PATH, "/webhooks/sendbird/", "/webhooks/sendbird/canary", "/webhooks/sendbird/right-secret/"]
    {
        let request = signed(&dial("a", 1));
        let text = String::from_utf8(request.bytes()).unwrap().replacen(PATH, path, 1);
        let mut connection = Connection::open(secret.webhook);
        connection.write(text.as_bytes());
        answers.push(connection.response().problem(404).body.clone());
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "a wrong secret must look like any unknown path");
    let text = String::from_utf8(signed(&dial("a", 1)).bytes()).unwrap();
    let mut connection = Connection::open(secret.webhook);
    connection.write(text.replacen(PATH, "/webhooks/sendbird/right-secret", 1).as_bytes());
    connection.response().stored();
}

#[test]
fn networks_applications_and_a_header_restrict_deliveries() {
    let network = Config::new().set("access.networks", "['10.0.0.0/8']").start();
    with_canary(signed(&dial("a", 1))).send(network.webhook).problem(403);
    // Nobody here is a trusted proxy, so nobody may say where a delivery comes from.
    with_canary(signed(&dial("a", 1)).header("x-forwarded-for", "10.1.2.3")).send(network.webhook).problem(403);

    let proxied =
        Config::new().set("access.networks", "['10.0.0.0/8']").set("access.trusted_proxies", "['127.0.0.0/8']");
    let proxied = proxied.start();
    signed(&dial("a", 1)).header("x-forwarded-for", "192.0.2.1, 10.1.2.3").send(proxied.webhook).stored();
    with_canary(signed(&dial("a", 1)).header("x-forwarded-for", "10.1.2.3, 192.0.2.1"))
        .send(proxied.webhook)
        .problem(403);
    with_canary(signed(&dial("a", 1)).header("x-forwarded-for", CANARY)).send(proxied.webhook).problem(403);

    let application = Config::new().set("access.applications", "['ANOTHER-ONE']").start();
    with_canary(signed(&dial(CANARY, 1))).send(application.webhook).problem(403);
    with_canary(signed(br#"{"category":"room:create"}"#)).send(application.webhook).problem(403);
    signed(br#"{"category":"room:create","application_id":"another-one"}"#).send(application.webhook).stored();

    let header = Config::new().set("access.header", "{ name = 'x-key', value = 'right' }").start();
    with_canary(signed(&dial("a", 1))).send(header.webhook).problem(401);
    with_canary(signed(&dial("a", 1)).header("x-key", CANARY)).send(header.webhook).problem(401);
    signed(&dial("a", 1)).header("X-Key", "right").send(header.webhook).stored();
}

#[test]
fn another_method_is_answered_405_and_told_the_right_one() {
    let bridge = Config::new().start();
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = with_canary(Request::new(method, PATH)).send(bridge.webhook);
        assert_eq!(answer.problem(405).header("allow"), Some("POST"));
    }
}

#[test]
fn a_body_that_does_not_arrive_in_time_is_answered_408() {
    let bridge = Config::new().set("server.answer_deadline", "'200ms'").start();
    let request = with_canary(signed(&dial(CANARY, 1)));
    let all = request.bytes();
    let mut connection = Connection::open(bridge.webhook);
    connection.write(&all[..all.len() - 1]);
    connection.response().problem(408);
    assert!(bridge.events().is_empty());
    assert_eq!(bridge.metric("sendbird_bridge_rejected_total", &[("reason", "too_slow")]), 1.0);
}

#[test]
fn a_head_that_does_not_arrive_in_time_is_answered_408() {
    let bridge = Config::new().start();
    let begun = Instant::now();
    let mut slow = Connection::open(bridge.webhook);
    slow.write(format!("POST {PATH} HTTP/1.1\r\nhost: canary\r\nx-canary: ").as_bytes());
    // One that sends a byte now and then is no better.
    let mut dripping = Connection::open(bridge.webhook);
    let drops = std::thread::spawn(move || {
        dripping.write(b"POST ");
        for byte in format!("{PATH} HTTP/1.1\r\nx-canary: {}", "x".repeat(200)).bytes() {
            if dripping.try_write(&[byte]).is_err() || begun.elapsed() > Duration::from_secs(9) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let response = dripping.try_response();
        response.map(|response| response.status)
    });
    slow.response().problem(408);
    assert!(slow.is_closed());
    let took = begun.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(9)).contains(&took), "answered after {took:?}");
    // The answer may be lost to bytes that come after it, but the connection is closed all the same.
    if let Ok(status) = drops.join().unwrap() {
        assert_eq!(status, 408);
    }
    assert!(begun.elapsed() < Duration::from_secs(9), "the dripping head was not cut off");
    bridge.deliver(&dial("a", 1)).stored();
}

#[test]
fn a_body_that_is_too_large_is_answered_413_however_it_comes() {
    let bridge = Config::new().start();
    let large = vec![b'x'; 10 * 1024 * 1024];
    with_canary(signed(&large)).send(bridge.webhook).problem(413);
    with_canary(signed(&[]).chunked(&large, 60_000)).send(bridge.webhook).problem(413);

    // A sender that expects 100 is refused before it sends the body.
    let asking = with_canary(signed(&large).header("expect", "100-continue"));
    let mut connection = Connection::open(bridge.webhook);
    connection.write(&asking.head());
    connection.response().problem(413);

    // One byte more than there may be.
    let limit = 256 * 1024;
    with_canary(signed(&large[..=limit])).send(bridge.webhook).problem(413);
    with_canary(signed(&large[..limit])).send(bridge.webhook).problem(400);
    assert_eq!(bridge.metric("sendbird_bridge_rejected_total", &[("reason", "too_large")]), 4.0);
    bridge.deliver(&dial("a", 1)).stored();
}

#[test]
fn a_body_with_a_byte_order_mark_is_the_same_delivery() {
    let bridge = Config::new().start();
    let body = dial("a", 1);
    let marked = [b"\xef\xbb\xbf", &body[..]].concat();
    // The signature covers the bytes that came, mark included.
    let id = bridge.deliver(&marked).stored();
    assert_eq!(bridge.deliver(&body).duplicate(), id);
    let wrong = signed(&body).body(&marked);
    wrong.send(bridge.webhook).problem(401);
    for body in [&b"\xef\xbb\xbf"[..], b"\xef\xbb{}", b"\xef\xbb\xbf\xef\xbb\xbf{}", b"\xff\xfe{\0}\0"] {
        bridge.deliver(body).problem(400);
    }
    assert_eq!(bridge.events().len(), 1);
}

#[test]
fn a_body_with_a_content_encoding_is_answered_415() {
    let bridge = Config::new().start();
    let body = dial("canary", 1);
    for encoding in ["gzip", "GZIP", "br", "deflate", "zstd", "canary", "identity, gzip", "x-gzip,"] {
        let answer = with_canary(signed(&body).header("content-encoding", encoding)).send(bridge.webhook);
        assert_eq!(answer.problem(415).header("accept-encoding"), Some("identity"), "{encoding}");
    }
    // Also one that would be too large, chunked, or asks first.
    let large = vec![b'x'; 1024 * 1024];
    signed(&large).header("content-encoding", "gzip").send(bridge.webhook).problem(415);
    signed(&[]).chunked(&large, 60_000).header("content-encoding", "gzip").send(bridge.webhook).problem(415);
    let asking = signed(&body).header("content-encoding", "gzip").header("expect", "100-continue");
    let mut connection = Connection::open(bridge.webhook);
    connection.write(&asking.head());
    connection.response().problem(415);
    assert_eq!(bridge.metric("sendbird_bridge_rejected_total", &[("reason", "encoding")]), 11.0);
    assert_eq!(bridge.metric("sendbird_bridge_answer_seconds_count", &[("status", "415")]), 11.0);
    // Who has no right signature learns nothing of that.
    Request::post(PATH).header("content-encoding", "gzip").body(&body).send(bridge.webhook).problem(401);
    assert!(bridge.events().is_empty());
    // These say that there is none.
    for (n, encoding) in ["identity", "Identity", "", " , identity,"].iter().enumerate() {
        signed(&dial("b", n as u64)).header("content-encoding", encoding).send(bridge.webhook).stored();
    }
}

#[test]
fn expect_100_continue_is_answered() {
    let bridge = Config::new().start();
    let request = signed(&dial("a", 1)).header("expect", "100-continue");
    let mut connection = Connection::open(bridge.webhook);
    connection.write(&request.head());
    assert_eq!(connection.try_head().unwrap().0, 100);
    connection.write(&dial("a", 1));
    connection.response().stored();
}

#[test]
fn a_source_that_sends_too_much_is_answered_429() {
    let bridge = Config::new().set("access.rate_per_source", "5").start();
    let answers: Vec<_> = (0..40).map(|n| with_canary(signed(&dial("a", n))).send(bridge.webhook)).collect();
    let refused = answers.iter().filter(|answer| answer.status != 200 && answer.problem(429).status == 429).count();
    assert!(refused > 0 && refused < 40, "{refused} of 40 were refused");
    assert_eq!(bridge.metric("sendbird_bridge_rejected_total", &[("reason", "too_many")]), refused as f64);
    assert_eq!(bridge.events().len(), 40 - refused);
    eventually("the source may send again", || bridge.deliver(&dial("b", 1)).status == 200);
}

#[test]
fn a_full_journal_answers_503_until_it_has_space_and_loses_nothing() {
    let config = Config::new()
        .set("journal.max_bytes", "'1MiB'")
        .set("journal.retain_bytes", "'256KiB'")
        .stdout_sink(Stdout::Held);
    let mut bridge = config.start();
    assert!(bridge.is_ready());
    let mut stored = Vec::new();
    // First large events, then small ones for what is left.
    let mut refused = 0.0;
    for bytes in [40_000, 1] {
        loop {
            let answer = bridge.deliver(&large("canary", stored.len() as u64, bytes));
            if answer.status != 200 {
                answer.problem(503);
                refused += 1.0;
                break;
            }
            stored.push(answer.stored());
            assert!(stored.len() < 200, "the journal is never full");
        }
    }
    assert_eq!(bridge.metric("sendbird_bridge_rejected_total", &[("reason", "full")]), refused);
    assert_eq!(bridge.metric("sendbird_bridge_late_commits_total", &[]), 0.0, "what is refused is not stored");
    eventually("it is not ready", || bridge.admin("/readyz").status == 503);
    bridge.admin("/readyz").problem(503);
    assert_eq!(bridge.admin("/livez").status, 200, "it is alive all the same");
    assert_eq!(bridge.metric("sendbird_bridge_journal_healthy", &[]), 0.0);
    assert_eq!(bridge.status()["journal"]["health"], "full");

    bridge.process.read_stdout();
    eventually("it is ready again", || bridge.is_ready());
    stored.push(bridge.deliver(&dial("canary", 1_000)).stored());
    assert_eq!(bridge.metric("sendbird_bridge_journal_healthy", &[]), 1.0);
    bridge.caught_up();
    let ended = bridge.stop();
    let printed: Vec<String> = ended
        .stdout
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(printed, stored);
}

#[test]
fn events_that_are_stored_after_their_sender_was_answered_503_or_hung_up_are_counted() {
    let (shim, config) = Shim::under(Config::new().set("server.answer_deadline", "'200ms'"));
    let bridge = config.start();
    let late = || bridge.metric("sendbird_bridge_late_commits_total", &[]);
    bridge.deliver(&dial("in-time", 1)).stored();
    bridge.deliver(&dial("in-time", 1)).duplicate();
    assert_eq!(late(), 0.0);

    shim.delay_syncs(Duration::from_secs(1));
    bridge.deliver(&dial("answered-503", 1)).problem(503);
    let mut hangs_up = Connection::open(bridge.webhook);
    hangs_up.write(&signed(&dial("hangs-up", 1)).bytes());
    drop(hangs_up);
    eventually("both are stored", || bridge.events().len() == 3);
    shim.heal();
    eventually("both are counted", || late() == 2.0);
    // What tells that another replica would publish them a second time: here their retries are known.
    bridge.deliver(&dial("answered-503", 1)).duplicate();
    bridge.deliver(&dial("hangs-up", 1)).duplicate();
    assert_eq!(late(), 2.0, "a duplicate is no commit");
}

#[test]
fn a_connection_too_many_is_answered_503_and_closed() {
    let bridge = Config::new().set("server.max_connections", "2").start();
    let mut first = Connection::open(bridge.webhook);
    let mut second = Connection::open(bridge.webhook);
    first.send(&signed(&dial("a", 1))).stored();
    second.send(&signed(&dial("a", 2))).stored();
    let mut third = Connection::open(bridge.webhook);
    third.response().problem(503);
    assert!(third.is_closed());
    assert_eq!(bridge.metric("sendbird_bridge_connections", &[]), 2.0);
    // Those that are open go on, and when one closes there is room.
    first.send(&signed(&dial("a", 3))).stored();
    drop(second);
    eventually("there is room again", || {
        signed(&dial("a", 4)).try_send(bridge.webhook).is_ok_and(|it| it.status == 200)
    });
}

#[test]
fn senders_that_read_no_answers_lose_their_connections() {
    let bridge = Config::new().set("server.max_connections", "4").start();
    let address = bridge.webhook;
    let filling: Vec<_> = (0..4).map(|_| std::thread::spawn(move || fill_with_answers(address))).collect();
    let unread: Vec<TcpStream> = filling.into_iter().map(|filling| filling.join().unwrap()).collect();
    signed(&dial("a", 1)).send(bridge.webhook).problem(503);
    eventually_within(Duration::from_secs(90), "there is room again", || {
        signed(&dial("a", 1)).try_send(bridge.webhook).is_ok_and(|it| it.status == 200)
    });
    let timed_out = || bridge.metric("sendbird_bridge_rejected_total", &[("reason", "write_timeout")]);
    eventually("each is counted", || timed_out() == 4.0);
    drop(unread);
}

/// Sends requests and reads no answer, until the bridge can't write any more and so reads no more either.
fn fill_with_answers(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let requests = Request::get("/nothing").bytes().repeat(1_000);
    while stream.write_all(&requests).is_ok() {}
    stream
}

#[test]
fn a_connection_is_kept_for_many_deliveries() {
    let bridge = Config::new().start();
    let mut connection = Connection::open(bridge.webhook);
    for n in 0..100 {
        connection.send(&signed(&dial("a", n))).stored();
    }
    // A refusal does not end it either.
    connection.send(&Request::get(PATH)).problem(405);
    connection.send(&signed(b"nonsense")).problem(400);
    connection.send(&signed(&dial("a", 0))).duplicate();
    assert_eq!(bridge.events().len(), 100);
    assert_eq!(bridge.metric("sendbird_bridge_connections", &[]), 1.0);
}

#[test]
fn pipelined_deliveries_are_answered_in_their_order() {
    let bridge = Config::new().start();
    let mut connection = Connection::open(bridge.webhook);
    let all: Vec<u8> = (0..20).flat_map(|n| signed(&dial("a", n)).bytes()).collect();
    connection.write(&all);
    let answered: Vec<String> = (0..20).map(|_| connection.response().stored()).collect();
    let stored: Vec<String> = bridge.events().iter().map(|event| event.id().to_owned()).collect();
    assert_eq!(answered, stored);
}

#[test]
fn a_delivery_whose_sender_hangs_up_is_stored_all_the_same() {
    let bridge = Config::new().start();
    for n in 0..10 {
        let mut connection = Connection::open(bridge.webhook);
        connection.write(&signed(&dial("a", n)).bytes());
        drop(connection);
    }
    eventually("all are in the feed", || bridge.events().len() == 10);
}

#[test]
fn a_sender_that_sends_no_more_is_answered() {
    let bridge = Config::new().start();
    let mut connection = Connection::open(bridge.webhook);
    connection.write(&signed(&dial("a", 1)).bytes());
    connection.finish_writing();
    connection.response().stored();
    assert!(connection.is_closed());
}

#[test]
fn a_body_that_breaks_off_is_not_stored() {
    let bridge = Config::new().start();
    let all = signed(&dial("a", 1)).bytes();
    let mut connection = Connection::open(bridge.webhook);
    connection.write(&all[..all.len() - 5]);
    drop(connection);
    let labels = [("reason", "interrupted")];
    eventually_within(Duration::from_secs(5), "it is counted", || {
        // hyper drops the request of a sender that has gone for good, or gives its reader an error.
        bridge.metric("sendbird_bridge_rejected_total", &labels) == 1.0
            || bridge.metric("sendbird_bridge_connections", &[]) == 0.0
    });
    assert!(bridge.events().is_empty());
}

#[test]
fn the_content_type_does_not_matter_and_chunks_are_taken() {
    let bridge = Config::new().start();
    for (n, content_type) in [None, Some("application/json; charset=UTF-8"), Some("text/plain")].iter().enumerate() {
        let body = dial("a", n as u64);
        let signature = sendbird_bridge::sendbird::signature::sign(TOKEN, &body);
        let mut request = Request::post(PATH).header("x-sendbird-signature", &signature);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.body(&body).send(bridge.webhook).stored();
    }
    let body = dial("b", 1);
    signed(&body).chunked(&body, 7).send(bridge.webhook).stored();
}

#[test]
fn every_answer_is_timed_by_its_status() {
    let bridge = Config::new().start();
    bridge.deliver(&dial("a", 1)).stored();
    Request::get("/").send(bridge.webhook).problem(404);
    let count = |status| bridge.metric("sendbird_bridge_answer_seconds_count", &[("status", status)]);
    assert_eq!((count("200"), count("404")), (1.0, 1.0));
}

#[test]
fn what_is_no_http_is_refused_and_does_no_harm() {
    let bridge = Config::new().start();
    let long = "canary".repeat(100_000);
    let requests = [
        ("GARBAGE canary\r\n\r\n".to_owned(), 400),
        ("\u{16}\u{3}\u{1}canary".to_owned(), 400),
        (format!("POST /{} HTTP/1.1\r\nhost: bridge\r\n\r\n", "canary".repeat(12_000)), 431),
        (format!("POST {PATH} HTTP/1.1\r\nhost: bridge\r\nx-canary: {long}\r\n\r\n"), 431),
        (format!("POST {PATH} HTTP/1.1\r\nhost: bridge\r\n{}\r\n", "x-canary: 1\r\n".repeat(1_000)), 431),
        (format!("POST {PATH} HTTP/1.1\r\nhost: bridge\r\ncontent-length: canary\r\n\r\n"), 400),
    ];
    for (request, status) in &requests {
        let mut connection = Connection::open(bridge.webhook);
        // What is too long may be refused before its end.
        connection.try_write(request.as_bytes()).ok();
        if let Ok(answer) = connection.try_response() {
            assert_eq!(answer.status, *status, "{answer:?}");
            assert!(!format!("{:?}{}", answer.headers, answer.text()).contains("canary"), "{answer:?}");
        }
        assert!(connection.is_closed());
    }
    // What two readers could understand differently: its length is not believed, and no second request hides in it.
    let body = dial("a", 1);
    let hidden = signed(&dial("hidden", 1)).bytes();
    let smuggled = signed(&body).chunked(&body, 1_000).header("content-length", "4");
    let mut connection = Connection::open(bridge.webhook);
    connection.write(&[smuggled.bytes(), hidden].concat());
    assert_eq!(connection.response().status, 200);
    assert!(connection.is_closed());
    assert_eq!(bridge.events().len(), 1);
    bridge.deliver(&dial("a", 2)).stored();
}

#[test]
fn a_bridge_that_runs_out_of_file_descriptors_recovers() {
    let bridge = Config::new().file_descriptors(64).start();
    bridge.deliver(&dial("a", 1)).stored();
    // More than it can have. It gives deliveries no more than half of all, so they come from the other side.
    let many: Vec<Connection> = (0..100).map(|_| Connection::open(bridge.admin)).collect();
    let mut kept = Connection::open(bridge.webhook);
    drop(many);
    kept.send(&signed(&dial("a", 2))).stored();
    bridge.deliver(&dial("a", 3)).stored();
    // The others are gone for the bridge when it has seen so; until then, the feed may find no file descriptor.
    eventually("the feed can be read", || bridge.admin("/events?follow=false").status == 200);
    assert_eq!(bridge.events().len(), 3);
}

#[test]
fn an_answer_does_not_wait_for_who_reads_it() {
    let bridge = Config::new().start();
    // Many deliveries on one connection, and no answer is read before all are sent.
    let mut deaf = Connection::open(bridge.webhook);
    let writing = std::thread::spawn(move || {
        for n in 0..2_000 {
            deaf.write(&signed(&dial("deaf", n)).bytes());
        }
        (0..2_000).map(|_| deaf.response().stored()).count()
    });
    for n in 0..50 {
        bridge.deliver(&dial("a", n)).stored();
    }
    assert_eq!(writing.join().unwrap(), 2_000);
    assert_eq!(bridge.events().len(), 2_050);
}
