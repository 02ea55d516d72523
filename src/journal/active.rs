//! The segment that is written to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::segment::Segment;

/// How many zeros are written behind records that make the file longer; a sixteenth of a small segment. The records that
/// follow overwrite them, and their fsyncs do not have to write the length of the file too, which costs as much as the
/// events.
const ZEROS: u64 = 256 * 1024;

/// Zeros are written in pieces of this size. Otherwise the system would cache them in larger pieces, and count the whole of a
/// piece as written for each commit in it.
const PAGE: usize = 4096;

/// The newest segment, open for writing.
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    file: File,
    /// Where the next record begins.
    length: u64,
    /// The length of the file: what lies behind `length` is zeros.
    file_length: u64,
}

impl Active {
    /// Takes a segment's file of this length.
    pub(super) fn new(segment: Arc<Segment>, file: File, length: u64) -> Self {
        Self { segment, file, length, file_length: length }
    }

    /// Where the next record begins.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Writes records, and fsyncs them. After an error the file may hold any part of them.
    ///
    /// # Errors
    /// When they cannot be written or fsynced. For zeros there need not be room.
    pub(super) fn append(&mut self, records: &[u8], segment_bytes: u64) -> io::Result<()> {
        self.file.write_all_at(records, self.length)?;
        let end = self.length + records.len() as u64;
        if end > self.file_length {
            self.file_length = end;
            self.write_zeros(end + ZEROS.min(segment_bytes / 16))?;
        }
        self.file.sync_data()?;
        self.length = end;
        Ok(())
    }

    /// Makes the file longer by zeros, up to the last page that ends before `end`.
    fn write_zeros(&mut self, end: u64) -> io::Result<()> {
        while self.file_length < end / PAGE as u64 * PAGE as u64 {
            let zeros = &[0; PAGE][self.file_length as usize % PAGE..];
            match self.file.write_all_at(zeros, self.file_length) {
                Ok(()) => self.file_length += zeros.len() as u64,
                Err(error) if is_full(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Cuts off all behind the last record.
    ///
    /// # Errors
    /// When the disk refuses it.
    pub(super) fn truncate(&mut self) -> io::Result<()> {
        self.file_length = self.length;
        self.file.set_len(self.length)
    }

    /// Whether so many bytes can be written and fsynced.
    ///
    /// # Errors
    /// When they cannot.
    pub(super) fn probe(&mut self, bytes: usize) -> io::Result<()> {
        let written = self.file.write_all_at(&vec![0; bytes], self.length).and_then(|()| self.file.sync_data());
        self.truncate()?;
        written
    }
}

/// Whether the disk has no room left.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
