//! What a load was answered and what the judge says of each sink, as the tables that are published.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
use super::oracle::{Fault, Verdict};
use super::oracle::{Sent, read_outcomes};

/// What the load was answered.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) stored: u64,
    pub(crate) duplicates: u64,
    /// The last try of each delivery is the one that is timed.
    pub(crate) longest_ms: f64,
    /// Other answers, and why there was none.
    pub(crate) others: BTreeMap<String, u64>,
}

/// What was sent, in its order, and what was answered.
pub(crate) fn read(record: &Path) -> (Vec<Sent>, Answers) {
    let mut answers = Answers::default();
    let sent = read_outcomes(record, |outcome| {
        let said = outcome.answer.as_ref().map(|answer| answer.status.as_str());
        match (outcome.status, said) {
            (Some(200), Some("stored")) => answers.stored += 1,
            (Some(200), Some("duplicate")) => answers.duplicates += 1,
            (Some(status), _) => *answers.others.entry(status.to_string()).or_default() += 1,
            (None, _) => *answers.others.entry(outcome.error.clone().expect("a reason")).or_default() += 1,
        }
        if outcome.status.is_some() {
            answers.longest_ms = answers.longest_ms.max(outcome.ms);
        }
    });
    let known = answers.answered() + answers.others.values().sum::<u64>();
    if sent.len() as u64 > known {
        answers.others.insert("told, as the sender was killed".into(), sent.len() as u64 - known);
    }
    (sent, answers)
}

impl Answers {
    pub(crate) fn answered(&self) -> u64 {
        self.stored + self.duplicates
    }

    /// A row for each figure, after rows of the caller's own.
    pub(crate) fn table(&self, first: &[(&str, u64)]) -> String {
        let mut text = String::new();
        let mut row = |label: &str, value: &str| writeln!(text, "{label:<34}{value:>10}").unwrap();
        first.iter().for_each(|(label, value)| row(label, &value.to_string()));
        let sent = self.answered() + self.others.values().sum::<u64>();
        row("deliveries sent", &sent.to_string());
        row("answered 200", &self.answered().to_string());
        row("  stored", &self.stored.to_string());
        row("  duplicate", &self.duplicates.to_string());
        for (what, count) in &self.others {
            row(&format!("not: {what}"), &count.to_string());
        }
        row("longest answer, ms", &format!("{:.0}", self.longest_ms));
        text
    }
}

/// A line for each sink.
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
pub(crate) fn sinks_table<'a>(sinks: impl IntoIterator<Item = (&'a str, &'a Verdict)>) -> String {
    let columns = ["events", "lost", "altered", "invented", "out of order", "late", "duplicates"];
    let mut text = format!("{:<10}", "sink");
    columns.iter().for_each(|column| write!(text, "{column:>14}").unwrap());
    for (label, verdict) in sinks {
        let count = |kind: fn(&Fault) -> bool| verdict.faults.iter().filter(|fault| kind(fault)).count();
        let numbers = [
            verdict.events,
            count(|fault| matches!(fault, Fault::Missing { .. })),
            count(|fault| matches!(fault, Fault::Altered { .. })),
            count(|fault| matches!(fault, Fault::Invented { .. })),
            count(|fault| matches!(fault, Fault::Swapped { .. })),
            verdict.late,
            verdict.again,
        ];
        write!(text, "\n{label:<10}").unwrap();
        numbers.iter().for_each(|number| write!(text, "{number:>14}").unwrap());
    }
    text + "\n"
}
