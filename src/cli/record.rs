//! The record of `send`: what was sent and what was answered, kept so that it outlives the sender's crash.
//!
//! One JSON line for each delivery before it is sent for the first time, its intent, and one after the last try, its
//! outcome; both have its number. A line is one write to the system, and nothing is held back in between, so that
//! `kill -9` at any moment leaves every intent whose delivery may have arrived, and at most a last line that is cut
//! off. An intent without an outcome may have arrived or not. Not promised: that a crash of the machine keeps it.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::Failure;
use super::sendbird::Outcome;
use crate::sendbird::sample::Sample;

/// How much is read at a time when looking for the end of the last whole line.
const BLOCK: usize = 64 * 1024;

/// An open record.
pub(super) struct Record<F = File> {
    file: F,
    /// The number of the last intent.
    last: u64,
    /// After an error nothing more is written: a line behind one that is cut off could not be read.
    failed: bool,
}

#[derive(Serialize)]
struct Intent<'a> {
    n: u64,
    category: &'a str,
    key: &'a str,
    /// The delivery; as text if it is no JSON, which only `--file` can bring about.
    body: Value,
}

#[derive(Serialize)]
struct Concluded<'a> {
    n: u64,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

impl Record {
    /// Opens a file to append to; of one that a killed sender left, the last line goes if it is cut off. Numbers start
    /// over: an outcome belongs to the last intent of its number.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let failed =
            |error: io::Error| Failure::Usage(format!("cannot write the record to {}: {error}", path.display()));
        let mut file = File::options().create(true).read(true).append(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.display();
                return Err(Failure::Usage(format!("expected {path} to be free, but another `send` records to it")));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // What is no file, such as a pipe, has no past.
        if file.metadata().map_err(failed)?.is_file() {
            cut_to_whole_lines(&mut file).map_err(failed)?;
        }
        Ok(Self { file, last: 0, failed: false })
    }
}

impl<F: Write> Record<F> {
    /// Writes down that a delivery is about to be sent, and returns its number.
    pub(super) fn intend(&mut self, sample: &Sample) -> io::Result<u64> {
        let n = self.last + 1;
        let text = || String::from_utf8_lossy(&sample.body).into_owned().into();
        let body = serde_json::from_slice(&sample.body).unwrap_or_else(|_not_json| text());
        self.write(&Intent { n, category: sample.category.label(), key: &sample.key, body })?;
        self.last = n;
        Ok(n)
    }

    /// Writes down what became of it.
    pub(super) fn conclude(&mut self, n: u64, outcome: &Outcome) -> io::Result<()> {
        self.write(&Concluded { n, outcome })
    }

    fn write(&mut self, line: &impl Serialize) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier line could not be written"));
        }
        let mut line = serde_json::to_vec(line)?;
        line.push(b'\n');
        let written = self.file.write_all(&line);
        self.failed = written.is_err();
        written
    }
}

fn cut_to_whole_lines(file: &mut File) -> io::Result<()> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let length = end;
    let mut block = vec![0; BLOCK];
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let block = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length { file.set_len(end) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sendbird::category::Category;

    fn sample(body: &'static str) -> Sample {
        Sample { category: Category::DirectCallDial, key: "k".into(), body: body.into() }
    }

    fn outcome() -> Outcome {
        Outcome { status: Some(200), answer: None, tries: 2, took: Duration::from_millis(3), error: None }
    }

    /// Takes so many writes, and then no more.
    struct Disk {
        writes: Vec<Vec<u8>>,
        left: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            self.writes.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_is_one_write() {
        let mut record = Record { file: Disk { writes: Vec::new(), left: 4 }, last: 0, failed: false };
        assert_eq!(record.intend(&sample(r#"{ "a": 1 }"#)).expect("written"), 1);
        assert_eq!(record.intend(&sample("no json")).expect("written"), 2);
        record.conclude(2, &outcome()).expect("written");
        record.conclude(1, &outcome()).expect("written");
        let lines: Vec<_> = record.file.writes.iter().map(|line| String::from_utf8_lossy(line)).collect();
        assert_eq!(
            lines,
            [
                "{\"n\":1,\"category\":\"direct_call:dial\",\"key\":\"k\",\"body\":{\"a\":1}}\n",
                "{\"n\":2,\"category\":\"direct_call:dial\",\"key\":\"k\",\"body\":\"no json\"}\n",
                "{\"n\":2,\"status\":200,\"answer\":null,\"tries\":2,\"ms\":3.0}\n",
                "{\"n\":1,\"status\":200,\"answer\":null,\"tries\":2,\"ms\":3.0}\n",
            ]
        );
    }

    #[test]
    fn after_a_failed_write_nothing_more_is_written() {
        let mut record = Record { file: Disk { writes: Vec::new(), left: 1 }, last: 0, failed: false };
        record.intend(&sample("{}")).expect("written");
        record.intend(&sample("{}")).expect_err("a full disk");
        record.file.left = 10;
        record.conclude(1, &outcome()).expect_err("it has failed before");
        assert_eq!(record.file.writes.len(), 1);
    }

    #[test]
    fn what_a_killed_sender_cut_off_is_taken_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("record");
        let long = "x".repeat(3 * BLOCK);
        for (found, kept) in [
            (String::new(), String::new()),
            ("{\"n".into(), String::new()),
            ("a\n".into(), "a\n".into()),
            ("a\nb".into(), "a\n".into()),
            (long.clone(), String::new()),
            (format!("a\n{long}"), "a\n".into()),
            (format!("{long}\n"), format!("{long}\n")),
        ] {
            std::fs::write(&path, &found).expect("written");
            let mut record = Record::open(&path).expect("a record");
            assert!(matches!(Record::open(&path), Err(Failure::Usage(_))), "it is taken");
            record.intend(&sample("{}")).expect("written");
            drop(record);
            let line = "{\"n\":1,\"category\":\"direct_call:dial\",\"key\":\"k\",\"body\":{}}\n";
            assert_eq!(std::fs::read_to_string(&path).expect("read"), kept + line);
        }
    }
}
