//! `webhook get` and `webhook set`, from outside, against the platform that the tests play.

use std::net::TcpListener;

use sendbird_bridge::sendbird::category::Category;
use serde_json::{Value, json};

use crate::support::bridge::Config;
use crate::support::certificates::Authority;
use crate::support::platform::{API_TOKEN, APPLICATION, Fault, Paths, Platform};
use crate::support::process::{Ended, run};

const URL: &str = "https://calls.example.com/webhooks/sendbird/canary-path";
const GET: &str = "GET /applications/0A1B2C3D-1111-4222-8333-444455556666/settings/webhook";
const PUT: &str = "PUT /applications/0A1B2C3D-1111-4222-8333-444455556666/settings/webhook";
const SHORT_GET: &str = "GET /applications/settings/webhook";
const SHORT_PUT: &str = "PUT /applications/settings/webhook";

/// Runs a command as this application with this token, which nothing that it says may show.
#[track_caller]
fn ask_as(platform: &Platform, application: &str, token: &str, arguments: &[&str]) -> Ended {
    let url = platform.url();
    let whom = ["--application", application, "--token", token, "--api-url", &url];
    let ended = run(&[&["webhook"], arguments, &whom].concat());
    let said = format!("{}\n{}", ended.stdout(), ended.stderr());
    assert!(!said.contains(token) && !said.contains("canary"), "a secret in {said}");
    ended
}

#[track_caller]
fn ask(platform: &Platform, arguments: &[&str]) -> Ended {
    ask_as(platform, APPLICATION, API_TOKEN, arguments)
}

/// The same, where it is to end well, with its result as JSON.
#[track_caller]
fn asked(platform: &Platform, arguments: &[&str]) -> Value {
    let ended = ask(platform, &[arguments, &["--output", "json"]].concat());
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    serde_json::from_str(&ended.stdout()).unwrap()
}

/// The same, where it is to fail, with what it says of that.
#[track_caller]
fn refused(platform: &Platform, code: i32, arguments: &[&str]) -> String {
    let ended = ask(platform, arguments);
    assert_eq!(ended.code(), Some(code), "{}\n{}", ended.stdout(), ended.stderr());
    ended.stderr()
}

fn bodies(platform: &Platform) -> Vec<Value> {
    let puts = platform.seen().into_iter().filter(|seen| seen.method == "PUT");
    puts.map(|seen| serde_json::from_str(&seen.body).unwrap()).collect()
}

/// An application that delivers all to [`URL`].
fn set_up() -> Platform {
    let platform = Platform::start();
    platform.set("enabled", json!(true));
    platform.set("url", json!(URL));
    platform.set("enabled_events", json!(["*"]));
    platform
}

#[test]
fn get_shows_the_settings_and_hides_the_path_secret() {
    let platform = set_up();
    let shown = ask(&platform, &["get"]);
    assert_eq!(shown.code(), Some(0), "{}", shown.stderr());
    let expected = [
        "application       0A1B2C3D-1111-4222-8333-444455556666",
        "enabled           true",
        "url               https://calls.example.com/webhooks/sendbird/<hidden>",
        "enabled_events    *",
        "include_members   false",
    ];
    assert_eq!(shown.stdout, expected);
    assert_eq!(
        asked(&platform, &["get"]),
        json!({
            "application_id": APPLICATION,
            "webhook": {
                "enabled": true, "url": "https://calls.example.com/webhooks/sendbird/<hidden>",
                "enabled_events": ["*"], "include_members": false,
            },
        })
    );
    assert_eq!(platform.asked(), [GET, GET]);
    let url = platform.url();
    let whole = ["webhook", "get", "--application", APPLICATION, "--token", API_TOKEN, "--api-url", &url, "--show-url"];
    assert!(run(&whole).stdout().contains(URL));
}

