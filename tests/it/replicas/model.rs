//! Three replicas, one or two events that each of them received, one sink, one store: every order in which their steps, their
//! faults and the passing of time can come.
//!
//! What a replica does is decided by `domain::claims`, the code that the bridge is to run; the rest is here: the store
//! with its revisions, the broker, processes that crash and pause, connections that break, and for each fault the copies
//! that it may cost. A [`Mutant`] breaks one rule.
//!
//! Time passes in ticks, of which the lease has three. It does not pass while a replica without a fault is late with what
//! it does at once: a renewal, or the mark of an event that the broker has acknowledged.

mod faults;
mod replica;

use std::collections::BTreeMap;
use std::time::Duration;

use sendbird_bridge::domain::claims::{Answer, Claim, Known, Lease, Moment, Request, Step};

use super::search;

const TICK: Duration = Duration::from_secs(1);
const LEASE: Lease = Lease { length: Duration::from_secs(3), pause: TICK };

/// When it always is: as time passes, what was before moves back.
const NOW: Moment = Duration::from_secs(10);

pub(crate) const REPLICAS: usize = 3;
pub(crate) const EVENTS: usize = 2;

/// The revision of the record as it is, and that of any record before: a revision is never used twice.
const CURRENT: bool = true;

/// A rule of the protocol that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// *Done* is written when the claim is won, before the event is published.
    MarksBeforeDelivery,
    /// An event that another replica has claimed is finished with.
    SkipsClaimed,
    /// The record holds the time of the claim, and the observer's clock decides.
    ComparesClocks,
    /// All events are claimed, and not only the first of its key; claims are renewed until they are used.
    ClaimsEverythingEarly,
    /// A claim is used however old it is.
    SendsOnAnOldClaim,
    /// A claim is not renewed while its event is in flight.
    NeverRenews,
    /// The lease is counted from the first claim seen, though it was renewed since.
    IgnoresRenewals,
    /// A claim is taken over whatever its revision is by now.
    TakesOverBlindly,
    /// The record is removed, whatever it is by now.
    ReleasesBlindly,
    /// Without the store nothing is published.
    FailsClosed,
    /// What is not sent when the broker is lost stays claimed, and is renewed.
    KeepsClaimsWithoutABroker,
}

