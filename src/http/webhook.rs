//! The webhook endpoint: one path, one method, a capped body, a deadline.
//!
//! A single filter takes every request and decides in one place, so that no chain of alternatives can
//! turn a 404 into a 405.

mod settings;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use warp::filters::path::FullPath;
use warp::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT};
use warp::http::{HeaderMap, Method};
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

pub use self::settings::Settings;
use super::readiness::Readiness;
use super::refusals::{Line, Refusals};
use super::reply::{self, Problem};
use crate::access::{Denied, Peer};
use crate::domain::secret::RotatableSecret;
use crate::domain::trace::TraceParent;
use crate::journal::AppendError;
use crate::pipeline::{Accepted, Intake, Refused};
use crate::sendbird::delivery;
use crate::traces::{self, Answer, Outcome};

/// How much of a body that is too large is read and thrown away, so that its sender, still writing,
/// gets the answer and not a reset.
const DISCARD: usize = 16 * 1024 * 1024;

/// Memory for bodies that come in more than one piece, all of them together: one more is answered 503. Without this, every
/// connection could hold a body that is as large as may be and never ends. What comes in one piece, as most do, needs
/// no more than the buffer of its connection.
pub const BODY_BUDGET: usize = 64 * 1024 * 1024;

/// How long a sender may take nothing of its answers before its connection is closed: those who read none would otherwise
/// hold connections for ever, and shut everybody else out.
pub const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// The answer to a health check while the bridge is not ready.
pub(super) const NOT_READY: Problem = Problem::NotReady { why: "not ready" };

struct Webhook {
    path: String,
    health_path: String,
    path_secret: Option<RotatableSecret>,
    max_body: usize,
    deadline: Duration,
    /// What is left of [`BODY_BUDGET`].
    body_budget: Semaphore,
    intake: Arc<Intake>,
    refusals: Arc<Refusals>,
    readiness: Readiness,
}

/// Why a delivery is not taken, and, once it is known to be Sendbird's, its body.
struct Rejected {
    problem: Problem,
    verified: Option<Bytes>,
}

impl From<Problem> for Rejected {
    fn from(problem: Problem) -> Self {
        Self { problem, verified: None }
    }
}

/// The filter that answers every request to the webhook's listener.
pub fn filter(
    settings: &Settings,
    path_secret: Option<RotatableSecret>,
    intake: Arc<Intake>,
    refusals: Arc<Refusals>,
    readiness: Readiness,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
    let webhook = Arc::new(Webhook {
        path: settings.path.clone(),
        health_path: settings.health_path.clone(),
        path_secret,
        max_body: settings.max_body.as_usize(),
        deadline: settings.answer_deadline.0,
        body_budget: Semaphore::new(BODY_BUDGET),
        intake,
        refusals,
        readiness,
    });
    warp::method()
        .and(warp::path::full())
        .and(warp::ext::get::<Peer>())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |method, path: FullPath, peer, headers, body| {
            let webhook = Arc::clone(&webhook);
            async move { webhook.answer(method, path.as_str(), peer, &headers, body).await }
        })
        .recover(|rejection: Rejection| async move {
            // Only a request without a peer or a body could be rejected, and the listener makes none.
            tracing::error!(?rejection, "cannot read a request");
            Ok::<_, Infallible>(Problem::Internal.into_response())
        })
        .unify()
}

impl Webhook {
    async fn answer<B: Buf>(
        &self,
        method: Method,
        path: &str,
        peer: Peer,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<B, warp::Error>>,
    ) -> Response {
        if self.is_health_path(path) && (method == Method::GET || method == Method::HEAD) {
            // No more than that: anybody may ask.
            return self.readiness.check().map_or_else(|_why| NOT_READY.into_response(), |()| reply::ok());
        }
        let begun = Instant::now();
        let mut span = self.intake.tracer.delivery(begun);
        let result = match self.is_for_us(&method, path) {
            Ok(()) => self.accept(begun + self.deadline, peer, headers, body, &mut span).await,
            Err(problem) => Err(problem.into()),
        };
        let metrics = &self.intake.metrics;
        let (response, outcome) = match result {
            Ok(accepted) => {
                let outcome = if accepted.duplicate { Outcome::Duplicate } else { Outcome::Stored };
                (reply::accepted(&accepted), outcome)
            }
            Err(Rejected { problem, verified }) => {
                let line = || self.describe(problem, &method, path, peer, headers, verified);
                let (source, _) = self.intake.access.describe_source(peer, headers);
                self.refusals.note(problem.reason(), source, line);
                (problem.into_response(), Outcome::Refused(problem.reason()))
            }
        };
        span.answered(Answer { status: response.status().as_u16(), outcome });
        metrics.answer_seconds.with_label_values(&[response.status().as_str()]).observe(begun.elapsed().as_secs_f64());
        response
    }

    async fn accept<B: Buf>(
        &self,
        deadline: Instant,
        peer: Peer,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<B, warp::Error>>,
        span: &mut traces::Delivery<'_>,
    ) -> Result<Accepted, Rejected> {
        let admitted = self.intake.admit(peer.address, headers).map_err(Problem::Refused)?;
        let (body, permit) = self.read(deadline, headers, body).await?;
        let accepting = self.intake.accept(admitted, body.clone(), trace(headers), span).map_err(|refused| {
            let is_verified = matches!(
                refused,
                Refused::Denied(Denied::Application | Denied::ApplicationToken | Denied::ApplicationRate)
            );
            Rejected { problem: Problem::Refused(refused), verified: is_verified.then_some(body) }
        })?;
        drop(permit);
        Ok(self.intake.durable(accepting, deadline).await.map_err(Problem::Refused)?)
    }

