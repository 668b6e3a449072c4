//! Key coders: tables fitted for the keys of one (layer, KV head), and what is done with them.
//!
//! A [`KeyCoder`] encodes keys into blocks of bytes, decodes them, and scores queries against them
//! without decoding to memory. Queries are [prepared](KeyCoder::prepare) once per step: rotated, scaled
//! or turned into tables, with `sm_scale` folded in, so that a score is ready for the softmax.

mod affine;
mod alloc;
mod channel_queries;
mod codec;
mod codes;
mod encoding;
mod format;
mod group_tables;
mod lloyd_max;
mod moves;
mod per_channel;
mod per_group;
mod plain;
mod plane_tables;
mod planes;
mod pq;
mod query_frame;
mod rotated;
mod tables;
mod tail;

pub use channel_queries::{ChannelCodes, ChannelQueries};
pub use encoding::{AllocatedChannel, Cell, CodePlane, Encoding, Strips, TokenRule};
pub(crate) use format::MAX_CODED_HEAD_DIM;
pub use format::{KEY_FORMATS, KeyFormat, KeyLayout, SharedScale};
pub use group_tables::{GroupFrame, GroupTables};
pub use plane_tables::PlaneTables;
pub(crate) use planes::{
    ENTRY_STEPS, PLANE_BYTES, Planes, STRIP, Sets, largest_rounding, nearest_integer, place_of,
};
pub use query_frame::{FrameChannel, FrameCodes, QueryFrame};
pub use tables::Tables;
pub use tail::Tail;
pub(crate) use tail::{EIGHTHS, OCTAVE_BIAS, exponent_scale};

use std::sync::Arc;

use codec::Codec;
use tables::bad_rotation;

use crate::saturate::to_f16;
use crate::simd::largest::largest;
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
    /// The instruction set of its kernels.
    pub level: Level,
}

/// The fitted coder of the keys of one (layer, KV head).
///
/// ```
/// use heterokv_quant::{FitInput, KeyCoder, Level, Precision, PreparedQueries, ScoreRows};
///
/// // 320 keys of 16 channels, and nothing known of the queries.
/// let keys: Vec<f32> = (0..320 * 16).map(|i| (i as f32 * 0.37).sin()).collect();
/// let level = Level::detect();
/// let input = FitInput { head_dim: 16, keys: &keys, query_energy: &[1.0; 16], seed: 0, level };
/// let coder = KeyCoder::fit("alloc/4".parse()?, &input)?;
///
/// // Four bits a channel and a byte of scale: 9 bytes a key, in blocks of 32 keys.
/// let mut codes = vec![0; coder.layout().bytes(320)];
/// assert_eq!(codes.len(), 320 * 9);
/// coder.encode(level, 0, &keys, &mut codes)?;
///
/// // Two queries against all keys, without decoding them.
/// let queries = &keys[..32];
/// let (mut prepared, mut scores, mut maxima) =
///     (PreparedQueries::default(), vec![0.0; 2 * 320], [f32::NEG_INFINITY; 2]);
/// coder.prepare(queries, 0.25, Precision::Exact, &mut prepared);
/// let out = ScoreRows { scores: &mut scores, stride: 320, maxima: &mut maxima };
/// coder.score(level, &prepared, &codes, 320, out);
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
    /// Shared by clones: tables never change once fitted.
    codec: Arc<dyn Codec>,
}

/// What scores are for, and so what their kernels may round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Scores that weigh values: accumulated in f32, or in exact integers of queries and products that
    /// are rounded to 16 bits.
    #[default]
    Exact,
    /// Scores that only choose which tokens are re-scored: a kernel may round the products of a query
    /// to 7 bits. [`KeyCoder::rounding`] bounds what that does.
    Select,
}

