//! Tables, numbers and progress for people at a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Lines whose columns are as wide as they have to be, two spaces apart, below their names.
pub(super) fn table(names: &[&str], mut rows: Vec<Vec<String>>) -> String {
    rows.insert(0, names.iter().map(|name| (*name).to_owned()).collect());
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:<width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// A bar on standard error, if that is a terminal.
pub(super) fn progress_bar(length: u64, template: &str) -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(length), target).with_style(style)
}

/// A number and what it counts: "1 event", "3 events".
pub(super) fn counted(count: u64, singular: &str) -> String {
    if count == 1 { format!("1 {singular}") } else { format!("{count} {singular}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = table(&["SINK", "N", "DETAIL"], vec![row(["kafka", "1200", "é"]), row(["x", "", "long one"])]);
        assert_eq!(text, "SINK   N     DETAIL\nkafka  1200  é\nx            long one\n");
        assert_eq!(table(&["SINK", "N"], Vec::new()), "SINK  N\n");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "event")), ["0 events", "1 event", "2 events"]);
    }
}
