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
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn lanes<const C: usize>(&self, bytes: &[u8], first: usize) -> [__m256; C] {
        let mut out = [_mm256_setzero_ps(); C];
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: 16 bytes of each of the chunks lie in the vector.
            let halves = unsafe { _mm_loadu_si128(bytes.as_ptr().add(16 * (first + i)).cast()) };
            // The upper half of an f32 is the bf16 that it truncates to.
            let words = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves));
            *out = _mm256_castsi256_ps(words);
        }
        out
    }
}

/// Eight-bit floats, e4m3fn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fp8 {
    pub(crate) head_dim: usize,
}

impl Vector for Fp8 {
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
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn lanes<const C: usize>(&self, bytes: &[u8], first: usize) -> [__m256; C] {
        // Exponent and significand in their places in f16, whose bias is larger by 8; subnormal numbers
        // of the one are subnormal numbers of the other.
        let (size_mask, nan) = (_mm_set1_epi16(0x7F), _mm_set1_epi16(0x7F));
        let mut out = [_mm256_setzero_ps(); C];
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: 8 bytes of each of the chunks lie in the vector.
            let codes = unsafe { _mm_loadl_epi64(bytes.as_ptr().add(8 * (first + i)).cast()) };
            let codes = _mm_cvtepu8_epi16(codes);
            let sizes = _mm_and_si128(codes, size_mask);
            let signs = _mm_slli_epi16::<8>(_mm_andnot_si128(size_mask, codes));
            let halves = _mm_or_si128(_mm_slli_epi16::<7>(sizes), signs);
            let halves = _mm_or_si128(halves, _mm_cmpeq_epi16(sizes, nan));
            *out = _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(256.0));
        }
        out
    }
}
/// Half precision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F16 {
    pub(crate) head_dim: usize,
}

impl Vector for F16 {
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
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn lanes<const C: usize>(&self, bytes: &[u8], first: usize) -> [__m256; C] {
        let mut out = [_mm256_setzero_ps(); C];
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: 16 bytes of each of the chunks lie in the vector.
            let halves = unsafe { _mm_loadu_si128(bytes.as_ptr().add(16 * (first + i)).cast()) };
            *out = _mm256_cvtph_ps(halves);
        }
        out
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    unsafe fn wide<const C: usize>(&self, bytes: &[u8], first: usize) -> [__m512; C] {
        let mut out = [_mm512_setzero_ps(); C];
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: 32 bytes of each pair of the chunks lie in the vector.
            let halves =
                unsafe { _mm256_loadu_si256(bytes.as_ptr().add(16 * first + 32 * i).cast()) };
            *out = _mm512_cvtph_ps(halves);
        }
        out
    }
}

/// Signed 8-bit integers, then one scale in f16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Int8 {
    pub(crate) head_dim: usize,
}

impl Vector for Int8 {
    fn head_dim(&self) -> usize {
        self.head_dim
    }

    fn num_bytes(&self) -> usize {
        self.head_dim + 2
    }

    fn eight(&self, bytes: &[u8], chunk: usize) -> [f32; LANES] {
        let (codes, scale) = bytes.split_at(self.head_dim);
        let scale = f16::from_le_bytes([scale[0], scale[1]]).to_f32();
        elements::<1>(codes, chunk).map(|[code]| scale * f32::from(code as i8))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn lanes<const C: usize>(&self, bytes: &[u8], first: usize) -> [__m256; C] {
        // SAFETY: the two bytes of the scale follow the codes.
        let scale = unsafe { bytes.as_ptr().add(self.head_dim).cast::<u16>().read_unaligned() };
        let scale = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(scale.into())));
        let mut out = [_mm256_setzero_ps(); C];
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: 8 bytes of each of the chunks lie in the vector.
            let codes = unsafe { _mm_loadl_epi64(bytes.as_ptr().add(8 * (first + i)).cast()) };
            *out = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), scale);
        }
        out
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    unsafe fn wide<const C: usize>(&self, bytes: &[u8], first: usize) -> [__m512; C] {
        // SAFETY: the two bytes of the scale follow the codes.
        let scale = unsafe { bytes.as_ptr().add(self.head_dim).cast::<u16>().read_unaligned() };
        let scale = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(scale.into())));
        let mut out = [_mm512_setzero_ps(); C];
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: 16 bytes of each pair of the chunks lie in the vector.
            let codes = unsafe { _mm_loadu_si128(bytes.as_ptr().add(8 * first + 16 * i).cast()) };
            *out = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), scale);
        }
        out
    }
}
