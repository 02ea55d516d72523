//! What a segment holds, without the events themselves: in memory while the segment is open, in a file afterwards.
//!
//! The file, beside its segment and named like it:
//!
//! ```text
//!   0  magic "SBBINDEX"    8 bytes
//!   8  version             u32
//!  12  number of entries   u32
//!  16  length of the kinds u32
//!  20  number of kinds     u32
//!  24  bytes of the log    u64
//!  32  first position, last position, oldest and newest accepted_ms, 8 bytes each
//!  64  entries that are damaged u32
//!  68  CRC-32 of all before u32
//!  72  kinds: number of events u64, length u32, text; then the CRC-32 of them all
//!   -  entries in order of position, 52 bytes each: position, offset, length (0: damaged), kind, accepted_ms, hash of
//!      the key, id; the CRC-32 of each 1,024 of them follows them
//!   -  the numbers of the entries in order of the key's hash, 4 bytes each, and their CRC-32
//! ```
//!
//! It holds nothing that the segment does not say too: a damaged index is rebuilt from its segment. Once the segment
//! has been released the file is kept, under another ending, for as long as its ids are in the deduplication window.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::directory;
use super::record::{View, u32_at, u64_at};

const MAGIC: &[u8; 8] = b"SBBINDEX";
const VERSION: u32 = 1;
const HEADER: usize = 72;
const ENTRY: usize = 52;
const CHUNK: usize = 1_024;

/// What is known of one event without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexEntry {
    pub(super) position: u64,
    pub(super) offset: u32,
    /// 0 where the event is known to be damaged.
    pub(super) length: u32,
    /// A number of [`Index::kinds`].
    pub(super) kind: u32,
    pub(super) accepted_ms: i64,
    pub(super) key_hash: u64,
    pub(super) id: [u8; 16],
}

impl IndexEntry {
    /// One of which nothing is known but its position, and a time that it may have been accepted at.
    pub(super) fn unknown(position: u64, accepted_ms: i64) -> Self {
        Self { position, offset: 0, length: 0, kind: 0, accepted_ms, key_hash: 0, id: [0; 16] }
    }
}

/// A segment's entries in order of position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) entries: Vec<IndexEntry>,
    /// Each kind with the number of its events.
    pub(super) kinds: Vec<(String, u64)>,
    pub(super) numbers: HashMap<String, u32>,
    /// Length of the segment's file.
    pub(super) log_bytes: u64,
}

/// What is known of a segment without its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// 0 where there is no entry.
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) count: u64,
    pub(super) damaged: u64,
    pub(super) log_bytes: u64,
    pub(super) oldest_ms: i64,
    pub(super) newest_ms: i64,
    pub(super) kinds: Vec<(String, u64)>,
}

/// The bytes of an index file of so many entries, but for the kinds.
pub(super) fn file_bytes(entries: u64) -> u64 {
    HEADER as u64 + entries * ENTRY_BYTES
}

/// What an event takes in an index file.
pub(super) const ENTRY_BYTES: u64 = ENTRY as u64 + 4;

impl Index {
    /// An empty one, of a segment of so many bytes.
    pub(super) fn of_bytes(log_bytes: u64) -> Self {
        Self { log_bytes, ..Self::default() }
    }

    pub(super) fn push(&mut self, offset: u64, view: &View<'_>) {
        let kind = self.kind_number(&String::from_utf8_lossy(view.kind));
        self.entries.push(IndexEntry {
            position: view.position,
            offset: offset as u32,
            length: view.length as u32,
            kind,
            accepted_ms: view.accepted_ms,
            key_hash: view.key_hash,
            id: view.id,
        });
    }

    /// Adds an entry of another index.
    pub(super) fn push_entry(&mut self, entry: IndexEntry, kind: &str) {
        let kind = self.kind_number(kind);
        self.entries.push(IndexEntry { kind, ..entry });
    }

    /// Names the first and the last event, which the summary tells, where their entries cannot be read.
    pub(super) fn name_ends(&mut self, summary: &Summary) {
        for position in [summary.first, summary.last].into_iter().filter(|position| *position > 0) {
            if self.at(position).is_none() {
                let kind = self.kind_number("");
                let entry = IndexEntry { kind, ..IndexEntry::unknown(position, summary.newest_ms) };
                self.entries.insert(self.after(position), entry);
            }
        }
    }

