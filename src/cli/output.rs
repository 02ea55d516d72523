//! `--output`: how a command writes its result.

use clap::{Args, ValueEnum};

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// JSON, one object a line
    Json,
    /// A table for people
    Table,
}

/// The flag of all commands that have both.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct OutputArgs {
    /// How the result is written
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: Output,
}

impl OutputArgs {
    pub(super) fn is_json(self) -> bool {
        self.output == Output::Json
    }
}
