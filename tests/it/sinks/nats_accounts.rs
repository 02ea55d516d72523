//! JetStream that is reached through another account or a leaf node: names of the API and of the inboxes that are not
//! the client's defaults.

use crate::support::bridge::Config;
use crate::support::broker::{Kind, Own, Place};
use crate::support::samples::dial;

/// Publishes twenty events and finds them in the stream.
fn deliver_and_count(config: Config, place: &Place) {
    let bridge = config.start();
    for n in 0..20 {
        bridge.deliver(&dial(&format!("call-{}", n % 5), n)).stored();
    }
    bridge.caught_up();
    assert_eq!(place.count(), 20);
}

#[test]
fn a_user_without_the_default_prefixes_publishes_through_another_account() {
    let server = Own::to_be_secured(Kind::Nats);
    // The rights name the stream, and the address is known once the server runs.
    let mut place = Place::new(Kind::Nats, String::new());
    let name = &place.name;
    server.configure(&format!(
        "accounts {{
           STREAMS {{
             jetstream: enabled
             users: [{{ user: owner, password: owner }}]
             exports: [{{ service: '$JS.API.>' }}, {{ service: '{name}.>' }}]
           }}
           BRIDGE {{
             users: [{{ user: bridge, password: right, permissions: {{
               publish: ['{name}.>', 'bridge.api.STREAM.INFO.{name}', 'bridge.api.STREAM.CREATE.{name}']
               subscribe: ['bridge.answers.>']
             }} }}]
             imports: [
               {{ service: {{ account: STREAMS, subject: '$JS.API.>' }}, to: 'bridge.api.>' }}
               {{ service: {{ account: STREAMS, subject: '{name}.>' }} }}
             ]
           }}
         }}
         no_auth_user: owner\n"
    ));
    server.run("start");
    place.address = server.place().address;
    let config = place
        .sink(Config::new(), "nats")
        .set("sinks.nats.create_stream", "true")
        .set("sinks.nats.credentials", "{ username = 'bridge', password = 'right' }")
        .set("sinks.nats.api_prefix", "'bridge.api'")
        .set("sinks.nats.inbox_prefix", "'bridge.answers'");
    deliver_and_count(config, &place);
}

#[test]
fn a_stream_of_another_domain_is_reached_through_a_leaf_node() {
    let hub = Own::to_be_secured(Kind::Nats);
    let leaf_port = hub.secure_port("nats");
    hub.configure(&format!(
        "jetstream {{ store_dir: '{}', domain: hub }}\nleafnodes {{ listen: '127.0.0.1:{leaf_port}' }}\n",
        hub.dir().join("hub").display()
    ));
    hub.run("start");
    let edge = Own::to_be_secured(Kind::Nats);
    edge.configure(&format!(
        "jetstream {{ store_dir: '{}', domain: edge }}\n\
         leafnodes {{ remotes: [{{ url: 'nats-leaf://127.0.0.1:{leaf_port}' }}] }}\n",
        edge.dir().join("edge").display()
    ));
    edge.run("start");
    let place = hub.place();
    let at_edge = format!("['{}']", edge.place().address);
    let config = place
        .sink(Config::new(), "nats")
        .set("sinks.nats.servers", &at_edge)
        .set("sinks.nats.create_stream", "true")
        .set("sinks.nats.domain", "'hub'");
    deliver_and_count(config, &place);
}
