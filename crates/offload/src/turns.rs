//! Sequences that take turns.

use std::collections::VecDeque;

/// What sequences have waiting, a list for each.
#[derive(Debug)]
pub(crate) struct Turns<L> {
    /// First the sequence whose turn it is.
    lists: VecDeque<(u32, L)>,
}

impl<L: Default> Turns<L> {
    pub(crate) fn new() -> Self {
        Self { lists: VecDeque::new() }
    }

    /// The list of a sequence; a new one, behind all others, where it has none.
    pub(crate) fn list(&mut self, sequence: u32) -> &mut L {
        let idx = self.position(sequence).unwrap_or_else(|| {
            self.lists.push_back((sequence, L::default()));
            self.lists.len() - 1
        });
        &mut self.lists[idx].1
    }

    /// The list of a sequence, if it has one.
    pub(crate) fn find(&mut self, sequence: u32) -> Option<&mut L> {
        self.position(sequence).map(|idx| &mut self.lists[idx].1)
    }

    /// All lists, first that of the sequence whose turn it is.
    pub(crate) fn lists(&self) -> impl Iterator<Item = &L> {
        self.lists.iter().map(|(_, list)| list)
    }

    /// Takes out the list of the sequence whose turn it is.
    pub(crate) fn take_next(&mut self) -> Option<(u32, L)> {
        self.lists.pop_front()
    }

    /// Takes out the list of a sequence, whoever's turn it is.
    pub(crate) fn take(&mut self, sequence: u32) -> Option<(u32, L)> {
        self.position(sequence).and_then(|idx| self.lists.remove(idx))
    }

    /// Puts back what is left of a list that was taken out: the others come first.
    pub(crate) fn put_back(&mut self, sequence: u32, list: L) {
        self.lists.push_back((sequence, list));
    }

    /// Changes all lists, and takes out those for which `change` is false.
    pub(crate) fn retain(&mut self, mut change: impl FnMut(&mut L) -> bool) {
        self.lists.retain_mut(|(_, list)| change(list));
    }

    fn position(&self, sequence: u32) -> Option<usize> {
        self.lists.iter().position(|(of, _)| *of == sequence)
    }
}
