//! What load balancers need: a health check on the webhook's port, connections that stay open, and their clients' addresses.

use std::time::{Duration, Instant};

use super::tls::{ADDRESS, with_certificate};
use crate::support::bridge::{Bridge, Config, PATH, signed};
use crate::support::certificates::Authority;
use crate::support::http::{Connection, Request, Response};
use crate::support::load_balancer::{Kind, LoadBalancer};
use crate::support::process::Stdout;
use crate::support::samples::{dial, large};
use crate::support::tls::connect_behind;
use crate::support::{PATIENCE, eventually};

fn rejected(bridge: &Bridge, reason: &str) -> f64 {
    bridge.metric("sendbird_bridge_rejected_total", &[("reason", reason)])
}

/// Lines of the log about refusals for this reason.
fn sources(bridge: &Bridge, reason: &str) -> Vec<(String, String)> {
    let lines = bridge.log().so_far().into_iter().map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap());
    let lines = lines.filter(|line| line["message"] == "request refused" && line["reason"] == reason);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    lines.map(|line| (text(&line["source"]), text(&line["source_from"]))).collect()
}

#[test]
fn a_health_check_needs_no_authentication_and_counts_as_nothing() {
    let bridge = Config::new()
        .set("access.networks", "['10.0.0.0/8']")
        .set("access.path_secret", "'canary'")
        .set("access.rate_per_source", "1")
        .start();
    let before = bridge.metrics();
    for _ in 0..20 {
        let answer = Request::get("/healthz").send(bridge.webhook);
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok\n"));
        assert_eq!(Request::new("HEAD", "/healthz").send_head(bridge.webhook), 200);
    }
    let after = bridge.metrics();
    for name in ["deliveries_total", "rejected_total", "answer_seconds_count", "signature_headers_total"] {
        let name = format!("sendbird_bridge_{name}");
        assert_eq!(before.value(&name, &[]), after.value(&name, &[]), "{name}");
    }
    // It is a path with methods of its own, and no other path is one.
    let other = Request::post("/healthz").body(b"{}").send(bridge.webhook);
    assert_eq!(other.problem(405).header("allow"), Some("GET, HEAD"));
    for path in ["/healthz/", "/healthz/canary", "/readyz", "/livez"] {
        Request::get(path).send(bridge.webhook).problem(404);
    }
}

#[test]
fn the_health_path_can_be_another_or_none_or_that_of_the_webhook() {
    let other = Config::new().set("server.health_path", "'/'").start();
    assert_eq!(Request::get("/").send(other.webhook).status, 200);
    Request::get("/healthz").send(other.webhook).problem(404);
    other.deliver(&dial("a", 1)).stored();

    let none = Config::new().set("server.health_path", "''").start();
    for path in ["/healthz", "/", "*"] {
        Request::new("OPTIONS", path).send(none.webhook).problem(404);
    }

    let same = Config::new().set("server.health_path", &format!("'{PATH}'")).start();
    assert_eq!(Request::get(PATH).send(same.webhook).status, 200);
    same.deliver(&dial("a", 1)).stored();
    assert_eq!(Request::new("PUT", PATH).send(same.webhook).problem(405).header("allow"), Some("POST"));
}

#[test]
fn a_health_check_is_answered_503_while_the_bridge_is_not_ready() {
    let config = Config::new().set("journal.max_bytes", "'1MiB'").set("journal.retain_bytes", "'256KiB'");
    let mut bridge = config.stdout_sink(Stdout::Held).start();
    let check = || Request::get("/healthz").send(bridge.webhook);
    assert_eq!(check().status, 200);
    let mut n = 0;
    // First large events, then small ones for what is left.
    for bytes in [40_000, 1] {
        while bridge.deliver(&large("a", n, bytes)).status == 200 {
            n += 1;
            assert!(n < 200, "the journal is never full");
        }
    }
    eventually("it is not ready", || check().status == 503);
    let detail = check().problem(503).json()["detail"].clone();
    assert_eq!(detail, "not ready", "no more than that");
    assert_eq!(bridge.admin("/readyz").status, 503);
    bridge.process.read_stdout();
    eventually("it is ready again", || Request::get("/healthz").send(bridge.webhook).status == 200);
}

