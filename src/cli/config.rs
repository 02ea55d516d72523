//! `config check` and `config show`.

use clap::Subcommand;

use super::{Failure, print};
use crate::config::Loaded;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Name every fault, with its key and where it comes from; exit code 64 if there is any
    Check,
    /// Print the effective values and where each comes from; secrets are hidden
    Show,
}

/// The configuration was found right, or it would not have been loaded.
pub(super) fn run(command: Command, loaded: Loaded) -> Result<(), Failure> {
    match command {
        Command::Check => {
            let sinks = loaded.config.sinks.len();
            print(&format!("the configuration is right ({sinks} sink{})\n", if sinks == 1 { "" } else { "s" }))?;
        }
        Command::Show => {
            print(&loaded.show())?;
        }
    }
    Ok(())
}
