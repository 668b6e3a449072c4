//! Hints to the host store: which pages a layer is about to read, and which the next one probably will.

use heterokv_offload::{Sequence, Ticket};
use heterokv_quant::rows::page_spans;

use crate::select::HeadSelection;

/// What the last step of each layer took from the host, most of which the next step takes again.
#[derive(Debug)]
pub(crate) struct Hints {
    /// `[num_layers]`, and in each `[num_kv_heads]`: rows, ascending. Empty before the first step.
    taken: Vec<Vec<Vec<u32>>>,
    /// The hints that stand: what they brought stays in RAM until the layer has read.
    tickets: Vec<Ticket>,
}

impl Hints {
    /// Before the first step.
    pub(crate) fn new(num_layers: usize) -> Self {
        Self { taken: vec![Vec::new(); num_layers], tickets: Vec::new() }
    }

    /// Asks for all that a layer is about to read, so that the disk has as much to do at a time as it can, however few
    /// rows a task of the sum has.
    pub(crate) fn before<'a>(
        &mut self,
        host: &Sequence,
        layer: usize,
        selections: impl Iterator<Item = &'a HeadSelection>,
    ) {
        self.ask(host, layer, selections.map(|one| &one.positions[..]));
    }

    /// Remembers what a layer has read, and asks for what the next one read in the step before: the disk, which has just
    /// become idle, then works while the next layer's queries and scores are computed.
    pub(crate) fn after<'a>(
        &mut self,
        host: &Sequence,
        layer: usize,
        selections: impl Iterator<Item = &'a HeadSelection>,
    ) {
        self.tickets.clear();
        if host.store().hint_pages() == 0 {
            return;
        }
        self.taken[layer] = selections.map(|one| one.positions.clone()).collect();
        let next = (layer + 1) % self.taken.len();
        let taken = std::mem::take(&mut self.taken[next]);
        self.ask(host, next, taken.iter().map(|positions| &positions[..]));
        self.taken[next] = taken;
    }

    /// Forgets all, since rows were cut off.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.taken.len());
    }

    /// Asks for rows of each KV head of a layer, as far as it is of use.
    ///
    /// A hint that cannot be followed is no error: the reader that comes then meets the same one.
    fn ask<'a>(&mut self, host: &Sequence, layer: usize, heads: impl Iterator<Item = &'a [u32]>) {
        let mut pages_left = host.store().hint_pages();
        let page_size = host.store().shape().page_size as u32;
        for (kv_head, positions) in heads.enumerate() {
            let spans = page_spans(positions, page_size).take(pages_left);
            let (num_pages, num_rows) =
                spans.fold((0, 0), |(pages, _), (_, span)| (pages + 1, span.end));
            pages_left -= num_pages;
            if num_rows > 0 {
                let rows = host.rows(layer, kv_head);
                self.tickets.extend(rows.prefetch(&positions[..num_rows]));
            }
        }
    }
}

impl Clone for Hints {
    /// What was taken; the hints under way are the first one's.
    fn clone(&self) -> Self {
        Self { taken: self.taken.clone(), tickets: Vec::new() }
    }
}
