//! What the client's errors mean: one table.

use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::error::RDKafkaErrorCode as Code;

use crate::sink::{Failure, Fault, Reason, tls};

/// What a failed publish means; `fatal` is why the producer can't produce any more, if it can't.
pub(super) fn failure(error: &KafkaError, fatal: Option<(Code, String)>) -> Failure {
    if let Some((code, text)) = fatal {
        return Failure::fatal(sorted(code).fault().reason, format!("the producer failed for good: {text} ({code:?})"));
    }
    match error.rdkafka_error_code() {
        Some(code) => sorted(code),
        None if matches!(error, KafkaError::Canceled) => Failure::fatal(Reason::Connection, "the producer was closed"),
        // Its text could hold a part of the record.
        None => Failure::retry(Reason::Other, "the client could not take the record"),
    }
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
pub(super) fn connecting(last: Option<(Code, String)>, limit: Duration) -> Failure {
    match last {
        Some((code, text)) => Failure::Retry(said(code, &text)),
        None => Failure::retry(Reason::Timeout, format!("no answer of the cluster within {limit:?}")),
    }
}

/// What the last error says about certificates and passwords, if it is about them; the client tries on by itself.
pub(super) fn locked_out(last: Option<&(Code, String)>) -> Option<Fault> {
    let (code, text) = last?;
    let fault = said(*code, text);
    (*code == Code::SSL || fault.reason == Reason::NotAuthorized).then_some(fault)
}

fn said(code: Code, text: &str) -> Fault {
    // Why there is no token is already in words for people.
    if let Some(none) = text.strip_prefix("Failed to acquire SASL OAUTHBEARER token: ") {
        return Fault { reason: Reason::NotAuthorized, detail: none.to_owned() };
    }
    tls::explained(text).unwrap_or_else(|| Fault { reason: sorted(code).fault().reason, detail: text.to_owned() })
}

/// What a client that can't be made means. Never echoes a property's value.
pub(super) fn creating(error: &KafkaError) -> Failure {
    let detail = match error {
        KafkaError::ClientConfig(_, text, key, _) => format!("{key}: {text}"),
        other => other.to_string(),
    };
    Failure::retry(Reason::Other, detail)
}

/// What a code means for one record alone.
pub(super) fn sorted(code: Code) -> Failure {
    let reason = match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => return Failure::reject(Reason::TooLarge, code),
        Code::InvalidRecord => return Failure::reject(Reason::Invalid, code),
        // The time is ours: somebody's clock is wrong, and will be put right.
        Code::InvalidTimestamp => Reason::Invalid,
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
        Code::QueueFull => Reason::QueueFull,
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition | Code::InvalidTopic => {
            Reason::NotFound
        }
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled => Reason::NotAuthorized,
        Code::MessageTimedOut | Code::RequestTimedOut | Code::OperationTimedOut | Code::TimedOutQueue => {
            Reason::Timeout
        }
        Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve | Code::SSL | Code::NetworkException => {
            Reason::Connection
        }
        Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerNotAvailable
        | Code::ReplicaNotAvailable
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::ISRInsufficient
        | Code::KafkaStorageError
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::ThrottlingQuotaExceeded => Reason::Unavailable,
        // Among them a damaged or policy-refused batch: open, so tried again.
        _ => Reason::Other,
    };
    Failure::retry(reason, code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code) -> (&'static str, Reason) {
        match failure(&KafkaError::MessageProduction(code), None) {
            Failure::Retry(fault) => ("retry", fault.reason),
            Failure::Reject(fault) => ("reject", fault.reason),
            Failure::Fatal(fault) => ("fatal", fault.reason),
        }
    }

    #[test]
    fn codes_are_sorted() {
        for (code, expected) in [
            (Code::QueueFull, ("retry", Reason::QueueFull)),
            (Code::MessageSizeTooLarge, ("reject", Reason::TooLarge)),
            (Code::MessageBatchTooLarge, ("reject", Reason::TooLarge)),
            (Code::InvalidRecord, ("reject", Reason::Invalid)),
            (Code::InvalidTimestamp, ("retry", Reason::Invalid)),
            (Code::InvalidDifferentRecord, ("retry", Reason::Other)),
            (Code::InvalidMessage, ("retry", Reason::Other)),
            (Code::UnknownTopic, ("retry", Reason::NotFound)),
            (Code::UnknownTopicOrPartition, ("retry", Reason::NotFound)),
            (Code::TopicAuthorizationFailed, ("retry", Reason::NotAuthorized)),
            (Code::Authentication, ("retry", Reason::NotAuthorized)),
            (Code::MessageTimedOut, ("retry", Reason::Timeout)),
            (Code::BrokerTransportFailure, ("retry", Reason::Connection)),
            (Code::NotEnoughReplicas, ("retry", Reason::Unavailable)),
            (Code::PolicyViolation, ("retry", Reason::Other)),
            (Code::PurgeInflight, ("fatal", Reason::Connection)),
            (Code::PurgeQueue, ("fatal", Reason::Connection)),
            (Code::Fatal, ("fatal", Reason::Other)),
            (Code::UnknownProducerId, ("fatal", Reason::Other)),
            (Code::Unknown, ("retry", Reason::Other)),
        ] {
            assert_eq!(of(code), expected, "{code:?}");
        }
    }

    #[test]
    fn a_failed_producer_makes_every_error_fatal() {
        let fatal = Some((Code::ClusterAuthorizationFailed, "no idempotent write".to_owned()));
        let failure = failure(&KafkaError::MessageProduction(Code::QueueFull), fatal);
        assert!(matches!(&failure, Failure::Fatal(fault) if fault.reason == Reason::NotAuthorized), "{failure:?}");
    }

    #[test]
    fn errors_without_a_code_are_sorted() {
        assert!(matches!(failure(&KafkaError::Canceled, None), Failure::Fatal(_)));
        assert!(matches!(failure(&KafkaError::Seek("x".into()), None), Failure::Retry(_)));
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
        let denied = connecting(Some((Code::Authentication, "bad password".into())), limit);
        assert_eq!(denied, Failure::retry(Reason::NotAuthorized, "bad password"));
        let none = connecting(
            Some((Code::Authentication, "Failed to acquire SASL OAUTHBEARER token: certificate verify failed".into())),
            limit,
        );
        assert_eq!(none, Failure::retry(Reason::NotAuthorized, "certificate verify failed"), "not the broker's");
        assert_eq!(connecting(None, limit).fault().reason, Reason::Timeout);
    }
}
