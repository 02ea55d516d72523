//! The task that sends spans to a collector: batches, tries again, gives up, tells of it.
//!
//! Promises: it is the only one that waits for the collector; at a stop it has [`FLUSH_LIMIT`] for all that is left. Each
//! span is counted once: exported, refused by the collector, unsent, or overflowed where the queue was full.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prometheus::IntCounterVec;
use prost::Message;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use warp::http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use warp::http::{HeaderName, HeaderValue, Request, Response, Uri};

use super::Settings;
use super::span::{Recorder, Span, Tracer};
use super::wire::Shared;
use crate::domain::backoff::Backoff;
use crate::domain::clock::Clock;

/// Spans that may wait to be sent, some hundred bytes each; one more is dropped.
pub const QUEUE: usize = 4096;

/// Spans in one request, at most.
const BATCH: usize = 512;

/// How long a span may wait for others to go with it.
const LINGER: Duration = Duration::from_secs(1);

/// How long a collector may take for one request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// How often a batch is sent before it is dropped.
const TRIES: u32 = 5;

/// Pauses between those.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(5) };

/// How long a collector may tell the bridge to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How much of an answer is read.
const ANSWER: usize = 64 * 1024;

/// From the end of the last delivery and publish to the end of the task, at most. What is unsent then is dropped.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// While spans go on being dropped, one line in this time.
const QUIET: Duration = Duration::from_secs(60);

/// The values of the label `outcome` of the counter of spans.
pub const OUTCOMES: [&str; 4] = ["exported", "refused", "unsent", "overflowed"];

/// Stands in a path where the secret does.
pub const PATH_SECRET: &str = "{path_secret}";

/// What a span of a delivery tells of the webhook.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The path, with [`PATH_SECRET`] in place of one.
    pub path: String,
}

/// Sends what a [`Tracer`] makes.
pub struct Exporter {
    queue: mpsc::Receiver<Span>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    header: Option<(HeaderName, HeaderValue)>,
    shared: Shared,
    spans: IntCounterVec,
    /// How many spans are in the batch under way.
    in_hand: u64,
    trouble: Trouble,
}

/// Why a batch was not taken.
enum Failure {
    /// May be taken later, at the earliest after so long.
    Retry(String, Duration),
    /// Never will be.
    Refused(String),
}

/// Makes a tracer and what sends its spans; nothing is connected yet. `spans` is counted by one of [`OUTCOMES`].
///
/// # Errors
/// The settings can't be used: key and message.
pub fn new(
    settings: &Settings,
    webhook: Webhook,
    clock: Clock,
    spans: IntCounterVec,
) -> Result<(Tracer, Exporter), (&'static str, String)> {
    let url = settings.url().map_err(|fault| ("endpoint", fault))?;
    let header = settings.header()?;
    let tls = tls(settings).map_err(|fault| ("ca_file", fault))?;
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
    let random = SystemRandom::new();
    let mut instance = [0; 16];
    random.fill(&mut instance).map_err(|_unspecified| ("endpoint", "the system has no random bytes".to_owned()))?;
    let shared = Shared {
        service: settings.service_name.clone(),
        instance: Uuid::new_v8(instance).to_string(),
        endpoint: webhook,
    };
    for outcome in OUTCOMES {
        spans.with_label_values(&[outcome]);
    }
    let (sender, queue) = mpsc::channel(QUEUE);
    let overflowed = spans.with_label_values(&["overflowed"]);
    let recorder = Recorder { queue: sender, overflowed, sample: settings.sample, random, clock };
    let trouble = Trouble::default();
    let exporter = Exporter { queue, client, url, header, shared, spans, in_hand: 0, trouble };
    Ok((Tracer::new(recorder), exporter))
}

