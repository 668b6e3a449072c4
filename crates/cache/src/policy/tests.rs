//! Attention of caches that forget, held to what their codes say, and memory that is given back.

use std::collections::BTreeSet;

use heterokv_attn::HeadShape;
use heterokv_attn::reference::subset_attention;
use heterokv_evict::HeadRole;
use heterokv_quant::Level;
use heterokv_testkit::Inputs;

use super::mean_limit;
use crate::{
    CacheSpec, HeadMeasure, HeadProfile, KvCache, KvShape, PrefillInput, SimilarityAt,
    prefill_layer,
};

const PROMPT: usize = 330;
const TOTAL: usize = 400;

/// Two query heads of each of two KV heads, in one layer.
fn shape() -> KvShape {
    KvShape { num_layers: 1, heads: HeadShape::new(4, 2, 16).unwrap() }
}

/// Queries, keys and values `[TOTAL, num_heads, head_dim]`, exact in f16.
struct Rows {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Rows {
    fn new(seed: u64) -> Self {
        let (mut inputs, heads) = (Inputs::new(seed), shape().heads);
        let f16s = |rows: Vec<f32>| -> Vec<f32> {
            rows.into_iter().map(|x| half::f16::from_f32(x).to_f32()).collect()
        };
        Self {
            q: f16s(inputs.gaussian_rows(TOTAL, heads.qo_row_len(), 1.5)),
            k: f16s(inputs.heavy_channels(TOTAL, heads.kv_row_len(), 2, 4.0)),
            v: f16s(inputs.gaussian_rows(TOTAL, heads.kv_row_len(), 1.0)),
        }
    }

    fn cache(&self, spec: &str) -> KvCache {
        let spec: CacheSpec = spec.parse().unwrap();
        let config = spec.resolve(&shape(), None).unwrap();
        let mut cache = KvCache::new(shape(), config, Level::detect(), None).unwrap();
        let heads = shape().heads;
        let (qo, kv) = (PROMPT * heads.qo_row_len(), PROMPT * heads.kv_row_len());
        let input = PrefillInput { q: &self.q[..qo], k: &self.k[..kv], v: &self.v[..kv] };
        prefill_layer(std::slice::from_mut(&mut cache), 0, input, &mut vec![0.0; qo]).unwrap();
        cache
    }

    fn append(&self, cache: &mut KvCache, token: usize) {
        let len = shape().heads.kv_row_len();
        let row = token * len..(token + 1) * len;
        cache.append(0, &self.k[row.clone()], &self.v[row]).unwrap();
    }

