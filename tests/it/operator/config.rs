//! The configuration as an operator meets it: on the command line.

use serde_json::Value;

use crate::support::bridge::{Config, TOKEN, signed};
use crate::support::eventually;
use crate::support::http::Request;
use crate::support::process::{Stdout, run};
use crate::support::samples::dial;

#[test]
fn five_mistakes_are_named_at_once() {
    let config = Config::new()
        .set("server.listen", "'nowhere'")
        .set("server.max_body", "17")
        .set("journal.max_byte", "'1GiB'")
        .set("dedup.window", "'1 fortnight'")
        .set("sinks.out.type", "'stdin'");
    for arguments in [&["config", "check"][..], &["config", "show"], &["serve"]] {
        let ended = config.process(arguments).wait();
        assert_eq!(ended.code(), Some(64), "{}", ended.stderr());
        let said: Value = serde_json::from_str(&ended.stderr()).unwrap();
        let faults: Vec<&str> =
            said["faults"].as_array().unwrap().iter().map(|fault| fault.as_str().unwrap()).collect();
        for (key, word) in [
            ("server.listen", "nowhere"),
            ("server.max_body", "17"),
            ("journal.max_byte", "did you mean \"max_bytes\"?"),
            ("dedup.window", "1 fortnight"),
            ("sinks.out.type", "stdin"),
        ] {
            let line = faults.iter().find(|line| line.starts_with(&format!("{key}:")));
            let line = line.unwrap_or_else(|| panic!("no word of {key} in {}", ended.stderr()));
            assert!(line.contains(word) && line.contains("bridge.toml"), "{line}");
        }
        assert!(ended.stderr().contains("5 faults"), "{}", ended.stderr());
        assert_eq!(ended.stdout(), "");
    }
}

#[test]
fn a_right_configuration_passes_the_check() {
    let ended = Config::new().stdout_sink(Stdout::Read).process(&["config", "check"]).wait();
    assert_eq!((ended.code(), ended.stderr()), (Some(0), String::new()));
}

#[test]
fn values_are_shown_with_where_they_come_from_and_secrets_are_not() {
    let config = Config::new()
        .set("access.api_tokens", "['canary-token']")
        .set("access.path_secret", "'canary-path'")
        .set("access.header", "{ name = 'x-key', value = 'canary-header' }")
        .set("dedup.window", "'2h'")
        .variable("SENDBIRD_BRIDGE_ADMIN__TOKEN", "canary-admin")
        .variable("SENDBIRD_BRIDGE_SERVER__MAX_CONNECTIONS", "17");
    let ended = config.process(&["config", "show"]).wait();
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert!(!format!("{}{}", ended.stdout(), ended.stderr()).contains("canary"), "{}", ended.stdout());
    for (start, end) in [
        ("dedup.window = \"2h\"", "bridge.toml"),
        ("server.max_connections = 17", "# the variable SENDBIRD_BRIDGE_SERVER__MAX_CONNECTIONS"),
        ("server.max_body = \"256KiB\"", "# default"),
        ("access.path_secret = \"<hidden>\"", "bridge.toml"),
        ("admin.token = \"<hidden>\"", "# the variable SENDBIRD_BRIDGE_ADMIN__TOKEN"),
    ] {
        let found = ended.stdout.iter().any(|line| line.starts_with(start) && line.ends_with(end));
        assert!(found, "no line \"{start} … {end}\" in\n{}", ended.stdout());
    }
}

#[test]
fn the_environment_is_enough() {
    let config = Config::new().unset("access.api_tokens").unset("server.listen");
    let config = config
        .variable("SENDBIRD_BRIDGE_ACCESS__API_TOKENS", &format!("another,{TOKEN}"))
        .variable("SENDBIRD_BRIDGE_SERVER__LISTEN", "127.0.0.1:0");
    config.start().deliver(&dial("a", 1)).stored();
}

#[test]
fn wrong_usage_exits_with_64() {
    for arguments in [&["serv"][..], &[], &["serve", "--nonsense"], &["config"], &["schema", "nonsense"]] {
        let ended = run(arguments);
        assert_eq!(ended.code(), Some(64), "{arguments:?}: {}", ended.stderr());
        assert_eq!(ended.stdout(), "", "{arguments:?}");
        assert!(!ended.stderr().is_empty(), "{arguments:?}");
    }
    assert!(run(&["serv"]).stderr().contains("serve"), "the nearest command is named");
    let missing = run(&["--config", "/nonexistent/bridge.toml", "serve"]);
    assert_eq!(missing.code(), Some(64));
    assert!(missing.stderr().contains("/nonexistent/bridge.toml"), "{}", missing.stderr());
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [&["--help"][..], &["--version"], &["serve", "--help"], &["help", "send"]] {
        let ended = run(arguments);
        assert_eq!((ended.code(), ended.stderr()), (Some(0), String::new()), "{arguments:?}");
        assert!(ended.stdout().len() > 10, "{arguments:?}");
    }
}

#[test]
fn the_version_names_the_features_of_the_build() {
    let said = run(&["--version"]).stdout();
    assert!(said.starts_with(&format!("sendbird-bridge {} (", env!("CARGO_PKG_VERSION"))), "{said}");
    assert_eq!(said.contains("kafka"), cfg!(feature = "kafka"), "{said}");
    assert!(said.contains("features: "), "{said}");
}

