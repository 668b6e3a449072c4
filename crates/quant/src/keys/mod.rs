//! Key coders: tables fitted for the keys of one (layer, KV head), and what is done with them.
//!
//! A [`KeyCoder`] encodes keys into groups of bytes, decodes them, and scores queries against them
//! without decoding to memory. Queries are [prepared](KeyCoder::prepare) once per step: rotated, scaled
//! or turned into tables, with `sm_scale` folded in, so that a score is ready for the softmax.

mod affine;
mod alloc;
mod format;
mod kmeans;
mod lloyd_max;
mod plain;
mod pq;
mod tables;

pub(crate) use format::MAX_CODED_HEAD_DIM;
pub use format::{KEY_FORMATS, KeyFormat, KeyLayout};
pub use tables::Tables;

use crate::saturate::to_f16;
use crate::simd::keys::CodedRows;
use crate::{Error, Level, Result};

/// What the tables of a format are fitted on: keys of one (layer, KV head).
#[derive(Clone, Copy, Debug)]
pub struct FitInput<'a> {
    /// Length of a key.
    pub head_dim: usize,
    /// Keys `[num_tokens, head_dim]`, post-RoPE.
    pub keys: &'a [f32],
    /// Mean of q² per channel `[head_dim]` over queries that will meet these keys: the weight of an
    /// error in that channel. All ones where nothing is known.
    pub query_energy: &'a [f32],
    /// Seed of whatever the fit draws.
    pub seed: u64,
}

/// The fitted coder of the keys of one (layer, KV head).
///
/// ```
/// use heterokv_quant::{FitInput, KeyCoder, Level, PreparedQueries};
///
/// // 300 keys of 16 channels, and nothing known of the queries.
/// let keys: Vec<f32> = (0..300 * 16).map(|i| (i as f32 * 0.37).sin()).collect();
/// let input = FitInput { head_dim: 16, keys: &keys, query_energy: &[1.0; 16], seed: 0 };
/// let coder = KeyCoder::fit("alloc/4".parse()?, &input)?;
///
/// // Four bits a channel and a byte of scale: 9 bytes a key.
/// let mut codes = vec![0; 300 * coder.layout().group_bytes];
/// assert_eq!(codes.len(), 300 * 9);
/// coder.encode(&keys, &mut codes)?;
///
/// // Two queries against all keys, without decoding them.
/// let queries = &keys[..32];
/// let (mut prepared, mut scores) = (PreparedQueries::default(), vec![0.0; 2 * 300]);
/// coder.prepare(queries, 0.25, &mut prepared);
/// coder.score(Level::detect(), &prepared, &codes, 300, &mut scores, 300);
///
/// let exact: f32 = 0.25 * queries[..16].iter().zip(&keys).map(|(q, k)| q * k).sum::<f32>();
/// assert!((scores[0] - exact).abs() < 0.1, "{} and {exact}", scores[0]);
/// # Ok::<(), heterokv_quant::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KeyCoder {
    format: KeyFormat,
    head_dim: usize,
    layout: KeyLayout,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    F16,
    IntToken(affine::PerToken),
    IntChannel(affine::PerChannel),
    LloydMax(lloyd_max::LloydMax),
    Pq(pq::Pq),
    Alloc(alloc::Alloc),
}

/// Queries of one KV head's group in the form that a coder scores with. Reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct PreparedQueries {
    num_heads: usize,
    /// `[num_heads, head_dim]`, in the coder's frame and order.
    queries: Vec<f32>,
    /// `[num_heads]`, added to every score.
    bias: Vec<f32>,
    /// `[num_heads]`, sum of each query, for formats with a zero per token.
    sums: Vec<f32>,
    /// `[num_heads]`, added to every dot product before the scale of its token; empty where 0.
    offsets: Vec<f32>,
    /// Per-query tables of product quantization.
    table: Vec<f32>,
}

