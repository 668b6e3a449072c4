//! Attention of one KV head: over exact rows, of a prompt over itself, and over a compressed cache.

use anyhow::{Result, ensure};
use heterokv_attn::{
    AttnState, GroupSum, HeadShape, PrefillInput, PrefillOutput, ResidentRows, prefill, reference,
};
use heterokv_cache::{CacheSpec, KvCache, KvShape, PromptLayer};
use heterokv_quant::Level;
use heterokv_testkit::Inputs;

use super::{GROUP_SIZE, HEAD_DIM, Kernel, PROMPT_TOKENS, TOKENS};
use crate::synthetic;

/// What the queries of a step are multiplied by: attention over random keys is spread over most of them, and with this a
/// selection takes a fifth, as over a text.
const SHARPNESS: f32 = 2.0;

/// Tokens whose queries a cache sees before a step.
const LEARNED_TOKENS: usize = 64;

/// Attention over exact rows.
pub(super) struct Exact {
    /// `[TOKENS, HEAD_DIM]`, f16 and what it means.
    keys: (Vec<u8>, Vec<f32>),
    values: (Vec<u8>, Vec<f32>),
    queries: Vec<f32>,
    out: Vec<f32>,
}

impl Exact {
    pub(super) fn new() -> Self {
        let head = synthetic::head(9, HEAD_DIM, GROUP_SIZE, TOKENS);
        let rounded = |rows: &[f32]| -> (Vec<u8>, Vec<f32>) {
            let halves: Vec<half::f16> = rows.iter().map(|&x| half::f16::from_f32(x)).collect();
            let bytes = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
            (bytes, halves.iter().map(|x| x.to_f32()).collect())
        };
        Self {
            keys: rounded(&head.keys),
            values: rounded(&head.values),
            queries: head.queries[head.queries.len() - GROUP_SIZE * HEAD_DIM..].to_vec(),
            out: vec![f32::NAN; GROUP_SIZE * HEAD_DIM],
        }
    }
}

/// The shape of one KV head.
fn head_shape() -> HeadShape {
    let sm_scale = 1.0 / (HEAD_DIM as f32).sqrt();
    HeadShape { num_qo_heads: GROUP_SIZE, num_kv_heads: 1, head_dim: HEAD_DIM, sm_scale }
}

impl Kernel for Exact {
    fn run(&mut self, level: Level) {
        let queries: Vec<f32> = self.queries.iter().map(|q| q * head_shape().sm_scale).collect();
        let mut sum = GroupSum::new(GROUP_SIZE, HEAD_DIM);
        let rows = ResidentRows { keys: &self.keys.0, values: &self.values.0 };
        sum.add_resident(level, &queries, rows);
        let mut state = AttnState::empty(GROUP_SIZE, HEAD_DIM);
        sum.merge_into(&mut state);
        self.out.copy_from_slice(state.out());
    }

    fn answer(&self) -> Vec<f32> {
        self.out.clone()
    }

    fn expected(&self) -> Vec<f64> {
        let (keys, values) = (&self.keys.1, &self.values.1);
        reference::causal_attention(&head_shape(), &self.queries, keys, values).out
    }
}

/// Queries and rows of one KV head, and the attention that was computed of them.
struct Rows {
    /// `[n, HEAD_DIM]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Of the last tokens, `[n, GROUP_SIZE, HEAD_DIM]`.
    queries: Vec<f32>,
    /// Of the shape of the queries; NaN before the first run, and after one that failed.
    out: Vec<f32>,
}

impl Rows {
    fn new(keys: Vec<f32>, values: Vec<f32>, queries: Vec<f32>) -> Self {
        let out = vec![f32::NAN; queries.len()];
        Self { keys, values, queries, out }
    }

    /// Has `attend` write attention of the queries; where it fails, so does the check that follows.
    fn run<E>(&mut self, attend: impl FnOnce(&mut Self) -> std::result::Result<(), E>) {
        if attend(self).is_err() {
            self.out.fill(f32::NAN);
        }
    }

    fn expected(&self) -> Vec<f64> {
        reference::causal_attention(&head_shape(), &self.queries, &self.keys, &self.values).out
    }
}

/// Causal attention of a prompt over itself, one KV head.
pub(super) struct Prompt(Rows);

impl Prompt {
    pub(super) fn new() -> Self {
        let mut inputs = Inputs::new(13);
        let queries = inputs.gaussian_rows(PROMPT_TOKENS * GROUP_SIZE, HEAD_DIM, 1.0);
        let [keys, values] = [(); 2].map(|()| inputs.gaussian_rows(PROMPT_TOKENS, HEAD_DIM, 1.0));
        Self(Rows::new(keys, values, queries))
    }
}

impl Kernel for Prompt {
    fn run(&mut self, level: Level) {
        self.0.run(|Rows { keys, values, queries, out }| {
            let output = PrefillOutput { out, lse: None };
            prefill(level, &head_shape(), PrefillInput { q: queries, k: keys, v: values }, output)
        });
    }

    fn answer(&self) -> Vec<f32> {
        self.0.out.clone()
    }

    fn expected(&self) -> Vec<f64> {
        self.0.expected()
    }
}

/// Attention of one token over a compressed cache of one KV head, from its queries to its output.
pub(super) struct Step {
    cache: KvCache,
    rows: Rows,
}

impl Step {
    pub(super) fn new(spec: &str, level: Level) -> Result<Self> {
        let head = synthetic::head(14, HEAD_DIM, GROUP_SIZE, TOKENS);
        let shape = KvShape { num_layers: 1, heads: head_shape() };
        let config = spec.parse::<CacheSpec>()?.resolve(&shape, None)?;
        let mut caches = [KvCache::new(shape, config, level, None)?];
        let prompt = PromptLayer::new(shape.heads, level, &head.keys, &head.values)?;
        let mut prompt = prompt.watch(&caches, None)?;
        // Coders learn from queries which channels matter.
        let shown = &head.queries[..LEARNED_TOKENS * GROUP_SIZE * HEAD_DIM];
        prompt.attend(0, shown, &mut vec![0.0; shown.len()])?;
        prompt.store(&mut caches, 0)?;
        let [cache] = caches;
        ensure!(cache.device_bytes().codes > 0, "{spec}: nothing is coded");
        let last = &head.queries[head.queries.len() - GROUP_SIZE * HEAD_DIM..];
        let queries = last.iter().map(|q| SHARPNESS * q).collect();
        Ok(Self { cache, rows: Rows::new(head.keys, head.values, queries) })
    }
}

impl Kernel for Step {
    fn run(&mut self, _: Level) {
        let Self { cache, rows } = self;
        rows.run(|Rows { queries, out, .. }| cache.attend(0, queries, out));
    }

    fn answer(&self) -> Vec<f32> {
        self.rows.out.clone()
    }

    fn expected(&self) -> Vec<f64> {
        self.rows.expected()
    }

    /// Keys of a few bits and the heaviest of the values are all that it has.
    fn error(&self) -> f64 {
        0.2
    }
}
