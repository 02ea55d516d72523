//! What arrived, read with tolerance.
//!
//! [`parse`] turns a body into a [`Delivery`], or refuses it for one of two reasons, the only ones there
//! are. A delivery holds the redacted text and knows its category and application; all else is read from
//! it when asked for, one level at a time, through `Object`. Whatever has an unexpected type is taken
//! for not known and counted: Sendbird may add keys, categories and types at any time (documented for keys).

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::category::Category;
use super::json::{Text, integer, number};
use super::redact::{DEEPEST, redact};

/// Why a body is not a delivery. Neither says anything of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not UTF-8, not JSON, not an object, or nested deeper than [`DEEPEST`].
    #[error("expected a JSON object nested at most {DEEPEST} levels deep, but found something else")]
    NotAnObject,
    /// An object without a category.
    #[error("expected a text that is not empty as \"category\", but found none")]
    NoCategory,
}

/// A body that Sendbird, or somebody who claims to be it, has sent; without its secrets.
#[derive(Clone, Debug)]
pub struct Delivery {
    redacted: String,
    text: String,
    category: Category,
    application_id: Option<String>,
}

/// Reads a body. Redaction comes first, so a delivery never holds a secret.
///
/// # Errors
/// [`Refused`], for which nothing but the body is to blame.
pub fn parse(body: &[u8]) -> Result<Delivery, Refused> {
    // RFC 8259, 8.1: a byte order mark may be ignored.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let redacted = std::str::from_utf8(body).ok().and_then(|body| redact(body).ok()).ok_or(Refused::NotAnObject)?;
    let anomalies = Cell::new(0);
    let top = Object::parse(&redacted, &anomalies).ok_or(Refused::NotAnObject)?;
    let text = top.raw("category").and_then(string).ok_or(Refused::NoCategory)?.into_owned();
    let application_id = top.text("application_id").map(Cow::into_owned);
    Ok(Delivery { category: Category::of(&text), text, application_id, redacted })
}

impl Delivery {
    /// The category, from the closed set.
    pub fn category(&self) -> Category {
        self.category
    }

    /// The category as it came. Documented: a text on every delivery.
    pub fn category_text(&self) -> &str {
        &self.text
    }

    /// The application as it came; compare it ignoring the case of ASCII letters. Documented: on every delivery.
    pub fn application_id(&self) -> Option<&str> {
        self.application_id.as_deref()
    }

    /// The whole delivery as one compact line of JSON, secrets redacted.
    pub fn redacted(&self) -> &str {
        &self.redacted
    }

    /// The outermost object; `anomalies` counts what has an unexpected type.
    pub(super) fn object<'a>(&'a self, anomalies: &'a Cell<u32>) -> Object<'a> {
        Object::parse(&self.redacted, anomalies).unwrap_or(Object { members: Vec::new(), anomalies })
    }
}

/// How much of a delivery was not as expected; for metrics and logs, never a reason to refuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anomalies {
    /// Keys of the outermost object that are not documented.
    pub unknown_keys: u32,
    /// Values that were asked for and had a type that could not be understood.
    pub unexpected_types: u32,
}

/// One level of an object. Values are parsed when they are asked for.
///
/// `null`, a missing key, `""`, `[]` and `{}` all mean *not known*. Of a key that comes twice the last
/// counts, as in most parsers.
pub(super) struct Object<'a> {
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
    anomalies: &'a Cell<u32>,
}

impl<'a> Object<'a> {
    /// `None` if the JSON is not an object.
    fn parse(json: &'a str, anomalies: &'a Cell<u32>) -> Option<Self> {
        if !json.starts_with('{') {
            return None;
        }
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let members = deserializer.deserialize_map(Members).ok()?;
        Some(Self { members, anomalies })
    }

    /// The members in their order, also those that come twice.
    pub(super) fn members(&self) -> impl DoubleEndedIterator<Item = (&Cow<'a, str>, &'a RawValue)> {
        self.members.iter().map(|(key, value)| (key, *value))
    }

    /// The value as it is written, unless it is absent or null.
    pub(super) fn present(&self, key: &str) -> Option<&'a RawValue> {
        let (_, value) = self.members.iter().rev().find(|(name, _)| name == key)?;
        (value.get() != "null").then_some(*value)
    }

    /// The value as it is written, if it is known.
    pub(super) fn raw(&self, key: &str) -> Option<&'a RawValue> {
        self.present(key).filter(|value| !matches!(value.get(), "\"\"" | "[]" | "{}"))
    }

    /// A text; a number is taken for the text of it, since ids could be numbers.
    pub(super) fn text(&self, key: &str) -> Option<Cow<'a, str>> {
        let value = self.raw(key)?;
        match value.get().as_bytes().first() {
            Some(b'-' | b'0'..=b'9') => Some(number(value.get())),
            _ => string(value).or_else(|| self.odd()),
        }
    }

    /// A whole number of 64 bits, however it is written, also as a text of digits.
    pub(super) fn integer(&self, key: &str) -> Option<i64> {
        let value = self.raw(key)?;
        match value.get().as_bytes().first() {
            Some(b'-' | b'0'..=b'9') => integer(value.get()),
            _ => string(value).and_then(|text| text.parse().ok()),
        }
        .or_else(|| self.odd())
    }

    /// A boolean, also as a text in any case. Guessed: old pages show flags as texts.
    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        let value = self.raw(key)?;
        let word = value.get().trim_matches('"');
        if word.eq_ignore_ascii_case("true") {
            Some(true)
        } else if word.eq_ignore_ascii_case("false") {
            Some(false)
        } else {
            self.odd()
        }
    }

    /// An object inside this one.
    pub(super) fn object(&self, key: &str) -> Option<Self> {
        let value = self.raw(key)?;
        self.open(value).or_else(|| self.odd())
    }

    /// A user: an object with a `user_id`, or the id itself.
    pub(super) fn user(&self, key: &str) -> Option<Cow<'a, str>> {
        match self.open(self.raw(key)?) {
            Some(user) => user.text("user_id"),
            None => self.text(key),
        }
    }

    /// This value as an object, if it is one.
    pub(super) fn open(&self, value: &'a RawValue) -> Option<Self> {
        Self::parse(value.get(), self.anomalies)
    }

    /// Counts a value that could not be understood.
    pub(super) fn odd<T>(&self) -> Option<T> {
        self.anomalies.set(self.anomalies.get().saturating_add(1));
        None
    }
}