#[test]
fn get_lists_all_events_on_demand_and_marks_unknown_values() {
    let platform = set_up();
    platform.tells_include_members(false);
    platform.add_category("room:brand_new");
    platform.set("enabled_events", json!(["direct_call:dial"]));
    let webhook = &asked(&platform, &["get", "--all-categories"])["webhook"];
    assert_eq!(webhook["include_members"], Value::Null);
    assert_eq!(webhook["all_webhook_categories"].as_array().unwrap().len(), Category::ALL.len() + 1);
    let table = ask(&platform, &["get", "--all-categories"]).stdout();
    for line in ["direct_call:dial                on", "room:create                     off", "(not returned)"] {
        assert!(table.contains(line), "no {line} in\n{table}");
    }
    assert!(table.contains("room:brand_new                  off  (new to this program)"), "{table}");
}

#[test]
fn set_sends_what_is_named_and_reads_it_back() {
    let platform = Platform::start();
    let arguments =
        ["set", "--url", URL, "--enable", "--events", "room:CREATE,direct_call:dial", "--include-members", "true"];
    let done = asked(&platform, &arguments);
    assert_eq!(platform.asked(), [GET, PUT, GET]);
    let events = json!(["direct_call:dial", "room:create"]);
    let expected = json!({ "enabled": true, "url": URL, "enabled_events": events, "include_members": true });
    assert_eq!(bodies(&platform), std::slice::from_ref(&expected));
    assert_eq!(platform.webhook(), expected);
    assert_eq!(done["webhook"]["enabled_events"], events);
    assert_eq!(done["changes"].as_array().unwrap().len(), 4);
    assert_eq!((&done["differs"], &done["not_told"]), (&json!([]), &json!([])));

    let done = ask(&platform, &["set", "--disable", "--events", "none"]);
    assert_eq!(done.code(), Some(0), "{}", done.stderr());
    assert_eq!(bodies(&platform)[1], json!({ "enabled": false, "enabled_events": [] }));
    for line in ["enabled           true -> false", "enabled_events    direct_call:dial, room:create -> (none)"] {
        assert!(done.stdout().contains(line), "no {line} in\n{}", done.stdout());
    }
    assert_eq!(platform.webhook()["url"], URL, "what is not named stays");
}

#[test]
fn a_url_can_come_from_a_file() {
    let platform = Platform::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("url");
    std::fs::write(&file, format!("{URL}\n")).unwrap();
    asked(&platform, &["set", "--url-file", file.to_str().unwrap()]);
    assert_eq!(platform.webhook()["url"], URL);
    let missing = dir.path().join("missing");
    let said = refused(&platform, 64, &["set", "--url-file", missing.to_str().unwrap()]);
    assert!(said.contains("cannot read the URL from"), "{said}");
}

#[test]
fn set_says_whether_the_url_is_that_of_the_bridge() {
    let platform = Platform::start();
    let config = Config::new().fixed_address().set("access.path_secret", "'canary-path'");
    let bridge = config.start();
    let (file, api_url) = (config.write(), platform.url());
    let set = |url: &str, more: &[&str]| {
        let what = ["--config", file.to_str().unwrap(), "webhook", "set", "--url", url, "--force"];
        let whom = ["--application", APPLICATION, "--token", API_TOKEN, "--api-url", &api_url];
        let ended = run(&[&what[..], &whom, more].concat());
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
        assert!(!ended.stderr().contains("canary"), "{}", ended.stderr());
        ended.stderr()
    };
    let own = format!("{}/canary-path", bridge.url());
    let said = set(&own, &[]);
    assert!(said.contains("a bridge answers at the URL") && !said.contains("warning"), "{said}");
    for (url, difference) in [
        (format!("{own}/"), "ends with a slash"),
        (bridge.url(), "has no path secret"),
        (format!("{own}x"), "is not the path secret"),
        (own.replace("/webhooks", "/webhook"), "is not server.path (\"/webhooks/sendbird\")"),
    ] {
        let said = set(&url, &[]);
        assert!(said.contains(difference) && said.contains("asked the URL from here: answered 404"), "{url}: {said}");
        let said = set(&url, &["--probe=false", "--dry-run"]);
        assert!(said.contains(difference) && !said.contains("asked the URL"), "{url}: {said}");
    }
    assert_eq!(bridge.metric("sendbird_bridge_journal_records", &[]), 0.0, "asking makes no event");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = set(&own.replace(&bridge.webhook.to_string(), &nobody.to_string()), &[]);
    assert!(said.contains(&format!("no connection to {nobody}: connection refused")), "{said}");
}

