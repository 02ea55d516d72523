//! Traces as a collector sees them, and what becomes of everything else when there is none.

use std::collections::BTreeSet;
use std::time::Instant;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sendbird_bridge::traces::export::FLUSH_LIMIT;

use crate::support::bridge::{Bridge, Config, signed, signed_by};
use crate::support::certificates::Authority;
use crate::support::collector::{Answer, Collector};
use crate::support::http::Response;
use crate::support::process::Stdout;
use crate::support::samples::{dial, with_items};
use crate::support::senders::Senders;
use crate::support::{PATIENCE, eventually};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const PARENT: &str = "00f067aa0ba902b7";

/// A sink that prints, so that each event has a publish.
fn printing() -> Config {
    Config::new().stdout_sink(Stdout::Read)
}

fn traced(bridge: &Bridge, body: &[u8], traceparent: &str) -> Response {
    signed(body).header("traceparent", traceparent).send(bridge.webhook)
}

/// The traces of the events that are kept, in their order.
fn kept(bridge: &Bridge) -> Vec<Option<String>> {
    let trace = |event: crate::support::bridge::Event| event.envelope["traceparent"].as_str().map(str::to_owned);
    bridge.events().into_iter().map(trace).collect()
}

fn spans(bridge: &Bridge, outcome: &str) -> f64 {
    bridge.metric("sendbird_bridge_trace_spans_total", &[("outcome", outcome)])
}

#[test]
fn a_delivery_and_its_publish_are_spans_of_the_trace_that_was_given() {
    let collector = Collector::start();
    let bridge = collector.config(printing()).start();
    let id = traced(&bridge, &dial("given", 1), GIVEN).stored();
    let (deliveries, publishes) = collector.wait_for(1, 1);
    let (delivery, publish) = (&deliveries[0], &publishes[0]);

    assert_eq!((delivery.trace.as_str(), delivery.parent.as_str()), (TRACE, PARENT));
    assert_eq!(delivery.flags, 0x301, "sampled, of a parent that is known to be of another process");
    assert_eq!(delivery.name, "POST /webhooks/sendbird");
    let says: Vec<(&str, &str)> =
        delivery.attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let expected = [
        ("cloudevents.event_id", id.as_str()),
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("http.route", "/webhooks/sendbird"),
        ("sendbird_bridge.category", "direct_call:dial"),
        ("sendbird_bridge.outcome", "stored"),
        ("url.path", "/webhooks/sendbird"),
        ("url.scheme", "http"),
    ];
    assert_eq!(says, expected, "this and nothing else");

    assert_eq!((publish.trace.as_str(), &publish.parent), (TRACE, &delivery.id));
    assert_eq!(publish.links, [(delivery.trace.clone(), delivery.id.clone())], "the context that the message carries");
    assert_eq!((publish.kind, publish.name.as_str()), (SpanKind::Client, "publish"));
    let says: Vec<(&str, &str)> =
        publish.attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let expected = [
        ("messaging.message.id", id.as_str()),
        ("messaging.operation.name", "publish"),
        ("messaging.operation.type", "send"),
        ("messaging.system", "stdout"),
        ("sendbird_bridge.category", "direct_call:dial"),
        ("sendbird_bridge.resend", "false"),
        ("sendbird_bridge.retries", "0"),
        ("sendbird_bridge.sink", "lines"),
    ];
    assert_eq!(says, expected, "this and nothing else");

    assert!(!delivery.failed && !publish.failed);
    assert!(delivery.begun_ns < delivery.ended_ns && publish.begun_ns < publish.ended_ns);
    assert!(delivery.begun_ns < publish.begun_ns, "it was received before it was published");
    assert_eq!(kept(&bridge), [Some(delivery.traceparent())], "what goes on is the bridge's own span");
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "sendbird-bridge");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert!(resource["service.instance.id"].len() == 36 && resource.len() == 3, "{resource:?}");
    eventually("they are counted", || spans(&bridge, "exported") == 2.0);
    assert_eq!((spans(&bridge, "refused"), spans(&bridge, "unsent"), spans(&bridge, "overflowed")), (0.0, 0.0, 0.0));
}

