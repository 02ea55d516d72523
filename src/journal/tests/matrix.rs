//! Damage × published or not × restarted or not: in each case the events that it does not hit are read, what it hits is
//! named, deliveries are taken, and what is published is released.

use super::damage::check_rows;
use super::*;

const EVENTS: u64 = 250;

#[derive(Clone, Copy, Debug)]
enum Damage {
    FlippedByte,
    ZeroedPage,
    ZeroedFirstPage,
    TruncatedSegment,
    EmptySegment,
    MissingSegment,
    FlippedByteOfTheIndex,
    ZeroedPageOfTheIndex,
    TruncatedIndex,
    MissingIndex,
    FlippedByteOfTheNewest,
    ZeroedPageOfTheNewest,
}

impl Damage {
    /// How many events it hits, at least and at most.
    fn hits(self) -> (usize, usize) {
        match self {
            Self::FlippedByte | Self::FlippedByteOfTheNewest => (1, 1),
            Self::ZeroedPage | Self::ZeroedFirstPage | Self::ZeroedPageOfTheNewest => (3, 6),
            Self::TruncatedSegment => (20, 50),
            Self::EmptySegment | Self::MissingSegment => (50, 70),
            Self::FlippedByteOfTheIndex | Self::ZeroedPageOfTheIndex | Self::TruncatedIndex | Self::MissingIndex => {
                (0, 0)
            }
        }
    }

    fn happen(self, bench: &Bench) {
        let (log, index) = (&bench.files("log")[1], &bench.files("idx")[1]);
        let newest = format!("payload {} ", EVENTS - 5);
        let logs = bench.files("log");
        let holds = |path: &&PathBuf| {
            let bytes = fs::read(path).unwrap();
            bytes.windows(newest.len()).any(|window| window == newest.as_bytes())
        };
        let newest_log = logs.iter().find(holds).unwrap();
        match self {
            Self::FlippedByte => flip(log, find_text(log, "payload 80 ")),
            Self::ZeroedPage => zero_page(log, find_text(log, "payload 80 ")),
            Self::ZeroedFirstPage => zero_page(log, 0),
            Self::TruncatedSegment => truncate(log, 30_000),
            Self::EmptySegment => truncate(log, 0),
            Self::MissingSegment => fs::remove_file(log).unwrap(),
            Self::FlippedByteOfTheIndex => flip(index, 500),
            Self::ZeroedPageOfTheIndex => zero_page(index, 0),
            Self::TruncatedIndex => truncate(index, 200),
            Self::MissingIndex => fs::remove_file(index).unwrap(),
            Self::FlippedByteOfTheNewest => flip(newest_log, find_text(newest_log, &newest)),
            Self::ZeroedPageOfTheNewest => zero_page(newest_log, find_text(newest_log, &newest)),
        }
    }
}

fn check(damage: Damage, published: bool, restarted: bool) {
    let bench = Bench::small();
    let mut journal = bench.open();
    bench.fill(&journal, 1..=EVENTS as u32, 1_000);
    eventually("sealing", || bench.files("idx").len() >= 4);
    if published {
        publish(&journal, "a", EVENTS);
    }
    flush(&journal);
    if restarted {
        journal.close();
    }
    damage.happen(&bench);
    if restarted {
        journal = bench.open();
    }

    let what = format!("{damage:?}");
    let found = rows(&journal);
    check_rows(&found, &what);
    let hit = damaged(&found);
    let (least, most) = damage.hits();
    let lost = EVENTS as usize - (found.len() - hit.len());
    assert!((least..=most).contains(&lost), "{what}: {lost} of {least} to {most} events are lost: {hit:?}");
    assert_eq!(journal.stats().damaged_records, lost as u64, "{what}: each is counted");
    for position in &hit {
        assert!(matches!(journal.reader().at(*position).unwrap(), Some(Row::Damaged { .. })), "{what}");
    }
    let mut named = 0;
    bench
        .admin()
        .verify(|fault| match fault {
            Fault::Damaged { .. } => named += 1,
            Fault::Missing { first, last } => named += (last - first + 1) as usize,
            Fault::Index(_) => {}
            other => panic!("{what}: {other:?}"),
        })
        .unwrap();
    assert_eq!(named, lost, "{what}: each is named");

    // Deliveries are taken, and recognised.
    let next = EVENTS as u32 + 1;
    assert_eq!(append(&journal, bench.entry_of(next, 1_000)), Ok(Appended::Stored(next.into())), "{what}");
    let known = append(&journal, bench.entry(3));
    assert_eq!(known, Ok(Appended::Duplicate(3)), "{what}");

    // A sink publishes what is intact, and sets the rest aside.
    let frontier = journal.resume("a").frontier;
    let unread: Vec<&Row> = found.iter().filter(|row| row.position() > frontier).collect();
    assert_eq!(published, unread.is_empty(), "{what}");
    let unread: Vec<u64> = unread.into_iter().map(Row::position).collect();
    journal.enqueue("a", EVENTS, &unread);
    for position in unread {
        if hit.contains(&position) {
            block_on(journal.set_aside(DeadLetter { reason: "damaged".into(), ..dead_letter("a", position) })).unwrap();
        } else {
            journal.acknowledge("a", position);
        }
    }
    assert_eq!(journal.pending("a"), 1, "{what}");
    publish(&journal, "a", u64::from(next));
    assert_eq!((journal.pending("a"), journal.cursor("a")), (0, u64::from(next)), "{what}");
    assert_eq!(journal.dead_letters("a"), if published { 0 } else { hit.len() as u64 }, "{what}");

    // It holds up neither retention nor a start.
    bench.forward(2 * DAY_MS);
    eventually(&format!("{what}: retention"), || all(&journal).is_empty());
    eventually(&format!("{what}: the counts"), || {
        let stats = journal.stats();
        (stats.damaged_records, stats.records, stats.health) == (0, 0, Health::Healthy)
            && stats.bytes < 1_000 + 400 * hit.len() as u64
    });
    journal.close();
    let journal = bench.open();
    assert_eq!((journal.pending("a"), journal.stats().damaged_records), (0, 0), "{what}");
    let entry = Entry { id: [77; 16], ..bench.entry(1) };
    assert_eq!(append(&journal, entry), Ok(Appended::Stored(u64::from(next) + 1)), "{what}");
    journal.close();
}

macro_rules! matrix {
    ($($name:ident: $damage:ident,)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn of_published_events_under_a_running_bridge() {
                check(Damage::$damage, true, false);
            }

            #[test]
            fn of_published_events_found_by_a_start() {
                check(Damage::$damage, true, true);
            }

            #[test]
            fn of_pending_events_under_a_running_bridge() {
                check(Damage::$damage, false, false);
            }

            #[test]
            fn of_pending_events_found_by_a_start() {
                check(Damage::$damage, false, true);
            }
        })*
    };
}

matrix! {
    a_flipped_byte: FlippedByte,
    a_zeroed_page: ZeroedPage,
    a_zeroed_first_page: ZeroedFirstPage,
    a_truncated_segment: TruncatedSegment,
    an_empty_segment: EmptySegment,
    a_missing_segment: MissingSegment,
    a_flipped_byte_of_an_index: FlippedByteOfTheIndex,
    a_zeroed_page_of_an_index: ZeroedPageOfTheIndex,
    a_truncated_index: TruncatedIndex,
    a_missing_index: MissingIndex,
    a_flipped_byte_of_the_newest_segment: FlippedByteOfTheNewest,
    a_zeroed_page_of_the_newest_segment: ZeroedPageOfTheNewest,
}
