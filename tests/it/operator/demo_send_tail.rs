//! The commands that people run: `demo`, `send`, `tail`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::bridge::{Bridge, Config, TOKEN};
use crate::support::http::Request;
use crate::support::process::{Ended, Process, Stdout, program, run};
use crate::support::samples::dial;
use crate::support::{PATIENCE, eventually};

/// The number that a line of a table begins or ends with.
fn number(ended: &Ended, label: &str) -> u64 {
    let line = ended.stderr.iter().find(|line| line.starts_with(label));
    let line = line.unwrap_or_else(|| panic!("no line {label} in\n{}", ended.stderr()));
    line.split_whitespace().last().unwrap().parse().unwrap()
}

fn send(bridge: &Bridge, arguments: &[&str]) -> Ended {
    let url = bridge.url();
    run(&[&["send", "--url", &url, "--token", TOKEN], arguments].concat())
}

#[test]
fn the_demo_prints_all_categories_and_a_table_that_adds_up() {
    let ended = run(&["demo"]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    let envelopes: Vec<Value> = ended.stdout.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let categories: BTreeSet<&str> =
        envelopes.iter().map(|envelope| envelope["data"]["category"].as_str().unwrap()).collect();
    assert_eq!(categories.len(), 13, "{categories:?}");
    let ids: BTreeSet<&str> = envelopes.iter().map(|envelope| envelope["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), envelopes.len(), "each event is printed once");

    let [sent, stored, duplicates, published] =
        ["deliveries sent", "stored", "duplicates", "published"].map(|label| number(&ended, label));
    assert_eq!((sent, published), (stored + duplicates, stored));
    assert_eq!(published, envelopes.len() as u64);
    assert!(duplicates > 0, "some are sent again");
    for line in ended.stderr.iter().filter(|line| line.starts_with("direct_call:") || line.starts_with("room:")) {
        assert!(line.contains(" 200 "), "{line}");
    }
    assert!(!ended.stderr().contains('\u{1b}'), "colours only on a terminal");
}

#[test]
fn a_demo_whose_reader_goes_away_ends_and_has_not_failed() {
    let mut command = program();
    command.arg("demo");
    let ended = Process::start(command, Stdout::Closed).wait_within(PATIENCE);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert!(ended.stderr().contains("has gone; ending") && !ended.stderr().contains("error:"), "{}", ended.stderr());

    let mut shell = Command::new("bash");
    shell.args(["-c", "set -o pipefail; \"$0\" demo | head -1"]).arg(program().get_program());
    let ended = Process::start(shell, Stdout::Read).wait_within(PATIENCE);
    assert_eq!((ended.code(), ended.stdout.len()), (Some(0), 1), "{}", ended.stderr());
}

#[test]
fn a_demo_that_keeps_running_takes_deliveries_until_it_is_stopped() {
    let mut command = program();
    command.args(["demo", "--keep-running", "--pace", "5ms"]);
    let demo = Process::start(command, Stdout::Read);
    let said = demo.stderr();
    let mut page = None;
    eventually("the demo begins with the address of the page", || {
        page =
            said.so_far().iter().find_map(|line| line.strip_prefix("the operations page: http://").map(str::to_owned));
        page.is_some()
    });
    let admin = page.unwrap().trim_end_matches('/').parse().unwrap();
    assert!(Request::get("/").send(admin).text().starts_with("<!doctype html>"));
    let mut hint = None;
    eventually("the demo says how to send to it", || {
        hint = said.so_far().into_iter().find(|line| line.trim_start().starts_with("sendbird-bridge send "));
        hint.is_some()
    });
    let printed = demo.stdout().count();
    let hint = hint.unwrap();
    let arguments: Vec<&str> = hint.split_whitespace().skip(1).collect();
    assert_eq!(run(&arguments).code(), Some(0), "the hint works: {arguments:?}");
    eventually("all 13 are printed", || demo.stdout().count() == printed + 13);
    demo.terminate();
    assert_eq!(demo.wait().code(), Some(0));
}

#[test]
fn send_delivers_all_and_prints_latencies() {
    let bridge = Config::new().start();
    let ended = send(&bridge, &["--all", "--count", "500", "--concurrency", "16"]);
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout(), ended.stderr());
    let said = ended.stdout();
    for word in ["answers", "p50", "p99", "longest", "500 200 stored", "500 deliveries in"] {
        assert!(said.contains(word), "no \"{word}\" in\n{said}");
    }
    assert!(!format!("{said}{}", ended.stderr()).contains('\u{1b}'), "a bar and colours only on a terminal");
    let events = bridge.events();
    assert_eq!(events.len(), 500);
    let types: BTreeSet<&str> = events.iter().map(|event| event.envelope["type"].as_str().unwrap()).collect();
    assert_eq!(types.len(), 13, "{types:?}");
}

#[test]
fn send_makes_what_it_is_asked_for() {
    let bridge = Config::new().start();
    assert_eq!(send(&bridge, &[]).code(), Some(0));
    assert_eq!(
        send(&bridge, &["--category", "room:create", "--category", "room:delete", "--count", "3"]).code(),
        Some(0)
    );
    let file = bridge.config().dir().join("body.json");
    std::fs::write(&file, dial("from a file", 1)).unwrap();
    assert_eq!(send(&bridge, &["--file", file.to_str().unwrap(), "--count", "2"]).code(), Some(0));
    let found: Vec<String> =
        bridge.events().iter().map(|event| event.envelope["data"]["category"].as_str().unwrap().to_owned()).collect();
    assert_eq!(found, ["direct_call:dial", "room:create", "room:delete", "room:create", "direct_call:dial"]);
}

#[test]
fn send_waits_for_a_listener_where_it_is_told_to() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = std::thread::spawn(move || {
        // The three tries of a delivery are over by then.
        std::thread::sleep(Duration::from_secs(2));
        let listener = std::net::TcpListener::bind(address).unwrap();
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            // The connection that finds the listener carries no request.
            if connection.read(&mut [0; 4096]).unwrap() > 0 {
                return connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        }
    });
    let url = format!("http://{address}/");
    let ended = run(&["send", "--url", &url, "--token", TOKEN, "--connect-within", "30s"]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stdout());
    server.join().unwrap();

    let ended = run(&["send", "--url", &url, "--token", TOKEN, "--connect-within", "300ms"]);
    assert_eq!(ended.code(), Some(1), "nobody listens any more: {}", ended.stdout());
    assert!(ended.stdout().contains("no connection"), "{}", ended.stdout());
}

#[test]
fn send_fails_where_not_all_is_answered_200() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ended = run(&["send", "--url", &format!("http://{nobody}/"), "--token", TOKEN]);
    assert_eq!(ended.code(), Some(1), "{}", ended.stdout());
    let refused = format!("no connection to {nobody}: connection refused");
    assert!(ended.stdout().contains(&refused) && ended.stderr().contains(&refused), "{}", ended.stdout());
    assert!(!ended.stdout().contains("p99"), "{}", ended.stdout());

    let bridge = Config::new().start();
    let unsigned = run(&["send", "--url", &bridge.url(), "--count", "3"]);
    assert_eq!(unsigned.code(), Some(1));
    assert!(unsigned.stdout().contains("3 401 expected a signature, but found none"), "{}", unsigned.stdout());
    assert!(unsigned.stderr().contains("3 of 3 deliveries failed: 401 expected a signature"), "{}", unsigned.stderr());
}

