//! The rules of the house, read from the sources: who may use whom, and what stands where.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
    let path = source.path.as_str();
    path.ends_with("/tests.rs")
        || path.contains("/tests/")
        || matches!(path, "src/sendbird/golden.rs" | "src/sendbird/properties.rs")
}

/// Where an item stands: the modules down to it, without `crate`.
type ItemPath = Vec<String>;

/// The files, each by its module, and what each takes from others.
struct Imports {
    /// Each module that is a file, with the path of the file.
    files: BTreeMap<ItemPath, String>,
    /// What a module imports, by the name that the import gives it there. Others may take it from there.
    names: BTreeMap<(ItemPath, String), ItemPath>,
    /// Each path that a module writes out.
    paths: BTreeSet<(ItemPath, ItemPath)>,
}

impl Imports {
    fn of(sources: &[Source]) -> Self {
        let files: BTreeMap<_, _> =
            sources.iter().map(|source| (module_of(&source.path), source.path.clone())).collect();
        let mut imports = Self { files, names: BTreeMap::new(), paths: BTreeSet::new() };
        for source in sources {
            let module = module_of(&source.path);
            let code: Vec<&str> =
                source.lines.iter().map(|(_, line)| line.split("//").next().unwrap_or_default()).collect();
            let code = code.join("\n");
            for (at, _) in code.match_indices("::") {
                let head = code[..at].rsplit(|c: char| !is_in_name(c)).next().unwrap_or_default();
                let begin = at - head.len();
                if head.is_empty() || code[..begin].ends_with("::") {
                    continue;
                }
                let is_use = code[..begin].trim_end().ends_with("use");
                let Some(start) = imports.start(&module, head, is_use) else { continue };
                for (path, name) in branches(&code[at + 2..], &start).0 {
                    if let (true, Some(name)) = (is_use, name) {
                        imports.names.insert((module.clone(), name), absolute(&path));
                    }
                    imports.paths.insert((module.clone(), absolute(&path)));
                }
            }
        }
        imports
    }

    /// Where a path that begins with this word begins.
    fn start(&self, module: &[String], head: &str, is_use: bool) -> Option<ItemPath> {
        let child = [module, &[head.to_owned()]].concat();
        match head {
            "crate" => Some(Vec::new()),
            "self" => Some(module.to_vec()),
            "super" => Some([module, &["super".to_owned()]].concat()),
            _ if is_use && self.files.contains_key(&child) => Some(child),
            _ => None,
        }
    }

    /// The module in whose file an item is defined, also if others pass it on.
    fn definer(&self, item: &[String]) -> Option<ItemPath> {
        let mut item = item.to_vec();
        // More often, only a name that is passed on in a ring.
        for _ in 0..8 {
            let end = (0..=item.len()).rev().find(|end| self.files.contains_key(&item[..*end]))?;
            let (module, rest) = item.split_at(end);
            let passed_on = rest.first().and_then(|name| self.names.get(&(module.to_vec(), name.clone())));
            match passed_on {
                Some(from) => item = [from, &rest[1..]].concat(),
                None => return Some(module.to_vec()),
            }
        }
        None
    }

    /// For each file those that it uses, but for those that it lies below or above.
    fn between_files(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (module, item) in &self.paths {
            let Some(definer) = self.definer(item) else { continue };
            if !module.starts_with(&definer) && !definer.starts_with(module) {
                uses.entry(&self.files[module]).or_default().insert(&self.files[&definer]);
            }
        }
        uses
    }
}

fn is_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The module that a file is.
fn module_of(file: &str) -> ItemPath {
    let inside = file.trim_start_matches("src/").trim_end_matches(".rs");
    let inside = inside.strip_suffix("/mod").unwrap_or(inside);
    inside.split('/').filter(|name| *name != "lib").map(str::to_owned).collect()
}

/// Without `super`, each of which takes away the word before it.
fn absolute(path: &[String]) -> ItemPath {
    let mut absolute = Vec::new();
    for word in path {
        if word == "super" {
            absolute.pop();
        } else if word != "self" {
            absolute.push(word.clone());
        }
    }
    absolute
}

