//! What is left after a crash, a power cut, a damaged or full disk, or a clock that was set: all that was answered 200,
//! under its id, in order by key.

mod clock_changes;
mod corruption;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod crash;
mod disk_faults;
mod kills_at_journal_steps;
#[cfg(any(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod kills_at_publish;
mod power_cuts;
mod restart;
