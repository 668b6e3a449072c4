//! The rate–distortion report: what a format's bits cost in the attention over real keys.
//!
//! The first tokens of a head and the last ones before a query are exact, as in the cache ([`EXACT`]); the
//! tokens between them are coded. The queries are those of the tokens that follow. For each query the exact
//! softmax over all tokens is compared with the softmax under coded scores: the error of the scores, the KL
//! divergence of the distribution, and the error of the attention output under exact values.
//!
//! Bits are all of a format's, tables included, per element of the coded keys.

mod data;
mod dump;
mod front;
mod ggml;
mod kivi;
mod ours;
mod report;

use anyhow::Result;
use heterokv_eval::{ExactTokens, exact_scores};

pub(crate) use data::DataSet;
pub(crate) use dump::{Dump, default_corpus, dump};
pub(crate) use front::{front_sheet, is_ahead};
pub(crate) use ours::{OurCodec, Tables};
pub(crate) use report::{Origin, measure, quality_sheet};

/// Tokens that stay exact: at the beginning, and before a query.
pub const EXACT: ExactTokens = ExactTokens { sinks: 4, recent: 64 };

/// A way of coding keys whose error can be measured: one of our formats, or a peer.
pub trait KeyCodec: Send + Sync {
    /// How tables call it.
    fn name(&self) -> String;

    /// Codes the keys of one head and scores its queries; `None` where the shape is not one that it holds.
    ///
    /// # Errors
    /// What the codec refuses.
    fn scores(&self, head: &HeadKeys<'_>) -> Result<Option<CodedScores>>;
}

/// What a codec gets of one (layer, KV head).
#[derive(Clone, Copy, Debug)]
pub struct HeadKeys<'a> {
    /// Which of them, counted through: a seed.
    pub index: usize,
    /// Length of a key.
    pub head_dim: usize,
    /// Keys to code `[num_tokens, head_dim]`, post-RoPE.
    pub keys: &'a [f32],
    /// Mean of q² per channel `[head_dim]` over the queries of the context, over its mean.
    pub query_energy: &'a [f32],
    /// Queries `[num_queries, head_dim]` of later tokens.
    pub queries: &'a [f32],
    /// What a dot product is multiplied by.
    pub sm_scale: f32,
    /// Keys of the same head over other text.
    pub profile: Option<ProfileRows<'a>>,
}

/// What tables are fitted on that are not counted at the length measured.
#[derive(Clone, Copy, Debug)]
pub struct ProfileRows<'a> {
    /// Keys `[n, head_dim]`.
    pub keys: &'a [f32],
    /// As of [`HeadKeys`], over the queries of that text.
    pub query_energy: &'a [f32],
}

/// What a codec made of the keys.
#[derive(Clone, Debug)]
pub struct CodedScores {
    /// All bits over the elements of the keys.
    pub bits_per_element: f64,
    /// `sm_scale · q·k` under coded keys `[num_queries, num_tokens]`.
    pub scores: Vec<f32>,
}

/// The codecs of others that are defined here: KIVI and the block formats of llama.cpp.
#[must_use]
pub fn published() -> Vec<Box<dyn KeyCodec>> {
    let mut codecs: Vec<Box<dyn KeyCodec>> = Vec::new();
    for bits in [4, 2] {
        codecs.push(Box::new(kivi::Kivi { bits }));
    }
    for block in [ggml::Block::Q8_0, ggml::Block::Q4_0] {
        for is_rotated in [false, true] {
            codecs.push(Box::new(ggml::Ggml { block, is_rotated }));
        }
    }
    codecs
}

impl HeadKeys<'_> {
    /// `sm_scale · q·k` of every query and every key of `decoded [num_tokens, head_dim]`, which stand for the
    /// keys: `[num_queries, num_tokens]`.
    #[must_use]
    pub fn scores_of(&self, decoded: &[f32]) -> Vec<f32> {
        self.dot_products(self.queries, decoded).iter().map(|&score| score as f32).collect()
    }

    /// The same of any queries and keys, in f64.
    fn dot_products(&self, queries: &[f32], keys: &[f32]) -> Vec<f64> {
        exact_scores(self.head_dim, self.sm_scale, queries, keys)
    }
}
