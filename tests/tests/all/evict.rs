//! Scorers, budgets and what they keep, head by head, against NVIDIA kvpress on the small checkpoints.
//!
//! kvpress keeps some tokens by giving them the largest score of the layer and 1 more: the window of SnapKV and
//! PyramidKV, TOVA's last token, the sinks of expected attention. Here these are asked for by number
//! ([`Scoring::own_recent`]) or infinite, so that their scores are not compared, only that they are kept.

mod cache;

use heterokv_evict::{
    ExpectedQueries, Gqa, Pool, PromptEvidence, Pyramid, RotaryTurns, Scorer, Scoring, apportion,
    keep_best, key_diff, key_norm, per_query,
};
use heterokv_model::{ComputeType, Model};
use heterokv_testkit::{Tolerance, compare};
use serde::Deserialize;

use crate::files::{json, shared};
use crate::tiny::load;

const MODELS: [&str; 2] = ["llama3-rope-scaling", "qwen2-bias"];

const METHODS: [&str; 8] = [
    "SnapKVPress",
    "PyramidKVPress",
    "TOVAPress",
    "ObservedAttentionPress",
    "KnormPress",
    "KeyDiffPress",
    "ExpectedAttentionPress",
    "StreamingLLMPress",
];

/// How far a score may be from the reference's, relative to it.
const SCORES: Tolerance = Tolerance { absolute: 0.0, relative: 1e-3 };

/// Scores that are so near to the last one kept, or the first that is not, do not decide.
const UNDECIDED: f64 = 1e-5;

/// What `ExpectedAttentionPress` has where nothing is said.
const EXPECTED_SINKS: usize = 4;
const EXPECTED_FUTURE: usize = 512;

#[derive(Deserialize)]
struct Golden {
    params: Params,
    ids: Vec<u32>,
    layers: Vec<GoldenLayer>,
}

#[derive(Deserialize)]
struct Params {
    compression_ratio: f64,
    #[serde(default)]
    window_size: usize,
    #[serde(default)]
    kernel_size: usize,
    #[serde(default)]
    beta: f64,
    #[serde(default)]
    n_sink: usize,
}

#[derive(Deserialize)]
struct GoldenLayer {
    layer: usize,
    scores: Vec<Vec<f64>>,
    kept: Vec<Vec<u32>>,
}

/// Queries, keys and values of one layer, head by head: `[num_tokens, head_dim]` each.
#[derive(Clone, Default)]
struct LayerRows {
    queries: Vec<Vec<f32>>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

fn prompt_rows(model: &Model, ids: &[u32]) -> Vec<LayerRows> {
    let heads = model.kv_shape().heads;
    let by_head = |rows: &[f32], num_heads: usize| -> Vec<Vec<f32>> {
        let of_head = |head: usize| -> Vec<f32> {
            let rows = rows.chunks_exact(num_heads * heads.head_dim);
            rows.flat_map(|row| &row[head * heads.head_dim..][..heads.head_dim]).copied().collect()
        };
        (0..num_heads).map(of_head).collect()
    };
    let mut layers = vec![LayerRows::default(); model.kv_shape().num_layers];
    let observer = &mut |block: &heterokv_model::PromptBlock<'_>| {
        assert_eq!(block.first, 0, "a prompt of one block");
        layers[block.layer] = LayerRows {
            queries: by_head(block.q, heads.num_qo_heads),
            keys: by_head(block.k, heads.num_kv_heads),
            values: by_head(block.v, heads.num_kv_heads),
        };
    };
    model.prefill_observed(ids, &mut [], observer).unwrap();
    layers
}

/// Softmax weights of the query at `position` over the tokens up to it, in f64.
fn softmax(head_dim: usize, queries: &[f32], keys: &[f32], position: usize) -> Vec<f32> {
    let query = &queries[position * head_dim..][..head_dim];
    let score = |key: &[f32]| {
        let products = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k));
        products.sum::<f64>() / (head_dim as f64).sqrt()
    };
    let scores: Vec<f64> = keys.chunks_exact(head_dim).take(position + 1).map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let terms: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = terms.iter().sum();
    terms.iter().map(|term| (term / sum) as f32).collect()
}

