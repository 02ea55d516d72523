//! The configuration from outside: layers, faults, sources, secrets.

mod values;

#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
use std::collections::BTreeSet;
use std::path::PathBuf;

use super::*;
use crate::domain::units::Span;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn load(toml: &str, variables: &[(&str, &str)]) -> Result<Loaded, Vec<String>> {
    let dir = Dir::new();
    let file = dir.file("bridge.toml", toml);
    let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    Loaded::load(Some(&file), variables).map_err(|faults| faults.0.iter().map(ToString::to_string).collect())
}

fn faults(toml: &str, variables: &[(&str, &str)]) -> Vec<String> {
    load(toml, variables).expect_err("faults")
}

const AUTHENTICATED: &str = "access.api_tokens = ['t']\n";

#[test]
fn the_environment_lies_over_the_file() {
    let toml = format!("{AUTHENTICATED}server.listen = '127.0.0.1:1'\nserver.answer_deadline = '500ms'");
    let variables = [
        ("SENDBIRD_BRIDGE_SERVER__LISTEN", "127.0.0.1:2"),
        ("SENDBIRD_BRIDGE_SERVER__MAX_CONNECTIONS", "17"),
        ("SENDBIRD_BRIDGE_ENVELOPE__INCLUDE_RAW", "false"),
        ("SENDBIRD_BRIDGE_CONFIG", "elsewhere"),
        ("PATH", "/bin"),
    ];
    let loaded = load(&toml, &variables).unwrap();
    let server = &loaded.config.server;
    assert_eq!(server.listen.port(), 2);
    assert_eq!((server.max_connections, server.answer_deadline), (17, Span::from_millis(500)));
    assert!(!loaded.config.envelope.include_raw);
}

#[test]
fn all_faults_are_named_at_once_with_their_sources() {
    let toml = "
        server.listen = 'nowhere'
        server.max_body = 5
        journal.dirr = '/x'
        dedup.window = '1 parsec'
        [sinks.out]
        type = 'stdin'
        [sinks.lines]
        type = 'stdout'
        categories = ['romm:*']
    ";
    let found = faults(toml, &[("SENDBIRD_BRIDGE_ADMIN__LISTEN", "0.0.0.0:9")]);
    for (key, word, source) in [
        ("server.listen", "nowhere", "bridge.toml"),
        ("server.max_body", "expected a size with a unit", "bridge.toml"),
        ("journal.dirr", "did you mean \"dir\"?", "bridge.toml"),
        ("dedup.window", "1 parsec", "bridge.toml"),
        ("sinks.out.type", "stdin", "bridge.toml"),
        ("sinks.lines.categories", "romm:*", "bridge.toml"),
        ("admin.token", "not loopback", ""),
        ("access.api_tokens", "expected at least one token", ""),
    ] {
        let fault = found.iter().find(|fault| fault.starts_with(&format!("{key}: ")));
        let fault = fault.unwrap_or_else(|| panic!("no fault of {key} in {found:#?}"));
        assert!(fault.contains(word) && fault.contains(source), "{fault}");
    }
    assert_eq!(found.len(), 8, "{found:#?}");
}

#[test]
fn a_wrong_variable_is_named() {
    let found = faults(AUTHENTICATED, &[("SENDBIRD_BRIDGE_SERVER__MAX_BODY", "many"), ("SENDBIRD_BRIDGE_LISTEN", "x")]);
    assert!(found.iter().any(|fault| fault.contains("SENDBIRD_BRIDGE_SERVER__MAX_BODY")), "{found:#?}");
    assert!(found.iter().any(|fault| fault.contains("the variable SENDBIRD_BRIDGE_LISTEN")), "{found:#?}");
    let deep = format!("SENDBIRD_BRIDGE_A{}", "__A".repeat(10_000));
    assert!(faults(AUTHENTICATED, &[(&deep, "x")])[0].contains("few levels"));
    let deep = format!("a{} = 1", ".a".repeat(10_000));
    assert!(faults(&deep, &[])[0].contains("not valid TOML"), "a file that is as deep");
}

