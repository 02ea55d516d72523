//! What becomes of the messages of one channel, from its confirmations and returns.
//!
//! The broker returns a message that no queue takes *before* it confirms it. The client keeps the returned messages of a
//! channel in the order of their arrival, and hands the oldest one to whichever confirmation comes next: with several
//! messages in flight that may be another's. So a returned message is given to whom it belongs, by its `message_id`:
//!
//! - A confirmation that carries nothing came when no returned message was waiting. If its own message was returned,
//!   an earlier confirmation has carried it.
//! - A confirmation that carries another's message says nothing of its own, which may be waiting behind it. It is
//!   *unsure* until a later confirmation carries its message, or until nothing is in flight: a returned message waits no
//!   longer than its own confirmation takes to come.
//!
//! Pure: the client is left to [`super::confirm_channel`].

use lapin::Confirmation;
use lapin::types::ShortString;

/// A message of the channel, counted in the order of sending.
pub(super) type Number = u64;

/// What is known of a message in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The broker has it, and a queue took it.
    Published,
    /// The broker refused it (nack).
    Refused,
    /// It came back.
    Returned(Reply),
    /// The channel confirms nothing.
    Unconfirmed,
}

/// Why the broker sent a message back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    pub(super) text: String,
}

/// What the client has said about one message.
#[derive(Debug)]
pub(super) struct Confirmed {
    number: Number,
    message_id: Option<ShortString>,
    /// What it would be if it was not returned.
    outcome: Outcome,
    /// A message that came back, of this or of another publish.
    carried: Option<Returned>,
}

#[derive(Debug)]
struct Returned {
    message_id: Option<ShortString>,
    reply: Reply,
}

impl Confirmed {
    pub(super) fn new(number: Number, message_id: Option<ShortString>, confirmation: Confirmation) -> Self {
        let outcome = match confirmation {
            Confirmation::Ack(_) => Outcome::Published,
            Confirmation::Nack(_) => Outcome::Refused,
            Confirmation::NotRequested => Outcome::Unconfirmed,
        };
        let carried = confirmation.take_message().map(|message| Returned {
            message_id: message.delivery.properties.message_id().clone(),
            reply: Reply { code: message.reply_code, text: message.reply_text.to_string() },
        });
        Self { number, message_id, outcome, carried }
    }
}

/// The settlement of a channel's messages.
#[derive(Debug, Default)]
pub(super) struct Settlement {
    /// What came back and whose own confirmation was not seen.
    returned: Vec<Returned>,
    /// Confirmed messages that may have come back.
    unsure: Vec<(Number, Option<ShortString>)>,
}

impl Settlement {
    /// Settles what can be settled now that these messages are confirmed and `in_flight` others are not. Every
    /// confirmation that came before one of these must be among these, or have been among earlier ones.
    pub(super) fn settle(&mut self, confirmed: Vec<Confirmed>, in_flight: usize) -> Vec<(Number, Outcome)> {
        let mut settled = Vec::with_capacity(confirmed.len());
        let mut acknowledged = Vec::with_capacity(confirmed.len());
        for Confirmed { number, message_id, outcome, carried } in confirmed {
            let is_unsure = carried.is_some();
            self.returned.extend(carried);
            match outcome {
                Outcome::Published => acknowledged.push((number, message_id, is_unsure)),
                other => settled.push((number, other)),
            }
        }
        let unsure =
            std::mem::take(&mut self.unsure).into_iter().map(|(number, message_id)| (number, message_id, true));
        for (number, message_id, is_unsure) in unsure.chain(acknowledged) {
            match self.take_returned(message_id.as_ref()) {
                Some(reply) => settled.push((number, Outcome::Returned(reply))),
                None if is_unsure && in_flight > 0 => self.unsure.push((number, message_id)),
                None => settled.push((number, Outcome::Published)),
            }
        }
        settled
    }

    /// Whether some message is confirmed and may have come back.
    pub(super) fn is_unsure(&self) -> bool {
        !self.unsure.is_empty()
    }

    /// How many messages came back whose own confirmation was not seen. While nothing is in flight, there are none.
    pub(super) fn unclaimed(&self) -> usize {
        self.returned.len()
    }

    fn take_returned(&mut self, message_id: Option<&ShortString>) -> Option<Reply> {
        let index = self.returned.iter().position(|returned| returned.message_id.as_ref() == message_id)?;
        Some(self.returned.swap_remove(index).reply)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, VecDeque};

    use proptest::prelude::*;

    use super::*;

    fn message_id(number: Number) -> ShortString {
        format!("id-{number}").into()
    }

    fn confirmed(number: Number, outcome: Outcome, carried: Option<Number>) -> Confirmed {
        let reply = Reply { code: 312, text: "NO_ROUTE".into() };
        let carried = carried.map(|number| Returned { message_id: Some(message_id(number)), reply });
        Confirmed { number, message_id: Some(message_id(number)), outcome, carried }
    }

