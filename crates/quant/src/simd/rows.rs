//! One exact vector against a group of queries, and a weighted vector added to a group of sums.

#![cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use half::f16;

use super::Kind;
use crate::Level;

/// Calls the form of a kernel that a level asks for.
macro_rules! at_level {
    ($level:expr, $kernel:ident($($argument:expr),*)) => {
        match $level.0 {
            Kind::Scalar => scalar::$kernel($($argument),*),
            // SAFETY: these levels exist only where AVX2, FMA and F16C do.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::Avx512 => unsafe { avx2::$kernel($($argument),*) },
            // SAFETY: this level exists only where NEON does.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => unsafe { neon::$kernel($($argument),*) },
        }
    };
}

/// `out[head · stride] = queries[head] · row`, `row` in f16.
pub(crate) fn dot_f16(level: Level, queries: &[f32], row: &[u8], out: &mut [f32], stride: usize) {
    for (head, query) in queries.chunks_exact(row.len() / 2).enumerate() {
        out[head * stride] = at_level!(level, dot_f16(query, row));
    }
}

/// `out[head · stride] = queries[head] · row`, `row` in int8 with its scale.
pub(crate) fn dot_int8(level: Level, queries: &[f32], row: &[u8], out: &mut [f32], stride: usize) {
    let (codes, scale) = int8_row(row);
    for (head, query) in queries.chunks_exact(codes.len()).enumerate() {
        out[head * stride] = scale * at_level!(level, dot_int8(query, codes));
    }
}

/// `sums[head] += weights[head] · row`, `row` in f16.
pub(crate) fn add_scaled_f16(level: Level, weights: &[f32], row: &[u8], sums: &mut [f32]) {
    for (&weight, sums) in weights.iter().zip(sums.chunks_exact_mut(row.len() / 2)) {
        at_level!(level, add_scaled_f16(weight, row, sums));
    }
}

/// `sums[head] += weights[head] · row`, `row` in int8 with its scale.
pub(crate) fn add_scaled_int8(level: Level, weights: &[f32], row: &[u8], sums: &mut [f32]) {
    let (codes, scale) = int8_row(row);
    for (&weight, sums) in weights.iter().zip(sums.chunks_exact_mut(codes.len())) {
        at_level!(level, add_scaled_int8(weight * scale, codes, sums));
    }
}

/// A row in f16 as numbers.
pub(crate) fn halves(row: &[u8]) -> impl Iterator<Item = f32> {
    row.as_chunks::<2>().0.iter().map(|x| f16::from_le_bytes(*x).to_f32())
}

fn int8_row(row: &[u8]) -> (&[u8], f32) {
    let (codes, tail) = row.split_at(row.len() - 2);
    (codes, f16::from_le_bytes([tail[0], tail[1]]).to_f32())
}
