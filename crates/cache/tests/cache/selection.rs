//! What a step reads and how it weighs it, against the definition written out in f64.

use heterokv_cache::{HcaConfig, KeyFormat, Keys, RowFormat};
use heterokv_evict::{Rule, Union};
use heterokv_quant::{FitInput, KeyCoder, Level, Precision, PreparedQueries, ScoreRows};
use heterokv_testkit::{Tolerance, compare};

use super::*;

/// What the host store's format makes of rows `[n, head_dim]`.
fn stored(format: RowFormat, head_dim: usize, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    let mut bytes = vec![0; format.bytes(head_dim)];
    for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
        format.encode(x, &mut bytes).expect("finite");
        format.decode(&bytes, out);
    }
    out
}

/// Keys `[n, head_dim]` in a format without tables.
struct Coded {
    coder: KeyCoder,
    num_tokens: usize,
    codes: Vec<u8>,
}

impl Coded {
    fn new(format: KeyFormat, head_dim: usize, keys: &[f32]) -> Self {
        let query_energy = &vec![1.0; head_dim];
        let coder = KeyCoder::fit(
            format,
            &FitInput { head_dim, keys: &[], query_energy, seed: 0, level: Level::detect() },
        );
        let coder = coder.expect("nothing to fit");
        let num_tokens = keys.len() / head_dim;
        let mut codes = vec![0; coder.layout().bytes(num_tokens)];
        coder.encode(Level::detect(), 0, keys, &mut codes).expect("finite");
        Self { coder, num_tokens, codes }
    }

    fn decoded(&self, head_dim: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.num_tokens * head_dim];
        self.coder.decode(0, &self.codes, &mut out);
        out
    }

    /// Scores that only select, whose rounding is part of the definition: the tests of the key formats
    /// hold it to its bound.
    fn selecting_scores(&self, query: &[f32], sm_scale: f32) -> Vec<f64> {
        let mut prepared = PreparedQueries::default();
        self.coder.prepare(query, sm_scale, Precision::Select, &mut prepared);
        let mut scores = vec![0.0; self.num_tokens];
        let out = ScoreRows { scores: &mut scores, stride: self.num_tokens, maxima: &mut [] };
        self.coder.score(Level::detect(), &prepared, &self.codes, self.num_tokens, out);
        scores.into_iter().map(f64::from).collect()
    }
}

/// Softmax terms of one query head: scores of the resident and of the coded tokens.
struct Scores {
    resident: Vec<f64>,
    coded: Vec<f64>,
}

fn log_sum_exp<'a>(scores: impl Iterator<Item = &'a f64> + Clone) -> f64 {
    let max = scores.clone().copied().fold(f64::NEG_INFINITY, f64::max);
    max + scores.map(|s| (s - max).exp()).sum::<f64>().ln()
}

/// The coded tokens that a head takes, and whether rounding could not have taken others.
fn selected(config: &HcaConfig, scores: &Scores) -> (Vec<usize>, bool) {
    let lse = log_sum_exp(scores.resident.iter().chain(&scores.coded));
    let weight = |t: usize| (scores.coded[t] - lse).exp();
    let mut order: Vec<usize> = (0..scores.coded.len()).collect();
    order.sort_by(|&a, &b| scores.coded[b].total_cmp(&scores.coded[a]).then(a.cmp(&b)));
    let mut mass: f64 = scores.resident.iter().map(|s| (s - lse).exp()).sum();
    let wanted = match config.rule {
        Rule::TopP(top_p) => f64::from(top_p),
        _ => f64::INFINITY,
    };
    let most = match config.rule {
        Rule::TopK(k) => k.max(config.min).min(config.max),
        Rule::Threshold(least) => {
            let reached = order.iter().filter(|&&t| weight(t) >= f64::from(least)).count();
            reached.max(config.min).min(config.max)
        }
        _ => config.max,
    };
    let is_close = |t: &usize| match config.rule {
        Rule::Threshold(least) => (weight(*t) / f64::from(least) - 1.0).abs() < 1e-4,
        _ => false,
    };
    let (mut taken, mut clear) = (vec![], !order.iter().any(is_close));
    for &t in &order {
        clear &= (mass - wanted).abs() > 1e-5;
        if taken.len() >= most || (taken.len() >= config.min && mass >= wanted) {
            break;
        }
        taken.push(t);
        mass += weight(t);
    }
    if let (Some(&last), Some(&next)) = (taken.last(), order.get(taken.len())) {
        clear &= weight(last) > weight(next) * (1.0 + 1e-4);
    }
    (taken, clear)
}

