//! What an operator sees: the metrics, and what rules, dashboard and documents say of them.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;

use crate::support::bridge::{Bridge, Config, PATH, signed, signed_by};
use crate::support::http::Request;
use crate::support::process::Stdout;
use crate::support::repository::{names, read, repository};
use crate::support::samples::{APPLICATION, samples};

/// The metrics, with their labels, as a scrape has them.
const CONTRACT: [(&str, &[&str]); 28] = [
    ("deliveries_total", &["category", "outcome"]),
    ("rejected_total", &["reason"]),
    ("signature_headers_total", &["present"]),
    ("answer_seconds_bucket", &["le", "status"]),
    ("late_commits_total", &[]),
    ("last_delivery_timestamp_seconds", &[]),
    ("sink_last_publish_timestamp_seconds", &["sink"]),
    ("journal_commit_seconds_bucket", &["le"]),
    ("journal_records", &[]),
    ("journal_bytes", &[]),
    ("journal_disk_free_bytes", &[]),
    ("journal_healthy", &[]),
    ("dedup_ids", &[]),
    ("sink_published_total", &["category", "sink"]),
    ("sink_publish_seconds_bucket", &["le", "sink"]),
    ("delivery_to_broker_seconds_bucket", &["le", "sink"]),
    ("sink_retries_total", &["reason", "sink"]),
    ("sink_connected", &["sink"]),
    ("sink_in_flight", &["sink"]),
    ("sink_pending_records", &["sink"]),
    ("sink_oldest_pending_seconds", &["sink"]),
    ("sink_dead_letters", &["sink"]),
    ("sink_broker_duplicates_total", &["sink"]),
    ("connections", &[]),
    ("build_info", &["features", "version"]),
    ("journal_max_bytes", &[]),
    ("unexpected_members_total", &["kind"]),
    ("reconciled_total", &["category"]),
];

/// The series of a scrape: names and labels, without values.
fn series(scrape: &str) -> BTreeSet<String> {
    let samples = scrape.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').expect("a sample").0.to_owned()).collect()
}

/// The names of the metrics that a scrape declares, and of their parts.
fn declared(scrape: &str) -> BTreeSet<String> {
    let declared = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let parts = series(scrape).into_iter().map(|series| series.split('{').next().unwrap().to_owned());
    declared.map(str::to_owned).chain(parts).collect()
}

fn scrape(bridge: &Bridge) -> String {
    bridge.metrics().text
}

/// The documents for people: the README and what is beside the runbook.
fn documents() -> Vec<String> {
    let docs = fs::read_dir(repository("docs")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let docs = docs.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    docs.chain(["README.md".to_owned()]).collect()
}

#[test]
fn the_metrics_are_those_of_the_contract() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    for body in samples().values() {
        bridge.deliver(body).stored();
    }
    bridge.caught_up();
    let scrape = scrape(&bridge);
    let series = series(&scrape);
    for (name, labels) in CONTRACT {
        let name = format!("sendbird_bridge_{name}");
        let found = series.iter().find(|series| series.split('{').next() == Some(&name));
        let found = found.unwrap_or_else(|| panic!("no {name} in {scrape}"));
        let inside = found.split_once('{').map_or("", |(_, labels)| labels);
        let mut found: Vec<&str> = inside.split("=\"").map(|part| part.rsplit(['"', ',']).next().unwrap()).collect();
        // After the last label's name comes its value.
        found.pop();
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), labels.iter().copied().collect(), "{name}");
    }
    let declared = declared(&scrape);
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
        assert!(declared.contains(name), "no {name}");
    }
    for line in scrape.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        assert!(line.split_once(' ').is_some_and(|(_, help)| help.len() > 5), "no help in {line:?}");
    }
}

#[test]
fn metrics_in_rules_and_documents_exist_and_the_dashboard_has_all() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    let declared = declared(&scrape(&bridge));
    let mut files = documents();
    files.extend(["rules.yaml", "rules.test.yaml"].map(|file| format!("deploy/prometheus/{file}")));
    files.push("deploy/grafana/dashboard.json".into());
    for file in &files {
        for prefix in ["sendbird_bridge_", "process_"] {
            for name in names(&read(file), prefix) {
                assert!(declared.contains(&name), "{file} names {name}, which no scrape has");
            }
        }
    }
    let shown = names(&read("deploy/grafana/dashboard.json"), "sendbird_bridge_");
    let parts = ["", "_bucket", "_count", "_sum"];
    let scrape = scrape(&bridge);
    for name in scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        let shows = parts.iter().any(|part| shown.contains(&format!("{name}{part}")));
        assert!(shows || name.starts_with("process_"), "the dashboard does not show {name}");
    }
}

