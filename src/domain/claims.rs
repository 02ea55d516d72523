//! The claim protocol: which of several replicas publishes an event that all of them received.
//!
//! Each replica has a journal of its own and a sink of the same target; they share a store with one record for each event
//! and sink. A [`Claim`] is what one replica knows of one such record, and decides what it does next. It computes only:
//! whoever drives it sends its [`Request`]s to the store, tells it the [`Answer`]s, and publishes when it says so.
//!
//! ```text
//!             create                   acknowledged by the broker
//!   absent ------------> claimed --------------------------------> done
//!      ^                 |  ^  |       (written by anybody, whatever was there)
//!      |    release      |  |  | replace: renewed by its owner,
//!      +-----------------+  +--+ or taken over by another
//! ```
//!
//! A record is written first by *create*, which fails if there is one; after that only at the revision that was read, and
//! each write makes a new revision. The store judges by the write itself, never by a read before it. *Done* is the exception: it is true whoever writes it, so it is written whatever is there.
//!
//! The rules, each of which has a mutant in the model (`tests/it/replicas`) that shows what breaks without it:
//!
//! - *Done* is written only once the broker has acknowledged. A mark from before survives a crash that the event does not.
//! - A record that another replica has claimed is waited for, never skipped.
//! - A claim is taken over once the same revision was seen for a whole lease, by the observer's own monotonic clock. No
//!   time is stored, so no two clocks are compared.
//! - Before it is sent, a claim must be younger than a third of the lease, counted from before the store was asked.
//! - Without an answer the event is published all the same.
//!
//! It is for the caller to claim nothing but what could be sent at once: the first event of its key, over an open
//! connection. Two replicas that hold a later event each, of one key, would wait for each other.

use std::time::Duration;

/// A point in time of a replica's own monotonic clock, as the time since some fixed point.
pub type Moment = Duration;

/// How long a claim holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// How long a claim is left alone that does not change.
    pub length: Duration,
    /// The pause before a claim of another replica is looked at once more.
    pub pause: Duration,
}

impl Lease {
    /// The age from which an own claim is asked for anew before it is used, and while its event is in flight.
    pub fn renewal(&self) -> Duration {
        self.length / 3
    }
}

/// What the store is asked for. `R` is what tells one write of a record from the next, and is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request<R> {
    /// Write a claim if there is no record.
    Create,
    /// Write a claim if the record is still of this revision, or gone: an own claim is renewed, another's taken over.
    Replace(R),
    /// Remove the record if it is still of this revision.
    Release(R),
    /// Write that the event is done with, whatever there is.
    Done,
}

/// What the store answers to a [`Request::Create`] or [`Request::Replace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer<R> {
    /// The claim was written, at this revision.
    Won(R),
    /// There is a claim that this replica wrote, in this run or one before; how old it is is not known.
    Own(R),
    /// There is a claim of another replica.
    Other(R),
    /// Some replica is done with the event.
    Done,
    /// None within the patience that there is, or an error. The store may have done it all the same, or may do it later.
    None,
}

/// What is to be done with an event whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<R> {
    /// Ask the store, and say so by [`Claim::asked`].
    Ask(Request<R>),
    /// Wait: for the answer to what was asked, or at most until this moment. Its key waits with it.
    Wait(Option<Moment>),
    /// Publish it now.
    Publish,
    /// Nothing: it is published elsewhere.
    Finish,
}

/// What is known of the record of one event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Known<R> {
    /// Nothing.
    #[default]
    Nothing,
    /// It is this replica's claim, written after `since`; `None` if that is not known.
    Own {
        /// The revision that was written last.
        revision: R,
        /// A moment before it was written.
        since: Option<Moment>,
    },
    /// It is another replica's claim.
    Other {
        /// The revision that was seen last.
        revision: R,
        /// When this revision was seen first.
        first_seen: Moment,
        /// When any was seen last.
        seen: Moment,
    },
    /// The store did not answer: the event is published without a claim.
    Bypassed,
    /// Some replica is done with the event.
    Done,
}

/// What a replica knows of the record of one event, and what it has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim<R> {
    /// What is known.
    pub known: Known<R>,
    /// When the store was asked, while it has not answered.
    pub asked: Option<Moment>,
}

impl<R> Default for Claim<R> {
    fn default() -> Self {
        Self { known: Known::Nothing, asked: None }
    }
}

impl<R: Copy + PartialEq> Claim<R> {
    /// What is to be done now that it is the event's turn and its sink is connected.
    pub fn next(&self, now: Moment, lease: &Lease) -> Step<R> {
        if self.asked.is_some() {
            return Step::Wait(None);
        }
        match self.known {
            Known::Nothing => Step::Ask(Request::Create),
            Known::Own { since: Some(since), .. } if now.saturating_sub(since) < lease.renewal() => Step::Publish,
            Known::Own { revision, .. } => Step::Ask(Request::Replace(revision)),
            Known::Other { revision, first_seen, .. } if now.saturating_sub(first_seen) >= lease.length => {
                Step::Ask(Request::Replace(revision))
            }
            Known::Other { seen, .. } if now.saturating_sub(seen) >= lease.pause => Step::Ask(Request::Create),
            Known::Other { seen, .. } => Step::Wait(Some(seen + lease.pause)),
            Known::Bypassed => Step::Publish,
            Known::Done => Step::Finish,
        }
    }

    /// What is to be asked while the event is in flight, so that nobody takes it over.
    pub fn renewal(&self, now: Moment, lease: &Lease) -> Option<Request<R>> {
        match self.known {
            Known::Own { revision, since } if self.asked.is_none() => {
                let is_due = since.is_none_or(|since| now.saturating_sub(since) >= lease.renewal());
                is_due.then_some(Request::Replace(revision))
            }
            _ => None,
        }
    }