    fn kind_number(&mut self, kind: &str) -> u32 {
        if let Some(number) = self.numbers.get(kind) {
            self.kinds[*number as usize].1 += 1;
            return *number;
        }
        let number = self.kinds.len() as u32;
        self.kinds.push((kind.to_owned(), 1));
        self.numbers.insert(kind.to_owned(), number);
        number
    }

    pub(super) fn kind(&self, entry: &IndexEntry) -> &str {
        self.kinds.get(entry.kind as usize).map_or("", |(kind, _)| kind)
    }

    /// The number of the first entry after a position.
    pub(super) fn after(&self, position: u64) -> usize {
        self.entries.partition_point(|entry| entry.position <= position)
    }

    pub(super) fn at(&self, position: u64) -> Option<&IndexEntry> {
        self.entries
            .get(self.entries.partition_point(|entry| entry.position < position))
            .filter(|entry| entry.position == position)
    }

    pub(super) fn summary(&self) -> Summary {
        let times = || self.entries.iter().map(|entry| entry.accepted_ms);
        Summary {
            first: self.entries.first().map_or(0, |entry| entry.position),
            last: self.entries.last().map_or(0, |entry| entry.position),
            count: self.entries.len() as u64,
            damaged: self.entries.iter().filter(|entry| entry.length == 0).count() as u64,
            log_bytes: self.log_bytes,
            oldest_ms: times().min().unwrap_or(0),
            newest_ms: times().max().unwrap_or(0),
            kinds: self.kinds.clone(),
        }
    }

    /// Writes the file and fsyncs it; its name is durable only once the directory is fsynced.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let making = path.with_extension("making");
        fs::write(&making, self.encode())?;
        File::open(&making)?.sync_all()?;
        fs::rename(&making, path)
    }

    fn encode(&self) -> Vec<u8> {
        let summary = self.summary();
        let mut kinds = Vec::new();
        for (kind, count) in &self.kinds {
            kinds.extend_from_slice(&count.to_le_bytes());
            kinds.extend_from_slice(&(kind.len() as u32).to_le_bytes());
            kinds.extend_from_slice(kind.as_bytes());
        }
        let mut out = Vec::with_capacity(HEADER + kinds.len() + self.entries.len() * (ENTRY + 5) + 16);
        out.extend_from_slice(MAGIC);
        for number in [VERSION, self.entries.len() as u32, kinds.len() as u32, self.kinds.len() as u32] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.log_bytes, summary.first, summary.last, summary.oldest_ms as u64, summary.newest_ms as u64]
        {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&(summary.damaged as u32).to_le_bytes());
        seal(&mut out, 0);
        let begin = out.len();
        out.extend_from_slice(&kinds);
        seal(&mut out, begin);
        for chunk in self.entries.chunks(CHUNK) {
            let begin = out.len();
            chunk.iter().for_each(|entry| encode_entry(&mut out, entry));
            seal(&mut out, begin);
        }
        let mut by_key: Vec<u32> = (0..self.entries.len() as u32).collect();
        by_key.sort_by_key(|number| (self.entries[*number as usize].key_hash, *number));
        let begin = out.len();
        by_key.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        seal(&mut out, begin);
        out
    }

    /// Reads a file. `true` if all of it is as it was written; otherwise the index holds the entries that are.
    ///
    /// # Errors
    /// When the file can be neither read nor said to be missing or damaged.
    pub(super) fn read(path: &Path) -> io::Result<(Self, bool)> {
        let Some(bytes) = read_bytes(path, u64::MAX)? else { return Ok((Self::default(), false)) };
        let Some(summary) = decode_summary(&bytes) else { return Ok((Self::default(), false)) };
        let mut index = Self { log_bytes: summary.log_bytes, kinds: summary.kinds, ..Self::default() };
        index.numbers = index.kinds.iter().zip(0..).map(|((kind, _), number)| (kind.clone(), number)).collect();
        let mut at = entries_begin(&bytes).unwrap_or(bytes.len());
        let (mut left, mut whole) = (summary.count as usize, true);
        while left > 0 {
            let length = left.min(CHUNK) * ENTRY;
            match bytes.get(at..at + length + 4).filter(|chunk| is_sealed(chunk)) {
                Some(chunk) => index.entries.extend(chunk[..length].chunks_exact(ENTRY).filter_map(decode_entry)),
                None => whole = false,
            }
            at += length + 4;
            left -= left.min(CHUNK);
        }
        whole &= bytes.get(at..).is_some_and(|rest| rest.len() == summary.count as usize * 4 + 4 && is_sealed(rest));
        Ok((index, whole))
    }

    /// Reads only what a file says of its segment; `None` where that is damaged or missing.
    ///
    /// # Errors
    /// When the file can be neither read nor said to be missing or damaged.
    pub(super) fn read_summary(path: &Path) -> io::Result<Option<Summary>> {
        // Enough for the kinds of any ordinary segment; more of them take another read.
        for most in [8 * 1024, u64::MAX] {
            let summary = read_bytes(path, most)?.as_deref().and_then(decode_summary);
            if summary.is_some() {
                return Ok(summary);
            }
        }
        Ok(None)
    }
}

