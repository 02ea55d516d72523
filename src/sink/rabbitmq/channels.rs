//! The channels of one connection: those that all publishes share, and channels of their own for single publishes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::Connection;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Message;
use super::confirm_channel::{Answer, ConfirmChannel, IN_FLIGHT};
use super::errors::{blocked, failure, lost};
use crate::sink::{Failure, Reason, Target};

/// Shared channels that are in use at once, as long as no queue is silent.
const SHARED: usize = 8;
/// Publishes in flight at once.
const WINDOW: usize = SHARED * IN_FLIGHT;
/// Publishes that have waited for so long that they no longer count, each with a channel; past this they count.
const UNANSWERED: usize = 1024;
/// Channels for all else: one for each publish, while each has one to itself, and those that are ending meanwhile.
const SPARE: usize = WINDOW + SHARED + OTHERS;
/// Channels to look at the exchange, and for single publishes.
const OTHERS: usize = 8;
/// For how long each publish has a channel to itself after one has ended the channel of others.
const APART: Duration = Duration::from_secs(60);
/// For opening a channel and switching on confirmations.
const OPEN: Duration = Duration::from_secs(10);

pub(super) struct Channels {
    pub(super) connection: Connection,
    /// Cancelled as soon as the connection is of no more use; everything that waits then fails.
    pub(super) broken: CancellationToken,
    pub(super) most_unanswered: usize,
    /// Publishes in flight at once.
    pub(super) window: usize,
    /// Those that take publishes.
    shared: Mutex<Vec<ConfirmChannel>>,
    /// Held while a shared channel is opened, so that those that need one do not each open one.
    opening: tokio::sync::Mutex<()>,
    /// Until when each publish has a channel to itself.
    apart_until: Mutex<Option<Instant>>,
    /// The tasks that own the channels; they end with this.
    tasks: Mutex<JoinSet<()>>,
}

impl Channels {
    pub(super) fn new(connection: Connection) -> Self {
        let allowed = usize::from(connection.configuration().channel_max());
        Self {
            connection,
            broken: CancellationToken::new(),
            most_unanswered: most_unanswered(allowed),
            window: window(allowed),
            shared: Mutex::new(Vec::with_capacity(SHARED)),
            opening: tokio::sync::Mutex::new(()),
            apart_until: Mutex::new(None),
            tasks: Mutex::new(JoinSet::new()),
        }
    }

    /// Publishes on a shared channel; if that ends with others in flight on it, on a channel of its own.
    pub(super) async fn publish(&self, message: &Arc<Message>) -> Result<Answer, Failure> {
        self.usable()?;
        let publishing = match self.publish_if_room(message) {
            Some(publishing) => publishing,
            None => self.open_shared(message).await?,
        };
        match publishing.await.map_err(|_given_up| lost())? {
            Answer::Ended { is_alone: false, .. } if self.is_connected() => {
                *locked(&self.apart_until) = Some(Instant::now() + APART);
                self.publish_unbatched(message).await
            }
            answer => Ok(answer),
        }
    }

    /// Publishes on a channel of its own.
    pub(super) async fn publish_unbatched(&self, message: &Arc<Message>) -> Result<Answer, Failure> {
        let channel = self.open(&message.target).await?;
        channel.publish(Arc::clone(message)).await.map_err(|_given_up| lost())
    }

    /// On the first channel that has room, so that at low rates one has all publishes, and the broker confirms many at
    /// once.
    fn publish_if_room(&self, message: &Arc<Message>) -> Option<oneshot::Receiver<Answer>> {
        let (most_channels, most_in_flight) = if self.is_apart() { (usize::MAX, 1) } else { (SHARED, IN_FLIGHT) };
        let mut shared = locked(&self.shared);
        shared.retain(|channel| !channel.is_retired());
        shared.truncate(most_channels);
        let channel = shared.iter().find(|channel| channel.in_flight() < most_in_flight)?;
        Some(channel.publish(Arc::clone(message)))
    }

    async fn open_shared(&self, message: &Arc<Message>) -> Result<oneshot::Receiver<Answer>, Failure> {
        let _one_at_a_time = if self.is_apart() { None } else { Some(self.opening.lock().await) };
        if let Some(publishing) = self.publish_if_room(message) {
            return Ok(publishing);
        }
        let channel = self.open(&message.target).await?;
        let publishing = channel.publish(Arc::clone(message));
        locked(&self.shared).push(channel);
        Ok(publishing)
    }

    /// Whether each publish has a channel to itself.
    fn is_apart(&self) -> bool {
        locked(&self.apart_until).is_some_and(|until| Instant::now() < until)
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

    fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Another channel, for a publish to this target.
    async fn open(&self, target: &Target) -> Result<ConfirmChannel, Failure> {
        self.usable()?;
        let opened = timeout(OPEN, async {
            let channel = self.connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        });
        match opened.await {
            Ok(Ok(channel)) => {
                let (channel, task) =
                    ConfirmChannel::new(channel, self.connection.status().clone(), self.broken.clone());
                let mut tasks = locked(&self.tasks);
                // Those that have ended; a panic has failed their publishes.
                while tasks.try_join_next().is_some() {}
                tasks.spawn(task);
                Ok(channel)
            }
            Ok(Err(error)) => Err(failure(&error, self.is_connected(), target)),
            Err(_) if self.is_blocked() => Err(blocked()),
            Err(_) => Err(Failure::fatal(Reason::Timeout, format!("no channel within {OPEN:?}"))),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many publishes may be in flight where a connection may have so many channels, since each may need one.
fn window(allowed: usize) -> usize {
    allowed.saturating_sub(SHARED + OTHERS).clamp(1, WINDOW)
}

/// How many publishes may be left unanswered where a connection may have so many channels.
fn most_unanswered(allowed: usize) -> usize {
    allowed.saturating_sub(SPARE).min(UNANSWERED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unanswered_leave_enough_channels_to_the_others() {
        assert_eq!(most_unanswered(2047), UNANSWERED);
        assert_eq!(most_unanswered(usize::from(u16::MAX)), UNANSWERED);
        assert_eq!(most_unanswered(SPARE + 3), 3);
        assert_eq!(most_unanswered(10), 0);
        assert_eq!([2047, SPARE, 100, 10].map(window), [WINDOW, WINDOW, 100 - SHARED - OTHERS, 1]);
    }
}
