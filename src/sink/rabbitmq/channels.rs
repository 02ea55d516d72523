//! A pool of channels in confirm mode on one connection, each lent to one publish at a time.
//!
//! A channel comes back only after a clean confirmation. Otherwise it is dropped and the next publish opens
//! another, for one round trip; the other channels are not touched.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::errors::{blocked, failure, lost};
use crate::sink::{Failure, Reason};

/// Publishes that wait for the broker at once; more wait for a channel. Enough to hide a round trip, and far
/// below the channels that a broker allows (2,047 by default).
const CHANNELS: usize = 64;
/// Publishes at once: each channel has its next one waiting, and what no queue took holds no channel.
pub(super) const WINDOW: usize = 2 * CHANNELS;
/// For opening a channel and switching on confirmations.
const OPEN: Duration = Duration::from_secs(10);

pub(super) struct Channels {
    pub(super) connection: Connection,
    /// Cancelled as soon as the connection is of no more use; everything that waits then fails.
    pub(super) broken: CancellationToken,
    idle: Mutex<Vec<Channel>>,
    permits: Semaphore,
}

/// A channel on loan.
pub(super) struct Slot<'a> {
    channel: Channel,
    pool: &'a Channels,
    _permit: SemaphorePermit<'a>,
}

impl Channels {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            broken: CancellationToken::new(),
            idle: Mutex::new(Vec::with_capacity(CHANNELS)),
            permits: Semaphore::new(CHANNELS),
        }
    }

    /// A channel with nothing in flight, as soon as one of the pool is free.
    pub(super) async fn take(&self) -> Result<Slot<'_>, Failure> {
        self.usable()?;
        let permit = self.permits.acquire().await.map_err(|_closed| lost())?;
        // The wait may have been long.
        self.usable()?;
        let idle = self.idle().pop().filter(|channel| channel.status().connected());
        let channel = match idle {
            Some(channel) => channel,
            None => self.open().await?,
        };
        Ok(Slot { channel, pool: self, _permit: permit })
    }

    /// A blocked broker takes nothing, and the client would queue frames for it without a bound.
    pub(super) fn usable(&self) -> Result<(), Failure> {
        let status = self.connection.status();
        if !status.connected() {
            Err(lost())
        } else if status.blocked() {
            Err(blocked())
        } else {
            Ok(())
        }
    }

    async fn open(&self) -> Result<Channel, Failure> {
        let opened = timeout(OPEN, async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        });
        match opened.await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(failure(&error, self.connection.status().connected())),
            Err(_) if self.connection.status().blocked() => Err(blocked()),
            Err(_) => Err(Failure::fatal(Reason::Timeout, format!("no channel within {OPEN:?}"))),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot<'_> {
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Gives the channel back; only after nothing is in flight on it.
    pub(super) fn put_back(self) {
        self.pool.idle().push(self.channel);
    }
}
