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

/// What is known of the values of events before there are any: those of one category, of one application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownValues {
    /// `direct_call`, `room` or `other`.
    pub object: &'static str,
    /// What follows the colon in the category, and the category; `None` stands for all categories of the object that
    /// Sendbird does not document.
    pub category: Option<(&'static str, &'static str)>,
    /// The application; `None` where it can be any.
    pub application_id: Option<String>,
}

/// The kind of address that the text is used as. It decides which characters are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
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
    kind: AddressKind,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Placeholder(usize),
}

impl Template {
    /// Parses a pattern and checks its fixed parts against what the address may contain.
    ///
    /// # Errors
    /// An unknown placeholder, an unclosed brace, or a character that such an address cannot contain.
    pub fn parse(pattern: &str, kind: AddressKind) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = pattern;
        while let Some(open) = rest.find('{') {
            literal(&mut parts, &rest[..open], kind)?;
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
        literal(&mut parts, rest, kind)?;
        if parts.is_empty() {
            return Err("expected a pattern, but it is empty".into());
        }
        if kind == AddressKind::Subject && pattern.split('.').any(str::is_empty) {
            return Err(format!("expected tokens between the dots, but found an empty one in \"{pattern}\""));
        }
        Ok(Self { kind, parts })
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
                    self.kind,
                ),
            }
        }
        out
    }

    /// The text for the events that have these values, and the placeholders whose values are not known, in whose places
    /// `wildcard` stands.
    pub fn render_known(&self, known: &KnownValues, wildcard: &str) -> (String, Vec<&'static str>) {
        let (mut out, mut unknown) = (String::new(), Vec::new());
        for part in &self.parts {
            let index = match part {
                Part::Literal(text) => {
                    out.push_str(text);
                    continue;
                }
                Part::Placeholder(index) => *index,
            };
            let value = match index {
                0 => Some(known.object),
                1 => known.category.map(|(verb, _)| verb),
                2 => None,
                3 => known.category.map(|(_, category)| category),
                _ => known.application_id.as_deref(),
            };
            match value {
                Some(value) => encode(&mut out, value, self.kind),
                None => {
                    out.push_str(wildcard);
                    unknown.push(PLACEHOLDERS[index]);
                }
            }
        }
        (out, unknown)
    }

    /// The texts for the events that have these values as words between dots; `*` stands for a word that is not known.
    pub fn pattern(&self, known: &KnownValues) -> String {
        let (text, _) = self.render_known(known, "*");
        text.split('.').map(|word| if word.contains('*') { "*" } else { word }).collect::<Vec<_>>().join(".")
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

fn literal(parts: &mut Vec<Part>, text: &str, kind: AddressKind) -> Result<(), String> {
    if let Some(wrong) = text.chars().find(|&c| c != '.' && !(c.is_ascii() && plain(c as u8, kind))) {
        return Err(format!("expected letters, digits, \".\", \"_\", \"-\" and placeholders, but found {wrong:?}"));
    }
    if !text.is_empty() {
        parts.push(Part::Literal(text.to_owned()));
    }
    Ok(())
}

fn plain(byte: u8, kind: AddressKind) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b':' && kind != AddressKind::Topic)
}

