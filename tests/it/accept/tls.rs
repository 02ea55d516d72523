//! TLS on the bridge's own listeners.

use std::fs;
use std::path::Path;

use crate::support::bridge::{Bridge, Config, PATH, TOKEN, signed};
use crate::support::certificates::{Authority, Files};
use crate::support::eventually;
use crate::support::http::{Connection, Request};
use crate::support::process::run;
use crate::support::samples::dial;
use crate::support::tls::connect;

pub(super) const ADDRESS: &str = "127.0.0.1";

pub(super) fn with_certificate(config: Config, section: &str, files: &Files) -> Config {
    config
        .set(&format!("{section}.tls.cert_file"), &format!("'{}'", files.cert_file.display()))
        .set(&format!("{section}.tls.key_file"), &format!("'{}'", files.key_file.display()))
}

/// A bridge whose webhook has a certificate.
fn encrypted(authority: &Authority) -> Config {
    with_certificate(Config::new(), "server", &authority.issue(ADDRESS))
}

fn authority(dir: &tempfile::TempDir, name: &str) -> Authority {
    Authority::new(&dir.path().join(name))
}

fn said(bridge: &Bridge, what: &str) -> usize {
    bridge.log().so_far().iter().filter(|line| line.contains(what)).count()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn deliveries_and_operators_come_in_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let (outside, inside) = (authority(&dir, "outside"), authority(&dir, "inside"));
    let config = with_certificate(encrypted(&outside), "admin", &inside.issue(ADDRESS));
    let bridge = config.start();

    let mut connection = connect(bridge.webhook, &outside.ca_file, None).unwrap();
    connection.send(&signed(&dial("one", 1))).stored();
    connection.send(&signed(&dial("one", 1))).duplicate();
    let ready = connect(bridge.admin, &inside.ca_file, None).unwrap().send(&Request::get("/readyz"));
    assert_eq!(ready.status, 200);
    // Each listener has its own certificate.
    assert!(connect(bridge.admin, &outside.ca_file, None).is_err());
    assert!(connect(bridge.webhook, &inside.ca_file, None).is_err());

    // The program's own clients.
    let url = format!("https://{}{PATH}", bridge.webhook);
    let send = |ca: &Path| run(&["send", "--all", "--token", TOKEN, "--url", &url, "--ca-file", text(ca)]);
    assert_eq!(send(&outside.ca_file).code(), Some(0));
    assert_eq!(send(&inside.ca_file).code(), Some(1));
    let admin = format!("https://{}", bridge.admin);
    let tail = run(&["tail", "--no-follow", "--url", &admin, "--ca-file", text(&inside.ca_file)]);
    assert_eq!((tail.code(), tail.stdout.len()), (Some(0), 14), "{}", tail.stderr());

    // Plain HTTP is no handshake: nothing is answered, and nobody waits.
    let mut plain = Connection::open(bridge.webhook);
    plain.write(&signed(&dial("two", 2)).bytes());
    assert!(plain.try_response().is_err());
    assert_eq!(bridge.stop().code(), Some(0));
}

#[test]
fn connections_without_the_required_client_certificate_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (servers, clients, others) =
        (authority(&dir, "servers"), authority(&dir, "clients"), authority(&dir, "others"));
    let ca_file = format!("'{}'", clients.ca_file.display());
    let bridge = encrypted(&servers).set("server.tls.client_ca_file", &ca_file).start();
    let deliver = |own: Option<&Files>| {
        let mut connection = connect(bridge.webhook, &servers.ca_file, own)?;
        connection.try_write(&signed(&dial("one", 1)).bytes())?;
        connection.try_response()
    };

    assert!(deliver(None).is_err());
    assert!(deliver(Some(&others.issue("sendbird"))).is_err());
    assert!(deliver(Some(&clients.issue_expired("sendbird"))).is_err());
    let right = clients.issue("sendbird");
    deliver(Some(&right)).unwrap().stored();

    let url = format!("https://{}{PATH}", bridge.webhook);
    let arguments = ["send", "--token", TOKEN, "--url", &url, "--ca-file", text(&servers.ca_file)];
    assert_eq!(run(&arguments).code(), Some(1));
    let own = ["--cert-file", text(&right.cert_file), "--key-file", text(&right.key_file)];
    assert_eq!(run(&[&arguments[..], &own].concat()).code(), Some(0));
    assert_eq!(bridge.events().len(), 2);
}

