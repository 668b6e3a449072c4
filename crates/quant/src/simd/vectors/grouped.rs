//! How vectors of affine integers in groups are read.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{LANES, Vector};
#[cfg(target_arch = "x86_64")]
use crate::affine::{Group, STEPS};
use crate::grouped::Grouped;

/// Affine integers of `BITS` bits in groups along the channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integers<const BITS: u8>(Grouped);

impl<const BITS: u8> Integers<BITS> {
    /// # Panics
    /// When the codes are of another width.
    pub(crate) fn new(vectors: Grouped) -> Self {
        assert_eq!(vectors.bits(), BITS);
        Self(vectors)
    }
}

impl<const BITS: u8> Vector for Integers<BITS> {
    #[cfg(target_arch = "x86_64")]
    const HAS_GROUPS: bool = true;

    /// Step between two codes, and the value of code 0.
    #[cfg(target_arch = "x86_64")]
    type Group = (__m256, __m256);

    fn head_dim(&self) -> usize {
        self.0.head_dim()
    }

    fn num_bytes(&self) -> usize {
        self.0.num_bytes()
    }

    fn eight(&self, bytes: &[u8], chunk: usize) -> [f32; LANES] {
        let mut values = self.0.eight(bytes, chunk);
        let len = (self.0.head_dim() - chunk * LANES).min(LANES);
        values[len..].fill(0.0);
        values
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn group(&self, bytes: &[u8], chunk: usize) -> Self::Group {
        let group = chunk * LANES / self.0.group_channels();
        let header = self.0.code_bytes() + group * Group::header_bytes(BITS);
        // SAFETY: the vector holds a header for the group of its chunks.
        let header = unsafe { bytes.as_ptr().add(header) };
        if BITS <= 4 {
            // SAFETY: a window's header is two bytes: step and centre in half steps.
            let (step, centre) = unsafe { (STEPS[usize::from(*header)], *header.add(1) as i8) };
            let first = 0.5 * (i32::from(centre) - (1 << BITS) + 1) as f32;
            (_mm256_set1_ps(step), _mm256_set1_ps(step * first))
        } else {
            // SAFETY: an affine header is four bytes: scale and zero in f16.
            let halves = unsafe { header.cast::<i32>().read_unaligned() };
            let both = _mm_cvtph_ps(_mm_cvtsi32_si128(halves));
            (_mm256_broadcastss_ps(both), _mm256_broadcastss_ps(_mm_movehdup_ps(both)))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn lanes(&self, bytes: &[u8], chunk: usize, (step, zero): Self::Group) -> __m256 {
        // SAFETY: the chunk lies in the vector.
        let codes = unsafe { codes::<BITS>(bytes, chunk) };
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), step, zero)
    }
}

/// The eight codes of a chunk, one per lane. Up to 4 bits one load of 32 bits is broadcast and shifted into
/// place; of 6 bits the two halves of the chunk are.
///
/// # Safety
/// - AVX2 is available.
/// - `bytes` is a vector that has this chunk: a load may go up to two bytes past the codes, where the
///   headers are.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn codes<const BITS: u8>(bytes: &[u8], chunk: usize) -> __m256i {
    // SAFETY: the chunk lies in the vector.
    let from = unsafe { bytes.as_ptr().add(chunk * usize::from(BITS)) };
    let bits = i32::from(BITS);
    let mask = _mm256_set1_epi32((1 << bits) - 1);
    if BITS == 8 {
        // SAFETY: a chunk is eight bytes.
        _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(from.cast()) })
    } else if BITS <= 4 {
        // SAFETY: a chunk is at least two bytes and the headers after the codes at least two.
        let word = _mm256_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() });
        let shifts =
            _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(bits));
        _mm256_and_si256(_mm256_srlv_epi32(word, shifts), mask)
    } else {
        // SAFETY: a chunk is six bytes and the headers after the codes at least four.
        let word = unsafe { from.cast::<u64>().read_unaligned() };
        let halves = _mm256_blend_epi32::<0xF0>(
            _mm256_set1_epi32(word as i32),
            _mm256_set1_epi32((word >> (4 * BITS)) as i32),
        );
        let shifts =
            _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3), _mm256_set1_epi32(bits));
        _mm256_and_si256(_mm256_srlv_epi32(halves, shifts), mask)
    }
}
