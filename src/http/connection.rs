//! Serves one HTTP connection: time limits for TLS handshakes, heads and idle connections, an answer to what is no request,
//! and a graceful shutdown.
//!
//! hyper answers what it cannot read as a request with an empty body. [`TrackedStream`] holds that answer back, and a
//! problem document is written in its place.
//!
//! While the bridge shuts down, each response carries `Connection: close`. An idle connection stays open for
//! [`Limits::linger`], because its sender may already have sent the next request; closing it then would lose that request.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::IntGauge;
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
use super::{proxy_protocol, tls};
use crate::access::{Peer, TrustedProxies};

/// The size limit of a head, and of each read of a body. Multiplied by the number of connections, it bounds the memory
/// that unauthenticated senders can occupy.
const BUFFER: usize = 16 * 1024;

/// From a head's first byte to its end.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// How much of what follows a refused head is read and thrown away, and for how long: closing a socket with unread bytes
/// resets it, and its peer would lose the answer.
const DISCARD: u64 = 64 * 1024;
const DISCARD_LIMIT: Duration = Duration::from_secs(1);

/// A filter that answers every request.
pub trait Answers: Filter<Extract: Reply, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static {}

impl<F> Answers for F where F: Filter<Extract: Reply, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static {}

/// What the connections of a listener may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many there may be; one more is answered 503 and closed.
    pub connections: usize,
    /// How long a peer may take nothing of what is written to it before its connection is closed.
    pub write: Duration,
    /// How long a connection may be idle.
    pub idle: Duration,
    /// How long an idle connection stays open once the bridge is stopping: long enough for a busy sender's next request,
    /// whose answer then says that it was the last.
    pub linger: Duration,
}

/// On what terms the connections of a listener are served.
pub struct Terms {
    /// What they may take.
    pub limits: Limits,
    /// The certificate; without one they are plain HTTP.
    pub tls: Option<tls::Current>,
    /// Where each begins with a PROXY protocol header: whose is trusted.
    pub proxies: Option<TrustedProxies>,
    /// How many are open.
    pub open: IntGauge,
    /// What was refused.
    pub refusals: Arc<Refusals>,
}

impl Terms {
    /// Terms of a listener whose requests are no deliveries and are not counted.
    ///
    /// # Errors
    /// Only if the names were invalid.
    pub fn unregistered(listener: &'static str, limits: Limits, tls: Option<tls::Current>) -> prometheus::Result<Self> {
        let open = IntGauge::new("open", "not registered")?;
        Ok(Self { limits, tls, proxies: None, open, refusals: Arc::new(Refusals::unregistered(listener)?) })
    }
}

/// Why a connection has ended without an answer to its last head.
enum Fault {
    /// The head did not arrive whole, or not in time.
    TooSlow,
    /// hyper could not go on.
    Failed(hyper::Error),
}

/// Serves one connection to its end.
pub(super) async fn serve<F: Answers>(
    mut stream: TcpStream,
    mut peer: Peer,
    filter: F,
    terms: &Terms,
    stop: &CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    // On the heap, as all that most connections do without, so that they need no room for it.
    if let Some(proxies) = &terms.proxies {
        match Box::pin(introduced(&mut stream, peer, proxies, terms, stop)).await {
            Some(introduced) => peer = introduced,
            None => return,
        }
    }
    let stream = WriteLimited::new(stream, terms.limits.write);
    match &terms.tls {
        None => answer(stream, peer, filter, terms, stop).await,
        Some(tls) => Box::pin(answer_over_tls(stream, tls.acceptor(), peer, filter, terms, stop)).await,
    }
}

