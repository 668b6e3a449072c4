//! Scores of coded keys on a device.

use bytemuck::{Pod, Zeroable};
use heterokv_gpu::{Bound, Commands};
use heterokv_quant::{CodePlane, FrameCodes, QueryFrame, Tail};
use heterokv_shaders::{self as shaders, Arithmetic, Variant};

use super::{Device, DeviceError, DeviceResult, Launch, MAX_HEAD_DIM, Operand, check_len, word};
use crate::HeadShape;

const NAME: &str = "score_planes";

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
    /// The place of its first token in the rows of scores.
    pub first_token: u32,
}

impl Span {
    /// Tokens at most.
    pub const TOKENS: usize = SPAN_TOKENS;
}

/// Scores of coded keys that lie in nibble planes, by the tables of
/// [`KeyCoder::plane_tables`](heterokv_quant::KeyCoder::plane_tables).
#[derive(Clone, Copy, Debug)]
pub struct ScorePlanes<B> {
    /// Query heads of a KV head.
    pub group_size: usize,
    /// Planes of a strip.
    pub num_planes: usize,
    /// What follows them.
    pub tail: Tail,
    /// From the scores of one query head to those of the next.
    pub score_stride: usize,
    /// Number of spans.
    pub num_spans: usize,
    /// [`Span`] `[num_spans]`.
    pub spans: B,
    /// Strips.
    pub codes: B,
    /// `[num_qo_heads, num_planes, 16]`, f32.
    pub tables: B,
    /// `[num_qo_heads, 4]`, f32.
    pub finals: B,
    /// Scores `[num_qo_heads, score_stride]`, f32: token t of a span at `first_token + t` of the rows of its heads.
    pub scores: B,
}

/// What a frame of queries knows of a channel: a [`FrameChannel`](heterokv_quant::FrameChannel), as kernels read it.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Channel {
    /// The channel at this coded position.
    pub order: u32,
    /// What the query is multiplied by there.
    pub scale: f32,
    /// What the key is about in the channel of this number.
    pub centre: f32,
    /// What the query, in the frame, adds to the offset.
    pub offset: f32,
}

/// Queries in the [`QueryFrame`]s of their coders: as the tables of [`ScorePlanes`], or, where codes lie channel by
/// channel, as the queries of [`ScoreKeys`](super::ScoreKeys).
#[derive(Clone, Copy, Debug)]
pub struct FrameQueries<B> {
    /// The heads of the layer.
    pub shape: HeadShape,
    /// KV heads whose tables are made, in an order of their own.
    pub num_heads: usize,
    /// Planes of a strip, as many for each of them; none where codes lie channel by channel.
    pub num_planes: usize,
    /// [`QueryFrame::transform_block`], the same for each of them.
    pub transform_block: usize,
    /// Whether a part of a nibble stands for an entry of `levels`, and not for itself.
    pub has_levels: bool,
    /// Which KV heads `[num_heads]`, u32.
    pub kv_heads: B,
    /// [`Channel`] `[num_heads, head_dim]`.
    pub channels: B,
    /// [`FrameQueries::plane_words`] `[num_heads, num_planes]`; a word where there are none.
    pub planes: B,
    /// `[16]`, f32; a word where there are none.
    pub levels: B,
    /// Post-RoPE queries `[num_qo_heads, head_dim]`, f32.
    pub q: B,
    /// `[num_heads, group_size, num_planes, 16]`, f32; without planes the queries `[num_heads, group_size, head_dim]`.
    pub tables: B,
    /// `[num_heads, group_size, 4]`, f32.
    pub finals: B,
}

impl FrameQueries<()> {
    /// The channels of a frame, as the kernel reads them.
    pub fn channels_of(frame: &QueryFrame) -> impl Iterator<Item = Channel> {
        frame.channels.iter().map(|channel| Channel {
            order: channel.order.into(),
            scale: channel.scale,
            centre: channel.centre,
            offset: channel.offset,
        })
    }

