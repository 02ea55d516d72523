//! The only file that knows status codes: what each outcome is answered with.
//!
//! Errors are RFC 9457 problem documents made of constants; nothing of a request ever comes back in one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use warp::http::StatusCode;
use warp::http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use warp::reply::Response;

use crate::access::Denied;
use crate::journal::AppendError;
use crate::pipeline::{Accepted, Refused};
use crate::sendbird::delivery;

/// The content type of a problem document.
pub const PROBLEM: &str = "application/problem+json";

/// A problem document (RFC 9457). Nothing of the request is in it.
#[derive(Deserialize, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct ProblemDocument {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[schemars(extend("const" = "about:blank"))]
    r#type: String,
    /// The status in words.
    title: String,
    /// The status of the answer.
    #[schemars(extend("minimum" = 400, "maximum" = 599))]
    status: u16,
    /// What is wrong, in words that may change.
    detail: String,
}

/// The answer to a delivery that is durable.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "Accepted")]
#[allow(dead_code, reason = "the fields are read by the derived schema and by tests")]
pub(super) struct AcceptedDocument {
    /// The event's id.
    #[schemars(extend("format" = "uuid"))]
    id: String,
    /// What became of the delivery.
    status: AcceptedStatus,
}

/// `stored` on the first delivery of an event, `duplicate` on a retry of one that is durable already.
#[derive(Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum AcceptedStatus {
    Stored,
    Duplicate,
}

/// Why a request is not answered as it would like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The pipeline did not take the delivery.
    Refused(Refused),
    /// No such path, or a wrong path secret, which must look the same.
    NotFound,
    /// The path has another method.
    Method {
        /// The method that it has.
        allow: &'static str,
    },
    /// The body is larger than `server.max_body`.
    TooLarge,
    /// The body is compressed, or encoded otherwise.
    Encoded,
    /// The body did not arrive within the deadline.
    TooSlow,
    /// The body broke off, or its chunks are not well-formed.
    Interrupted,
    /// What came is no HTTP/1.1 request, or its parts contradict each other.
    InvalidHead,
    /// The head of the request is larger than it may be.
    HeadTooLarge,
    /// TLS where plain HTTP is spoken.
    Tls,
    /// A PROXY protocol header where there should be none, or none where there should be one.
    ProxyProtocol {
        /// What was expected.
        expected: &'static str,
    },
    /// As many connections are open as there may be.
    TooManyConnections,
    /// The admin endpoint's token is missing or wrong.
    AdminToken,
    /// A parameter of the feed makes no sense.
    Parameter {
        /// What was expected.
        expected: &'static str,
    },
    /// As many feeds are open as there may be.
    TooManyFeeds,
    /// The bridge is not ready.
    NotReady {
        /// Why.
        why: &'static str,
    },
    /// Something of ours failed.
    Internal,
}

/// The values of the label `reason` of `rejected_total`.
pub const REASONS: &[&str] = &[
    "application",
    "application_rate",
    "application_token",
    "connections",
    "deadline",
    "disk",
    "encoding",
    "full",
    "handshake",
    "head_too_large",
    "header",
    "interrupted",
    "invalid_head",
    "malformed",
    "method",
    "network",
    "no_category",
    "not_found",
    "overload",
    "proxy_protocol",
    "signature_missing",
    "signature_wrong",
    "stopping",
    "tls",
    "too_large",
    "too_many",
    "too_slow",
    "write_timeout",
];

/// The values of the label `status` of `answer_seconds`: 200 and what the reasons are answered with, once there is a head.
pub const STATUSES: &[&str] = &["200", "400", "401", "403", "404", "405", "408", "413", "415", "429", "503"];

struct Facts {
    status: StatusCode,
    reason: &'static str,
    detail: &'static str,
}

const fn facts(status: StatusCode, reason: &'static str, detail: &'static str) -> Facts {
    Facts { status, reason, detail }
}

