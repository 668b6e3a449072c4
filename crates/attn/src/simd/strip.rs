//! One strip of query rows against one tile of keys and values: the inner kernel of prefill.
//!
//! ```text
//! S = Q K^T                     [6, tile]    scores of the strip
//! m' = max(m, rowmax(S))                     running maximum
//! P = exp(S - m'), 0 where masked
//! l  = l exp(m - m') + rowsum(P)
//! O  = O exp(m - m') + P V      [6, head_dim]
//! ```
//!
//! This is FlashAttention-2 (Dao, arXiv 2307.08691, algorithm 1) for a CPU: the strip's scores (a few KB)
//! stay in the first-level cache, and nothing of the size queries times keys is ever stored.
//!
//! 1. Six rows by sixteen lanes are twelve accumulators, which with the operands fill sixteen vector
//!    registers of eight lanes; six rows by 64 lanes are 24 of 32 registers of sixteen. Both products use that
//!    shape.
//! 2. Operands are packed so that the inner loops read forwards: queries `[head_dim, 6]`, keys
//!    `[tile / 16, head_dim, 16]`, values `[row_stride / 16, tile, 16]`. One packed tile serves every
//!    strip of a block, that is every query head of the group times many query tokens.
//! 3. Rows see a prefix of the tile, behind tokens that none of them sees, so masking is one count per row;
//!    panels that no row of the strip sees are not computed.
//! 4. Row maxima are taken from the accumulators, and those of all rows come before any exponential, so that
//!    the exponentials of a row do not wait for its maximum alone.
//! 5. The rescaling of O by `exp(m - m')` rides on the load of the accumulators.

use heterokv_quant::Level;

use super::exp::{exp_weights_scalar, finite_reference};

/// Query rows of a strip.
pub(crate) const STRIP_ROWS: usize = 6;
/// Key tokens of a packed panel of keys.
pub(crate) const KEY_LANES: usize = 16;
/// Channels of a packed panel of values.
pub(crate) const VALUE_LANES: usize = 16;

/// A packed tile of keys and values of one KV head.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// Channels per head.
    pub(crate) head_dim: usize,
    /// Tokens that a tile has room for, a multiple of [`KEY_LANES`].
    pub(crate) capacity: usize,
    /// `[capacity / 16, head_dim, 16]`; lanes beyond the last token may hold anything finite.
    pub(crate) keys: &'a [f32],
    /// `[row_stride / 16, capacity, 16]`; lanes beyond `head_dim` are zero.
    pub(crate) values: &'a [f32],
}

/// Six query rows and their running softmax.
pub(crate) struct Strip<'a> {
    /// Packed and scaled queries `[head_dim, 6]`.
    pub(crate) queries: &'a [f32],
    /// First tokens of the tile that no row sees.
    pub(crate) hidden: usize,
    /// Where the tokens end that each row sees, counted from the tile's first; a row sees none of an end
    /// before `hidden`.
    pub(crate) visible: [usize; STRIP_ROWS],
    /// Running maxima `[6]`.
    pub(crate) max: &'a mut [f32],
    /// Running sums `[6]`.
    pub(crate) sum: &'a mut [f32],
    /// Un-normalised outputs `[6, row_stride]`.
    pub(crate) weighted: &'a mut [f32],
    /// Scratch for scores, `[6, capacity]`; contents before and after mean nothing.
    pub(crate) scores: &'a mut [f32],
}

/// Takes a tile into a strip. A row that sees nothing of the tile is left as it is.
pub(crate) fn absorb(level: Level, strip: Strip<'_>, tile: Tile<'_>) {
    let end = strip.visible.iter().copied().max().unwrap_or(0);
    if end <= strip.hidden {
        return;
    }
    let num_value_panels = tile.head_dim.div_ceil(VALUE_LANES);
    let row_stride = num_value_panels * VALUE_LANES;
    // What the unsafe code of the vector forms rests on.
    assert!(tile.capacity.is_multiple_of(KEY_LANES) && end <= tile.capacity);
    assert_eq!(tile.keys.len(), tile.capacity * tile.head_dim);
    assert_eq!(tile.values.len(), tile.capacity * row_stride);
    assert_eq!(strip.queries.len(), tile.head_dim * STRIP_ROWS);
    assert_eq!(strip.max.len(), STRIP_ROWS);
    assert_eq!(strip.sum.len(), STRIP_ROWS);
    assert_eq!(strip.weighted.len(), STRIP_ROWS * row_stride);
    assert_eq!(strip.scores.len(), STRIP_ROWS * tile.capacity);
    #[cfg(target_arch = "x86_64")]
    if level.is_avx512() {
        return super::strip_avx512::absorb(level, strip, tile, end);
    }
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        return super::strip_avx2::absorb(level, strip, tile, end);
    }
    let _ = level;
    absorb_scalar(strip, tile, end);
}

/// Masks the scores of one row from the first panel that is computed on, `[num_scored]`, of which the row
/// sees `hidden..visible`.
pub(crate) fn mask(scores: &mut [f32], hidden: usize, visible: usize) {
    scores[..hidden].fill(f32::NEG_INFINITY);
    scores[visible.max(hidden)..].fill(f32::NEG_INFINITY);
}

fn absorb_scalar(strip: Strip<'_>, tile: Tile<'_>, end: usize) {
    let Strip { queries, hidden, visible, max, sum, weighted, scores } = strip;
    let panels = hidden / KEY_LANES..end.div_ceil(KEY_LANES);
    let first = panels.start * KEY_LANES;
    let keys = tile.keys.chunks_exact(tile.head_dim * KEY_LANES);
    for (panel, keys) in keys.enumerate().take(panels.end).skip(panels.start) {
        let mut acc = [[0.0_f32; KEY_LANES]; STRIP_ROWS];
        for (keys, queries) in keys.chunks_exact(KEY_LANES).zip(queries.chunks_exact(STRIP_ROWS)) {
            for (acc, query) in acc.iter_mut().zip(queries) {
                for (acc, key) in acc.iter_mut().zip(keys) {
                    *acc += query * key;
                }
            }
        }
        for (row, acc) in acc.iter().enumerate() {
            scores[row * tile.capacity + panel * KEY_LANES..][..KEY_LANES].copy_from_slice(acc);
        }
    }

    let mut rescale = [1.0_f32; STRIP_ROWS];
    for row in 0..STRIP_ROWS {
        let scores = &mut scores[row * tile.capacity..][first..end];
        mask(scores, hidden - first, visible[row].saturating_sub(first));
        let new_max = scores.iter().copied().fold(max[row], f32::max);
        let reference = finite_reference(new_max);
        rescale[row] = (max[row] - reference).exp();
        sum[row] = sum[row] * rescale[row] + exp_weights_scalar(scores, reference);
        max[row] = new_max;
    }

    let row_stride = weighted.len() / STRIP_ROWS;
    for (panel, values) in tile.values.chunks_exact(tile.capacity * VALUE_LANES).enumerate() {
        for row in 0..STRIP_ROWS {
            let weights = &scores[row * tile.capacity..][first..end];
            let out = &mut weighted[row * row_stride + panel * VALUE_LANES..][..VALUE_LANES];
            let mut acc = [0.0_f32; VALUE_LANES];
            for (acc, out) in acc.iter_mut().zip(&*out) {
                *acc = out * rescale[row];
            }
            let values = values.chunks_exact(VALUE_LANES).skip(first);
            for (weight, values) in weights.iter().zip(values) {
                for (acc, value) in acc.iter_mut().zip(values) {
                    *acc += weight * value;
                }
            }
            out.copy_from_slice(&acc);
        }
    }
}
