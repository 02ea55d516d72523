//! The feed: what is durable, published or not, as server-sent events that can be resumed.
//!
//! `id` is the journal position and `data` the structured envelope on one line. A reader that is slower than the
//! journal reads later. Where retention has deleted what it has not read yet, a comment in the stream says which
//! positions these are. With a filter, a comment may also name positions that the filter would have left out.

mod request;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use warp::Reply;
use warp::http::HeaderMap;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use self::request::{After, parse};
use super::reply::Problem;
use crate::journal::{Batch, Filter, Journal, Limits, ReadError, Reader, Row};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::request::fuzz;

/// How many feeds may be open; one more is answered 503. Fewer than the connections of `admin::LIMITS`, so that
/// feeds leave some to health checks and scrapes.
pub const MAX_FEEDS: usize = 64;

/// How much is read at a time for one reader of the feed.
const LIMITS: Limits = Limits { rows: 128, bytes: 512 * 1024 };

/// How often a quiet feed shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What all feeds share.
pub struct Feeds {
    journal: Journal,
    stop: CancellationToken,
    places: Arc<Semaphore>,
}

/// One reader's position in the journal.
struct Feed {
    journal: Journal,
    durable: watch::Receiver<u64>,
    /// `None` while a thread reads with it.
    reader: Option<Reader>,
    position: u64,
    filter: Filter,
    /// Where to stop, for a reader that does not follow.
    until: Option<u64>,
    ready: Option<Bytes>,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Feeds {
    /// Feeds of this journal, which end at `stop`.
    pub fn new(journal: &Journal, stop: &CancellationToken) -> Self {
        Self { journal: journal.clone(), stop: stop.clone(), places: Arc::new(Semaphore::new(MAX_FEEDS)) }
    }

    /// Answers a request for the feed.
    pub(super) fn open(&self, query: &str, headers: &HeaderMap) -> Result<Response, Problem> {
        let request = parse(query, headers)?;
        let stats = self.journal.stats();
        let position = match request.after {
            None => stats.first_position.saturating_sub(1),
            Some(After::End) => stats.last_position,
            Some(After::Position(position)) if position > stats.last_position => {
                return Err(Problem::Parameter { expected: "expected a position up to that of the newest event" });
            }
            Some(After::Position(position)) => position,
        };
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_no_place| Problem::TooManyFeeds)?;
        let feed = Feed {
            journal: self.journal.clone(),
            durable: self.journal.durable(),
            reader: Some(self.journal.reader()),
            position,
            filter: request.filter,
            until: (!request.follow).then_some(stats.last_position),
            ready: None,
            stop: self.stop.clone(),
            _place: place,
        };
        let mut response = warp::reply::stream(feed.chunks()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(response)
    }
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
        let durable = *self.durable.borrow();
        let (journal, reader) = (self.journal.clone(), self.reader.take());
        let (position, filter) = (self.position, self.filter.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut reader = reader.unwrap_or_else(|| journal.reader());
            let found = Found::after(position, durable, &filter, &mut reader)?;
            Ok::<_, ReadError>((reader, found))
        });
        let found = match read.await {
            Ok(Ok((reader, found))) => {
                self.reader = Some(reader);
                found
            }
            Ok(Err(error)) => return self.broken(&error),
            // A panic's message may quote what was read; where it was is in the log already.
            Err(_panicked) => return self.broken(&"the read panicked"),
        };
        let chunk = found.events(self.position, self.until.unwrap_or(u64::MAX));
        self.position = found.through();
        self.ready = (!chunk.is_empty()).then_some(chunk);
        true
    }

    /// The reader can resume where it is, so the feed ends rather than skipping anything.
    fn broken(&self, error: &dyn std::fmt::Display) -> bool {
        tracing::error!(%error, position = self.position, "the feed cannot read the journal");
        false
    }
}

/// What a read has found.
struct Found {
    batch: Batch,
    /// The first position that is kept after the one that was read from.
    first_kept: u64,
    is_filtered: bool,
}

impl Found {
    /// Reads after `position`; everything up to `durable` was in the journal at some time before.
    fn after(position: u64, durable: u64, filter: &Filter, reader: &mut Reader) -> Result<Self, ReadError> {
        let batch = reader.after(position, LIMITS, filter)?;
        let is_filtered = *filter != Filter::default();
        // Looked for after the read, as what has been deleted before it is missing in the batch.
        let first_row = if is_filtered {
            reader.after(position, Limits { rows: 1, bytes: 1 }, &Filter::default())?.rows.first().map(Row::position)
        } else {
            batch.rows.first().map(Row::position)
        };
        Ok(Self { batch, first_kept: first_row.unwrap_or(durable + 1), is_filtered })
    }

