//! One request to a collector: OTLP over HTTP/1.1, with the TLS that the rest of the program has.
//!
//! Leaves to others: how long it may take, and what is done about a failure (`export`).

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use warp::http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use warp::http::{HeaderName, HeaderValue, Request, Response, Uri};

use super::Settings;

/// How much of an answer is read.
const ANSWER: usize = 64 * 1024;

/// Where spans are sent.
pub(super) struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
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
        let tls = tls(settings).map_err(|fault| ("ca_file", fault))?;
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { client, url, header })
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
