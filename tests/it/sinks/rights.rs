//! The rights that the bridge's user needs at each broker, as `docs/security.md` lists them: with exactly these it publishes,
//! and with one less the check and `/status` say which is lacking, on what, and who lacks it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sinks::authentication::last_failure;
use crate::sinks::connection_check::{assert_fails, assert_passes};
use crate::support::bridge::Config;
use crate::support::broker::kafka::{Acl, Operation};
use crate::support::broker::secured::{Fault, SecuredBroker};
use crate::support::broker::{Kind, Own, Place};
use crate::support::eventually;
use crate::support::samples::dial;

const USER: &str = "bridge";
const PASSWORD: &str = "EXAMPLE";

/// Asserts that a fault about a lacking right has each of these words.
#[track_caller]
fn assert_not_authorized(config: &Config, words: &[&str]) {
    let faults = assert_fails(config, "it");
    let names = |fault: &String| fault.starts_with("not_authorized: ") && words.iter().all(|word| fault.contains(word));
    assert!(faults.iter().any(names), "no not_authorized with {words:?} in {faults:#?}");
}

/// A delivery like no other before, because a bridge is started on one journal again and again.
fn new_delivery(key: &str) -> Vec<u8> {
    static SENT: AtomicU64 = AtomicU64::new(1);
    dial(key, SENT.fetch_add(1, Ordering::Relaxed))
}

/// The same of a running bridge that has something to publish.
#[track_caller]
fn assert_is_refused(config: &Config, words: &[&str]) {
    let bridge = config.start();
    assert_eq!(bridge.deliver(&new_delivery("refused")).status, 200);
    eventually("the failure names the right", || {
        let said = last_failure(&bridge, "it");
        said.starts_with("not_authorized: ") && words.iter().all(|word| said.contains(word))
    });
    let retries = [("sink", "it"), ("reason", "not_authorized")];
    assert!(bridge.metric("sendbird_bridge_sink_retries_total", &retries) >= 1.0);
}

#[track_caller]
fn assert_publishes(config: &Config) {
    let bridge = config.start();
    assert_eq!(bridge.deliver(&new_delivery("allowed")).status, 200);
    bridge.caught_up();
    assert!(bridge.metric("sendbird_bridge_sink_published_total", &[("sink", "it")]) >= 1.0);
    assert_eq!(last_failure(&bridge, "it"), "");
}

#[test]
fn kafka_needs_write_and_to_create_topics_create() {
    let secured = SecuredBroker::start_with_authorizer();
    let place = secured.broker.place().made();
    let topics = |operation| Acl::allow(USER, &place.name, operation);
    let config = secured.sink(Config::new(), "it", &place, Fault::Nothing).unset("sinks.it.create_topics");
    let (user, topic) = (format!("user \"{USER}\""), format!("topic \"{}.direct_call\"", place.name));
    assert_not_authorized(&config, &[&topic, &user]);
    assert_is_refused(&config, &[&user]);
    topics(Operation::Describe).add(&place);
    assert_not_authorized(&config, &[&topic, &user]);
    topics(Operation::Write).add(&place);
    topics(Operation::Describe).remove(&place);
    let found = assert_passes(&config, "it");
    let hidden = format!("not checked: the settings of topics {}.direct_call", place.name);
    assert!(
        found.iter().any(|finding| finding.starts_with(&hidden) && finding.contains("DescribeConfigs")),
        "{found:?}"
    );
    assert_publishes(&config);
    topics(Operation::DescribeConfigs).add(&place);
    let found = assert_passes(&config, "it");
    assert!(found.iter().any(|finding| finding.contains("the replication factor is 1")), "{found:?}");
    topics(Operation::Write).remove(&place);
    // Somewhere else it may write, and so has a producer's id.
    Acl::allow(USER, "another", Operation::Write).add(&place);
    topics(Operation::Describe).add(&place);
    assert_not_authorized(&config, &[&topic, &user]);
    assert_is_refused(&config, &[&topic, &user]);

    let place = secured.broker.place();
    let config = secured.sink(Config::new(), "it", &place, Fault::Nothing);
    let topic = format!("topic \"{}.direct_call\"", place.name);
    Acl::allow(USER, &place.name, Operation::Write).add(&place);
    assert_not_authorized(&config, &[&topic, &user]);
    Acl::allow(USER, &place.name, Operation::Create).add(&place);
    let found = assert_passes(&config, "it");
    assert!(found.contains(&format!("will be created: {topic}")), "{found:?}");
    assert_publishes(&config);
}

