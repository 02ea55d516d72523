//! What a scrape says.

use std::collections::BTreeMap;

/// A parsed scrape.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) text: String,
    series: Vec<Series>,
}

#[derive(Debug)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    pub(crate) fn parse(text: String) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| series(line).unwrap_or_else(|| panic!("not a sample: {line}"))).collect();
        Self { text, series }
    }

    /// The sum of the series that have these labels, if there is any.
    pub(crate) fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |series: &&Series| {
            series.name == name
                && labels.iter().all(|(key, value)| series.labels.get(*key).is_some_and(|found| found == value))
        };
        let mut found = self.series.iter().filter(has).map(|series| series.value).peekable();
        found.peek()?;
        Some(found.sum())
    }

    #[track_caller]
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no series {name}{labels:?} in\n{}", self.text))
    }

    /// The values that a label has.
    pub(crate) fn label_values(&self, label: &str) -> Vec<&str> {
        self.series.iter().filter_map(|series| series.labels.get(label)).map(String::as_str).collect()
    }
}

fn series(line: &str) -> Option<Series> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').map_or((series, ""), |(name, rest)| (name, rest.trim_end_matches('}')));
    let labels = labels.split_terminator("\",").filter_map(|pair| {
        let (key, value) = pair.split_once("=\"")?;
        Some((key.to_owned(), value.trim_end_matches('"').to_owned()))
    });
    Some(Series { name: name.to_owned(), labels: labels.collect(), value: value.parse().ok()? })
}

#[test]
fn a_scrape_is_read() {
    let metrics = Metrics::parse("# HELP a b\na{x=\"1\",y=\"k:v, w\"} 2\na{x=\"2\",y=\"\"} 3\nb 0.5\n".to_owned());
    assert_eq!(metrics.find("a", &[("x", "1"), ("y", "k:v, w")]), Some(2.0));
    assert_eq!((metrics.find("a", &[]), metrics.find("b", &[]), metrics.find("c", &[])), (Some(5.0), Some(0.5), None));
}
