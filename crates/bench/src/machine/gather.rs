//! Rows in random order out of memory that no cache holds, as a selection leaves them to a host store.

use std::hint::black_box;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use rayon::ThreadPool;

use crate::scan::locked;

/// Bytes of the rows that are asked for together: far less than the nearest cache holds.
const GROUP_BYTES: usize = 8 << 10;

/// Words of a line of the caches.
const LINE_WORDS: usize = 8;

/// A stretch per thread.
pub(crate) struct Gather<'a> {
    pool: &'a ThreadPool,
    /// Lengths of rows, words of 8 bytes.
    row_words: Vec<usize>,
    stretches: Vec<Mutex<Stretch>>,
}

struct Stretch {
    words: Vec<u64>,
    /// For rows of each length, all of them in random order.
    orders: Vec<Vec<u32>>,
    /// The wrapping sum of all words.
    expected: u64,
    /// The sum of the last run.
    sum: u64,
}

impl<'a> Gather<'a> {
    /// Lays out `num_bytes`, each thread its share, for rows of each of `row_bytes`: powers of two from 8 to 4096.
    pub(crate) fn new(num_bytes: usize, row_bytes: &[usize], pool: &'a ThreadPool) -> Self {
        let row_words: Vec<usize> = row_bytes.iter().map(|bytes| bytes / 8).collect();
        let share = (num_bytes / 8 / pool.current_num_threads()).next_multiple_of(512);
        let stretches = pool.broadcast(|thread| {
            let words: Vec<u64> =
                (0..share as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
            let mut rng = StdRng::seed_from_u64(thread.index() as u64);
            let orders = row_words.iter().map(|row_words| {
                let mut order: Vec<u32> = (0..(share / row_words) as u32).collect();
                order.shuffle(&mut rng);
                order
            });
            let orders = orders.collect();
            let expected = words.iter().fold(0, |sum: u64, &word| sum.wrapping_add(word));
            Mutex::new(Stretch { words, orders, expected, sum: 0 })
        });
        Self { pool, row_words, stretches }
    }

    /// Reads every row of the `length`-th length once, in random order; returns the bytes read.
    pub(crate) fn run(&mut self, length: usize) -> usize {
        let (stretches, row_words) = (&self.stretches, self.row_words[length]);
        let read = self.pool.broadcast(|thread| {
            let Stretch { words, orders, sum, .. } = &mut *locked(&stretches[thread.index()]);
            *sum = 0;
            for rows in orders[length].chunks((GROUP_BYTES / 8 / row_words).max(1)) {
                let rows =
                    || rows.iter().map(|&row| &words[row as usize * row_words..][..row_words]);
                // A word of each line of the group first, so that all of its misses are under way together.
                let lines = rows().flat_map(|row| row.iter().step_by(LINE_WORDS));
                black_box(lines.fold(0u64, |bits, word| bits ^ word));
                *sum = rows().flatten().fold(*sum, |sum, &word| sum.wrapping_add(word));
            }
            8 * words.len()
        });
        read.iter().sum()
    }

    /// Whether the last run read every row once.
    ///
    /// # Errors
    /// If it did not.
    pub(crate) fn check(&self) -> Result<()> {
        for stretch in &self.stretches {
            let stretch = locked(stretch);
            let is_right = stretch.sum == stretch.expected;
            ensure!(is_right, "a gather of rows did not read what is there");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_read_once_and_a_wrong_sum_is_seen() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
        let mut gather = Gather::new(100_000, &[64, 1024], &pool);
        for length in [0, 1] {
            let read = gather.run(length);
            assert!(read >= 100_000 && read.is_multiple_of(1024), "{read}");
            gather.check().expect("it is right");
        }
        gather.stretches[1].lock().expect("it is free").sum ^= 1;
        assert!(gather.check().is_err());
    }
}
