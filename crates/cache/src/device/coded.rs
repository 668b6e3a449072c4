//! Coded keys on a device: those of the KV heads of a layer that share a format, their scores and what is selected.

use heterokv_attn::HeadShape;
use heterokv_attn::device::{
    Device, PreparePlanes, ScorePlanes, ScoreRow, Select, SelectScratch, Span,
};
use heterokv_evict::{Enough, Union};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu, Limits, Paged, Paging};
use heterokv_quant::{KeyCoder, KeyFormat, Level, QueryFrame};

use super::lists::GrowingList;
use crate::coded::CODE_PAGE_TOKENS;
use crate::{Error, Result};

const _: () = assert!(CODE_PAGE_TOKENS == Span::TOKENS, "a page is what a workgroup scores");

/// Spans of a dispatch: fewer than any device's workgroups in a dimension, and whole multiples of what a binding of
/// spans may begin at.
const DISPATCH_SPANS: usize = 65_520;

/// The coded keys of some KV heads of one layer.
#[derive(Debug)]
pub(super) struct CodedSet {
    /// KV heads of the layer, rising.
    heads: Vec<usize>,
    format: KeyFormat,
    most_planes: usize,
    members: Vec<Member>,
    pages: Paged,
    /// By page.
    spans: Vec<Span>,
    spans_on_device: Buffer,
    rows: GrowingList<ScoreRow>,
    /// What queries are brought into their frames with, once every member has a coder.
    frames: Option<Frames>,
}

/// The coded keys of one KV head.
#[derive(Debug, Default)]
struct Member {
    coder: Option<KeyCoder>,
    num_tokens: usize,
    /// The page that is not full yet, as the device has it.
    open: Vec<u8>,
    /// Its number.
    page: u64,
}

#[derive(Debug)]
struct Frames {
    num_planes: usize,
    tail: heterokv_quant::Tail,
    transform_block: usize,
    has_levels: bool,
    kv_heads: Buffer,
    channels: Buffer,
    planes: Buffer,
    levels: Buffer,
}

/// Memory that the sets of all layers use in turn.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Coded tokens of a head that there is room for.
    max_tokens: usize,
    tables: Buffer,
    finals: Buffer,
    scores: Buffer,
    select: SelectScratch,
    /// `[heads of a set · group_size]`: log-sum-exp of the resident tokens.
    pub(super) resident: Buffer,
    pub(super) num_taken: Buffer,
    pub(super) positions: Buffer,
    pub(super) taken_scores: Buffer,
}

/// What the sets of a cache need of [`Scratch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScratchShape {
    /// KV heads of the largest set.
    pub(super) heads: usize,
    /// Planes of the widest format.
    pub(super) planes: usize,
    /// Coded tokens of a head.
    pub(super) max_tokens: usize,
}

/// What a selection is made by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) shape: HeadShape,
    pub(super) enough: Enough,
    pub(super) union: Union,
}

impl CodedSet {
    /// No keys yet.
    pub(super) fn new(
        gpu: &Gpu,
        heads: Vec<usize>,
        format: KeyFormat,
        head_dim: usize,
    ) -> Result<Self> {
        if !format.has_query_frame(head_dim) {
            return Err(Error::NotOnDevice { format });
        }
        let layout = format.layout(head_dim)?;
        let page_bytes = layout.bytes(CODE_PAGE_TOKENS) as u64;
        let paging = Paging::new("key codes", page_bytes, gpu.limits().binding_bytes)?;
        let mut members = Vec::new();
        members.resize_with(heads.len(), Member::default);
        Ok(Self {
            heads,
            format,
            // What is not tails.
            most_planes: layout.block_bytes / 16,
            members,
            pages: Paged::new("key codes", paging),
            spans: Vec::new(),
            spans_on_device: gpu.buffer("spans of key codes", 0)?,
            rows: GrowingList::new(gpu, "rows of scores")?,
            frames: None,
        })
    }

    /// The KV heads.
    pub(super) fn heads(&self) -> &[usize] {
        &self.heads
    }

