//! Exact causal attention over a whole prompt, on the CPU.
//!
//! The work is cut into blocks of query tokens times KV heads. A block walks over the keys that its
//! queries see, tile by tile, and keeps the running softmax of its rows; all query heads of a group are
//! rows of one block, so that a tile is packed once for all of them. Later blocks see more keys: they are
//! handed out first, so that the threads end together.
//!
//! Memory beyond inputs and outputs: a fixed scratch per thread (half a MB at 128 channels) and
//! one slice per (token, KV head) to hand the outputs out.
//! Every block is computed by one thread in one order, so the result does not depend on their number.

mod block;

use heterokv_quant::Level;
use rayon::iter::{ParallelBridge, ParallelIterator};

use crate::error::{check_finite, check_len};
use crate::{AttnError, HeadShape};
use block::{Block, Scratch, block_tokens};

/// What prefill reads.
#[derive(Clone, Copy, Debug)]
pub struct PrefillInput<'a> {
    /// Post-RoPE queries `[qo_len, num_qo_heads, head_dim]`, f32: those of the last `qo_len` tokens.
    pub q: &'a [f32],
    /// Post-RoPE keys `[kv_len, num_kv_heads, head_dim]`, f32.
    pub k: &'a [f32],
    /// Values `[kv_len, num_kv_heads, head_dim]`, f32.
    pub v: &'a [f32],
}

/// What prefill writes. Every element is written; what was there before is not read.
#[derive(Debug)]
pub struct PrefillOutput<'a> {
    /// Attention outputs `[qo_len, num_qo_heads, head_dim]`, f32.
    pub out: &'a mut [f32],
    /// Log-sum-exp of every query's scaled scores `[qo_len, num_qo_heads]`, f32, natural logarithm, if
    /// it is wanted.
    pub lse: Option<&'a mut [f32]>,
}

/// Causal softmax attention, `softmax(sm_scale q k^T) v` with query token i seeing the key tokens
/// `0 ..= kv_len - qo_len + i`. With as many queries as keys that is a prompt from its start; with
/// fewer, the prompt's last part over all keys so far.
///
/// Products, softmax and sums are f32. No queries, no work: `qo_len` of 0 is allowed with any
/// `kv_len`. Runs on the current rayon pool and does not depend on its size, to the bit; results of
/// different levels differ by rounding.
///
/// # Errors
///
/// [`AttnError`], before anything is written: an impossible shape, slices that are not whole tokens or
/// not of one length, more queries than keys, or an input that is not finite. Finite inputs whose scores
/// overflow f32 give NaN outputs.
pub fn prefill(
    level: Level,
    shape: &HeadShape,
    input: PrefillInput<'_>,
    output: PrefillOutput<'_>,
) -> Result<(), AttnError> {
    shape.check()?;
    let PrefillInput { q, k, v } = input;
    let PrefillOutput { out, lse } = output;
    let qo_len = whole_rows("q", q.len(), shape.qo_row_len())?;
    let kv_len = whole_rows("k", k.len(), shape.kv_row_len())?;
    check_len("v", k.len(), v.len())?;
    check_len("out", q.len(), out.len())?;
    if let Some(lse) = &lse {
        check_len("lse", qo_len * shape.num_qo_heads, lse.len())?;
    }
    if qo_len > kv_len {
        return Err(AttnError::QueriesExceedKeys { qo_len, kv_len });
    }
    for (tensor, values) in [("q", q), ("k", k), ("v", v)] {
        check_finite(tensor, values)?;
    }

    let blocks = cut(shape, qo_len, out, lse);
    // The bridge hands the blocks out one by one in this order, last query tokens (most keys) first.
    blocks.into_iter().rev().par_bridge().for_each_init(
        || Scratch::new(shape),
        |scratch, mut block| block.compute(level, shape, input, scratch),
    );
    Ok(())
}

/// Cuts the outputs into blocks, in the order of their first query token.
fn cut<'a>(
    shape: &HeadShape,
    qo_len: usize,
    out: &'a mut [f32],
    lse: Option<&'a mut [f32]>,
) -> Vec<Block<'a>> {
    let group_size = shape.group_size();
    let mut out_rows = out.chunks_exact_mut(group_size * shape.head_dim);
    let mut lse_rows = lse.map(|lse| lse.chunks_exact_mut(group_size));
    let block_tokens = block_tokens(shape);
    let mut blocks = Vec::with_capacity(qo_len.div_ceil(block_tokens) * shape.num_kv_heads);
    for first_query in (0..qo_len).step_by(block_tokens) {
        let start = blocks.len();
        blocks.extend((0..shape.num_kv_heads).map(|kv_head| Block::new(kv_head, first_query)));
        for _ in first_query..qo_len.min(first_query + block_tokens) {
            for block in &mut blocks[start..] {
                block.out.extend(out_rows.next());
                block.lse.extend(lse_rows.as_mut().and_then(Iterator::next));
            }
        }
    }
    blocks
}

/// The rows of `tensor`, if it is whole rows.
fn whole_rows(tensor: &'static str, len: usize, row_len: usize) -> Result<usize, AttnError> {
    if len.is_multiple_of(row_len) {
        Ok(len / row_len)
    } else {
        Err(AttnError::RaggedRows { tensor, len, row_len })
    }
}
