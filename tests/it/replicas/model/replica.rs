//! What a replica, the store and the broker do while nothing goes wrong.

use super::*;

impl Claims {
    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The order in which a replica received the events: the second one the other way round.
    pub(super) fn order(&self, replica: usize) -> impl Iterator<Item = usize> + use<> {
        let last = self.events - 1;
        (0..self.events).map(move |nth| if replica == 1 { last - nth } else { nth })
    }

    /// How far a replica's wall clock is ahead.
    pub(super) fn clock_ahead(replica: usize) -> Duration {
        if replica == 1 { LEASE.length } else { Duration::ZERO }
    }

    /// What may be claimed, with whether it may be sent too.
    pub(super) fn due(&self, world: &World, replica: usize) -> Vec<(usize, bool)> {
        let open = self.order(replica).filter(|event| world.replicas[replica].events[*event].phase != Phase::Finished);
        let due = open.enumerate().map(|(nth, event)| (event, nth == 0));
        due.filter(|(_, is_head)| *is_head || self.is(Mutant::ClaimsEverythingEarly)).collect()
    }

    pub(super) fn step(&self, world: &World, replica: usize, event: usize) -> Step<bool> {
        let claim = &world.replicas[replica].events[event].claim;
        match claim.known {
            Known::Other { .. } if self.is(Mutant::SkipsClaimed) => Step::Finish,
            Known::Own { .. } if self.is(Mutant::SendsOnAnOldClaim) => Step::Publish,
            Known::Bypassed if self.is(Mutant::FailsClosed) => Step::Ask(Request::Create),
            Known::Other { revision, .. } if self.is(Mutant::ComparesClocks) => {
                let Record::Claimed { owner, written } = world.records[event] else {
                    return claim.next(NOW, &LEASE);
                };
                let age = (NOW + Self::clock_ahead(replica)).saturating_sub(written + Self::clock_ahead(owner));
                if age >= LEASE.length { Step::Ask(Request::Replace(revision)) } else { claim.next(NOW, &LEASE) }
            }
            _ => claim.next(NOW, &LEASE),
        }
    }

    /// What a replica has to renew now.
    pub(super) fn renewal(&self, world: &World, replica: usize, event: usize) -> Option<Request<bool>> {
        let Replica { reaches_broker, events, .. } = &world.replicas[replica];
        let Local { claim, phase, .. } = &events[event];
        let keeps = self.is(Mutant::ClaimsEverythingEarly)
            || self.is(Mutant::KeepsClaimsWithoutABroker) && !reaches_broker && *phase == Phase::Waiting;
        let is_in_flight = matches!(phase, Phase::InFlight { .. }) && !self.is(Mutant::NeverRenews);
        if is_in_flight || keeps && *phase != Phase::Finished { claim.renewal(NOW, &LEASE) } else { None }
    }

    pub(super) fn reaches_store(world: &World, replica: usize) -> bool {
        world.is_store_up && world.replicas[replica].reaches_store
    }

    /// Whether something is to happen before time passes.
    pub(super) fn is_urgent(&self, world: &World, replica: usize) -> bool {
        let Replica { process, events, .. } = &world.replicas[replica];
        let mut events = events.iter().take(self.events).enumerate();
        *process == Process::Up
            && Self::reaches_store(world, replica)
            && events.any(|(event, local)| local.unmarked || self.renewal(world, replica, event).is_some())
    }

    pub(super) fn write(world: &mut World, event: usize, record: Record) {
        world.records[event] = record;
        for replica in &mut world.replicas {
            match &mut replica.events[event].claim.known {
                Known::Own { revision, .. } | Known::Other { revision, .. } => *revision = !CURRENT,
                Known::Nothing | Known::Bypassed | Known::Done => {}
            }
        }
    }

    pub(super) fn execute(
        &self,
        world: &mut World,
        replica: usize,
        event: usize,
        request: Request<bool>,
    ) -> Answer<bool> {
        let claimed = Record::Claimed { owner: replica, written: NOW };
        match (request, world.records[event]) {
            (Request::Done, Record::Done) => Answer::Done,
            (Request::Done, _) => {
                Self::write(world, event, Record::Done);
                Answer::Done
            }
            (Request::Release(revision), record) => {
                if revision == CURRENT && record != Record::Absent || self.is(Mutant::ReleasesBlindly) {
                    Self::write(world, event, Record::Absent);
                }
                Answer::None
            }
            (Request::Create | Request::Replace(_), Record::Absent) => {
                Self::write(world, event, claimed);
                Answer::Won(CURRENT)
            }
            (_, Record::Done) => Answer::Done,
            (Request::Replace(revision), Record::Claimed { .. })
                if revision == CURRENT || self.is(Mutant::TakesOverBlindly) =>
            {
                Self::write(world, event, claimed);
                Answer::Won(CURRENT)
            }
            (_, Record::Claimed { owner, .. }) if owner == replica => Answer::Own(CURRENT),
            (_, Record::Claimed { .. }) => Answer::Other(CURRENT),
        }
    }