/// Looks single entries of an index file up, by reading the part that holds them: an event in the middle of a segment is
/// read without reading what is known of all others.
#[derive(Debug)]
pub(super) struct Lookup {
    file: File,
    /// Where the entries begin, and how many there are.
    begin: u64,
    count: usize,
    /// The chunk that was read last.
    chunk: Vec<IndexEntry>,
}

impl Lookup {
    /// `None` where the file cannot be opened.
    pub(super) fn open(path: &Path, summary: &Summary) -> Option<Self> {
        let kinds: usize = summary.kinds.iter().map(|(kind, _)| 12 + kind.len()).sum();
        let begin = (HEADER + kinds + 4) as u64;
        Some(Self { file: File::open(path).ok()?, begin, count: summary.count as usize, chunk: Vec::new() })
    }

    /// The entry at this position; `None` where there is none, or the file does not say so for certain.
    pub(super) fn find(&mut self, position: u64) -> Option<IndexEntry> {
        if let Some(entry) = self.in_chunk(position) {
            return Some(entry);
        }
        let (mut low, mut high) = (0, self.count.div_ceil(CHUNK));
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.first_of(middle)? <= position { low = middle } else { high = middle }
        }
        self.read_chunk(low)?;
        self.in_chunk(position)
    }

    fn in_chunk(&self, position: u64) -> Option<IndexEntry> {
        let found = self.chunk.binary_search_by_key(&position, |entry| entry.position).ok()?;
        self.chunk.get(found).copied()
    }

    fn first_of(&self, chunk: usize) -> Option<u64> {
        let mut position = [0; 8];
        self.file.read_exact_at(&mut position, self.offset(chunk)).ok()?;
        Some(u64::from_le_bytes(position))
    }

    fn read_chunk(&mut self, chunk: usize) -> Option<()> {
        self.chunk.clear();
        let length = self.count.saturating_sub(chunk * CHUNK).min(CHUNK) * ENTRY;
        let mut bytes = vec![0; length + 4];
        self.file.read_exact_at(&mut bytes, self.offset(chunk)).ok()?;
        if is_sealed(&bytes) {
            self.chunk.extend(bytes[..length].chunks_exact(ENTRY).filter_map(decode_entry));
        }
        Some(())
    }

    fn offset(&self, chunk: usize) -> u64 {
        self.begin + (chunk * (CHUNK * ENTRY + 4)) as u64
    }
}

/// At most so many bytes of a file; `None` where it is missing, or the disk cannot read it.
fn read_bytes(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match directory::open_readable(path)?.map(|file| file.take(most).read_to_end(&mut bytes)) {
        None => Ok(None),
        Some(Ok(_)) => Ok(Some(bytes)),
        Some(Err(error)) if directory::is_damage(&error) => Ok(None),
        Some(Err(error)) => Err(error),
    }
}

