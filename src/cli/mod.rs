//! The commands, one a file.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 64
//! wrong usage or configuration.
#![allow(clippy::print_stderr, reason = "talking to a person at a terminal is what this layer is for")]

mod admin;
mod client;
mod complete;
mod config;
mod core_dumps;
mod dead_letters;
mod demo;
mod drain;
mod journal;
mod latency;
mod logs;
mod machine;
mod output;
mod platform;
mod reach;
mod reconcile;
mod replay;
mod schema;
mod select;
mod send;
mod sendbird;
mod serve;
mod status;
mod stuck;
mod table;
mod tail;
mod webhook;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::app;
use crate::config::{CONFIG_VARIABLE, Faults, Loaded};
use crate::journal::AdminError;

/// What is running: the version, the commit where whoever built it has said so, and the features.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = option_env!("SENDBIRD_BRIDGE_COMMIT").filter(|commit| !commit.is_empty());
    let commit = commit.map(|commit| format!("commit {commit}, ")).unwrap_or_default();
    let features = app::features();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    format!("{} ({commit}features: {features})", env!("CARGO_PKG_VERSION"))
});

/// Exit code for wrong usage or configuration, as in sysexits.h.
const USAGE: u8 = 64;

/// Bridges Sendbird Calls webhooks to Kafka, RabbitMQ and NATS JetStream.
///
/// Each delivery is checked, made durable, answered within 800 ms and published as a CloudEvent under its
/// call_id or room_id. Try it without a broker: sendbird-bridge demo
#[derive(Debug, Parser)]
#[command(name = "sendbird-bridge", version = VERSION.as_str(), max_term_width = 100)]
struct Cli {
    /// The configuration file (TOML); environment variables SENDBIRD_BRIDGE_… override it
    #[arg(long, global = true, value_name = "FILE", env = CONFIG_VARIABLE)]
    config: Option<PathBuf>,

    /// How logs are written to standard error
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bridge
    Serve,
    Status(status::Args),
    /// The same as status, once a second, until Ctrl-C
    Top(status::TopArgs),
    /// Try it without a broker: starts a bridge, plays a day of signed deliveries and prints the envelopes
    Demo(demo::Args),
    /// Send signed deliveries to a URL as Sendbird does: one second to answer, three tries
    Send(send::Args),
    /// Follow the feed of a running bridge, one envelope a line
    Tail(tail::Args),
    Replay(replay::Args),
    Reconcile(reconcile::Args),
    /// List, show or set aside stuck events: those that a connected sink cannot publish
    #[command(subcommand)]
    Stuck(stuck::Command),
    /// List, show, requeue or discard dead letters: events that a broker rejected or that were set aside
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Statistics, integrity check and salvage of a journal; the bridge may be running
    #[command(subcommand)]
    Journal(journal::Command),
    /// Check or show the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Show or change Sendbird's own webhook settings of an application
    #[command(subcommand)]
    Webhook(webhook::Command),
    /// Print JSON Schema, AsyncAPI or OpenAPI of what this bridge does
    #[command(subcommand)]
    Schema(schema::Command),
    /// Print the completions of a shell: sendbird-bridge completions bash > /etc/bash_completion.d/sendbird-bridge
    Completions(complete::CompletionArgs),
    /// Print the manual page, or write one for each command
    Man(complete::ManArgs),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] Faults),
    /// The arguments make no sense together.
    #[error("{0}")]
    Usage(String),
    /// What was to be done failed, and the command has said so.
    #[error("{0}")]
    Failed(String),
    /// Something else failed.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        Self::other(error)
    }
}

impl Failure {
    fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Other(error.into())
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    // Before anything secret is read. A process that cannot do without is better than none.
    if let Err(error) = core_dumps::forbid() {
        eprintln!("warning: cannot disable core dumps: {error}");
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let format = cli.log_format;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(format, &failure);
            match failure {
                Failure::Config(_) | Failure::Usage(_) => ExitCode::from(USAGE),
                Failure::Failed(_) | Failure::Other(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// Prints what is wrong with the arguments, or the help that they ask for.
fn misused(error: &clap::Error) -> ExitCode {
    let wrong = error.use_stderr();
    if wrong && logs::format_in(std::env::args_os().skip(1)) == LogFormat::Json {
        report(LogFormat::Json, &Failure::Usage(logs::usage(error)));
    } else {
        // Nothing can be done about a terminal that can't be written to.
        error.print().ok();
    }
    if wrong { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

fn run(cli: Cli) -> Result<(), Failure> {
    // One TLS provider for the whole process; a second one would make some clients panic.
    rustls::crypto::ring::default_provider().install_default().map_err(|_other| {
        Failure::Failed("cannot install the TLS provider: another one is installed already".into())
    })?;
    let load = || Loaded::load(cli.config.as_deref(), std::env::vars_os());
    // For commands that do without a configuration, where there is none.
    let describe = || Loaded::load_to_describe(cli.config.as_deref(), std::env::vars_os());
    match cli.command {
        Command::Serve => logs::start(cli.log_format, "info"),
        // These only ask over HTTP, or print, and say themselves what is wrong.
        Command::Send(_)
        | Command::Tail(_)
        | Command::Status(_)
        | Command::Top(_)
        | Command::Reconcile(_)
        | Command::Webhook(_)
        | Command::Schema(_) => {}
        _ => logs::start(cli.log_format, "warn"),
    }
    match cli.command {
        Command::Serve => block_on(serve::run(load()?, cli.config.as_deref())),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Send(args) => block_on(send::run(args, describe()?)),
        Command::Tail(args) => block_on(tail::run(args, describe()?)),
        Command::Status(args) => block_on(status::run(args, describe()?)),
        Command::Top(args) => block_on(status::top(args, describe()?)),
        Command::Replay(args) => replay::run(&args, load),
        Command::Reconcile(args) => block_on(reconcile::run(args, load)),
        Command::Stuck(command) => stuck::run(&command, load),
        Command::DeadLetters(command) => dead_letters::run(&command, load),
        Command::Journal(command) => journal::run(command, load),
        Command::Config(command) => block_on(config::run(command, load()?, cli.log_format)),
        Command::Webhook(command) => block_on(webhook::run(command, load, describe)),
        Command::Schema(command) => schema::run(command, describe),
        Command::Completions(args) => complete::completions(&args, Cli::command()),
        Command::Man(args) => complete::man(&args, Cli::command()),
    }
}

fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::other)?;
    let result = runtime.block_on(command);
    // A write to a pipe that nobody reads blocks its thread indefinitely, and must not keep the process.
    runtime.shutdown_background();
    result
}

/// The error and what caused it, each fault of the configuration on a line of its own.
/// With logs as JSON all of it is one line.
fn report(format: LogFormat, failure: &Failure) {
    let faults = match failure {
        Failure::Config(faults) => faults.lines(),
        Failure::Usage(_) | Failure::Failed(_) | Failure::Other(_) => Vec::new(),
    };
    let causes = std::iter::successors(std::error::Error::source(failure), |cause| cause.source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    if format == LogFormat::Json {
        eprintln!("{}", logs::failure(&failure.to_string(), &faults, &causes));
        return;
    }
    eprintln!("error: {failure}");
    for fault in faults {
        eprintln!("  {fault}");
    }
    for cause in causes {
        eprintln!("  caused by: {cause}");
    }
}

/// Prints a result. A reader that went away, as `head` does, is no failure: `false` says so.
fn print(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::other(error)),
    }
}
