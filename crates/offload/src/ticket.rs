//! Tickets: what became of a hint, to be polled, waited for, or awaited.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::inbox::{Arrival, Inbox};
use crate::page::{Page, Wish};
use crate::queue::Priority;
use crate::transfer::Transfer;
use crate::{Error, Result, Store};

/// What became of a hint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefetched {
    /// Pages that were in RAM or came there.
    pub num_loaded: usize,
    /// Pages that were not read: there was no room, or the queue was full.
    pub num_dropped: usize,
}

/// The pages of a hint: on their way to RAM. What it brought is kept there as long as the ticket is, if anything else can
/// make room; pages that were there before stay or go as they would without.
///
/// Dropping the ticket takes the hint back. Awaiting it needs no particular runtime.
#[derive(Debug)]
#[must_use = "dropping it takes the hint back"]
pub struct Ticket {
    inbox: Arc<Inbox>,
    pages: Vec<Arc<Page>>,
    pending: usize,
    outcome: Prefetched,
    error: Option<Error>,
    // After the pages, since its workers end with the last that has it.
    store: Store,
}

impl Ticket {
    /// Asks for pages that are on disk; others of the hint are in RAM.
    pub(crate) fn new(store: Store, pages: Vec<Arc<Page>>, num_here: usize) -> Self {
        let inbox = Arc::new(Inbox::of_hint());
        let outcome = Prefetched { num_loaded: num_here, num_dropped: 0 };
        let mut ticket = Self { inbox, pages, pending: 0, outcome, error: None, store };
        ticket.submit();
        ticket
    }

    fn submit(&mut self) {
        let shared = self.store.shared();
        for (tag, page) in self.pages.iter().enumerate() {
            match page.wish(&self.inbox, tag) {
                Wish::Here(_) => self.outcome.num_loaded += 1,
                Wish::Coming => self.pending += 1,
                Wish::ToQueue => {
                    let pushed = shared.queue.try_push(Priority::Prefetch, Transfer::read(page));
                    // What cannot be withdrawn has arrived with somebody else's read.
                    if pushed.is_err() && page.withdraw(&self.inbox) {
                        page.abandon();
                        self.outcome.num_dropped += 1;
                        shared.counters.prefetch_dropped.add(1);
                    } else {
                        self.pending += 1;
                    }
                }
            }
        }
    }

    /// Whether the result is there.
    pub fn is_done(&mut self) -> bool {
        while self.pending > 0
            && let Some((_, arrival)) = self.inbox.try_take()
        {
            self.settle(arrival);
        }
        self.pending == 0
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// What the read of a page failed with, the first where several did.
    pub fn wait(&mut self) -> Result<Prefetched> {
        while self.pending > 0 {
            let (_, arrival) = self.inbox.take();
            self.settle(arrival);
        }
        self.error.clone().map_or(Ok(self.outcome), Err)
    }

    /// Takes the hint back, as dropping it does: pages whose read has begun still come, and others do not.
    pub fn cancel(self) {}

    fn settle(&mut self, arrival: Arrival) {
        self.pending -= 1;
        match arrival {
            Arrival::Here(_) | Arrival::Loaded => self.outcome.num_loaded += 1,
            // A reader who joined would have had the room made, had there been any to make.
            Arrival::Dropped | Arrival::Failed(Error::OutOfMemory { .. }) => {
                self.outcome.num_dropped += 1;
                self.store.shared().counters.prefetch_dropped.add(1);
            }
            Arrival::Failed(error) => {
                self.error.get_or_insert(error);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        for page in &self.pages {
            page.take_back(&self.inbox);
        }
    }
}

impl Future for Ticket {
    type Output = Result<Prefetched>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        while self.pending > 0 {
            match self.inbox.poll_take(context) {
                Some((_, arrival)) => self.settle(arrival),
                None => return Poll::Pending,
            }
        }
        Poll::Ready(self.error.clone().map_or(Ok(self.outcome), Err))
    }
}
