//! What attention is measured on: exact rows on pages, and coded keys on pages.

use anyhow::Result;
use heterokv_attn::device::{
    AttendRows, Channel, Device, MergeStates, PreparePlanes, RowPart, RowSlot, ScorePlanes,
    ScoreRow, Select, SelectScratch, Span,
};
use heterokv_evict::{Rule, Selector, Union};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu, Paged, Paging};
use heterokv_quant::Tail;

use super::kernels::Shape;
use super::measured::{number, room, upload};

/// Tokens of a page of exact rows.
pub(super) const PAGE_TOKENS: usize = 64;

/// Exact rows of a KV head, whole and in parts, and states of them.
pub(super) struct RowStage {
    pub(super) memory: Buffer,
    pages: Buffer,
    parts: Buffer,
    num_parts: usize,
    pub(super) slots: Buffer,
    pub(super) outs: Buffer,
    lses: Buffer,
    first: Buffer,
    state_ids: Buffer,
}

/// Coded keys, their scores, and what is selected.
pub(super) struct CodeStage {
    pages: Paged,
    spans: Buffer,
    num_spans: usize,
    pub(super) tables: Buffer,
    finals: Buffer,
    channels: Buffer,
    planes: Buffer,
    pub(super) scores: Buffer,
    score_rows: Buffer,
    scratch: SelectScratch,
    num_taken: Buffer,
    positions: Buffer,
    pub(super) taken_scores: Buffer,
}

impl RowStage {
    pub(super) fn new(gpu: &Gpu, shape: &Shape) -> Result<Self> {
        let heads = shape.heads();
        let page_words = PAGE_TOKENS * heads.head_dim;
        let pages_of_head = shape.resident.div_ceil(PAGE_TOKENS);
        let num_pages = heads.num_kv_heads * pages_of_head;
        let pair = |i: usize| {
            let half = |x: f32| u32::from(half::f16::from_f32(x).to_bits());
            half(number(2 * i)) | half(number(2 * i + 1)) << 16
        };
        let memory: Vec<u32> = (0..num_pages * page_words).map(pair).collect();
        let pages: Vec<u32> = (0..num_pages).map(|page| (page * page_words) as u32).collect();
        let part_tokens = 8 * PAGE_TOKENS;
        let (mut parts, mut first, mut ids) = (Vec::new(), vec![0u32], Vec::new());
        for kv_head in 0..heads.num_kv_heads {
            let begin = parts.len() as u32;
            for start in (0..shape.resident).step_by(part_tokens) {
                let state = parts.len() as u32;
                parts.push(RowPart {
                    kv_head: kv_head as u32,
                    first_page: (kv_head * pages_of_head + start / PAGE_TOKENS) as u32,
                    num_tokens: part_tokens.min(shape.resident - start) as u32,
                    first_slot: 0,
                    state,
                });
            }
            // Its first and its last.
            ids.extend([begin, parts.len() as u32 - 1]);
            first.push(ids.len() as u32);
        }
        let slots: Vec<RowSlot> = (0..heads.num_kv_heads)
            .map(|head| RowSlot {
                token: 0,
                kv_head: head as u32,
                place: (head * pages_of_head * page_words) as u32,
            })
            .collect();
        let num_states = parts.len();
        Ok(Self {
            memory: upload(gpu, &memory)?,
            pages: upload(gpu, &pages)?,
            parts: upload(gpu, &parts)?,
            num_parts: num_states,
            slots: upload(gpu, &slots)?,
            outs: room(gpu, num_states * heads.group_size() * heads.head_dim)?,
            lses: room(gpu, num_states * heads.group_size())?,
            first: upload(gpu, &first)?,
            state_ids: upload(gpu, &ids)?,
        })
    }