/// A path as it is written, and the name that it is imported by.
type Branch = (ItemPath, Option<String>);

/// The paths that `text` goes on with after `start::`, also within braces, and what stands behind them.
fn branches<'a>(text: &'a str, start: &[String]) -> (Vec<Branch>, &'a str) {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        let mut found = Vec::new();
        loop {
            let (inner, behind) = branches(rest, start);
            found.extend(inner);
            let behind = behind.trim_start();
            match behind.strip_prefix(',') {
                Some(next) if !next.trim_start().starts_with('}') => rest = next,
                Some(next) => return (found, &next.trim_start()[1..]),
                None => return (found, behind.strip_prefix('}').unwrap_or(behind)),
            }
        }
    }
    let word = &text[..text.find(|c: char| !is_in_name(c)).unwrap_or(text.len())];
    let rest = &text[word.len()..];
    if word.is_empty() {
        return (vec![(start.to_vec(), None)], rest.strip_prefix('*').unwrap_or(rest));
    }
    let path = [start, &[word.to_owned()]].concat();
    if let Some(deeper) = rest.strip_prefix("::") {
        return branches(deeper, &path);
    }
    if let Some(alias) = rest.strip_prefix(" as ") {
        let end = alias.find(|c: char| !is_in_name(c)).unwrap_or(alias.len());
        return (vec![(path, Some(alias[..end].to_owned()))], &alias[end..]);
    }
    let name = if word == "self" { start.last() } else { path.last() };
    (vec![(path.clone(), name.cloned())], rest)
}

/// The shortest circle through each file that is in one, each told once.
fn circles(sources: &[Source]) -> BTreeSet<String> {
    let imports = Imports::of(sources);
    let uses = imports.between_files();
    let mut found = BTreeSet::new();
    for first in uses.keys() {
        let mut ways = VecDeque::from([vec![*first]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            for next in uses.get(way[way.len() - 1]).into_iter().flatten() {
                if next == first {
                    let mut circle = way.clone();
                    let least = (0..circle.len()).min_by_key(|at| circle[*at]).unwrap_or_default();
                    circle.rotate_left(least);
                    circle.push(circle[0]);
                    found.insert(circle.join(" -> "));
                    ways.clear();
                    break;
                }
                if seen.insert(*next) {
                    ways.push_back([way.as_slice(), &[*next]].concat());
                }
            }
        }
    }
    found
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

/// Of any length, among siblings and cousins. A module and those below it are not looked at: that a part uses what its
/// whole defines, and the whole its parts, is how a module in several files is written.
#[test]
fn no_files_use_each_other() {
    let inner: Vec<Source> = sources().into_iter().filter(|source| !is_test(source)).collect();
    report("circles between files:", &circles(&inner).into_iter().collect::<Vec<_>>());
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

fn made_up(files: &[(&str, &str)]) -> Vec<Source> {
    files.iter().map(|(path, text)| Source::new(path, text)).collect()
}

#[test]
fn the_checker_finds_circles() {
    // Of two, one of them through a name that the module above passes on; and of three, across modules.
    let circle = made_up(&[
        ("src/lib.rs", "mod sink;\nmod http;\nmod app;"),
        ("src/sink.rs", "mod a;\nmod b;\npub use self::a::{Answer as Said, Other};\npub use b::B;"),
        ("src/sink/a.rs", "use std::io;\nuse super::{\n    b::{self, Unused},\n    Told,\n};\n"),
        ("src/sink/b.rs", "fn f() -> super::Said { g() }\n"),
        ("src/http/mod.rs", "mod c;"),
        ("src/http/c.rs", "use crate::{app::d::D, sink};"),
        ("src/app.rs", "pub mod d;\npub mod e;"),
        ("src/app/d.rs", "use super::e::E;"),
        ("src/app/e.rs", "fn f() { crate::http::c::g(); }"),
    ]);
    let expected = [
        "src/app/d.rs -> src/app/e.rs -> src/http/c.rs -> src/app/d.rs",
        "src/sink/a.rs -> src/sink/b.rs -> src/sink/a.rs",
    ];
    assert_eq!(circles(&circle).into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn the_checker_finds_no_circle_where_there_is_none() {
    let sources = made_up(&[
        // A whole and its parts.
        ("src/sink.rs", "mod a;\nmod b;\nuse self::a::A;\npub use b::B;\nstruct Own;"),
        ("src/sink/a.rs", "use super::{Own, b::B};\nuse super::super::http;"),
        // Only in a comment, and only in tests.
        ("src/sink/b.rs", "// use super::a::A;\n#[cfg(test)]\nmod tests {\n    use super::super::a::A;\n}\n"),
        // The name of a type, and another crate's module, are no files.
        ("src/http.rs", "use hyper::sink::a;\nfn f() { sink::a(); A::new() }"),
    ]);
    assert_eq!(circles(&sources), BTreeSet::new());
    let uses = Imports::of(&sources);
    let uses = uses.between_files();
    assert_eq!(uses["src/sink/a.rs"], BTreeSet::from(["src/http.rs", "src/sink/b.rs"]));
    assert_eq!(uses.len(), 1, "{uses:?}");
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
    let mut all: String = ["src", "tests/it"].into_iter().flat_map(rust_files).map(|(_, text)| text).collect();
    // The checks in a cluster.
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/cluster")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "py") {
            all += &fs::read_to_string(path).unwrap().replace("def ", "fn ");
        }
    }
    let is_test =
        |name: &&str| name.matches('_').count() > 1 && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric());
    let named: Vec<&str> = document.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 40, "only {} tests are named", named.len());
    let missing: Vec<&&str> = named.iter().filter(|name| !all.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "expected these tests, but found none of their names: {missing:#?}");
}

// Retired words. They are refused as whole words in `src/` and in the texts for operators, so that each thing keeps the
// one name that it was given.

/// Where a retired word is refused.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    /// In code, without comments and texts: names of types, functions and fields.
    Names,
    /// In everything, comments and documents included.
    Everywhere,
}

