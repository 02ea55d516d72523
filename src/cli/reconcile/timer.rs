//! After a gap, `serve` reconciles by itself: it runs the command, in a process of its own.
//!
//! A gap is a time in which the bridge was not there, or answered 503. It is reconciled once nothing of it can still be
//! delivered, and once more until that has come to its end. Whatever the process does, it costs the bridge no memory and no
//! thread, and it can end as it likes: the candidates that it has added are in the journal, and the next one leaves that out.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::fs;
use tokio::process::Command;
use tokio::time::sleep;

use super::state::Counts;
use crate::domain::backoff::Backoff;
use crate::domain::clock::{Clock, rfc3339};
use crate::sendbird::reconcile::seen_facts::MARGIN_MS;
use crate::sendbird::reconcile::settings::Settings;

/// The file in the journal's directory that says until when there was no gap, in Unix milliseconds.
const FILE: &str = "reconciled-until";

/// So long before a gap something may have happened whose delivery fell into it; Sendbird's tries take seconds.
const BEFORE_MS: i64 = 60_000;

/// Pauses after a gap could not be reconciled, if they are longer than those between two looks.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(2), longest: Duration::from_secs(900) };

/// What makes a bridge reconcile.
pub(in crate::cli) struct Timer<R> {
    pub(in crate::cli) settings: Settings,
    pub(in crate::cli) application: String,
    /// The configuration file, for the command.
    pub(in crate::cli) config: Option<PathBuf>,
    /// The journal's directory.
    pub(in crate::cli) dir: PathBuf,
    /// How many deliveries were answered 503 so far.
    pub(in crate::cli) refusals: R,
    /// When this bridge was about to listen, until when it may have been away, in Unix milliseconds.
    pub(in crate::cli) begun_ms: i64,
    pub(in crate::cli) clock: Clock,
}

/// A time in which deliveries may have been lost, in Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    from_ms: i64,
    to_ms: i64,
}

/// The last line of the command.
#[derive(Deserialize)]
struct RunSummary {
    summary: Counts,
}

impl<R: Fn() -> u64> Timer<R> {
    /// Looks from time to time, without end.
    pub(in crate::cli) async fn run(self) -> Infallible {
        let mut gap = self.well_until().await.map(|from_ms| Gap { from_ms, to_ms: self.begun_ms });
        let (mut refused, mut looked_ms) = (0, self.begun_ms);
        let mut failed = 0;
        loop {
            let now_ms = self.clock.now_ms();
            let refusals = (self.refusals)();
            if refusals > refused {
                gap = Some(Gap { from_ms: gap.map_or(looked_ms, |gap| gap.from_ms), to_ms: now_ms });
            }
            (refused, looked_ms) = (refusals, now_ms);
            match gap {
                None => self.is_well(now_ms).await,
                Some(found) if now_ms.saturating_sub(found.to_ms) > MARGIN_MS => {
                    if self.reconcile(found).await {
                        self.is_well(found.to_ms).await;
                        (gap, failed) = (None, 0);
                    } else {
                        let pause = BACKOFF.pause(failed, fastrand::f64());
                        sleep(pause.saturating_sub(self.settings.every.0)).await;
                        failed = failed.saturating_add(1);
                    }
                }
                Some(_) => {}
            }
            sleep(self.settings.every.0).await;
        }
    }

    /// `None` before the first look of all.
    async fn well_until(&self) -> Option<i64> {
        fs::read_to_string(self.dir.join(FILE)).await.ok()?.trim().parse().ok()
    }

    async fn is_well(&self, until_ms: i64) {
        let (new, path) = (self.dir.join(format!("{FILE}.new")), self.dir.join(FILE));
        let written = async {
            fs::write(&new, until_ms.to_string()).await?;
            fs::rename(&new, &path).await
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, file = %path.display(), "cannot write the time up to which there was no gap");
        }
    }

    /// Whether the command has come to its end.
    async fn reconcile(&self, gap: Gap) -> bool {
        let from = rfc3339(gap.from_ms.saturating_sub(BEFORE_MS)).unwrap_or_default();
        let to = rfc3339(gap.to_ms).unwrap_or_default();
        tracing::info!(from, to, "reconciling a gap");
        match self.command(&from).await {
            Ok(Ok(counts)) => {
                let Counts { stored, queued, unknown, .. } = counts;
                let missing: u64 = counts.missing.values().sum();
                tracing::info!(stored, missing, published = queued, not_known = unknown, "gap reconciled");
                true
            }
            Ok(Err(reason)) => {
                tracing::warn!(reason, "cannot reconcile a gap; retrying");
                false
            }
            Err(error) => {
                tracing::error!(%error, "cannot run the reconcile command; retrying");
                false
            }
        }
    }

    /// Its sums, or its last word.
    async fn command(&self, from: &str) -> io::Result<Result<Counts, String>> {
        let mut command = Command::new(std::env::current_exe()?);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.args(["reconcile", "--publish", "--or-later", "--output", "json", "--since", from]);
        command.args(["--application", &self.application]);
        if let Some(url) = &self.settings.api_url {
            command.args(["--api-url", url]);
        }
        // A bridge that ends takes it along.
        command.kill_on_drop(true).stdin(Stdio::null());
        let output = command.output().await?;
        let last = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().rsplit('\n').next().map(str::to_owned);
        let summary = last(&output.stdout).and_then(|line| serde_json::from_str::<RunSummary>(&line).ok());
        Ok(summary.map(|line| line.summary).ok_or_else(|| last(&output.stderr).unwrap_or_default()))
    }
}
