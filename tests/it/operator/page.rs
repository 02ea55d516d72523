//! The operations page, as Chromium shows it, and as it is answered.

use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::bridge::{Config, signed_by};
use crate::support::broker::{Kind, Own};
use crate::support::browser::Browser;
use crate::support::http::Request;
use crate::support::process::Stdout;
use crate::support::samples::{dial, samples, with_items};
use crate::support::{eventually, load::Load};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

#[test]
fn the_page_and_its_files_are_open_and_the_data_is_not() {
    let bridge = Config::new().fixed_address().set("admin.token", "'canary-token'").start();
    let page = Request::get("/").send(bridge.admin);
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let document = page.text();
    let files: Vec<&str> = document.split('"').filter(|part| part.starts_with("page/")).collect();
    let folder = files[0].rsplit_once('/').unwrap().0;
    let runbook = format!("{folder}/runbook.html");
    for path in files.into_iter().chain([runbook.as_str()]) {
        let file = Request::get(&format!("/{path}")).send(bridge.admin);
        assert_eq!(file.status, 200, "{path}");
        assert_eq!(file.header("cache-control"), Some("public, max-age=31536000, immutable"), "{path}");
        assert_eq!(file.header("content-security-policy"), Some(POLICY), "{path}");
    }
    for path in ["/", "/overview", "/canary", "/readyz"] {
        let answer = Request::get(path).send(bridge.admin);
        assert_eq!(answer.status, if matches!(path, "/" | "/readyz") { 200 } else { 401 }, "{path}");
        assert_eq!(answer.header("content-security-policy"), Some(POLICY), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
    Request::get("/page/0000000000000000/app.js").send(bridge.admin).problem(401);
    assert_eq!(Request::post("/").body(b"").send(bridge.admin).problem(405).header("allow"), Some("GET, HEAD"));
}

#[test]
fn the_sentence_follows_a_broker_that_stops_and_returns() {
    let broker = Own::start(Kind::Nats);
    let place = broker.place();
    let config = place.making_sink(Config::new().fixed_address().stdout_sink(Stdout::Read), "broker");
    let bridge = config.start();
    let mut browser = Browser::start();
    let mut paints: Vec<f64> = (0..10).map(|_| browser.open(bridge.admin, "/").first_paint_ms).collect();
    paints.sort_by(f64::total_cmp);
    println!("first paint of ten loads: {paints:.0?} ms");
    assert!(paints[0] < 100.0, "{paints:?}");
    browser.shows("#sentence", "No delivery yet.");

    for body in samples().values() {
        bridge.deliver(body).stored();
    }
    browser.shows("#sentence", "Receiving and publishing.");
    assert_eq!(browser.attribute("#verdict", "class").as_deref(), Some("verdict ok"));
    browser.shows("[aria-label='Sink broker']", "connected for");
    bridge.caught_up();

    broker.run("stop");
    browser.shows("#sentence", "broker has no connection");
    bridge.deliver(&dial("while-it-is-away", 1)).stored();
    browser.shows("#sentence", "broker has taken nothing for");
    browser.shows("[aria-label='Sink broker'] .facts", "1, oldest");
    assert_eq!(browser.attribute("#verdict", "class").as_deref(), Some("verdict warning"));
    browser.inspect_for_documents("now-broker-away");

    broker.run("start");
    bridge.caught_up();
    browser.shows("[aria-label='Sink broker']", "connected for");
    browser.shows("#sentence", "Receiving and publishing.");

    for _ in 0..3 {
        assert_eq!(signed_by("another", &dial("a", 1)).send(bridge.webhook).status, 401);
    }
    browser.shows("#findings", "deliveries have no valid signature");
    browser.shows("#refused", "signature_wrong");
    browser.inspect("now-refusals");
    // The section about what is the matter.
    browser.click("#findings a");
    browser.shows("h1", "Runbook");
    assert_eq!(browser.evaluate("location.hash"), "#sendbirdbridgesignaturesrejected");
    browser.inspect("runbook");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn an_open_page_costs_next_to_nothing_and_a_hidden_one_nothing() {
    let bridge = Config::new().fixed_address().stdout_sink(Stdout::Read).start();
    let load = Load::start(&bridge, 600, 40);
    let mut browser = Browser::start();
    let loaded = browser.open(bridge.admin, "/");
    println!("the page has {} bytes", loaded.bytes);
    assert!((10_000..100 * 1024).contains(&loaded.bytes), "{loaded:?}");
    browser.shows("#sentence", "Receiving and publishing.");
    assert!(load.finish().is_all_200());
    bridge.caught_up();
    // The counters are read every ten seconds.
    browser.shows("#rates", "/s");
    eventually("the chart has something", || browser.count("#rates .line") >= 2);
    browser.inspect("now");

    let before = browser.requests();
    eventually("it asks again", || browser.requests() > before + 1);
    let used_in_20_s = || {
        let before = bridge.process.cpu_seconds();
        sleep(Duration::from_secs(20));
        (bridge.process.cpu_seconds() - before) * 1000.0
    };
    let visible = used_in_20_s();
    browser.evaluate(
        "Object.defineProperty(document, 'hidden', { value: true, configurable: true }); \
         document.dispatchEvent(new Event('visibilitychange'))",
    );
    let (asked, hidden) = (browser.requests(), used_in_20_s());
    println!("the bridge used {visible:.0} ms in 20 s with an open page, and {hidden:.0} ms with a hidden one");
    assert!(browser.requests() <= asked + 1, "a hidden page asks the bridge");
    // A build for tests does in ten times the time what a release does.
    let most = if cfg!(debug_assertions) { 200.0 } else { 20.0 };
    assert!(visible - hidden < most, "an open page costs {:.0} ms in 20 s", visible - hidden);
    browser.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))");
    let asked = browser.requests();
    eventually("it asks again", || browser.requests() > asked + 1);
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
fn a_bridge_that_is_gone_is_said_to_be() {
    let bridge = Config::new().fixed_address().stdout_sink(Stdout::Read).start();
    let mut browser = Browser::start();
    browser.open(bridge.admin, "/");
    browser.shows("#sentence", "No delivery yet.");
    let (config, admin) = (bridge.config().clone(), bridge.admin);
    bridge.process.abort();
    browser.shows("#sentence", "No answer from the bridge for");
    assert_eq!(browser.attribute("#verdict", "class").as_deref(), Some("verdict critical"));
    let again = config.start();
    assert_eq!(again.admin, admin);
    browser.shows("#sentence", "No delivery yet.");
    // What the browser says of the requests that found nobody, and nothing else.
    let complaints = browser.complaints();
    assert!(
        !complaints.is_empty()
            && complaints.iter().all(|line| line.contains("ERR_CONNECTION_REFUSED")
                || line.contains("ERR_CONNECTION_RESET")
                || line.contains("ERR_EMPTY_RESPONSE")),
        "{complaints:?}"
    );
}

/// The limits are the bridge's: the page has none of its own.
#[test]
fn a_card_is_marked_by_what_the_bridge_finds() {
    let bridge = Config::new().fixed_address().stdout_sink(Stdout::Read).start();
    let mut browser = Browser::start();
    browser.open(bridge.admin, "/");
    browser.shows("[aria-label='Sink lines']", "connected for");
    let mut marked = |findings: Value| {
        browser.evaluate(&format!(
            "(async () => {{
                const page = document.querySelector('script[type=module]').src;
                const now = await import(new URL('now.js', page));
                const overview = await (await fetch('overview')).json();
                const main = document.createElement('main');
                now.update(main, {{ ...overview, findings: {findings} }});
                const classes = [...main.querySelectorAll('#sinks .card, #journal .card')].map((card) => card.className);
                return [...classes, ...[...main.querySelectorAll('.bad dt')].map((name) => name.textContent)];
            }})()"
        ))
    };
    let found = |alert: &str, sink: Option<&str>, severity: &str| json!({ "alert": format!("SendbirdBridge{alert}"), "sink": sink, "severity": severity, "text": "", "action": "" });
    assert_eq!(marked(json!([])), json!(["card ok", "card ok"]));
    let behind = found("SinkBehind", Some("lines"), "critical");
    let low = found("DiskLow", None, "critical");
    assert_eq!(marked(json!([behind, low])), json!(["card critical", "card critical", "Pending", "Disk free"]));
    let stuck = found("EventsStuck", Some("lines"), "warning");
    assert_eq!(marked(json!([stuck])), json!(["card warning", "card ok", "Stuck"]));
    assert_eq!(marked(json!([found("EventsStuck", Some("another"), "warning")])), json!(["card ok", "card ok"]));
}

