//! Opening the connection: TCP, TLS and the handshake, and a way to cut it.
//!
//! The client runs each connection on a thread of its own, which ends only when the socket does. A broker
//! that accepts and then stays silent would cost a thread and a socket with every attempt, so the socket is
//! kept reachable in a [`Hangup`].

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use lapin::tcp::{AMQPUriTcpExt, RustlsConnector, RustlsConnectorConfig, TLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;

use super::CONNECT;
use crate::sink::settings::{Tls, read};

/// The one end of a connection's socket that is ours: cuts the connection, at the latest when dropped.
pub(super) struct Hangup(Arc<OnceLock<TcpStream>>);

impl Hangup {
    pub(super) fn now(&self) {
        if let Some(stream) = self.0.get() {
            // Fails only on a socket that is not connected any more, which is what is wanted.
            let _already_gone = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Hangup {
    fn drop(&mut self) {
        self.now();
    }
}

/// Connects. Whoever drops the future before it is done leaves no thread behind.
pub(super) async fn dial(
    uri: &AMQPUri,
    tls: Option<RustlsConnector>,
    name: &str,
) -> lapin::Result<(Connection, Hangup)> {
    let hangup = Hangup(Arc::default());
    let socket = Arc::clone(&hangup.0);
    let properties = ConnectionProperties::default().with_connection_name(format!("sendbird-bridge {name}").into());
    let runtime = lapin::runtime::default_runtime()?;
    let reactor = runtime.clone();
    // Runs on the client's thread, which must end even if nobody waits for it any more.
    let connect = async move |uri: AMQPUri, _| {
        let host = uri.authority.host.clone();
        // With this scheme the client stops after TCP.
        let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri };
        let opened = timeout(CONNECT, async {
            let stream = plain.connect_with_config_async(TLSConfig::default(), &reactor).await?;
            if let AsyncTcpStream::Plain(tokio) = &stream {
                let copy = TcpStream::from(tokio.get_ref().as_fd().try_clone_to_owned()?);
                socket.get_or_init(|| copy);
            }
            match &tls {
                Some(connector) => stream.into_rustls(connector, &host).await,
                None => Ok(stream),
            }
        });
        match opened.await {
            Ok(opened) => opened.map_err(lapin::Error::from),
            Err(elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, elapsed).into()),
        }
    };
    let connection = Connection::connector(uri.clone(), runtime, connect, properties).await?;
    Ok((connection, hangup))
}

/// The authorities to trust, those of `ca_file` alone or else the platform's, and the client's certificate.
///
/// # Errors
/// A file can't be read or holds something else, or the platform has no certificates.
pub(super) fn tls(settings: Option<&Tls>) -> io::Result<RustlsConnector> {
    let settings = settings.cloned().unwrap_or_default();
    let config = match &settings.ca_file {
        Some(ca_file) => RustlsConnectorConfig::default().with_parsable_certificates(certificates(ca_file)?),
        None => RustlsConnectorConfig::new_with_native_certs()?,
    };
    match (&settings.cert_file, &settings.key_file) {
        (Some(cert_file), Some(key_file)) => {
            let key = PrivateKeyDer::from_pem_slice(&read(key_file)?).map_err(|_unechoed| not_pem(key_file))?;
            config.connector_with_single_cert(certificates(cert_file)?, key)
        }
        _ => config.connector_with_no_client_auth(),
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    match CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(not_pem(path)),
    }
}

fn not_pem(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("expected PEM in {}, but found something else", path.display()))
}
