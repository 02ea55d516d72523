//! The one door to stored events.
//!
//! Everybody who reads events reads them here: publishing, resends, the feed, `reconcile`, checks and copies. Each event
//! is checked against its CRC, and what cannot be read is given as damaged, by its position; it is never the end of
//! anything, nor an error.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::chain::Chain;
use super::index::{Index, IndexEntry, Lookup};
use super::record::{self, Row};
use super::segment::Segment;
use crate::domain::kind;

/// How many entries one batch looks at, however few of them a filter lets through.
const SCAN: usize = 10_000;

/// The most that is read from a file at once.
const BLOCK: usize = 1024 * 1024;

/// Why a file of the journal cannot be read, other than by damage; to be tried later.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}")]
pub struct ReadError {
    path: PathBuf,
    source: io::Error,
}

impl ReadError {
    pub(super) fn of_state(dir: &std::path::Path, error: rusqlite::Error) -> Self {
        Self { path: dir.join(super::sqlite::FILE), source: io::Error::other(error) }
    }
}

/// Which events are wanted; `None` means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Filter {
    /// Only this event.
    pub id: Option<[u8; 16]>,
    /// Only this key.
    pub key: Option<String>,
    /// Only this type.
    pub kind: Option<String>,
    /// Only what was accepted at this time or later, in Unix milliseconds.
    pub since_ms: Option<i64>,
    /// Only what was accepted before this time, in Unix milliseconds.
    pub until_ms: Option<i64>,
}

/// How much one batch may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// At most so many rows.
    pub rows: usize,
    /// No more once so many bytes are reached; the row that reaches them is included.
    pub bytes: usize,
}

/// Rows in order of position.
#[derive(Debug, Default)]
pub struct Batch {
    /// The rows that the filter let through. Without a filter, each event that was stored and is still kept has one.
    pub rows: Vec<Row>,
    /// Everything up to here has been looked at; the next batch goes on after it.
    pub through: u64,
}

/// Reads a journal; each thread has its own, and making one opens nothing.
#[derive(Debug)]
pub struct Reader {
    chain: Arc<Chain>,
    /// The segment that was read last.
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    segment: Arc<Segment>,
    /// `None` if the file is missing.
    file: Option<File>,
    /// Of a sealed segment: all its entries, once they are needed, or what single ones are looked up in.
    index: Option<Index>,
    lookup: Option<Lookup>,
}

/// The entries of one segment that a batch takes.
struct Selection {
    entries: Vec<IndexEntry>,
    through: u64,
    looked_at: usize,
}

impl Reader {
    pub(super) fn new(chain: Arc<Chain>) -> Self {
        Self { chain, current: None }
    }

    /// The durable rows after `position`, oldest first.
    ///
    /// # Errors
    /// When a file cannot be opened; damage is no error.
    pub fn after(&mut self, position: u64, limits: Limits, filter: &Filter) -> Result<Batch, ReadError> {
        // Before the segments: what is appended meanwhile is left to the next batch.
        let last = self.chain.last();
        let mut batch = Batch { rows: Vec::new(), through: position };
        let (mut bytes, mut looked_at) = (0, 0);
        let mut segments = self.chain.segments_from(position.saturating_add(1));
        while let Some(segment) = segments.pop_front() {
            let Some(current) = self.load(&segment)? else {
                segments = self.chain.segments_from(batch.through.saturating_add(1));
                continue;
            };
            let wanted =
                current.with_index(|index| select(index, batch.through, last, filter, limits.rows - batch.rows.len()));
            looked_at += wanted.looked_at;
            let before = batch.rows.len();
            let taken = current.read(&wanted.entries, limits.bytes, &mut bytes, |row| {
                if filter.matches(&row) {
                    batch.rows.push(row);
                }
            });
            self.note_damaged(&batch.rows[before..]);
            batch.through = match wanted.entries.get(taken) {
                Some(next) => next.position - 1,
                None => wanted.through.max(batch.through),
            };
            if batch.rows.len() >= limits.rows || bytes >= limits.bytes || looked_at >= SCAN {
                return Ok(batch);
            }
        }
        batch.through = batch.through.max(last);
        Ok(batch)
    }

    /// All durable rows after `position`, oldest first; `each` is called with some at a time. Returns the last position
    /// that was looked at.
    ///
    /// # Errors
    /// When a file cannot be opened, and that of `each`.
    pub(super) fn all_after<E: From<ReadError>>(
        &mut self,
        mut position: u64,
        filter: &Filter,
        mut each: impl FnMut(Vec<Row>) -> Result<(), E>,
    ) -> Result<u64, E> {
        const LIMITS: Limits = Limits { rows: 500, bytes: 8 * 1024 * 1024 };
        loop {
            let batch = self.after(position, LIMITS, filter)?;
            if batch.through == position {
                return Ok(position);
            }
            position = batch.through;
            each(batch.rows)?;
        }
    }