    /// What the log says of a refusal.
    fn describe(
        &self,
        problem: Problem,
        method: &Method,
        path: &str,
        peer: Peer,
        headers: &HeaderMap,
        verified: Option<Bytes>,
    ) -> Line {
        let (source, source_from) = self.intake.access.describe_source(peer, headers);
        let secret = if self.path_secret.is_some() { "/ and the path secret" } else { "" };
        let detail = match problem {
            Problem::NotFound => format!("expected the path {}{secret}", self.path),
            other => other.detail().to_owned(),
        };
        let application = verified.and_then(|body| Some(delivery::parse(&body).ok()?.application_id()?.to_owned()));
        Line {
            status: Some(problem.status().as_u16()),
            detail,
            source,
            source_from,
            method: Some(match *method {
                Method::POST => "POST",
                Method::GET => "GET",
                Method::HEAD => "HEAD",
                Method::PUT => "PUT",
                Method::OPTIONS => "OPTIONS",
                _ => "other",
            }),
            path: (problem == Problem::NotFound).then(|| self.without_secret(path)),
            application: application.map(|id| shortened(&id)),
        }
    }

    /// A path that is not the webhook's, without what might be a path secret.
    fn without_secret(&self, path: &str) -> String {
        let is_below = path.strip_prefix(self.path.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'));
        if self.path_secret.is_none() && !is_below {
            return shortened(path);
        }
        let segments = path.split('/').zip(self.path.split('/')).take_while(|(given, ours)| given == ours);
        let known: Vec<&str> = segments.map(|(given, _)| given).collect();
        let known = known.join("/");
        if known == path { known } else { format!("{}/…", known.trim_end_matches('/')) }
    }

    fn is_for_us(&self, method: &Method, path: &str) -> Result<(), Problem> {
        if !self.is_ours(path) {
            let health = Problem::Method { allow: "GET, HEAD" };
            return Err(if self.is_health_path(path) { health } else { Problem::NotFound });
        }
        if method != Method::POST {
            return Err(Problem::Method { allow: "POST" });
        }
        Ok(())
    }

    fn is_health_path(&self, path: &str) -> bool {
        !self.health_path.is_empty() && path == self.health_path
    }

    fn is_ours(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix(&self.path) else { return false };
        match &self.path_secret {
            None => rest.is_empty(),
            // `server.path = "/"` has its slash already.
            Some(secret) if self.path == "/" => secret.equals(rest.as_bytes()),
            Some(secret) => rest.strip_prefix('/').is_some_and(|given| secret.equals(given.as_bytes())),
        }
    }

    /// Reads the body, but no more of it than may be and no longer than until the deadline. With it comes the permit
    /// for the memory that it takes.
    async fn read<B: Buf>(
        &self,
        deadline: Instant,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<B, warp::Error>>,
    ) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Problem> {
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let too_large = length.is_some_and(|length| length > self.max_body as u64);
        let refused = if is_encoded(headers) { Some(Problem::Encoded) } else { too_large.then_some(Problem::TooLarge) };
        if let Some(problem) = refused
            && headers.contains_key(EXPECT)
        {
            // The sender expects `100 Continue` before it sends the body.
            return Err(problem);
        }
        let mut body = pin!(body);
        let mut received = ReceivedBody::default();
        let mut problem = refused;
        let mut seen = 0usize;
        while let Some(chunk) =
            timeout_at(deadline, body.next()).await.map_err(|_elapsed| problem.unwrap_or(Problem::TooSlow))?
        {
            let chunk = chunk.map_err(|_broken| Problem::Interrupted)?;
            seen += chunk.remaining();
            if seen > self.max_body && problem != Some(Problem::Encoded) {
                problem = Some(Problem::TooLarge);
            }
            if problem.is_none() && !received.take(chunk, &self.body_budget) {
                problem = Some(Problem::Refused(Refused::Unavailable(AppendError::Busy)));
            }
            if problem.is_some() {
                received = ReceivedBody::default();
                if seen > DISCARD {
                    break;
                }
            }
        }
        problem.map_or_else(|| Ok(received.whole()), Err)
    }
}

/// Whether the body is anything but itself (docs/adr/0020).
fn is_encoded(headers: &HeaderMap) -> bool {
    let codings =
        headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    codings.map(<[u8]>::trim_ascii).any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

/// The beginning of a text that somebody else chose the length of.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 100;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The trace that a delivery belongs to. Of two headers nobody knows which is right, so neither counts.
fn trace(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all(TraceParent::NAME).iter();
    let trace = TraceParent::parse(given.next()?.as_bytes());
    if given.next().is_none() { trace } else { None }
}

/// The part of a body that has been received, with its share of the body budget.
#[derive(Default)]
struct ReceivedBody<'a> {
    first: Bytes,
    rest: BytesMut,
    permit: Option<SemaphorePermit<'a>>,
}

impl<'a> ReceivedBody<'a> {
    /// Takes a piece, if the budget allows it.
    fn take<B: Buf>(&mut self, mut chunk: B, budget: &'a Semaphore) -> bool {
        let chunk = chunk.copy_to_bytes(chunk.remaining());
        // Most bodies are one piece, which is then taken as it is.
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = chunk;
            return true;
        }
        let first = std::mem::take(&mut self.first);
        let Ok(more) = u32::try_from(first.len() + chunk.len()) else { return false };
        let Ok(more) = budget.try_acquire_many(more) else { return false };
        match &mut self.permit {
            Some(held) => held.merge(more),
            held => *held = Some(more),
        }
        self.rest.extend_from_slice(&first);
        self.rest.extend_from_slice(&chunk);
        true
    }

    fn whole(self) -> (Bytes, Option<SemaphorePermit<'a>>) {
        (if self.rest.is_empty() { self.first } else { self.rest.freeze() }, self.permit)
    }
}
