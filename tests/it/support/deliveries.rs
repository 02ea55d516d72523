//! Deliveries of a test's own choosing, as many at once as there are connections: those of one key one after the other,
//! each sent until it is answered 200, over connections that are kept.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bridge::signed;
use super::flood::{answer, connect};
use super::oracle::{Id, Sent};
use super::samples::{APPLICATION, dial};

/// How many are under way at once.
const CONNECTIONS: usize = 48;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Call,
    Room,
}

/// A delivery to make. No two may be equal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) about: About,
    pub(crate) key: u32,
    /// Its number among those of its key.
    pub(crate) n: u32,
}

impl Planned {
    pub(crate) fn call(key: u32, n: u32) -> Self {
        Self { about: About::Call, key, n }
    }

    pub(crate) fn room(key: u32, n: u32) -> Self {
        Self { about: About::Room, key, n }
    }

    pub(crate) fn is_room(&self) -> bool {
        self.about == About::Room
    }

    /// The event's key.
    pub(crate) fn name(&self) -> String {
        match self.about {
            About::Call => format!("call-{}", self.key),
            About::Room => format!("room-{}", self.key),
        }
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        let (name, at) = (self.name(), 1_767_225_600_000 + u64::from(self.n));
        match self.about {
            About::Call => dial(&name, at),
            About::Room => {
                let room = json!({ "room_id": name, "type": "small_room_for_video" });
                json!({ "category": "room:create", "occurred_at": at, "application_id": APPLICATION, "room": room })
                    .to_string()
                    .into_bytes()
            }
        }
    }
}

/// How many were answered 200, for anybody to see.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    made: AtomicU64,
    /// Answers that were not 200, and requests that were not answered.
    failed: AtomicU64,
}

impl Progress {
    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Deliveries under way.
pub(crate) struct Deliveries {
    pub(crate) progress: Arc<Progress>,
    sending: JoinHandle<Vec<(Planned, Id)>>,
}

impl Deliveries {
    /// Begins to make them, in this order as far as many connections can keep it. They go on through restarts of a
    /// bridge that keeps its address. At most `rate` of them begin in a second.
    pub(crate) fn start(rate: Option<u32>, address: SocketAddr, planned: Vec<Planned>) -> Self {
        let progress = Arc::<Progress>::default();
        let seen = Arc::clone(&progress);
        let pace = Arc::new(Pace::new(rate));
        let sending = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut shares = vec![Vec::new(); CONNECTIONS];
                planned.iter().for_each(|it| shares[it.key as usize % CONNECTIONS].push(*it));
                let mut senders = JoinSet::new();
                for share in shares {
                    senders.spawn(send(address, share, Arc::clone(&pace), Arc::clone(&seen)));
                }
                senders.join_all().await.concat()
            })
        });
        Self { progress, sending }
    }

    pub(crate) fn are_under_way(&self) -> bool {
        !self.sending.is_finished()
    }

    /// Waits for the last answer.
    pub(crate) fn finish(self) -> Vec<(Planned, Id)> {
        self.sending.join().expect("all deliveries are made")
    }
}

/// Makes deliveries, each answered 200 at its first try.
#[track_caller]
pub(crate) fn deliver(address: SocketAddr, planned: Vec<Planned>) -> Vec<(Planned, Id)> {
    deliver_at(None, address, planned)
}

/// The same with at most so many a second.
#[track_caller]
pub(crate) fn deliver_at(rate: Option<u32>, address: SocketAddr, planned: Vec<Planned>) -> Vec<(Planned, Id)> {
    let deliveries = Deliveries::start(rate, address, planned);
    let progress = Arc::clone(&deliveries.progress);
    let made = deliveries.finish();
    assert_eq!(progress.failed(), 0, "some deliveries were not answered 200");
    made
}

/// For the oracle.
pub(crate) fn sent(made: &[(Planned, Id)]) -> Vec<Sent> {
    let body = |it: &Planned| serde_json::from_slice(&it.body()).expect("JSON");
    made.iter().map(|(it, id)| Sent::new(&it.name(), Some(*id), &body(it))).collect()
}

/// Gives each delivery its time.
struct Pace {
    every: Option<Duration>,
    next: Mutex<Instant>,
}

impl Pace {
    fn new(rate: Option<u32>) -> Self {
        Self { every: rate.map(|rate| Duration::from_secs(1) / rate), next: Mutex::new(Instant::now()) }
    }

    async fn turn(&self) {
        let Some(every) = self.every else { return };
        let at = {
            let mut next = self.next.lock().unwrap();
            let at = (*next).max(Instant::now());
            *next = at + every;
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

async fn send(
    address: SocketAddr,
    share: Vec<Planned>,
    pace: Arc<Pace>,
    progress: Arc<Progress>,
) -> Vec<(Planned, Id)> {
    let mut kept: Option<BufReader<TcpStream>> = None;
    let mut made = Vec::with_capacity(share.len());
    for planned in share {
        let request = signed(&planned.body()).bytes();
        pace.turn().await;
        loop {
            let stream = match kept.take() {
                Some(stream) => Some(stream),
                None => connect(address).await.ok().map(BufReader::new),
            };
            if let Some(mut stream) = stream {
                stream.write_all(&request).await.ok();
                if let Ok(answer) = answer(&mut stream).await {
                    kept = Some(stream).filter(|_| !answer.closing);
                    if let Some(id) = answer.id {
                        made.push((planned, Id::parse(&id)));
                        break;
                    }
                }
            }
            progress.failed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        progress.made.fetch_add(1, Ordering::Relaxed);
    }
    made
}
