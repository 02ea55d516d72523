//! A bridge that logs all that there is to log, in either format, started by whatever command.

use std::net::SocketAddr;

use super::bridge::Config;
use super::eventually;
use super::http::{Request, Response};
use super::process::{Process, Stdout, program};

/// All that there is to log. A level alone is meant for the program; each library is asked by its name.
pub(crate) const LOG_EVERYTHING: &str = "trace,hyper=trace,hyper_util=trace,warp=trace,rustls=trace,mio=trace,lapin=trace,\
                               amq_protocol=trace,async_nats=trace,rdkafka=trace,librdkafka=trace";

/// A bridge that logs all it can, in one of the formats.
pub(crate) struct VerboseBridge {
    pub(crate) process: Process,
    pub(crate) webhook: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) config: Config,
}

impl VerboseBridge {
    #[track_caller]
    pub(crate) fn start(config: Config, format: &str) -> Self {
        let mut command = program();
        command
            .arg("--config")
            .arg(config.write())
            .args(["--log-format", format, "serve"])
            .env("RUST_LOG", LOG_EVERYTHING);
        Self::started(Process::start(command, Stdout::Read), config)
    }

    /// One that was started otherwise.
    #[track_caller]
    pub(crate) fn started(mut process: Process, config: Config) -> Self {
        let log = process.stderr();
        let mut found = Vec::new();
        eventually("the bridge listens", || {
            found = log.so_far().iter().filter(|line| line.contains("listening")).flat_map(|l| addresses(l)).collect();
            assert!(found.len() == 2 || process.is_running(), "it ended: {}", log.so_far().join("\n"));
            found.len() == 2
        });
        Self { process, webhook: found[0], admin: found[1], config }
    }

    /// Asks the admin endpoint.
    pub(crate) fn ask(&self, path: &str, token: &str) -> Response {
        Request::get(path).header("authorization", &format!("Bearer {token}")).send(self.admin)
    }
}

/// The addresses in the line that says that the bridge listens, in either format.
fn addresses(line: &str) -> Vec<SocketAddr> {
    let address = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && !".:".contains(c)).unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    line.split("http://").skip(1).filter_map(address).collect()
}
