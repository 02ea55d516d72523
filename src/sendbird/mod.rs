//! What only Sendbird is: how its deliveries look, are signed, and become events.
//!
//! Everything here computes from what it is given: no clock, no disk, no runtime, no log. A delivery
//! goes through [`signature`] (over the bytes as they came), [`delivery::parse`] (which redacts first)
//! and [`normalize::normalize`]; [`sample`] makes deliveries for the demo, the sender and tests. What
//! [`api`] returns makes [`reconcile`] into the events that did not come.
//!
//! Nobody who wrote this has seen a live delivery, so doc comments say how well a fact is known:
//! *documented* (Sendbird states it for exactly this), *likely* (stated for the same object elsewhere,
//! in the REST API or the signalling of its SDKs, or relied on by a public handler), or *guessed* (by
//! analogy only). Whatever is not documented is optional here, and looked for in more than one place.

pub mod api;
mod canonical;
pub mod category;
pub mod data;
pub mod delivery;
#[cfg(test)]
mod golden;
mod json;
pub mod normalize;
#[cfg(test)]
mod properties;
pub mod reconcile;
pub mod redact;
pub mod sample;
pub mod schema;
pub mod signature;
