//! The rules of the house, read from the sources: who may use whom, and what stands where.

use std::fs;
use std::path::{Path, PathBuf};

/// Each top-level module and those that it may use.
const ARROWS: [(&str, &[&str]); 16] = [
    ("domain", &[]),
    ("metrics", &[]),
    ("outbound", &[]),
    ("shutdown", &[]),
    ("traces", &["domain", "outbound"]),
    ("journal", &["domain"]),
    ("sendbird", &["domain"]),
    ("access", &["domain", "sendbird"]),
    ("sink", &["domain", "outbound"]),
    ("pipeline", &["domain", "journal", "sendbird", "access", "sink", "metrics", "traces"]),
    ("http", &["domain", "journal", "sendbird", "access", "sink", "metrics", "traces", "pipeline"]),
    ("config", &["domain", "journal", "sendbird", "access", "sink", "metrics", "traces", "pipeline", "http"]),
    (
        "contracts",
        &["domain", "journal", "sendbird", "access", "sink", "metrics", "traces", "pipeline", "http", "config"],
    ),
    // For the fuzzer and the tests alone.
    ("fuzzing", &["domain", "journal", "sendbird", "access", "sink", "metrics", "pipeline", "http", "config"]),
    (
        "app",
        &[
            "domain",
            "journal",
            "sendbird",
            "access",
            "sink",
            "metrics",
            "traces",
            "pipeline",
            "http",
            "config",
            "contracts",
            "shutdown",
        ],
    ),
    (
        "cli",
        &[
            "domain",
            "journal",
            "sendbird",
            "access",
            "outbound",
            "sink",
            "metrics",
            "pipeline",
            "http",
            "config",
            "contracts",
            "shutdown",
            "app",
        ],
    ),
];

/// A file of `src`, with the lines of its tests left out.
struct Source {
    path: String,
    lines: Vec<(usize, String)>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), lines: without_tests(text) }
    }

    /// The top-level module that it belongs to.
    fn module(&self) -> &str {
        let inside = self.path.trim_start_matches("src/");
        inside.split(['/', '.']).next().unwrap_or_default()
    }
}

/// The lines with their numbers, without modules and functions that only tests have. Relies on the layout of rustfmt:
/// an item ends where a line closes at the indentation that it began at.
fn without_tests(text: &str) -> Vec<(usize, String)> {
    let mut kept = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push((index + 1, line.to_owned()));
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        for (_, line) in lines.by_ref() {
            let single = line.trim_end().ends_with(';') && !line.trim_start().starts_with("#[");
            if line == end || (single && !line.starts_with(' ')) {
                break;
            }
        }
    }
    kept
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// The top-level modules that a line uses by `crate::`, also within braces.
fn used(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in line.split("crate::").skip(1) {
        let names = rest.strip_prefix('{').map_or_else(|| vec![rest], |group| group.split(',').collect());
        for name in names {
            let name: String =
                name.trim().chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_').collect();
            found.push(name);
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// Where a source breaks an arrow.
fn broken_arrows(source: &Source) -> Vec<String> {
    let module = source.module();
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
        return vec![format!("{}: expected the module {module} in the table of arrows", source.path)];
    };
    let lines = source.lines.iter().filter(|(_, line)| !is_comment(line));
    let broken = lines.flat_map(|(number, line)| {
        let wrong = used(line).into_iter().filter(|used| used != module && !allowed.contains(&used.as_str()));
        wrong.map(move |used| format!("{}:{number}: {module} may not use {used}: {}", source.path, line.trim()))
    });
    broken.collect()
}

/// Where a source has a word that it may not have.
fn found(source: &Source, word: &str) -> Vec<String> {
    let lines = source.lines.iter().filter(|(_, line)| !is_comment(line) && line.contains(word));
    lines.map(|(number, line)| format!("{}:{number}: {}", source.path, line.trim())).collect()
}

fn sources() -> Vec<Source> {
    let files = rust_files("src").into_iter();
    files.map(|(path, text)| Source::new(&path, &text)).collect()
}

/// The Rust files below a folder of the project, by their paths in it, with their texts.
fn rust_files(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join(folder)];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let read = |file: PathBuf| {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        (path, fs::read_to_string(file).unwrap())
    };
    files.into_iter().map(read).collect()
}

/// A file of tests alone, included under `#[cfg(test)]`.
fn is_test(source: &Source) -> bool {
    source.path.ends_with("/tests.rs") || source.path == "src/sendbird/golden.rs"
}

fn report(what: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{what}\n{}", broken.join("\n"));
}

#[test]
fn every_module_uses_only_what_stands_left_of_it() {
    let sources = sources();
    let inner = sources.iter().filter(|source| !is_test(source));
    let inner = inner.filter(|source| !matches!(source.path.as_str(), "src/lib.rs" | "src/main.rs"));
    report("arrows are broken:", &inner.flat_map(broken_arrows).collect::<Vec<_>>());
    for (module, _) in ARROWS {
        assert!(sources.iter().any(|source| source.module() == module), "the table has {module} and src has not");
    }
}

#[test]
fn every_file_says_what_it_owns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|source| !fs::read_to_string(root.join(&source.path)).unwrap().starts_with("//! "))
        .map(|source| source.path)
        .collect();
    report("files that do not begin with //!:", &silent);
}

