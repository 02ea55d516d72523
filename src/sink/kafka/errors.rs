//! What the client's errors mean: one table.

use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::error::RDKafkaErrorCode as Code;

use super::destination::Destination;
use crate::sink::{About, Failure, Fault, Reason, tls};

/// What a failed publish means; `fatal` is why the producer can't produce any more, if it can't.
pub(super) fn failure(error: &KafkaError, fatal: Option<(Code, String)>, destination: &Destination<'_>) -> Failure {
    if let Some((code, text)) = fatal {
        return Failure::fatal(reason(code), format!("the producer failed for good: {text} ({code:?})"));
    }
    let failure = match error.rdkafka_error_code() {
        Some(code) => sorted(code, destination),
        None if matches!(error, KafkaError::Canceled) => Failure::fatal(Reason::Connection, "the producer was closed"),
        // Its text could hold a part of the record.
        None => Failure::retry(About::Event, Reason::Other, "the client could not take the record"),
    };
    failure.naming(&destination.target())
}

/// Whether the broker's answer was about a batch, in which only one record may be at fault.
pub(super) fn of_the_whole_batch(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord | Code::InvalidDifferentRecord
        )
    )
}

/// What a cluster that did not answer means, given the client's last error.
pub(super) fn connecting(last: Option<(Code, String)>, brokers: &str, limit: Duration) -> Failure {
    match last {
        Some((code, text)) => Failure::Retry(About::EveryEvent, said(code, &text)),
        None => Failure::every_event(Reason::Timeout, format!("{brokers}: no answer of the cluster within {limit:?}")),
    }
}

/// What it means that no broker is reached any more, given the client's last error; the client tries on by itself.
pub(super) fn unreachable(last: Option<&(Code, String)>) -> Fault {
    let none = || Fault { reason: Reason::Connection, detail: "no broker of the cluster can be reached".into() };
    let Some((code, text)) = last else { return none() };
    match said(*code, text) {
        fault if *code == Code::SSL || fault.reason == Reason::NotAuthorized => fault,
        Fault { detail, .. } => Fault { reason: Reason::Connection, detail },
    }
}

/// What the client says, in words for people where there are better ones.
pub(super) fn said(code: Code, text: &str) -> Fault {
    // Why there is no token is already in words for people.
    if let Some(none) = text.strip_prefix("Failed to acquire SASL OAUTHBEARER token: ") {
        return Fault { reason: Reason::NotAuthorized, detail: none.to_owned() };
    }
    // How long it took is different each time, and makes the same failure look like a new one.
    let text = text.split(" (after ").next().unwrap_or(text);
    tls::explained(text).unwrap_or_else(|| Fault { reason: reason(code), detail: text.to_owned() })
}

/// What a client that can't be made means. Never echoes a property's value.
pub(super) fn creating(error: &KafkaError) -> Failure {
    let detail = match error {
        KafkaError::ClientConfig(_, text, key, _) => format!("{key}: {text}"),
        other => other.to_string(),
    };
    Failure::every_event(Reason::Other, detail)
}

/// The reason alone, where no record is concerned.
pub(super) fn reason(code: Code) -> Reason {
    sorted(code, &Destination::topic("")).fault().reason
}

