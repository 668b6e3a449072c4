//! Attention in scalar f64, sequential and in the order of the definition.
//!
//! Every kernel of this crate is held to these functions, and they share no code with any of them:
//! no tiles, no running maximum, no vector types, every score kept until its softmax is done. They
//! are for tests and for reading; the inputs are trusted, and a slice that is too short panics.

use crate::HeadShape;

/// Attention of one query over a set of tokens, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceHead {
    /// Normalised output `[head_dim]`; zero over no tokens.
    pub out: Vec<f64>,
    /// Natural logarithm of the sum of `exp(score)`; minus infinity over no tokens.
    pub lse: f64,
}

/// Attention of every query token and head, in f64.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceAttention {
    /// `[qo_len, num_qo_heads, head_dim]`, normalised.
    pub out: Vec<f64>,
    /// `[qo_len, num_qo_heads]`, natural logarithm.
    pub lse: Vec<f64>,
}

/// Causal attention: with `offset = kv_len - qo_len`, query token i sees key tokens `0 ..= offset + i`.
///
/// - `q`: post-RoPE queries `[qo_len, num_qo_heads, head_dim]`, f32.
/// - `k`, `v`: keys and values `[kv_len, num_kv_heads, head_dim]`, f32.
///
/// # Panics
///
/// When there are more queries than keys, or a slice is not whole tokens.
#[must_use]
pub fn causal_attention(shape: &HeadShape, q: &[f32], k: &[f32], v: &[f32]) -> ReferenceAttention {
    let qo_len = q.len() / (shape.num_qo_heads * shape.head_dim);
    let kv_len = k.len() / (shape.num_kv_heads * shape.head_dim);
    let offset = kv_len - qo_len;
    let mut result = ReferenceAttention::default();
    for token in 0..qo_len {
        for head in 0..shape.num_qo_heads {
            let seen: Vec<usize> = (0..=offset + token).collect();
            let head = head_attention(shape, q, k, v, (token, head), &seen);
            result.out.extend(head.out);
            result.lse.push(head.lse);
        }
    }
    result
}

/// Attention of one query token over chosen tokens, each KV head with its own list.
///
/// - `q`: `[num_qo_heads, head_dim]`, f32.
/// - `k`, `v`: `[kv_len, num_kv_heads, head_dim]`, f32.
/// - `tokens`: for each KV head, the tokens its queries attend to, in any order; a token listed
///   twice counts twice.
///
/// # Panics
///
/// When a token is beyond `k` or `v`, or there is not one list per KV head.
#[must_use]
pub fn subset_attention(
    shape: &HeadShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    tokens: &[Vec<usize>],
) -> ReferenceAttention {
    assert_eq!(tokens.len(), shape.num_kv_heads, "one list of tokens per KV head");
    let mut result = ReferenceAttention::default();
    for head in 0..shape.num_qo_heads {
        let kv_head = head / (shape.num_qo_heads / shape.num_kv_heads);
        let head = head_attention(shape, q, k, v, (0, head), &tokens[kv_head]);
        result.out.extend(head.out);
        result.lse.push(head.lse);
    }
    result
}

/// Attention of query (token, head) over the key tokens in `seen`.
///
/// # Panics
///
/// When a token is beyond its slice.
#[must_use]
pub fn head_attention(
    shape: &HeadShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    (token, head): (usize, usize),
    seen: &[usize],
) -> ReferenceHead {
    let dim = shape.head_dim;
    let kv_head = head / (shape.num_qo_heads / shape.num_kv_heads);
    let query = &q[(token * shape.num_qo_heads + head) * dim..][..dim];
    let kv_start = |t: usize| (t * shape.num_kv_heads + kv_head) * dim;
    let mut scores = Vec::new();
    let mut values = Vec::new();
    for &t in seen {
        let key = &k[kv_start(t)..][..dim];
        let mut dot = 0.0;
        for channel in 0..dim {
            dot += f64::from(query[channel]) * f64::from(key[channel]);
        }
        scores.push(dot * f64::from(shape.sm_scale));
        values.extend_from_slice(&v[kv_start(t)..][..dim]);
    }
    partial_softmax(&scores, &values, dim)
}

/// Softmax over given scores, such as those of coded keys, applied to value rows.
///
/// - `scores`: `[num_tokens]`, already scaled; minus infinity masks a token.
/// - `values`: `[num_tokens, head_dim]`, f32.
///
/// Over no tokens, or only masked ones: zero and minus infinity.
///
/// # Panics
///
/// When `values` is shorter than the scores ask for.
#[must_use]
pub fn partial_softmax(scores: &[f64], values: &[f32], head_dim: usize) -> ReferenceHead {
    let mut max = f64::NEG_INFINITY;
    for &score in scores {
        if score > max {
            max = score;
        }
    }
    let mut out = vec![0.0; head_dim];
    if scores.iter().all(|&score| score == f64::NEG_INFINITY) {
        return ReferenceHead { out, lse: max };
    }
    let mut sum = 0.0;
    for (t, &score) in scores.iter().enumerate() {
        let weight = (score - max).exp();
        sum += weight;
        for channel in 0..head_dim {
            out[channel] += weight * f64::from(values[t * head_dim + channel]);
        }
    }
    for channel in &mut out {
        *channel /= sum;
    }
    ReferenceHead { out, lse: max + sum.ln() }
}

/// The state over the union of disjoint sets of tokens, from the states over each.
///
/// No states, or only empty ones, give an empty one of `head_dim` channels.
#[must_use]
pub fn merge(states: &[ReferenceHead], head_dim: usize) -> ReferenceHead {
    let mut max = f64::NEG_INFINITY;
    for state in states {
        if state.lse > max {
            max = state.lse;
        }
    }
    let mut out = vec![0.0; head_dim];
    if states.iter().all(|state| state.lse == f64::NEG_INFINITY) {
        return ReferenceHead { out, lse: max };
    }
    let mut sum = 0.0;
    for state in states {
        sum += (state.lse - max).exp();
    }
    for state in states {
        let share = (state.lse - max).exp() / sum;
        for (sum, channel) in out.iter_mut().zip(&state.out) {
            *sum += share * channel;
        }
    }
    ReferenceHead { out, lse: max + sum.ln() }
}
