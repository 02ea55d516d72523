//! Sendbird, as a receiver sees it; for `send` and `demo`.
//!
//! As Sendbird does, it signs the raw body, waits one second for an answer and sends the same request up to three times
//! until it gets one.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Uri;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::Failure;
use super::client::{self, TlsArgs};
use crate::domain::secret::Secret;
use crate::outbound::HttpClient;
use crate::sendbird::signature::sign;

/// How long Sendbird waits for an answer, and how often it tries; documented.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const TRIES: u32 = 3;

/// Between two tries. Sendbird's own pause is not documented.
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// The largest answer looked at.
const LARGEST_ANSWER: usize = 64 * 1024;

/// What became of a delivery.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// The last status; `None` when there was no answer to any try.
    pub(super) status: Option<u16>,
    /// What the bridge said of the event, when it answered 200.
    pub(super) answer: Option<Answer>,
    /// How many tries it took.
    pub(super) tries: u32,
    /// How long the last try took.
    pub(super) took: Duration,
    /// Why there was no answer.
    pub(super) error: Option<&'static str>,
}

/// The bridge's answer to a delivery that is durable.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Answer {
    /// The event's id.
    pub(super) id: String,
    /// `stored` or `duplicate`.
    pub(super) status: String,
}

/// Sendbird, as a receiver sees it.
#[derive(Clone)]
pub(super) struct Sendbird {
    client: HttpClient,
    url: Uri,
    token: Option<Secret>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Sendbird {
    pub(super) fn new(
        url: Uri,
        token: Option<Secret>,
        headers: Vec<(HeaderName, HeaderValue)>,
        tls: &TlsArgs,
    ) -> Result<Self, Failure> {
        Ok(Self { client: client::new(tls)?, url, token, headers })
    }

    /// Delivers a body: one second for an answer, three tries.
    pub(super) async fn deliver(&self, body: &Bytes) -> Outcome {
        let mut tries = 0;
        loop {
            tries += 1;
            let begun = Instant::now();
            let attempt = timeout(ANSWER_WITHIN, self.attempt(body)).await;
            let took = begun.elapsed();
            let (status, answer, error) = match attempt {
                Ok(Ok((status, answer))) => (Some(status), answer, None),
                Ok(Err(error)) => (None, None, Some(error)),
                Err(_elapsed) => (None, None, Some("no answer in time")),
            };
            let again = status.is_none_or(|status| status >= 500) && tries < TRIES;
            if !again {
                return Outcome { status, answer, tries, took, error };
            }
            sleep(BETWEEN_TRIES).await;
        }
    }

    async fn attempt(&self, body: &Bytes) -> Result<(u16, Option<Answer>), &'static str> {
        let mut request = hyper::Request::post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, "SendBird");
        if let Some(token) = &self.token {
            request = request.header("x-sendbird-signature", sign(token.expose(), body));
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body.clone())).map_err(|_invalid| "the request cannot be built")?;
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| if error.is_connect() { "no connection" } else { "the connection was lost" })?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER)
            .collect()
            .await
            .map_err(|_broken| "the connection closed before the end of the response")?;
        Ok((status, serde_json::from_slice(&body.to_bytes()).ok()))
    }
}