/// Reads the PROXY protocol header. `None` if there is none, which is answered, or the connection has ended.
async fn introduced(
    stream: &mut TcpStream,
    peer: Peer,
    proxies: &TrustedProxies,
    terms: &Terms,
    stop: &CancellationToken,
) -> Option<Peer> {
    let read = async {
        // A load balancer that looks whether the port is open says nothing and hangs up.
        let begun = stream.peek(&mut [0]).await? > 0;
        if begun { proxy_protocol::read(stream).await.map(Some) } else { Ok(None) }
    };
    let read = tokio::select! {
        read = timeout(HEAD_LIMIT, read) => read,
        () = lingered(terms, stop) => return None,
    };
    let (problem, detail) = match read {
        Ok(Ok(client)) => return client.map(|client| proxies.introduce(peer, client)),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => return None,
        Ok(Err(error)) => (Problem::ProxyProtocol { expected: "expected a PROXY protocol header" }, error.to_string()),
        Err(_elapsed) => (Problem::TooSlow, "the PROXY protocol header did not arrive in time".into()),
    };
    terms.refusals.note_problem(problem, detail, peer);
    // Who waits for a handshake would not understand the answer.
    if terms.tls.is_none() {
        refuse(stream, problem).await;
    }
    None
}

async fn answer_over_tls<F: Answers, S: Socket>(
    stream: S,
    tls: TlsAcceptor,
    peer: Peer,
    filter: F,
    terms: &Terms,
    stop: &CancellationToken,
) {
    let shaken = tokio::select! {
        shaken = timeout(HEAD_LIMIT, tls.accept(stream)) => shaken,
        () = lingered(terms, stop) => return,
    };
    let refusals = &terms.refusals;
    let line = |detail: String| Line::of_connection(None, detail, peer);
    match shaken {
        Ok(Ok(stream)) => answer(stream, peer, filter, terms, stop).await,
        // A load balancer that looks whether the port is open says nothing and hangs up.
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            tracing::debug!(%error, "TLS handshake failed");
        }
        Ok(Err(error)) => {
            refusals.note("handshake", Some(peer.address), || line(format!("TLS handshake failed: {error}")));
        }
        Err(_elapsed) => {
            let reason = Problem::TooSlow.reason();
            refusals.note(reason, Some(peer.address), || line("the TLS handshake did not end in time".into()));
        }
    }
}

/// Until the bridge has been stopping for as long as an idle connection stays open.
async fn lingered(terms: &Terms, stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(terms.limits.linger).await;
}

async fn answer<F: Answers, S: Socket>(stream: S, peer: Peer, filter: F, terms: &Terms, stop: &CancellationToken) {
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
        .header_read_timeout(terms.limits.idle)
        // So that an answer of hyper's own is one write that can be recognised.
        .writev(false)
        .serve_connection(io, service);

    let mut linger = pin!(lingered(terms, stop));
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
                return terms
                    .refusals
                    .note("write_timeout", Some(peer.address), || Line::of_connection(None, detail, peer));
            }
            // Only a connection that ends within a head: one that breaks off later was answered, or is by its handler.
            let ended = error.is_incomplete_message() || error.is_timeout();
            let incomplete = ended && activity.head_since().is_some();
            match refused(&error, &parts.read_buf) {
                Some(Problem::InvalidHead) => (Problem::InvalidHead, error.to_string()),
                Some(problem) => (problem, problem.detail().to_owned()),
                None if incomplete => (Problem::TooSlow, "the connection ended within a head".into()),
                None => return,
            }
        }
    };
    terms.refusals.note_problem(problem, detail, peer);
    // The other side may have closed only its own half and still wait for an answer.
    refuse(&mut tracked.stream, problem).await;
}

/// Writes the answer, and nothing after it; then reads on until the peer has closed its half too.
async fn refuse<S: Socket>(stream: &mut S, problem: Problem) {
    let answer = async {
        stream.write_all(&problem.raw()).await?;
        stream.shutdown().await?;
        tokio_io::copy(&mut stream.take(DISCARD), &mut tokio_io::sink()).await
    };
    let answered = timeout(DISCARD_LIMIT, answer).await;
    tracing::debug!(?answered, "refusal written");
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
        Some(Problem::ProxyProtocol { expected: "expected an HTTP request, but found a PROXY protocol header" })
    } else {
        Some(Problem::InvalidHead)
    }
}
