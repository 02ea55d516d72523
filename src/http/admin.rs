//! The admin endpoint: health, metrics, status, the feed and the documents.
//!
//! Health, metrics and the files of the operations page are open; the rest asks for the admin token where one is
//! set. Readiness means that the journal takes events and never depends on a broker: otherwise an outage of a
//! broker would take every receiver away from Sendbird, and events would be lost.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use warp::filters::path::FullPath;
use warp::http::header::AUTHORIZATION;
use warp::http::{HeaderMap, Method, StatusCode};
use warp::reply::Response;
use warp::{Filter, Reply};

use super::documents::Documents;
use super::feed::Feeds;
use super::listener::Limits;
use super::overview::{Observer, SinkEntry};
use super::page::{self, PageFiles};
use super::readiness::Readiness;
use super::reply::{self, Problem, respond};
use super::tls;
use crate::domain::clock::Clock;
use crate::domain::secret::{RotatableSecret, Secret};
use crate::domain::units;
use crate::journal::{Health, Journal, Stats};
use crate::metrics::{self, Metrics};

/// Of connections to the admin endpoint: how many, one more is answered 503 and closed, and how long one may take
/// nothing of what is written to it before it is closed. A reader of the feed has its reasons to pause, and can resume.
pub const LIMITS: Limits = Limits {
    connections: 256,
    write: Duration::from_secs(60),
    idle: Duration::from_secs(90),
    linger: Duration::from_secs(1),
};

/// `admin.*`: where operators look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The address and port of the admin endpoint.
    #[serde(deserialize_with = "units::address")]
    pub listen: SocketAddr,
    /// The bearer token for everything but health, metrics and the files of the page; required when `listen` is not loopback.
    pub token: Option<Secret>,
    /// The listener's certificate; without one it speaks plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<tls::Settings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9090)), token: None, tls: None }
    }
}

impl Settings {
    /// Every fault, as key and message.
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let mut faults: Vec<_> = self.tls.iter().flat_map(tls::Settings::check).collect();
        if self.token.is_none() && !self.listen.ip().to_canonical().is_loopback() {
            let message =
                format!("expected a token because admin.listen ({}) is not loopback, but found none", self.listen);
            faults.push(("token", message));
        }
        if self.token.as_ref().is_some_and(|token| !token.expose().bytes().all(|byte| byte.is_ascii_graphic())) {
            let message =
                "expected visible ASCII characters, which a header can carry, but found others, such as a space";
            faults.push(("token", message.into()));
        }
        faults
    }
}

/// What the admin endpoint shows.
pub struct Admin {
    /// The token, if one is asked for.
    pub token: Option<RotatableSecret>,
    /// What is stored.
    pub journal: Journal,
    /// `journal.max_bytes`.
    pub max_bytes: u64,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The sinks, in order of name.
    pub sinks: Arc<[SinkEntry]>,
    /// What reads its state.
    pub observer: Arc<Observer>,
    /// For ages.
    pub clock: Clock,
    /// Whether the bridge is ready.
    pub readiness: Readiness,
    /// The feeds of what is stored.
    pub feeds: Feeds,
    /// Ends feeds that follow.
    pub stop: CancellationToken,
    /// When the bridge started.
    pub started: Instant,
    /// Schemas and descriptions of the endpoints and messages.
    pub documents: Documents,
    /// The files of the operations page.
    pub page_files: PageFiles,
}

/// How the bridge is doing.
#[derive(Serialize, JsonSchema)]
pub(super) struct Status<'a> {
    /// The program's version.
    version: &'static str,
    /// Since the bridge started.
    uptime_seconds: u64,
    /// Whether the journal takes events and the bridge is not stopping.
    ready: bool,
    /// Whether the bridge is stopping.
    stopping: bool,
    /// What the journal holds.
    journal: JournalStatus,
    /// The sinks, in order of name.
    sinks: Vec<SinkReport<'a>>,
}

/// What the journal holds, and what it may.
#[derive(Serialize, JsonSchema)]
struct JournalStatus {
    #[serde(flatten)]
    stats: Stats,
    /// `journal.max_bytes`.
    max_bytes: u64,
}