#[test]
fn a_delivery_without_a_trace_begins_one() {
    let collector = Collector::start();
    let bridge = collector.config(printing()).set("traces.service_name", "'calls'").start();
    for n in 0..20 {
        // What is no trace is none.
        if n % 2 == 0 {
            bridge.deliver(&dial("k", n)).stored()
        } else {
            traced(&bridge, &dial("k", n), "x").stored()
        };
    }
    let (deliveries, publishes) = collector.wait_for(20, 20);
    assert!(deliveries.iter().all(|span| span.parent.is_empty() && span.flags == 0x101), "{deliveries:#?}");
    let traces: BTreeSet<&str> = deliveries.iter().map(|span| span.trace.as_str()).collect();
    let ids: BTreeSet<&str> = deliveries.iter().chain(&publishes).map(|span| span.id.as_str()).collect();
    assert_eq!((traces.len(), ids.len()), (20, 40), "each has its own");
    let own: Vec<Option<String>> = deliveries.iter().map(|span| Some(span.traceparent())).collect();
    assert_eq!(kept(&bridge), own);
    for (delivery, publish) in deliveries.iter().zip(&publishes) {
        assert_eq!((&publish.trace, &publish.parent), (&delivery.trace, &delivery.id));
    }
    assert_eq!(collector.resource()["service.name"], "calls");
}

#[test]
fn who_gave_a_trace_decides_whether_it_is_recorded_and_otherwise_the_ratio_does() {
    let collector = Collector::start();
    let bridge = collector.config(printing()).set("traces.sample", "0").start();
    let unsampled = GIVEN.replace("-01", "-00");
    bridge.deliver(&dial("none", 1)).stored();
    traced(&bridge, &dial("unsampled", 1), &unsampled).stored();
    traced(&bridge, &dial("sampled", 1), GIVEN).stored();
    // They come in order, so what was not to be recorded would be here now.
    let (deliveries, _) = collector.wait_for(1, 1);
    assert_eq!(deliveries[0].trace, TRACE);
    assert_eq!(kept(&bridge), [None, Some(unsampled), Some(deliveries[0].traceparent())], "and goes on as it came");
}

#[test]
fn a_duplicate_has_a_span_of_its_own_and_the_event_keeps_its_first() {
    let collector = Collector::start();
    let bridge = collector.config(printing()).start();
    traced(&bridge, &dial("k", 1), GIVEN).stored();
    traced(&bridge, &dial("k", 1), &GIVEN.replace("4bf9", "aaaa")).duplicate();
    bridge.deliver(&dial("k", 1)).duplicate();
    let (deliveries, publishes) = collector.wait_for(3, 1);
    let outcomes: Vec<&str> = deliveries.iter().map(|span| span.says("sendbird_bridge.outcome")).collect();
    assert_eq!(outcomes, ["stored", "duplicate", "duplicate"]);
    assert!(deliveries[1].trace.starts_with("aaaa") && deliveries[2].parent.is_empty());
    assert_eq!(publishes[0].parent, deliveries[0].id);
    assert_eq!(kept(&bridge), [Some(deliveries[0].traceparent())]);
}

#[test]
fn rejected_deliveries_have_a_span_only_once_authenticated() {
    let collector = Collector::start();
    let bridge = collector.config(Config::new()).set("access.applications", "['another']").start();
    signed_by("wrong", &dial("k", 1)).header("traceparent", GIVEN).send(bridge.webhook).problem(401);
    signed(b"{}").to("/elsewhere").send(bridge.webhook).problem(404);
    traced(&bridge, b"[]", GIVEN).problem(400);
    traced(&bridge, &dial("k", 1), GIVEN).problem(403);
    let (deliveries, _) = collector.wait_for(2, 0);
    let outcome = |n: usize| {
        let says = |key| deliveries[n].says(key);
        (says("http.response.status_code"), says("sendbird_bridge.outcome"), says("sendbird_bridge.reason"))
    };
    assert_eq!(outcome(0), ("400", "refused", "malformed"));
    assert_eq!(outcome(1), ("403", "refused", "application"));
    assert!(!deliveries[0].attributes.contains_key("cloudevents.event_id"), "{deliveries:#?}");
    assert!(deliveries.iter().all(|span| !span.failed), "a refusal is the sender's failure");
}

