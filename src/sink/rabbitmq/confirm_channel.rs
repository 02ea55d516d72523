//! A channel in confirm mode with several publishes in flight.
//!
//! A task owns the channel. It alone publishes on it, because the client numbers a publish and queues its frames in two
//! steps, which two publishers could interleave; and it alone looks at the confirmations, because only with all of them
//! in view can a returned message be given to whom it belongs (see [`super::settlement`]).
//!
//! The broker ends a channel, with all that is in flight on it, for the fault of one message. Unless it was the only one,
//! nobody knows whose fault it was.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, ConnectionStatus};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Message;
use super::settlement::{Confirmed, Number, Outcome, Settlement};

/// Publishes in flight on one channel. A quorum queue that does not confirm stops a channel, and with it the connection,
/// once 32 messages of the channel wait for it.
pub(super) const IN_FLIGHT: usize = 30;

/// How often the oldest publish is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// A channel takes no more publishes when one of its own waits for so long: its queue may never confirm.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// A publish that waits for so long is answered as well as can be, if the broker takes nothing or if it is open whether
/// its message came back.
const OVERDUE_AFTER: Duration = Duration::from_secs(5);

/// What became of a publish.
#[derive(Debug)]
pub(super) enum Answer {
    Settled(Outcome),
    /// The channel ended; if `is_alone`, for this message or with its connection. Otherwise the outcome is unknown.
    Ended {
        error: lapin::Error,
        is_alone: bool,
    },
    /// The broker takes nothing for now; the outcome is unknown.
    Blocked,
    /// The broker has confirmed it, and it is unknown whether it came back.
    Unsure,
}

/// The one end of a channel that publishes are given to. The channel closes when this is dropped and nothing is in flight.
pub(super) struct ConfirmChannel {
    publishes: mpsc::Sender<Publish>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    in_flight: AtomicUsize,
    is_retired: AtomicBool,
}

struct Publish {
    message: Arc<Message>,
    answer: oneshot::Sender<Answer>,
}

impl ConfirmChannel {
    /// Takes a channel that is in confirm mode; `broken` ends it at once. The future is the task that owns it.
    pub(super) fn new(
        channel: Channel,
        connection: ConnectionStatus,
        broken: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (publishes, receiver) = mpsc::channel(IN_FLIGHT);
        let state = Arc::new(State::default());
        let task = Task {
            channel,
            connection,
            state: Arc::clone(&state),
            waiting: BTreeMap::new(),
            unsure: BTreeMap::new(),
            settlement: Settlement::default(),
            sent: 0,
            has_ended: false,
        };
        (Self { publishes, state }, task.run(receiver, broken))
    }

    /// Whether it takes no more publishes: it has ended, or one of its own waits for long.
    pub(super) fn is_retired(&self) -> bool {
        self.state.is_retired.load(Ordering::Relaxed)
    }

    /// How many publishes are in flight on it.
    pub(super) fn in_flight(&self) -> usize {
        self.state.in_flight.load(Ordering::Relaxed)
    }

    /// Publishes a message, if fewer than [`IN_FLIGHT`] are in flight. The receiver fails otherwise, and if the connection
    /// is given up before there is an answer.
    pub(super) fn publish(&self, message: Arc<Message>) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        self.state.in_flight.fetch_add(1, Ordering::Relaxed);
        if self.publishes.try_send(Publish { message, answer }).is_err() {
            self.state.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        receiver
    }
}

/// Owns the channel.
struct Task {
    channel: Channel,
    connection: ConnectionStatus,
    state: Arc<State>,
    /// What is not confirmed, in the order of sending.
    waiting: BTreeMap<Number, Waiting>,
    /// What is confirmed and may have come back.
    unsure: BTreeMap<Number, Waiting>,
    settlement: Settlement,
    sent: Number,
    /// The broker or the client has ended the channel.
    has_ended: bool,
}

struct Waiting {
    message: Arc<Message>,
    sent: Instant,
    /// `None` once it is answered.
    answer: Option<oneshot::Sender<Answer>>,
}

impl Waiting {
    fn answer(&mut self, answer: Answer) {
        // Whoever waited may have given up.
        self.answer.take().map(|sender| sender.send(answer));
    }
}

