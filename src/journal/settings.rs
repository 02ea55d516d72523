//! What can be configured: where events are kept, for how long, and how long their ids are remembered.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::units::{Size, Span};

/// `journal.*`: where events are kept and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The directory; made if it does not exist, and held by one bridge at a time.
    pub dir: PathBuf,
    /// The budget for all that is stored. When events that wait for a broker fill it, deliveries are
    /// answered 503 until there is room again. At least 1MiB.
    pub max_bytes: Size,
    /// How long a published event is kept for the feed, replays and support.
    pub retain_for: Span,
    /// How many bytes of published events are kept at most.
    pub retain_bytes: Size,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dir: "./data".into(),
            max_bytes: Size::gib(8),
            retain_for: Span::from_secs(24 * 3600),
            retain_bytes: Size::gib(1),
        }
    }
}

/// The largest segment, and how many the budget holds at least.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
const SEGMENTS: u64 = 16;

impl Settings {
    /// The size at which a segment is closed.
    pub(super) fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES.min(self.max_bytes.0 / SEGMENTS)
    }

    /// Every fault, as key and message.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if self.dir.as_os_str().is_empty() {
            faults.push(("dir", "expected a directory, but it is empty".to_owned()));
        }
        if self.max_bytes < Size::mib(1) {
            faults.push(("max_bytes", format!("expected at least 1MiB, but found {}", self.max_bytes)));
        }
        if self.retain_bytes > self.max_bytes {
            let max = self.max_bytes;
            faults
                .push(("retain_bytes", format!("expected at most max_bytes ({max}), but found {}", self.retain_bytes)));
        }
        faults
    }
}

/// `dedup.*`: how long a delivery that comes again is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DedupSettings {
    /// How long after its first acceptance a delivery is recognised as a duplicate.
    pub window: Span,
    /// How many ids are remembered at most, about 100 bytes of memory each; past that the oldest are
    /// forgotten early.
    pub max_ids: usize,
}

impl Default for DedupSettings {
    fn default() -> Self {
        Self { window: Span::from_secs(3600), max_ids: 1_000_000 }
    }
}

impl DedupSettings {
    /// Every fault, as key and message.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        // Sendbird's three tries lie within seconds; a shorter window would publish them all.
        if self.window < Span::from_secs(10) {
            faults.push(("window", format!("expected at least 10s, but found {}", self.window)));
        }
        if !(1_000..=50_000_000).contains(&self.max_ids) {
            faults.push(("max_ids", format!("expected 1000 to 50000000, but found {}", self.max_ids)));
        }
        faults
    }
}
