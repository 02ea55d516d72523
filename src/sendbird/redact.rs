//! Secrets inside deliveries, taken out before anything else reads them.
//!
//! Makes of a body one compact line in which every value under a secret's key is replaced. Everything
//! downstream (the data, the raw delivery, the id, the journal, a dead letter) is made from that line,
//! so what is not in it can't leak. Everything else in it is kept byte for byte: numbers and texts as
//! they were written, the order of keys, and keys that come twice.

use serde_json::value::RawValue;

use super::json::{skip_space, unquote, value_end};

/// The keys whose values are secrets, at any depth, ignoring the case of ASCII letters. Likely: the first
/// two are seen in the signalling of Sendbird's SDKs (a relay's user name and password, valid about a
/// day, and a token valid about a minute); the others are guarded against by analogy.
pub const SECRET_KEYS: [&str; 6] = [
    "turn_credential",
    "sbcall_short_lived_token",
    "sbcall_session_token",
    "access_token",
    "session_token",
    "password",
];

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// How deep a body may be nested, its own braces included. An envelope puts it two levels further in, and
/// common parsers, ours among them, stop at 127. A deeper body is refused.
pub const DEEPEST: usize = 100;

/// The text is not JSON, or nested deeper than [`DEEPEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected JSON nested at most {DEEPEST} levels deep, but found something else")]
pub struct NotJson;

/// One compact line without secrets.
///
/// White space outside texts is dropped. Half of a surrogate pair (`\ud83d` without its partner, as left
/// by a client that cuts an emoji in two) becomes `\ufffd`, because many parsers refuse it. A number that
/// no double holds (`1e400`) is kept all the same: it is JSON, and what stands for it would be a guess.
/// Time and memory grow with the length of the body only.
///
/// # Errors
/// [`NotJson`], which says nothing of the body.
pub fn redact(body: &str) -> Result<String, NotJson> {
    // serde_json checks the grammar, without recursion; what follows may rely on it.
    let Ok(valid) = serde_json::from_str::<&RawValue>(body) else { return Err(NotJson) };
    let text = valid.get();
    let bytes = text.as_bytes();
    let mut copy = Copy { text, from: 0, out: String::with_capacity(text.len() + REDACTED.len()) };
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        at = match byte {
            b'"' => copy_string_and_hide(&mut copy, at),
            b' ' | b'\t' | b'\n' | b'\r' => {
                let end = skip_space(bytes, at);
                copy.replace(at, end, "");
                end
            }
            b'{' | b'[' => {
                depth += 1;
                if depth > DEEPEST {
                    return Err(NotJson);
                }
                at + 1
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                at + 1
            }
            _ => at + 1,
        };
    }
    Ok(copy.finish())
}

/// Passes over the string that opens at `open`; if it is the key of a secret, also over its value, which is
/// replaced. Returns where to go on.
fn copy_string_and_hide(copy: &mut Copy<'_>, open: usize) -> usize {
    let bytes = copy.text.as_bytes();
    let (end, escaped) = copy_string(copy, open);
    let colon = skip_space(bytes, end);
    // In JSON, the strings before a colon are the keys.
    if bytes.get(colon) != Some(&b':') || !is_secret(&copy.text[open..end], escaped) {
        return end;
    }
    let value = value_end(bytes, skip_space(bytes, colon + 1));
    copy.replace(end, value, &format!(":\"{REDACTED}\""));
    value
}

/// Passes over the string that opens at `open`, replacing halves of surrogate pairs. Returns the position
/// after it, and whether it has escapes.
fn copy_string(copy: &mut Copy<'_>, open: usize) -> (usize, bool) {
    let bytes = copy.text.as_bytes();
    let (mut at, mut escaped) = (open + 1, false);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return (at + 1, escaped),
            b'\\' => {
                escaped = true;
                at += match surrogate(bytes, at) {
                    Some(Half::High) if surrogate(bytes, at + 6) == Some(Half::Low) => 12,
                    Some(_) => {
                        copy.replace(at, at + 6, "\\ufffd");
                        6
                    }
                    None => 2,
                };
            }
            _ => at += 1,
        }
    }
    (bytes.len(), escaped)
}

/// What is kept is copied in runs, as long as nothing is replaced; in a typical body that is all of it.
struct Copy<'a> {
    text: &'a str,
    /// What stands before this is in `out` already.
    from: usize,
    out: String,
}