    pub(super) fn attend(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
        q: Bound<'_>,
    ) -> Result<()> {
        let attend = AttendRows {
            shape: shape.heads(),
            page_tokens: PAGE_TOKENS,
            num_parts: self.num_parts,
            parts: Bound::all(&self.parts),
            pages: Bound::all(&self.pages),
            rows: Bound::all(&self.memory),
            q,
            writes_out: true,
            num_states: self.num_parts,
            out: Bound::all(&self.outs),
            lse: Bound::all(&self.lses),
        };
        Ok(device.attend_rows(commands, &attend)?)
    }

    pub(super) fn merge(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
        [out, lse]: [Bound<'_>; 2],
    ) -> Result<()> {
        let merge = MergeStates {
            shape: shape.heads(),
            num_states: self.num_parts,
            first: Bound::all(&self.first),
            ids: Bound::all(&self.state_ids),
            outs: Bound::all(&self.outs),
            lses: Bound::all(&self.lses),
            out,
            lse,
        };
        Ok(device.merge_states(commands, &merge)?)
    }
}

impl CodeStage {
    pub(super) fn new(gpu: &Gpu, shape: &Shape) -> Result<Self> {
        let heads = shape.heads();
        let num_planes = heads.head_dim;
        // Four strips of 32 tokens: planes of 16 bytes, a scale and a zero for each token.
        let page_bytes = 4 * (16 * num_planes + 128);
        let paging = Paging::new("codes", page_bytes as u64, gpu.limits().binding_bytes)?;
        let mut pages = Paged::new("codes", paging);
        let pages_of_head = shape.context.div_ceil(Span::TOKENS);
        let num_spans = heads.num_kv_heads * pages_of_head;
        pages.reserve(gpu, num_spans as u64)?;
        let page = Self::page(num_planes);
        let mut spans = Vec::with_capacity(num_spans);
        for page_number in 0..num_spans {
            pages.write(gpu, page_number as u64, 0, &page)?;
            let first = page_number % pages_of_head * Span::TOKENS;
            spans.push(Span {
                kv_head: (page_number / pages_of_head) as u32,
                place: paging.place(page_number as u64).word,
                num_tokens: Span::TOKENS.min(shape.context - first) as u32,
                first_token: first as u32,
            });
        }
        let channels: Vec<Channel> = (0..heads.num_kv_heads * heads.head_dim)
            .map(|i| Channel {
                order: (i % heads.head_dim) as u32,
                scale: 1.0,
                centre: 0.0,
                offset: 0.0,
            })
            .collect();
        let planes: Vec<u32> = (0..heads.num_kv_heads * num_planes)
            .map(|i| (i % num_planes) as u32 | 4 << 16)
            .collect();
        let score_rows: Vec<ScoreRow> = (0..heads.num_qo_heads)
            .map(|head| ScoreRow {
                start: (head * shape.context) as u32,
                num_tokens: shape.context as u32,
            })
            .collect();
        let kv_context = heads.num_kv_heads * shape.context;
        Ok(Self {
            pages,
            spans: upload(gpu, &spans)?,
            num_spans,
            tables: room(gpu, heads.num_qo_heads * num_planes * 16)?,
            finals: room(gpu, heads.num_qo_heads * 4)?,
            channels: upload(gpu, &channels)?,
            planes: upload(gpu, &planes)?,
            scores: room(gpu, heads.num_qo_heads * shape.context)?,
            score_rows: upload(gpu, &score_rows)?,
            scratch: SelectScratch::new(gpu, &heads, shape.context)?,
            num_taken: room(gpu, heads.num_kv_heads)?,
            positions: room(gpu, kv_context)?,
            taken_scores: room(gpu, heads.num_qo_heads * shape.context)?,
        })
    }

    /// A page of codes: every page is the same.
    fn page(num_planes: usize) -> Vec<u8> {
        let mut page = Vec::new();
        for strip in 0..4 {
            page.extend((0..16 * num_planes).map(|i| (i * 7 + i / 16 * 3 + strip * 5) as u8));
            // Scales of 1/128 and zeros of 0, f16.
            page.extend([0x00, 0x20].repeat(32));
            page.extend([0; 64]);
        }
        page
    }

