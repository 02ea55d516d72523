//! The HTTP client for outgoing requests: to a token endpoint, to a collector of spans, and of the commands.
//!
//! Owns HTTP/1.1 with the TLS provider of the process, which certificate authorities are trusted, and the proxy that the
//! environment names for `https://` URLs. Callers decide what to request, how long a response may take, and what a failure
//! means.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::Uri;
use hyper::http::uri::Authority;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

/// How long a connection may take to come about, without TLS.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Speaks HTTP/1.1, with TLS where the URL says so, and keeps connections alive.
pub type HttpClient = Client<HttpsConnector<Connector>, Full<Bytes>>;

/// Connects to a host itself, or through the proxy that `HTTPS_PROXY` (or `ALL_PROXY`) names for `https://` URLs unless
/// `NO_PROXY` names the host; the variables have the forms that curl reads. `http://` URLs are never proxied: they are
/// this machine's or the cluster's own.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector,
    /// What is wrong with the variables, if they cannot be used.
    proxies: Arc<Result<Matcher, String>>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, host: Uri) -> Self::Future {
        let is_https = host.scheme_str() == Some("https");
        let proxy = match &*self.proxies {
            Ok(proxies) if is_https => proxies.intercept(&host),
            Err(fault) if is_https => {
                let fault = fault.clone();
                return async { Err(fault.into()) }.boxed();
            }
            _ => None,
        };
        let Some(proxy) = proxy else {
            return self.tcp.call(host).map(|connected| connected.map_err(Into::into)).boxed();
        };
        let address = proxy.uri().clone();
        if address.scheme_str() != Some("http") {
            let found = address.scheme_str().unwrap_or("none").to_owned();
            let fault = format!("expected an http:// URL of a proxy in HTTPS_PROXY, but found the scheme {found}");
            return async { Err(fault.into()) }.boxed();
        }
        let mut tunnel = Tunnel::new(address.clone(), self.tcp.clone());
        if let Some(credentials) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(credentials.clone());
        }
        async move {
            let connected = tunnel.call(host).await;
            connected.map_err(|error| {
                format!("proxy {}: {}", address.authority().map_or("", Authority::as_str), causes(&error)).into()
            })
        }
        .boxed()
    }
}

/// The proxies of the environment.
///
/// # Errors
/// A variable that is no URL, which would otherwise be left out in silence.
fn proxies() -> Result<Matcher, String> {
    let example = Uri::from_static("https://example.com");
    // As the matcher has it: `ALL_PROXY` counts where there is no `HTTPS_PROXY`.
    let set = |name: &&str| std::env::var(name).is_ok_and(|value| !value.is_empty());
    if let Some(name) = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].into_iter().find(set) {
        let value = std::env::var(name).unwrap_or_default();
        if Matcher::builder().https(value).build().intercept(&example).is_none() {
            return Err(format!("expected http://host:port in {name}, but found something else"));
        }
    }
    Ok(Matcher::from_env())
}

/// A client; nothing is connected yet.
pub fn client(tls: ClientConfig) -> HttpClient {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_WITHIN));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Connector { tcp, proxies: Arc::new(proxies()) });
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