    /// Bytes of pages, with their spans.
    pub(super) fn page_bytes(&self) -> u64 {
        self.pages.num_bytes() + self.spans_on_device.num_bytes()
    }

    /// Bytes of what queries are prepared with.
    pub(super) fn frame_bytes(&self) -> u64 {
        let frames = self.frames.as_ref().map_or(0, Frames::num_bytes);
        frames + self.rows.buffer().num_bytes()
    }

    /// Planes of a strip at most, before the coders are there.
    pub(super) fn num_planes(&self) -> usize {
        self.most_planes
    }

    /// Coded tokens of the member that has most.
    pub(super) fn max_tokens(&self) -> usize {
        self.members.iter().map(|member| member.num_tokens).max().unwrap_or(0)
    }

    /// Coded tokens of a member.
    pub(super) fn num_tokens(&self, member: usize) -> usize {
        self.members[member].num_tokens
    }

    /// The coder of a member, once there is one.
    pub(super) fn coder(&self, member: usize) -> Option<&KeyCoder> {
        self.members[member].coder.as_ref()
    }

    /// Gives a member its coder; with the last one the frames go to the device.
    pub(super) fn set_coder(&mut self, gpu: &Gpu, member: usize, coder: KeyCoder) -> Result<()> {
        self.members[member].coder = Some(coder);
        let coders: Option<Vec<&KeyCoder>> =
            self.members.iter().map(|member| member.coder.as_ref()).collect();
        if let Some(coders) = coders {
            let frames: Option<Vec<QueryFrame>> =
                coders.iter().map(|coder| coder.query_frame()).collect();
            let frames = frames.ok_or(Error::NotOnDevice { format: self.format })?;
            self.frames = Some(Frames::new(gpu, &self.heads, &frames)?);
        }
        Ok(())
    }

    /// Makes room for so many tokens of every member.
    pub(super) fn reserve(&mut self, gpu: &Gpu, num_tokens: usize) -> Result<()> {
        self.reserve_pages(gpu, (self.heads.len() * num_tokens.div_ceil(CODE_PAGE_TOKENS)) as u64)
    }

    fn reserve_pages(&mut self, gpu: &Gpu, num_pages: u64) -> Result<()> {
        self.pages.reserve(gpu, num_pages)?;
        let span_bytes = num_pages * size_of::<Span>() as u64;
        if span_bytes > self.spans_on_device.num_bytes() {
            self.spans_on_device = gpu.buffer("spans of key codes", span_bytes)?;
            gpu.write(&self.spans_on_device, 0, bytemuck::cast_slice(&self.spans))?;
        }
        Ok(())
    }

    /// Encodes `keys [n, head_dim]`, n whole groups, behind those of a member; gives the bytes that crossed.
    pub(super) fn append(
        &mut self,
        gpu: &Gpu,
        level: Level,
        member: usize,
        keys: &[f32],
    ) -> Result<u64> {
        let coder =
            self.members[member].coder.clone().ok_or(Error::NotOnDevice { format: self.format })?;
        let (head_dim, layout) = (coder.head_dim(), coder.layout());
        let (mut rest, mut crossed) = (keys, 0);
        while !rest.is_empty() {
            let slot = self.members[member].num_tokens % CODE_PAGE_TOKENS;
            if slot == 0 {
                self.open_page(gpu, member, layout.bytes(CODE_PAGE_TOKENS))?;
            }
            let own = &mut self.members[member];
            let count = (CODE_PAGE_TOKENS - slot).min(rest.len() / head_dim);
            let (now, later) = rest.split_at(count * head_dim);
            coder.encode(level, slot, now, &mut own.open)?;
            // Whole blocks of tokens, of which the first may have been there in part.
            let first = layout.bytes(slot / layout.block_tokens * layout.block_tokens);
            let end = layout.bytes(slot + count);
            self.pages.write(gpu, own.page, first as u64, &own.open[first..end])?;
            own.num_tokens += count;
            let page = own.page as usize;
            self.spans[page].num_tokens = (slot + count) as u32;
            let span = bytemuck::bytes_of(&self.spans[page]);
            gpu.write(&self.spans_on_device, (page * size_of::<Span>()) as u64, span)?;
            crossed += (end - first + size_of::<Span>()) as u64;
            rest = later;
        }
        Ok(crossed)
    }

