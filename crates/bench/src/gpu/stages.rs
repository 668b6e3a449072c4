//! What attention is measured on: exact rows on pages, and coded keys on pages.

use anyhow::{Context, Result, ensure};
use half::f16;
use heterokv_attn::device::{
    AttendRows, Channel, Device, FrameQueries, MergeStates, RowPart, RowSlot, ScorePlanes,
    ScoreRow, Select, SelectScratch,
};
use heterokv_evict::{Rule, Selector, Union};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu};
use heterokv_quant::Tail;

use super::answers::{attended, read};
use super::kernels::Shape;
use super::measured::{V_FIRST, near, number, room, upload};
use super::pages::{CodePages, Scored};

/// Tokens of a page of exact rows.
pub(super) const PAGE_TOKENS: usize = 64;

/// The share of all weights that a selection takes.
const TOP_P: f32 = 0.97;

/// Exact rows of a KV head, whole and in parts, and states of them.
pub(super) struct RowStage {
    pub(super) memory: Buffer,
    pages: Buffer,
    parts: Buffer,
    /// They have a state each, in their order.
    of_parts: Vec<RowPart>,
    pub(super) slots: Buffer,
    outs: Buffer,
    lses: Buffer,
    first: Buffer,
    state_ids: Buffer,
}

/// Coded keys, their scores, and what is selected.
pub(super) struct CodeStage {
    pages: CodePages,
    tables: Buffer,
    finals: Buffer,
    channels: Buffer,
    planes: Buffer,
    score_rows: Buffer,
    scratch: SelectScratch,
    num_taken: Buffer,
    positions: Buffer,
    taken_scores: Buffer,
}

impl RowStage {
    pub(super) fn new(gpu: &Gpu, shape: &Shape) -> Result<Self> {
        let heads = shape.heads();
        let page_words = PAGE_TOKENS * heads.head_dim;
        let pages_of_head = shape.resident.div_ceil(PAGE_TOKENS);
        let num_pages = heads.num_kv_heads * pages_of_head;
        let pair = |i: usize| {
            let half = |x: f32| u32::from(f16::from_f32(x).to_bits());
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
            of_parts: parts,
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
            num_parts: self.of_parts.len(),
            parts: Bound::all(&self.parts),
            pages: Bound::all(&self.pages),
            rows: Bound::all(&self.memory),
            q,
            writes_out: true,
            num_states: self.of_parts.len(),
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
            num_states: self.of_parts.len(),
            first: Bound::all(&self.first),
            ids: Bound::all(&self.state_ids),
            outs: Bound::all(&self.outs),
            lses: Bound::all(&self.lses),
            out,
            lse,
        };
        Ok(device.merge_states(commands, &merge)?)
    }

    /// The second token of the last KV head, in the place of its first.
    pub(super) fn check_stored(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        let head = shape.num_kv_heads - 1;
        let part = self.of_parts.iter().find(|part| part.kv_head as usize == head);
        let [keys, values] = stored(gpu, &self.memory, shape, part.context("a head has rows")?)?;
        let row = (shape.num_kv_heads + head) * shape.head_dim;
        for (what, actual, first) in [("key", &keys[0], row), ("value", &values[0], V_FIRST + row)]
        {
            for (channel, actual) in actual.iter().enumerate() {
                // To within half precision.
                let right = number(first + channel).into();
                near(&format!("channel {channel} of the {what}"), *actual as f32, right, 10.0)?;
            }
        }
        Ok(())
    }

    /// Of the first part the state of its first query head, of the last that of its last.
    pub(super) fn check_attended(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        let (heads, last) = (shape.heads(), self.of_parts.len() - 1);
        for (state, of_group) in [(0, 0), (last, heads.group_size() - 1)] {
            let part = &self.of_parts[state];
            let [keys, values] = stored(gpu, &self.memory, shape, part)?;
            let head = part.kv_head as usize * heads.group_size() + of_group;
            let query = |c: usize| f64::from(number(head * heads.head_dim + c));
            let (out, lse) = attended(query, &keys, &values, heads.sm_scale);
            let at = state * heads.group_size() + of_group;
            let actual = self.state(gpu, shape, at)?;
            near_state(&format!("state {state}"), actual, (out, lse))?;
        }
        Ok(())
    }

