//! Tokens for SASL/OAUTHBEARER, and when each expires.
//!
//! The client asks for tokens on the thread that also receives the delivery reports, so a token is provided without
//! waiting for the network: it is read from a file, or was requested ahead from an issuer (`issuer`).
//!
//! Leaves to others: what the brokers make of a token.

mod issuer;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::sasl::TokenEndpoint;
use crate::domain::clock::{Clock, rfc3339};
use crate::domain::secret::Secret;
use crate::sink::Fault;
use crate::sink::settings::read;
use issuer::IssuedTokens;

/// The assumed lifetime of a token that does not tell its own, in milliseconds.
const DEFAULT_LIFETIME_MS: i64 = 600_000;

/// The client must ask for a token at least this often, in milliseconds: librdkafka rejects a lifetime that is too far in
/// the future.
const MAX_REFRESH_INTERVAL_MS: i64 = 86_400_000;

/// The maximum length of a token, in bytes.
const LONGEST: usize = 64 * 1024;

/// A token, and until when it holds.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) text: Secret,
    /// Unix milliseconds.
    pub(super) until_ms: i64,
}

/// What a JWT says of itself: RFC 7519, section 4.1.
#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
}

impl Token {
    /// `holds_ms` is for how long, if somebody has said it; else the token may.
    fn new(text: &str, holds_ms: Option<i64>, now_ms: i64) -> Result<Self, String> {
        // The client would put the text of another into its complaint.
        if text.is_empty() || text.len() > LONGEST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("expected a token of at most {LONGEST} visible characters, but found something else"));
        }
        let (said_ms, expiry_ms) = (holds_ms.map(|holds_ms| now_ms.saturating_add(holds_ms)), expiry_ms(text));
        let until_ms = match (said_ms, expiry_ms) {
            // Whole seconds cut a part of one off, which the brokers go by. But a clock that is wrong by as much as that would
            // leave nothing.
            (Some(said_ms), Some(expiry_ms)) if expiry_ms > now_ms => said_ms.min(expiry_ms),
            (Some(until_ms), _) | (None, Some(until_ms)) => until_ms,
            (None, None) => now_ms.saturating_add(DEFAULT_LIFETIME_MS),
        };
        Ok(Self { text: Secret::new(text), until_ms })
    }

    fn holds(&self, now_ms: i64) -> bool {
        now_ms < self.until_ms
    }
}

/// When a JWT expires, in Unix milliseconds. Nobody here has to believe it, so its signature is left to the brokers.
#[expect(clippy::cast_possible_truncation, reason = "a time past all times is one that never comes")]
fn expiry_ms(token: &str) -> Option<i64> {
    let claims = token.split('.').nth(1)?;
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    claims.exp.map(|seconds| (seconds * 1000.0) as i64)
}

/// Where a connection's tokens come from.
#[derive(Debug)]
pub(super) struct Tokens {
    source: TokenSource,
    clock: Clock,
    handed_out: Mutex<HandedOut>,
}

/// The token that the client was last given.
#[derive(Debug, Default)]
struct HandedOut {
    /// When it expires, in Unix milliseconds.
    until_ms: i64,
    /// Why the client got no token when it asked the last time.
    error: Option<String>,
}

#[derive(Debug)]
enum TokenSource {
    File(PathBuf),
    Issuer(IssuedTokens),
}

impl Tokens {
    /// Asks an issuer for a first token, and from then on for the next before one expires, until this is dropped.
    ///
    /// # Errors
    /// There is none, for now.
    pub(super) async fn open(sink: &str, endpoint: &TokenEndpoint, clock: Clock) -> Result<Self, Fault> {
        let source = match endpoint {
            TokenEndpoint::File(path) => TokenSource::File(path.clone()),
            TokenEndpoint::Issuer(issuer) => {
                TokenSource::Issuer(IssuedTokens::begin(sink, issuer, clock.clone()).await?)
            }
        };
        Ok(Self { source, clock, handed_out: Mutex::default() })
    }

    /// A token that holds, and until when to show it. Reads a file, but waits for nobody.
    ///
    /// # Errors
    /// Why there is none, in words for people; never a part of a token.
    pub(super) fn current(&self) -> Result<Token, String> {
        let now_ms = self.clock.now_ms();
        let found: Result<Token, String> = match &self.source {
            TokenSource::File(path) => from_file(path, now_ms),
            TokenSource::Issuer(issued) => issued.current(now_ms),
        };
        let mut handed_out = self.handed_out.lock().unwrap_or_else(PoisonError::into_inner);
        handed_out.error = found.as_ref().err().cloned();
        let token = found?;
        handed_out.until_ms = token.until_ms;
        Ok(Token { until_ms: token.until_ms.min(now_ms.saturating_add(MAX_REFRESH_INTERVAL_MS)), ..token })
    }