#[test]
fn what_is_published_after_a_restart_is_in_the_trace_that_was_stored() {
    let config = printing();
    let bridge = config.start();
    // Before there were spans, in a trace of another's.
    traced(&bridge, &dial("before", 1), GIVEN).stored();
    eventually("it is published", || bridge.printed().count() == 1);
    assert_eq!(bridge.stop().code(), Some(0));

    let collector = Collector::start();
    // A sink that is new begins with what is kept.
    let bridge = collector.config(config).set("sinks.late.type", "'stdout'").start();
    let (_, publishes) = collector.wait_for(0, 1);
    assert_eq!((publishes[0].trace.as_str(), publishes[0].parent.as_str()), (TRACE, PARENT));
    assert_eq!(publishes[0].says("sendbird_bridge.sink"), "late");
    assert_eq!(kept(&bridge), [Some(GIVEN.to_owned())]);
}

#[test]
fn a_collector_that_is_busy_gets_the_spans_later_and_all_are_counted() {
    let first = [Answer::Status(503), Answer::Status(429), Answer::Takes, Answer::Status(400), Answer::Refuses(1)];
    let collector = Collector::answering(&first, Answer::Takes);
    let bridge = collector.config(Config::new()).start();
    let counted = || (spans(&bridge, "exported"), spans(&bridge, "refused"), spans(&bridge, "unsent"));
    for (n, expected) in [(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 2.0, 0.0), (2.0, 2.0, 0.0)].into_iter().enumerate() {
        bridge.deliver(&dial(&format!("k{n}"), 1)).stored();
        eventually("the span is dealt with", || counted() == expected);
    }
    let answers: Vec<Answer> = collector.got().iter().map(|got| got.answer).collect();
    assert_eq!(answers, [&first[..], &[Answer::Takes]].concat());
    let got = collector.got();
    assert!(got[0].body == got[1].body && got[1].body == got[2].body, "the same batch");
    let dropped: Vec<String> =
        bridge.log().so_far().into_iter().filter(|line| line.contains("spans dropped")).collect();
    assert!(dropped.len() == 1 && dropped[0].contains("400"), "one line for a while: {dropped:?}");
}

/// Delivers, sees all published, and stops in time.
fn works_as_ever(config: &Config) {
    let bridge = config.start();
    for n in 0..200 {
        bridge.deliver(&dial("k", n)).stored();
    }
    eventually("all are published", || bridge.printed().count() == 200);
    let begun = Instant::now();
    bridge.process.terminate();
    let ended = bridge.process.wait_within(PATIENCE);
    let took = begun.elapsed();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert!(took < 3 * FLUSH_LIMIT, "the stop took {took:?}");
    let dropped = ended.stderr.iter().filter(|line| line.contains("spans dropped")).count();
    assert_eq!(dropped, 1, "{}", ended.stderr());
    assert!(ended.stderr.iter().all(|line| !line.contains("ERROR")), "{}", ended.stderr());
}

#[test]
fn a_collector_that_hangs_delays_nothing() {
    let collector = Collector::answering(&[], Answer::Hangs);
    works_as_ever(&collector.config(printing()));
    assert_eq!(collector.got().len(), 1, "it was asked, and hung");
}

#[test]
fn spans_that_fit_nowhere_are_dropped_and_nothing_else_is() {
    let collector = Collector::answering(&[], Answer::Hangs);
    let bridge = collector.config(printing()).start();
    let senders = Senders::start(bridge.webhook, 8);
    eventually("the queue is full", || spans(&bridge, "overflowed") > 100.0);
    let heard = senders.finish();
    assert!(heard.others.is_empty() && heard.refused == 0, "{:?}", heard.others);
    eventually("all are published", || bridge.printed().count() == heard.sent.len());
    assert_eq!(bridge.events().len(), heard.sent.len());
    let made = 2 * heard.sent.len() as u64;
    let overflowed = spans(&bridge, "overflowed") as u64;
    let ended = bridge.stop();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    // All that were made are accounted for.
    let counts = ended.stderr.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let counted: u64 = counts
        .filter(|line| line["message"].as_str().is_some_and(|said| said.contains("dropped")))
        .map(|line| line["count"].as_u64().unwrap())
        .sum();
    assert_eq!(counted, made, "{overflowed} of them overflowed: {}", ended.stderr());
}

