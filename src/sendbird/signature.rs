//! The signature that Sendbird puts on what it sends.
//!
//! HMAC-SHA256 over the bytes of the body as they came, keyed with the bytes of the master API token, in
//! lower-case hexadecimal without a prefix. Documented for Sendbird Chat, and not documented for Calls:
//! whether a delivery must carry one is the operator's choice, made elsewhere. Bodies must never be
//! re-encoded before they are checked (documented: `/` and other characters may come escaped).

use ring::hmac::{self, HMAC_SHA256, Key};

/// The length of a signature: 32 bytes in hexadecimal.
pub const LENGTH: usize = 64;

/// The tokens that a signature may be made with, several while one replaces another.
pub struct Keys(Vec<Option<Key>>);

impl Keys {
    /// From master API tokens. An empty one keeps its place and matches nothing: anybody could sign with it.
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Self {
        Self(tokens.into_iter().map(|token| (!token.is_empty()).then(|| key(token))).collect())
    }
}

/// Which of the keys, counted from 0, the header's value is the body's signature by; `None` if it is by
/// none. Digits may be in either case; anything but 64 of them is no signature. The time it takes doesn't
/// depend on where a wrong signature differs.
pub fn verify(keys: &Keys, body: &[u8], header: &[u8]) -> Option<usize> {
    let mut given = [0; LENGTH / 2];
    hex::decode_to_slice(header, &mut given).ok()?;
    keys.0.iter().position(|key| key.as_ref().is_some_and(|key| hmac::verify(key, body, &given).is_ok()))
}

/// The signature of a body, for whoever plays Sendbird.
pub fn sign(token: &str, body: &[u8]) -> String {
    hex::encode(hmac::sign(&key(token), body))
}

fn key(token: &str) -> Key {
    Key::new(HMAC_SHA256, token.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 4231, test case 2.
    const TOKEN: &str = "Jefe";
    const BODY: &[u8] = b"what do ya want for nothing?";
    const SIGNATURE: &str = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";

    #[test]
    fn is_the_documented_one() {
        assert_eq!(sign(TOKEN, BODY), SIGNATURE);
        let keys = Keys::new(["other", TOKEN]);
        assert_eq!(verify(&keys, BODY, SIGNATURE.as_bytes()), Some(1));
        assert_eq!(verify(&keys, BODY, SIGNATURE.to_ascii_uppercase().as_bytes()), Some(1));
    }

    #[test]
    fn anything_else_is_refused() {
        let keys = Keys::new([TOKEN]);
        let mut flipped = SIGNATURE.as_bytes().to_vec();
        flipped[63] ^= 1;
        for header in [&flipped[..], b"", &SIGNATURE.as_bytes()[..63], b"sha256=5bdc", &[0xff; LENGTH], &[b'g'; LENGTH]]
        {
            assert_eq!(verify(&keys, BODY, header), None);
        }
        assert_eq!(verify(&keys, b"what do ya want for nothing!", SIGNATURE.as_bytes()), None);
        assert_eq!(verify(&Keys::new([]), BODY, SIGNATURE.as_bytes()), None);
    }

    #[test]
    fn an_empty_token_is_no_key() {
        let keys = Keys::new(["", TOKEN]);
        assert_eq!(verify(&keys, BODY, sign("", BODY).as_bytes()), None);
        assert_eq!(verify(&keys, BODY, SIGNATURE.as_bytes()), Some(1));
        assert_eq!(verify(&Keys::new([""]), BODY, SIGNATURE.as_bytes()), None);
    }
}
