//! The id of an event, computed from the delivery itself.
//!
//! Every retry, replica and replay computes the same id, so consumers can recognise a duplicate
//! whatever caused it. The layout is versioned; a change of it is a change of every id.

use std::fmt;

use ring::digest::{Context, SHA256};
use uuid::Uuid;

/// A UUIDv8 (RFC 9562) made of the first 122 free bits of a SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId([u8; 16]);

impl EventId {
    /// Over the parts that tell one event from another. Each part is preceded by its length, so that
    /// moving a byte from one part to the next makes another id.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(b"sendbird-bridge:event:v1:parts");
        for part in parts {
            update(&mut hash, part);
        }
        Self::finish(hash)
    }

    /// Over a whole body in its canonical form, where the telling parts are not known.
    pub fn of_body(canonical: &[u8]) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(b"sendbird-bridge:event:v1:body");
        update(&mut hash, canonical);
        Self::finish(hash)
    }

    /// From the 16 bytes that [`EventId::as_bytes`] gave.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes, in network order.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn finish(hash: Context) -> Self {
        let digest = hash.finish();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.as_ref()[..16]);
        Self(Uuid::new_v8(bytes).into_bytes())
    }
}

fn update(hash: &mut Context, part: &[u8]) {
    hash.update(&(part.len() as u64).to_be_bytes());
    hash.update(part);
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn is_a_uuid_of_version_8_and_never_changes() {
        let id = EventId::of_parts([b"app".as_slice(), b"room:create", b"key"]);
        let uuid = Uuid::from_bytes(*id.as_bytes());
        assert_eq!(uuid.get_version_num(), 8);
        assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
        // Published ids depend on this layout: if this line must change, the version must too.
        assert_eq!(id.to_string(), "c07860d1-8c64-8afc-ab66-7b73aeb6dedb");
    }

    #[test]
    fn parts_and_body_never_meet() {
        assert_ne!(EventId::of_parts([b"x".as_slice()]), EventId::of_body(b"x"));
    }

    proptest! {
        #[test]
        fn differs_when_a_byte_moves_to_the_next_part(a in "[a-z]{1,9}", b in "[a-z]{0,9}") {
            let moved = format!("{}{b}", &a[a.len() - 1..]);
            prop_assert_ne!(
                EventId::of_parts([a.as_bytes(), b.as_bytes()]),
                EventId::of_parts([&a.as_bytes()[..a.len() - 1], moved.as_bytes()])
            );
        }
    }
}