/// Queries of one KV head's group in the form that a coder scores with. Reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct PreparedQueries {
    /// The format and the `head_dim` of the coder that they were prepared for.
    form: Option<(KeyFormat, usize)>,
    num_heads: usize,
    precision: Precision,
    /// `[num_heads, head_dim]`, in the coder's frame and order.
    queries: Vec<f32>,
    /// `[num_heads]`, added to every score.
    bias: Vec<f32>,
    /// `[num_heads]`, sum of each query, for formats with a zero per token.
    sums: Vec<f32>,
    /// `[num_heads]`, added to every dot product before the scale of its token; empty where 0.
    offsets: Vec<f32>,
    /// `[num_heads]`, the unit of integer sums.
    steps: Vec<f32>,
    /// `[num_heads]`, the most that rounding to those units can move a sum.
    rounding: Vec<f32>,
    /// Tables of entries that nibbles pick, `[num_heads, sets, planes that are scored by them, 16]`.
    entries: Vec<u8>,
    /// Queries in integers, one for each channel or for each plane that is scored by them.
    words: Vec<i16>,
    /// Per-query tables of product quantization.
    table: Vec<f32>,
    /// Where tables over planes are wanted in f32, instead of words and entries: `[num_heads, planes, 16]`.
    plane_tables: Option<Vec<f32>>,
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
        let codec: Arc<dyn Codec> = match format {
            KeyFormat::LloydMax { bits } => Arc::new(lloyd_max::LloydMax::fit(bits, input)?),
            KeyFormat::Pq { width, code_bits, is_rotated, num_exact } => {
                let shape = pq::PqShape::new(width, code_bits, is_rotated, num_exact);
                let fitted = pq::Pq::fit(shape, input);
                Arc::new(fitted.map_err(|error| bad_rotation(format, head_dim, error))?)
            }
            KeyFormat::Alloc { .. } => {
                Arc::new(alloc::Alloc::fit(format.alloc_code_bytes(head_dim), input))
            }
            _ => codec::unfitted(format, head_dim)?,
        };
        Ok(Self { format, head_dim, layout, codec })
    }

    /// The format that was fitted.
    #[must_use]
    pub fn format(&self) -> KeyFormat {
        self.format
    }

    /// Length of a key.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// The sizes that this coder works with.
    #[must_use]
    pub fn layout(&self) -> KeyLayout {
        self.layout
    }

    /// Encodes `keys [n, head_dim]` as the tokens from `first_token` on of `codes`, which holds whole
    /// blocks ([`KeyLayout::bytes`] of them all); the codes of other tokens are left as they are. Both
    /// `first_token` and n are multiples of the layout's `group_tokens`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN or an infinity; `codes` is then not written.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn encode(
        &self,
        level: Level,
        first_token: usize,
        keys: &[f32],
        codes: &mut [u8],
    ) -> Result<()> {
        self.check_span(first_token, keys.len(), codes.len());
        check_finite(keys, self.head_dim)?;
        self.codec.encode(level, first_token, keys, codes);
        Ok(())
    }

    /// Decodes the tokens from `first_token` on of `codes`, whole blocks, into `out [n, head_dim]`; both
    /// are multiples of the layout's `group_tokens`. Any bytes decode to something; damaged ones are the
    /// store's to notice.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn decode(&self, first_token: usize, codes: &[u8], out: &mut [f32]) {
        self.check_span(first_token, out.len(), codes.len());
        self.codec.decode(first_token, codes, out);
    }

    fn check_span(&self, first_token: usize, keys_len: usize, codes_len: usize) {
        let group_tokens = self.layout.group_tokens;
        assert!(first_token.is_multiple_of(group_tokens), "the first token of a group");
        assert!(keys_len.is_multiple_of(group_tokens * self.head_dim), "keys in whole groups");
        let end = first_token + keys_len / self.head_dim;
        assert!(codes_len >= self.layout.bytes(end), "codes for every token");
    }

    /// Brings `queries [num_heads, head_dim]`, post-RoPE, into the form of this coder, times `sm_scale`.
    /// `precision` says what the scores are for. A query that is not finite has no finite scores.
    ///
    /// # Panics
    /// When `queries` is not whole rows.
    pub fn prepare(
        &self,
        queries: &[f32],
        sm_scale: f32,
        precision: Precision,
        prepared: &mut PreparedQueries,
    ) {
        assert!(queries.len().is_multiple_of(self.head_dim), "whole queries");
        prepared.form = Some((self.format, self.head_dim));
        prepared.num_heads = queries.len() / self.head_dim;
        prepared.precision = precision;
        prepared.queries.clear();
        prepared.queries.extend(queries.iter().map(|q| q * sm_scale));
        prepared.reset();
        self.codec.prepare(prepared);
    }

    /// Scores `sm_scale · q·k` of queries that this coder [prepared](KeyCoder::prepare) against the first
    /// `num_tokens` keys of `codes`, whole blocks. What sums are kept in is said by the [`Precision`] that the
    /// queries were prepared for. No queries or no tokens: nothing is written.
    ///
    /// # Panics
    /// When `codes` or `out` is too short for `num_tokens`, rows of scores would overlap, `num_tokens` is not
    /// whole groups, or the queries were prepared for another format or `head_dim`.
    pub fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        codes: &[u8],
        num_tokens: usize,
        out: ScoreRows<'_>,
    ) {
        let group_tokens = self.layout.group_tokens;
        assert!(num_tokens.is_multiple_of(group_tokens), "tokens must be whole groups");
        let ScoreRows { scores, stride, maxima } = out;
        assert!(maxima.is_empty() || maxima.len() == prepared.num_heads, "a maximum per head");
        if prepared.num_heads == 0 || num_tokens == 0 {
            return;
        }
        self.check_form(prepared);
        assert!(prepared.num_heads == 1 || stride >= num_tokens, "rows of scores side by side");
        let codes = &codes[..self.layout.bytes(num_tokens)];
        let len = stride.checked_mul(prepared.num_heads - 1);
        let len = len.and_then(|before_last| before_last.checked_add(num_tokens));
        assert!(len.is_some_and(|len| len <= scores.len()), "scores of every head, {stride} apart");
        let scores = &mut scores[..len.unwrap_or(0)];
        self.codec.score(level, prepared, codes, num_tokens, scores, stride);
        for (maximum, row) in maxima.iter_mut().zip(scores.chunks(stride.max(num_tokens))) {
            *maximum = largest(level, &row[..num_tokens], *maximum);
        }
    }

    /// The most by which the kernels' rounding of a prepared query moves its score of `token`, beside the
    /// roundings of f32 sums; 0 for formats that are scored in f32. Depends on the precision that the
    /// queries were prepared for.
    ///
    /// # Panics
    /// When the queries were prepared for another format or `head_dim`, there is no such head, or `codes` do not
    /// hold the token.
    #[must_use]
    pub fn rounding(
        &self,
        prepared: &PreparedQueries,
        head: usize,
        codes: &[u8],
        token: usize,
    ) -> f32 {
        self.check_form(prepared);
        assert!(head < prepared.num_heads, "a head that there are queries of");
        self.codec.rounding(prepared, head, codes, token)
    }

    fn check_form(&self, prepared: &PreparedQueries) {
        assert_eq!(prepared.form, Some((self.format, self.head_dim)), "queries for this coder");
    }
}