#[test]
fn what_is_so_already_is_not_sent() {
    let platform = set_up();
    let done = ask(&platform, &["set", "--enable", "--url", URL, "--events", "*"]);
    assert_eq!(done.code(), Some(0), "{}", done.stderr());
    assert!(done.stdout().contains("nothing to change"), "{}", done.stdout());
    assert_eq!(platform.asked(), [GET]);
    asked(&platform, &["set", "--disable", "--url", URL]);
    assert_eq!(bodies(&platform), [json!({ "enabled": false })]);
}

#[test]
fn a_dry_run_changes_nothing() {
    let platform = set_up();
    let before = platform.webhook();
    let other = "https://calls.example.com/webhooks/sendbird/canary-other";
    let done = ask(&platform, &["set", "--url", other, "--disable", "--dry-run"]);
    assert_eq!(done.code(), Some(0), "{}", done.stderr());
    for part in ["enabled           true -> false", "they differ in what is hidden", "nothing was changed"] {
        assert!(done.stdout().contains(part), "no {part} in\n{}", done.stdout());
    }
    let done = asked(&platform, &["set", "--disable", "--dry-run"]);
    assert_eq!(done["dry_run"], true);
    assert_eq!(done["changes"], json!([{ "setting": "enabled", "from": true, "to": false }]));
    assert_eq!((platform.webhook(), platform.asked()), (before, vec![GET.to_owned(), GET.to_owned()]));
}

#[test]
fn the_settings_are_found_under_either_path() {
    for paths in [Paths::WithoutApplication, Paths::WithoutApplicationOrFound] {
        let platform = set_up();
        platform.paths(paths);
        let done = ask(&platform, &["set", "--disable"]);
        assert_eq!(done.code(), Some(0), "{paths:?}: {}", done.stderr());
        assert!(done.stderr().contains("they are those of the token"), "{}", done.stderr());
        assert_eq!(platform.asked(), [GET, SHORT_GET, SHORT_PUT, SHORT_GET]);
        assert_eq!(platform.webhook()["enabled"], false);
    }
}

