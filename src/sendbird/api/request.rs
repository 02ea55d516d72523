//! What is sent and what comes back, before anything is made of it.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::domain::secret::Secret;

/// What may stand in a path or a query as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The longest application ID; Sendbird's are UUIDs, of 36 characters.
const LONGEST_ID: usize = 64;

/// An application ID: letters, digits and `-`, so that it can stand in a host name and a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplicationId(String);

impl ApplicationId {
    /// The text as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ApplicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ApplicationId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=LONGEST_ID).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "expected an application ID such as \"0A1B2C3D-1111-4222-8333-444455556666\", but found {:?}",
            text.chars().take(LONGEST_ID).collect::<String>()
        ))
    }
}

/// The two methods that the client uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Changes nothing.
    Get,
    /// Sets what its body names.
    Put,
}

impl Method {
    /// As HTTP writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
        }
    }
}

/// What the limits of the API count by, with the method. Documented: for one application and endpoint. That the ids in a
/// path make no endpoint of their own is guessed, and the slower guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Endpoint {
    Settings,
    Calls,
    Call,
    Rooms,
    Room,
    Participants,
}

/// Whom to ask, about which application, with which token.
#[derive(Clone, Debug)]
pub struct Target {
    base: String,
    application: ApplicationId,
    token: Secret,
}

impl Target {
    /// With Sendbird's own address (documented), or with another one, such as a proxy's, that stands for it.
    ///
    /// # Errors
    /// The token cannot stand in a header, or the address has more than a scheme, a host, a port and a path.
    pub fn new(application: ApplicationId, token: Secret, base: Option<&str>) -> Result<Self, String> {
        if token.expose().is_empty() || !token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("expected an API token of visible ASCII characters, but found others".into());
        }
        let base = match base {
            None => format!("https://api-{application}.calls.sendbird.com/v1"),
            Some(base) if base.contains(['?', '#', '@']) => {
                return Err("expected an address without user, query and fragment".into());
            }
            Some(base) => base.trim_end_matches('/').to_owned(),
        };
        Ok(Self { base, application, token })
    }

    /// The application.
    pub fn application(&self) -> &ApplicationId {
        &self.application
    }

    /// The address that every path is put behind; no slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn request(&self, method: Method, path: &str, body: Option<Body>) -> Request {
        let (body, hidden) = body.map_or_else(Default::default, |body| (Some(body.json), body.hidden));
        Request { method, url: format!("{}{path}", self.base), token: self.token.clone(), body, hidden }
    }
}

/// What a request sets.
#[derive(Clone, Debug)]
pub(super) struct Body {
    /// The body itself.
    pub(super) json: Secret,
    /// What no message about it may show, beside the token.
    pub(super) hidden: Vec<Secret>,
}

/// A request, whole but for the connection. Its `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The absolute URL.
    pub url: String,
    /// The body, JSON. It may hold the path secret of the bridge.
    pub body: Option<Secret>,
    token: Secret,
    hidden: Vec<Secret>,
}

impl Request {
    /// The headers, names in lower case. The content type is documented as it stands here, and for each method.
    pub fn headers(&self) -> [(&'static str, &str); 2] {
        [("api-token", self.token.expose()), ("content-type", "application/json; charset=utf8")]
    }

    /// What nothing that is said of the answer may show.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &str> {
        [&self.token].into_iter().chain(&self.hidden).map(Secret::expose)
    }
}

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The header `Retry-After`, if there is one.
    pub retry_after: Option<String>,
    /// The body, whole.
    pub body: Vec<u8>,
}

/// An id as a segment of a path, or a value of a query.
pub(super) fn segment(text: &str) -> String {
    // A segment of dots alone would be taken as a step up.
    if !text.is_empty() && text.bytes().all(|byte| byte == b'.') {
        return "%2E".repeat(text.len());
    }
    utf8_percent_encode(text, PLAIN).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sendbird::api::Change;

    #[test]
    fn application_ids_can_stand_in_a_host_name() {
        for right in ["0A1B2C3D-1111-4222-8333-444455556666", "a", "0"] {
            assert_eq!(right.parse::<ApplicationId>().map(|id| id.to_string()), Ok(right.to_owned()));
        }
        for wrong in ["", "a.b", "a/b", "-a", "a-", "a b", "é", &"a".repeat(65)] {
            assert!(wrong.parse::<ApplicationId>().is_err_and(|error| error.contains("application ID")), "{wrong}");
        }
    }

    #[test]
    fn the_address_is_sendbirds_or_a_given_one() {
        let target = |base| Target::new(ApplicationId("A-1".into()), Secret::new("t"), base);
        assert_eq!(target(None).map(|target| target.base), Ok("https://api-A-1.calls.sendbird.com/v1".into()));
        assert_eq!(target(Some("http://h:1/v1/")).map(|target| target.base), Ok("http://h:1/v1".into()));
        for wrong in ["http://u:canary@h/", "http://h/?canary", "http://h/#canary"] {
            assert!(target(Some(wrong)).is_err_and(|error| !error.contains("canary")), "{wrong}");
        }
    }

    #[test]
    fn a_token_that_no_header_takes_is_refused_and_not_shown() {
        for wrong in ["", "canary token", "canary\n", "canaryé"] {
            let made = Target::new(ApplicationId("A".into()), Secret::new(wrong), None);
            assert!(made.is_err_and(|error| !error.contains("canary")));
        }
    }

    #[test]
    fn ids_are_no_paths() {
        assert_eq!(segment("2CBC01E6-63F8"), "2CBC01E6-63F8");
        assert_eq!(segment("a/b?c&d=é"), "a%2Fb%3Fc%26d%3D%C3%A9");
        assert_eq!((segment(".."), segment("."), segment("a.b")), ("%2E%2E".into(), "%2E".into(), "a.b".into()));
    }

    #[test]
    fn a_request_shows_no_secret() {
        let target = Target::new(ApplicationId("A".into()), Secret::new("canary"), None).expect("a target");
        let change = Change { url: Some(Secret::new("https://h/canary")), ..Change::default() };
        let request = target.request(Method::Put, "/x", Some(change.body()));
        assert!(!format!("{request:?}").contains("canary"), "{request:?}");
        assert!(request.headers().contains(&("api-token", "canary")));
    }
}