impl Copy<'_> {
    /// Writes `by` in the place of what stands from `start` to `end`.
    fn replace(&mut self, start: usize, end: usize, by: &str) {
        self.out.push_str(&self.text[self.from..start]);
        self.out.push_str(by);
        self.from = end;
    }

    fn finish(mut self) -> String {
        self.out.push_str(&self.text[self.from..]);
        self.out
    }
}

#[derive(PartialEq, Eq)]
enum Half {
    High,
    Low,
}

/// Which half of a surrogate pair the escape at `at` is, if it is one.
fn surrogate(bytes: &[u8], at: usize) -> Option<Half> {
    let [b'\\', b'u', b'd' | b'D', second, _, _] = bytes.get(at..at + 6)? else { return None };
    match second {
        b'8' | b'9' | b'a' | b'b' | b'A' | b'B' => Some(Half::High),
        b'c'..=b'f' | b'C'..=b'F' => Some(Half::Low),
        _ => None,
    }
}

/// Whether a key, given with its quotation marks, is a secret's. One with half of a surrogate pair has no
/// text, and is none.
fn is_secret(token: &str, escaped: bool) -> bool {
    let named = |key: &str| SECRET_KEYS.iter().any(|secret| secret.eq_ignore_ascii_case(key));
    if escaped { named(&unquote(token)) } else { named(token.trim_matches('"')) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(body: &str) -> String {
        redact(body).expect("JSON")
    }

    #[test]
    fn everything_but_secrets_is_kept_as_written() {
        for (body, expected) in [
            ("{ \"a\" :\t1.50E+03 ,\r\n \"a\": [ 1 , true,null ] }", r#"{"a":1.50E+03,"a":[1,true,null]}"#),
            (
                r#"{"b":" x\/\u00e9 \" é","a":12345678901234567890}"#,
                r#"{"b":" x\/\u00e9 \" é","a":12345678901234567890}"#,
            ),
            (" \"a b\" ", r#""a b""#),
            ("{ }", "{}"),
        ] {
            assert_eq!(redacted(body), expected);
        }
    }

    #[test]
    fn secrets_go_wherever_they_are() {
        for (body, expected) in [
            (r#"{"password" : "x", "a":1}"#, r#"{"password":"[redacted]","a":1}"#),
            (r#"{"turn_credential":{"a":["}",{"password":1}]},"b":2}"#, r#"{"turn_credential":"[redacted]","b":2}"#),
            (r#"[[{"Access_Token":null}]]"#, r#"[[{"Access_Token":"[redacted]"}]]"#),
            (r#"{"turn\u005fcredential":[1, 2]}"#, r#"{"turn\u005fcredential":"[redacted]"}"#),
            (
                r#"{"session_token":-1.5e3,"sbcall_session_token":true}"#,
                r#"{"session_token":"[redacted]","sbcall_session_token":"[redacted]"}"#,
            ),
            (r#"{"password":"a","password":"b"}"#, r#"{"password":"[redacted]","password":"[redacted]"}"#),
            // A value or a longer key is not a secret's key.
            (r#"["password",{"passwords":"x","a":"password"}]"#, r#"["password",{"passwords":"x","a":"password"}]"#),
        ] {
            assert_eq!(redacted(body), expected);
        }
    }

    #[test]
    fn halves_of_surrogate_pairs_are_replaced() {
        for (body, expected) in [
            (r#""\ud83d\uDE00""#, r#""\ud83d\uDE00""#),
            (r#""\ud83d""#, r#""\ufffd""#),
            (r#""\uDE00x""#, r#""\ufffdx""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ud83d\n\\ud83d""#, r#""\ufffd\n\\ud83d""#),
            (r#"{"\ud83d":1}"#, r#"{"\ufffd":1}"#),
            (r#""\ud7ff\ue000""#, r#""\ud7ff\ue000""#),
        ] {
            assert_eq!(redacted(body), expected);
            serde_json::from_str::<serde_json::Value>(expected).expect("every parser takes it");
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for wrong in [
            "",
            "{",
            "{\"a\":1 2}",
            "tr ue",
            "{'a':1}",
            "[1,]",
            "\"\n\"",
            "\"\\x\"",
            "{} {}",
            "01",
            "NaN",
            "\u{feff}{}",
        ] {
            assert_eq!(redact(wrong), Err(NotJson), "{wrong}");
        }
    }

    #[test]
    fn nesting_has_a_bound() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(redact(&nested(DEEPEST)), Ok(nested(DEEPEST)));
        assert_eq!(redact(&nested(DEEPEST + 1)), Err(NotJson));
        assert_eq!(redact(&nested(100_000)), Err(NotJson));
    }
}
