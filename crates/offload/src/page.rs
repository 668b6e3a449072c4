//! A page of rows that no longer changes: where it is, and how it moves between RAM and disk.
//!
//! | frame | slot | |
//! | --- | --- | --- |
//! | yes | no | dirty: it must be written before it can leave |
//! | yes | yes | it can leave at once |
//! | no | yes | on disk only |
//!
//! Whether there is a frame, the page's block says ([`Seat`]); readers of pages in RAM look at nothing else.

use std::sync::{Arc, Weak};

use crate::PageName;
use crate::block::Seat;
use crate::disk::{Place, Slot};
use crate::inbox::{Arrival, Inbox};
use crate::memory::{Held, SharedFrame};
use crate::policy::Entry;
use crate::sync::{Mutex, SharedArc, lock};

/// A page.
#[derive(Debug)]
pub(crate) struct Page {
    /// Its place among all pages of this process.
    id: u64,
    pub(crate) name: PageName,
    pub(crate) num_rows: u32,
    /// Where its frame is while it is in RAM.
    pub(crate) seat: Seat,
    /// Locked before the block where both are.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slot: Option<Slot>,
    /// The hints that brought the page and stand.
    hints: Vec<Arc<Inbox>>,
    reading: Option<Reading>,
    is_writing: bool,
}

/// A read that is queued or under way, and who waits for it.
#[derive(Debug)]
struct Reading {
    waiters: Vec<(Arc<Inbox>, usize)>,
    is_begun: bool,
}

/// What became of a wish for a page.
#[derive(Debug)]
pub(crate) enum Wish {
    /// It is in RAM.
    Here(Held),
    /// It will arrive.
    Coming,
    /// It will arrive, once the caller has put the read into the queue.
    ToQueue,
}

impl Page {
    /// A page of rows that are in RAM and nowhere else, in the block of the one before it.
    pub(crate) fn dirty(
        id: u64,
        name: PageName,
        num_rows: u32,
        frame: SharedFrame,
        before: Option<&Arc<Self>>,
    ) -> Self {
        let page = Self::new(id, name, num_rows, State::default(), before);
        page.seat.put(frame, false, false);
        page
    }

    /// A page on disk, in the block of the one before it.
    pub(crate) fn on_disk(
        id: u64,
        name: PageName,
        num_rows: u32,
        slot: Slot,
        before: Option<&Arc<Self>>,
    ) -> Self {
        Self::new(id, name, num_rows, State { slot: Some(slot), ..State::default() }, before)
    }

    fn new(
        id: u64,
        name: PageName,
        num_rows: u32,
        state: State,
        before: Option<&Arc<Self>>,
    ) -> Self {
        let seat = Seat::beside(before.map(|page| &page.seat));
        Self { id, name, num_rows, seat, state: Mutex::new(state) }
    }

    pub(crate) fn place(&self) -> Option<Place> {
        lock(&self.state).slot.as_ref().map(Slot::place)
    }

    /// Asks for the page on behalf of an inbox. A reader queues the read even where a hint has: it is to go first.
    pub(crate) fn wish(&self, inbox: &Arc<Inbox>, tag: usize) -> Wish {
        let mut state = lock(&self.state);
        if let Some(held) = self.seat.held() {
            return Wish::Here(held);
        }
        let waiter = (Arc::clone(inbox), tag);
        match &mut state.reading {
            Some(reading) => {
                reading.waiters.push(waiter);
                if reading.is_begun || !inbox.is_demand() { Wish::Coming } else { Wish::ToQueue }
            }
            None => {
                state.reading = Some(Reading { waiters: vec![waiter], is_begun: false });
                Wish::ToQueue
            }
        }
    }

    /// Takes back a hint: the page is not read for it, if the read has not begun, and leaves RAM as others do.
    pub(crate) fn take_back(&self, inbox: &Arc<Inbox>) {
        self.withdraw(inbox);
        let mut state = lock(&self.state);
        let num_hints = state.hints.len();
        state.hints.retain(|hint| !Arc::ptr_eq(hint, inbox));
        if num_hints > 0 && state.hints.is_empty() {
            self.seat.give_up();
        }
    }