/// Appends the checksum of all from `begin` on.
fn seal(out: &mut Vec<u8>, begin: usize) {
    let crc = crc32fast::hash(&out[begin..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

fn is_sealed(bytes: &[u8]) -> bool {
    bytes.split_last_chunk().is_some_and(|(content, crc)| crc32fast::hash(content) == u32::from_le_bytes(*crc))
}

fn encode_entry(out: &mut Vec<u8>, entry: &IndexEntry) {
    let IndexEntry { position, offset, length, kind, accepted_ms, key_hash, id } = entry;
    out.extend_from_slice(&position.to_le_bytes());
    for number in [offset, length, kind] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&accepted_ms.to_le_bytes());
    out.extend_from_slice(&key_hash.to_le_bytes());
    out.extend_from_slice(id);
}

fn decode_entry(bytes: &[u8]) -> Option<IndexEntry> {
    Some(IndexEntry {
        position: u64_at(bytes, 0)?,
        offset: u32_at(bytes, 8)?,
        length: u32_at(bytes, 12)?,
        kind: u32_at(bytes, 16)?,
        accepted_ms: u64_at(bytes, 20)? as i64,
        key_hash: u64_at(bytes, 28)?,
        id: bytes.get(36..52)?.try_into().ok()?,
    })
}

fn entries_begin(bytes: &[u8]) -> Option<usize> {
    Some(HEADER + u32_at(bytes, 16)? as usize + 4)
}

fn decode_summary(bytes: &[u8]) -> Option<Summary> {
    let header = bytes.get(..HEADER)?;
    if !is_sealed(header) || &header[..8] != MAGIC || u32_at(header, 8)? != VERSION {
        return None;
    }
    let kinds_bytes = bytes.get(HEADER..entries_begin(bytes)?).filter(|kinds| is_sealed(kinds))?;
    let (mut kinds, mut at) = (Vec::new(), 0);
    for _ in 0..u32_at(header, 20)? {
        let (count, length) = (u64_at(kinds_bytes, at)?, u32_at(kinds_bytes, at + 8)? as usize);
        let kind = kinds_bytes.get(at + 12..at + 12 + length)?;
        kinds.push((String::from_utf8_lossy(kind).into_owned(), count));
        at += 12 + length;
    }
    Some(Summary {
        count: u64::from(u32_at(header, 12)?),
        log_bytes: u64_at(header, 24)?,
        first: u64_at(header, 32)?,
        last: u64_at(header, 40)?,
        oldest_ms: u64_at(header, 48)? as i64,
        newest_ms: u64_at(header, 56)? as i64,
        damaged: u64::from(u32_at(header, 64)?),
        kinds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: u64) -> Index {
        let mut index = Index { log_bytes: 77, ..Index::default() };
        for n in 1..=entries {
            let entry = IndexEntry {
                position: n * 2,
                offset: n as u32,
                length: (n % 7) as u32,
                kind: 0,
                accepted_ms: 1_000 - n as i64,
                key_hash: n % 5,
                id: [n as u8; 16],
            };
            index.push_entry(entry, ["a", "b", "c"][(n % 3) as usize]);
        }
        index
    }

    #[test]
    fn a_file_says_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.idx");
        for entries in [0, 1, 1_024, 1_025, 3_000] {
            let index = index(entries);
            index.write(&path).unwrap();
            assert_eq!(Index::read(&path).unwrap(), (index.clone(), true));
            assert_eq!(Index::read_summary(&path).unwrap(), Some(index.summary()));
        }
    }

    #[test]
    fn an_entry_is_looked_up_in_its_chunk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.idx");
        for entries in [0, 1, 1_024, 1_025, 3_000] {
            let index = index(entries);
            index.write(&path).unwrap();
            let mut lookup = Lookup::open(&path, &index.summary()).unwrap();
            for position in (0..=2 * entries + 2).chain((0..entries).rev().step_by(700)) {
                assert_eq!(lookup.find(position), index.at(position).copied(), "{position} of {entries}");
            }
        }
        // Nothing that a damaged chunk says is believed; the others are found.
        let (whole, index) = (fs::read(&path).unwrap(), index(3_000));
        let mut damaged = whole.clone();
        damaged[whole.len() - 3_000 * 4 - 4 - 900 * ENTRY] ^= 1;
        fs::write(&path, damaged).unwrap();
        let mut lookup = Lookup::open(&path, &index.summary()).unwrap();
        let found = |n: u64, lookup: &mut Lookup| lookup.find(n * 2).is_some();
        assert_eq!([1, 2_048, 2_049, 3_000].map(|n| found(n, &mut lookup)), [true, true, false, false]);
    }

    #[test]
    fn a_damaged_chunk_costs_its_own_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.idx");
        let index = index(3_000);
        index.write(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(997) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(&path, &bytes).unwrap();
            let (found, is_whole) = Index::read(&path).unwrap();
            assert!(!is_whole, "{at}");
            assert!(found.entries.is_empty() || found.entries.len() >= 3_000 - CHUNK, "{at}: {}", found.entries.len());
            assert!(found.entries.iter().all(|entry| index.at(entry.position) == Some(entry)), "{at}");
        }
    }
}
