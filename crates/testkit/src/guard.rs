//! Guard bands: outputs that show whether they were written, and whether their neighbours were.

use std::fmt;

/// An element type with two recognisable patterns.
pub trait Patterned: Copy {
    /// What an output holds before the kernel runs.
    const POISON: Self;
    /// What surrounds an output.
    const SENTINEL: Self;
    /// Bitwise equality: two NaNs of the same pattern are the same.
    fn same_bits(self, other: Self) -> bool;
}

impl Patterned for f32 {
    // Two quiet NaNs with payloads that arithmetic does not produce: an unwritten element that is
    // read by anything spreads, and fails every comparison.
    const POISON: Self = Self::from_bits(0x7FD0_DEAD);
    const SENTINEL: Self = Self::from_bits(0x7FDB_AAAD);

    fn same_bits(self, other: Self) -> bool {
        self.to_bits() == other.to_bits()
    }
}

impl Patterned for u8 {
    const POISON: Self = 0xA5;
    const SENTINEL: Self = 0x5C;

    fn same_bits(self, other: Self) -> bool {
        self == other
    }
}

/// Elements on each side of the payload.
const BAND: usize = 64;

/// A buffer whose payload starts as poison, between two bands that must survive.
#[derive(Clone, Debug)]
pub struct Guarded<T: Patterned> {
    buffer: Vec<T>,
}

/// A kernel wrote where it must not, or did not write where it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardBreach {
    /// A sentinel was overwritten; the offset is from the start of the payload, negative before it.
    Overwritten {
        /// Offset in elements from the start of the payload.
        offset: isize,
    },
    /// Elements of the payload still hold poison.
    Untouched {
        /// The first of them.
        first: usize,
        /// How many there are.
        count: usize,
    },
}

impl fmt::Display for GuardBreach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overwritten { offset } => write!(f, "sentinel at offset {offset} overwritten"),
            Self::Untouched { first, count } => {
                write!(f, "{count} elements never written, the first at {first}")
            }
        }
    }
}

impl std::error::Error for GuardBreach {}

impl<T: Patterned> Guarded<T> {
    /// A poisoned payload of `len` elements between sentinels.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let mut buffer = vec![T::SENTINEL; len + 2 * BAND];
        buffer[BAND..BAND + len].fill(T::POISON);
        Self { buffer }
    }

    /// The payload, to hand to a kernel.
    pub fn payload_mut(&mut self) -> &mut [T] {
        let end = self.buffer.len() - BAND;
        &mut self.buffer[BAND..end]
    }

    /// The payload, unchecked.
    #[must_use]
    pub fn payload(&self) -> &[T] {
        &self.buffer[BAND..self.buffer.len() - BAND]
    }

    /// Everything that was allocated, sentinels included: what a stray write could reach.
    pub fn surroundings_mut(&mut self) -> &mut [T] {
        &mut self.buffer
    }

    /// The payload, if every sentinel survived and every element was written.
    ///
    /// # Errors
    ///
    /// The first [`GuardBreach`]. For bytes, a kernel that happens to write the poison value is
    /// reported too: use [`Guarded::check_bands`] where that is a possible result.
    pub fn check(&self) -> Result<&[T], GuardBreach> {
        let payload = self.check_bands()?;
        let poisoned = |value: &&T| value.same_bits(T::POISON);
        match payload.iter().position(|value| poisoned(&value)) {
            None => Ok(payload),
            Some(first) => Err(GuardBreach::Untouched {
                first,
                count: payload.iter().filter(poisoned).count(),
            }),
        }
    }

    /// The payload, if every sentinel survived.
    ///
    /// # Errors
    ///
    /// [`GuardBreach::Overwritten`].
    pub fn check_bands(&self) -> Result<&[T], GuardBreach> {
        let payload = self.payload();
        for (index, value) in self.buffer.iter().enumerate() {
            let inside = (BAND..BAND + payload.len()).contains(&index);
            if !inside && !value.same_bits(T::SENTINEL) {
                let offset = index as isize - BAND as isize;
                return Err(GuardBreach::Overwritten { offset });
            }
        }
        Ok(payload)
    }
}
