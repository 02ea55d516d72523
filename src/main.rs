//! The program: parses its arguments, runs a command, prints what went wrong, and exits.

use std::process::ExitCode;

fn main() -> ExitCode {
    sendbird_bridge::cli::main()
}
