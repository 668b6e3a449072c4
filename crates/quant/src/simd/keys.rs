//! Rows of packed codes against a group of queries: the scan that decode spends its time in.
//!
//! A row is chunks of eight codes, each chunk with its own width (see `bits`), then an optional scale
//! and zero. The score of a row is `scale · Σ q_i · value(code_i) + zero · Σ q_i + bias`. Every row is
//! unpacked once, in registers, for all query heads of the group:
//!
//! 1. one 64-bit load covers the chunk; its low and high four codes are broadcast to the two halves of
//!    a vector and shifted into place by a variable shift: no table, no branch on the width;
//! 2. the codes become f32, by conversion or by an in-register look-up of the codebook;
//! 3. one fused multiply-add per query head.

#![cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

#[cfg(target_arch = "aarch64")]
mod neon;

use crate::Level;
use crate::bits::{CHUNK, for_each_code};
use crate::keys::{PreparedQueries, Tail};

/// What a code stands for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    /// Itself.
    Integer,
    /// An entry of a codebook.
    Levels([f32; 16]),
}

impl Values {
    /// What `code` stands for, before scale and zero.
    pub(crate) fn of(&self, code: u8) -> f32 {
        match self {
            Self::Integer => f32::from(code),
            Self::Levels(levels) => levels[usize::from(code & 15)],
        }
    }
}

/// Longest tail.
#[cfg(target_arch = "x86_64")]
const MAX_TAIL_BYTES: usize = 4;

/// The shape of coded rows.
#[derive(Clone, Debug)]
pub(crate) struct CodedRows {
    widths: Vec<u8>,
    code_bytes: usize,
    values: Values,
    tail: Tail,
}

impl CodedRows {
    /// Rows of `widths.len()` chunks.
    pub(crate) fn new(widths: Vec<u8>, values: Values, tail: Tail) -> Self {
        let code_bytes = widths.iter().map(|&bits| usize::from(bits)).sum();
        Self { widths, code_bytes, values, tail }
    }

    pub(crate) fn widths(&self) -> &[u8] {
        &self.widths
    }

    pub(crate) fn code_bytes(&self) -> usize {
        self.code_bytes
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.code_bytes + self.tail.bytes()
    }

    /// What `code` stands for, before scale and zero.
    pub(crate) fn value(&self, code: u8) -> f32 {
        self.values.of(code)
    }

    /// Scale and zero of a row.
    pub(crate) fn tail_of(&self, row: &[u8]) -> (f32, f32) {
        self.tail.of(&row[self.code_bytes..])
    }