/// Each retired word, what to write instead, and why.
const RETIRED: &[(&str, Where, &str)] = &[
    ("Desk", Where::Names, "JournalAdmin or TokenClient: it was the name of both"),
    ("Letter", Where::Names, "StoredDeadLetter: brokers call them dead letters"),
    ("Offer", Where::Names, "BackfillCandidate: it says what becomes of it"),
    ("Told", Where::Names, "FactKind, ScannedFacts or RunSummary: it was the name of three things"),
    ("Taken", Where::Names, "ReloadPolicy or InsertedBatch: it was the name of two things"),
    ("Seen", Where::Names, "ClientState or SecretFileState: it was the name of two things"),
    ("Watched", Where::Names, "TrackedStream, ClientFileState or RecordedSpans: it was the name of three things"),
    ("Live", Where::Names, "RotatableSecret or OpenCall: it was the name of two things"),
    ("Look", Where::Names, "Operation: the word of OpenAPI"),
    ("Trouble", Where::Names, "FailureLog or DropLog: it says what it does"),
    ("Adder", Where::Names, "RecordInserter"),
    ("HeaderLock", Where::Everywhere, "SecretHeader: a lock is the file lock"),
    ("headerLock", Where::Everywhere, "secretHeader: a lock is the file lock"),
    ("has_lock", Where::Everywhere, "has_authentication: a lock is the file lock"),
    ("Setback", Where::Names, "ClockRegression"),
    ("Oddities", Where::Names, "Anomalies"),
    ("oddities", Where::Names, "anomalies"),
    ("Receipt", Where::Names, "Provenance"),
    ("Walker", Where::Names, "Reconciler"),
    ("Walk", Where::Names, "Pagination"),
    ("Users", Where::Names, "SecretConsumers: a user is a person"),
    ("Which", Where::Names, "EventFilterArgs"),
    ("publish_alone", Where::Everywhere, "publish_unbatched: it says what is different"),
    ("unsaid", Where::Names, "suppressed: the word in the log"),
    ("said_down", Where::Names, "logged"),
    ("UNSAID_MS", Where::Everywhere, "DEFAULT_LIFETIME_MS"),
    ("ANEW_MS", Where::Everywhere, "MAX_REFRESH_INTERVAL_MS"),
    ("is_here", Where::Names, "is_loopback"),
    ("believe", Where::Names, "apply_committed"),
    ("believing", Where::Names, "tls_config"),
    ("let_nobody_in", Where::Everywhere, "refuse_new_connections"),
    ("count_letters", Where::Everywhere, "recount"),
    ("take_in", Where::Names, "enqueue"),
    ("mend", Where::Everywhere, "fix: the word of the trade"),
    ("mends", Where::Everywhere, "fixes: the word of the trade"),
    ("mended", Where::Everywhere, "fixed: the word of the trade"),
    ("trying again", Where::Everywhere, "retrying: the word of log lines"),
    ("asking again", Where::Everywhere, "reconnecting"),
    ("ended unasked", Where::Everywhere, "exited unexpectedly"),
    ("the locks", Where::Everywhere, "authentication: a lock is the file lock"),
    ("belong into", Where::Everywhere, "belong in"),
];

