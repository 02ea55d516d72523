//! The verdict of the overview and the alerts: both say the same of the same figures.

use std::collections::BTreeSet;
use std::fs;

use sendbird_bridge::http::overview::{DeadLetters, Moment, Refused, Sink, State, Window, judge};
use sendbird_bridge::journal::Health;

use crate::support::prometheus::promtool;
use crate::support::repository::{read, repository};

const GIB: u64 = 1024 * 1024 * 1024;
const NOW: Moment = Moment(1_767_225_733_789);

/// For how long each state has been so when the alerts are asked; longer than any of them waits.
const MINUTES: u64 = 8 * 60;

fn before(seconds: i64) -> Moment {
    Moment(NOW.0 - seconds * 1000)
}

/// A bridge that receives one delivery a second and publishes it to kafka.
fn well() -> State {
    let mut state = State { at: NOW, started_at: before(8 * 3600), ..State::idle(NOW, 8 * GIB) };
    state.journal.stats.disk_free_bytes = 100 * GIB;
    state.deliveries.last_at = Some(before(1));
    state.deliveries.total = 8 * 3600;
    rate(&mut state, 1.0);
    state.sinks.push(Sink {
        name: "kafka".into(),
        r#type: "kafka".into(),
        connected: true,
        connected_changed_at: state.started_at,
        last_publish_at: Some(before(1)),
        failing_since: None,
        last_failure: None,
        pending_records: 0,
        oldest_pending_seconds: 0.0,
        published_per_second: 1.0,
        caught_up_in_seconds: Some(0.0),
        in_flight: 0,
        stuck_records: 0,
        waiting_full: false,
        dead_letters_total: 0,
        dead_letters: Vec::new(),
        dead_letters_lately: 0,
        gone_lately: 0,
        broker_duplicates_lately: 0,
        resends_pending: 0,
        active_replays: 0,
    });
    state
}

fn rate(state: &mut State, per_second: f64) {
    let window = |seconds: u64| Window {
        seconds,
        deliveries: (per_second * seconds as f64) as u64,
        deliveries_per_second: per_second,
        ..Window::default()
    };
    state.deliveries.windows = [60, 300, 3600].map(window).to_vec();
}

fn refuse(state: &mut State, reason: &str, per_second: f64) {
    let within = |seconds: f64| (per_second * seconds) as u64;
    state.refused.push(Refused {
        reason: reason.into(),
        total: within(8.0 * 3600.0),
        per_second,
        last_half_hour: within(1800.0),
        last_hour: within(3600.0),
        last_at: Some(NOW),
        last_source: Some("192.0.2.1".into()),
    });
}

/// Each state by its sentence.
fn states() -> Vec<(&'static str, State)> {
    let of = |change: fn(&mut State)| {
        let mut state = well();
        change(&mut state);
        state
    };
    vec![
        ("Receiving and publishing.", well()),
        ("Receiving; no sink is configured.", of(|s| s.sinks.clear())),
        ("Refusing: the journal is full.", of(|s| s.journal.stats.health = Health::Full)),
        ("Refusing: the disk fails.", of(|s| s.journal.stats.health = Health::Failed)),
        (
            "Refusing: the disk is full.",
            of(|s| (s.journal.stats.health, s.journal.stats.disk_free_bytes) = (Health::Full, 1024)),
        ),
        ("Receiving some; others have no valid signature.", of(|s| refuse(s, "signature_wrong", 0.1))),
        ("Receiving and publishing.", of(|s| refuse(s, "signature_wrong", 0.01))),
        (
            "Refusing everything, most for not_found.",
            of(|s| {
                rate(s, 0.0);
                s.deliveries.last_at = Some(before(2 * 24 * 3600));
                refuse(s, "not_found", 1.0);
            }),
        ),
        ("Refusing some deliveries: overload.", of(|s| refuse(s, "overload", 0.1))),
        ("Receiving some; others are refused: network.", of(|s| refuse(s, "network", 0.01))),
        ("Receiving some; others are refused: not_found.", of(|s| refuse(s, "not_found", 0.1))),
        ("Receiving and publishing.", of(|s| refuse(s, "not_found", 0.04))),
        (
            "Receiving; kafka has taken nothing for 12 min, 4,310 events wait, room for 31 h.",
            of(|s| {
                s.journal.full_in_seconds = Some(31.0 * 3600.0);
                let sink = &mut s.sinks[0];
                (sink.connected, sink.connected_changed_at) = (false, before(720));
                (sink.last_publish_at, sink.pending_records) = (Some(before(720)), 4_310);
                (sink.oldest_pending_seconds, sink.caught_up_in_seconds) = (720.0, None);
            }),
        ),
        (
            "Receiving; kafka is 10 min behind, 5,000 events wait, caught up in 2 min.",
            of(|s| {
                let sink = &mut s.sinks[0];
                (sink.pending_records, sink.oldest_pending_seconds) = (5_000, 600.0);
                sink.caught_up_in_seconds = Some(120.0);
            }),
        ),
        ("Receiving; 3 events of kafka stuck.", of(|s| s.sinks[0].stuck_records = 3)),
        ("Receiving; kafka reads no further, as too many events wait.", of(|s| s.sinks[0].waiting_full = true)),
        (
            "Receiving; 2 dead letters of kafka.",
            of(|s| {
                let (first_at, last_at) = (before(30_000), before(20_000));
                s.sinks[0].dead_letters_total = 2;
                s.sinks[0].dead_letters = vec![DeadLetters { reason: "too_large".into(), count: 2, first_at, last_at }];
            }),
        ),
        ("Receiving; 1 event in the journal damaged.", of(|s| s.journal.stats.damaged_records = 1)),
        ("Receiving; the disk has 512 MiB free.", of(|s| s.journal.stats.disk_free_bytes = GIB / 2)),
    ]
}

