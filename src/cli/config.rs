//! `config check` and `config show`.

use std::time::Duration;

use clap::Subcommand;
use tokio::time::timeout;

use super::machine;
use super::table::counted;
use super::{Failure, LogFormat, print};
use crate::app;
use crate::config::{Config, Loaded};

/// How long one broker may take to answer `check --connect`.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// How long its connection may take to be closed again.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Report every fault with its key and its source; exit code 64 if there is any
    Check {
        /// Also open a connection to each sink's broker and check its topics, exchange or stream
        #[arg(long)]
        connect: bool,
    },
    /// Print the effective values and where each comes from; secrets are hidden
    Show,
}

/// The configuration was found right, or it would not have been loaded.
pub(super) async fn run(command: Command, loaded: Loaded, format: LogFormat) -> Result<(), Failure> {
    match command {
        Command::Check { connect } => {
            let settings = loaded.warnings.iter().map(ToString::to_string);
            for warning in settings.chain(machine::warnings(&loaded.config)) {
                match format {
                    LogFormat::Text => eprintln!("warning: {warning}"),
                    LogFormat::Json => tracing::warn!("{warning}"),
                }
            }
            let sinks = loaded.config.sinks.len();
            print(&format!("configuration OK ({})\n", counted(sinks as u64, "sink")))?;
            if connect {
                return reach(&loaded.config).await;
            }
        }
        Command::Show => {
            print(&loaded.show())?;
        }
    }
    Ok(())
}

async fn reach(config: &Config) -> Result<(), Failure> {
    let mut unreached = 0;
    for (name, sink) in &config.sinks {
        let made = app::make_sink(name, sink).map_err(Failure::other)?;
        let found = match timeout(CONNECT_LIMIT, made.connect()).await {
            Ok(Ok(connection)) => {
                connection.close(CLOSE_LIMIT).await;
                "reached".to_owned()
            }
            Ok(Err(failure)) => format!("not reached: {}", failure.fault()),
            Err(_elapsed) => format!("not reached within {} s", CONNECT_LIMIT.as_secs()),
        };
        unreached += usize::from(found != "reached");
        print(&format!("sinks.{name} ({}): {found}\n", sink.kind.label()))?;
    }
    match unreached {
        0 => Ok(()),
        n => Err(Failure::Failed(format!("{n} of {} sinks cannot publish now", config.sinks.len()))),
    }
}
