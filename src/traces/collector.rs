//! One request to a collector: OTLP over HTTP/1.1, with the TLS that the rest of the program has.
//!
//! Leaves to others: how long it may take, and what is done about a failure (`export`).

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use warp::http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use warp::http::{HeaderName, HeaderValue, Request, Response, Uri};

use super::Settings;
use crate::outbound::{self, HttpClient, causes};

/// How much of an answer is read.
const ANSWER: usize = 64 * 1024;

/// Where spans are sent.
pub(super) struct Collector {
    client: HttpClient,
    url: Uri,
    header: Option<(HeaderName, HeaderValue)>,
}

/// Why a batch was not taken.
pub(super) enum Failure {
    /// May be taken later, at the earliest after so long.
    Retry(String, Duration),
    /// Never will be.
    Refused(String),
}

impl Collector {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// The settings can't be used: key and message.
    pub(super) fn new(settings: &Settings) -> Result<Self, (&'static str, String)> {
        let url = settings.url().map_err(|fault| ("endpoint", fault))?;
        let header = settings.header()?;
        let tls = settings.tls().map_err(|fault| ("ca_file", fault))?;
        Ok(Self { client: outbound::client(tls), url, header })
    }

    /// Sends once; how many spans the collector has refused.
    pub(super) async fn post(&self, body: Bytes) -> Result<u64, Failure> {
        let mut request = Request::post(self.url.clone())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
        if let Some((name, value)) = &self.header {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| Failure::Refused(error.to_string()))?;
        let failed = |error: &dyn std::error::Error| Failure::Retry(causes(error), Duration::ZERO);
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