    pub(super) fn answered(&self, world: &mut World, replica: usize, event: usize, answer: Answer<bool>) {
        let local = &mut world.replicas[replica].events[event];
        let before = local.claim.known;
        let in_flight = matches!(local.phase, Phase::InFlight { .. });
        local.claim.asked(NOW);
        local.claim.answered(answer, NOW, in_flight);
        if let (Known::Other { first_seen: before, .. }, Known::Other { first_seen, .. }) =
            (before, &mut local.claim.known)
            && self.is(Mutant::IgnoresRenewals)
        {
            *first_seen = before;
        }
        if matches!(answer, Answer::Won(_)) && self.is(Mutant::MarksBeforeDelivery) {
            local.unmarked = true;
        }
        if !in_flight && self.step(world, replica, event) == Step::Finish {
            world.replicas[replica].events[event].phase = Phase::Finished;
        }
    }

    pub(super) fn release(&self, world: &mut World, replica: usize, event: usize) {
        let request = world.replicas[replica].events[event].claim.release();
        if let Some(request) = request
            && Self::reaches_store(world, replica)
        {
            self.execute(world, replica, event, request);
        }
    }

    /// The broker or an operator decides: the event does not come back.
    pub(super) fn finish(world: &mut World, replica: usize, event: usize) {
        let local = &mut world.replicas[replica].events[event];
        (local.phase, local.unmarked) = (Phase::Finished, true);
    }

    pub(super) fn tick(world: &mut World) {
        let oldest = NOW - LEASE.length;
        let earlier = |moment: &mut Moment| *moment = moment.saturating_sub(TICK).max(oldest);
        for record in &mut world.records {
            if let Record::Claimed { written, .. } = record {
                earlier(written);
            }
        }
        for local in world.replicas.iter_mut().flat_map(|replica| &mut replica.events) {
            match &mut local.claim.known {
                Known::Own { since: Some(since), .. } => earlier(since),
                Known::Other { first_seen, seen, .. } => [first_seen, seen].into_iter().for_each(earlier),
                Known::Own { since: None, .. } | Known::Nothing | Known::Bypassed | Known::Done => {}
            }
        }
    }

    pub(super) fn actions_of(&self, world: &World, replica: usize, actions: &mut Vec<Action>) {
        let Replica { process, reaches_store, reaches_broker, events } = &world.replicas[replica];
        let (has_faults, has_incidents) = (world.faults < self.faults, world.incidents < self.incidents);
        let events = || events.iter().take(self.events).enumerate();
        // What is on its way arrives whatever becomes of its sender.
        for (event, local) in events() {
            if local.phase == (Phase::InFlight { arrived: false }) && *reaches_broker {
                actions.push(Action::Arrive(replica, event));
            }
            if local.late_create && world.is_store_up {
                actions.push(Action::LateCreate(replica, event));
            }
        }
        if !reaches_store {
            actions.push(Action::ReachStore(replica));
        }
        if !reaches_broker {
            actions.push(Action::ReachBroker(replica));
        }
        match process {
            Process::Paused => return actions.push(Action::Resume(replica)),
            Process::Down => return actions.push(Action::Start(replica)),
            Process::Up => {}
        }
        let due = if *reaches_broker { self.due(world, replica) } else { Vec::new() };
        for (event, is_head) in due.into_iter().filter(|(event, _)| self.is_waiting(world, replica, *event)) {
            match self.step(world, replica, event) {
                Step::Ask(request) => {
                    actions.push(Action::Ask(replica, event));
                    if has_faults && Self::reaches_store(world, replica) {
                        actions.push(Action::AskWithoutAnswer { replica, event, is_late: false });
                        if request == Request::Create {
                            actions.push(Action::AskWithoutAnswer { replica, event, is_late: true });
                        }
                    }
                }
                Step::Publish if is_head => actions.push(Action::Publish(replica, event)),
                Step::Finish => actions.push(Action::Finish(replica, event)),
                Step::Publish | Step::Wait(_) => {}
            }
        }
        for (event, local) in events() {
            if self.renewal(world, replica, event).is_some() && Self::reaches_store(world, replica) {
                actions.push(Action::Renew(replica, event));
            }
            if local.unmarked && Self::reaches_store(world, replica) {
                actions.push(Action::Mark(replica, event));
            }
            if let (Phase::InFlight { arrived }, true) = (local.phase, *reaches_broker) {
                match arrived {
                    true => actions.push(Action::Acknowledge(replica, event)),
                    false if has_incidents => {
                        actions.extend([Action::GetStuck(replica, event), Action::SetAside(replica, event)]);
                    }
                    false => {}
                }
            }
        }
        let is_quiet = |local: &Local| !local.unmarked && !matches!(local.phase, Phase::InFlight { .. });
        if has_incidents && events().all(|(_, local)| is_quiet(local)) {
            actions.push(Action::Stop(replica));
        }
        if has_faults {
            let flies = events().any(|(_, local)| local.phase == (Phase::InFlight { arrived: false }));
            for arrives in if flies { &[false, true][..] } else { &[false] } {
                for loses_acknowledged in [false, true] {
                    actions.push(Action::Crash { replica, arrives: *arrives, loses_acknowledged });
                }
                if *reaches_broker {
                    actions.push(Action::CutFromBroker { replica, arrives: *arrives });
                }
            }
            actions.push(Action::Pause(replica));
            if *reaches_store {
                actions.push(Action::CutFromStore(replica));
            }
        }
    }

    pub(super) fn is_waiting(&self, world: &World, replica: usize, event: usize) -> bool {
        world.replicas[replica].events[event].phase == Phase::Waiting
    }
}
