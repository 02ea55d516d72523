//! What sinks have published, across stops, kills and damage of the state file.

use super::*;

#[test]
fn what_is_published_is_a_set_and_exact_after_a_clean_stop() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=20, 100);
    publish_but(&journal, "a", 15, &[2, 3, 5, 7, 11, 13]);
    [3, 11].into_iter().for_each(|position| journal.acknowledge("a", position));
    assert_eq!((journal.cursor("a"), journal.pending("a")), (1, 4 + 5));
    journal.close();
    let journal = bench.open();
    assert_eq!((journal.cursor("a"), journal.pending("a")), (1, 4 + 5));
    let resume = journal.resume("a");
    assert_eq!((resume.frontier, waiting(&resume)), (15, vec![2, 5, 7, 13]));
    assert_eq!(resume.waiting[0].key_hash, record::hash(b"key 2"));
    assert_eq!(journal.resume("a").waiting, [], "they are given once");
    assert_eq!(journal.oldest_pending_ms("a"), Some(START_MS));
    [2, 5, 7, 13].into_iter().for_each(|position| journal.acknowledge("a", position));
    assert_eq!((journal.cursor("a"), journal.pending("a")), (15, 5));
    journal.close();
}

#[test]
fn what_was_acknowledged_long_before_a_kill_is_not_published_again() {
    let mut bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=20, 100);
    journal.enqueue("a", 20, &[2, 3, 5]);
    journal.acknowledge("a", 3);
    std::thread::sleep(Duration::from_millis(400));
    journal.acknowledge("a", 5);
    bench.crash(&journal);
    let journal = bench.open();
    let waiting = waiting(&journal.resume("a"));
    assert!(waiting == [2, 5] || waiting == [2], "{waiting:?}");
    journal.close();
}

#[test]
fn new_sinks_start_with_the_oldest() {
    let mut bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=5, 100);
    publish(&journal, "a", 3);
    publish(&journal, "a", 2);
    journal.close();
    bench.sinks.push(sink("b"));
    let journal = bench.open();
    assert_eq!((journal.cursor("a"), journal.cursor("b")), (3, 0));
    assert_eq!((journal.pending("a"), journal.pending("b")), (2, 5));
    journal.close();
}

#[test]
fn pending_counts_only_what_a_sink_wants() {
    let mut bench = Bench::new();
    bench.sinks.push(SinkSpec { name: "rooms".into(), kinds: vec!["room:*".into()] });
    let journal = bench.open();
    for n in 1..=10 {
        let kind = if n % 2 == 0 { "room:started" } else { "direct:started" };
        append(&journal, Entry { kind: kind.into(), ..bench.entry(n) }).unwrap();
    }
    assert_eq!((journal.pending("a"), journal.pending("rooms"), journal.pending("?")), (10, 5, 0));
    bench.forward(1_000);
    // It reads everything, and takes what it wants.
    journal.enqueue("rooms", 5, &[2, 4]);
    assert_eq!(journal.pending("rooms"), 5);
    journal.acknowledge("rooms", 2);
    journal.acknowledge("rooms", 2);
    journal.acknowledge("rooms", 3);
    assert_eq!(journal.pending("rooms"), 4);
    journal.close();
    let journal = bench.open();
    assert_eq!((journal.pending("a"), journal.pending("rooms")), (10, 4));
    journal.acknowledge("rooms", 4);
    assert_eq!(journal.oldest_pending_ms("rooms"), Some(START_MS));
    journal.enqueue("rooms", 10, &[6, 8, 10]);
    assert_eq!(journal.pending("rooms"), 3);
    journal.enqueue("rooms", 10, &[6, 8, 10]);
    assert_eq!(journal.pending("rooms"), 3, "what was read before is not read twice");
    journal.close();
}

#[test]
fn pending_forgets_what_was_counted_and_cannot_be_read() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=10, 100);
    journal.enqueue("a", 10, &[1, 2, 3]);
    assert_eq!(journal.pending("a"), 3);
    journal.close();
}

