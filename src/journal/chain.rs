//! The chain of segments, as it is at this moment, shared by the writer and every reader.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::{fs, io};

use arc_swap::ArcSwap;

use super::index::Index;
use super::positions::Positions;
use super::segment::{self, FoundLog, Header, Name, Proof, Segment, read_log};
use super::{directory, lock};

/// The segments in order, and the newest durable position.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) dir: PathBuf,
    /// Whether this process holds the directory's lock.
    is_owner: bool,
    segments: ArcSwap<Vec<Arc<Segment>>>,
    /// Held while the list is changed.
    changing: Mutex<()>,
    /// The newest durable position, also where it has been released.
    last: AtomicU64,
    /// Segments whose index file was found damaged, to be rebuilt by who owns the directory.
    damaged_indexes: Mutex<BTreeSet<Name>>,
    /// Positions of events that were found damaged and are still kept.
    damaged: Mutex<BTreeSet<u64>>,
    /// Runs of positions that no file holds and nobody released.
    gaps: Mutex<Vec<(u64, u64)>>,
}

/// Damaged events that are remembered by position; more are not counted.
const MOST_DAMAGED: usize = 1_000_000;

/// Damaged events that are logged, each with its position.
const MOST_LOGGED: usize = 1_000;

impl Chain {
    pub(super) fn new(dir: &Path, segments: Vec<Arc<Segment>>, last: u64, is_owner: bool) -> Self {
        let (segments, last) = (ArcSwap::from_pointee(segments), AtomicU64::new(last));
        Self { dir: dir.to_owned(), is_owner, segments, last, ..Self::default() }
    }

    pub(super) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        self.segments.load_full()
    }

    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    pub(super) fn set_last(&self, position: u64) {
        self.last.store(position, Ordering::Release);
    }

    /// The oldest position kept; 0 where there is none.
    pub(super) fn first(&self) -> u64 {
        self.segments().iter().map(|segment| segment.span().0).find(|first| *first > 0).unwrap_or(0)
    }

    pub(super) fn push(&self, segment: Arc<Segment>) {
        self.change(|segments| segments.push(segment));
    }

    /// Puts `new` in the place of all segments that it replaces, or nothing in the place of `old`.
    pub(super) fn replace(&self, old: &[Name], new: Option<Arc<Segment>>) {
        self.change(|segments| {
            let at = segments.iter().position(|segment| old.contains(&segment.name)).unwrap_or(segments.len());
            segments.retain(|segment| !old.contains(&segment.name));
            if let Some(new) = new {
                segments.insert(at.min(segments.len()), new);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Segment>>)) {
        let _changing = lock(&self.changing);
        let mut segments = self.segments().as_ref().clone();
        change(&mut segments);
        self.segments.store(Arc::new(segments));
    }

    /// The segments that may hold a position or later ones, in order.
    pub(super) fn segments_from(&self, position: u64) -> VecDeque<Arc<Segment>> {
        let segments = self.segments.load();
        let begin = segments.partition_point(|segment| segment.ends_before(position));
        segments.iter().skip(begin).cloned().collect()
    }

    /// The segment that may hold a position.
    pub(super) fn segment_at(&self, position: u64) -> Option<Arc<Segment>> {
        let segments = self.segments.load();
        let at = segments.partition_point(|segment| segment.ends_before(position));
        segments.get(at).filter(|segment| segment.span().0 <= position).cloned()
    }

    /// Whether a segment whose files are not as they should be is still a part of the chain. If another process owns the
    /// directory, that may have released or compacted it: then the chain is read again.
    pub(super) fn is_current(&self, segment: &Arc<Segment>) -> io::Result<bool> {
        if self.is_owner {
            return Ok(self.segments.load().iter().any(|other| Arc::ptr_eq(other, segment)));
        }
        let found = find(&self.dir, |_| Proof::default(), Released::default)?;
        if found.segments.iter().any(|other| other.name == segment.name) {
            return Ok(true);
        }
        self.segments.store(Arc::new(found.segments));
        Ok(false)
    }

    /// A segment's index file is damaged or missing.
    pub(super) fn report_damage(&self, segment: &Segment) {
        let mut damaged = lock(&self.damaged_indexes);
        if damaged.insert(segment.name) {
            let path = segment.name.index(&self.dir);
            tracing::warn!(path = %path.display(), "expected a whole index file, but found it damaged; reading the segment instead");
        }
    }

    /// An event cannot be read. Each is logged once, up to a number.
    pub(super) fn note_damaged(&self, position: u64) {
        let mut damaged = lock(&self.damaged);
        if damaged.len() < MOST_DAMAGED && damaged.insert(position) && self.is_owner && damaged.len() <= MOST_LOGGED {
            tracing::error!(position, "damaged event in the journal; see: sendbird-bridge journal verify");
        }
    }

    /// An event was found damaged by reading this segment, which may have been released meanwhile.
    pub(super) fn note_damaged_in(&self, segment: &Arc<Segment>, position: u64) {
        self.note_damaged(position);
        if !self.segments.load().iter().any(|other| other.name == segment.name) {
            lock(&self.damaged).remove(&position);
        }
    }

    /// The events of these positions are not kept any more, but for `kept`.
    pub(super) fn forget_damaged(&self, first: u64, last: u64, kept: &Positions) {
        let mut damaged = lock(&self.damaged);
        let gone: Vec<u64> = damaged.range(first..=last.max(first)).copied().filter(|at| !kept.contains(*at)).collect();
        gone.iter().for_each(|position| {
            damaged.remove(position);
        });
    }

    pub(super) fn set_gaps(&self, gaps: Vec<(u64, u64)>) {
        *lock(&self.gaps) = gaps;
    }

    /// What is missing before the oldest event that is kept would have been released too.
    pub(super) fn forget_gaps(&self) {
        let first = match self.first() {
            0 => self.last() + 1,
            first => first,
        };
        lock(&self.gaps).retain(|(_, last)| *last >= first);
    }

    /// How many events are damaged or missing.
    pub(super) fn damaged_count(&self) -> u64 {
        let gaps = lock(&self.gaps);
        lock(&self.damaged).len() as u64 + gaps.iter().map(|(first, last)| last - first + 1).sum::<u64>()
    }

    /// One of the segments whose index file is to be rebuilt.
    pub(super) fn damaged_index(&self) -> Option<Name> {
        lock(&self.damaged_indexes).first().copied()
    }

    pub(super) fn index_is_made(&self, name: Name) {
        lock(&self.damaged_indexes).remove(&name);
    }
}

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In order of position; each has at least one event.
    pub(super) segments: Vec<Arc<Segment>>,
    /// Released segments whose ids are kept.
    pub(super) ids: Vec<Name>,
    /// Files that stand for nothing any more.
    pub(super) obsolete: Vec<PathBuf>,
    /// Segments of which nothing can be read, not even which events they held.
    pub(super) unreadable: Vec<PathBuf>,
    /// The highest number of any segment.
    pub(super) number: u64,
    /// The newest position that a segment or an id names.
    pub(super) last: u64,
    /// Runs of positions that no file holds and nobody released.
    pub(super) gaps: Vec<(u64, u64)>,
    /// Runs of positions that no file holds, of which nobody knows whether they were released.
    pub(super) unknown: Vec<(u64, u64)>,
    /// Events of segments without index that were durable and are no record.
    pub(super) damaged: Vec<u64>,
    /// The bytes that they took.
    pub(super) damaged_bytes: u64,
}

