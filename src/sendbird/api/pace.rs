//! Not faster than Sendbird allows.
//!
//! Documented: for one application and endpoint 10 `GET` in a second, 5 of every other method. Requests are spread evenly
//! and a little slower than that, as nothing is known of how Sendbird counts a second. Other programs that use the same
//! application are not known here: what they use up is answered 429 and waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use super::request::{Endpoint, Method};

/// From one `GET` of an endpoint to the next.
const GET: Duration = Duration::from_millis(110);

/// From one `PUT` of an endpoint to the next.
const PUT: Duration = Duration::from_millis(220);

/// When each endpoint was asked last. Bounded by the number of endpoints.
#[derive(Debug, Default)]
pub(super) struct Pace(BTreeMap<(Endpoint, Method), Duration>);

impl Pace {
    /// How long a request has to wait yet.
    pub(super) fn wait(&self, endpoint: Endpoint, method: Method, now: Duration) -> Duration {
        let apart = match method {
            Method::Get => GET,
            Method::Put => PUT,
        };
        let last = self.0.get(&(endpoint, method));
        last.map_or(Duration::ZERO, |last| (*last + apart).saturating_sub(now))
    }

    /// A request is sent now.
    pub(super) fn sent(&mut self, endpoint: Endpoint, method: Method, now: Duration) {
        self.0.insert((endpoint, method), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests go out within the first second, the one at 0 included.
    fn in_a_second(method: Method) -> usize {
        let mut pace = Pace::default();
        let mut now = Duration::ZERO;
        let mut sent = 0;
        loop {
            now += pace.wait(Endpoint::Rooms, method, now);
            if now > Duration::from_secs(1) {
                return sent;
            }
            pace.sent(Endpoint::Rooms, method, now);
            sent += 1;
        }
    }

    #[test]
    fn stays_within_the_documented_limits() {
        assert_eq!((in_a_second(Method::Get), in_a_second(Method::Put)), (10, 5));
    }

    #[test]
    fn endpoints_and_methods_do_not_wait_for_each_other() {
        let mut pace = Pace::default();
        pace.sent(Endpoint::Rooms, Method::Get, Duration::ZERO);
        assert_eq!(pace.wait(Endpoint::Rooms, Method::Get, Duration::ZERO), GET);
        assert_eq!(pace.wait(Endpoint::Room, Method::Get, Duration::ZERO), Duration::ZERO);
        assert_eq!(pace.wait(Endpoint::Rooms, Method::Put, Duration::ZERO), Duration::ZERO);
        assert_eq!(pace.wait(Endpoint::Rooms, Method::Get, Duration::from_secs(9)), Duration::ZERO);
    }
}
