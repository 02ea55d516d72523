//! The properties of the client library that the bridge sets.

use std::ffi::OsString;
use std::path::PathBuf;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::defaults;
use super::settings::Settings;

/// All properties for a sink of this name.
pub(super) fn all(name: &str, settings: &Settings) -> ClientConfig {
    let mut config = defaults::with(&settings.client);
    config.set_log_level(RDKafkaLogLevel::Info);
    if !settings.client.contains_key("client.id") {
        config.set("client.id", format!("sendbird-bridge-{name}"));
    }
    config.set("bootstrap.servers", settings.brokers.join(","));
    secure(&mut config, settings);
    config
}

/// The same for a producer that sends each record alone.
pub(super) fn unbatched(config: &ClientConfig) -> ClientConfig {
    let mut config = config.clone();
    config.set("batch.num.messages", "1").set("linger.ms", "0");
    config
}

/// The same for a producer that connects to every broker, not only to those that it needs, and reports soon what it knows.
pub(super) fn every_broker(config: &ClientConfig) -> ClientConfig {
    let mut config = config.clone();
    config.set("enable.sparse.connections", "false").set("statistics.interval.ms", "200");
    config
}

/// The same for a producer of which no broker stores a record: with two acknowledgements, which Kafka has refused since 0.9
/// after it has looked whether the user may write.
pub(super) fn unstorable(config: &ClientConfig) -> ClientConfig {
    let mut config = unbatched(config);
    config.set("enable.idempotence", "false").set("acks", "2").set("retries", "0");
    // Two records at most are on their way, and each answer is waited for.
    config.set("request.timeout.ms", "5000").set("message.timeout.ms", "8000");
    config
}

fn secure(config: &mut ClientConfig, settings: &Settings) {
    let protocol = match (&settings.tls, &settings.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(tls) = &settings.tls {
        let authorities = tls.ca_file.clone().unwrap_or_else(|| platform(std::env::var_os("SSL_CERT_FILE")));
        config.set("ssl.ca.location", authorities.to_string_lossy());
        for (key, path) in [("ssl.certificate.location", &tls.cert_file), ("ssl.key.location", &tls.key_file)] {
            if let Some(path) = path {
                config.set(key, path.to_string_lossy());
            }
        }
    }
    if let Some(sasl) = &settings.sasl {
        config.set("sasl.mechanism", sasl.mechanism.as_str());
        if let (Some(username), Some(password)) = (&sasl.username, &sasl.password) {
            config.set("sasl.username", username).set("sasl.password", password.expose());
        }
    }
}

/// Where the platform's authorities are: the file that this variable names, as for the other brokers' clients.
/// Otherwise `probe`, with which the client looks where distributions keep theirs, /etc/ssl/certs/ca-certificates.crt
/// among them; the linked OpenSSL knows no such place.
fn platform(variable: Option<OsString>) -> PathBuf {
    variable.map(PathBuf::from).filter(|path| path.is_file()).unwrap_or_else(|| "probe".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::kafka::defaults::{DEFAULTS, OURS};
    use crate::sink::kafka::reserved::refusal;

    #[test]
    fn the_client_knows_all_that_the_bridge_sets() {
        let settings: Settings = serde_json::from_value(serde_json::json!({
            "brokers": ["a:1", "b:2"],
            "client": { "linger.ms": 50 },
            "sasl": { "mechanism": "SCRAM-SHA-512", "username": "u", "password": "p" },
        }))
        .expect("settings");
        let config = all("k", &settings);
        config.create_native_config().expect("known properties");
        for variant in [unbatched(&config), every_broker(&config), unstorable(&config)] {
            variant.create_native_config().expect("known properties");
        }
        for (key, value) in [
            ("bootstrap.servers", "a:1,b:2"),
            ("linger.ms", "50"),
            ("acks", "all"),
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
        ] {
            assert_eq!(config.get(key), Some(value), "{key}");
        }
    }

    #[test]
    fn authorities_are_those_of_the_variable_or_the_platforms() {
        let file = std::env::current_exe().expect("a file");
        assert_eq!(platform(Some(file.clone().into())), file);
        assert_eq!(platform(Some("/nonexistent/ca".into())), PathBuf::from("probe"));
        assert_eq!(platform(None), PathBuf::from("probe"));
    }

    #[test]
    fn promises_can_not_be_broken() {
        assert!(OURS.iter().all(|(key, _)| refusal(key).is_some()));
        assert!(DEFAULTS.iter().all(|(key, _)| refusal(key).is_none()));
        for key in [
            "sasl.password",
            "ssl.key.password",
            "ssl.key.pem",
            "ssl.endpoint.identification.algorithm",
            "dr_cb",
            "delivery.timeout.ms",
            "retries",
        ] {
            assert!(refusal(key).is_some(), "{key}");
        }
        for key in ["client.id", "batch.size", "ssl.cipher.suites", "broker.address.family", "client.rack"] {
            assert_eq!(refusal(key), None, "{key}");
        }
    }
}