    fn query(&self, token: usize) -> &[f32] {
        let len = shape().heads.qo_row_len();
        &self.q[token * len..][..len]
    }
}

/// Attention of a token's queries over the keys as a cache has them, and the values of the tokens that it says it
/// holds: of each the one `late` places further on.
fn expected(cache: &mut KvCache, rows: &Rows, token: usize, late: usize) -> Vec<f64> {
    let HeadShape { num_kv_heads, head_dim, .. } = shape().heads;
    let group = HeadShape::new(2, 1, head_dim).unwrap();
    let (heads, ..) = cache.parts_mut();
    let head = |(kv_head, head): (usize, &crate::head::HeadCache)| {
        let positions = head.positions();
        let value = |i: usize| {
            let position = positions[(i + late) % positions.len()] as usize;
            &rows.v[(position * num_kv_heads + kv_head) * head_dim..][..head_dim]
        };
        let values: Vec<f32> = (0..positions.len()).flat_map(value).copied().collect();
        let query = &rows.query(token)[2 * kv_head * head_dim..][..2 * head_dim];
        let all = vec![(0..positions.len()).collect()];
        subset_attention(&group, query, &head.keys(), &values, &all).out
    };
    heads.iter().enumerate().flat_map(head).collect()
}

#[test]
fn attention_is_over_the_decoded_keys_of_the_tokens_held() {
    // The least that is held allows for the tables of the format; int8 values are near to theirs.
    for (layout, keep, near) in [
        ("keys=f16,values=f16@device", 40, 3e-4),
        ("keys=int8-token,values=f16@device", 40, 3e-4),
        ("keys=int8-token,values=int8@host", 40, 3e-2),
        ("keys=int4-channel/32,values=f16@host", 60, 3e-4),
        ("keys=lm2,values=f16@device", 290, 3e-4),
        ("keys=alloc/4,values=f16@host", 290, 3e-4),
    ] {
        for (i, scorer) in ["window", "accumulated", "key-diff", "position"].into_iter().enumerate()
        {
            let rows = Rows::new(i as u64);
            let mut cache = rows.cache(&format!(
                "{layout},select=none,evict={scorer},observe=8,keep={keep},every=4,sinks=2,recent=8"
            ));
            let mut farthest: f64 = 0.0;
            for token in PROMPT..TOTAL {
                rows.append(&mut cache, token);
                assert!(cache.held_positions(0, 0).len() <= keep);
                let mut out = vec![0.0; rows.query(token).len()];
                cache.attend(0, rows.query(token), &mut out).unwrap();
                let mut distance = |late| {
                    let expected = expected(&mut cache, &rows, token, late);
                    let pairs = out.iter().zip(expected);
                    pairs.map(|(&a, b): (&f32, f64)| (f64::from(a) - b).abs()).fold(0.0, f64::max)
                };
                farthest = farthest.max(distance(0));
                // The negative control: a token's neighbour is another token.
                assert!(distance(1) > 10.0 * near, "{layout} {scorer} {token}: {}", distance(1));
            }
            assert!(farthest < near, "{layout} {scorer}: {farthest}");
        }
    }
}

#[test]
fn the_arena_is_empty_when_all_are_gone() {
    let rows = Rows::new(9);
    for layout in ["keys=f16,values=f16@device", "keys=lm2,values=f16@host"] {
        let spec = format!("{layout},select=none,evict=squared,keep=300,every=4,sinks=2,recent=8");
        let mut cache = rows.cache(&spec);
        let mut fork = cache.fork().unwrap();
        let arenas = [&mut cache, &mut fork].map(|cache| cache.parts_mut().1.clone());
        (PROMPT..TOTAL).for_each(|token| rows.append(&mut cache, token));
        fork.truncate(100);
        assert!(arenas.iter().all(|arena| arena.in_use_bytes() > 0), "{layout}");
        drop((cache, fork));
        assert!(arenas.iter().all(|arena| arena.in_use_bytes() == 0), "{layout}");
    }
}

/// Softmax weights `[2][num_tokens]` of a token's queries of a KV head over it and all before it.
fn weights(rows: &Rows, token: usize, kv_head: usize) -> Vec<Vec<f64>> {
    let HeadShape { head_dim, sm_scale, .. } = shape().heads;
    let queries = &rows.query(token)[2 * kv_head * head_dim..][..2 * head_dim];
    let of_query = |query: &[f32]| {
        let logit = |token: usize| -> f64 {
            let key = token * shape().heads.kv_row_len() + kv_head * head_dim;
            let key = &rows.k[key..][..head_dim];
            let products = key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q));
            f64::from(sm_scale) * products.sum::<f64>()
        };
        let weights: Vec<f64> = (0..=token).map(|token| logit(token).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    };
    queries.chunks_exact(head_dim).map(of_query).collect()
}

/// What the pivot of [`Rows`] attends to with a token's queries, by HeteroCache's definition (arXiv 2601.13684, §3): softmax
/// weights, means over five neighbours, the larger of its two query heads, and of all tokens but the last `recent` the `top_k`
/// highest.
fn looked_at(rows: &Rows, token: usize, recent: usize, top_k: usize) -> BTreeSet<usize> {
    let num_tokens = token + 1;
    let mut scores = vec![0.0f64; num_tokens];
    for weights in weights(rows, token, 0) {
        for (token, score) in scores.iter_mut().enumerate() {
            let near = &weights[token.saturating_sub(2)..num_tokens.min(token + 3)];
            *score = score.max(near.iter().sum::<f64>() / 5.0);
        }
    }
    let mut order: Vec<usize> = (0..num_tokens.saturating_sub(recent)).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.into_iter().take(top_k).collect()
}

/// The tokens of the satellite of [`pair`] in 70 % of a full cache's bytes: what the pivot's pages leave, by whole pages of 16
/// tokens and 4 bytes more for each of them.
fn satellite_tokens(num_tokens: usize) -> usize {
    let row_bytes = 2 * 2 * shape().heads.head_dim;
    let page_bytes = 16 * row_bytes;
    let pages_left = 7 * 2 * row_bytes * num_tokens / 10 / page_bytes - num_tokens.div_ceil(16);
    pages_left * page_bytes / (page_bytes + 16 * 4) * 16
}

/// The file of a pivot and its satellite.
fn pair() -> tempfile::NamedTempFile {
    let measure = HeadMeasure {
        prompt_tokens: PROMPT,
        steps: 10,
        top_k: 64,
        tau_stable: 0.5,
        tau_sim: 0.5,
        similarity: SimilarityAt::Prompt,
    };
    let roles = vec![HeadRole::Pivot, HeadRole::Satellite { pivot: 0 }];
    let profile = HeadProfile::new("rows", &shape(), measure, vec![0.8; 2], roles).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    profile.save(file.path()).unwrap();
    file
}

