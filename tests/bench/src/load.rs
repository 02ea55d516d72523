//! The load generator: signed deliveries over HTTP/1.1 keep-alive connections.
//!
//! Closed loop: each connection sends its next delivery when the last one is answered. Open loop: deliveries are due at a
//! fixed rate, whatever becomes of those before them, and a latency begins when its delivery was due, also where it had to
//! wait for a connection. Everything is signed before the first is sent. Each answer's status is checked.
//!
//! Each thread has connections of its own and waits for all of them with epoll; a delivery costs it one write and one read.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Barrier;

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use serde::Serialize;

use crate::Result;
use crate::delivery::{Signature, Template, sign_all};

const SECOND: u64 = 1_000_000_000;

/// An answer that takes longer is one that Sendbird would not have waited for.
const LATE: u64 = SECOND;

/// Answers are small; one with a head that is longer is refused.
const LONGEST_ANSWER: usize = 16 * 1024;

/// The timer among the connections.
const TIMER: u64 = u64::MAX;

#[derive(clap::Args)]
pub struct Options {
    /// The server, which must be on this machine.
    address: SocketAddr,
    #[arg(long, default_value = "/webhooks/sendbird")]
    path: String,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Open loop, with so many deliveries a second; without it, closed loop. `RATE:SECONDS,RATE:SECONDS` is one rate after
    /// the other; the last one may be without its seconds.
    #[arg(long)]
    rate: Option<Schedule>,
    /// How long deliveries are sent; shorter if all have been before.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How many deliveries are prepared. In open loop as many as will be due.
    #[arg(long, default_value_t = 500_000)]
    deliveries: usize,
    /// The length of each body.
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// The number of the first delivery; the next ones follow it. The same number is the same delivery.
    #[arg(long, default_value_t = 0)]
    first: u64,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Seconds to wait for what is unanswered at the end.
    #[arg(long, default_value_t = 10.0)]
    drain_timeout: f64,
    /// Where to write the numbers of the deliveries that were answered with 200, one a line.
    #[arg(long)]
    answered: Option<PathBuf>,
}

/// When the deliveries of an open loop are due: rates that follow each other.
#[derive(Clone, Debug, PartialEq)]
struct Schedule(Vec<Phase>);

#[derive(Clone, Debug, PartialEq)]
struct Phase {
    /// The first delivery of the phase, and when it is due.
    first: usize,
    begin_s: f64,
    rate: f64,
    seconds: f64,
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut phases, mut first, mut begin_s) = (Vec::new(), 0, 0.0);
        let positive = |text: &str| text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
        for part in text.split(',') {
            let (rate, seconds) = part.split_once(':').unwrap_or((part, "1e9"));
            let (Some(rate), Some(seconds)) = (positive(rate), positive(seconds)) else {
                return Err(format!("expected RATE or RATE:SECONDS, but found {part}"));
            };
            phases.push(Phase { first, begin_s, rate, seconds });
            (first, begin_s) = (first + (rate * seconds) as usize, begin_s + seconds);
        }
        Ok(Self(phases))
    }
}

impl Schedule {
    /// How many deliveries are due in so many seconds.
    fn count(&self, seconds: f64) -> usize {
        let due = |phase: &Phase| (phase.rate * (seconds - phase.begin_s).clamp(0.0, phase.seconds)) as usize;
        self.0.iter().map(due).sum()
    }

    fn due_s(&self, index: usize) -> f64 {
        let phase = &self.0[self.0.partition_point(|phase| phase.first <= index).saturating_sub(1)];
        phase.begin_s + (index - phase.first) as f64 / phase.rate
    }
}

