//! Segments: the files that hold the events, one after the other in order of position.
//!
//! The name of a segment says which numbers of the chain it stands for: at first one; a compacted segment, which holds
//! only the events that a sink still needs, may stand for several, and has a higher generation. Whatever a segment with
//! a wider range or a higher generation stands for is no longer needed, so a compaction is durable with one `rename`.
//!
//! ```text
//!   0  magic "SBBEVENT"   8 bytes
//!   8  major version      u16, other majors are refused
//!  10  minor version      u16, any minor of the same major is read
//!  12  -                  4 bytes
//!  16  the last position before this segment u64; in a salvaged one 0, as that is not known
//!  24  the last position that a compacted segment stands for u64; in any other 0
//!  32  -                  28 bytes
//!  60  CRC-32 of all before u32
//!  64  records (record.rs)
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::directory;
use super::index::{Index, IndexEntry, Lookup, Summary};
use super::record::u64_at;
use super::scan::{Scanned, scan};

/// Where the records begin.
pub(super) const HEADER: usize = 64;

/// The layout of this program's segments, index files and state.
pub(super) const MAJOR: u16 = 2;
pub(super) const MINOR: u16 = 0;

const MAGIC: &[u8; 8] = b"SBBEVENT";

/// Which part of the chain a file stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) generation: u32,
}

impl Name {
    /// A new segment's.
    pub(super) fn new(number: u64) -> Self {
        Self { first: number, last: number, generation: 0 }
    }

    /// `events-00000007-00000009-1`, without an ending.
    fn stem(self) -> String {
        format!("events-{:08}-{:08}-{}", self.first, self.last, self.generation)
    }

    /// From a file's name, with its ending.
    pub(super) fn parse(file: &str) -> Option<(Self, &str)> {
        let (stem, ending) = file.rsplit_once('.')?;
        let mut parts = stem.strip_prefix("events-")?.split('-');
        let name = Self {
            first: parts.next()?.parse().ok()?,
            last: parts.next()?.parse().ok()?,
            generation: parts.next()?.parse().ok()?,
        };
        (parts.next().is_none() && name.first <= name.last).then_some((name, ending))
    }

    pub(super) fn log(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.log", self.stem()))
    }

    pub(super) fn index(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.idx", self.stem()))
    }

    /// What is left of a released segment while its ids are in the deduplication window.
    pub(super) fn ids(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.ids", self.stem()))
    }

    /// Whether all that `other` stands for is in this one too.
    pub(super) fn replaces(self, other: Self) -> bool {
        self != other
            && self.first <= other.first
            && self.last >= other.last
            && (self.last - self.first > other.last - other.first || self.generation > other.generation)
    }
}

/// A segment of the chain.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) name: Name,
    pub(super) dir: PathBuf,
    pub(super) header: Header,
    contents: Contents,
    /// Whether nothing is written to it any more.
    is_finished: AtomicBool,
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// The last position before the segment; 0 where it is the first, or not known.
    pub(super) previous_last: u64,
    /// The last position that it stands for, if it was compacted.
    pub(super) through: u64,
}

#[derive(Debug)]
enum Contents {
    /// Its entries are in memory: it is written to, or has no index file yet.
    Open(RwLock<Index>),
    /// Its entries are in its index file.
    Sealed(Summary),
}

impl Segment {
    /// The one that is written to.
    pub(super) fn active(name: Name, dir: &Path, index: Index, header: Header) -> Self {
        let (contents, is_finished) = (Contents::Open(RwLock::new(index)), AtomicBool::new(false));
        Self { name, dir: dir.to_owned(), header, contents, is_finished }
    }

    /// One that has no index file yet.
    pub(super) fn open(name: Name, dir: &Path, index: Index, header: Header) -> Self {
        let segment = Self::active(name, dir, index, header);
        segment.finish();
        segment
    }

    pub(super) fn sealed(name: Name, dir: &Path, summary: Summary, header: Header) -> Self {
        let (contents, is_finished) = (Contents::Sealed(summary), AtomicBool::new(true));
        Self { name, dir: dir.to_owned(), header, contents, is_finished }
    }

    /// Nothing more is written to it: it may be sealed.
    pub(super) fn finish(&self) {
        self.is_finished.store(true, Ordering::Release);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.is_finished.load(Ordering::Acquire)
    }