#[test]
fn the_feed_goes_on_after_a_restart_of_the_bridge() {
    let mut bridge = Config::new().fixed_address().stdout_sink(Stdout::Read).start();
    bridge.deliver(&dial("before-it", 1)).stored();
    let mut browser = Browser::start();
    browser.open(bridge.admin, "/#/live");
    browser.shows("#feed > li", "before-it");
    for call in ["after-the-first", "after-the-second"] {
        let config = bridge.config().clone();
        assert_eq!(bridge.stop().code(), Some(0));
        browser.shows("#feed-state", "opening it again");
        bridge = config.start();
        browser.shows("#feed-state", "Following");
        bridge.deliver(&dial(call, 1)).stored();
        browser.shows("#feed > li:first-child", call);
    }
    assert_eq!(browser.count("#feed > li"), 3);
}

#[test]
fn an_address_that_names_no_screen_shows_the_first() {
    let bridge = Config::new().fixed_address().stdout_sink(Stdout::Read).start();
    let mut browser = Browser::start();
    for address in ["/#/nothing", "/#/live/%", "/#%E0%A4%A"] {
        browser.open(bridge.admin, address);
        browser.shows("#screens [aria-current]", "Now");
        browser.shows("#journal", "Events kept");
    }
    assert_eq!(browser.complaints(), [""; 0]);
}

