//! Brokers that want TLS and to know who comes: each way in, and what a wrong key looks like from outside.

use std::fs;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use nkeys::KeyPair;
use sendbird_bridge::domain::clock::Clock;
use serde_json::{Value, json};

use crate::sinks::for_each_broker;
use crate::support::bridge::{Bridge, Config};
use crate::support::broker::secured::{Fault, PASSWORD, SecuredBroker, WRONG, sasl};
use crate::support::broker::{Kind, Own};
use crate::support::certificates::Authority;
use crate::support::eventually;
use crate::support::samples::dial;

for_each_broker! {
    what_is_wrong_with_the_key_is_said_and_waited_for
    a_renewed_authority_is_trusted_when_the_log_says
}

const FAULTS: [(&str, Fault, &str, &str); 4] = [
    ("authority", Fault::Authority, "connection", "no authority of tls.ca_file"),
    ("name", Fault::Name, "connection", "not for this host name"),
    ("password", Fault::Password, "not_authorized", ""),
    ("certificate", Fault::Certificate, "not_authorized", "does not take the client's certificate"),
];

pub(crate) fn last_failure(bridge: &Bridge, name: &str) -> String {
    let status = bridge.status();
    let sinks = status["sinks"].as_array().unwrap();
    let sink = sinks.iter().find(|sink| sink["name"] == name).unwrap_or_else(|| panic!("no {name} in {status}"));
    sink["last_failure"].as_str().unwrap_or_default().to_owned()
}

pub(crate) fn is_connected(bridge: &Bridge, name: &str) -> bool {
    bridge.metric("sendbird_bridge_sink_connected", &[("sink", name)]) > 0.0
}

fn what_is_wrong_with_the_key_is_said_and_waited_for(kind: Kind) {
    let secured = SecuredBroker::start(kind);
    let places = FAULTS.map(|(name, ..)| (name, secured.broker.place()));
    let wrong = FAULTS
        .iter()
        .zip(&places)
        .fold(Config::new(), |config, ((name, fault, ..), (_, place))| secured.sink(config, name, place, *fault));
    let checked = wrong.process(&["config", "check", "--connect"]).wait();
    assert_eq!(checked.code(), Some(1), "{}", checked.stdout());

    let bridge = wrong.start();
    assert_eq!(bridge.deliver(&dial("refused", 1)).status, 200);
    for (name, fault, reason, words) in FAULTS {
        let labels = [("sink", name), ("reason", reason)];
        eventually(&format!("{name}: a retry for {reason}"), || {
            bridge.metrics().find("sendbird_bridge_sink_retries_total", &labels).is_some_and(|count| count > 0.0)
        });
        // A broker that wants a certificate may close the connection before its reason is read; the next try tells.
        eventually(&format!("{name}: what is wrong is said"), || {
            let said = last_failure(&bridge, name);
            said.starts_with(reason) && said.contains(words)
        });
        eventually(&format!("{name}: what is wrong is logged"), || {
            bridge.log().so_far().iter().any(|line| line.contains(name) && line.contains(words))
        });
        let is_named = fault == Fault::Certificate || checked.stdout().contains(words);
        assert!(is_named && checked.stdout().contains(&format!("sinks.{name} ")), "{name}: {}", checked.stdout());
        assert!(!is_connected(&bridge, name));
    }
    let ended = bridge.stop();
    assert!(!format!("{}{}{}", ended.stderr(), checked.stdout(), checked.stderr()).contains("canary"));

    let right = places.iter().fold(wrong, |config, (name, place)| secured.sink(config, name, place, Fault::Nothing));
    let bridge = right.start();
    secured.arrive(&bridge, &places, 1);
    secured.show(&secured.authority.issue_expired("127.0.0.1"));
    assert_eq!(bridge.deliver(&dial("expired", 2)).status, 200);
    for (name, _) in &places {
        eventually(&format!("{name}: an expired certificate is named"), || {
            last_failure(&bridge, name).contains("expired") && !is_connected(&bridge, name)
        });
    }
    secured.show(&secured.server);
    secured.arrive(&bridge, &places, 2);
}

/// What `rotation` has the log say of a changed file, from the broker's side.
fn a_renewed_authority_is_trusted_when_the_log_says(kind: Kind) {
    let secured = SecuredBroker::start(kind);
    let places = [("it", secured.broker.place())];
    let config = secured.sink(Config::new(), "it", &places[0].1, Fault::Nothing);
    let trusted = config.dir().join("trusted.pem");
    let trust = |authority: &Authority| {
        let new = config.dir().join("new");
        fs::copy(&authority.ca_file, &new).unwrap();
        fs::rename(new, &trusted).unwrap();
    };
    let config = config.clone().set("sinks.it.tls", &secured.tls(&trusted, true));
    let untrusted = |bridge: &Bridge| last_failure(bridge, "it").contains("no authority of tls.ca_file");

    trust(&secured.other);
    let bridge = config.start();
    assert_eq!(bridge.deliver(&dial("renewed", 1)).status, 200);
    eventually("it trusts another authority", || untrusted(&bridge));
    trust(&secured.authority);
    secured.arrive(&bridge, &places, 1);

    trust(&secured.other);
    secured.show(&secured.other.issue("127.0.0.1"));
    assert_eq!(bridge.deliver(&dial("renewed", 2)).status, 200);
    if kind != Kind::Kafka {
        return secured.arrive(&bridge, &places, 2);
    }
    eventually("the client that has connected keeps what it has read", || untrusted(&bridge));
    assert_eq!(bridge.stop().code(), Some(0));
    secured.arrive(&config.start(), &places, 2);
}