    /// The planes of a frame, a word each; none where it has none.
    pub fn plane_words(frame: &QueryFrame) -> impl Iterator<Item = u32> {
        let planes = match &frame.codes {
            FrameCodes::Planes { planes, .. } => &planes[..],
            FrameCodes::Channels(_) => &[],
        };
        planes.iter().map(plane_word)
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct FrameQueriesParams {
    head_dim: u32,
    group_size: u32,
    num_planes: u32,
    block: u32,
    has_levels: u32,
    sm_scale: f32,
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

impl<B: Operand> ScorePlanes<B> {
    /// What runs. What the spans point at is the caller's to have right.
    ///
    /// # Errors
    /// [`DeviceError::Length`], [`DeviceError::Shape`] for no query heads.
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        let Self { group_size, num_planes, tail, score_stride, num_spans, .. } = *self;
        let (tail, tail_words) = tail_of_shaders(tail);
        check_len(NAME, "spans", &self.spans, 4 * num_spans as u64)?;
        check_len(NAME, "tables", &self.tables, (group_size * num_planes * 16) as u64)?;
        check_len(NAME, "finals", &self.finals, 4 * group_size as u64)?;
        let params = ScorePlanesParams {
            group_size: word(NAME, "group_size", group_size as u64)?,
            num_planes: word(NAME, "planes", num_planes as u64)?,
            strip_words: word(NAME, "planes", (num_planes * PLANE_WORDS) as u64)? + tail_words,
            tail,
            score_stride: word(NAME, "a score_stride", score_stride as u64)?,
        };
        let buffers = [self.spans, self.codes, self.tables, self.finals, self.scores];
        let grid = grid_of_spans(NAME, num_spans, group_size)?;
        Ok(Launch::new(&shaders::SCORE_PLANES, &params, buffers, grid))
    }
}

impl<B: Operand> FrameQueries<B> {
    /// What runs. Which KV heads and channels are named is the caller's to have right.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and [`DeviceError::Shape`] for a `head_dim` above 256.
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        const NAME: &str = "frame_queries";
        let Self { num_heads, num_planes, transform_block, has_levels, .. } = *self;
        let HeadShape { num_qo_heads, head_dim, sm_scale, .. } = self.shape;
        let group_size = self.shape.group_size();
        if head_dim > MAX_HEAD_DIM {
            return Err(DeviceError::Shape {
                operation: NAME,
                what: "a head_dim",
                value: head_dim as u64,
                remedy: "it is made for at most 256",
            });
        }
        let num_queries = num_heads * group_size;
        check_len(NAME, "kv_heads", &self.kv_heads, num_heads as u64)?;
        check_len(NAME, "channels", &self.channels, (4 * num_heads * head_dim) as u64)?;
        check_len(NAME, "planes", &self.planes, (num_heads * num_planes) as u64)?;
        check_len(NAME, "levels", &self.levels, if has_levels { 16 } else { 1 })?;
        check_len(NAME, "q", &self.q, (num_qo_heads * head_dim) as u64)?;
        let row_len = if num_planes == 0 { head_dim } else { num_planes * 16 };
        check_len(NAME, "tables", &self.tables, (num_queries * row_len) as u64)?;
        check_len(NAME, "finals", &self.finals, 4 * num_queries as u64)?;
        let params = FrameQueriesParams {
            head_dim: head_dim as u32,
            group_size: group_size as u32,
            num_planes: word(NAME, "planes", num_planes as u64)?,
            block: word(NAME, "a block", transform_block as u64)?,
            has_levels: u32::from(has_levels),
            sm_scale,
        };
        let Self { kv_heads, channels, planes, levels, q, tables, finals, .. } = *self;
        let buffers = [kv_heads, channels, planes, levels, q, tables, finals];
        let grid = [num_queries as u32, 1, 1];
        Ok(Launch::new(&shaders::FRAME_QUERIES, &params, buffers, grid))
    }
}

impl Device {
    /// Adds [`FrameQueries`] to `commands`.
    ///
    /// # Errors
    /// As [`FrameQueries::launch`], and those of the device.
    pub fn frame_queries(
        &self,
        commands: &mut Commands<'_>,
        prepare: &FrameQueries<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.launch(commands, &prepare.launch()?)
    }

