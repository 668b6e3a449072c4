//! Pages that wait to be written: by sequence in the order in which they were filled, and sequences take turns.
//!
//! One batch is of one sequence, so that pages filled one after another become neighbours on disk. Between two turns of
//! a sequence every other has one at most: a page with `n` pages of its own sequence before it is written in the
//! sequence's turn number `n / batch + 1`, however much others fill meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use crate::page::Page;
use crate::policy::Entry;
use crate::turns::Turns;

/// The pages. One that is gone counts until it is noticed; at most as many are gone as are there, and a few.
#[derive(Debug)]
pub(crate) struct Dirty {
    /// By the pages' ids, which go up as they are filled.
    turns: Turns<BTreeMap<u64, Weak<Page>>>,
    len: usize,
    /// The length from which on pages that are gone are looked for.
    sweep_at: usize,
}

impl Dirty {
    /// A length below which nothing is looked for.
    const FEW: usize = 64;

    pub(crate) fn new() -> Self {
        Self { turns: Turns::new(), len: 0, sweep_at: Self::FEW }
    }

    /// Pages, those included that are gone and were not noticed.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Pages that are there.
    pub(crate) fn num_pages(&self) -> usize {
        self.turns.lists().flat_map(BTreeMap::values).filter(|page| is_there(page)).count()
    }

    /// Takes in a page, unless it is in the list.
    pub(crate) fn insert(&mut self, page: &Arc<Page>) {
        if self.len >= self.sweep_at {
            self.sweep();
        }
        let entry = Arc::downgrade(page);
        let before = self.turns.list(page.name.sequence).insert(entry.id(), entry);
        self.len += usize::from(before.is_none());
    }

    /// Takes out a page that was written, if it is in the list.
    pub(crate) fn remove(&mut self, page: &Arc<Page>) {
        let sequence = page.name.sequence;
        let Some(list) = self.turns.find(sequence) else { return };
        self.len -= usize::from(list.remove(&Arc::downgrade(page).id()).is_some());
        if list.is_empty() {
            self.turns.take(sequence);
        }
    }

    /// Takes out up to `most` pages of one sequence, those that were filled first: of `preferred` if it has any, else of
    /// the one whose turn it is. None only where there are no pages.
    pub(crate) fn take(&mut self, most: usize, preferred: Option<u32>) -> Vec<Arc<Page>> {
        let mut pages = Vec::new();
        let mut turn = preferred.and_then(|sequence| self.turns.take(sequence));
        while pages.is_empty()
            && let Some((sequence, mut list)) = turn.or_else(|| self.turns.take_next())
        {
            while pages.len() < most
                && let Some((_, page)) = list.pop_first()
            {
                self.len -= 1;
                pages.extend(page.upgrade());
            }
            if !list.is_empty() {
                self.turns.put_back(sequence, list);
            }
            turn = None;
        }
        pages
    }

    fn sweep(&mut self) {
        self.len = 0;
        self.turns.retain(|list| {
            list.retain(|_, page| is_there(page));
            self.len += list.len();
            !list.is_empty()
        });
        self.sweep_at = 2 * self.len + Self::FEW;
    }
}

fn is_there(page: &Weak<Page>) -> bool {
    page.strong_count() > 0
}

#[cfg(all(test, not(loom)))]
mod tests;