/// The metrics that a bridge in this state has, as series of promtool: gauges as they are, counters as they grow.
fn series(state: &State) -> Vec<(String, String)> {
    let stays = |value: f64| format!("{value}x{MINUTES}");
    let grows = |per_second: f64| format!("0+{}x{MINUTES}", per_second * 60.0);
    let stats = &state.journal.stats;
    let mut all = vec![
        (
            r#"deliveries_total{category="direct_call:dial",outcome="stored","#.to_owned(),
            grows(state.window(300).deliveries_per_second),
        ),
        ("journal_healthy{".into(), stays(f64::from(u8::from(stats.health == Health::Healthy)))),
        ("journal_damaged_records{".into(), stays(stats.damaged_records as f64)),
        ("journal_disk_free_bytes{".into(), stays(stats.disk_free_bytes as f64)),
        ("journal_bytes{".into(), stays(stats.bytes as f64)),
        ("journal_max_bytes{".into(), stays(state.journal.max_bytes as f64)),
    ];
    if state.window(300).deliveries_per_second == 0.0 {
        // What came before, and nothing since.
        all[0].1 = stays(7.0);
    }
    for refused in &state.refused {
        all.push((format!("rejected_total{{reason=\"{}\",", refused.reason), grows(refused.per_second)));
    }
    for sink in &state.sinks {
        let mut gauge = |name: &str, value: f64| all.push((format!("{name}{{sink=\"{}\",", sink.name), stays(value)));
        gauge("sink_connected", f64::from(u8::from(sink.connected)));
        gauge("sink_oldest_pending_seconds", sink.oldest_pending_seconds);
        gauge("sink_stuck_records", sink.stuck_records as f64);
        gauge("sink_waiting_full", f64::from(u8::from(sink.waiting_full)));
        gauge("sink_dead_letters", sink.dead_letters_total as f64);
    }
    let label = "job=\"sendbird-bridge\",instance=\"a\"}";
    all.into_iter().map(|(name, values)| (format!("sendbird_bridge_{name}{label}"), values)).collect()
}

#[test]
fn each_state_has_its_sentence() {
    for (sentence, state) in states() {
        let verdict = judge(&state);
        assert_eq!(verdict.sentence, sentence, "{:?}", verdict.findings);
        assert_eq!(verdict.needs_a_person, !verdict.findings.is_empty());
    }
}

#[test]
fn what_is_found_of_a_sink_names_it_as_the_alert_does() {
    let rules = read("deploy/prometheus/rules.yaml");
    let findings: Vec<_> = states().iter().flat_map(|(_, state)| judge(state).findings).collect();
    assert!(findings.iter().any(|finding| finding.sink.is_some()) && findings.iter().any(|f| f.sink.is_none()));
    for finding in findings {
        let rule = rules.split("- alert: ").find(|rule| rule.lines().next() == Some(&finding.alert)).unwrap();
        let is_of_sink = rule.contains("$labels.sink");
        assert_eq!(finding.sink.as_deref(), is_of_sink.then_some("kafka"), "{finding:?}");
    }
}

#[test]
fn the_verdict_and_the_alerts_say_the_same_of_the_same_metrics() {
    let mut tests = format!(
        "rule_files: ['{}']\nevaluation_interval: 1m\ntests:\n",
        repository("deploy/prometheus/rules.yaml").display()
    );
    for (sentence, state) in states() {
        tests += &format!("- name: '{sentence}'\n  interval: 1m\n  input_series:\n");
        for (series, values) in series(&state) {
            tests += &format!("  - {{ series: '{series}', values: '{values}' }}\n");
        }
        let alerts: BTreeSet<String> = judge(&state).findings.into_iter().map(|finding| finding.alert).collect();
        let expression = r#"group by (alertname) (ALERTS{alertstate="firing"})"#;
        tests +=
            &format!("  promql_expr_test:\n  - expr: '{expression}'\n    eval_time: {MINUTES}m\n    exp_samples:\n");
        for alert in &alerts {
            tests += &format!("    - {{ labels: '{{alertname=\"{alert}\"}}', value: 1 }}\n");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("verdict.test.yaml");
    fs::write(&file, tests).unwrap();
    promtool(&["test", "rules", file.to_str().unwrap()], "");
}