/// Attention of one token in one layer as the architecture defines it, by head; None where rounding
/// may change a selection.
fn expected(
    config: &HcaConfig,
    tokens: &Tokens,
    layer: usize,
    token: usize,
    held: usize,
) -> Option<Vec<f64>> {
    let heads = tokens.shape.heads;
    let (dim, group) = (heads.head_dim, heads.group_size());
    let num_coded = held.saturating_sub(config.sinks + config.recent);
    let first = config.sinks.min(held);
    let coded_span = first * dim..(first + num_coded) * dim;
    let mut out = vec![];
    for kv_head in 0..heads.num_kv_heads {
        let rows = |x: &[f32]| -> Vec<f32> {
            let rows = x[..held * heads.kv_row_len()].chunks_exact(heads.kv_row_len());
            rows.flat_map(|row| &row[kv_head * dim..][..dim]).copied().collect()
        };
        let (keys, values) = (rows(&tokens.k[layer]), rows(&tokens.v[layer]));
        let resident = |x: &[f32]| [&x[..coded_span.start], &x[coded_span.end..]].concat();
        let (resident_keys, resident_values) = (resident(&keys), resident(&values));
        let host_values = stored(config.values, dim, &values[coded_span.clone()]);
        let Keys::Uniform(format) = config.keys else { panic!("one format") };
        let device = Coded::new(format, dim, &keys[coded_span.clone()]);
        let device_keys = device.decoded(dim);
        let host_keys = match config.rescore {
            None => device_keys.clone(),
            Some(format) => stored(format, dim, &keys[coded_span.clone()]),
        };
        let queries = &tokens.query(layer, token)[kv_head * group * dim..][..group * dim];
        let score = |q: &[f32], keys: &[f32]| -> Vec<f64> {
            let dot = |k: &[f32]| -> f64 {
                q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum()
            };
            keys.chunks_exact(dim).map(|k| f64::from(heads.sm_scale) * dot(k)).collect()
        };
        let queries: Vec<&[f32]> = queries.chunks_exact(dim).collect();
        let scores: Vec<Scores> = queries
            .iter()
            .map(|q| Scores {
                resident: score(q, &resident_keys),
                coded: match config.rescore {
                    None => score(q, &device_keys),
                    Some(_) => device.selecting_scores(q, heads.sm_scale),
                },
            })
            .collect();
        let picks: Vec<(Vec<usize>, bool)> = scores.iter().map(|s| selected(config, s)).collect();
        if picks.iter().any(|(_, clear)| !clear) {
            return None;
        }
        for (head, query) in queries.iter().enumerate() {
            let mut taken: Vec<usize> = match config.union {
                Union::Head => picks[head].0.clone(),
                Union::Group => picks.iter().flat_map(|(taken, _)| taken).copied().collect(),
            };
            taken.sort_unstable();
            taken.dedup();
            let own = score(query, &host_keys);
            let mut terms: Vec<(f64, &[f32])> = vec![];
            let rows = resident_values.chunks_exact(dim);
            terms.extend(scores[head].resident.iter().copied().zip(rows));
            terms.extend(taken.iter().map(|&t| (own[t], &host_values[t * dim..][..dim])));
            let all = &scores[head];
            let normaliser = if config.renormalise {
                log_sum_exp(terms.iter().map(|(score, _)| score))
            } else {
                log_sum_exp(all.resident.iter().chain(&all.coded))
            };
            let mut sum = vec![0.0; dim];
            for (score, value) in terms {
                let weight = (score - normaliser).exp();
                sum.iter_mut().zip(value).for_each(|(sum, &v)| *sum += weight * f64::from(v));
            }
            out.extend(sum);
        }
    }
    Some(out)
}

#[test]
fn a_step_is_what_the_definition_says() {
    let rules = [
        "select=none",
        "select=top-p:0.5",
        "select=top-p:0.9",
        "select=top-p:0.9,min=30",
        "select=top-p:0.99,max=12",
        "select=top-k:1",
        "select=top-k:25",
        "select=threshold:0.01",
        "select=threshold:0.02,min=5,max=9",
    ];
    let forms = [
        "rescore=none,renorm=on",
        "rescore=none,renorm=off",
        "rescore=int8@host,renorm=on",
        "rescore=f16@host,renorm=on",
    ];
    let (mut compared, mut unclear) = (0, 0);
    for (i, (rule, form)) in rules.iter().flat_map(|r| forms.map(|f| (*r, f))).enumerate() {
        for union in ["group", "head"] {
            for (keys, values) in
                [("int4-token", "f16@host"), ("int8-token", "int8@host"), ("fp8", "int4/32@host")]
            {
                let spec = format!(
                    "keys={keys},values={values},{form},{rule},union={union},sinks=3,recent=20"
                );
                let tokens = Tokens::new(i as u64, shape(1, 6, 2, 16), 300);
                let CacheConfig::Hca(config) = config(&spec, tokens.shape) else {
                    panic!("{spec} is not full")
                };
                let mut cache = tokens.cache(&spec, 150, 150);
                for held in 150..300 {
                    tokens.append(&mut cache, held);
                    if held % 15 != 0 {
                        continue;
                    }
                    let out = tokens.attend(&mut cache, held);
                    let Some(expected) = expected(&config, &tokens, 0, held, held + 1) else {
                        unclear += 1;
                        continue;
                    };
                    compared += 1;
                    // Queries and their products with codes are rounded to 16 bits, which moves a
                    // score by up to 1e-4 here.
                    let tolerance = Tolerance { absolute: 2e-4, relative: 1e-5 };
                    if let Err(mismatch) = compare(&out, &expected, tolerance) {
                        panic!("{}", mismatch.at(format!("{spec}, {held} tokens"), i as u64));
                    }
                }
            }
        }
    }
    println!("{compared} steps compared, {unclear} left out as too close to call");
    assert!(compared > 9 * unclear, "{compared} compared, {unclear} unclear");
}

