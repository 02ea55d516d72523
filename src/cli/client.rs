//! The HTTP client of `send`, `demo` and `tail`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::Failure;
use crate::domain::secret::Secret;

/// Speaks HTTP/1.1, with TLS where the URL says so, and keeps connections alive as Sendbird does.
pub(super) type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

pub(super) fn new() -> Result<HttpClient, Failure> {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_native_roots()
        .map_err(Failure::other)?
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector))
}

/// An absolute http or https URL.
pub(super) fn url(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("expected a URL, but found: {error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err("expected a URL that begins with http:// or https://".into()),
    }
}

/// A token given as it is or in a file.
pub(super) fn token(given: Option<Secret>, file: Option<&PathBuf>) -> Result<Option<Secret>, Failure> {
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::Usage(format!("cannot read the token from {}: {error}", path.display())))?;
        Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
    };
    given.map(Ok).or_else(|| file.map(|path| read(path))).transpose()
}

/// A secret on the command line; for trying things out, as others on the machine can see it.
pub(super) fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}