/// What a load has seen.
#[derive(Serialize)]
pub struct Report {
    bytes: usize,
    connections: usize,
    threads: usize,
    prepared: usize,
    prepared_in_s: f64,
    /// How the load ended: `time`, `deliveries` (all were sent), `refused` (nobody listened), `timeout` (not all were answered).
    ended: &'static str,
    /// From the first delivery to the last answer.
    seconds: f64,
    sent: u64,
    ok: u64,
    statuses: BTreeMap<u16, u64>,
    /// Deliveries whose connection broke before the answer.
    broken: u64,
    /// Deliveries that were sent, or due, and got no answer until the end.
    unanswered: u64,
    /// Answers that took longer than a second.
    late: u64,
    per_s: f64,
    mean_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    max_ms: f64,
    /// The part of the time that the load generator's threads had a processor; at 1 it is the limit.
    load_cpu_share: f64,
    /// Processor time of the load generator for each delivery.
    load_cpu_us: f64,
}

pub fn run(options: &Options) -> Result<Report> {
    if !options.address.ip().is_loopback() {
        return Err("expected an address of this machine, but found another".into());
    }
    let template = Template::new(options.bytes);
    let count = match &options.rate {
        Some(schedule) => schedule.count(options.seconds),
        None => options.deliveries,
    };
    let before = nanoseconds(ClockId::Monotonic);
    let signatures = sign_all(&template, options.first, count);
    let (begun, cpu) = (nanoseconds(ClockId::Monotonic), nanoseconds(ClockId::ProcessCPUTime));
    let prepared_in_s = seconds(begun - before);
    // Whoever waits for the load to begin reads this line.
    println!("{{}}");
    let threads = options.threads.clamp(1, options.connections.max(1));
    let barrier = Barrier::new(threads);
    let outcomes: Vec<Result<Outcome>> = std::thread::scope(|scope| {
        let start = |thread| {
            let (template, signatures, barrier) = (&template, &signatures, &barrier);
            scope.spawn(move || {
                let sender = Sender::connect(options, template, signatures, threads, thread);
                barrier.wait();
                sender?.send()
            })
        };
        let all: Vec<_> = (0..threads).map(start).collect();
        all.into_iter().map(|thread| thread.join().unwrap_or_else(|_panic| Err("a thread panicked".into()))).collect()
    });
    let cpu = nanoseconds(ClockId::ProcessCPUTime) - cpu;
    let mut all = Outcome::new();
    for outcome in outcomes {
        all.add(outcome?);
    }
    if let Some(path) = &options.answered {
        let mut file = BufWriter::new(File::create(path)?);
        for index in &all.answered {
            writeln!(file, "{}", options.first + *index as u64)?;
        }
        file.flush()?;
    }
    Ok(all.report(options, threads, count, prepared_in_s, cpu))
}

/// What one thread has seen.
struct Outcome {
    began: u64,
    last: u64,
    sent: u64,
    statuses: BTreeMap<u16, u64>,
    broken: u64,
    unanswered: u64,
    late: u64,
    latencies: Histogram<u64>,
    answered: Vec<usize>,
    ended: &'static str,
}

impl Outcome {
    fn new() -> Self {
        // From a microsecond to ten minutes, in microseconds, with three digits.
        let latencies = Histogram::new_with_bounds(1, 600_000_000, 3).expect("bounds that go together");
        Self {
            began: u64::MAX,
            last: 0,
            sent: 0,
            statuses: BTreeMap::new(),
            broken: 0,
            unanswered: 0,
            late: 0,
            latencies,
            answered: Vec::new(),
            ended: "time",
        }
    }

    fn add(&mut self, other: Self) {
        self.began = self.began.min(other.began);
        self.last = self.last.max(other.last);
        self.sent += other.sent;
        other.statuses.into_iter().for_each(|(status, count)| *self.statuses.entry(status).or_default() += count);
        self.broken += other.broken;
        self.unanswered += other.unanswered;
        self.late += other.late;
        self.latencies.add(other.latencies).expect("the same bounds");
        self.answered.extend(other.answered);
        if other.ended != "time" {
            self.ended = other.ended;
        }
    }

