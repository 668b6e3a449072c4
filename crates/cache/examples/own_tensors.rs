//! Attention over a caller's own tensors, with no model: what an embedder writes.
//!
//! ```text
//! cargo run --release -p heterokv-cache --example own_tensors [SPEC] [TOKENS]
//! ```
//!
//! Makes post-RoPE queries, keys and values, gives all but the last 64 tokens to a cache as a prompt
//! and appends the rest, then attends. Prints how far the result is from exact attention, computed
//! here in plain f64, and what the cache holds where. Exits with an error when the result is further
//! off than the least that any use of a cache needs, so that running it is a check.

#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::error::Error;

use heterokv_cache::{CacheSpec, HeadShape, KvCache, KvShape, Level, PrefillInput, prefill_layer};

/// Query heads, KV heads and channels of the one layer.
const NUM_QO_HEADS: usize = 6;
const NUM_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;

/// Tokens that are appended one by one, as in decoding.
const NUM_APPENDED: usize = 64;

/// Largest relative error of an output vector that passes: with a tenth of its direction wrong, a
/// layer's output is of no use to the next.
const LARGEST_ERROR: f64 = 0.1;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let spec: CacheSpec = arguments.next().as_deref().unwrap_or("hca-rescore:25%").parse()?;
    let num_tokens: usize = arguments.next().as_deref().unwrap_or("4096").parse()?;
    if num_tokens <= NUM_APPENDED {
        return Err(format!("more than {NUM_APPENDED} tokens are needed").into());
    }

    // One layer. Keys, values and queries are rows [num_tokens, num_heads, head_dim] in f32.
    let heads = HeadShape::new(NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM)?;
    let shape = KvShape { num_layers: 1, heads };
    let (q, k, v) = own_tensors(num_tokens);

    // A spec becomes a config once the shape is known, and a config a cache.
    let config = spec.resolve(&shape, None)?;
    let mut cache = KvCache::new(shape, config, Level::detect(), None)?;

    // The prompt: exact causal attention, whose outputs are of no interest here.
    let num_prompt = num_tokens - NUM_APPENDED;
    let (qo_len, kv_len) = (heads.qo_row_len(), heads.kv_row_len());
    let input = PrefillInput {
        q: &q[..num_prompt * qo_len],
        k: &k[..num_prompt * kv_len],
        v: &v[..num_prompt * kv_len],
    };
    let mut prompt_out = vec![0.0; num_prompt * qo_len];
    prefill_layer(std::slice::from_mut(&mut cache), 0, input, &mut prompt_out)?;

    // Decoding: append a token, then attend with its queries.
    let mut out = vec![0.0; qo_len];
    let (mut worst, mut sum) = (0.0f64, 0.0);
    for token in num_prompt..num_tokens {
        let row = token * kv_len..(token + 1) * kv_len;
        cache.append(0, &k[row.clone()], &v[row])?;
        let query = &q[token * qo_len..(token + 1) * qo_len];
        cache.attend(0, query, &mut out)?;
        let error = relative_error(&out, &exact_attention(&heads, query, &k, &v, token + 1));
        worst = worst.max(error);
        sum += error;
    }

    println!("spec        {spec}");
    println!("written out {}", cache.config());
    println!("tokens      {} ({num_prompt} of them a prompt)", cache.num_tokens());
    println!(
        "device      {} bytes, {:.2} % of a full f16 cache",
        cache.device_in_use_bytes(),
        100.0 * cache.ratio()
    );
    println!("host        {} bytes", cache.host_in_use_bytes());
    println!("rows read   {:.2} % of the context per step", 100.0 * cache.stats().rows_read());
    let mean = sum / NUM_APPENDED as f64;
    println!("error       {mean:.2e} of the exact output in the mean, {worst:.2e} at most");
    // The maximum drops a NaN, the mean keeps it.
    let within = worst <= LARGEST_ERROR && mean <= LARGEST_ERROR;
    if !within {
        return Err(format!("the output is {worst} off, more than {LARGEST_ERROR}").into());
    }
    Ok(())
}

/// Queries, keys and values of a made-up sequence: every sixteenth token has something to say about
/// one of eight topics, and queries ask for one topic, as heads that retrieve do.
fn own_tensors(num_tokens: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut random = Random(1);
    let topics: Vec<f32> = (0..8 * HEAD_DIM).map(|_| random.gaussian()).collect();
    let topic = |i: usize| &topics[i % 8 * HEAD_DIM..][..HEAD_DIM];
    let mut rows =
        |num_heads: usize, noise: f32, about: &dyn Fn(usize, usize) -> Option<(usize, f32)>| {
            let mut rows = Vec::with_capacity(num_tokens * num_heads * HEAD_DIM);
            for token in 0..num_tokens {
                for head in 0..num_heads {
                    let about = about(token, head);
                    for channel in 0..HEAD_DIM {
                        let signal = about.map_or(0.0, |(i, size)| size * topic(i)[channel]);
                        rows.push(signal + noise * random.gaussian());
                    }
                }
            }
            rows
        };
    let q = rows(NUM_QO_HEADS, 0.5, &|token, head| Some((token + head, 2.0)));
    let k = rows(NUM_KV_HEADS, 0.5, &|token, _| (token % 16 == 0).then_some((token / 16, 1.0)));
    let v = rows(NUM_KV_HEADS, 0.3, &|token, head| Some((token / 16 + 3 * head, 1.0)));
    (q, k, v)
}

/// Softmax attention of one token's queries over the first `num_tokens` tokens, in f64.
fn exact_attention(
    heads: &HeadShape,
    query: &[f32],
    k: &[f32],
    v: &[f32],
    num_tokens: usize,
) -> Vec<f64> {
    let mut out = Vec::with_capacity(query.len());
    for (head, query) in query.chunks_exact(heads.head_dim).enumerate() {
        let kv_head = head / heads.group_size();
        let row = |x: &[f32], token: usize| -> Vec<f64> {
            let first = (token * heads.num_kv_heads + kv_head) * heads.head_dim;
            x[first..first + heads.head_dim].iter().map(|&x| f64::from(x)).collect()
        };
        let score = |token: usize| -> f64 {
            let products = query.iter().zip(row(k, token)).map(|(&q, k)| f64::from(q) * k);
            f64::from(heads.sm_scale) * products.sum::<f64>()
        };
        let scores: Vec<f64> = (0..num_tokens).map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut total, mut sum) = (0.0, vec![0.0; heads.head_dim]);
        for (token, score) in scores.iter().enumerate() {
            let weight = (score - max).exp();
            total += weight;
            sum.iter_mut().zip(row(v, token)).for_each(|(sum, v)| *sum += weight * v);
        }
        out.extend(sum.iter().map(|sum| sum / total));
    }
    out
}

/// Length of the difference over the length of `exact`.
fn relative_error(out: &[f32], exact: &[f64]) -> f64 {
    let pairs = out.iter().zip(exact);
    let difference: f64 = pairs.map(|(&x, y)| (f64::from(x) - y).powi(2)).sum();
    (difference / exact.iter().map(|y| y * y).sum::<f64>()).sqrt()
}

/// A linear congruential generator (Knuth, TAOCP volume 2, 3.3.4); its upper bits are good enough here.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Near normal: the sum of twelve uniforms less six.
    fn gaussian(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}
