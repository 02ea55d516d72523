//! A set of positions, stored in chunks, so that a commit writes only the chunks that have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use roaring::RoaringBitmap;

/// Positions in one chunk: as many as one container of a Roaring bitmap holds, so at most 8 KiB.
const CHUNK: u64 = 1 << 16;

/// A set of positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Positions {
    chunks: BTreeMap<u64, RoaringBitmap>,
    len: u64,
    /// Chunks that have changed since [`Positions::take_changed`].
    changed: BTreeSet<u64>,
}

impl Positions {
    pub(super) fn insert(&mut self, position: u64) -> bool {
        let (chunk, low) = split(position);
        let added = self.chunks.entry(chunk).or_default().insert(low);
        self.note(chunk, added);
        self.len += u64::from(added);
        added
    }

    pub(super) fn remove(&mut self, position: u64) -> bool {
        let (chunk, low) = split(position);
        let Some(bitmap) = self.chunks.get_mut(&chunk) else { return false };
        let removed = bitmap.remove(low);
        if bitmap.is_empty() {
            self.chunks.remove(&chunk);
        }
        self.note(chunk, removed);
        self.len -= u64::from(removed);
        removed
    }

    fn note(&mut self, chunk: u64, changed: bool) {
        if changed {
            self.changed.insert(chunk);
        }
    }

    pub(super) fn contains(&self, position: u64) -> bool {
        let (chunk, low) = split(position);
        self.chunks.get(&chunk).is_some_and(|bitmap| bitmap.contains(low))
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Adds those of `other` from `first` to `last`, both included.
    pub(super) fn add_range_of(&mut self, other: &Self, first: u64, last: u64) {
        for (chunk, bitmap, low, high) in other.bounds(first, last) {
            let mut part = bitmap.clone();
            part.remove_range(..low);
            part.remove_range(high + 1..);
            if !part.is_empty() {
                self.changed.insert(chunk);
                *self.chunks.entry(chunk).or_default() |= part;
            }
        }
        self.recount();
    }

    /// Adds every position from `first` to `last`, both included.
    pub(super) fn insert_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        for chunk in first / CHUNK..=last / CHUNK {
            let (low, high) = bounds_in(chunk, first, last);
            let added = self.chunks.entry(chunk).or_default().insert_range(low..=high);
            self.len += added;
            self.note(chunk, added > 0);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn first(&self) -> Option<u64> {
        let (chunk, bitmap) = self.chunks.first_key_value()?;
        Some(chunk * CHUNK + u64::from(bitmap.min()?))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.range(0, u64::MAX)
    }

    /// Those from `first` to `last`, both included, in order.
    pub(super) fn range(&self, first: u64, last: u64) -> impl Iterator<Item = u64> + '_ {
        self.bounds(first, last).flat_map(|(chunk, bitmap, low, high)| {
            bitmap.range(low..=high).map(move |low| chunk * CHUNK + u64::from(low))
        })
    }

    /// The chunks that may hold positions from `first` to `last`, each with the lowest and highest that count.
    fn bounds(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, &RoaringBitmap, u32, u32)> + '_ {
        // `first` may lie behind `last`, for what is empty.
        let chunks = self.chunks.range(first.min(last) / CHUNK..=last / CHUNK).filter(move |_| first <= last);
        chunks.map(move |(chunk, bitmap)| {
            let (low, high) = bounds_in(*chunk, first, last);
            (*chunk, bitmap, low, high)
        })
    }

    /// Whether there are any from `first` to `last`, both included.
    pub(super) fn any_in(&self, first: u64, last: u64) -> bool {
        self.range(first, last).next().is_some()
    }

    /// The chunks that have changed since the last call, each with its bytes; without bytes it is empty.
    pub(super) fn take_changed(&mut self) -> Vec<(u64, Option<Vec<u8>>)> {
        std::mem::take(&mut self.changed).into_iter().map(|chunk| (chunk, self.encode(chunk))).collect()
    }

    /// What was taken could not be written.
    pub(super) fn put_back_changed(&mut self, chunks: impl IntoIterator<Item = u64>) {
        self.changed.extend(chunks);
    }

