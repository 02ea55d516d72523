//! The accept loop: warp's filters on hyper, with the limits that `warp::serve` has not.
//!
//! Each connection needs a permit; a connection without one is answered 503 and closed at once. A shutdown refuses new
//! connections, accepts those in the kernel's queue, closes the socket, waits until the requests under way are
//! answered, and closes what is left after [`DRAIN_LIMIT`]. What happens inside a connection is in [`connection`].

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::connection::{self, Answers};
pub use super::connection::{Limits, Terms};
use super::refusals::Refusals;
use super::reply::Problem;
use crate::access::Peer;

/// Connections that the system may accept for us before we do; it may have a lower limit of its own. One more would be
/// tried again after a second, which is all that Sendbird waits, so there is room for a burst.
const BACKLOG: u32 = 4096;

/// Pause after a failed accept, such as with no file descriptors left; far less than Sendbird's second.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How often it is looked whether there are refusals to be logged.
const FLUSH: Duration = Duration::from_secs(10);

/// How long a handshake that has begun may take to end once the listener is stopping.
const HANDSHAKE_LIMIT: Duration = Duration::from_millis(200);

/// How long requests that have begun may take once the listener is stopping.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// A bound address that does not listen yet: connections are refused immediately instead of waiting for an answer.
pub struct Bound {
    socket: TcpSocket,
    terms: Terms,
}

/// A listening socket and the terms that its connections are served on.
pub struct Listener {
    socket: TcpListener,
    terms: Terms,
}

/// Tries whether an address can be had. Nobody can connect to it meanwhile, and a bridge that starts still can have it.
///
/// # Errors
/// It cannot be had.
pub fn try_address(address: SocketAddr) -> io::Result<()> {
    bind(address).map(drop)
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Where a bridge has just ended, the next may begin.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl Bound {
    /// Takes `address`, for connections on these terms.
    ///
    /// # Errors
    /// When the address can't be had.
    pub fn to(address: SocketAddr, terms: Terms) -> io::Result<Self> {
        Ok(Self { socket: bind(address)?, terms })
    }

    /// Lets the system accept connections, which then wait for [`Listener::serve`].
    ///
    /// # Errors
    /// When somebody else listens at the address.
    pub fn listen(self) -> io::Result<Listener> {
        Ok(Listener { socket: self.socket.listen(BACKLOG)?, terms: self.terms })
    }
}

impl Listener {
    /// The address, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// When the system can't say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Where its refusals are counted and logged.
    pub fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.terms.refusals)
    }

    /// Serves until `stop`, then until the requests under way are answered.
    pub async fn serve<F: Answers>(self, filter: F, stop: CancellationToken) {
        let Self { socket, terms } = self;
        let permits = Arc::new(Semaphore::new(terms.limits.connections));
        let (terms, tasks) = (Arc::new(terms), JoinSet::new());
        let mut flush = interval(FLUSH);
        let mut connections = Connections { permits, filter, stop: stop.clone(), terms, tasks };
        loop {
            tokio::select! {
                accepted = socket.accept() => connections.take(accepted).await,
                Some(_ended) = connections.tasks.join_next() => {}
                _ = flush.tick() => connections.terms.refusals.flush(),
                () = stop.cancelled() => break,
            }
        }
        let limit = Instant::now() + DRAIN_LIMIT;
        if timeout_at(limit, connections.accept_queued(&socket)).await.is_err() {
            tracing::warn!("drain timed out; connections that were not accepted are reset");
        }
        drop(socket);
        let tasks = &mut connections.tasks;
        if timeout_at(limit, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!(connections = tasks.len(), "drain timed out; closed remaining connections");
            tasks.shutdown().await;
        }
    }
}

/// The open connections of a listener.
struct Connections<F> {
    permits: Arc<Semaphore>,
    filter: F,
    stop: CancellationToken,
    terms: Arc<Terms>,
    tasks: JoinSet<()>,
}

impl<F: Answers> Connections<F> {
    /// Starts serving a connection, or refuses it; rests a little if there is none to be had.
    async fn take(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                return sleep(ACCEPT_PAUSE).await;
            }
        };
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let problem = Problem::TooManyConnections;
            self.terms.refusals.note_problem(problem, problem.detail(), Peer::of_socket(peer.ip()));
            // Who waits for a handshake would not understand the answer.
            if self.terms.tls.is_none() {
                refuse(&stream, problem);
            }
            return;
        };
        let (filter, stop, terms) = (self.filter.clone(), self.stop.clone(), Arc::clone(&self.terms));
        let open = Open::new(terms.open.clone());
        self.tasks.spawn(async move {
            let _held = (permit, open);
            connection::serve(stream, Peer::of_socket(peer.ip()), filter, &terms, &stop).await;
        });
    }

    /// Accepts the connections in the kernel's queue, and those whose handshake is under way. Closing the socket would
    /// reset them, although their senders may already have sent a request.
    async fn accept_queued(&mut self, socket: &TcpListener) {
        if let Err(error) = refuse_new_connections(socket) {
            tracing::debug!(%error, "cannot refuse new connections while shutting down");
        }
        let mut handshakes = pin!(sleep(HANDSHAKE_LIMIT));
        loop {
            // In this order, so that the socket was found empty at the end.
            tokio::select! {
                biased;
                accepted = socket.accept() => self.take(accepted).await,
                () = &mut handshakes => return,
            }
        }
    }
}

/// An open connection in the gauge, for as long as this lives: also if the connection's task panics or is aborted.
struct Open(IntGauge);

impl Open {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One more connection than there may be. The answer fits into the socket's empty buffer, so this
/// neither waits nor needs a task.
fn refuse(stream: &TcpStream, problem: Problem) {
    if let Err(error) = stream.try_write(&problem.raw()) {
        tracing::debug!(%error, "cannot write 503 to a connection over the limit");
    }
}

/// Makes the kernel refuse new connections, as if the socket were closed, while handshakes under way still complete. It
/// binds the listening socket to a network interface that does not exist, so no new SYN matches the socket. Linux
/// allows this without privileges since 5.7.
fn refuse_new_connections(socket: &TcpListener) -> io::Result<()> {
    const NO_INTERFACE: Option<NonZeroU32> = NonZeroU32::new(i32::MAX as u32);
    // The same option for both versions of IP.
    SockRef::from(socket).bind_device_by_index_v4(NO_INTERFACE)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use warp::Filter;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_panics_is_no_longer_counted() {
        let second = Duration::from_secs(1);
        let limits = Limits { connections: 1, write: second, idle: second, linger: second };
        let terms = Terms::unregistered("test", limits, None).unwrap();
        let open = terms.open.clone();
        let bound = Bound::to(([127, 0, 0, 1], 0).into(), terms).unwrap();
        let listener = bound.listen().unwrap();
        let address = listener.local_addr().unwrap();
        let filter =
            warp::path::full().map(|path: warp::path::FullPath| -> &'static str { panic!("{}", path.as_str()) });
        let stop = CancellationToken::new();
        let client = async {
            for _ in 0..3 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nhost: bridge\r\n\r\n").await.unwrap();
                assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0, "an answer");
            }
            while open.get() != 0 {
                sleep(Duration::from_millis(1)).await;
            }
            stop.cancel();
        };
        let both = async { tokio::join!(listener.serve(filter, stop.clone()), client) };
        tokio::time::timeout(Duration::from_secs(10), both).await.expect("all connections are counted off");
    }
}
