//! `journal verify`: reads everything and names what is damaged.

use std::time::Duration;

use super::admin::AdminError;
use super::index::Index;
use super::{Filter, JournalAdmin, Row, admin, progress, replays};

/// How long a running bridge may take to make the index of a segment that is full.
const SEALED_WITHIN: Duration = Duration::from_secs(2);

/// Something wrong with a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An event that cannot be read, or whose checksum does not hold.
    Damaged {
        /// Its position.
        position: u64,
        /// Its id, where that is still known.
        id: Option<[u8; 16]>,
        /// Its type, where that is still known.
        kind: Option<String>,
    },
    /// Positions that no file holds, though nothing says that they were released.
    Missing {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// A dead letter whose event is damaged.
    DeadLetter {
        /// The sink.
        sink: String,
        /// The event's position.
        position: u64,
        /// Its id, where that is still known.
        id: Option<[u8; 16]>,
    },
    /// An index file, which is rebuilt by the bridge.
    Index(String),
    /// The state file, in the engine's words.
    State(String),
}

impl JournalAdmin {
    /// Reads every event and every dead letter, and checks the files' structure; names all that is wrong, and returns
    /// how many events are intact.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn verify(&self, mut found: impl FnMut(Fault)) -> Result<u64, AdminError> {
        let mut intact = 0;
        self.missing(&mut found)?;
        self.reader().all_after(0, &Filter::default(), |rows| {
            for row in rows {
                match row {
                    Row::Intact(_) => intact += 1,
                    Row::Damaged { position, id, kind, .. } => found(Fault::Damaged { position, id, kind }),
                }
            }
            Ok::<(), AdminError>(())
        })?;
        self.verify_state(&mut found);
        Ok(intact)
    }

    fn missing(&self, found: &mut impl FnMut(Fault)) -> Result<(), AdminError> {
        // First: while it is read, more may become durable.
        let (segment, proof) = progress::load_proof(&self.connection).unwrap_or_default();
        let (chain, gaps) = admin::find(&self.dir, &self.connection)?;
        for (first, last) in gaps {
            found(Fault::Missing { first, last });
        }
        // After a salvage it stands for no segment, and only keeps positions from being used twice.
        if segment > 0 && proof.position > chain.last() {
            found(Fault::Missing { first: chain.last() + 1, last: proof.position });
        }
        let segments = chain.segments();
        for (number, segment) in segments.iter().enumerate().filter(|(_, segment)| !segment.is_sealed()) {
            // One that is there may be whole, where the segment itself is cut off or missing. The newest has none yet, and
            // a running bridge may be about to make that of the one before it.
            let index = segment.name.index(&self.dir);
            let is_damaged = || !Index::read(&index).is_ok_and(|(_, whole)| whole);
            let is_missing = || {
                std::thread::sleep(SEALED_WITHIN);
                !index.exists() && chain.is_current(segment).unwrap_or(true)
            };
            let is_newest = number + 1 == segments.len();
            if (index.exists() && is_damaged()) || (!index.exists() && !is_newest && is_missing()) {
                found(Fault::Index(index.display().to_string()));
            }
        }
        for segment in chain.segments().iter().filter(|segment| segment.is_sealed()) {
            let is_whole = segment.load().is_ok_and(|(_, whole)| whole);
            // A running bridge may have released it meanwhile.
            if !is_whole && chain.is_current(segment).unwrap_or(true) {
                found(Fault::Index(segment.name.index(&self.dir).display().to_string()));
            }
        }
        Ok(())
    }

    fn verify_state(&self, found: &mut impl FnMut(Fault)) {
        let check = || -> rusqlite::Result<Vec<String>> {
            self.connection.prepare("PRAGMA integrity_check(20)")?.query_map([], |row| row.get(0))?.collect()
        };
        if let Some(damage) = &self.damage {
            found(Fault::State(damage.clone()));
        }
        self.verify_rows(found);
        match check() {
            Ok(lines) => lines.into_iter().filter(|line| line != "ok").for_each(|line| found(Fault::State(line))),
            Err(error) => found(Fault::State(error.to_string())),
        }
        match self.dead_letters(None, None) {
            Ok(stored) => {
                for stored in stored.into_iter().filter(|stored| stored.event.is_none()) {
                    let (sink, position) = (stored.dead_letter.sink, stored.dead_letter.position);
                    found(Fault::DeadLetter { sink, position, id: stored.id });
                }
            }
            Err(error) => found(Fault::State(error.to_string())),
        }
    }

    /// What has a checksum of its own.
    fn verify_rows(&self, found: &mut impl FnMut(Fault)) {
        match progress::damaged_progress(&self.connection) {
            Ok(sinks) => sinks.into_iter().for_each(|sink| {
                found(Fault::State(format!("what sink {sink:?} has published is damaged; it is published twice")));
            }),
            Err(error) => found(Fault::State(error.to_string())),
        }
        match progress::load_released(&self.connection) {
            Ok(released) if released.is_complete => {}
            Ok(_) => found(Fault::State("the list of released positions is damaged".to_owned())),
            Err(error) => found(Fault::State(error.to_string())),
        }
        match replays::damaged_replays(&self.connection) {
            Ok(replays) => {
                replays.into_iter().for_each(|id| found(Fault::State(format!("replay {id} is damaged"))));
            }
            Err(error) => found(Fault::State(error.to_string())),
        }
    }
}