impl Task {
    async fn run(mut self, mut publishes: mpsc::Receiver<Publish>, broken: CancellationToken) {
        let mut confirming = FuturesUnordered::new();
        let mut cancelled = pin!(broken.cancelled());
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_open = true;
        while is_open || !self.waiting.is_empty() {
            tokio::select! {
                biased;
                () = &mut cancelled => return,
                publish = publishes.recv(), if is_open => match publish {
                    Some(publish) => {
                        let number = self.begin(publish.answer, &publish.message);
                        confirming.push(confirmed(self.channel.clone(), number, publish.message));
                    }
                    None => is_open = false,
                },
                results = poll_fn(|context| poll_all(&mut confirming, context)), if !confirming.is_empty() => {
                    if !self.settle(results) {
                        tracing::error!(
                            "bug: expected only messages of this channel to come back, but found {} others; the \
                             connection is closed, and its events are published again",
                            self.settlement.unclaimed()
                        );
                        broken.cancel();
                        return;
                    }
                }
                _ = look.tick(), if !self.waiting.is_empty() => self.look(),
            }
        }
    }

    fn begin(&mut self, answer: oneshot::Sender<Answer>, message: &Arc<Message>) -> Number {
        self.sent += 1;
        let waiting = Waiting { message: Arc::clone(message), sent: Instant::now(), answer: Some(answer) };
        self.waiting.insert(self.sent, waiting);
        self.sent
    }

    /// Answers what is known now; `false` if a message came back that was never sent.
    fn settle(&mut self, results: Vec<(Number, lapin::Result<Confirmation>)>) -> bool {
        let (mut settled, mut ended) = (Vec::with_capacity(results.len()), Vec::new());
        for (number, result) in results {
            match result {
                Ok(confirmation) => {
                    let Some(waiting) = self.waiting.remove(&number) else { continue };
                    settled.push(Confirmed::new(number, waiting.message.properties.message_id().clone(), confirmation));
                    self.unsure.insert(number, waiting);
                }
                Err(error) => ended.push((number, error)),
            }
        }
        let confirmed = settled.len();
        for (number, outcome) in self.settlement.settle(settled, self.waiting.len()) {
            if let Some(mut waiting) = self.unsure.remove(&number) {
                waiting.answer(Answer::Settled(outcome));
            }
        }
        self.state.in_flight.fetch_sub(confirmed + ended.len(), Ordering::Relaxed);
        let is_alone = !self.has_ended && self.waiting.len() == 1;
        self.has_ended |= !ended.is_empty();
        for (number, error) in ended {
            if let Some(mut waiting) = self.waiting.remove(&number) {
                waiting.answer(Answer::Ended { error, is_alone });
            }
        }
        if self.has_ended {
            self.unsure.values_mut().for_each(|waiting| waiting.answer(Answer::Unsure));
            self.unsure.clear();
        }
        if self.has_ended || self.settlement.is_unsure() {
            self.retire();
        }
        self.has_ended || !self.waiting.is_empty() || self.settlement.unclaimed() == 0
    }

    /// Looks for what waits for long.
    fn look(&mut self) {
        let now = Instant::now();
        let age = |waiting: &Waiting| now.saturating_duration_since(waiting.sent);
        if self.waiting.first_key_value().is_some_and(|(_, oldest)| age(oldest) >= SLOW_AFTER) {
            self.retire();
        }
        if self.connection.blocked() {
            let overdue = self.waiting.values_mut().take_while(|waiting| age(waiting) >= OVERDUE_AFTER);
            overdue.for_each(|waiting| waiting.answer(Answer::Blocked));
        }
        let overdue = self.unsure.values_mut().take_while(|waiting| age(waiting) >= OVERDUE_AFTER);
        overdue.for_each(|waiting| waiting.answer(Answer::Unsure));
    }

    fn retire(&self) {
        self.state.is_retired.store(true, Ordering::Relaxed);
    }
}

/// Publishes as soon as it is polled for the first time, and resolves when the broker has confirmed.
async fn confirmed(channel: Channel, number: Number, message: Arc<Message>) -> (Number, lapin::Result<Confirmation>) {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let (exchange, routing_key) = (message.exchange.clone(), message.routing_key.clone());
    let sending = channel.basic_publish(exchange, routing_key, options, &message.body, message.properties.clone());
    let confirmation = async { sending.await?.await };
    (number, confirmation.await)
}

/// All confirmations that have come, together with each that came before one of them: the client wakes what it confirms
/// in the order in which it does so, and this ends only when nothing is awake.
fn poll_all<T>(confirming: &mut (impl Stream<Item = T> + Unpin), context: &mut Context<'_>) -> Poll<Vec<T>> {
    let mut all = Vec::new();
    loop {
        let before = all.len();
        while let Poll::Ready(Some(result)) = confirming.poll_next_unpin(context) {
            all.push(result);
        }
        // Once more, since a stream may pause to let others have their turn.
        match all.len() {
            0 => return Poll::Pending,
            length if length == before => return Poll::Ready(all),
            _ => {}
        }
    }
}
