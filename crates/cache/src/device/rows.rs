//! Exact rows on a device: pages of keys and values of all layers and KV heads.

use std::collections::VecDeque;

use heterokv_attn::device::RowSlot;
use heterokv_gpu::{Buffer, Gpu, Paged, Paging, Place};
use heterokv_quant::RowFormat;

use super::coded::KeyStretch;
use super::transfer::READ_BYTES;
use crate::Result;

/// Tokens of a part of a head's rows that one workgroup sums.
pub(super) const PART_TOKENS: usize = 512;

/// Pages of exact rows of all layers and KV heads: `keys [page_tokens, head_dim] | values [page_tokens, head_dim]`, f16.
#[derive(Debug)]
pub(super) struct RowPool {
    head_dim: usize,
    page_tokens: usize,
    paged: Paged,
    /// Pages given out at least once; the rest of those that there are follow.
    num_used: u64,
    free: Vec<u64>,
}

/// The pages of a run of tokens of one (layer, KV head), oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct RowRun {
    pages: VecDeque<u64>,
    /// Rows of the first page that were dropped.
    start: usize,
    len: usize,
}

/// Where a row goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowPlace {
    page: u64,
    slot: usize,
}

impl RowPool {
    /// No pages yet.
    pub(super) fn new(gpu: &Gpu, head_dim: usize, page_tokens: usize) -> Result<Self> {
        let bytes = Self::page_bytes(head_dim, page_tokens);
        let paging = Paging::new("exact rows", bytes, gpu.limits().binding_bytes)?;
        let paged = Paged::new("exact rows", paging);
        Ok(Self { head_dim, page_tokens, paged, num_used: 0, free: Vec::new() })
    }

    /// Bytes of a page.
    pub(super) fn page_bytes(head_dim: usize, page_tokens: usize) -> u64 {
        (4 * head_dim * page_tokens) as u64
    }

    /// Bytes of all pages, used or not.
    pub(super) fn num_bytes(&self) -> u64 {
        self.paged.num_bytes()
    }

    /// Tokens of a page.
    pub(super) fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// The buffers of the pages.
    pub(super) fn slabs(&self) -> &[Buffer] {
        self.paged.slabs()
    }

    /// Makes sure that there are so many pages.
    pub(super) fn reserve(&mut self, gpu: &Gpu, num_pages: u64) -> Result<()> {
        Ok(self.paged.reserve(gpu, num_pages)?)
    }

    /// Makes sure that so many pages can be given out without more memory.
    pub(super) fn make_room(&mut self, gpu: &Gpu, num_pages: usize) -> Result<()> {
        let unused = (num_pages as u64).saturating_sub(self.free.len() as u64);
        self.reserve(gpu, self.num_used + unused)
    }

    /// Whether so many pages can be given out without more memory.
    pub(super) fn has_room(&self, num_pages: usize) -> bool {
        let unused = self.paged.num_pages() - self.num_used;
        self.free.len() as u64 + unused >= num_pages as u64
    }

    fn take(&mut self, gpu: &Gpu) -> Result<u64> {
        if let Some(page) = self.free.pop() {
            return Ok(page);
        }
        if self.num_used == self.paged.num_pages() {
            // Beyond what was planned: an eighth more, so that growing stays rare.
            self.paged.reserve(gpu, self.num_used + self.num_used / 8 + 1)?;
        }
        self.num_used += 1;
        Ok(self.num_used - 1)
    }

    /// Room for one more token behind a run.
    pub(super) fn push(&mut self, gpu: &Gpu, run: &mut RowRun) -> Result<RowPlace> {
        let end = run.start + run.len;
        if end == run.pages.len() * self.page_tokens {
            run.pages.push_back(self.take(gpu)?);
        }
        run.len += 1;
        Ok(RowPlace { page: run.pages[end / self.page_tokens], slot: end % self.page_tokens })
    }

    /// Forgets the first `count` tokens of a run and frees the pages that held only them.
    pub(super) fn drop_front(&mut self, run: &mut RowRun, count: usize) {
        run.start += count;
        run.len -= count;
        while run.start >= self.page_tokens
            && let Some(page) = run.pages.pop_front()
        {
            self.free.push(page);
            run.start -= self.page_tokens;
        }
    }

    /// Where the kernels find a row.
    pub(super) fn slot(&self, row: RowPlace, token: usize, kv_head: usize) -> (usize, RowSlot) {
        let Place { slab, word } = self.paged.paging().place(row.page);
        let place = word + (row.slot * self.head_dim / 2) as u32;
        (slab, RowSlot { token: token as u32, kv_head: kv_head as u32, place })
    }

