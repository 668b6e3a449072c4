//! The vector code of this crate and the one place of it that holds unsafe code.
//!
//! Every kernel has a scalar form, which the others equal to the bit: sums are taken in [`LANES`]
//! partial sums, whatever the width of a vector.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector loads and stores, and the calls into vector code")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

/// Tokens of a word of a set.
pub(crate) const WORD: usize = u64::BITS as usize;

/// Partial sums of a mass, by token, and what a vector that is stored whole may write too much.
pub(crate) const LANES: usize = 16;

/// The instructions that kernels use, of which this CPU has all: calls into vector code rest on
/// that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form(Instructions);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// What [`split`] finds of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Split {
    /// How many are heavy.
    pub(crate) num_heavy: usize,
    /// What the heavy ones come to.
    pub(crate) heavy_mass: f64,
    /// How many are between.
    pub(crate) num_between: usize,
    /// Whether all weights are finite and at least 0; false for −0 too.
    pub(crate) is_sound: bool,
}

/// Where [`split`] writes which weights are on which side.
#[derive(Debug)]
pub(crate) struct Sides<'a> {
    /// Bits of the heavy ones, a word for every [`WORD`] weights or a part of them.
    pub(crate) heavy: &'a mut [u64],
    /// Bits of those between.
    pub(crate) open: &'a mut [u64],
    /// Those between, in their order; what is behind them means nothing.
    pub(crate) between: &'a mut [f32],
}

/// What has been seen of weights.
#[derive(Default)]
struct Seen {
    num_heavy: usize,
    num_between: usize,
    /// Of the heavy ones.
    sums: [f64; LANES],
    /// The largest bits of a weight.
    most_bits: u32,
}

impl Form {
    /// Every CPU has it.
    const SCALAR: Self = Self(Instructions::Scalar);

    /// The best of this CPU.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx512() {
                return Self(Instructions::Avx512);
            }
            if has_avx2() {
                return Self(Instructions::Avx2);
            }
        }
        Self::SCALAR
    }

    /// All of this CPU.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        let mut forms = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            forms.extend(has_avx2().then_some(Self(Instructions::Avx2)));
            forms.extend(has_avx512().then_some(Self(Instructions::Avx512)));
        }
        forms
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("popcnt")
}

