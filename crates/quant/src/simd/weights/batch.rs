//! Products of bands with many vectors in integers of 8 bits (the `q8a8` compute form).
//!
//! Weights are `s * c + o`, activations `a * q` with 8-bit codes `q`, both per block of 32 columns. With codes
//! stored unsigned, `u = c + m`, the sum over a block is
//!
//! ```text
//! sum (s c + o)(a q) = (s a) * I + (o - s m) * A,    I = sum u q (an integer),  A = a * sum q (prepared once)
//! ```
//!
//! `u` is taken nibble by nibble, `u = u0 + 16 u1` where it has 8 bits, so that `I = I0 + 16 I1`.
//!
//! **No overflow.** The processor multiplies bytes and adds pairs of neighbours to 16 bits, of which a block gives
//! a row's two lanes eight each: 8 · 2 · 15 · 127 = 30 480 < 2¹⁵. They are added to 32 bits once a block.
//!
//! **Order.** `I` is exact. The chain of fused multiply-adds of a row and vector goes through some blocks in their order,
//! then through what rounding has left of them, then on, whatever other rows and vectors there are; so a result depends
//! neither on the number of threads nor on company.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;

use super::panels::{PanelSource, matmul};
use crate::{
    Level,
    weights::{BAND, BLOCK, BandRows, Batch},
};

/// The product of bands with vectors rounded to 8 bits: `x [n, cols]`, `y [n, rows]`, the rows being those of `w` and
/// ending in the last band. Levels without a form in integers multiply what the codes stand for in f32, as panels of
/// `w`, which holds the same rows; levels agree up to the rounding of f32 sums.
pub(crate) fn matmul_bands(
    level: Level,
    w: &impl PanelSource,
    bands: BandRows<'_>,
    x: &[f32],
    y: &mut [f32],
) {
    let [rows, cols] = w.shape();
    if y.is_empty() {
        return;
    }
    let n = y.len() / rows;
    assert!(y.len() == n * rows && x.len() == n * cols, "vectors do not fit the matrix");
    let batch = Batch::quantize(level, bands.form, x, cols);
    super::bands::check_shape(bands, rows.div_ceil(BAND) * bands.num_blocks);
    assert_eq!(cols.div_ceil(BLOCK), bands.num_blocks, "columns end in the last block");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: a level that is AVX2 exists only on CPUs with AVX2, FMA and F16C; lengths were checked.
        return unsafe { avx2::multiply(bands, &batch, rows, y) };
    }
    matmul(w, &batch.values(bands.form), y);
}