    fn report(self, options: &Options, threads: usize, prepared: usize, prepared_in_s: f64, cpu: u64) -> Report {
        let took = seconds(self.last.saturating_sub(self.began)).max(1e-9);
        let ok = self.statuses.get(&200).copied().unwrap_or(0);
        let ms = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Report {
            bytes: options.bytes,
            connections: options.connections,
            threads,
            prepared,
            prepared_in_s,
            ended: self.ended,
            seconds: took,
            sent: self.sent,
            ok,
            broken: self.broken,
            unanswered: self.unanswered,
            late: self.late,
            per_s: ok as f64 / took,
            mean_ms: self.latencies.mean() / 1000.0,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            p999_ms: ms(0.999),
            max_ms: self.latencies.max() as f64 / 1000.0,
            load_cpu_share: seconds(cpu) / took / threads as f64,
            load_cpu_us: cpu as f64 / 1000.0 / self.sent.max(1) as f64,
            statuses: self.statuses,
        }
    }
}

/// One delivery: its place among the prepared ones, and when it was due.
#[derive(Clone, Copy)]
struct Due {
    index: usize,
    at: u64,
}

struct Connection {
    stream: TcpStream,
    /// The request, rewritten for each delivery.
    request: Vec<u8>,
    written: usize,
    answer: Vec<u8>,
    read: usize,
    under_way: Option<Due>,
}

/// What became of a delivery after a connection was ready.
enum Step {
    /// It is still under way.
    Waits,
    /// Its answer is there; `close` where the server ends the connection with it.
    Answered { status: u16, close: bool },
    /// The connection is gone.
    Broken,
}

impl Connection {
    fn open(address: SocketAddr, request: Vec<u8>) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, request, written: 0, answer: vec![0; LONGEST_ANSWER], read: 0, under_way: None })
    }

    fn begin(&mut self, due: Due) -> Step {
        (self.written, self.read, self.under_way) = (0, 0, Some(due));
        self.write()
    }

    fn write(&mut self) -> Step {
        while self.written < self.request.len() {
            match self.stream.write(&self.request[self.written..]) {
                Ok(0) => return Step::Broken,
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_reset) => return Step::Broken,
            }
        }
        Step::Waits
    }

    fn advance(&mut self, flags: EventFlags) -> Step {
        if flags.contains(EventFlags::OUT)
            && self.under_way.is_some()
            && let Step::Broken = self.write()
        {
            return Step::Broken;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP) {
            return self.receive();
        }
        Step::Waits
    }

    fn receive(&mut self) -> Step {
        loop {
            let room = self.answer.len() - self.read;
            match self.stream.read(&mut self.answer[self.read..]) {
                // Also where the answer has no room left.
                Ok(0) => return Step::Broken,
                Ok(count) => {
                    self.read += count;
                    if self.under_way.is_none() {
                        return Step::Broken;
                    }
                    match parse(&self.answer[..self.read]) {
                        Ok(Some((status, close))) => return Step::Answered { status, close },
                        // A short read has emptied the socket; what comes after it is another event.
                        Ok(None) if count < room => return Step::Waits,
                        Ok(None) => {}
                        Err(_not_http) => return Step::Broken,
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Waits,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_reset) => return Step::Broken,
            }
        }
    }
}

/// The status of an answer that is whole, and whether the connection ends with it.
fn parse(bytes: &[u8]) -> Result<Option<(u16, bool)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes)? else { return Ok(None) };
    let find = |name: &str| response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    let length = find("content-length").ok_or("an answer without a length")?.value;
    let length: usize = std::str::from_utf8(length)?.trim().parse()?;
    let close = find("connection").is_some_and(|header| header.value.eq_ignore_ascii_case(b"close"));
    match bytes.len().cmp(&(head + length)) {
        std::cmp::Ordering::Less => Ok(None),
        std::cmp::Ordering::Equal => Ok(Some((response.code.unwrap_or(0), close))),
        std::cmp::Ordering::Greater => Err("more than one answer to one request".into()),
    }
}