/// What a code means for one record, given where it was to go.
fn sorted(code: Code, destination: &Destination<'_>) -> Failure {
    let (about, reason) = match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => return Failure::reject(Reason::TooLarge, code),
        Code::InvalidRecord => return Failure::reject(Reason::Invalid, code),
        // The producer, or its place in the broker's books, is gone.
        Code::Fatal
        | Code::GaplessGuarantee
        | Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::OutOfOrderSequenceNumber
        | Code::UnknownProducerId => return Failure::fatal(Reason::Other, code),
        Code::PurgeQueue | Code::PurgeInflight | Code::BrokerDestroy => {
            return Failure::fatal(Reason::Connection, code);
        }
        Code::QueueFull => (About::EveryEvent, Reason::QueueFull),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition | Code::InvalidTopic => {
            (destination.about_topic(), Reason::NotFound)
        }
        Code::TopicAuthorizationFailed => (destination.about_topic(), Reason::NotAuthorized),
        Code::ClusterAuthorizationFailed
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled => (About::EveryEvent, Reason::NotAuthorized),
        Code::MessageTimedOut | Code::RequestTimedOut | Code::OperationTimedOut | Code::TimedOutQueue => {
            (destination.about_partition(), Reason::Timeout)
        }
        Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve | Code::SSL | Code::NetworkException => {
            (About::EveryEvent, Reason::Connection)
        }
        Code::BrokerNotAvailable
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::ThrottlingQuotaExceeded => (About::EveryEvent, Reason::Unavailable),
        Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::ReplicaNotAvailable
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::ISRInsufficient
        | Code::KafkaStorageError => (destination.about_partition(), Reason::Unavailable),
        // The time is ours: somebody's clock is wrong, and will be put right.
        Code::InvalidTimestamp => (About::Event, Reason::Invalid),
        // Among them a damaged or policy-refused batch: open, so tried again.
        _ => (About::Event, Reason::Other),
    };
    Failure::retry(about, reason, code)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Destination<'static> = Destination { topic: "t", partition: Some(2) };

    fn publish(error: &KafkaError) -> Failure {
        failure(error, None, &HERE)
    }

    #[test]
    fn codes_are_sorted() {
        for (code, expected) in [
            (Code::QueueFull, ("every event", Reason::QueueFull)),
            (Code::MessageSizeTooLarge, ("reject", Reason::TooLarge)),
            (Code::MessageBatchTooLarge, ("reject", Reason::TooLarge)),
            (Code::InvalidRecord, ("reject", Reason::Invalid)),
            (Code::InvalidTimestamp, ("event", Reason::Invalid)),
            (Code::InvalidDifferentRecord, ("event", Reason::Other)),
            (Code::InvalidMessage, ("event", Reason::Other)),
            (Code::UnknownTopic, ("target", Reason::NotFound)),
            (Code::UnknownTopicOrPartition, ("target", Reason::NotFound)),
            (Code::TopicAuthorizationFailed, ("target", Reason::NotAuthorized)),
            (Code::ClusterAuthorizationFailed, ("every event", Reason::NotAuthorized)),
            (Code::Authentication, ("every event", Reason::NotAuthorized)),
            (Code::MessageTimedOut, ("target", Reason::Timeout)),
            (Code::BrokerTransportFailure, ("every event", Reason::Connection)),
            (Code::NotEnoughReplicas, ("target", Reason::Unavailable)),
            (Code::ThrottlingQuotaExceeded, ("every event", Reason::Unavailable)),
            (Code::PolicyViolation, ("event", Reason::Other)),
            (Code::PurgeInflight, ("fatal", Reason::Connection)),
            (Code::PurgeQueue, ("fatal", Reason::Connection)),
            (Code::Fatal, ("fatal", Reason::Other)),
            (Code::UnknownProducerId, ("fatal", Reason::Other)),
            (Code::Unknown, ("event", Reason::Other)),
        ] {
            assert_eq!(publish(&KafkaError::MessageProduction(code)).sorted(), expected, "{code:?}");
        }
    }

    #[test]
    fn a_failure_names_the_topic_or_the_partition() {
        let detail = |code| publish(&KafkaError::MessageProduction(code)).fault().detail.clone();
        assert!(detail(Code::UnknownTopicOrPartition).starts_with("topic \"t\": UnknownTopicOrPartition"));
        assert!(detail(Code::NotEnoughReplicas).starts_with("topic \"t\" partition 2: NotEnoughReplicas"));
        assert!(detail(Code::MessageSizeTooLarge).starts_with("topic \"t\" partition 2: MessageSizeTooLarge"));
    }

    #[test]
    fn a_failed_producer_makes_every_error_fatal() {
        let fatal = Some((Code::ClusterAuthorizationFailed, "no idempotent write".to_owned()));
        let failure = failure(&KafkaError::MessageProduction(Code::QueueFull), fatal, &HERE);
        assert_eq!(failure.sorted(), ("fatal", Reason::NotAuthorized), "{failure:?}");
    }

    #[test]
    fn errors_without_a_code_are_sorted() {
        assert_eq!(publish(&KafkaError::Canceled).sorted(), ("fatal", Reason::Connection));
        assert_eq!(publish(&KafkaError::Seek("x".into())).sorted(), ("event", Reason::Other));
    }

    #[test]
    fn what_a_batch_is_refused_for_may_be_a_neighbours_fault() {
        let batch = |code| of_the_whole_batch(&KafkaError::MessageProduction(code));
        assert!(
            batch(Code::MessageSizeTooLarge) && !batch(Code::InvalidTimestamp) && batch(Code::InvalidDifferentRecord)
        );
        assert!(!batch(Code::QueueFull) && !of_the_whole_batch(&KafkaError::Canceled));
    }

    #[test]
    fn a_silent_cluster_is_explained_by_the_last_error() {
        let limit = Duration::from_secs(1);
        let connecting = |last, limit| connecting(last, "h:1", limit);
        let denied = connecting(Some((Code::Authentication, "bad password".into())), limit);
        assert_eq!(denied, Failure::every_event(Reason::NotAuthorized, "bad password"));
        let none = connecting(
            Some((Code::Authentication, "Failed to acquire SASL OAUTHBEARER token: certificate verify failed".into())),
            limit,
        );
        assert_eq!(none, Failure::every_event(Reason::NotAuthorized, "certificate verify failed"), "not the broker's");
        let silent = connecting(None, limit);
        assert_eq!(silent, Failure::every_event(Reason::Timeout, "h:1: no answer of the cluster within 1s"));
        let resolved = unreachable(Some(&(Code::OperationTimedOut, "h:1/1: timed out (after 3ms in state UP)".into())));
        assert_eq!(resolved, Fault { reason: Reason::Connection, detail: "h:1/1: timed out".into() });
    }
}
