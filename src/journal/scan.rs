//! Reading a segment's file from its beginning to its end, past whatever cannot be read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::record::{self, View};

/// How much is read at a time.
const BLOCK: usize = 1024 * 1024;

/// What cannot be read is stepped over in pieces of this size: a page of the system's cache.
const PAGE: usize = 4096;

/// Longer records are not written, so no damaged length makes a scan hold more than this in memory.
const LONGEST: usize = 64 * 1024 * 1024;

/// What lies in a segment's file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scanned<'a> {
    /// A record whose checksum holds, and where it begins.
    Record { offset: u64, record: View<'a> },
    /// Bytes that are no record.
    Unreadable(Range<u64>),
}

/// Calls `each` with all from `begin` on, where the first record is expected, in order. Damage is never an error: the records behind it are
/// found by their magic number.
///
/// # Errors
/// When the length of the file cannot be read.
pub(super) fn scan(file: &File, begin: u64, mut each: impl FnMut(Scanned<'_>)) -> io::Result<()> {
    let end = file.metadata()?.len();
    let mut window = Window { file, end, begin, at: 0, bytes: Vec::new() };
    let mut unreadable_from = None;
    while window.offset() < window.end {
        let offset = window.offset();
        match window.record() {
            Some(record) => {
                if let Some(from) = unreadable_from.take() {
                    each(Scanned::Unreadable(from..offset));
                }
                each(Scanned::Record { offset, record });
                let length = record.length;
                window.advance(length);
            }
            None => {
                unreadable_from.get_or_insert(offset);
                window.advance_to_magic();
            }
        }
    }
    if let Some(from) = unreadable_from {
        each(Scanned::Unreadable(from..window.end));
    }
    Ok(())
}

/// A part of the file in memory.
struct Window<'a> {
    file: &'a File,
    end: u64,
    /// The offset of the first byte in memory.
    begin: u64,
    bytes: Vec<u8>,
    /// How many of them have been looked at. They are dropped when more is read, not one record at a time.
    at: usize,
}

impl Window<'_> {
    fn offset(&self) -> u64 {
        self.begin + self.at as u64
    }

    fn record(&mut self) -> Option<View<'_>> {
        self.fill(record::HEADER);
        let length = record::announced(&self.bytes[self.at..]).filter(|length| *length <= LONGEST)?;
        self.fill(length);
        record::decode(&self.bytes[self.at..])
    }

    fn advance(&mut self, length: usize) {
        self.at = (self.at + length).min(self.bytes.len());
    }

    fn advance_to_magic(&mut self) {
        self.fill(PAGE);
        // The last bytes may be the beginning of one.
        let rest = &self.bytes[self.at..];
        let next = record::next_magic(rest, 1).unwrap_or(rest.len().saturating_sub(3).max(1));
        self.advance(next);
    }

    /// Reads on until `wanted` bytes are there, or the end of the file.
    fn fill(&mut self, wanted: usize) {
        while self.bytes.len() - self.at < wanted {
            self.bytes.drain(..self.at);
            self.begin += self.at as u64;
            self.at = 0;
            let filled = self.bytes.len();
            let from = self.begin + filled as u64;
            let left = self.end.saturating_sub(from).min(BLOCK as u64) as usize;
            if left == 0 {
                return;
            }
            self.bytes.resize(filled + left, 0);
            if self.file.read_exact_at(&mut self.bytes[filled..], from).is_err() {
                read_by_pages(self.file, &mut self.bytes[filled..], from);
            }
        }
    }
}

/// Pages that cannot be read are left as zeros, which are no record.
fn read_by_pages(file: &File, bytes: &mut [u8], at: u64) {
    for (page, number) in bytes.chunks_mut(PAGE).zip(0_u64..) {
        if file.read_exact_at(page, at + number * PAGE as u64).is_err() {
            page.fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Entry;
    use crate::journal::segment;
    use proptest::prelude::*;

    fn file(records: &[Vec<u8>]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0; segment::HEADER], 0).unwrap();
        file.write_all_at(&records.concat(), segment::HEADER as u64).unwrap();
        file
    }

    fn record(position: u64, payload: usize) -> Vec<u8> {
        let (id, key, kind) = ([7; 16], "key".to_owned(), "kind".to_owned());
        let entry = Entry { id, key, kind, accepted_ms: 0, payload: vec![b'x'; payload] };
        let mut bytes = Vec::new();
        record::encode(&mut bytes, position, false, 1, &entry);
        bytes
    }

    fn positions(file: &File) -> (Vec<u64>, Vec<Range<u64>>) {
        let (mut positions, mut unreadable) = (Vec::new(), Vec::new());
        scan(file, segment::HEADER as u64, |found| match found {
            Scanned::Record { record, .. } => positions.push(record.position),
            Scanned::Unreadable(range) => unreadable.push(range),
        })
        .unwrap();
        (positions, unreadable)
    }

    proptest! {
        /// Whatever bytes are overwritten, every record that they do not touch is found.
        #[test]
        fn damage_costs_what_it_hits(sizes in prop::collection::vec(0usize..9_000, 1..60), at: u32, length in 1usize..9_000) {
            let records: Vec<_> = sizes.iter().zip(1..).map(|(size, position)| record(position, *size)).collect();
            let file = file(&records);
            prop_assert_eq!(positions(&file), ((1..=sizes.len() as u64).collect(), vec![]));
            let end = file.metadata().unwrap().len();
            let from = segment::HEADER as u64 + u64::from(at) % (end - segment::HEADER as u64);
            let to = (from + length as u64).min(end);
            let mut junk = record(1, 0);
            junk.resize((to - from) as usize, 0xAA);
            file.write_all_at(&junk[..(to - from) as usize], from).unwrap();
            let mut begin = segment::HEADER as u64;
            let mut expected = Vec::new();
            for (record, position) in records.iter().zip(1_u64..) {
                let record_end = begin + record.len() as u64;
                if record_end <= from || begin >= to {
                    expected.push(position);
                }
                begin = record_end;
            }
            let found = positions(&file).0;
            prop_assert!(expected.iter().all(|position| found.contains(position)), "{:?} of {:?}", found, expected);
        }
    }

    #[test]
    fn a_torn_record_at_the_end_is_unreadable() {
        let mut torn = record(2, 500);
        torn.truncate(300);
        let whole = record(1, 100);
        let file = file(&[whole.clone(), torn]);
        let begin = (segment::HEADER + whole.len()) as u64;
        let unreadable = begin..begin + 300;
        assert_eq!(positions(&file), (vec![1], Vec::from([unreadable])));
    }
}
