//! Kernels of block weights: rows times a vector, and rows to f32.
//!
//! Each kernel takes consecutive rows, so that the level is matched once per task, and has a scalar
//! form (safe, here) and an AVX2 form (`avx2`). The two agree up to the order of f32 sums; those that
//! only convert or round, and those of `bands`, agree bit for bit. Many vectors go through `batch`, in integers where
//! the level has a form for it, or `panels`, in f32.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls of target-feature functions, which a level allows")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
mod bands;
mod batch;
mod output;
mod panels;
mod rounding;

use half::f16;

pub(crate) use self::bands::{expand_bands, gemv_bands};
pub(crate) use self::batch::matmul_batch;
pub(crate) use self::panels::{PanelLayout, PanelSource, matmul};
pub(crate) use self::rounding::{quantize_blocks, quantize_quad};
use crate::Level;

/// `y[r] = sum w[r, c] x[c]` over f32 rows: `w` `[y.len(), cols]`, `x` `[cols]`, `cols` not 0.
pub(crate) fn gemv_f32(level: Level, w: &[f32], x: &[f32], y: &mut [f32]) {
    assert_eq!(w.len(), x.len() * y.len(), "rows do not fit the vectors");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: a level that is AVX2 exists only on CPUs with AVX2, FMA and F16C.
        return unsafe { avx2::gemv_f32(w, x, y) };
    }
    let _ = level;
    for (y, row) in y.iter_mut().zip(w.chunks_exact(x.len())) {
        *y = dot(row, x, |w| w);
    }
}

/// [`gemv_f32`] over f16 rows.
pub(crate) fn gemv_f16(level: Level, w: &[f16], x: &[f32], y: &mut [f32]) {
    assert_eq!(w.len(), x.len() * y.len(), "rows do not fit the vectors");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: as in `gemv_f32`.
        return unsafe { avx2::gemv_f16(w, x, y) };
    }
    let _ = level;
    for (y, row) in y.iter_mut().zip(w.chunks_exact(x.len())) {
        *y = dot(row, x, f16::to_f32);
    }
}

/// f16 to f32, elementwise; the slices are equally long.
pub(crate) fn widen_f16(level: Level, values: &[f16], out: &mut [f32]) {
    assert_eq!(values.len(), out.len(), "slices of one length");
    #[cfg(target_arch = "x86_64")]
    if level.is_avx2() {
        // SAFETY: as in `gemv_f32`.
        return unsafe { avx2::widen_f16(values, out) };
    }
    let _ = level;
    for (out, value) in out.iter_mut().zip(values) {
        *out = value.to_f32();
    }
}

/// A dot product with eight running sums, which the compiler may keep in vectors of any width.
fn dot<T: Copy>(row: &[T], x: &[f32], widen: impl Fn(T) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    let (row_chunks, row_tail) = row.as_chunks::<8>();
    let (x_chunks, x_tail) = x.as_chunks::<8>();
    for (w, x) in row_chunks.iter().zip(x_chunks) {
        for i in 0..8 {
            sums[i] += widen(w[i]) * x[i];
        }
    }
    for (i, (&w, x)) in row_tail.iter().zip(x_tail).enumerate() {
        sums[i] += widen(w) * x;
    }
    sums.iter().sum()
}
