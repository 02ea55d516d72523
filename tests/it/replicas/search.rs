//! Goes through every state that a model can reach, and finds the shortest way to one that must not be.
//!
//! Breadth first, and exact: two states are the same only if their keys are. What must be reachable from everywhere is
//! looked for backwards, over the steps that need no luck.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;

/// A system of which every step is known.
pub(crate) trait Model {
    type State: Clone;
    type Action: Copy + Debug;

    fn start(&self) -> Self::State;

    /// What can happen next.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;

    fn apply(&self, state: &Self::State, action: Self::Action) -> Self::State;

    /// Equal for states that differ in nothing that matters.
    fn key(&self, state: &Self::State) -> Vec<u8>;

    /// What is wrong with a state; to be called once for each, so that it may also count.
    fn check(&mut self, state: &Self::State) -> Result<(), String>;

    /// Whether a step happens by itself, sooner or later: no fault, no repair and no command.
    fn is_progress(&self, action: Self::Action) -> bool;

    /// What must be reachable from every state by progress alone.
    fn is_goal(&self, state: &Self::State) -> bool;
}

/// How much was gone through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    pub(crate) depth: usize,
}

/// The way to a state that must not be: each step, and what is wrong at the end.
#[derive(Debug)]
pub(crate) struct Counterexample<A> {
    pub(crate) fault: String,
    pub(crate) steps: Vec<A>,
}

/// Goes through all states.
///
/// # Errors
/// The shortest way to a state with a fault, or to one from which the goal cannot be reached.
pub(crate) fn explore<M: Model>(model: &mut M) -> Result<Explored, Counterexample<M::Action>> {
    let start = model.start();
    let mut known = HashMap::from([(model.key(&start), 0_u32)]);
    let mut came: Vec<Option<(u32, M::Action)>> = vec![None];
    let mut depths = vec![0_u32];
    let mut goals = Vec::new();
    // Steps of progress, the state that is reached first.
    let mut progress: Vec<(u32, u32)> = Vec::new();
    let mut explored = Explored::default();
    let mut open = VecDeque::from([(0_u32, start)]);
    while let Some((number, state)) = open.pop_front() {
        if let Err(fault) = model.check(&state) {
            return Err(Counterexample { fault, steps: way(&came, number) });
        }
        if model.is_goal(&state) {
            goals.push(number);
        }
        explored.depth = depths[number as usize] as usize;
        for action in model.actions(&state) {
            let next = model.apply(&state, action);
            explored.steps += 1;
            let new = came.len() as u32;
            let reached = *known.entry(model.key(&next)).or_insert(new);
            if reached == new {
                came.push(Some((number, action)));
                depths.push(depths[number as usize] + 1);
                open.push_back((new, next));
            }
            if model.is_progress(action) && reached != number {
                progress.push((reached, number));
            }
        }
    }
    explored.states = came.len();
    match first_without_goal(came.len(), goals, progress) {
        Some(number) => Err(Counterexample { fault: "nothing leads to the end".into(), steps: way(&came, number) }),
        None => Ok(explored),
    }
}

/// The first state from which no goal can be reached.
fn first_without_goal(states: usize, goals: Vec<u32>, mut progress: Vec<(u32, u32)>) -> Option<u32> {
    progress.sort_unstable();
    let mut leads = vec![false; states];
    let mut open = goals;
    while let Some(number) = open.pop() {
        if std::mem::replace(&mut leads[number as usize], true) {
            continue;
        }
        let first = progress.partition_point(|(reached, _)| *reached < number);
        let before = progress[first..].iter().take_while(|(reached, _)| *reached == number);
        open.extend(before.map(|(_, from)| *from));
    }
    leads.iter().position(|leads| !leads).map(|number| number as u32)
}

fn way<A: Copy>(came: &[Option<(u32, A)>], mut number: u32) -> Vec<A> {
    let mut steps = Vec::new();
    while let Some((from, action)) = came[number as usize] {
        steps.push(action);
        number = from;
    }
    steps.reverse();
    steps
}