#[test]
fn rabbitmq_needs_write_and_to_declare_configure_and_read() {
    let own = Own::start(Kind::RabbitMq);
    let place = own.place();
    own.ctl(&["add_user", USER, PASSWORD]);
    let only = format!("^{}$", place.name);
    let allow = |configure: bool, write: bool, read: bool| {
        let of = |allowed| if allowed { only.as_str() } else { "" };
        own.ctl(&["set_permissions", USER, of(configure), of(write), of(read)]);
    };
    let as_user =
        Place { address: place.address.replace("guest:guest", &format!("{USER}:{PASSWORD}")), ..place.clone() };
    let creating = as_user.making_sink(Config::new(), "it");
    let (user, exchange) = (format!("user '{USER}'"), format!("exchange '{}'", place.name));
    let address = format!("127.0.0.1:{}", own.run("port").trim());
    assert_not_authorized(&creating, &["not_authorized", &address, USER]);
    for (configure, write, read) in [(false, true, true), (true, false, true), (true, true, false)] {
        allow(configure, write, read);
        // Nothing tells of the last two until it is declared.
        assert_is_refused(&creating, &[&address, &place.name, &user]);
    }
    allow(true, true, true);
    assert_publishes(&creating);
    assert_passes(&creating, "it");
    allow(false, true, true);
    assert_not_authorized(&creating, &[&address, &exchange, &user]);

    let config = as_user.sink(Config::new(), "it");
    allow(false, false, false);
    let key = format!("exchange \"{}\", routing key \"direct_call.dial.*\"", place.name);
    assert_not_authorized(&config, &[&address, &key, &exchange, &user]);
    assert_is_refused(&config, &[&exchange, &user, "routing key \"direct_call.dial.refused\""]);
    allow(false, true, false);
    assert_passes(&config, "it");
    assert_publishes(&config);
    own.ctl(&["set_topic_permissions", USER, &place.name, "^direct_call[.]", ""]);
    let faults = assert_fails(&config, "it");
    assert!(
        faults.iter().all(|fault| fault.starts_with("not_authorized: ") && !fault.contains("direct_call")),
        "{faults:?}"
    );
    assert!(faults.iter().any(|fault| fault.contains("routing key \"room.create.*\"")), "{faults:?}");
    assert_passes(&config.set("sinks.it.categories", "['direct_call:*']"), "it");
    let nobody =
        as_user.sink(Config::new(), "it").set("sinks.it.url", &format!("'amqp://{USER}:canary@{address}/%2f'"));
    assert_not_authorized(&nobody, &[&address, &format!("user \"{USER}\"")]);
    let nowhere =
        as_user.sink(Config::new(), "it").set("sinks.it.url", &format!("'amqp://{USER}:{PASSWORD}@{address}/none'"));
    let faults = assert_fails(&nowhere, "it");
    assert!(faults[0].starts_with("not_found: ") && faults[0].contains("vhost"), "{faults:?}");
}

#[test]
fn nats_needs_to_publish_to_ask_for_the_stream_and_to_hear_answers() {
    let own = Own::configured(Kind::Nats, &nats_users(&[], &[]));
    let place = own.place().made();
    let info = format!("$JS.API.STREAM.INFO.{}", place.name);
    let events = format!("{}.>", place.name);
    let allow = |publish: &[&str], subscribe: &[&str]| {
        own.configure(&nats_users(publish, subscribe));
        own.run("reload");
    };
    let as_user = |config: Config| {
        config.set("sinks.it.credentials", &format!("{{ username = '{USER}', password = '{PASSWORD}' }}"))
    };
    let config = as_user(place.sink(Config::new(), "it"));
    let user = format!("user \"{USER}\"");
    allow(&[&events], &["_INBOX.>"]);
    assert_not_authorized(&config, &[&user, &info]);
    assert_is_refused(&config, &[&user, &info]);
    allow(&[&events, &info], &["nothing"]);
    assert_not_authorized(&config, &[&user, "_INBOX.>"]);
    assert_is_refused(&config, &[&user, "_INBOX.>"]);
    let calls = format!("{}.direct_call.accept.>", place.name);
    allow(&[&calls, &info], &["_INBOX.>"]);
    assert_not_authorized(&config, &[&user, &format!("\"{}.direct_call.dial.*\"", place.name)]);
    assert_is_refused(&config, &[&user, &format!("\"{}.direct_call.dial.refused\"", place.name)]);
    allow(&[&events, &info], &["_INBOX.>"]);
    assert_passes(&config, "it");
    assert_eq!(place.count(), 0, "what was refused is nowhere, and a check leaves nothing");
    assert_publishes(&config);

    let place = own.place();
    let (info, events) = (format!("$JS.API.STREAM.INFO.{}", place.name), format!("{}.>", place.name));
    let create = format!("$JS.API.STREAM.CREATE.{}", place.name);
    let config = as_user(place.making_sink(Config::new(), "it"));
    allow(&[&events, &info], &["_INBOX.>"]);
    assert_not_authorized(&config, &[&user, &create]);
    assert_is_refused(&config, &[&user, &create]);
    allow(&[&events, &info, &create], &["_INBOX.>"]);
    let found = assert_passes(&config, "it");
    assert!(
        found.iter().any(|finding| finding.starts_with(&format!("will be created: stream {}", place.name))),
        "{found:?}"
    );
    assert_publishes(&config);
}

/// Anybody may do anything, and the bridge this.
fn nats_users(publish: &[&str], subscribe: &[&str]) -> String {
    let list =
        |subjects: &[&str]| subjects.iter().map(|subject| format!("\"{subject}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "authorization {{ users: [ {{user: test, password: test}}, {{user: {USER}, password: {PASSWORD}, \
         permissions: {{publish: {{allow: [{}]}}, subscribe: {{allow: [{}]}} }} }} ] }}\nno_auth_user: test\n",
        list(publish),
        list(subscribe),
    )
}
