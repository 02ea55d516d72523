//! What is deployed: the files of `deploy`, the image, the rules and dashboard in a real Prometheus, and what others on the
//! machine can read.

mod files;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
mod image;
mod isolation;
#[cfg(feature = "nats")]
mod prometheus;
#[cfg(feature = "nats")]
mod verdict;