    /// Scores every row of `codes` into `out[head · stride + row]`.
    pub(crate) fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        codes: &[u8],
        out: &mut [f32],
        stride: usize,
    ) {
        let num_rows = codes.len() / self.row_bytes();
        let num_heads = prepared.num_heads();
        assert!(out.len() >= (num_heads - 1) * stride + num_rows);
        assert!(prepared.queries().len() >= num_heads * self.widths.len() * CHUNK);
        #[cfg(target_arch = "x86_64")]
        if level.is_avx2() {
            avx2::score(self, prepared, codes, out, stride);
            return;
        }
        #[cfg(target_arch = "aarch64")]
        if level.is_neon() {
            // SAFETY: a NEON level exists only where NEON does.
            unsafe { neon::score(self, prepared, codes, out, stride) };
            return;
        }
        let _ = level;
        self.score_scalar(prepared, codes, out, stride);
    }

    fn score_scalar(
        &self,
        prepared: &PreparedQueries,
        codes: &[u8],
        out: &mut [f32],
        stride: usize,
    ) {
        let head_dim = self.widths.len() * CHUNK;
        let mut values = vec![0.0; head_dim];
        for (token, row) in codes.chunks_exact(self.row_bytes()).enumerate() {
            for_each_code(row, &self.widths, |channel, code| values[channel] = self.value(code));
            for (head, query) in prepared.queries().chunks_exact(head_dim).enumerate() {
                let dot = query.iter().zip(&values).map(|(q, x)| q * x).sum();
                out[head * stride + token] = self.finish(prepared, head, row, dot);
            }
        }
    }

    fn finish(&self, prepared: &PreparedQueries, head: usize, row: &[u8], dot: f32) -> f32 {
        let (scale, zero) = self.tail_of(row);
        let sum = prepared.sums().get(head).copied().unwrap_or(0.0);
        let offset = prepared.offsets().get(head).copied().unwrap_or(0.0);
        scale * (dot + offset) + zero * sum + prepared.bias()[head]
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Eight codes at a time; up to four query heads per pass over a row.

    use std::arch::x86_64::*;

    use super::{CHUNK, CodedRows, PreparedQueries, Values};
    use crate::keys::MAX_CODED_HEAD_DIM;
    use crate::simd::lanes::horizontal_sum;

    /// Bytes that a row's last chunk may be read past its end.
    const OVER_READ: usize = 8;

    /// Longest row that is copied to the stack when it is the last of its slice.
    const MAX_COPIED_ROW: usize = MAX_CODED_HEAD_DIM + super::MAX_TAIL_BYTES;

    /// Per width: shifts that bring code `i % 4` of a half to the bottom of its lane, and the mask.
    struct Unpack {
        shifts: [[i32; 8]; 9],
        masks: [i32; 9],
    }

    const UNPACK: Unpack = {
        let mut unpack = Unpack { shifts: [[0; 8]; 9], masks: [0; 9] };
        let mut bits = 0;
        while bits <= 8 {
            let mut i = 0;
            while i < 8 {
                unpack.shifts[bits][i] = (i % 4 * bits) as i32;
                i += 1;
            }
            unpack.masks[bits] = (1 << bits) - 1;
            bits += 1;
        }
        unpack
    };

    pub(super) fn score(
        shape: &CodedRows,
        prepared: &PreparedQueries,
        codes: &[u8],
        out: &mut [f32],
        stride: usize,
    ) {
        let row_bytes = shape.row_bytes();
        let num_rows = codes.len() / row_bytes;
        // Rows whose last chunk can be read with a full 64-bit load inside the slice.
        let safe_bytes = codes.len().saturating_sub(OVER_READ);
        let num_direct = (safe_bytes / row_bytes).min(num_rows);
        let mut head = 0;
        while head < prepared.num_heads() {
            let heads = (prepared.num_heads() - head).min(4);
            let mut run = |row: &[u8], token: usize, count: usize| {
                // SAFETY: the caller holds an AVX2 level, which exists only where AVX2, FMA and F16C
                // do; `row` holds `count` rows and OVER_READ bytes more; queries cover the chunks of
                // heads `head..head + heads` and `out` the tokens, both asserted by `CodedRows::score`.
                unsafe {
                    match heads {
                        1 => rows::<1>(shape, prepared, head, row, token, count, out, stride),
                        2 => rows::<2>(shape, prepared, head, row, token, count, out, stride),
                        3 => rows::<3>(shape, prepared, head, row, token, count, out, stride),
                        _ => rows::<4>(shape, prepared, head, row, token, count, out, stride),
                    }
                }
            };
            run(codes, 0, num_direct);
            let mut copy = [0u8; MAX_COPIED_ROW + OVER_READ];
            for token in num_direct..num_rows {
                copy[..row_bytes].copy_from_slice(&codes[token * row_bytes..][..row_bytes]);
                run(&copy, token, 1);
            }
            head += heads;
        }
    }

    /// Scores `count` rows from the start of `rows` for query heads `first_head..first_head + G`, as
    /// tokens `token..`.
    ///
    /// # Safety
    /// - AVX2, FMA and F16C are available.
    /// - `rows` holds `count` rows and `OVER_READ` bytes after them.
    /// - the prepared queries and `out` cover the heads and tokens.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[expect(clippy::too_many_arguments, reason = "a kernel behind one caller")]
    unsafe fn rows<const G: usize>(
        shape: &CodedRows,
        prepared: &PreparedQueries,
        first_head: usize,
        rows: &[u8],
        token: usize,
        count: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        let head_dim = shape.widths().len() * CHUNK;
        let queries = prepared.queries()[first_head * head_dim..].as_ptr();
        let row_bytes = shape.row_bytes();
        assert!(count == 0 || rows.len() >= count * row_bytes + OVER_READ);
        let (low, high) = match &shape.values {
            // SAFETY: the codebook has sixteen entries.
            Values::Levels(levels) => unsafe {
                (_mm256_loadu_ps(levels.as_ptr()), _mm256_loadu_ps(levels.as_ptr().add(8)))
            },
            Values::Integer => (_mm256_setzero_ps(), _mm256_setzero_ps()),
        };
        let from_levels = shape.values != Values::Integer;
        for i in 0..count {
            let row = &rows[i * row_bytes..];
            let mut sums = [_mm256_setzero_ps(); G];
            let mut offset = 0;
            for (chunk, &bits) in shape.widths().iter().enumerate() {
                let bits = usize::from(bits);
                // SAFETY: `offset` is inside the row and OVER_READ bytes follow the last row.
                let word = unsafe { row.as_ptr().add(offset).cast::<u64>().read_unaligned() };
                let halves = _mm256_blend_epi32::<0xF0>(
                    _mm256_set1_epi32(word as i32),
                    _mm256_set1_epi32((word >> (4 * bits)) as i32),
                );
                // SAFETY: the table has eight shifts for each of the widths 0 to 8.
                let shifts = unsafe { _mm256_loadu_si256(UNPACK.shifts[bits].as_ptr().cast()) };
                let mask = _mm256_set1_epi32(UNPACK.masks[bits]);
                let codes = _mm256_and_si256(_mm256_srlv_epi32(halves, shifts), mask);
                let values = if from_levels {
                    let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                    let from_low = _mm256_permutevar8x32_ps(low, codes);
                    _mm256_blendv_ps(from_low, _mm256_permutevar8x32_ps(high, codes), upper)
                } else {
                    _mm256_cvtepi32_ps(codes)
                };
                for (g, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the queries hold `head_dim` values for each of the G heads.
                    let query =
                        unsafe { _mm256_loadu_ps(queries.add(g * head_dim + chunk * CHUNK)) };
                    *sum = _mm256_fmadd_ps(query, values, *sum);
                }
                offset += bits;
            }
            for (g, sum) in sums.iter().enumerate() {
                let dot = horizontal_sum(*sum);
                let head = first_head + g;
                out[head * stride + token + i] = shape.finish(prepared, head, row, dot);
            }
        }
    }
}