/// How a sink is doing.
#[derive(Serialize, JsonSchema)]
struct SinkReport<'a> {
    /// Its name.
    name: &'a str,
    /// Its type.
    #[schemars(extend("examples" = ["kafka", "rabbitmq", "nats", "stdout"]))]
    r#type: &'a str,
    /// Whether its broker can be reached and takes events.
    connected: bool,
    /// The position up to which it has dealt with everything.
    cursor: u64,
    /// Events that the sink wants and has not published.
    pending_records: u64,
    /// Since the oldest of them was accepted; 0 where there is none.
    oldest_pending_seconds: f64,
    /// Those of them that are stuck: each holds up its own key, see `sendbird-bridge stuck list`.
    stuck_records: u64,
    /// Whether so many events wait that no more are read until some of them are published or set aside.
    waiting_full: bool,
    /// Events that are sent and not acknowledged.
    in_flight: u64,
    /// Events set aside.
    dead_letters: u64,
    /// Replays and requeued dead letters that are still to come.
    resends_pending: u64,
    /// Replays under way.
    active_replays: u64,
    /// What went wrong last; null where nothing did since the last success.
    last_failure: Option<String>,
    /// What may lose events at the broker that it has acknowledged, or leave them there twice, as far as its settings tell.
    warnings: Vec<String>,
}

/// The filter that answers every request to the admin listener.
pub fn filter(
    admin: Arc<Admin>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method().and(warp::path::full()).and(query).and(warp::header::headers_cloned()).then(
        move |method, path: FullPath, query: String, headers| {
            let admin = Arc::clone(&admin);
            async move {
                let answer = admin.answer(&method, path.as_str(), &query, &headers).await;
                let mut answer = answer.unwrap_or_else(Reply::into_response);
                page::protect(answer.headers_mut());
                answer
            }
        },
    )
}

impl Admin {
    async fn answer(
        self: &Arc<Self>,
        method: &Method,
        path: &str,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        const OPEN: [&str; 4] = ["/livez", "/readyz", "/startupz", "/metrics"];
        const GUARDED: [&str; 3] = ["/overview", "/status", "/events"];
        let mut document = None;
        let page = self.page_files.get(path);
        if page.is_none() && !OPEN.contains(&path) {
            self.check_token(headers)?;
            document = self.documents.get(path);
            if document.is_none() && !GUARDED.contains(&path) {
                return Err(Problem::NotFound);
            }
        }
        if method != Method::GET && method != Method::HEAD {
            return Err(Problem::Method { allow: "GET, HEAD" });
        }
        if let Some(page) = page {
            return Ok(page);
        }
        if let Some(document) = document {
            return Ok(respond(StatusCode::OK, document.content_type, document.body.to_vec()));
        }
        match path {
            "/readyz" => self.readiness.check().map(|()| reply::ok()).map_err(|why| Problem::NotReady { why }),
            "/metrics" => self.metrics().await,
            "/overview" => self.overview().await,
            "/status" => self.status().await,
            "/events" => self.feeds.open(query, headers),
            // Alive, and started, because it answers: everything is open before the listener is.
            _ => Ok(reply::ok()),
        }
    }