    fn open_page(&mut self, gpu: &Gpu, member: usize, page_bytes: usize) -> Result<()> {
        let page = self.spans.len() as u64;
        if page == self.pages.num_pages() {
            // Beyond what was planned: an eighth more, so that growing stays rare.
            self.reserve_pages(gpu, page + page / 8 + 1)?;
        }
        let own = &mut self.members[member];
        own.page = page;
        own.open.clear();
        own.open.resize(page_bytes, 0);
        self.spans.push(Span {
            kv_head: member as u32,
            place: self.pages.paging().place(page).word,
            num_tokens: 0,
            first_token: own.num_tokens as u32,
        });
        Ok(())
    }

    /// Adds the scores of queries `[num_qo_heads, head_dim]` against all keys, and the selection among them, given the
    /// log-sum-exp of the resident tokens in `scratch.resident`; gives the bytes that crossed.
    pub(super) fn select(
        &mut self,
        device: &Device,
        commands: &mut Commands<'_>,
        choice: Choice,
        q: Bound<'_>,
        scratch: &Scratch,
    ) -> Result<u64> {
        let Some(frames) = &self.frames else { return Ok(0) };
        let group_size = choice.shape.group_size();
        let num_heads = self.heads.len();
        frames.prepare(device, commands, choice.shape, num_heads, q, scratch)?;
        let spans = self.spans.len().min(self.pages.num_pages() as usize);
        let slab_pages = self.pages.paging().slab_pages() as usize;
        for (slab, codes) in self.pages.slabs().iter().enumerate() {
            let end = ((slab + 1) * slab_pages).min(spans);
            for first in (slab * slab_pages..end).step_by(DISPATCH_SPANS) {
                let num_spans = DISPATCH_SPANS.min(end - first);
                let bytes = size_of::<Span>() as u64;
                let score = ScorePlanes {
                    group_size,
                    num_planes: frames.num_planes,
                    tail: frames.tail,
                    score_stride: scratch.max_tokens,
                    num_spans,
                    spans: Bound::part(
                        &self.spans_on_device,
                        first as u64 * bytes,
                        num_spans as u64 * bytes,
                    ),
                    codes: Bound::all(codes),
                    tables: Bound::all(&scratch.tables),
                    finals: Bound::all(&scratch.finals),
                    scores: Bound::all(&scratch.scores),
                };
                device.score_planes(commands, &score)?;
            }
        }
        let rows = self.members.iter().enumerate().flat_map(|(member, own)| {
            (0..group_size).map(move |g| ScoreRow {
                start: ((member * group_size + g) * scratch.max_tokens) as u32,
                num_tokens: own.num_tokens as u32,
            })
        });
        let crossed = self.rows.set(device.gpu(), rows.collect())?;
        let shape = HeadShape {
            num_qo_heads: num_heads * group_size,
            num_kv_heads: num_heads,
            ..choice.shape
        };
        let select = Select {
            shape,
            max_tokens: self.max_tokens(),
            enough: choice.enough,
            union: choice.union,
            rows: Bound::all(self.rows.buffer()),
            scores: Bound::all(&scratch.scores),
            resident: Bound::all(&scratch.resident),
            capacity: scratch.max_tokens,
            num_taken: Bound::all(&scratch.num_taken),
            positions: Bound::all(&scratch.positions),
            taken_scores: Bound::all(&scratch.taken_scores),
        };
        device.select(commands, &select, &scratch.select)?;
        Ok(crossed)
    }
}

