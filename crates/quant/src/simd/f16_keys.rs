//! Keys in half precision against a group of queries: every key is converted once for all of them.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "AVX2 intrinsics behind a Level"))]

use crate::Level;
use crate::simd::rows::dot_f16;

/// Channels that one vector holds.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 8;

/// Scores the first `num_tokens` of `codes [n, head_dim]`, f16, into `out[head · stride + token]`.
pub(crate) fn score(
    level: Level,
    queries: &[f32],
    head_dim: usize,
    codes: &[u8],
    num_tokens: usize,
    out: &mut [f32],
    stride: usize,
) {
    let rows = &codes[..2 * head_dim * num_tokens];
    #[cfg(target_arch = "x86_64")]
    let scored = if level.is_avx2() && head_dim.is_multiple_of(LANES) {
        let scored = num_tokens - num_tokens % avx2::ROWS;
        // SAFETY: an AVX2 level exists only where AVX2, FMA and F16C do.
        unsafe { avx2::score(queries, head_dim, &rows[..2 * head_dim * scored], out, stride) };
        scored
    } else {
        0
    };
    #[cfg(not(target_arch = "x86_64"))]
    let scored = 0;
    for (token, row) in rows.chunks_exact(2 * head_dim).enumerate().skip(scored) {
        dot_f16(level, queries, row, &mut out[token..], stride);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Four keys against up to three queries per pass: twelve sums in registers.

    use std::arch::x86_64::*;

    use super::LANES;

    /// Keys that are scored side by side, so that one tree of additions ends their sums.
    pub(super) const ROWS: usize = 4;

    /// Heads that share one pass over the keys.
    const HEADS: usize = 3;

    /// Scores whole quads of keys.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn score(
        queries: &[f32],
        head_dim: usize,
        rows: &[u8],
        out: &mut [f32],
        stride: usize,
    ) {
        let num_heads = queries.len() / head_dim;
        for (quad, rows) in rows.chunks_exact(2 * head_dim * ROWS).enumerate() {
            let mut head = 0;
            while head + HEADS <= num_heads {
                let out = &mut out[head * stride + quad * ROWS..];
                dots::<HEADS>(&queries[head * head_dim..], head_dim, rows, out, stride);
                head += HEADS;
            }
            while head < num_heads {
                let out = &mut out[head * stride + quad * ROWS..];
                dots::<1>(&queries[head * head_dim..], head_dim, rows, out, stride);
                head += 1;
            }
        }
    }

    /// The products of a quad of keys with `N` queries.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn dots<const N: usize>(
        queries: &[f32],
        head_dim: usize,
        rows: &[u8],
        out: &mut [f32],
        stride: usize,
    ) {
        assert!(queries.len() >= N * head_dim && rows.len() >= 2 * head_dim * ROWS);
        assert!(head_dim.is_multiple_of(LANES) && out.len() >= (N - 1) * stride + ROWS);
        let mut sums = [[_mm256_setzero_ps(); ROWS]; N];
        for channel in (0..head_dim).step_by(LANES) {
            for row in 0..ROWS {
                let at = 2 * (row * head_dim + channel);
                // SAFETY: eight halves of this row lie there, by the assertions.
                let keys = unsafe { _mm_loadu_si128(rows.as_ptr().add(at).cast()) };
                let keys = _mm256_cvtph_ps(keys);
                for (head, sums) in sums.iter_mut().enumerate() {
                    let at = head * head_dim + channel;
                    // SAFETY: eight channels of this query lie there, by the assertions.
                    let query = unsafe { _mm256_loadu_ps(queries.as_ptr().add(at)) };
                    sums[row] = _mm256_fmadd_ps(query, keys, sums[row]);
                }
            }
        }
        for (head, [a, b, c, d]) in sums.into_iter().enumerate() {
            let four = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let four = _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps::<1>(four));
            // SAFETY: four scores of this head lie there, by the assertions.
            unsafe { _mm_storeu_ps(out.as_mut_ptr().add(head * stride), four) };
        }
    }
}
