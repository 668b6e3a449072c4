//! A row is unpacked to f32 once, eight codes at a time, and then meets each query.

#![expect(unsafe_code, reason = "loads by pointer")]

use std::arch::aarch64::*;

use super::{CHUNK, CodedRows, PreparedQueries, Values};
use crate::keys::MAX_CODED_HEAD_DIM;
use crate::simd::neon::{add_products, load, places_of_bytes, splat, store, sum};

/// Scores every row for all heads.
#[target_feature(enable = "neon")]
pub(super) fn score(
    shape: &CodedRows,
    prepared: &PreparedQueries,
    codes: &[u8],
    out: &mut [f32],
    stride: usize,
) {
    let head_dim = shape.widths().len() * CHUNK;
    let mut values = [0.0; MAX_CODED_HEAD_DIM];
    let (values, _) = values[..head_dim].as_chunks_mut::<CHUNK>();
    for (token, row) in codes.chunks_exact(shape.row_bytes()).enumerate() {
        unpack(shape, row, values);
        for (head, query) in prepared.queries().chunks_exact(head_dim).enumerate() {
            let mut sums = splat(0.0);
            for (query, values) in query.as_chunks().0.iter().zip(&*values) {
                sums = add_products(sums, load(query), load(values));
            }
            out[head * stride + token] = shape.finish(prepared, head, row, sum(sums));
        }
    }
}

/// What the codes of a row stand for.
#[inline]
#[target_feature(enable = "neon")]
fn unpack(shape: &CodedRows, row: &[u8], values: &mut [[f32; CHUNK]]) {
    // Lane 0 comes from the lowest byte.
    let lane_numbers = vmovl_s16(vreinterpret_s16_u64(vdup_n_u64(0x0003_0002_0001_0000)));
    let mut rest = row;
    for (values, &bits) in values.iter_mut().zip(shape.widths()) {
        let mut word = [0; 8];
        let len = rest.len().min(8);
        word[..len].copy_from_slice(&rest[..len]);
        let word = u64::from_le_bytes(word);
        // The lower and the upper four codes in every lane, each then shifted to the bottom of its own.
        let shifts = vmulq_n_s32(lane_numbers, -i32::from(bits));
        let mask = vdupq_n_u32((1 << bits) - 1);
        let halves = [word as u32, (word >> (4 * bits)) as u32];
        let codes = halves.map(|half| vandq_u32(vshlq_u32(vdupq_n_u32(half), shifts), mask));
        store(values, codes.map(|codes| values_of(&shape.values, codes)));
        rest = &rest[usize::from(bits)..];
    }
}

/// What four codes stand for, before scale and zero.
#[inline]
#[target_feature(enable = "neon")]
fn values_of(values: &Values, codes: uint32x4_t) -> float32x4_t {
    match values {
        Values::Integer => vcvtq_f32_u32(codes),
        Values::Levels(levels) => {
            // SAFETY: the sixteen floats have the four times sixteen bytes that are read.
            let levels = unsafe { vld1q_u8_x4(levels.as_ptr().cast()) };
            vreinterpretq_f32_u8(vqtbl4q_u8(levels, places_of_bytes(codes)))
        }
    }
}
