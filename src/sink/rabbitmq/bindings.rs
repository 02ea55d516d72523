//! Whether a binding key can ever match a routing key of a template.

use crate::domain::template::{Template, Values};

/// What `{object}` can be.
const OBJECTS: [&str; 3] = ["direct_call", "room", "other"];
/// A value for every other placeholder.
const ANY_VALUE: &str = "\u{0}";
/// What a routing key has in its place. No key has it otherwise.
const ANY: &str = "%00";

/// Why no event would reach a queue by this binding to an exchange of this type; `None` if some can, or if only a plugin
/// knows.
pub(super) fn mismatch(exchange_type: &str, binding: &str, routing_key: &Template) -> Option<String> {
    let matches = match exchange_type {
        "topic" => OBJECTS.iter().any(|object| matches(binding, &key(routing_key, object), true)),
        "direct" => OBJECTS.iter().any(|object| matches(binding, &key(routing_key, object), false)),
        "x-consistent-hash" if binding.parse::<u32>().is_ok_and(|weight| weight > 0) => true,
        "x-consistent-hash" => {
            return Some(format!("expected a weight, such as \"1\", for the exchange's type, but found \"{binding}\""));
        }
        _ => true,
    };
    (!matches).then(|| {
        format!(
            "expected a binding key that a routing key \"{routing_key}\" can match in an exchange of the type \
             \"{exchange_type}\", but found \"{binding}\""
        )
    })
}

fn key(routing_key: &Template, object: &str) -> String {
    let (verb, key, category, application_id) = (ANY_VALUE, ANY_VALUE, ANY_VALUE, ANY_VALUE);
    routing_key.render(&Values { object, verb, key, category, application_id })
}

/// As the broker matches: word by word, where `*` is one word and `#` any number of them.
fn matches(binding: &str, key: &str, wildcards: bool) -> bool {
    let words: Vec<&str> = key.split('.').collect();
    // Whether the binding so far matches so many words.
    let mut matched = vec![false; words.len() + 1];
    matched[0] = true;
    for word in binding.split('.') {
        if wildcards && word == "#" {
            for count in 1..=words.len() {
                matched[count] |= matched[count - 1];
            }
        } else {
            for count in (1..=words.len()).rev() {
                matched[count] = matched[count - 1] && fits(word, words[count - 1], wildcards);
            }
            matched[0] = false;
        }
    }
    matched[words.len()]
}

fn fits(word: &str, known: &str, wildcards: bool) -> bool {
    match known.split_once(ANY) {
        _ if wildcards && word == "*" => true,
        None => word == known,
        // The characters of a value that mean something are encoded.
        Some((before, rest)) => {
            let after = rest.rsplit(ANY).next().unwrap_or_default();
            word.starts_with(before) && word.ends_with(after) && !word.contains(['*', '#'])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::template::AddressKind;

    #[test]
    fn a_binding_matches_a_key_or_is_refused() {
        let matches = |exchange_type: &str, binding: &str, pattern: &str| {
            let template = Template::parse(pattern, AddressKind::RoutingKey).expect("a template");
            mismatch(exchange_type, binding, &template).is_none()
        };
        let default = "{object}.{verb}.{key}";
        for (exchange_type, binding, pattern, expected) in [
            ("topic", "#", default, true),
            ("topic", "room.#", default, true),
            ("topic", "direct_call.*.*", default, true),
            ("topic", "*.dial.#", default, true),
            ("topic", "#.#.#.#", default, true),
            ("topic", "direct_call.*", default, false),
            ("topic", "calls.#", default, false),
            ("topic", "rooms.#", default, false),
            ("topic", "direct-call.#", default, false),
            ("topic", "*.*.*.*", default, false),
            ("topic", "calls.room", "calls.{object}", true),
            ("topic", "v1-room.x", "v1-{object}.{key}", true),
            ("topic", "v2-room.x", "v1-{object}.{key}", false),
            ("topic", "x-dial", "x-{verb}", true),
            ("topic", "", default, false),
            ("direct", "room", "{object}", true),
            ("direct", "direct_call:dial", "{category}", true),
            ("direct", "#", "{object}", false),
            ("direct", "room.*", "{object}.{verb}", false),
            ("fanout", "anything", default, true),
            ("headers", "", default, true),
            ("x-random", "", default, true),
            ("x-consistent-hash", "10", default, true),
            ("x-consistent-hash", "#", default, false),
        ] {
            assert_eq!(matches(exchange_type, binding, pattern), expected, "{exchange_type} {binding} {pattern}");
        }
    }
}
