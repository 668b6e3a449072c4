//! How many multiply-adds of f32 the processor does at most: in registers, with nothing to wait for.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use pulp::{Arch, Simd, WithSimd};
use rayon::ThreadPool;

use crate::samples::Samples;

/// Sums that do not wait for each other: as many as the latency of a multiply-add times how many begin at once, and some more.
const NUM_SUMS: usize = 12;

/// Multiply-adds of each sum: a quarter of a second, over which a machine that others use, too, gives what it gives to a prompt.
pub(super) const NUM_STEPS: usize = 1 << 27;

/// Operations of one sample of `num_steps` multiply-adds of each sum, and its times. A multiply-add is two operations.
///
/// # Errors
/// A sum that is wrong.
pub(super) fn measure(
    num_rounds: usize,
    num_steps: usize,
    pool: &ThreadPool,
) -> Result<(usize, Samples)> {
    let mut samples = Samples::default();
    let mut num_operations = 0;
    // The first round wakes the threads up.
    for round in 0..=num_rounds {
        let start = Instant::now();
        let sums = pool.broadcast(|_| Arch::new().dispatch(Sums(num_steps)));
        let nanoseconds = 1e9 * start.elapsed().as_secs_f64();
        if round > 0 {
            samples.push(nanoseconds);
        }
        for (sum, num_chains) in &sums {
            // Each goes to 1 / (1 - 1/2).
            ensure!(*sum == 2.0 * *num_chains as f32, "{num_chains} sums of 2 are {sum}");
        }
        num_operations = sums.iter().map(|(_, num_chains)| 2 * num_chains * num_steps).sum();
    }
    Ok((num_operations, samples))
}

/// So many steps of every sum; gives their total and how many lanes they have.
struct Sums(usize);

impl WithSimd for Sums {
    type Output = (f32, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, usize) {
        let (half, one) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(1.0)));
        let mut sums = [simd.splat_f32s(0.0); NUM_SUMS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, half, one);
            }
        }
        let total = sums.iter().map(|&sum| simd.reduce_sum_f32s(sum)).sum();
        (total, NUM_SUMS * S::F32_LANES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::threads;

    #[test]
    fn all_threads_are_counted() {
        let num_steps = 1000;
        let operations = |num_threads: usize| {
            let pool = threads(num_threads).expect("threads");
            let (operations, samples) = measure(2, num_steps, &pool).expect("every sum is right");
            assert_eq!(samples.as_slice().len(), 2);
            operations
        };
        assert!(operations(1) >= 2 * NUM_SUMS * num_steps);
        assert_eq!(operations(2), 2 * operations(1));
    }
}
