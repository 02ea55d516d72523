//! How commands reach the admin endpoint of a running bridge.

use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::{Response, Uri, http};

use super::client::{self, TlsArgs};
use super::{Failure, reach};
use crate::config::Loaded;
use crate::domain::secret::Secret;
use crate::outbound::HttpClient;

/// Where the bridge is, and what it asks for.
#[derive(Debug, clap::Args)]
pub(super) struct AdminArgs {
    /// The bridge's admin address; by default admin.listen of the configuration, or http://127.0.0.1:9090
    #[arg(long, value_parser = client::url)]
    url: Option<Uri>,

    /// The admin token, where one is asked for; by default admin.token of the configuration
    #[arg(long, value_parser = client::secret)]
    token: Option<Secret>,

    /// A file that holds the admin token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,

    #[command(flatten)]
    tls: TlsArgs,
}

/// The admin endpoint of a bridge.
pub(super) struct Admin {
    client: HttpClient,
    url: Uri,
    token: Option<Secret>,
}

impl AdminArgs {
    /// The endpoint; what is not given is taken from the configuration.
    pub(super) fn resolve(self, loaded: Loaded) -> Result<Admin, Failure> {
        let client = client::new(&self.tls)?;
        let admin = loaded.config.admin;
        let url = self.url.map_or_else(|| reach::url("admin.listen", admin.listen, admin.tls.is_some()), Ok)?;
        let token = client::token(self.token, self.token_file.as_ref())?.or(admin.token);
        Ok(Admin { client, url, token })
    }
}

impl Admin {
    /// Asks for a path, with its query, and a header where one is given. Another answer than a success is an error:
    /// [`Failure::Other`] where it may pass, as with a bridge that restarts, otherwise [`Failure::Failed`].
    pub(super) async fn get(&self, target: &str, header: Option<(&str, &str)>) -> Result<Response<Incoming>, Failure> {
        let base = self.url.to_string();
        let mut request = http::Request::get(format!("{}{target}", base.trim_end_matches('/')));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(Full::<Bytes>::default()).map_err(Failure::other)?;
        let response = self.client.request(request).await;
        let response = response.map_err(|error| Failure::other(reach::unreached(&self.url, &error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await.map_err(Failure::other)?.to_bytes();
        let detail = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let detail = detail.as_ref().and_then(|problem| problem["detail"].as_str()).unwrap_or("no reason given");
        let failure = format!("the bridge answered {status}: {detail}");
        Err(if status.is_server_error() { Failure::other(failure) } else { Failure::Failed(failure) })
    }
}