#[test]
fn each_part_of_the_definition_is_seen() {
    // The same step under another union, normaliser or form is another result, so that the comparison
    // above tells them apart.
    let tokens = Tokens::new(1, shape(1, 6, 2, 16), 300);
    let step = |options: &str| {
        let spec =
            format!("keys=int4-token,values=f16@host,select=top-k:5,{options},sinks=3,recent=20");
        tokens.attend(&mut tokens.cache(&spec, 300, 300), 299)
    };
    let plain = wide(&step("union=group,renorm=on,rescore=none"));
    for other in [
        "union=head,renorm=on,rescore=none",
        "union=group,renorm=off,rescore=none",
        "union=group,renorm=on,rescore=f16@host",
        "union=group,renorm=on,rescore=none,min=6",
    ] {
        let tolerance = Tolerance { absolute: 1e-3, relative: 0.0 };
        assert!(compare(&step(other), &plain, tolerance).is_err(), "{other}");
    }
}

#[test]
fn rows_read_are_counted() {
    let tokens = Tokens::new(2, shape(2, 4, 2, 8), 200);
    let spec = "keys=int8-token,values=f16@host,sinks=4,recent=16";
    for (select, rows) in [("select=none", 180), ("select=top-k:7,union=head", 0)] {
        let mut cache = tokens.cache(&format!("{spec},{select}"), 200, 200);
        assert_eq!((cache.stats().steps, cache.stats().rows_read()), (0, 0.0));
        for token in 0..5 {
            tokens.attend(&mut cache, token);
        }
        let stats = cache.stats();
        assert_eq!(stats.steps, 10, "five tokens in two layers");
        let read = stats.rows_read() * 200.0;
        if rows > 0 {
            assert!((read - f64::from(rows)).abs() < 1e-9, "{read}");
            assert_eq!(stats.host_bytes, 10 * 2 * 180 * 16);
        } else {
            // Two heads of seven each, which may be the same rows.
            assert!((7.0..=14.0).contains(&read), "{read}");
        }
        cache.reset_stats();
        assert_eq!(cache.stats(), Default::default());
    }
}

#[test]
fn long_contexts_cross_score_tiles_and_host_tasks() {
    // More coded tokens than two tiles of scores hold, and more rows than two host tasks take.
    let held = 2600;
    let tokens = Tokens::new(12, shape(1, 2, 1, 16), held);
    let mut compared = 0;
    for select in ["select=top-p:0.97", "select=top-k:1300", "select=none"] {
        for form in ["rescore=none", "rescore=f16@host", "rescore=none,renorm=off"] {
            for union in ["group", "head"] {
                let spec = format!(
                    "keys=int8-token,values=f16@host,{form},{select},union={union},sinks=4,recent=64"
                );
                let CacheConfig::Hca(config) = config(&spec, tokens.shape) else {
                    panic!("{spec} is not full")
                };
                let mut cache = tokens.cache(&spec, held, held);
                for token in (0..held).step_by(211) {
                    cache.reset_stats();
                    let out = tokens.attend(&mut cache, token);
                    let rows = cache.stats().rows_read() * held as f64;
                    let Some(expected) = expected(&config, &tokens, 0, token, held) else {
                        continue;
                    };
                    compared += usize::from(rows > 1024.0);
                    let tolerance = Tolerance { absolute: 3e-5, relative: 1e-5 };
                    if let Err(mismatch) = compare(&out, &expected, tolerance) {
                        panic!("{}", mismatch.at(format!("{spec}, {token}, {rows} rows"), 12));
                    }
                }
            }
        }
    }
    println!("{compared} steps of more than 1,024 rows compared");
    assert!(compared > 100, "{compared}");
}
