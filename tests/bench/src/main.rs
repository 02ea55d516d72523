//! What tests/bench/run measures with: a load generator, floors to compare with, and the brokers' clients by themselves.
//!
//! Each command prints one JSON object when it is done; the floors serve until they are killed.

mod delivery;
mod destination;
mod disk;
mod floor;
mod load;
mod publish;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(about)]
enum Command {
    /// Sends signed deliveries to a server on this machine.
    Load(load::Options),
    /// Serves a floor.
    Serve(floor::Options),
    /// Publishes to a broker as fast as it acknowledges.
    Publish(publish::Options),
    /// Appends to a file and syncs it.
    Fdatasync(disk::Options),
    /// Streams, topics and queues.
    #[command(subcommand)]
    Destination(DestinationCommand),
}

#[derive(Subcommand)]
enum DestinationCommand {
    /// Creates one.
    Create(publish::Destination),
    /// Deletes one.
    Delete(publish::Destination),
    /// Counts the messages in one.
    Count(publish::Destination),
    /// Reads one, and counts what was answered with 200 and is not in it.
    Read(destination::ReadOptions),
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sendbird-bridge-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    // As many threads as the bridge has.
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match command {
        Command::Load(options) => print(&load::run(&options)?),
        Command::Fdatasync(options) => print(&disk::run(&options)?),
        Command::Serve(options) => runtime()?.block_on(floor::run(options)),
        Command::Publish(options) => print(&runtime()?.block_on(publish::run(&options))?),
        Command::Destination(DestinationCommand::Create(destination)) => {
            runtime()?.block_on(destination::create(&destination))
        }
        Command::Destination(DestinationCommand::Delete(destination)) => {
            runtime()?.block_on(destination::delete(&destination))
        }
        Command::Destination(DestinationCommand::Count(destination)) => {
            print(&runtime()?.block_on(destination::count(&destination))?)
        }
        Command::Destination(DestinationCommand::Read(options)) => {
            print(&runtime()?.block_on(destination::read(&options))?)
        }
    }
}

fn print(report: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}
