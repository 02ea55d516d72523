//! Sendbird's Calls Platform API from the command line: whom to ask, with which token, over which HTTP.
//!
//! Owns the transport of [`crate::sendbird::api`] and the arguments that all commands share which ask Sendbird. What is
//! not given on the command line comes from the configuration, and it is said so. Never says a token.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::Uri;
use hyper::header::RETRY_AFTER;
use tokio::time::{Instant, sleep, timeout};

use super::Failure;
use super::client::{self, TlsArgs};
use crate::config::{Config, Faults, Loaded};
use crate::domain::secret::Secret;
use crate::domain::units::Span;
use crate::http::webhook::Settings as Server;
use crate::outbound::{HttpClient, causes};
use crate::sendbird::api::{self, Answer, Api, ApplicationId, Lost, Request, Target, Transport};

/// The largest answer that is read. A page of 100 rooms with all their participants has less.
const LARGEST_ANSWER: usize = 16 * 1024 * 1024;

/// Whom to ask.
#[derive(Debug, clap::Args)]
pub(super) struct PlatformArgs {
    /// The ID of the Sendbird application; by default access.applications of the configuration, if that is exactly one
    #[arg(long, value_name = "ID")]
    application: Option<ApplicationId>,

    /// An API token of the application; by default the first of its own in the configuration, or of access.api_tokens.
    /// Others on this machine can see the command line: better give a file
    #[arg(long, value_parser = client::secret)]
    token: Option<Secret>,

    /// A file whose first line is the token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,

    /// The address of the API, for a proxy; by default https://api-{application}.calls.sendbird.com/v1
    #[arg(long, value_name = "URL", value_parser = client::url)]
    api_url: Option<Uri>,

    /// How long each try of a request may take; one is tried at most five times
    #[arg(long, value_name = "TIME", default_value = "10s")]
    timeout: Span,

    #[command(flatten)]
    tls: TlsArgs,
}

/// A client that can ask, and what else the configuration says, if it was read.
pub(super) struct Platform {
    pub(super) api: Api<Http>,
    /// Where the bridge takes deliveries, without the path secret: `server.path`, or its default.
    pub(super) path: String,
}

impl PlatformArgs {
    /// Whom an https URL is believed by.
    pub(super) fn tls(&self) -> &TlsArgs {
        &self.tls
    }

    /// Reads the configuration only for what the arguments leave out.
    pub(super) fn open(&self, load: impl FnOnce() -> Result<Loaded, Faults>) -> Result<Platform, Failure> {
        let token = client::token(self.token.clone(), self.token_file.as_ref())?;
        let (application, token, path) = match (self.application.clone(), token) {
            (Some(application), Some(token)) => (application, token, Server::default().path),
            (application, token) => {
                let missing = if application.is_none() { "--application" } else { "--token-file" };
                eprintln!("{missing} is not given; reading the configuration (--config)");
                let config = load()?.config;
                let application = application.map_or_else(|| the_application(&config.access.applications), Ok)?;
                let token = token.map_or_else(|| the_token(&config, &application), Ok)?;
                (application, token, config.server.path)
            }
        };
        let base = self.api_url.as_ref().map(ToString::to_string);
        let plain = self.api_url.as_ref().filter(|url| url.scheme_str() == Some("http"));
        if plain.is_some_and(|url| !is_loopback(url)) {
            eprintln!("warning: the token goes to --api-url without TLS");
        }
        let target = Target::new(application, token, base.as_deref()).map_err(Failure::Usage)?;
        let http = Http { client: client::new(&self.tls)?, within: self.timeout.0, begun: Instant::now() };
        Ok(Platform { api: Api::new(target, http), path })
    }
}

fn the_application(known: &[String]) -> Result<ApplicationId, Failure> {
    match known {
        [one] => {
            let id = one.parse().map_err(|error| Failure::Usage(format!("access.applications: {error}")))?;
            eprintln!("the application is {id}, from access.applications");
            Ok(id)
        }
        others => Err(Failure::Usage(format!(
            "expected --application, or exactly one of access.applications in the configuration, but found {}",
            others.len()
        ))),
    }
}

fn the_token(config: &Config, application: &ApplicationId) -> Result<Secret, Failure> {
    let (key, known) = config.applications.tokens_of(application.as_str(), &config.access.api_tokens);
    let first = known.first().ok_or_else(|| {
        Failure::Usage("expected --token-file, or access.api_tokens in the configuration, but found neither".into())
    })?;
    let which = if known.len() == 1 { String::new() } else { format!(", the first of {}", known.len()) };
    eprintln!("the token is from {key}{which}");
    Ok(first.clone())
}

/// Whether a URL names this machine.
pub(super) fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What failed, and what to do about it.
pub(super) fn explain(failure: &api::Failure, api: &Api<Http>) -> Failure {
    let (application, base) = (api.application(), api.base());
    let advice = match failure {
        api::Failure::NotAllowed(_) => format!(
            "expected an API token of the application {application}, as Sendbird's dashboard shows it under Settings, \
             Application, General"
        ),
        api::Failure::NotFound(_) => format!("is {application} the right application, and {base} its address?"),
        api::Failure::Refused(_) => "Sendbird does not take a value as it was sent".into(),
        api::Failure::TooFast { .. } => "other programs use up the limit of this application; try again later".into(),
        api::Failure::Broken(_) | api::Failure::Unanswered(_) => format!("asked at {base}; try again later"),
        api::Failure::Unreached(_) => {
            format!("asked at {base}; is {application} the right application, and is outgoing traffic to it allowed?")
        }
        api::Failure::Unreadable(_) => format!("is {base} the address of the API?"),
    };
    Failure::Failed(format!("{failure}; {advice}"))
}

/// The transport: HTTP/1.1 over TLS, one connection kept alive.
pub(super) struct Http {
    client: HttpClient,
    within: Duration,
    begun: Instant,
}

impl Transport for Http {
    async fn exchange(&mut self, request: &Request) -> Result<Answer, Lost> {
        match timeout(self.within, self.attempt(request)).await {
            Ok(ended) => ended,
            Err(_elapsed) => Err(Lost::Unanswered(format!("not within {}", Span(self.within)))),
        }
    }

    async fn sleep(&mut self, pause: Duration) {
        sleep(pause).await;
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn random(&mut self) -> f64 {
        fastrand::f64()
    }
}

impl Http {
    async fn attempt(&self, request: &Request) -> Result<Answer, Lost> {
        let mut builder = hyper::Request::builder().method(request.method.as_str()).uri(&request.url);
        for (name, value) in request.headers() {
            builder = builder.header(name, value);
        }
        let body = request.body.as_ref().map(|body| Bytes::from(body.expose().to_owned())).unwrap_or_default();
        let built = builder.body(Full::new(body)).map_err(|error| Lost::Unsent(error.to_string()))?;
        let response = self.client.request(built).await.map_err(|error| {
            let why = causes(&error);
            if error.is_connect() { Lost::Unsent(why) } else { Lost::Unanswered(why) }
        })?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return Lost::TooLarge(LARGEST_ANSWER);
            }
            Lost::Unanswered(format!(
                "the connection closed before the end of the response: {}",
                causes(error.as_ref())
            ))
        })?;
        Ok(Answer { status, retry_after, body: body.to_bytes().to_vec() })
    }
}
