//! Pieces of settings that several sinks share: faults, TLS files and what a sink may create.
//!
//! Nothing here talks to a broker. Checks report every fault, each with its key relative to the sink.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use rustls::InconsistentKeys;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::domain::template::{AddressKind, LONGEST_VALUE, Template};

/// What is wrong with settings: the key, relative to the sink, and "expected X, but found Y".
pub type Faults = Vec<(String, String)>;

/// How to encrypt the connection. The peer's certificate is always verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// A PEM file with the only certificate authorities that are trusted; default: the platform's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A PEM file with the client's certificate chain; needs `key_file`; default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// A PEM file with the client's private key, not encrypted; needs `cert_file`; default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// When the new content of a sink's file is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadPolicy {
    /// By the next connection; each reads the files.
    NextConnection,
    /// After a restart: the client, once it has connected, keeps what it has read and connects again with that.
    Restart,
}

impl Tls {
    /// The files that are named, each with its key relative to the sink.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files =
            [("tls.ca_file", &self.ca_file), ("tls.cert_file", &self.cert_file), ("tls.key_file", &self.key_file)];
        files.into_iter().filter_map(|(key, path)| Some((key, path.as_deref()?)))
    }

    /// All faults, with keys under `tls`.
    pub fn check(&self) -> Faults {
        let mut faults: Faults = self
            .files()
            .filter_map(|(key, path)| Some(fault(key, format!("{} {}", wrong_file(key, path)?, path.display()))))
            .collect();
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => faults.push(fault("tls.key_file", "expected the key of tls.cert_file, but found none")),
            (None, Some(_)) => {
                faults.push(fault("tls.cert_file", "expected the chain of tls.key_file, but found none"))
            }
            (Some(cert_file), Some(key_file)) if faults.is_empty() && !are_a_pair(cert_file, key_file) => {
                let message = format!("expected the key of tls.cert_file, but found another at {}", key_file.display());
                faults.push(fault("tls.key_file", message));
            }
            _ => {}
        }
        faults
    }
}

/// What is wrong with a PEM file, up to the path of it. Nothing of what it holds is shown.
fn wrong_file(key: &str, path: &Path) -> Option<&'static str> {
    let Ok(pem) = std::fs::read(path) else {
        return Some(if path.is_file() {
            "expected a file that the bridge may read, but found one that it may not at"
        } else {
            "expected a file, but found none at"
        });
    };
    if key == "tls.key_file" {
        return PrivateKeyDer::from_pem_slice(&pem)
            .is_err()
            .then_some("expected a private key (PEM) that is not encrypted, but found none at");
    }
    let mut certificates = CertificateDer::pem_slice_iter(&pem).peekable();
    (certificates.peek().is_none() || certificates.any(|certificate| certificate.is_err()))
        .then_some("expected certificates (PEM), but found none at")
}

/// Whether the key is that of the certificate, as far as that can be told: OpenSSL, which the client of Kafka uses, knows
/// more kinds of keys.
fn are_a_pair(cert_file: &Path, key_file: &Path) -> bool {
    let chain: Option<Vec<_>> =
        CertificateDer::pem_file_iter(cert_file).ok().and_then(|chain| chain.collect::<Result<_, _>>().ok());
    let (Some(chain), Ok(key)) = (chain, PrivateKeyDer::from_pem_file(key_file)) else { return true };
    let pair = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider());
    !matches!(pair, Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)))
}

/// Reads a file and says which one it was if that fails.
///
/// # Errors
/// The file can't be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))
}

/// Whether the sink may create what it publishes to, and how: `false`, `true` for the defaults, or a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Create<T> {
    /// What is missing stays missing until somebody makes it.
    #[default]
    Never,
    /// What is missing is made like this. What exists is never changed.
    Missing(T),
}

impl<T> Create<T> {
    /// How to create, if allowed.
    pub fn as_option(&self) -> Option<&T> {
        match self {
            Self::Never => None,
            Self::Missing(how) => Some(how),
        }
    }
}

