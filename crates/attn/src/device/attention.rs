//! Attention on a device: parts of a context, and their merge.

use bytemuck::{Pod, Zeroable};
use heterokv_gpu::{Bound, Commands};
use heterokv_shaders as shaders;

use super::{Device, DeviceError, DeviceResult, Launch, MAX_HEAD_DIM, Operand, check_len, word};
use crate::HeadShape;

/// Queries of a workgroup of `prefill`.
const PREFILL_QUERIES: usize = 16;

/// Some of the exact tokens of a KV head, which give one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RowPart {
    /// The KV head.
    pub kv_head: u32,
    /// The place of its first page in the list of pages.
    pub first_page: u32,
    /// Its tokens; all pages but the last are full.
    pub num_tokens: u32,
    /// Where in its first page it begins.
    pub first_slot: u32,
    /// Which of the states is its.
    pub state: u32,
}

/// Attention of one token's queries over exact rows, in parts.
#[derive(Clone, Copy, Debug)]
pub struct AttendRows<B> {
    /// The heads.
    pub shape: HeadShape,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Number of parts.
    pub num_parts: usize,
    /// [`RowPart`] `[num_parts]`.
    pub parts: B,
    /// Places of pages in `rows`, in words of 4 bytes.
    pub pages: B,
    /// Pages: keys `[page_tokens, head_dim]`, then values of the same shape, f16.
    pub rows: B,
    /// Post-RoPE queries `[num_qo_heads, head_dim]`, f32.
    pub q: B,
    /// Whether `out` is worked out; where it is not, only `lse` is.
    pub writes_out: bool,
    /// Number of states, of which each part writes one.
    pub num_states: usize,
    /// `[num_states, group_size, head_dim]`, f32, normalised.
    pub out: B,
    /// `[num_states, group_size]`, f32, natural logarithm.
    pub lse: B,
}

/// A token's row that [`StoreRows`] stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RowSlot {
    /// The token, among those of `k` and `v`.
    pub token: u32,
    /// The KV head.
    pub kv_head: u32,
    /// Where its key goes, in words of 4 bytes; its value goes a page's keys further.
    pub place: u32,
}

/// Exact keys and values into pages.
#[derive(Clone, Copy, Debug)]
pub struct StoreRows<B> {
    /// The heads.
    pub shape: HeadShape,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Number of rows to store.
    pub num_slots: usize,
    /// [`RowSlot`] `[num_slots]`.
    pub slots: B,
    /// Post-RoPE keys `[tokens, num_kv_heads, head_dim]`, f32.
    pub k: B,
    /// Values of the same shape.
    pub v: B,
    /// Pages, as of [`AttendRows`].
    pub rows: B,
}

/// Sums of squared queries by channel, over stretches of [`QueryEnergy::STRETCH`] tokens.
#[derive(Clone, Copy, Debug)]
pub struct QueryEnergy<B> {
    /// The heads.
    pub shape: HeadShape,
    /// Tokens.
    pub tokens: usize,
    /// Post-RoPE queries `[tokens, num_qo_heads, head_dim]`, f32.
    pub q: B,
    /// `[tokens / STRETCH, rounded up, num_kv_heads, head_dim]`, f32.
    pub energy: B,
}

impl QueryEnergy<()> {
    /// Tokens whose sum is one.
    pub const STRETCH: usize = 64;
}

/// Exact causal attention of a block of a prompt over a segment of the keys up to it.
#[derive(Clone, Copy, Debug)]
pub struct Prefill<B> {
    /// The heads.
    pub shape: HeadShape,
    /// Queries.
    pub qo_len: usize,
    /// Keys of the segment.
    pub kv_len: usize,
    /// Keys of the segment that lie before the first query: query i sees `before + i + 1` of them, or all.
    pub before: usize,
    /// Whether the state is merged with what `out` and `lse` hold, those of earlier segments.
    pub adds: bool,
    /// Post-RoPE queries `[qo_len, num_qo_heads, head_dim]`, f32.
    pub q: B,
    /// Post-RoPE keys `[kv_len, num_kv_heads, head_dim]`, f32.
    pub k: B,
    /// Values of the same shape.
    pub v: B,
    /// `[qo_len, num_qo_heads, head_dim]`, f32, normalised.
    pub out: B,
    /// `[qo_len, num_qo_heads]`, f32, natural logarithm.
    pub lse: B,
}

