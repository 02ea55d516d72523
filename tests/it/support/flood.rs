//! A flood: thousands of connections from one thread or two, for what senders of their own threads can't do.
//!
//! Bodies are signed before they are needed, and what is measured is what a sender sees.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::PATIENCE;
use super::bridge::signed;
use super::samples::dial;

/// What was answered.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The ids that were answered 200.
    pub(crate) ids: Vec<String>,
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Connections that there was no room for: answered 503 and closed.
    pub(crate) refused: u64,
    /// Requests without an answer, and why.
    pub(crate) unanswered: BTreeMap<String, u64>,
    /// How long each answer took, the refusals left out.
    pub(crate) took: Vec<Duration>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.ids.extend(other.ids);
        self.refused += other.refused;
        self.took.extend(other.took);
        other.statuses.into_iter().for_each(|(status, n)| *self.statuses.entry(status).or_default() += n);
        other.unanswered.into_iter().for_each(|(why, n)| *self.unanswered.entry(why).or_default() += n);
    }

    pub(crate) fn count(&self, status: u16) -> u64 {
        self.statuses.get(&status).copied().unwrap_or_default()
    }

    /// Every delivery was answered, by 200 or by 503.
    #[track_caller]
    pub(crate) fn only_200_and_503(&self) {
        assert!(self.unanswered.is_empty(), "{:?} were not answered", self.unanswered);
        let others: Vec<_> = self.statuses.keys().filter(|status| ![200, 503].contains(*status)).collect();
        assert!(others.is_empty(), "some were answered {others:?}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut took = self.took.clone();
        took.sort_unstable();
        let at = |part: usize| took.get(took.len().saturating_sub(1) * part / 100).copied().unwrap_or_default();
        for (status, count) in &self.statuses {
            writeln!(f, "{:<34}{count:>10}", format!("answered {status}"))?;
        }
        writeln!(f, "{:<34}{:>10}", "refused as one connection too many", self.refused)?;
        for (why, count) in &self.unanswered {
            writeln!(f, "{:<34}{count:>10}", format!("not: {why}"))?;
        }
        writeln!(f, "{:<34}{:>10}", "half within, ms", at(50).as_millis())?;
        write!(f, "{:<34}{:>10}", "longest, ms", at(100).as_millis())
    }
}

