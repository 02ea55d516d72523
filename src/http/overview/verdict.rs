//! The one sentence about a bridge, and whether a person is needed: the rules of `deploy/prometheus/rules.yaml`, applied to
//! what the bridge itself knows.
//!
//! An alert waits for a while before it fires; the verdict says at once what the alert is going to say. Only a broker that is
//! away is no matter for a person before the two minutes of its alert are over. What no bridge can know of itself is left
//! to the alerts: that it is down.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::state::{Moment, Sink, State};
use crate::domain::units::{age, grouped};
use crate::journal::{DISK_RESERVE, Health};

/// What is to be said of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// How it is, in one sentence.
    pub sentence: String,
    /// Whether somebody has to do something.
    pub needs_a_person: bool,
    /// What has to be done, the most urgent first.
    pub findings: Vec<Finding>,
}

/// What somebody has to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The alert, and the section of `docs/runbook.md`.
    pub alert: String,
    /// The sink that it is about; null where it is about deliveries or the journal.
    pub sink: Option<String>,
    /// Whether deliveries are or will soon be lost, or consumers lack events.
    pub severity: Severity,
    /// What is the matter.
    pub text: String,
    /// What to begin with.
    pub action: String,
}

/// How urgent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Now.
    Critical,
    /// Today.
    Warning,
}

/// Refusals that mean that a delivery could not be stored.
const UNAVAILABLE: [&str; 5] = ["connections", "deadline", "disk", "full", "overload"];

const SIGNATURES: [&str; 2] = ["signature_missing", "signature_wrong"];

/// Refusals that only somebody who knows the path meets.
const TELLING: [&str; 10] = [
    "application",
    "application_rate",
    "application_token",
    "encoding",
    "header",
    "malformed",
    "network",
    "no_category",
    "too_large",
    "too_many",
];

/// Refusals that scanners meet as well.
const COMMON: [&str; 10] = [
    "handshake",
    "head_too_large",
    "interrupted",
    "invalid_head",
    "method",
    "not_found",
    "proxy_protocol",
    "tls",
    "too_slow",
    "write_timeout",
];

/// So many a second are more than chance.
const SOME: f64 = 0.02;

const MINUTES: f64 = 60.0;
const HOURS: f64 = 3600.0;

/// Judges a state.
pub fn judge(state: &State) -> Verdict {
    let mut judge = Judge { state, findings: Vec::new(), troubles: Vec::new() };
    let receiving = judge.receiving();
    judge.journal();
    for sink in &state.sinks {
        let before = judge.findings.len();
        judge.sink(sink);
        for finding in &mut judge.findings[before..] {
            finding.sink = Some(sink.name.clone());
        }
    }
    let Judge { mut findings, troubles, .. } = judge;
    findings.sort_by_key(|finding| finding.severity);
    let sentence = match (troubles.is_empty(), state.sinks.is_empty()) {
        (false, _) => format!("{receiving}; {}.", troubles.join("; ")),
        (true, true) => format!("{receiving}; no sink is configured."),
        (true, false) if receiving == "Receiving" => "Receiving and publishing.".into(),
        (true, false) => format!("{receiving}."),
    };
    Verdict { sentence, needs_a_person: !findings.is_empty(), findings }
}

struct Judge<'a> {
    state: &'a State,
    findings: Vec<Finding>,
    /// What the sentence says after how deliveries are received.
    troubles: Vec<String>,
}