/// Which ranges of positions were released, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Released {
    pub(super) ranges: Vec<(u64, u64)>,
    /// Whether these are all.
    pub(super) is_complete: bool,
}

/// How often a directory is read again because the bridge that owns it has changed it meanwhile.
const MOST_TRIES: u32 = 10;

/// Reads what a directory holds; changes nothing. `proof` says how far a segment is known to be durable, `released` what
/// was released until it is asked.
///
/// A bridge that owns the directory may add to it, close, compact and release segments meanwhile, also while the directory
/// is being listed. So it is read again until it held the same files before and after; and what is missing is what each
/// reading has missed, at least two.
///
/// # Errors
/// When the directory or a file cannot be read for another reason than damage; a segment of another major version is
/// [`io::ErrorKind::Unsupported`].
pub(super) fn find(dir: &Path, proof: impl Fn(Name) -> Proof, released: impl Fn() -> Released) -> io::Result<Found> {
    let (mut files, mut known): (_, Option<Vec<(u64, u64)>>) = (list(dir)?, None);
    let mut tries = 1;
    loop {
        let mut found = find_once(dir, &files, &proof, &released())?;
        if let Some(known) = &known {
            found.gaps = common(known, &found.gaps);
        }
        let now = list(dir)?;
        let is_sure = found.gaps.is_empty() || known.as_ref() == Some(&found.gaps);
        if (is_sure && now == files) || tries == MOST_TRIES {
            return Ok(found);
        }
        (files, known) = (now, Some(found.gaps));
        tries += 1;
    }
}

/// The files of segments.
fn list(dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let paths = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    paths.filter(|path| path.as_ref().map_or(true, |path| parse(path).is_some())).collect()
}

fn parse(path: &Path) -> Option<(Name, &str)> {
    path.file_name().and_then(|file| file.to_str()).and_then(Name::parse)
}

