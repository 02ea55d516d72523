//! One connection: what is late in it is cut off, and a stop finds no request unanswered.
//!
//! While the bridge stops, each answer says `Connection: close`, and a connection that is idle stays open a little
//! longer: its sender may have sent the next request already, or may be about to.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use warp::http::Request;
use warp::http::header::{CONNECTION, HeaderValue};

use super::listener::Answers;
use super::reply;

/// The largest head, and the piece that a body is read in. With the number of connections, it bounds what senders who
/// have not shown yet who they are can take of the memory.
const BUFFER: usize = 16 * 1024;

/// From a head's first byte to its end.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// How long a connection may be idle. Longer than the 60 s of the usual load balancers: whoever closes
/// first must not be the one that is being written to.
const IDLE_LIMIT: Duration = Duration::from_secs(90);

/// How long an idle connection stays open once the bridge is stopping: long enough for a busy sender's next request,
/// whose answer then says that it was the last.
const LINGER: Duration = Duration::from_secs(1);

/// Who is at the other end of the connection, for filters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// Serves one connection to its end; `false` if that was a head, or a TLS handshake, that did not arrive.
pub(super) async fn serve<F: Answers>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    peer: Peer,
    filter: F,
    stop: &CancellationToken,
) -> bool {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let Some(tls) = tls else { return answer(stream, peer, filter, stop).await };
    let stopped = async {
        stop.cancelled().await;
        sleep(LINGER).await;
    };
    let shaken = tokio::select! {
        shaken = timeout(HEAD_LIMIT, tls.accept(stream)) => shaken,
        () = stopped => return true,
    };
    match shaken {
        // On the heap, so that connections without TLS need no room for it.
        Ok(Ok(stream)) => Box::pin(answer(stream, peer, filter, stop)).await,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no TLS handshake");
            true
        }
        Err(_elapsed) => false,
    }
}

async fn answer<F: Answers, S: Socket>(stream: S, peer: Peer, filter: F, stop: &CancellationToken) -> bool {
    let activity = Arc::new(Activity::new());
    let warp = TowerToHyperService::new(warp::service(filter));
    let service = hyper::service::service_fn({
        let activity = Arc::clone(&activity);
        move |mut request: Request<Incoming>| {
            activity.request_begins();
            request.extensions_mut().insert(peer);
            let response = warp.call(request);
            let (activity, stop) = (Arc::clone(&activity), stop.clone());
            async move {
                let mut response = response.await?;
                activity.request_ends();
                if stop.is_cancelled() {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        }
    });
    let io = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
    // A sender that has sent its delivery and hangs up, or says no more, is not a reason to drop it.
    let mut connection = http1::Builder::new()
        .half_close(true)
        .max_buf_size(BUFFER)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .serve_connection(io, service);

    let mut linger = pin!(async {
        stop.cancelled().await;
        sleep(LINGER).await;
    });
    let (mut lingered, mut closing) = (false, false);
    let mut overdue: Option<(Instant, Pin<Box<Sleep>>)> = None;
    let in_time = poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                let broken_off = result.as_ref().is_err_and(hyper::Error::is_incomplete_message);
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                // The other side may have closed only its own half and still wait for an answer.
                return Poll::Ready(!(broken_off && activity.head_since().is_some()));
            }
            // Only now, as what has come in the meantime was read: a request that has begun is answered first.
            lingered = lingered || linger.as_mut().poll(cx).is_ready();
            if closing || !lingered || !activity.is_idle() {
                break;
            }
            closing = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        // hyper has read all there is, so what the socket's reader noticed is up to date.
        match activity.head_since() {
            None => overdue = None,
            Some(since) => {
                let (_, timer) = match &mut overdue {
                    Some(timer) if timer.0 == since => timer,
                    other => other.insert((since, Box::pin(sleep_until(since + HEAD_LIMIT)))),
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

    fn is_idle(&self) -> bool {
        !self.answering.load(Ordering::Relaxed) && self.head_since.load(Ordering::Relaxed) == 0
    }

    fn head_since(&self) -> Option<Instant> {
        let ms = self.head_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.start + Duration::from_millis(ms))
    }
}

/// What bytes come and go over, encrypted or not.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// A socket that tells when bytes come.
struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S: Socket> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.bytes_came();
        }
        result
    }
}

impl<S: Socket> AsyncWrite for Watched<S> {
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
