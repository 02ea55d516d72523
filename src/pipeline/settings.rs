//! `stop.*`: what a stopping bridge still publishes.

use serde::{Deserialize, Serialize};

use crate::domain::units::Span;

/// `stop.*`: what happens between the signal to stop and the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StopSettings {
    /// How long a stopping bridge, which takes no more deliveries, goes on publishing what is pending, at most; 0s: only
    /// what is in flight is waited for. Up to 1h. It is added to the time that a stop may take.
    pub publish_for: Span,
}

impl Default for StopSettings {
    fn default() -> Self {
        Self { publish_for: Span::from_secs(0) }
    }
}

impl StopSettings {
    /// Every fault, as key and message.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let limit = Span::from_secs(3600);
        let fault = || ("publish_for", format!("expected 0s to 1h, but found {}", self.publish_for));
        (self.publish_for > limit).then(fault).into_iter().collect()
    }
}