/// Scores and kept tokens of one head; `sinks` and `recent` are kept whatever their scores.
struct Own {
    scores: Vec<f32>,
    kept: Vec<u32>,
    sinks: usize,
    recent: usize,
}

/// One method on one model.
struct Run<'a> {
    model: &'a Model,
    method: &'a str,
    params: &'a Params,
}

impl Run<'_> {
    fn scoring(&self) -> Scoring {
        let (scorer, window, pool) = match self.method {
            "SnapKVPress" | "PyramidKVPress" => {
                let pool = Pool::Mean(self.params.kernel_size);
                (Scorer::Window, self.params.window_size, pool)
            }
            "TOVAPress" => (Scorer::LastQuery, 1, Pool::None),
            "ObservedAttentionPress" => (Scorer::Accumulated, usize::MAX, Pool::None),
            "KnormPress" => (Scorer::KeyNorm, 0, Pool::None),
            "KeyDiffPress" => (Scorer::KeyDiff, 0, Pool::None),
            "ExpectedAttentionPress" => (Scorer::Expected, 0, Pool::None),
            "StreamingLLMPress" => (Scorer::Position, 0, Pool::None),
            method => panic!("no scorer for {method}"),
        };
        Scoring { scorer, window, pool, gqa: Gqa::Mean }
    }

    /// Evidence of one KV head from the attention of the query heads `group`.
    fn attention(&self, rows: &LayerRows, group: std::ops::Range<usize>) -> Vec<f32> {
        let heads = self.model.kv_shape().heads;
        let num_tokens = rows.keys[0].len() / heads.head_dim;
        let mut evidence = PromptEvidence::new(self.scoring(), group.len(), num_tokens).unwrap();
        for (member, head) in group.enumerate() {
            let (queries, keys) = (&rows.queries[head], &rows.keys[head / heads.group_size()]);
            for position in evidence.first_query()..num_tokens {
                let weights = softmax(heads.head_dim, queries, keys, position);
                evidence.add(member, position, &weights).unwrap();
            }
        }
        evidence.finish()
    }

    fn evidence(&self, rows: &LayerRows, kv_head: usize) -> Vec<f32> {
        let heads = self.model.kv_shape().heads;
        let head_dim = heads.head_dim;
        let group = kv_head * heads.group_size()..(kv_head + 1) * heads.group_size();
        let (keys, values) = (&rows.keys[kv_head], &rows.values[kv_head]);
        let num_tokens = keys.len() / head_dim;
        match self.scoring().scorer {
            // kvpress takes the mean over the window where SnapKV takes the sum.
            Scorer::Window => {
                let evidence = self.attention(rows, group);
                evidence.iter().map(|sum| sum / self.params.window_size as f32).collect()
            }
            // All query heads of the layer decide together.
            Scorer::LastQuery => self.attention(rows, 0..heads.num_qo_heads),
            Scorer::Accumulated => {
                let positions: Vec<u32> = (0..num_tokens as u32).collect();
                per_query(&self.attention(rows, group), &positions, num_tokens).unwrap()
            }
            Scorer::KeyNorm => key_norm(keys, head_dim).unwrap(),
            Scorer::KeyDiff => key_diff(keys, head_dim).unwrap(),
            Scorer::Expected => {
                let rope = &self.model.config().rope;
                let turns = RotaryTurns {
                    inverse_frequencies: &rope.inverse_frequencies(head_dim),
                    attention_factor: rope.attention_factor(),
                };
                let (sinks, num_future) = (EXPECTED_SINKS, EXPECTED_FUTURE);
                let mut queries =
                    ExpectedQueries::new(turns, group.len(), sinks, num_future).unwrap();
                for (member, head) in group.enumerate() {
                    for (position, query) in rows.queries[head].chunks_exact(head_dim).enumerate() {
                        queries.add(member, position, query).unwrap();
                    }
                }
                queries.scores(keys, values, num_tokens).unwrap()
            }
            _ => vec![0.0; num_tokens],
        }
    }

    /// Tokens that each head of `layer` keeps.
    fn num_keep(&self, layer: usize, num_tokens: usize) -> usize {
        let Params { compression_ratio, window_size, beta, .. } = *self.params;
        let mean = num_tokens as f64 * (1.0 - compression_ratio);
        if self.method != "PyramidKVPress" {
            return mean as usize;
        }
        let num_layers = self.model.kv_shape().num_layers;
        let pyramid = Pyramid { beta, window: window_size, counts_window: true };
        let shares = pyramid.shares(mean, num_layers, num_tokens).unwrap();
        let (least, most) = (vec![window_size; num_layers], vec![num_tokens; num_layers]);
        apportion(mean as usize * num_layers, &shares, &least, &most, 1).unwrap()[layer]
    }

    fn own(&self, layer: usize, rows: &LayerRows, kv_head: usize) -> Own {
        let scoring = self.scoring();
        let scores = scoring.scores(&self.evidence(rows, kv_head));
        let (sinks, recent) = (self.params.n_sink, scoring.own_recent());
        let num_keep = self.num_keep(layer, scores.len());
        let kept = keep_best(&scores, num_keep, sinks, recent).unwrap();
        let infinite = scores.iter().take_while(|score| score.is_infinite()).count();
        Own { scores, kept, sinks: sinks.max(infinite), recent }
    }

    /// Whether scores that mean the same are the same, and what is kept is, wherever the reference's scores decide.
    fn check(&self, own: &Own, scores: &[f64], kept: &[u32]) -> Result<f64, String> {
        let middle = own.sinks..scores.len() - own.recent;
        let mut worst = 0.0;
        // StreamingLLMPress scores 1 and 0, not positions.
        if self.method != "StreamingLLMPress" {
            let seen = compare(&own.scores[middle.clone()], &scores[middle.clone()], SCORES);
            worst = seen.map_err(|mismatch| mismatch.to_string())?.worst_share * SCORES.relative;
        }
        check_kept(&own.kept, middle, scores, kept).map(|()| worst)
    }
}

