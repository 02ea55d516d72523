//! A pool of channels in confirm mode on one connection, each lent to one publish at a time.
//!
//! A channel comes back only after a clean confirmation. Otherwise it is dropped, which closes it, and the next
//! publish opens another, for one round trip; the other channels are not touched. A publish that is left unanswered
//! keeps its channel and gives up its permit, so that the pool stays as large as it is for the others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::errors::{blocked, failure, lost};
use crate::sink::{Failure, Reason, Target};

/// Publishes that wait for the broker at once; more wait for a channel. Enough to hide a round trip, and far
/// below the channels that a broker allows (2,047 by default).
const CHANNELS: usize = 64;
/// Publishes at once: each channel has its next one waiting, and what no queue took holds no channel.
pub(super) const WINDOW: usize = 2 * CHANNELS;
/// Publishes that have waited for so long that they no longer count, each with a channel; past this they count.
const UNANSWERED: usize = 1024;
/// Channels that are neither lent nor left unanswered: idle ones, and those for the exchange and for single publishes.
const SPARE: usize = CHANNELS + 16;
/// For opening a channel and switching on confirmations.
const OPEN: Duration = Duration::from_secs(10);

pub(super) struct Channels {
    pub(super) connection: Connection,
    /// Cancelled as soon as the connection is of no more use; everything that waits then fails.
    pub(super) broken: CancellationToken,
    /// As many as there may be publishes left unanswered at once.
    pub(super) unanswered: Semaphore,
    pub(super) most_unanswered: usize,
    idle: Mutex<Vec<Channel>>,
    permits: Semaphore,
    /// How many publishes have begun to wait for their confirmation.
    begun: AtomicU64,
    /// The last of those that were confirmed.
    newest_confirmed: AtomicU64,
}

impl Channels {
    pub(super) fn new(connection: Connection) -> Self {
        let allowed = usize::from(connection.configuration().channel_max());
        let most_unanswered = most_unanswered(allowed);
        Self {
            connection,
            broken: CancellationToken::new(),
            unanswered: Semaphore::new(most_unanswered),
            most_unanswered,
            idle: Mutex::new(Vec::with_capacity(CHANNELS)),
            permits: Semaphore::new(CHANNELS),
            begun: AtomicU64::new(0),
            newest_confirmed: AtomicU64::new(0),
        }
    }

    /// A publish begins to wait for its confirmation; its number.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// That publish is confirmed.
    pub(super) fn confirmed(&self, number: u64) {
        self.newest_confirmed.fetch_max(number, Ordering::Relaxed);
    }

    /// Whether a publish that began later than this one is confirmed.
    pub(super) fn is_overtaken(&self, number: u64) -> bool {
        self.newest_confirmed.load(Ordering::Relaxed) > number
    }

    /// A channel with nothing in flight, as soon as one of the pool is free, and the permit for it.
    pub(super) async fn take(&self, target: &Target) -> Result<(Channel, Option<SemaphorePermit<'_>>), Failure> {
        self.usable()?;
        let permit = self.permits.acquire().await.map_err(|_closed| lost())?;
        let idle = self.idle().pop().filter(|channel| channel.status().connected());
        let channel = match idle {
            Some(channel) => {
                // The wait may have been long.
                self.usable()?;
                channel
            }
            None => self.open(target).await?,
        };
        Ok((channel, Some(permit)))
    }

    /// Takes a channel back; only after nothing is in flight on it.
    pub(super) fn put_back(&self, channel: Channel) {
        let mut idle = self.idle();
        // More than that were lent where some were left unanswered.
        if idle.len() < CHANNELS {
            idle.push(channel);
        }
    }

    /// A blocked broker takes nothing, and the client would queue frames for it without a bound.
    pub(super) fn usable(&self) -> Result<(), Failure> {
        if !self.is_connected() {
            Err(lost())
        } else if self.is_blocked() {
            Err(blocked())
        } else {
            Ok(())
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Another channel, for a publish to this target.
    pub(super) async fn open(&self, target: &Target) -> Result<Channel, Failure> {
        self.usable()?;
        let opened = timeout(OPEN, async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        });
        match opened.await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(failure(&error, self.is_connected(), target)),
            Err(_) if self.is_blocked() => Err(blocked()),
            Err(_) => Err(Failure::fatal(Reason::Timeout, format!("no channel within {OPEN:?}"))),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many publishes may be left unanswered where a connection may have so many channels.
fn most_unanswered(allowed: usize) -> usize {
    allowed.saturating_sub(CHANNELS + SPARE).min(UNANSWERED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unanswered_leave_enough_channels_to_the_others() {
        assert_eq!(most_unanswered(2047), UNANSWERED);
        assert_eq!(most_unanswered(usize::from(u16::MAX)), UNANSWERED);
        assert_eq!(most_unanswered(CHANNELS + SPARE + 3), 3);
        assert_eq!(most_unanswered(10), 0);
    }
}
