//! A broker with TLS and authentication, and sinks with right or wrong credentials.

use std::fs::{read_to_string, write};
use std::path::Path;

use super::{Kind, Own, Place, block_on};
use crate::support::bridge::{Bridge, Config};
use crate::support::certificates::{Authority, Files};
use crate::support::issuer::{AUDIENCE, Issuer, NAME};

/// The password that each of them accepts.
pub(crate) const PASSWORD: &str = "canary-right";
/// A password that none accepts.
pub(crate) const WRONG: &str = "canary-wrong";

/// Where a broker has the keys of its issuer.
const KEYS: &str = "kafka.jwks";

/// What is wrong with a sink's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    Authority,
    Name,
    Password,
    Certificate,
}

/// A broker with TLS and authentication, and the credentials that it accepts.
pub(crate) struct SecuredBroker {
    kind: Kind,
    pub(crate) broker: Own,
    /// The host that the bridge connects to.
    host: &'static str,
    /// Which the broker trusts, and which has signed what it shows.
    pub(crate) authority: Authority,
    /// Which nobody has asked for.
    pub(crate) other: Authority,
    pub(crate) server: Files,
    client: Files,
    /// What else is in the broker's configuration.
    more: &'static str,
}

impl SecuredBroker {
    pub(crate) fn start(kind: Kind) -> Self {
        Self::start_as(kind, "127.0.0.1")
    }

    /// One that is known by this name.
    pub(crate) fn start_as(kind: Kind, host: &'static str) -> Self {
        Self::secure(Own::to_be_secured(kind), kind, host, "")
    }

    /// A Kafka on which the bridge's user may do nothing until a rule allows it; without a password everybody may do
    /// everything.
    pub(crate) fn start_with_authorizer() -> Self {
        let more = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                    super.users=User:ANONYMOUS\n";
        Self::secure(Own::to_be_secured(Kind::Kafka), Kind::Kafka, "127.0.0.1", more)
    }

    /// A Kafka that also accepts tokens of this issuer, and requires a new one every two seconds.
    pub(crate) fn start_with_issuer(issuer: &Issuer) -> Self {
        let broker = Own::to_be_secured(Kind::Kafka);
        std::fs::copy(issuer.keys(), broker.dir().join(KEYS)).unwrap();
        Self::secure(broker, Kind::Kafka, "127.0.0.1", "")
    }

    fn secure(broker: Own, kind: Kind, host: &'static str, more: &'static str) -> Self {
        let authority = Authority::new(&broker.dir().join("certificates"));
        let other = Authority::new(&broker.dir().join("other"));
        let (server, client) = (authority.issue_for(&["127.0.0.1", host]), authority.issue("bridge"));
        let secured = Self { kind, broker, host, authority, other, server, client, more };
        if kind == Kind::Kafka {
            let users = ["256", "512"].map(|bits| format!("SCRAM-SHA-{bits}=[name=bridge,password={PASSWORD}]\n"));
            std::fs::write(secured.broker.dir().join("kafka.scram"), users.concat()).unwrap();
            secured.broker.secure_port("kafka");
            secured.broker.secure_port("kafka-tls");
        }
        secured.show(&secured.server);
        secured
    }

    /// Has the broker show this certificate from now on.
    pub(crate) fn show(&self, server: &Files) {
        let (ca, cert, key) = (self.authority.ca_file.display(), server.cert_file.display(), server.key_file.display());
        self.broker.run("stop");
        self.broker.configure(&match self.kind {
            Kind::Kafka => self.kafka(server),
            Kind::RabbitMq => format!(
                "listeners.ssl.1 = 127.0.0.1:{}\nssl_options.cacertfile = {ca}\nssl_options.certfile = {cert}\n\
                 ssl_options.keyfile = {key}\nssl_options.verify = verify_peer\n\
                 ssl_options.fail_if_no_peer_cert = true\n",
                self.broker.secure_port("rabbitmq")
            ),
            Kind::Nats => format!(
                "tls {{ cert_file: '{cert}', key_file: '{key}', ca_file: '{ca}', verify: true }}\n\
                 authorization {{ users: [{{ user: bridge, password: '{PASSWORD}' }}] }}\n"
            ),
        });
        self.broker.run("start");
    }

    fn kafka(&self, server: &Files) -> String {
        let pem = |file| read_to_string(file).unwrap().trim().replace("\r\n", "\n").replace('\n', "\\n");
        let (security, tokens) = ("org.apache.kafka.common.security", self.tokens());
        let scram = ["256", "512"].map(|bits| {
            format!(
                "listener.name.sasl_ssl.scram-sha-{bits}.sasl.jaas.config={security}.scram.ScramLoginModule required;\n"
            )
        });
        format!(
            "ssl.keystore.type=PEM\nssl.truststore.type=PEM\nssl.keystore.certificate.chain={}\n\
             ssl.keystore.key={}\nssl.truststore.certificates={}\nlistener.name.ssl.ssl.client.auth=required\n\
             listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512{}\n{}\
             listener.name.sasl_ssl.plain.sasl.jaas.config={security}.plain.PlainLoginModule required \
             user_bridge=\"{PASSWORD}\";\n{tokens}{}",
            pem(&server.cert_file),
            pem(&server.key_file),
            pem(&self.authority.ca_file),
            if tokens.is_empty() { "" } else { ",OAUTHBEARER" },
            scram.concat(),
            self.more,
        )
    }