    pub(super) fn is_sealed(&self) -> bool {
        matches!(self.contents, Contents::Sealed(_))
    }

    /// The entries, if they are in memory.
    pub(super) fn entries(&self) -> Option<RwLockReadGuard<'_, Index>> {
        match &self.contents {
            Contents::Open(index) => Some(index.read().unwrap_or_else(PoisonError::into_inner)),
            Contents::Sealed(_) => None,
        }
    }

    pub(super) fn entries_mut(&self) -> Option<RwLockWriteGuard<'_, Index>> {
        match &self.contents {
            Contents::Open(index) => Some(index.write().unwrap_or_else(PoisonError::into_inner)),
            Contents::Sealed(_) => None,
        }
    }

    /// What it holds, from memory. Of an open segment this looks at each entry.
    pub(super) fn summary(&self) -> Summary {
        match &self.contents {
            Contents::Open(_) => self.entries().map(|index| index.summary()).unwrap_or_default(),
            Contents::Sealed(summary) => summary.clone(),
        }
    }

    /// When the newest of its events was accepted.
    pub(super) fn newest_ms(&self) -> i64 {
        match &self.contents {
            Contents::Open(_) => self.summary().newest_ms,
            Contents::Sealed(summary) => summary.newest_ms,
        }
    }

    /// The first and the last position; zeros where there is none.
    pub(super) fn span(&self) -> (u64, u64) {
        match &self.contents {
            Contents::Open(_) => self.entries().map_or((0, 0), |index| {
                let position = |entry: Option<&IndexEntry>| entry.map_or(0, |entry| entry.position);
                (position(index.entries.first()), position(index.entries.last()))
            }),
            Contents::Sealed(summary) => (summary.first, summary.last),
        }
    }

    /// The first and the last position that it stands for, whether or not it still holds them.
    pub(super) fn covers(&self) -> (u64, u64) {
        let (first, last) = self.span();
        let first = if self.header.previous_last > 0 { self.header.previous_last + 1 } else { first };
        (first, last.max(self.header.through))
    }

    /// Whether all of its positions are smaller.
    pub(super) fn ends_before(&self, position: u64) -> bool {
        let (_, last) = self.span();
        // One without any is the newest, and what is written to it next comes after all others.
        if last > 0 { last < position } else { self.header.previous_last < position }
    }

    /// How many events it holds, readable or not.
    pub(super) fn count(&self) -> u64 {
        match &self.contents {
            Contents::Open(_) => self.entries().map_or(0, |index| index.entries.len() as u64),
            Contents::Sealed(summary) => summary.count,
        }
    }

    /// The bytes that it takes on the disk, with its index.
    pub(super) fn bytes(&self) -> u64 {
        match &self.contents {
            Contents::Open(_) => {
                self.entries().map_or(0, |index| index.log_bytes + super::index::file_bytes(index.entries.len() as u64))
            }
            Contents::Sealed(summary) => summary.log_bytes + super::index::file_bytes(summary.count),
        }
    }

    /// All entries, from memory, from the index file, or where that is damaged from the segment itself. `false` if the
    /// index file has to be rebuilt.
    pub(super) fn load(&self) -> io::Result<(Index, bool)> {
        if let Some(index) = self.entries() {
            return Ok((index.clone(), true));
        }
        let (index, whole) = Index::read(&self.name.index(&self.dir))?;
        if whole { Ok((index, true)) } else { Ok((self.read_log(index)?.index, false)) }
    }

    /// Makes the index from the segment's file, `known` being what is left of the index file.
    pub(super) fn read_log(&self, mut known: Index) -> io::Result<FoundLog> {
        known.name_ends(&self.summary());
        read_log(self.name, &self.dir, &known, &Proof::default())
    }

    /// For single entries of a sealed segment; `None` of any other, and where its index file cannot be opened.
    pub(super) fn lookup(&self) -> Option<Lookup> {
        match &self.contents {
            Contents::Open(_) => None,
            Contents::Sealed(summary) => Lookup::open(&self.name.index(&self.dir), summary),
        }
    }

    /// What an entry is called.
    pub(super) fn kind(&self, entry: &IndexEntry) -> String {
        match &self.contents {
            Contents::Open(_) => self.entries().map_or_else(String::new, |index| index.kind(entry).to_owned()),
            Contents::Sealed(summary) => {
                summary.kinds.get(entry.kind as usize).map_or_else(String::new, |(kind, _)| kind.clone())
            }
        }
    }

    /// Its file; `None` where it is missing, or the disk cannot open it.
    pub(super) fn file(&self) -> io::Result<Option<File>> {
        directory::open_readable(&self.name.log(&self.dir))
    }
}

