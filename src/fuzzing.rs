//! What must hold for any bytes: one function for each place where bytes from outside are read.
//!
//! `tests/fuzz` calls these with bytes of the fuzzer's making, and the normal tests with every file of the corpora
//! that it has left in `tests/fuzz/corpus`. A broken promise is a panic.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::Write as _;

use bytes::Bytes;
use serde_json::Value;

use crate::config::Loaded;
use crate::domain::envelope::{Format, View};
use crate::domain::template::{AddressKind, LONGEST_VALUE, Template, Values};
use crate::sendbird::delivery::parse;
use crate::sendbird::normalize::{Event, Provenance, Settings, normalize};
use crate::sendbird::redact::redact;
use crate::sendbird::signature::{self, Keys};

/// The two parts of an input, before and after the first zero byte.
fn split(data: &[u8]) -> (&[u8], &[u8]) {
    let at = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    (&data[..at], data.get(at + 1..).unwrap_or_default())
}

/// A delivery's body is refused, or becomes an event that keeps it.
pub fn body(data: &[u8]) {
    let Ok(delivery) = parse(data) else { return };
    let event = |body: &[u8]| {
        normalize(&parse(body).expect("parsed before"), Provenance::at(1_767_225_600_000), &Settings::default())
    };
    let Event { id, key, kind, envelope, .. } = event(data);
    assert!(!key.is_empty() && !kind.is_empty());
    assert!(!envelope.contains(&b'\n'), "an envelope is one line");

    let redacted = delivery.redacted();
    assert_eq!(redact(redacted).expect("JSON"), redacted, "what is hidden stays as it is");
    let unmarked = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let padded = [b" \n", unmarked, b"\t"].concat();
    assert_eq!(event(&padded).id, id, "white space tells nothing");
    assert_eq!(event(redacted.as_bytes()).id, id, "secrets tell nothing");

    let structured = Bytes::from(envelope);
    let view = View::parse(&structured).expect("what is stored can be read");
    assert_eq!(view.key(), key);
    assert_eq!(view.envelope().id, id.to_string());
    // Texts that serde_json can't hold (numbers out of range) are kept as they are, and not compared.
    if let Ok(given) = serde_json::from_str::<Value>(redacted) {
        let stored: Value = serde_json::from_str(view.envelope().data.get()).expect("data is JSON");
        assert_eq!(stored["raw"], given);
    }
    for format in [Format::Structured, Format::Binary] {
        for (name, value) in view.headers(format) {
            assert!(!value.chars().any(char::is_control), "{name} could begin another header");
        }
    }
    values(&view.values());
}

/// A text from a delivery can't leave its place in a topic, a routing key or a subject.
pub fn template(data: &[u8]) {
    let (pattern, value) = split(data);
    let value = String::from_utf8_lossy(value);
    let given = Values { object: "room", verb: &value, key: &value, category: &value, application_id: &value };
    values(&given);
    let Ok(pattern) = std::str::from_utf8(pattern) else { return };
    for kind in [AddressKind::Topic, AddressKind::RoutingKey, AddressKind::Subject] {
        let Ok(template) = Template::parse(pattern, kind) else { continue };
        assert_eq!(Template::parse(&template.to_string(), kind), Ok(template.clone()), "it is what it says");
        let text = template.render(&given);
        stays(&text, kind);
        let wildcards = template.with_wildcards("x");
        assert_eq!(text.split('.').count(), wildcards.split('.').count(), "{text} has another shape than {wildcards}");
    }
}

fn values(values: &Values<'_>) {
    for kind in [AddressKind::Topic, AddressKind::RoutingKey, AddressKind::Subject] {
        for pattern in ["{object}", "{verb}", "{key}", "{category}", "{application_id}"] {
            let text = Template::parse(pattern, kind).expect("a pattern").render(values);
            assert!(!text.is_empty() && text.len() <= LONGEST_VALUE && !text.contains('.'), "{text}");
            stays(&text, kind);
        }
    }
}

/// Whether a topic, routing key or subject has only characters that mean nothing to its broker but the dot.
fn stays(text: &str, kind: AddressKind) {
    let harmless = |byte: u8| match kind {
        AddressKind::Topic => byte.is_ascii_alphanumeric() || b"._-".contains(&byte),
        AddressKind::RoutingKey | AddressKind::Subject => byte.is_ascii_graphic() && !b"*>#".contains(&byte),
    };
    assert!(text.bytes().all(harmless), "{text:?} as {kind:?}");
    assert!(kind != AddressKind::Subject || text.split('.').all(|token| !token.is_empty()), "{text:?}");
}

