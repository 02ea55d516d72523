//! The HTTP client of `send`, `demo`, `tail` and the commands that ask Sendbird.

use std::path::{Path, PathBuf};

use hyper::Uri;
use hyper_rustls::ConfigBuilderExt;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::Failure;
use crate::domain::secret::Secret;
use crate::outbound::{self, HttpClient};

/// The certificate authorities that are trusted for an https URL, and the client certificate.
#[derive(Debug, Default, clap::Args)]
pub(super) struct TlsArgs {
    /// The only certificate authorities that are trusted (PEM); by default the platform's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// The certificate chain to show to a server that asks for one (PEM)
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,

    /// Its key (PEM), not encrypted
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
}

impl TlsArgs {
    fn config(&self) -> Result<ClientConfig, Failure> {
        let builder = ClientConfig::builder();
        let builder = match &self.ca_file {
            None => builder.with_native_roots().map_err(Failure::other)?,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(|error| unusable(path, &error))?;
                }
                builder.with_root_certificates(roots)
            }
        };
        let (Some(chain), Some(key)) = (&self.cert_file, &self.key_file) else {
            return Ok(builder.with_no_client_auth());
        };
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| no_pem(key, &error))?;
        builder.with_client_auth_cert(certificates(chain)?, private).map_err(|error| unusable(key, &error))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    found.map_err(|error| no_pem(path, &error))
}

/// Why a file is no PEM is not said: that could show a line of it, and it may be a key.
fn no_pem(path: &Path, error: &pem::Error) -> Failure {
    match error {
        pem::Error::Io(error) => unusable(path, error),
        _ => unusable(path, &"expected PEM, but found something else"),
    }
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Usage(format!("cannot use {}: {error}", path.display()))
}

pub(super) fn new(tls: &TlsArgs) -> Result<HttpClient, Failure> {
    Ok(outbound::client(tls.config()?))
}

/// An absolute http or https URL.
pub(super) fn url(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("expected a URL, but found: {error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err("expected a URL that begins with http:// or https://".into()),
    }
}

/// A token given as it is or in a file, of which the first line counts: while one token replaces another there are two.
pub(super) fn token(given: Option<Secret>, file: Option<&PathBuf>) -> Result<Option<Secret>, Failure> {
    given.map(Ok).or_else(|| file.map(|path| first_line("token", path))).transpose()
}

/// A secret in the first line of a file.
pub(super) fn first_line(what: &str, path: &Path) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("cannot read the {what} from {}: {error}", path.display())))?;
    match text.lines().next().map(str::trim_end) {
        Some(line) if !line.is_empty() => Ok(Secret::new(line)),
        _ => Err(Failure::Usage(format!("expected a {what}, but found none in {}", path.display()))),
    }
}

/// A secret on the command line; for trying things out, as others on the machine can see it.
pub(super) fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}