/// The merge of the states of each KV head.
#[derive(Clone, Copy, Debug)]
pub struct MergeStates<B> {
    /// The heads.
    pub shape: HeadShape,
    /// Number of states.
    pub num_states: usize,
    /// Where the states of each KV head begin in `ids` `[num_kv_heads + 1]`, u32, rising.
    pub first: B,
    /// The states, KV head by KV head, u32, each below `num_states`.
    pub ids: B,
    /// `[num_states, group_size, head_dim]`, f32, normalised.
    pub outs: B,
    /// `[num_states, group_size]`, f32, natural logarithm.
    pub lses: B,
    /// `[num_qo_heads, head_dim]`, f32.
    pub out: B,
    /// `[num_qo_heads]`, f32.
    pub lse: B,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AttendRowsParams {
    head_dim: u32,
    group_size: u32,
    page_tokens: u32,
    sm_scale: f32,
    writes_out: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct StoreRowsParams {
    num_slots: u32,
    num_kv_heads: u32,
    pairs: u32,
    page_tokens: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct QueryEnergyParams {
    tokens: u32,
    group_size: u32,
    num_kv_heads: u32,
    head_dim: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PrefillParams {
    qo_len: u32,
    kv_len: u32,
    before: u32,
    adds: u32,
    num_qo_heads: u32,
    num_kv_heads: u32,
    fours: u32,
    sm_scale: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MergeStatesParams {
    head_dim: u32,
    group_size: u32,
}

impl<B: Operand> AttendRows<B> {
    /// What runs.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and [`DeviceError::Shape`] for a `head_dim` that is odd or above 256.
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        const NAME: &str = "attend_rows";
        let HeadShape { num_qo_heads, head_dim, sm_scale, .. } = self.shape;
        let group_size = self.shape.group_size();
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            return Err(DeviceError::Shape {
                operation: NAME,
                what: "a head_dim",
                value: head_dim as u64,
                remedy: "it is made for even ones of at most 256",
            });
        }
        let num_parts = self.num_parts as u64;
        let states = (self.num_states * group_size) as u64;
        check_len(NAME, "parts", &self.parts, 5 * num_parts)?;
        check_len(NAME, "q", &self.q, (num_qo_heads * head_dim) as u64)?;
        check_len(NAME, "out", &self.out, states * head_dim as u64)?;
        check_len(NAME, "lse", &self.lse, states)?;
        let params = AttendRowsParams {
            head_dim: head_dim as u32,
            group_size: group_size as u32,
            page_tokens: word(NAME, "page_tokens", self.page_tokens as u64)?,
            sm_scale,
            writes_out: u32::from(self.writes_out),
        };
        let buffers = [self.parts, self.pages, self.rows, self.q, self.out, self.lse];
        let grid = [word(NAME, "parts", num_parts)?, group_size as u32, 1];
        Ok(Launch::new(&shaders::ATTEND_ROWS, &params, buffers, grid))
    }
}

impl<B: Operand> StoreRows<B> {
    /// What runs. Where the slots point is the caller's to have right.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and [`DeviceError::Shape`] for an odd `head_dim`.
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        const NAME: &str = "store_rows";
        let HeadShape { num_kv_heads, head_dim, .. } = self.shape;
        if !head_dim.is_multiple_of(2) {
            return Err(DeviceError::Shape {
                operation: NAME,
                what: "a head_dim",
                value: head_dim as u64,
                remedy: "it is made for even ones",
            });
        }
        check_len(NAME, "slots", &self.slots, 3 * self.num_slots as u64)?;
        check_len(NAME, "v", &self.v, self.k.num_bytes() / 4)?;
        let params = StoreRowsParams {
            num_slots: word(NAME, "slots", self.num_slots as u64)?,
            num_kv_heads: num_kv_heads as u32,
            pairs: head_dim as u32 / 2,
            page_tokens: word(NAME, "page_tokens", self.page_tokens as u64)?,
        };
        let buffers = [self.slots, self.k, self.v, self.rows];
        Ok(Launch::new(&shaders::STORE_ROWS, &params, buffers, [params.num_slots, 1, 1]))
    }
}

impl<B: Operand> QueryEnergy<B> {
    /// What runs.
    ///
    /// # Errors
    /// [`DeviceError::Length`].
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        const NAME: &str = "query_energy";
        let HeadShape { num_qo_heads, num_kv_heads, head_dim, .. } = self.shape;
        let stretches = self.tokens.div_ceil(QueryEnergy::STRETCH);
        let q_len = (self.tokens * num_qo_heads * head_dim) as u64;
        check_len(NAME, "q", &self.q, q_len)?;
        word(NAME, "elements", q_len)?;
        let len = (stretches * num_kv_heads * head_dim) as u64;
        check_len(NAME, "energy", &self.energy, len)?;
        let params = QueryEnergyParams {
            tokens: self.tokens as u32,
            group_size: self.shape.group_size() as u32,
            num_kv_heads: num_kv_heads as u32,
            head_dim: head_dim as u32,
        };
        let grid = [word(NAME, "stretches", stretches as u64)?, num_kv_heads as u32, 1];
        Ok(Launch::new(&shaders::QUERY_ENERGY, &params, [self.q, self.energy], grid))
    }
}

impl<B: Operand> Prefill<B> {
    /// What runs.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and [`DeviceError::Shape`] for a segment of no keys and for a `head_dim` that is not in
    /// fours or above 256.
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        const NAME: &str = "prefill";
        let HeadShape { num_qo_heads, num_kv_heads, head_dim, sm_scale } = self.shape;
        let Prefill { qo_len, kv_len, before, adds, .. } = *self;
        let bad = |what, value: usize, remedy| {
            Err(DeviceError::Shape { operation: NAME, what, value: value as u64, remedy })
        };
        if !head_dim.is_multiple_of(4) || head_dim > MAX_HEAD_DIM {
            return bad("a head_dim", head_dim, "it is made for whole fours of at most 256");
        }
        if kv_len == 0 && qo_len > 0 {
            return bad("a kv_len", kv_len, "every query sees a key of the segment");
        }
        let (q_len, k_len) = (qo_len * num_qo_heads * head_dim, kv_len * num_kv_heads * head_dim);
        check_len(NAME, "q", &self.q, q_len as u64)?;
        check_len(NAME, "k", &self.k, k_len as u64)?;
        check_len(NAME, "v", &self.v, k_len as u64)?;
        check_len(NAME, "out", &self.out, q_len as u64)?;
        check_len(NAME, "lse", &self.lse, (qo_len * num_qo_heads) as u64)?;
        word(NAME, "elements", q_len.max(k_len) as u64)?;
        let params = PrefillParams {
            qo_len: qo_len as u32,
            kv_len: kv_len as u32,
            before: word(NAME, "keys before", before as u64)?,
            adds: u32::from(adds),
            num_qo_heads: num_qo_heads as u32,
            num_kv_heads: num_kv_heads as u32,
            fours: head_dim as u32 / 4,
            sm_scale,
        };
        let buffers = [self.q, self.k, self.v, self.out, self.lse];
        let grid = [qo_len.div_ceil(PREFILL_QUERIES) as u32, num_qo_heads as u32, 1];
        Ok(Launch::new(&shaders::PREFILL, &params, buffers, grid))
    }
}

