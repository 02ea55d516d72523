//! The files of the repository, and the metrics that they name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What is in a file of the repository.
#[track_caller]
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of metrics in a text that begin with this prefix. Those of recording rules, which have a colon, are not.
pub(crate) fn names(text: &str, prefix: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let words = text.split(|c: char| !is_part(c));
    let words = words.map(|word| word.trim_end_matches(':'));
    words.filter(|word| word.starts_with(prefix) && *word != prefix && !word.contains(':')).map(str::to_owned).collect()
}

#[test]
fn names_are_found() {
    let rules = "record: level:a_x:rate\nexpr: rate(a_y_total[5m]) / a_z > 3 # a_\nfor: 2m\n";
    assert_eq!(names(rules, "a_").into_iter().collect::<Vec<_>>(), ["a_y_total", "a_z"]);
}