    /// Why the client has no valid token, if it has none. The brokers may notice only with the next request.
    pub(super) fn missing_token_error(&self) -> Option<String> {
        let handed_out = self.handed_out.lock().unwrap_or_else(PoisonError::into_inner);
        let has_expired = || "the last token has expired".to_owned();
        (self.clock.now_ms() >= handed_out.until_ms).then(|| handed_out.error.clone().unwrap_or_else(has_expired))
    }
}

fn from_file(path: &Path, now_ms: i64) -> Result<Token, String> {
    let bytes = read(path).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    let token = Token::new(text, None, now_ms).map_err(|fault| format!("{fault} in {}", path.display()))?;
    if token.holds(now_ms) {
        return Ok(token);
    }
    let since = rfc3339(token.until_ms).unwrap_or_else(|| "long ago".to_owned());
    Err(format!("the token in {} has expired, at {since}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_767_225_600_000;

    fn jwt(claims: &str) -> String {
        format!("eyJhbGciOiJub25lIn0.{}.sig", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    fn file(text: &str) -> (tempfile::TempDir, Tokens) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        std::fs::write(&path, text).expect("a file");
        (dir, Tokens { source: TokenSource::File(path), clock: Clock::fixed(NOW_MS), handed_out: Mutex::default() })
    }

    #[test]
    fn a_token_holds_as_long_as_it_says() {
        let until = |text: &str, holds_ms| Token::new(text, holds_ms, NOW_MS).expect("a token").until_ms - NOW_MS;
        assert_eq!(until(&jwt(r#"{"exp":1767225660}"#), None), 60_000);
        assert_eq!(until(&jwt(r#"{"exp":1767225660.5}"#), None), 60_500);
        assert_eq!(until(&jwt(r#"{"exp":1767225660}"#), Some(5_000)), 5_000);
        assert_eq!(until(&jwt(r#"{"exp":1767225660}"#), Some(60_999)), 60_000);
        assert_eq!(until(&jwt(r#"{"exp":1767225600}"#), Some(5_000)), 5_000, "our clock is wrong");
        for text in ["opaque", "a.b.c", "..", &jwt("{}"), &jwt(r#"{"exp":"soon"}"#), &jwt("1")] {
            assert_eq!(until(text, None), DEFAULT_LIFETIME_MS, "{text}");
        }
        for far in ["1e300", "-1e300"] {
            Token::new(&jwt(&format!("{{\"exp\":{far}}}")), None, NOW_MS).expect("a token");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_shown() {
        let long = "canary".repeat(LONGEST);
        for text in ["", "can ary", "canary\u{1}", "canary\n", "canäry", &long] {
            let fault = Token::new(text, None, NOW_MS).expect_err("no token");
            assert!(fault.starts_with("expected") && !fault.contains("can"), "{fault}");
        }
    }

    #[test]
    fn a_file_is_read_each_time() {
        let (dir, tokens) = file(&format!("{}\n", jwt(r#"{"exp":1767225660}"#)));
        let token = tokens.current().expect("a token");
        assert_eq!((token.text.expose(), token.until_ms), (&*jwt(r#"{"exp":1767225660}"#), NOW_MS + 60_000));
        std::fs::write(dir.path().join("token"), jwt(r#"{"exp":1e300}"#)).expect("a file");
        assert_eq!(tokens.current().expect("a token").until_ms, NOW_MS + MAX_REFRESH_INTERVAL_MS);
        std::fs::write(dir.path().join("token"), jwt(r#"{"exp":1767225600}"#)).expect("a file");
        let fault = tokens.current().expect_err("expired");
        assert!(fault.ends_with("has expired, at 2026-01-01T00:00:00.000Z"), "{fault}");
        std::fs::write(dir.path().join("token"), [0xff]).expect("a file");
        assert!(tokens.current().expect_err("no text").starts_with("expected a token"));
        std::fs::remove_file(dir.path().join("token")).expect("gone");
        assert!(tokens.current().expect_err("no file").starts_with("cannot read "));
    }

    #[test]
    fn a_missing_token_is_an_error_once_the_last_one_expires() {
        let (dir, tokens) = file(&jwt(r#"{"exp":1767225660}"#));
        tokens.current().expect("a token");
        std::fs::remove_file(dir.path().join("token")).expect("gone");
        tokens.current().expect_err("no file");
        tokens.clock.set(NOW_MS + 59_999);
        assert_eq!(tokens.missing_token_error(), None, "the last one holds");
        tokens.clock.set(NOW_MS + 60_000);
        assert!(tokens.missing_token_error().expect("an error").starts_with("cannot read "));
        std::fs::write(dir.path().join("token"), jwt(r#"{"exp":1767225720}"#)).expect("a file");
        tokens.current().expect("a token");
        assert_eq!(tokens.missing_token_error(), None);
    }
}
