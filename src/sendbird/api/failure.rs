//! What goes wrong, sorted once.
//!
//! Documented: errors are `{"error": true, "code", "type", "message"}`, the one for the rate limit without `error`, and
//! codes are what tells them apart: 400200 not found, 401120 and 401121 the token is not allowed, 400100 and 400111 bad
//! or missing parameters, 429100 the rate limit, 500999 unknown. What comes without a known code, as from a proxy, is
//! sorted by its HTTP status.
//!
//! Nothing that is said here shows the token, the URL of a webhook, or more than a line of Sendbird's own words.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::fields::Fields;
use super::request::{Answer, Request};
use crate::domain::secret::HIDDEN;

/// How much of Sendbird's own message is shown.
const LONGEST_MESSAGE: usize = 300;

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// There was no connection, so nothing was sent.
    Unsent(String),
    /// It was sent, or may have been, and no whole answer came.
    Unanswered(String),
    /// The answer has more than so many bytes, and was not read to its end.
    TooLarge(usize),
}

/// What Sendbird said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// Sendbird's code.
    pub code: Option<i64>,
    /// Sendbird's message, without secrets, cut to a line.
    pub message: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status)?;
        if let Some(code) = self.code {
            write!(f, ", code {code}")?;
        }
        self.message.as_ref().map_or(Ok(()), |message| write!(f, ", \"{message}\""))
    }
}

/// Why something could not be had from the API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The token is wrong, revoked, or not of this application.
    #[error("the token is not allowed ({0})")]
    NotAllowed(Refusal),
    /// The application, call, room or path is not there.
    #[error("not found ({0})")]
    NotFound(Refusal),
    /// A parameter is wrong or missing.
    #[error("refused ({0})")]
    Refused(Refusal),
    /// The rate limit, also after waiting, or for longer than is waited for.
    #[error("the rate limit refuses more requests{} ({refusal})", wait.map(asked).unwrap_or_default())]
    TooFast {
        /// What Sendbird said.
        refusal: Refusal,
        /// How long it asks to wait.
        wait: Option<Duration>,
    },
    /// Sendbird failed; a change may have been made.
    #[error("Sendbird failed ({0})")]
    Broken(Refusal),
    /// There was no connection; nothing was sent.
    #[error("no connection: {0}")]
    Unreached(String),
    /// No whole answer came; a change may have been made.
    #[error("no answer: {0}")]
    Unanswered(String),
    /// The answer is not what this API gives; a change may have been made.
    #[error("the answer is not understood: {0}")]
    Unreadable(String),
}

fn asked(wait: Duration) -> String {
    format!(" for the next {} s", wait.as_secs())
}

impl Failure {
    /// Whether a change that failed so may have been made all the same.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Broken(_) | Self::Unanswered(_) | Self::Unreadable(_) => true,
            Self::NotAllowed(_) | Self::NotFound(_) | Self::Refused(_) | Self::TooFast { .. } | Self::Unreached(_) => {
                false
            }
        }
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Unsent(why) => Self::Unreached(why),
            Lost::Unanswered(why) => Self::Unanswered(why),
            Lost::TooLarge(most) => Self::Unreadable(format!("expected at most {most} bytes, but found more")),
        }
    }
}

/// The object that a request was answered with, or its failure.
pub(super) fn sort(answer: &Answer, request: &Request) -> Result<Value, Failure> {
    let status = answer.status;
    let body = serde_json::from_slice::<Value>(&answer.body).ok().filter(Value::is_object);
    let is_error = body.as_ref().is_some_and(|body| Fields(body).boolean("error") == Some(true));
    match body {
        Some(body) if (200..300).contains(&status) && !is_error => return Ok(body),
        None if (200..400).contains(&status) => {
            let bytes = answer.body.len();
            let found = format!("expected a JSON object, but found {bytes} bytes that are none (HTTP {status})");
            return Err(Failure::Unreadable(found));
        }
        _ => {}
    }
    let fields = Fields(body.as_ref().unwrap_or(&Value::Null));
    let code = fields.integer("code");
    let message = fields.text("message").map(|message| clean(&message, request)).filter(|line| !line.is_empty());
    let refusal = Refusal { status, code, message };
    Err(match code {
        Some(400_200) => Failure::NotFound(refusal),
        Some(401_120 | 401_121) => Failure::NotAllowed(refusal),
        Some(400_100 | 400_111) => Failure::Refused(refusal),
        Some(429_100) => too_fast(refusal, answer),
        Some(500_999) => Failure::Broken(refusal),
        _ => match status {
            401 | 403 => Failure::NotAllowed(refusal),
            404 => Failure::NotFound(refusal),
            429 => too_fast(refusal, answer),
            400..=499 => Failure::Refused(refusal),
            500..=599 => Failure::Broken(refusal),
            _ if is_error => Failure::Refused(refusal),
            _ => Failure::Unreadable(format!("expected a success or an error, but found {refusal}")),
        },
    })
}

fn too_fast(refusal: Refusal, answer: &Answer) -> Failure {
    // Sendbird documents no such header; a proxy may add one. A date instead of seconds is taken as none.
    let wait = answer.retry_after.as_ref().and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
    Failure::TooFast { refusal, wait }
}

/// A message of Sendbird's as one line without secrets: it may quote what it was sent.
fn clean(message: &str, request: &Request) -> String {
    let mut line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    for secret in request.secrets().filter(|secret| !secret.is_empty()) {
        line = line.replace(secret, HIDDEN);
    }
    line = hide_urls(&line);
    let mut cut: String = line.trim().chars().take(LONGEST_MESSAGE).collect();
    if cut.len() < line.trim().len() {
        cut.push('…');
    }
    cut
}