    /// How Kafka takes the tokens of its issuer, if it has one.
    fn tokens(&self) -> String {
        let keys = self.broker.dir().join(KEYS);
        if !keys.exists() {
            return String::new();
        }
        let (ours, oauth) =
            ("listener.name.sasl_ssl.oauthbearer", "org.apache.kafka.common.security.oauthbearer.OAuthBearer");
        format!(
            "{ours}.sasl.jaas.config={oauth}LoginModule required;\n\
             {ours}.sasl.server.callback.handler.class={oauth}ValidatorCallbackHandler\n\
             {ours}.sasl.oauthbearer.jwks.endpoint.url=file://{}\n\
             {ours}.sasl.oauthbearer.expected.audience={AUDIENCE}\n\
             {ours}.sasl.oauthbearer.expected.issuer={NAME}\n\
             {ours}.connections.max.reauth.ms=2000\n",
            keys.display()
        )
    }

    /// Adds a sink with this fault in its settings.
    pub(crate) fn sink(&self, config: Config, name: &str, place: &Place, fault: Fault) -> Config {
        let host = if fault == Fault::Name { "localhost" } else { self.host };
        let wrong = fault == Fault::Password;
        let ca = if fault == Fault::Authority { &self.other.ca_file } else { &self.authority.ca_file };
        let password = if wrong { WRONG } else { PASSWORD };
        let mut keys = vec![("tls", self.tls(ca, fault != Fault::Certificate))];
        match self.kind {
            // Who shows a certificate needs no password.
            Kind::Kafka if fault == Fault::Certificate => {
                keys.push(("brokers", format!("['{host}:{}']", self.broker.secure_port("kafka-tls"))));
            }
            Kind::Kafka => {
                keys.push(("brokers", format!("['{host}:{}']", self.broker.secure_port("kafka"))));
                keys.push(("sasl", sasl("SCRAM-SHA-512", password)));
            }
            Kind::RabbitMq => {
                let (port, password) = (self.broker.secure_port("rabbitmq"), if wrong { WRONG } else { "guest" });
                keys.push(("url", format!("'amqps://guest:{password}@{host}:{port}/%2f'")));
            }
            Kind::Nats => {
                keys.push(("servers", format!("['nats://{host}:{}']", self.broker.run("port").trim())));
                keys.push(("credentials", format!("{{ username = 'bridge', password = '{password}' }}")));
            }
        }
        let config = place.making_sink(config, name);
        keys.iter().fold(config, |config, (key, value)| config.set(&format!("sinks.{name}.{key}"), value))
    }

    /// The settings of TLS that trust this authority, and show the client's certificate or none.
    pub(crate) fn tls(&self, ca_file: &Path, shown: bool) -> String {
        let mut tls = format!("ca_file = '{}'", ca_file.display());
        if shown {
            let (cert, key) = (self.client.cert_file.display(), self.client.key_file.display());
            tls += &format!(", cert_file = '{cert}', key_file = '{key}'");
        }
        format!("{{ {tls} }}")
    }

    /// How many messages a consumer with the right key finds.
    pub(crate) fn count(&self, place: &Place) -> u64 {
        if self.kind != Kind::Nats {
            return place.count();
        }
        // The client keeps only the last file that it is given.
        let both = self.authority.ca_file.with_extension("both");
        let authorities = [&self.authority, &self.other].map(|authority| read_to_string(&authority.ca_file).unwrap());
        write(&both, authorities.concat()).unwrap();
        let options = async_nats::ConnectOptions::new()
            .require_tls(true)
            .add_root_certificates(both)
            .add_client_certificate(self.client.cert_file.clone(), self.client.key_file.clone())
            .user_and_password("bridge".into(), PASSWORD.into());
        block_on(async {
            let client = options.connect(&place.address).await.expect("a way in");
            let mut stream = async_nats::jetstream::new(client).get_stream(&place.name).await.expect("the stream");
            stream.info().await.expect("the stream's state").state.messages
        })
    }

    /// Waits until each of the places has so many.
    #[track_caller]
    pub(crate) fn arrive(&self, bridge: &Bridge, places: &[(&str, Place)], expected: u64) {
        bridge.caught_up();
        for (name, place) in places {
            assert_eq!(self.count(place), expected, "{name}");
        }
    }
}

/// The settings of one mechanism.
pub(crate) fn sasl(mechanism: &str, password: &str) -> String {
    format!("{{ mechanism = '{mechanism}', username = 'bridge', password = '{password}' }}")
}
