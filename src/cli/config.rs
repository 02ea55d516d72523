//! `config check` and `config show`.

use std::time::Duration;

use clap::Subcommand;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::machine;
use super::output::OutputArgs;
use super::table::counted;
use super::{Failure, LogFormat, print};
use crate::app;
use crate::config::{Config, Loaded};
use crate::sink::{Finding, Reason};

/// How long one broker may take to answer `check --connect`. Each step of a check has a shorter limit of its own.
const CHECK_LIMIT: Duration = Duration::from_secs(40);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Report every fault with its key and its source; exit code 64 if there is any
    Check {
        /// Also ask each sink's broker whether every event could be published; changes nothing there
        #[arg(long)]
        connect: bool,
        /// Create missing topics, exchanges, queues and streams, as far as the configuration lets serve create them
        #[arg(long, requires = "connect")]
        create: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the effective values and where each comes from; secrets are hidden
    Show,
}

/// The configuration was found right, or it would not have been loaded.
pub(super) async fn run(command: Command, loaded: Loaded, format: LogFormat) -> Result<(), Failure> {
    match command {
        Command::Check { connect, create, output } => {
            let settings = loaded.warnings.iter().map(ToString::to_string);
            for warning in settings.chain(machine::warnings(&loaded.config)) {
                match format {
                    _ if output.is_json() => drop(print(&format!("{}\n", json!({ "warning": warning })))?),
                    LogFormat::Text => eprintln!("warning: {warning}"),
                    LogFormat::Json => tracing::warn!("{warning}"),
                }
            }
            let sinks = loaded.config.sinks.len();
            print(&if output.is_json() {
                format!("{}\n", json!({ "configuration": "ok", "sinks": sinks }))
            } else {
                format!("configuration OK ({})\n", counted(sinks as u64, "sink"))
            })?;
            if connect {
                return check_sinks(&loaded.config, create, output.is_json()).await;
            }
        }
        Command::Show => {
            print(&loaded.show())?;
        }
    }
    Ok(())
}

/// Asks all brokers at once, and prints what each check has found in the order of the sinks' names.
async fn check_sinks(config: &Config, create: bool, as_json: bool) -> Result<(), Failure> {
    let mut sinks = Vec::new();
    for (name, sink) in &config.sinks {
        sinks.push(app::make_sink(name, sink, config).map_err(Failure::other)?);
    }
    let checks = sinks.iter().map(|sink| async {
        timeout(CHECK_LIMIT, sink.check(create)).await.unwrap_or_else(|_elapsed| {
            let detail = format!("the check has not ended within {} s", CHECK_LIMIT.as_secs());
            vec![Finding::fault(Reason::Timeout, detail)]
        })
    });
    let mut faulty = 0;
    for ((name, sink), findings) in config.sinks.iter().zip(join_all(checks).await) {
        let kind = sink.kind.label();
        let is_ok = !findings.iter().any(|finding| matches!(finding, Finding::Fault(_)));
        faulty += usize::from(!is_ok);
        if as_json {
            let findings: Vec<_> = findings.iter().map(finding_as_json).collect();
            print(&format!("{}\n", json!({ "sink": name, "type": kind, "ok": is_ok, "findings": findings })))?;
            continue;
        }
        let said = is_ok.then(|| "OK".to_owned()).into_iter().chain(findings.iter().map(ToString::to_string));
        print(&said.map(|said| format!("sinks.{name} ({kind}): {said}\n")).collect::<String>())?;
    }
    match faulty {
        0 => Ok(()),
        n => Err(Failure::Failed(format!(
            "{n} of {} cannot publish every event now",
            counted(config.sinks.len() as u64, "sink")
        ))),
    }
}

fn finding_as_json(finding: &Finding) -> Value {
    let (name, detail) = match finding {
        Finding::Fault(fault) => {
            return json!({ "finding": "fault", "reason": fault.reason.as_str(), "detail": fault.detail });
        }
        Finding::Warning(text) => ("warning", text),
        Finding::WillCreate(what) => ("will_be_created", what),
        Finding::Created(what) => ("created", what),
        Finding::NotChecked(what) => ("not_checked", what),
    };
    json!({ "finding": name, "detail": detail })
}
