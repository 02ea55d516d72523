//! TLS on the bridge's own listeners: certificates, whom they are shown to, and their renewal.
//!
//! Certificates are reloaded when their files change. A file that can't be used changes nothing: the certificate that
//! was read before is shown on.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsAcceptor;

/// `server.tls.*` and `admin.tls.*`: the listener's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The certificate chain (PEM), the listener's own first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its private key (PEM), not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Authorities (PEM), one of which must have signed the certificate that each client then has to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
}

/// What is wrong: the key under `tls`, and "expected X, but found Y".
pub type Fault = (&'static str, String);

impl Settings {
    /// Every fault, with what is in the files.
    pub fn check(&self) -> Vec<Fault> {
        match self.read() {
            Ok(files) => files.config().err().into_iter().collect(),
            Err(faults) => faults,
        }
    }

    fn read(&self) -> Result<Files, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut read = |key, path: Option<&PathBuf>, what: &str| {
            let Some(path) = path else {
                faults.push((key, format!("expected {what}, but found none")));
                return Vec::new();
            };
            std::fs::read(path).unwrap_or_else(|error| {
                faults.push((key, format!("cannot read {}: {error}", path.display())));
                Vec::new()
            })
        };
        let chain = read("tls.cert_file", self.cert_file.as_ref(), "the certificate of tls.key_file");
        let key = read("tls.key_file", self.key_file.as_ref(), "the key of tls.cert_file");
        let path = self.client_ca_file.as_ref();
        let client_ca = path.map(|path| read("tls.client_ca_file", Some(path), "authorities"));
        if faults.is_empty() { Ok(Files { chain, key, client_ca }) } else { Err(faults) }
    }
}

/// What the files hold.
#[derive(Clone, Default, PartialEq, Eq)]
struct Files {
    chain: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    fn config(&self) -> Result<ServerConfig, Fault> {
        let chain = certificates("tls.cert_file", &self.chain)?;
        // What is wrong with a key is not said: that could show some of it.
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_no_key| ("tls.key_file", "expected a private key (PEM), but found none".to_owned()))?;
        let builder = ServerConfig::builder();
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let fault = |found: String| ("tls.client_ca_file", format!("expected authorities, but found: {found}"));
                let mut roots = RootCertStore::empty();
                for authority in certificates("tls.client_ca_file", authorities)? {
                    roots.add(authority).map_err(|error| fault(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| fault(error.to_string()))?)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| ("tls.key_file", format!("expected the key of tls.cert_file, but found: {error}")))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(key: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        // Why is not said: it could show a line of the file, and the file could be the key by mistake.
        _ => Err((key, "expected certificates (PEM), but found none".to_owned())),
    }
}

/// A listener's certificates, as they were last read.
pub struct Certificates {
    settings: Settings,
    /// What was last read, valid or not.
    seen: Files,
    /// How often in a row they could not be read.
    unreadable: u32,
    current: Current,
}

/// The way to the certificates that hold now; reading them never blocks.
#[derive(Clone)]
pub struct Current(Arc<ArcSwap<ServerConfig>>);

impl Current {
    /// For one handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load_full())
    }
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// Every fault, as [`Settings::check`] names them.
    pub fn open(settings: Settings) -> Result<Self, Vec<Fault>> {
        let seen = settings.read()?;
        let config = seen.config().map_err(|fault| vec![fault])?;
        Ok(Self { settings, seen, unreadable: 0, current: Current(Arc::new(ArcSwap::from_pointee(config))) })
    }

    /// For the listener.
    pub fn current(&self) -> Current {
        self.current.clone()
    }

    /// Reads the files again, and takes what they hold if it is new. `false`: nothing is new.
    ///
    /// # Errors
    /// What is new can't be used; what was read before still holds. Said once for each change.
    pub fn renew(&mut self) -> Result<bool, Vec<Fault>> {
        let files = match self.settings.read() {
            Ok(files) => files,
            Err(faults) => {
                self.unreadable = self.unreadable.saturating_add(1);
                // A file that is not there for a moment is about to be written; one that stays away is logged, once.
                return if self.unreadable == 2 { Err(faults) } else { Ok(false) };
            }
        };
        self.unreadable = 0;
        if files == self.seen {
            return Ok(false);
        }
        let config = files.config();
        self.seen = files;
        self.current.0.store(Arc::new(config.map_err(|fault| vec![fault])?));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate and its key, and the key's text.
    fn settings(dir: &std::path::Path) -> (Settings, String) {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert_file, key_file) = (dir.join("cert.pem"), dir.join("key.pem"));
        let key = pair.signing_key.serialize_pem();
        std::fs::write(&cert_file, pair.cert.pem()).unwrap();
        std::fs::write(&key_file, &key).unwrap();
        (Settings { cert_file: Some(cert_file), key_file: Some(key_file), client_ca_file: None }, key)
    }

    #[test]
    fn a_key_in_the_wrong_place_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (settings, key) = settings(dir.path());
        // As it is, with its line breaks lost on the way, and with its first line cut short: the reasons of the parser
        // have the bytes in them.
        for text in [key.clone(), key.replace(['\r', '\n'], ""), key.replacen("KEY-----", "KEY", 1)] {
            std::fs::write(settings.cert_file.as_ref().unwrap(), text).unwrap();
            let expected = "expected certificates (PEM), but found none".to_owned();
            assert_eq!(settings.check(), [("tls.cert_file", expected)]);
        }
    }

    #[test]
    fn a_missing_file_is_logged_once() {
        rustls::crypto::ring::default_provider().install_default().ok();
        let dir = tempfile::tempdir().unwrap();
        let (settings, key) = settings(dir.path());
        let key_file = settings.key_file.clone().unwrap();
        let mut certificates = Certificates::open(settings).unwrap();
        for _ in 0..2 {
            std::fs::remove_file(&key_file).unwrap();
            assert_eq!(certificates.renew(), Ok(false));
            assert_eq!(certificates.renew().unwrap_err()[0].0, "tls.key_file");
            assert_eq!(certificates.renew(), Ok(false));
            std::fs::write(&key_file, &key).unwrap();
            assert_eq!(certificates.renew(), Ok(false), "the same as before");
        }
    }
}
