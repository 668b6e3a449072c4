//! Inputs from a seed, the same on every platform and in every version.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
//! generators", OOPSLA 2014), written out here because the sequence of a library's standard
//! generator may change with its version, and committed regressions name seeds. Only additions,
//! multiplications and shifts are used after it: no logarithm or cosine whose last bit differs
//! between maths libraries.

/// A stream of test inputs.
#[derive(Clone, Debug)]
pub struct Inputs {
    seed: u64,
    state: u64,
}

impl Inputs {
    /// The stream of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// The seed that the stream was started with, for messages.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-24 (exact in f32).
    pub fn unit(&mut self) -> f32 {
        const STEP: f32 = 1.0 / 16_777_216.0;
        (self.bits() >> 40) as f32 * STEP
    }

    /// Uniform in `0..limit`; the bias of the remainder is below 2^-32 for limits below 2^32.
    ///
    /// # Panics
    ///
    /// When `limit` is zero.
    pub fn below(&mut self, limit: usize) -> usize {
        assert!(limit > 0, "no index is below zero");
        (self.bits() % limit as u64) as usize
    }

    /// Near-normal, mean 0 and deviation 1: the sum of twelve uniforms less six, so within ±6.
    /// Heavier tails are asked for by name ([`Inputs::heavy_channels`], [`Inputs::sink_tokens`]).
    pub fn gaussian(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| f64::from(self.unit())).sum();
        (sum - 6.0) as f32
    }

    /// Rows of independent [`Inputs::gaussian`] values, `[num_rows, row_len]`, deviation `deviation`.
    pub fn gaussian_rows(&mut self, num_rows: usize, row_len: usize, deviation: f32) -> Vec<f32> {
        (0..num_rows * row_len).map(|_| deviation * self.gaussian()).collect()
    }

    /// Gaussian rows `[num_rows, row_len]` in which `num_heavy` channels, the same in every row,
    /// are `factor` times larger and share a sign: what post-RoPE keys of trained models look like.
    pub fn heavy_channels(
        &mut self,
        num_rows: usize,
        row_len: usize,
        num_heavy: usize,
        factor: f32,
    ) -> Vec<f32> {
        let mut rows = self.gaussian_rows(num_rows, row_len, 1.0);
        if row_len == 0 {
            return rows;
        }
        for _ in 0..num_heavy {
            let channel = self.below(row_len);
            let sign = if self.bits() & 1 == 0 { 1.0 } else { -1.0 };
            for row in rows.chunks_exact_mut(row_len) {
                row[channel] = sign * factor * (1.0 + 0.1 * row[channel]);
            }
        }
        rows
    }

    /// Gaussian rows `[num_rows, row_len]` whose first `num_sinks` rows are `factor` times larger,
    /// like the attention sinks at the start of a context.
    pub fn sink_tokens(
        &mut self,
        num_rows: usize,
        row_len: usize,
        num_sinks: usize,
        factor: f32,
    ) -> Vec<f32> {
        let mut rows = self.gaussian_rows(num_rows, row_len, 1.0);
        let end = (num_sinks * row_len).min(rows.len());
        for value in &mut rows[..end] {
            *value *= factor;
        }
        rows
    }
}

/// The same value everywhere, `[num_rows, row_len]`: every softmax over it is uniform, and every
/// quantization group has no spread. `constant_rows(n, d, 0.0)` gives zeros.
#[must_use]
pub fn constant_rows(num_rows: usize, row_len: usize, value: f32) -> Vec<f32> {
    vec![value; num_rows * row_len]
}
