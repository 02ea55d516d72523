//! Keeps the chain of segments: makes the next one ahead, closes those that are full, and releases what nobody needs.
//!
//! Retention is `unlink`. A segment is released once every configured sink has dealt with all of it, and that is
//! durable; after that by age and by size. What a sink still lacks when the rest of its segment may go is copied into a
//! compacted segment, position and all, so that neither one event nor one page keeps a segment. A reader that has a
//! released segment open reads on in it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::index::{Index, IndexEntry};
use super::positions::Positions;
use super::record::Row;
use super::segment::{self, Header, Name, Segment};
use super::state_queue::StateOp;
use super::{Options, Shared, directory, record};

/// How long a durable state is waited for before anything is released.
const FLUSH: Duration = Duration::from_secs(5);

/// Segments released or compacted in one pass; the next pass goes on.
const MOST_AT_ONCE: usize = 64;

/// Segments compacted in one pass: writing them takes time, in which none is closed or made ahead.
const MOST_COMPACTED: usize = 4;

pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) options: KeeperOptions,
    /// Released segments whose ids are kept, each with the newest time in it.
    pub(super) ids: Vec<(Name, i64)>,
    pub(super) failing: bool,
}

/// What of the options the keeper needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeeperOptions {
    max_bytes: u64,
    retain_bytes: u64,
    retain_ms: i64,
    window_ms: i64,
    segment_bytes: u64,
}

impl KeeperOptions {
    pub(super) fn of(options: &Options) -> Self {
        Self {
            max_bytes: options.settings.max_bytes.0,
            retain_bytes: options.settings.retain_bytes.0,
            retain_ms: options.settings.retain_for.as_millis(),
            window_ms: options.dedup.window.as_millis(),
            segment_bytes: options.settings.segment_bytes(),
        }
    }

    /// Past this, room is short.
    fn most_bytes(&self) -> u64 {
        self.max_bytes - self.max_bytes / 16
    }
}

/// What is to become of some segments.
enum Step {
    Release(Arc<Segment>),
    /// Neighbours that become one, and the positions that it keeps.
    Compact(Vec<Arc<Segment>>, Positions),
}

/// What is to be done in a pass, and how many bytes that frees.
#[derive(Default)]
struct Plan {
    steps: Vec<Step>,
    freed: u64,
}

/// A pass goes on in spite of errors, and tells the first.
#[derive(Default)]
struct FirstError(Option<io::Error>);

impl FirstError {
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.0.get_or_insert(error);
        }
    }
}