    fn of(settled: Vec<(Number, Outcome)>) -> BTreeMap<Number, &'static str> {
        settled
            .into_iter()
            .map(|(number, outcome)| {
                let word = match outcome {
                    Outcome::Published => "published",
                    Outcome::Refused => "refused",
                    Outcome::Returned(_) => "returned",
                    Outcome::Unconfirmed => "unconfirmed",
                };
                (number, word)
            })
            .collect()
    }

    #[test]
    fn a_returned_message_goes_to_whom_it_belongs() {
        let mut settlement = Settlement::default();
        let settled = settlement
            .settle(vec![confirmed(1, Outcome::Published, Some(2)), confirmed(2, Outcome::Published, None)], 1);
        assert_eq!(of(settled), [(2, "returned")].into());
        assert!(settlement.is_unsure(), "the message 1 may be waiting behind the message 2");
        let settled = settlement.settle(vec![confirmed(3, Outcome::Published, Some(1))], 0);
        assert_eq!(of(settled), [(1, "returned"), (3, "published")].into());
        assert!(!settlement.is_unsure());
        assert_eq!(settlement.unclaimed(), 0);
    }

    #[test]
    fn what_is_refused_or_not_confirmed_is_so_whatever_it_carries() {
        let settled = Settlement::default().settle(
            vec![
                confirmed(1, Outcome::Refused, Some(3)),
                confirmed(2, Outcome::Unconfirmed, None),
                confirmed(3, Outcome::Published, None),
            ],
            5,
        );
        assert_eq!(of(settled), [(1, "refused"), (2, "unconfirmed"), (3, "returned")].into());
    }

    /// A step of the broker and of the client.
    #[derive(Clone, Debug)]
    enum Step {
        Send {
            is_returned: bool,
            is_refused: bool,
        },
        /// The broker sends the return of one of those that are to be returned.
        Return(usize),
        /// The broker confirms some, in whatever order the client takes them.
        Confirm(Vec<usize>),
        /// The channel's task settles what was confirmed.
        Settle,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any::<bool>(), prop::bool::weighted(0.1))
                .prop_map(|(is_returned, is_refused)| Step::Send { is_returned, is_refused }),
            3 => any::<usize>().prop_map(Step::Return),
            3 => prop::collection::vec(any::<usize>(), 1..6).prop_map(Step::Confirm),
            2 => Just(Step::Settle),
        ]
    }

    proptest! {
        /// The client as its source tells: one row of returned messages, each confirmation takes the oldest one.
        #[test]
        fn each_message_is_what_it_is(steps in prop::collection::vec(step(), 1..120)) {
            let mut truth = BTreeMap::new();
            let (mut unreturned, mut unconfirmed) = (Vec::new(), Vec::new());
            let (mut waiting, mut seen) = (VecDeque::new(), Vec::new());
            let (mut settlement, mut outcomes) = (Settlement::default(), BTreeMap::new());
            let end = [Step::Return(0), Step::Confirm(vec![0]), Step::Settle];
            let ends = end.iter().cycle().take(3 * 130).cloned();
            for step in steps.into_iter().chain(ends) {
                match step {
                    Step::Send { is_returned, is_refused } => {
                        let number = truth.len() as Number + 1;
                        let word = if is_refused { "refused" } else if is_returned { "returned" } else { "published" };
                        truth.insert(number, word);
                        if word == "returned" { unreturned.push(number) } else { unconfirmed.push(number) }
                    }
                    Step::Return(_) if unreturned.is_empty() => {}
                    Step::Return(index) => {
                        let number = unreturned.remove(index % unreturned.len());
                        waiting.push_back(number);
                        // Only now may it be confirmed.
                        unconfirmed.push(number);
                    }
                    Step::Confirm(indices) => for index in indices {
                        if unconfirmed.is_empty() { break; }
                        let number = unconfirmed.remove(index % unconfirmed.len());
                        let outcome = if truth[&number] == "refused" { Outcome::Refused } else { Outcome::Published };
                        seen.push(confirmed(number, outcome, waiting.pop_front()));
                    },
                    Step::Settle => {
                        // The task sees them in any order.
                        seen.reverse();
                        let in_flight = unreturned.len() + unconfirmed.len();
                        let settled = settlement.settle(std::mem::take(&mut seen), in_flight);
                        let numbers: BTreeSet<_> = settled.iter().map(|(number, _)| *number).collect();
                        prop_assert_eq!(numbers.len(), settled.len());
                        for (number, word) in of(settled) {
                            prop_assert_eq!(outcomes.insert(number, word), None, "settled twice");
                            prop_assert_eq!(word, truth[&number], "the message {}", number);
                        }
                        if in_flight == 0 {
                            prop_assert_eq!(settlement.unclaimed(), 0);
                        }
                    }
                }
            }
            prop_assert_eq!(outcomes, truth);
        }
    }
}