#[test]
fn variables_that_kubernetes_adds_are_left_alone() {
    let links = [
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT", "80"),
        ("SERVICE_PORT_WEBHOOK", "80"),
        ("PORT", "tcp://10.0.0.1:80"),
        ("PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("PORT_8080_TCP_PROTO", "tcp"),
        ("PORT_8080_TCP_PORT", "8080"),
        ("PORT_8080_TCP_ADDR", "10.0.0.1"),
    ];
    for service in ["", "EU_", "OF_A_SERVICE_"] {
        let names = links.map(|(name, value)| (format!("SENDBIRD_BRIDGE_{service}{name}"), value));
        load(AUTHENTICATED, &names.each_ref().map(|(name, value)| (name.as_str(), *value))).unwrap();
    }
    for mistake in ["SENDBIRD_BRIDGE_PORT", "SENDBIRD_BRIDGE_SERVER_PORT", "SENDBIRD_BRIDGE_PORT_8080_X"] {
        assert!(faults(AUTHENTICATED, &[(mistake, "8080")])[0].contains(mistake), "{mistake}");
    }
}

#[test]
fn secrets_of_digits_stay_as_they_are() {
    let variables = [
        ("SENDBIRD_BRIDGE_ACCESS__API_TOKENS", "007, 1e3"),
        ("SENDBIRD_BRIDGE_ACCESS__PATH_SECRET", "000123"),
        ("SENDBIRD_BRIDGE_ADMIN__TOKEN", "true"),
    ];
    let config = load("", &variables).unwrap().config;
    let tokens: Vec<_> = config.access.api_tokens.iter().map(|token| token.expose()).collect();
    assert_eq!(tokens, ["007", "1e3"]);
    assert_eq!(config.access.path_secret.unwrap().expose(), "000123");
    assert_eq!(config.admin.token.unwrap().expose(), "true");
}

#[test]
fn an_application_may_come_from_a_file_and_from_variables_under_one_id() {
    let tokens = ("SENDBIRD_BRIDGE_APPLICATIONS__0A1B-2C__API_TOKENS", "007, 1e3");
    let config = load("applications.0a1b-2c.rate = 5", &[tokens]).unwrap().config;
    let (key, found) = config.applications.tokens_of("0A1B-2C", &[]);
    let found: Vec<_> = found.iter().map(|token| token.expose()).collect();
    assert_eq!((key.as_str(), &found[..]), ("applications.0a1b-2c.api_tokens", &["007", "1e3"][..]));
    let found = faults("applications.0A1B-2C.rate = 5", &[tokens]);
    assert!(found.len() == 1 && found[0].contains("found \"0A1B-2C\" too"), "{found:?}");
    assert!(found[0].contains("the variable SENDBIRD_BRIDGE_APPLICATIONS"), "{found:?}");
}

#[test]
fn secrets_are_read_from_files() {
    let dir = Dir::new();
    let tokens = dir.file("tokens", "first\n\nsecond\n");
    let token = dir.file("token", "third\n");
    let toml = format!("access.api_tokens_file = '{}'\nadmin.token_file = '{}'", tokens.display(), token.display());
    let config = load(&toml, &[]).unwrap().config;
    let exposed: Vec<_> = config.access.api_tokens.iter().map(|token| token.expose()).collect();
    assert_eq!(exposed, ["first", "second"]);
    assert_eq!(config.admin.token.unwrap().expose(), "third");

    let both = format!("access.api_tokens_file = '{}'\naccess.api_tokens = ['t']", tokens.display());
    assert!(faults(&both, &[])[0].contains("found both"));
    let missing = faults("access.api_tokens_file = '/nonexistent/token'", &[]);
    assert!(missing.len() == 1 && missing[0].starts_with("access.api_tokens_file: cannot read"), "{missing:?}");
}

#[test]
fn no_secret_is_ever_shown() {
    let toml = "
        access.api_tokens = ['canary-1']
        access.path_secret = 'canary-2'
        access.header = { name = 'x-key', value = 'canary-3' }
        admin.token = 'canary-4'
    ";
    let loaded = load(toml, &[]).unwrap();
    let shown = format!("{}{loaded:?}", loaded.show());
    // The debug form holds the layers as they were read, which nothing prints; the rest must be clean.
    let shown = shown.split("Origin").next().unwrap();
    assert!(!shown.contains("canary"), "{shown}");
    assert!(shown.contains("access.path_secret = \"<hidden>\""));

    let wrong = faults("access.api_tokens = 'canary'\nadmin.token = 12345678\naccess.path_secret = 'can/ary'", &[]);
    assert!(
        wrong
            .iter()
            .all(|fault| !fault.contains("canary") && !fault.contains("can/ary") && !fault.contains("12345678")),
        "{wrong:#?}"
    );
}

#[test]
fn values_are_shown_with_their_sources() {
    let shown = load(&format!("{AUTHENTICATED}dedup.window = '2h'"), &[("SENDBIRD_BRIDGE_DEDUP__MAX_IDS", "5000")])
        .unwrap()
        .show();
    let line =
        |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key} in {shown}"));
    assert!(line("dedup.window = \"2h\"").ends_with("bridge.toml"));
    assert!(line("dedup.max_ids = 5000").ends_with("# the variable SENDBIRD_BRIDGE_DEDUP__MAX_IDS"));
    assert!(line("server.max_body = \"256KiB\"").ends_with("# default"));
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let found = Loaded::load(Some(std::path::Path::new("/nonexistent/bridge.toml")), std::iter::empty()).unwrap_err();
    let said = "cannot read the configuration file /nonexistent/bridge.toml: no such file or directory";
    assert_eq!((found.to_string().as_str(), found.0.len(), found.lines().len()), (said, 1, 0));
    let found = faults("server.listen = ", &[]);
    assert!(found.len() == 1 && found[0].contains("bridge.toml:1:"), "{found:?}");
}