/// Where a flood goes, and what it is made of.
pub(crate) struct Flood {
    runtime: Runtime,
    tasks: JoinSet<Tally>,
    address: SocketAddr,
    enough: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl Flood {
    pub(crate) fn towards(address: SocketAddr) -> Self {
        let found = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: found.maximum, ..found }).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (enough, answered) = Default::default();
        Self { runtime, tasks: JoinSet::new(), address, enough, answered }
    }

    /// Starts so many senders. Each sends its next delivery as soon as the last is answered, over a connection that it
    /// keeps for as long as it may.
    pub(crate) fn senders(&mut self, name: &str, count: usize) {
        for n in 0..count {
            let (address, enough, answered) = (self.address, Arc::clone(&self.enough), Arc::clone(&self.answered));
            let key = format!("{name} {n}");
            self.tasks.spawn_on(send(address, key, enough, answered), self.runtime.handle());
        }
    }

    /// How many answers there were so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Opens so many connections, sends this on each of them, and keeps them.
    pub(crate) fn open(&self, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
        self.runtime.block_on(async {
            let mut opening = JoinSet::new();
            for _ in 0..count {
                let (address, bytes) = (self.address, bytes.to_vec());
                opening.spawn(async move {
                    let mut stream = connect(address).await?;
                    stream.write_all(&bytes).await?;
                    Ok::<_, io::Error>(stream)
                });
            }
            opening.join_all().await.into_iter().map(|opened| opened.expect("a connection that takes bytes")).collect()
        })
    }

    /// Keeps so many senders that send one byte of this after the other, and start over when they are cut off.
    pub(crate) fn drips(&mut self, count: usize, bytes: &[u8]) {
        for _ in 0..count {
            let (address, enough, bytes) = (self.address, Arc::clone(&self.enough), bytes.to_vec());
            let drip = async move {
                while !enough.load(Ordering::Relaxed) {
                    let Ok(mut stream) = connect(address).await else { continue };
                    for byte in &bytes {
                        if enough.load(Ordering::Relaxed) || stream.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                Tally::default()
            };
            self.tasks.spawn_on(drip, self.runtime.handle());
        }
    }

    /// What each of these connections is answered.
    pub(crate) fn answers(&self, streams: Vec<TcpStream>) -> Tally {
        self.runtime.block_on(async {
            let mut reading = JoinSet::new();
            for stream in streams {
                reading.spawn(async move {
                    let mut tally = Tally::default();
                    tally.note(answer(&mut BufReader::new(stream)).await, Instant::now());
                    tally
                });
            }
            let mut all = Tally::default();
            reading.join_all().await.into_iter().for_each(|tally| all.add(tally));
            all
        })
    }

    /// Lets each sender end its delivery, and says what all were answered.
    pub(crate) fn finish(mut self) -> Tally {
        self.enough.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        self.runtime.block_on(async {
            while let Some(tally) = self.tasks.join_next().await {
                all.add(tally.unwrap());
            }
        });
        all
    }
}

/// An answer, as far as it matters here.
pub(super) struct Answer {
    status: u16,
    /// Where the answer is 200.
    pub(super) id: Option<String>,
    retry_after: bool,
    pub(super) closing: bool,
}

impl Tally {
    /// Says whether the connection goes on.
    fn note(&mut self, answer: io::Result<Answer>, begun: Instant) -> bool {
        match answer {
            Ok(answer) => {
                self.took.push(begun.elapsed());
                assert_eq!(answer.retry_after, answer.status == 503, "when to try again");
                *self.statuses.entry(answer.status).or_default() += 1;
                self.ids.extend(answer.id);
                !answer.closing
            }
            Err(error) => {
                *self.unanswered.entry(error.to_string()).or_default() += 1;
                false
            }
        }
    }
}

async fn send(address: SocketAddr, key: String, enough: Arc<AtomicBool>, answered: Arc<AtomicU64>) -> Tally {
    let mut tally = Tally::default();
    let mut kept: Option<BufReader<TcpStream>> = None;
    for n in 0.. {
        let request = signed(&dial(&key, n)).bytes();
        if enough.load(Ordering::Relaxed) {
            break;
        }
        let first = kept.is_none();
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => match connect(address).await {
                Ok(stream) => BufReader::new(stream),
                Err(error) => {
                    tally.note(Err(error), Instant::now());
                    continue;
                }
            },
        };
        let begun = Instant::now();
        // A connection that is refused may be closed before it took the request; the refusal can be read all the same.
        stream.write_all(&request).await.ok();
        match answer(&mut stream).await {
            Ok(refusal) if first && refusal.status == 503 && refusal.closing => {
                tally.refused += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            answer => kept = tally.note(answer, begun).then_some(stream),
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    tally
}

pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let stream = timeout(PATIENCE, socket.connect(address)).await.map_err(io::Error::other)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(super) async fn answer(stream: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    timeout(PATIENCE, read_answer(stream)).await.map_err(io::Error::other)?
}

async fn read_answer(stream: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let mut answer = Answer { status: 0, id: None, retry_after: false, closing: false };
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_lowercase();
        match line.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
            Some(("retry-after", _)) => answer.retry_after = true,
            Some(("connection", "close")) => answer.closing = true,
            Some(_) => {}
            None if line.is_empty() => break,
            None => {
                let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
                answer.status = status.ok_or_else(|| io::Error::other("expected a status line"))?;
            }
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    if answer.status == 200 {
        let body: serde_json::Value = serde_json::from_slice(&body)?;
        answer.id = Some(body["id"].as_str().expect("an id").to_owned());
    }
    Ok(answer)
}
