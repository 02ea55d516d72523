//! The canonical form of a whole body (RFC 8785), for the id of a delivery whose telling parts are not known.
//!
//! Equal for bodies that differ in white space, the order of keys, escapes or the spelling of numbers
//! only. It never fails, so three things that RFC 8785 leaves to errors or to loss are settled here:
//! whole numbers keep all their digits and numbers beyond a double their value (see [`number`]); keys that
//! come twice are all kept, in their order, since an id too many does less harm than one too few; and
//! texts hold no halves of surrogate pairs, because redaction has replaced them.

use std::borrow::Cow;
use std::ops::Range;

use super::json::{number, part, scalar_end, string_end, unquote};

/// The canonical form of JSON that [`redact`](super::redact::redact) has made: valid, compact, and nested
/// no deeper than [`DEEPEST`](super::redact::DEEPEST), which bounds the recursion.
pub(super) fn canonical(compact: &str) -> String {
    let mut out = String::with_capacity(compact.len());
    value(compact, 0, &mut out);
    out
}

/// Writes the value that starts at `at` and returns the position after it.
fn value(text: &str, at: usize, out: &mut String) -> usize {
    let bytes = text.as_bytes();
    match bytes.get(at) {
        Some(b'{') => object(text, at, out),
        Some(b'[') => array(text, at, out),
        Some(b'"') => string(text, at, out),
        _ => {
            let end = scalar_end(bytes, at);
            let token = part(text, at, end);
            let word = token.starts_with(|first: char| first.is_ascii_alphabetic());
            out.push_str(&if word { Cow::Borrowed(token) } else { number(token) });
            end
        }
    }
}

fn array(text: &str, mut at: usize, out: &mut String) -> usize {
    let bytes = text.as_bytes();
    out.push('[');
    at += 1;
    while bytes.get(at).is_some_and(|&byte| byte != b']') {
        at = value(text, at, out);
        if bytes.get(at) == Some(&b',') {
            out.push(',');
            at += 1;
        }
    }
    out.push(']');
    at + 1
}

fn object(text: &str, mut at: usize, out: &mut String) -> usize {
    let bytes = text.as_bytes();
    let start = out.len();
    let mut members: Vec<(Cow<'_, str>, Range<usize>)> = Vec::new();
    at += 1;
    while bytes.get(at).is_some_and(|&byte| byte != b'}') {
        let from = out.len() - start;
        let colon = string(text, at, out);
        let key = unquote(part(text, at, colon));
        out.push(':');
        at = value(text, colon + 1, out);
        members.push((key, from..out.len() - start));
        if bytes.get(at) == Some(&b',') {
            at += 1;
        }
    }
    // RFC 8785 sorts by UTF-16 code units. The sort is stable: keys that come twice keep their order.
    members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    let unsorted = out.split_off(start);
    for (i, (_, member)) in members.into_iter().enumerate() {
        out.push(if i == 0 { '{' } else { ',' });
        out.push_str(&unsorted[member]);
    }
    out.push_str(if unsorted.is_empty() { "{}" } else { "}" });
    at + 1
}

fn string(text: &str, at: usize, out: &mut String) -> usize {
    let end = string_end(text.as_bytes(), at);
    let token = part(text, at, end);
    if token.contains('\\') {
        // serde_json escapes exactly what RFC 8785 does, and in the same way.
        out.push_str(&serde_json::Value::from(unquote(token)).to_string());
    } else {
        out.push_str(token);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sendbird::redact::{DEEPEST, redact};

    fn of(body: &str) -> String {
        canonical(&redact(body).expect("JSON"))
    }

    #[test]
    fn the_example_of_rfc_8785() {
        let body = r#"{
            "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        let expected = concat!(
            r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"#,
            r#""string":"€$\u000f\nA'B\"\\\\\"/"}"#
        );
        assert_eq!(of(body), expected);
    }

    #[test]
    fn keys_are_sorted_by_utf_16() {
        let body = "{\"\\u20ac\":1,\"\\r\":2,\"\\ufb33\":3,\"1\":4,\"\\ud83d\\ude00\":5,\"\\u0080\":6,\"\\u00f6\":7}";
        let expected = "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}";
        assert_eq!(of(body), expected);
    }

    #[test]
    fn agrees_with_the_crate_where_nothing_is_lost() {
        for body in [
            r#"{"b":{"d":[],"c":{}},"a":[{"z":1,"y":[2.50,-0]}],"":"","é":"\b\f\t\u0001\u007f"}"#,
            "[]",
            "\"x\"",
            "-1.5e-9",
        ] {
            assert_eq!(of(body), serde_json_canonicalizer::pipe(body).expect("JSON"), "{body}");
        }
    }

    #[test]
    fn never_fails_and_never_makes_two_numbers_one() {
        assert_eq!(of(r#"{"a":9007199254740993,"b":1e400}"#), r#"{"a":9007199254740993,"b":1e+400}"#);
        assert_eq!(of(r#"{"b":1,"a":2,"a":1}"#), r#"{"a":2,"a":1,"b":1}"#);
        let deep = format!("{}{}", "[".repeat(DEEPEST), "]".repeat(DEEPEST));
        assert_eq!(of(&deep), deep);
    }

    #[test]
    fn ends_on_any_text() {
        for wrong in ["", "{", "{\"a", "{1:2}", "[\"", "{\"a\":}", "]", "\u{1}", "[\u{1}\u{1}", "{é}"] {
            canonical(wrong);
        }
    }
}
