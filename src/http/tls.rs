//! TLS on the bridge's own listeners: certificates, whom they are shown to, and their renewal.
//!
//! Certificates are read anew when their files change. A file that can't be used changes nothing: the certificate that
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
                faults.push((key, format!("expected a readable file, but found {}: {error}", path.display())));
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
        Ok(_) => Err((key, "expected certificates (PEM), but found none".to_owned())),
        Err(error) => Err((key, format!("expected certificates (PEM), but found: {error}"))),
    }
}

/// A listener's certificates, as they were last read.
pub struct Certificates {
    settings: Settings,
    /// What was last looked at, right or wrong.
    seen: Files,
    current: Current,
}

/// The way to the certificates that hold now; takes no lock.
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
        Ok(Self { settings, seen, current: Current(Arc::new(ArcSwap::from_pointee(config))) })
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
        // A file that is not there for a moment is about to be written; one that stays away is told of at the next start.
        let Ok(files) = self.settings.read() else { return Ok(false) };
        if files == self.seen {
            return Ok(false);
        }
        let config = files.config();
        self.seen = files;
        self.current.0.store(Arc::new(config.map_err(|fault| vec![fault])?));
        Ok(true)
    }
}
