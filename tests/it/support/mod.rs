//! What the tests stand on: a bridge as a user would start it, and clients that can misbehave.

pub(crate) mod bridge;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
pub(crate) mod broker;
#[cfg(feature = "nats")]
pub(crate) mod browser;
pub(crate) mod certificates;
pub(crate) mod collector;
pub(crate) mod crash_state;
pub(crate) mod debian;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
pub(crate) mod deliveries;
pub(crate) mod flood;
pub(crate) mod forward_proxy;
pub(crate) mod http;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
pub(crate) mod issuer;
pub(crate) mod load;
pub(crate) mod load_balancer;
pub(crate) mod metrics;
pub(crate) mod oracle;
pub(crate) mod platform;
pub(crate) mod process;
#[cfg(feature = "nats")]
pub(crate) mod prometheus;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
pub(crate) mod proxy;
pub(crate) mod repository;
pub(crate) mod samples;
pub(crate) mod schema_compatibility;
pub(crate) mod schemas;
pub(crate) mod senders;
pub(crate) mod shim;
pub(crate) mod tls;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
pub(crate) mod trial;
pub(crate) mod verbose_bridge;
pub(crate) mod verdict;

use std::time::{Duration, Instant};

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(PATIENCE, what, condition);
}

/// Waits until `condition` holds, no longer than `limit`.
#[track_caller]
pub(crate) fn eventually_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
