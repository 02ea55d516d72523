//! Where a record goes: its topic and, as soon as the topic's partitions are counted, its partition.
//!
//! The client counts them in its statistics, so nothing is asked of the brokers for this.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::statistics::Statistics;

use crate::sink::{About, Target};

/// A topic, and a partition of it where one is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Destination<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: Option<i32>,
}

impl<'a> Destination<'a> {
    /// A topic as a whole.
    pub(super) fn topic(topic: &'a str) -> Self {
        Self { topic, partition: None }
    }

    pub(super) fn target(&self) -> Target {
        let topic = self.topic;
        Target::new(match self.partition {
            Some(partition) => format!("topic \"{topic}\" partition {partition}"),
            None => format!("topic \"{topic}\""),
        })
    }

    pub(super) fn about_topic(&self) -> About {
        About::Target(Self::topic(self.topic).target())
    }

    pub(super) fn about_partition(&self) -> About {
        About::Target(self.target())
    }
}

/// The topics whose partitions are counted.
#[derive(Debug, Default)]
pub(super) struct Partitions(Mutex<HashMap<String, Counted>>);

#[derive(Clone, Copy, Debug)]
struct Counted {
    partitions: u32,
    /// The last answer was that the topic fails whatever the partition.
    fails_as_a_whole: bool,
}

impl Partitions {
    /// Takes the counts of the client. A topic that is missing has none.
    pub(super) fn update(&self, statistics: &Statistics) {
        let mut topics = self.lock();
        let counted = statistics.topics.iter().filter_map(|(name, topic)| {
            // One with the number -1 is for records that have no partition yet.
            let partitions = topic.partitions.keys().filter(|number| **number >= 0).count();
            let partitions = u32::try_from(partitions).ok().filter(|count| *count > 0)?;
            let fails_as_a_whole = topics.get(name).is_some_and(|before| before.fails_as_a_whole);
            Some((name.clone(), Counted { partitions, fails_as_a_whole }))
        });
        *topics = counted.collect();
    }

    /// Records whether the topic accepted a record, or fails for every record.
    pub(super) fn record_outcome(&self, topic: &str, fails_as_a_whole: bool) {
        if let Some(counted) = self.lock().get_mut(topic) {
            counted.fails_as_a_whole = fails_as_a_whole;
        }
    }

    /// Where a record of this topic with this key would go.
    pub(super) fn destination<'a>(&self, topic: &'a str, key: &str) -> Destination<'a> {
        let counted = self.counted(topic).filter(|counted| !counted.fails_as_a_whole);
        Destination { topic, partition: counted.map(|counted| partition_of(key.as_bytes(), counted.partitions)) }
    }

    /// The partition of a record of this topic with this key, if the topic's partitions are counted.
    pub(super) fn counted_destination<'a>(&self, topic: &'a str, key: &str) -> Option<Destination<'a>> {
        let counted = self.counted(topic)?;
        Some(Destination { topic, partition: Some(partition_of(key.as_bytes(), counted.partitions)) })
    }

    fn counted(&self, topic: &str) -> Option<Counted> {
        self.lock().get(topic).copied()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Counted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The partition of a key among so many, as Java clients choose it and as `murmur2_random` does.
fn partition_of(key: &[u8], partitions: u32) -> i32 {
    let partition = (murmur2(key) & 0x7fff_ffff) % partitions;
    i32::try_from(partition).unwrap_or(i32::MAX)
}

/// MurmurHash2 with the seed of Kafka.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    #[expect(clippy::cast_possible_truncation, reason = "the algorithm takes the lower 32 bits of the length")]
    let mut hash = 0x9747_b28c ^ bytes.len() as u32;
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        let tail = tail.iter().rev().fold(0, |tail, byte| tail << 8 | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(M);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::statistics::{Partition, Topic};

    fn statistics(topics: &[(&str, &[i32])]) -> Statistics {
        let topics = topics.iter().map(|(name, numbers)| {
            let partitions = numbers.iter().map(|number| (*number, Partition::default())).collect();
            ((*name).to_owned(), Topic { partitions, ..Topic::default() })
        });
        Statistics { topics: topics.collect(), ..Statistics::default() }
    }

    /// Of Kafka's own `UtilsTest.testMurmur2`, and of librdkafka's, which were computed by Java.
    #[test]
    fn the_hash_is_javas() {
        for (key, expected) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
            ("kafka", 0xd067_cf64_u32.cast_signed()),
            ("giberish123456789", 0x8f55_2b0c_u32.cast_signed()),
            ("1234", 0x9fc9_7b14_u32.cast_signed()),
            ("234", 0xe7c0_09ca_u32.cast_signed()),
            ("34", 0x8739_30da_u32.cast_signed()),
            ("4", 0x5a4b_5ca1),
            ("", 0x106e_08d9),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), expected, "{key}");
        }
    }

    #[test]
    fn a_record_goes_to_the_topic_until_its_partitions_are_counted() {
        let partitions = Partitions::default();
        let target = |topic| partitions.destination(topic, "kafka").target().to_string();
        assert_eq!(target("t"), "topic \"t\"");
        partitions.update(&statistics(&[("t", &[-1, 0, 1, 2]), ("missing", &[-1])]));
        // 0xd067cf64 without its sign is 3 * 449,660,193 + 1.
        assert_eq!(target("t"), "topic \"t\" partition 1");
        assert_eq!(target("missing"), "topic \"missing\"");
        partitions.update(&statistics(&[("t", &[0])]));
        assert_eq!(target("t"), "topic \"t\" partition 0");
    }

    #[test]
    fn a_topic_that_fails_as_a_whole_is_one_target() {
        let partitions = Partitions::default();
        partitions.update(&statistics(&[("t", &[0])]));
        partitions.record_outcome("t", true);
        partitions.update(&statistics(&[("t", &[0])]));
        assert_eq!(partitions.destination("t", "k"), Destination::topic("t"));
        let counted = Some(Destination { topic: "t", partition: Some(0) });
        assert_eq!(partitions.counted_destination("t", "k"), counted, "one of its partitions may be silent alone");
        partitions.record_outcome("t", false);
        assert_eq!(partitions.destination("t", "k"), Destination { topic: "t", partition: Some(0) });
        partitions.record_outcome("unknown", true);
    }
}