/// What somebody may call themselves, or put into a call, to be seen by whoever looks at it.
const HOSTILE: [&str; 5] = [
    "<img src=x onerror=\"document.title='owned'\">",
    "</pre><script>document.title='owned'</script>",
    "javascript:document.title='owned'",
    "\u{202e}dlrow olleh\u{2066}\u{200f}",
    "{{constructor.constructor('document.title=1')()}}",
];

#[test]
fn the_feed_is_followed_filtered_and_paused_and_what_people_wrote_stays_text() {
    let bridge = Config::new().fixed_address().stdout_sink(Stdout::Read).start();
    for body in samples().values() {
        bridge.deliver(body).stored();
    }
    for (n, hostile) in HOSTILE.into_iter().enumerate() {
        let items = json!({ hostile: hostile, "long": "x".repeat(10_000) });
        bridge.deliver(&with_items(hostile, n as u64, &items)).stored();
    }
    let mut browser = Browser::start();
    browser.open(bridge.admin, "/#/live");
    browser.shows("#feed-state", "Following");
    eventually("what is kept is shown", || browser.count("#feed > li") == 18);
    browser.click("#feed > li:nth-child(4) summary");
    browser.shows("#feed > li:nth-child(4) pre", "</pre><script>document.title='owned'</script>");
    browser.click("#feed > li:nth-child(2) summary");
    // Characters that turn the direction of writing are shown as what they are.
    browser.shows("#feed > li:nth-child(2) pre", r"\u202edlrow olleh\u2066\u200f");
    browser.shows("#feed > li:nth-child(2) pre", &"x".repeat(10_000));
    browser.click("#feed > li:nth-child(2) details details summary");
    browser.shows("#feed > li:nth-child(2) details details pre", "caller_id");
    assert_eq!(browser.evaluate("document.querySelectorAll('main img, main script, main a').length"), 0);
    browser.shows("#sentence", "Receiving and publishing.");
    assert!(!browser.evaluate("document.title").as_str().unwrap().contains("owned"));
    browser.inspect("live");

    browser.fill("#key", "of-this-call");
    browser.press("Enter");
    eventually("others are left out", || browser.count("#feed > li") == 0);
    bridge.deliver(&dial("of-another-call", 1)).stored();
    bridge.deliver(&dial("of-this-call", 2)).stored();
    browser.shows("#feed > li", "of-this-call");
    assert_eq!(browser.count("#feed > li"), 1);
    browser.fill("#application", "another");
    browser.press("Enter");
    eventually("another application has nothing", || browser.count("#feed > li") == 0);
    browser.fill("#application", "");
    browser.fill("#key", "");
    browser.press("Enter");
    eventually("all are back", || browser.count("#feed > li") == 20);

    browser.click("#pause");
    browser.shows("#feed-state", "Paused.");
    let load = Load::start(&bridge, 1_200, 400);
    assert!(load.finish().is_all_200());
    assert_eq!(browser.count("#feed > li"), 20);
    browser.click("#pause");
    browser.shows("#feed .note", "came faster than they can be shown, and were skipped");
    assert_eq!(browser.count("#feed > li"), 200);
    assert_eq!(browser.complaints(), [""; 0]);
}
