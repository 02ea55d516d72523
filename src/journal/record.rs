//! Records and their bytes.
//!
//! A segment file is a header and then records, one after the other, with nothing between them. Integers are
//! little-endian. A record:
//!
//! ```text
//!   0  magic "SBRC"       u32
//!   4  length             u32   of the whole record
//!   8  CRC-32             u32   of the length and of all that follows this field
//!  12  flags              u32   1: the first record of a commit
//!  16  position           u64
//!  24  accepted_ms        i64
//!  32  hash of the key    u64
//!  40  id                 16 bytes
//!  56  length of the key  u32
//!  60  length of the kind u32
//!  64  key, kind, payload
//! ```
//!
//! The position is under the checksum, so a record cannot pass for another. The flag tells a torn tail from damage: a
//! commit is written only after the one before it was fsynced, so whatever lies before a record with this flag was on
//! the disk once.

use bytes::Bytes;

use super::Entry;

/// What a record takes besides its key, kind and payload.
pub(super) const HEADER: usize = 64;

const MAGIC: u32 = u32::from_le_bytes(*b"SBRC");
const FIRST_OF_COMMIT: u32 = 1;

/// A stored event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the journal.
    pub position: u64,
    /// When it was accepted, in Unix milliseconds.
    pub accepted_ms: i64,
    /// What it is recognised by.
    pub id: [u8; 16],
    /// Equal for events of one key; two keys may rarely share it.
    pub key_hash: u64,
    /// What order is kept by.
    pub key: String,
    /// The event's kind: its type, and the application that it is of ([`crate::domain::kind`]).
    pub kind: String,
    /// What was stored.
    pub payload: Bytes,
}

/// An event's place, which the disk may have damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// As it was stored: its checksum holds.
    Intact(Record),
    /// An event was stored here and cannot be read any more.
    Damaged {
        /// Its place in the journal.
        position: u64,
        /// The hash of its key, where the index still tells it.
        key_hash: Option<u64>,
        /// Its id, where the index still tells it.
        id: Option<[u8; 16]>,
        /// Its kind, where the index still tells it.
        kind: Option<String>,
    },
}

impl Row {
    /// Its place in the journal.
    pub fn position(&self) -> u64 {
        match self {
            Self::Intact(record) => record.position,
            Self::Damaged { position, .. } => *position,
        }
    }
}

/// A record as it lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View<'a> {
    pub(super) length: usize,
    pub(super) first_of_commit: bool,
    pub(super) position: u64,
    pub(super) accepted_ms: i64,
    pub(super) key_hash: u64,
    pub(super) id: [u8; 16],
    pub(super) key: &'a [u8],
    pub(super) kind: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl View<'_> {
    /// Copies it out of its buffer.
    pub(super) fn to_record(self) -> Record {
        Record {
            position: self.position,
            accepted_ms: self.accepted_ms,
            id: self.id,
            key_hash: self.key_hash,
            key: String::from_utf8_lossy(self.key).into_owned(),
            kind: String::from_utf8_lossy(self.kind).into_owned(),
            payload: Bytes::copy_from_slice(self.payload),
        }
    }
}

/// The bytes that an event takes in a segment.
pub(super) fn size(key: usize, kind: usize, payload: usize) -> u64 {
    (HEADER + key + kind + payload) as u64
}

/// The first eight bytes of a key's SHA-256: the same in every version, and nobody can choose keys that share it.
pub(super) fn hash(key: &[u8]) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, key);
    digest.as_ref().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// Appends the record of a new event to `out`.
pub(super) fn encode(out: &mut Vec<u8>, position: u64, first_of_commit: bool, key_hash: u64, entry: &Entry) {
    let Entry { id, key, kind, accepted_ms, payload } = entry;
    let numbers = Numbers { position, first_of_commit, accepted_ms: *accepted_ms, key_hash };
    encode_parts(out, &numbers, id, key, kind, payload);
}

/// Appends a stored record to `out`.
pub(super) fn encode_record(out: &mut Vec<u8>, record: &Record) {
    let Record { position, accepted_ms, id, key_hash, key, kind, payload } = record;
    let (position, accepted_ms, key_hash) = (*position, *accepted_ms, *key_hash);
    encode_parts(out, &Numbers { position, first_of_commit: false, accepted_ms, key_hash }, id, key, kind, payload);
}

