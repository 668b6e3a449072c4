//! The NEON forms of the row kernels: eight values at a time, then what is left one by one.

#![expect(unsafe_code, reason = "loads and stores by pointer, one instruction by its name")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::scalar;

/// Eight f32 lanes.
type Lanes = [float32x4_t; 2];

#[target_feature(enable = "neon")]
pub(super) fn dot_f16(query: &[f32], row: &[u8]) -> f32 {
    let (queries, query_rest) = query.as_chunks::<8>();
    let (values, row_rest) = row.as_chunks::<16>();
    let mut sums = [vdupq_n_f32(0.0); 2];
    for (query, values) in queries.iter().zip(values) {
        sums = add_products(sums, load(query), load_f16(values));
    }
    sum(sums) + scalar::dot_f16(query_rest, row_rest)
}

#[target_feature(enable = "neon")]
pub(super) fn dot_int8(query: &[f32], codes: &[u8]) -> f32 {
    let (queries, query_rest) = query.as_chunks::<8>();
    let (chunks, codes_rest) = codes.as_chunks::<8>();
    let mut sums = [vdupq_n_f32(0.0); 2];
    for (query, codes) in queries.iter().zip(chunks) {
        sums = add_products(sums, load(query), load_int8(codes));
    }
    sum(sums) + scalar::dot_int8(query_rest, codes_rest)
}

#[target_feature(enable = "neon")]
pub(super) fn add_scaled_f16(weight: f32, row: &[u8], sums: &mut [f32]) {
    let (sums, sums_rest) = sums.as_chunks_mut::<8>();
    let (values, row_rest) = row.as_chunks::<16>();
    let weights = [vdupq_n_f32(weight); 2];
    for (sums, values) in sums.iter_mut().zip(values) {
        store(sums, add_products(load(sums), weights, load_f16(values)));
    }
    scalar::add_scaled_f16(weight, row_rest, sums_rest);
}

#[target_feature(enable = "neon")]
pub(super) fn add_scaled_int8(weight: f32, codes: &[u8], sums: &mut [f32]) {
    let (sums, sums_rest) = sums.as_chunks_mut::<8>();
    let (chunks, codes_rest) = codes.as_chunks::<8>();
    let weights = [vdupq_n_f32(weight); 2];
    for (sums, codes) in sums.iter_mut().zip(chunks) {
        store(sums, add_products(load(sums), weights, load_int8(codes)));
    }
    scalar::add_scaled_int8(weight, codes_rest, sums_rest);
}

#[inline]
#[target_feature(enable = "neon")]
fn add_products(sums: Lanes, a: Lanes, b: Lanes) -> Lanes {
    [vfmaq_f32(sums[0], a[0], b[0]), vfmaq_f32(sums[1], a[1], b[1])]
}

#[inline]
#[target_feature(enable = "neon")]
fn sum(lanes: Lanes) -> f32 {
    vaddvq_f32(vaddq_f32(lanes[0], lanes[1]))
}

#[inline]
#[target_feature(enable = "neon")]
fn load(from: &[f32; 8]) -> Lanes {
    // SAFETY: the array holds the two times four values that are read.
    unsafe { [vld1q_f32(from.as_ptr()), vld1q_f32(from.as_ptr().add(4))] }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(to: &mut [f32; 8], lanes: Lanes) {
    let to = to.as_mut_ptr();
    // SAFETY: the array has room for the two times four values that are written.
    unsafe {
        vst1q_f32(to, lanes[0]);
        vst1q_f32(to.add(4), lanes[1]);
    }
}

/// Widens eight f16, infinities and NaN included. The instruction is part of NEON itself; only its
/// intrinsic waits for the type `f16` of the language.
#[inline]
#[target_feature(enable = "neon")]
fn load_f16(from: &[u8; 16]) -> Lanes {
    // SAFETY: the array holds what is read.
    let halves = unsafe { vld1q_u8(from.as_ptr()) };
    let (low, high);
    // SAFETY: both instructions read one register and write another, and nothing else.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {halves:v}.4h",
            "fcvtl2 {high:v}.4s, {halves:v}.8h",
            halves = in(vreg) halves,
            low = out(vreg) low,
            high = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}

#[inline]
#[target_feature(enable = "neon")]
fn load_int8(from: &[u8; 8]) -> Lanes {
    // SAFETY: the array holds what is read.
    let codes = vmovl_s8(unsafe { vld1_s8(from.as_ptr().cast()) });
    [vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(codes)))]
}
