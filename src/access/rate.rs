//! How many deliveries a second a source may send, or an application.
//!
//! For each there is the time at which all that it has sent would be used up at its rate; it may be ahead of now by a
//! second, which is the burst. So what was last seen a second ago says nothing any more, and sources are kept in
//! two maps: those of this second, and those of the one before. A check looks into both, and never walks through either.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Sources that each of the two maps holds at most. At one more the older map is emptied, and the sources in it have
/// their whole burst again. Some 2 MiB.
const MAX_SOURCES: usize = 10_000;

/// How long what a source has sent counts.
const BURST: Duration = Duration::from_secs(1);

/// The time at which all would be used up with one delivery more, if that is within the rate.
fn with_one_more(used_up: Option<Instant>, interval: Duration, now: Instant) -> Option<Instant> {
    let used_up = used_up.max(Some(now)).unwrap_or(now) + interval;
    (used_up <= now + BURST).then_some(used_up)
}

/// The rate of an application.
pub(super) struct Rate {
    interval: Duration,
    used_up: Mutex<Instant>,
}

impl Rate {
    pub(super) fn new(per_second: NonZeroU32, now: Instant) -> Self {
        Self { interval: BURST / per_second.get(), used_up: Mutex::new(now) }
    }

    /// Whether one more delivery is within the rate.
    pub(super) fn allows(&self, now: Instant) -> bool {
        let mut used_up = self.used_up.lock().unwrap_or_else(PoisonError::into_inner);
        let more = with_one_more(Some(*used_up), self.interval, now);
        *used_up = more.unwrap_or(*used_up);
        more.is_some()
    }
}

/// The rate of each source.
pub(super) struct RateLimiter {
    interval: Duration,
    recent: Mutex<Recent>,
}

struct Recent {
    current: HashMap<IpAddr, Instant>,
    previous: HashMap<IpAddr, Instant>,
    since: Instant,
}

impl RateLimiter {
    pub(super) fn new(per_second: NonZeroU32, now: Instant) -> Self {
        let recent = Recent { current: HashMap::new(), previous: HashMap::new(), since: now };
        Self { interval: BURST / per_second.get(), recent: Mutex::new(recent) }
    }

    /// Whether one more delivery of this source is within its rate.
    pub(super) fn allows(&self, source: IpAddr, now: Instant) -> bool {
        let source = network(source);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let more = with_one_more(recent.used_up(source), self.interval, now);
        if let Some(used_up) = more {
            recent.set(source, used_up, now);
        }
        more.is_some()
    }
}

impl Recent {
    fn used_up(&self, source: IpAddr) -> Option<Instant> {
        self.current.get(&source).or_else(|| self.previous.get(&source)).copied()
    }

    fn set(&mut self, source: IpAddr, used_up: Instant, now: Instant) {
        let is_full = self.current.len() >= MAX_SOURCES && !self.current.contains_key(&source);
        if is_full || now.saturating_duration_since(self.since) >= BURST {
            std::mem::swap(&mut self.current, &mut self.previous);
            self.current.clear();
            self.since = now;
        }
        self.current.insert(source, used_up);
    }
}

/// Who is one source: an address of IPv4, and a /64 of IPv6, which is the least that one customer gets.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(per_second: u32) -> (RateLimiter, Instant) {
        let now = Instant::now();
        (RateLimiter::new(NonZeroU32::new(per_second).unwrap(), now), now)
    }

    fn v6(network: u64, host: u64) -> IpAddr {
        Ipv6Addr::from_bits(u128::from(network) << 64 | u128::from(host)).into()
    }

    #[test]
    fn an_application_may_send_its_rate_in_any_second() {
        let begun = Instant::now();
        let rate = Rate::new(NonZeroU32::new(10).unwrap(), begun);
        assert_eq!((0..50).filter(|_| rate.allows(begun)).count(), 10);
        let sent = (1..=1_000).filter(|n| rate.allows(begun + Duration::from_millis(10) * *n)).count();
        assert_eq!(sent, 100);
        assert_eq!((0..50).filter(|_| rate.allows(begun + Duration::from_secs(30))).count(), 10);
    }

    #[test]
    fn a_source_may_send_its_rate_in_any_second() {
        let (limiter, begun) = limiter(10);
        let source = v6(1, 1);
        assert_eq!((0..50).filter(|_| limiter.allows(source, begun)).count(), 10);
        // Ten times as much as it may, over ten seconds.
        let sent = (1..=1_000).filter(|n| limiter.allows(source, begun + Duration::from_millis(10) * *n)).count();
        assert_eq!(sent, 100);
        let later = begun + Duration::from_secs(30);
        assert_eq!((0..50).filter(|_| limiter.allows(source, later)).count(), 10);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let (limiter, now) = limiter(10);
        assert_eq!((0..50).filter(|host| limiter.allows(v6(1, *host), now)).count(), 10);
        assert!(limiter.allows(v6(2, 0), now));
        // Not so those of IPv4 in the form of IPv6.
        let mapped = |host: u8| IpAddr::from(std::net::Ipv4Addr::new(10, 0, 0, host).to_ipv6_mapped());
        assert!((0..50).all(|host| limiter.allows(mapped(host), now)));
        assert_eq!((0..50).filter(|_| limiter.allows("10.0.0.1".parse().unwrap(), now)).count(), 9);
    }

    #[test]
    fn a_busy_source_is_not_forgotten_and_memory_has_a_bound() {
        let (limiter, begun) = limiter(10);
        let sizes = |limiter: &RateLimiter| {
            let recent = limiter.recent.lock().unwrap();
            (recent.current.len(), recent.previous.len())
        };
        let mut sent = 0;
        for n in 0..MAX_SOURCES as u64 * 10 {
            let now = begun + Duration::from_micros(100) * n as u32;
            assert!(limiter.allows(v6(n + 2, 0), now));
            sent += usize::from(limiter.allows(v6(1, 0), now));
            let (current, previous) = sizes(&limiter);
            assert!(current <= MAX_SOURCES && previous <= MAX_SOURCES);
        }
        // Ten seconds and the burst.
        assert!((105..=110).contains(&sent), "{sent}");
    }
}
