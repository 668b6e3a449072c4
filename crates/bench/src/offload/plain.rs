//! What a gather is held against: the same rows, read by a plain loop out of one buffer that has the layout of the
//! pages.

use std::hint::black_box;

use anyhow::{Result, ensure};
use heterokv_offload::StoreShape;

use super::known::Known;

/// Bytes of the rows that are asked for together: far less than the nearest cache holds.
const GROUP_BYTES: usize = 8 << 10;

/// Bytes of a line of the caches.
const LINE_BYTES: usize = 64;

/// Pages of all heads, one after another.
pub(super) struct Plain {
    bytes: Vec<u8>,
    page_size: usize,
    page_bytes: usize,
    row_bytes: usize,
    pages_of_head: usize,
}

impl Plain {
    /// The first `num_rows` rows of each of `num_heads`.
    pub(super) fn new(
        known: &Known,
        shape: &StoreShape,
        num_heads: usize,
        num_rows: usize,
    ) -> Self {
        let row_bytes = known.layout.row_bytes();
        let page_bytes = (shape.page_size * row_bytes).next_multiple_of(LINE_BYTES);
        let pages_of_head = num_rows.div_ceil(shape.page_size);
        let mut bytes = vec![0; num_heads * pages_of_head * page_bytes];
        for (page, bytes) in bytes.chunks_exact_mut(page_bytes).enumerate() {
            let (head, first) = (page / pages_of_head, page % pages_of_head * shape.page_size);
            let rows = first..num_rows.min(first + shape.page_size);
            for (place, row) in bytes.chunks_exact_mut(row_bytes).zip(rows) {
                place.copy_from_slice(known.row(head, row));
            }
        }
        Self { bytes, page_size: shape.page_size, page_bytes, row_bytes, pages_of_head }
    }

    /// Reads the rows of a head at these positions, and folds all of their bytes.
    pub(super) fn read(&self, head: usize, positions: &[u32]) -> u64 {
        let head_bytes = self.pages_of_head * self.page_bytes;
        let bytes = &self.bytes[head * head_bytes..][..head_bytes];
        // As shifts where it is a power of two, which the compiler cannot know.
        let page_of = |row: usize| match self.page_size {
            64 => (row / 64, row % 64),
            size => (row / size, row % size),
        };
        let mut sum = 0;
        for rows in positions.chunks((GROUP_BYTES / self.row_bytes).max(1)) {
            let rows = || {
                rows.iter().map(|&row| {
                    let (page, row) = page_of(row as usize);
                    &bytes[page * self.page_bytes + row * self.row_bytes..][..self.row_bytes]
                })
            };
            // A byte of each line of the group first, so that all of its misses are under way together.
            let touched = rows().fold(0, |bits, row| {
                let inner = row.iter().step_by(LINE_BYTES).fold(bits, |bits, byte| bits ^ byte);
                inner ^ row[row.len() - 1]
            });
            black_box(touched);
            sum = rows().fold(sum, |sum, row| folded(row).wrapping_add(sum));
        }
        sum
    }

    /// Whether a fold is that of these rows.
    ///
    /// # Errors
    /// If it is not.
    pub(super) fn check(known: &Known, head: usize, positions: &[u32], sum: u64) -> Result<()> {
        let expected = positions.iter().map(|&row| folded(known.row(head, row as usize)));
        let expected = expected.fold(0, u64::wrapping_add);
        ensure!(sum == expected, "the plain loop did not read what is there");
        Ok(())
    }
}

/// The wrapping sum of the words of a row.
fn folded(row: &[u8]) -> u64 {
    let (words, rest) = row.as_chunks::<8>();
    let sum = words.iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    rest.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)))
}
