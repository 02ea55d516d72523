//! The PROXY protocol, versions 1 and 2: what a load balancer that passes TCP on writes before the first byte of its client.
//!
//! - Version 1 is a line of at most 107 bytes: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`, ended by CR and LF.
//! - Version 2 is a signature of 12 bytes, a byte of version and command, one of family and transport, two of the length
//!   of the rest, and the rest: the addresses and ports of source and destination, and extensions, which are skipped.
//!
//! Exactly the header is read, so that TLS or hyper finds in the socket what follows. The crate `ppp` parses both, but what
//! is left for it, once the end of a header has been found in a socket, is less than the code here, and it would bring
//! `thiserror` a second time.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1.
const LONGEST_LINE: usize = 107;

/// The longest rest of version 2 that is read; its extensions take a few hundred bytes.
const LONGEST_REST: usize = 4096;

/// Reads the header that the connection begins with. Gives the address of the load balancer's client, or `None` if the load
/// balancer speaks for itself, or for a client without an IP address.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if there is no such header, or another one of the socket.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut begin = [0; SIGNATURE.len()];
    stream.read_exact(&mut begin).await?;
    if begin == *SIGNATURE {
        let mut fixed = [0; 4];
        stream.read_exact(&mut fixed).await?;
        let [command, family, length @ ..] = fixed;
        let length = usize::from(u16::from_be_bytes(length));
        if length > LONGEST_REST {
            return Err(invalid("the header is too long"));
        }
        let mut rest = vec![0; length];
        stream.read_exact(&mut rest).await?;
        return version_2(command, family, &rest);
    }
    if !begin.starts_with(b"PROXY ") {
        return Err(invalid("expected a PROXY protocol header, but found none"));
    }
    let mut line = begin.to_vec();
    while !line.ends_with(b"\n") {
        let mut peeked = [0; LONGEST_LINE];
        let room = LONGEST_LINE - line.len();
        if room == 0 {
            return Err(invalid("the header is too long"));
        }
        let found = stream.peek(&mut peeked[..room]).await?;
        if found == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = peeked[..found].iter().position(|byte| *byte == b'\n').map_or(found, |at| at + 1);
        stream.read_exact(&mut peeked[..end]).await?;
        line.extend_from_slice(&peeked[..end]);
    }
    version_1(&line)
}

fn version_1(line: &[u8]) -> io::Result<Option<IpAddr>> {
    fn pair<A: std::str::FromStr + Into<IpAddr>>(source: &str, destination: &str) -> Option<IpAddr> {
        destination.parse::<A>().ok()?;
        source.parse::<A>().ok().map(Into::into)
    }
    let text = std::str::from_utf8(line).ok().and_then(|text| text.strip_suffix("\r\n")).unwrap_or_default();
    let words: Vec<&str> = text.split(' ').collect();
    let source = match words[..] {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", family, source, destination, from, to]
            if from.parse::<u16>().is_ok() && to.parse::<u16>().is_ok() =>
        {
            match family {
                "TCP4" => pair::<Ipv4Addr>(source, destination),
                "TCP6" => pair::<Ipv6Addr>(source, destination),
                _ => None,
            }
        }
        _ => None,
    };
    source.map(Some).ok_or_else(|| invalid("the line of version 1 is not well-formed"))
}

fn version_2(command: u8, family: u8, rest: &[u8]) -> io::Result<Option<IpAddr>> {
    match (command, family >> 4) {
        // The load balancer itself, such as its health checks.
        (0x20, _) => Ok(None),
        // Unspecified, and local sockets.
        (0x21, 0 | 3) => Ok(None),
        // Source, destination and both ports.
        (0x21, 1) if rest.len() >= 12 => Ok(rest.first_chunk().map(|source: &[u8; 4]| IpAddr::from(*source))),
        (0x21, 2) if rest.len() >= 36 => Ok(rest.first_chunk().map(|source: &[u8; 16]| IpAddr::from(*source))),
        _ => Err(invalid("the header of version 2 is not well-formed")),
    }
}

fn invalid(fault: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn version_1_is_read_as_it_is_specified() {
        let of = |line: &str| version_1(line.as_bytes()).map(|found| found.map(|address| address.to_string()));
        let is = |line: &str, address: &str| assert_eq!(of(line).unwrap().as_deref(), Some(address), "{line}");
        is("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", "192.0.2.1");
        is("PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n", "2001:db8::1");
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n"] {
            assert_eq!(of(line).unwrap(), None, "{line}");
        }
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1  56324 443\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 nonsense 192.0.2.2 1 2\r\n",
            "PROXY \r\n",
            "PROXY TCP4 \u{661} 192.0.2.2 1 2\r\n",
        ] {
            assert!(of(line).is_err(), "{line}");
        }
    }

    #[test]
    fn version_2_is_read_as_it_is_specified() {
        let ipv4 = [192, 0, 2, 1, 198, 51, 100, 1, 0, 1, 0, 2, 0x20, 0, 1, 0];
        assert_eq!(version_2(0x21, 0x11, &ipv4).unwrap(), Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!(version_2(0x20, 0x00, &[]).unwrap(), None, "the load balancer itself");
        assert_eq!(version_2(0x20, 0x11, &ipv4).unwrap(), None, "whatever it adds");
        assert_eq!(version_2(0x21, 0x31, &[0; 216]).unwrap(), None, "a local socket");
        let mut ipv6 = [0; 36];
        ipv6[15] = 1;
        assert_eq!(version_2(0x21, 0x21, &ipv6).unwrap(), Some(Ipv6Addr::LOCALHOST.into()));
        for (command, family, rest) in
            [(0x11, 0x11, &ipv4[..]), (0x22, 0x11, &ipv4), (0x21, 0x11, &ipv4[..11]), (0x21, 0x21, &ipv6[..35])]
        {
            assert!(version_2(command, family, rest).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much(command: u8, family: u8, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _either = (version_1(&bytes).is_ok(), version_2(command, family, &bytes).is_ok());
        }
    }
}