#[test]
fn a_health_check_is_answered_503_once_the_bridge_stops() {
    let bridge = Config::new().start();
    let mut open = Connection::open(bridge.webhook);
    let check = Request::get("/healthz");
    assert_eq!(open.send(&check).status, 200);
    bridge.process.terminate();
    let begun = Instant::now();
    while open.send(&check).status == 200 {
        assert!(begun.elapsed() < PATIENCE);
    }
    assert!(open.is_closed());
    assert_eq!(bridge.process.wait_within(PATIENCE).code(), Some(0));
}

#[test]
fn an_idle_connection_is_closed_after_the_idle_timeout() {
    let short = Config::new().set("server.idle_timeout", "'5s'").start();
    let long = Config::new().start();
    let mut kept = Connection::open(long.webhook);
    kept.send(&signed(&dial("a", 1))).stored();
    let mut fresh = Connection::open(short.webhook);
    let mut used = Connection::open(short.webhook);
    std::thread::sleep(Duration::from_secs(3));
    used.send(&signed(&dial("a", 1))).stored();
    let begun = Instant::now();
    assert!(fresh.is_closed());
    assert!(begun.elapsed() < Duration::from_secs(4), "a connection that said nothing was closed late");
    assert!(used.is_closed());
    let idle = begun.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(9)).contains(&idle), "closed after {idle:?}");
    // Nobody did anything wrong.
    assert_eq!(rejected(&short, "too_slow"), 0.0);
    kept.send(&signed(&dial("a", 2))).stored();
}

/// Version 2 of the PROXY protocol, with a command, a family, and what follows.
fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

/// The header of a client with this address of IPv4.
fn client(address: [u8; 4]) -> Vec<u8> {
    version_2(0x21, 0x11, &[&address[..], &[192, 0, 2, 255, 0, 1, 0, 2]].concat())
}

fn line(text: &str) -> Vec<u8> {
    format!("PROXY {text}\r\n").into_bytes()
}

/// A bridge behind a load balancer that passes TCP on.
fn behind_proxy(proxies: &str) -> Config {
    let config = Config::new().set("server.proxy_protocol", "true").set("access.trusted_proxies", proxies);
    config.set("access.networks", "['10.0.0.0/8', '2001:db8::/32']")
}

fn deliver(bridge: &Bridge, header: &[u8], n: u64) -> Response {
    let mut connection = Connection::open(bridge.webhook);
    connection.write(&[header, &signed(&dial("canary", n)).bytes()].concat());
    connection.response()
}

#[test]
fn the_address_in_a_proxy_protocol_header_of_a_trusted_proxy_counts() {
    let bridge = behind_proxy("['127.0.0.1']").start();
    let mut ipv6 = vec![0; 36];
    ipv6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    let with_extension = [&[10, 1, 2, 3, 192, 0, 2, 255, 0, 1, 0, 2][..], &[0x20, 0, 3, 1, 2, 3]].concat();
    for (n, header) in [
        line("TCP4 10.1.2.3 192.0.2.255 1 2"),
        line("TCP6 2001:db8::1 2001:db8::2 65535 443"),
        line("TCP6 ::ffff:10.1.2.3 2001:db8::2 65535 443"),
        client([10, 1, 2, 3]),
        version_2(0x21, 0x11, &with_extension),
        version_2(0x21, 0x21, &ipv6),
    ]
    .iter()
    .enumerate()
    {
        deliver(&bridge, header, n as u64).stored();
    }
    for header in [line("TCP4 203.0.113.9 192.0.2.255 1 2"), client([203, 0, 113, 9])] {
        deliver(&bridge, &header, 100).problem(403);
    }
    // The proxy itself, as in its health checks.
    for header in [line("UNKNOWN"), version_2(0x20, 0, &[]), version_2(0x21, 0x31, &[1; 216])] {
        deliver(&bridge, &header, 100).problem(403);
    }
    assert_eq!(rejected(&bridge, "network"), 5.0);
    eventually("a line", || !sources(&bridge, "network").is_empty());
    assert_eq!(sources(&bridge, "network"), [("203.0.113.9".to_owned(), "PROXY protocol".to_owned())]);
    let mut checks = Connection::open(bridge.webhook);
    checks.write(&[version_2(0x20, 0, &[]), Request::get("/healthz").bytes()].concat());
    assert_eq!(checks.response().status, 200);
}