#[test]
fn a_damaged_cursor_starts_with_the_oldest_and_costs_no_other_sink() {
    let mut bench = Bench::new();
    bench.sinks.push(sink("b"));
    let journal = bench.open();
    bench.fill(&journal, 1..=10, 100);
    publish_but(&journal, "a", 8, &[2]);
    publish(&journal, "b", 9);
    journal.close();
    state_file(&bench).execute_batch("UPDATE sinks SET frontier = 9 WHERE sink = 'a'").unwrap();
    let mut faults = Vec::new();
    bench.admin().verify(|fault| faults.push(fault)).unwrap();
    assert!(matches!(&faults[..], [Fault::State(text)] if text.contains("\"a\"")), "{faults:?}");
    let journal = bench.open();
    assert_eq!((journal.cursor("a"), journal.pending("a"), journal.cursor("b")), (0, 10, 9));
    // What was left of the damaged cursor is not believed later either.
    publish(&journal, "a", 10);
    journal.close();
    let journal = bench.open();
    assert_eq!((journal.pending("a"), journal.cursor("a")), (0, 10));
    journal.close();
}

#[test]
fn damaged_waiting_positions_are_published_twice_and_never_lost() {
    for sql in [
        "UPDATE waiting SET positions = x'00'",
        "UPDATE waiting SET crc = crc + 1",
        "DELETE FROM waiting",
        "UPDATE waiting SET sink = 'b'",
        "UPDATE waiting SET chunk = 7",
        "UPDATE waiting SET chunk = -1",
    ] {
        let bench = Bench::new();
        let journal = bench.open();
        bench.fill(&journal, 1..=20, 100);
        publish_but(&journal, "a", 15, &[3, 5]);
        journal.close();
        state_file(&bench).execute_batch(sql).unwrap();
        let journal = bench.open();
        assert_eq!(waiting(&journal.resume("a")), (1..=15).collect::<Vec<_>>(), "{sql}");
        assert_eq!(journal.pending("a"), 20, "{sql}");
        publish(&journal, "a", 20);
        (1..=15).for_each(|position| journal.acknowledge("a", position));
        journal.close();
        let journal = bench.open();
        assert_eq!(journal.pending("a"), 0, "{sql}: it is rewritten");
        journal.close();
    }
}

#[test]
fn a_damaged_row_of_what_was_released_makes_nothing_missing() {
    for sql in [
        "UPDATE released SET first = first + 20",
        "UPDATE released SET last = last - 20",
        "UPDATE released SET last = last + 20",
        "UPDATE released SET crc = crc + 1",
    ] {
        let bench = with_everything();
        state_file(&bench).execute_batch(sql).unwrap();
        let faults = || {
            let mut faults = Vec::new();
            bench.admin().verify(|fault| faults.push(fault)).unwrap();
            faults.retain(|fault| !matches!(fault, Fault::DeadLetter { .. }));
            faults
        };
        assert_eq!(faults(), [Fault::State("the list of released positions is damaged".to_owned())], "{sql}");
        let journal = bench.open();
        assert_eq!(journal.stats().damaged_records, 0, "{sql}");
        journal.close();
        assert_eq!(faults(), [], "{sql}: it is repaired");
    }
}

#[test]
fn a_start_removes_a_damaged_replay() {
    for sql in ["UPDATE replays SET until = until + 1", "UPDATE replays SET filter = 'x'", "UPDATE replays SET crc = 1"]
    {
        let bench = with_everything();
        state_file(&bench).execute_batch(sql).unwrap();
        let journal = bench.open();
        assert_eq!(journal.active_replays("a"), 0, "{sql}");
        assert_eq!(journal.resends_dropped(), 1, "{sql}");
        journal.close();
        let mut faults = Vec::new();
        bench.admin().verify(|fault| faults.push(fault)).unwrap();
        assert!(faults.iter().all(|fault| matches!(fault, Fault::DeadLetter { .. })), "{sql}: {faults:?}");
    }
}

