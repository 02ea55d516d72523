//! The pure core: what an event *is*, apart from how it arrives, is kept or leaves.
//!
//! Nothing here reads a clock, a disk, a socket or the environment: time, randomness and limits come
//! in as arguments, so every rule can be tested without waiting. The one exception is [`clock`], which
//! is where the rest of the program gets its time from.

pub mod backoff;
pub mod claims;
pub mod clock;
pub mod dedup;
pub mod envelope;
pub mod glob;
pub mod identity;
pub mod kind;
pub mod rate_limit;
pub mod secret;
pub mod template;
pub mod text;
pub mod trace;
pub mod units;