#[test]
fn a_renewed_certificate_is_shown_from_the_next_connection_on() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (authority(&dir, "before"), authority(&dir, "after"));
    let files = before.issue(ADDRESS);
    let bridge = with_certificate(Config::new(), "server", &files).start();
    let mut old = connect(bridge.webhook, &before.ca_file, None).unwrap();
    old.send(&signed(&dial("one", 1))).stored();

    // Half a renewal, as between the writes of two files: the certificate that fits goes on being shown.
    let renewed = after.issue(ADDRESS);
    fs::rename(&renewed.cert_file, &files.cert_file).unwrap();
    eventually("the mismatch is logged", || said(&bridge, "cannot load the renewed certificate") == 1);
    connect(bridge.webhook, &before.ca_file, None).unwrap().send(&signed(&dial("two", 2))).stored();

    // In one go: half a key would be logged too.
    fs::rename(&renewed.key_file, &files.key_file).unwrap();
    eventually("the new certificate is shown", || connect(bridge.webhook, &after.ca_file, None).is_ok());
    assert!(connect(bridge.webhook, &before.ca_file, None).is_err());
    // Who was connected stays so.
    old.send(&signed(&dial("three", 3))).stored();
    assert_eq!(said(&bridge, "cannot load the renewed certificate"), 1);
    eventually("that is logged", || said(&bridge, "serving the renewed certificate") == 1);
    assert_eq!(bridge.events().len(), 3);
}

#[test]
fn a_handshake_that_does_not_end_is_cut_off_and_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(&dir, "ca");
    let bridge = encrypted(&authority).start();
    let mut silent = Connection::open(bridge.webhook);
    let mut half = Connection::open(bridge.webhook);
    // The beginning of a record that announces more.
    half.write(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]);
    eventually("both are connected", || bridge.metric("sendbird_bridge_connections", &[]) == 2.0);
    connect(bridge.webhook, &authority.ca_file, None).unwrap().send(&signed(&dial("one", 1))).stored();
    assert!(silent.is_closed() && half.is_closed());
    // Counted when the socket is closed.
    eventually("both are counted", || {
        bridge.metric("sendbird_bridge_rejected_total", &[("reason", "too_slow")]) == 2.0
    });
}

#[test]
fn a_stop_answers_what_has_begun_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(&dir, "ca");
    let bridge = encrypted(&authority).start();
    let request = signed(&dial("one", 1)).bytes();
    let (begin, end) = request.split_at(request.len() - 10);
    let mut connection = connect(bridge.webhook, &authority.ca_file, None).unwrap();
    let mut idle = connect(bridge.webhook, &authority.ca_file, None).unwrap();
    idle.send(&signed(&dial("two", 2))).stored();
    connection.write(begin);
    bridge.process.terminate();
    eventually("it stops", || !bridge.is_ready());
    connection.write(end);
    let answer = connection.response();
    answer.stored();
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(connection.is_closed() && idle.is_closed());
    assert_eq!(bridge.process.wait().code(), Some(0));
}

#[test]
fn certificates_that_cannot_be_used_are_named_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(&dir, "ca");
    let (one, other) = (authority.issue(ADDRESS), authority.issue("127.0.0.2"));
    let nothing = dir.path().join("nothing");
    fs::write(&nothing, "canary-of-a-key").unwrap();
    let path = |path: &Path| format!("'{}'", path.display());
    let cases = [
        (path(&one.cert_file), path(&other.key_file), "server.tls.key_file: expected the key of tls.cert_file"),
        (path(&one.cert_file), path(&nothing), "server.tls.key_file: expected a private key (PEM)"),
        (path(&nothing), path(&one.key_file), "server.tls.cert_file: expected certificates (PEM)"),
        (path(&dir.path().join("gone")), path(&one.key_file), "server.tls.cert_file: cannot read "),
    ];
    for (cert, key, expected) in cases {
        let config = Config::new().set("server.tls.cert_file", &cert).set("server.tls.key_file", &key);
        let ended = config.refused();
        assert_eq!(ended.code(), Some(64));
        assert!(ended.stderr().contains(expected), "{}", ended.stderr());
        assert!(!ended.stderr().contains("canary"), "{}", ended.stderr());
    }
    let ended = Config::new().set("admin.tls.cert_file", &path(&one.cert_file)).refused();
    assert!(ended.stderr().contains("admin.tls.key_file: expected the key of tls.cert_file, but found none"));
}
