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
mod clock;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod cluster;
mod commands;
mod config;
mod contracts;
mod corruption;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod crash;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod cursor;
mod deploy;
mod disk;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod faults;
mod feed;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod image;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod locked;
mod logs;
mod machine;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod network;
mod operator;
#[cfg(feature = "otlp")]
mod otlp;
mod overload;
mod platform;
mod power;
#[cfg(feature = "nats")]
mod prometheus;
mod reconcile;
mod recovery;
mod rotation;
mod secrets;
mod set_aside;
mod shutdown;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod sinks;
mod steps;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod stuck;
mod tls;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod tokens;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod topology;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod trace;
mod watch;
mod webhook;
