//! `sendbird-bridge` takes Sendbird Calls webhooks and publishes them to message brokers.
//!
//! The layers, each of which may use what stands left of it:
//!
//! ```text
//! domain, journal <- sendbird <- access, sink <- pipeline <- http <- config <- contracts <- app <- cli <- main
//! ```
//!
//! `metrics` is a leaf, and so is `traces`, both used from `pipeline` up; `outbound` is one below `sink`, `traces` and `cli`.
//! Read [`pipeline`] first: it is the whole story of an event. The modules below are in reading order, from the pure core outwards.

pub mod domain;
pub mod journal;
pub mod sendbird;

pub mod access;
pub mod outbound;
pub mod sink;

pub mod pipeline;

pub mod http;

pub mod app;
pub mod config;
pub mod contracts;
pub mod shutdown;

pub mod cli;

pub mod metrics;
pub mod traces;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
