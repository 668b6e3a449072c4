//! Coded keys on the device: a coder and its pages, for one (layer, KV head).

use std::io::{self, Write};

use heterokv_offload::{Arena, Attachment, Block, Charge};
use heterokv_quant::{KeyCoder, KeyLayout, Level, PreparedQueries, ScoreRows};
use rayon::prelude::*;

use crate::Result;

/// Tokens of a page of codes: whole groups of every format.
pub(crate) const CODE_PAGE_TOKENS: usize = 128;

/// Tokens that are scored into one stretch of scratch, and by one thread.
pub(crate) const SCORE_TILE: usize = 8 * CODE_PAGE_TOKENS;

/// Coded keys of one (layer, KV head).
#[derive(Debug)]
pub(crate) struct CodedKeys {
    coder: KeyCoder,
    pages: Vec<Block>,
    num_tokens: usize,
    /// Counts the coder's tables as device bytes for as long as they live.
    tables: Charge,
}

impl CodedKeys {
    /// No keys yet, under `coder`, whose tables are charged to `arena`.
    pub(crate) fn new(coder: KeyCoder, arena: &Arena) -> Result<Self> {
        let held_bytes: usize = coder.tables().iter().map(|(_, t)| size_of_val(&t[..])).sum();
        let tables = arena.charge(held_bytes)?;
        Ok(Self { coder, pages: Vec::new(), num_tokens: 0, tables })
    }

    /// Device bytes of `num_tokens` coded keys: tables and pages.
    pub(crate) fn bytes(layout: &KeyLayout, num_tokens: usize) -> (usize, usize) {
        let page = Arena::allocated_bytes(page_bytes(layout));
        (layout.table_bytes, num_tokens.div_ceil(CODE_PAGE_TOKENS) * page)
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    pub(crate) fn coder(&self) -> &KeyCoder {
        &self.coder
    }

    /// Bytes of the pages held.
    pub(crate) fn page_bytes(&self) -> usize {
        self.pages.iter().map(Block::allocated_bytes).sum()
    }

    /// Bytes of the tables, as charged.
    pub(crate) fn table_bytes(&self) -> usize {
        self.tables.bytes()
    }

    /// Encodes `keys [n, head_dim]`, n whole groups, behind those held. Pages beside that of the first are shared out among
    /// the threads. After an error pages may be there that hold nothing.
    pub(crate) fn append(
        &mut self,
        level: Level,
        arena: &Arena,
        keys: &[f32],
        head_dim: usize,
    ) -> Result<()> {
        let page_bytes = page_bytes(&self.coder.layout());
        let num_tokens = self.num_tokens + keys.len() / head_dim;
        while self.pages.len() < num_tokens.div_ceil(CODE_PAGE_TOKENS) {
            self.pages.push(arena.allocate(page_bytes)?);
        }
        let (first_page, slot) =
            (self.num_tokens / CODE_PAGE_TOKENS, self.num_tokens % CODE_PAGE_TOKENS);
        let in_first = (CODE_PAGE_TOKENS - slot).min(num_tokens - self.num_tokens);
        let (now, later) = keys.split_at(in_first * head_dim);
        let coder = &self.coder;
        if let [first, others @ ..] = &mut self.pages[first_page..] {
            coder.encode(level, slot, now, first.bytes_mut())?;
            let others = others.par_iter_mut().zip(later.par_chunks(CODE_PAGE_TOKENS * head_dim));
            others.try_for_each(|(page, keys)| coder.encode(level, 0, keys, page.bytes_mut()))?;
        }
        self.num_tokens = num_tokens;
        Ok(())
    }

    /// Writes the pages, whole.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.pages.iter().try_for_each(|page| out.write_all(page.bytes()))
    }

    /// Reads pages of `num_tokens` keys that were written so into coded keys that are empty.
    pub(crate) fn read(
        &mut self,
        arena: &Arena,
        num_tokens: usize,
        data: &mut Attachment,
    ) -> Result<()> {
        let page_bytes = page_bytes(&self.coder.layout());
        while self.pages.len() < num_tokens.div_ceil(CODE_PAGE_TOKENS) {
            let mut page = arena.allocate(page_bytes)?;
            data.read_exact(page.bytes_mut())?;
            self.pages.push(page);
        }
        self.num_tokens = num_tokens;
        Ok(())
    }

    /// All keys, decoded `[num_tokens, head_dim]`.
    pub(crate) fn decoded(&self) -> Vec<f32> {
        let head_dim = self.coder.head_dim();
        let mut keys = vec![0.0; self.num_tokens * head_dim];
        let pages = keys.chunks_mut(CODE_PAGE_TOKENS * head_dim).zip(&self.pages);
        pages.for_each(|(keys, page)| self.coder.decode(0, page.bytes(), keys));
        keys
    }

    /// A copy of the pages.
    pub(crate) fn pages(&self) -> Vec<Vec<u8>> {
        self.pages.iter().map(|page| page.bytes().to_vec()).collect()
    }

    /// Takes whole pages of `num_tokens` keys into coded keys that are empty.
    pub(crate) fn fill(
        &mut self,
        arena: &Arena,
        num_tokens: usize,
        pages: &[Vec<u8>],
    ) -> Result<()> {
        for bytes in pages {
            let mut page = arena.allocate(page_bytes(&self.coder.layout()))?;
            page.bytes_mut().copy_from_slice(bytes);
            self.pages.push(page);
        }
        self.num_tokens = num_tokens;
        Ok(())
    }

