//! Attention on a device: parts of a context, and their merge.

use bytemuck::{Pod, Zeroable};
use heterokv_gpu::{Bound, Commands};
use heterokv_shaders as shaders;

use super::{Device, DeviceError, DeviceResult, WeightForm, check_len, word};
use crate::HeadShape;

/// Channels of a head at most: what the workgroup memory of the kernels is cut for.
const MAX_HEAD_DIM: usize = 256;

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
}

/// Attention of one token's queries over exact rows, in parts.
#[derive(Clone, Copy, Debug)]
pub struct AttendRows<'a> {
    /// The heads.
    pub shape: HeadShape,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Number of parts.
    pub num_parts: usize,
    /// [`RowPart`] `[num_parts]`.
    pub parts: Bound<'a>,
    /// Places of pages in `rows`, in words of 4 bytes.
    pub pages: Bound<'a>,
    /// Pages: keys `[page_tokens, head_dim]`, then values of the same shape, f16.
    pub rows: Bound<'a>,
    /// Post-RoPE queries `[num_qo_heads, head_dim]`, f32.
    pub q: Bound<'a>,
    /// `[num_parts, group_size, head_dim]`, f32, normalised.
    pub out: Bound<'a>,
    /// `[num_parts, group_size]`, f32, natural logarithm.
    pub lse: Bound<'a>,
}

/// Exact causal attention of the last `qo_len` tokens of a prompt over all keys so far.
#[derive(Clone, Copy, Debug)]
pub struct Prefill<'a> {
    /// The heads.
    pub shape: HeadShape,
    /// Queries, at most as many as keys.
    pub qo_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Post-RoPE queries `[qo_len, num_qo_heads, head_dim]`, f32.
    pub q: Bound<'a>,
    /// Post-RoPE keys `[kv_len, num_kv_heads, head_dim]`, f32.
    pub k: Bound<'a>,
    /// Values of the same shape.
    pub v: Bound<'a>,
    /// `[qo_len, num_qo_heads, head_dim]`, f32, normalised.
    pub out: Bound<'a>,
    /// `[qo_len, num_qo_heads]`, f32, natural logarithm.
    pub lse: Bound<'a>,
}