impl<T: Serialize> Serialize for Create<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Never => serializer.serialize_bool(false),
            Self::Missing(how) => how.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Create<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Either<T> {
            type Value = Create<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a table")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Create<T>, E> {
                Ok(if on { Create::Missing(T::default()) } else { Create::Never })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Create<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Create::Missing)
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

impl<T: schemars::JsonSchema> schemars::JsonSchema for Create<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Create_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let table = generator.subschema_for::<T>();
        schemars::json_schema!({ "anyOf": [{ "type": "boolean" }, table] })
    }
}

/// One fault.
pub fn fault(key: impl Into<String>, message: impl Into<String>) -> (String, String) {
    (key.into(), message.into())
}

/// Parses a template and checks that its longest text fits into `limit` bytes.
///
/// # Errors
/// The fault, under `key`.
pub fn template(key: &str, pattern: &str, kind: AddressKind, limit: usize) -> Result<Template, (String, String)> {
    let template = Template::parse(pattern, kind).map_err(|message| fault(key, message))?;
    let longest = template.with_wildcards(&"x".repeat(LONGEST_VALUE)).len();
    if longest > limit {
        let message = format!("expected at most {limit} bytes with the longest values, but found {longest}");
        return Err(fault(key, message));
    }
    Ok(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct How {
        replicas: u8,
    }

    fn parse(json: &str) -> Result<Create<How>, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn creating_is_a_switch_or_a_table() {
        assert_eq!(parse("false"), Ok(Create::Never));
        assert_eq!(parse("true"), Ok(Create::Missing(How { replicas: 0 })));
        assert_eq!(parse(r#"{"replicas":3}"#), Ok(Create::Missing(How { replicas: 3 })));
        assert!(parse(r#"{"replica":3}"#).expect_err("unknown").contains("replica"));
        assert!(parse("\"yes\"").expect_err("text").contains("true, false or a table"));
        for shown in [Create::Never, Create::Missing(How { replicas: 3 })] {
            assert_eq!(parse(&serde_json::to_string(&shown).expect("json")), Ok(shown));
        }
    }

    #[test]
    fn tls_names_every_fault() {
        let tls =
            Tls { ca_file: Some("/nonexistent/ca".into()), cert_file: None, key_file: Some("/nonexistent/k".into()) };
        let keys: Vec<_> = tls.check().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["tls.ca_file", "tls.key_file", "tls.cert_file"]);
        assert!(Tls::default().check().is_empty());
    }

    #[test]
    fn tls_files_hold_what_their_keys_say() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("a file");
            Some(path)
        };
        let pair = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (one, other) = (pair(), pair());
        let (cert_file, key_file) = (file("cert", &one.cert.pem()), file("key", &one.signing_key.serialize_pem()));
        let faults = |ca_file: &Option<PathBuf>, cert_file: &Option<PathBuf>, key_file: &Option<PathBuf>| {
            let tls = Tls { ca_file: ca_file.clone(), cert_file: cert_file.clone(), key_file: key_file.clone() };
            let faults = tls.check();
            assert!(faults.iter().all(|(_, message)| !message.contains("canary")), "{faults:?}");
            faults.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert!(faults(&cert_file, &cert_file, &key_file).is_empty());
        let canary = file("nothing", "canary");
        assert_eq!(faults(&canary, &canary, &canary), ["tls.ca_file", "tls.cert_file", "tls.key_file"]);
        assert_eq!(faults(&key_file, &key_file, &cert_file), ["tls.ca_file", "tls.cert_file", "tls.key_file"]);
        let another = file("another", &other.signing_key.serialize_pem());
        assert_eq!(faults(&None, &cert_file, &another), ["tls.key_file"]);
    }

    #[test]
    fn templates_fit_their_place() {
        assert!(template("topic", "sendbird.calls.{object}", AddressKind::Topic, 249).is_ok());
        let (key, message) = template("topic", "{key}{key}{key}{key}", AddressKind::Topic, 249).expect_err("too long");
        assert_eq!(key, "topic");
        assert!(message.contains("at most 249 bytes") && message.ends_with("320"), "{message}");
    }
}
