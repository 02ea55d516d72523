//! `schema`: documents made from the code and, where they depend on it, from the configuration.

use clap::Subcommand;

use super::{Failure, print};
use crate::config::{Faults, Loaded};
use crate::contracts;
use crate::sendbird::category::{Category, event_type};
use crate::sendbird::schema::{OBJECTS, SchemaDocument};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// JSON Schema of the events: of any envelope, of the envelope of one type, or of data
    Envelope {
        /// Only this known type, or category: direct_call:dial
        #[arg(long = "type", value_name = "TYPE", value_parser = known)]
        kind: Option<Category>,
        /// Not the envelope, but data: what an event's dataschema names
        #[arg(long, conflicts_with = "kind", value_parser = OBJECTS)]
        object: Option<String>,
    },
    /// AsyncAPI 3.0 of the messages that the configured sinks publish
    Asyncapi,
    /// OpenAPI 3.1 of the webhook and the admin endpoint, as configured
    Openapi,
    /// JSON Schema of the configuration file
    Config,
}

/// `load` gives the configuration, which documents are made from where they depend on it.
pub(super) fn run(command: Command, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<(), Failure> {
    let config = || load().map(|loaded| loaded.config);
    let text = match command {
        Command::Envelope { kind, object } => {
            let object = OBJECTS.into_iter().find(|known| object.as_deref() == Some(known));
            let published =
                kind.map(SchemaDocument::Type).or(object.map(SchemaDocument::Data)).unwrap_or(SchemaDocument::Envelope);
            contracts::text(&contracts::schema(published, &config()?))
        }
        Command::Asyncapi => contracts::text(&contracts::asyncapi(&config()?)),
        Command::Openapi => contracts::text(&contracts::openapi(&config()?)),
        Command::Config => contracts::text(&crate::config::schema()),
    };
    print(&text).map(drop)
}

fn known(text: &str) -> Result<Category, String> {
    let known = Category::ALL.into_iter().find(|category| event_type(category.label()) == text);
    known.map_or_else(|| text.parse(), Ok)
}
