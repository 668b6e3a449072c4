//! Scores of coded keys that do not lie in nibble planes.

use bytemuck::{Pod, Zeroable};
use heterokv_gpu::{Bound, Commands};
use heterokv_quant::ChannelCodes;
use heterokv_shaders::{self as shaders, KeyForm, Variant};

use super::encode::channel_code_words;
use super::scores::{grid_of_spans, tail_of_shaders};
use super::{Device, DeviceError, DeviceResult, Launch, Operand, check_len, word};

/// Bits of a code of product quantization: of fewer there are nibble planes.
const GROUP_BITS: std::ops::RangeInclusive<usize> = 5..=12;

/// Scores of keys whose codes lie channel by channel, by the queries of
/// [`KeyCoder::channel_queries`](heterokv_quant::KeyCoder::channel_queries).
///
/// Of rows in f16, a [`Span`](super::Span) may begin at any token whose row begins with a word; of others, with a block.
#[derive(Clone, Copy, Debug)]
pub struct ScoreKeys<B> {
    /// Query heads of a KV head.
    pub group_size: usize,
    /// Channels of a head, in fours; of coded keys in eights.
    pub head_dim: usize,
    /// How keys are held.
    pub codes_form: ChannelCodes,
    /// From the scores of one head of a group to those of the next.
    pub score_stride: usize,
    /// Number of spans.
    pub num_spans: usize,
    /// [`Span`](super::Span) `[num_spans]`.
    pub spans: B,
    /// Blocks.
    pub codes: B,
    /// `[num_qo_heads, head_dim]`, f32.
    pub queries: B,
    /// `[num_qo_heads, 4]`, f32.
    pub finals: B,
    /// Scores `[num_qo_heads, score_stride]`, f32: token t of a span at `first_token + t` of the rows of its heads.
    pub scores: B,
}

