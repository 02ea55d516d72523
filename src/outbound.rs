//! The HTTP client for outgoing requests: to a token endpoint, to a collector of spans, and of the commands.
//!
//! Owns HTTP/1.1 with the TLS provider of the process, and which certificate authorities are trusted. Callers decide
//! what to request, how long a response may take, and what a failure means.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// How long a connection may take to come about, without TLS.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Speaks HTTP/1.1, with TLS where the URL says so, and keeps connections alive.
pub type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client; nothing is connected yet.
pub fn client(tls: ClientConfig) -> HttpClient {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_WITHIN));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector)
}

/// A TLS configuration that trusts the certificate authorities in a PEM file, or without one those of the platform. The
/// platform's authorities are loaded only if `https` is set. No client certificate is sent.
///
/// # Errors
/// The authorities cannot be loaded.
pub fn tls_config(ca_file: Option<&Path>, https: bool) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder();
    let roots = match ca_file {
        Some(file) => authorities(file)?,
        None if https => {
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
    let pem = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let mut roots = RootCertStore::empty();
    let unusable = || format!("expected certificates (PEM), but found none that can be used in {}", file.display());
    for authority in CertificateDer::pem_slice_iter(&pem) {
        roots.add(authority.map_err(|_no_pem| unusable())?).map_err(|_no_certificate| unusable())?;
    }
    if roots.is_empty() { Err(unusable()) } else { Ok(roots) }
}

/// An error with its chain of causes, as HTTP clients give the reason only there; texts that repeat are left out.
pub fn causes(error: &dyn Error) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !said.iter().any(|known| known.contains(&text)) {
            said.push(text);
        }
        next = error.source();
    }
    said.join(": ")
}