    /// Keys and values `[n, head_dim]` of a run.
    pub(super) fn read(&self, gpu: &Gpu, run: &RowRun) -> Result<[Vec<f32>; 2]> {
        let page_bytes = Self::page_bytes(self.head_dim, self.page_tokens);
        let mut rows = [Vec::new(), Vec::new()];
        let (mut rest, mut slot) =
            (&run.pages.iter().copied().collect::<Vec<u64>>()[..], run.start);
        while let Some(&first) = rest.first() {
            // Pages that lie one behind the other come together.
            let first_place = self.paged.paging().place(first);
            let follows = |(at, page): (u64, u64)| {
                let is_small = (at + 1) * page_bytes <= READ_BYTES.max(page_bytes);
                let slab = self.paged.paging().place(page).slab;
                is_small && page == first + at && slab == first_place.slab
            };
            let pages = (0..).zip(rest.iter().copied());
            let count = pages.take_while(|&page| follows(page)).count();
            let slab = &self.paged.slabs()[first_place.slab];
            let start = 4 * u64::from(first_place.word);
            let bytes = gpu.read(slab, start, count as u64 * page_bytes)?;
            for page in bytes.chunks_exact(page_bytes as usize) {
                let left = run.len - rows[0].len() / self.head_dim;
                let tokens = (self.page_tokens - slot).min(left);
                let halves = page.chunks_exact(page.len() / 2);
                for (half, rows) in halves.zip(&mut rows) {
                    let row_bytes = 2 * self.head_dim;
                    let from = rows.len();
                    rows.resize(from + tokens * self.head_dim, 0.0);
                    let half = &half[slot * row_bytes..(slot + tokens) * row_bytes];
                    RowFormat::F16.decode(half, &mut rows[from..]);
                }
                slot = 0;
            }
            rest = &rest[count..];
        }
        Ok(rows)
    }

    /// Writes tokens `keys` and `values` `[n, head_dim]` behind a run from the host.
    pub(super) fn extend(
        &mut self,
        gpu: &Gpu,
        run: &mut RowRun,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        let (head_dim, row_bytes) = (self.head_dim, 2 * self.head_dim);
        let mut at = 0;
        while at < keys.len() {
            let RowPlace { page, slot } = self.push(gpu, run)?;
            let count = (self.page_tokens - slot).min((keys.len() - at) / head_dim);
            run.len += count - 1;
            let mut bytes = vec![0; count * row_bytes];
            for (rows, first) in [(keys, slot), (values, self.page_tokens + slot)] {
                let rows = rows[at..][..count * head_dim].chunks_exact(head_dim);
                for (row, bytes) in rows.zip(bytes.chunks_exact_mut(row_bytes)) {
                    RowFormat::F16.encode(row, bytes)?;
                }
                self.paged.write(gpu, page, (first * row_bytes) as u64, &bytes)?;
            }
            at += count * head_dim;
        }
        Ok(())
    }
}

impl RowRun {
    /// Tokens.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Pages held.
    pub(super) fn num_pages(&self) -> usize {
        self.pages.len()
    }

    /// The keys of the first `count` tokens, page by page; a key is half of `head_dim` words.
    pub(super) fn first_keys(&self, pool: &RowPool, count: usize) -> Vec<KeyStretch> {
        let (page_tokens, paging) = (pool.page_tokens, pool.paged.paging());
        let (mut slot, mut rest) = (self.start, count.min(self.len));
        let mut stretches = Vec::new();
        for &page in &self.pages {
            let num_tokens = (page_tokens - slot).min(rest);
            if num_tokens == 0 {
                break;
            }
            let Place { slab, word } = paging.place(page);
            let word = word as usize + slot * pool.head_dim / 2;
            stretches.push(KeyStretch { buffer: slab, word, num_tokens });
            (slot, rest) = (0, rest - num_tokens);
        }
        stretches
    }

    /// The run in stretches of at most [`PART_TOKENS`], each in one buffer of the pool.
    pub(super) fn stretches<'a>(&'a self, pool: &'a RowPool) -> impl Iterator<Item = Stretch> + 'a {
        let (page_tokens, paging) = (pool.page_tokens, pool.paged.paging());
        let part_pages = (PART_TOKENS / page_tokens).max(1);
        let places: Vec<Place> = self.pages.iter().map(|&page| paging.place(page)).collect();
        let (mut page, end) = (0, self.start + self.len);
        std::iter::from_fn(move || {
            let slab = places.get(page).filter(|_| page * page_tokens < end)?.slab;
            let rest = &places[page..];
            let count = rest.iter().take(part_pages).take_while(|place| place.slab == slab).count();
            let first_slot = if page == 0 { self.start } else { 0 };
            let stop = ((page + count) * page_tokens).min(end);
            let num_tokens = stop - page * page_tokens - first_slot;
            let words = rest[..count].iter().map(|place| place.word).collect();
            page += count;
            Some(Stretch { slab, first_slot, num_tokens, words })
        })
    }
}

/// Rows that one workgroup sums.
pub(super) struct Stretch {
    /// The buffer that they are in.
    pub(super) slab: usize,
    /// Where in the first page they begin.
    pub(super) first_slot: usize,
    /// How many they are.
    pub(super) num_tokens: usize,
    /// Where the pages begin.
    pub(super) words: Vec<u32>,
}