/// The merge of the states of each KV head.
#[derive(Clone, Copy, Debug)]
pub struct MergeStates<'a> {
    /// The heads.
    pub shape: HeadShape,
    /// Number of states.
    pub num_states: usize,
    /// Where the states of each KV head begin `[num_kv_heads + 1]`, u32, rising to `num_states`.
    pub first: Bound<'a>,
    /// `[num_states, group_size, head_dim]`, f32, normalised.
    pub outs: Bound<'a>,
    /// `[num_states, group_size]`, f32, natural logarithm.
    pub lses: Bound<'a>,
    /// `[num_qo_heads, head_dim]`, f32.
    pub out: Bound<'a>,
    /// `[num_qo_heads]`, f32.
    pub lse: Bound<'a>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct AttendRowsParams {
    head_dim: u32,
    group_size: u32,
    page_tokens: u32,
    sm_scale: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PrefillParams {
    qo_len: u32,
    kv_len: u32,
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

impl Device {
    /// Adds [`AttendRows`] to `commands`.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and [`DeviceError::Shape`] for a `head_dim` that is odd or above 256.
    pub fn attend_rows(
        &self,
        commands: &mut Commands<'_>,
        attend: &AttendRows<'_>,
    ) -> DeviceResult<()> {
        const NAME: &str = "attend_rows";
        let HeadShape { num_qo_heads, head_dim, sm_scale, .. } = attend.shape;
        let group_size = attend.shape.group_size();
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            return Err(DeviceError::Shape {
                operation: NAME,
                what: "a head_dim",
                value: head_dim as u64,
                remedy: "it is made for even ones of at most 256",
            });
        }
        let num_parts = attend.num_parts as u64;
        let states = num_parts * group_size as u64;
        check_len(NAME, "parts", &attend.parts, 3 * num_parts)?;
        check_len(NAME, "q", &attend.q, (num_qo_heads * head_dim) as u64)?;
        check_len(NAME, "out", &attend.out, states * head_dim as u64)?;
        check_len(NAME, "lse", &attend.lse, states)?;
        let kernel = self.kernel(&shaders::ATTEND_ROWS, WeightForm::default())?;
        let params = AttendRowsParams {
            head_dim: head_dim as u32,
            group_size: group_size as u32,
            page_tokens: word(NAME, "page_tokens", attend.page_tokens as u64)?,
            sm_scale,
        };
        let buffers = [attend.parts, attend.pages, attend.rows, attend.q, attend.out, attend.lse];
        let grid = [word(NAME, "parts", num_parts)?, group_size as u32, 1];
        commands.dispatch(&kernel, &params, &buffers, grid)?;
        Ok(())
    }

    /// Adds [`Prefill`] to `commands`.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and [`DeviceError::Shape`] for more queries than keys and for a `head_dim` that is not
    /// in fours or above 256.
    pub fn prefill(&self, commands: &mut Commands<'_>, prefill: &Prefill<'_>) -> DeviceResult<()> {
        const NAME: &str = "prefill";
        let HeadShape { num_qo_heads, num_kv_heads, head_dim, sm_scale } = prefill.shape;
        let Prefill { qo_len, kv_len, .. } = *prefill;
        let bad = |what, value: usize, remedy| {
            Err(DeviceError::Shape { operation: NAME, what, value: value as u64, remedy })
        };
        if !head_dim.is_multiple_of(4) || head_dim > MAX_HEAD_DIM {
            return bad("a head_dim", head_dim, "it is made for whole fours of at most 256");
        }
        if qo_len > kv_len {
            return bad("a qo_len", qo_len, "there is a key for every query");
        }
        let (q_len, k_len) = (qo_len * num_qo_heads * head_dim, kv_len * num_kv_heads * head_dim);
        check_len(NAME, "q", &prefill.q, q_len as u64)?;
        check_len(NAME, "k", &prefill.k, k_len as u64)?;
        check_len(NAME, "v", &prefill.v, k_len as u64)?;
        check_len(NAME, "out", &prefill.out, q_len as u64)?;
        check_len(NAME, "lse", &prefill.lse, (qo_len * num_qo_heads) as u64)?;
        word(NAME, "elements", q_len.max(k_len) as u64)?;
        let kernel = self.kernel(&shaders::PREFILL, WeightForm::default())?;
        let params = PrefillParams {
            qo_len: qo_len as u32,
            kv_len: kv_len as u32,
            num_qo_heads: num_qo_heads as u32,
            num_kv_heads: num_kv_heads as u32,
            fours: head_dim as u32 / 4,
            sm_scale,
        };
        let buffers = [prefill.q, prefill.k, prefill.v, prefill.out, prefill.lse];
        let grid = [qo_len.div_ceil(PREFILL_QUERIES) as u32, num_qo_heads as u32, 1];
        commands.dispatch(&kernel, &params, &buffers, grid)?;
        Ok(())
    }

    /// Adds [`MergeStates`] to `commands`.
    ///
    /// # Errors
    /// [`DeviceError::Length`].
    pub fn merge_states(
        &self,
        commands: &mut Commands<'_>,
        merge: &MergeStates<'_>,
    ) -> DeviceResult<()> {
        const NAME: &str = "merge_states";
        let HeadShape { num_qo_heads, num_kv_heads, head_dim, .. } = merge.shape;
        let states = (merge.num_states * merge.shape.group_size()) as u64;
        check_len(NAME, "first", &merge.first, num_kv_heads as u64 + 1)?;
        check_len(NAME, "outs", &merge.outs, states * head_dim as u64)?;
        check_len(NAME, "lses", &merge.lses, states)?;
        check_len(NAME, "out", &merge.out, (num_qo_heads * head_dim) as u64)?;
        check_len(NAME, "lse", &merge.lse, num_qo_heads as u64)?;
        let kernel = self.kernel(&shaders::MERGE_STATES, WeightForm::default())?;
        let params = MergeStatesParams {
            head_dim: head_dim as u32,
            group_size: merge.shape.group_size() as u32,
        };
        let buffers = [merge.first, merge.outs, merge.lses, merge.out, merge.lse];
        commands.dispatch(&kernel, &params, &buffers, [num_qo_heads as u32, 1, 1])?;
        Ok(())
    }
}
