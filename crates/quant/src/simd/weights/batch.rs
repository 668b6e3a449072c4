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

use crate::{
    Level,
    weights::{BAND, BandRows, Batch},
};

/// The products of bands with vectors rounded to 8 bits, `y [n, rows]`, where `level` has a form in integers; false, and
/// nothing done, where it has none. `rows` end in the last band.
pub(crate) fn matmul_batch(
    level: Level,
    bands: BandRows<'_>,
    batch: &Batch,
    rows: usize,
    y: &mut [f32],
) -> bool {
    super::bands::check_shape(bands, rows.div_ceil(BAND) * bands.num_blocks);
    assert_eq!(batch.num_blocks(), bands.num_blocks, "vectors of the bands' columns");
    assert_eq!(y.len(), batch.num_vectors() * rows, "a row of products for each vector");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: a level that is AVX2 exists only on CPUs with AVX2, FMA and F16C; lengths were checked.
        unsafe { avx2::multiply(bands, batch, rows, y) };
        return true;
    }
    let _ = level;
    false
}
