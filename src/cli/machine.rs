//! What a configuration needs of the machine that it is on: ports and a disk. Only tried, and left as it was.

use crate::config::Config;
use crate::http::listener::try_address;
use crate::journal;

/// What does not fit on this machine, which need not be the one that the bridge will run on.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let found = journal::inspect(&config.journal);
    let mut warnings: Vec<String> =
        found.fault.into_iter().chain(found.warnings).map(|text| format!("journal.dir: {text}")).collect();
    // The ports of a bridge that runs with this journal are its own.
    if !found.in_use {
        for (key, address) in [("server.listen", config.server.listen), ("admin.listen", config.admin.listen)] {
            if let Err(error) = try_address(address) {
                warnings.push(format!("{key}: cannot listen on {address}: {error}"));
            }
        }
    }
    warnings.into_iter().map(|text| format!("on this machine: {text}")).collect()
}
