//! Serves one HTTP connection: time limits for TLS handshakes, heads and idle connections, and a graceful shutdown.
//!
//! While the bridge shuts down, each response carries `Connection: close`. An idle connection stays open for
//! [`LINGER`], because its sender may already have sent the next request; closing it then would lose that request.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
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
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use warp::http::Request;
use warp::http::header::{CONNECTION, HeaderValue};
use warp::{Filter, Reply};

use super::reply;
use super::socket::{Activity, Socket, TrackedStream, WriteLimited};

/// The size limit of a head, and of each read of a body. Multiplied by the number of connections, it bounds the memory
/// that unauthenticated senders can occupy.
const BUFFER: usize = 16 * 1024;

/// From a head's first byte to its end.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// How long a connection may be idle. It is longer than the 60 s after which load balancers usually close idle
/// connections: if the server closed first, the load balancer could send a request into a closed connection.
const IDLE_LIMIT: Duration = Duration::from_secs(90);

/// How long an idle connection stays open once the bridge is stopping: long enough for a busy sender's next request,
/// whose answer then says that it was the last.
const LINGER: Duration = Duration::from_secs(1);

/// A filter that answers every request.
pub trait Answers: Filter<Extract: Reply, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static {}

impl<F> Answers for F where F: Filter<Extract: Reply, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static {}

/// Who is at the other end of the connection, for filters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// One of the two sides closed it, or it broke off.
    Closed,
    /// A head, or a TLS handshake, did not arrive whole, or not in time.
    TooSlow,
    /// The peer took nothing of what was written to it, for too long.
    WriteTimeout,
}

/// Serves one connection to its end. Its peer may take nothing of what is written to it for `write_limit`.
pub(super) async fn serve<F: Answers>(
    stream: TcpStream,
    write_limit: Duration,
    tls: Option<TlsAcceptor>,
    peer: Peer,
    filter: F,
    stop: &CancellationToken,
) -> Ended {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let stream = WriteLimited::new(stream, write_limit);
    let Some(tls) = tls else { return answer(stream, peer, filter, stop).await };
    let stopped = async {
        stop.cancelled().await;
        sleep(LINGER).await;
    };
    let shaken = tokio::select! {
        shaken = timeout(HEAD_LIMIT, tls.accept(stream)) => shaken,
        () = stopped => return Ended::Closed,
    };
    match shaken {
        // On the heap, so that connections without TLS need no room for it.
        Ok(Ok(stream)) => Box::pin(answer(stream, peer, filter, stop)).await,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            Ended::Closed
        }
        Err(_elapsed) => Ended::TooSlow,
    }
}

async fn answer<F: Answers, S: Socket>(stream: S, peer: Peer, filter: F, stop: &CancellationToken) -> Ended {
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
    let io = TokioIo::new(TrackedStream { stream, activity: Arc::clone(&activity) });
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
    let ended = poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(result.map_or_else(|error| ended_by(&error, &activity), |()| Ended::Closed));
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
                    return Poll::Ready(Ended::TooSlow);
                }
            }
        }
        Poll::Pending
    })
    .await;
    // The other side may have closed only its own half and still wait for an answer.
    if ended == Ended::TooSlow {
        let mut stream = connection.into_parts().io.into_inner().stream;
        let answered = timeout(Duration::from_secs(1), stream.write_all(reply::HEAD_TOO_SLOW)).await;
        tracing::debug!(?answered, "head too slow");
    }
    ended
}

fn ended_by(error: &hyper::Error, activity: &Activity) -> Ended {
    tracing::debug!(%error, "connection ended");
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    if source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut) {
        Ended::WriteTimeout
    } else if error.is_incomplete_message() && activity.head_since().is_some() {
        Ended::TooSlow
    } else {
        Ended::Closed
    }
}