#[test]
fn send_says_which_of_name_port_and_certificate_it_was() {
    let said = |url: &str| {
        let ended = run(&["send", "--token", "t", "--url", url]);
        assert_eq!(ended.code(), Some(1), "{}", ended.stderr());
        ended.stdout()
    };
    let text = said("http://no-such-host.invalid/webhooks/sendbird");
    assert!(
        text.contains("no connection to no-such-host.invalid:80: the name no-such-host.invalid is not known"),
        "{text}"
    );
    let plain = Config::new().start();
    let text = said(&plain.url().replace("http://", "https://"));
    assert!(text.contains("does not speak TLS"), "{text}");
    let (dir, pair) = (Config::new(), rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap());
    let file = |name: &str, text: &str| {
        let path = dir.dir().join(name);
        std::fs::write(&path, text).unwrap();
        format!("'{}'", path.display())
    };
    let (cert, key) = (file("cert.pem", &pair.cert.pem()), file("key.pem", &pair.signing_key.serialize_pem()));
    let tls = Config::new().set("server.tls.cert_file", &cert).set("server.tls.key_file", &key).start();
    let text = said(&format!("https://localhost:{}/", tls.webhook.port()));
    assert!(text.contains("its certificate is not trusted") && text.contains("--ca-file"), "{text}");
}

