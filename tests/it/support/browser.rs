//! A Chromium that looks at the operations page, driven through `tests/page/driver.mjs`.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use super::eventually;
use super::repository::repository;

/// A browser with one page. Ended when dropped.
pub(crate) struct Browser {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// How a page was loaded.
#[derive(Debug, Deserialize)]
pub(crate) struct Loaded {
    pub(crate) first_paint_ms: f64,
    /// Of all files that it is made of.
    pub(crate) bytes: u64,
}

/// Where screenshots are kept.
pub(crate) fn screenshots() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page")
}

impl Browser {
    /// # Panics
    /// Chromium or what drives it cannot be had.
    pub(crate) fn start() -> Self {
        let mut command = Command::new(repository("tests/page/browser"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, stdin, stdout }
    }

    #[track_caller]
    fn command(&mut self, command: &Value) -> Value {
        let stdin = self.stdin.as_mut().unwrap();
        writeln!(stdin, "{command}").and_then(|()| stdin.flush()).expect("a browser that takes commands");
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the browser ended at {command}"));
        assert!(answer["fault"].is_null(), "{}", answer["fault"].as_str().unwrap_or_default());
        answer["value"].clone()
    }

    /// Opens a path of a bridge's admin endpoint.
    #[track_caller]
    pub(crate) fn open(&mut self, admin: SocketAddr, path: &str) -> Loaded {
        let loaded = self.command(&json!(["open", format!("http://{admin}{path}")]));
        serde_json::from_value(loaded).unwrap()
    }

    /// The text of the first such element, which is waited for.
    #[track_caller]
    pub(crate) fn text(&mut self, selector: &str) -> String {
        self.command(&json!(["text", selector])).as_str().unwrap().to_owned()
    }

    /// Waits until the text of the first such element holds this.
    #[track_caller]
    pub(crate) fn shows(&mut self, selector: &str, part: &str) {
        let mut last = String::new();
        eventually(&format!("{selector} shows {part:?}"), || {
            last = self.text(selector);
            last.contains(part)
        });
    }

    /// The value of an attribute of the first such element.
    #[track_caller]
    pub(crate) fn attribute(&mut self, selector: &str, name: &str) -> Option<String> {
        self.command(&json!(["attribute", selector, name])).as_str().map(str::to_owned)
    }

    /// How many such elements there are.
    #[track_caller]
    pub(crate) fn count(&mut self, selector: &str) -> u64 {
        self.command(&json!(["count", selector])).as_u64().unwrap()
    }

    #[track_caller]
    pub(crate) fn click(&mut self, selector: &str) {
        self.command(&json!(["click", selector]));
    }

    #[track_caller]
    pub(crate) fn fill(&mut self, selector: &str, text: &str) {
        self.command(&json!(["fill", selector, text]));
    }

    #[track_caller]
    pub(crate) fn press(&mut self, key: &str) {
        self.command(&json!(["press", key]));
    }

    /// The value of an expression of JavaScript.
    #[track_caller]
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        self.command(&json!(["evaluate", expression]))
    }

    /// How many requests the page has made.
    #[track_caller]
    pub(crate) fn requests(&mut self) -> u64 {
        self.command(&json!(["requests"])).as_u64().unwrap()
    }

    /// Takes the page as it is at 360 and 1280 pixels, light and dark, none of which may need scrolling to the side; and axe-core
    /// finds nothing.
    #[track_caller]
    pub(crate) fn inspect(&mut self, name: &str) {
        let dir = screenshots();
        let too_wide = self.command(&json!(["screenshots", dir, name]));
        assert_eq!(too_wide, json!([0, 0]), "{name} is too wide by so many pixels at 360 and 1280");
        let found = self.command(&json!(["axe"]));
        assert_eq!(found, json!([]), "{name}: what axe-core found");
    }

    /// As [`Browser::inspect`]; and with the environment variable `BLESS` set, what the documents show is replaced by it.
    #[track_caller]
    pub(crate) fn inspect_for_documents(&mut self, name: &str) {
        self.inspect(name);
        let document = repository(&format!("docs/images/page-{name}.png"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::create_dir_all(document.parent().unwrap()).unwrap();
            std::fs::copy(screenshots().join(format!("{name}-1280-light.png")), &document).unwrap();
        }
        assert!(document.exists(), "{} is missing: BLESS=1 makes it", document.display());
    }

    /// What the browser complained about: errors on the console, exceptions, violations of the policy, requests elsewhere.
    #[track_caller]
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        serde_json::from_value(self.command(&json!(["complaints"]))).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its end of input is its end.
        drop(self.stdin.take());
        self.child.wait().unwrap();
    }
}