/// Whether `own` is what the reference keeps, wherever its scores of the tokens in `middle` decide.
fn check_kept(
    own: &[u32],
    middle: std::ops::Range<usize>,
    scores: &[f64],
    kept: &[u32],
) -> Result<(), String> {
    let is_kept = |token: &usize| kept.contains(&(*token as u32));
    let last = middle.clone().filter(is_kept).map(|t| scores[t]).fold(f64::INFINITY, f64::min);
    let next = middle.filter(|token| !is_kept(token)).map(|t| scores[t]);
    let next = next.fold(f64::NEG_INFINITY, f64::max);
    if own.len() != kept.len() {
        return Err(format!("{} tokens kept, not {}", own.len(), kept.len()));
    }
    let is_near =
        |token: u32, bound: f64| (scores[token as usize] - bound).abs() <= UNDECIDED * bound.abs();
    let taken = own.iter().find(|token| !kept.contains(token) && !is_near(**token, last));
    let left = kept.iter().find(|token| !own.contains(token) && !is_near(**token, next));
    match (taken, left) {
        (None, None) => Ok(()),
        (taken, left) => Err(format!("token {taken:?} is kept, {left:?} is not")),
    }
}

/// Calls `work` with every method on every model.
fn each_golden(mut work: impl FnMut(&Run<'_>, &Golden, &[LayerRows])) {
    for name in MODELS {
        let Some(folder) = shared(&format!("golden/tiny/{name}")) else { return };
        let model = load(&folder, ComputeType::F32);
        for method in METHODS {
            let Some(path) = shared(&format!("golden/evict/{name}.{method}.json")) else { return };
            let golden: Golden = json(&path);
            let rows = prompt_rows(&model, &golden.ids);
            assert_eq!(golden.layers.len(), rows.len(), "{method}: layers");
            let run = Run { model: &model, method, params: &golden.params };
            work(&run, &golden, &rows);
        }
    }
}

#[test]
fn scores_and_kept_tokens_are_those_of_kvpress() {
    each_golden(|run, golden, rows| {
        let mut worst: f64 = 0.0;
        for GoldenLayer { layer, scores, kept } in &golden.layers {
            assert_eq!(scores.len(), run.model.kv_shape().heads.num_kv_heads);
            for (kv_head, (scores, kept)) in scores.iter().zip(kept).enumerate() {
                let own = run.own(*layer, &rows[*layer], kv_head);
                match run.check(&own, scores, kept) {
                    Ok(error) => worst = worst.max(error),
                    Err(reason) => {
                        panic!("{}, layer {layer}, KV head {kv_head}: {reason}", run.method)
                    }
                }
            }
        }
        println!("{}: scores within {worst:.1e}", run.method);
    });
}

/// The negative control: another head's result, one that is a token late, and a kept token too few are seen.
#[test]
fn what_is_not_kvpress_is_seen() {
    each_golden(|run, golden, rows| {
        let GoldenLayer { layer, scores, kept } = &golden.layers[1];
        let own = || run.own(*layer, &rows[*layer], 0);
        // Where heads do not differ (positions; all heads of a layer together), swapping them changes nothing.
        let differ = kept[0] != kept[1];
        assert_eq!(differ, !matches!(run.method, "StreamingLLMPress" | "TOVAPress"));
        if differ {
            assert!(
                run.check(&own(), &scores[1], &kept[1]).is_err(),
                "{}: a swapped head",
                run.method
            );
            let swapped = LayerRows {
                keys: rows[*layer].keys.iter().rev().cloned().collect(),
                ..rows[*layer].clone()
            };
            let swapped = run.own(*layer, &swapped, 0);
            assert!(
                run.check(&swapped, &scores[0], &kept[0]).is_err(),
                "{}: swapped keys",
                run.method
            );
        }
        if run.method != "StreamingLLMPress" {
            let mut late = own();
            late.scores.rotate_right(1);
            assert!(run.check(&late, &scores[0], &kept[0]).is_err(), "{}: scores late", run.method);
        }
        let mut late = own();
        late.kept = late.kept.iter().map(|token| (token + 1) % scores[0].len() as u32).collect();
        assert!(run.check(&late, &scores[0], &kept[0]).is_err(), "{}: kept late", run.method);
        let mut fewer = own();
        fewer.kept.pop();
        assert!(run.check(&fewer, &scores[0], &kept[0]).is_err(), "{}: one too few", run.method);
    });
}

/// Permuting KV heads, with their query heads, permutes what is kept.
#[test]
fn permuted_heads_give_permuted_results() {
    each_golden(|run, golden, rows| {
        let group_size = run.model.kv_shape().heads.group_size();
        for (layer, rows) in rows.iter().enumerate().take(golden.layers.len()) {
            let groups = rows.queries.chunks_exact(group_size).rev();
            let reversed = LayerRows {
                queries: groups.flatten().cloned().collect(),
                keys: rows.keys.iter().rev().cloned().collect(),
                values: rows.values.iter().rev().cloned().collect(),
            };
            let num_heads = rows.keys.len();
            for kv_head in 0..num_heads {
                let own = run.own(layer, rows, kv_head);
                let permuted = run.own(layer, &reversed, num_heads - 1 - kv_head);
                assert_eq!(own.kept, permuted.kept, "{}, layer {layer}", run.method);
            }
        }
    });
}
