//! What a load was answered and what the judge says of each sink, as the tables that are published.

use std::collections::BTreeMap;
use std::fmt::Write as _;

#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
use super::oracle::{Fault, Verdict};

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

impl Answers {
    pub(crate) fn answered(&self) -> u64 {
        self.stored + self.duplicates
    }

    /// Counts what is missing from so many deliveries: those that were under way when their sender crashed.
    pub(super) fn are_of(&mut self, sent: u64) {
        let known = self.answered() + self.others.values().sum::<u64>();
        if sent > known {
            self.others.insert("known, as the sender crashed".into(), sent - known);
        }
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