#[test]
fn application_and_token_come_from_the_configuration() {
    let platform = set_up();
    let url = platform.url();
    let config = |config: Config| config.set("access.api_tokens", &format!("['{API_TOKEN}', 'canary-older']"));
    let ask = |config: Config, more: &[&str]| {
        let ended = config.process(&[&["webhook", "get", "--api-url", &url], more].concat()).wait();
        let said = format!("{}\n{}", ended.stdout(), ended.stderr());
        assert!(!said.contains(API_TOKEN) && !said.contains("canary"), "a secret in {said}");
        ended
    };
    let one = config(Config::new()).set("access.applications", &format!("['{APPLICATION}']"));
    let ended = ask(one.clone(), &[]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    for part in [&format!("{APPLICATION}, from access.applications"), "access.api_tokens, the first of 2"] {
        assert!(ended.stderr().contains(part), "no {part} in\n{}", ended.stderr());
    }
    // The path of this bridge, and not the default, is what is shown.
    let other = ask(one.clone().set("server.path", "'/other'"), &[]);
    assert!(other.stdout().contains("https://calls.example.com/<hidden>"), "{}", other.stdout());

    // An application with tokens of its own is asked with them.
    let own = Config::new().set("access.applications", &format!("['{APPLICATION}']"));
    let own = own.set(&format!("applications.{APPLICATION}.api_tokens"), &format!("['{API_TOKEN}']"));
    let ended = ask(own, &[]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert!(ended.stderr().contains(&format!("the token is from applications.{APPLICATION}.api_tokens")));

    let two = config(Config::new()).set("access.applications", &format!("['{APPLICATION}', 'OTHER']"));
    let ended = ask(two.clone(), &[]);
    assert_eq!(ended.code(), Some(64));
    assert!(ended.stderr().contains("exactly one of access.applications in the configuration, but found 2"));
    assert_eq!(ask(config(Config::new()), &[]).code(), Some(64), "no application");
    assert_eq!(ask(two, &["--application", APPLICATION]).code(), Some(0), "the command line decides");
    let unsigned =
        one.unset("access.api_tokens").set("access.signature", "'off'").set("access.path_secret", "'canary'");
    let ended = ask(unsigned.clone(), &[]);
    assert_eq!(ended.code(), Some(64));
    assert!(ended.stderr().contains("expected --token-file, or access.api_tokens"), "{}", ended.stderr());
    let file = unsigned.dir().join("token");
    std::fs::write(&file, format!("{API_TOKEN}\ncanary-older\n")).unwrap();
    assert_eq!(ask(unsigned, &["--token-file", file.to_str().unwrap()]).code(), Some(0));
}

#[test]
fn a_wrong_token_and_a_wrong_application_are_named() {
    let platform = set_up();
    let ended = ask_as(&platform, APPLICATION, "another-token-that-is-secret", &["get"]);
    assert_eq!(ended.code(), Some(1));
    for part in ["the token is not allowed", "code 401120", "an API token of the application 0A1B2C3D", "Settings"] {
        assert!(ended.stderr().contains(part), "no {part} in\n{}", ended.stderr());
    }
    assert_eq!(platform.seen().len(), 1, "that is not tried again");

    let ended = ask_as(&platform, "FFFFFFFF-1111-4222-8333-444455556666", API_TOKEN, &["get"]);
    assert_eq!(ended.code(), Some(1));
    for part in ["not found", "code 400200", "is FFFFFFFF-1111-4222-8333-444455556666 the right application"] {
        assert!(ended.stderr().contains(part), "no {part} in\n{}", ended.stderr());
    }
    for (application, token) in [("no/application", API_TOKEN), (APPLICATION, "a token with spaces")] {
        assert_eq!(ask_as(&platform, application, token, &["get"]).code(), Some(64));
    }
}

#[test]
fn a_wrong_event_is_refused_with_the_nearest() {
    let platform = set_up();
    let before = platform.webhook();
    let said = refused(&platform, 64, &["set", "--events", "direct_call:dail"]);
    assert!(said.contains("found \"direct_call:dail\"; did you mean direct_call:dial?"), "{said}");
    let said = refused(&platform, 64, &["set", "--events", "room:*"]);
    assert!(said.contains("a * stands alone"), "{said}");
    assert_eq!(refused(&platform, 64, &["set", "--events", "*,room:create"]).lines().count(), 1);
    let forced = refused(&platform, 1, &["set", "--events", "direct_call:dail", "--force"]);
    assert!(forced.contains("refused (HTTP 400, code 400111"), "{forced}");
    assert_eq!(platform.webhook(), before);

    // What Sendbird lists itself is right, also if this program does not know it.
    platform.add_category("room:brand_new");
    asked(&platform, &["set", "--events", "ROOM:brand_new,room:create"]);
    assert_eq!(platform.webhook()["enabled_events"], json!(["room:create", "room:brand_new"]));
}

#[test]
fn wrong_usage_reaches_nobody() {
    let platform = set_up();
    for wrong in [
        &["set"][..],
        &["set", "--enable", "--disable"],
        &["set", "--url", "canary"],
        &["set", "--url", "ftp://calls.example.com/canary"],
        &["set", "--url", "https://user:canary@calls.example.com/"],
        &["set", "--url", "http://calls.example.com/canary"],
        &["set", "--url", "https://127.0.0.1/canary"],
        &["set", "--events", "*,none"],
        &["set", "--events", ""],
        &["get", "--timeout", "5"],
        &["get", "--output", "xml"],
    ] {
        refused(&platform, 64, wrong);
    }
    assert_eq!(platform.seen().len(), 0);
    asked(&platform, &["set", "--url", "http://calls.example.com/webhooks/sendbird", "--force"]);
    assert_eq!(platform.webhook()["url"], "http://calls.example.com/webhooks/sendbird");
}

#[test]
fn reading_goes_on_after_failures_that_pass() {
    for fault in [Fault::Silent, Fault::Dropped, Fault::Failed, Fault::CutOff, Fault::Page(502)] {
        let platform = set_up();
        platform.fail("GET", fault.clone());
        let ended = ask(&platform, &["get", "--timeout", "5s"]);
        assert_eq!(ended.code(), Some(0), "{fault:?}: {}", ended.stderr());
        assert_eq!(platform.asked(), [GET, GET], "{fault:?}");
    }
}

#[test]
fn reading_ends_after_five_tries() {
    let platform = set_up();
    for _ in 0..5 {
        platform.fail("GET", Fault::Failed);
    }
    let said = refused(&platform, 1, &["get"]);
    assert!(said.contains("Sendbird failed (HTTP 500, code 500999"), "{said}");
    assert_eq!(platform.seen().len(), 5);
}

#[test]
fn what_is_no_answer_of_this_api_is_said_at_once() {
    for (fault, part) in [
        (Fault::Page(200), "expected a JSON object"),
        (Fault::Page(302), "(HTTP 302)"),
        (Fault::Json(200, json!({ "status": "ok" })), "expected the object webhook"),
        (Fault::Large(17 * 1024 * 1024), "expected at most 16777216 bytes"),
        (Fault::Page(401), "the token is not allowed (HTTP 401)"),
    ] {
        let platform = set_up();
        platform.fail("GET", fault);
        let said = refused(&platform, 1, &["get"]);
        assert!(said.contains(part), "no {part} in\n{said}");
        assert_eq!(platform.asked(), [GET], "once, and no redirection is followed");
    }
}

#[test]
fn the_rate_limit_is_waited_for() {
    let platform = set_up();
    platform.fail("GET", Fault::Limited(None));
    asked(&platform, &["get"]);
    let gets = platform.seen();
    assert_eq!((gets[0].status, gets[1].status, gets.len()), (Some(429), Some(200), 2));
    assert!((gets[1].at - gets[0].at).as_secs() >= 1, "the limits are for a second");

    let platform = set_up();
    platform.fail("PUT", Fault::Limited(Some(1)));
    asked(&platform, &["set", "--disable"]);
    let puts: Vec<_> = platform.seen().into_iter().filter(|seen| seen.method == "PUT").collect();
    assert_eq!(puts.len(), 2, "a refused change had no effect, so it is sent again");
    assert!((puts[1].at - puts[0].at).as_secs() >= 1, "Retry-After is kept");

    platform.fail("GET", Fault::Limited(Some(3600)));
    let said = refused(&platform, 1, &["get"]);
    assert!(said.contains("the rate limit refuses more requests for the next 3600 s"), "{said}");
}

#[test]
fn a_change_in_doubt_is_read_back_and_not_repeated() {
    for fault in [Fault::DoneAndDropped, Fault::DoneAndFailed] {
        let platform = set_up();
        platform.fail("PUT", fault.clone());
        let ended = ask(&platform, &["set", "--disable"]);
        assert_eq!(ended.code(), Some(0), "{fault:?}: {}", ended.stderr());
        assert!(ended.stderr().contains("is not certain"), "{}", ended.stderr());
        assert_eq!(platform.asked(), [GET, PUT, GET]);
    }
    for fault in [Fault::Dropped, Fault::Failed, Fault::Silent, Fault::Page(200)] {
        let platform = set_up();
        platform.fail("PUT", fault.clone());
        let said = refused(&platform, 1, &["set", "--disable", "--timeout", "5s"]);
        assert!(said.contains("the change is not visible yet: enabled differs"), "{fault:?}: {said}");
        assert_eq!(bodies(&platform).len(), 1, "{fault:?}");
    }
}

#[test]
fn a_change_that_sendbird_did_not_keep_is_a_failure() {
    let platform = set_up();
    platform.fail("PUT", Fault::Ignored);
    let ended = ask(&platform, &["set", "--disable", "--events", "room:create", "--output", "json"]);
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stderr().contains("other values than requested for enabled, enabled_events"), "{}", ended.stderr());
    let done: Value = serde_json::from_str(&ended.stdout()).unwrap();
    assert_eq!(done["differs"], json!(["enabled", "enabled_events"]));
    assert_eq!(done["webhook"]["enabled"], true, "what Sendbird has");
    assert_eq!(bodies(&platform).len(), 1);
}

#[test]
fn what_sendbird_does_not_tell_is_no_difference() {
    let platform = set_up();
    platform.tells_include_members(false);
    platform.spells_out_all(true);
    platform.set("enabled_events", json!(["room:create"]));
    let ended = ask(&platform, &["set", "--include-members", "true", "--events", "*"]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    assert!(ended.stderr().contains("does not return include_members"), "{}", ended.stderr());
    assert_eq!(platform.webhook()["enabled_events"], json!(["*"]));
}

#[test]
fn what_sendbird_quotes_is_hidden() {
    let platform = set_up();
    let message = format!("{URL} is wrong for {API_TOKEN}, so is canary-path");
    platform.fail("PUT", Fault::Json(400, json!({ "error": true, "code": 400_111, "message": message })));
    let said = refused(&platform, 1, &["set", "--disable", "--url", "https://example.com/canary-path"]);
    assert!(said.contains("refused (HTTP 400, code 400111") && said.contains("<hidden>"), "{said}");
}

#[test]
fn an_authority_of_ones_own_is_believed_if_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(&dir.path().join("certificates"));
    let platform = Platform::start_tls(&authority.issue("127.0.0.1"));
    let ca_file = authority.ca_file.to_str().unwrap();
    let ended = ask(&platform, &["get", "--ca-file", ca_file]);
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr());
    let other = Authority::new(&dir.path().join("other"));
    let said = refused(&platform, 1, &["get", "--ca-file", other.ca_file.to_str().unwrap()]);
    assert!(said.contains("no connection") && said.contains("certificate"), "{said}");
    assert_eq!(platform.seen().len(), 1, "no token goes to a server that is not believed");
}

#[test]
fn no_connection_is_said_with_the_address() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{nobody}/v1");
    let arguments = ["webhook", "get", "--application", APPLICATION, "--token", API_TOKEN, "--api-url", &url];
    let ended = run(&arguments);
    assert_eq!(ended.code(), Some(1));
    for part in ["no connection", "refused", &url, APPLICATION] {
        assert!(ended.stderr().contains(part), "no {part} in\n{}", ended.stderr());
    }
}

#[test]
fn the_help_shows_how() {
    for (command, parts) in [
        ("get", &["sendbird-bridge webhook get --config", "--all-categories", "access.applications"][..]),
        ("set", &["--events '*'", "--dry-run", "read back", "path secret", "--force"]),
    ] {
        let help = run(&["webhook", command, "--help"]);
        assert_eq!(help.code(), Some(0));
        for part in parts {
            assert!(help.stdout().contains(part), "no {part} in\n{}", help.stdout());
        }
    }
}
