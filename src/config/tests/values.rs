//! Values that are read without complaint and can never work: each is refused, or warned of.

use super::{AUTHENTICATED, Dir, Loaded, faults, load};
use std::os::unix::ffi::OsStringExt;

/// The faults of a file that holds a secret.
fn faults_of_file(key: &str, bytes: &[u8], more: &str) -> Vec<String> {
    let dir = Dir::new();
    let path = dir.0.path().join("secret");
    std::fs::write(&path, bytes).unwrap();
    let toml = format!("{more}\n{key}_file = '{}'", path.display());
    load(&toml, &[]).err().unwrap_or_default()
}

fn warnings(toml: &str) -> Vec<String> {
    load(toml, &[]).unwrap().warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn what_slips_into_a_secret_file_is_named_and_the_secret_is_not() {
    for (key, more) in [
        ("access.api_tokens", ""),
        ("access.path_secret", AUTHENTICATED),
        ("access.header.value", "access.api_tokens = ['t']\naccess.header.name = 'x-key'"),
        ("admin.token", AUTHENTICATED),
    ] {
        let file = |bytes: &[u8]| faults_of_file(key, bytes, more);
        assert_eq!(file(b"canary\n"), [""; 0], "{key}");
        let found = file(b"\xef\xbb\xbfcanary\n");
        assert!(found.len() == 1 && found[0].contains("byte order mark"), "{key}: {found:?}");
        assert!(found[0].starts_with(key) && found[0].contains("bridge.toml"), "{found:?}");
        let found = file(b"\xff\xfec\0a\0n\0a\0r\0y\0");
        assert!(found.iter().any(|fault| fault.contains("UTF-16")), "{key}: {found:?}");
    }
    for (key, more) in [("access.path_secret", AUTHENTICATED), ("admin.token", AUTHENTICATED)] {
        for (text, word) in [
            ("canary\nanother\n", "more than one line"),
            (" canary\n", "white space"),
            ("\"canary\"\n", "quotes"),
            ("${CANARY}\n", "placeholder"),
            ("canary\0\n", "control character"),
        ] {
            let found = faults_of_file(key, text.as_bytes(), more);
            assert!(found.len() == 1 && found[0].contains(word), "{key} {text:?}: {found:?}");
            assert!(!found[0].contains("anary"), "{found:?}");
        }
    }
    let found = faults_of_file("access.api_tokens", b"# the new one\ncanary\n", "");
    assert!(found.len() == 1 && found[0].contains("visible ASCII"), "{found:?}");
    let found = faults_of_file("access.api_tokens", b"'first'\n\xef\xbb\xbfsecond\n", "");
    assert!(found.len() == 2 && found[0].starts_with("access.api_tokens[0]"), "{found:?}");
}

#[test]
fn secrets_are_checked_wherever_they_come_from() {
    let found = faults("access.api_tokens = ['\"t\"', ' u']\nadmin.token = '<token>'", &[]);
    let keys: Vec<_> = found.iter().map(|fault| fault.split(':').next().unwrap()).collect();
    assert_eq!(keys, ["access.api_tokens[0]", "access.api_tokens[1]", "admin.token"]);
    let found = faults(AUTHENTICATED, &[("SENDBIRD_BRIDGE_ADMIN__TOKEN", "canary\n")]);
    assert!(found[0].contains("the variable SENDBIRD_BRIDGE_ADMIN__TOKEN"), "{found:?}");
}

#[cfg(feature = "kafka")]
#[test]
fn a_password_may_have_spaces_and_quotes_at_its_ends_and_is_warned_of() {
    let sink = "[sinks.k]\ntype = 'kafka'\nbrokers = ['a:1']\nsasl = { username = 'u', password = ";
    let found = warnings(&format!("{AUTHENTICATED}{sink} ' canary' }}"));
    assert!(found.len() == 1 && found[0].starts_with("sinks.k.sasl.password: ") && !found[0].contains("canary"));
    let found = faults(&format!("{AUTHENTICATED}{sink} \"canary\\nx\" }}"), &[]);
    assert!(found.len() == 1 && found[0].contains("more than one line"), "{found:?}");
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_url_with_an_unencoded_delimiter_is_refused() {
    let of = |url: &str| format!("{AUTHENTICATED}[sinks.r]\ntype = 'rabbitmq'\nurl = '{url}'");
    let found = faults(&of("amqp://u:p@canary#1@h/v"), &[]);
    assert!(found.len() == 1 && found[0].starts_with("sinks.r.url: ") && found[0].contains("%23"), "{found:?}");
    assert!(!found[0].contains("canary"));
    load(&of("amqp://u:p%40canary%231@h/v"), &[]).unwrap();
}

#[test]
fn a_variable_that_is_no_text_is_a_fault_and_no_panic() {
    let bad = std::ffi::OsString::from_vec(b"/data/caf\xe9".to_vec());
    let variables =
        |name: &str| vec![("SENDBIRD_BRIDGE_ACCESS__API_TOKENS".into(), "t".into()), (name.into(), bad.clone())];
    let found = Loaded::load(None, variables("SENDBIRD_BRIDGE_JOURNAL__DIR").into_iter()).unwrap_err();
    assert!(found.0.len() == 1 && found.0[0].to_string().contains("expected UTF-8"), "{found:?}");
    Loaded::load(None, variables("LESSCHARSET").into_iter()).unwrap();
}

#[test]
fn a_file_in_another_encoding_is_one_fault_that_says_so() {
    let dir = Dir::new();
    let path = dir.0.path().join("bridge.toml");
    let of = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Loaded::load(Some(&path), std::iter::empty()).map_err(|faults| faults.to_string())
    };
    assert!(of(format!("\u{feff}{AUTHENTICATED}").as_bytes()).is_ok(), "a byte order mark before TOML is skipped");
    assert!(of(b"\xff\xfea\0").unwrap_err().contains("UTF-16"));
    assert!(of(b"a = '\xe9'").unwrap_err().ends_with("it is not UTF-8"));
}

#[test]
fn values_that_can_never_work_are_refused() {
    for (toml, key) in [
        ("server.path = '/a/../b'", "server.path"),
        ("server.path = '/./b'", "server.path"),
        ("admin.listen = '127.0.0.1:8080'", "admin.listen"),
        ("server.listen = '127.0.0.1:1'\nadmin.listen = '[::ffff:127.0.0.1]:1'", "admin.listen"),
        ("admin.token = 'a b'", "admin.token"),
        ("admin.token = 't\u{f6}ken'", "admin.token"),
        ("access.networks = ['10.1.2.3/8']", "access.networks"),
        ("access.trusted_proxies = ['::ffff:10.0.0.0/104']", "access.trusted_proxies"),
        ("access.path_secret = '..'", "access.path_secret"),
        ("access.header = { name = 'host', value = 'v' }", "access.header.name"),
        ("applications.'A 1'.rate = 5", "applications.A 1: "),
        ("applications.A-1 = {}", "applications.A-1: "),
        ("applications.A-1.rate = 0", "applications.A-1.rate"),
        ("applications.A-1.rates = 5", "applications.A-1.rates"),
        ("applications.A-1 = 5", "applications.A-1: "),
        ("applications = ['A-1']", "applications: "),
        ("applications.A-1.api_tokens = ['t']", "applications.A-1.api_tokens"),
        ("envelope.schema_base = '1x:'", "envelope.schema_base"),
        ("envelope.schema_base = 'https://h/<x>/'", "envelope.schema_base"),
        ("reconcile = { every = '1m', application = 'A', api_url = 'https://h:0' }", "reconcile.api_url"),
        ("[sinks.a]\ntype = 'stdout'\ncategories = ['room: create']", "sinks.a.categories"),
        ("[sinks.a]\ntype = 'stdout'\napplications = ['A 1']", "sinks.a.applications"),
        ("access.applications = ['B-2']\n[sinks.a]\ntype = 'stdout'\napplications = ['A-1']", "sinks.a.applications"),
    ] {
        let found = faults(&format!("{AUTHENTICATED}{toml}"), &[]);
        assert!(found.len() == 1 && found[0].starts_with(key), "{toml}: {found:?}");
        assert!(found[0].contains("expected") && found[0].contains("bridge.toml"), "{found:?}");
    }
    for fine in ["admin.listen = '127.0.0.1:0'\nserver.listen = '0.0.0.0:0'", "server.listen = '10.0.0.1:9090'"] {
        load(&format!("{AUTHENTICATED}{fine}"), &[]).unwrap();
    }
}

#[test]
fn values_that_most_often_do_not_work_are_warned_of() {
    let sink = "[sinks.a]\ntype = 'stdout'\n";
    for (toml, key, word) in [
        (format!("{AUTHENTICATED}server.answer_deadline = '1s'\n{sink}"), "server.answer_deadline", "1s"),
        (
            format!(
                "{AUTHENTICATED}server.max_body = '16MiB'\njournal.max_bytes = '32MiB'\njournal.retain_bytes = '1MiB'\n{sink}"
            ),
            "server.max_body",
            "16MiB",
        ),
        (AUTHENTICATED.to_owned(), "sinks", "no sinks"),
        (format!("access.open = true\n{sink}"), "access.open", "ANYBODY"),
        (format!("{AUTHENTICATED}{sink}categories = ['direct_call:dail']"), "sinks.a.categories", "direct_call:dial"),
        (format!("{AUTHENTICATED}{sink}categories = ['room:transcribed']"), "sinks.a.categories", "room:transcribed"),
    ] {
        let found = warnings(&toml);
        assert!(found.len() == 1 && found[0].starts_with(&format!("{key}: ")), "{toml}: {found:?}");
        assert!(found[0].contains(word), "{found:?}");
    }
    assert_eq!(warnings(&format!("{AUTHENTICATED}{sink}categories = ['Room:*', 'direct_call:dial']")), [""; 0]);
}

#[cfg(feature = "kafka")]
#[test]
fn a_topic_that_leads_to_more_topics_than_a_cluster_bears_is_refused() {
    let of = |topic: &str, more: &str| {
        format!("{AUTHENTICATED}{more}\n[sinks.k]\ntype = 'kafka'\nbrokers = ['a:1']\ntopic = '{topic}'")
    };
    let found = faults(&of("calls.{key}", ""), &[]);
    assert!(found.len() == 1 && found[0].starts_with("sinks.k.topic: "), "{found:?}");
    let found = warnings(&of("{application_id}", ""));
    assert!(found.len() == 1 && found[0].starts_with("sinks.k.topic: "), "{found:?}");
    assert_eq!(warnings(&of("{application_id}", "access.applications = ['A']")), [""; 0]);
    let many: Vec<String> = (0..80).map(|number| format!("'A-{number}'")).collect();
    let many = format!("access.applications = [{}]", many.join(", "));
    assert_eq!(warnings(&of("{application_id}", &many)), [""; 0]);
    let found = faults(&of("{application_id}.{category}", &many), &[]);
    assert!(found.len() == 1 && found[0].contains("1040"), "{found:?}");
}