    /// In a time that doesn't depend on what is right about the token but its length.
    fn check_token(&self, headers: &HeaderMap) -> Result<(), Problem> {
        const SCHEME: &[u8] = b"Bearer ";
        let Some(token) = &self.token else { return Ok(()) };
        let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(SCHEME.len()));
        let right = |(scheme, given): (&[u8], &[u8])| scheme.eq_ignore_ascii_case(SCHEME) && token.equals(given);
        if given.is_some_and(right) { Ok(()) } else { Err(Problem::AdminToken) }
    }

    async fn metrics(self: &Arc<Self>) -> Result<Response, Problem> {
        let stats = self.journal.stats();
        let metrics = &self.metrics;
        metrics.journal_records.set(gauge(stats.records));
        metrics.journal_bytes.set(gauge(stats.bytes));
        metrics.journal_max_bytes.set(gauge(self.max_bytes));
        metrics.journal_disk_free_bytes.set(gauge(stats.disk_free_bytes));
        metrics.journal_healthy.set(i64::from(stats.health == Health::Healthy));
        metrics.journal_damaged_records.set(gauge(stats.damaged_records));
        metrics.journal_segments.set(gauge(stats.segments));
        metrics.dedup_ids.set(gauge(stats.dedup_ids));
        let dropped = self.journal.resends_dropped();
        metrics.resends_dropped.inc_by(dropped.saturating_sub(metrics.resends_dropped.get()));
        let late = self.journal.late_commits();
        metrics.late_commits.inc_by(late.saturating_sub(metrics.late_commits.get()));
        for sink in self.sinks.iter() {
            let published_ms = sink.status.published_ms().unwrap_or(0);
            metrics.sink_last_publish.with_label_values(&[&sink.name]).set(published_ms as f64 / 1000.0);
        }
        for sink in self.sink_reports().await {
            let label = &[sink.name];
            metrics.sink_connected.with_label_values(label).set(i64::from(sink.connected));
            metrics.sink_in_flight.with_label_values(label).set(gauge(sink.in_flight));
            metrics.sink_pending_records.with_label_values(label).set(gauge(sink.pending_records));
            metrics.sink_oldest_pending_seconds.with_label_values(label).set(sink.oldest_pending_seconds);
            metrics.sink_stuck_records.with_label_values(label).set(gauge(sink.stuck_records));
            metrics.sink_waiting_full.with_label_values(label).set(i64::from(sink.waiting_full));
            metrics.sink_dead_letters.with_label_values(label).set(gauge(sink.dead_letters));
            metrics.replays_active.with_label_values(label).set(gauge(sink.active_replays));
            metrics.sink_resends_pending.with_label_values(label).set(gauge(sink.resends_pending));
        }
        let text = metrics.render().map_err(|error| reply::internal(&error))?;
        Ok(respond(StatusCode::OK, metrics::CONTENT_TYPE, text))
    }

    async fn status(self: &Arc<Self>) -> Result<Response, Problem> {
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: self.readiness.check().is_ok(),
            stopping: self.readiness.is_stopping(),
            journal: JournalStatus { stats: self.journal.stats(), max_bytes: self.max_bytes },
            sinks: self.sink_reports().await,
        };
        let body = serde_json::to_vec(&status).map_err(|error| reply::internal(&error))?;
        Ok(respond(StatusCode::OK, "application/json", body))
    }

    async fn overview(&self) -> Result<Response, Problem> {
        let observer = Arc::clone(&self.observer);
        let overview = tokio::task::spawn_blocking(move || observer.overview()).await;
        let overview = overview.map_err(|error| reply::internal(&error))?;
        let body = serde_json::to_vec(&overview).map_err(|error| reply::internal(&error))?;
        Ok(respond(StatusCode::OK, "application/json", body))
    }

    async fn sink_reports(&self) -> Vec<SinkReport<'_>> {
        let oldest = self.oldest_pending().await;
        let now_ms = self.clock.now_ms();
        let sinks = self.sinks.iter().zip(oldest);
        let reports = sinks.map(|(sink, oldest_ms)| SinkReport {
            oldest_pending_seconds: oldest_ms.map_or(0.0, |at| now_ms.saturating_sub(at).max(0) as f64 / 1000.0),
            connected: sink.status.connected(),
            cursor: self.journal.cursor(&sink.name),
            pending_records: self.journal.pending(&sink.name),
            stuck_records: sink.status.stuck(),
            waiting_full: sink.status.waiting_full(),
            in_flight: sink.status.in_flight(),
            dead_letters: self.journal.dead_letters(&sink.name),
            resends_pending: self.journal.resends(&sink.name),
            active_replays: self.journal.active_replays(&sink.name),
            last_failure: sink.status.last_failure(),
            warnings: sink.status.warnings(),
            name: &sink.name,
            r#type: sink.kind,
        });
        reports.collect()
    }

    /// When the oldest pending event of each sink was accepted, in Unix milliseconds.
    async fn oldest_pending(&self) -> Vec<Option<i64>> {
        let (journal, names) = (self.journal.clone(), self.sinks.iter().map(|sink| sink.name.clone()));
        let names: Vec<String> = names.collect();
        let count = names.len();
        let read = move || names.iter().map(|name| journal.oldest_pending_ms(name)).collect();
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "reading the oldest pending events was interrupted");
            vec![None; count]
        })
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
