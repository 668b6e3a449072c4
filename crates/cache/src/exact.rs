//! Exact rows on the device: pages that only grow, and the window of recent tokens.

use std::collections::VecDeque;
use std::io::{self, Write};

use heterokv_attn::ResidentRows;
use heterokv_offload::{Arena, Attachment, Block};
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

    /// Rows of the first page that were taken.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Appends one token.
    pub(crate) fn push(&mut self, arena: &Arena, key: &[f32], value: &[f32]) -> Result<()> {
        let (key_bytes, value_bytes) = self.place(arena)?;
        RowFormat::F16.encode(key, key_bytes)?;
        RowFormat::F16.encode(value, value_bytes)?;
        self.len += 1;
        Ok(())
    }

    /// Where key and value of the next token go.
    fn place(&mut self, arena: &Arena) -> Result<(&mut [u8], &mut [u8])> {
        if self.start + self.len == self.pages.len() * self.page_tokens {
            self.pages.push_back(arena.allocate(4 * self.head_dim * self.page_tokens)?);
        }
        Ok(self.row_mut(self.len))
    }

    /// Key and value of a token, for which there is a page.
    fn row_mut(&mut self, index: usize) -> (&mut [u8], &mut [u8]) {
        let (index, row_bytes) = (self.start + index, 2 * self.head_dim);
        let page = self.pages[index / self.page_tokens].bytes_mut();
        let (keys, values) = page.split_at_mut(self.page_tokens * row_bytes);
        let row = index % self.page_tokens * row_bytes;
        (&mut keys[row..][..row_bytes], &mut values[row..][..row_bytes])
    }

    /// Writes the rows, of each token the key and the value.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let row_bytes = 2 * self.head_dim;
        for rows in self.segments() {
            let values = rows.values.chunks_exact(row_bytes);
            for (key, value) in rows.keys.chunks_exact(row_bytes).zip(values) {
                out.write_all(key)?;
                out.write_all(value)?;
            }
        }
        Ok(())
    }

    /// Reads `len` rows that were written so into rows that are empty, the first of them into place `start` of a page.
    pub(crate) fn read(
        &mut self,
        arena: &Arena,
        (start, len): (usize, usize),
        data: &mut Attachment,
    ) -> Result<()> {
        self.start = if len == 0 { 0 } else { start % self.page_tokens };
        if self.start > 0 {
            self.pages.push_back(arena.allocate(4 * self.head_dim * self.page_tokens)?);
        }
        while self.len < len {
            let (key, value) = self.place(arena)?;
            data.read_exact(key)?;
            data.read_exact(value)?;
            self.len += 1;
        }
        Ok(())
    }

    /// Forgets the tokens from the `len`-th on and frees the pages that held only them.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        if self.len == 0 {
            self.start = 0;
        }
        self.pages.truncate((self.start + self.len).div_ceil(self.page_tokens));
    }

    /// Leaves the tokens at `kept`, ascending indices, in their order, and frees the pages behind them. Rows move as they
    /// are.
    pub(crate) fn keep(&mut self, kept: &[u32]) {
        let row_bytes = 2 * self.head_dim;
        let values = self.page_tokens * row_bytes;
        let mut row = vec![0; 2 * row_bytes];
        for (to, &from) in kept.iter().enumerate() {
            if to == from as usize {
                continue;
            }
            let place = |index: usize| {
                let index = self.start + index;
                (index / self.page_tokens, index % self.page_tokens * row_bytes)
            };
            let ((from_page, from), (to_page, to)) = (place(from as usize), place(to));
            let page = self.pages[from_page].bytes();
            row[..row_bytes].copy_from_slice(&page[from..][..row_bytes]);
            row[row_bytes..].copy_from_slice(&page[values + from..][..row_bytes]);
            let page = self.pages[to_page].bytes_mut();
            page[to..][..row_bytes].copy_from_slice(&row[..row_bytes]);
            page[values + to..][..row_bytes].copy_from_slice(&row[row_bytes..]);
        }
        self.truncate(kept.len());
    }

    /// Puts rows, of each token the key and the value, in the place of the first `count`. After an error all are there as
    /// before.
    pub(crate) fn replace_front(&mut self, arena: &Arena, count: usize, rows: &[u8]) -> Result<()> {
        let token_bytes = 4 * self.head_dim;
        let (num_rows, num_behind) = (rows.len() / token_bytes, self.len - count);
        let num_pages = (self.start + num_rows + num_behind).div_ceil(self.page_tokens);
        let more: Vec<Block> = (self.pages.len()..num_pages)
            .map(|_| arena.allocate(4 * self.head_dim * self.page_tokens))
            .collect::<Result<_, _>>()?;
        self.pages.extend(more);
        let mut behind = Vec::new();
        if num_rows != count {
            behind.reserve_exact(num_behind * token_bytes);
            (count..self.len).for_each(|index| self.push_row_to(index, &mut behind));
        }
        let rows = rows.chunks_exact(token_bytes).chain(behind.chunks_exact(token_bytes));
        for (index, row) in rows.enumerate() {
            copy_row(row, self.row_mut(index));
        }
        self.len = num_rows + num_behind;
        self.truncate(self.len);
        Ok(())
    }

    /// Adds the key and the value of a token to `out`.
    pub(crate) fn push_row_to(&self, index: usize, out: &mut Vec<u8>) {
        let (index, row_bytes) = (self.start + index, 2 * self.head_dim);
        let page = self.pages[index / self.page_tokens].bytes();
        let (keys, values) = page.split_at(self.page_tokens * row_bytes);
        let row = index % self.page_tokens * row_bytes;
        out.extend_from_slice(&keys[row..][..row_bytes]);
        out.extend_from_slice(&values[row..][..row_bytes]);
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
        (0..self.num_segments()).map(|index| self.segment(index))
    }

    pub(crate) fn num_segments(&self) -> usize {
        self.pages.len()
    }

    /// One of the stretches that there are.
    pub(crate) fn segment(&self, index: usize) -> ResidentRows<'_> {
        let row_bytes = 2 * self.head_dim;
        let first = if index == 0 { self.start } else { 0 };
        let last = (self.start + self.len - index * self.page_tokens).min(self.page_tokens);
        let (keys, values) = self.pages[index].bytes().split_at(self.page_tokens * row_bytes);
        let span = first * row_bytes..last * row_bytes;
        ResidentRows { keys: &keys[span.clone()], values: &values[span] }
    }

    /// A copy in `arena` that shares nothing with this one.
    pub(crate) fn fork(&self, arena: &Arena) -> Result<Self> {
        let pages: Result<_, _> = self.pages.iter().map(|page| page.copy_to(arena)).collect();
        Ok(Self { pages: pages?, ..*self })
    }
}

/// Copies a row, the key and the value, to its place.
fn copy_row(row: &[u8], (key, value): (&mut [u8], &mut [u8])) {
    let (from_key, from_value) = row.split_at(key.len());
    key.copy_from_slice(from_key);
    value.copy_from_slice(from_value);
}