/// Whether `text` has `word` between characters that no name and no word goes on with.
fn has_word(text: &str, word: &str) -> bool {
    let goes_on = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(start, _)| {
        !goes_on(text[..start].chars().next_back()) && !goes_on(text[start + word.len()..].chars().next())
    })
}

/// A line of code without the texts and the comment in it. A text over several lines is not recognised; none of its
/// words is likely to be a name.
fn without_texts(line: &str) -> String {
    let mut out = String::new();
    for (index, part) in line.replace("\\\"", "").split('"').enumerate() {
        if index % 2 == 0 {
            out.push_str(part);
        }
    }
    out.split("//").next().unwrap_or_default().to_owned()
}

/// The retired words in a line.
fn retired(line: &str, is_code: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    let (names, all) = (if is_code { without_texts(line) } else { String::new() }, line.to_owned());
    let matches = move |(word, place, _): &&(&str, Where, &str)| match place {
        Where::Names => has_word(&names, word),
        Where::Everywhere => has_word(&all.to_lowercase(), &word.to_lowercase()),
    };
    RETIRED.iter().filter(matches).map(|(word, _, instead)| (*word, *instead))
}

/// The texts of `docs/`, `deploy/`, `config/` and the README, without what other programs have written.
fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open = ["docs", "deploy", "config"].map(|folder| root.join(folder)).to_vec();
    let mut files = ["README.md", "ARCHITECTURE.md"].map(|file| root.join(file)).to_vec();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    let read = |file: PathBuf| {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        Some((path, fs::read_to_string(file).ok()?))
    };
    files.into_iter().filter_map(read).collect()
}

#[test]
fn retired_words_are_not_used() {
    let code = rust_files("src").into_iter().map(|(path, text)| (path, text, true));
    let texts = documents().into_iter().map(|(path, text)| (path, text, false));
    let found = code.chain(texts).flat_map(|(path, text, is_code)| {
        let in_line = |(index, line): (usize, &str)| {
            let found = retired(line, is_code)
                .map(|(word, instead)| format!("{path}:{}: expected \"{instead}\", but found \"{word}\"", index + 1));
            found.collect::<Vec<_>>()
        };
        text.lines().enumerate().flat_map(in_line).collect::<Vec<_>>()
    });
    report("retired words:", &found.collect::<Vec<_>>());
}

#[test]
fn the_checker_finds_retired_words_and_nothing_else() {
    let words = |line, is_code| retired(line, is_code).map(|(word, _)| word).collect::<Vec<_>>();
    assert_eq!(words("struct Setback { unsaid: u64 }", true), ["Setback", "unsaid"]);
    assert_eq!(words("tracing::warn!(\"publish failed; trying again\");", true), ["trying again"]);
    assert_eq!(words("**Do.** Mend the broker.", false), ["mend"]);
    assert_eq!(words("struct Lively { amendment: Letterbox } // Live", true), [""; 0]);
    assert_eq!(words("let text = \"Live\";", true), [""; 0]);
}
