//! The sink that needs no broker: one structured envelope a line on standard output.
//!
//! Acknowledged means written and flushed. A reader that went away (a closed pipe) is a failure to
//! retry like any other; the events stay in the journal.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{Ack, Connection, Failure, Finding, Reason, Sink, Target};
use crate::domain::envelope::{Format, View};

/// Standard output has nothing to configure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {}

/// Standard output.
#[derive(Debug)]
pub struct Stdout {
    format: Format,
}

impl Stdout {
    /// Writes the whole envelope, or `data` alone in the binary form.
    pub fn new(format: Format) -> Self {
        Self { format }
    }
}

impl Sink for Stdout {
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, Failure>> {
        let format = self.format;
        async move { Ok(Box::new(StdoutConnection { format }) as Box<dyn Connection>) }.boxed()
    }

    fn check(&self, _create: bool) -> BoxFuture<'_, Vec<Finding>> {
        async { Vec::new() }.boxed()
    }
}

struct StdoutConnection {
    format: Format,
}

impl Connection for StdoutConnection {
    fn publish(&self, event: &View<'_>) -> BoxFuture<'static, Result<Ack, Failure>> {
        let body = event.body(self.format);
        async move {
            // A pipe can block for as long as its reader likes, so not on an async thread.
            tokio::task::spawn_blocking(move || write_line(&body))
                .await
                .map_err(|error| Failure::fatal(Reason::Other, error))?
                .map_err(|error| Failure::every_event(Reason::Connection, error))?;
            Ok(Ack::default())
        }
        .boxed()
    }

    fn target(&self, _: &View<'_>) -> Target {
        Target::new("standard output")
    }

    fn state(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn close(self: Box<Self>, _: Duration) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

fn write_line(body: &Bytes) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(body)?;
    out.write_all(b"\n")?;
    out.flush()
}