impl Keeper {
    pub(super) fn run(mut self) {
        loop {
            let (room_wanted, close) = self.shared.keeper.wait();
            if close {
                break;
            }
            let before = self.shared.bytes();
            if let Some(error) = self.pass(room_wanted).0 {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "cannot maintain the journal's segments; retrying");
                }
            } else {
                self.failing = false;
            }
            if room_wanted {
                let now = self.shared.bytes();
                self.shared.keeper.looked_for_room(now < before || now <= self.options.most_bytes());
            }
        }
    }

    fn pass(&mut self, room_wanted: bool) -> FirstError {
        let mut errors = FirstError::default();
        errors.note(self.seal_full_ones());
        errors.note(self.shared.make_spare());
        errors.note(self.make_damaged_index());
        errors.note(self.forget_ids());
        let plan = self.plan_with_room(room_wanted);
        if plan.steps.is_empty() {
            return errors;
        }
        // What is released has to be published for good, and known to be released: the state that says so comes first.
        let oldest = self.shared.chain.first();
        for step in &plan.steps {
            let released = match step {
                Step::Release(segment) => Some(segment.covers()),
                Step::Compact(segments, needed) if needed.is_empty() => Some(covered(segments)),
                Step::Compact(..) => None,
            };
            if let Some((first, last)) = released {
                self.shared.state.push(StateOp::Release { first, last, oldest });
            }
        }
        if self.shared.state.flush(FLUSH) {
            for step in plan.steps {
                errors.note(match step {
                    Step::Release(segment) => self.release(&segment),
                    Step::Compact(segments, needed) => self.compact(&segments, &needed),
                });
            }
            errors.note(directory::sync(&self.shared.chain.dir));
            // There may be more to do. After an error that waits for the next look.
            if errors.0.is_none() {
                self.shared.keeper.wake();
            }
        }
        errors
    }

    /// What goes. Where room is short and that is not enough, replays are cut: none of them must be what takes the room.
    fn plan_with_room(&self, room_wanted: bool) -> Plan {
        let now_ms = self.shared.clock.now_ms();
        let most = self.options.most_bytes();
        let is_short = room_wanted || self.shared.bytes() > most;
        loop {
            let plan = self.plan(now_ms, is_short);
            let is_enough = self.shared.bytes().saturating_sub(plan.freed) <= most && plan.freed > 0;
            if !is_short || is_enough || !self.cut_replay() {
                return plan;
            }
        }
    }

    // ---- closing segments ------------------------------------------------------------------------------------------

    fn seal_full_ones(&mut self) -> io::Result<()> {
        let mut errors = FirstError::default();
        for segment in self.shared.chain.segments().iter().filter(|segment| segment.is_finished()) {
            let Some(index) = segment.entries().map(|index| index.clone()) else { continue };
            errors.note(self.seal(segment, &index));
        }
        errors.0.map_or(Ok(()), Err)
    }

    fn seal(&self, segment: &Segment, index: &Index) -> io::Result<()> {
        if index.entries.is_empty() {
            return self.drop_empty(segment);
        }
        let (chain, name) = (&self.shared.chain, segment.name);
        // What lies behind the last event is left from a commit that was refused.
        if let Ok(file) = File::options().write(true).open(name.log(&chain.dir))
            && file.metadata()?.len() > index.log_bytes
        {
            file.set_len(index.log_bytes)?;
            file.sync_all()?;
        }
        index.write(&name.index(&chain.dir))?;
        directory::sync(&chain.dir)?;
        let sealed = Segment::sealed(name, &chain.dir, index.summary(), segment.header);
        let grown = (sealed.bytes() as i64 - segment.bytes() as i64, sealed.count() as i64 - segment.count() as i64);
        chain.replace(&[name], Some(Arc::new(sealed)));
        self.shared.account_for(grown.0, grown.1);
        Ok(())
    }

    fn drop_empty(&self, segment: &Segment) -> io::Result<()> {
        self.shared.chain.replace(&[segment.name], None);
        self.shared.account_for(-(segment.bytes() as i64), 0);
        remove(&segment.name.log(&self.shared.chain.dir))
    }

    fn make_damaged_index(&self) -> io::Result<()> {
        let chain = &self.shared.chain;
        let Some(name) = chain.damaged_index() else { return Ok(()) };
        if let Some(segment) = chain.segments().iter().find(|segment| segment.name == name) {
            let found = segment.read_log(Index::read(&name.index(&chain.dir))?.0)?;
            found.damaged.iter().for_each(|position| chain.note_damaged(*position));
            self.seal(segment, &found.index)?;
        }
        chain.index_is_made(name);
        Ok(())
    }

    fn forget_ids(&mut self) -> io::Result<()> {
        let since_ms = self.shared.clock.now_ms().saturating_sub(self.options.window_ms);
        let dir = &self.shared.chain.dir;
        for (name, _) in self.ids.extract_if(.., |(_, newest_ms)| *newest_ms <= since_ms) {
            remove(&name.ids(dir))?;
        }
        Ok(())
    }

    // ---- what goes -------------------------------------------------------------------------------------------------

    /// Decides which of the closed segments go. Nothing that a sink or a replay needs is in a segment that is released.
    fn plan(&self, now_ms: i64, is_short: bool) -> Plan {
        let options = &self.options;
        let segments = self.shared.chain.segments();
        let mut published = Vec::new();
        let mut published_bytes = 0;
        for segment in segments.iter().filter(|segment| segment.is_sealed()) {
            let (first, last) = segment.span();
            if !self.is_read(last) || self.shared.replays.need(first, last) {
                continue;
            }
            let (bytes, count) = (segment.bytes(), segment.count().max(1));
            let needed = self.waiting(first, last);
            let freed = bytes - bytes * needed.len().min(count) / count;
            published_bytes += freed;
            published.push((segment, needed, freed));
        }
        // Room for what waits goes before keeping what is published; a sixteenth stays free for the next.
        let budget = options.most_bytes();
        let kept = self.shared.bytes().saturating_sub(published_bytes);
        let keep = options.retain_bytes.min(budget.saturating_sub(kept));
        let too_old_ms = now_ms.saturating_sub(options.retain_ms);
        let (mut plan, mut compacted) = (Plan::default(), 0);
        for (segment, needed, freed) in published {
            let is_old = segment.newest_ms() <= too_old_ms;
            if !is_old && published_bytes <= keep {
                continue;
            }
            if needed.is_empty() {
                plan.steps.push(Step::Release(Arc::clone(segment)));
            } else if freed >= segment.bytes() / if is_short { 8 } else { 2 } {
                if compacted >= MOST_COMPACTED {
                    continue;
                }
                compacted += 1;
                plan.steps.push(Step::Compact(vec![Arc::clone(segment)], needed));
            } else {
                continue;
            }
            plan.freed += freed;
            published_bytes -= freed;
            if plan.steps.len() >= MOST_AT_ONCE {
                break;
            }
        }
        if plan.steps.is_empty() {
            self.plan_merge(&segments, &mut plan);
        }
        plan
    }

    /// Compacted segments that lie beside each other become one, so that a few events do not cost a file each.
    fn plan_merge(&self, segments: &[Arc<Segment>], plan: &mut Plan) {
        let is_small = |segment: &Arc<Segment>| {
            segment.is_sealed() && segment.name.generation > 0 && segment.bytes() < self.options.segment_bytes / 4
        };
        for run in segments.chunk_by(|a, b| is_small(a) && is_small(b)).filter(|run| run.len() >= 8) {
            let mut bytes = 0;
            let fits = |segment: &&Arc<Segment>| {
                bytes += segment.bytes();
                bytes < self.options.segment_bytes
            };
            let merged: Vec<_> = run.iter().take_while(fits).cloned().collect();
            let (first, last) = (run[0].span().0, merged.last().map_or(0, |segment| segment.span().1));
            if merged.len() >= 2 && self.is_read(last) && !self.shared.replays.need(first, last) {
                let needed = self.waiting(first, last);
                plan.steps.push(Step::Compact(merged, needed));
                return;
            }
        }
    }

    /// Whether every sink has read everything up to a position.
    fn is_read(&self, last: u64) -> bool {
        self.shared.sinks.iter().all(|sink| sink.progress().frontier >= last)
    }

    /// What any sink lacks of these positions.
    fn waiting(&self, first: u64, last: u64) -> Positions {
        let mut waiting = Positions::default();
        for sink in self.shared.sinks.iter() {
            waiting.add_range_of(&sink.progress().waiting, first, last);
        }
        waiting
    }

    /// Cuts the newest replay that keeps a segment which no sink needs as a whole; `false` if there is none.
    fn cut_replay(&self) -> bool {
        let segments = self.shared.chain.segments();
        let read = segments.iter().filter(|segment| segment.is_sealed() && self.is_read(segment.span().1));
        let spans: Vec<(u64, u64)> = read.map(|segment| segment.span()).collect();
        let Some(replay) = self.shared.replays.cut_newest(&spans) else { return false };
        let dropped = replay.total.saturating_sub(replay.done);
        tracing::warn!(replay = replay.id, sink = replay.sink, dropped, "journal is full; replay cut");
        self.shared.resends_dropped.fetch_add(dropped, Ordering::Relaxed);
        self.shared.state.push(StateOp::CutReplay { id: replay.id });
        true
    }

    fn release(&mut self, segment: &Segment) -> io::Result<()> {
        self.shared.chain.replace(&[segment.name], None);
        let (first, last) = segment.span();
        self.shared.chain.forget_damaged(first, last, &Positions::default());
        self.shared.chain.forget_gaps();
        self.shared.account_for(-(segment.bytes() as i64), -(segment.count() as i64));
        self.remove(segment)
    }

    /// Removes a segment's files, but for the ids that are still in the deduplication window.
    fn remove(&mut self, segment: &Segment) -> io::Result<()> {
        let dir = &self.shared.chain.dir;
        let newest_ms = segment.newest_ms();
        // From here on the segment is gone, also for a start after a kill.
        fs::rename(segment.name.index(dir), segment.name.ids(dir)).or_else(ignore_missing)?;
        // Before the log goes: an index without its log would tell of events that are lost, where a power cut undoes the
        // renaming alone.
        directory::sync(dir)?;
        remove(&segment.name.log(dir))?;
        if newest_ms.saturating_add(self.options.window_ms) > self.shared.clock.now_ms() {
            self.ids.push((segment.name, newest_ms));
            return Ok(());
        }
        remove(&segment.name.ids(dir))
    }

    /// Makes one segment of several, with nothing but what is needed.
    fn compact(&mut self, segments: &[Arc<Segment>], needed: &Positions) -> io::Result<()> {
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(()) };
        let generation = segments.iter().map(|segment| segment.name.generation).max().unwrap_or(0) + 1;
        let name = Name { first: first.name.first, last: last.name.last, generation };
        let header = Header { previous_last: first.header.previous_last, through: covered(segments).1 };
        let (bytes, count) = segments
            .iter()
            .fold((0, 0), |(bytes, count), segment| (bytes + segment.bytes() as i64, count + segment.count() as i64));
        let dir = self.shared.chain.dir.clone();
        let mut compacted = Index::default();
        if !needed.is_empty() {
            compacted = self.copy(segments, needed, name, header).inspect_err(|_| {
                drop(fs::remove_file(name.log(&dir).with_extension("making")));
            })?;
        }
        let new = if compacted.entries.is_empty() {
            drop(fs::remove_file(name.log(&dir)));
            None
        } else {
            directory::sync(&dir)?;
            compacted.write(&name.index(&dir))?;
            directory::sync(&dir)?;
            Some(Arc::new(Segment::sealed(name, &dir, compacted.summary(), header)))
        };
        let new_bytes = new.as_ref().map_or(0, |segment| segment.bytes() as i64);
        let names: Vec<Name> = segments.iter().map(|segment| segment.name).collect();
        self.shared.chain.replace(&names, new);
        self.shared.account_for(new_bytes - bytes, compacted.entries.len() as i64 - count);
        self.shared.chain.forget_damaged(first.span().0, last.span().1, needed);
        let mut errors = FirstError::default();
        segments.iter().for_each(|segment| errors.note(self.remove(segment)));
        errors.0.map_or(Ok(()), Err)
    }

    /// Writes the segment of what is needed, durable under its name. What is damaged stays named in its index.
    fn copy(&self, segments: &[Arc<Segment>], needed: &Positions, name: Name, header: Header) -> io::Result<Index> {
        let chain = &self.shared.chain;
        let making = name.log(&chain.dir).with_extension("making");
        segment::write_header(&File::create(&making)?, header)?;
        let mut out = io::BufWriter::new(File::options().append(true).open(&making)?);
        let mut index = Index::of_bytes(segment::HEADER as u64);
        let mut reader = self.shared.reader();
        let mut bytes = Vec::new();
        for segment in segments {
            let (from, _) = segment.load()?;
            for entry in from.entries.iter().filter(|entry| needed.contains(entry.position)) {
                bytes.clear();
                let kind = from.kind(entry);
                match reader.row_in(segment, entry).map_err(io::Error::other)? {
                    Some(Row::Intact(record)) => {
                        record::encode_record(&mut bytes, &record);
                        let (offset, length) = (index.log_bytes as u32, bytes.len() as u32);
                        index.push_entry(IndexEntry { offset, length, ..*entry }, kind);
                    }
                    Some(Row::Damaged { .. }) => {
                        index.push_entry(IndexEntry { offset: 0, length: 0, ..*entry }, kind);
                    }
                    None => {
                        let path = segment.name.log(&chain.dir);
                        return Err(io::Error::other(format!(
                            "expected {} in the journal, but it was released",
                            path.display()
                        )));
                    }
                }
                out.write_all(&bytes)?;
                index.log_bytes += bytes.len() as u64;
            }
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&making, name.log(&chain.dir))?;
        Ok(index)
    }
}

/// The first and the last position that neighbours stand for.
fn covered(segments: &[Arc<Segment>]) -> (u64, u64) {
    let covers = segments.iter().map(|segment| segment.covers());
    covers.reduce(|all, one| (all.0, all.1.max(one.1))).unwrap_or_default()
}

fn remove(path: &std::path::Path) -> io::Result<()> {
    fs::remove_file(path).or_else(ignore_missing)
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
