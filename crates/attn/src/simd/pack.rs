//! Packing a tile of keys and values for [`strip`](super::strip), and nothing else.
//!
//! Keys are transposed, sixteen tokens at a time, so that the scores of sixteen tokens grow in one pass
//! over the channels. Values are only gathered. Both read rows that lie a whole token apart and write
//! forwards.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector intrinsics and the calls into them")
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use heterokv_quant::Level;

use super::strip::{KEY_LANES, VALUE_LANES};

/// The rows of one KV head inside a tensor `[kv_len, num_kv_heads, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadRows {
    /// Element at which the first row starts.
    pub(crate) start: usize,
    /// Elements from a row to the next.
    pub(crate) stride: usize,
    /// Elements of a row.
    pub(crate) head_dim: usize,
    /// Rows.
    pub(crate) num_tokens: usize,
}

impl HeadRows {
    fn of<'a>(&self, tensor: &'a [f32], token: usize) -> &'a [f32] {
        &tensor[self.start + token * self.stride..][..self.head_dim]
    }
}

/// Packs keys as `[num_panels, head_dim, 16]`. In a panel that is not full, the lanes beyond the last
/// token become zero.
pub(crate) fn pack_keys(level: Level, rows: HeadRows, k: &[f32], packed: &mut [f32]) {
    let panels = packed.chunks_exact_mut(rows.head_dim * KEY_LANES);
    for (first, panel) in (0..rows.num_tokens).step_by(KEY_LANES).zip(panels) {
        if first + KEY_LANES > rows.num_tokens {
            panel.fill(0.0);
            let tail: Vec<&[f32]> = (first..rows.num_tokens).map(|t| rows.of(k, t)).collect();
            return transpose(&tail, 0, panel);
        }
        let panel_rows: [&[f32]; KEY_LANES] = std::array::from_fn(|lane| rows.of(k, first + lane));
        #[cfg(target_arch = "x86_64")]
        if level.is_avx2() {
            // SAFETY: a level for which `is_avx2` is true exists only on a CPU with AVX2 and FMA.
            unsafe { transpose_avx2(&panel_rows, panel) };
            continue;
        }
        let _ = level;
        transpose(&panel_rows, 0, panel);
    }
}

/// Packs values as `[row_stride / 16, capacity, 16]`; lanes beyond `head_dim` and tokens beyond the
/// last are left as they are.
pub(crate) fn pack_values(rows: HeadRows, v: &[f32], capacity: usize, packed: &mut [f32]) {
    let panel_len = capacity * VALUE_LANES;
    let (num_whole, tail_len) = (rows.head_dim / VALUE_LANES, rows.head_dim % VALUE_LANES);
    for token in 0..rows.num_tokens {
        let (whole, tail) = rows.of(v, token).as_chunks::<VALUE_LANES>();
        for (panel, lanes) in whole.iter().enumerate() {
            let start = panel * panel_len + token * VALUE_LANES;
            packed[start..start + VALUE_LANES].copy_from_slice(lanes);
        }
        if tail_len > 0 {
            packed[num_whole * panel_len + token * VALUE_LANES..][..tail_len].copy_from_slice(tail);
        }
    }
}

/// Writes channels `first_channel..` of up to sixteen rows as columns of `panel [head_dim, 16]`.
fn transpose(rows: &[&[f32]], first_channel: usize, panel: &mut [f32]) {
    for (lane, row) in rows.iter().enumerate() {
        let column = panel[lane..].iter_mut().step_by(KEY_LANES);
        for (out, channel) in column.zip(*row).skip(first_channel) {
            *out = *channel;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn transpose_avx2(rows: &[&[f32]; KEY_LANES], panel: &mut [f32]) {
    const LANES: usize = 8;
    let head_dim = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == head_dim));
    assert_eq!(panel.len(), head_dim * KEY_LANES);
    let num_whole = head_dim / LANES * LANES;
    for half in [0, LANES] {
        for channel in (0..num_whole).step_by(LANES) {
            // SAFETY: `channel` and the seven after it are below every row's length.
            let row =
                |lane: usize| unsafe { _mm256_loadu_ps(rows[half + lane].as_ptr().add(channel)) };
            let pairs: [[__m256; 2]; 4] = std::array::from_fn(|i| {
                let (even, odd) = (row(2 * i), row(2 * i + 1));
                [_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd)]
            });
            // Four rows by their channels 0..4 and 4..8: the order within is that of the unpacking.
            let fours: [[__m256; 4]; 2] = std::array::from_fn(|i| {
                let ([a, c], [b, d]) = (pairs[2 * i], pairs[2 * i + 1]);
                [
                    _mm256_shuffle_ps::<0b01_00_01_00>(a, b),
                    _mm256_shuffle_ps::<0b11_10_11_10>(a, b),
                    _mm256_shuffle_ps::<0b01_00_01_00>(c, d),
                    _mm256_shuffle_ps::<0b11_10_11_10>(c, d),
                ]
            });
            for (i, (&first, &second)) in fours[0].iter().zip(&fours[1]).enumerate() {
                let low = _mm256_permute2f128_ps::<0x20>(first, second);
                let high = _mm256_permute2f128_ps::<0x31>(first, second);
                // SAFETY: channel + i + 4 is below head_dim, and half is 0 or 8 of the 16 lanes.
                unsafe {
                    let out = panel.as_mut_ptr().add((channel + i) * KEY_LANES + half);
                    _mm256_storeu_ps(out, low);
                    _mm256_storeu_ps(out.add(4 * KEY_LANES), high);
                }
            }
        }
    }
    transpose(rows, num_whole, panel);
}