/// A journal with something in each table.
fn with_everything() -> Bench {
    let mut bench = Bench::small();
    bench.settings.retain_bytes = Size::kib(200);
    bench.fact_of = |payload| payload.first().filter(|first| **first == b'#').map(|first| [*first; 16]);
    let journal = bench.open();
    bench.fill(&journal, 1..=400, 1_000);
    publish_but(&journal, "a", 390, &[5, 10, 20, 30, 40, 50, 60, 70, 380]);
    journal.record_stuck("a", (1..=6).map(|n| stuck_event(n * 10)).collect());
    for position in [5, 70] {
        block_on(journal.set_aside(dead_letter("a", position))).unwrap();
    }
    eventually("retention", || journal.stats().first_position > 5 && all(&journal).len() < 350);
    let mut admin = bench.admin();
    let stored = admin.dead_letters(None, None).unwrap();
    assert_eq!(admin.requeue(&stored[..1]).unwrap(), 1);
    admin.replay("a", &Filter { key: Some("key 1".into()), ..Filter::default() }, 100, Some(1), START_MS).unwrap();
    state_file(&bench).execute_batch("INSERT INTO set_aside_requests (sink, position) VALUES ('a', 20)").unwrap();
    let candidate = BackfillCandidate {
        facts: vec![[b'#'; 16]],
        through: 400,
        id: [9; 16],
        key: "k".into(),
        kind: "t".into(),
        payload: b"#".to_vec(),
    };
    admin.add_candidates(&[candidate]).unwrap();
    eventually("backfilling", || admin.waiting_candidates().unwrap() == 0);
    eventually("the request", || journal.set_aside_requests("a") == [20]);
    eventually("progress", || {
        let count = "SELECT count(*) FROM progress";
        state_file(&bench).query_row(count, [], |row| row.get::<_, i64>(0)).unwrap() > 0
    });
    journal.close();
    for table in ["stuck", "released", "backfilled", "progress"] {
        let count = format!("SELECT count(*) FROM {table}");
        let rows: i64 = state_file(&bench).query_row(&count, [], |row| row.get(0)).unwrap();
        assert!(rows > 0, "{table} is empty");
    }
    bench
}

pub(super) fn stuck_event(position: u64) -> StuckEvent {
    StuckEvent {
        position,
        since_ms: 7,
        tries: 3,
        reason: "no_target".into(),
        detail: "unknown topic".into(),
        target: "topic \"x\"".into(),
    }
}

/// What holds after any damage of the state file: every event is read, what waits waits, and all goes on.
fn check_after_damage(bench: &Bench, what: &str) {
    let journal = bench.try_open().unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let rows = rows(&journal);
    assert!(damaged(&rows).is_empty(), "{what}");
    let kept = positions_of(&rows);
    let resume = journal.resume("a");
    for position in [10, 20, 30, 40, 50, 60, 380, 395] {
        let waits = position > resume.frontier || waiting(&resume).contains(&position);
        assert!(kept.contains(&position) && waits, "{what}: {position} is lost");
    }
    let appended = append(&journal, Entry { id: fastrand::u128(..).to_le_bytes(), ..bench.entry(1) }).unwrap();
    let Appended::Stored(newest) = appended else { panic!("{what}: {appended:?}") };
    // Where a damaged position was taken for the highest, some are left out.
    assert!(newest > 401, "{what}: {newest}");
    let mut resends = ResendCursor::default();
    for _ in 0..3 {
        drop(journal.next_resends("a", &mut resends, ALL));
        flush(&journal);
    }
    let given = journal.next_resends("a", &mut ResendCursor::default(), ALL).unwrap();
    for resend in given {
        let position = resend.record.position as u32;
        assert!(resend.record.payload.starts_with(format!("payload {position} ").as_bytes()), "{what}");
    }
    let mut last = resume.frontier;
    for row in rows.iter().filter(|row| row.position() > resume.frontier) {
        journal.enqueue("a", row.position(), &[row.position()]);
        last = row.position();
    }
    block_on(journal.set_aside(dead_letter("a", 40))).unwrap();
    journal.record_stuck("a", vec![stuck_event(30)]);
    flush(&journal);
    for position in kept.iter().copied().filter(|position| *position != 40) {
        journal.acknowledge("a", position);
    }
    assert!(last < newest, "{what}: {last}, {newest}");
    journal.enqueue("a", newest, &[]);
    assert_eq!(journal.pending("a"), 0, "{what}");
    journal.close();
    let journal = bench.open();
    assert_eq!(journal.pending("a"), 0, "{what}: what was published stays so");
    assert!(journal.dead_letters("a") >= 1, "{what}");
    journal.close();
    let mut faults = Vec::new();
    bench.admin().verify(|fault| faults.push(fault)).unwrap();
    // The list of free pages is looked at when one is needed, and the other flag has no effect.
    let is_known = |fault: &Fault| match fault {
        Fault::DeadLetter { .. } => true,
        Fault::State(text) => text.contains("Freelist") || text.contains("incremental_vacuum"),
        _ => false,
    };
    faults.retain(|fault| !is_known(fault));
    assert_eq!(faults, [], "{what}: it is repaired");
}

