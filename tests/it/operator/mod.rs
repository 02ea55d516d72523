//! What an operator runs and sees: the commands, the admin endpoint, metrics, logs and traces.

mod admin_endpoint;
mod config;
mod demo_send_tail;
mod drain;
mod forward_proxy;
mod logs;
mod metrics;
mod otlp;
mod overview;
#[cfg(feature = "nats")]
mod page;
mod platform_client;
mod reconcile;
mod replay_and_dead_letters;
mod settings;
mod stuck_and_salvage;
mod webhook;
