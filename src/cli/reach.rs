//! Where a bridge is that a configuration describes, and why it, or any other server, could not be reached.

use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hyper::Uri;

use super::Failure;
use crate::outbound::causes;

/// The URL of a listener of this machine, without a path.
pub(super) fn url(key: &str, listen: SocketAddr, tls: bool) -> Result<Uri, Failure> {
    let host = match listen.ip() {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    if listen.port() == 0 {
        return Err(Failure::Usage(format!("expected --url, as {key} does not say which port, but found none")));
    }
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{}", SocketAddr::new(host, listen.port())).parse().map_err(Failure::other)
}

/// Why no connection to this URL came about: the name, the port or the certificate.
pub(super) fn unreached(url: &Uri, error: &(dyn Error + 'static)) -> String {
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let text = causes(error);
    let why = if text.contains("dns error") {
        format!("the name {host} is not known")
    } else if let Some(error) = cause::<rustls::Error>(error) {
        tls(host, error)
    } else {
        match cause::<io::Error>(error).map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => "connection refused: nobody listens there".into(),
            Some(io::ErrorKind::TimedOut) => "no answer: is a firewall between?".into(),
            Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
                "there is no route to it".into()
            }
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
                "the connection was closed at once: does the port speak another protocol?".into()
            }
            _ => text,
        }
    };
    format!("no connection to {host}:{port}: {why}")
}

fn tls(host: &str, error: &rustls::Error) -> String {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer};
    match error {
        rustls::Error::InvalidCertificate(fault) => match fault {
            UnknownIssuer => {
                "its certificate is not trusted: self-signed, or of another authority; give --ca-file".into()
            }
            NotValidForName | NotValidForNameContext { .. } => format!("its certificate is not for the name {host}"),
            Expired | ExpiredContext { .. } => "its certificate has expired".into(),
            other => format!("its certificate is not accepted: {other}"),
        },
        rustls::Error::InvalidMessage(_) => "the port does not speak TLS; is the URL http://?".into(),
        rustls::Error::AlertReceived(alert) => format!("the server ended the TLS handshake: {alert:?}"),
        other => format!("TLS: {other}"),
    }
}

/// The cause of this type. An I/O error hides what it wraps from `source`.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_reached_where_it_listens() {
        let url = |listen: &str, tls| url("server.listen", listen.parse().unwrap(), tls).map(|url| url.to_string());
        assert_eq!(url("0.0.0.0:8080", false).unwrap(), "http://127.0.0.1:8080/");
        assert_eq!(url("[::]:8443", true).unwrap(), "https://[::1]:8443/");
        assert_eq!(url("10.1.2.3:80", false).unwrap(), "http://10.1.2.3:80/");
        assert!(url("0.0.0.0:0", false).is_err_and(|failure| failure.to_string().contains("server.listen")));
    }

    #[test]
    fn the_cause_is_found_within_what_wraps_it() {
        let said = |error: rustls::Error| {
            let error = io::Error::other(io::Error::other(error));
            unreached(&"https://h.example:444/x".parse().unwrap(), &error)
        };
        let certificate = rustls::Error::InvalidCertificate;
        for (error, words) in [
            (certificate(rustls::CertificateError::UnknownIssuer), "--ca-file"),
            (certificate(rustls::CertificateError::NotValidForName), "not for the name h.example"),
            (certificate(rustls::CertificateError::Expired), "expired"),
            (rustls::InvalidMessage::InvalidContentType.into(), "does not speak TLS"),
        ] {
            let said = said(error);
            assert!(said.starts_with("no connection to h.example:444: ") && said.contains(words), "{said}");
        }
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(
            unreached(&"http://h/".parse().unwrap(), &refused).starts_with("no connection to h:80: connection refused")
        );
    }
}