impl Judge<'_> {
    fn find(&mut self, alert: &str, severity: Severity, text: impl Into<String>, action: &str) {
        let alert = format!("SendbirdBridge{alert}");
        self.findings.push(Finding { alert, sink: None, severity, text: text.into(), action: action.into() });
    }

    /// Refusals for these reasons within five minutes, a second.
    fn refused(&self, is_one: impl Fn(&str) -> bool) -> f64 {
        self.state.refused.iter().filter(|refused| is_one(&refused.reason)).map(|refused| refused.per_second).sum()
    }

    /// The most frequent of these reasons.
    fn main_reason(&self, is_one: impl Fn(&str) -> bool) -> &str {
        let found = self.state.refused.iter().filter(|refused| is_one(&refused.reason));
        found.max_by(|a, b| a.per_second.total_cmp(&b.per_second)).map_or("", |refused| refused.reason.as_str())
    }

    /// How deliveries are received, as the beginning of the sentence.
    fn receiving(&mut self) -> String {
        use Severity::{Critical, Warning};
        let state = self.state;
        let accepted = state.window(300).deliveries_per_second;
        let mut said = None;
        let mut say = |text: String| {
            said.get_or_insert(text);
        };
        let stats = &state.journal.stats;
        if state.stopping {
            say("Stopping".into());
        }
        let why = match stats.health {
            Health::Healthy => None,
            Health::Full if stats.disk_free_bytes < DISK_RESERVE => Some("the disk is full"),
            Health::Full => Some("the journal is full"),
            Health::Failed => Some("the disk fails"),
            Health::Closed => Some("the journal is closed"),
        };
        if let Some(why) = why {
            say(format!("Refusing: {why}"));
            let action = "make room on the disk or raise journal.max_bytes; afterwards: sendbird-bridge reconcile";
            self.find("NotReady", Critical, format!("{why}: deliveries are answered 503"), action);
        }
        let signatures = self.refused(|reason| SIGNATURES.contains(&reason));
        if signatures > 0.05 * (signatures + accepted) && signatures > SOME {
            let text = "deliveries have no valid signature";
            self.find("SignaturesRejected", Critical, text, "compare access.api_tokens with Sendbird's dashboard");
            if accepted > 0.0 {
                say("Receiving some; others have no valid signature".into());
            }
        }
        let is_refusal = |reason: &str| reason != "stopping";
        let all = self.refused(is_refusal);
        if all > SOME && accepted == 0.0 {
            let reason = self.main_reason(is_refusal);
            let text = format!("all requests are refused, most for {reason}");
            say(format!("Refusing everything, most for {reason}"));
            self.find(
                "RefusesEverything",
                Critical,
                text,
                "see docs/refusals.md for the reason, and the log for sources",
            );
        }
        let lately: u64 =
            state.refused.iter().filter(|r| is_refusal(&r.reason)).map(|refused| refused.last_half_hour).sum();
        if state.deliveries.total == 0 && lately >= 3 {
            let text = "no delivery was accepted since the start, and some were refused";
            say("Nothing accepted yet, and some refused".into());
            self.find("NeverStored", Warning, text, "see docs/refusals.md for the reason, and the log for sources");
        }
        if self.refused(|reason| UNAVAILABLE.contains(&reason)) > SOME {
            let reason = self.main_reason(|reason| UNAVAILABLE.contains(&reason));
            let text = format!("deliveries are answered 503: {reason}");
            say(format!("Refusing some deliveries: {reason}"));
            self.find(
                "Unavailable",
                Critical,
                text,
                "free the disk or the processor; afterwards: sendbird-bridge reconcile",
            );
        }
        for refused in state.refused.iter().filter(|_| accepted > 0.0) {
            let reason = refused.reason.as_str();
            let is_telling = TELLING.contains(&reason) && refused.last_hour >= 3;
            let is_common =
                COMMON.contains(&reason) && refused.per_second > 0.05 * accepted && refused.per_second > SOME;
            if is_telling || is_common {
                say(format!("Receiving some; others are refused: {reason}"));
                let text = format!("{} requests were refused within an hour: {reason}", grouped(refused.last_hour));
                self.find(
                    "DeliveriesRefused",
                    Warning,
                    text,
                    "see docs/refusals.md for the reason, and the log for sources",
                );
            }
        }
        if let Some(p99) = state.window(300).answer_seconds_p99.filter(|p99| *p99 > 0.6) {
            say("Receiving slowly".into());
            let text = format!("1 of 100 answers takes {p99:.2} s or longer; Sendbird waits one second");
            self.find("AnswersSlow", Warning, text, "look at journal_commit_seconds: is the disk slow?");
        }
        if let Some(quiet) = self.since(state.deliveries.last_at).filter(|_| state.window(3600).deliveries == 0)
            && (HOURS..24.0 * HOURS).contains(&quiet)
        {
            say(format!("No delivery for {}", age(quiet)));
            let text = format!("the last delivery came {} ago", age(quiet));
            self.find(
                "NoDeliveries",
                Warning,
                text,
                "sendbird-bridge webhook get, and send --count 1 to the public URL",
            );
        }
        if state.deliveries.total == 0 {
            say("No delivery yet".into());
        }
        said.unwrap_or_else(|| "Receiving".into())
    }

    fn since(&self, at: Option<Moment>) -> Option<f64> {
        at.map(|at| at.seconds_until(self.state.at))
    }

    fn journal(&mut self) {
        use Severity::{Critical, Warning};
        let journal = &self.state.journal;
        let filled = journal.stats.bytes as f64 / journal.max_bytes as f64;
        if let Some(left) = journal.full_in_seconds.filter(|left| *left < 4.0 * HOURS && filled > 0.25) {
            let text = format!("the journal is full in {} at this rate", age(left));
            self.troubles.push(text.clone());
            self.find("JournalFilling", Critical, text, "fix the sink that is behind, or raise journal.max_bytes");
        }
        let free = journal.stats.disk_free_bytes;
        if free < 1024 * 1024 * 1024 {
            let text = format!("the disk has {} MiB free", grouped(free / 1024 / 1024));
            if journal.stats.health == Health::Healthy {
                self.troubles.push(text.clone());
            }
            self.find("DiskLow", Critical, text, "make room on the disk of journal.dir");
        }
        let damaged = journal.stats.damaged_records;
        if damaged > 0 {
            let text = format!("{} in the journal damaged", events(damaged));
            self.troubles.push(text.clone());
            self.find("EventsDamaged", Critical, text, "sendbird-bridge journal verify");
        }
        let dropped = journal.resends_dropped_lately;
        if dropped > 0 {
            let text = format!("{} to be replayed dropped", events(dropped));
            self.troubles.push(text.clone());
            self.find("ResendsDropped", Warning, text, "sendbird-bridge replay list");
        }
    }

    fn sink(&mut self, sink: &Sink) {
        use Severity::{Critical, Warning};
        let name = &sink.name;
        let is_behind = sink.oldest_pending_seconds > 5.0 * MINUTES;
        let waiting =
            format!("{} {}", events(sink.pending_records), if sink.pending_records == 1 { "waits" } else { "wait" });
        if !sink.connected {
            let away = sink.connected_changed_at.seconds_until(self.state.at);
            let taken = sink.last_publish_at.unwrap_or(self.state.started_at).seconds_until(self.state.at);
            self.troubles.push(if sink.pending_records == 0 {
                format!("{name} has no connection for {}", age(away))
            } else {
                let room = self.state.journal.full_in_seconds;
                let room = room.map_or_else(String::new, |left| format!(", room for {}", age(left)));
                format!("{name} has taken nothing for {}, {waiting}{room}", age(taken.max(away)))
            });
            if away >= 2.0 * MINUTES {
                let why =
                    sink.last_failure.as_ref().map_or_else(String::new, |failure| format!(": {}", failure.detail));
                let text = format!("{name} has no connection for {}{why}", age(away));
                self.find(
                    "SinkDisconnected",
                    Warning,
                    text,
                    "fix the broker; nothing is lost while the journal has room",
                );
            }
        } else if is_behind {
            let end = match sink.caught_up_in_seconds {
                Some(left) => format!(", caught up in {}", age(left)),
                None => ", and they get no less".into(),
            };
            let oldest = age(sink.oldest_pending_seconds);
            self.troubles.push(format!("{name} is {oldest} behind, {waiting}{end}"));
        }
        if is_behind {
            let text = format!("{name} is {} behind, {waiting}", age(sink.oldest_pending_seconds));
            self.find("SinkBehind", Critical, text, "fix the broker, or the target that the last failure names");
        }
        if sink.stuck_records > 0 {
            let text = format!("{} of {name} stuck", events(sink.stuck_records));
            self.troubles.push(text.clone());
            self.find("EventsStuck", Warning, text, &format!("sendbird-bridge stuck list --sink {name}"));
        }
        if sink.waiting_full {
            let text = format!("{name} reads no further, as too many events wait");
            self.troubles.push(text.clone());
            self.find("WaitingFull", Critical, text, &format!("sendbird-bridge stuck list --sink {name}"));
        }
        let dead = sink.dead_letters_total;
        if dead > 0 || sink.dead_letters_lately > 0 {
            let text = format!("{} dead letter{} of {name}", grouped(dead), if dead == 1 { "" } else { "s" });
            self.troubles.push(text.clone());
            let is_growing = sink.dead_letters_lately > 0;
            let (alert, severity) =
                if is_growing { ("DeadLettersGrowing", Critical) } else { ("DeadLettersWaiting", Warning) };
            self.find(alert, severity, text, &format!("sendbird-bridge dead-letters list --sink {name}"));
        }
        if sink.gone_lately > 0 {
            let text = format!("{} not kept until {name} could publish them", events(sink.gone_lately));
            self.troubles.push(text.clone());
            self.find("EventsGone", Critical, text, "see whether files of journal.dir were deleted or replaced");
        }
        if sink.broker_duplicates_lately > 100 {
            let text = format!("the broker of {name} had {} already", events(sink.broker_duplicates_lately));
            self.find("BrokerDuplicates", Warning, text, "see whether two bridges take the same deliveries");
        }
    }
}

/// "1 event", "4,310 events".
fn events(count: u64) -> String {
    format!("{} event{}", grouped(count), if count == 1 { "" } else { "s" })
}
