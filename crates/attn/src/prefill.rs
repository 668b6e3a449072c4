//! Causal attention over a whole prompt, on the CPU: exact, or by a pattern that leaves tokens out.
//!
//! Keys and values are packed once, into tiles. The work is cut into blocks of query tokens times KV heads. A
//! block walks over the keys that its queries see, tile by tile, and keeps the running softmax of its rows; all
//! query heads of a group are rows of one block, so that a tile is read once for all of them. Later blocks see
//! more keys: they are handed out first, so that the threads end together.
//!
//! Memory beyond inputs and outputs: the packed keys and values, a fixed scratch per thread (half a MB at 128
//! channels) and one slice per (token, KV head) to hand the outputs out.
//! Every block is computed by one thread in one order, so the result does not depend on their number.

mod block;
mod packed;
mod pattern;

use heterokv_quant::Level;
use rayon::iter::{ParallelBridge, ParallelIterator};

use crate::error::{check_finite, check_len};
use crate::{AttnError, HeadShape};
use block::{Block, Scratch, block_tokens};
use packed::PackedRows;

pub use pattern::PrefillPattern;

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

/// The keys and values of a prompt, checked and packed once, over which its queries attend block by block.
#[derive(Clone, Debug)]
pub struct PromptAttention {
    level: Level,
    shape: HeadShape,
    num_tokens: usize,
    packed: PackedRows,
    pattern: PrefillPattern,
}

impl PromptAttention {
    /// Over the post-RoPE keys and values `[num_tokens, num_kv_heads, head_dim]` of a whole prompt, f32, of
    /// which queries leave out what `pattern` says. Of no tokens there are no queries.
    ///
    /// # Errors
    ///
    /// [`AttnError`]: an impossible shape, slices that are not whole tokens or not of one length, and values
    /// that are not finite.
    pub fn new(
        level: Level,
        shape: HeadShape,
        k: &[f32],
        v: &[f32],
        pattern: PrefillPattern,
    ) -> Result<Self, AttnError> {
        shape.check()?;
        let num_tokens = whole_rows("k", k.len(), shape.kv_row_len())?;
        check_len("v", k.len(), v.len())?;
        check_finite("k", k)?;
        check_finite("v", v)?;
        Ok(Self { level, shape, num_tokens, packed: PackedRows::new(level, &shape, k, v), pattern })
    }

    /// The same prompt, whose queries leave out what `pattern` says.
    #[must_use]
    pub fn with_pattern(self, pattern: PrefillPattern) -> Self {
        Self { pattern, ..self }
    }

    /// Which tokens queries leave out.
    #[must_use]
    pub fn pattern(&self) -> PrefillPattern {
        self.pattern
    }

    /// Tokens of the prompt.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Softmax attention `softmax(sm_scale q k^T) v` of the post-RoPE queries
    /// `q [n, num_qo_heads, head_dim]`, f32, of tokens `first..first + n`, each over the tokens up to its own
    /// that the pattern leaves it.
    ///
    /// Products, softmax and sums are f32. No queries, no work. Runs on the current rayon pool and does not
    /// depend on its size, to the bit, nor on how the queries of a prompt are divided into calls; results of
    /// different levels differ by rounding.
    ///
    /// # Errors
    ///
    /// [`AttnError`], before anything is written: slices that are not whole tokens or not of one length, more
    /// queries than there are tokens behind `first`, or a query that is not finite. Finite inputs whose
    /// scores overflow f32 give NaN outputs.
    pub fn attend(
        &self,
        first: usize,
        q: &[f32],
        output: PrefillOutput<'_>,
    ) -> Result<(), AttnError> {
        let Self { level, ref shape, .. } = *self;
        let PrefillOutput { out, lse } = output;
        let qo_len = whole_rows("q", q.len(), shape.qo_row_len())?;
        check_len("out", q.len(), out.len())?;
        if let Some(lse) = &lse {
            check_len("lse", qo_len * shape.num_qo_heads, lse.len())?;
        }
        let kv_len = self.num_tokens.saturating_sub(first);
        if qo_len > kv_len {
            return Err(AttnError::QueriesExceedKeys { qo_len, kv_len });
        }
        check_finite("q", q)?;
        let blocks = self.cut(first, qo_len, out, lse);
        // The bridge hands the blocks out one by one in this order, last query tokens (most keys) first.
        blocks.into_iter().rev().par_bridge().for_each_init(
            || Scratch::new(shape),
            |scratch, mut block| {
                let start = (block.first_token - first) * shape.qo_row_len();
                block.compute(level, shape, &q[start..], &self.packed, scratch);
            },
        );
        Ok(())
    }

    /// Cuts the outputs into blocks, in the order of their first token; all queries of one leave out the
    /// same tokens.
    fn cut<'o>(
        &self,
        first: usize,
        qo_len: usize,
        out: &'o mut [f32],
        lse: Option<&'o mut [f32]>,
    ) -> Vec<Block<'o>> {
        let Self { shape, pattern, .. } = self;
        let group_size = shape.group_size();
        let mut out_rows = out.chunks_exact_mut(group_size * shape.head_dim);
        let mut lse_rows = lse.map(|lse| lse.chunks_exact_mut(group_size));
        let block_tokens = block_tokens(shape);
        let (num_tokens, end) = (self.num_tokens, first + qo_len);
        let mut blocks = Vec::with_capacity(qo_len.div_ceil(block_tokens) * shape.num_kv_heads);
        let mut token = first;
        while token < end {
            let left_out = pattern.left_out(token, num_tokens);
            let next = end.min(token + block_tokens).min(pattern.next_change(token, num_tokens));
            let start = blocks.len();
            let block = |kv_head| Block::new(kv_head, token, left_out.clone());
            blocks.extend((0..shape.num_kv_heads).map(block));
            for _ in token..next {
                for block in &mut blocks[start..] {
                    block.out.extend(out_rows.next());
                    block.lse.extend(lse_rows.as_mut().and_then(Iterator::next));
                }
            }
            token = next;
        }
        blocks
    }
}

/// Exact attention of a prompt's last `qo_len` tokens over all of it: query token i sees the key tokens
/// `0 ..= kv_len - qo_len + i`. With as many queries as keys that is a prompt from its start.
///
/// [`PromptAttention`] in one call; no queries are allowed with any `kv_len`.
///
/// # Errors
///
/// As [`PromptAttention::new`] and [`PromptAttention::attend`], before anything is written.
pub fn prefill(
    level: Level,
    shape: &HeadShape,
    input: PrefillInput<'_>,
    output: PrefillOutput<'_>,
) -> Result<(), AttnError> {
    let PrefillInput { q, k, v } = input;
    let prompt = PromptAttention::new(level, *shape, k, v, PrefillPattern::Exact)?;
    let qo_len = whole_rows("q", q.len(), shape.qo_row_len())?;
    let kv_len = prompt.num_tokens();
    let first =
        kv_len.checked_sub(qo_len).ok_or(AttnError::QueriesExceedKeys { qo_len, kv_len })?;
    prompt.attend(first, q, output)
}

/// The rows of `tensor`, if it is whole rows.
fn whole_rows(tensor: &'static str, len: usize, row_len: usize) -> Result<usize, AttnError> {
    if len.is_multiple_of(row_len) {
        Ok(len / row_len)
    } else {
        Err(AttnError::RaggedRows { tensor, len, row_len })
    }
}
