//! Where reads of pages arrive: each reader, and each ticket, has an inbox.

use std::collections::VecDeque;
use std::task::{Context, Waker};

use crate::Error;
use crate::memory::Held;
use crate::sync::{Condvar, Mutex, lock, wait};

/// How a read of a page ended.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// The page is in RAM, and stays there while this is held.
    Here(Held),
    /// The page came to RAM.
    Loaded,
    /// A hint was not followed: there was no room, or no place in the queue.
    Dropped,
    /// The page could not be read.
    Failed(Error),
}

/// What a reader waits with.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Whether somebody waits for the frames; otherwise pages are only to come to RAM if there is room.
    is_demand: bool,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// With the tag under which each was asked for.
    arrivals: VecDeque<(usize, Arrival)>,
    waker: Option<Waker>,
    /// Somebody waits for an arrival: to wake nobody asks the system all the same.
    is_awaited: bool,
}

impl Inbox {
    pub(crate) fn of_reader() -> Self {
        Self { is_demand: true, state: Mutex::default(), arrived: Condvar::new() }
    }

    pub(crate) fn of_hint() -> Self {
        Self { is_demand: false, ..Self::of_reader() }
    }

    pub(crate) fn is_demand(&self) -> bool {
        self.is_demand
    }

    pub(crate) fn deliver(&self, tag: usize, arrival: Arrival) {
        let mut state = lock(&self.state);
        state.arrivals.push_back((tag, arrival));
        let waker = state.waker.take();
        let is_awaited = state.is_awaited;
        drop(state);
        if is_awaited {
            self.arrived.notify_all();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What has arrived first, if anything has.
    pub(crate) fn try_take(&self) -> Option<(usize, Arrival)> {
        lock(&self.state).arrivals.pop_front()
    }

    /// What arrives first.
    pub(crate) fn take(&self) -> (usize, Arrival) {
        let mut state = lock(&self.state);
        loop {
            if let Some(arrival) = state.arrivals.pop_front() {
                state.is_awaited = false;
                return arrival;
            }
            state.is_awaited = true;
            state = wait(&self.arrived, state);
        }
    }

    /// What has arrived first, or nothing, and then the task is woken by the next arrival.
    pub(crate) fn poll_take(&self, context: &Context<'_>) -> Option<(usize, Arrival)> {
        let mut state = lock(&self.state);
        let arrival = state.arrivals.pop_front();
        if arrival.is_none() {
            state.waker = Some(context.waker().clone());
        }
        arrival
    }
}