fn encode(out: &mut String, value: &str, kind: AddressKind) {
    if value.is_empty() {
        return out.push('_');
    }
    let start = out.len();
    let bytes = value.as_bytes();
    for (i, &byte) in bytes.iter().enumerate() {
        // The escape must itself be escaped, or two values could give one text. A topic can't have a
        // percent sign, so there the escape is `_x`. A lone underscore stands for the empty value.
        let escape =
            byte == b'_' && ((kind == AddressKind::Topic && bytes.get(i + 1) == Some(&b'x')) || bytes.len() == 1);
        if plain(byte, kind) && !escape {
            out.push(char::from(byte));
        } else {
            let mark = if kind == AddressKind::Topic { "_x" } else { "%" };
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

    fn render(pattern: &str, kind: AddressKind, key: &str) -> String {
        Template::parse(pattern, kind).expect("pattern").render(&values(key))
    }

    #[test]
    fn fills_in_the_defaults() {
        assert_eq!(render("sendbird.calls.{object}", AddressKind::Topic, ""), "sendbird.calls.direct_call");
        let subject = "sendbird.calls.{object}.{verb}.{key}";
        assert_eq!(render(subject, AddressKind::Subject, "7F0E-9"), "sendbird.calls.direct_call.dial.7F0E-9");
        assert_eq!(render("{category}", AddressKind::RoutingKey, ""), "direct_call:dial");
        assert_eq!(render("{category}", AddressKind::Topic, ""), "direct_call_x3Adial");
    }

    #[test]
    fn what_is_not_known_ahead_is_named() {
        let template = |text| Template::parse(text, AddressKind::Topic).expect("pattern");
        let known = KnownValues {
            object: "room",
            category: Some(("create", "room:create")),
            application_id: Some("A_x".to_owned()),
        };
        assert_eq!(template("c.{object}.{verb}").render_known(&known, "*"), ("c.room.create".into(), vec![]));
        assert_eq!(template("{application_id}.{key}").render_known(&known, "*"), ("A_x5Fx.*".into(), vec!["key"]));
        let unknown = KnownValues { object: "other", category: None, application_id: None };
        let (text, names) = template("{object}.{verb}.{category}.{application_id}").render_known(&unknown, "*");
        assert_eq!((text.as_str(), names), ("other.*.*.*", vec!["verb", "category", "application_id"]));
    }

    #[test]
    fn nothing_breaks_out() {
        assert_eq!(render("a.{key}", AddressKind::Subject, "x.>"), "a.x%2E%3E");
        assert_eq!(render("a.{key}", AddressKind::RoutingKey, "* #\r\n"), "a.%2A%20%23%0D%0A");
        assert_eq!(render("a.{key}", AddressKind::Topic, "ü/.."), "a._xC3_xBC_x2F_x2E_x2E");
        assert_eq!(render("a.{key}", AddressKind::Subject, ""), "a._");
        assert_eq!(render("a.{key}", AddressKind::Subject, "_"), "a.%5F");
    }

    #[test]
    fn mistakes_are_named() {
        for (pattern, kind, hint) in [
            ("a.{kee}", AddressKind::Topic, "{kee}"),
            ("a.{key", AddressKind::Topic, "closing brace"),
            ("a b", AddressKind::Subject, "' '"),
            ("a..b", AddressKind::Subject, "empty"),
            ("{object}.", AddressKind::Subject, "empty"),
            ("", AddressKind::Topic, "empty"),
            ("sendbird:calls", AddressKind::Topic, "':'"),
            ("a.>", AddressKind::Subject, "'>'"),
        ] {
            let error = Template::parse(pattern, kind).expect_err(pattern);
            assert!(error.contains(hint), "{pattern}: {error}");
        }
    }

    proptest! {
        #[test]
        fn stays_in_its_place(key in "\\PC{0,300}|[\\x00-\\x7f]{0,300}") {
            for kind in [AddressKind::Topic, AddressKind::RoutingKey, AddressKind::Subject] {
                let text = render("{key}", kind, &key);
                prop_assert!(!text.is_empty() && text.len() <= LONGEST_VALUE);
                prop_assert!(text.bytes().all(|b| plain(b, kind) || b == b'%'), "{}", text);
            }
        }

        #[test]
        fn different_values_give_different_texts(a in "[_x%a.0-9A-F]{0,12}", b in "[_x%a.0-9A-F]{0,12}") {
            for kind in [AddressKind::Topic, AddressKind::RoutingKey, AddressKind::Subject] {
                prop_assert_eq!(a == b, render("{key}", kind, &a) == render("{key}", kind, &b));
            }
        }
    }
}
