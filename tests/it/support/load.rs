//! A load on a bridge: deliveries of all categories, sent as Sendbird sends them, which goes on through every crash of the
//! bridge.
//!
//! It is sent from a thread of the test, so what was sent and what was answered is known to the test, whatever becomes of
//! the bridge. A crash of the sender is played by [`Load::crash`]: its connections go, with deliveries under way on them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use sendbird_bridge::domain::clock::Clock;
use sendbird_bridge::sendbird::category::Category;
use sendbird_bridge::sendbird::sample::{Sample, Sampler};
use sendbird_bridge::sendbird::signature::sign;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::bridge::{Bridge, TOKEN};
use super::oracle::{Id, NO_CONNECTION, Sent};
use super::samples::APPLICATION;
use super::verdict::Answers;
use super::{PATIENCE, eventually_within};

/// How long Sendbird waits for an answer, how often it tries, and the pause between two tries.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// Deliveries that may wait for a sender that is held up.
const QUEUE: usize = 16;

/// How many are under way at once, unless a test says otherwise.
pub(crate) const CONCURRENCY: usize = 16;

/// A load at work. Dropped, it stops.
pub(crate) struct Load {
    sending: JoinHandle<()>,
    sent: Shared,
    stop: DropGuard,
}

type Shared = Arc<Mutex<Outcome>>;

/// What a load has sent, in an order that is the one of sending for each key, and what it was answered.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) sent: Vec<Sent>,
    pub(crate) answers: Answers,
}

impl Outcome {
    /// Whether each delivery was answered 200 in time.
    pub(crate) fn is_all_200(&self) -> bool {
        self.answers.answered() == self.sent.len() as u64
    }
}

impl Load {
    /// Starts so many deliveries to the bridge, at most so many a second, and goes on through its restarts.
    pub(crate) fn start(bridge: &Bridge, count: u64, rate: u32) -> Self {
        Self::with(bridge, count, CONCURRENCY, Some(rate))
    }

    /// The same as fast as they are answered.
    pub(crate) fn as_fast_as_answered(bridge: &Bridge, count: u64, concurrency: usize) -> Self {
        Self::with(bridge, count, concurrency, None)
    }

    fn with(bridge: &Bridge, count: u64, concurrency: usize, rate: Option<u32>) -> Self {
        let (sent, stop) = (Shared::default(), CancellationToken::new());
        let sender = Sender {
            client: Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build_http(),
            url: bridge.url().parse().expect("a URL"),
            sent: Arc::clone(&sent),
        };
        let stopped = stop.clone();
        let sending = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(stopped.run_until_cancelled(send_all(sender, count, concurrency, rate)));
        });
        Self { sending, sent, stop: stop.drop_guard() }
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.sending.is_finished()
    }

    /// Ends it as a crash of the sender would: in the middle of deliveries, whose answers nobody learns.
    pub(crate) fn crash(self) -> Outcome {
        drop(self.stop);
        outcome(self.sending, &self.sent)
    }

    /// Waits until all is sent.
    #[track_caller]
    pub(crate) fn finish(self) -> Outcome {
        self.finish_within(PATIENCE * 3)
    }

    #[track_caller]
    pub(crate) fn finish_within(self, limit: Duration) -> Outcome {
        eventually_within(limit, "the load has ended", || self.sending.is_finished());
        outcome(self.sending, &self.sent)
    }
}

fn outcome(sending: JoinHandle<()>, sent: &Shared) -> Outcome {
    sending.join().expect("a load that ends in order");
    let mut outcome = std::mem::take(&mut *sent.lock().unwrap());
    outcome.answers.are_of(outcome.sent.len() as u64);
    outcome
}

