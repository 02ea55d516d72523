//! A TLS client that says why it was refused.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::PATIENCE;
use super::certificates::Files;
use super::http::Connection;

pub(crate) type Secure = Connection<StreamOwned<ClientConnection, TcpStream>>;

/// Connects to a bridge that is to have a certificate for 127.0.0.1 by this authority, and shows one if there is one.
/// With TLS 1.3 a client learns only with the first answer that its own certificate was refused.
pub(crate) fn connect(address: SocketAddr, ca_file: &Path, own: Option<&Files>) -> io::Result<Secure> {
    connect_behind(address, b"", ca_file, own)
}

/// The same, with what a load balancer writes before the handshake.
pub(crate) fn connect_behind(
    address: SocketAddr,
    header: &[u8],
    ca_file: &Path,
    own: Option<&Files>,
) -> io::Result<Secure> {
    // Whoever comes second finds it installed.
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file).unwrap()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain = vec![CertificateDer::from_pem_file(&files.cert_file).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&files.key_file).unwrap()).unwrap()
        }
    };
    let mut tls = ClientConnection::new(Arc::new(config), address.ip().into()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(header)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    Ok(Connection::over(StreamOwned::new(tls, stream)))
}
