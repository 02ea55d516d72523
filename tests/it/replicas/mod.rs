//! Several replicas with one window: the protocol, before any store.
//!
//! The model drives `domain::claims` through every interleaving of three replicas, with faults at every step, and says
//! what it has gone through. Each rule of the protocol has a mutant without it, which must be caught.

mod model;
mod search;

use std::time::Instant;

use self::model::{Action, Claims, Fault, INVARIANTS, Mutant};
use self::search::{Counterexample, Explored, explore};

/// Goes through everything, prints how much that was and what each invariant was tried on, and expects no fault.
#[track_caller]
fn holds(what: &str, mut claims: Claims, exercised: &[usize]) -> Claims {
    let begun = Instant::now();
    let explored = explore(&mut claims);
    let seconds = begun.elapsed().as_secs_f64();
    let Explored { states, steps, depth } = match explored {
        Ok(explored) => explored,
        Err(Counterexample { fault, steps }) => panic!("{what}: {fault}, after {steps:?}"),
    };
    eprintln!("{what}: {states} states, {steps} steps, at most {depth} from the start, {seconds:.1} s");
    for (number, invariant) in INVARIANTS.iter().enumerate() {
        match claims.evidence[invariant] {
            0 => eprintln!("  not exercised: {invariant}"),
            states => eprintln!("  in {states} states: {invariant}"),
        }
        assert_eq!(claims.evidence[invariant] > 0, exercised.contains(&number), "{what}: {invariant}");
    }
    claims
}

/// What goes wrong without a rule.
#[track_caller]
fn caught(mutant: Mutant, (replicas, events, faults): (usize, usize, usize)) -> (String, Vec<Action>) {
    let mut claims = Claims::new(replicas, events, faults).with(mutant);
    match explore(&mut claims) {
        Ok(explored) => panic!("{mutant:?} is not caught in {explored:?}"),
        Err(Counterexample { fault, steps }) => {
            eprintln!("{mutant:?}: {fault}, after {steps:?}");
            (fault, steps)
        }
    }
}

#[test]
fn two_events_of_one_key_in_opposite_orders_hold_up_nobody() {
    let claims = Claims { incidents: 0, ..Claims::new(2, 2, 1) };
    holds("2 replicas, 2 events, 1 fault", claims, &[0, 1, 2, 3, 4, 5]);
}

#[test]
fn two_faults_cost_no_more_than_both_rows() {
    holds("2 replicas, 1 event, 2 faults", Claims::new(2, 1, 2), &[0, 1, 2, 3, 4, 5]);
}

#[test]
#[ignore = "the long form: minutes, and some GiB of memory"]
fn three_replicas_with_two_events_or_two_faults() {
    holds("3 replicas, 1 event, 2 faults", Claims::new(3, 1, 2), &[0, 1, 2, 3, 4, 5]);
    holds("2 replicas, 2 events, 1 fault", Claims::new(2, 2, 1), &[0, 1, 2, 3, 4, 5]);
    holds("3 replicas, 2 events, no fault", Claims::new(3, 2, 0), &[0, 1, 5]);
}

/// The failure table of docs/adr/0023, for three replicas that have all received the event.
#[test]
fn each_fault_costs_as_many_copies_as_its_row_says() {
    let claims = holds("3 replicas, 1 event, 1 fault", Claims::new(3, 1, 1), &[0, 1, 2, 3, 4, 5]);
    let expected = [
        (Fault::CrashBeforePublish, 0),
        (Fault::CrashAfterPublish, 1),
        (Fault::Pause, 1),
        (Fault::StoreAway, 2),
        (Fault::StoreForgets, 1),
        (Fault::CutFromStore, 1),
        (Fault::CutFromBrokerBeforePublish, 0),
        (Fault::CutFromBrokerInFlight, 1),
        (Fault::NoAnswer, 1),
    ];
    eprintln!("copies after one fault: {:?}", claims.copies_after);
    assert_eq!(claims.copies_after, expected.into());
}

#[test]
fn a_mark_before_the_delivery_loses_the_event() {
    let (fault, steps) = caught(Mutant::MarksBeforeDelivery, (2, 1, 1));
    assert!(fault.contains("is lost"), "{fault}, after {steps:?}");
}

#[test]
fn to_skip_what_is_claimed_loses_the_event() {
    let (fault, steps) = caught(Mutant::SkipsClaimed, (2, 1, 1));
    assert!(fault.contains("is lost"), "{fault}, after {steps:?}");
}

#[test]
fn clocks_that_are_compared_publish_twice_without_a_fault() {
    let (fault, steps) = caught(Mutant::ComparesClocks, (2, 1, 0));
    assert!(fault.contains("2 times without a fault"), "{fault}, after {steps:?}");
}

#[test]
fn claims_of_later_events_wait_for_each_other_for_ever() {
    let (fault, steps) = caught(Mutant::ClaimsEverythingEarly, (2, 2, 0));
    assert_eq!(fault, "nothing leads to the end", "after {steps:?}");
}

#[test]
fn an_old_claim_that_is_used_publishes_twice_without_a_fault() {
    let (fault, steps) = caught(Mutant::SendsOnAnOldClaim, (2, 1, 0));
    assert!(fault.contains("2 times without a fault"), "{fault}, after {steps:?}");
}

#[test]
fn a_claim_that_is_not_renewed_publishes_twice_without_a_fault() {
    let (fault, steps) = caught(Mutant::NeverRenews, (2, 1, 0));
    assert!(fault.contains("2 times without a fault"), "{fault}, after {steps:?}");
}

#[test]
fn a_lease_that_ignores_renewals_publishes_twice_without_a_fault() {
    let (fault, steps) = caught(Mutant::IgnoresRenewals, (2, 1, 0));
    assert!(fault.contains("2 times without a fault"), "{fault}, after {steps:?}");
}

#[test]
fn a_take_over_without_a_revision_publishes_twice() {
    let (fault, steps) = caught(Mutant::TakesOverBlindly, (2, 1, 0));
    assert!(fault.contains("2 times without a fault"), "{fault}, after {steps:?}");
}

#[test]
fn a_release_without_a_revision_publishes_twice() {
    let (fault, steps) = caught(Mutant::ReleasesBlindly, (3, 1, 0));
    assert!(fault.contains("2 times without a fault"), "{fault}, after {steps:?}");
}

#[test]
fn to_wait_for_a_store_that_is_away_ends_everything() {
    let (fault, steps) = caught(Mutant::FailsClosed, (2, 1, 1));
    assert_eq!(fault, "nothing leads to the end", "after {steps:?}");
}

#[test]
fn a_replica_without_a_broker_that_keeps_its_claims_holds_up_the_others() {
    let (fault, steps) = caught(Mutant::KeepsClaimsWithoutABroker, (2, 1, 1));
    assert_eq!(fault, "nothing leads to the end", "after {steps:?}");
}
