//! How many events may wait for their acknowledgement at once, when acknowledgements do not come in time.
//!
//! On a route that carries less than is given to it, whatever waits longer than the client's time-out goes out
//! once more, and the copies take what little room there is: nothing would ever be acknowledged in time. So a
//! late acknowledgement halves the window, silence makes it one, and each acknowledgement makes it larger
//! again, as TCP does it with its segments.

use tokio::time::Instant;

/// The window of a sink, as its connections have shown it to be of use.
#[derive(Debug)]
pub(super) struct Pace {
    window: usize,
    /// When the broker last said anything about an event.
    heard: Instant,
}

impl Pace {
    /// Nothing known yet: as much as a connection makes use of.
    pub(super) fn new() -> Self {
        Self { window: usize::MAX, heard: Instant::now() }
    }

    /// How many events may be in flight on a connection that makes use of `most`.
    pub(super) fn window(&self, most: usize) -> usize {
        self.window.min(most)
    }

    /// The broker has an event, and makes use of `most` at once.
    pub(super) fn acknowledged(&mut self, most: usize) {
        self.heard = Instant::now();
        self.window = self.window(most).saturating_add(1);
    }

    /// The broker has said something else about an event.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// An event that was sent then has not been acknowledged in time. Says whether the broker has been silent all
    /// the while: then the connection is of no more use, as what was sent may still be on its way.
    pub(super) fn late(&mut self, sent: Instant) -> bool {
        let silent = self.heard < sent;
        self.window = if silent { 1 } else { (self.window / 2).max(1) };
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_window_shrinks_with_late_and_grows_with_timely_acknowledgements() {
        let mut pace = Pace::new();
        assert_eq!(pace.window(128), 128);
        pace.acknowledged(128);
        assert_eq!(pace.window(128), 128, "never more than the connection makes use of");
        let sent = Instant::now();
        pace.acknowledged(128);
        assert!(!pace.late(sent - Duration::from_secs(1)), "the broker speaks");
        assert_eq!(pace.window(128), 64);
        assert!(pace.late(Instant::now() + Duration::from_secs(1)), "the broker has said nothing since");
        assert_eq!(pace.window(128), 1);
        pace.late(sent - Duration::from_secs(1));
        assert_eq!(pace.window(128), 1, "one at least");
        (0..10).for_each(|_| pace.acknowledged(128));
        assert_eq!(pace.window(128), 11);
        pace.heard();
        assert_eq!(pace.window(128), 11);
    }
}