/// A signature is valid if it is the body's by one of the keys, and only then.
pub fn signature(data: &[u8]) {
    const TOKENS: [&str; 3] = ["first", "", "second"];
    let (header, body) = split(data);
    let keys = Keys::new(TOKENS);
    let right = [signature::sign(TOKENS[0], body), signature::sign(TOKENS[2], body)];
    let expected = right.iter().position(|right| right.as_bytes().eq_ignore_ascii_case(header));
    assert_eq!(signature::verify(&keys, body, header), expected.map(|index| index * 2));
    for (index, right) in right.iter().enumerate() {
        assert_eq!(signature::verify(&keys, body, right.as_bytes()), Some(index * 2));
        if let Some((&first, rest)) = header.split_first() {
            let mut spoilt = right.clone().into_bytes();
            spoilt[usize::from(first) % signature::LENGTH] ^= rest.first().map_or(1, |byte| (byte & 0x0f).max(1));
            let same = spoilt.eq_ignore_ascii_case(right.as_bytes());
            assert_eq!(signature::verify(&keys, body, &spoilt).is_some(), same);
        }
        assert_eq!(signature::verify(&keys, &[body, b"."].concat(), right.as_bytes()), None);
    }
}

/// A configuration is taken or refused with the keys that are wrong, and shows no secret. Before the first zero byte
/// is the file, after it the variables, one a line.
pub fn config(data: &[u8]) {
    const CANARY: &str = "canary-4711";
    thread_local! {
        static FILE: RefCell<tempfile::NamedTempFile> =
            RefCell::new(tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory"));
    }
    let (text, variables) = split(data);
    // A fault names a variable in lower case, so a canary of the fuzzer's own in any case would look like the secret.
    if String::from_utf8_lossy(data).to_lowercase().contains(CANARY) {
        return;
    }
    let variables = String::from_utf8_lossy(variables).into_owned();
    let variables = variables.lines().filter_map(|line| line.split_once('='));
    let variables: Vec<(OsString, OsString)> = variables.map(|(name, value)| (name.into(), value.into())).collect();
    FILE.with_borrow_mut(|file| {
        for before in
            ["", "access.api_tokens = [\"canary-4711\"]\n", "access.header = { name = \"x\", value = \"canary-4711\" "]
        {
            let path = file.path().to_owned();
            let file = file.as_file_mut();
            file.set_len(0).expect("a file");
            std::io::Seek::rewind(file).expect("a file");
            file.write_all(&[before.as_bytes(), text].concat()).expect("a file");
            match Loaded::load(Some(&path), variables.clone().into_iter()) {
                Ok(loaded) => assert!(!loaded.show().contains(CANARY), "shown: {}", loaded.show()),
                Err(faults) => {
                    assert!(!faults.0.is_empty());
                    for fault in &faults.0 {
                        let said = fault.to_string();
                        assert!(!fault.message.is_empty(), "{fault:?}");
                        assert!(!said.contains(CANARY), "said: {said}");
                    }
                }
            }
        }
    });
}

/// A stored row is accepted only as it was stored.
pub fn row(data: &[u8]) {
    crate::journal::fuzz_record(data);
}

/// The feed's parameters, and after a zero byte `Last-Event-ID`, are understood or refused.
pub fn feed(data: &[u8]) {
    let (query, header) = split(data);
    if let Ok(query) = std::str::from_utf8(query) {
        crate::http::fuzz_feed(query, header);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Check = fn(&[u8]);

    /// Every input that ever taught the fuzzer something, and every one that ever broke a promise.
    #[test]
    fn the_corpora_hold() {
        let targets: [(&str, Check); 6] = [
            ("body", body),
            ("signature", signature),
            ("template", template),
            ("config", config),
            ("row", row),
            ("feed", feed),
        ];
        for (name, check) in targets {
            let dir = format!("tests/fuzz/corpus/{name}");
            let mut seen = 0;
            for entry in std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{dir}: {error}")) {
                let path = entry.unwrap().path();
                let data = std::fs::read(&path).unwrap();
                if std::panic::catch_unwind(|| check(&data)).is_err() {
                    panic!("{}", path.display());
                }
                seen += 1;
            }
            assert!(seen > 5, "{dir} has {seen} files");
        }
    }
}