/// Deliveries of one key go to one sender, so they stay in order.
async fn send_all(sender: Sender, count: u64, concurrency: usize, rate: Option<u32>) {
    let mut senders = JoinSet::new();
    let mut queues = Vec::new();
    for _ in 0..concurrency {
        let (queue, mut waiting) = mpsc::channel::<Sample>(QUEUE);
        let sender = sender.clone();
        queues.push(queue);
        senders.spawn(async move {
            while let Some(sample) = waiting.recv().await {
                sender.deliver(&sample).await;
            }
        });
    }
    let begun = tokio::time::Instant::now();
    for (index, sample) in samples(count, concurrency).enumerate() {
        if let Some(rate) = rate {
            tokio::time::sleep_until(begun + Duration::from_secs_f64(index as f64 / f64::from(rate))).await;
        }
        let mut hasher = DefaultHasher::new();
        sample.key.hash(&mut hasher);
        let queue = &queues[(hasher.finish() % queues.len() as u64) as usize];
        queue.send(sample).await.expect("a sender");
    }
    drop(queues);
    senders.join_all().await;
}

/// One of each category, then live calls and rooms, four for each delivery under way. The last happens about now.
fn samples(count: u64, concurrency: usize) -> impl Iterator<Item = Sample> {
    let now_ms = Clock::system().now_ms();
    let mut sampler = Sampler::new(fastrand::u64(..), concurrency * 4, now_ms - count as i64 * 20, APPLICATION);
    let first: Vec<Sample> = Category::ALL.into_iter().map(|category| sampler.of(category)).collect();
    first.into_iter().chain(sampler).take(count as usize)
}

#[derive(Clone)]
struct Sender {
    client: Client<HttpConnector, Full<Bytes>>,
    url: Uri,
    sent: Shared,
}

/// What the bridge answers with 200.
#[derive(Deserialize)]
struct Accepted {
    id: String,
    /// `stored` or `duplicate`.
    status: String,
}

impl Sender {
    /// One second for an answer, three tries. That it is sent is noted before the first of them.
    async fn deliver(&self, sample: &Sample) {
        let body = serde_json::from_slice(&sample.body).expect("JSON");
        let index = {
            let sent = &mut self.sent.lock().unwrap().sent;
            sent.push(Sent::unanswered(&sample.key, &body));
            sent.len() - 1
        };
        let mut tries = 0;
        let (answered, took) = loop {
            tries += 1;
            let begun = Instant::now();
            let answered = tokio::time::timeout(ANSWER_WITHIN, self.attempt(&sample.body)).await;
            let answered = answered.unwrap_or(Err("no answer in time"));
            if answered.as_ref().is_ok_and(|(status, _)| *status < 500) || tries == TRIES {
                break (answered, begun.elapsed());
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        };
        let Outcome { sent, answers } = &mut *self.sent.lock().unwrap();
        if answered.is_ok() {
            answers.longest_ms = answers.longest_ms.max(took.as_secs_f64() * 1000.0);
        }
        sent[index].ended(match answered {
            Ok((200, body)) => {
                let Accepted { id, status } = serde_json::from_slice(&body).expect("an answer with an id");
                match status.as_str() {
                    "stored" => answers.stored += 1,
                    "duplicate" => answers.duplicates += 1,
                    other => panic!("expected stored or duplicate, but found {other}"),
                }
                Ok(Some(Id::parse(&id)))
            }
            Ok((status, _)) => {
                *answers.others.entry(status.to_string()).or_default() += 1;
                Ok(None)
            }
            Err(why) => {
                *answers.others.entry(why.to_owned()).or_default() += 1;
                Err(why)
            }
        });
    }

    async fn attempt(&self, body: &Bytes) -> Result<(u16, Bytes), &'static str> {
        let request = hyper::Request::post(self.url.clone())
            .header("content-type", "application/json")
            .header("user-agent", "SendBird")
            .header("x-sendbird-signature", sign(TOKEN, body))
            .body(Full::new(body.clone()))
            .expect("a request");
        let response = self.client.request(request).await;
        let response =
            response.map_err(|error| if error.is_connect() { NO_CONNECTION } else { "the connection was lost" })?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|_cut| "the connection closed before the end")?;
        Ok((status, body.to_bytes()))
    }
}

/// Deliveries that this process of the bridge has stored.
pub(crate) fn stored_by(bridge: &Bridge) -> f64 {
    bridge.metric("sendbird_bridge_deliveries_total", &[("outcome", "stored")])
}