#[test]
fn a_collector_that_is_away_delays_nothing() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    works_as_ever(&printing().set("traces.endpoint", &format!("'http://{nobody}'")));
    // A name that nobody knows.
    works_as_ever(&printing().set("traces.endpoint", "'http://collector.invalid:4318'"));
}

#[test]
fn a_stop_sends_what_is_left() {
    let collector = Collector::start();
    let bridge = collector.config(printing()).start();
    for n in 0..5 {
        bridge.deliver(&dial("k", n)).stored();
    }
    eventually("all are published", || bridge.printed().count() == 5);
    assert_eq!(bridge.stop().code(), Some(0));
    let all = collector.spans();
    assert_eq!(all.len(), 10, "{all:#?}");
}

#[test]
fn spans_go_over_tls_to_a_collector_of_ones_own_authority_and_to_no_other() {
    let config = printing();
    let authority = Authority::new(&config.dir().join("ca"));
    let files = authority.issue("127.0.0.1");
    rustls::crypto::ring::default_provider().install_default().ok();
    let chain = vec![CertificateDer::from_pem_file(&files.cert_file).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&files.key_file).unwrap();
    let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let collector = Collector::secure(tls);
    let ca_file = |file: &std::path::Path| format!("'{}'", file.display());

    let bridge = collector.config(config.clone()).set("traces.ca_file", &ca_file(&authority.ca_file)).start();
    bridge.deliver(&dial("k", 1)).stored();
    eventually("spans are exported", || spans(&bridge, "exported") > 0.0);
    assert_eq!(bridge.stop().code(), Some(0));

    let before = collector.got().len();
    let other = Authority::new(&config.dir().join("other"));
    let bridge = collector.config(config).set("traces.ca_file", &ca_file(&other.ca_file)).start();
    bridge.deliver(&dial("k", 3)).stored();
    let ended = bridge.stop();
    let said = ended.stderr.iter().find(|line| line.contains("spans dropped")).expect("a line");
    assert!(said.contains("UnknownIssuer"), "{said}");
    assert_eq!(collector.got().len(), before);
}

