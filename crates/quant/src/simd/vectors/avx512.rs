//! The weighted sum of [`super`] on sixteen lanes, whose thirty-two registers hold a tile in one walk over the vectors.

use std::arch::x86_64::*;

use super::runs::Run;
use super::{HEADS, LANES, LINE, Vector, avx2};

/// Values of a register.
const WIDE: usize = 2 * LANES;

/// See [`super::weighted_sum`]: what fills whole registers on sixteen lanes, the channels that are left on eight. A tile
/// of `G` heads and `C` registers holds at most sixteen sums.
///
/// # Safety
/// - AVX-512 F, AVX2, FMA and F16C are available.
/// - Every vector is `num_bytes` long, and each head has a weight for it.
pub(super) unsafe fn weighted_sum<'a, V: Vector, R: Run<'a>>(
    vector: V,
    vectors: R,
    weights: (&[f32], usize),
    sums: &mut [f32],
) {
    // SAFETY: as this function.
    unsafe {
        match sums.len() / vector.head_dim() {
            1 => sum_heads::<V, R, 1>(vector, vectors, weights, sums),
            2 => sum_heads::<V, R, 2>(vector, vectors, weights, sums),
            3 => sum_heads::<V, R, 3>(vector, vectors, weights, sums),
            _ => sum_heads::<V, R, HEADS>(vector, vectors, weights, sums),
        }
    }
}

/// [`weighted_sum`] for `G` heads.
///
/// # Safety
/// As [`weighted_sum`].
unsafe fn sum_heads<'a, V: Vector, R: Run<'a>, const G: usize>(
    vector: V,
    vectors: R,
    weights: (&[f32], usize),
    sums: &mut [f32],
) {
    let chunks = vector.head_dim() / LANES;
    let mut chunk = 0;
    while chunk + 8 <= chunks {
        // SAFETY: as this function; these chunks lie within the vectors.
        unsafe { sum_tile::<V, R, G, 4>(vector, vectors, weights, chunk, sums) };
        chunk += 8;
    }
    while chunk + 2 <= chunks {
        // SAFETY: as this function; these chunks lie within the vectors.
        unsafe { sum_tile::<V, R, G, 1>(vector, vectors, weights, chunk, sums) };
        chunk += 2;
    }
    // SAFETY: as this function; so many chunks were summed.
    unsafe { avx2::sum_rest::<V, R, G>(vector, vectors, weights, chunk, sums) };
}

/// `C` registers, from chunk `chunk` on, of the sums of `G` heads.
///
/// # Safety
/// - AVX-512 F, AVX2, FMA and F16C are available.
/// - Every vector is `num_bytes` long and has these chunks; each head has a weight for it.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn sum_tile<'a, V: Vector, R: Run<'a>, const G: usize, const C: usize>(
    vector: V,
    vectors: R,
    (weights, stride): (&[f32], usize),
    chunk: usize,
    sums: &mut [f32],
) {
    let head_dim = vector.head_dim();
    // Of what is next, each tile asks for its part.
    let before = |chunk: usize| vector.num_bytes() * chunk * LANES / head_dim;
    let lines = (before(chunk)..before(chunk + 2 * C)).step_by(LINE);
    let mut tile = [[_mm512_setzero_ps(); C]; G];
    for (row, sums) in tile.iter_mut().zip(sums.chunks_exact(head_dim)) {
        let of_tile = sums[chunk * LANES..].as_chunks::<WIDE>().0;
        for (sum, from) in row.iter_mut().zip(of_tile) {
            // SAFETY: the array has the 64 bytes of this unaligned load.
            *sum = unsafe { _mm512_loadu_ps(from.as_ptr()) };
        }
    }
    for i in 0..vectors.len() {
        let mut of_vector = [_mm512_setzero_ps(); G];
        // SAFETY: there is an i-th vector, and a weight of each head for it.
        let bytes = unsafe {
            lines.clone().for_each(|at| vectors.ask(i, at));
            for (head, weight) in of_vector.iter_mut().enumerate() {
                *weight = _mm512_set1_ps(*weights.get_unchecked(head * stride + i));
            }
            vectors.get(i)
        };
        for c in 0..C {
            let chunk = chunk + 2 * c;
            // SAFETY: the vector has this chunk and the next, which are of one group.
            let x = unsafe { vector.wide(bytes, chunk, vector.group(bytes, chunk)) };
            for (row, &weight) in tile.iter_mut().zip(&of_vector) {
                row[c] = _mm512_fmadd_ps(weight, x, row[c]);
            }
        }
    }
    for (row, sums) in tile.iter().zip(sums.chunks_exact_mut(head_dim)) {
        let of_tile = sums[chunk * LANES..].as_chunks_mut::<WIDE>().0;
        for (sum, to) in row.iter().zip(of_tile) {
            // SAFETY: the array has the 64 bytes of this unaligned store.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), *sum) };
        }
    }
}
