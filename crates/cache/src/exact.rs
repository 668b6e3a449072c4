//! Exact rows on the device: pages that only grow, and the window of recent tokens.

use std::collections::VecDeque;

use heterokv_attn::ResidentRows;
use heterokv_offload::{Arena, Block};
use heterokv_quant::RowFormat;

use crate::Result;

/// Tokens of a page of exact rows.
pub(crate) const EXACT_PAGE_TOKENS: usize = 64;

/// Exact rows of one (layer, KV head), in pages `keys [capacity, head_dim] | values [capacity,
/// head_dim]`, f16. Rows are added at the end and, where it is a window, taken from the front.
#[derive(Debug)]
pub(crate) struct ExactRows {
    head_dim: usize,
    page_tokens: usize,
    pages: VecDeque<Block>,
    /// Rows of the first page that were taken.
    start: usize,
    len: usize,
}

impl ExactRows {
    /// No rows; pages will hold `page_tokens`.
    pub(crate) fn new(head_dim: usize, page_tokens: usize) -> Self {
        Self { head_dim, page_tokens, pages: VecDeque::new(), start: 0, len: 0 }
    }

    /// Bytes that `num_tokens` rows take from the start of a page on.
    pub(crate) fn bytes(head_dim: usize, page_tokens: usize, num_tokens: usize) -> usize {
        num_tokens.div_ceil(page_tokens) * Arena::allocated_bytes(4 * head_dim * page_tokens)
    }

    /// Bytes of the pages held.
    pub(crate) fn held_bytes(&self) -> usize {
        self.pages.iter().map(Block::allocated_bytes).sum()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends one token.
    pub(crate) fn push(&mut self, arena: &Arena, key: &[f32], value: &[f32]) -> Result<()> {
        let slot = (self.start + self.len) % self.page_tokens;
        if self.start + self.len == self.pages.len() * self.page_tokens {
            self.pages.push_back(arena.allocate(4 * self.head_dim * self.page_tokens)?);
        }
        let row_bytes = 2 * self.head_dim;
        let page = self.pages.back_mut().expect("a page was just made sure of").bytes_mut();
        let (keys, values) = page.split_at_mut(self.page_tokens * row_bytes);
        RowFormat::F16.encode(key, &mut keys[slot * row_bytes..][..row_bytes])?;
        RowFormat::F16.encode(value, &mut values[slot * row_bytes..][..row_bytes])?;
        self.len += 1;
        Ok(())
    }

    /// Copies out the first `count` tokens, keys and values `[count, head_dim]`.
    pub(crate) fn front(&self, count: usize) -> (Vec<f32>, Vec<f32>) {
        let mut keys = vec![0.0; count * self.head_dim];
        let mut values = keys.clone();
        let mut done = 0;
        for rows in self.segments() {
            let len = (rows.keys.len() / 2).min(keys.len() - done);
            let part = done..done + len;
            RowFormat::F16.decode(&rows.keys[..2 * len], &mut keys[part.clone()]);
            RowFormat::F16.decode(&rows.values[..2 * len], &mut values[part]);
            done += len;
        }
        (keys, values)
    }

    /// Forgets the first `count` tokens and frees the pages that held only them.
    pub(crate) fn drop_front(&mut self, count: usize) {
        self.start += count;
        self.len -= count;
        while self.start >= self.page_tokens && !self.pages.is_empty() {
            self.pages.pop_front();
            self.start -= self.page_tokens;
        }
    }

    /// The rows, oldest first, in stretches that lie together.
    pub(crate) fn segments(&self) -> impl Iterator<Item = ResidentRows<'_>> {
        let row_bytes = 2 * self.head_dim;
        let end = self.start + self.len;
        self.pages.iter().enumerate().map(move |(i, page)| {
            let first = if i == 0 { self.start } else { 0 };
            let last = (end - i * self.page_tokens).min(self.page_tokens);
            let (keys, values) = page.bytes().split_at(self.page_tokens * row_bytes);
            let span = first * row_bytes..last * row_bytes;
            ResidentRows { keys: &keys[span.clone()], values: &values[span] }
        })
    }

    /// A copy in `arena` that shares nothing with this one.
    pub(crate) fn fork(&self, arena: &Arena) -> Result<Self> {
        let pages: Result<_, _> = self.pages.iter().map(|page| page.copy_to(arena)).collect();
        Ok(Self { pages: pages?, ..*self })
    }
}
