//! A fault between the bridge and one broker, under load, from the first delivery to the verdict.

use super::bridge::{Bridge, Config};
use super::broker::{Message, Place};
use super::eventually;
use super::load::{Load, Outcome, stored_by};
use super::oracle::{Arrived, Id, Sent, Verdict, judge};
use super::samples::dial;
use super::verdict::sinks_table;

/// The name of the sink that is tried.
pub(crate) const SINK: &str = "broker";

/// How many deliveries a trial's load makes, and how many a second.
pub(crate) const DELIVERIES: u64 = 2_400;
const RATE: u32 = 400;

/// A bridge with one sink, and a load on it.
pub(crate) struct Trial {
    what: String,
    pub(crate) bridge: Bridge,
    /// Where the events are looked for at the end.
    place: Place,
    load: Load,
    deliveries: u64,
}

impl Trial {
    /// Starts the bridge and the load, and waits until events are published. The bridge reaches the broker at the
    /// place's own address, unless `address` names another way there.
    pub(crate) fn start(what: &str, config: Config, place: &Place, address: Option<String>) -> Self {
        Self::longer(1, what, config, place, address)
    }

    /// The same with so many times the load.
    pub(crate) fn longer(times: u64, what: &str, config: Config, place: &Place, address: Option<String>) -> Self {
        let deliveries = times * DELIVERIES;
        let way = Place { address: address.unwrap_or_else(|| place.address.clone()), ..place.clone() };
        let bridge = way.sink(config, SINK).start();
        let load = Load::start(&bridge, deliveries, RATE);
        let what = format!("{what}, {}", place.kind.label());
        let trial = Self { what, bridge, place: place.clone(), load, deliveries };
        trial.goes_out(100.0);
        trial
    }

    pub(crate) fn published(&self) -> f64 {
        self.bridge.metric("sendbird_bridge_sink_published_total", &[("sink", SINK)])
    }

    pub(crate) fn pending(&self) -> f64 {
        self.bridge.metric("sendbird_bridge_sink_pending_records", &[("sink", SINK)])
    }

    /// Waits until the sink says that it fails for this reason: in its metrics, its status and its log.
    #[track_caller]
    pub(crate) fn tells(&self, reason: &str) {
        let retries = [("sink", SINK), ("reason", reason)];
        eventually(&format!("the sink tells of {reason}"), || {
            let status = self.bridge.status();
            let failure = status["sinks"][0]["last_failure"].as_str().unwrap_or_default();
            failure.starts_with(reason)
                && self.bridge.metric("sendbird_bridge_sink_retries_total", &retries) > 0.0
                && self
                    .bridge
                    .log()
                    .so_far()
                    .iter()
                    .any(|line| line.contains("publish failed") && line.contains(reason))
        });
    }

    /// Makes sure that deliveries go on and nothing is published, and says how much was before.
    #[track_caller]
    pub(crate) fn stands(&self) -> f64 {
        // What was under way may still be acknowledged.
        self.comes_in(100.0);
        let published = self.published();
        self.comes_in(300.0);
        assert_eq!(self.published(), published, "nothing is published meanwhile");
        published
    }

    pub(crate) fn retries(&self) -> f64 {
        self.bridge.metric("sendbird_bridge_sink_retries_total", &[("sink", SINK)])
    }

    /// Waits until so many more events are published.
    #[track_caller]
    pub(crate) fn goes_out(&self, events: f64) {
        let before = self.published();
        eventually("events are published", || self.published() >= before + events);
    }

    /// Waits until so many more deliveries are stored.
    #[track_caller]
    pub(crate) fn comes_in(&self, deliveries: f64) {
        let before = stored_by(&self.bridge);
        eventually("answers go on", || stored_by(&self.bridge) >= before + deliveries);
    }

    /// Waits for the load's end and until everything has arrived, and judges: every delivery was answered 200 in
    /// time, nothing is lost, altered, invented or out of order, nothing was set aside, and a fresh event arrives.
    #[track_caller]
    pub(crate) fn finish(self) -> Verdict {
        self.finish_given(|_, arrived| arrived)
    }

    /// The same, with a say in what has arrived: for what a broker itself has lost.
    #[track_caller]
    pub(crate) fn finish_given(self, arrived: impl FnOnce(&Bridge, Vec<Arrived>) -> Vec<Arrived>) -> Verdict {
        let Self { what, bridge, place, load, deliveries } = self;
        let load = load.finish();
        assert!(load.is_all_200(), "{what}: every delivery is answered 200 in time");
        let Outcome { mut sent, answers } = load;
        let fresh = dial("fresh", 1);
        let id = Id::parse(&bridge.deliver(&fresh).stored());
        sent.push(Sent::new("fresh", Some(id), &serde_json::from_slice(&fresh).unwrap()));
        bridge.caught_up();
        assert_eq!(bridge.metric("sendbird_bridge_sink_dead_letters", &[("sink", SINK)]), 0.0, "{what}");
        let messages = place.consume();
        let verdict = judge(&sent, &arrived(&bridge, messages.iter().map(Message::arrived).collect()));
        let table = answers.table(&[]) + &sinks_table([(place.kind.label(), &verdict)]);
        eprintln!("\n{what}\n{table}");
        let verdict = verdict.clean();
        assert_eq!(sent.len() as u64, deliveries + 1);
        let said = bridge.log().so_far().iter().filter(|line| line.contains("\"sink\":\"broker\"")).count();
        assert!(said < 60, "{said} lines about one fault");
        verdict
    }
}
