//! One output that several threads write, each its own tiles.
#![expect(unsafe_code, reason = "tiles of one output are written from several threads")]

use std::marker::PhantomData;

/// An output `[n, rows]`, lent to workers that each write tiles of their own.
pub(super) struct Output<'a> {
    first: *mut f32,
    n: usize,
    rows: usize,
    lent: PhantomData<&'a mut [f32]>,
}

/// Some vectors' outputs for some rows.
pub(super) struct Tile {
    /// Its first element.
    pub(super) first: *mut f32,
    /// From a vector to the next, in elements.
    pub(super) stride: usize,
}

// SAFETY: the pointer is that of a mutable borrow that lives as long as this value, f32 may be sent,
// and what is made of it is only a pointer, whose users see to it that they do not overlap.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// Lends `y [n, rows]`, `rows` not 0.
    pub(super) fn new(y: &'a mut [f32], rows: usize) -> Self {
        let n = y.len() / rows;
        assert_eq!(y.len(), n * rows, "whole vectors");
        Self { first: y.as_mut_ptr(), n, rows, lent: PhantomData }
    }

    /// The tile of so many vectors and rows from `[vector, row]` on, inside the output. Whoever writes to it sees to it
    /// that the output is still lent and that nobody else writes there.
    pub(super) fn tile(
        &self,
        [vector, row]: [usize; 2],
        [num_vectors, num_rows]: [usize; 2],
    ) -> Tile {
        assert!(vector + num_vectors <= self.n && row + num_rows <= self.rows, "tile is inside");
        // SAFETY: the element is inside the borrowed slice, or one behind it where the tile is empty.
        let first = unsafe { self.first.add(vector * self.rows + row) };
        Tile { first, stride: self.rows }
    }
}
