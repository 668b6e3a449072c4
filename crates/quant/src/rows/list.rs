//! Where vectors of one format lie.

/// Vectors of one format, in the order in which they count.
#[derive(Clone, Copy, Debug)]
pub enum VectorList<'a> {
    /// Side by side, with nothing between them.
    Beside(&'a [u8]),
    /// One in each of some rows.
    InRows {
        /// The rows.
        rows: &'a [&'a [u8]],
        /// Where in its row a vector begins.
        at: usize,
    },
}

impl<'a> VectorList<'a> {
    /// No vectors.
    pub const NONE: Self = Self::Beside(&[]);

    /// Whether there are no vectors, and no bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        match self {
            Self::Beside(bytes) => bytes.is_empty(),
            Self::InRows { rows, .. } => rows.is_empty(),
        }
    }

    /// How many vectors there are of `num_bytes` each; none of no bytes.
    ///
    /// # Panics
    /// When bytes side by side are not whole vectors.
    #[must_use]
    pub fn count(self, num_bytes: usize) -> usize {
        match self {
            _ if num_bytes == 0 => 0,
            Self::Beside(bytes) => {
                assert!(bytes.len().is_multiple_of(num_bytes), "whole vectors");
                bytes.len() / num_bytes
            }
            Self::InRows { rows, .. } => rows.len(),
        }
    }

    /// The `num_bytes` of the i-th vector.
    ///
    /// # Panics
    /// When there is none.
    #[inline]
    pub(crate) fn get(self, i: usize, num_bytes: usize) -> &'a [u8] {
        match self {
            Self::Beside(bytes) => &bytes[i * num_bytes..][..num_bytes],
            Self::InRows { rows, at } => {
                let from_start = rows[i].get(at..);
                from_start.and_then(|row| row.get(..num_bytes)).expect("a vector in each row")
            }
        }
    }
}
