//! Kafka's OAUTHBEARER: tokens of an issuer and of a file, before they expire and after they were refused.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::sinks::authentication::{is_connected, last_failure};
use crate::support::bridge::{Bridge, Config};
use crate::support::broker::Place;
use crate::support::broker::secured::{Fault, PASSWORD, SecuredBroker, WRONG};
use crate::support::eventually;
use crate::support::issuer::{CLIENT, Issuer, SCOPE};
use crate::support::samples::dial;

/// How long a short-lived token holds, in seconds. Of less, the last fifth might be shorter than the second that Kafka
/// wants between one token and the next; and the client, which has found one expired, looks again after ten.
const SHORT: u32 = 15;

/// A sink that shows tokens of OAUTHBEARER; the rest of the table `sasl` says where it has them from.
fn sink(secured: &SecuredBroker, place: &Place, config: Config, rest: &str) -> Config {
    secured
        .sink(config, "it", place, Fault::Nothing)
        .unset("sinks.it.create_topics")
        .set("sinks.it.sasl", &format!("{{ mechanism = 'OAUTHBEARER', {rest} }}"))
}

fn from_issuer(issuer: &Issuer, ca_file: &Path, secret: &str) -> String {
    format!(
        "token_endpoint = '{}', client_id = '{CLIENT}', client_secret = '{secret}', scope = '{SCOPE}', ca_file = '{}'",
        issuer.url(),
        ca_file.display()
    )
}

fn from_file(file: &Path) -> String {
    format!("token_endpoint = 'file://{}'", file.display())
}

#[track_caller]
fn is_reported(bridge: &Bridge, reason: &str, words: &str) {
    eventually(&format!("it is reported: {reason}, {words}"), || {
        let said = last_failure(bridge, "it");
        said.starts_with(reason) && said.contains(words) && !is_connected(bridge, "it")
    });
}

#[test]
fn tokens_are_replaced_before_they_expire_and_nobody_waits() {
    let issuer = Issuer::start(SHORT);
    let secured = SecuredBroker::start_with_issuer(&issuer);
    let place = secured.broker.place().made();
    let rest = from_issuer(&issuer, &issuer.authority.ca_file, PASSWORD);
    let config = sink(&secured, &place, Config::new(), &rest);
    let checked = config.process(&["config", "check", "--connect"]).wait();
    assert_eq!(checked.code(), Some(0), "{}", checked.stdout());
    let before = issuer.given();
    let bridge = config.start();
    eventually("it is connected", || is_connected(&bridge, "it"));
    let (until, mut delivered) = (Instant::now() + Duration::from_secs(2 * u64::from(SHORT)), 0);
    while Instant::now() < until {
        delivered += 1;
        assert_eq!(bridge.deliver(&dial("token", delivered)).status, 200);
        assert!(is_connected(&bridge, "it"), "{}", last_failure(&bridge, "it"));
        sleep(Duration::from_millis(200));
    }
    bridge.caught_up();
    assert_eq!(place.count(), delivered);
    let given = issuer.given() - before;
    assert!((3..10).contains(&given), "expected a token every nine seconds, but found {given}");
    for reason in ["connection", "not_authorized", "timeout"] {
        let retries =
            bridge.metrics().find("sendbird_bridge_sink_retries_total", &[("sink", "it"), ("reason", reason)]);
        assert!(retries.is_none_or(|count| count == 0.0), "{reason}");
    }

    // An issuer that does not answer for longer than its last token holds.
    issuer.process.freeze();
    // The reason is that of the last try: of showing a token, or of asking for one.
    is_reported(&bridge, "", "the token endpoint does not answer");
    assert_eq!(bridge.deliver(&dial("token", delivered + 1)).status, 200);
    issuer.process.thaw();
    bridge.caught_up();
    assert_eq!(place.count(), delivered + 1);
    let ended = bridge.stop();
    let said = ended.stderr();
    assert!(said.contains("cannot renew the token; using the last one until it expires"), "{said}");
    assert!(!said.contains("canary") && !said.contains("eyJ"), "{said}");
}

#[test]
fn what_is_wrong_with_an_issuer_is_said_and_waited_for() {
    let issuer = Issuer::start(SHORT);
    let secured = SecuredBroker::start_with_issuer(&issuer);
    let place = secured.broker.place().made();
    let right = &issuer.authority.ca_file;
    let with = |config: Config, ca_file: &Path, secret: &str| {
        sink(&secured, &place, config, &from_issuer(&issuer, ca_file, secret))
    };
    let unanswered = "token_endpoint = 'http://127.0.0.1:1/token', client_id = 'b', client_secret = 'canary'";
    let mut config = Config::new();
    for (wrong, reason, words) in [
        (with(config.clone(), right, WRONG), "not_authorized", "the token endpoint answers 401 (invalid_client)"),
        (with(config.clone(), &secured.other.ca_file, PASSWORD), "connection", "UnknownIssuer; see sasl.ca_file"),
        (sink(&secured, &place, config.clone(), unanswered), "connection", "the token endpoint cannot be reached: "),
    ] {
        let checked = wrong.process(&["config", "check", "--connect"]).wait();
        assert_eq!(checked.code(), Some(1), "{}", checked.stdout());
        assert!(checked.stdout().contains(words), "{}", checked.stdout());
        let bridge = wrong.start();
        is_reported(&bridge, reason, words);
        let ended = bridge.stop();
        assert!(!format!("{}{}{}", ended.stderr(), checked.stdout(), checked.stderr()).contains("canary"));
        config = wrong;
    }
    let bridge = with(config, right, PASSWORD).start();
    assert_eq!(bridge.deliver(&dial("token", 1)).status, 200);
    secured.arrive(&bridge, &[("it", place.clone())], 1);
}

#[test]
fn a_token_in_a_file_that_is_refused_is_replaced_without_a_restart() {
    let (issuer, stranger) = (Issuer::start(SHORT), Issuer::start(3600));
    let secured = SecuredBroker::start_with_issuer(&issuer);
    let place = secured.broker.place().made();
    let config = Config::new();
    let file = config.dir().join("token");
    let bridge = sink(&secured, &place, config, &from_file(&file)).start();
    assert_eq!(bridge.deliver(&dial("token", 1)).status, 200);
    is_reported(&bridge, "not_authorized", "cannot read ");
    let mut shown = vec![issuer.renew(&file)];
    bridge.caught_up();
    assert_eq!(place.count(), 1);

    // The client takes it in time, and would keep it for an hour.
    shown.push(stranger.renew(&file));
    is_reported(&bridge, "not_authorized", "");
    assert_eq!(bridge.deliver(&dial("token", 2)).status, 200);
    assert!(!is_connected(&bridge, "it"));
    shown.push(issuer.renew(&file));
    bridge.caught_up();
    assert_eq!(place.count(), 2);

    // Nobody renews it.
    is_reported(&bridge, "not_authorized", "has expired");
    shown.push(issuer.renew(&file));
    eventually("it is connected again", || is_connected(&bridge, "it"));
    let ended = bridge.stop();
    assert!(shown.iter().all(|token| !ended.stderr().contains(token.as_str())));
}
