//! The read bandwidth of this machine: sums over a stretch as large as a case's codes, on the same threads.

use std::sync::Mutex;

use anyhow::{Result, ensure};
use rayon::ThreadPool;

use super::locked;

/// Words that are summed side by side: enough for every load unit and the latency of an addition.
const LANES: usize = 32;

/// A stretch per thread.
pub(crate) struct Probe<'a> {
    pool: &'a ThreadPool,
    stretches: Vec<Mutex<Stretch>>,
}

struct Stretch {
    words: Vec<u64>,
    /// The sum of one pass.
    once: u64,
    /// The sum of all passes so far.
    sum: u64,
    num_passes: u64,
}

impl<'a> Probe<'a> {
    /// Lays out `num_bytes`, each thread its share.
    pub(crate) fn new(num_bytes: usize, pool: &'a ThreadPool) -> Self {
        let num_words = (num_bytes / 8 / pool.current_num_threads()).next_multiple_of(LANES);
        let stretches = pool.broadcast(|_| {
            let words: Vec<u64> =
                (0..num_words as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
            let once = words.iter().fold(0, |sum: u64, &word| sum.wrapping_add(word));
            Mutex::new(Stretch { words, once, sum: 0, num_passes: 0 })
        });
        Self { pool, stretches }
    }

    /// Reads everything `num_passes` times; returns the bytes read.
    pub(crate) fn run(&mut self, num_passes: usize) -> usize {
        let stretches = &self.stretches;
        let read = self.pool.broadcast(|thread| {
            let mut stretch = locked(&stretches[thread.index()]);
            for _ in 0..num_passes {
                let sum = sum_of(&stretch.words);
                stretch.sum = stretch.sum.wrapping_add(sum);
                stretch.num_passes += 1;
            }
            num_passes * 8 * stretch.words.len()
        });
        read.iter().sum()
    }

    /// Whether the sums are right.
    ///
    /// # Errors
    /// If one is not.
    pub(crate) fn check(&self) -> Result<()> {
        for stretch in &self.stretches {
            let stretch = locked(stretch);
            let expected = stretch.once.wrapping_mul(stretch.num_passes);
            ensure!(stretch.sum == expected, "the bandwidth probe did not read what is there");
        }
        Ok(())
    }
}

/// The wrapping sum, by the widest loads that all levels of ours have.
fn sum_of(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return simd.vectorize(|| sum(words));
    }
    sum(words)
}

/// Plain additions, which the compiler turns into vector code of the level around it.
#[inline(always)]
fn sum(words: &[u64]) -> u64 {
    let (chunks, rest) = words.as_chunks::<LANES>();
    let mut sums = [0u64; LANES];
    for chunk in chunks {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_and_a_wrong_sum_is_seen() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
        let mut probe = Probe::new(10_000, &pool);
        assert!(probe.run(3) >= 30_000);
        probe.check().expect("it is right");
        probe.stretches[1].lock().expect("it is free").sum ^= 1;
        assert!(probe.check().is_err());
    }
}