/// One thread's part: every `threads`th delivery.
struct Sender<'a> {
    options: &'a Options,
    template: &'a Template,
    signatures: &'a [Signature],
    threads: usize,
    epoll: OwnedFd,
    timer: OwnedFd,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    /// Due, and without a connection.
    waiting: VecDeque<Due>,
    /// The next delivery to be sent or to become due.
    next: usize,
    under_way: usize,
    /// When the timer rings.
    armed: u64,
    /// Where the signature stands in a request, and how long the head is.
    signature_at: usize,
    head: usize,
    outcome: Outcome,
}

impl<'a> Sender<'a> {
    fn connect(
        options: &'a Options,
        template: &'a Template,
        signatures: &'a [Signature],
        threads: usize,
        thread: usize,
    ) -> Result<Self> {
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\nuser-agent: SendBird\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nx-sendbird-signature: {}\r\n\r\n",
            options.path,
            options.address,
            template.length(),
            "0".repeat(64)
        );
        let mut sender = Self {
            options,
            template,
            signatures,
            threads,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            timer: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?,
            connections: Vec::new(),
            idle: Vec::new(),
            waiting: VecDeque::new(),
            next: thread,
            under_way: 0,
            armed: 0,
            signature_at: head.len() - 64 - 4,
            head: head.len(),
            outcome: Outcome::new(),
        };
        epoll::add(&sender.epoll, &sender.timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        for id in 0..options.connections.saturating_sub(thread).div_ceil(threads) {
            let connection = Connection::open(options.address, template.behind(head.as_bytes()))?;
            sender.connections.push(connection);
            sender.watch(id)?;
            sender.idle.push(id);
        }
        Ok(sender)
    }

