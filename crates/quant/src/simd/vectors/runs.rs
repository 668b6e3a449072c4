//! Where the vectors lie that a kernel goes over: as one asks for the i-th, at no cost that a pointer does not have.

#![expect(unsafe_code, reason = "vectors by pointer")]

use crate::rows::VectorList;
use crate::simd::prefetch::prefetch;

/// Vectors of one length, of which some may be taken for themselves, and as many that are wanted next.
///
/// # Safety
/// Of every `i < len` there is the i-th vector.
pub(super) unsafe trait Run<'a>: Copy {
    /// How many there are.
    fn len(self) -> usize;

    /// `len` vectors from `first` on.
    fn part(self, first: usize, len: usize) -> Self;

    /// The i-th vector.
    ///
    /// # Safety
    /// There is one.
    unsafe fn get(self, i: usize) -> &'a [u8];

    /// Asks the memory for the line of a byte of the i-th of those that are wanted next. Where there are fewer of these than
    /// vectors, or they lie otherwise, it is the line of the vector itself, which is there.
    ///
    /// # Safety
    /// There is an i-th vector.
    unsafe fn ask(self, i: usize, byte: usize);
}

/// Vectors side by side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beside<'a> {
    bytes: &'a [u8],
    /// What is wanted next, as many bytes.
    soon: &'a [u8],
    /// Of a vector.
    num_bytes: usize,
}

/// A vector in each of some rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct InRows<'a> {
    rows: &'a [&'a [u8]],
    /// Of as many vectors that are wanted next.
    soon: &'a [&'a [u8]],
    at: usize,
    num_bytes: usize,
}

impl<'a> Beside<'a> {
    /// # Panics
    /// When the bytes are not whole vectors.
    pub(super) fn new(bytes: &'a [u8], soon: VectorList<'a>, num_bytes: usize) -> Self {
        assert!(bytes.len().is_multiple_of(num_bytes), "whole vectors");
        let soon = match soon {
            VectorList::Beside(soon) if soon.len() >= bytes.len() => &soon[..bytes.len()],
            _ => bytes,
        };
        Self { bytes, soon, num_bytes }
    }
}

impl<'a> InRows<'a> {
    /// # Panics
    /// When a row is too short.
    pub(super) fn new(
        rows: &'a [&'a [u8]],
        at: usize,
        soon: VectorList<'a>,
        num_bytes: usize,
    ) -> Self {
        let has_vector =
            |row: &&[u8]| row.len().checked_sub(at).is_some_and(|len| len >= num_bytes);
        assert!(rows.iter().all(has_vector), "a vector in each row");
        let soon = match soon {
            VectorList::InRows { rows: soon, .. } if soon.len() >= rows.len() => {
                &soon[..rows.len()]
            }
            _ => rows,
        };
        Self { rows, soon, at, num_bytes }
    }
}

// SAFETY: the bytes are `len` whole vectors.
unsafe impl<'a> Run<'a> for Beside<'a> {
    #[inline]
    fn len(self) -> usize {
        self.bytes.len() / self.num_bytes
    }

    #[inline]
    fn part(self, first: usize, len: usize) -> Self {
        let span = first * self.num_bytes..(first + len) * self.num_bytes;
        Self { bytes: &self.bytes[span.clone()], soon: &self.soon[span], ..self }
    }

    #[inline]
    unsafe fn get(self, i: usize) -> &'a [u8] {
        // SAFETY: the bytes of the i-th vector are there.
        unsafe {
            let at = self.bytes.as_ptr().add(i * self.num_bytes);
            std::slice::from_raw_parts(at, self.num_bytes)
        }
    }

    #[inline]
    unsafe fn ask(self, i: usize, byte: usize) {
        prefetch(self.soon.as_ptr().wrapping_add(i * self.num_bytes + byte));
    }
}

// SAFETY: there is a row for each, which was seen to have the bytes of its vector.
unsafe impl<'a> Run<'a> for InRows<'a> {
    #[inline]
    fn len(self) -> usize {
        self.rows.len()
    }

    #[inline]
    fn part(self, first: usize, len: usize) -> Self {
        let span = first..first + len;
        Self { rows: &self.rows[span.clone()], soon: &self.soon[span], ..self }
    }

    #[inline]
    unsafe fn get(self, i: usize) -> &'a [u8] {
        // SAFETY: there is an i-th row, and each was seen to have the bytes of its vector.
        unsafe {
            let at = self.rows.get_unchecked(i).as_ptr().add(self.at);
            std::slice::from_raw_parts(at, self.num_bytes)
        }
    }

    #[inline]
    unsafe fn ask(self, i: usize, byte: usize) {
        // SAFETY: of what is wanted next there are as many.
        let row = unsafe { self.soon.get_unchecked(i) };
        prefetch(row.as_ptr().wrapping_add(self.at + byte));
    }
}
