//! The queue of what is to be moved between RAM and disk: bounded, by priority, fair between sequences.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, lock, wait};
use crate::turns::Turns;

/// What goes first. Each has a lane of its own, bounded by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Somebody waits for it.
    Demand,
    /// Somebody will probably ask for it.
    Prefetch,
    /// Makes room ahead of need.
    WriteBehind,
}

/// A queued job.
pub(crate) trait Job: Sized {
    /// The sequence it is for: sequences take turns.
    fn sequence(&self) -> u32;

    /// Whether `next` is better done in one go with this one.
    fn is_before(&self, next: &Self) -> bool;
}

/// Why a job was not taken. The job is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its lane has no place.
    Full,
    /// The queue is closed.
    Closed,
}

/// Jobs that are done in one go, of one priority and sequence.
#[derive(Debug)]
pub(crate) struct Batch<J> {
    pub(crate) priority: Priority,
    pub(crate) jobs: Vec<J>,
    /// How long the first waited.
    pub(crate) waited: Duration,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue<J> {
    /// Jobs that a lane takes.
    lane_len: usize,
    state: Mutex<State<J>>,
    /// A job has come, or the queue is closed.
    filled: Condvar,
    /// A place has come free, or the queue is closed.
    drained: Condvar,
}

#[derive(Debug)]
struct State<J> {
    /// By priority.
    lanes: [Lane<J>; 3],
    is_closed: bool,
    /// Who waits for a job, and for a place: to wake nobody asks the system all the same.
    num_idle: usize,
    num_blocked: usize,
}

#[derive(Debug)]
struct Lane<J> {
    /// None is empty.
    turns: Turns<VecDeque<(J, Instant)>>,
    len: usize,
}

impl<J: Job> Queue<J> {
    /// Jobs of one batch at most.
    const MAX_BATCH: usize = 16;

    /// An empty queue whose lanes take `lane_len` jobs each.
    pub(crate) fn new(lane_len: usize) -> Self {
        let lane = || Lane { turns: Turns::new(), len: 0 };
        let lanes = [lane(), lane(), lane()];
        let state = State { lanes, is_closed: false, num_idle: 0, num_blocked: 0 };
        let [filled, drained] = [Condvar::new(), Condvar::new()];
        Self { lane_len, state: Mutex::new(state), filled, drained }
    }

    /// Takes a job, if there is a place.
    pub(crate) fn try_push(&self, priority: Priority, job: J) -> Result<(), Refused> {
        self.insert(&mut lock(&self.state), priority, job)
    }

    /// Takes a job, and waits for a place. Refused only when the queue is closed.
    pub(crate) fn push(&self, priority: Priority, job: J) -> Result<(), Refused> {
        let mut state = lock(&self.state);
        while state.lanes[priority as usize].len >= self.lane_len && !state.is_closed {
            state.num_blocked += 1;
            state = wait(&self.drained, state);
            state.num_blocked -= 1;
        }
        self.insert(&mut state, priority, job)
    }

    fn insert(&self, state: &mut State<J>, priority: Priority, job: J) -> Result<(), Refused> {
        let lane = &mut state.lanes[priority as usize];
        if state.is_closed {
            return Err(Refused::Closed);
        }
        if lane.len >= self.lane_len {
            return Err(Refused::Full);
        }
        lane.push(job);
        if state.num_idle > 0 {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// The next jobs; waits for one. None when the queue is closed and empty.
    pub(crate) fn pop(&self) -> Option<Batch<J>> {
        let mut state = lock(&self.state);
        loop {
            let batch = [Priority::Demand, Priority::Prefetch, Priority::WriteBehind]
                .into_iter()
                .find_map(|priority| self.take(&mut state, priority));
            if batch.is_some() || state.is_closed {
                return batch;
            }
            state.num_idle += 1;
            state = wait(&self.filled, state);
            state.num_idle -= 1;
        }
    }

    fn take(&self, state: &mut State<J>, priority: Priority) -> Option<Batch<J>> {
        let (jobs, since) = state.lanes[priority as usize].take(Self::MAX_BATCH)?;
        if state.num_blocked > 0 {
            self.drained.notify_all();
        }
        Some(Batch { priority, jobs, waited: since.elapsed() })
    }

    /// Refuses jobs from now on; those that are queued are still given out.
    pub(crate) fn close(&self) {
        lock(&self.state).is_closed = true;
        self.filled.notify_all();
        self.drained.notify_all();
    }

    /// Drops the jobs that are queued.
    pub(crate) fn clear(&self) {
        let mut state = lock(&self.state);
        for lane in &mut state.lanes {
            lane.turns = Turns::new();
            lane.len = 0;
        }
        self.drained.notify_all();
    }

    /// Jobs queued, by priority.
    pub(crate) fn depths(&self) -> [usize; 3] {
        let state = lock(&self.state);
        [0, 1, 2].map(|lane| state.lanes[lane].len)
    }
}

impl<J: Job> Lane<J> {
    fn push(&mut self, job: J) {
        self.turns.list(job.sequence()).push_back((job, Instant::now()));
        self.len += 1;
    }

    /// The first job of the sequence whose turn it is, and those after it that go with it.
    fn take(&mut self, most: usize) -> Option<(Vec<J>, Instant)> {
        let (sequence, mut turn) = self.turns.take_next()?;
        let (first, since) = turn.pop_front()?;
        let mut jobs = vec![first];
        while jobs.len() < most
            && let (Some(last), Some((next, _))) = (jobs.last(), turn.front())
            && last.is_before(next)
        {
            jobs.extend(turn.pop_front().map(|(job, _)| job));
        }
        self.len -= jobs.len();
        if !turn.is_empty() {
            self.turns.put_back(sequence, turn);
        }
        Some((jobs, since))
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