/// A text that is not empty, and nothing else.
pub(super) fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    if !value.get().starts_with('"') {
        return None;
    }
    serde_json::from_str(value.get()).ok().map(|Text(text)| text).filter(|text| !text.is_empty())
}

/// Collects the members of an object, also those that come twice.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(16);
        while let Some((Text(key), value)) = map.next_entry()? {
            members.push((key, value));
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(body: &str, read: impl FnOnce(&Object<'_>) -> T) -> (T, u32) {
        let anomalies = Cell::new(0);
        let object = Object::parse(body, &anomalies).expect("an object");
        let result = read(&object);
        (result, anomalies.get())
    }

    #[test]
    fn only_two_things_are_refused() {
        let nested = format!("{{\"category\":\"x\",\"a\":{}{}}}", "[".repeat(DEEPEST), "]".repeat(DEEPEST));
        for body in ["", "[]", "1", "{", "\u{feff}", "\u{feff}\u{feff}{}", "null", "\"category\"", &nested] {
            assert_eq!(parse(body.as_bytes()).err(), Some(Refused::NotAnObject), "{body}");
        }
        assert_eq!(parse(b"{\"category\":\"\xff\"}").err(), Some(Refused::NotAnObject));
        for body in ["{}", r#"{"category":""}"#, r#"{"category":null}"#, r#"{"category":1}"#, r#"{"category":["x"]}"#] {
            assert_eq!(parse(body.as_bytes()).err(), Some(Refused::NoCategory), "{body}");
        }
        assert!(parse("\u{feff}{\"category\":\"x\"}".as_bytes()).is_ok_and(|delivery| delivery.category_text() == "x"));
        assert!(parse(b" {\"category\" : \"x\"}\n").is_ok_and(|delivery| delivery.category_text() == "x"));
    }

    #[test]
    fn refusals_do_not_echo_the_body() {
        for body in ["canary", r#"{"canary":1}"#] {
            let error = parse(body.as_bytes()).expect_err("refused").to_string();
            assert!(error.starts_with("expected") && !error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn texts_are_texts_or_numbers() {
        for (value, expected, odd) in [
            (r#""a\u00e9\/""#, Some("aé/"), 0),
            ("42", Some("42"), 0),
            ("42.0", Some("42"), 0),
            ("9007199254740993", Some("9007199254740993"), 0),
            ("true", None, 1),
            ("[1]", None, 1),
            (r#"{"a":1}"#, None, 1),
            ("null", None, 0),
            (r#""""#, None, 0),
            ("[]", None, 0),
            ("{}", None, 0),
        ] {
            let body = format!("{{\"k\":{value}}}");
            let (text, count) = with(&body, |object| object.text("k").map(Cow::into_owned));
            assert_eq!((text.as_deref(), count), (expected, odd), "{value}");
        }
    }

    #[test]
    fn integers_and_booleans_are_lenient() {
        for (value, integer, boolean) in [
            ("12", Some(12), None),
            ("1.2e1", Some(12), None),
            (r#""-12""#, Some(-12), None),
            (r#""1e3""#, None, None),
            ("1.5", None, None),
            ("9223372036854775808", None, None),
            ("true", None, Some(true)),
            (r#""FALSE""#, None, Some(false)),
            (r#""yes""#, None, None),
        ] {
            let body = format!("{{\"k\":{value}}}");
            let (found, odd) = with(&body, |object| (object.integer("k"), object.boolean("k")));
            assert_eq!(found, (integer, boolean), "{value}");
            assert_eq!(odd, u32::from(integer.is_none()) + u32::from(boolean.is_none()), "{value}");
        }
    }

    #[test]
    fn of_a_key_that_comes_twice_the_last_counts() {
        let body = r#"{"a":"1","\u0061":"2","b":{"user_id":"u"},"c":"v"}"#;
        let (found, odd) = with(body, |object| {
            ["a", "b", "c", "d"].map(|key| object.user(key).map(Cow::into_owned).unwrap_or_default())
        });
        assert_eq!((found, odd), (["2", "u", "v", ""].map(String::from), 0));
    }
}
