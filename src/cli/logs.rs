//! Logs to standard error, as text or as JSON, one line for each thing that happened.
//!
//! No line of ours shows a payload or a secret, at whatever level. What libraries log is another matter: at their
//! finest level some show all that they read and write. So a level alone (`RUST_LOG=trace`) is meant for this program;
//! of a library it takes its name (`RUST_LOG=info,lapin=trace`) to see more than it says of itself at info.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;

use clap::error::ErrorKind;
use serde_json::json;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

use super::LogFormat;
use crate::domain::clock::{Clock, rfc3339};

/// What the libraries log is ours to say, in our words and at a bounded rate; one of them would even log
/// the bodies of returned messages. `RUST_LOG` can ask for it by name all the same.
const LIBRARIES: &str = "lapin=off,async_nats=off,librdkafka=off,rdkafka=off,amq_protocol=off";

/// The targets of this program.
const OURS: &str = "sendbird_bridge";

/// Starts logging at `level`, or as `RUST_LOG` says.
pub(super) fn start(format: LogFormat, level: &str) {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let (filter, ignored) = filter(level, &wanted);
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // Where standard error can't be written, an error about that can't be either, and would be a panic.
    let logs = tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(colours).init(),
        LogFormat::Json => logs.json().flatten_event(true).with_current_span(false).init(),
    }
    std::panic::set_hook(Box::new(on_panic));
    for part in ignored {
        tracing::warn!(part, "ignored a part of RUST_LOG that is not a valid filter");
    }
}

/// The filter, and the parts of `wanted` that make no sense.
fn filter<'a>(level: &str, wanted: &'a str) -> (EnvFilter, Vec<&'a str>) {
    let mut filter = EnvFilter::new(format!("{level},{LIBRARIES}"));
    let mut ignored = Vec::new();
    for part in wanted.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let directives = match part.parse::<LevelFilter>() {
            Ok(level) => vec![level.min(LevelFilter::INFO).to_string(), format!("{OURS}={level}")],
            Err(_) => vec![part.to_owned()],
        };
        for directive in directives {
            match directive.parse::<Directive>() {
                Ok(directive) => filter = filter.add_directive(directive),
                Err(_) => ignored.push(part),
            }
        }
    }
    (filter, ignored)
}

/// The format that arguments ask for, also those that make no sense otherwise.
pub(super) fn format_in(arguments: impl IntoIterator<Item = OsString>) -> LogFormat {
    let words: Vec<OsString> = arguments.into_iter().take_while(|word| word != "--").collect();
    let apart = words.windows(2).any(|pair| pair[0] == "--log-format" && pair[1] == "json");
    if apart || words.iter().any(|word| word == "--log-format=json") { LogFormat::Json } else { LogFormat::Text }
}

/// What is wrong with the arguments, in one line, without the usage that a person is shown below it.
pub(super) fn usage(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "expected a command, but found none; see --help".to_owned();
    }
    let text = error.render().to_string();
    let paragraphs = text.trim_start_matches("error: ").split("\n\n").map(str::trim);
    let kept = paragraphs.filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"));
    let kept = kept.map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    kept.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Why a command failed, as a line of the log that no filter keeps back.
pub(super) fn failure(message: &str, faults: &[String], causes: &[String]) -> String {
    let timestamp = rfc3339(Clock::system().now_ms());
    json!({
        "timestamp": timestamp, "level": "ERROR", "message": message, "faults": faults, "causes": causes,
        "target": module_path!(),
    })
    .to_string()
}

/// Logs a panic as anything else, but not with what may come from a delivery.
fn on_panic(panic: &PanicHookInfo<'_>) {
    let at = panic.location().map(ToString::to_string);
    // Only where RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let thread = std::thread::current();
    tracing::error!(at, thread = thread.name(), reason = reason(panic.payload()), backtrace, "thread panicked");
}

/// A message that was written into the source tells nothing of a delivery. One that was put together while the
/// program ran may: that of a slice out of bounds quotes the text.
fn reason(payload: &dyn Any) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("left out, as it may quote a delivery")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::process::Command;

    const IN_A_PROCESS_OF_ITS_OWN: &str = "cli::logs::tests::panics_of_both_kinds";

    #[test]
    #[ignore = "the next test runs it in a process of its own, as it has the process panic"]
    fn panics_of_both_kinds() {
        start(LogFormat::Json, "info");
        let panics: [fn(); 3] = [
            || panic!("a text of the source"),
            || panic!("{}", "canary"),
            || drop("ca\u{f1}ary"["x".len() + 2..].to_owned()),
        ];
        for panics in panics {
            assert!(std::thread::spawn(panics).join().is_err());
        }
    }

    #[test]
    fn a_panic_is_a_line_that_quotes_nothing() {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", IN_A_PROCESS_OF_ITS_OWN, "--ignored", "--nocapture"]).env_remove("RUST_LOG");
        let output = command.output().expect("an output");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 3, "{said}");
        for line in &lines {
            assert_eq!((&line["level"], &line["message"]), (&"ERROR".into(), &"thread panicked".into()));
            assert!(line["at"].as_str().is_some_and(|at| at.contains("logs.rs:")), "{line}");
        }
        assert_eq!(lines[0]["reason"], "a text of the source");
        assert!(!said.contains("canary") && !said.contains("ca\u{f1}ary"), "{said}");
    }

    #[test]
    fn a_level_alone_is_for_this_program() {
        let of = |wanted| {
            let (filter, ignored) = filter("info", wanted);
            let mut parts: Vec<String> = filter.to_string().split(',').map(str::to_owned).collect();
            parts.sort();
            (parts.into_iter().filter(|part| !LIBRARIES.contains(part.as_str())).collect::<Vec<_>>(), ignored)
        };
        assert_eq!(of(""), (vec!["info".to_owned()], vec![]));
        assert_eq!(of("trace"), (vec!["info".to_owned(), "sendbird_bridge=trace".to_owned()], vec![]));
        assert_eq!(of("error"), (vec!["error".to_owned(), "sendbird_bridge=error".to_owned()], vec![]));
        let (parts, ignored) = of("debug,lapin=trace,=?=");
        assert!(parts.contains(&"lapin=trace".to_owned()) && parts.contains(&"info".to_owned()), "{parts:?}");
        assert_eq!(ignored, ["=?="]);
        assert!(!filter("info", "lapin=trace").0.to_string().contains("lapin=off"));
    }

    #[test]
    fn the_format_is_found_among_arguments_that_make_no_sense() {
        let of = |words: &str| format_in(words.split_whitespace().map(OsString::from));
        for json in ["--nonsense serve --log-format json", "--log-format=json --nonsense", "--log-format json"] {
            assert_eq!(of(json), LogFormat::Json, "{json}");
        }
        for text in ["", "serve --nonsense", "--log-format text json", "--log-format", "-- --log-format json"] {
            assert_eq!(of(text), LogFormat::Text, "{text}");
        }
    }

    #[test]
    fn a_failure_is_one_line_of_json() {
        let line = failure("a\nb \"c\"", &["k: v".into()], &[]);
        assert!(!line.contains('\n'));
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&line["message"], &line["faults"][0]), (&"a\nb \"c\"".into(), &"k: v".into()));
    }
}
