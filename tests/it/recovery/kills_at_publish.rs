//! `kill -9` at each step between a broker and the cursor: after a publish and before its acknowledgement, and after
//! that and before the cursor is durable.
//!
//! A proxy keeps the broker's answers back, so that the moments can be waited for; the shim under the journal kills at
//! the write of the cursor. The steps before a publish are in `kills_at_journal_steps.rs`.

use std::collections::{BTreeMap, BTreeSet};

use crate::sinks::for_each_broker;
use crate::support::bridge::{Bridge, Config};
use crate::support::broker::{Kind, Message, Own, Place};
use crate::support::crash_state::{durable_cursor, killed, say, verify};
use crate::support::eventually;
use crate::support::oracle::{Arrived, Id, Sent, judge};
use crate::support::proxy::Proxy;
use crate::support::samples::dial;
use crate::support::shim::{Of, Shim, Step};

for_each_broker! {
    a_kill_between_publish_and_cursor_duplicates_but_loses_nothing
}

/// A place, and a proxy on the way to it. Kafka's clients go where the broker sends them, so it is one of its own.
fn behind_proxy(kind: Kind) -> (Option<Own>, Place, Proxy) {
    if kind.label() == "kafka" {
        let (own, proxy) = Own::behind_proxy(kind);
        let place = own.place().made();
        return (Some(own), place, proxy);
    }
    let place = kind.place().made();
    let port = place.address.rsplit_once("127.0.0.1:").expect("a loopback address").1;
    let port = port.split(|c: char| !c.is_ascii_digit()).next().expect("a port");
    let proxy = Proxy::towards(format!("127.0.0.1:{port}").parse().unwrap());
    (None, place, proxy)
}

/// What was sent, and what is known of it.
#[derive(Default)]
struct Sender {
    sent: Vec<Sent>,
    /// Ids that the broker has been given at least twice, or exactly once.
    twice: BTreeSet<String>,
    once: BTreeSet<String>,
}

impl Sender {
    fn send(&mut self, bridge: &Bridge, key: &str) -> String {
        let body = dial(key, self.sent.len() as u64 + 1);
        let id = bridge.deliver(&body).stored();
        self.sent.push(Sent::new(key, Some(Id::parse(&id)), &serde_json::from_slice(&body).unwrap()));
        id
    }

    /// Waits until all is published, with one more over the connection there is now, and until that is written down.
    fn warm_up(&mut self, bridge: &Bridge) {
        let id = self.send(bridge, "warm");
        self.once.insert(id);
        let last = self.sent.len() as u64;
        eventually("the cursor is durable", || durable_cursor(bridge.config()) == last);
    }
}

fn a_kill_between_publish_and_cursor_duplicates_but_loses_nothing(kind: Kind) {
    const ROUNDS: usize = 2;
    let (_own, place, proxy) = behind_proxy(kind);
    let way = Place { address: place.through(&proxy), ..place.clone() };
    let (shim, config) = Shim::under(way.sink(Config::new(), "broker"));
    let mut sender = Sender::default();
    let mut bridge = config.start();

    for _ in 0..ROUNDS {
        sender.warm_up(&bridge);
        let (there, cursor) = (place.count(), durable_cursor(&config));
        proxy.hold_answers(true);
        let first = sender.send(&bridge, "a");
        // This one waits for that.
        let then = sender.send(&bridge, "a");
        eventually("the broker has the first", || place.count() == there + 1);
        // A broker can show an event before it has acknowledged it.
        eventually("an answer is held back", || proxy.held() > 0);
        bridge.kill_9();
        proxy.hold_answers(false);
        assert_eq!(durable_cursor(&config), cursor, "nothing was acknowledged");
        sender.twice.insert(first);
        sender.once.insert(then);
        bridge = config.start();
    }

    for (step, nth, is_durable) in [
        (Step::BeforeWrite, 1, false),
        (Step::InWrite, 2, false),
        (Step::BeforeSync, 1, true),
        (Step::AfterSync, 1, true),
    ] {
        for _ in 0..ROUNDS {
            sender.warm_up(&bridge);
            let (there, cursor) = (place.count(), durable_cursor(&config));
            proxy.hold_answers(true);
            let id = sender.send(&bridge, "c");
            eventually("the broker has it", || place.count() == there + 1);
            // The next that is written to the state is the cursor, within a tick of the acknowledgement.
            shim.wait_until_idle();
            shim.kill_at(Of::State, step, nth);
            proxy.hold_answers(false);
            killed(&shim, bridge);
            verify(&config);
            assert_eq!(durable_cursor(&config), cursor + u64::from(is_durable), "killed {step:?} {nth}");
            if is_durable { &mut sender.once } else { &mut sender.twice }.insert(id);
            bridge = config.start();
        }
    }

    sender.warm_up(&bridge);
    let messages = place.consume();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    messages.iter().for_each(|message| *counts.entry(&message.id).or_default() += 1);
    // JetStream knows the copies by their ids.
    let twice = if kind.label() == "nats" { 1 } else { 2 };
    sender.twice.iter().for_each(|id| assert_eq!(counts[id.as_str()], twice, "{id}"));
    sender.once.iter().for_each(|id| assert_eq!(counts[id.as_str()], 1, "{id}"));
    let arrived: Vec<Arrived> = messages.iter().map(Message::arrived).collect();
    let verdict = judge(&sender.sent, &arrived).clean();
    say(&format!("between publish and cursor, {}", kind.label()), 5 * ROUNDS, &sender.sent, &[verdict]);
}