    /// Forgets the tokens from the `num_tokens`-th on, which begins a group, and frees the pages that held only them.
    pub(crate) fn truncate(&mut self, num_tokens: usize) {
        self.num_tokens = self.num_tokens.min(num_tokens);
        self.pages.truncate(self.num_tokens.div_ceil(CODE_PAGE_TOKENS));
    }

    /// Leaves the tokens at `kept`, ascending indices of those held, in their order, and frees the pages behind them. After
    /// an error all are there as before.
    ///
    /// A group of which all tokens stay and begin a group again moves as it is: in formats that
    /// [move tokens](KeyLayout::moves_tokens) every token does. In others, whose tokens share scales, any other group is put
    /// together of decoded tokens and encoded again, which adds an error of its own; from the first group that loses a
    /// token on, that is most of them. There must be whole groups of tokens that stay.
    ///
    /// # Errors
    /// A decoded key that is not finite, which only damaged codes have.
    ///
    /// # Panics
    /// When `kept` does not ascend, names a token that is not held, or is not whole groups.
    pub(crate) fn keep(&mut self, level: Level, kept: &[u32]) -> Result<()> {
        let layout = self.coder.layout();
        assert!(kept.is_sorted_by(|a, b| a < b), "ascending tokens");
        assert!(kept.last().is_none_or(|&last| (last as usize) < self.num_tokens), "tokens held");
        assert!(kept.len().is_multiple_of(layout.group_tokens), "whole groups");
        let num_in_place = kept.iter().zip(0..).take_while(|(token, i)| *token == i).count();
        if num_in_place == kept.len() {
            self.truncate(kept.len());
            return Ok(());
        }
        let first_page = num_in_place / CODE_PAGE_TOKENS;
        let mut source = Source { keys: self, group: None, rows: Vec::new() };
        let mut pages = Vec::new();
        for kept in kept[first_page * CODE_PAGE_TOKENS..].chunks(CODE_PAGE_TOKENS) {
            let mut page = vec![0; page_bytes(&layout)];
            for (i, group) in kept.chunks_exact(layout.group_tokens).enumerate() {
                source.put(level, group, &mut page, i * layout.group_tokens)?;
            }
            pages.push(page);
        }
        self.truncate(kept.len());
        for (page, bytes) in self.pages[first_page..].iter_mut().zip(pages) {
            page.bytes_mut().copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Scores tile `tile` of [`SCORE_TILE`] tokens into `out[head · SCORE_TILE + token]`; raises `maxima`
    /// to the largest score of each head.
    pub(crate) fn score_tile(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        tile: usize,
        out: &mut [f32],
        maxima: &mut [f32],
    ) {
        let first = tile * SCORE_TILE;
        let count = (self.num_tokens - first).min(SCORE_TILE);
        let pages = &self.pages[first / CODE_PAGE_TOKENS..];
        for (page, offset) in pages.iter().zip((0..count).step_by(CODE_PAGE_TOKENS)) {
            let tokens = (count - offset).min(CODE_PAGE_TOKENS);
            let out = ScoreRows { scores: &mut out[offset..], stride: SCORE_TILE, maxima };
            self.coder.score(level, prepared, page.bytes(), tokens, out);
        }
    }

    /// A copy in `arena` that shares nothing with this one.
    pub(crate) fn fork(&self, arena: &Arena) -> Result<Self> {
        let pages: Result<_, _> = self.pages.iter().map(|page| page.copy_to(arena)).collect();
        Ok(Self {
            coder: self.coder.clone(),
            pages: pages?,
            num_tokens: self.num_tokens,
            tables: arena.charge(self.tables.bytes())?,
        })
    }
}

/// Coded keys that groups are put together from.
struct Source<'a> {
    keys: &'a CodedKeys,
    /// The group that `rows` are decoded from.
    group: Option<usize>,
    /// `[group_tokens, head_dim]`.
    rows: Vec<f32>,
}

impl Source<'_> {
    /// Puts a group of these tokens where `token` begins one of `page`.
    fn put(&mut self, level: Level, group: &[u32], page: &mut [u8], token: usize) -> Result<()> {
        let keys = self.keys;
        let (coder, len) = (&keys.coder, group.len());
        let first = group[0] as usize;
        if first.is_multiple_of(len) && group[len - 1] as usize == first + len - 1 {
            let from = keys.pages[first / CODE_PAGE_TOKENS].bytes();
            coder.copy_group(from, first % CODE_PAGE_TOKENS, page, token);
            return Ok(());
        }
        let head_dim = coder.head_dim();
        let mut rows = Vec::with_capacity(len * head_dim);
        for &token in group {
            let at = token as usize % len * head_dim;
            rows.extend_from_slice(&self.decoded(token as usize / len, len)[at..][..head_dim]);
        }
        Ok(coder.encode(level, token, &rows, page)?)
    }

    /// The keys of a group.
    fn decoded(&mut self, group: usize, group_tokens: usize) -> &[f32] {
        if self.group != Some(group) {
            let Self { keys, rows, .. } = self;
            let token = group * group_tokens;
            rows.resize(group_tokens * keys.coder.head_dim(), 0.0);
            let page = keys.pages[token / CODE_PAGE_TOKENS].bytes();
            keys.coder.decode(token % CODE_PAGE_TOKENS, page, rows);
            self.group = Some(group);
        }
        &self.rows
    }
}

pub(crate) fn page_bytes(layout: &KeyLayout) -> usize {
    layout.bytes(CODE_PAGE_TOKENS)
}

#[cfg(test)]
mod tests;
