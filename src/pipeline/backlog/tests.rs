//! What a sink keeps from one connection to the next.

use bytes::Bytes;

use super::*;
use crate::journal::Record;
use crate::pipeline::queue::POSITION_BYTES;
use crate::pipeline::targets::Scope;
use crate::sink::Target;

fn moment(at: Instant) -> Moment {
    Moment { at, connected: Duration::ZERO, unix_ms: 0, random: 0.5 }
}

/// Bytes of memory of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// So many events, each the head of its key, that are parked under so many targets.
fn fill(events: u64, targets: u64) -> (KeyedQueue, Targets) {
    let now = moment(Instant::now());
    let (mut queue, mut parked) = (KeyedQueue::default(), Targets::new(now.at));
    for position in 1..=events {
        let key_hash = position.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let payload = Bytes::from_static(b"payload");
        let (id, key, kind) = ([0; 16], String::new(), String::new());
        queue.add(Item::live(Record { position, accepted_ms: 0, id, key_hash, key, kind, payload }));
        let head = queue.take().unwrap().head();
        queue.park(head);
        let scope =
            Scope::Target(Target::new(format!("subject \"sendbird.calls.room.create.{}\"", position % targets)));
        if position <= targets {
            let detail = format!("{}: no stream takes this subject", scope.words());
            parked.failed(&scope, head, &Fault { reason: Reason::NotFound, detail }, &now);
        } else {
            parked.park(&scope, head, now.at);
        }
    }
    (queue, parked)
}

#[test]
#[ignore = "it is run in a process of its own by the next test"]
fn measure() {
    let number = |name| std::env::var(name).unwrap().parse().unwrap();
    let (events, targets) = (number("EVENTS"), number("TARGETS"));
    let before = resident();
    let (queue, parked) = fill(events, targets);
    println!("resident={}", resident() - before);
    assert_eq!((queue.len() as u64, parked.len() as u64), (events, targets));
}

#[test]
fn a_million_parked_events_fit_into_the_memory_for_waiting_events() {
    // One target, as a topic that is missing; and as many as events that are stuck, as NATS subjects.
    for (events, targets) in [(1_000_000, 1), (110_000, 100_000)] {
        assert!(events * POSITION_BYTES + targets * TARGET_BYTES < WAITING_BYTES);
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pipeline::backlog::tests::measure", "--ignored", "--nocapture"])
            .env("EVENTS", events.to_string())
            .env("TARGETS", targets.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let resident = text.split("resident=").nth(1).and_then(|rest| rest.split_whitespace().next());
        let resident: usize = resident.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
        assert!(resident < WAITING_BYTES, "{events} events, {targets} targets: {resident} bytes");
        println!("{events} events, {targets} targets: {resident} bytes");
    }
}

#[test]
fn connected_time_is_summed_up() {
    let (mut connected, begun) = (ConnectedTime::default(), Instant::now());
    let after = |seconds| begun + Duration::from_secs(seconds);
    connected.set(true, begun);
    connected.set(true, after(1));
    connected.set(false, after(2));
    connected.set(false, after(3));
    connected.set(true, after(10));
    assert_eq!(connected.until(after(15)), Duration::from_secs(7));
}

#[test]
fn a_pause_grows_once_for_all_that_fail_in_it_and_ends_with_a_success() {
    let (mut pause, begun) = (Pause::default(), Instant::now());
    let ms = |ms| begun + Duration::from_millis(ms);
    let failed = |pause: &mut Pause, at| pause.failed(&Moment { random: 1.0, ..moment(at) });
    failed(&mut pause, begun);
    failed(&mut pause, ms(50));
    assert_eq!((pause.ends(ms(50)), pause.ends(ms(100))), (Some(ms(100)), None));
    failed(&mut pause, ms(100));
    assert_eq!(pause.ends(ms(100)), Some(ms(300)));
    pause.succeeded();
    assert_eq!(pause.ends(ms(100)), None);
}
