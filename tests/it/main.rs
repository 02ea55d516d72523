//! The bridge from outside: the real program, real sockets, real disks and, in the builds that have their clients,
//! real brokers.
//!
//! Every test starts its own bridge in its own directory and waits for conditions, never for a time. What needs a
//! broker fails without one and says so: `tests/run` starts them. What needs Prometheus is in these builds alone as
//! well: the core is tested with what is in the tree.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]
#![allow(clippy::print_stderr, reason = "a failed test shows what the bridge said")]

mod support;

mod accept;
mod architecture;
mod contracts;
mod deploy;
mod operator;
mod recovery;
mod replicas;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod sinks;