/// The same directory in a new place.
fn copy(bench: &mut Bench, files: &BTreeMap<String, Vec<u8>>, number: usize) {
    let dir = bench.home.path().join(format!("copy-{number}"));
    fs::create_dir(&dir).unwrap();
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
    bench.settings.dir = dir;
}

#[test]
fn any_page_of_the_state_file_may_be_lost() {
    let mut bench = with_everything();
    let files = snapshot(bench.dir());
    let pages = files["state.db"].len() / 4096;
    assert!(pages > 20, "{pages} pages");
    for page in 0..pages {
        for (kind, byte) in [("zeros", 0_u8), ("ones", 0xff)] {
            let mut files = files.clone();
            files.get_mut("state.db").unwrap()[page * 4096..(page + 1) * 4096].fill(byte);
            copy(&mut bench, &files, page * 2 + usize::from(byte == 0));
            bench.clock.set(START_MS);
            check_after_damage(&bench, &format!("page {page} of {kind}"));
        }
    }
}

#[test]
fn any_byte_of_the_state_file_may_be_flipped() {
    let mut bench = with_everything();
    let files = snapshot(bench.dir());
    let length = files["state.db"].len();
    // Bytes of the header, a sample of all others, and of the pages that nothing but an index or a list needs.
    let of_pages = |name: &str| -> Vec<usize> {
        let sql = "SELECT pageno FROM dbstat WHERE name LIKE ?1 AND pagetype <> 'overflow'";
        let state = state_file(&bench);
        let mut pages = state.prepare(sql).unwrap();
        pages
            .query_map([name], |row| row.get::<_, i64>(0).map(|page| page as usize))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap()
    };
    let in_page = |page: usize| [4, 6, 7, 4087, 4088, 4095].map(|at| (page - 1) * 4096 + at);
    let places = (0..100).step_by(3).chain((0..60).map(|_| fastrand::usize(100..length)));
    let places: Vec<usize> = places.chain(of_pages("%dead_letters%").into_iter().flat_map(in_page)).collect();
    for (number, at) in places.into_iter().enumerate() {
        let mut files = files.clone();
        let bit = 1 << fastrand::u8(0..8);
        files.get_mut("state.db").unwrap()[at] ^= bit;
        copy(&mut bench, &files, number);
        bench.clock.set(START_MS);
        check_after_damage(&bench, &format!("byte {at} ^ {bit}"));
    }
}

#[test]
fn the_state_file_may_be_cut_off_anywhere_or_missing() {
    let mut bench = with_everything();
    let files = snapshot(bench.dir());
    let length = files["state.db"].len();
    for (number, at) in
        [None, Some(0), Some(1), Some(100), Some(4096), Some(length / 2), Some(length - 4096)].into_iter().enumerate()
    {
        let mut files = files.clone();
        match at {
            Some(at) => files.get_mut("state.db").unwrap().truncate(at),
            None => drop(files.remove("state.db")),
        }
        copy(&mut bench, &files, number);
        bench.clock.set(START_MS);
        check_after_damage(&bench, &format!("{at:?} bytes"));
    }
}

