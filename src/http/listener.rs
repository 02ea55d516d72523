//! The accept loop: warp's filters on hyper, with the limits that `warp::serve` has not.
//!
//! A connection costs a permit, and without one it is answered 503 and closed at once. Stopping refuses who comes, takes
//! what the system has accepted for us, closes the socket, lets every request that has begun be answered and gives up
//! after a limit. What happens inside a connection is in [`connection`].

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use warp::{Filter, Reply};

use super::connection::{self, Peer};
use super::{reply, tls};

/// Connections that the system may accept for us before we do; it may have a lower limit of its own. One more would be
/// tried again after a second, which is all that Sendbird waits, so there is room for a burst.
const BACKLOG: u32 = 4096;

/// Pause after a failed accept, such as with no file descriptors left; far less than Sendbird's second.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How long a handshake that has begun may take to end once the listener is stopping.
const HANDSHAKE_LIMIT: Duration = Duration::from_millis(200);

/// How long requests that have begun may take once the listener is stopping.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// An address that is taken, at which nobody is let in yet: who comes is refused, and does not wait for an answer.
pub struct Bound {
    socket: TcpSocket,
    max_connections: usize,
    counts: Counts,
    tls: Option<tls::Current>,
}

/// A listening socket and its limit.
pub struct Listener {
    socket: TcpListener,
    max_connections: usize,
    counts: Counts,
    tls: Option<tls::Current>,
}

/// What a listener counts.
#[derive(Clone)]
pub struct Counts {
    /// Open connections.
    pub open: IntGauge,
    /// Connections that there was no room for.
    pub refused: IntCounter,
    /// Heads that did not arrive whole, or not in time.
    pub late: IntCounter,
}

impl Counts {
    /// Counts that nobody sees, for a listener whose connections are no deliveries.
    ///
    /// # Errors
    /// Only if the names were invalid.
    pub fn unregistered() -> prometheus::Result<Self> {
        Ok(Self {
            open: IntGauge::new("open", "not registered")?,
            refused: IntCounter::new("refused", "not registered")?,
            late: IntCounter::new("late", "not registered")?,
        })
    }
}

/// A filter that answers every request.
pub trait Answers: Filter<Extract: Reply, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static {}

impl<F> Answers for F where F: Filter<Extract: Reply, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static {}

impl Bound {
    /// Takes `address`, for at most `max_connections` at once, which begin with a TLS handshake if there is a `tls`.
    ///
    /// # Errors
    /// When the address can't be had.
    pub fn to(
        address: SocketAddr,
        max_connections: usize,
        counts: Counts,
        tls: Option<tls::Current>,
    ) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Where a bridge has just ended, the next may begin.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { socket, max_connections, counts, tls })
    }

    /// Lets the system accept connections, which then wait for [`Listener::serve`].
    ///
    /// # Errors
    /// When somebody else listens at the address.
    pub fn listen(self) -> io::Result<Listener> {
        let Self { socket, max_connections, counts, tls } = self;
        Ok(Listener { socket: socket.listen(BACKLOG)?, max_connections, counts, tls })
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

    /// Serves until `stop`, then until the requests under way are answered.
    pub async fn serve<F: Answers>(self, filter: F, stop: CancellationToken) {
        let Self { socket, max_connections, counts, tls } = self;
        let permits = Arc::new(Semaphore::new(max_connections));
        let mut connections = Connections { permits, filter, stop: stop.clone(), counts, tls, tasks: JoinSet::new() };
        loop {
            tokio::select! {
                accepted = socket.accept() => connections.take(accepted).await,
                Some(_ended) = connections.tasks.join_next() => {}
                () = stop.cancelled() => break,
            }
        }
        let limit = Instant::now() + DRAIN_LIMIT;
        if timeout_at(limit, connections.take_the_rest(&socket)).await.is_err() {
            tracing::warn!("connections that could not be accepted are cut at the end of the drain");
        }
        drop(socket);
        let tasks = &mut connections.tasks;
        if timeout_at(limit, async { while tasks.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!(connections = tasks.len(), "connections cut at the end of the drain");
            tasks.shutdown().await;
        }
    }
}

/// The open connections of a listener.
struct Connections<F> {
    permits: Arc<Semaphore>,
    filter: F,
    stop: CancellationToken,
    counts: Counts,
    tls: Option<tls::Current>,
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
            self.counts.refused.inc();
            // Who waits for a handshake would not understand the answer.
            if self.tls.is_none() {
                refuse(&stream);
            }
            return;
        };
        let (filter, stop, counts) = (self.filter.clone(), self.stop.clone(), self.counts.clone());
        let tls = self.tls.as_ref().map(tls::Current::acceptor);
        self.tasks.spawn(async move {
            counts.open.inc();
            if !connection::serve(stream, tls, Peer(peer.ip()), filter, &stop).await {
                counts.late.inc();
            }
            counts.open.dec();
            drop(permit);
        });
    }

    /// Takes the connections that the system has accepted for us or is about to: when the socket closes, it resets
    /// those that are left, whose senders may have sent a request already.
    async fn take_the_rest(&mut self, socket: &TcpListener) {
        if let Err(error) = let_nobody_in(socket) {
            tracing::debug!(%error, "connections may still begin while the listener stops");
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

/// One more connection than there may be. The answer fits into the socket's empty buffer, so this
/// neither waits nor needs a task.
fn refuse(stream: &TcpStream) {
    if let Err(error) = stream.try_write(reply::TOO_MANY_CONNECTIONS) {
        tracing::debug!(%error, "a refused connection took no answer");
    }
}

/// Has the system refuse who comes, as if the socket were closed, while handshakes that have begun go on: it looks for a
/// socket of the interface that a handshake begins at, and there is none with this number. Linux lets everybody do so
/// since 5.7.
fn let_nobody_in(socket: &TcpListener) -> io::Result<()> {
    const NO_INTERFACE: Option<NonZeroU32> = NonZeroU32::new(i32::MAX as u32);
    // The same option for both versions of IP.
    SockRef::from(socket).bind_device_by_index_v4(NO_INTERFACE)
}