    /// The row at `position`, if it is kept.
    ///
    /// # Errors
    /// When a file cannot be opened; damage is no error.
    pub fn at(&mut self, position: u64) -> Result<Option<Row>, ReadError> {
        let row = self.look_up(position, |current, entry| current.read_one(entry))?;
        self.note_damaged(row.as_slice());
        Ok(row)
    }

    /// The row of an entry of this segment; `None` if it has been released or compacted meanwhile.
    ///
    /// # Errors
    /// When the file cannot be opened; damage is no error.
    pub(super) fn row_in(&mut self, segment: &Arc<Segment>, entry: &IndexEntry) -> Result<Option<Row>, ReadError> {
        let row = self.open(segment)?.map(|current| current.read_one(entry));
        self.note_damaged(row.as_slice());
        Ok(row)
    }

    fn note_damaged(&self, rows: &[Row]) {
        let Some(current) = &self.current else { return };
        for row in rows {
            if let Row::Damaged { position, .. } = row {
                self.chain.note_damaged_in(&current.segment, *position);
            }
        }
    }

    /// What is known of the event at `position` without reading it.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub(super) fn entry(&mut self, position: u64) -> Result<Option<IndexEntry>, ReadError> {
        self.look_up(position, |_, entry| *entry)
    }

    /// The first event after `position` of a kind that is wanted, without reading it.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub(super) fn first_entry(
        &mut self,
        position: u64,
        wants: impl Fn(&str) -> bool,
    ) -> Result<Option<IndexEntry>, ReadError> {
        for segment in self.chain.segments_from(position.saturating_add(1)) {
            let Some(current) = self.load(&segment)? else { continue };
            let found = current.with_index(|index| {
                let wanted: Vec<bool> = index.kinds.iter().map(|(kind, _)| wants(kind)).collect();
                let is_wanted = |entry: &&IndexEntry| wanted.get(entry.kind as usize).copied().unwrap_or(true);
                index.entries[index.after(position)..].iter().find(is_wanted).copied()
            });
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn look_up<T>(
        &mut self,
        position: u64,
        found: impl Fn(&Current, &IndexEntry) -> T,
    ) -> Result<Option<T>, ReadError> {
        while let Some(segment) = self.chain.segment_at(position) {
            let Some(current) = self.open(&segment)? else { continue };
            if let Some(entry) = current.look_up(position) {
                return Ok(Some(found(current, &entry)));
            }
            // It is not kept, or a part of the index is damaged.
            let Some(current) = self.load(&segment)? else { continue };
            let entry = current.with_index(|index| index.at(position).copied());
            return Ok(entry.map(|entry| found(current, &entry)));
        }
        Ok(None)
    }

    /// The oldest position kept, and the newest; zeros where there is none.
    pub fn ends(&self) -> (u64, u64) {
        (self.chain.first(), self.chain.last())
    }

    /// Opens a segment, unless it is open; `None` if it has been released or compacted since it was looked up.
    fn open(&mut self, segment: &Arc<Segment>) -> Result<Option<&mut Current>, ReadError> {
        if self.current.as_ref().is_none_or(|current| !Arc::ptr_eq(&current.segment, segment)) {
            let failed = |source| ReadError { path: segment.name.log(&segment.dir), source };
            let file = segment.file().map_err(failed)?;
            if file.is_none() && !self.chain.is_current(segment).map_err(failed)? {
                return Ok(None);
            }
            let (segment, lookup) = (Arc::clone(segment), segment.lookup());
            self.current = Some(Current { segment, file, index: None, lookup });
        }
        Ok(self.current.as_mut())
    }

    /// The same, with all its entries.
    fn load(&mut self, segment: &Arc<Segment>) -> Result<Option<&Current>, ReadError> {
        let Some(current) = self.open(segment)? else { return Ok(None) };
        if current.index.is_none() && segment.is_sealed() {
            let failed = |source| ReadError { path: segment.name.log(&segment.dir), source };
            let (index, whole) = segment.load().map_err(failed)?;
            current.index = Some(index);
            if !whole {
                if !self.chain.is_current(segment).map_err(failed)? {
                    self.current = None;
                    return Ok(None);
                }
                self.chain.report_damage(segment);
            }
        }
        Ok(self.current.as_ref())
    }
}

impl Current {
    fn look_up(&mut self, position: u64) -> Option<IndexEntry> {
        match (&self.index, &mut self.lookup) {
            (None, Some(lookup)) => lookup.find(position),
            _ => self.with_index(|index| index.at(position).copied()),
        }
    }

    fn with_index<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        match (&self.index, self.segment.entries()) {
            (Some(index), _) => look(index),
            (None, Some(index)) => look(&index),
            (None, None) => look(&Index::default()),
        }
    }

    /// Gives the rows of `entries`, until so many bytes are reached; returns for how many entries it did.
    fn read(&self, entries: &[IndexEntry], most_bytes: usize, bytes: &mut usize, mut each: impl FnMut(Row)) -> usize {
        let (mut taken, mut block) = (0, Vec::new());
        while taken < entries.len() && *bytes < most_bytes {
            let run = run(&entries[taken..], most_bytes - *bytes);
            let begin = u64::from(run[0].offset);
            let length = run.iter().map(|entry| entry.length as usize).sum();
            block.resize(length, 0);
            let is_read = self.file.as_ref().is_some_and(|file| file.read_exact_at(&mut block, begin).is_ok());
            let mut at = 0;
            for entry in run {
                // What one read cannot give, reading each record may.
                let row =
                    is_read.then(|| decoded(&block[at..], entry)).flatten().unwrap_or_else(|| self.read_one(entry));
                at += entry.length as usize;
                *bytes += entry.length as usize;
                each(row);
            }
            taken += run.len();
        }
        taken
    }

    fn read_one(&self, entry: &IndexEntry) -> Row {
        let mut bytes = vec![0; entry.length as usize];
        let is_read = entry.length > 0
            && self.file.as_ref().is_some_and(|file| file.read_exact_at(&mut bytes, entry.offset.into()).is_ok());
        is_read.then(|| decoded(&bytes, entry)).flatten().unwrap_or_else(|| self.damaged(entry))
    }

    fn damaged(&self, entry: &IndexEntry) -> Row {
        let is_known = entry.id != [0; 16];
        // Each index numbers the kinds by itself: one that was read from the rebuilt segment may do it in another order.
        let kind = match &self.index {
            Some(index) => index.kind(entry).to_owned(),
            None => self.segment.kind(entry),
        };
        Row::Damaged {
            position: entry.position,
            key_hash: is_known.then_some(entry.key_hash),
            id: is_known.then_some(entry.id),
            kind: (!kind.is_empty()).then_some(kind),
        }
    }
}

