//! Not faster than Sendbird allows.
//!
//! Documented: for one application and endpoint 10 `GET` in a second, 5 of every other method. Requests are spread evenly
//! and a little slower than that, as nothing is known of how Sendbird counts a second. Other programs that use the same
//! application are not known here: what they use up is answered 429 and waited for.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::request::{Endpoint, Method};

/// What Sendbird counts by.
const SECOND: Duration = Duration::from_secs(1);

/// How many requests of an endpoint are allowed in a second, and how far apart they are sent.
fn limit(method: Method) -> (usize, Duration) {
    match method {
        Method::Get => (10, Duration::from_millis(110)),
        Method::Put => (5, Duration::from_millis(220)),
    }
}

/// When each endpoint was asked last. Bounded by the number of endpoints, and for each by its limit.
#[derive(Debug, Default)]
pub(super) struct Throttle(BTreeMap<(Endpoint, Method), Past>);

#[derive(Debug, Default)]
struct Past {
    /// When the last request was sent.
    sent: Option<Duration>,
    /// When the last requests had ended, as many as the limit is. Sendbird had each of them before; so however long one
    /// was on its way, no more than the limit arrive in a second.
    ended: VecDeque<Duration>,
}

impl Throttle {
    /// How long a request has to wait yet.
    pub(super) fn wait(&self, endpoint: Endpoint, method: Method, now: Duration) -> Duration {
        let Some(past) = self.0.get(&(endpoint, method)) else { return Duration::ZERO };
        let (most, apart) = limit(method);
        let spread = past.sent.map(|sent| sent + apart);
        let within = past.ended.front().filter(|_| past.ended.len() >= most).map(|ended| *ended + SECOND);
        spread.max(within).map_or(Duration::ZERO, |due| due.saturating_sub(now))
    }

    /// A request is sent now.
    pub(super) fn sent(&mut self, endpoint: Endpoint, method: Method, now: Duration) {
        self.0.entry((endpoint, method)).or_default().sent = Some(now);
    }

    /// It has ended now, answered or not.
    pub(super) fn ended(&mut self, endpoint: Endpoint, method: Method, now: Duration) {
        let ended = &mut self.0.entry((endpoint, method)).or_default().ended;
        ended.push_back(now);
        while ended.len() > limit(method).0 {
            ended.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When requests arrive that are each on their way for a time of the list.
    fn arrivals(method: Method, ways: &[u64]) -> Vec<Duration> {
        let mut throttle = Throttle::default();
        let mut now = Duration::ZERO;
        let arrive = |way: &u64| {
            now += throttle.wait(Endpoint::Rooms, method, now);
            throttle.sent(Endpoint::Rooms, method, now);
            now += Duration::from_millis(*way);
            throttle.ended(Endpoint::Rooms, method, now);
            now
        };
        ways.iter().map(arrive).collect()
    }

    #[test]
    fn stays_within_the_documented_limits() {
        for (method, most) in [(Method::Get, 10), (Method::Put, 5)] {
            // The first one is held up, and those after it are not.
            let ways: Vec<u64> = [300].into_iter().chain([0; 40]).collect();
            for window in arrivals(method, &ways).windows(most + 1) {
                assert!(window[most] - window[0] >= SECOND, "{method:?}: {window:?}");
            }
        }
    }

    #[test]
    fn is_not_slower_than_it_has_to_be() {
        assert_eq!(arrivals(Method::Get, &[0; 10]).last(), Some(&Duration::from_millis(990)));
        assert_eq!(arrivals(Method::Put, &[0; 5]).last(), Some(&Duration::from_millis(880)));
        // Who is slow anyway does not wait.
        assert_eq!(arrivals(Method::Get, &[500; 20]).last(), Some(&Duration::from_secs(10)));
    }

    #[test]
    fn endpoints_and_methods_do_not_wait_for_each_other() {
        let mut throttle = Throttle::default();
        throttle.sent(Endpoint::Rooms, Method::Get, Duration::ZERO);
        assert_eq!(throttle.wait(Endpoint::Rooms, Method::Get, Duration::ZERO), limit(Method::Get).1);
        assert_eq!(throttle.wait(Endpoint::Room, Method::Get, Duration::ZERO), Duration::ZERO);
        assert_eq!(throttle.wait(Endpoint::Rooms, Method::Put, Duration::ZERO), Duration::ZERO);
        assert_eq!(throttle.wait(Endpoint::Rooms, Method::Get, Duration::from_secs(9)), Duration::ZERO);
    }
}