impl Frames {
    fn new(gpu: &Gpu, heads: &[usize], frames: &[QueryFrame]) -> Result<Self> {
        let Some(first) = frames.first() else {
            return Err(Error::Conflict { conflict: "a set of coded keys has KV heads" });
        };
        let kv_heads: Vec<u32> = heads.iter().map(|&head| head as u32).collect();
        let channels: Vec<_> = frames.iter().flat_map(PreparePlanes::channels_of).collect();
        let planes: Vec<u32> = frames.iter().flat_map(PreparePlanes::plane_words).collect();
        let levels = first.levels.unwrap_or_default();
        Ok(Self {
            num_planes: first.planes.len(),
            tail: first.tail,
            transform_block: first.transform_block,
            has_levels: first.levels.is_some(),
            kv_heads: gpu.upload("KV heads of a set", bytemuck::cast_slice(&kv_heads))?,
            channels: gpu.upload("channels of frames", bytemuck::cast_slice(&channels))?,
            planes: gpu.upload("planes of frames", bytemuck::cast_slice(&planes))?,
            levels: gpu.upload("codebook", bytemuck::cast_slice(&levels))?,
        })
    }

    fn num_bytes(&self) -> u64 {
        let buffers = [&self.kv_heads, &self.channels, &self.planes, &self.levels];
        buffers.iter().map(|buffer| buffer.num_bytes()).sum()
    }

    fn prepare(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: HeadShape,
        num_heads: usize,
        q: Bound<'_>,
        scratch: &Scratch,
    ) -> Result<()> {
        let prepare = PreparePlanes {
            shape,
            num_heads,
            num_planes: self.num_planes,
            transform_block: self.transform_block,
            has_levels: self.has_levels,
            kv_heads: Bound::all(&self.kv_heads),
            channels: Bound::all(&self.channels),
            planes: Bound::all(&self.planes),
            levels: Bound::all(&self.levels),
            q,
            tables: Bound::all(&scratch.tables),
            finals: Bound::all(&scratch.finals),
        };
        Ok(device.prepare_planes(commands, &prepare)?)
    }
}

impl ScratchShape {
    /// Bytes of [`Scratch::new`].
    pub(super) fn bytes(&self, shape: HeadShape) -> u64 {
        let queries = self.heads * shape.group_size();
        let words = queries * (self.planes * 16 + 4)
            + 2 * queries * self.max_tokens
            + self.heads * self.max_tokens
            + queries
            + self.heads;
        4 * words as u64 + SelectScratch::bytes(&self.heads_of(shape), self.max_tokens)
    }

    /// Coded tokens of a head that there can be room for.
    pub(super) fn max_tokens(&self, shape: HeadShape, limits: Limits) -> usize {
        let queries = self.heads * shape.group_size();
        (limits.binding_bytes as usize / (4 * queries.max(1))).min(SelectScratch::MAX_TOKENS)
    }

    fn heads_of(&self, shape: HeadShape) -> HeadShape {
        let num_qo_heads = self.heads * shape.group_size();
        HeadShape { num_qo_heads, num_kv_heads: self.heads, ..shape }
    }
}

impl Scratch {
    pub(super) fn new(gpu: &Gpu, shape: HeadShape, size: ScratchShape) -> Result<Self> {
        let ScratchShape { heads, planes, max_tokens } = size;
        let queries = heads * shape.group_size();
        let buffer = |label, words: usize| gpu.buffer(label, 4 * words as u64);
        Ok(Self {
            max_tokens,
            tables: buffer("tables of queries", queries * planes * 16)?,
            finals: buffer("finals of queries", queries * 4)?,
            scores: buffer("scores", queries * max_tokens)?,
            select: SelectScratch::new(gpu, &size.heads_of(shape), max_tokens)?,
            resident: buffer("resident lse", queries)?,
            num_taken: buffer("tokens taken", heads)?,
            positions: buffer("positions taken", heads * max_tokens)?,
            taken_scores: buffer("scores taken", queries * max_tokens)?,
        })
    }

    /// Coded tokens of a head that there is room for.
    pub(super) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// What the last selection knows of its heads: see [`SelectScratch::lses`].
    pub(super) fn choices(&self) -> &Buffer {
        self.select.choices()
    }
}