#[test]
fn a_proxy_protocol_header_is_read_once_and_however_it_comes() {
    let bridge = behind_proxy("['127.0.0.1']").start();
    for (n, header) in [line("TCP4 10.1.2.3 192.0.2.255 1 2"), client([10, 1, 2, 3])].iter().enumerate() {
        let mut connection = Connection::open(bridge.webhook);
        for byte in header {
            connection.write(&[*byte]);
            std::thread::sleep(Duration::from_millis(2));
        }
        for m in 0..10 {
            connection.send(&signed(&dial("a", n as u64 * 10 + m))).stored();
        }
        // A second one is no request.
        connection.write(header);
        connection.response().problem(400);
        assert!(connection.is_closed());
    }
    assert_eq!(rejected(&bridge, "proxy_protocol"), 2.0);
}

#[test]
fn a_proxy_protocol_header_of_anybody_else_does_not_count() {
    let bridge = behind_proxy("['192.0.2.0/24']").start();
    deliver(&bridge, &client([10, 1, 2, 3]), 1).problem(403);
    eventually("a line", || !sources(&bridge, "network").is_empty());
    let from = "peer; it is not in access.trusted_proxies, so its PROXY protocol header does not count";
    assert_eq!(sources(&bridge, "network"), [("127.0.0.1".to_owned(), from.to_owned())]);
}

#[test]
fn a_proxy_behind_a_load_balancer_may_add_its_own_client() {
    let bridge = behind_proxy("['127.0.0.1', '192.0.2.0/24']").start();
    let forwarded = |address: &str| {
        let request = signed(&dial(address, 1)).header("x-forwarded-for", address).bytes();
        let mut connection = Connection::open(bridge.webhook);
        connection.write(&[client([192, 0, 2, 7]), request].concat());
        connection.response()
    };
    forwarded("10.1.2.3").stored();
    forwarded("203.0.113.9").problem(403);
    // One that is not trusted may not.
    let request = signed(&dial("b", 1)).header("x-forwarded-for", "10.1.2.3").bytes();
    let mut connection = Connection::open(bridge.webhook);
    connection.write(&[client([203, 0, 113, 10]), request].concat());
    connection.response().problem(403);
}

#[test]
fn a_connection_without_a_proper_proxy_protocol_header_is_answered_400() {
    let bridge = behind_proxy("['127.0.0.1']").start();
    let too_long = version_2(0x21, 0x11, &[0; 5000]);
    let kinds = [
        signed(&dial("canary", 1)).bytes(),
        line("TCP4 canary 192.0.2.255 1 2"),
        line("TCP4 10.1.2.3 192.0.2.255 1 66666"),
        format!("PROXY TCP4 {}", "1".repeat(200)).into_bytes(),
        client([10, 1, 2, 3])[..14].iter().copied().chain([0, 4, 10, 1, 2, 3]).collect(),
        too_long,
    ];
    for (n, header) in kinds.iter().enumerate() {
        deliver(&bridge, header, 1).problem(400);
        assert_eq!(rejected(&bridge, "proxy_protocol"), n as f64 + 1.0);
    }
    assert!(bridge.events().is_empty());
    assert!(!bridge.log().so_far().join("\n").contains("canary"));

    // What only looks whether somebody listens is left alone, what stays silent is not waited for.
    drop(Connection::open(bridge.webhook));
    let mut silent = Connection::open(bridge.webhook);
    let begun = Instant::now();
    silent.response().problem(408);
    assert!(begun.elapsed() < Duration::from_secs(8) && silent.is_closed());
    let mut half = Connection::open(bridge.webhook);
    half.write(b"PROXY TCP4 10.1.2.3");
    half.finish_writing();
    half.response().problem(400);
    assert_eq!(rejected(&bridge, "proxy_protocol"), kinds.len() as f64 + 1.0);
    deliver(&bridge, &client([10, 1, 2, 3]), 1).stored();
}

#[test]
fn a_proxy_protocol_header_comes_before_tls() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path());
    let bridge = with_certificate(behind_proxy("['127.0.0.1']"), "server", &authority.issue(ADDRESS)).start();
    let deliver = |address: [u8; 4]| {
        let mut connection = connect_behind(bridge.webhook, &client(address), &authority.ca_file, None).unwrap();
        connection.send(&signed(&dial("a", 1)))
    };
    deliver([10, 1, 2, 3]).stored();
    deliver([203, 0, 113, 9]).problem(403);
    assert!(connect_behind(bridge.webhook, b"", &authority.ca_file, None).is_err());
    eventually("that is counted", || rejected(&bridge, "proxy_protocol") == 1.0);
}

