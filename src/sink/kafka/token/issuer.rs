//! Tokens of an issuer: the client credentials grant of OAuth 2.0 (RFC 6749, section 4.4).
//!
//! Promises: the next token is asked for well before the client wants it. While there is none, the last one is used until
//! it expires, and the log says once why.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Token;
use crate::domain::backoff::Backoff;
use crate::domain::clock::Clock;
use crate::domain::secret::Secret;
use crate::outbound::{self, HttpClient, causes};
use crate::sink::kafka::run;
use crate::sink::kafka::sasl::Issuer;
use crate::sink::{Fault, Reason};

/// How long an answer may take. The client waits for as long as the token before it holds.
const WITHIN: Duration = Duration::from_secs(8);

/// After this part of its time a token is replaced; the client wants another after 0.8 of it.
const REPLACED_AFTER: f64 = 0.6;

/// The shortest time from one token to the next.
const SHORTEST: Duration = Duration::from_secs(1);

/// Pauses while the issuer gives none.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(15) };

/// How much of an answer is read, in bytes.
const ANSWER: usize = 128 * 1024;

/// What stands for itself in a form and in the credentials: RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The last token of an issuer.
#[derive(Debug)]
pub(super) struct IssuedTokens {
    state: Arc<State>,
    /// Ends with this.
    _renewing: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    last: Mutex<Last>,
    /// A token is wanted, and the last one no longer holds.
    wanted: Notify,
}

#[derive(Debug)]
struct Last {
    token: Token,
    /// Why there was none after it.
    fault: Option<String>,
}

impl IssuedTokens {
    pub(super) async fn begin(sink: &str, issuer: &Issuer, clock: Clock) -> Result<Self, Fault> {
        let client = TokenClient::open(issuer.clone(), clock).await?;
        let token = client.ask().await?;
        let first = client.pause(&token);
        let state = Arc::new(State { last: Mutex::new(Last { token, fault: None }), wanted: Notify::new() });
        let mut renewing = JoinSet::new();
        renewing.spawn(renew(sink.to_owned(), client, Arc::clone(&state), first));
        Ok(Self { state, _renewing: renewing })
    }

    pub(super) fn current(&self, now_ms: i64) -> Result<Token, String> {
        let last = self.state.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.token.holds(now_ms) {
            return Ok(last.token.clone());
        }
        self.state.wanted.notify_one();
        Err(last.fault.clone().unwrap_or_else(|| "the issuer's last token has expired".to_owned()))
    }
}

/// Replaces the token before it expires, until the task is aborted.
async fn renew(sink: String, client: TokenClient, state: Arc<State>, first: Duration) {
    let (mut pause, mut failed) = (first, 0);
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            () = state.wanted.notified() => {}
        }
        let answer = client.ask().await;
        let mut last = state.last.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(token) => {
                (pause, failed) = (client.pause(&token), 0);
                last.token = token;
                if last.fault.take().is_some() {
                    tracing::info!(sink, "token renewal recovered");
                }
            }
            Err(fault) => {
                pause = BACKOFF.pause(failed, fastrand::f64());
                failed = failed.saturating_add(1);
                if last.fault.as_ref() != Some(&fault.detail) {
                    tracing::warn!(
                        sink,
                        fault = fault.detail,
                        "cannot renew the token; using the last one until it expires"
                    );
                }
                last.fault = Some(fault.detail);
            }
        }
    }
}

/// The client of the token endpoint.
struct TokenClient {
    issuer: Issuer,
    client: HttpClient,
    credentials: HeaderValue,
    body: Bytes,
    clock: Clock,
}

/// A successful response: RFC 6749, section 5.1.
#[derive(Deserialize)]
struct TokenResponse {
    access_token: Secret,
    token_type: Option<String>,
    /// Seconds; some issuers write them as a text.
    expires_in: Option<Value>,
}

/// An error response: RFC 6749, section 5.2.
#[derive(Deserialize)]
struct ErrorResponse {
    error: String,
}