fn find_once(
    dir: &Path,
    files: &BTreeSet<PathBuf>,
    proof: &impl Fn(Name) -> Proof,
    released: &Released,
) -> io::Result<Found> {
    let mut found = Found::default();
    let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for path in files {
        let Some((name, ending)) = parse(path) else { continue };
        match ending {
            "log" | "idx" => drop(names.insert(name)),
            "ids" => drop(ids.insert(name)),
            _ => found.obsolete.push(path.clone()),
        }
        found.number = found.number.max(name.last);
    }
    let is_replaced = |name: Name| names.iter().chain(&ids).any(|other| other.replaces(name));
    for name in names.iter().copied().filter(|name| ids.contains(name) || is_replaced(*name)) {
        found.obsolete.extend([name.log(dir), name.index(dir)]);
    }
    let mut before = Before::default();
    for name in names.iter().copied().filter(|name| !ids.contains(name) && !is_replaced(*name)) {
        let (segment, log) = find_segment(name, dir, &proof(name))?;
        found.damaged_bytes += log.damaged_bytes;
        found.damaged.extend(log.damaged);
        before.note(&segment, log.header, released, &mut found);
        if segment.count() > 0 {
            found.segments.push(Arc::new(segment));
            continue;
        }
        let path = name.log(dir);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > segment::HEADER as u64 => found.unreadable.push(path),
            Ok(_) => found.obsolete.push(path),
            Err(_) => {}
        }
        found.obsolete.push(name.index(dir));
    }
    found.last = before.end;
    for name in &ids {
        let summary = Index::read_summary(&name.ids(dir))?.unwrap_or_default();
        found.last = found.last.max(summary.last);
    }
    found.ids = ids.into_iter().collect();
    Ok(found)
}

/// What lies before a segment.
#[derive(Default)]
struct Before {
    /// The last position that is kept, or that something says was there.
    end: u64,
    /// The number of the last segment.
    number: u64,
}

impl Before {
    /// Notes which positions between the last segment and this one are missing.
    fn note(&mut self, segment: &Segment, header: Option<Header>, released: &Released, found: &mut Found) {
        let (first, last) = segment.span();
        // Where the header cannot be read, the first event says what lies before.
        let previous_last = header.map_or(first.saturating_sub(1), |header| header.previous_last);
        if previous_last > self.end {
            // What lies between neighbours is missing, whatever is known of what was released.
            let are_neighbours = self.number > 0 && self.number + 1 == segment.name.first;
            let is_known = released.is_complete || are_neighbours;
            let gaps = if is_known { &mut found.gaps } else { &mut found.unknown };
            gaps.extend(without(self.end + 1, previous_last, &released.ranges));
        }
        self.end = self.end.max(previous_last).max(last).max(segment.header.through);
        self.number = segment.name.last;
    }
}

/// The runs of positions from `first` to `last` that are in none of `ranges`, which are in order.
pub(super) fn without(mut first: u64, last: u64, ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut rest = Vec::new();
    for (begin, end) in ranges.iter().copied().filter(|(begin, end)| begin <= end) {
        if end < first || begin > last {
            continue;
        }
        if begin > first {
            rest.push((first, begin - 1));
        }
        first = first.max(end.saturating_add(1));
    }
    if first <= last {
        rest.push((first, last));
    }
    rest
}

/// The runs of positions that are in both.
fn common(some: &[(u64, u64)], others: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let within = |(first, last): &(u64, u64)| without(*first, *last, &without(*first, *last, others));
    some.iter().flat_map(within).collect()
}

fn find_segment(name: Name, dir: &Path, proof: &Proof) -> io::Result<(Segment, FoundLog)> {
    let summary = Index::read_summary(&name.index(dir))?;
    let (length, header) = match directory::open_readable(&name.log(dir))? {
        Some(file) => (file.metadata()?.len(), segment::read_header(&file)?),
        None => (0, None),
    };
    match summary {
        Some(summary) if length >= summary.log_bytes => {
            let segment = Segment::sealed(name, dir, summary, header.unwrap_or_default());
            Ok((segment, FoundLog { header, ..FoundLog::default() }))
        }
        summary => {
            let (mut known, _) = Index::read(&name.index(dir))?;
            known.name_ends(&summary.unwrap_or_default());
            let mut log = read_log(name, dir, &known, proof)?;
            let segment = Segment::open(name, dir, std::mem::take(&mut log.index), header.unwrap_or_default());
            Ok((segment, log))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_readings_have_missed_is_in_both() {
        assert_eq!(common(&[(1, 10)], &[]), []);
        assert_eq!(common(&[(1, 10), (20, 30)], &[(5, 22), (30, 40)]), [(5, 10), (20, 22), (30, 30)]);
        assert_eq!(common(&[(5, 5)], &[(5, 5)]), [(5, 5)]);
    }

    #[test]
    fn what_was_released_is_not_missing() {
        assert_eq!(without(1, 10, &[]), [(1, 10)]);
        assert_eq!(without(1, 10, &[(1, 10)]), []);
        assert_eq!(without(5, 10, &[(1, 6), (9, 20)]), [(7, 8)]);
        assert_eq!(without(5, 10, &[(1, 3), (6, 6), (6, 5), (30, 31)]), [(5, 5), (7, 10)]);
        assert_eq!(without(5, i64::MAX as u64, &[(1, i64::MAX as u64)]), []);
    }
}