#[test]
fn empty_entries_of_x_forwarded_for_do_not_count() {
    let config = Config::new().set("access.networks", "['10.0.0.0/8']");
    let bridge = config.set("access.trusted_proxies", "['127.0.0.1', '192.0.2.0/24']").start();
    for (n, value) in
        ["10.1.2.3,", ", 10.1.2.3", "10.1.2.3, , 192.0.2.1", ",,10.1.2.3 ,\t,192.0.2.1,,"].iter().enumerate()
    {
        signed(&dial("a", n as u64)).header("x-forwarded-for", value).send(bridge.webhook).stored();
    }
    let two = signed(&dial("b", 1)).header("x-forwarded-for", "10.1.2.3").header("x-forwarded-for", "");
    two.send(bridge.webhook).stored();
    // None of them is an address, and the proxy's own is not allowed.
    signed(&dial("c", 1)).header("x-forwarded-for", " , ,").send(bridge.webhook).problem(403);
    signed(&dial("c", 1)).header("x-forwarded-for", "10.1.2.3, 203.0.113.9,").send(bridge.webhook).problem(403);
}

/// What real ones send: the client's address arrives, their health checks are answered and count as nothing, and a bridge
/// that is not ready gets nothing.
fn a_real_load_balancer_says_who_its_client_is(kind: Kind) {
    let is_tcp = matches!(kind, Kind::HaproxyTcpVersion1 | Kind::HaproxyTcpVersion2);
    let config = |networks: &str| {
        let config = Config::new().set("access.trusted_proxies", "['127.0.0.1']").set("access.networks", networks);
        if is_tcp { config.set("server.proxy_protocol", "true") } else { config }
    };
    // The client and the load balancer have the same address here. What a refusal is logged with says which was meant.
    let refusing = config("['10.0.0.0/8']").start();
    let balancer = LoadBalancer::start(kind, refusing.webhook);
    eventually("it is asked for", || signed(&dial("a", 1)).send(balancer.address).status == 403);
    eventually("a line", || !sources(&refusing, "network").is_empty());
    let (address, from) = sources(&refusing, "network").remove(0);
    assert_eq!(address, "127.0.0.1");
    assert!(from.starts_with(if is_tcp { "PROXY protocol" } else { "x-forwarded-for" }), "{from}");

    let bridge = config("['127.0.0.1']").start();
    let balancer = LoadBalancer::start(kind, bridge.webhook);
    eventually("the bridge is taken into use", || Request::get("/healthz").send(balancer.address).status == 200);
    let mut connection = Connection::open(balancer.address);
    for n in 0..20 {
        connection.send(&signed(&dial("a", n))).stored();
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(bridge.metric("sendbird_bridge_rejected_total", &[]), 0.0, "health checks are no faults");
    // HAProxy asks the bridge whether it is ready; nginx does not.
    if kind != Kind::Nginx {
        bridge.process.terminate();
        eventually("nothing is sent to it any more", || {
            let mut connection = Connection::open(balancer.address);
            connection.write(&signed(&dial("b", 1)).bytes());
            if is_tcp { connection.is_closed() } else { connection.response().status == 503 }
        });
    }
}

#[test]
fn haproxy_says_who_its_client_is_by_a_proxy_protocol_header_of_version_1() {
    a_real_load_balancer_says_who_its_client_is(Kind::HaproxyTcpVersion1);
}

#[test]
fn haproxy_says_who_its_client_is_by_a_proxy_protocol_header_of_version_2() {
    a_real_load_balancer_says_who_its_client_is(Kind::HaproxyTcpVersion2);
}

#[test]
fn haproxy_says_who_its_client_is_by_x_forwarded_for() {
    a_real_load_balancer_says_who_its_client_is(Kind::HaproxyHttp);
}

#[test]
fn nginx_says_who_its_client_is_by_x_forwarded_for() {
    a_real_load_balancer_says_who_its_client_is(Kind::Nginx);
}

#[test]
fn settings_that_cannot_work_are_faults() {
    for (key, value, expected) in [
        ("server.idle_timeout", "'4s'", "5s to 1h"),
        ("server.idle_timeout", "'2h'", "5s to 1h"),
        ("server.linger", "'4s'", "0s to 3s"),
        ("server.health_path", "'healthz'", "/healthz"),
        ("server.health_path", "'/a b'", "/healthz"),
        ("server.proxy_protocol", "true", "access.trusted_proxies"),
    ] {
        let ended = Config::new().set(key, value).refused();
        assert_eq!(ended.code(), Some(64), "{key} = {value}");
        assert!(ended.stderr().contains(key) && ended.stderr().contains(expected), "{}", ended.stderr());
    }
}