impl Problem {
    /// The reason, as a metric label.
    pub fn reason(self) -> &'static str {
        self.facts().reason
    }

    /// The status that it is answered with.
    pub fn status(self) -> StatusCode {
        self.facts().status
    }

    /// The problem document.
    pub fn document(self) -> String {
        let Facts { status, detail, .. } = self.facts();
        let title = status.canonical_reason().unwrap_or_default().to_owned();
        let (r#type, status, detail) = ("about:blank".to_owned(), status.as_u16(), detail.to_owned());
        // Texts and a number can always be written as JSON.
        serde_json::to_string(&ProblemDocument { r#type, title, status, detail }).unwrap_or_default()
    }

    /// What is wrong, in words.
    pub fn detail(self) -> &'static str {
        self.facts().detail
    }

    /// The whole answer as it is written to a connection that ends with it, where there is no request to answer.
    pub fn raw(self) -> Vec<u8> {
        let (status, body) = (self.status(), self.document());
        let retry = if status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: {PROBLEM}\r\ncontent-length: {}\r\n", body.len());
        format!("{head}{retry}connection: close\r\n\r\n{body}").into_bytes()
    }

    fn facts(self) -> Facts {
        use StatusCode as S;
        match self {
            Self::Refused(refused) => refused_facts(refused),
            Self::NotFound => facts(S::NOT_FOUND, "not_found", "no resource at this path"),
            Self::Method { .. } => {
                facts(S::METHOD_NOT_ALLOWED, "method", "this path does not support the method; see the Allow header")
            }
            Self::TooLarge => facts(S::PAYLOAD_TOO_LARGE, "too_large", "the body is too large"),
            Self::Encoded => facts(S::UNSUPPORTED_MEDIA_TYPE, "encoding", "expected a body without Content-Encoding"),
            Self::TooSlow => facts(S::REQUEST_TIMEOUT, "too_slow", "the request did not arrive in time"),
            Self::Interrupted => facts(S::BAD_REQUEST, "interrupted", "the body is incomplete or not well-formed"),
            Self::InvalidHead => facts(S::BAD_REQUEST, "invalid_head", "expected a valid HTTP/1.1 request"),
            Self::HeadTooLarge => {
                facts(S::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", "the head of the request is too large")
            }
            Self::Tls => facts(S::BAD_REQUEST, "tls", "expected plain HTTP, but found TLS"),
            Self::ProxyProtocol { expected } => facts(S::BAD_REQUEST, "proxy_protocol", expected),
            Self::TooManyConnections => facts(S::SERVICE_UNAVAILABLE, "connections", "too many connections; try again"),
            Self::AdminToken => facts(S::UNAUTHORIZED, "admin_token", "expected the admin token as a bearer token"),
            Self::Parameter { expected } => facts(S::BAD_REQUEST, "parameter", expected),
            Self::TooManyFeeds => facts(S::SERVICE_UNAVAILABLE, "feeds", "too many feeds are open; try again later"),
            Self::NotReady { why } => facts(S::SERVICE_UNAVAILABLE, "not_ready", why),
            Self::Internal => facts(S::INTERNAL_SERVER_ERROR, "internal", "internal error; see the log of the bridge"),
        }
    }
}

fn refused_facts(refused: Refused) -> Facts {
    use StatusCode as S;
    const UNAVAILABLE: S = S::SERVICE_UNAVAILABLE;
    match refused {
        Refused::Denied(Denied::Network) => facts(S::FORBIDDEN, "network", "this network is not allowed"),
        Refused::Denied(Denied::Application) => facts(S::FORBIDDEN, "application", "this application is not allowed"),
        Refused::Denied(Denied::ApplicationToken) => {
            facts(S::UNAUTHORIZED, "application_token", "the signature is not by a token of this application")
        }
        Refused::Denied(Denied::ApplicationRate) => {
            facts(S::TOO_MANY_REQUESTS, "application_rate", "too many deliveries of this application")
        }
        Refused::Denied(Denied::TooMany) => facts(S::TOO_MANY_REQUESTS, "too_many", "too many requests"),
        Refused::Denied(Denied::Header) => facts(S::UNAUTHORIZED, "header", "a header is missing or wrong"),
        Refused::Denied(Denied::SignatureMissing) => {
            facts(S::UNAUTHORIZED, "signature_missing", "expected a signature, but found none")
        }
        Refused::Denied(Denied::SignatureWrong) => facts(S::UNAUTHORIZED, "signature_wrong", "the signature is wrong"),
        Refused::Malformed(delivery::Refused::NotAnObject) => {
            facts(S::BAD_REQUEST, "malformed", "expected a JSON object")
        }
        Refused::Malformed(delivery::Refused::NoCategory) => {
            facts(S::BAD_REQUEST, "no_category", "expected a category as text")
        }
        Refused::Unavailable(AppendError::Busy) => facts(UNAVAILABLE, "overload", "overloaded; try again"),
        Refused::Unavailable(AppendError::Full) => facts(UNAVAILABLE, "full", "the journal is full; try again later"),
        Refused::Unavailable(AppendError::Failed) => {
            facts(UNAVAILABLE, "disk", "the event cannot be stored; try again")
        }
        Refused::Unavailable(AppendError::Closed) => facts(UNAVAILABLE, "stopping", "shutting down; try again"),
        Refused::Deadline => facts(UNAVAILABLE, "deadline", "the event could not be stored in time; try again"),
    }
}

impl warp::Reply for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = respond(status, PROBLEM, self.document().into());
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Self::Method { allow } = self {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Self::Encoded = self {
            response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if let Self::AdminToken = self {
            response
                .headers_mut()
                .insert(HeaderName::from_static("www-authenticate"), HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The answer to a delivery that is durable.
pub fn accepted(accepted: &Accepted) -> Response {
    respond(StatusCode::OK, "application/json", accepted_document(accepted).into())
}

fn accepted_document(accepted: &Accepted) -> String {
    let status = if accepted.duplicate { "duplicate" } else { "stored" };
    format!("{{\"id\":\"{}\",\"status\":\"{status}\"}}", accepted.id)
}

/// The answer to a health check.
pub fn ok() -> Response {
    respond(StatusCode::OK, "text/plain; charset=utf-8", b"ok\n".to_vec())
}

/// An answer with a body.
pub fn respond(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Logs what failed and answers 500.
pub fn internal(error: &dyn std::fmt::Display) -> Problem {
    tracing::error!(%error, "request failed with an internal error");
    Problem::Internal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::identity::EventId;
    use warp::Reply;

    #[test]
    fn every_webhook_problem_is_as_the_contract_says() {
        let expected = [
            (Problem::NotFound, 404),
            (Problem::Method { allow: "POST" }, 405),
            (Problem::TooLarge, 413),
            (Problem::Encoded, 415),
            (Problem::TooSlow, 408),
            (Problem::Interrupted, 400),
            (Problem::InvalidHead, 400),
            (Problem::HeadTooLarge, 431),
            (Problem::Tls, 400),
            (Problem::ProxyProtocol { expected: "one" }, 400),
            (Problem::TooManyConnections, 503),
            (Problem::Refused(Refused::Denied(Denied::Network)), 403),
            (Problem::Refused(Refused::Denied(Denied::Application)), 403),
            (Problem::Refused(Refused::Denied(Denied::ApplicationToken)), 401),
            (Problem::Refused(Refused::Denied(Denied::ApplicationRate)), 429),
            (Problem::Refused(Refused::Denied(Denied::TooMany)), 429),
            (Problem::Refused(Refused::Denied(Denied::Header)), 401),
            (Problem::Refused(Refused::Denied(Denied::SignatureMissing)), 401),
            (Problem::Refused(Refused::Denied(Denied::SignatureWrong)), 401),
            (Problem::Refused(Refused::Malformed(delivery::Refused::NotAnObject)), 400),
            (Problem::Refused(Refused::Malformed(delivery::Refused::NoCategory)), 400),
            (Problem::Refused(Refused::Unavailable(AppendError::Busy)), 503),
            (Problem::Refused(Refused::Unavailable(AppendError::Full)), 503),
            (Problem::Refused(Refused::Unavailable(AppendError::Failed)), 503),
            (Problem::Refused(Refused::Unavailable(AppendError::Closed)), 503),
            (Problem::Refused(Refused::Deadline), 503),
        ];
        // Connections that take no answer, and handshakes that fail, are counted and not answered.
        assert_eq!(expected.len() + 2, REASONS.len(), "each reason has a case");
        for (problem, status) in expected {
            assert!(REASONS.contains(&problem.reason()), "{problem:?}");
            let response = problem.into_response();
            assert_eq!(response.status().as_u16(), status, "{problem:?}");
            assert!(status == 431 || STATUSES.contains(&response.status().as_str()), "{problem:?}");
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert_eq!(response.headers().contains_key("retry-after"), matches!(status, 429 | 503), "{problem:?}");
            assert_eq!(response.headers().contains_key("allow"), status == 405);
        }
    }

    #[test]
    fn answers_are_what_their_schemas_are_made_from() {
        let problem: ProblemDocument = serde_json::from_str(&Problem::TooLarge.document()).unwrap();
        assert_eq!((problem.r#type.as_str(), problem.status), ("about:blank", 413));
        assert_eq!((problem.title.as_str(), problem.detail.is_empty()), ("Payload Too Large", false));
        let accepted = |duplicate| -> AcceptedDocument {
            let accepted = Accepted { id: EventId::of_body(b"{}"), duplicate };
            serde_json::from_str(&accepted_document(&accepted)).unwrap()
        };
        assert_eq!(accepted(false).status, AcceptedStatus::Stored);
        assert_eq!(accepted(true).status, AcceptedStatus::Duplicate);
        assert_eq!(accepted(true).id, EventId::of_body(b"{}").to_string());
    }

    #[test]
    fn a_raw_answer_is_the_same_as_the_other() {
        for problem in [Problem::TooManyConnections, Problem::TooSlow, Problem::HeadTooLarge] {
            let raw = String::from_utf8(problem.raw()).unwrap();
            let (head, body) = raw.split_once("\r\n\r\n").unwrap();
            assert_eq!(body, problem.document());
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
            let response = problem.into_response();
            let status = response.status();
            let reason = status.canonical_reason().unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {} {reason}\r\n", status.as_str())), "{head}");
            assert_eq!(head.contains("retry-after"), response.headers().contains_key("retry-after"));
        }
    }
}