/// Whether any segment in a directory says that it is a journal of this major version.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] where one says that it is of another.
pub(super) fn is_of_this_format(dir: &Path) -> io::Result<bool> {
    let mut is_known = false;
    for path in fs::read_dir(dir)?.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|file| file.to_str()).and_then(Name::parse);
        if let (Some((_, "log")), Ok(file)) = (name, File::open(&path)) {
            is_known |= read_header(&file)?.is_some();
        }
    }
    Ok(is_known)
}

/// How far a segment is known to have been fsynced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Proof {
    /// The file was durable up to here.
    pub(super) offset: u64,
    /// This was its last position then; 0 where it is not known.
    pub(super) position: u64,
}

/// What reading a segment's file from its beginning has found.
#[derive(Debug, Default)]
pub(super) struct FoundLog {
    pub(super) index: Index,
    /// Events that were durable once and are no record now.
    pub(super) damaged: Vec<u64>,
    /// Bytes that were durable once and are no record now.
    pub(super) damaged_bytes: u64,
    /// Its header, if that can be read.
    pub(super) header: Option<Header>,
}

/// Makes the index of a segment from its file. `known` is what is left of the index file: what it names and the file
/// no longer has is damaged. A missing file is one of which nothing can be read.
///
/// # Errors
/// When the file can be neither read nor said to be missing or damaged.
pub(super) fn read_log(name: Name, dir: &Path, known: &Index, proof: &Proof) -> io::Result<FoundLog> {
    let mut found = FoundLog::default();
    let mut unreadable = Vec::new();
    let (mut proven, mut end) = (proof.offset, HEADER as u64);
    if let Some(file) = directory::open_readable(&name.log(dir))? {
        found.header = read_header(&file).ok().flatten();
        scan(&file, HEADER as u64, |scanned| match scanned {
            Scanned::Record { offset, record } => {
                end = offset + record.length as u64;
                if record.first_of_commit {
                    proven = proven.max(offset);
                }
                if found.index.entries.last().is_none_or(|last| last.position < record.position) {
                    found.index.push(offset, &record);
                }
            }
            Scanned::Unreadable(range) => unreadable.push(range),
        })?;
        found.index.log_bytes = end_of_content(&file, end)?;
    }
    for range in unreadable {
        // What lies behind was left by a kill or a power cut, and never answered.
        found.damaged_bytes += range.end.min(proven).saturating_sub(range.start);
    }
    let readable = std::mem::take(&mut found.index);
    let previous_last = found.header.map(|header| header.previous_last);
    found.index = with_damaged(&readable, known, name, previous_last, proof.position);
    let is_readable = |entry: &&IndexEntry| readable.at(entry.position).is_some();
    found.damaged =
        found.index.entries.iter().filter(|entry| !is_readable(entry)).map(|entry| entry.position).collect();
    Ok(found)
}

/// The length of a file without the zeros that its writer has written ahead behind the last record, which ends at `end`.
fn end_of_content(file: &File, end: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut rest = vec![0; 64 * 1024];
    let mut at = end.min(length);
    while at < length {
        let bytes = &mut rest[..(length - at).min(64 * 1024) as usize];
        // What cannot be read may be anything.
        if file.read_exact_at(bytes, at).is_err() || bytes.iter().any(|byte| *byte != 0) {
            return Ok(length);
        }
        at += bytes.len() as u64;
    }
    Ok(end.min(length))
}

/// How many events a hole may stand for. A segment cannot hold more, so a wider one is none.
const WIDEST_HOLE: u64 = 1 << 21;