/// Counts, sums and marks the weights that are at least `edges[1]`, the heavy ones, and marks and copies
/// the others that are at least `edges[0]`, those between.
///
/// # Panics
/// When there is not a word for every [`WORD`] weights or a part of them, and when `between` is not
/// longer than `weights` by [`LANES`].
pub(crate) fn split(form: Form, weights: &[f32], edges: [f32; 2], sides: Sides<'_>) -> Split {
    let Sides { heavy, open, between } = sides;
    let num_words = weights.len().div_ceil(WORD);
    assert!(heavy.len() == num_words && open.len() == num_words, "a word for every {WORD} weights");
    assert!(between.len() >= weights.len() + LANES, "room for every weight and a vector");
    let (chunks, rest) = weights.as_chunks::<WORD>();
    let (heavy, last_heavy) = heavy.split_at_mut(chunks.len());
    let (open, last_open) = open.split_at_mut(chunks.len());
    let sides = Sides { heavy, open, between: &mut *between };
    let mut seen = match form.0 {
        Instructions::Scalar => Seen::of(chunks, edges, sides),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the form is that of a CPU with AVX2 and POPCNT.
        Instructions::Avx2 => unsafe { avx2::split(chunks, edges, sides) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the form is that of a CPU with AVX-512 F and POPCNT.
        Instructions::Avx512 => unsafe { avx512::split(chunks, edges, sides) },
    };
    for (heavy, open) in last_heavy.iter_mut().zip(last_open) {
        [*heavy, *open] = seen.add(rest, edges, between);
    }
    Split {
        num_heavy: seen.num_heavy,
        heavy_mass: seen.sums.iter().sum(),
        num_between: seen.num_between,
        is_sound: seen.most_bits <= f32::MAX.to_bits(),
    }
}

impl Seen {
    fn of(chunks: &[[f32; WORD]], edges: [f32; 2], sides: Sides<'_>) -> Self {
        let mut seen = Self::default();
        let words = sides.heavy.iter_mut().zip(sides.open);
        for (chunk, (heavy, open)) in chunks.iter().zip(words) {
            [*heavy, *open] = seen.add(chunk, edges, sides.between);
        }
        seen
    }

    /// Adds weights of a word, and gives the bits of the heavy ones and of those between.
    fn add(&mut self, weights: &[f32], [least, heavy]: [f32; 2], between: &mut [f32]) -> [u64; 2] {
        let mut words = [0; 2];
        for (at, &weight) in weights.iter().enumerate() {
            let is_heavy = weight >= heavy;
            let is_between = weight >= least && !is_heavy;
            words[0] |= u64::from(is_heavy) << at;
            words[1] |= u64::from(is_between) << at;
            self.num_heavy += usize::from(is_heavy);
            self.sums[at % LANES] += if is_heavy { f64::from(weight) } else { 0.0 };
            self.most_bits = self.most_bits.max(weight.to_bits());
            // No branch foretells which are.
            between[self.num_between] = weight;
            self.num_between += usize::from(is_between);
        }
        words
    }
}

/// Makes the bits of `words` the weights that are at least `least`: those beyond the last weight
/// are unset.
///
/// # Panics
/// When there is not a word for every [`WORD`] weights or a part of them.
pub(crate) fn mark(form: Form, weights: &[f32], least: f32, words: &mut [u64]) {
    assert_eq!(words.len(), weights.len().div_ceil(WORD), "a word for every {WORD} weights");
    let (chunks, rest) = weights.as_chunks::<WORD>();
    let (whole, last) = words.split_at_mut(chunks.len());
    match form.0 {
        Instructions::Scalar => {
            chunks.iter().zip(whole).for_each(|(chunk, word)| *word = mark_scalar(chunk, least));
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the form is that of a CPU with AVX2 and POPCNT.
        Instructions::Avx2 => unsafe { avx2::mark(chunks, least, whole) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the form is that of a CPU with AVX-512 F and POPCNT.
        Instructions::Avx512 => unsafe { avx512::mark(chunks, least, whole) },
    }
    last.iter_mut().for_each(|word| *word = mark_scalar(rest, least));
}

fn mark_scalar(weights: &[f32], least: f32) -> u64 {
    weights.iter().rev().fold(0, |word, &weight| word << 1 | u64::from(weight >= least))
}

/// Writes where bits are set in `words`, ascending; what is behind them in `out` means nothing.
///
/// # Panics
/// When `out` is not longer than there are by [`LANES`].
pub(crate) fn positions(form: Form, words: &[u64], out: &mut [u32]) {
    match form.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the form is that of a CPU with AVX-512 F and POPCNT.
        Instructions::Avx512 => unsafe { avx512::positions(words, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the form is that of a CPU with AVX2 and POPCNT.
        Instructions::Avx2 => unsafe { avx2::positions(words, out) },
        Instructions::Scalar => positions_scalar(words, out),
    }
}

fn positions_scalar(words: &[u64], out: &mut [u32]) {
    let mut next = 0;
    for (at, &word) in words.iter().enumerate() {
        for bit in bits(word) {
            out[next] = (WORD * at + bit) as u32;
            next += 1;
        }
    }
}

/// Writes the values whose bits are set in `words`, and says how many.
///
/// # Panics
/// When there is not a value for every bit, and when `out` has no room for them.
pub(crate) fn pick(form: Form, words: &[u64], values: &[f32], out: &mut [f32]) -> usize {
    let chunks = &values.as_chunks::<WORD>().0[..words.len()];
    match form.0 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the form is that of a CPU with AVX-512 F and POPCNT.
        Instructions::Avx512 => unsafe { avx512::pick(words, chunks, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the form is that of a CPU with AVX2 and POPCNT.
        Instructions::Avx2 => unsafe { avx2::pick(words, chunks, out) },
        Instructions::Scalar => pick_scalar(words, chunks, out),
    }
}

fn pick_scalar(words: &[u64], chunks: &[[f32; WORD]], out: &mut [f32]) -> usize {
    let mut next = 0;
    for (&word, chunk) in words.iter().zip(chunks) {
        for bit in bits(word) {
            out[next] = chunk[bit];
            next += 1;
        }
    }
    next
}

/// The bits that are set in a word, ascending.
pub(crate) fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        (word != 0).then(|| {
            word &= word - 1;
            bit
        })
    })
}

#[cfg(test)]
mod tests;