    pub(super) fn prepare(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
        q: Bound<'_>,
    ) -> Result<()> {
        let heads = shape.heads();
        let gpu = device.gpu();
        let all: Vec<u32> = (0..heads.num_kv_heads as u32).collect();
        let [kv_heads, levels] = [upload(gpu, &all)?, upload(gpu, &[0.0f32])?];
        let prepare = PreparePlanes {
            shape: heads,
            num_heads: heads.num_kv_heads,
            num_planes: heads.head_dim,
            transform_block: 1,
            has_levels: false,
            kv_heads: Bound::all(&kv_heads),
            channels: Bound::all(&self.channels),
            planes: Bound::all(&self.planes),
            levels: Bound::all(&levels),
            q,
            tables: Bound::all(&self.tables),
            finals: Bound::all(&self.finals),
        };
        Ok(device.prepare_planes(commands, &prepare)?)
    }

    pub(super) fn score(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
    ) -> Result<()> {
        let heads = shape.heads();
        let slab_pages = self.pages.paging().slab_pages() as usize;
        for (slab, codes) in self.pages.slabs().iter().enumerate() {
            let end = ((slab + 1) * slab_pages).min(self.num_spans);
            // As many as a dispatch can have everywhere, in steps that a binding can begin at.
            for first in (slab * slab_pages..end).step_by(65_520) {
                let num_spans = (end - first).min(65_520);
                let span_bytes = size_of::<Span>() as u64;
                let (start, len) = (first as u64 * span_bytes, num_spans as u64 * span_bytes);
                let score = ScorePlanes {
                    group_size: heads.group_size(),
                    num_planes: heads.head_dim,
                    tail: Tail::ScaleZero,
                    score_stride: shape.context,
                    num_spans,
                    spans: Bound::part(&self.spans, start, len),
                    codes: Bound::all(codes),
                    tables: Bound::all(&self.tables),
                    finals: Bound::all(&self.finals),
                    scores: Bound::all(&self.scores),
                };
                device.score_planes(commands, &score)?;
            }
        }
        Ok(())
    }

    pub(super) fn select(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
    ) -> Result<()> {
        let heads = shape.heads();
        let selector = Selector::new(Rule::TopP(0.97), 0, usize::MAX)?;
        let gpu = device.gpu();
        let nothing = upload(gpu, &vec![f32::NEG_INFINITY; heads.num_qo_heads])?;
        let select = Select {
            shape: heads,
            max_tokens: shape.context,
            enough: selector.enough(),
            union: Union::Group,
            rows: Bound::all(&self.score_rows),
            scores: Bound::all(&self.scores),
            resident: Bound::all(&nothing),
            capacity: shape.context,
            num_taken: Bound::all(&self.num_taken),
            positions: Bound::all(&self.positions),
            taken_scores: Bound::all(&self.taken_scores),
        };
        Ok(device.select(commands, &select, &self.scratch)?)
    }

    /// The scores of some tokens of the first head, by the formula of the format.
    pub(super) fn check(
        &self,
        shape: &Shape,
        scores: &[f32],
        near: impl Fn(&str, f32, f64, f64) -> Result<()>,
    ) -> Result<()> {
        let heads = shape.heads();
        let page = Self::page(heads.head_dim);
        for token in [0, 1, 40, 127, shape.context - 1] {
            let (strip, slot) = (token % 128 / 32, token % 32);
            let strip = &page[strip * (16 * heads.head_dim + 128)..];
            let nibble = |plane: usize| {
                strip[16 * plane + slot % 8 * 2 + slot / 8 % 2] >> (slot / 16 * 4) & 15
            };
            let terms = (0..heads.head_dim)
                .map(|c| f64::from(heads.sm_scale * number(c)) * f64::from(nibble(c)) / 128.0);
            near(&format!("token {token}"), scores[token], terms.sum(), 1.0)?;
        }
        Ok(())
    }
}