/// Whom a collector is believed by. The process has one TLS provider, and this is it.
///
/// # Errors
/// No authority can be had.
pub(super) fn tls(settings: &Settings) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder();
    let roots = match &settings.ca_file {
        Some(file) => authorities(file)?,
        None if settings.endpoint.starts_with("https:") => {
            let builder = builder.with_native_roots().map_err(|error| {
                format!("expected a file because the platform has no authorities, but found none: {error}")
            })?;
            return Ok(builder.with_no_client_auth());
        }
        None => RootCertStore::empty(),
    };
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let pem = std::fs::read(file)
        .map_err(|error| format!("expected a readable file, but found {}: {error}", file.display()))?;
    let mut roots = RootCertStore::empty();
    let unusable = || format!("expected certificates (PEM), but found none that can be used in {}", file.display());
    for authority in CertificateDer::pem_slice_iter(&pem) {
        roots.add(authority.map_err(|_no_pem| unusable())?).map_err(|_no_certificate| unusable())?;
    }
    if roots.is_empty() { Err(unusable()) } else { Ok(roots) }
}

impl Exporter {
    /// Sends until `stop`, then what is left, but no longer than [`FLUSH_LIMIT`].
    pub async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = self.send_all(&stop) => {}
            () = async { stop.cancelled().await; sleep(FLUSH_LIMIT).await } => {
                let left = self.in_hand + u64::try_from(self.queue.len()).unwrap_or(u64::MAX);
                self.drop_unsent(left, "the collector did not take them before the stop");
            }
        }
        self.say_what_overflowed();
        self.trouble.say_the_rest();
    }

    async fn send_all(&mut self, stop: &CancellationToken) {
        loop {
            let batch = self.batch(stop).await;
            if batch.is_empty() {
                return;
            }
            self.in_hand = count(&batch);
            self.send(&batch, stop).await;
            self.in_hand = 0;
            self.say_what_overflowed();
        }
    }

    /// What is to be sent together. Empty only once nothing is left after `stop`.
    async fn batch(&mut self, stop: &CancellationToken) -> Vec<Span> {
        let mut batch = Vec::with_capacity(BATCH);
        tokio::select! {
            // Those who make spans live as long as the bridge does.
            _ = self.queue.recv_many(&mut batch, BATCH) => {}
            () = stop.cancelled() => {}
        }
        let due = sleep(LINGER);
        tokio::pin!(due);
        while batch.len() < BATCH && !stop.is_cancelled() {
            let room = BATCH - batch.len();
            tokio::select! {
                taken = self.queue.recv_many(&mut batch, room) => if taken == 0 { break },
                () = stop.cancelled() => {}
                () = &mut due => break,
            }
        }
        while batch.len() < BATCH {
            let Ok(span) = self.queue.try_recv() else { break };
            batch.push(span);
        }
        batch
    }

    /// Tries as often as is sensible; each span is exported or dropped then.
    async fn send(&mut self, batch: &[Span], stop: &CancellationToken) {
        let body = Bytes::from(self.shared.request(batch).encode_to_vec());
        let all = count(batch);
        for attempt in 0..TRIES {
            let answered = timeout(REQUEST_LIMIT, self.post(body.clone())).await;
            let failure = match answered {
                Ok(Ok(refused)) => {
                    let refused = refused.min(all);
                    self.count("exported", all - refused);
                    return match refused {
                        0 => self.trouble.is_over(),
                        some => self.drop_refused(some, "the collector took a part of the batch"),
                    };
                }
                Ok(Err(failure)) => failure,
                Err(_elapsed) => {
                    Failure::Retry(format!("no answer within {} s", REQUEST_LIMIT.as_secs()), Duration::ZERO)
                }
            };
            let (detail, wait) = match failure {
                Failure::Refused(detail) => return self.drop_refused(all, &detail),
                Failure::Retry(detail, wait) => (detail, wait),
            };
            if attempt + 1 == TRIES || stop.is_cancelled() {
                return self.drop_unsent(all, &detail);
            }
            tracing::debug!(detail, "spans are not taken yet");
            self.say_what_overflowed();
            let pause = BACKOFF.pause(attempt, fastrand::f64()).max(wait.min(LONGEST_WAIT));
            tokio::select! {
                () = sleep(pause) => {}
                // One more try, and no pause.
                () = stop.cancelled() => {}
            }
        }
    }

    /// Sends once; how many spans the collector has refused.
    async fn post(&self, body: Bytes) -> Result<u64, Failure> {
        let mut request = Request::post(self.url.clone())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
        if let Some((name, value)) = &self.header {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| Failure::Refused(error.to_string()))?;
        let failed = |error: &dyn std::error::Error| Failure::Retry(chain(error), Duration::ZERO);
        let response = self.client.request(request).await.map_err(|error| failed(&error))?;
        let (status, wait) = (response.status(), wait(&response));
        let body = Limited::new(response.into_body(), ANSWER).collect().await;
        match status.as_u16() {
            // What can't be read is a collector's that has nothing to say about the spans.
            200..=299 => Ok(body.map_or(0, |body| refused(&body.to_bytes()))),
            // Those that OTLP wants to be tried again.
            429 | 502 | 503 | 504 => Err(Failure::Retry(format!("the collector answers {status}"), wait)),
            _ => Err(Failure::Refused(format!("the collector answers {status}"))),
        }
    }

    fn drop_refused(&mut self, spans: u64, detail: &str) {
        self.count("refused", spans);
        self.trouble.dropped(spans, detail);
    }

    fn drop_unsent(&mut self, spans: u64, detail: &str) {
        self.count("unsent", spans);
        self.trouble.dropped(spans, detail);
    }

    fn say_what_overflowed(&mut self) {
        let overflowed = self.spans.with_label_values(&["overflowed"]).get();
        let new = overflowed - std::mem::replace(&mut self.trouble.overflowed, overflowed);
        if new > 0 {
            self.trouble.dropped(new, "more spans were made than can be sent");
        }
    }

    fn count(&self, outcome: &str, spans: u64) {
        self.spans.with_label_values(&[outcome]).inc_by(spans);
    }
}