struct Numbers {
    position: u64,
    first_of_commit: bool,
    accepted_ms: i64,
    key_hash: u64,
}

fn encode_parts(out: &mut Vec<u8>, numbers: &Numbers, id: &[u8; 16], key: &str, kind: &str, payload: &[u8]) {
    let Numbers { position, first_of_commit, accepted_ms, key_hash } = numbers;
    let begin = out.len();
    let length = HEADER + key.len() + kind.len() + payload.len();
    out.reserve(length);
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(if *first_of_commit { FIRST_OF_COMMIT } else { 0 }).to_le_bytes());
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&accepted_ms.to_le_bytes());
    out.extend_from_slice(&key_hash.to_le_bytes());
    out.extend_from_slice(id);
    out.extend_from_slice(&(key.len() as u32).to_le_bytes());
    out.extend_from_slice(&(kind.len() as u32).to_le_bytes());
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(payload);
    let crc = checksum(&out[begin..]);
    out[begin + 8..begin + 12].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the record at the beginning of `bytes`; `None` if there is none or its checksum does not hold.
pub(super) fn decode(bytes: &[u8]) -> Option<View<'_>> {
    let length = announced(bytes)?;
    let bytes = bytes.get(..length)?;
    if u32_at(bytes, 8)? != checksum(bytes) {
        return None;
    }
    let (key, kind) = (u32_at(bytes, 56)? as usize, u32_at(bytes, 60)? as usize);
    let kind_begin = HEADER.checked_add(key)?;
    let payload_begin = kind_begin.checked_add(kind)?;
    Some(View {
        length,
        first_of_commit: u32_at(bytes, 12)? & FIRST_OF_COMMIT != 0,
        position: u64_at(bytes, 16)?,
        accepted_ms: u64_at(bytes, 24)? as i64,
        key_hash: u64_at(bytes, 32)?,
        id: bytes.get(40..56)?.try_into().ok()?,
        key: bytes.get(HEADER..kind_begin)?,
        kind: bytes.get(kind_begin..payload_begin)?,
        payload: bytes.get(payload_begin..)?,
    })
}

/// The length that the record at the beginning of `bytes` says it has; `None` if no record begins there.
pub(super) fn announced(bytes: &[u8]) -> Option<usize> {
    let length = u32_at(bytes, 4)? as usize;
    (u32_at(bytes, 0)? == MAGIC && length >= HEADER).then_some(length)
}

/// Where the next record may begin in `bytes`, from `from` on.
pub(super) fn next_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let magic = MAGIC.to_le_bytes();
    let rest = bytes.get(from..)?;
    rest.windows(magic.len()).position(|window| window == magic).map(|at| from + at)
}

fn checksum(record: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&record[4..8]);
    crc.update(&record[12..]);
    crc.finalize()
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

/// Any bytes are a record whose checksum holds, or none; never a panic. A record that was encoded is decoded, and one of
/// which a bit has changed is not.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_record(data: &[u8]) {
    if let Some(view) = decode(data) {
        assert!(view.length <= data.len());
    }
    let Some((&[flip, split], payload)) = data.split_first_chunk() else { return };
    let (key, payload) = payload.split_at(usize::from(split).min(payload.len()));
    let entry = Entry {
        id: [flip; 16],
        key: String::from_utf8_lossy(key).into_owned(),
        kind: "kind".into(),
        accepted_ms: i64::from(flip),
        payload: payload.to_vec(),
    };
    let mut bytes = Vec::new();
    encode(&mut bytes, 7, true, hash(entry.key.as_bytes()), &entry);
    let view = decode(&bytes).expect("a record");
    assert!(view.first_of_commit && view.position == 7 && view.payload == payload && view.key == entry.key.as_bytes());
    let bit = data.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31) + usize::from(*byte)) % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    assert_eq!(decode(&bytes), None, "a changed record is taken for the one that was stored");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_is_what_was_stored_or_none(data: Vec<u8>) {
            fuzz_record(&data);
        }
    }
}