/// Scores of keys under product quantization of more than 16 centroids, by the tables of
/// [`KeyCoder::group_tables`](heterokv_quant::KeyCoder::group_tables).
///
/// A [`Span`](super::Span) begins at a token whose row begins with a word.
#[derive(Clone, Copy, Debug)]
pub struct ScoreGroups<B> {
    /// Query heads of a KV head.
    pub group_size: usize,
    /// Groups of channels.
    pub num_groups: usize,
    /// Bits of a code, 5 to 12.
    pub code_bits: usize,
    /// From the scores of one head of a group to those of the next.
    pub score_stride: usize,
    /// Number of spans.
    pub num_spans: usize,
    /// [`Span`](super::Span) `[num_spans]`.
    pub spans: B,
    /// Rows.
    pub codes: B,
    /// `[num_qo_heads, num_groups, 2^code_bits]`, f32.
    pub tables: B,
    /// Scores `[num_qo_heads, score_stride]`, f32: token t of a span at `first_token + t` of the rows of its heads.
    pub scores: B,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ScoreKeysParams {
    group_size: u32,
    head_dim: u32,
    block_words: u32,
    score_stride: u32,
    tail: u32,
    bits: u32,
    group_tokens: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ScoreGroupsParams {
    group_size: u32,
    num_groups: u32,
    code_bits: u32,
    row_bytes: u32,
    score_stride: u32,
}

impl<B: Operand> ScoreKeys<B> {
    /// What runs. What the spans point at is the caller's to have right.
    ///
    /// # Errors
    /// [`DeviceError::Length`]; [`DeviceError::Shape`] for no query heads and for a `head_dim` that is not in fours.
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        const NAME: &str = "score_keys";
        let Self { group_size, head_dim, codes_form, score_stride, num_spans, .. } = *self;
        let grid = grid_of_spans(NAME, num_spans, group_size)?;
        let multiple_of = if codes_form == ChannelCodes::Halves { 4 } else { 8 };
        if !head_dim.is_multiple_of(multiple_of) {
            let (what, value) = ("a head_dim", head_dim as u64);
            let remedy = "it is made for whole fours, and eights of coded keys";
            return Err(DeviceError::Shape { operation: NAME, what, value, remedy });
        }
        let dim = word(NAME, "head_dim", head_dim as u64)?;
        let group_size_word = word(NAME, "group_size", group_size as u64)?;
        let of_form = |block_words| ScoreKeysParams {
            group_size: group_size_word,
            head_dim: dim,
            block_words,
            score_stride: 0,
            tail: 0,
            bits: 0,
            group_tokens: 0,
        };
        let (keys, params) = match codes_form {
            ChannelCodes::Halves => (KeyForm::Halves, of_form(dim / 2)),
            ChannelCodes::Bytes { tail } => {
                let (tail, tail_words) = tail_of_shaders(tail);
                let params = of_form(8 * dim + tail_words);
                (KeyForm::Bytes, ScoreKeysParams { tail, ..params })
            }
            ChannelCodes::Channels { bits, group_tokens } => {
                let words = channel_block_words(head_dim, bits, group_tokens);
                let params = of_form(word(NAME, "block words", words as u64)?);
                let (bits, group_tokens) = (bits.into(), group_tokens as u32);
                (KeyForm::Channels, ScoreKeysParams { bits, group_tokens, ..params })
            }
        };
        let score_stride = word(NAME, "a score_stride", score_stride as u64)?;
        let params = ScoreKeysParams { score_stride, ..params };
        check_len(NAME, "spans", &self.spans, 4 * num_spans as u64)?;
        check_len(NAME, "queries", &self.queries, (group_size * head_dim) as u64)?;
        check_len(NAME, "finals", &self.finals, 4 * group_size as u64)?;
        let buffers = [self.spans, self.codes, self.queries, self.finals, self.scores];
        let launch = Launch::new(&shaders::SCORE_KEYS, &params, buffers, grid);
        Ok(Launch { variant: Variant { keys, ..Variant::default() }, ..launch })
    }
}

impl<B: Operand> ScoreGroups<B> {
    /// What runs. What the spans point at is the caller's to have right.
    ///
    /// # Errors
    /// [`DeviceError::Length`]; [`DeviceError::Shape`] for no query heads and for codes of other widths.
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        const NAME: &str = "score_groups";
        let Self { group_size, num_groups, code_bits, score_stride, num_spans, .. } = *self;
        let grid = grid_of_spans(NAME, num_spans, group_size)?;
        if !GROUP_BITS.contains(&code_bits) {
            let (what, value) = ("bits of a code", code_bits as u64);
            let remedy = "it is made for 5 to 12; codes of 4 bits are scored by score_planes";
            return Err(DeviceError::Shape { operation: NAME, what, value, remedy });
        }
        let num_entries = (num_groups as u64) << code_bits;
        check_len(NAME, "spans", &self.spans, 4 * num_spans as u64)?;
        check_len(NAME, "tables", &self.tables, group_size as u64 * num_entries)?;
        let params = ScoreGroupsParams {
            group_size: word(NAME, "group_size", group_size as u64)?,
            num_groups: word(NAME, "groups", num_groups as u64)?,
            code_bits: code_bits as u32,
            row_bytes: word(NAME, "row bytes", (num_groups * code_bits).div_ceil(8) as u64)?,
            score_stride: word(NAME, "a score_stride", score_stride as u64)?,
        };
        let buffers = [self.spans, self.codes, self.tables, self.scores];
        Ok(Launch::new(&shaders::SCORE_GROUPS, &params, buffers, grid))
    }
}

impl Device {
    /// Adds [`ScoreKeys`] to `commands`.
    ///
    /// # Errors
    /// As [`ScoreKeys::launch`], [`DeviceError::Shape`] for more spans than a dispatch has workgroups, and those of the
    /// device.
    pub fn score_keys(
        &self,
        commands: &mut Commands<'_>,
        score: &ScoreKeys<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.check_spans("score_keys", score.num_spans)?;
        self.launch(commands, &score.launch()?)
    }

    /// Adds [`ScoreGroups`] to `commands`.
    ///
    /// # Errors
    /// As [`ScoreGroups::launch`], [`DeviceError::Shape`] for more spans than a dispatch has workgroups, and those of
    /// the device.
    pub fn score_groups(
        &self,
        commands: &mut Commands<'_>,
        score: &ScoreGroups<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.check_spans("score_groups", score.num_spans)?;
        self.launch(commands, &score.launch()?)
    }
}

/// Words of a block of integers with a scale and zero for each channel, which take two bytes together up to 4 bits.
fn channel_block_words(head_dim: usize, bits: u8, group_tokens: usize) -> usize {
    let header_words = if bits <= 4 { head_dim / 2 } else { head_dim };
    header_words + channel_code_words(head_dim, bits, group_tokens)
}

#[cfg(test)]
pub(super) fn twins() -> Vec<super::reflection::Twin> {
    super::reflection::twins! {
        Params of SCORE_KEYS = ScoreKeysParams {
            group_size, head_dim, block_words, score_stride, tail, bits, group_tokens
        };
        Params of SCORE_GROUPS =
            ScoreGroupsParams { group_size, num_groups, code_bits, row_bytes, score_stride };
    }
}
