//! A connection's socket as the connection sees it: when bytes come, and how long the peer may take none.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// What is going on in a connection: nothing, a head coming in, or a request being answered.
pub(super) struct Activity {
    start: Instant,
    /// Milliseconds after `start`, plus one, at which the current head's first byte came; 0 for none.
    head_since: AtomicU64,
    answering: AtomicBool,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), head_since: AtomicU64::new(0), answering: AtomicBool::new(false) }
    }

    fn bytes_came(&self) {
        if !self.answering.load(Ordering::Relaxed) && self.head_since.load(Ordering::Relaxed) == 0 {
            let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            self.head_since.store(ms + 1, Ordering::Relaxed);
        }
    }

    pub(super) fn request_begins(&self) {
        self.answering.store(true, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
    }

    pub(super) fn request_ends(&self) {
        self.answering.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.answering.load(Ordering::Relaxed) && self.head_since.load(Ordering::Relaxed) == 0
    }

    pub(super) fn head_since(&self) -> Option<Instant> {
        let ms = self.head_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.start + Duration::from_millis(ms))
    }
}

/// What bytes come and go over, encrypted or not.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// A socket that tells when bytes come, and holds back what hyper answers by itself to something that is no request, with
/// the end of the connection that follows: who has the socket afterwards can answer better.
pub(super) struct TrackedStream<S> {
    pub(super) stream: S,
    activity: Arc<Activity>,
    held_back: bool,
}

impl<S: Socket> TrackedStream<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, held_back: false }
    }
}

/// Where hyper's own answer begins that these bytes end with. It has no content type; ours have.
fn automatic(bytes: &[u8]) -> Option<usize> {
    const BEGIN: &[u8] = b"HTTP/1.1 4";
    const LONGEST: usize = 200;
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let tail = bytes.len().saturating_sub(LONGEST);
    let begin = tail + bytes[tail..].windows(BEGIN.len()).rposition(|window| window == BEGIN)?;
    let has = |part: &[u8]| bytes[begin..].windows(part.len()).any(|window| window == part);
    (has(b"\r\ncontent-length: 0\r\n") && !has(b"\r\ncontent-type:")).then_some(begin)
}

impl<S: Socket> AsyncRead for TrackedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.bytes_came();
        }
        result
    }
}

impl<S: Socket> AsyncWrite for TrackedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match automatic(buf) {
            Some(0) => {
                self.held_back = true;
                Poll::Ready(Ok(buf.len()))
            }
            Some(begin) => Pin::new(&mut self.stream).poll_write(cx, &buf[..begin]),
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held_back {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A socket whose writes fail with [`io::ErrorKind::TimedOut`] once its peer has taken nothing for `limit`. It belongs
/// below TLS, which takes bytes into a buffer of its own.
pub(super) struct WriteLimited<S> {
    stream: S,
    limit: Duration,
    blocked: Option<Pin<Box<Sleep>>>,
}

impl<S: Socket> WriteLimited<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, blocked: None }
    }

    /// Passes on what became of a write, unless it has been waiting for too long.
    fn in_time(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.blocked = None;
            return written;
        }
        let limit = self.limit;
        ready!(self.blocked.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: Socket> AsyncRead for WriteLimited<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: Socket> AsyncWrite for WriteLimited<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.in_time(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.in_time(cx, written)
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_write_fails_when_the_peer_takes_nothing_for_the_limit() {
        let (ours, mut theirs) = duplex(8);
        let mut ours = WriteLimited::new(ours, LIMIT);
        let reading = async {
            // As slow as may be.
            for _ in 0..4 {
                sleep(LIMIT - Duration::from_secs(1)).await;
                theirs.read_exact(&mut [0; 8]).await.unwrap();
            }
            theirs
        };
        let begun = Instant::now();
        let (written, _theirs) = tokio::join!(ours.write_all(&[0; 64]), reading);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), LIMIT * 5 - Duration::from_secs(4));
    }
}
