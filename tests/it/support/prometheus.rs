//! A real Prometheus that scrapes a bridge every half second, and `promtool`.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tempfile::TempDir;

use super::debian;
use super::eventually;
use super::http::Request;
use super::process::{Process, Stdout};
use super::repository::repository;

/// The job that the bridge is scraped under.
pub(crate) const JOB: &str = "sendbird-bridge";

/// The program `prometheus`, installed if it is missing; `promtool` lies beside it.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // What the rules' tests need of it came with 2.42, which Debian 12 has; newer ones do as well.
        debian::program("prometheus", "prometheus", "--version")
    })
}

/// Runs `promtool` on the text, in the directory of the rules. It must neither fail nor complain.
#[track_caller]
pub(crate) fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new(program().with_file_name("promtool"));
    command.args(arguments).current_dir(repository("deploy/prometheus"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that reads no input may have ended already; what it says is judged below.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "promtool {arguments:?}: {}\n{said}", output.status);
    for complaint in ["FAILED", "error", "lint"] {
        assert!(!said.contains(complaint), "promtool {arguments:?}: {said}");
    }
}

/// The rules with every duration so short that a test can wait for it: each `for` becomes a second, and each range ten
/// seconds. Limits and expressions stay as they are.
pub(crate) fn hastened(rules: &str) -> String {
    let mut hastened = String::new();
    for line in rules.lines() {
        if let Some((before, _)) = line.split_once("for: ") {
            hastened += &format!("{before}for: 1s\n");
            continue;
        }
        let mut parts = line.split('[');
        hastened += parts.next().unwrap_or_default();
        for part in parts {
            let (range, rest) = part.split_once(']').expect("a range that ends");
            assert!(range.trim_end_matches(['m', 'h', 'd']).parse::<u32>().is_ok(), "expected a range in {line}");
            hastened += &format!("[10s]{rest}");
        }
        hastened.push('\n');
    }
    hastened
}

/// A Prometheus of one test.
pub(crate) struct Prometheus {
    /// Ends with this.
    _process: Process,
    address: SocketAddr,
    /// Goes with this.
    _dir: TempDir,
}

impl Prometheus {
    /// Starts it with these rules, and waits until it has scraped the bridge.
    #[track_caller]
    pub(crate) fn scrape(bridge: SocketAddr, rules: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("sendbird-bridge-prometheus-").tempdir().unwrap();
        fs::write(dir.path().join("rules.yaml"), rules).unwrap();
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms }}\n\
             rule_files: [rules.yaml]\n\
             scrape_configs: [{{ job_name: {JOB}, static_configs: [{{ targets: ['{bridge}'] }}] }}]\n"
        );
        let file = dir.path().join("prometheus.yaml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(program());
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
        command.arg("--web.listen-address=127.0.0.1:0");
        let mut process = Process::start(command, Stdout::Read);
        let log = process.stderr();
        let mut address = None;
        eventually("Prometheus listens", || {
            address = log.so_far().iter().find_map(|line| listening(line));
            assert!(address.is_some() || process.is_running(), "it ended: {}", log.so_far().join("\n"));
            address.is_some()
        });
        let prometheus = Self { _process: process, address: address.unwrap(), _dir: dir };
        eventually("Prometheus has scraped the bridge", || !prometheus.query("up == 1").is_empty());
        prometheus
    }

    fn api(&self, target: &str) -> Value {
        let answer = Request::get(target).send(self.address);
        // 503 while it still starts.
        if answer.status == 503 {
            return Value::Null;
        }
        let json = answer.json();
        assert_eq!(json["status"], "success", "{target}: {json}");
        json["data"].clone()
    }

    /// The values of an expression now, without those that are no number.
    #[track_caller]
    pub(crate) fn query(&self, expression: &str) -> Vec<f64> {
        let data = self.api(&format!("/api/v1/query?query={}", utf8_percent_encode(expression, NON_ALPHANUMERIC)));
        let result = data["result"].as_array().cloned().unwrap_or_default();
        let values = result.iter().map(|sample| sample["value"][1].as_str().unwrap().parse::<f64>().unwrap());
        values.filter(|value| !value.is_nan()).collect()
    }

    /// The alert of this name, if it is firing.
    pub(crate) fn firing(&self, alert: &str) -> Option<Value> {
        let data = self.api("/api/v1/alerts");
        let alerts = data["alerts"].as_array()?;
        let is_it = |found: &&Value| found["labels"]["alertname"] == alert && found["state"] == "firing";
        alerts.iter().find(is_it).cloned()
    }
}

/// The address in the line that says where it listens.
fn listening(line: &str) -> Option<SocketAddr> {
    let (_, address) = line.split_once("msg=\"Listening on\" address=")?;
    address.trim().parse().ok()
}

#[test]
fn durations_are_found() {
    let rules = "record: level:a_x:rate\nexpr: rate(a_y_total[5m]) / a_z > 3 # a_\nfor: 2m\n";
    let hasty = "record: level:a_x:rate\nexpr: rate(a_y_total[10s]) / a_z > 3 # a_\nfor: 1s\n";
    assert_eq!(hastened(rules), hasty);
}
