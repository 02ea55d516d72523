//! Topics, routing keys and subjects made of placeholders: `sendbird.calls.{object}.{verb}.{key}`.
//!
//! Values come from deliveries, so whatever could break out of its place (a dot, a wildcard, a space, a
//! control character, an endless text) is encoded, never passed through. Different values always give
//! different texts.

use std::fmt::{self, Write};

use ring::digest::{SHA256, digest};

/// The longest text that one value may become; a longer one is cut and ends with a part of its SHA-256,
/// so that a routing key (255 bytes) or a topic (249) with two such values still fits.
pub const LONGEST_VALUE: usize = 80;

const PLACEHOLDERS: [&str; 5] = ["object", "verb", "key", "category", "application_id"];

/// The values of the placeholders for one event.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// `direct_call`, `room` or `other`.
    pub object: &'a str,
    /// What follows the colon in the category.
    pub verb: &'a str,
    /// `call_id`, `room_id`, or what stands in for them.
    pub key: &'a str,
    /// The category as Sendbird wrote it.
    pub category: &'a str,
    /// The application, or an empty text where the delivery named none.
    pub application_id: &'a str,
}

/// What the text will be used as, which decides the characters that it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A Kafka topic: letters, digits, `.`, `_` and `-`.
    Topic,
    /// A RabbitMQ routing key: words between dots.
    RoutingKey,
    /// A NATS subject: tokens between dots, none empty.
    Subject,
}

/// A parsed pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    place: Place,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Placeholder(usize),
}

impl Template {
    /// Parses a pattern and checks its fixed parts against the place.
    ///
    /// # Errors
    /// An unknown placeholder, an unclosed brace, or a character that the place can't have.
    pub fn parse(pattern: &str, place: Place) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = pattern;
        while let Some(open) = rest.find('{') {
            literal(&mut parts, &rest[..open], place)?;
            let Some(close) = rest[open..].find('}') else {
                return Err(format!("expected a closing brace after \"{}\"", &rest[open..]));
            };
            let name = &rest[open + 1..open + close];
            let Some(index) = PLACEHOLDERS.iter().position(|known| *known == name) else {
                return Err(format!("expected one of {{{}}}, but found {{{name}}}", PLACEHOLDERS.join("}, {")));
            };
            parts.push(Part::Placeholder(index));
            rest = &rest[open + close + 1..];
        }
        literal(&mut parts, rest, place)?;
        if parts.is_empty() {
            return Err("expected a pattern, but found an empty text".into());
        }
        if place == Place::Subject && pattern.split('.').any(str::is_empty) {
            return Err(format!("expected tokens between the dots, but found an empty one in \"{pattern}\""));
        }
        Ok(Self { place, parts })
    }

    /// The text for one event.
    pub fn render(&self, values: &Values<'_>) -> String {
        let mut out = String::with_capacity(96);
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Placeholder(index) => encode(
                    &mut out,
                    match index {
                        0 => values.object,
                        1 => values.verb,
                        2 => values.key,
                        3 => values.category,
                        _ => values.application_id,
                    },
                    self.place,
                ),
            }
        }
        out
    }

    /// Whether the text depends on this placeholder.
    pub fn uses(&self, placeholder: &str) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Placeholder(index) if PLACEHOLDERS[*index] == placeholder))
    }

    /// The text with every value replaced by `wildcard`, for a stream or a binding that takes all.
    pub fn with_wildcards(&self, wildcard: &str) -> String {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Literal(text) => text.as_str(),
                Part::Placeholder(_) => wildcard,
            })
            .collect()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Literal(text) => f.write_str(text),
            Part::Placeholder(index) => write!(f, "{{{}}}", PLACEHOLDERS[*index]),
        })
    }
}

fn literal(parts: &mut Vec<Part>, text: &str, place: Place) -> Result<(), String> {
    if let Some(wrong) = text.chars().find(|&c| c != '.' && !(c.is_ascii() && plain(c as u8, place))) {
        return Err(format!("expected letters, digits, \".\", \"_\", \"-\" and placeholders, but found {wrong:?}"));
    }
    if !text.is_empty() {
        parts.push(Part::Literal(text.to_owned()));
    }
    Ok(())
}

