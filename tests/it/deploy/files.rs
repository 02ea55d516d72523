//! What lies in `deploy` for others to use: each says what the others say.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::path::Path;
use std::time::Duration;

use sendbird_bridge::app::STOP_LIMIT;
use serde_json::Value;

use crate::support::repository::{read, repository};

const RULES: &str = "deploy/prometheus/rules.yaml";
const RULES_TEST: &str = "deploy/prometheus/rules.test.yaml";
const RUNBOOK: &str = "docs/runbook.md";

/// The alerts with the lines of each.
fn alerts(rules: &str) -> Vec<(&str, &str)> {
    let parts = rules.split("- alert: ").skip(1);
    parts.map(|part| (part.lines().next().unwrap(), part)).collect()
}

/// What `cargo build` said the program is made of is in the build context, and is copied from there. `cargo test` does not
/// say it.
#[test]
fn the_image_is_built_with_every_file_that_the_program_is_made_of() {
    let built = Path::new(env!("CARGO_BIN_EXE_sendbird-bridge")).with_extension("d");
    let built =
        read_to_string(&built).unwrap_or_else(|error| panic!("{}: {error}; cargo build makes it", built.display()));
    let root = format!("{}/", repository("").display().to_string().trim_end_matches('/'));
    let files: BTreeSet<&str> = built.split_whitespace().filter_map(|path| path.strip_prefix(root.as_str())).collect();
    assert!(files.contains("src/main.rs"), "the program of another checkout: run cargo build here");
    let (dockerfile, ignored) = (read("deploy/Dockerfile"), read("deploy/Dockerfile.dockerignore"));
    let copies = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with('-'));
    let copied: Vec<&str> = copies.flat_map(|line| line.split(' ').rev().skip(1)).collect();
    let kept: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let has = |paths: &[&str], file: &str| paths.iter().any(|path| Path::new(file).starts_with(path));
    for file in files.into_iter().chain(["Cargo.toml", "Cargo.lock", "deploy/build-rootfs"]) {
        assert!(has(&copied, file), "deploy/Dockerfile does not copy {file}");
        assert!(has(&kept, file), "deploy/Dockerfile.dockerignore leaves {file} out");
    }
}

/// Prometheus itself runs them in `prometheus`.
#[test]
fn each_alert_has_a_test_over_its_limit_and_below() {
    let (rules, tests) = (read(RULES), read(RULES_TEST));
    for (alert, _) in alerts(&rules) {
        let test = tests.split("  - name: ").find(|test| test.lines().next() == Some(alert));
        let test = test.unwrap_or_else(|| panic!("{alert} has no test"));
        let looks = |wanted: &str| test.contains(wanted) && test.contains(&format!("alertname=\"{alert}\""));
        assert!(looks("fires") && looks("below") && looks("exp_samples: []"), "{alert}: {test}");
    }
}

#[test]
fn the_chart_has_the_same_rules_and_dashboard() {
    for (file, in_chart) in [(RULES, "rules.yaml"), ("deploy/grafana/dashboard.json", "dashboard.json")] {
        let copy = format!("deploy/helm/sendbird-bridge/files/{in_chart}");
        assert!(read(file) == read(&copy), "cp {file} {copy}");
    }
}

#[test]
fn each_alert_says_what_to_do_and_has_its_section_in_the_runbook() {
    let (rules, runbook) = (read(RULES), read(RUNBOOK));
    let alerts = alerts(&rules);
    for (alert, lines) in &alerts {
        let url = format!("runbook_url: {RUNBOOK}#{}", alert.to_lowercase());
        assert!(lines.lines().any(|line| line.trim() == url), "{alert}: expected {url}");
        assert!(lines.contains("severity: critical") || lines.contains("severity: warning"), "{alert}");
        assert!(lines.contains("summary: \"") && lines.contains("description: "), "{alert}");
    }
    let alerts: BTreeSet<&str> = alerts.iter().map(|(alert, _)| *alert).collect();
    let sections: Vec<&str> = runbook.split("\n## ").skip(1).collect();
    let names: BTreeSet<&str> = sections.iter().map(|section| section.lines().next().unwrap()).collect();
    assert_eq!(alerts, names);
    for section in &sections {
        for part in ["**Means.**", "**Look at.**", "**Do.**"] {
            assert!(section.contains(part), "no {part} in {section}");
        }
        assert!(section.contains('`'), "no command and no metric in {section}");
    }
    for link in runbook.split("](#").skip(1) {
        let anchor = link.split(')').next().unwrap();
        assert!(names.iter().any(|name| name.to_lowercase() == anchor), "no section {anchor}");
    }
}

/// What a pod has beyond the bridge's own limit of a stop, for the machine's part in it.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// The integer after `key` at the beginning of a line.
fn number_after(text: &str, key: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix(key));
    let value = lines.next().unwrap_or_else(|| panic!("no {key}")).trim().trim_end_matches('s');
    value.parse().unwrap_or_else(|error| panic!("{key} {value}: {error}"))
}

#[test]
fn a_grace_period_is_longer_than_a_stop() {
    let least = (STOP_LIMIT + STOP_MARGIN).as_secs();
    let chart = |file: &str| read(&format!("deploy/helm/sendbird-bridge/{file}"));
    let (values, schema): (String, Value) =
        (chart("values.yaml"), serde_json::from_str(&chart("values.schema.json")).unwrap());
    let pre_stop = number_after(&values, "preStopSeconds:");
    assert!(pre_stop + least <= number_after(&values, "terminationGracePeriodSeconds:"));
    assert_eq!(schema["properties"]["terminationGracePeriodSeconds"]["minimum"], least);
    // What the chart refuses, and says.
    assert!(chart("templates/_helpers.tpl").contains(&format!("$least := add (int $v.preStopSeconds) {least} -")));
    assert!(chart("README.md").contains(&format!("at least `preStopSeconds` + {least}.")));
    assert!(least <= number_after(&read("deploy/compose.yaml"), "stop_grace_period:"));
}
