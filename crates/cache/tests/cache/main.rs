//! The cache through its public face: exactness, selection, bytes, forks, profiles, refusals.

mod bytes;
mod copies;
mod disk;
mod drift;
mod exact;
mod forgetting;
mod head_profiles;
mod mixes;
mod prefill;
mod profiles;
mod refusals;
mod saved;
mod selection;
mod specs;
mod truncated;

use half::f16;
use heterokv_cache::{
    CacheConfig, CacheSpec, HeadShape, KvCache, KvShape, Level, PrefillInput, Profile,
    prefill_layer,
};
use heterokv_testkit::Inputs;

/// Post-RoPE tensors of a sequence, by layer, all exactly representable in f16, so that a token is the
/// same numbers whether it came with a prompt or through the f16 window.
struct Tokens {
    shape: KvShape,
    len: usize,
    /// `[num_layers]` of `[len, num_qo_heads, head_dim]`.
    q: Vec<Vec<f32>>,
    /// `[num_layers]` of `[len, num_kv_heads, head_dim]`.
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl Tokens {
    fn new(seed: u64, shape: KvShape, len: usize) -> Self {
        let mut inputs = Inputs::new(seed);
        let f16s = |x: Vec<f32>| -> Vec<f32> {
            x.into_iter().map(|x| f16::from_f32(x).to_f32()).collect()
        };
        let (mut q, mut k, mut v) = (vec![], vec![], vec![]);
        for _ in 0..shape.num_layers {
            q.push(f16s(inputs.gaussian_rows(len, shape.heads.qo_row_len(), 1.5)));
            k.push(f16s(inputs.heavy_channels(len, shape.heads.kv_row_len(), 2, 4.0)));
            v.push(f16s(inputs.gaussian_rows(len, shape.heads.kv_row_len(), 1.0)));
        }
        Self { shape, len, q, k, v }
    }

    fn query(&self, layer: usize, token: usize) -> &[f32] {
        let len = self.shape.heads.qo_row_len();
        &self.q[layer][token * len..][..len]
    }

    /// Takes the first `count` tokens as a prompt; returns the attention outputs of every layer.
    fn prefill(&self, caches: &mut [KvCache], count: usize) -> Vec<Vec<f32>> {
        let (qo, kv) = (self.shape.heads.qo_row_len(), self.shape.heads.kv_row_len());
        let layer = |layer: usize| {
            let input = PrefillInput {
                q: &self.q[layer][..count * qo],
                k: &self.k[layer][..count * kv],
                v: &self.v[layer][..count * kv],
            };
            let mut out = vec![f32::NAN; count * qo];
            prefill_layer(caches, layer, input, &mut out).expect("a prompt into empty caches");
            out
        };
        (0..self.shape.num_layers).map(layer).collect()
    }

    fn append(&self, cache: &mut KvCache, token: usize) {
        let len = self.shape.heads.kv_row_len();
        for layer in 0..self.shape.num_layers {
            let row = token * len..(token + 1) * len;
            cache.append(layer, &self.k[layer][row.clone()], &self.v[layer][row]).expect("finite");
        }
    }

    /// Attention of one token's queries in every layer.
    fn attend(&self, cache: &mut KvCache, token: usize) -> Vec<f32> {
        let len = self.shape.heads.qo_row_len();
        let mut out = vec![f32::NAN; len * self.shape.num_layers];
        for (layer, out) in out.chunks_exact_mut(len).enumerate() {
            cache.attend(layer, self.query(layer, token), out).expect("finite queries");
        }
        out
    }

    /// A cache that holds the first `total` tokens, `prompt` of them from a prompt.
    fn cache(&self, spec: &str, prompt: usize, total: usize) -> KvCache {
        let mut cache = cache(spec, self.shape);
        self.fill(&mut cache, prompt, total);
        cache
    }

    fn fill(&self, cache: &mut KvCache, prompt: usize, total: usize) {
        self.prefill(std::slice::from_mut(cache), prompt);
        (prompt..total).for_each(|token| self.append(cache, token));
        assert_eq!(cache.num_tokens(), total);
    }
}

fn shape(num_layers: usize, num_qo_heads: usize, num_kv_heads: usize, head_dim: usize) -> KvShape {
    let heads = HeadShape::new(num_qo_heads, num_kv_heads, head_dim).expect("a shape of a test");
    KvShape { num_layers, heads }
}

fn config(spec: &str, shape: KvShape) -> CacheConfig {
    let spec: CacheSpec = spec.parse().unwrap_or_else(|e| panic!("{spec}: {e}"));
    spec.resolve(&shape, None).unwrap_or_else(|e| panic!("{spec}: {e}"))
}

fn cache(spec: &str, shape: KvShape) -> KvCache {
    cache_with(spec, shape, None)
}

fn cache_with(spec: &str, shape: KvShape, profile: Option<&Profile>) -> KvCache {
    KvCache::new(shape, config(spec, shape), Level::detect(), profile).expect("a cache of a test")
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
