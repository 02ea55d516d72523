//! The trace of a delivery goes on with its event, and changes nothing else about it.

use serde_json::Value;

use crate::sinks::for_each_broker;
use crate::support::bridge::{Bridge, Config, signed};
use crate::support::broker::Kind;
use crate::support::broker::Message;
use crate::support::samples::dial;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

for_each_broker! {
    a_trace_arrives_with_its_event
}

/// Delivers and gives the id of what is stored.
fn deliver(bridge: &Bridge, call: &str, traces: &[&str]) -> String {
    let request = traces.iter().fold(signed(&dial(call, 1)), |request, trace| request.header("traceparent", trace));
    request.send(bridge.webhook).stored()
}

fn a_trace_arrives_with_its_event(kind: Kind) {
    let (structured, binary) = (kind.place().made(), kind.place().made());
    let config = binary.sink(structured.sink(Config::new(), "structured"), "binary");
    let bridge = config.set("sinks.binary.format", "'binary'").start();
    let traced = deliver(&bridge, "traced", &[TRACE]);
    let plain = deliver(&bridge, "plain", &[]);
    let odd = deliver(&bridge, "odd", &["canary-no-trace"]);
    bridge.caught_up();

    for (place, format) in [(&structured, "structured"), (&binary, "binary")] {
        let messages = place.consume();
        let header = |id: &String, name: &str| {
            let of = |message: &&Message| &message.id == id;
            messages.iter().find(of).expect("a message").headers.get(name).cloned()
        };
        assert_eq!(header(&traced, "traceparent").as_deref(), Some(TRACE), "{format}");
        let attribute = format!("{}traceparent", kind.prefix(format));
        let expected = (format == "binary").then_some(TRACE);
        assert_eq!(header(&traced, &attribute).as_deref(), expected, "{format}");
        if format == "structured" {
            let message = messages.iter().find(|message| message.id == traced).unwrap();
            assert_eq!(message.json()["traceparent"], TRACE);
        }
        for id in [&plain, &odd] {
            assert_eq!((header(id, "traceparent"), header(id, &attribute)), (None, None), "{format}");
        }
    }
}

#[test]
fn a_trace_is_kept_with_the_event_and_is_no_part_of_its_identity() {
    let config = Config::new();
    let bridge = config.start();
    let id = deliver(&bridge, "traced", &[TRACE]);
    let other = TRACE.replace("4bf9", "aaaa");
    let retry = |trace: &str| signed(&dial("traced", 1)).header("traceparent", trace).send(bridge.webhook).duplicate();
    assert_eq!(retry(&other), id, "a retry has a trace of its own");
    assert_eq!(bridge.deliver(&dial("traced", 1)).duplicate(), id, "a retry has none");
    assert_eq!(bridge.stop().code(), Some(0));

    let bridge = config.start();
    let traces: Vec<Value> = bridge.events().iter().map(|event| event.envelope["traceparent"].clone()).collect();
    assert_eq!(traces, [TRACE], "the first one's, also after a restart");

    // A bridge that never received a trace gives the event the same id.
    let fresh = Config::new().start();
    assert_eq!(fresh.deliver(&dial("traced", 1)).stored(), id);
    assert!(!fresh.events()[0].line.contains("traceparent"));
}

#[test]
fn what_is_no_trace_is_ignored_and_the_delivery_taken() {
    let bridge = Config::new().start();
    let too_long = format!("{TRACE}{}", "0".repeat(8_000));
    let upper = TRACE.to_uppercase();
    let invalid: [&[&str]; 6] = [
        &[""],
        &["canary"],
        &[&upper],
        &[&too_long],
        &["00-00000000000000000000000000000000-00f067aa0ba902b7-01"],
        // Nobody knows which of two is right.
        &[TRACE, TRACE],
    ];
    for (n, traces) in invalid.iter().enumerate() {
        deliver(&bridge, &format!("k{n}"), traces);
    }
    // A version of the future goes on as ours.
    deliver(&bridge, "future", &["cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"]);
    let events = bridge.events();
    assert_eq!(events.len(), invalid.len() + 1);
    let (last, ignored) = events.split_last().unwrap();
    for event in ignored {
        assert!(!event.line.contains("traceparent"), "{}", event.line);
    }
    assert_eq!(last.envelope["traceparent"], TRACE);
}