    /// The store is asked at this moment, for what [`Claim::next`] or [`Claim::renewal`] has said.
    pub fn asked(&mut self, now: Moment) {
        self.asked = Some(now);
    }

    /// The store has answered, or has not in time. `in_flight` says whether the event is being published meanwhile: then
    /// what the answer says is known, but only the broker decides what becomes of it.
    pub fn answered(&mut self, answer: Answer<R>, now: Moment, in_flight: bool) {
        let asked = self.asked.take();
        self.known = match (answer, self.known) {
            // The claim was not written before it was asked for, so its age is never thought to be less than it is.
            (Answer::Won(revision), _) => Known::Own { revision, since: asked },
            (Answer::Own(revision), _) => Known::Own { revision, since: None },
            (Answer::Other(revision), Known::Other { revision: before, first_seen, .. }) if revision == before => {
                Known::Other { revision, first_seen, seen: now }
            }
            (Answer::Other(revision), _) => Known::Other { revision, first_seen: now, seen: now },
            (Answer::Done, _) => Known::Done,
            // It is asked once more when the next renewal is due.
            (Answer::None, known) if in_flight => known,
            (Answer::None, _) => Known::Bypassed,
        };
    }

    /// The event is not going to be sent now: its sink has lost its broker, is paused or stops, or the event is stuck.
    /// Returns what gives the claim back, so that another replica goes on at once; that it fails changes nothing.
    ///
    /// Not for an event in flight: whether it was published is not known then, and another replica is to wait for the lease.
    pub fn release(&mut self) -> Option<Request<R>> {
        let known = std::mem::take(&mut self.known);
        match known {
            Known::Own { revision, .. } => Some(Request::Release(revision)),
            // What another replica does is waited for as long as before.
            Known::Other { .. } | Known::Done => {
                self.known = known;
                None
            }
            Known::Nothing | Known::Bypassed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Lease = Lease { length: Duration::from_secs(30), pause: Duration::from_millis(50) };

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn asked(answer: Answer<u64>, now: Moment) -> Claim<u64> {
        let mut claim = Claim::default();
        claim.asked(now);
        claim.answered(answer, now, false);
        claim
    }

    #[test]
    fn a_won_claim_is_used_for_a_third_of_the_lease_from_before_it_was_asked_for() {
        let mut claim = Claim::default();
        assert_eq!(claim.next(at(100), &LEASE), Step::Ask(Request::Create));
        claim.asked(at(100));
        assert_eq!(claim.next(at(100), &LEASE), Step::Wait(None));
        claim.answered(Answer::Won(7), at(105), false);
        assert_eq!(claim.next(at(109), &LEASE), Step::Publish);
        assert_eq!(claim.renewal(at(109), &LEASE), None);
        assert_eq!(claim.next(at(110), &LEASE), Step::Ask(Request::Replace(7)));
        assert_eq!(claim.renewal(at(110), &LEASE), Some(Request::Replace(7)));
    }

    #[test]
    fn the_claim_of_another_is_taken_over_once_one_revision_was_seen_for_the_lease() {
        let mut claim = asked(Answer::Other(1), at(0));
        assert_eq!(claim.next(at(0), &LEASE), Step::Wait(Some(LEASE.pause)));
        assert_eq!(claim.next(at(29), &LEASE), Step::Ask(Request::Create));
        claim.asked(at(29));
        claim.answered(Answer::Other(2), at(29), false);
        assert_eq!(claim.next(at(58), &LEASE), Step::Ask(Request::Create), "it was renewed");
        claim.asked(at(58));
        claim.answered(Answer::Other(2), at(58), false);
        assert_eq!(claim.next(at(59), &LEASE), Step::Ask(Request::Replace(2)));
    }

    #[test]
    fn an_own_claim_of_a_run_before_is_renewed_before_it_is_used() {
        let claim = asked(Answer::Own(3), at(0));
        assert_eq!(claim.next(at(0), &LEASE), Step::Ask(Request::Replace(3)));
    }

    #[test]
    fn without_an_answer_an_event_is_published_and_one_in_flight_goes_on() {
        assert_eq!(asked(Answer::None, at(0)).next(at(0), &LEASE), Step::Publish);
        let mut claim = asked(Answer::Won(1), at(0));
        claim.asked(at(10));
        claim.answered(Answer::None, at(11), true);
        assert_eq!(claim.renewal(at(11), &LEASE), Some(Request::Replace(1)));
        assert_eq!(claim.next(at(11), &LEASE), Step::Ask(Request::Replace(1)), "if it has to be sent once more");
    }

    #[test]
    fn what_is_done_elsewhere_is_finished() {
        assert_eq!(asked(Answer::Done, at(0)).next(at(0), &LEASE), Step::Finish);
    }

    #[test]
    fn only_an_own_claim_is_given_back_and_a_lease_of_another_goes_on() {
        let mut own = asked(Answer::Won(4), at(0));
        assert_eq!(own.release(), Some(Request::Release(4)));
        assert_eq!((own.release(), own.next(at(0), &LEASE)), (None, Step::Ask(Request::Create)));
        let mut other = asked(Answer::Other(4), at(0));
        assert_eq!(other.release(), None);
        assert_eq!(other.next(at(30), &LEASE), Step::Ask(Request::Replace(4)));
        let mut bypassed = asked(Answer::None, at(0));
        assert_eq!((bypassed.release(), bypassed.next(at(0), &LEASE)), (None, Step::Ask(Request::Create)));
    }
}
