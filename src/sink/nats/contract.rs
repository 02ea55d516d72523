//! What consumers meet at NATS, as AsyncAPI says it.

use std::collections::BTreeMap;

use super::{Settings, headers};
use crate::domain::envelope::{Format, View};
use crate::sink::contract::{Contract, Server};

impl Settings {
    /// What consumers meet; the headers are those of `event`.
    pub fn contract(&self, event: &View<'_>, format: Format) -> Contract {
        // Settings that are wrong were refused before; without servers there is none to name.
        let servers = self.parse().map(|(servers, _)| servers).unwrap_or_default();
        let credentials = self.credentials.as_ref().map(|given| {
            if given.username.is_some() {
                "userPassword"
            } else if given.token.is_some() {
                "apiKey"
            } else {
                "asymmetricEncryption"
            }
        });
        let certificate = self.tls.as_ref().and_then(|tls| tls.cert_file.as_ref()).map(|_| "X509");
        let security: Vec<&'static str> = credentials.into_iter().chain(certificate).collect();
        let servers = servers.iter().map(|server| Server {
            host: host(server.host(), server.port()),
            protocol: "nats",
            pathname: None,
            security: security.clone(),
        });
        let headers = headers::of(event, format, &self.stream);
        let each = headers.iter().filter_map(|(name, values)| Some((name.to_string(), values.first()?.to_string())));
        // They come in any order.
        let headers: BTreeMap<String, String> = each.collect();
        Contract {
            protocol: "nats",
            servers: servers.collect(),
            address: self.subject.clone(),
            about: format!(
                "The subject, in the JetStream stream `{}`, which drops a second copy of an event within its duplicate \
                 window. Values in headers are percent-encoded, as the CloudEvents binding asks.",
                self.stream
            ),
            channel: None,
            operation: None,
            message: None,
            headers: headers.into_iter().collect(),
        }
    }
}

fn host(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
