//! Memory in which the coded keys of one layer after the other are scored and selected from.

use heterokv_attn::HeadShape;
use heterokv_attn::device::SelectScratch;
use heterokv_gpu::{Buffer, Gpu, Limits};

use crate::Result;

/// Memory that the sets of all layers use in turn.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Coded tokens of a head that there is room for.
    max_tokens: usize,
    /// What the queries of a set are prepared to.
    pub(super) tables: Buffer,
    pub(super) finals: Buffer,
    pub(super) scores: Buffer,
    pub(super) select: SelectScratch,
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
    /// Words that a query is prepared to, of the format that takes most.
    pub(super) table_words: usize,
    /// Coded tokens of a head.
    pub(super) max_tokens: usize,
}

impl ScratchShape {
    /// Bytes of [`Scratch::new`].
    pub(super) fn bytes(&self, shape: HeadShape) -> u64 {
        let queries = self.heads * shape.group_size();
        let words = queries * (self.table_words + 4)
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
        let ScratchShape { heads, table_words, max_tokens } = size;
        let queries = heads * shape.group_size();
        let buffer = |label, words: usize| gpu.buffer(label, 4 * words as u64);
        Ok(Self {
            max_tokens,
            tables: buffer("tables of queries", queries * table_words)?,
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