#[test]
fn send_takes_what_is_not_given_from_the_configuration() {
    let config = Config::new()
        .fixed_address()
        .set("server.path", "'/hooks'")
        .set("access.path_secret", "'p4th'")
        .set("access.header", "{ name = 'x-key', value = 'k' }");
    let bridge = config.start();
    let file = config.write();
    let ended = run(&["send", "--config", file.to_str().unwrap(), "--count", "3"]);
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout(), ended.stderr());
    for event in bridge.events() {
        let id = event.envelope["id"].as_str().unwrap();
        let key = event.envelope["partitionkey"].as_str().unwrap();
        let line =
            ended.stdout.iter().find(|line| line.contains(id)).unwrap_or_else(|| panic!("no {id}: {}", ended.stdout()));
        assert!(line.starts_with("direct_call:dial") && line.contains(key) && line.contains("200 stored"), "{line}");
    }
    let tailed = run(&["tail", "--config", file.to_str().unwrap(), "--no-follow"]);
    assert_eq!((tailed.code(), tailed.stdout.len()), (Some(0), 3), "{}", tailed.stderr());
}

#[test]
fn send_signs_for_the_application_that_it_names() {
    let tokens = "['canary-a']";
    let bridge = Config::new().fixed_address().set("applications.A-1.api_tokens", tokens).start();
    let file = bridge.config().write();
    for (application, stored) in [("A-1", 1), ("a-1", 2), ("B-2", 3)] {
        let ended = run(&["send", "--config", file.to_str().unwrap(), "--application", application]);
        assert_eq!(ended.code(), Some(0), "{application}: {}{}", ended.stdout(), ended.stderr());
        assert_eq!(bridge.events().len(), stored, "{application}");
    }
}

#[test]
fn tail_takes_address_and_token_from_the_configuration() {
    let config = Config::new().fixed_address().set("admin.token", "'t0ken'");
    let bridge = config.start();
    bridge.deliver(&dial("a", 1)).stored();
    let tailed = config.process(&["tail", "--no-follow"]).wait();
    assert_eq!((tailed.code(), tailed.stdout.len()), (Some(0), 1), "{}", tailed.stderr());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tailed = run(&["tail", "--url", &format!("http://{nobody}")]);
    let said = format!("no connection to {nobody}: connection refused");
    assert!(tailed.code() == Some(1) && tailed.stderr().contains(&said), "{}", tailed.stderr());
}

#[test]
fn the_demo_offers_no_configuration() {
    let help = run(&["demo", "--help"]).stdout();
    assert!(!help.contains("--config"), "{help}");
    let ended = run(&["demo", "--config", "nope.toml"]);
    assert!(ended.code() == Some(64) && ended.stderr().contains("a configuration of its own"), "{}", ended.stderr());
}

#[test]
fn send_ends_with_its_table_when_it_is_interrupted() {
    let bridge = Config::new().start();
    let mut command = program();
    command.args(["send", "--url", &bridge.url(), "--token", TOKEN, "--count", "100000", "--rate", "200"]);
    let sending = Process::start(command, Stdout::Read);
    eventually("some are delivered", || bridge.metric("sendbird_bridge_journal_records", &[]) > 5.0);
    sending.interrupt();
    let ended = sending.wait();
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stdout().contains("p99") && ended.stdout().contains(" 200 stored"), "{}", ended.stdout());
    assert!(ended.stderr().contains("interrupted: ") && ended.stderr().contains("of 100000"), "{}", ended.stderr());
}

#[test]
fn send_names_the_category_that_was_probably_meant() {
    let ended = run(&["send", "--category", "room:creat"]);
    assert_eq!(ended.code(), Some(64));
    assert!(ended.stderr().contains("did you mean room:create?"), "{}", ended.stderr());
    assert_eq!(run(&["send", "--category", "nonsense"]).code(), Some(64));
    assert_eq!(run(&["send", "--url", "nonsense"]).code(), Some(64));
}

