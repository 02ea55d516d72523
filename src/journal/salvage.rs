//! `journal salvage`: writes all that is readable of a damaged journal into a fresh one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use super::admin::AdminError;
use super::chain::{Chain, Released};
use super::index::{Index, IndexEntry};
use super::open::find_chain;
use super::segment::{self, Header, Name};
use super::{Filter, JournalAdmin, OpenError, Record, Row, directory, progress, record, sqlite, state};

/// The size at which a segment of the new journal is closed.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// What was written into the new journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Events.
    pub events: u64,
    /// Events that cannot be read, by position.
    pub damaged: Vec<u64>,
}

impl JournalAdmin {
    /// Writes all that is readable into a new journal in `to`, which must not hold one: events with their positions,
    /// what sinks have published, dead letters, resends. No bridge may run on either directory.
    ///
    /// # Errors
    /// [`OpenError::InUse`], and when a file cannot be read or written.
    pub fn salvage(dir: &Path, to: &Path) -> Result<Salvaged, AdminError> {
        let _from = directory::lock(dir)?;
        let _to = directory::lock(to)?;
        let failed = OpenError::directory(to);
        if to.join(sqlite::FILE).exists()
            || fs::read_dir(to).map_err(failed)?.flatten().any(|entry| is_event_file(&entry.path()))
        {
            let message = "expected an empty directory, but found a journal";
            return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, message)).into());
        }
        let connection = state::salvage_into(dir, to)?;
        let (_, proof) = progress::load_proof(&connection).unwrap_or_default();
        let found = find_chain(dir, &connection, Released::default)?;
        let chain = Arc::new(Chain::new(dir, found.segments, found.last, false));
        let mut salvage = Salvage { to, number: 0, open: None, salvaged: Salvaged::default() };
        let mut reader = super::Reader::new(chain);
        reader.all_after(0, &Filter::default(), |rows| {
            for row in rows {
                match row {
                    Row::Intact(record) => salvage.add(&record).map_err(failed)?,
                    Row::Damaged { position, .. } => salvage.salvaged.damaged.push(position),
                }
            }
            Ok::<(), AdminError>(())
        })?;
        salvage.finish().map_err(failed)?;
        // Of no segment of the new journal; its position is not used twice all the same.
        let position = segment::Proof { offset: 0, position: proof.position };
        progress::store_proof(&connection, 0, position)?;
        for (name, number) in found.ids.iter().zip(salvage.number + 1..) {
            // Only the ids count, so any number will do.
            fs::copy(name.ids(dir), Name::new(number).ids(to)).map_err(failed)?;
        }
        directory::sync(to).map_err(failed)?;
        Ok(salvage.salvaged)
    }
}

fn is_event_file(path: &Path) -> bool {
    path.file_name().and_then(|file| file.to_str()).and_then(Name::parse).is_some()
}

struct Salvage<'a> {
    to: &'a Path,
    number: u64,
    open: Option<(Name, io::BufWriter<File>, Index)>,
    salvaged: Salvaged,
}

impl Salvage<'_> {
    fn add(&mut self, record: &Record) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|(.., index)| index.log_bytes >= SEGMENT_BYTES) {
            self.close()?;
        }
        if self.open.is_none() {
            self.number += 1;
            // Of a higher generation: what lies between its positions is not missing.
            let name = Name { generation: 1, ..Name::new(self.number) };
            drop(segment::create(name, self.to)?);
            let file = File::options().append(true).open(name.log(self.to))?;
            segment::write_header(&File::options().write(true).open(name.log(self.to))?, Header::default())?;
            let index = Index::of_bytes(segment::HEADER as u64);
            self.open = Some((name, io::BufWriter::new(file), index));
        }
        let Some((_, out, index)) = &mut self.open else { return Ok(()) };
        let mut bytes = Vec::new();
        record::encode_record(&mut bytes, record);
        let entry = IndexEntry {
            position: record.position,
            offset: index.log_bytes as u32,
            length: bytes.len() as u32,
            kind: 0,
            accepted_ms: record.accepted_ms,
            key_hash: record.key_hash,
            id: record.id,
        };
        out.write_all(&bytes)?;
        index.push_entry(entry, &record.kind);
        index.log_bytes += bytes.len() as u64;
        self.salvaged.events += 1;
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        let Some((name, out, index)) = self.open.take() else { return Ok(()) };
        // What lies before its first event is not known: nothing is said of it.
        let header = Header { previous_last: 0, through: index.entries.last().map_or(0, |entry| entry.position) };
        segment::write_header(&File::options().write(true).open(name.log(self.to))?, header)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        index.write(&name.index(self.to))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.close()?;
        directory::sync(self.to)
    }
}
