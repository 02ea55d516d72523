//! What a failed TLS handshake means, or another protocol: the clients say it in the words of their libraries.
//!
//! OpenSSL (Kafka) does not tell a wrong name from a wrong authority; rustls (RabbitMQ, NATS) does.

use super::{Fault, Reason};

/// What a client's text says about certificates or the protocol, in words for people; `None` if it is about something else.
pub(super) fn explained(text: &str) -> Option<Fault> {
    let (reason, meaning) = if refused(text) {
        (Reason::NotAuthorized, "the broker does not take the client's certificate: see tls.cert_file")
    } else if text.contains("certificate verify failed") {
        let meaning = "the broker's certificate is not accepted: no authority of tls.ca_file (without it, of the \
                       platform) has signed it, or it is not for this host name, or it has expired";
        (Reason::Connection, meaning)
    } else if text.contains("UnknownIssuer") {
        let meaning = "the broker's certificate is not accepted: no authority of tls.ca_file (without it, of the \
                       platform) has signed it";
        (Reason::Connection, meaning)
    } else if text.contains("not valid for name") {
        (Reason::Connection, "the broker's certificate is not accepted: it is not for this host name")
    } else if text.contains("certificate expired") || text.contains("certificate: Expired") {
        (Reason::Connection, "the broker's certificate is not accepted: it has expired")
    } else if text.contains("InvalidContentType") {
        (Reason::Connection, "TLS is not spoken at this port")
    } else if text.contains("receive.message.max.bytes") {
        // librdkafka takes the first bytes of the answer for a length, and advises to allow for it.
        (Reason::Connection, "something else than Kafka is spoken at this port, or TLS is and the sink has no tls")
    } else {
        return None;
    };
    Some(Fault { reason, detail: format!("{meaning} ({text})") })
}

/// Whether the broker ended the handshake because of what the client showed, or did not.
fn refused(text: &str) -> bool {
    const ALERTS: [&str; 6] = [
        "BadCertificate",
        "UnsupportedCertificate",
        "CertificateRevoked",
        "CertificateExpired",
        "CertificateUnknown",
        "CertificateRequired",
    ];
    // OpenSSL gives the alert's number: RFC 8446, section 6.2.
    let numbers = [42, 43, 44, 45, 46, 48, 116];
    let number = text.split_once("SSL alert number ").map(|(_, rest)| rest);
    let number = number.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    let alert = text.split_once("received fatal alert: ").map(|(_, rest)| rest);
    number.is_some_and(|number: u8| numbers.contains(&number))
        || alert
            .is_some_and(|alert| alert.starts_with("UnknownCA") || ALERTS.iter().any(|name| alert.starts_with(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_libraries_say_is_explained() {
        for (text, reason, words) in [
            ("ssl/tls alert bad certificate: SSL alert number 42 (after 3ms)", Reason::NotAuthorized, "tls.cert_file"),
            ("IO error: received fatal alert: CertificateRequired", Reason::NotAuthorized, "tls.cert_file"),
            ("SSL routines::certificate verify failed: broker", Reason::Connection, "or it has expired"),
            ("invalid peer certificate: UnknownIssuer", Reason::Connection, "tls.ca_file"),
            ("invalid peer certificate: certificate not valid for name \"a\"", Reason::Connection, "host name"),
            ("invalid peer certificate: certificate expired: verified at", Reason::Connection, "has expired"),
            ("received corrupt message of type InvalidContentType", Reason::Connection, "not spoken"),
            ("consider increasing receive.message.max.bytes", Reason::Connection, "something else than Kafka"),
        ] {
            let fault = explained(text).expect(text);
            assert_eq!(fault.reason, reason, "{text}");
            assert!(fault.detail.contains(words) && fault.detail.contains(text), "{}", fault.detail);
        }
        for text in ["connection refused", "SSL alert number 80", "received fatal alert: InternalError"] {
            assert_eq!(explained(text), None, "{text}");
        }
    }
}
