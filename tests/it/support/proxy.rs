//! A TCP proxy between the bridge and a broker, for the faults of a network: connections that are cut, that say
//! nothing more, that are slow, and answers that get lost.
//!
//! Bytes are never reordered or dropped while a connection lives, as TCP does not either: what is held is passed on
//! later, or is lost with its connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a thread looks whether something has changed.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A proxy that listens on a port of its own.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    upstream: Mutex<Option<SocketAddr>>,
    /// Grows with each cut; a connection of an earlier number ends.
    cuts: AtomicU64,
    /// Nothing goes through in either direction.
    silent: AtomicBool,
    /// What the broker says is kept back.
    deaf: AtomicBool,
    /// New connections are closed at once.
    closed: AtomicBool,
    /// Bytes a second and direction; 0 is no limit.
    rate: AtomicU64,
    /// How many more bytes go to the broker before everything is cut; negative is no limit.
    until_cut: AtomicI64,
    to_broker: AtomicU64,
    held: AtomicU64,
    connections: AtomicU64,
    ended: AtomicBool,
}

impl Proxy {
    /// Listens, and has no broker behind it yet.
    pub(crate) fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { until_cut: AtomicI64::new(-1), ..State::default() });
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(client) = client {
                    State::take(&accepting, client);
                }
            }
        });
        Self { address, state }
    }

    /// Passes everything on to this address.
    pub(crate) fn towards(upstream: SocketAddr) -> Self {
        let proxy = Self::listen();
        proxy.connect_to(upstream);
        proxy
    }

    /// Passes everything on to this address from now on.
    pub(crate) fn connect_to(&self, upstream: SocketAddr) {
        *self.state.upstream.lock().unwrap() = Some(upstream);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections there are. New ones are taken.
    pub(crate) fn cut(&self) {
        self.state.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends all connections once so many more bytes have gone to the broker, most likely inside a message.
    pub(crate) fn cut_after(&self, bytes: u32) {
        self.state.until_cut.store(bytes.into(), Ordering::SeqCst);
    }

    /// How often connections were cut.
    pub(crate) fn cuts(&self) -> u64 {
        self.state.cuts.load(Ordering::SeqCst)
    }

    /// Whether connections stay open and nothing goes through them, as with a route that has gone.
    pub(crate) fn silent(&self, yes: bool) {
        self.state.silent.store(yes, Ordering::SeqCst);
    }

    /// Whether what the broker says is kept back, so that it has what was published and its acknowledgement is lost.
    pub(crate) fn hold_answers(&self, yes: bool) {
        self.state.deaf.store(yes, Ordering::SeqCst);
    }

    /// Whether new connections are closed at once.
    pub(crate) fn refuse(&self, yes: bool) {
        self.state.closed.store(yes, Ordering::SeqCst);
    }

    /// So many bytes a second go through each connection in each direction; 0 is no limit.
    pub(crate) fn slow(&self, bytes_a_second: u64) {
        self.state.rate.store(bytes_a_second, Ordering::SeqCst);
    }

    /// How many bytes the broker was given.
    pub(crate) fn to_broker(&self) -> u64 {
        self.state.to_broker.load(Ordering::SeqCst)
    }

    /// How many of the broker's bytes were kept back so far.
    pub(crate) fn held(&self) -> u64 {
        self.state.held.load(Ordering::SeqCst)
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the accepting thread.
        TcpStream::connect(self.address).ok();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToBroker,
    FromBroker,
}

impl State {
    fn take(state: &Arc<Self>, client: TcpStream) {
        let upstream = *state.upstream.lock().unwrap();
        let Some(upstream) = upstream.filter(|_| !state.closed.load(Ordering::SeqCst)) else { return };
        // A broker that is away: the client's connection ends as well.
        let Ok(broker) = TcpStream::connect(upstream) else { return };
        state.connections.fetch_add(1, Ordering::SeqCst);
        let number = state.cuts.load(Ordering::SeqCst);
        for (from, to, direction) in
            [(&client, &broker, Direction::ToBroker), (&broker, &client, Direction::FromBroker)]
        {
            let (from, to, state) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(state));
            std::thread::spawn(move || {
                state.pump(&from, &to, direction, number);
                // Both halves: what one side can no longer say, the other need not wait for.
                from.shutdown(Shutdown::Both).ok();
                to.shutdown(Shutdown::Both).ok();
            });
        }
    }

    fn is_cut(&self, number: u64) -> bool {
        self.cuts.load(Ordering::SeqCst) != number
    }

    fn holds(&self, direction: Direction) -> bool {
        self.silent.load(Ordering::SeqCst) || direction == Direction::FromBroker && self.deaf.load(Ordering::SeqCst)
    }

    /// Passes bytes on until either side closes or the connection is cut.
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, direction: Direction, number: u64) {
        from.set_read_timeout(Some(LOOK_EVERY)).unwrap();
        to.set_nodelay(true).ok();
        let mut buffer = [0; 16 * 1024];
        loop {
            if self.is_cut(number) {
                return;
            }
            let rate = self.rate.load(Ordering::SeqCst);
            let most = if rate == 0 { buffer.len() } else { (rate / 20).clamp(1, 512) as usize };
            let count = match from.read(&mut buffer[..most]) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(_) => return,
            };
            if self.holds(direction) {
                if direction == Direction::FromBroker {
                    self.held.fetch_add(count as u64, Ordering::SeqCst);
                }
                while self.holds(direction) {
                    if self.is_cut(number) {
                        return;
                    }
                    std::thread::sleep(LOOK_EVERY);
                }
                // What was held when it was cut is lost, also if no more is to be held by now.
                if self.is_cut(number) {
                    return;
                }
            }
            if rate > 0 {
                std::thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
            }
            let passed = if direction == Direction::ToBroker { self.before_cut(count) } else { count };
            if to.write_all(&buffer[..passed]).is_err() {
                return;
            }
            if direction == Direction::ToBroker {
                self.to_broker.fetch_add(passed as u64, Ordering::SeqCst);
            }
            if passed < count {
                self.cuts.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    }

    /// How many of so many bytes may still go to the broker.
    fn before_cut(&self, count: usize) -> usize {
        let count = count as i64;
        let left = self.until_cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            ..0 => None,
            left if left < count => Some(-1),
            left => Some(left - count),
        });
        left.map_or(count, |left| left.min(count)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::eventually;

    /// A server that says everything back.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                std::thread::spawn(move || std::io::copy(&mut client.try_clone().unwrap(), &mut client));
            }
        });
        address
    }

    fn said_back(client: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
        client.write_all(text)?;
        let mut back = vec![0; text.len()];
        client.read_exact(&mut back)?;
        assert_eq!(back, text);
        Ok(())
    }

    #[test]
    fn it_passes_on_holds_and_cuts() {
        let proxy = Proxy::towards(echo());
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        said_back(&mut client, b"first").unwrap();

        proxy.hold_answers(true);
        client.write_all(b"second").unwrap();
        eventually("the answer is held", || proxy.held() == 6);
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(client.read(&mut [0; 6]).is_err(), "nothing comes back");
        proxy.hold_answers(false);
        client.set_read_timeout(None).unwrap();
        client.read_exact(&mut [0; 6]).unwrap();

        proxy.silent(true);
        let before = proxy.to_broker();
        client.write_all(b"third").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(proxy.to_broker(), before);
        proxy.silent(false);
        client.read_exact(&mut [0; 5]).unwrap();

        proxy.cut_after(3);
        assert!(said_back(&mut client, b"fourth").is_err());
        assert_eq!((proxy.to_broker(), proxy.cuts()), (before + 5 + 3, 1));
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        said_back(&mut client, b"fifth, as a cut is over once it is done").unwrap();
        proxy.cut();
        eventually("it is cut", || said_back(&mut client, b"sixth").is_err());
        proxy.refuse(true);
        let refused = TcpStream::connect(proxy.address()).and_then(|mut client| said_back(&mut client, b"seventh"));
        assert!(refused.is_err());
        assert_eq!(proxy.connections(), 2);
    }

    #[test]
    fn it_is_as_slow_as_wanted() {
        let proxy = Proxy::towards(echo());
        proxy.slow(1024);
        let begun = std::time::Instant::now();
        said_back(&mut TcpStream::connect(proxy.address()).unwrap(), &[7; 512]).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());
    }
}