#[test]
fn status_codes_are_known_to_http_alone() {
    let others = sources().into_iter().filter(|source| source.module() != "http" && !is_test(source));
    report(
        "status codes outside src/http:",
        &others.flat_map(|source| found(&source, "StatusCode")).collect::<Vec<_>>(),
    );
}

#[test]
fn every_task_has_an_owner() {
    let spawned =
        sources().into_iter().flat_map(|source| [found(&source, "tokio::spawn"), found(&source, "task::spawn(")]);
    report("tasks that nobody owns:", &spawned.flatten().collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_to_do() {
    let all = sources().into_iter().flat_map(|source| {
        let words = ["TODO", "FIXME", "XXX"];
        let lines = source.lines.iter().filter(|(_, line)| words.iter().any(|word| line.contains(word)));
        lines.map(|(number, line)| format!("{}:{number}: {}", source.path, line.trim())).collect::<Vec<_>>()
    });
    report("doubts that are neither a decision nor a test:", &all.collect::<Vec<_>>());
}

#[test]
fn the_checker_finds_a_broken_arrow() {
    let text = "\
//! Uses crate::cli only in a comment.
use crate::domain::secret::Secret;
use crate::{domain, journal, sendbird::category};
fn f() -> crate::http::reply::Problem { todo() }

#[cfg(test)]
mod tests {
    use crate::app::App;
}
use crate::pipeline;

#[cfg(test)]
mod more;
use crate::metrics;
";
    let broken = broken_arrows(&Source::new("src/sink/made_up.rs", text));
    let expected = [
        "src/sink/made_up.rs:3: sink may not use journal",
        "src/sink/made_up.rs:3: sink may not use sendbird",
        "src/sink/made_up.rs:4: sink may not use http",
        "src/sink/made_up.rs:10: sink may not use pipeline",
        "src/sink/made_up.rs:14: sink may not use metrics",
    ];
    assert_eq!(broken.len(), expected.len(), "{broken:#?}");
    for (broken, expected) in broken.iter().zip(expected) {
        assert!(broken.starts_with(expected), "{broken}");
    }
    assert_eq!(broken_arrows(&Source::new("src/sink.rs", "use crate::sink::kafka;")), [""; 0]);
    assert_eq!(broken_arrows(&Source::new("src/stray.rs", "")).len(), 1);
}

#[test]
fn the_checker_finds_a_word_that_does_not_belong() {
    let source = Source::new("src/journal/made_up.rs", "// StatusCode\nuse warp::http::StatusCode;\n");
    assert_eq!(found(&source, "StatusCode"), ["src/journal/made_up.rs:2: use warp::http::StatusCode;"]);
}

/// What `docs/reliability.md` calls a proof is there.
#[test]
fn every_test_that_the_documents_name_exists() {
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reliability.md")).unwrap();
    let all: String = ["src", "tests/it"].into_iter().flat_map(rust_files).map(|(_, text)| text).collect();
    let is_test =
        |name: &&str| name.matches('_').count() > 1 && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric());
    let named: Vec<&str> = document.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 40, "only {} tests are named", named.len());
    let missing: Vec<&&str> = named.iter().filter(|name| !all.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "expected these tests, but found none of their names: {missing:#?}");
}
