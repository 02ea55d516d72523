//! The look at the stream when a connection opens: it must exist, acknowledge, be writable and take our
//! subjects. What would lose events is refused, what may is warned of.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{Context, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, StorageType};

use super::answered;
use super::health::Health;
use super::settings::{CreateStream, Settings, Storage};
use crate::domain::template::Template;
use crate::sink::{About, Failure, Reason};

/// After an outage the bridge sends again what was unacknowledged. A window shorter than the outage lets those
/// copies through, so the expectation is the bridge's own default for deduplication.
const EXPECTED_WINDOW: Duration = Duration::from_secs(3600);

/// Who asks, and how it is noticed that the server does not let it.
pub(super) struct Asker<'a> {
    pub(super) context: &'a Context,
    /// What the subjects of JetStream's API begin with.
    pub(super) api_prefix: &'a str,
    pub(super) health: &'a Arc<Health>,
    /// Who the bridge is to the server, in words.
    pub(super) user: &'a str,
    /// The server's version.
    pub(super) version: &'a str,
}

/// Finds the stream, or creates it if that is allowed, and checks it. What is returned is worth a warning.
pub(super) async fn open(asker: &Asker<'_>, settings: &Settings, subject: &Template) -> Result<Vec<String>, Failure> {
    let name = &settings.stream;
    let config = match (find(asker, name).await?, settings.create_stream.as_option()) {
        (Ok(config), _) => config,
        (Err(_missing), Some(create)) => make(asker, name, &pattern(subject), create).await?,
        (Err(missing), None) => return Err(missing),
    };
    let (refusals, warnings) = judge(&config, &pattern(subject), asker.version);
    if refusals.is_empty() {
        Ok(warnings)
    } else {
        Err(Failure::every_event(Reason::Invalid, format!("stream {name}: {}", refusals.join("; "))))
    }
}

/// The configuration of the stream, or what says that there is no such stream.
///
/// # Errors
/// The server does not answer, or not to this.
pub(super) async fn find(asker: &Asker<'_>, name: &str) -> Result<Result<Config, Failure>, Failure> {
    let subject = format!("{}.STREAM.INFO.{name}", asker.api_prefix);
    let error = match asker.health.answer(&subject, asker.user, asker.context.get_stream(name)).await? {
        Ok(stream) => return Ok(Ok(stream.cached_info().config.clone())),
        Err(error) => error,
    };
    match error.kind() {
        GetStreamErrorKind::JetStream(answer) => {
            let detail = format!("stream {name}: {answer}");
            let failure = answered(answer.error_code(), answer.code(), &detail, About::EveryEvent);
            if answer.code() == 404 { Ok(Err(failure)) } else { Err(failure) }
        }
        GetStreamErrorKind::Request | GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => {
            Err(Failure::every_event(Reason::Unavailable, format!("stream {name}: no answer to {subject}: {error}")))
        }
    }
}

/// Creates the stream.
pub(super) async fn make(
    asker: &Asker<'_>,
    name: &str,
    pattern: &str,
    create: &CreateStream,
) -> Result<Config, Failure> {
    let (subject, config) = (format!("{}.STREAM.CREATE.{name}", asker.api_prefix), config(name, pattern, create));
    match asker.health.answer(&subject, asker.user, asker.context.create_stream(config)).await? {
        Ok(stream) => {
            tracing::info!(stream = name, "created the stream");
            Ok(stream.cached_info().config.clone())
        }
        Err(error) => match error.kind() {
            CreateStreamErrorKind::JetStream(answer) => {
                let detail = format!("creating stream {name}: {answer}");
                Err(answered(answer.error_code(), answer.code(), &detail, About::EveryEvent))
            }
            CreateStreamErrorKind::TimedOut => {
                Err(Failure::every_event(Reason::Timeout, format!("creating stream {name}: {error}")))
            }
            _ => Err(Failure::every_event(Reason::Unavailable, format!("creating stream {name}: {error}"))),
        },
    }
}

fn config(name: &str, pattern: &str, create: &CreateStream) -> Config {
    Config {
        name: name.to_owned(),
        subjects: vec![pattern.to_owned()],
        num_replicas: usize::from(create.replicas),
        storage: match create.storage {
            Storage::File => StorageType::File,
            Storage::Memory => StorageType::Memory,
        },
        max_age: create.max_age.map_or(Duration::ZERO, |age| age.0),
        max_bytes: create.max_bytes.map_or(-1, |size| i64::try_from(size.0).unwrap_or(i64::MAX)),
        duplicate_window: create.duplicate_window.0,
        // A full stream refuses new events, which then wait in the journal, instead of dropping old ones.
        discard: DiscardPolicy::New,
        ..Config::default()
    }
}

/// Our subjects as one pattern: a token with a placeholder can be anything.
pub(super) fn pattern(subject: &Template) -> String {
    let tokens = subject.with_wildcards("*");
    tokens.split('.').map(|token| if token.contains('*') { "*" } else { token }).collect::<Vec<_>>().join(".")
}

