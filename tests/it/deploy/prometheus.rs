//! What Prometheus makes of the metrics, the rules and the dashboard: the real one, and its `promtool`.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::bridge::Config;
use crate::support::broker::{Kind, Own};
use crate::support::http::Request;
use crate::support::load::Load;
use crate::support::process::Stdout;
use crate::support::prometheus::{Prometheus, hastened, promtool};
use crate::support::repository::read;
use crate::support::samples::{dial, samples};
use crate::support::{PATIENCE, eventually};

const RULES: &str = "deploy/prometheus/rules.yaml";

#[test]
fn the_metrics_are_well_formed() {
    let bridge = Config::new().stdout_sink(Stdout::Read).start();
    for body in samples().values() {
        bridge.deliver(body).stored();
    }
    bridge.caught_up();
    promtool(&["check", "metrics"], &bridge.metrics().text);
}

#[test]
fn prometheus_takes_the_rules_and_the_configuration() {
    promtool(&["check", "rules", "rules.yaml"], "");
    promtool(&["check", "config", "prometheus.yaml"], "");
}

#[test]
fn each_alert_fires_over_its_limit_and_not_below() {
    promtool(&["test", "rules", "rules.test.yaml"], "");
}

/// The queries of the dashboard, each with its panel's title and with values for its variables.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let queries = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().filter(|targets| !targets.is_empty());
        let targets = targets.unwrap_or_else(|| panic!("a panel without a query: {panel}"));
        targets.iter().map(|target| {
            let mut expression = target["expr"].as_str().unwrap().to_owned();
            for (variable, value) in [
                ("$job", "sendbird-bridge"),
                ("$instance", ".+"),
                ("$sink", ".+"),
                ("$__rate_interval", "30s"),
                ("$__range", "30s"),
            ] {
                expression = expression.replace(variable, value);
            }
            assert!(!expression.contains('$'), "an unknown variable in {expression}");
            (panel["title"].as_str().unwrap().to_owned(), expression)
        })
    });
    queries.collect()
}

/// Prometheus can read each of these queries.
fn can_be_read<'a>(queries: impl Iterator<Item = &'a str>) {
    let rule = |(n, query): (usize, &str)| format!("  - {{ record: 'query:number_{n}', expr: {} }}\n", json!(query));
    let rules: String = queries.enumerate().map(rule).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("queries.yaml");
    fs::write(&file, format!("groups:\n- name: queries\n  rules:\n{rules}")).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], "");
}

#[test]
fn the_runbook_asks_nothing_that_prometheus_cannot_read() {
    let runbook = read("docs/runbook.md");
    let blocks = runbook.split("```promql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(str::lines);
    let queries: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(queries.len() >= 20, "{} queries", queries.len());
    can_be_read(queries.into_iter());
}

#[test]
fn the_dashboard_asks_nothing_that_prometheus_cannot_read() {
    can_be_read(queries().iter().map(|(_, query)| query.as_str()));
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables: Vec<&str> = variables.map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "job", "instance", "sink"]);
}

#[test]
fn every_panel_shows_something_under_load() {
    let bridge = Kind::Nats.place().made().sink(Config::new(), "broker").start();
    let load = Load::start(&bridge, 1_000_000, 50);
    let prometheus = Prometheus::scrape(bridge.admin, &read(RULES));
    let mut empty = queries();
    assert!(empty.len() > 30, "{empty:?}");
    let deadline = Instant::now() + PATIENCE;
    while !empty.is_empty() {
        empty.retain(|(_, query)| prometheus.query(query).is_empty());
        assert!(Instant::now() < deadline, "no data for {empty:?}");
    }
    let rate = prometheus.query("sum(rate(sendbird_bridge_deliveries_total[30s]))");
    assert!(rate[0] > 0.0, "{rate:?}");
    load.crash();
}

#[test]
fn an_alert_fires_while_a_broker_is_away_and_clears() {
    const ALERT: &str = "SendbirdBridgeSinkDisconnected";
    let broker = Own::start(Kind::Nats);
    let bridge = broker.place().made().sink(Config::new(), "broker").start();
    let connected = "sendbird_bridge_sink_connected == 1";
    eventually("the sink is connected", || bridge.metrics().value("sendbird_bridge_sink_connected", &[]) == 1.0);
    let prometheus = Prometheus::scrape(bridge.admin, &hastened(&read(RULES)));
    eventually("Prometheus sees the sink connected", || !prometheus.query(connected).is_empty());
    // It has looked at the rules, and found nothing.
    eventually("the rules were evaluated", || {
        !prometheus.query("instance:sendbird_bridge_deliveries:rate5m").is_empty()
    });
    assert_eq!(prometheus.firing(ALERT), None);

    broker.run("stop");
    let mut alert = Value::Null;
    eventually("the alert fires", || {
        alert = prometheus.firing(ALERT).unwrap_or_default();
        !alert.is_null()
    });
    assert_eq!((&alert["labels"]["sink"], &alert["labels"]["severity"]), (&"broker".into(), &"warning".into()));
    let summary = format!("{} cannot reach the broker of sink broker", bridge.admin);
    assert_eq!(alert["annotations"]["summary"], summary);
    for other in ["SendbirdBridgeDown", "SendbirdBridgeNotReady", "SendbirdBridgeUnavailable"] {
        assert_eq!(prometheus.firing(other), None, "a broker that is away is no reason for {other}");
    }

    broker.run("start");
    eventually("the alert clears", || prometheus.firing(ALERT).is_none());
    eventually("Prometheus sees the sink connected", || !prometheus.query(connected).is_empty());
}

#[test]
fn refusals_fire_an_alert_until_deliveries_are_accepted() {
    let bridge = Config::new().start();
    let prometheus = Prometheus::scrape(bridge.admin, &hastened(&read(RULES)));
    let firing = |alert: &str| prometheus.firing(&format!("SendbirdBridge{alert}"));
    let refuse = || Request::post("/elsewhere").send(bridge.webhook).status;
    eventually("the rules were evaluated", || {
        !prometheus.query("instance:sendbird_bridge_deliveries:rate5m").is_empty()
    });
    for alert in ["RefusesEverything", "NeverStored", "DeliveriesRefused"] {
        assert_eq!(firing(alert), None);
    }

    // The first day: a wrong path.
    eventually("both alerts fire", || {
        assert_eq!(refuse(), 404);
        firing("RefusesEverything").is_some() && firing("NeverStored").is_some()
    });
    let alert = firing("RefusesEverything").unwrap();
    assert_eq!(alert["labels"]["severity"], "critical");
    assert!(alert["annotations"]["summary"].as_str().unwrap().starts_with(&bridge.admin.to_string()), "{alert}");
    assert_eq!(firing("DeliveriesRefused"), None, "nothing passes");

    // Then some are right, and others still are not.
    let mut n = 0;
    eventually("only the refused ones are told of", || {
        assert_eq!(refuse(), 404);
        bridge.deliver(&dial("a", n)).stored();
        n += 1;
        firing("DeliveriesRefused").is_some()
            && firing("RefusesEverything").is_none()
            && firing("NeverStored").is_none()
    });
    assert_eq!(firing("DeliveriesRefused").unwrap()["labels"]["reason"], "not_found");
    eventually("all is well", || {
        bridge.deliver(&dial("a", n)).stored();
        n += 1;
        firing("DeliveriesRefused").is_none()
    });
}