#[test]
fn send_delivers_the_events_of_a_call_or_room_in_their_order() {
    let bridge = Config::new().start();
    assert_eq!(send(&bridge, &["--all", "--count", "300", "--concurrency", "8"]).code(), Some(0));
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    for event in bridge.events() {
        let at = event.envelope["data"]["occurred_at_ms"].as_i64().unwrap();
        let before = last.insert(event.key().to_owned(), at);
        assert!(before.is_none_or(|before| before < at), "{before:?}, then {}", event.line);
    }
    assert!((20..200).contains(&last.len()), "{} calls and rooms", last.len());
}

#[test]
fn tail_prints_what_the_feed_has() {
    let bridge = Config::new().start();
    for n in 0..6 {
        bridge.deliver(&dial(if n % 2 == 0 { "even" } else { "odd" }, n)).stored();
    }
    assert_eq!(send(&bridge, &["--category", "room:create"]).code(), Some(0));
    let lines: Vec<String> = bridge.events().into_iter().map(|event| event.line).collect();
    let url = bridge.admin_url();
    let tail = |arguments: &[&str]| {
        let ended = run(&[&["tail", "--no-follow", "--url", &url], arguments].concat());
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
        ended.stdout
    };
    assert_eq!(tail(&[]), lines);
    assert_eq!(tail(&["--after", "5"]), lines[5..]);
    assert_eq!(tail(&["--after", "end"]), [""; 0]);
    assert_eq!(tail(&["--key", "odd"]), [lines[1].as_str(), &lines[3], &lines[5]]);
    assert_eq!(tail(&["--type", "room:create"]), lines[6..]);
    assert_eq!(tail(&["--type", "com.sendbird.calls.room.create"]), lines[6..]);
    let wrong = run(&["tail", "--no-follow", "--url", &url, "--after", "nonsense"]);
    assert_eq!(wrong.code(), Some(1));
    assert!(wrong.stderr().contains("400"), "{}", wrong.stderr());
}

#[test]
fn tail_without_a_bridge_fails() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(run(&["tail", "--url", &format!("http://{nobody}")]).code(), Some(1));
}

#[test]
fn tail_follows_and_resumes_after_the_bridge_was_restarted() {
    let config = Config::new().fixed_address();
    let bridge = config.start();
    let mut command = program();
    command.args(["tail", "--url", &bridge.admin_url()]);
    let tail = Process::start(command, Stdout::Read);
    let mut ids = vec![bridge.deliver(&dial("a", 1)).stored()];
    eventually("the first is printed", || tail.stdout().count() == 1);
    ids.push(bridge.deliver(&dial("a", 2)).stored());
    eventually("the second is printed", || tail.stdout().count() == 2);
    bridge.kill_9();
    let bridge = config.start();
    ids.push(bridge.deliver(&dial("a", 3)).stored());
    eventually("the third is printed", || tail.stdout().count() >= 3);
    assert_eq!(bridge.stop().code(), Some(0));
    let bridge = config.start();
    ids.push(bridge.deliver(&dial("a", 4)).stored());
    eventually("the fourth is printed", || tail.stdout().count() >= 4);
    let printed: Vec<String> = tail
        .stdout()
        .so_far()
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(printed, ids);
    tail.terminate();
    tail.wait_within(Duration::from_secs(10));
}

#[test]
fn logs_are_text_or_json_on_standard_error() {
    let json = Config::new().start();
    let log = json.stop();
    assert!(log.stderr.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", log.stderr());
    assert_eq!(log.stdout(), "");

    let config = Config::new();
    let mut command = program();
    command.arg("--config").arg(config.write()).arg("serve");
    let text = Process::start(command, Stdout::Read);
    eventually("it is ready", || text.stderr().so_far().iter().any(|line| line.contains("ready")));
    text.terminate();
    let ended = text.wait();
    assert_eq!(ended.code(), Some(0));
    assert!(ended.stderr.iter().all(|line| !line.starts_with('{') && !line.contains('\u{1b}')), "{}", ended.stderr());
}
