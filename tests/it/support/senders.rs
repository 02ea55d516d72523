//! Senders that never rest: each sends its next delivery as soon as the last is answered, and notes what became of it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::bridge::signed;
use super::http::{Connection, Response};
use super::oracle::{Id, Sent};
use super::samples::dial;

/// How a sender treats its connections.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Manner {
    /// One for all, until the bridge says that it closes it.
    Kept,
    /// A new one for each delivery.
    New,
}

/// Some senders, each a thread with a key of its own.
pub(crate) struct Senders {
    enough: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Heard>>,
}

/// What senders heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// What was answered 200, that of one sender in its order.
    pub(crate) sent: Vec<Sent>,
    /// How often nobody listened.
    pub(crate) refused: u64,
    /// Everything else, and how often.
    pub(crate) others: BTreeMap<String, u64>,
}

impl Senders {
    /// Starts so many of each manner.
    pub(crate) fn start(address: SocketAddr, of_each: usize) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let all = [Manner::Kept, Manner::New].into_iter().flat_map(|manner| (0..of_each).map(move |n| (manner, n)));
        let threads = all.map(|(manner, n)| {
            let (enough, key) = (Arc::clone(&enough), format!("{manner:?} {n}"));
            std::thread::spawn(move || send(address, manner, &key, &enough))
        });
        Self { threads: threads.collect(), enough }
    }

    /// Lets each end its delivery, and says what they heard.
    pub(crate) fn finish(self) -> Heard {
        self.enough.store(true, Ordering::Relaxed);
        let mut all = Heard::default();
        for thread in self.threads {
            let heard = thread.join().unwrap();
            all.sent.extend(heard.sent);
            all.refused += heard.refused;
            heard.others.into_iter().for_each(|(what, count)| *all.others.entry(what).or_default() += count);
        }
        all
    }
}

fn send(address: SocketAddr, manner: Manner, key: &str, enough: &AtomicBool) -> Heard {
    let mut heard = Heard::default();
    let mut kept = None;
    let mut n = 0;
    while !enough.load(Ordering::Relaxed) {
        let body = dial(key, n);
        let opened = kept.take().map_or_else(|| Connection::try_open(address), Ok);
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                heard.refused += 1;
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            Err(error) => {
                *heard.others.entry(format!("no connection: {error}")).or_default() += 1;
                continue;
            }
        };
        match answer(&mut connection, &body) {
            Ok(response) if response.status == 200 => {
                let id = Id::parse(&response.accepted().0);
                heard.sent.push(Sent::new(key, Some(id), &serde_json::from_slice(&body).unwrap()));
                n += 1;
                let goes_on = response.header("connection") != Some("close");
                kept = Some(connection).filter(|_| goes_on && matches!(manner, Manner::Kept));
            }
            Ok(response) => *heard.others.entry(response.status.to_string()).or_default() += 1,
            Err(error) => *heard.others.entry(format!("no answer: {error}")).or_default() += 1,
        }
    }
    heard
}

fn answer(connection: &mut Connection, body: &[u8]) -> io::Result<Response> {
    connection.try_write(&signed(body).bytes())?;
    connection.try_response()
}