#[test]
fn a_pivot_has_drifted_when_the_definition_says_so_and_looks_no_more_than_it_must() {
    const RECENT: usize = 8;
    let file = pair();
    let mut num_undrifted = 0;
    // Queries of these rows have no topic: of what one looks at, the others look at some 40 %.
    for (steps, seed, tau) in
        [(1, 3, 0.42), (2, 4, 0.41), (4, 5, 0.4), (5, 6, 0.42), (5, 7, 0.4), (5, 8, 0.38)]
    {
        let rows = Rows::new(seed);
        let heads = file.path().display();
        let mut cache = rows.cache(&format!(
            "heterocache:70%,evict=last-query,gqa=max,sinks=2,recent={RECENT},every=drift:{steps},tau={tau},refresh=sync,\
             heads={heads}"
        ));
        let mut reference = looked_at(&rows, PROMPT - 1, RECENT, satellite_tokens(PROMPT));
        let (mut overlaps, mut expected, mut num_unlooked) = (Vec::new(), 0, 0);
        for token in PROMPT..TOTAL {
            rows.append(&mut cache, token);
            let policy = cache.policy_mut().0.unwrap();
            num_unlooked += usize::from(!policy.drift.as_ref().unwrap().wants(0));
            let top_k = satellite_tokens(token + 1);
            assert_eq!(mean_limit(&policy.limits), top_k, "at token {token}");
            let mut out = vec![0.0; rows.query(token).len()];
            cache.attend(0, rows.query(token), &mut out).unwrap();
            let set = looked_at(&rows, token, RECENT, top_k);
            let least = set.len().min(reference.len());
            overlaps.push(set.intersection(&reference).count() as f64 / least as f64);
            if overlaps.len() == steps {
                overlaps.sort_by(f64::total_cmp);
                let median = (overlaps[(steps - 1) / 2] + overlaps[steps / 2]) / 2.0;
                overlaps.clear();
                if median < tau {
                    (reference, expected) = (set, expected + 1);
                } else {
                    num_undrifted += 1;
                }
            }
            assert_eq!(cache.num_refreshes(), expected, "every {steps} steps, at token {token}");
        }
        assert!(expected > 0, "every {steps} steps");
        // Of one or two steps none decides alone; of five, three always do.
        assert!(if steps < 3 { num_unlooked == 0 } else { num_unlooked > 0 || steps == 4 });
    }
    assert!(num_undrifted > 5, "{num_undrifted}: both come about");
}

/// What each scorer makes of one query of the pivot, of a token at a position.
fn seen(scorer: &str, weights: &[Vec<f64>], position: usize) -> f64 {
    let of_heads = weights.iter().map(|weights| weights[position]);
    let (token, num_tokens) = (position as f64, weights[0].len() as f64);
    match scorer {
        "squared" => of_heads.map(|x| x * x).fold(0.0, f64::max),
        "votes" if of_heads.clone().any(|x| x >= 1.0 / num_tokens) => num_tokens,
        "votes" => token + 1.0,
        _ => of_heads.fold(0.0, f64::max),
    }
}

#[test]
fn evidence_begins_anew_with_the_query_that_has_chosen() {
    let file = pair();
    for (seed, scorer) in ["window", "accumulated", "last-query", "squared", "votes", "key-norm"]
        .into_iter()
        .enumerate()
    {
        let rows = Rows::new(seed as u64);
        let heads = file.path().display();
        let mut cache = rows.cache(&format!(
            "heterocache:70%,evict={scorer},observe=8,pool=mean:5,gqa=max,sinks=2,recent=8,every=drift:5,tau=0.9,\
             refresh=sync,heads={heads}"
        ));
        let mut farthest = [0.0f64; 2];
        for token in PROMPT..TOTAL {
            rows.append(&mut cache, token);
            let refreshes = cache.num_refreshes();
            cache.attend(0, rows.query(token), &mut vec![0.0; rows.query(token).len()]).unwrap();
            let has_come = cache.num_refreshes() > refreshes;
            if scorer != "key-norm" && !has_come {
                continue;
            }
            let (heads, ..) = cache.parts_mut();
            // The negative control is the satellite's own query.
            for (kv_head, farthest) in farthest.iter_mut().enumerate() {
                let weights = weights(&rows, token, kv_head);
                let positions = heads[1].positions().iter().map(|&position| position as usize);
                for (position, &evidence) in positions.zip(heads[1].evidence()) {
                    let expected = match scorer {
                        "key-norm" => {
                            let key = position * shape().heads.kv_row_len() + (1 - kv_head) * 16;
                            f64::from(
                                heterokv_evict::key_norm(&rows.k[key..][..16], 16).unwrap()[0],
                            )
                        }
                        _ => seen(scorer, &weights, position),
                    };
                    *farthest = farthest.max((f64::from(evidence) - expected).abs());
                }
            }
        }
        assert!(cache.num_refreshes() > 3, "{scorer}");
        let [distance, of_other] = farthest;
        assert!(distance < 1e-5 && of_other > 1e-3, "{scorer}: {distance} and {of_other}");
    }
}
