//! A load on a bridge: `send`, in a process of its own that outlives every crash of the bridge.

use std::path::PathBuf;
use std::time::Duration;

use super::PATIENCE;
use super::bridge::{Bridge, TOKEN};
use super::process::{Process, Stdout, program};

/// `send` at work, and the record that it writes.
pub(crate) struct Load {
    process: Process,
    pub(crate) record: PathBuf,
}

impl Load {
    /// Starts `send` towards the bridge, and goes on through its restarts.
    pub(crate) fn start(bridge: &Bridge, count: u64, rate: u32) -> Self {
        Self::with(bridge, count, &["--concurrency", "16", "--rate", &rate.to_string()])
    }

    /// The same, with other arguments of `send`.
    pub(crate) fn with(bridge: &Bridge, count: u64, arguments: &[&str]) -> Self {
        let record = bridge.config().dir().join("record.jsonl");
        let mut command = program();
        command.args(["send", "--all", "--token", TOKEN, "--url", &bridge.url(), "--count", &count.to_string()]);
        command.args(arguments);
        command.arg("--record").arg(&record);
        Self { process: Process::start(command, Stdout::Read), record }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Waits until all is sent, and says whether all was answered 200.
    pub(crate) fn finish(self) -> bool {
        self.finish_within(PATIENCE * 3)
    }

    pub(crate) fn finish_within(self, limit: Duration) -> bool {
        self.process.wait_within(limit).code() == Some(0)
    }
}

/// Deliveries that this process of the bridge has stored.
pub(crate) fn stored_by(bridge: &Bridge) -> f64 {
    bridge.metric("sendbird_bridge_deliveries_total", &[("outcome", "stored")])
}