/// The entries at the beginning that lie one after the other in the file, one at least.
fn run(entries: &[IndexEntry], most_bytes: usize) -> &[IndexEntry] {
    let (mut length, mut bytes) = (0, 0);
    for (entry, before) in entries.iter().zip(std::iter::once(None).chain(entries.iter().map(Some))) {
        let follows = before.is_none_or(|before| before.offset.checked_add(before.length) == Some(entry.offset));
        if length > 0 && (!follows || bytes >= BLOCK.min(most_bytes)) {
            break;
        }
        length += 1;
        bytes += entry.length as usize;
    }
    &entries[..length]
}

fn decoded(bytes: &[u8], entry: &IndexEntry) -> Option<Row> {
    let view = record::decode(bytes).filter(|view| view.position == entry.position)?;
    Some(Row::Intact(view.to_record()))
}

fn select(index: &Index, after: u64, last: u64, filter: &Filter, rows: usize) -> Selection {
    let is_of_type = |kind: &String| filter.kind.as_deref().is_none_or(|wanted| kind::type_of(kind) == wanted);
    let of_type: Vec<bool> = index.kinds.iter().map(|(kind, _)| is_of_type(kind)).collect();
    let key_hash = filter.key.as_ref().map(|key| record::hash(key.as_bytes()));
    let mut selection = Selection { entries: Vec::new(), through: after, looked_at: 0 };
    for entry in &index.entries[index.after(after)..] {
        if entry.position > last || selection.entries.len() >= rows || selection.looked_at >= SCAN {
            return selection;
        }
        selection.looked_at += 1;
        selection.through = entry.position;
        let is_wanted = (filter.kind.is_none() || of_type.get(entry.kind as usize).copied().unwrap_or_default())
            && key_hash.is_none_or(|hash| hash == entry.key_hash)
            && filter.id.is_none_or(|id| id == entry.id)
            && filter.since_ms.is_none_or(|since| entry.accepted_ms >= since)
            && filter.until_ms.is_none_or(|until| entry.accepted_ms < until);
        if is_wanted {
            selection.entries.push(*entry);
        }
    }
    selection
}

impl Filter {
    /// What the hash of the key cannot tell.
    fn matches(&self, row: &Row) -> bool {
        match (row, &self.key) {
            (Row::Intact(record), Some(key)) => record.key == *key,
            _ => true,
        }
    }
}
