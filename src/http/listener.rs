//! The accept loop: warp's filters on hyper, with the limits that `warp::serve` has not.
//!
//! A connection costs a permit, and without one it is answered 503 and closed at once. A head that
//! does not arrive whole, or not in time, is answered 408; an idle keep-alive connection is closed, but later than load
//! balancers close theirs. Stopping closes the socket, lets every request that has begun be answered and
//! gives up after a limit.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::{IntCounter, IntGauge};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use warp::http::Request;
use warp::{Filter, Reply};

use super::reply;

/// From a head's first byte to its end.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// How long a connection may be idle. Longer than the 60 s of the usual load balancers: whoever closes
/// first must not be the one that is being written to.
const IDLE_LIMIT: Duration = Duration::from_secs(90);

/// Pause after a failed accept, such as with no file descriptors left; far less than Sendbird's second.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How long requests that have begun may take once the listener is stopping.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// A bound socket and its limit.
pub struct Listener {
    socket: TcpListener,
    max_connections: usize,
    counts: Counts,
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

/// Who is at the other end of the connection, for filters.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

impl Listener {
    /// Binds `address`, for at most `max_connections` at once.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub async fn bind(address: SocketAddr, max_connections: usize, counts: Counts) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await?, max_connections, counts })
    }

    /// The address, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// When the system can't say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop`, then until the requests under way are answered.
    pub async fn serve<F>(self, filter: F, stop: CancellationToken)
    where
        F: Filter<Error = Infallible> + Clone + Send + Sync + 'static,
        F::Extract: Reply,
        F::Future: Send,
    {
        let permits = Arc::new(Semaphore::new(self.max_connections));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                Some(_ended) = connections.join_next() => continue,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => self.take(stream, peer, &permits, &filter, &stop, &mut connections),
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Those that the system has accepted for us already would find their connection reset.
        while let Some(Ok((stream, peer))) = self.socket.accept().now_or_never() {
            self.take(stream, peer, &permits, &filter, &stop, &mut connections);
        }
        drop(self.socket);
        let drained = timeout(DRAIN_LIMIT, async { while connections.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(connections = connections.len(), "connections cut at the end of the drain");
            connections.shutdown().await;
        }
    }
}

impl Listener {
    /// Starts serving a connection, or refuses it.
    fn take<F>(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        permits: &Arc<Semaphore>,
        filter: &F,
        stop: &CancellationToken,
        connections: &mut JoinSet<()>,
    ) where
        F: Filter<Error = Infallible> + Clone + Send + Sync + 'static,
        F::Extract: Reply,
        F::Future: Send,
    {
        let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
            self.counts.refused.inc();
            return refuse(&stream);
        };
        let (filter, stop, counts) = (filter.clone(), stop.clone(), self.counts.clone());
        connections.spawn(async move {
            counts.open.inc();
            if !connection(stream, Peer(peer.ip()), filter, stop).await {
                counts.late.inc();
            }
            counts.open.dec();
            drop(permit);
        });
    }
}

/// One more connection than there may be. The answer fits into the socket's empty buffer, so this
/// neither waits nor needs a task.
fn refuse(stream: &TcpStream) {
    if let Err(error) = stream.try_write(reply::TOO_MANY_CONNECTIONS) {
        tracing::debug!(%error, "a refused connection took no answer");
    }
}

/// Serves one connection to its end; `false` if that was a head that did not arrive.
async fn connection<F>(stream: TcpStream, peer: Peer, filter: F, stop: CancellationToken) -> bool
where
    F: Filter<Error = Infallible> + Clone + Send + Sync + 'static,
    F::Extract: Reply,
    F::Future: Send,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let activity = Arc::new(Activity::new());
    let warp = TowerToHyperService::new(warp::service(filter));
    let service = hyper::service::service_fn({
        let activity = Arc::clone(&activity);
        move |mut request: Request<Incoming>| {
            activity.request_begins();
            request.extensions_mut().insert(peer);
            let response = warp.call(request);
            let activity = Arc::clone(&activity);
            async move {
                let response = response.await;
                activity.request_ends();
                response
            }
        }
    });
    let io = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
    // A sender that has sent its delivery and hangs up, or says no more, is not a reason to drop it.
    let mut connection = http1::Builder::new()
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .serve_connection(io, service);

    let mut stopped = pin!(stop.cancelled());
    let mut stopping = false;
    let mut overdue: Option<(Instant, Pin<Box<Sleep>>)> = None;
    let in_time = poll_fn(|cx| {
        if !stopping && stopped.as_mut().poll(cx).is_ready() {
            stopping = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
            let broken_off = result.as_ref().is_err_and(hyper::Error::is_incomplete_message);
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            // The other side may have closed only its own half and still wait for an answer.
            return Poll::Ready(!(broken_off && activity.head_since().is_some()));
        }
        // hyper has read all there is, so what the socket's reader noticed is up to date.
        match activity.head_since() {
            None => overdue = None,
            Some(since) => {
                let (_, timer) = match &mut overdue {
                    Some(timer) if timer.0 == since => timer,
                    other => other.insert((since, Box::pin(tokio::time::sleep_until(since + HEAD_LIMIT)))),
                };
                if timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
            }
        }
        Poll::Pending
    })
    .await;
    if !in_time {
        let mut stream = connection.into_parts().io.into_inner().stream;
        let answered = timeout(Duration::from_secs(1), stream.write_all(reply::HEAD_TOO_SLOW)).await;
        tracing::debug!(?answered, "head too slow");
    }
    in_time
}

/// What is going on in a connection: nothing, a head coming in, or a request being answered.
struct Activity {
    start: Instant,
    /// Milliseconds after `start`, plus one, at which the current head's first byte came; 0 for none.
    head_since: AtomicU64,
    answering: AtomicBool,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), head_since: AtomicU64::new(0), answering: AtomicBool::new(false) }
    }

    fn bytes_came(&self) {
        if !self.answering.load(Ordering::Relaxed) && self.head_since.load(Ordering::Relaxed) == 0 {
            let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            self.head_since.store(ms + 1, Ordering::Relaxed);
        }
    }

    fn request_begins(&self) {
        self.answering.store(true, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
    }

    fn request_ends(&self) {
        self.answering.store(false, Ordering::Relaxed);
    }

    fn head_since(&self) -> Option<Instant> {
        let ms = self.head_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.start + Duration::from_millis(ms))
    }
}

/// A socket that tells when bytes come.
struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.bytes_came();
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