/// Where scores go.
#[derive(Debug)]
pub struct ScoreRows<'a> {
    /// `scores[head · stride + token]` is written; what lies between the rows is not.
    pub scores: &'a mut [f32],
    /// From one head's first score to the next's; at least the tokens that are scored.
    pub stride: usize,
    /// `[num_heads]`: raised to the largest score of each head; empty where nobody asks.
    pub maxima: &'a mut [f32],
}

impl PreparedQueries {
    /// Forgets what goes with the queries: they are others, or in another frame.
    fn reset(&mut self) {
        self.bias.clear();
        self.bias.resize(self.num_heads, 0.0);
        self.sums.clear();
        self.offsets.clear();
        self.steps.clear();
        self.rounding.clear();
    }

    /// Room for as many queries of the same length, to be scored exactly.
    fn exact(num_heads: usize, queries: &[f32]) -> Self {
        Self { num_heads, queries: queries.to_vec(), ..Self::default() }
    }

    /// What goes with the sums of a head: offset, sum of its query, bias, and 0.
    fn finals(&self, head: usize) -> [f32; 4] {
        let of = |values: &[f32]| values.get(head).copied().unwrap_or(0.0);
        [of(&self.offsets), of(&self.sums), of(&self.bias), 0.0]
    }

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

    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    pub(crate) fn steps(&self) -> &[f32] {
        &self.steps
    }

    pub(crate) fn entries(&self) -> &[u8] {
        &self.entries
    }

    pub(crate) fn words(&self) -> &[i16] {
        &self.words
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
    // All of them first, without a branch for each.
    if keys.iter().fold(true, |finite, x| finite & x.is_finite()) {
        return Ok(());
    }
    match keys.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(i) => {
            Err(Error::NotFinite { token: i / head_dim, channel: i % head_dim, value: keys[i] })
        }
    }
}

#[cfg(test)]
mod tests;