#[test]
fn categories_become_types() {
    let config =
        load(&format!("{AUTHENTICATED}[sinks.a]\ntype = 'stdout'\ncategories = ['room:*', 'direct_call:dial']"), &[]);
    let types = config.unwrap().config.sinks["a"].types();
    assert_eq!(types, ["com.sendbird.calls.room.*", "com.sendbird.calls.direct_call.dial"]);
}

#[test]
fn a_broken_file_is_named_by_its_place_and_not_shown() {
    let found = faults("server.listen = '127.0.0.1:1'\naccess.api_tokens = [\"canary-4711\" oh]", &[]);
    assert!(found.len() == 1 && found[0].contains("/bridge.toml:2:36: not valid TOML: "), "{found:?}");
    assert!(!found.concat().contains("canary"), "{found:?}");
}

#[test]
fn a_variable_is_a_value_as_in_a_file_or_else_text() {
    let header = ("SENDBIRD_BRIDGE_ACCESS__HEADER", "{ name = \"x-key\", value = \"secret\" }");
    let shown = load(AUTHENTICATED, &[header, ("SENDBIRD_BRIDGE_JOURNAL__DIR", "2026-01-01")]).unwrap().show();
    assert!(
        shown.contains("access.header.name = \"x-key\"") && shown.contains("journal.dir = \"2026-01-01\""),
        "{shown}"
    );
    for text in ["[\"\u{fffd}\\k\"]", "1\nserver.listen = '0.0.0.0:1'", "\"", "{"] {
        let dir = load(AUTHENTICATED, &[("SENDBIRD_BRIDGE_JOURNAL__DIR", text)]).unwrap().config.journal.dir;
        assert_eq!(dir.to_str(), Some(text));
    }
}

/// Calls `each` with every property of a schema and its name.
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
fn properties<'a>(schema: &'a serde_json::Value, each: &mut impl FnMut(&'a str, &'a serde_json::Value)) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        each(name, property);
    }
    match schema {
        serde_json::Value::Object(members) => members.values().for_each(|member| properties(member, each)),
        serde_json::Value::Array(items) => items.iter().for_each(|item| properties(item, each)),
        _ => {}
    }
}

#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "nats"))]
#[test]
fn the_lists_of_keys_are_those_of_the_schema() {
    let schema = serde_json::to_value(schema()).unwrap();
    let (mut secrets, mut lists) = (BTreeSet::new(), BTreeSet::new());
    properties(&schema, &mut |name, property| {
        if show::is_secret(property) {
            secrets.insert(name);
        }
        if property["type"] == "array" {
            lists.insert(name);
        }
    });
    // No secrets, but of digits at times, and not to be shown beside a password.
    secrets.extend(["client_id", "username"]);
    assert_eq!(secrets, BTreeSet::from(layers::SECRETS));
    // Of tables, and within those; no variable can name them.
    assert!(lists.remove("queues") && lists.remove("bindings"));
    assert_eq!(lists, BTreeSet::from(layers::LISTS));
}
