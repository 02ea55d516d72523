//! `schema`: documents made from the code.

use clap::Subcommand;

use super::{Failure, print};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// JSON Schema of the configuration file
    Config,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    let document = match command {
        Command::Config => crate::config::schema(),
    };
    let text = serde_json::to_string_pretty(&document).map_err(Failure::other)?;
    print(&format!("{text}\n")).map(drop)
}