    /// Takes back what an inbox asked for; false where it has arrived or is arriving. A read that has begun goes on.
    pub(crate) fn withdraw(&self, inbox: &Arc<Inbox>) -> bool {
        !self.forget(|waiter, _| Arc::ptr_eq(waiter, inbox)).is_empty()
    }

    /// A read could not be queued: the hints that rely on it are told, whoever gave them. Readers queue for themselves.
    pub(crate) fn abandon(&self) {
        for (inbox, tag) in self.forget(|waiter, is_begun| !is_begun && !waiter.is_demand()) {
            inbox.deliver(tag, Arrival::Dropped);
        }
    }

    fn forget(&self, is_gone: impl Fn(&Arc<Inbox>, bool) -> bool) -> Vec<(Arc<Inbox>, usize)> {
        let mut state = lock(&self.state);
        let Some(Reading { waiters, is_begun }) = &mut state.reading else { return Vec::new() };
        let all = std::mem::take(waiters).into_iter();
        let (gone, left) = all.partition(|(waiter, _)| is_gone(waiter, *is_begun));
        *waiters = left;
        if waiters.is_empty() && !*is_begun {
            state.reading = None;
        }
        gone
    }

    /// Begins the read, if it is still wanted and not begun.
    pub(crate) fn begin_read(&self) -> Option<Place> {
        let mut state = lock(&self.state);
        let reading = state.reading.as_mut().filter(|reading| !reading.is_begun)?;
        reading.is_begun = true;
        Some(state.slot.as_ref().expect("what is not in RAM has a slot").place())
    }

    /// Whether a reader waits for it.
    pub(crate) fn is_demanded(&self) -> bool {
        let state = lock(&self.state);
        let waiters = state.reading.as_ref().map_or(&[][..], |reading| &reading.waiters);
        waiters.iter().any(|(inbox, _)| inbox.is_demand())
    }

    /// Ends a read that brought the page. True where only hints asked for it.
    pub(crate) fn arrive(&self, frame: SharedFrame) -> bool {
        let mut state = lock(&self.state);
        let waiters = state.reading.take().map_or_else(Vec::new, |reading| reading.waiters);
        let is_hinted = !waiters.iter().any(|(inbox, _)| inbox.is_demand());
        let hints = waiters.iter().map(|(inbox, _)| inbox).filter(|inbox| !inbox.is_demand());
        state.hints.extend(hints.cloned());
        let is_awaited = !state.hints.is_empty();
        self.seat.put(SharedArc::clone(&frame), is_hinted, is_awaited);
        drop(state);
        for (inbox, tag) in waiters {
            let arrival = if inbox.is_demand() {
                Arrival::Here(Held::new(SharedArc::clone(&frame)))
            } else {
                Arrival::Loaded
            };
            inbox.deliver(tag, arrival);
        }
        is_hinted
    }

    /// Ends a read that did not bring the page.
    pub(crate) fn miss(&self, arrival: impl Fn() -> Arrival) {
        let reading = lock(&self.state).reading.take();
        for (inbox, tag) in reading.map_or_else(Vec::new, |reading| reading.waiters) {
            inbox.deliver(tag, arrival());
        }
    }

    /// Begins to write the page, if it has no slot and nobody is at it.
    pub(crate) fn begin_write(&self) -> Option<SharedFrame> {
        let mut state = lock(&self.state);
        if state.slot.is_some() || state.is_writing {
            return None;
        }
        state.is_writing = true;
        Some(self.seat.frame().expect("what has no slot is in RAM"))
    }

    /// Ends a write, with the slot if it went well.
    pub(crate) fn end_write(&self, slot: Option<Slot>) {
        let mut state = lock(&self.state);
        state.is_writing = false;
        state.slot = slot;
    }
}

impl Entry for Weak<Page> {
    fn id(&self) -> u64 {
        // The number of a page that is gone is asked for by nobody.
        self.upgrade().map_or(u64::MAX, |page| page.id)
    }

    fn heat(&self) -> Option<u8> {
        self.upgrade().map(|page| page.seat.heat())
    }

    fn cool(&self, heat: u8) {
        if let Some(page) = self.upgrade() {
            page.seat.cool(heat);
        }
    }

    fn is_awaited(&self) -> bool {
        self.upgrade().is_some_and(|page| page.seat.is_awaited())
    }

    fn release(&self) -> bool {
        self.upgrade().is_some_and(|page| page.seat.release())
    }
}
