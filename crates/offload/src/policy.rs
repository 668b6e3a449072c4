//! Which page leaves RAM: S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023).
//!
//! New pages enter a small queue; those that were read again by its end move on to the main queue, the others leave.
//! So a scan goes through the small queue and leaves the main one as it is. A page that comes back soon after it left
//! (its name is among the ghosts) enters the main queue. Reading a page only raises its own heat: no lock, no queue.
//!
//! A page that a hint brought waits beside both as long as the hint stands, and enters the small queue then: it would have
//! left otherwise before its reader comes, where a scan goes on meanwhile.
//!
//! The queues hold pages that can leave without being written first. A page enters when it has been read from disk or
//! written to it. One that is gone stays until it is noticed; at most as many are gone as are there, and a few.

use std::collections::{HashSet, VecDeque};

/// The most that a page's heat counts.
pub(crate) const MAX_HEAT: u8 = 3;

/// The heat with which a page goes from the small queue to the main one.
const WARM: u8 = 2;

/// One in this many frames is for the small queue.
pub(crate) const SMALL_SHARE: usize = 10;

/// One in this many frames is for pages that hints bring.
pub(crate) const HINTED_SHARE: usize = 4;

/// Pages of hints that are looked at whenever one has to leave.
const SETTLED: usize = 4;

/// Entries below which pages that are gone are not looked for.
const FEW: usize = 64;

/// What the policy asks of a page.
pub(crate) trait Entry {
    /// A name that no other page has or had.
    fn id(&self) -> u64;

    /// How often it was read since it was last cooled, up to [`MAX_HEAT`]; none when the page is gone.
    fn heat(&self) -> Option<u8>;

    /// Sets the heat.
    fn cool(&self, heat: u8);

    /// Whether a hint that brought it stands.
    fn is_awaited(&self) -> bool;

    /// Gives up the page's frame; false where a reader or a pin holds it.
    fn release(&self) -> bool;
}

/// The queues.
#[derive(Debug)]
pub(crate) struct S3Fifo<E> {
    max_frames: usize,
    awaited: VecDeque<E>,
    small: VecDeque<E>,
    main: VecDeque<E>,
    ghosts: VecDeque<u64>,
    is_ghost: HashSet<u64>,
    /// The number of entries from which on pages that are gone are looked for.
    sweep_at: usize,
}

impl<E: Entry> S3Fifo<E> {
    /// Empty queues for a budget.
    pub(crate) fn new(max_frames: usize) -> Self {
        Self {
            max_frames,
            awaited: VecDeque::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: VecDeque::new(),
            is_ghost: HashSet::new(),
            sweep_at: FEW,
        }
    }

    /// Takes in a page that has come to RAM, or can leave it from now on.
    pub(crate) fn insert(&mut self, entry: E) {
        if self.num_entries() >= self.sweep_at {
            for queue in [&mut self.awaited, &mut self.small, &mut self.main] {
                queue.retain(|entry| entry.heat().is_some());
            }
            self.sweep_at = 2 * self.num_entries() + FEW;
        }
        if entry.is_awaited() {
            self.awaited.push_back(entry);
        } else {
            self.enter(entry);
        }
    }

    fn enter(&mut self, entry: E) {
        if self.is_ghost.remove(&entry.id()) {
            self.main.push_back(entry);
        } else {
            self.small.push_back(entry);
        }
    }

    /// Makes one page give up its frame; false where all are held.
    pub(crate) fn evict(&mut self) -> bool {
        self.settle();
        let is_small_due = self.small.len() > self.max_frames / SMALL_SHARE;
        (is_small_due && self.evict_small())
            || self.evict_main()
            || self.evict_small()
            // Where the small one had only pages that were read again, they are there now.
            || self.evict_main()
            || self.evict_awaited()
    }

    fn num_entries(&self) -> usize {
        self.awaited.len() + self.small.len() + self.main.len()
    }

    /// Whether hints may bring a page more.
    pub(crate) fn has_room_for_hints(&mut self) -> bool {
        let most = (self.max_frames / HINTED_SHARE).max(1);
        if self.awaited.len() >= most {
            self.settle();
        }
        self.awaited.len() < most
    }

    /// Pages that can leave.
    pub(crate) fn len(&self) -> usize {
        let entries = self.awaited.iter().chain(&self.small).chain(&self.main);
        entries.filter(|entry| entry.heat().is_some()).count()
    }

    fn evict_small(&mut self) -> bool {
        for _ in 0..self.small.len() {
            let Some(entry) = self.small.pop_front() else { break };
            match entry.heat() {
                None => {}
                Some(heat) if heat >= WARM => {
                    entry.cool(0);
                    self.main.push_back(entry);
                }
                Some(_) if entry.release() => {
                    self.remember(entry.id());
                    return true;
                }
                Some(_) => self.small.push_back(entry),
            }
        }
        false
    }

    fn evict_main(&mut self) -> bool {
        // A page is looked at once for every degree of heat, and once more to leave.
        for _ in 0..self.main.len() * (usize::from(MAX_HEAT) + 1) {
            let Some(entry) = self.main.pop_front() else { break };
            match entry.heat() {
                None => {}
                Some(0) if entry.release() => return true,
                Some(heat) => {
                    entry.cool(heat.saturating_sub(1));
                    self.main.push_back(entry);
                }
            }
        }
        false
    }

    /// Looks at some pages of hints, others each time: whose hint stands no more enters the queues.
    fn settle(&mut self) {
        for _ in 0..SETTLED.min(self.awaited.len()) {
            match self.awaited.pop_front() {
                Some(entry) if entry.is_awaited() => self.awaited.push_back(entry),
                entry => entry.into_iter().for_each(|entry| self.enter(entry)),
            }
        }
    }

    /// The last resort: a hint may be in vain, and somebody needs the frame. Those that no hint stands for go first.
    fn evict_awaited(&mut self) -> bool {
        let is_over = |entry: &E| !entry.is_awaited() && entry.release();
        let found = self.awaited.iter().position(is_over);
        let found = found.or_else(|| self.awaited.iter().position(Entry::release));
        found.is_some_and(|idx| self.awaited.remove(idx).is_some())
    }

    fn remember(&mut self, id: u64) {
        self.ghosts.push_back(id);
        self.is_ghost.insert(id);
        // As many as pages in the main queue.
        while self.ghosts.len() > self.max_frames - self.max_frames / SMALL_SHARE {
            let oldest = self.ghosts.pop_front();
            oldest.map(|id| self.is_ghost.remove(&id));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