#[test]
fn kafka_is_reached_by_certificate_and_by_each_mechanism() {
    let secured = SecuredBroker::start(Kind::Kafka);
    let places = ["mtls", "plain", "scram-sha-256", "scram-sha-512"].map(|name| (name, secured.broker.place()));
    let mut config = Config::new();
    for (name, place) in &places {
        config = secured.sink(config, name, place, Fault::Nothing);
        config = if *name == "mtls" {
            let brokers = format!("['127.0.0.1:{}']", secured.broker.secure_port("kafka-tls"));
            config.unset("sinks.mtls.sasl").set("sinks.mtls.brokers", &brokers)
        } else {
            config.set(&format!("sinks.{name}.sasl"), &sasl(&name.to_uppercase(), PASSWORD))
        };
    }
    let bridge = config.start();
    assert_eq!(bridge.deliver(&dial("secured", 1)).status, 200);
    secured.arrive(&bridge, &places, 1);
}

/// A NATS server with these lines, on which a sink with these credentials gets an event in; others get nothing in.
fn nats_is_reached(lines: &str, credentials: &str, wrong: &str) {
    let broker = Own::configured(Kind::Nats, lines);
    let place = broker.place();
    let config = place.making_sink(Config::new(), "nats").set("sinks.nats.credentials", wrong);
    let bridge = config.start();
    assert_eq!(bridge.deliver(&dial("secured", 1)).status, 200);
    eventually("it is refused", || last_failure(&bridge, "nats").starts_with("not_authorized"));
    let ended = bridge.stop();
    assert!(!ended.stderr().contains("canary"), "{}", ended.stderr());
    let bridge = config.set("sinks.nats.credentials", credentials).start();
    bridge.caught_up();
    // JetStream's own acknowledgement; nobody else has the key.
    assert!(bridge.metric("sendbird_bridge_sink_published_total", &[("sink", "nats")]) >= 1.0);
}

#[test]
fn nats_is_reached_by_token() {
    let lines = format!("authorization {{ token: '{PASSWORD}' }}\n");
    nats_is_reached(&lines, &format!("{{ token = '{PASSWORD}' }}"), &format!("{{ token = '{WRONG}' }}"));
}

#[test]
fn nats_is_reached_by_nkey() {
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let lines = format!("authorization {{ users: [{{ nkey: {} }}] }}\n", user.public_key());
    let seed = |key: &KeyPair| format!("{{ nkey_seed = '{}' }}", key.seed().unwrap());
    nats_is_reached(&lines, &seed(&user), &seed(&stranger));
}

#[test]
fn nats_is_reached_by_credentials_file() {
    let (operator, system, account) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_account());
    let unlimited = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), json!(-1))).collect::<Value>();
    let mut limits = unlimited(&[
        "subs",
        "data",
        "payload",
        "imports",
        "exports",
        "conn",
        "leaf",
        "mem_storage",
        "disk_storage",
        "streams",
        "consumer",
    ]);
    limits["wildcards"] = true.into();
    let kind = |kind: &str| json!({ "type": kind, "version": 2 });
    let of_account = json!({ "type": "account", "version": 2, "limits": limits });
    let preload = [(&system, kind("account")), (&account, of_account)]
        .map(|(key, claims)| format!("{}: {}\n", key.public_key(), jwt(&operator, key, claims)))
        .concat();
    let lines = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n{preload}}}\n",
        jwt(&operator, &operator, kind("operator")),
        system.public_key(),
    );
    let creds = |issuer: &KeyPair| {
        let mut claims = unlimited(&["subs", "data", "payload"]);
        claims["type"] = "user".into();
        claims["version"] = 2.into();
        let (token, seed) = (jwt(issuer, &user, claims), user.seed().unwrap());
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        format!("{{ creds = {text:?} }}")
    };
    nats_is_reached(&lines, &creds(&account), &creds(&stranger));
}

/// A NATS JWT, version 2.
fn jwt(issuer: &KeyPair, subject: &KeyPair, claims: Value) -> String {
    let now = Clock::system().now_ms() / 1000;
    let body = json!({
        "jti": fastrand::u64(..).to_string(), "iat": now, "iss": issuer.public_key(), "name": "test",
        "sub": subject.public_key(), "nats": claims,
    });
    let head = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let signed = [head, body].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = BASE64_URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}
