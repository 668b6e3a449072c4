//! Four and eight f32 lanes: loads, stores and conversions, for every NEON kernel of this crate.

#![expect(unsafe_code, reason = "loads and stores by pointer, one instruction by its name")]

use std::arch::aarch64::*;
use std::arch::asm;

/// Eight f32 lanes.
pub(super) type Lanes = [float32x4_t; 2];

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn splat(value: f32) -> Lanes {
    [vdupq_n_f32(value); 2]
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(from: &[f32; 8]) -> Lanes {
    // SAFETY: the array holds the two times four values that are read.
    unsafe { [vld1q_f32(from.as_ptr()), vld1q_f32(from.as_ptr().add(4))] }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store(to: &mut [f32; 8], lanes: Lanes) {
    let to = to.as_mut_ptr();
    // SAFETY: the array has room for the two times four values that are written.
    unsafe {
        vst1q_f32(to, lanes[0]);
        vst1q_f32(to.add(4), lanes[1]);
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_bytes(from: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the array holds what is read.
    unsafe { vld1q_u8(from.as_ptr()) }
}

/// `sums + a · b`, rounded once.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_products(sums: Lanes, a: Lanes, b: Lanes) -> Lanes {
    [vfmaq_f32(sums[0], a[0], b[0]), vfmaq_f32(sums[1], a[1], b[1])]
}

/// The sum of the eight lanes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sum(lanes: Lanes) -> f32 {
    vaddvq_f32(vaddq_f32(lanes[0], lanes[1]))
}

/// Widens eight f16, infinities and NaN included. The instruction is part of NEON itself; only its
/// intrinsic waits for the type `f16` of the language.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_f16(from: &[u8; 16]) -> Lanes {
    let halves = load_bytes(from);
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

/// Where in a table of f32 the bytes of four entries lie, for a look-up by bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn places_of_bytes(entries: uint32x4_t) -> uint8x16_t {
    vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x0302_0100), entries, 0x0404_0404))
}
