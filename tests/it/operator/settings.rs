//! Settings that cannot work, as a stranger meets them: one line says what to change, before anything is started.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::support::bridge::{Config, TOKEN};
use crate::support::eventually;
use crate::support::process::{Process, Stdout, program, run};

/// What `config check` and `serve` say of it, the same; none passes.
#[track_caller]
fn refused(config: &Config) -> String {
    let [checked, served] = ["check", "serve"].map(|command| {
        let arguments = if command == "check" { vec!["config", command] } else { vec![command] };
        let ended = config.process(&arguments).wait();
        assert_eq!(ended.code(), Some(64), "{}", ended.stderr());
        let said: serde_json::Value = serde_json::from_str(&ended.stderr()).unwrap();
        said["faults"].clone()
    });
    assert_eq!(checked, served);
    let faults = checked.as_array().unwrap();
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults[0].as_str().unwrap().to_owned()
}

#[test]
fn a_byte_order_mark_in_a_secret_file_is_named_with_its_key_and_file() {
    let config = Config::new().unset("access.api_tokens");
    let file = config.dir().join("tokens");
    std::fs::write(&file, format!("\u{feff}{TOKEN}\n")).unwrap();
    let said = refused(&config.set("access.api_tokens_file", &format!("'{}'", file.display())));
    assert!(said.contains("access.api_tokens[0]: expected a secret alone, but found a byte order mark"), "{said}");
    assert!(said.contains("bridge.toml") && !said.contains(TOKEN), "{said}");
}

#[cfg(feature = "rabbitmq")]
#[test]
fn an_unencoded_delimiter_in_a_url_is_named_and_the_password_is_not() {
    let config = Config::new().set("sinks.r.type", "'rabbitmq'").set("sinks.r.url", "'amqp://u:c@nary#1@h/v'");
    let said = refused(&config);
    assert!(said.contains("sinks.r.url") && said.contains("write %23") && !said.contains("nary"), "{said}");
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_binding_that_no_event_can_match_is_named() {
    let config = Config::new()
        .set("sinks.r.type", "'rabbitmq'")
        .set("sinks.r.url", "'amqp://h'")
        .set("sinks.r.declare", "{ queues = [{ name = 'calls', bindings = ['sendbird.#'] }] }");
    let said = refused(&config);
    assert!(said.contains("sinks.r.declare.queues[0].bindings") && said.contains("\"sendbird.#\""), "{said}");
}

#[cfg(feature = "kafka")]
#[test]
fn a_topic_for_each_call_is_refused() {
    let config = Config::new()
        .set("sinks.k.type", "'kafka'")
        .set("sinks.k.brokers", "['127.0.0.1:1']")
        .set("sinks.k.topic", "'calls.{key}'");
    let said = refused(&config);
    assert!(said.contains("sinks.k.topic") && said.contains("{key}"), "{said}");
}

#[test]
fn a_network_that_can_never_match_is_refused_with_the_one_that_was_meant() {
    let said = refused(&Config::new().set("access.networks", "['10.1.2.3/8']"));
    assert!(said.contains("access.networks") && said.contains("\"10.0.0.0/8\""), "{said}");
    let said = refused(&Config::new().set("access.networks", "['::ffff:10.0.0.0/104']"));
    assert!(said.contains("\"10.0.0.0/8\""), "{said}");
}

#[test]
fn what_most_often_does_not_work_is_warned_of_by_the_check_and_at_the_start() {
    let config = Config::new().stdout_sink(Stdout::Read).set("sinks.lines.categories", "['direct_call:dail']");
    let ended = config.process(&["config", "check"]).wait();
    assert_eq!(ended.code(), Some(0));
    let warned = |line: &String| line.contains("\"WARN\"") && line.contains("did you mean \\\"direct_call:dial\\\"?");
    assert!(ended.stderr.iter().any(warned), "{}", ended.stderr());
    let bridge = config.start();
    eventually("it is logged", || bridge.log().so_far().iter().any(warned));
    let file = config.write();
    let ended = run(&["config", "check", "--config", file.to_str().unwrap()]);
    let said = ended.stderr();
    assert!(said.starts_with("warning: sinks.lines.categories: ") && said.lines().count() == 1, "{said}");
    assert!(ended.stdout().starts_with("configuration OK (1 sink)"), "{}", ended.stdout());
    let ended = run(&["config", "check", "--connect", "--output", "json", "--config", file.to_str().unwrap()]);
    assert_eq!((ended.code(), ended.stderr()), (Some(0), String::new()));
    let lines: Vec<serde_json::Value> = ended.stdout.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["warning"].as_str().unwrap().starts_with("sinks.lines.categories: "), "{lines:?}");
    assert_eq!(lines[1], serde_json::json!({ "configuration": "ok", "sinks": 1 }));
    assert_eq!(lines[2], serde_json::json!({ "sink": "lines", "type": "stdout", "ok": true, "findings": [] }));
}

