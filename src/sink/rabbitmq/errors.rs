//! What the broker's confirmations and the client's errors mean: one table for each.

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use super::confirm_channel::Answer;
use super::settlement::{Outcome, Reply};
use crate::sink::{About, Ack, Failure, Fault, Reason, Target, tls};

/// What the answer to a publish to this target means, given whether the connection itself is alive.
pub(super) fn answered(answer: Answer, alive: bool, target: &Target) -> Result<Ack, Failure> {
    match answer {
        Answer::Settled(Outcome::Published) => Ok(Ack::default()),
        Answer::Settled(Outcome::Returned(Reply { code, text })) => Err(returned(code, &text, target)),
        // A queue that is full or has no quorum; the broker does not say which.
        Answer::Settled(Outcome::Refused) => {
            let detail = "the broker refused the message (nack)";
            Err(Failure::retry(About::Target(target.clone()), Reason::Unavailable, detail))
        }
        Answer::Settled(Outcome::Unconfirmed) => {
            Err(Failure::fatal(Reason::Other, "bug: the channel is not in confirm mode, so nothing is confirmed"))
        }
        Answer::Ended { error, .. } => Err(failure(&error, alive, target)),
        Answer::Blocked => Err(blocked()),
        Answer::Unsure => {
            let detail = "the channel ended, or went silent, before it was known whether the message came back";
            Err(Failure::retry(About::Event, Reason::Timeout, detail))
        }
    }
}

fn returned(code: u16, text: &str, target: &Target) -> Failure {
    match code {
        312 => Failure::reject(Reason::Unroutable, format!("{text}: no queue is bound for the routing key")),
        _ => {
            let detail = format!("the broker sent the message back: {text} ({code})");
            Failure::retry(About::Target(target.clone()), Reason::Unavailable, detail)
        }
    }
}

pub(super) fn lost() -> Failure {
    Failure::fatal(Reason::Connection, "the connection to the broker broke")
}

pub(super) fn blocked() -> Failure {
    Failure::every_event(Reason::Unavailable, "the broker blocks publishers (memory or disk alarm)")
}

/// What an error of the client means when it connects or looks at the exchange.
pub(super) fn connecting(error: &lapin::Error) -> Fault {
    failure(error, false, &Target::new("")).fault().clone()
}

/// What an error of the client means for a publish to this target, given whether the connection itself is alive.
pub(super) fn failure(error: &lapin::Error, alive: bool, target: &Target) -> Failure {
    match error.kind() {
        ErrorKind::ProtocolError(answer) => match answer.kind() {
            AMQPErrorKind::Soft(kind) => soft(kind, answer.get_message().as_str(), target),
            AMQPErrorKind::Hard(kind) => hard(kind, answer.get_message().as_str()),
        },
        // One channel is gone, or all of them are because the connection is.
        ErrorKind::InvalidChannel(_) | ErrorKind::InvalidChannelState(..) if alive => {
            Failure::retry(About::Event, Reason::Connection, error)
        }
        ErrorKind::ChannelsLimitReached if alive => Failure::every_event(Reason::Unavailable, error),
        ErrorKind::InvalidChannel(_)
        | ErrorKind::InvalidChannelState(..)
        | ErrorKind::ChannelsLimitReached
        | ErrorKind::InvalidConnectionState(_)
        | ErrorKind::RuntimeShutdownError(_) => Failure::fatal(Reason::Connection, error),
        ErrorKind::IOError(_) => match tls::explained(&error.to_string()) {
            Some(fault) => Failure::Fatal(fault),
            None => Failure::fatal(Reason::Connection, error),
        },
        ErrorKind::MissingHeartbeatError => Failure::fatal(Reason::Timeout, error),
        ErrorKind::AuthProviderError(_) => Failure::fatal(Reason::NotAuthorized, error),
        ErrorKind::InvalidProtocolVersion(_)
        | ErrorKind::ParsingError(_)
        | ErrorKind::SerialisationError(_)
        | ErrorKind::FutureCompleted
        | ErrorKind::NoDefaultRuntime => Failure::fatal(Reason::Other, error),
        // The client may add kinds.
        _ => Failure::retry(About::Event, Reason::Other, error),
    }
}

/// The broker ended one channel, for the one message on it.
fn soft(kind: &AMQPSoftError, text: &str, target: &Target) -> Failure {
    let about_target = About::Target(target.clone());
    match kind {
        AMQPSoftError::CONTENTTOOLARGE => Failure::reject(Reason::TooLarge, text),
        // The broker has no code of its own for this one.
        AMQPSoftError::PRECONDITIONFAILED if text.contains("larger than") => Failure::reject(Reason::TooLarge, text),
        AMQPSoftError::PRECONDITIONFAILED => Failure::retry(About::Event, Reason::Other, text),
        // Of the exchange, or of the routing key where the broker checks that as well.
        AMQPSoftError::ACCESSREFUSED => Failure::retry(about_target, Reason::NotAuthorized, text),
        // The exchange, which is the same for all.
        AMQPSoftError::NOTFOUND => Failure::every_event(Reason::NotFound, text),
        AMQPSoftError::NOROUTE => Failure::reject(Reason::Unroutable, text),
        AMQPSoftError::NOCONSUMERS | AMQPSoftError::RESOURCELOCKED => {
            Failure::retry(about_target, Reason::Unavailable, text)
        }
    }
}

