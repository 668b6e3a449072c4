//! Roles and importance of heads against what a cache that is fed token by token shows, by definitions that share
//! nothing with ours.

use heterokv_cache::{AttentionCache, HeadMeasure, HeadProfile, KvCache, Result, SimilarityAt};
use heterokv_eval::{Error, measure_heads, measure_importance};
use heterokv_model::Model;

use crate::determinism::{tiny_model, tokens};
use crate::smollm::cache;

const MEASURE: HeadMeasure = HeadMeasure {
    prompt_tokens: 300,
    steps: 11,
    top_k: 60,
    tau_stable: 0.5,
    tau_sim: 0.5,
    similarity: SimilarityAt::Prompt,
};

/// A cache that writes down all that it is given.
struct Recorder {
    cache: KvCache,
    /// `[num_layers]` of `[num_tokens, num_kv_heads, head_dim]`.
    keys: Vec<Vec<f32>>,
    /// `[num_layers]` of `[num_tokens, num_qo_heads, head_dim]`.
    queries: Vec<Vec<f32>>,
}

impl AttentionCache for Recorder {
    fn num_tokens(&self) -> usize {
        self.cache.num_tokens()
    }

    fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<()> {
        self.keys[layer].extend_from_slice(k);
        self.cache.append(layer, k, v)
    }

    fn attend(&mut self, layer: usize, q: &[f32], out: &mut [f32]) -> Result<()> {
        self.queries[layer].extend_from_slice(q);
        self.cache.attend(layer, q, out)
    }
}

/// A model that reads a text token by token.
fn recorded(model: &Model, text: &[u32]) -> Recorder {
    let num_layers = model.kv_shape().num_layers;
    let empty = vec![Vec::new(); num_layers];
    let cache = cache(model, "full");
    let mut recorder = Recorder { cache, keys: empty.clone(), queries: empty };
    for &token in text {
        model.extend(&[token], &mut recorder).unwrap();
    }
    recorder
}

/// Whether each position of the prompt is among those that the query at `position` attends to, by definition: every
/// weight, the mean over the group, the mean of five neighbours with zeros beyond the ends, sorted.
fn is_attended(model: &Model, seen: &Recorder, [layer, head, position]: [usize; 3]) -> Vec<bool> {
    let shape = model.kv_shape().heads;
    let (dim, group) = (shape.head_dim, shape.group_size());
    let row = |rows: &[f32], width: usize, token: usize, index: usize| -> Vec<f64> {
        let start = token * width * dim + index * dim;
        rows[start..start + dim].iter().map(|&x| f64::from(x)).collect()
    };
    let mut mean = vec![0.0; MEASURE.prompt_tokens];
    for query_head in head * group..(head + 1) * group {
        let query = row(&seen.queries[layer], shape.num_qo_heads, position, query_head);
        let exps: Vec<f64> = (0..=position)
            .map(|token| {
                let key = row(&seen.keys[layer], shape.num_kv_heads, token, head);
                let product: f64 = key.iter().zip(&query).map(|(k, q)| k * q).sum();
                (product * f64::from(shape.sm_scale)).exp()
            })
            .collect();
        let sum: f64 = exps.iter().sum();
        mean.iter_mut().zip(&exps).for_each(|(mean, exp)| *mean += exp / sum / group as f64);
    }
    let padded = [&[0.0; 2][..], &mean, &[0.0; 2]].concat();
    let pooled: Vec<f64> = padded.windows(5).map(|near| near.iter().sum::<f64>() / 5.0).collect();
    let mut order: Vec<usize> = (0..pooled.len()).collect();
    order.sort_by(|&a, &b| pooled[b].total_cmp(&pooled[a]));
    let mut attended = vec![false; pooled.len()];
    order[..MEASURE.top_k].iter().for_each(|&token| attended[token] = true);
    attended
}

fn shared(a: &[bool], b: &[bool]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| **a && **b).count() as f64 / MEASURE.top_k as f64
}