    /// The states of the first query head, merged, and those of the last.
    pub(super) fn check_merged(
        &self,
        gpu: &Gpu,
        shape: &Shape,
        [out, lse]: [&Buffer; 2],
    ) -> Result<()> {
        let heads = shape.heads();
        for head in [0, heads.num_qo_heads - 1] {
            let (kv_head, of_group) = (head / heads.group_size(), head % heads.group_size());
            let of_head = |part: &RowPart| part.kv_head as usize == kv_head;
            let ends =
                [self.of_parts.iter().position(of_head), self.of_parts.iter().rposition(of_head)];
            let (mut sum, mut right) = (0.0, vec![0.0; heads.head_dim]);
            for state in ends.into_iter().flatten() {
                let (out, lse) = self.state(gpu, shape, state * heads.group_size() + of_group)?;
                let weight = f64::from(lse).exp();
                sum += weight;
                right.iter_mut().zip(out).for_each(|(sum, x)| *sum += weight * f64::from(x));
            }
            right.iter_mut().for_each(|x| *x /= sum);
            let out = read(gpu, out, head * heads.head_dim, heads.head_dim)?;
            let lse: Vec<f32> = read(gpu, lse, head, 1)?;
            near_state(&format!("head {head}"), (out, lse[0]), (right, sum.ln()))?;
        }
        Ok(())
    }

    /// The output and log-sum-exp of a query head in a state.
    fn state(&self, gpu: &Gpu, shape: &Shape, at: usize) -> Result<(Vec<f32>, f32)> {
        let lse: Vec<f32> = read(gpu, &self.lses, at, 1)?;
        Ok((read(gpu, &self.outs, at * shape.head_dim, shape.head_dim)?, lse[0]))
    }
}

/// Keys and values of a part, as they are in memory.
fn stored(gpu: &Gpu, memory: &Buffer, shape: &Shape, part: &RowPart) -> Result<[Vec<Vec<f64>>; 2]> {
    let (head_dim, num_tokens) = (shape.head_dim, part.num_tokens as usize);
    let page_len = 2 * PAGE_TOKENS * head_dim;
    let first = part.first_page as usize * page_len;
    let halves: Vec<u16> = read(gpu, memory, first, num_tokens.div_ceil(PAGE_TOKENS) * page_len)?;
    let rows = |before: usize| {
        let row = |token: usize| {
            let at = token / PAGE_TOKENS * page_len + before + token % PAGE_TOKENS * head_dim;
            halves[at..at + head_dim].iter().map(|bits| f16::from_bits(*bits).to_f64()).collect()
        };
        (0..num_tokens).map(row).collect()
    };
    Ok([rows(0), rows(PAGE_TOKENS * head_dim)])
}

fn near_state(what: &str, actual: (Vec<f32>, f32), right: (Vec<f64>, f64)) -> Result<()> {
    for (channel, (actual, right)) in actual.0.into_iter().zip(right.0).enumerate() {
        near(&format!("channel {channel} of {what}"), actual, right, 0.1)?;
    }
    near(&format!("the lse of {what}"), actual.1, right.1, 1.0)
}