impl TokenClient {
    async fn open(issuer: Issuer, clock: Clock) -> Result<Self, Fault> {
        let (ca_file, https) = (issuer.ca_file.clone(), issuer.url.scheme_str() == Some("https"));
        let tls = run(move || outbound::tls_config(ca_file.as_deref(), https)).await;
        let tls = tls
            .map_err(|failure| failure.fault().clone())?
            .map_err(|message| fault(Reason::Other, format!("sasl.ca_file: {message}")))?;
        let encoded = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
        let credentials = format!("{}:{}", encoded(&issuer.client_id), encoded(issuer.client_secret.expose()));
        let mut credentials = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(credentials)))
            .map_err(|error| fault(Reason::Other, error.to_string()))?;
        credentials.set_sensitive(true);
        let mut body = "grant_type=client_credentials".to_owned();
        if let Some(scope) = &issuer.scope {
            body += &format!("&scope={}", encoded(scope));
        }
        Ok(Self { issuer, client: outbound::client(tls), credentials, body: body.into(), clock })
    }

    async fn ask(&self) -> Result<Token, Fault> {
        let late = || fault(Reason::Timeout, format!("the token endpoint does not answer within {WITHIN:?}"));
        timeout(WITHIN, self.attempt()).await.unwrap_or_else(|_elapsed| Err(late()))
    }

    async fn attempt(&self) -> Result<Token, Fault> {
        let request = Request::post(self.issuer.url.clone())
            .header(AUTHORIZATION, self.credentials.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(Full::new(self.body.clone()))
            .map_err(|error| fault(Reason::Other, error.to_string()))?;
        let unreached = |error: &dyn std::error::Error| {
            let why = causes(error);
            let see = if why.contains("certificate") { "; see sasl.ca_file" } else { "" };
            fault(Reason::Connection, format!("the token endpoint cannot be reached: {why}{see}"))
        };
        // From before: the answer's time on its way only makes the token's time shorter.
        let now_ms = self.clock.now_ms();
        let response = self.client.request(request).await.map_err(|error| unreached(&error))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER).collect().await;
        let body = body.map_err(|error| unreached(error.as_ref()))?.to_bytes();
        if status != 200 {
            return Err(error_of_response(status, &body));
        }
        parse_token_response(&body, now_ms)
            .map_err(|found| fault(Reason::Other, format!("the token endpoint's answer: {found}")))
    }

    /// When the token is to be replaced.
    fn pause(&self, token: &Token) -> Duration {
        let left_ms = u64::try_from(token.until_ms.saturating_sub(self.clock.now_ms())).unwrap_or_default();
        Duration::from_millis(left_ms).mul_f64(REPLACED_AFTER).max(SHORTEST)
    }
}

fn parse_token_response(body: &[u8], now_ms: i64) -> Result<Token, String> {
    // What serde complains of could show a part of the token.
    let response: TokenResponse = serde_json::from_slice(body)
        .map_err(|_no_token| "expected an access_token in JSON, but found something else".to_owned())?;
    if response.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err("expected the token_type Bearer, but found another".to_owned());
    }
    let seconds = response.expires_in.and_then(|said| said.as_i64().or_else(|| said.as_str()?.parse().ok()));
    Token::new(response.access_token.expose(), seconds.map(|seconds| seconds.saturating_mul(1000)), now_ms)
}

fn error_of_response(status: u16, body: &[u8]) -> Fault {
    let reason = match status {
        408 | 429 | 500.. => Reason::Unavailable,
        400..=499 => Reason::NotAuthorized,
        _ => Reason::Other,
    };
    let error = serde_json::from_slice::<ErrorResponse>(body).ok().map(|response| response.error);
    // A code such as invalid_client; what is longer may be anything.
    let code = error.filter(|code| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_graphic()));
    let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
    fault(reason, format!("the token endpoint answers {status}{code}"))
}

fn fault(reason: Reason, detail: String) -> Fault {
    Fault { reason, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_767_225_600_000;

    #[test]
    fn what_is_given_holds_as_long_as_was_said() {
        let until = |body: &str| parse_token_response(body.as_bytes(), NOW_MS).map(|token| token.until_ms - NOW_MS);
        assert_eq!(until(r#"{"access_token":"a","token_type":"bearer","expires_in":60}"#), Ok(60_000));
        assert_eq!(until(r#"{"access_token":"a","expires_in":"60","scope":"kafka"}"#), Ok(60_000));
        for without_lifetime in [r#"{"access_token":"a"}"#, r#"{"access_token":"a","expires_in":"soon"}"#] {
            assert_eq!(until(without_lifetime), Ok(super::super::DEFAULT_LIFETIME_MS), "{without_lifetime}");
        }
        for wrong in [
            "",
            "canary",
            "[]",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":"can ary"}"#,
            r#"{"access_token":["canary"]}"#,
            r#"{"access_token":"canary","token_type":"mac"}"#,
        ] {
            let found = until(wrong).expect_err("refused");
            assert!(found.starts_with("expected") && !found.contains("canary"), "{wrong}: {found}");
        }
    }

    #[test]
    fn a_refusal_is_said_with_its_code() {
        let said = |status, body: &str| {
            let fault = error_of_response(status, body.as_bytes());
            (fault.reason, fault.detail)
        };
        let answers = |rest: &str| format!("the token endpoint answers {rest}");
        assert_eq!(
            said(401, r#"{"error":"invalid_client","error_description":"canary"}"#),
            (Reason::NotAuthorized, answers("401 (invalid_client)"))
        );
        assert_eq!(said(404, "<html>"), (Reason::NotAuthorized, answers("404")));
        assert_eq!(said(503, r#"{"error":"a long\nstory"}"#), (Reason::Unavailable, answers("503")));
        assert_eq!(said(302, ""), (Reason::Other, answers("302")));
    }
}