/// Overlaps with what each head of a model attends to at the end of a prompt, at every step, sorted
/// `[num_layers * num_kv_heads][steps]`; the prompt ends `early` tokens before it does.
fn overlaps(model: &Model, seen: &Recorder, early: usize) -> Vec<Vec<f64>> {
    let shape = model.kv_shape();
    let heads = (0..shape.num_layers)
        .flat_map(|layer| (0..shape.heads.num_kv_heads).map(move |head| (layer, head)));
    let of_head = |(layer, head)| {
        let last = MEASURE.prompt_tokens - 1 - early;
        let prompt = is_attended(model, seen, [layer, head, last]);
        let steps = (1..=MEASURE.steps).map(|step| {
            shared(&is_attended(model, seen, [layer, head, last + early + step]), &prompt)
        });
        let mut steps: Vec<f64> = steps.collect();
        steps.sort_by(f64::total_cmp);
        steps
    };
    heads.map(of_head).collect()
}

fn measured(model: &Model, text: &[u32], measure: &HeadMeasure) -> HeadProfile {
    measure_heads(model, text, measure, "tiny", None).unwrap()
}

/// The farthest of any head's stability from the median of these overlaps.
fn distance(profile: &HeadProfile, overlaps: &[Vec<f64>]) -> f64 {
    let middle = MEASURE.steps / 2;
    let num_kv_heads = profile.num_kv_heads();
    let distances = overlaps.iter().enumerate().map(|(index, overlaps)| {
        let stability = profile.stability(index / num_kv_heads, index % num_kv_heads).unwrap();
        (stability - overlaps[middle]).abs()
    });
    distances.fold(0.0, f64::max)
}

#[test]
fn stability_is_what_decoding_shows() {
    let model = tiny_model();
    let text = tokens(&model, MEASURE.prompt_tokens + MEASURE.steps);
    let seen = recorded(&model, &text);
    let profile = measured(&model, &text, &MEASURE);
    // The cache holds f16, so that a position or two at the edge of a set may be another.
    let apart = distance(&profile, &overlaps(&model, &seen, 0));
    println!("stability is off by {apart:.4}");
    assert!(apart <= 2.5 / MEASURE.top_k as f64, "{apart}");
    // The negative control: what the token before the prompt's last attends to is something else.
    let control = distance(&profile, &overlaps(&model, &seen, 1));
    println!("one token early, by {control:.4}");
    assert!(control > 2.0 * apart && control > 0.05, "{control}");
}

#[test]
fn heads_are_alike_where_they_attend_to_the_same() {
    let model = tiny_model();
    let text = tokens(&model, MEASURE.prompt_tokens + MEASURE.steps);
    let seen = recorded(&model, &text);
    let last = MEASURE.prompt_tokens - 1;
    for layer in 0..2 {
        let sets = [0, 1].map(|head| is_attended(&model, &seen, [layer, head, last]));
        let alike = shared(&sets[0], &sets[1]);
        println!("layer {layer}: {alike:.4}");
        for (tau_sim, is_star) in [(alike - 0.05, true), (alike + 0.05, false)] {
            let profile = measured(&model, &text, &HeadMeasure { tau_sim, ..MEASURE });
            let roles =
                [profile.role(layer, 0), profile.role(layer, 1)].map(|role| role.to_string());
            assert_eq!(roles == ["pivot", "satellite:0"], is_star, "{layer} {tau_sim}: {roles:?}");
        }
    }
}

