//! What goes wrong, and how many copies each fault may cost: the rows of the failure table.

use super::*;

impl Claims {
    pub(super) fn note(world: &mut World, fault: Fault) {
        world.first_fault = if world.faults == 0 { Some(fault) } else { None };
        world.faults += 1;
    }

    /// How many copies more there may be if from now on each replica publishes what it has not finished.
    pub(super) fn each_by_itself(&self, world: &World, event: usize) -> u8 {
        let replicas = &world.replicas[..self.replicas];
        let open = replicas.iter().filter(|replica| replica.events[event].phase != Phase::Finished).count() as u8;
        if world.copies[event] == 0 { open.saturating_sub(1) } else { open }
    }

    pub(super) fn lose_flights(&self, world: &mut World, replica: usize, arrives: bool) {
        for event in 0..self.events {
            let local = &mut world.replicas[replica].events[event];
            if let Phase::InFlight { arrived } = local.phase {
                local.phase = Phase::Waiting;
                world.allowed[event] += 1;
                world.copies[event] += u8::from(arrives && !arrived);
            }
        }
    }

    pub(super) fn crash(&self, world: &mut World, replica: usize, arrives: bool, loses_acknowledged: bool) {
        let exposed = |local: &Local| local.unmarked || matches!(local.phase, Phase::InFlight { .. });
        let is_exposed = world.replicas[replica].events.iter().any(exposed);
        Self::note(world, if is_exposed { Fault::CrashAfterPublish } else { Fault::CrashBeforePublish });
        self.lose_flights(world, replica, arrives);
        let reaches_store = Self::reaches_store(world, replica);
        for event in 0..self.events {
            let is_done = world.records[event] == Record::Done && reaches_store;
            let local = &mut world.replicas[replica].events[event];
            let is_lost = loses_acknowledged && local.phase == Phase::Finished;
            if local.unmarked || is_lost && !is_done {
                world.allowed[event] += 1;
            }
            if is_lost {
                local.phase = Phase::Waiting;
            }
            (local.unmarked, local.claim) = (false, Claim::default());
        }
        world.replicas[replica].process = Process::Down;
    }

    pub(super) fn fault(&self, world: &mut World, action: Action) {
        match action {
            Action::Crash { replica, arrives, loses_acknowledged } => {
                self.crash(world, replica, arrives, loses_acknowledged);
            }
            Action::Pause(replica) => {
                Self::note(world, Fault::Pause);
                world.replicas[replica].process = Process::Paused;
                for event in 0..self.events {
                    let local = &world.replicas[replica].events[event];
                    let exposed = local.unmarked || matches!(local.phase, Phase::InFlight { .. });
                    world.allowed[event] += u8::from(exposed);
                }
            }
            Action::StoreAway => {
                Self::note(world, Fault::StoreAway);
                world.is_store_up = false;
                (0..self.events).for_each(|event| world.allowed[event] += self.each_by_itself(world, event));
            }
            Action::StoreForgets(event) => {
                Self::note(world, Fault::StoreForgets);
                Self::write(world, event, Record::Absent);
                // Whoever claims it next marks it, and the others find that.
                world.allowed[event] += self.each_by_itself(world, event).min(1);
            }
            Action::CutFromStore(replica) => {
                Self::note(world, Fault::CutFromStore);
                world.replicas[replica].reaches_store = false;
                for event in 0..self.events {
                    let local = &world.replicas[replica].events[event];
                    world.allowed[event] += u8::from(local.unmarked || local.phase != Phase::Finished);
                }
            }
            Action::CutFromBroker { replica, arrives } => {
                let events = &world.replicas[replica].events;
                let flies = events.iter().any(|local| matches!(local.phase, Phase::InFlight { .. }));
                let fault = if flies { Fault::CutFromBrokerInFlight } else { Fault::CutFromBrokerBeforePublish };
                Self::note(world, fault);
                for event in 0..self.events {
                    let is_waiting = world.replicas[replica].events[event].phase == Phase::Waiting;
                    if is_waiting && !self.is(Mutant::KeepsClaimsWithoutABroker) {
                        self.release(world, replica, event);
                    }
                }
                self.lose_flights(world, replica, arrives);
                world.replicas[replica].reaches_broker = false;
            }
            Action::AskWithoutAnswer { replica, event, is_late } => {
                Self::note(world, Fault::NoAnswer);
                world.allowed[event] += 1;
                if is_late {
                    world.replicas[replica].events[event].late_create = true;
                } else if let Step::Ask(request) = self.step(world, replica, event) {
                    self.execute(world, replica, event, request);
                }
                self.answered(world, replica, event, Answer::None);
            }
            _ => unreachable!("{action:?} is no fault"),
        }
    }
}
