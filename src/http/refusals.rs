//! What a listener refuses: each refusal is counted by its reason, and has a line in the log as often as that is bearable.
//!
//! A line says why, and by whose address that was judged. It never holds a body, a query, a header, or a part of a path
//! that could be a secret.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use prometheus::{IntCounterVec, Opts};

use super::reply::Problem;
use crate::access::Peer;
use crate::domain::clock::Clock;
use crate::domain::rate_limit::RateLimit;

/// The refusals of a listener.
pub struct Refusals {
    listener: &'static str,
    rejected: IntCounterVec,
    clock: Clock,
    reasons: Mutex<BTreeMap<&'static str, Reason>>,
}

/// What is kept of the refusals for one reason.
#[derive(Default)]
struct Reason {
    limit: RateLimit,
    last_ms: i64,
    last_source: Option<IpAddr>,
}

/// The last refusal for a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRefusal {
    /// The reason, as a metric label.
    pub reason: &'static str,
    /// When, in Unix milliseconds.
    pub at_ms: i64,
    /// The address that was judged, if it could be read.
    pub source: Option<IpAddr>,
}

/// What a line says of a refusal, beside its reason.
#[derive(Default)]
pub(super) struct Line {
    /// The status that it was answered with, if it was answered.
    pub(super) status: Option<u16>,
    /// What is wrong, for those who run the bridge.
    pub(super) detail: String,
    /// The address that was judged, if it could be read.
    pub(super) source: Option<IpAddr>,
    /// Where that address was found.
    pub(super) source_from: String,
    /// The method, or that it is an unusual one.
    pub(super) method: Option<&'static str>,
    /// The path, as far as it is no secret.
    pub(super) path: Option<String>,
    /// The application that the delivery names.
    pub(super) application: Option<String>,
}

impl Line {
    /// For a refusal of a connection as such, or of what it began with.
    pub(super) fn of_connection(status: Option<u16>, detail: impl Into<String>, peer: Peer) -> Self {
        let (detail, source_from) = (detail.into(), peer.found.to_owned());
        Self { status, detail, source: Some(peer.address), source_from, ..Self::default() }
    }
}

impl Refusals {
    /// The refusals of `listener`, which are counted in `rejected` by their reason.
    pub fn new(listener: &'static str, rejected: IntCounterVec, clock: Clock) -> Self {
        Self { listener, rejected, clock, reasons: Mutex::default() }
    }

    /// Those of a listener whose requests are no deliveries; they are logged, and counted where nobody sees it.
    ///
    /// # Errors
    /// Only if the name were invalid.
    pub fn unregistered(listener: &'static str) -> prometheus::Result<Self> {
        let rejected = IntCounterVec::new(Opts::new("rejected", "not registered"), &["reason"])?;
        Ok(Self::new(listener, rejected, Clock::system()))
    }

    /// The last refusal for each reason since the start, in order of reason.
    pub fn last(&self) -> Vec<LastRefusal> {
        let reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let last =
            reasons.iter().map(|(reason, kept)| LastRefusal { reason, at_ms: kept.last_ms, source: kept.last_source });
        last.collect()
    }

    /// Counts a refusal by the address `source`. It is logged with what `line` gives, unless one with the same reason was
    /// a moment ago.
    pub(super) fn note(&self, reason: &'static str, source: Option<IpAddr>, line: impl FnOnce() -> Line) {
        self.rejected.with_label_values(&[reason]).inc();
        let admitted = {
            let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = reasons.entry(reason).or_default();
            (kept.last_ms, kept.last_source) = (self.clock.now_ms(), source);
            kept.limit.admit(now())
        };
        macro_rules! log {
            ($level:ident, $suppressed:expr) => {{
                let Line { status, detail, source, source_from, method, path, application } = line();
                tracing::$level!(
                    listener = self.listener,
                    reason,
                    status,
                    detail,
                    setting = setting(self.listener, reason),
                    source = source.map(tracing::field::display),
                    source_from,
                    method,
                    path,
                    application,
                    suppressed = $suppressed,
                    "request refused"
                );
            }};
        }
        match admitted {
            Some(suppressed) => log!(warn, (suppressed > 0).then_some(suppressed)),
            None if tracing::enabled!(tracing::Level::DEBUG) => log!(debug, None::<u64>),
            None => {}
        }
    }

    /// Counts and logs that a connection was refused with `problem`, because of `detail`.
    pub(super) fn note_problem(&self, problem: Problem, detail: impl Into<String>, peer: Peer) {
        let line = || Line::of_connection(Some(problem.status().as_u16()), detail, peer);
        self.note(problem.reason(), Some(peer.address), line);
    }

    /// Logs how many had no line, once there may be one. To be called now and then: the last refusals of many would
    /// otherwise never be logged.
    pub(super) fn flush(&self) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, kept) in &mut *reasons {
            if let Some(suppressed) = kept.limit.flush(now()) {
                tracing::warn!(listener = self.listener, reason, suppressed, "requests refused");
            }
        }
    }
}

fn now() -> Instant {
    Instant::now()
}

/// The setting that a refusal by the webhook's listener follows from, if there is one.
fn setting(listener: &str, reason: &str) -> Option<&'static str> {
    if listener != "webhook" {
        return None;
    }
    Some(match reason {
        "application" => "access.applications",
        "application_rate" | "application_token" => "applications",
        "connections" => "server.max_connections",
        "deadline" => "server.answer_deadline",
        "full" => "journal.max_bytes",
        "header" => "access.header",
        "network" => "access.networks",
        "handshake" | "tls" => "server.tls",
        "not_found" => "server.path",
        "proxy_protocol" => "server.proxy_protocol",
        "signature_missing" | "signature_wrong" => "access.api_tokens",
        "too_large" => "server.max_body",
        "too_many" => "access.rate_per_source",
        _ => return None,
    })
}