    fn watch(&self, id: usize) -> Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, &self.connections[id].stream, EventData::new_u64(id as u64), flags)?)
    }

    fn send(mut self) -> Result<Outcome> {
        self.outcome.began = nanoseconds(ClockId::Monotonic);
        let stop = self.outcome.began + (self.options.seconds * SECOND as f64) as u64;
        let give_up = stop + (self.options.drain_timeout * SECOND as f64) as u64;
        let mut events = Vec::with_capacity(256);
        loop {
            let now = nanoseconds(ClockId::Monotonic);
            self.fill(now, stop)?;
            if self.outcome.ended == "refused" || self.is_done(now, stop) {
                break;
            }
            if now >= give_up {
                self.outcome.ended = "timeout";
                break;
            }
            let until = if now < stop { stop } else { give_up };
            let left = Timespec { tv_sec: 0, tv_nsec: 1_000_000 + (until - now).min(SECOND / 2) as i64 };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    // Only to make it silent; `fill` looks at the clock.
                    TIMER => drop(rustix::io::read(&self.timer, &mut [0; 8])),
                    id => self.advance(id as usize, event.flags, stop)?,
                }
            }
        }
        self.outcome.unanswered = (self.under_way + self.waiting.len()) as u64;
        Ok(self.outcome)
    }

    /// Gives the idle connections something to send.
    fn fill(&mut self, now: u64, stop: u64) -> Result<()> {
        if let Some(schedule) = &self.options.rate {
            while self.next < self.signatures.len() {
                let at = self.outcome.began + (schedule.due_s(self.next) * SECOND as f64) as u64;
                if at > now {
                    if at == self.armed {
                        break;
                    }
                    self.armed = at;
                    let due = Timespec { tv_sec: (at / SECOND) as i64, tv_nsec: (at % SECOND) as i64 };
                    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: due };
                    timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
                    break;
                }
                self.waiting.push_back(Due { index: self.next, at });
                self.next += self.threads;
            }
        }
        while let Some(id) = self.idle.pop() {
            let Some(due) = self.take(now, stop) else {
                self.idle.push(id);
                break;
            };
            self.begin(id, due)?;
        }
        Ok(())
    }

    /// The next delivery to send now.
    fn take(&mut self, now: u64, stop: u64) -> Option<Due> {
        if self.options.rate.is_some() {
            return self.waiting.pop_front();
        }
        if now >= stop || self.next >= self.signatures.len() {
            return None;
        }
        let due = Due { index: self.next, at: now };
        self.next += self.threads;
        Some(due)
    }

    fn is_done(&mut self, now: u64, stop: u64) -> bool {
        let all_sent = self.next >= self.signatures.len() && self.waiting.is_empty();
        if all_sent && self.options.rate.is_none() {
            self.outcome.ended = "deliveries";
        }
        self.under_way == 0 && (all_sent || (self.options.rate.is_none() && now >= stop))
    }

    fn begin(&mut self, id: usize, due: Due) -> Result<()> {
        let connection = &mut self.connections[id];
        let (head, body) = connection.request.split_at_mut(self.head);
        head[self.signature_at..][..64].copy_from_slice(&self.signatures[due.index]);
        self.template.write(self.options.first + due.index as u64, body);
        self.outcome.sent += 1;
        self.under_way += 1;
        match connection.begin(due) {
            Step::Broken => self.reopen(id),
            _ => Ok(()),
        }
    }

    fn advance(&mut self, id: usize, flags: EventFlags, stop: u64) -> Result<()> {
        match self.connections[id].advance(flags) {
            Step::Waits => Ok(()),
            Step::Broken => self.reopen(id),
            Step::Answered { status, close } => {
                let now = nanoseconds(ClockId::Monotonic);
                let due = self.connections[id].under_way.take();
                let due = due.ok_or("an answer to no request")?;
                self.record(due, status, now);
                if close {
                    return self.reopen(id);
                }
                match self.take(now, stop) {
                    Some(next) => self.begin(id, next),
                    None => {
                        self.idle.push(id);
                        Ok(())
                    }
                }
            }
        }
    }

    fn record(&mut self, due: Due, status: u16, now: u64) {
        self.under_way -= 1;
        let outcome = &mut self.outcome;
        outcome.last = now;
        outcome.latencies.saturating_record((now - due.at) / 1000);
        outcome.late += u64::from(now - due.at > LATE);
        *outcome.statuses.entry(status).or_default() += 1;
        if status == 200 && self.options.answered.is_some() {
            outcome.answered.push(due.index);
        }
    }

    /// Replaces a connection that is gone. Where nobody listens any more, the load ends.
    fn reopen(&mut self, id: usize) -> Result<()> {
        if self.connections[id].under_way.take().is_some() {
            self.under_way -= 1;
            self.outcome.broken += 1;
            self.outcome.last = nanoseconds(ClockId::Monotonic);
        }
        self.idle.retain(|idle| *idle != id);
        let request = std::mem::take(&mut self.connections[id].request);
        match Connection::open(self.options.address, request) {
            Ok(connection) => {
                // Dropping the old one takes it out of epoll.
                self.connections[id] = connection;
                self.watch(id)?;
                self.idle.push(id);
            }
            Err(_refused) => self.outcome.ended = "refused",
        }
        Ok(())
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * SECOND + time.tv_nsec as u64
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / SECOND as f64
}

#[cfg(test)]
mod tests {
    use super::{Schedule, parse};

    #[test]
    fn rates_follow_each_other() {
        let schedule: Schedule = "10:2,100:1,5".parse().expect("a schedule");
        assert_eq!([0, 19, 20, 119, 120].map(|index| schedule.due_s(index)), [0.0, 1.9, 2.0, 2.99, 3.0]);
        assert_eq!([1.0, 2.5, 3.0, 5.0].map(|seconds| schedule.count(seconds)), [10, 70, 120, 130]);
        for wrong in ["", "0", "10:", "10:0", "x", "-1:2"] {
            assert!(wrong.parse::<Schedule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_known_when_it_is_whole() {
        let whole = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nconnection: close\r\n\r\nno";
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]).expect("a beginning"), None);
        }
        assert_eq!(parse(whole).expect("an answer"), Some((503, true)));
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err(), "an answer needs a length");
        assert!(parse(&[&whole[..], b"HTTP/1.1"].concat()).is_err(), "nothing was asked twice");
    }
}