/// Text that somebody might use to get into a metric.
fn hostile(n: usize) -> String {
    let texts = ["", "\"} 1\n", "stored", "direct_call:", "{}=,", "sendbird_bridge_x", "\u{1F4A5}", "a\\\"b", "../.."];
    let tail: String = std::iter::repeat_with(fastrand::alphanumeric).take(8).collect();
    format!("{}canary{tail}", texts[n % texts.len()])
}

/// Text that may stand in a request's head.
fn hostile_head(n: usize) -> String {
    hostile(n).chars().filter(char::is_ascii_graphic).collect()
}

#[test]
fn nothing_that_anybody_says_makes_a_series() {
    let config = Config::new().stdout_sink(Stdout::Read).set("server.max_body", "'16KiB'");
    let bridge = config.set("access.applications", &format!("['{APPLICATION}']")).start();
    let before = series(&scrape(&bridge));
    let mut statuses = BTreeSet::new();
    let mut send = |request: Request| statuses.insert(request.send(bridge.webhook).status);
    // The webhook for all the world, the admin endpoint for whoever comes that far.
    for n in 0..40 {
        let [category, id, member] = [(); 3].map(|()| hostile(n));
        let body = |application: &str| {
            let body = json!({ "category": category, "application_id": application, "occurred_at": n,
                "direct_call": { "call_id": id }, member.clone(): member });
            body.to_string().into_bytes()
        };
        let known = body(APPLICATION);
        send(signed(&known));
        send(signed(&known).header(&format!("x-{n}"), &hostile_head(n)).header("user-agent", &hostile_head(n)));
        send(signed(&body(&hostile(n))));
        send(signed(hostile(n).as_bytes()));
        send(signed(&json!({ "category": [category] }).to_string().into_bytes()));
        send(signed_by(&hostile(n), &known));
        send(Request::post(PATH).body(&known));
        let target = hostile_head(n).replace(['"', '{', '}', '\\'], "%22");
        send(Request::post(&format!("/{target}")).body(&known));
        send(Request::post(&format!("{PATH}?{target}")).body(&known));
        let method: String = hostile_head(n).chars().filter(char::is_ascii_alphanumeric).collect();
        let method = method.to_uppercase();
        send(Request::new(&method, PATH));
        for (method, target) in [
            ("GET", format!("/{target}")),
            ("GET", format!("/metrics?{target}")),
            ("GET", format!("/events?follow=false&key={target}&{target}=1")),
            (method.as_str(), "/metrics".to_owned()),
        ] {
            Request::new(method, &target).header("user-agent", &hostile_head(n)).send(bridge.admin);
        }
    }
    send(signed(&vec![b' '; 20 * 1024]));
    // A body that never comes, for the time-out.
    send(Request::post(PATH).header("content-length", "10").header("x-sendbird-signature", "0"));
    let wanted = BTreeSet::from([200, 400, 401, 403, 404, 405, 408, 413]);
    assert!(statuses.is_superset(&wanted), "expected {wanted:?}, but found {statuses:?}");
    bridge.caught_up();
    let scrape = bridge.metrics();
    let after = series(&scrape.text);
    assert!(!scrape.text.to_lowercase().contains("canary"), "{}", scrape.text);
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new(), "new series");
    assert_eq!(before.difference(&after).collect::<Vec<_>>(), Vec::<&String>::new(), "series that have gone");
    let other = [("category", "other"), ("outcome", "stored")];
    assert!(scrape.value("sendbird_bridge_deliveries_total", &other) >= 40.0, "unknown categories are other");
    let categories: BTreeSet<&str> = scrape.label_values("category").into_iter().collect();
    assert_eq!(categories.len(), 14, "{categories:?}");
}

#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod idle {
    use crate::sinks::for_each_broker;
    use crate::support::bridge::Config;
    use crate::support::broker::{Kind, Own};
    use crate::support::eventually;

    for_each_broker! {
        a_sink_with_nothing_to_publish_sees_its_broker_go_and_come_back
    }

    fn a_sink_with_nothing_to_publish_sees_its_broker_go_and_come_back(kind: Kind) {
        let broker = Own::start(kind);
        let bridge = broker.place().made().sink(Config::new(), "broker").start();
        let connected = || bridge.metric("sendbird_bridge_sink_connected", &[("sink", "broker")]);
        eventually("it is connected", || connected() == 1.0);
        broker.run("stop");
        eventually("it sees that the broker is away", || connected() == 0.0);
        broker.run("start");
        eventually("it is connected again", || connected() == 1.0);
    }
}