    /// Everything up to here is dealt with.
    fn through(&self) -> u64 {
        self.batch.through.max(self.first_kept - 1)
    }

    /// The events after `position` and up to `until`. Where positions are missing, a comment says so.
    fn events(&self, position: u64, until: u64) -> Bytes {
        let mut out = BytesMut::new();
        let (mut next, end) = (position + 1, until.saturating_add(1));
        for row in &self.batch.rows {
            // A filter leaves out positions that are kept; those before the first that is kept are not.
            let kept = if self.is_filtered { row.position().min(self.first_kept) } else { row.position() };
            write_gap(&mut out, next, kept.min(end));
            if row.position() >= end {
                return out.freeze();
            }
            write(&mut out, row);
            next = row.position() + 1;
        }
        // Without a filter all that is kept has a row.
        let kept = if self.is_filtered { self.first_kept } else { self.through() + 1 };
        write_gap(&mut out, next, kept.min(end));
        out.freeze()
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

/// Says that what is before `kept` is gone, if `next` is.
fn write_gap(out: &mut BytesMut, next: u64, kept: u64) {
    if next < kept {
        out.extend_from_slice(format!(": positions {next} to {} are no longer kept\n\n", kept - 1).as_bytes());
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
        Row::Damaged { position, .. } => {
            out.extend_from_slice(format!(": position {position} is damaged\n\n").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged(position: u64) -> Row {
        Row::Damaged { position, key_hash: None, id: None, kind: None }
    }

    /// What is said for these rows, damaged ones, as they are the shortest.
    fn events(rows: &[u64], first_kept: u64, is_filtered: bool, until: u64) -> (Vec<String>, u64) {
        let rows: Vec<Row> = rows.iter().map(|&position| damaged(position)).collect();
        let through = rows.last().map_or(3, Row::position);
        let found = Found { batch: Batch { rows, through }, first_kept, is_filtered };
        let text = String::from_utf8(found.events(3, until).to_vec()).unwrap();
        let said = text.lines().filter(|line| !line.is_empty());
        (
            said.map(|line| line.replace(" are no longer kept", " gone").replace(" is damaged", "")).collect(),
            found.through(),
        )
    }

    #[test]
    fn missing_positions_are_named_where_they_are() {
        assert_eq!(
            events(&[4, 5], 4, false, u64::MAX),
            ([": position 4", ": position 5"].map(str::to_owned).to_vec(), 5)
        );
        let (said, through) = events(&[6, 7, 9], 6, false, u64::MAX);
        let expected =
            [": positions 4 to 5 gone", ": position 6", ": position 7", ": positions 8 to 8 gone", ": position 9"];
        assert_eq!((said, through), (expected.map(str::to_owned).to_vec(), 9));
        assert_eq!(events(&[], 8, false, u64::MAX), (vec![": positions 4 to 7 gone".to_owned()], 7));
    }

    #[test]
    fn a_filter_hides_positions_that_are_kept() {
        assert_eq!(
            events(&[6, 9], 4, true, u64::MAX),
            ([": position 6", ": position 9"].map(str::to_owned).to_vec(), 9)
        );
        let (said, through) = events(&[6, 9], 5, true, u64::MAX);
        assert_eq!((said.len(), said[0].as_str(), through), (3, ": positions 4 to 4 gone", 9));
        // Deleted between the read and the look after it: what was read is not lost.
        let (said, through) = events(&[6], 12, true, u64::MAX);
        let expected = [": positions 4 to 5 gone", ": position 6", ": positions 7 to 11 gone"];
        assert_eq!((said, through), (expected.map(str::to_owned).to_vec(), 11));
    }

    #[test]
    fn nothing_is_said_of_what_comes_after_the_end() {
        assert_eq!(events(&[9], 9, false, 6).0, [": positions 4 to 6 gone"]);
        assert_eq!(events(&[4, 9], 4, false, 4).0, [": position 4"]);
        assert_eq!(events(&[4, 9], 4, false, 6).0, [": position 4", ": positions 5 to 6 gone"]);
    }
}
