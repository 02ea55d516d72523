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
use super::reach::unreached;
use crate::domain::secret::Secret;
use crate::outbound::{HttpClient, causes};
use crate::sendbird::signature::sign;

/// How long Sendbird waits for an answer, and how often it tries; documented.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const TRIES: u32 = 3;

/// Between two tries. Sendbird's own pause is not documented.
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// The largest answer looked at.
const LARGEST_ANSWER: usize = 64 * 1024;

/// The most that is shown of what a receiver says, in characters.
const LONGEST_DETAIL: usize = 120;

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
    pub(super) error: Option<String>,
    /// What the receiver said of it, where it did not answer 200.
    pub(super) detail: Option<String>,
}

impl Outcome {
    /// What became of it, in a few words: "200 stored", "401 …", or why there was no answer.
    pub(super) fn result(&self) -> String {
        match (self.status, &self.answer) {
            (Some(200), Some(answer)) => format!("200 {}", answer.status),
            (Some(status), _) => format!("{status} {}", self.detail.as_deref().unwrap_or_default()).trim().to_owned(),
            (None, _) => self.error.clone().unwrap_or_else(|| "no answer".to_owned()),
        }
    }
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
            let (status, answer, detail, error) = match attempt {
                Ok(Ok((status, body))) => (Some(status), serde_json::from_slice(&body).ok(), detail(&body), None),
                Ok(Err(error)) => (None, None, None, Some(error)),
                Err(_elapsed) => (None, None, None, Some(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
            };
            let again = status.is_none_or(|status| status >= 500) && tries < TRIES;
            if !again {
                return Outcome { status, answer, tries, took, error, detail };
            }
            sleep(BETWEEN_TRIES).await;
        }
    }

    async fn attempt(&self, body: &Bytes) -> Result<(u16, Bytes), String> {
        let mut request = hyper::Request::post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, "SendBird");
        if let Some(token) = &self.token {
            request = request.header("x-sendbird-signature", sign(token.expose(), body));
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request =
            request.body(Full::new(body.clone())).map_err(|error| format!("the request cannot be built: {error}"))?;
        let response = self.client.request(request).await.map_err(|error| {
            if error.is_connect() {
                return unreached(&self.url, &error);
            }
            format!("the connection was lost: {}", causes(&error))
        })?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER)
            .collect()
            .await
            .map_err(|_broken| "the connection closed before the end of the response")?;
        Ok((status, body.to_bytes()))
    }
}

/// The sentence of a problem document, in one line.
fn detail(body: &[u8]) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = problem.get("detail").or_else(|| problem.get("title"))?.as_str()?;
    Some(text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_DETAIL).collect())
}
