//! How the vectors of each format are read.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{LANES, Vector};
use crate::saturate::from_fp8;

/// The chunk of eight elements of `SIZE` bytes each, zero beyond the end.
fn elements<const SIZE: usize>(bytes: &[u8], chunk: usize) -> [[u8; SIZE]; LANES] {
    let mut out = [[0; SIZE]; LANES];
    let rest = bytes[chunk * LANES * SIZE..].as_chunks::<SIZE>().0;
    out.iter_mut().zip(rest).for_each(|(out, element)| *out = *element);
    out
}

/// Brain floats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16 {
    pub(crate) head_dim: usize,
}

impl Vector for Bf16 {
    #[cfg(target_arch = "x86_64")]
    type Group = ();

    fn head_dim(&self) -> usize {
        self.head_dim
    }

    fn num_bytes(&self) -> usize {
        2 * self.head_dim
    }

    fn eight(&self, bytes: &[u8], chunk: usize) -> [f32; LANES] {
        elements::<2>(bytes, chunk).map(|x| bf16::from_le_bytes(x).to_f32())
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    unsafe fn group(&self, _bytes: &[u8], _chunk: usize) {}

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn lanes(&self, bytes: &[u8], chunk: usize, (): ()) -> __m256 {
        // SAFETY: 16 bytes of the chunk lie in the vector.
        let halves = unsafe { _mm_loadu_si128(bytes.as_ptr().add(16 * chunk).cast()) };
        // The upper half of an f32 is the bf16 that it truncates to.
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }
}

/// Eight-bit floats, e4m3fn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fp8 {
    pub(crate) head_dim: usize,
}

impl Vector for Fp8 {
    #[cfg(target_arch = "x86_64")]
    type Group = ();

    fn head_dim(&self) -> usize {
        self.head_dim
    }

    fn num_bytes(&self) -> usize {
        self.head_dim
    }

    fn eight(&self, bytes: &[u8], chunk: usize) -> [f32; LANES] {
        elements::<1>(bytes, chunk).map(|[code]| from_fp8(code))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    unsafe fn group(&self, _bytes: &[u8], _chunk: usize) {}

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn lanes(&self, bytes: &[u8], chunk: usize, (): ()) -> __m256 {
        // Exponent and significand in their places in f16, whose bias is larger by 8; subnormal numbers
        // of the one are subnormal numbers of the other.
        let (size_mask, nan) = (_mm_set1_epi16(0x7F), _mm_set1_epi16(0x7F));
        // SAFETY: 8 bytes of the chunk lie in the vector.
        let codes = unsafe { _mm_loadl_epi64(bytes.as_ptr().add(8 * chunk).cast()) };
        let codes = _mm_cvtepu8_epi16(codes);
        let sizes = _mm_and_si128(codes, size_mask);
        let signs = _mm_slli_epi16::<8>(_mm_andnot_si128(size_mask, codes));
        let halves = _mm_or_si128(_mm_slli_epi16::<7>(sizes), signs);
        let halves = _mm_or_si128(halves, _mm_cmpeq_epi16(sizes, nan));
        _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(256.0))
    }
}
/// Half precision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F16 {
    pub(crate) head_dim: usize,
}

impl Vector for F16 {
    #[cfg(target_arch = "x86_64")]
    type Group = ();

    fn head_dim(&self) -> usize {
        self.head_dim
    }

    fn num_bytes(&self) -> usize {
        2 * self.head_dim
    }

    fn eight(&self, bytes: &[u8], chunk: usize) -> [f32; LANES] {
        elements::<2>(bytes, chunk).map(|x| f16::from_le_bytes(x).to_f32())
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    unsafe fn group(&self, _bytes: &[u8], _chunk: usize) {}

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn lanes(&self, bytes: &[u8], chunk: usize, (): ()) -> __m256 {
        // SAFETY: 16 bytes of the chunk lie in the vector.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().add(16 * chunk).cast()) })
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    unsafe fn wide(&self, bytes: &[u8], chunk: usize, (): ()) -> __m512 {
        // SAFETY: 32 bytes of the two chunks lie in the vector.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().add(16 * chunk).cast()) })
    }
}

/// Signed 8-bit integers, then one scale in f16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int8 {
    pub(crate) head_dim: usize,
}

impl Vector for Int8 {
    #[cfg(target_arch = "x86_64")]
    const HAS_SCALE: bool = true;

    #[cfg(target_arch = "x86_64")]
    type Group = ();

    fn head_dim(&self) -> usize {
        self.head_dim
    }

    fn num_bytes(&self) -> usize {
        self.head_dim + 2
    }

    #[inline]
    fn scale(&self, bytes: &[u8]) -> f16 {
        f16::from_le_bytes([bytes[self.head_dim], bytes[self.head_dim + 1]])
    }

    fn eight(&self, bytes: &[u8], chunk: usize) -> [f32; LANES] {
        elements::<1>(&bytes[..self.head_dim], chunk).map(|[code]| f32::from(code as i8))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    unsafe fn group(&self, _bytes: &[u8], _chunk: usize) {}

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn lanes(&self, bytes: &[u8], chunk: usize, (): ()) -> __m256 {
        // SAFETY: 8 bytes of the chunk lie in the vector.
        let codes = unsafe { _mm_loadl_epi64(bytes.as_ptr().add(8 * chunk).cast()) };
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    unsafe fn wide(&self, bytes: &[u8], chunk: usize, (): ()) -> __m512 {
        // SAFETY: 16 bytes of the two chunks lie in the vector.
        let codes = unsafe { _mm_loadu_si128(bytes.as_ptr().add(8 * chunk).cast()) };
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
    }
}
