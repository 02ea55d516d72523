//! HTTP in and out: the accept loop, the webhook and the admin endpoint.
//!
//! Only this layer knows of methods, paths and status codes; what a delivery means is the pipeline's.

pub mod admin;
mod connection;
pub mod descriptors;
pub mod documents;
pub mod feed;
pub mod listener;
pub mod openapi;
pub mod overview;
pub mod page;
mod proxy_protocol;
pub mod readiness;
pub mod refusals;
pub mod reply;
mod socket;
pub mod tls;
pub mod webhook;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use feed::fuzz as fuzz_feed;
