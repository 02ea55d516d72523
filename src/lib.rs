//! The bridge from Sendbird Calls webhooks to message brokers.

pub mod domain;
pub mod journal;
pub mod sink;
