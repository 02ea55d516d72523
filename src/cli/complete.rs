//! `completions` and `man`: what shells and readers of manual pages know of the commands, made of the commands themselves.

use std::path::PathBuf;

use clap_complete::{Shell, generate};
use clap_mangen::{Man, generate_to};

use super::{Failure, print};

/// The program's name, also where it is run under another.
const NAME: &str = env!("CARGO_PKG_NAME");

#[derive(Debug, clap::Args)]
pub(super) struct CompletionArgs {
    /// Whose completions
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Write a page for each command into this directory, instead of printing that of the program
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionArgs, mut program: clap::Command) -> Result<(), Failure> {
    let mut text = Vec::new();
    generate(args.shell, &mut program, NAME, &mut text);
    print(&String::from_utf8_lossy(&text)).map(drop)
}

pub(super) fn man(args: &ManArgs, program: clap::Command) -> Result<(), Failure> {
    if let Some(dir) = &args.to {
        std::fs::create_dir_all(dir).and_then(|()| generate_to(program, dir)).map_err(Failure::other)?;
        return Ok(());
    }
    let mut text = Vec::new();
    Man::new(program).render(&mut text).map_err(Failure::other)?;
    print(&String::from_utf8_lossy(&text)).map(drop)
}