fn plain(byte: u8, place: Place) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b':' && place != Place::Topic)
}

fn encode(out: &mut String, value: &str, place: Place) {
    if value.is_empty() {
        return out.push('_');
    }
    let start = out.len();
    let bytes = value.as_bytes();
    for (i, &byte) in bytes.iter().enumerate() {
        // The escape must itself be escaped, or two values could give one text. A topic can't have a
        // percent sign, so there the escape is `_x`. A lone underscore stands for the empty value.
        let escape = byte == b'_' && ((place == Place::Topic && bytes.get(i + 1) == Some(&b'x')) || bytes.len() == 1);
        if plain(byte, place) && !escape {
            out.push(char::from(byte));
        } else {
            let mark = if place == Place::Topic { "_x" } else { "%" };
            // Writing to a String can't fail.
            let _infallible = write!(out, "{mark}{byte:02X}");
        }
        if out.len() - start > LONGEST_VALUE {
            let digest = digest(&SHA256, bytes);
            out.truncate(start + LONGEST_VALUE - 34);
            out.push_str("--");
            out.push_str(&hex::encode(&digest.as_ref()[..16]));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(key: &str) -> Values<'_> {
        Values { object: "direct_call", verb: "dial", key, category: "direct_call:dial", application_id: "A-1" }
    }

    fn render(pattern: &str, place: Place, key: &str) -> String {
        Template::parse(pattern, place).expect("pattern").render(&values(key))
    }

    #[test]
    fn fills_in_the_defaults() {
        assert_eq!(render("sendbird.calls.{object}", Place::Topic, ""), "sendbird.calls.direct_call");
        let subject = "sendbird.calls.{object}.{verb}.{key}";
        assert_eq!(render(subject, Place::Subject, "7F0E-9"), "sendbird.calls.direct_call.dial.7F0E-9");
        assert_eq!(render("{category}", Place::RoutingKey, ""), "direct_call:dial");
        assert_eq!(render("{category}", Place::Topic, ""), "direct_call_x3Adial");
    }

    #[test]
    fn nothing_breaks_out() {
        assert_eq!(render("a.{key}", Place::Subject, "x.>"), "a.x%2E%3E");
        assert_eq!(render("a.{key}", Place::RoutingKey, "* #\r\n"), "a.%2A%20%23%0D%0A");
        assert_eq!(render("a.{key}", Place::Topic, "ü/.."), "a._xC3_xBC_x2F_x2E_x2E");
        assert_eq!(render("a.{key}", Place::Subject, ""), "a._");
        assert_eq!(render("a.{key}", Place::Subject, "_"), "a.%5F");
    }

    #[test]
    fn mistakes_are_named() {
        for (pattern, place, hint) in [
            ("a.{kee}", Place::Topic, "{kee}"),
            ("a.{key", Place::Topic, "closing brace"),
            ("a b", Place::Subject, "' '"),
            ("a..b", Place::Subject, "empty"),
            ("{object}.", Place::Subject, "empty"),
            ("", Place::Topic, "empty"),
            ("sendbird:calls", Place::Topic, "':'"),
            ("a.>", Place::Subject, "'>'"),
        ] {
            let error = Template::parse(pattern, place).expect_err(pattern);
            assert!(error.contains(hint), "{pattern}: {error}");
        }
    }

    proptest! {
        #[test]
        fn stays_in_its_place(key in "\\PC{0,300}|[\\x00-\\x7f]{0,300}") {
            for place in [Place::Topic, Place::RoutingKey, Place::Subject] {
                let text = render("{key}", place, &key);
                prop_assert!(!text.is_empty() && text.len() <= LONGEST_VALUE);
                prop_assert!(text.bytes().all(|b| plain(b, place) || b == b'%'), "{}", text);
            }
        }

        #[test]
        fn different_values_give_different_texts(a in "[_x%a.0-9A-F]{0,12}", b in "[_x%a.0-9A-F]{0,12}") {
            for place in [Place::Topic, Place::RoutingKey, Place::Subject] {
                prop_assert_eq!(a == b, render("{key}", place, &a) == render("{key}", place, &b));
            }
        }
    }
}