impl CodeStage {
    pub(super) fn new(gpu: &Gpu, shape: &Shape) -> Result<Self> {
        let heads = shape.heads();
        let num_planes = heads.head_dim;
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
            pages: CodePages::new(gpu, shape, &vec![Self::page(num_planes); heads.num_kv_heads])?,
            tables: room(gpu, heads.num_qo_heads * num_planes * 16)?,
            finals: room(gpu, heads.num_qo_heads * 4)?,
            channels: upload(gpu, &channels)?,
            planes: upload(gpu, &planes)?,
            score_rows: upload(gpu, &score_rows)?,
            scratch: SelectScratch::new(gpu, &heads, shape.context)?,
            num_taken: room(gpu, heads.num_kv_heads)?,
            positions: room(gpu, kv_context)?,
            taken_scores: room(gpu, heads.num_qo_heads * shape.context)?,
        })
    }

    /// A page of codes: four strips of 32 tokens, each planes of 16 bytes, a scale and a zero for each token.
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
        let prepare = FrameQueries {
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
        Ok(device.frame_queries(commands, &prepare)?)
    }

    pub(super) fn score(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
    ) -> Result<()> {
        for Scored { num_spans, spans, codes } in self.pages.dispatches() {
            let score = ScorePlanes {
                group_size: shape.heads().group_size(),
                num_planes: shape.head_dim,
                tail: Tail::ScaleZero,
                score_stride: shape.context,
                num_spans,
                spans,
                codes,
                tables: Bound::all(&self.tables),
                finals: Bound::all(&self.finals),
                scores: Bound::all(&self.pages.scores),
            };
            device.score_planes(commands, &score)?;
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
        let selector = Selector::new(Rule::TopP(TOP_P), 0, usize::MAX)?;
        let gpu = device.gpu();
        let nothing = upload(gpu, &vec![f32::NEG_INFINITY; heads.num_qo_heads])?;
        let select = Select {
            shape: heads,
            max_tokens: shape.context,
            enough: selector.enough()?,
            union: Union::Group,
            rows: Bound::all(&self.score_rows),
            scores: Bound::all(&self.pages.scores),
            resident: Bound::all(&nothing),
            capacity: shape.context,
            num_taken: Bound::all(&self.num_taken),
            positions: Bound::all(&self.positions),
            taken_scores: Bound::all(&self.taken_scores),
        };
        Ok(device.select(commands, &select, &self.scratch)?)
    }

    /// A nibble stands for itself, and nothing is added but zeros.
    pub(super) fn check_tables(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        let heads = shape.heads();
        let query = |i: usize| f64::from(heads.sm_scale) * f64::from(number(i));
        let tables: Vec<f32> = read(gpu, &self.tables, 0, heads.qo_row_len() * 16)?;
        for (at, entry) in tables.into_iter().enumerate() {
            near(&format!("entry {at}"), entry, query(at / 16) * (at % 16) as f64, 1.0)?;
        }
        let finals: Vec<[f32; 4]> = read(gpu, &self.finals, 0, heads.num_qo_heads)?;
        for (head, finals) in finals.into_iter().enumerate() {
            let sum = (head * heads.head_dim..(head + 1) * heads.head_dim).map(query).sum();
            for (actual, right) in finals.into_iter().zip([0.0, sum, 0.0, 0.0]) {
                near(&format!("what ends head {head}"), actual, right, 1.0)?;
            }
        }
        Ok(())
    }

    /// What the first group takes: of each query head the tokens of the largest weights, until they are enough.
    pub(super) fn check_selected(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        let (group_size, context) = (shape.heads().group_size(), shape.context);
        let scores: Vec<f32> = read(gpu, &self.pages.scores, 0, group_size * context)?;
        let mut right = vec![false; context];
        for scores in scores.chunks_exact(context) {
            let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weight = |token: usize| (f64::from(scores[token]) - f64::from(highest)).exp();
            let mut order: Vec<usize> = (0..context).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            let all: f64 = (0..context).map(weight).sum();
            let mut sum = 0.0;
            for token in order {
                if sum >= f64::from(TOP_P) * all {
                    break;
                }
                sum += weight(token);
                right[token] = true;
            }
        }
        let num_taken: Vec<u32> = read(gpu, &self.num_taken, 0, 1)?;
        let num_taken = num_taken[0] as usize;
        ensure!(num_taken <= context, "{num_taken} tokens are taken");
        let positions: Vec<u32> = read(gpu, &self.positions, 0, num_taken)?;
        let taken: Vec<f32> = read(gpu, &self.taken_scores, 0, num_taken)?;
        ensure!(positions.is_sorted_by(|a, b| a < b), "positions do not rise");
        let num_right = right.iter().filter(|is_right| **is_right).count();
        let mut num_common = 0;
        for (position, score) in positions.into_iter().zip(taken) {
            let is_right = right.get(position as usize).context("a position is beyond all")?;
            num_common += usize::from(*is_right);
            near("a score", score, scores[position as usize].into(), 0.0)?;
        }
        // Where the last of them decides by a rounding.
        let num_others = num_right + num_taken - 2 * num_common;
        ensure!(num_others <= 2 + num_right / 200, "{num_others} of {num_right} tokens are others");
        Ok(())
    }

    /// Scores by the formula of the format.
    pub(super) fn check_scores(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        let heads = shape.heads();
        let page = Self::page(heads.head_dim);
        self.pages.check(gpu, shape, |head, token| {
            let (strip, slot) = (token / 32, token % 32);
            let strip = &page[strip * (16 * heads.head_dim + 128)..];
            let nibble = |plane: usize| {
                strip[16 * plane + slot % 8 * 2 + slot / 8 % 2] >> (slot / 16 * 4) & 15
            };
            let query = |c: usize| heads.sm_scale * number(head * heads.head_dim + c);
            let term = |c: usize| f64::from(query(c)) * f64::from(nibble(c)) / 128.0;
            (0..heads.head_dim).map(term).sum()
        })
    }
}
