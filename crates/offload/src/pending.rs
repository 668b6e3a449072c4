//! Pages that a reader waits for: a bounded number under way at a time, in whichever order they arrive.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::inbox::{Arrival, Inbox};
use crate::memory::{Busy, Held};
use crate::page::{Page, Wish};
use crate::queue::{Priority, Refused};
use crate::transfer::{Shared, Transfer};
use crate::{Error, Result};

/// Pages that a reader has under way at a time.
const WINDOW: usize = 32;

/// Pages that a reader waits for. What it has asked for is withdrawn when this is dropped.
pub(crate) struct Pending<'a, T> {
    shared: &'a Shared,
    inbox: Arc<Inbox>,
    /// By tag; what it was asked for is taken with the arrival.
    asked: Vec<(Arc<Page>, Option<T>)>,
    /// Tags of pages that are not under way yet.
    to_submit: VecDeque<usize>,
    in_flight: usize,
    /// What its reads go before.
    priority: Priority,
    /// Others may wait for what this reader looks at, but not while it waits itself.
    busy: Option<Busy>,
}

impl<'a, T> Pending<'a, T> {
    pub(crate) fn new(shared: &'a Shared, priority: Priority) -> Self {
        Self {
            shared,
            inbox: Arc::new(Inbox::of_reader()),
            asked: Vec::new(),
            to_submit: VecDeque::new(),
            in_flight: 0,
            priority,
            busy: Some(shared.memory.enter()),
        }
    }

    /// Asks for a page, for what waits for it.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub(crate) fn ask(&mut self, page: &Arc<Page>, what: T) -> Result<()> {
        self.to_submit.push_back(self.asked.len());
        self.asked.push((Arc::clone(page), Some(what)));
        self.submit()
    }

    /// Puts reads under way as far as the window and the queue take them.
    fn submit(&mut self) -> Result<()> {
        while self.in_flight < WINDOW
            && let Some(tag) = self.to_submit.pop_front()
        {
            let (queue, priority) = (&self.shared.queue, self.priority);
            let is_under_way = self.wish(tag, |transfer| queue.try_push(priority, transfer))?;
            if !is_under_way {
                self.to_submit.push_front(tag);
                break;
            }
        }
        Ok(())
    }

    /// Asks for a page; false where the queue has no place for it.
    fn wish(
        &mut self,
        tag: usize,
        push: impl FnOnce(Transfer) -> Result<(), Refused>,
    ) -> Result<bool> {
        let page = &self.asked[tag].0;
        match page.wish(&self.inbox, tag) {
            Wish::Here(held) => self.inbox.deliver(tag, Arrival::Here(held)),
            Wish::Coming => {}
            Wish::ToQueue => {
                if let Err(refused) = push(Transfer::read(page)) {
                    let is_withdrawn = page.withdraw(&self.inbox);
                    page.abandon();
                    // Otherwise somebody else's read has brought it meanwhile.
                    if is_withdrawn {
                        return match refused {
                            Refused::Full => Ok(false),
                            Refused::Closed => Err(Error::Closed),
                        };
                    }
                }
            }
        }
        self.in_flight += 1;
        Ok(true)
    }

    /// What waits for the page that was asked for last.
    pub(crate) fn last_mut(&mut self) -> Option<&mut T> {
        self.asked.last_mut()?.1.as_mut()
    }

    /// A page that has arrived, if one has.
    ///
    /// # Errors
    /// What the read of a page failed with, and [`Error::Closed`].
    pub(crate) fn try_take(&mut self) -> Result<Option<(T, Held)>> {
        while self.in_flight > 0
            && let Some((tag, arrival)) = self.inbox.try_take()
        {
            let settled = self.settle(tag, arrival)?;
            self.submit()?;
            if settled.is_some() {
                return Ok(settled);
            }
        }
        Ok(None)
    }

    /// The next page that arrives; none when all have.
    ///
    /// # Errors
    /// As [`try_take`](Self::try_take).
    pub(crate) fn take(&mut self) -> Result<Option<(T, Held)>> {
        loop {
            if let Some(settled) = self.try_take()? {
                return Ok(Some(settled));
            }
            self.submit()?;
            let since = Instant::now();
            self.busy = None;
            if self.in_flight == 0 {
                let Some(tag) = self.to_submit.pop_front() else {
                    // A row that is left out is a byte that is lost.
                    assert!(self.asked.iter().all(|(_, what)| what.is_none()), "all have arrived");
                    return Ok(None);
                };
                let (queue, priority) = (&self.shared.queue, self.priority);
                self.wish(tag, |transfer| queue.push(priority, transfer))?;
            }
            let (tag, arrival) = self.inbox.take();
            if self.priority == Priority::Demand {
                self.shared.counters.read_waits.record(since.elapsed());
            }
            self.busy = Some(self.shared.memory.enter());
            if let Some(settled) = self.settle(tag, arrival)? {
                return Ok(Some(settled));
            }
        }
    }

    fn settle(&mut self, tag: usize, arrival: Arrival) -> Result<Option<(T, Held)>> {
        self.in_flight -= 1;
        match arrival {
            Arrival::Here(held) => Ok(self.asked[tag].1.take().map(|what| (what, held))),
            // A hint, which this reader joined too late to make more of it.
            Arrival::Loaded | Arrival::Dropped => {
                self.to_submit.push_back(tag);
                Ok(None)
            }
            Arrival::Failed(error) => Err(error),
        }
    }
}

impl<'a> Pending<'a, ()> {
    /// One page.
    ///
    /// # Errors
    /// As [`try_take`](Self::try_take).
    pub(crate) fn of_page(shared: &'a Shared, page: &Arc<Page>) -> Result<Held> {
        let mut pending = Pending::new(shared, Priority::Demand);
        shared.counters.misses.add(usize::from(page.seat.is_empty()));
        pending.ask(page, ())?;
        let (_, held) = pending.take()?.expect("what was asked for arrives");
        Ok(held)
    }
}

impl<T> Drop for Pending<'_, T> {
    fn drop(&mut self) {
        for (page, what) in &self.asked {
            if what.is_some() {
                page.withdraw(&self.inbox);
            }
        }
    }
}
