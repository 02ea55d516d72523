//! Logs to standard error, as text or as JSON.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::LogFormat;

/// What the libraries log is ours to say, in our words and at a bounded rate; one of them would even log
/// the bodies of returned messages. `RUST_LOG` can ask for it all the same.
const LIBRARIES: &str = "lapin=off,async_nats=off,librdkafka=off,rdkafka=off,amq_protocol=off";

/// Starts logging at `level`, or as `RUST_LOG` says.
pub(super) fn start(format: LogFormat, level: &str) {
    let default = || EnvFilter::new(format!("{level},{LIBRARIES}"));
    let filter = match std::env::var("RUST_LOG") {
        Ok(wanted) if !wanted.is_empty() => EnvFilter::try_new(&wanted).unwrap_or_else(|_| default()),
        _ => default(),
    };
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(colours).init(),
        LogFormat::Json => logs.json().flatten_event(true).with_current_span(false).init(),
    }
}