/// The broker ended the connection.
fn hard(kind: &AMQPHardError, text: &str) -> Failure {
    let reason = match kind {
        // The virtual host, which the broker reports like one that the user may not use.
        AMQPHardError::INVALIDPATH | AMQPHardError::NOTALLOWED if text.contains("not found") => Reason::NotFound,
        AMQPHardError::CONNECTIONFORCED => Reason::Connection,
        AMQPHardError::INVALIDPATH | AMQPHardError::NOTALLOWED => Reason::NotAuthorized,
        AMQPHardError::RESOURCEERROR | AMQPHardError::INTERNALERROR => Reason::Unavailable,
        AMQPHardError::FRAMEERROR
        | AMQPHardError::SYNTAXERROR
        | AMQPHardError::COMMANDINVALID
        | AMQPHardError::CHANNELERROR
        | AMQPHardError::UNEXPECTEDFRAME
        | AMQPHardError::NOTIMPLEMENTED => Reason::Other,
    };
    Failure::fatal(reason, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::protocol::AMQPError;
    use lapin::{ChannelState, ConnectionState};

    fn target() -> Target {
        Target::new("t")
    }

    fn answer(code: u16, text: &str) -> Failure {
        let kind = AMQPErrorKind::from_id(code).expect("a code");
        failure(&ErrorKind::ProtocolError(AMQPError::new(kind, text.into())).into(), true, &target())
    }

    #[test]
    fn answers_are_sorted() {
        for (code, text, expected) in [
            (311, "", ("reject", Reason::TooLarge)),
            (312, "", ("reject", Reason::Unroutable)),
            (313, "", ("target", Reason::Unavailable)),
            (403, "", ("target", Reason::NotAuthorized)),
            (404, "", ("every event", Reason::NotFound)),
            (405, "", ("target", Reason::Unavailable)),
            (406, "PRECONDITION_FAILED - inequivalent arg", ("event", Reason::Other)),
            (
                406,
                "PRECONDITION_FAILED - message size 134217729 is larger than configured max size 134217728",
                ("reject", Reason::TooLarge),
            ),
            (320, "", ("fatal", Reason::Connection)),
            (402, "", ("fatal", Reason::NotAuthorized)),
            (501, "", ("fatal", Reason::Other)),
            (505, "", ("fatal", Reason::Other)),
            (506, "", ("fatal", Reason::Unavailable)),
            (530, "", ("fatal", Reason::NotAuthorized)),
            (530, "NOT_ALLOWED - vhost none not found", ("fatal", Reason::NotFound)),
            (541, "", ("fatal", Reason::Unavailable)),
        ] {
            assert_eq!(answer(code, text).sorted(), expected, "{code}");
        }
    }

    #[test]
    fn the_clients_errors_are_sorted() {
        let io = || ErrorKind::IOError(std::sync::Arc::new(std::io::Error::other("cut")));
        for (kind, alive, expected) in [
            (io(), true, ("fatal", Reason::Connection)),
            (ErrorKind::InvalidChannel(1), true, ("event", Reason::Connection)),
            (ErrorKind::InvalidChannelState(ChannelState::Error, ""), true, ("event", Reason::Connection)),
            (ErrorKind::InvalidChannelState(ChannelState::Error, ""), false, ("fatal", Reason::Connection)),
            (ErrorKind::InvalidConnectionState(ConnectionState::Closed), true, ("fatal", Reason::Connection)),
            (ErrorKind::ChannelsLimitReached, true, ("every event", Reason::Unavailable)),
            (ErrorKind::MissingHeartbeatError, true, ("fatal", Reason::Timeout)),
            (ErrorKind::FutureCompleted, true, ("fatal", Reason::Other)),
        ] {
            assert_eq!(failure(&kind.clone().into(), alive, &target()).sorted(), expected, "{kind:?} {alive}");
        }
    }

    #[test]
    fn answers_to_publishes_are_sorted() {
        let of = |answer| answered(answer, true, &target());
        let returned = |code| Answer::Settled(Outcome::Returned(Reply { code, text: "NO_ROUTE".into() }));
        let ended = || Answer::Ended { error: ErrorKind::InvalidChannel(1).into(), is_alone: true };
        assert_eq!(of(Answer::Settled(Outcome::Published)), Ok(Ack::default()));
        for (answer, expected) in [
            (returned(312), ("reject", Reason::Unroutable)),
            (returned(313), ("target", Reason::Unavailable)),
            (Answer::Settled(Outcome::Refused), ("target", Reason::Unavailable)),
            (Answer::Settled(Outcome::Unconfirmed), ("fatal", Reason::Other)),
            (ended(), ("event", Reason::Connection)),
            (Answer::Blocked, ("every event", Reason::Unavailable)),
            (Answer::Unsure, ("event", Reason::Timeout)),
        ] {
            let said = format!("{answer:?}");
            assert_eq!(of(answer).expect_err(&said).sorted(), expected, "{said}");
        }
        assert_eq!(answered(ended(), false, &target()).expect_err("ended").sorted().0, "fatal");
    }
}