#[test]
fn a_collector_sees_its_key_and_nothing_that_a_sender_wrote_and_the_log_sees_no_key() {
    let collector = Collector::start();
    let config = printing();
    let file = config.dir().join("key");
    std::fs::write(&file, "Bearer canary-key\n").unwrap();
    let bridge = collector
        .config(config)
        .set("traces.header.name", "'Authorization'")
        .set("traces.header.value_file", &format!("'{}'", file.display()))
        .set("access.path_secret", "'canary-path'")
        .variable("RUST_LOG", "trace,hyper=trace,hyper_util=trace,rustls=trace")
        .start();
    let deliver = |body: &[u8]| {
        let request = signed(body).to("/webhooks/sendbird/canary-path").header("traceparent", GIVEN);
        request.header("tracestate", "canary=state").header("baggage", "canary=1").send(bridge.webhook)
    };
    deliver(&with_items("canary-call", 1, &serde_json::json!({ "canary": "canary" }))).stored();
    deliver(br#"{"category":"canary:category","application_id":"canary-app","canary":1}"#).stored();
    deliver(b"canary").problem(400);
    let (deliveries, _) = collector.wait_for(3, 2);
    let ended = bridge.stop();
    for got in collector.got() {
        assert_eq!(got.headers["authorization"], "Bearer canary-key");
        assert_eq!((got.path.as_str(), got.headers["content-type"].as_str()), ("/v1/traces", "application/x-protobuf"));
        assert!(!String::from_utf8_lossy(&got.body).contains("canary"), "{:#?}", collector.spans());
    }
    for delivery in &deliveries {
        assert_eq!(delivery.name, "POST /webhooks/sendbird/{path_secret}");
        assert_eq!(delivery.says("url.path"), "/webhooks/sendbird/REDACTED");
    }
    assert!(deliveries.iter().any(|span| span.says_category() == Some("other")), "{deliveries:#?}");
    let line = ended.stderr.iter().find(|line| line.contains("canary"));
    assert!(line.is_none(), "{line:?}");
}

#[test]
fn without_an_endpoint_there_are_no_spans_whatever_the_environment_says() {
    let collector = Collector::start();
    let bridge = printing()
        .variable("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())
        .variable("OTEL_TRACES_SAMPLER", "always_on")
        .start();
    traced(&bridge, &dial("traced", 1), GIVEN).stored();
    bridge.deliver(&dial("plain", 1)).stored();
    eventually("both are published", || bridge.printed().count() == 2);
    assert_eq!(kept(&bridge), [Some(GIVEN.to_owned()), None], "what was given goes on");
    assert!(!bridge.metrics().text.contains("trace_spans"));
    assert_eq!(bridge.stop().code(), Some(0));
    assert!(collector.got().is_empty());
}

#[test]
fn what_is_wrong_with_the_configuration_is_named() {
    let config = Config::new()
        .set("traces.endpoint", "'collector:4318'")
        .set("traces.sample", "1.5")
        .set("traces.header", "{ name = 'a b', value = 'canary' }");
    let ended = config.refused();
    assert_eq!(ended.code(), Some(64));
    for key in ["traces.endpoint", "traces.sample", "traces.header.name"] {
        assert!(ended.stderr().contains(key), "{}", ended.stderr());
    }
    assert!(!ended.stderr().contains("canary"));
    let ended = Config::new().set("traces.sample", "1").refused();
    assert!(ended.stderr().contains("endpoint"), "{}", ended.stderr());
    let shown = Config::new()
        .set("traces.endpoint", "'http://c:4318'")
        .set("traces.header", "{ name = 'x', value = 'canary' }");
    let shown = shown.process(&["config", "show"]).wait();
    assert!(shown.stdout().contains("traces.sample = 1.0") && !shown.stdout().contains("canary"), "{}", shown.stdout());
}

#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod brokers {
    use super::*;
    use crate::sinks::for_each_broker;
    use crate::support::broker::{Kind, Limits};
    use crate::support::samples::{large, samples};

    for_each_broker! {
        a_message_names_the_span_of_its_delivery
        an_event_that_is_set_aside_has_a_span_that_failed
    }

    fn a_message_names_the_span_of_its_delivery(kind: Kind) {
        let collector = Collector::start();
        let place = kind.place().made();
        let bridge = collector.config(place.sink(Config::new(), "broker")).start();
        traced(&bridge, &dial("given", 1), GIVEN).stored();
        bridge.deliver(&dial("own", 1)).stored();
        bridge.caught_up();
        let (deliveries, publishes) = collector.wait_for(2, 2);
        for message in place.consume() {
            let delivery = deliveries.iter().find(|span| span.says("cloudevents.event_id") == message.id).unwrap();
            let publish = publishes.iter().find(|span| span.says("messaging.message.id") == message.id).unwrap();
            assert_eq!(message.headers["traceparent"], delivery.traceparent());
            assert_eq!(message.json()["traceparent"], delivery.traceparent());
            assert_eq!((&publish.trace, &publish.parent), (&delivery.trace, &delivery.id));
            assert_eq!(
                (publish.says("messaging.system"), publish.says("sendbird_bridge.sink")),
                (kind.label(), "broker")
            );
            let template = publish.says("messaging.destination.template");
            assert!(template.contains(&place.name) && template.contains("{object}"), "{template}");
            assert_eq!(publish.name, format!("publish {template}"));
        }
    }

    fn an_event_that_is_set_aside_has_a_span_that_failed(kind: Kind) {
        let collector = Collector::start();
        let place = kind.place();
        // RabbitMQ has no limit of bytes for a queue, but it sends back what no queue wants.
        let (limits, refused, reason) = match kind.label() {
            "rabbitmq" => {
                let limits = Limits { no_rooms: true, ..Limits::default() };
                (limits, samples()["room.create"].clone(), "unroutable")
            }
            _ => {
                let limits = Limits { bytes: Some(8_000), ..Limits::default() };
                (limits, large("large", 2, 20_000), "too_large")
            }
        };
        place.make(limits);
        let bridge = collector.config(place.sink(Config::new(), "broker")).start();
        bridge.deliver(&refused).stored();
        let (deliveries, publishes) = collector.wait_for(1, 1);
        assert!(publishes[0].failed && !deliveries[0].failed, "{publishes:#?}");
        assert_eq!(publishes[0].says("error.type"), reason);
        assert_eq!(publishes[0].parent, deliveries[0].id);
    }
}