/// Of every URL no more than the host is left: the webhook that is set now may have a secret in its path, too.
fn hide_urls(line: &str) -> String {
    let mut parts = line.split("://");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let ends = |c: char| c.is_whitespace() || "\"'<>),".contains(c);
        let (url, rest) = part.split_at(part.find(ends).unwrap_or(part.len()));
        let (host, path) = url.split_at(url.find(['/', '?', '#']).unwrap_or(url.len()));
        let host = host.rsplit('@').next().unwrap_or_default();
        let path = if path.len() > 1 { format!("/{HIDDEN}") } else { path.to_owned() };
        shown += &format!("://{host}{path}{rest}");
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{ApplicationId, Change, Method, Target};
    use super::*;
    use crate::domain::secret::Secret;

    fn request() -> Request {
        let id: ApplicationId = "A".parse().expect("an id");
        let target = Target::new(id, Secret::new("canary-token"), None).expect("a target");
        let url = Secret::new("https://bridge.example.com/webhooks/sendbird/canary-path");
        target.request(Method::Put, "/x", Some(Change { url: Some(url), ..Change::default() }.body()))
    }

    fn sorted(status: u16, body: &str) -> Result<Value, Failure> {
        let answer = Answer { status, retry_after: None, body: body.into() };
        sort(&answer, &request())
    }

    fn name(failure: &Failure) -> &'static str {
        match failure {
            Failure::NotAllowed(_) => "not allowed",
            Failure::NotFound(_) => "not found",
            Failure::Refused(_) => "refused",
            Failure::TooFast { .. } => "too fast",
            Failure::Broken(_) => "broken",
            Failure::Unreached(_) => "unreached",
            Failure::Unanswered(_) => "unanswered",
            Failure::Unreadable(_) => "unreadable",
        }
    }

    #[test]
    fn one_table_sorts_all() {
        let table = [
            (400, r#"{"error":true,"code":400200,"type":"NotFound","message":"m"}"#, "not found"),
            (404, "", "not found"),
            (404, r#"{"error":true,"code":400999}"#, "not found"),
            (400, r#"{"error":true,"code":401120}"#, "not allowed"),
            (401, r#"{"error":true,"code":"401121"}"#, "not allowed"),
            (401, "<html>", "not allowed"),
            (403, "{}", "not allowed"),
            (400, r#"{"error":true,"code":400100}"#, "refused"),
            (400, r#"{"error":true,"code":400111}"#, "refused"),
            (400, r#"{"error":true,"code":400999}"#, "refused"),
            (413, "", "refused"),
            (429, r#"{"code":429100,"message":"Too many requests"}"#, "too fast"),
            (429, "slow down", "too fast"),
            (500, r#"{"error":true,"code":500999}"#, "broken"),
            (502, "<html>bad gateway</html>", "broken"),
            (503, r#"{"code":null}"#, "broken"),
            (200, "", "unreadable"),
            (200, "[]", "unreadable"),
            (200, "<html>", "unreadable"),
            (302, "", "unreadable"),
            (302, "{}", "unreadable"),
            (100, "{}", "unreadable"),
            (200, r#"{"error":true,"code":400200}"#, "not found"),
            (200, r#"{"error":true,"code":400999}"#, "refused"),
        ];
        for (status, body, expected) in table {
            let failure = sorted(status, body).expect_err(body);
            assert_eq!(name(&failure), expected, "{status} {body}");
        }
        assert!(sorted(200, r#"{"error":false}"#).is_ok() && sorted(201, "{}").is_ok());
    }

    #[test]
    fn what_was_sent_does_not_come_back_in_a_message() {
        let message =
            "canary-token and https://bridge.example.com/webhooks/sendbird/canary-path and canary-path\\n\\u001b";
        let failure = sorted(400, &format!(r#"{{"error":true,"code":400100,"message":"{message}"}}"#));
        let failure = failure.expect_err("an error").to_string();
        assert!(!failure.contains("canary") && failure.contains(HIDDEN), "{failure}");
        assert!(!failure.contains(['\n', '\u{1b}']), "{failure:?}");
        let long = format!(r#"{{"error":true,"code":400100,"message":"{}"}}"#, "é".repeat(10_000));
        assert!(sorted(400, &long).expect_err("an error").to_string().chars().count() < 400);
    }

    #[test]
    fn of_any_url_no_more_than_its_host_is_left() {
        for (message, expected) in [
            (
                "no https://h:1/w/canary?x, \"http://u:canary@i/canary\".",
                "no https://h:1/<hidden>, \"http://i/<hidden>\".",
            ),
            ("see https://h/ and http://h", "see https://h/ and http://h"),
            ("://", "://"),
            ("none", "none"),
        ] {
            assert_eq!(hide_urls(message), expected);
        }
    }

    #[test]
    fn a_wait_is_read_from_its_header() {
        let wait = |text: &str| {
            let answer = Answer { status: 429, retry_after: Some(text.into()), body: Vec::new() };
            match sort(&answer, &request()) {
                Err(Failure::TooFast { wait, .. }) => wait,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(wait(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(wait("Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(wait("-1"), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_sorted(status in 100u16..600, body: Vec<u8>, code: i64, message: String) {
            let known = serde_json::json!({ "code": code, "message": format!("{message}canary-token{message}") });
            for body in [body, known.to_string().into_bytes()] {
                match sort(&Answer { status, retry_after: None, body }, &request()) {
                    Ok(_) => prop_assert!((200..300).contains(&status)),
                    Err(failure) => prop_assert!(!failure.to_string().contains("canary-token")),
                }
            }
        }
    }
}
