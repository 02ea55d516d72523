//! The feed: what is durable, published or not, as server-sent events that can be resumed.
//!
//! `id` is the journal position and `data` the structured envelope on one line. A reader that is slower
//! than the journal reads later; one whose position is no longer kept is told so by a comment.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use percent_encoding::percent_decode_str;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use warp::Reply;
use warp::http::HeaderMap;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use super::reply::{Problem, internal};
use crate::journal::{EngineError, Filter, Journal, Limits, Reader, Row};
use crate::sendbird::category::event_type;

/// How much is read at a time for one reader of the feed.
const LIMITS: Limits = Limits { rows: 128, bytes: 512 * 1024 };

/// How often a quiet feed shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a reader asked for.
#[derive(Debug, Default)]
struct Request {
    after: Option<After>,
    filter: Filter,
    follow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Position(u64),
    End,
}

/// A reader's place in the journal.
struct Feed {
    journal: Journal,
    durable: watch::Receiver<u64>,
    reader: Option<Reader>,
    position: u64,
    filter: Filter,
    /// Where to stop, for a reader that does not follow.
    until: Option<u64>,
    ready: Option<Bytes>,
    stop: CancellationToken,
}

/// Answers a request for the feed.
pub(super) fn open(
    journal: &Journal,
    stop: &CancellationToken,
    query: &str,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let request = parse(query, headers)?;
    let stats = journal.stats();
    let oldest = stats.first_position.saturating_sub(1);
    let position = match request.after {
        None => oldest,
        Some(After::End) => stats.last_position,
        Some(After::Position(position)) if position > stats.last_position => {
            return Err(Problem::Parameter { expected: "expected a position that the journal has reached" });
        }
        Some(After::Position(position)) => position,
    };
    let mut ready = None;
    if position < oldest && position > 0 {
        ready = Some(Bytes::from(format!(": positions {} to {oldest} are no longer kept\n\n", position + 1)));
    }
    let feed = Feed {
        journal: journal.clone(),
        durable: journal.durable(),
        reader: Some(journal.reader().map_err(|error| internal(&error))?),
        position,
        filter: request.filter,
        until: (!request.follow).then_some(stats.last_position),
        ready,
        stop: stop.clone(),
    };
    let mut response = warp::reply::stream(feed.chunks()).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

impl Feed {
    fn chunks(self) -> Exclusive<BoxStream<'static, Result<Bytes, Infallible>>> {
        let chunks = stream::unfold(self, |mut feed| async move {
            loop {
                if let Some(chunk) = feed.ready.take() {
                    return Some((Ok(chunk), feed));
                }
                if !feed.read().await {
                    return None;
                }
            }
        });
        Exclusive(Mutex::new(chunks.boxed()))
    }

    /// Reads on, waiting for something to read; `false` at the end.
    async fn read(&mut self) -> bool {
        while *self.durable.borrow_and_update() <= self.position {
            if self.until.is_some_and(|until| until <= self.position) {
                return false;
            }
            tokio::select! {
                changed = self.durable.changed() => if changed.is_err() {
                    return false;
                },
                () = self.stop.cancelled() => return false,
                () = sleep(KEEP_ALIVE) => {
                    self.ready = Some(Bytes::from_static(b": alive\n\n"));
                    return true;
                }
            }
        }
        if self.stop.is_cancelled() || self.until.is_some_and(|until| until <= self.position) {
            return false;
        }
        let (journal, reader) = (self.journal.clone(), self.reader.take());
        let (position, filter) = (self.position, self.filter.clone());
        let read = tokio::task::spawn_blocking(move || {
            let reader = reader.map_or_else(|| journal.reader(), Ok)?;
            let batch = reader.after(position, LIMITS, &filter)?;
            Ok::<_, EngineError>((reader, batch))
        });
        let batch = match read.await {
            Ok(Ok((reader, batch))) => {
                self.reader = Some(reader);
                batch
            }
            Ok(Err(error)) => return self.broken(&error),
            // A panic's message may quote what was read; where it was is in the log already.
            Err(_panicked) => return self.broken(&"the read panicked"),
        };
        self.position = batch.through;
        let until = self.until.unwrap_or(u64::MAX);
        let mut chunk = BytesMut::new();
        for row in batch.rows.iter().filter(|row| row.position() <= until) {
            write(&mut chunk, row);
        }
        self.ready = (!chunk.is_empty()).then(|| chunk.freeze());
        true
    }

    /// The reader can resume where it is, so the feed ends rather than skipping anything.
    fn broken(&self, error: &dyn std::fmt::Display) -> bool {
        tracing::error!(%error, position = self.position, "the feed cannot read the journal");
        false
    }
}