    /// Adds [`ScorePlanes`] to `commands`.
    ///
    /// # Errors
    /// As [`ScorePlanes::launch`], [`DeviceError::Shape`] for more spans than a dispatch has workgroups, and those of
    /// the device.
    pub fn score_planes(
        &self,
        commands: &mut Commands<'_>,
        score: &ScorePlanes<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.score_planes_in(commands, score, Arithmetic::F32)
    }

    /// The same for scores that only select: the terms of sixteen planes are added in half precision. The head of the
    /// shader bounds what that does; terms and their sums must stay within ±65,504.
    ///
    /// # Errors
    /// As [`Device::score_planes`], and [`DeviceError::NoHalf`] where the device does not compute in it
    /// ([`Gpu::has_f16`](heterokv_gpu::Gpu::has_f16)).
    pub fn score_planes_to_select(
        &self,
        commands: &mut Commands<'_>,
        score: &ScorePlanes<Bound<'_>>,
    ) -> DeviceResult<()> {
        if !self.gpu().has_f16() {
            let adapter = self.gpu().summary().name.clone();
            return Err(DeviceError::NoHalf { operation: NAME, adapter });
        }
        self.score_planes_in(commands, score, Arithmetic::F16)
    }

    fn score_planes_in(
        &self,
        commands: &mut Commands<'_>,
        score: &ScorePlanes<Bound<'_>>,
        arithmetic: Arithmetic,
    ) -> DeviceResult<()> {
        self.check_spans(NAME, score.num_spans)?;
        let variant = Variant { arithmetic, ..Variant::default() };
        self.launch(commands, &Launch { variant, ..score.launch()? })
    }

    /// Whether a dispatch has a workgroup for each of so many spans.
    pub(super) fn check_spans(
        &self,
        operation: &'static str,
        num_spans: usize,
    ) -> DeviceResult<()> {
        if num_spans <= self.gpu().limits().grid as usize {
            return Ok(());
        }
        Err(DeviceError::Shape {
            operation,
            what: "spans",
            value: num_spans as u64,
            remedy: "a dispatch has as many workgroups at most; score them in parts",
        })
    }
}

/// A workgroup for each span and a few query heads of its group.
pub(super) fn grid_of_spans(
    operation: &'static str,
    num_spans: usize,
    group_size: usize,
) -> DeviceResult<[u32; 3]> {
    if group_size == 0 {
        let (what, remedy) = ("a group_size", "a KV head has query heads");
        return Err(DeviceError::Shape { operation, what, value: 0, remedy });
    }
    let groups = word(operation, "group_size", group_size.div_ceil(HEADS) as u64)?;
    Ok([word(operation, "spans", num_spans as u64)?, groups, 1])
}

/// A plane as kernels read it.
pub(super) fn plane_word(plane: &CodePlane) -> u32 {
    plane.first_channel | u32::from(plane.bits) << 16 | u32::from(plane.shift) << 24
}

/// What shaders call a tail, and its words in a strip.
pub(super) fn tail_of_shaders(tail: Tail) -> (u32, u32) {
    match tail {
        Tail::None => (0, 0),
        Tail::Scale => (1, 16),
        Tail::ScaleZero => (2, 32),
        Tail::Exponent => (3, 8),
    }
}

#[cfg(test)]
pub(super) fn twins() -> Vec<super::reflection::Twin> {
    super::reflection::twins! {
        Params of SCORE_PLANES =
            ScorePlanesParams { group_size, num_planes, strip_words, tail, score_stride };
        Span of SCORE_PLANES, SCORE_KEYS, SCORE_GROUPS =
            Span { kv_head, place, num_tokens, first_token };
        Params of FRAME_QUERIES =
            FrameQueriesParams { head_dim, group_size, num_planes, block, has_levels, sm_scale };
        Channel of FRAME_QUERIES = Channel { order, scale, centre, offset };
    }
}