#[test]
fn a_head_profile_does_not_depend_on_threads_and_reports_every_layer() {
    let model = tiny_model();
    let text = tokens(&model, MEASURE.prompt_tokens + MEASURE.steps);
    let run = |num_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        let mut seen = Vec::new();
        let mut progress = |done: usize, total: usize| seen.push((done, total));
        let profile = pool.install(|| {
            measure_heads(&model, &text, &MEASURE, "tiny", Some(&mut progress)).unwrap()
        });
        assert_eq!(seen, [(1, 2), (2, 2)]);
        profile
    };
    assert_eq!(run(1), run(3));
    assert_eq!(run(1).measure(), Some(MEASURE));
    for text in [&text[1..], &[]] {
        let error = measure_heads(&model, text, &MEASURE, "tiny", None).unwrap_err();
        assert!(error.to_string().contains("tokens has "), "{error}");
    }
    let none = HeadMeasure { top_k: 0, ..MEASURE };
    let error = measure_heads(&model, &text, &none, "tiny", None).unwrap_err();
    assert!(matches!(error, Error::Cache(heterokv_cache::Error::HeadMeasure { .. })), "{error}");
}

/// What a cache gives for each token against that token's own value, in f64.
#[test]
fn importance_is_how_far_outputs_are_from_values() {
    struct Outputs {
        cache: KvCache,
        /// Values of the token under way, `[num_layers]`.
        values: Vec<Vec<f32>>,
        /// Sums of cosines `[num_layers, num_kv_heads]`.
        cosines: Vec<f64>,
    }

    impl AttentionCache for Outputs {
        fn num_tokens(&self) -> usize {
            self.cache.num_tokens()
        }

        fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<()> {
            self.values[layer] = v.to_vec();
            self.cache.append(layer, k, v)
        }

        fn attend(&mut self, layer: usize, q: &[f32], out: &mut [f32]) -> Result<()> {
            self.cache.attend(layer, q, out)?;
            let heads = self.cache.shape().heads;
            for (query_head, out) in out.chunks_exact(heads.head_dim).enumerate() {
                let head = query_head / heads.group_size();
                let value = &self.values[layer][head * heads.head_dim..][..heads.head_dim];
                let dot = |a: &[f32], b: &[f32]| -> f64 {
                    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                };
                let cosine = dot(value, out) / dot(value, value).sqrt() / dot(out, out).sqrt();
                self.cosines[layer * heads.num_kv_heads + head] +=
                    cosine / heads.group_size() as f64;
            }
            Ok(())
        }
    }

    let model = tiny_model();
    // More than one block of a prompt.
    let text = tokens(&model, 600);
    let shape = model.kv_shape();
    let num_heads = shape.num_layers * shape.heads.num_kv_heads;
    let mut seen = Outputs {
        cache: cache(&model, "full"),
        values: vec![Vec::new(); shape.num_layers],
        cosines: vec![0.0; num_heads],
    };
    text.iter().for_each(|&token| drop(model.extend(&[token], &mut seen).unwrap()));
    let importance = measure_importance(&model, &text).unwrap();
    for index in 0..num_heads {
        let (layer, head) = (index / shape.heads.num_kv_heads, index % shape.heads.num_kv_heads);
        let expected = 1.0 - seen.cosines[index] / text.len() as f64;
        let found = importance.head(layer, head);
        println!("layer {layer}, KV head {head}: {found:.5} and {expected:.5}");
        assert!((found - expected).abs() < 1e-3 && found > 0.01, "{found} {expected}");
    }
    // Of layers: what enters the second is what leaves the first.
    let (mut entered, mut left) = (Vec::new(), Vec::new());
    model
        .observe(&[&text], &mut |block| match block.layer {
            0 => entered.extend_from_slice(block.hidden),
            _ => left.extend_from_slice(block.hidden),
        })
        .unwrap();
    let hidden_size = model.config().hidden_size;
    let rows = entered.chunks_exact(hidden_size).zip(left.chunks_exact(hidden_size));
    let cosine = |(a, b): (&[f32], &[f32])| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        f64::from(dot(a, b) / (dot(a, a) * dot(b, b)).sqrt())
    };
    let expected = 1.0 - rows.map(cosine).sum::<f64>() / text.len() as f64;
    println!("layers: {:.5}, {:.5}", importance.layer(0), importance.layer(1));
    assert!((importance.layer(0) - expected).abs() < 1e-5 && importance.layer(1) > 0.01);
    assert!((importance.layer(1) - importance.layer(0)).abs() > 1e-3, "each is its own");
}
