//! Serves one HTTP connection: time limits for TLS handshakes, heads and idle connections, an answer to what is no request,
//! and a graceful shutdown.
//!
//! hyper answers what it cannot read as a request with an empty body. [`TrackedStream`] holds that answer back, and a
//! problem document is written in its place.
//!
//! While the bridge shuts down, each response carries `Connection: close`. An idle connection stays open for
//! [`LINGER`], because its sender may already have sent the next request; closing it then would lose that request.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{self as tokio_io, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use warp::http::Request;
use warp::http::header::{CONNECTION, HeaderValue};
use warp::{Filter, Reply};

use super::refusals::{Line, Refusals};
use super::reply::Problem;
use super::socket::{Activity, Socket, TrackedStream, WriteLimited};

/// The size limit of a head, and of each read of a body. Multiplied by the number of connections, it bounds the memory
/// that unauthenticated senders can occupy.
const BUFFER: usize = 16 * 1024;

/// From a head's first byte to its end.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// How long a connection may be idle. It is longer than the 60 s after which load balancers usually close idle
/// connections: if the server closed first, the load balancer could send a request into a closed connection.
const IDLE_LIMIT: Duration = Duration::from_secs(90);

/// How much of what follows a refused head is read and thrown away, and for how long: closing a socket with unread bytes
/// resets it, and its peer would lose the answer.
const DISCARD: u64 = 64 * 1024;
const DISCARD_LIMIT: Duration = Duration::from_secs(1);

/// How long an idle connection stays open once the bridge is stopping: long enough for a busy sender's next request,
/// whose answer then says that it was the last.
const LINGER: Duration = Duration::from_secs(1);

/// A filter that answers every request.
pub trait Answers: Filter<Extract: Reply, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static {}

impl<F> Answers for F where F: Filter<Extract: Reply, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static {}

/// Who is at the other end of the connection, for filters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// Why a connection has ended without an answer to its last head.
enum Fault {
    /// The head did not arrive whole, or not in time.
    TooSlow,
    /// hyper could not go on.
    Failed(hyper::Error),
}

/// Serves one connection to its end. Its peer may take nothing of what is written to it for `write_limit`.
pub(super) async fn serve<F: Answers>(
    stream: TcpStream,
    write_limit: Duration,
    tls: Option<TlsAcceptor>,
    peer: Peer,
    filter: F,
    refusals: &Refusals,
    stop: &CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let stream = WriteLimited::new(stream, write_limit);
    let Some(tls) = tls else { return answer(stream, peer, filter, refusals, stop).await };
    let stopped = async {
        stop.cancelled().await;
        sleep(LINGER).await;
    };
    let shaken = tokio::select! {
        shaken = timeout(HEAD_LIMIT, tls.accept(stream)) => shaken,
        () = stopped => return,
    };
    let line = |detail: String| Line::of_connection(None, detail, peer.0);
    match shaken {
        // On the heap, so that connections without TLS need no room for it.
        Ok(Ok(stream)) => Box::pin(answer(stream, peer, filter, refusals, stop)).await,
        // A load balancer that looks whether the port is open says nothing and hangs up.
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            tracing::debug!(%error, "TLS handshake failed");
        }
        Ok(Err(error)) => refusals.note("handshake", || line(format!("TLS handshake failed: {error}"))),
        Err(_elapsed) => {
            refusals.note(Problem::TooSlow.reason(), || line("the TLS handshake did not end in time".into()));
        }
    }
}

async fn answer<F: Answers, S: Socket>(
    stream: S,
    peer: Peer,
    filter: F,
    refusals: &Refusals,
    stop: &CancellationToken,
) {
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
    let io = TokioIo::new(TrackedStream::new(stream, Arc::clone(&activity)));
    // A sender that has sent its delivery and hangs up, or says no more, is not a reason to drop it.
    let mut connection = http1::Builder::new()
        .half_close(true)
        .max_buf_size(BUFFER)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        // So that an answer of hyper's own is one write that can be recognised.
        .writev(false)
        .serve_connection(io, service);

    let mut linger = pin!(async {
        stop.cancelled().await;
        sleep(LINGER).await;
    });
    let (mut lingered, mut closing) = (false, false);
    let mut overdue: Option<(Instant, Pin<Box<Sleep>>)> = None;
    let ended = poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(result.map_err(Fault::Failed));
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
                    return Poll::Ready(Err(Fault::TooSlow));
                }
            }
        }
        Poll::Pending
    })
    .await;
    let Err(fault) = ended else { return };
    let parts = connection.into_parts();
    let mut tracked = parts.io.into_inner();
    let (problem, detail) = match fault {
        Fault::TooSlow => (Problem::TooSlow, Problem::TooSlow.detail().to_owned()),
        Fault::Failed(error) => {
            tracing::debug!(%error, "connection ended");
            if timed_out(&error) {
                let detail = "the peer read nothing of what was written to it";
                return refusals.note("write_timeout", || Line::of_connection(None, detail, peer.0));
            }
            // Only a connection that ends within a head: one that breaks off later was answered, or is by its handler.
            let incomplete = error.is_incomplete_message() && activity.head_since().is_some();
            match refused(&error, &parts.read_buf) {
                Some(problem) => (problem, error.to_string()),
                None if incomplete => (Problem::TooSlow, "the connection closed within a head".into()),
                None => return,
            }
        }
    };
    refusals.note_problem(problem, detail, peer.0);
    // The other side may have closed only its own half and still wait for an answer.
    let answered = timeout(DISCARD_LIMIT, refuse(&mut tracked.stream, problem)).await;
    tracing::debug!(?answered, "head refused");
}

/// Writes the answer, and nothing after it; then reads on until the peer has closed its half too.
async fn refuse<S: Socket>(stream: &mut S, problem: Problem) -> io::Result<u64> {
    stream.write_all(&problem.raw()).await?;
    stream.shutdown().await?;
    tokio_io::copy(&mut stream.take(DISCARD), &mut tokio_io::sink()).await
}

fn timed_out(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == ErrorKind::TimedOut)
}

/// What hyper has refused to read; `rest` begins with it.
fn refused(error: &hyper::Error, rest: &[u8]) -> Option<Problem> {
    /// A record of TLS that holds a handshake.
    const TLS: &[u8] = b"\x16\x03";
    /// How version 1 begins, and version 2 without the line breaks that hyper skips.
    const PROXY: [&[u8]; 2] = [b"PROXY ", b"\0\r\nQUIT\n"];
    if !error.is_parse() {
        None
    } else if error.is_parse_too_large() {
        Some(Problem::HeadTooLarge)
    } else if rest.starts_with(TLS) {
        Some(Problem::Tls)
    } else if PROXY.iter().any(|begin| rest.starts_with(begin)) {
        Some(Problem::ProxyProtocol)
    } else {
        Some(Problem::InvalidHead)
    }
}