impl<B: Operand> MergeStates<B> {
    /// What runs. Which states are named is the caller's to have right.
    ///
    /// # Errors
    /// [`DeviceError::Length`].
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        const NAME: &str = "merge_states";
        let HeadShape { num_qo_heads, num_kv_heads, head_dim, .. } = self.shape;
        let states = (self.num_states * self.shape.group_size()) as u64;
        check_len(NAME, "first", &self.first, num_kv_heads as u64 + 1)?;
        check_len(NAME, "outs", &self.outs, states * head_dim as u64)?;
        check_len(NAME, "lses", &self.lses, states)?;
        check_len(NAME, "out", &self.out, (num_qo_heads * head_dim) as u64)?;
        check_len(NAME, "lse", &self.lse, num_qo_heads as u64)?;
        let params = MergeStatesParams {
            head_dim: head_dim as u32,
            group_size: self.shape.group_size() as u32,
        };
        let buffers = [self.first, self.ids, self.outs, self.lses, self.out, self.lse];
        let grid = [num_qo_heads as u32, 1, 1];
        Ok(Launch::new(&shaders::MERGE_STATES, &params, buffers, grid))
    }
}

impl Device {
    /// Adds [`AttendRows`] to `commands`.
    ///
    /// # Errors
    /// As [`AttendRows::launch`], and those of the device.
    pub fn attend_rows(
        &self,
        commands: &mut Commands<'_>,
        attend: &AttendRows<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.launch(commands, &attend.launch()?)
    }

    /// Adds [`Prefill`] to `commands`.
    ///
    /// # Errors
    /// As [`Prefill::launch`], and those of the device.
    pub fn prefill(
        &self,
        commands: &mut Commands<'_>,
        prefill: &Prefill<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.launch(commands, &prefill.launch()?)
    }

    /// Adds [`StoreRows`] to `commands`.
    ///
    /// # Errors
    /// As [`StoreRows::launch`], and those of the device.
    pub fn store_rows(
        &self,
        commands: &mut Commands<'_>,
        store: &StoreRows<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.launch_spread(commands, store.launch()?, 1)
    }

    /// Adds [`QueryEnergy`] to `commands`.
    ///
    /// # Errors
    /// As [`QueryEnergy::launch`], and those of the device.
    pub fn query_energy(
        &self,
        commands: &mut Commands<'_>,
        energy: &QueryEnergy<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.launch(commands, &energy.launch()?)
    }

    /// Adds [`MergeStates`] to `commands`.
    ///
    /// # Errors
    /// As [`MergeStates::launch`], and those of the device.
    pub fn merge_states(
        &self,
        commands: &mut Commands<'_>,
        merge: &MergeStates<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.launch(commands, &merge.launch()?)
    }
}

#[cfg(test)]
pub(super) fn twins() -> Vec<super::reflection::Twin> {
    super::reflection::twins! {
        Params of ATTEND_ROWS =
            AttendRowsParams { head_dim, group_size, page_tokens, sm_scale, writes_out };
        Part of ATTEND_ROWS = RowPart { kv_head, first_page, num_tokens, first_slot, state };
        Params of STORE_ROWS = StoreRowsParams { num_slots, num_kv_heads, pairs, page_tokens };
        Slot of STORE_ROWS = RowSlot { token, kv_head, place };
        Params of QUERY_ENERGY =
            QueryEnergyParams { tokens, group_size, num_kv_heads, head_dim };
        Params of PREFILL = PrefillParams {
            qo_len, kv_len, before, adds, num_qo_heads, num_kv_heads, fours, sm_scale
        };
        Params of MERGE_STATES = MergeStatesParams { head_dim, group_size };
    }
}