#[test]
fn a_variable_that_is_not_utf8_is_a_fault_and_no_panic() {
    let start = |name: &str| {
        let mut command = program();
        let config = Config::new().stdout_sink(Stdout::Read);
        command.args(["config", "check", "--config"]).arg(config.write()).env(name, OsStr::from_bytes(b"caf\xe9"));
        Process::start(command, Stdout::Read).wait()
    };
    let ended = start("SENDBIRD_BRIDGE_JOURNAL__DIR");
    assert_eq!(ended.code(), Some(64), "{}", ended.stderr());
    assert!(ended.stderr().contains("journal.dir: expected UTF-8"), "{}", ended.stderr());
    let ended = start("SOMEBODY_ELSES");
    assert!(!ended.stderr().contains("panic"), "{}", ended.stderr());
}

#[test]
fn a_configuration_file_that_cannot_be_read_is_one_sentence() {
    let dir = Config::new();
    let broken = dir.dir().join("broken.toml");
    std::fs::write(&broken, "[access]\napi_tokens = [\"canary-4711\" oh]\n").unwrap();
    let nowhere = dir.dir().join("nope.toml");
    for (file, said) in [
        (
            &nowhere,
            format!("error: cannot read the configuration file {}: no such file or directory", nowhere.display()),
        ),
        (
            &dir.dir().to_owned(),
            format!("error: cannot read the configuration file {}: it is a directory", dir.dir().display()),
        ),
        (&broken, format!("error: {}:2:29: not valid TOML: ", broken.display())),
    ] {
        for arguments in
            [&["serve"][..], &["config", "check"], &["journal", "stats"], &["send"], &["tail"], &["webhook", "get"]]
        {
            let ended = run(&[&["--config", file.to_str().unwrap()], arguments].concat());
            assert_eq!(ended.code(), Some(64), "{arguments:?}: {}", ended.stderr());
            let line = ended.stderr.iter().find(|line| line.starts_with("error: ")).unwrap();
            assert!(line.starts_with(&said) && ended.stderr.last() == Some(line), "{arguments:?}: {}", ended.stderr());
            assert!(!ended.stderr().contains("canary"), "{}", ended.stderr());
        }
    }
}

#[test]
fn without_any_configuration_a_command_says_how_to_give_one() {
    for arguments in [&["serve"][..], &["config", "check"], &["webhook", "get"]] {
        let ended = run(arguments);
        assert_eq!(ended.code(), Some(64), "{arguments:?}");
        let said = ended.stderr();
        assert!(
            said.contains("error: no configuration is given: use --config FILE") && !said.contains("api_tokens"),
            "{said}"
        );
    }
    for arguments in
        [&["journal", "stats"][..], &["dead-letters", "list"], &["replay", "--sink", "a", "--all"], &["stuck", "list"]]
    {
        let ended = run(arguments);
        assert_eq!(ended.code(), Some(64), "{arguments:?}");
        assert!(ended.stderr().contains("expected --dir, or --config"), "{}", ended.stderr());
    }
}

#[test]
fn the_check_tries_the_ports_and_the_journal_of_this_machine() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config::new()
        .stdout_sink(Stdout::Read)
        .set("server.listen", &format!("'{}'", taken.local_addr().unwrap()))
        .set("journal.dir", "'/proc/no-journal'");
    let file = config.write();
    let ended = run(&["config", "check", "--config", file.to_str().unwrap()]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    let said = ended.stderr();
    assert!(said.contains("warning: on this machine: journal.dir: /proc/no-journal cannot be created: "), "{said}");
    assert!(said.contains("warning: on this machine: server.listen: cannot listen on 127.0.0.1:"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[test]
fn the_check_beside_a_running_bridge_finds_its_own_ports_in_order() {
    let bridge = Config::new().stdout_sink(Stdout::Read).fixed_address().start();
    let ended = bridge.config().process(&["config", "check"]).wait();
    assert_eq!((ended.code(), ended.stderr()), (Some(0), String::new()));
    bridge.deliver(&crate::support::samples::dial("a", 1)).stored();
}

#[test]
fn a_journal_in_memory_is_warned_of_by_the_check_and_at_the_start() {
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
    let dir = memory.path().join("journal");
    let config = Config::new().stdout_sink(Stdout::Read).set("journal.dir", &format!("'{}'", dir.display()));
    let warned = |line: &String| line.contains("\"WARN\"") && line.contains("journal.dir: it is in memory (tmpfs)");
    let ended = config.process(&["config", "check"]).wait();
    assert!(ended.code() == Some(0) && ended.stderr.iter().any(warned), "{}", ended.stderr());
    assert!(!dir.exists(), "nothing is made");
    let bridge = config.start();
    eventually("it is logged", || bridge.log().so_far().iter().any(warned));
}