#[test]
fn damage_of_the_state_under_a_running_bridge_is_repaired() {
    let mut bench = Bench::new();
    bench.sinks.push(sink("b"));
    let journal = bench.open();
    bench.fill(&journal, 1..=100, 100);
    publish_but(&journal, "a", 100, &[7, 50]);
    publish(&journal, "b", 30);
    flush(&journal);
    let path = bench.dir().join("state.db");
    rusqlite::Connection::open(&path).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0xff; length as usize - 4096], 4096).unwrap();
    drop(file);
    // Only what is written touches the damage.
    journal.acknowledge("a", 7);
    let written = |journal: &Journal| {
        block_on(async { tokio::time::timeout(Duration::from_secs(20), journal.set_aside(dead_letter("a", 50))).await })
    };
    written(&journal).expect("in time").unwrap();
    assert!(bench.dir().join("state-damaged-1.db").exists());
    assert_eq!(append(&journal, bench.entry(101)), Ok(Appended::Stored(101)));
    journal.close();
    let journal = bench.open();
    assert_eq!((journal.cursor("a"), journal.pending("a"), journal.cursor("b")), (100, 1, 30));
    assert_eq!(journal.dead_letters("a"), 1);
    journal.close();
}

#[test]
fn another_process_that_writes_holds_up_no_answer() {
    let bench = Bench::new();
    let journal = bench.open();
    let other = state_file(&bench);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    bench.fill(&journal, 1..=50, 100);
    journal.enqueue("a", 50, &[]);
    other.execute_batch("ROLLBACK").unwrap();
    journal.close();
    let journal = bench.open();
    assert_eq!(journal.cursor("a"), 50);
    journal.close();
}

#[test]
fn a_dead_letter_that_cannot_be_read_hides_no_other() {
    let bench = Bench::new();
    let journal = bench.open();
    bench.fill(&journal, 1..=40, 1_000);
    publish_but(&journal, "a", 40, &(1..=40).collect::<Vec<_>>());
    for position in 1..=40 {
        block_on(journal.set_aside(dead_letter("a", position))).unwrap();
    }
    journal.close();
    let sql = "SELECT pageno FROM dbstat WHERE name = 'dead_letters' AND pagetype = 'leaf' ORDER BY pageno";
    let page: i64 = state_file(&bench).query_row(sql, [], |row| row.get(0)).unwrap();
    let file = fs::File::options().write(true).open(bench.dir().join("state.db")).unwrap();
    file.write_all_at(&[0xff; 4096], (page as u64 - 1) * 4096).unwrap();
    let listed = bench.admin().dead_letters(None, None).unwrap();
    assert!((30..40).contains(&listed.len()), "{}", listed.len());
    assert!(listed.iter().all(|stored| stored.event.is_some()));
    let journal = bench.open();
    assert_eq!(journal.dead_letters("a"), listed.len() as u64, "a start repairs the file");
    journal.close();
    let mut faults = Vec::new();
    bench.admin().verify(|fault| faults.push(fault)).unwrap();
    assert_eq!(faults, []);
}

#[test]
fn an_admin_reads_a_damaged_state_and_writes_nothing_to_it() {
    let mut bench = with_everything();
    let files = snapshot(bench.dir());
    copy(&mut bench, &files, 0);
    zero_page(&bench.dir().join("state.db"), 0);
    let before = fs::read(bench.dir().join("state.db")).unwrap();
    let mut admin = bench.admin();
    assert_eq!(admin.sinks().unwrap(), ["a"]);
    let stored = admin.dead_letters(None, None).unwrap();
    assert_eq!(stored.len(), 2);
    assert!(matches!(admin.requeue(&stored), Err(AdminError::Damaged(_))));
    assert!(matches!(admin.discard(&stored), Err(AdminError::Damaged(_))));
    assert!(matches!(admin.cancel_replay(1), Err(AdminError::Damaged(_))));
    let mut faults = Vec::new();
    assert!(admin.verify(|fault| faults.push(fault)).unwrap() > 100);
    assert!(matches!(&faults[..], [Fault::State(_)]), "{faults:?}");
    assert_eq!(fs::read(bench.dir().join("state.db")).unwrap(), before);
}