/// warp asks for a stream that threads could share, though only one ever polls it; the mutex, which is
/// never locked, says so to the compiler.
struct Exclusive<S>(Mutex<S>);

impl<S: Stream + Unpin> Stream for Exclusive<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).poll_next_unpin(cx)
    }
}

/// One server-sent event. The envelope has no line breaks, or it would need more than one `data` line.
fn write(out: &mut BytesMut, row: &Row) {
    match row {
        Row::Intact(record) => {
            out.extend_from_slice(format!("id: {}\ndata: ", record.position).as_bytes());
            out.extend_from_slice(&record.payload);
            out.extend_from_slice(b"\n\n");
        }
        Row::Damaged { position } => {
            out.extend_from_slice(format!(": position {position} is damaged\n\n").as_bytes());
        }
    }
}

fn parse(query: &str, headers: &HeaderMap) -> Result<Request, Problem> {
    let mut request = Request { follow: true, ..Request::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value)?;
        match name {
            "after" => request.after = Some(after(&value)?),
            "key" => request.filter.key = Some(value),
            "type" => request.filter.kind = Some(event_type(&value)),
            "follow" => {
                request.follow = match value.as_str() {
                    "true" => true,
                    "false" => false,
                    _ => return Err(Problem::Parameter { expected: "expected follow to be true or false" }),
                }
            }
            _ => {
                return Err(Problem::Parameter {
                    expected: "expected the parameters after, key, type and follow only",
                });
            }
        }
    }
    // A client that reconnects repeats its first address; where it got to is in this header.
    if let Some(last) = headers.get("last-event-id") {
        request.after = Some(after(last.to_str().unwrap_or_default())?);
    }
    Ok(request)
}

fn after(text: &str) -> Result<After, Problem> {
    match text {
        "end" => Ok(After::End),
        _ => text.parse().map(After::Position).map_err(|_not_a_number| Problem::Parameter {
            expected: "expected after and Last-Event-ID to be a position or end",
        }),
    }
}

fn decode(text: &str) -> Result<String, Problem> {
    let plus = text.replace('+', " ");
    percent_decode_str(&plus)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_not_utf8| Problem::Parameter { expected: "expected parameters in UTF-8" })
}

/// Any parameters are understood or refused, and mean what they say.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(query: &str, last_event_id: &[u8]) {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(last_event_id) {
        headers.insert("last-event-id", value);
    }
    let Ok(request) = parse(query, &headers) else { return };
    match request.after {
        Some(After::Position(position)) if !headers.is_empty() => {
            assert_eq!(std::str::from_utf8(last_event_id).map(str::parse), Ok(Ok(position)));
        }
        Some(After::End) if !headers.is_empty() => assert_eq!(last_event_id, b"end"),
        None => assert!(headers.is_empty() && !query.split('&').any(|pair| pair.starts_with("after="))),
        Some(_) => assert!(query.contains("after=")),
    }
    assert!(request.follow || query.contains("follow=f") || query.contains('%'));
    let filter = request.filter;
    let again = filter
        .key
        .as_deref()
        .map(|key| format!("key={}", percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC)));
    let again = parse(&again.unwrap_or_default(), &HeaderMap::new()).map(|request| request.filter.key);
    assert_eq!(again.ok(), Some(filter.key));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &str) -> Request {
        parse(query, &HeaderMap::new()).unwrap()
    }

    #[test]
    fn parameters_are_understood() {
        let request = parsed("after=17&key=a%2Fb+c&type=room:create&follow=false");
        assert_eq!(request.after, Some(After::Position(17)));
        assert_eq!(request.filter.key.as_deref(), Some("a/b c"));
        assert_eq!(request.filter.kind.as_deref(), Some("com.sendbird.calls.room.create"));
        assert!(!request.follow);
        assert_eq!(parsed("after=end").after, Some(After::End));
        assert!(parsed("").follow && parsed("").after.is_none());
    }

    #[test]
    fn the_header_of_a_reconnect_wins() {
        let headers = HeaderMap::from_iter([("last-event-id".parse().unwrap(), "9".parse().unwrap())]);
        assert_eq!(parse("after=3", &headers).unwrap().after, Some(After::Position(9)));
    }

    #[test]
    fn nonsense_is_refused() {
        for query in ["after=x", "after=-1", "follow=maybe", "afer=1", "key=%ff"] {
            assert!(matches!(parse(query, &HeaderMap::new()), Err(Problem::Parameter { .. })), "{query}");
        }
    }
}
