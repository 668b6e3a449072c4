//! Softmax weights of a prompt's queries over its keys: what policies look at that keep some tokens and not others.
//!
//! Exact attention over a prompt ([`prefill`](crate::prefill())) never holds them. Here they are worked out again for the
//! queries that somebody asks about, the last few or all, a row at a time.

use heterokv_quant::Level;
use heterokv_quant::weights::{ComputeType, TensorType, WeightMatrix};

use crate::error::{check_finite, check_len};
use crate::simd::exp_weights;
use crate::{AttnError, HeadShape};

/// Key tokens that are multiplied together; those behind the last query of a block are left out by whole chunks.
const CHUNK_TOKENS: usize = 512;

/// Query tokens that are multiplied together.
const BLOCK_TOKENS: usize = 32;

/// The keys of one KV head of a prompt, ready to be multiplied with queries.
#[derive(Debug)]
pub struct PromptKeys {
    level: Level,
    shape: HeadShape,
    kv_head: usize,
    num_tokens: usize,
    chunks: Vec<WeightMatrix>,
}

impl PromptKeys {
    /// The keys of `kv_head` in the post-RoPE keys `k [num_tokens, num_kv_heads, head_dim]` of a prompt, f32.
    ///
    /// # Errors
    /// An impossible shape, and keys that are not whole tokens or not finite.
    ///
    /// # Panics
    /// When the shape has no such head.
    pub fn new(
        level: Level,
        shape: HeadShape,
        kv_head: usize,
        k: &[f32],
    ) -> Result<Self, AttnError> {
        shape.check()?;
        assert!(kv_head < shape.num_kv_heads, "a head that the shape has");
        let num_tokens = k.len() / shape.kv_row_len();
        check_len("k", num_tokens * shape.kv_row_len(), k.len())?;
        check_finite("k", k)?;
        let chunk = |tokens: &[f32]| {
            let row = |token: &[f32]| token[kv_head * shape.head_dim..][..shape.head_dim].to_vec();
            let rows: Vec<f32> = tokens.chunks_exact(shape.kv_row_len()).flat_map(row).collect();
            WeightMatrix::from_tensor(
                TensorType::F32,
                bytemuck::cast_slice(&rows),
                [rows.len() / shape.head_dim, shape.head_dim],
                |row| row,
                ComputeType::F32,
                level,
            )
            .expect("whole rows of f32")
        };
        let chunks = k.chunks(CHUNK_TOKENS * shape.kv_row_len()).map(chunk).collect();
        Ok(Self { level, shape, kv_head, num_tokens, chunks })
    }

    /// The causal softmax weights of post-RoPE queries `q [n, num_qo_heads, head_dim]`, f32, of the tokens from `first` on:
    /// `visit(head, token, weights)` for every token and every query head of the group, counted within it, tokens in order;
    /// `weights [token + 1]` sum to one. No queries: nothing is visited.
    ///
    /// # Errors
    /// What `visit` fails with, at once; and as [`AttnError`], before any visit: queries that are not whole tokens, not finite, or
    /// more than there are keys behind `first`. Finite inputs whose scores overflow f32 give NaN weights.
    pub fn weights<E: From<AttnError>>(
        &self,
        q: &[f32],
        first: usize,
        mut visit: impl FnMut(usize, usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let HeadShape { head_dim, sm_scale, .. } = self.shape;
        let (row_len, group_size) = (self.shape.qo_row_len(), self.shape.group_size());
        let num_queries = q.len() / row_len;
        check_len("q", num_queries * row_len, q.len())?;
        check_finite("q", q)?;
        if first.checked_add(num_queries).is_none_or(|end| end > self.num_tokens) {
            let kv_len = self.num_tokens.saturating_sub(first);
            return Err(AttnError::QueriesExceedKeys { qo_len: num_queries, kv_len }.into());
        }
        let group_len = group_size * head_dim;
        for (block, tokens) in q.chunks(BLOCK_TOKENS * row_len).enumerate() {
            let block_first = first + block * BLOCK_TOKENS;
            let of_group = |token: &[f32]| token[self.kv_head * group_len..][..group_len].to_vec();
            let mut queries: Vec<f32> = tokens.chunks_exact(row_len).flat_map(of_group).collect();
            queries.iter_mut().for_each(|q| *q *= sm_scale);
            let num_rows = queries.len() / head_dim;
            let num_seen = block_first + num_rows / group_size;
            let mut rows = vec![0.0; num_rows * num_seen];
            for (chunk, keys) in self.chunks.iter().enumerate() {
                let chunk_first = chunk * CHUNK_TOKENS;
                if chunk_first >= num_seen {
                    break;
                }
                let mut scores = vec![0.0; num_rows * keys.rows()];
                let product = keys.gemm(&queries, num_rows, &mut scores);
                product.expect("queries of the keys' length");
                let len = keys.rows().min(num_seen - chunk_first);
                let scores = scores.chunks_exact(keys.rows());
                for (row, scores) in rows.chunks_exact_mut(num_seen).zip(scores) {
                    row[chunk_first..][..len].copy_from_slice(&scores[..len]);
                }
            }
            for (row, scores) in rows.chunks_exact_mut(num_seen).enumerate() {
                let token = block_first + row / group_size;
                let weights = &mut scores[..=token];
                let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let share = 1.0 / exp_weights(self.level, weights, max);
                weights.iter_mut().for_each(|weight| *weight *= share);
                visit(row % group_size, token, weights)?;
            }
        }
        Ok(())
    }
}
