//! What a reader of the feed asks for.

use percent_encoding::percent_decode_str;
use warp::http::HeaderMap;
#[cfg(any(test, feature = "fuzzing"))]
use warp::http::header::HeaderValue;

use crate::http::reply::Problem;
use crate::journal::Filter;
use crate::sendbird::category::event_type;

/// What a reader asked for.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) after: Option<After>,
    pub(super) filter: Filter,
    pub(super) follow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    Position(u64),
    End,
}

pub(super) fn parse(query: &str, headers: &HeaderMap) -> Result<Request, Problem> {
    let mut request = Request { follow: true, ..Request::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value)?;
        match name {
            "after" => request.after = Some(after(&value)?),
            "key" => request.filter.key = Some(value),
            "type" => request.filter.kind = Some(event_type(&value)),
            "follow" => {
                request.follow = match value.as_str() {
                    "true" => true,
                    "false" => false,
                    _ => return Err(Problem::Parameter { expected: "expected follow to be true or false" }),
                }
            }
            _ => {
                return Err(Problem::Parameter {
                    expected: "expected the parameters after, key, type and follow only",
                });
            }
        }
    }
    // A client that reconnects repeats its first address; where it got to is in this header.
    if let Some(last) = headers.get("last-event-id") {
        request.after = Some(after(last.to_str().unwrap_or_default())?);
    }
    Ok(request)
}

fn after(text: &str) -> Result<After, Problem> {
    match text {
        "end" => Ok(After::End),
        _ => text.parse().map(After::Position).map_err(|_not_a_number| Problem::Parameter {
            expected: "expected after and Last-Event-ID to be a position or \"end\"",
        }),
    }
}

fn decode(text: &str) -> Result<String, Problem> {
    let plus = text.replace('+', " ");
    percent_decode_str(&plus)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_not_utf8| Problem::Parameter { expected: "expected parameters in UTF-8" })
}

/// Any parameters are understood or refused, and mean what they say.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(query: &str, last_event_id: &[u8]) {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(last_event_id) {
        headers.insert("last-event-id", value);
    }
    let Ok(request) = parse(query, &headers) else { return };
    match request.after {
        Some(After::Position(position)) if !headers.is_empty() => {
            assert_eq!(std::str::from_utf8(last_event_id).map(str::parse), Ok(Ok(position)));
        }
        Some(After::End) if !headers.is_empty() => assert_eq!(last_event_id, b"end"),
        None => assert!(headers.is_empty() && !query.split('&').any(|pair| pair.starts_with("after="))),
        Some(_) => assert!(query.contains("after=")),
    }
    assert!(request.follow || query.contains("follow=f") || query.contains('%'));
    let filter = request.filter;
    let again = filter
        .key
        .as_deref()
        .map(|key| format!("key={}", percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC)));
    let again = parse(&again.unwrap_or_default(), &HeaderMap::new()).map(|request| request.filter.key);
    assert_eq!(again.ok(), Some(filter.key));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &str) -> Request {
        parse(query, &HeaderMap::new()).unwrap()
    }

    #[test]
    fn parameters_are_understood() {
        let request = parsed("after=17&key=a%2Fb+c&type=room:create&follow=false");
        assert_eq!(request.after, Some(After::Position(17)));
        assert_eq!(request.filter.key.as_deref(), Some("a/b c"));
        assert_eq!(request.filter.kind.as_deref(), Some("com.sendbird.calls.room.create"));
        assert!(!request.follow);
        assert_eq!(parsed("after=end").after, Some(After::End));
        assert!(parsed("").follow && parsed("").after.is_none());
    }

    #[test]
    fn the_header_of_a_reconnect_wins() {
        let headers = HeaderMap::from_iter([("last-event-id".parse().unwrap(), "9".parse().unwrap())]);
        assert_eq!(parse("after=3", &headers).unwrap().after, Some(After::Position(9)));
    }

    #[test]
    fn nonsense_is_refused() {
        for query in ["after=x", "after=-1", "follow=maybe", "afer=1", "key=%ff"] {
            assert!(matches!(parse(query, &HeaderMap::new()), Err(Problem::Parameter { .. })), "{query}");
        }
    }
}
