//! Scores of coded keys on a device.

use bytemuck::{Pod, Zeroable};
use heterokv_gpu::{Bound, Commands};
use heterokv_quant::Tail;
use heterokv_shaders as shaders;

use super::{Device, DeviceError, DeviceResult, WeightForm, check_len, word};

/// Tokens of a span at most, and query heads that a workgroup scores at a time.
const SPAN_TOKENS: usize = 128;
const HEADS: usize = 8;

/// Words of a plane of a strip of 32 tokens.
const PLANE_WORDS: usize = 4;

/// Some coded tokens of a KV head whose strips follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Span {
    /// The KV head.
    pub kv_head: u32,
    /// Where its first strip begins, in words of 4 bytes.
    pub place: u32,
    /// Its tokens, at most [`Span::TOKENS`].
    pub num_tokens: u32,
    /// Where the score of its first token goes, of the first head of the group.
    pub score_at: u32,
}

impl Span {
    /// Tokens at most.
    pub const TOKENS: usize = SPAN_TOKENS;
}

/// Scores of coded keys that lie in nibble planes, by the tables of
/// [`KeyCoder::plane_tables`](heterokv_quant::KeyCoder::plane_tables).
#[derive(Clone, Copy, Debug)]
pub struct ScorePlanes<'a> {
    /// Query heads of a KV head.
    pub group_size: usize,
    /// Planes of a strip.
    pub num_planes: usize,
    /// What follows them.
    pub tail: Tail,
    /// From the scores of one head of a group to those of the next.
    pub score_stride: usize,
    /// Number of spans.
    pub num_spans: usize,
    /// [`Span`] `[num_spans]`.
    pub spans: Bound<'a>,
    /// Strips.
    pub codes: Bound<'a>,
    /// `[num_qo_heads, num_planes, 16]`, f32.
    pub tables: Bound<'a>,
    /// `[num_qo_heads, 4]`, f32.
    pub finals: Bound<'a>,
    /// Scores, f32: token t and head h of the group of a span at `score_at + h · score_stride + t`.
    pub scores: Bound<'a>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ScorePlanesParams {
    group_size: u32,
    num_planes: u32,
    strip_words: u32,
    tail: u32,
    score_stride: u32,
}

impl Device {
    /// Adds [`ScorePlanes`] to `commands`. What the spans point at is the caller's to have right.
    ///
    /// # Errors
    /// [`DeviceError::Length`], [`DeviceError::Shape`] for no query heads.
    pub fn score_planes(
        &self,
        commands: &mut Commands<'_>,
        score: &ScorePlanes<'_>,
    ) -> DeviceResult<()> {
        const NAME: &str = "score_planes";
        let ScorePlanes { group_size, num_planes, tail, score_stride, num_spans, .. } = *score;
        if group_size == 0 {
            let (what, remedy) = ("a group_size", "a KV head has query heads");
            return Err(DeviceError::Shape { operation: NAME, what, value: 0, remedy });
        }
        let (tail, tail_words) = match tail {
            Tail::None => (0, 0),
            Tail::Scale => (1, 16),
            Tail::ScaleZero => (2, 32),
            Tail::Exponent => (3, 8),
        };
        check_len(NAME, "spans", &score.spans, 4 * num_spans as u64)?;
        check_len(NAME, "tables", &score.tables, (group_size * num_planes * 16) as u64)?;
        check_len(NAME, "finals", &score.finals, 4 * group_size as u64)?;
        let kernel = self.kernel(&shaders::SCORE_PLANES, WeightForm::default())?;
        let params = ScorePlanesParams {
            group_size: word(NAME, "group_size", group_size as u64)?,
            num_planes: word(NAME, "planes", num_planes as u64)?,
            strip_words: word(NAME, "planes", (num_planes * PLANE_WORDS) as u64)? + tail_words,
            tail,
            score_stride: word(NAME, "a score_stride", score_stride as u64)?,
        };
        let buffers = [score.spans, score.codes, score.tables, score.finals, score.scores];
        let groups = word(NAME, "group_size", group_size.div_ceil(HEADS) as u64)?;
        let [wide, high] = self.spread(num_spans as u64);
        if high > 1 {
            return Err(DeviceError::Shape {
                operation: NAME,
                what: "spans",
                value: num_spans as u64,
                remedy: "a dispatch has as many workgroups at most; score them in parts",
            });
        }
        let grid = if num_spans == 0 { [0; 3] } else { [wide, groups, 1] };
        commands.dispatch(&kernel, &params, &buffers, grid)?;
        Ok(())
    }
}