    /// The numbers of the chunks that are not empty.
    pub(super) fn chunk_numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.keys().copied()
    }

    fn encode(&self, chunk: u64) -> Option<Vec<u8>> {
        let bitmap = self.chunks.get(&chunk)?;
        let mut bytes = Vec::with_capacity(bitmap.serialized_size());
        bitmap.serialize_into(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Adds a chunk that was stored.
    ///
    /// # Errors
    /// When the bytes are no chunk.
    pub(super) fn add_chunk(&mut self, chunk: u64, bytes: &[u8]) -> io::Result<()> {
        let mut bitmap = RoaringBitmap::deserialize_from(bytes)?;
        if bitmap.max().is_some_and(|max| u64::from(max) >= CHUNK) || chunk > u64::MAX / CHUNK {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a position outside of its chunk"));
        }
        bitmap |= self.chunks.remove(&chunk).unwrap_or_default();
        if !bitmap.is_empty() {
            self.chunks.insert(chunk, bitmap);
        }
        self.recount();
        Ok(())
    }

    fn recount(&mut self) {
        self.len = self.chunks.values().map(RoaringBitmap::len).sum();
    }
}

/// The first and the last position of a chunk.
pub(super) fn chunk_span(chunk: u64) -> (u64, u64) {
    let begin = chunk.saturating_mul(CHUNK);
    (begin, begin.saturating_add(CHUNK - 1))
}

/// Where in a chunk the positions from `first` to `last` lie, of which at least one must lie in it.
fn bounds_in(chunk: u64, first: u64, last: u64) -> (u32, u32) {
    let begin = chunk * CHUNK;
    (first.saturating_sub(begin) as u32, last.saturating_sub(begin).min(CHUNK - 1) as u32)
}

fn split(position: u64) -> (u64, u32) {
    (position / CHUNK, (position % CHUNK) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a set of integers; what is stored is what was there.
        #[test]
        fn equals_a_set(steps in prop::collection::vec((any::<bool>(), 0u64..300_000), 1..300), bounds: (u32, u32)) {
            let (mut positions, mut model, mut stored) = (Positions::default(), BTreeSet::new(), BTreeMap::new());
            for (insert, position) in steps {
                let changed = if insert { positions.insert(position) } else { positions.remove(position) };
                prop_assert_eq!(changed, if insert { model.insert(position) } else { model.remove(&position) });
                if position % 3 == 0 {
                    for (chunk, bytes) in positions.take_changed() {
                        match bytes {
                            Some(bytes) => stored.insert(chunk, bytes),
                            None => stored.remove(&chunk),
                        };
                    }
                }
            }
            prop_assert_eq!(positions.len(), model.len() as u64);
            prop_assert_eq!(positions.first(), model.first().copied());
            prop_assert!(positions.iter().eq(model.iter().copied()));
            let (a, b) = (u64::from(bounds.0) % 300_000, u64::from(bounds.1) % 300_000);
            let (first, last) = (a.min(b), a.max(b));
            prop_assert!(positions.range(first, last).eq(model.range(first..=last).copied()));
            prop_assert_eq!(positions.any_in(first, last), model.range(first..=last).next().is_some());
            prop_assert!(first == last || !positions.any_in(last, first));
            let mut part = Positions::default();
            part.insert(a);
            part.add_range_of(&positions, first, last);
            let expected: BTreeSet<u64> = model.range(first..=last).copied().chain([a]).collect();
            prop_assert!(part.iter().eq(expected.iter().copied()) && part.len() == expected.len() as u64);
            let mut whole = positions.clone();
            whole.insert_range(first, last);
            let expected: BTreeSet<u64> = model.iter().copied().chain(first..=last).collect();
            prop_assert!(whole.iter().eq(expected.iter().copied()) && whole.len() == expected.len() as u64);
            for (chunk, bytes) in positions.take_changed() {
                match bytes {
                    Some(bytes) => stored.insert(chunk, bytes),
                    None => stored.remove(&chunk),
                };
            }
            let mut read = Positions::default();
            for (chunk, bytes) in stored {
                read.add_chunk(chunk, &bytes).unwrap();
            }
            prop_assert!(read.iter().eq(model.iter().copied()));
        }
    }
}