#[test]
fn shells_and_readers_of_manual_pages_know_every_command() {
    let commands = ["serve", "send", "tail", "dead-letters", "reconcile", "completions"];
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(&["completions", shell]);
        assert_eq!((ended.code(), ended.stderr()), (Some(0), String::new()), "{shell}");
        for command in commands {
            assert!(ended.stdout().contains(command), "{shell}: no {command}");
        }
    }
    let syntax =
        std::process::Command::new("bash").args(["-n", "-c", &run(&["completions", "bash"]).stdout()]).status();
    assert!(syntax.is_ok_and(|status| status.success()), "bash takes its completions");
    assert_eq!(run(&["completions", "nonsense"]).code(), Some(64));

    // Hyphens are escaped in a page's source.
    let page = run(&["man"]).stdout().replace('\\', "");
    assert!(page.contains(".TH ") && commands.iter().all(|command| page.contains(command)), "{page}");
    let dir = Config::new();
    let pages = dir.dir().join("man");
    let ended = run(&["man", "--to", pages.to_str().unwrap()]);
    assert_eq!((ended.code(), ended.stdout()), (Some(0), String::new()), "{}", ended.stderr());
    for name in ["sendbird-bridge.1", "sendbird-bridge-send.1", "sendbird-bridge-config-check.1"] {
        assert!(pages.join(name).is_file(), "no {name}");
    }
}

#[test]
fn without_authentication_the_bridge_does_not_start() {
    let open = Config::new().unset("access.api_tokens");
    for config in [
        open.clone(),
        open.clone().set("access.signature", "'off'"),
        Config::new().set("access.signature", "'if-present'"),
        Config::new().set("access.api_tokens", "['']"),
    ] {
        let ended = config.refused();
        assert_eq!(ended.code(), Some(64), "{}", ended.stderr());
        assert!(ended.stderr().contains("access."), "{}", ended.stderr());
    }
    for method in [("access.path_secret", "'p4th'"), ("access.networks", "['127.0.0.0/8']")] {
        open.clone().set("access.signature", "'off'").set(method.0, method.1).start();
    }
}

#[test]
fn a_bridge_without_authentication_logs_a_warning() {
    let config = Config::new().unset("access.api_tokens").set("access.signature", "'off'").set("access.open", "true");
    let bridge = config.start();
    eventually("there is a warning", || {
        let log = bridge.log().so_far();
        log.iter().any(|line| line.contains("\"WARN\"") && line.contains("ANYBODY"))
    });
    Request::post("/webhooks/sendbird").body(&dial("a", 1)).send(bridge.webhook).stored();
}

#[test]
fn an_admin_endpoint_that_others_reach_needs_a_token() {
    let ended = Config::new().set("admin.listen", "'0.0.0.0:0'").refused();
    assert_eq!(ended.code(), Some(64));
    assert!(ended.stderr().contains("admin.token"), "{}", ended.stderr());
}

#[test]
fn no_secret_is_ever_said() {
    let config = Config::new()
        .set("access.api_tokens", "['canary-token', 'canary-other']")
        .set("access.path_secret", "'canary-path'")
        .set("access.header", "{ name = 'x-key', value = 'canary-header' }")
        .set("admin.token", "'canary-admin'")
        .stdout_sink(Stdout::Read)
        .variable("RUST_LOG", "trace");
    let bridge = config.start();
    let body = br#"{"category":"direct_call:dial","occurred_at":1,"application_id":"A","direct_call":{"call_id":"a"},"turn_credential":{"password":"canary-turn"}}"#;
    let request = |path: &str, key: &str, token: &str| {
        let signature = sendbird_bridge::sendbird::signature::sign(token, body);
        let request = Request::post(path).header("x-key", key).header("x-sendbird-signature", &signature).body(body);
        request.send(bridge.webhook)
    };
    let path = "/webhooks/sendbird/canary-path";
    request(path, "canary-header", "canary-token").stored();
    request(path, "canary-header", "canary-other").duplicate();
    request(path, "canary-wrong", "canary-token").problem(401);
    request(path, "canary-header", "canary-wrong").problem(401);
    request("/webhooks/sendbird/canary-wrong", "canary-header", "canary-token").problem(404);
    let authorized = |path: &str| Request::get(path).header("authorization", "Bearer canary-admin").send(bridge.admin);
    for path in ["/status", "/metrics", "/events?follow=false"] {
        let answer = authorized(path);
        assert_eq!(answer.status, 200);
        assert!(!answer.text().contains("canary"), "{path}: {}", answer.text());
    }
    eventually("it is published", || bridge.printed().count() == 1);
    let ended = bridge.stop();
    assert_eq!(ended.code(), Some(0));
    assert!(!ended.stdout().contains("canary"), "{}", ended.stdout());
    let line = ended.stderr.iter().find(|line| line.contains("canary"));
    assert!(line.is_none(), "{line:?}");
}

#[test]
fn secrets_are_read_from_files() {
    let config = Config::new().unset("access.api_tokens");
    let file = config.dir().join("tokens");
    std::fs::write(&file, format!("first\n{TOKEN}\n")).unwrap();
    let bridge = config.set("access.api_tokens_file", &format!("'{}'", file.display())).start();
    signed(&dial("a", 1)).send(bridge.webhook).stored();
}

#[test]
fn the_schema_of_the_configuration_names_every_section() {
    let ended = run(&["schema", "config"]);
    assert_eq!((ended.code(), ended.stderr()), (Some(0), String::new()));
    let schema: serde_json::Value = serde_json::from_str(&ended.stdout()).expect("JSON");
    for section in ["server", "admin", "access", "journal", "dedup", "envelope", "sinks"] {
        assert!(schema["properties"][section].is_object(), "no {section} in {schema}");
    }
}

#[test]
fn an_address_that_is_taken_is_named_with_its_key() {
    let first = Config::new().start();
    let ended = Config::new().set("server.listen", &format!("'{}'", first.webhook)).refused();
    assert_eq!(ended.code(), Some(1));
    let said = ended.stderr();
    assert!(said.contains("server.listen") && said.contains(&first.webhook.to_string()), "{said}");
}