/// What speaks against the stream, and what is worth a warning, on a server of this version.
pub(super) fn judge(config: &Config, pattern: &str, version: &str) -> (Vec<String>, Vec<String>) {
    let (mut refusals, mut warnings) = (Vec::new(), Vec::new());
    if config.no_ack {
        refusals.push("expected a stream that acknowledges, but found no_ack".to_owned());
    }
    if config.sealed {
        refusals.push("expected a writable stream, but found it sealed".to_owned());
    }
    let list = || config.subjects.join(", ");
    if !config.subjects.iter().any(|taken| matches(taken, pattern, Match::Some)) {
        refusals.push(format!("expected subjects that take {pattern}, but found {}", list()));
    } else if !config.subjects.iter().any(|taken| matches(taken, pattern, Match::All)) {
        warnings.push(format!("no subject of the stream takes all of {pattern}; it has {}", list()));
    }
    let bounded = config.max_bytes > 0 || config.max_messages > 0 || config.max_messages_per_subject > 0;
    if bounded && config.discard == DiscardPolicy::Old {
        warnings.push("the full stream discards old events, read or not (discard: old)".to_owned());
    }
    if config.duplicate_window < EXPECTED_WINDOW {
        let window = config.duplicate_window;
        warnings
            .push(format!("the duplicate window is {window:?}; a longer outage can leave events in the stream twice"));
    }
    if config.num_replicas < 3 {
        let replicas = config.num_replicas;
        warnings
            .push(format!("it has {replicas} of the 3 replicas that are advised: the loss of a disk can lose events"));
    }
    if config.storage == StorageType::Memory {
        warnings.push("it is kept in memory: events are lost when its servers stop".to_owned());
    }
    if config.persist_mode == Some(PersistenceMode::Async) {
        warnings.push("persist_mode is async: events are acknowledged before they are written".to_owned());
    }
    let named = warnings.into_iter().map(|warning| format!("stream {}: {warning}", config.name));
    (refusals, named.chain(of_version(version)).collect())
}

/// What is known of servers as old as this one.
fn of_version(version: &str) -> Option<String> {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let version_numbers = (numbers.next()??, numbers.next()??, numbers.next()??);
    let told = if version_numbers < (2, 10, 23) {
        "before 2.10.23 a crash of a server in a cluster can lose acknowledged events, or a whole stream"
    } else if version_numbers < (2, 11, 0) {
        "before 2.11 a change of the leader can leave an event in the stream twice"
    } else {
        return None;
    };
    Some(format!("server {version}: {told}"))
}

/// Those of our patterns of which the stream does not take every subject.
pub(super) fn not_taken<'a>(config: &Config, patterns: &'a BTreeSet<String>) -> Vec<&'a str> {
    let is_taken = |pattern: &str| config.subjects.iter().any(|taken| matches(taken, pattern, Match::All));
    patterns.iter().map(String::as_str).filter(|pattern| !is_taken(pattern)).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Match {
    Some,
    All,
}

/// Whether a stream's subject takes some, or all, of the subjects of our pattern.
fn matches(taken: &str, pattern: &str, want: Match) -> bool {
    let mut taken = taken.split('.');
    let mut ours = pattern.split('.');
    loop {
        match (taken.next(), ours.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(_), Some("*")) if want == Match::Some => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::template::AddressKind;

    const OURS: &str = "sendbird.calls.*.*.*";

    fn stream(subjects: &[&str]) -> Config {
        config("S", "x", &CreateStream::default()).with(subjects)
    }

    trait With {
        fn with(self, subjects: &[&str]) -> Self;
    }

    impl With for Config {
        fn with(mut self, subjects: &[&str]) -> Self {
            self.subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
            self
        }
    }

    #[test]
    fn a_token_with_a_placeholder_is_a_wildcard() {
        let pattern_of = |text| pattern(&Template::parse(text, AddressKind::Subject).expect("template"));
        assert_eq!(pattern_of("sendbird.calls.{object}.{verb}.{key}"), OURS);
        assert_eq!(pattern_of("a.b-{key}.c"), "a.*.c");
    }

    #[test]
    fn subjects_are_compared_by_token() {
        for (taken, some, all) in [
            (OURS, true, true),
            (">", true, true),
            ("sendbird.>", true, true),
            ("sendbird.calls.*.*.>", true, true),
            ("*.calls.*.*.*", true, true),
            ("sendbird.calls.room.>", true, false),
            ("sendbird.calls.*.*", false, false),
            ("sendbird.calls.*.*.*.>", false, false),
            ("other.>", false, false),
        ] {
            assert_eq!(matches(taken, OURS, Match::Some), some, "{taken}");
            assert_eq!(matches(taken, OURS, Match::All), all, "{taken}");
        }
    }

    #[test]
    fn what_loses_events_is_refused() {
        let good = stream(&["sendbird.>"]);
        let good = Config { num_replicas: 3, ..good };
        assert_eq!(judge(&good, OURS, "2.11.0"), (vec![], vec![]));
        let bad = Config { no_ack: true, sealed: true, ..stream(&["other"]) };
        assert_eq!(judge(&bad, OURS, "2.11.0").0.len(), 3);
    }

    #[test]
    fn what_may_lose_or_double_events_is_warned_of() {
        let config = Config {
            discard: DiscardPolicy::Old,
            max_bytes: 1,
            duplicate_window: Duration::from_secs(120),
            ..stream(&["sendbird.calls.room.>"])
        };
        let (refusals, warnings) = judge(&config, OURS, "2.11.0");
        assert!(refusals.is_empty());
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        let config = Config {
            num_replicas: 3,
            storage: StorageType::Memory,
            persist_mode: Some(PersistenceMode::Async),
            ..stream(&["sendbird.>"])
        };
        let (_, warnings) = judge(&config, OURS, "2.11.0");
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn old_servers_are_warned_of() {
        for (version, words) in [
            ("2.9.25", Some("before 2.10.23")),
            ("2.10.22", Some("before 2.10.23")),
            ("2.10.23", Some("before 2.11")),
            ("2.10.29-binary", Some("before 2.11")),
            ("2.11.0-preview.1", None),
            ("2.15.1", None),
            ("3.0.0", None),
            ("unknown", None),
        ] {
            let told = of_version(version);
            assert_eq!(told.is_some(), words.is_some(), "{version}");
            assert!(told.unwrap_or_default().contains(words.unwrap_or_default()), "{version}");
        }
    }
}