impl KeyCoder {
    /// Fits the tables of `format`.
    ///
    /// # Errors
    /// [`Error::HeadDim`], [`Error::LengthMismatch`], [`Error::TooFewTokens`] (see
    /// [`KeyLayout::min_fit_tokens`]), [`Error::NotFinite`] for a key that holds NaN or an infinity, and
    /// [`Error::QueryEnergy`].
    pub fn fit(format: KeyFormat, input: &FitInput<'_>) -> Result<Self> {
        let layout = format.layout(input.head_dim)?;
        let num_tokens = input.keys.len() / input.head_dim;
        check_len("keys", input.keys.len(), num_tokens * input.head_dim)?;
        check_len("query_energy", input.query_energy.len(), input.head_dim)?;
        if num_tokens < layout.min_fit_tokens {
            return Err(Error::TooFewTokens {
                format: format.to_string(),
                tokens: num_tokens,
                needed: layout.min_fit_tokens,
            });
        }
        check_finite(input.keys, input.head_dim)?;
        let bad = |energy: &f32| !(energy.is_finite() && *energy >= 0.0);
        if let Some(channel) = input.query_energy.iter().position(bad) {
            return Err(Error::QueryEnergy { channel, energy: input.query_energy[channel] });
        }
        let head_dim = input.head_dim;
        let kind = match format {
            KeyFormat::F16 => Kind::F16,
            KeyFormat::IntToken { bits } => Kind::IntToken(affine::PerToken::new(bits, head_dim)),
            KeyFormat::IntChannel { bits, .. } => {
                Kind::IntChannel(affine::PerChannel::new(bits, head_dim))
            }
            KeyFormat::LloydMax { bits } => Kind::LloydMax(lloyd_max::LloydMax::fit(bits, input)?),
            KeyFormat::Pq { width, code_bits } => Kind::Pq(pq::Pq::fit(width, code_bits, input)),
            KeyFormat::Alloc { .. } => {
                Kind::Alloc(alloc::Alloc::fit(format.alloc_code_bytes(head_dim), input))
            }
        };
        Ok(Self { format, head_dim, layout, kind })
    }

    /// The format that was fitted.
    #[must_use]
    pub fn format(&self) -> KeyFormat {
        self.format
    }

    /// The sizes that this coder works with.
    #[must_use]
    pub fn layout(&self) -> KeyLayout {
        self.layout
    }

    /// Encodes `keys [n, head_dim]`, where n is a multiple of the layout's `group_tokens`, into
    /// `out [n / group_tokens, group_bytes]`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or an infinity; `out` is then not written.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn encode(&self, keys: &[f32], out: &mut [u8]) -> Result<()> {
        let group_len = self.layout.group_tokens * self.head_dim;
        assert_eq!(keys.len() % group_len, 0, "keys must be whole groups");
        assert_eq!(out.len(), keys.len() / group_len * self.layout.group_bytes);
        check_finite(keys, self.head_dim)?;
        let groups = out.chunks_exact_mut(self.layout.group_bytes);
        let groups = keys.chunks_exact(group_len).zip(groups);
        match &self.kind {
            Kind::F16 => plain::encode(keys, out),
            Kind::IntToken(coder) => groups.for_each(|(keys, out)| coder.encode(keys, out)),
            Kind::IntChannel(coder) => groups.for_each(|(keys, out)| coder.encode(keys, out)),
            Kind::LloydMax(coder) => groups.for_each(|(keys, out)| coder.encode(keys, out)),
            Kind::Pq(coder) => coder.encode(keys, out),
            Kind::Alloc(coder) => groups.for_each(|(keys, out)| coder.encode(keys, out)),
        }
        Ok(())
    }

    /// Decodes `codes [n / group_tokens, group_bytes]` into `out [n, head_dim]`. Any bytes decode to
    /// something; damaged ones are the store's to notice.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn decode(&self, codes: &[u8], out: &mut [f32]) {
        let group_len = self.layout.group_tokens * self.head_dim;
        assert_eq!(codes.len() / self.layout.group_bytes * group_len, out.len());
        for (codes, out) in
            codes.chunks_exact(self.layout.group_bytes).zip(out.chunks_exact_mut(group_len))
        {
            match &self.kind {
                Kind::F16 => plain::decode(codes, out),
                Kind::IntToken(coder) => coder.decode(codes, out),
                Kind::IntChannel(coder) => coder.decode(codes, out),
                Kind::LloydMax(coder) => coder.decode(codes, out),
                Kind::Pq(coder) => coder.decode(codes, out),
                Kind::Alloc(coder) => coder.decode(codes, out),
            }
        }
    }

    /// Brings `queries [num_heads, head_dim]`, post-RoPE, into the form of this coder, times `sm_scale`.
    ///
    /// # Panics
    /// When `queries` is not whole rows.
    pub fn prepare(&self, queries: &[f32], sm_scale: f32, prepared: &mut PreparedQueries) {
        assert!(queries.len().is_multiple_of(self.head_dim), "whole queries");
        prepared.num_heads = queries.len() / self.head_dim;
        prepared.queries.clear();
        prepared.queries.extend(queries.iter().map(|q| q * sm_scale));
        prepared.bias.clear();
        prepared.bias.resize(prepared.num_heads, 0.0);
        prepared.sums.clear();
        prepared.offsets.clear();
        match &self.kind {
            Kind::F16 | Kind::IntChannel(_) => {}
            Kind::IntToken(_) => {
                let sums =
                    prepared.queries.chunks_exact(self.head_dim).map(|q| q.iter().sum::<f32>());
                prepared.sums.extend(sums);
            }
            Kind::LloydMax(coder) => coder.prepare(prepared),
            Kind::Pq(coder) => coder.prepare(prepared),
            Kind::Alloc(coder) => coder.prepare(prepared),
        }
    }

    /// Scores `sm_scale · q·k` of the prepared queries against the `num_tokens` keys coded in `codes`,
    /// into `out[head · stride + token]`. Accumulates in f32. No queries or no tokens: nothing is written.
    ///
    /// # Panics
    /// When `codes` or `out` is too short for `num_tokens`, or `num_tokens` is not whole groups.
    pub fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        codes: &[u8],
        num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        assert_eq!(num_tokens % self.layout.group_tokens, 0, "tokens must be whole groups");
        if prepared.num_heads == 0 || num_tokens == 0 {
            return;
        }
        let codes = &codes[..num_tokens / self.layout.group_tokens * self.layout.group_bytes];
        let out = &mut out[..stride * (prepared.num_heads - 1) + num_tokens];
        match &self.kind {
            Kind::F16 => plain::score(level, prepared, codes, self.head_dim, out, stride),
            Kind::IntToken(coder) => coder.rows().score(level, prepared, codes, out, stride),
            Kind::IntChannel(coder) => {
                let bytes = self.layout.group_bytes;
                let tokens = self.layout.group_tokens;
                for (group, codes) in codes.chunks_exact(bytes).enumerate() {
                    coder.score(level, prepared, codes, &mut out[group * tokens..], stride);
                }
            }
            Kind::LloydMax(coder) => coder.rows().score(level, prepared, codes, out, stride),
            Kind::Pq(coder) => coder.score(prepared, codes, out, stride),
            Kind::Alloc(coder) => coder.rows().score(level, prepared, codes, out, stride),
        }
    }
}