fn count(batch: &[Span]) -> u64 {
    u64::try_from(batch.len()).unwrap_or(u64::MAX)
}

/// How many spans a collector says that it has refused, in an answer that is otherwise a yes.
fn refused(answer: &[u8]) -> u64 {
    let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
    answer.partial_success.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0))
}

/// How long the collector asks to be left alone.
fn wait<B>(response: &Response<B>) -> Duration {
    let seconds = response.headers().get(RETRY_AFTER).and_then(|seconds| seconds.to_str().ok()?.parse().ok());
    seconds.map_or(Duration::ZERO, Duration::from_secs)
}

/// An error with what is behind it, which is where a client of HTTP says what happened.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    text
}

/// Telling that spans are dropped, and that they are not any more, without telling it for ever.
#[derive(Default)]
struct Trouble {
    said: Option<Instant>,
    unsaid: u64,
    /// How many did not fit, when that was last looked at.
    overflowed: u64,
}

impl Trouble {
    fn dropped(&mut self, spans: u64, detail: &str) {
        self.unsaid += spans;
        if self.said.is_none_or(|said| said.elapsed() >= QUIET) {
            self.said = Some(Instant::now());
            let count = std::mem::take(&mut self.unsaid);
            tracing::warn!(count, detail, "spans are dropped; deliveries and events are not");
        }
    }

    /// A whole batch was taken. Soon after a line there is none: a collector that comes and goes is not told of each time.
    fn is_over(&mut self) {
        if self.said.is_some_and(|said| said.elapsed() >= QUIET) {
            self.say_the_rest();
            self.said = None;
            tracing::info!("spans are exported again");
        }
    }

    fn say_the_rest(&mut self) {
        if self.unsaid > 0 {
            tracing::warn!(count = std::mem::take(&mut self.unsaid), "more spans were dropped");
        }
    }
}