/// Adds the events that are known to have been there and are not. Only a segment of generation 0 has every position
/// between the end of the one before it and its own.
fn with_damaged(readable: &Index, known: &Index, name: Name, previous_last: Option<u64>, last: u64) -> Index {
    let mut index = Index::of_bytes(readable.log_bytes);
    // What the file says comes last, so that it is what is kept.
    let mut entries = BTreeMap::new();
    entries.extend(known.entries.iter().map(|entry| (entry.position, (*entry, known.kind(entry)))));
    entries.extend(readable.entries.iter().map(|entry| (entry.position, (*entry, readable.kind(entry)))));
    let end = entries.last_key_value().map_or(0, |(end, _)| *end);
    if last > end.max(previous_last.unwrap_or(0)) {
        let accepted_ms = entries.last_key_value().map_or(0, |(_, (entry, _))| entry.accepted_ms);
        entries.insert(last, (IndexEntry::unknown(last, accepted_ms), ""));
    }
    let (mut expected, mut accepted_ms) = (previous_last.map(|last| last + 1), 0);
    for (position, (entry, kind)) in entries {
        if let Some(expected) =
            expected.filter(|expected| name.generation == 0 && position - (*expected).min(position) < WIDEST_HOLE)
        {
            let accepted_ms = if accepted_ms == 0 { entry.accepted_ms } else { accepted_ms };
            (expected..position).for_each(|hole| index.push_entry(IndexEntry::unknown(hole, accepted_ms), ""));
        }
        index.push_entry(entry, kind);
        (expected, accepted_ms) = (Some(position + 1), entry.accepted_ms);
    }
    index
}

/// Writes the header of a new segment.
pub(super) fn write_header(file: &File, header: Header) -> io::Result<()> {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&MAJOR.to_le_bytes());
    bytes[10..12].copy_from_slice(&MINOR.to_le_bytes());
    bytes[16..24].copy_from_slice(&header.previous_last.to_le_bytes());
    bytes[24..32].copy_from_slice(&header.through.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..HEADER - 4]);
    bytes[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&bytes, 0)
}

/// What a segment says of itself; `None` where the header cannot be read.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] for a segment of another major version.
pub(super) fn read_header(file: &File) -> io::Result<Option<Header>> {
    let mut header = [0; HEADER];
    if file.read_exact_at(&mut header, 0).is_err() {
        return Ok(None);
    }
    let (content, crc) = header.split_at(HEADER - 4);
    if crc32fast::hash(content).to_le_bytes() != crc || &header[..8] != MAGIC {
        return Ok(None);
    }
    let major = u16::from_le_bytes([header[8], header[9]]);
    if major != MAJOR {
        return Err(io::Error::new(io::ErrorKind::Unsupported, major.to_string()));
    }
    let number = |at| u64_at(&header, at).filter(|number| *number <= i64::MAX as u64);
    Ok(number(16).zip(number(24)).map(|(previous_last, through)| Header { previous_last, through }))
}

/// Makes a new segment's file, durable with its name. It gets its header when it is known what lies before it.
pub(super) fn create(name: Name, dir: &Path) -> io::Result<File> {
    let path = name.log(dir);
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    if let Err(error) = file.sync_all().and_then(|()| super::directory::sync(dir)) {
        drop(fs::remove_file(&path));
        return Err(error);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_stand_for() {
        let name = Name { first: 7, last: 12, generation: 2 };
        assert_eq!(Name::parse("events-00000007-00000012-2.log"), Some((name, "log")));
        assert_eq!(Name::parse(name.index(Path::new("")).to_str().unwrap()), Some((name, "idx")));
        for other in ["events-7-8.log", "events-9-8-0.log", "state.db", "events-a-8-0.log", "events-7-8-0-1.log"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
        let of = |first, last, generation| Name { first, last, generation };
        assert!(name.replaces(of(7, 7, 0)) && name.replaces(of(8, 9, 5)) && name.replaces(of(7, 12, 1)));
        assert!(!name.replaces(name) && !name.replaces(of(6, 7, 0)) && !name.replaces(of(7, 12, 3)));
    }

    #[test]
    fn another_major_version_is_refused_and_a_damaged_header_is_not() {
        let file = tempfile::tempfile().unwrap();
        let header = Header { previous_last: 41, through: 99 };
        write_header(&file, header).unwrap();
        assert_eq!(read_header(&file).unwrap(), Some(header));
        file.write_all_at(&[9], 17).unwrap();
        assert_eq!(read_header(&file).unwrap(), None);
    }
}