impl PreparedQueries {
    pub(crate) fn num_heads(&self) -> usize {
        self.num_heads
    }

    pub(crate) fn queries(&self) -> &[f32] {
        &self.queries
    }

    pub(crate) fn bias(&self) -> &[f32] {
        &self.bias
    }

    pub(crate) fn sums(&self) -> &[f32] {
        &self.sums
    }

    pub(crate) fn offsets(&self) -> &[f32] {
        &self.offsets
    }
}

impl CodedRows {
    /// Decodes one row into `out [head_dim]` by the scalar truth that `score` is held to.
    fn decode_row(&self, row: &[u8], out: &mut [f32]) {
        let (scale, zero) = self.tail_of(row);
        crate::bits::for_each_code(row, self.widths(), |channel, code| {
            out[channel] = zero + scale * self.value(code);
        });
    }
}

/// Mean of each channel of `keys [n, head_dim]`, rounded to f16 as it is stored; clamped to ±65,504.
fn channel_means(keys: &[f32], head_dim: usize) -> Vec<half::f16> {
    let mut sums = vec![0.0f64; head_dim];
    for key in keys.chunks_exact(head_dim) {
        for (sum, &x) in sums.iter_mut().zip(key) {
            *sum += f64::from(x);
        }
    }
    let count = (keys.len() / head_dim).max(1) as f64;
    sums.iter().map(|sum| to_f16((sum / count) as f32)).collect()
}

fn check_len(what: &'static str, actual: usize, expected: usize) -> Result<()> {
    if actual == expected { Ok(()) } else { Err(Error::LengthMismatch { what, expected, actual }) }
}

fn check_finite(keys: &[f32], head_dim: usize) -> Result<()> {
    match keys.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(i) => {
            Err(Error::NotFinite { token: i / head_dim, channel: i % head_dim, value: keys[i] })
        }
    }
}

#[cfg(test)]
mod tests;
