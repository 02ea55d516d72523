//! How many events may wait for their acknowledgement at once, when acknowledgements do not come in time.
//!
//! On a route that carries less than is given to it, whatever waits longer than the client's time-out is sent once more,
//! and the copies take what little room there is: nothing would ever be acknowledged in time. So a late acknowledgement
//! halves the window, silence and a broker that takes nothing make it one, and each acknowledgement makes it larger, as
//! TCP does it with its segments.

use tokio::time::Instant;

/// The window of a sink, as its connections have shown it to be of use.
#[derive(Debug)]
pub(super) struct CongestionWindow {
    size: usize,
    /// When the broker last answered anything about an event.
    answered: Instant,
}

impl CongestionWindow {
    /// Nothing known yet: as much as a connection makes use of.
    pub(super) fn new(now: Instant) -> Self {
        Self { size: usize::MAX, answered: now }
    }

    /// How many events may be in flight on a connection that makes use of `most`.
    pub(super) fn size(&self, most: usize) -> usize {
        self.size.min(most)
    }

    /// The broker has an event, and makes use of `most` at once.
    pub(super) fn acknowledged(&mut self, most: usize, now: Instant) {
        self.answered = now;
        self.size = self.size(most).saturating_add(1);
    }

    /// The broker has answered something else about an event.
    pub(super) fn answered(&mut self, now: Instant) {
        self.answered = now;
    }

    /// The broker takes no event at all.
    pub(super) fn refused(&mut self) {
        self.size = 1;
    }

    /// Whether the broker has answered nothing since.
    pub(super) fn is_silent_since(&self, sent: Instant) -> bool {
        self.answered < sent
    }

    /// An event that was sent then has not been acknowledged in time. Returns whether the broker has been silent all
    /// the while: then the connection is of no more use, as what was sent may still be on its way.
    pub(super) fn late(&mut self, sent: Instant) -> bool {
        let is_silent = self.is_silent_since(sent);
        self.size = if is_silent { 1 } else { (self.size / 2).max(1) };
        is_silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_window_shrinks_with_late_and_grows_with_timely_acknowledgements() {
        let now = Instant::now();
        let (before, after) = (now - Duration::from_secs(1), now + Duration::from_secs(1));
        let mut window = CongestionWindow::new(now);
        assert_eq!(window.size(128), 128);
        window.acknowledged(128, now);
        assert_eq!(window.size(128), 128, "never more than the connection makes use of");
        assert!(!window.late(before), "the broker answers");
        assert_eq!(window.size(128), 64);
        assert!(window.late(after), "the broker has answered nothing since");
        assert_eq!(window.size(128), 1);
        assert!(!window.late(before));
        assert_eq!(window.size(128), 1, "one at least");
        (0..10).for_each(|_| window.acknowledged(128, now));
        assert_eq!(window.size(128), 11);
        window.answered(after);
        assert!(!window.is_silent_since(after));
        window.refused();
        assert_eq!(window.size(128), 1);
    }
}
