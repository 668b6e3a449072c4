//! The NEON forms of the row kernels: eight values at a time, then what is left one by one.

#![expect(unsafe_code, reason = "loads by pointer")]

use std::arch::aarch64::*;

use super::scalar;
use crate::simd::neon::{Lanes, add_products, load, load_f16, splat, store, sum};

#[target_feature(enable = "neon")]
pub(super) fn dot_f16(query: &[f32], row: &[u8]) -> f32 {
    let (queries, query_rest) = query.as_chunks::<8>();
    let (values, row_rest) = row.as_chunks::<16>();
    let mut sums = splat(0.0);
    for (query, values) in queries.iter().zip(values) {
        sums = add_products(sums, load(query), load_f16(values));
    }
    sum(sums) + scalar::dot_f16(query_rest, row_rest)
}

#[target_feature(enable = "neon")]
pub(super) fn dot_int8(query: &[f32], codes: &[u8]) -> f32 {
    let (queries, query_rest) = query.as_chunks::<8>();
    let (chunks, codes_rest) = codes.as_chunks::<8>();
    let mut sums = splat(0.0);
    for (query, codes) in queries.iter().zip(chunks) {
        sums = add_products(sums, load(query), load_int8(codes));
    }
    sum(sums) + scalar::dot_int8(query_rest, codes_rest)
}

#[target_feature(enable = "neon")]
pub(super) fn add_scaled_f16(weight: f32, row: &[u8], sums: &mut [f32]) {
    let (sums, sums_rest) = sums.as_chunks_mut::<8>();
    let (values, row_rest) = row.as_chunks::<16>();
    let weights = splat(weight);
    for (sums, values) in sums.iter_mut().zip(values) {
        store(sums, add_products(load(sums), weights, load_f16(values)));
    }
    scalar::add_scaled_f16(weight, row_rest, sums_rest);
}

#[target_feature(enable = "neon")]
pub(super) fn add_scaled_int8(weight: f32, codes: &[u8], sums: &mut [f32]) {
    let (sums, sums_rest) = sums.as_chunks_mut::<8>();
    let (chunks, codes_rest) = codes.as_chunks::<8>();
    let weights = splat(weight);
    for (sums, codes) in sums.iter_mut().zip(chunks) {
        store(sums, add_products(load(sums), weights, load_int8(codes)));
    }
    scalar::add_scaled_int8(weight, codes_rest, sums_rest);
}

#[inline]
#[target_feature(enable = "neon")]
fn load_int8(from: &[u8; 8]) -> Lanes {
    // SAFETY: the array holds what is read.
    let codes = vmovl_s8(unsafe { vld1_s8(from.as_ptr().cast()) });
    [vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(codes)))]
}