/// What goes wrong, one row of the failure table each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Fault {
    /// Killed with nothing published that is not marked as done.
    CrashBeforePublish,
    /// Killed with an event in flight, or one acknowledged and not marked.
    CrashAfterPublish,
    Pause,
    StoreAway,
    StoreForgets,
    CutFromStore,
    /// With nothing in flight.
    CutFromBrokerBeforePublish,
    CutFromBrokerInFlight,
    /// The store does what it is asked, and its answer is late or lost.
    NoAnswer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    // What happens by itself.
    Ask(usize, usize),
    Publish(usize, usize),
    Arrive(usize, usize),
    Acknowledge(usize, usize),
    Renew(usize, usize),
    Mark(usize, usize),
    /// It is published elsewhere.
    Finish(usize, usize),
    LateCreate(usize, usize),
    Tick,
    // What a broker or an operator does, and no fault of the protocol's surroundings.
    GetStuck(usize, usize),
    SetAside(usize, usize),
    Stop(usize),
    // Faults; `arrives` says what becomes of what is in flight.
    Crash {
        replica: usize,
        arrives: bool,
        loses_acknowledged: bool,
    },
    Pause(usize),
    StoreAway,
    StoreForgets(usize),
    CutFromStore(usize),
    CutFromBroker {
        replica: usize,
        arrives: bool,
    },
    AskWithoutAnswer {
        replica: usize,
        event: usize,
        is_late: bool,
    },
    // Repairs.
    Start(usize),
    Resume(usize),
    StoreBack,
    ReachStore(usize),
    ReachBroker(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Record {
    Absent,
    /// When it was written is known to a mutant alone.
    Claimed {
        owner: usize,
        written: Moment,
    },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    InFlight { arrived: bool },
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Up,
    Paused,
    Down,
}

/// One event in one replica.
#[derive(Clone, Copy, Debug)]
struct Local {
    claim: Claim<bool>,
    phase: Phase,
    /// *Done* is still to be written.
    unmarked: bool,
    /// A claim is on its way to the store, though nobody waits for the answer.
    late_create: bool,
}

#[derive(Clone, Copy, Debug)]
struct Replica {
    process: Process,
    reaches_store: bool,
    reaches_broker: bool,
    events: [Local; EVENTS],
}

/// Everything there is.
#[derive(Clone, Debug)]
pub(crate) struct World {
    records: [Record; EVENTS],
    is_store_up: bool,
    replicas: [Replica; REPLICAS],
    /// How often the broker has each event.
    copies: [u8; EVENTS],
    set_aside: [bool; EVENTS],
    /// How many more than one it may have, for the faults so far.
    allowed: [u8; EVENTS],
    faults: usize,
    incidents: usize,
    /// The only fault so far.
    first_fault: Option<Fault>,
}

/// What is gone through.
pub(crate) struct Claims {
    pub(crate) replicas: usize,
    pub(crate) events: usize,
    /// Faults in one run at most.
    pub(crate) faults: usize,
    /// Events that get stuck or are set aside, and stops, in one run at most.
    pub(crate) incidents: usize,
    pub(crate) mutant: Option<Mutant>,
    /// In how many states each invariant could have been broken.
    pub(crate) evidence: BTreeMap<&'static str, usize>,
    /// The most copies more than one after one fault alone.
    pub(crate) copies_after: BTreeMap<Fault, u8>,
}

pub(crate) const INVARIANTS: [&str; 6] = [
    "an event that a replica has finished elsewhere is in the broker or set aside",
    "without a fault no event is published twice",
    "with faults there is one more copy for each named crash point at most",
    "a fault before the publish costs no copy",
    "a late claim breaks nothing",
    "from everywhere the replicas that can publish finish everything",
];

impl Claims {
    pub(crate) fn new(replicas: usize, events: usize, faults: usize) -> Self {
        let evidence = INVARIANTS.into_iter().map(|invariant| (invariant, 0)).collect();
        let copies_after = BTreeMap::new();
        Self { replicas, events, faults, incidents: 1, mutant: None, evidence, copies_after }
    }

    pub(crate) fn with(self, mutant: Mutant) -> Self {
        Self { mutant: Some(mutant), ..self }
    }

    fn count(&mut self, invariant: usize, is_exercised: bool) {
        *self.evidence.entry(INVARIANTS[invariant]).or_default() += usize::from(is_exercised);
    }
}

impl search::Model for Claims {
    type State = World;
    type Action = Action;

    fn start(&self) -> World {
        let local = Local { claim: Claim::default(), phase: Phase::Waiting, unmarked: false, late_create: false };
        let replica =
            Replica { process: Process::Up, reaches_store: true, reaches_broker: true, events: [local; EVENTS] };
        World {
            records: [Record::Absent; EVENTS],
            is_store_up: true,
            replicas: [replica; REPLICAS],
            copies: [0; EVENTS],
            set_aside: [false; EVENTS],
            allowed: [0; EVENTS],
            faults: 0,
            incidents: 0,
            first_fault: None,
        }
    }

    fn actions(&self, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        (0..self.replicas).for_each(|replica| self.actions_of(world, replica, &mut actions));
        if !world.is_store_up {
            actions.push(Action::StoreBack);
        }
        if world.faults < self.faults {
            if world.is_store_up {
                actions.push(Action::StoreAway);
            }
            let is_there = |event: &usize| world.records[*event] != Record::Absent;
            actions.extend((0..self.events).filter(is_there).map(Action::StoreForgets));
        }
        if !(0..self.replicas).any(|replica| self.is_urgent(world, replica)) {
            actions.push(Action::Tick);
        }
        actions
    }

    fn apply(&self, world: &World, action: Action) -> World {
        let mut next = world.clone();
        let world = &mut next;
        match action {
            Action::Ask(replica, event) | Action::Renew(replica, event) => {
                let request = match (self.step(world, replica, event), self.renewal(world, replica, event)) {
                    (_, Some(renewal)) => renewal,
                    (Step::Ask(request), None) => request,
                    (step, None) => unreachable!("{step:?} is no request"),
                };
                let answer = if Self::reaches_store(world, replica) {
                    self.execute(world, replica, event, request)
                } else {
                    Answer::None
                };
                self.answered(world, replica, event, answer);
            }
            Action::Publish(replica, event) => {
                world.replicas[replica].events[event].phase = Phase::InFlight { arrived: false };
            }
            Action::Arrive(replica, event) => {
                world.replicas[replica].events[event].phase = Phase::InFlight { arrived: true };
                world.copies[event] += 1;
            }
            Action::Acknowledge(replica, event) => Self::finish(world, replica, event),
            Action::Mark(replica, event) => {
                self.execute(world, replica, event, Request::Done);
                world.replicas[replica].events[event].unmarked = false;
            }
            Action::Finish(replica, event) => world.replicas[replica].events[event].phase = Phase::Finished,
            Action::LateCreate(replica, event) => {
                world.replicas[replica].events[event].late_create = false;
                self.execute(world, replica, event, Request::Create);
            }
            Action::Tick => Self::tick(world),
            Action::GetStuck(replica, event) => {
                world.incidents += 1;
                world.replicas[replica].events[event].phase = Phase::Waiting;
                self.release(world, replica, event);
            }
            Action::SetAside(replica, event) => {
                world.incidents += 1;
                world.set_aside[event] = true;
                Self::finish(world, replica, event);
            }
            Action::Stop(replica) => {
                world.incidents += 1;
                for event in 0..self.events {
                    if self.is_waiting(world, replica, event) {
                        self.release(world, replica, event);
                    }
                    world.replicas[replica].events[event].claim = Claim::default();
                }
                world.replicas[replica].process = Process::Down;
            }
            Action::Start(replica) | Action::Resume(replica) => world.replicas[replica].process = Process::Up,
            Action::StoreBack => world.is_store_up = true,
            Action::ReachStore(replica) => world.replicas[replica].reaches_store = true,
            Action::ReachBroker(replica) => world.replicas[replica].reaches_broker = true,
            fault => self.fault(world, fault),
        }
        next
    }

    /// Replicas that received the events in the same order, and whose clocks agree, are alike.
    fn key(&self, world: &World) -> Vec<u8> {
        let age = |moment: Moment| NOW.saturating_sub(moment).as_secs() as u8;
        let mut replicas: Vec<Vec<u8>> = (0..self.replicas)
            .map(|number| {
                let Replica { process, reaches_store, reaches_broker, events } = &world.replicas[number];
                let is_second = number == 1 && (self.events > 1 || self.is(Mutant::ComparesClocks));
                let flags = [is_second, *reaches_store, *reaches_broker].map(u8::from);
                let mut bytes = vec![*process as u8 | flags[0] << 2 | flags[1] << 3 | flags[2] << 4];
                for (event, local) in events.iter().take(self.events).enumerate() {
                    let (tag, revision, ages) = match local.claim.known {
                        Known::Nothing => (0, false, [0; 2]),
                        Known::Own { revision, since: None } => (1, revision, [0; 2]),
                        Known::Own { revision, since: Some(since) } => (2, revision, [age(since), 0]),
                        Known::Other { revision, first_seen, seen } => (3, revision, [age(first_seen), age(seen)]),
                        Known::Bypassed => (4, false, [0; 2]),
                        Known::Done => (5, false, [0; 2]),
                    };
                    let phase = match local.phase {
                        Phase::Waiting => 0,
                        Phase::InFlight { arrived: false } => 1,
                        Phase::InFlight { arrived: true } => 2,
                        Phase::Finished => 3,
                    };
                    let is_owner = matches!(world.records[event], Record::Claimed { owner, .. } if owner == number);
                    bytes.push(tag | u8::from(revision) << 3 | ages[0] << 4 | ages[1] << 6);
                    let rest = [is_owner, local.unmarked, local.late_create].map(u8::from);
                    bytes.push(phase | rest[0] << 2 | rest[1] << 3 | rest[2] << 4);
                }
                bytes
            })
            .collect();
        replicas.sort_unstable();
        let mut key = replicas.concat();
        for event in 0..self.events {
            let (record, written) = match world.records[event] {
                Record::Absent => (0, 0),
                Record::Claimed { written, .. } if self.is(Mutant::ComparesClocks) => (1, age(written)),
                Record::Claimed { .. } => (1, 0),
                Record::Done => (2, 0),
            };
            key.push(record | written << 2 | u8::from(world.set_aside[event]) << 4);
            key.push(world.copies[event] | world.allowed[event] << 4);
        }
        let first = world.first_fault.map_or(0, |fault| fault as u8 + 1);
        key.extend([u8::from(world.is_store_up), world.faults as u8, world.incidents as u8, first]);
        key
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        let replicas = &world.replicas[..self.replicas];
        for event in 0..self.events {
            let (copies, allowed) = (world.copies[event], world.allowed[event]);
            let locals = || replicas.iter().map(|replica| &replica.events[event]);
            let elsewhere = locals().any(|local| local.claim.known == Known::Done && local.phase == Phase::Finished);
            self.count(0, elsewhere);
            if locals().any(|local| local.phase == Phase::Finished) && copies == 0 && !world.set_aside[event] {
                return Err(format!("event {event} is lost: a replica has finished it, and it is nowhere"));
            }
            let is_after = locals().filter(|local| local.phase == Phase::Finished).count() > 1;
            self.count(1, world.faults == 0 && copies == 1 && is_after);
            if world.faults == 0 && copies > 1 {
                return Err(format!("event {event} is published {copies} times without a fault"));
            }
            self.count(2, copies > 1);
            if copies > 1 + allowed {
                let at_most = 1 + allowed;
                return Err(format!("event {event} is published {copies} times, but its faults allow {at_most}"));
            }
            let harmless = [Fault::CrashBeforePublish, Fault::CutFromBrokerBeforePublish];
            self.count(3, copies == 1 && is_after && world.first_fault.is_some_and(|fault| harmless.contains(&fault)));
            self.count(4, copies > 0 && locals().any(|local| local.late_create));
            if let Some(fault) = world.first_fault {
                let most = self.copies_after.entry(fault).or_default();
                *most = (*most).max(copies.saturating_sub(1));
            }
        }
        self.count(5, !search::Model::is_goal(self, world));
        Ok(())
    }

    fn is_progress(&self, action: Action) -> bool {
        use Action::{Acknowledge, Arrive, Ask, Finish, LateCreate, Mark, Publish, Renew, Tick};
        matches!(
            action,
            Ask(..)
                | Publish(..)
                | Arrive(..)
                | Acknowledge(..)
                | Renew(..)
                | Mark(..)
                | Finish(..)
                | LateCreate(..)
                | Tick
        )
    }

    /// Whoever runs and reaches the broker is done with everything.
    fn is_goal(&self, world: &World) -> bool {
        let can_publish = |replica: &&Replica| replica.process == Process::Up && replica.reaches_broker;
        let is_done =
            |replica: &Replica| replica.events.iter().take(self.events).all(|local| local.phase == Phase::Finished);
        world.replicas[..self.replicas].iter().filter(can_publish).all(is_done)
    }
}
