//! Scores without decoding against `sm_scale · q · decode(codes)` in f64, on every level.

use heterokv_testkit::{Controls, Guarded, Inputs, Tolerance, compare};

use super::*;

const NUM_HEADS: [usize; 7] = [1, 2, 3, 4, 5, 8, 9];

struct Case<'a> {
    coder: &'a KeyCoder,
    keys: &'a [f32],
    queries: &'a [f32],
    sm_scale: f32,
    precision: Precision,
}

/// Scores `[num_heads, num_tokens]`, and the most that the kernels may have rounded each.
struct Scored {
    scores: Vec<f32>,
    rounding: f64,
}

impl Case<'_> {
    fn num_tokens(&self) -> usize {
        self.keys.len() / self.coder.head_dim
    }

    fn expected(&self) -> Vec<f64> {
        let head_dim = self.coder.head_dim;
        let mut back = decoded(self.coder, &encoded(self.coder, self.keys));
        back.truncate(self.keys.len());
        let dot = |q: &[f32], k: &[f32]| -> f64 {
            q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum()
        };
        let scores = self
            .queries
            .chunks(head_dim)
            .flat_map(|q| back.chunks(head_dim).map(move |k| f64::from(self.sm_scale) * dot(q, k)));
        scores.collect()
    }

    /// One rounding per product and sum, by Cauchy and Schwarz: of the key itself and of what is added
    /// to it as zero, centre or offset of the codes, which is below eight times the largest key.
    fn tolerance(&self, rounding: f64) -> Tolerance {
        let head_dim = self.coder.head_dim;
        let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let largest = |x: &mut dyn Iterator<Item = f64>| x.fold(0.0, f64::max);
        let query = largest(&mut self.queries.chunks(head_dim).map(norm));
        let key = largest(&mut self.keys.chunks(head_dim).map(norm));
        let offset = 8.0 * largest(&mut self.keys.iter().map(|&x| f64::from(x).abs()));
        let size = f64::from(self.sm_scale) * query * (key + offset * (head_dim as f64).sqrt());
        let roundings = head_dim as f64 * f64::from(f32::EPSILON) / 2.0;
        Tolerance { absolute: roundings * size + rounding, relative: 0.0 }
    }

    /// Scores with a stride that leaves gaps, which must stay untouched.
    fn scores(&self, level: Level, prepared: &mut PreparedQueries) -> Scored {
        let (num_tokens, num_heads) = (self.num_tokens(), self.queries.len() / self.coder.head_dim);
        let stride = num_tokens + 3;
        let codes = encoded(self.coder, self.keys);
        let mut out = Guarded::<f32>::new((num_heads - 1) * stride + num_tokens);
        self.coder.prepare(self.queries, self.sm_scale, self.precision, prepared);
        let mut maxima = vec![f32::NEG_INFINITY; num_heads];
        let rows = ScoreRows { scores: out.payload_mut(), stride, maxima: &mut maxima };
        self.coder.score(level, prepared, &codes, num_tokens, rows);
        let out = out.check_bands().expect("nothing outside is written");
        for (i, x) in out.iter().enumerate() {
            assert!(i % stride < num_tokens || x.is_nan(), "gap {i} was written");
        }
        for (row, &maximum) in out.chunks(stride).zip(&maxima) {
            assert_eq!(row[..num_tokens].iter().copied().fold(f32::MIN, f32::max), maximum);
        }
        let pairs = (0..num_heads).flat_map(|h| (0..num_tokens).map(move |t| (h, t)));
        let rounding = pairs.map(|(h, t)| self.coder.rounding(prepared, h, &codes, t));
        let rounding = f64::from(rounding.fold(0.0, f32::max));
        let scores = out.chunks(stride).flat_map(|row| &row[..num_tokens]).copied().collect();
        Scored { scores, rounding }
    }
}

/// Every precision on every level.
fn runs() -> Vec<(Precision, Level)> {
    let precisions = [Precision::Exact, Precision::Select];
    precisions
        .into_iter()
        .flat_map(|p| Level::available().into_iter().map(move |l| (p, l)))
        .collect()
}

#[test]
fn scores_are_those_of_decoded_keys() {
    // One scratch for all, as a cache has: nothing of the last format may leak into the next.
    let mut prepared = PreparedQueries::default();
    for (seed, (format, head_dim)) in shapes(&[8, 16, 64, 80, 96, 128]).into_iter().enumerate() {
        for input in [Input::Gaussian, Input::HeavyChannels, Input::ConstantChannels] {
            let mut inputs = Inputs::new(1000 + seed as u64);
            let keys = input.keys(&mut inputs, fit_tokens(format, head_dim), head_dim);
            let coder = fitted(format, head_dim, &keys);
            let group = coder.layout().group_tokens;
            let counts = if group == 1 { vec![1, 2, 7, 64] } else { vec![group, 128] };
            for num_heads in NUM_HEADS {
                let queries = inputs.gaussian_rows(num_heads, head_dim, 1.5);
                for &num_tokens in &counts {
                    let expected = Case {
                        coder: &coder,
                        keys: &keys[..num_tokens * head_dim],
                        queries: &queries,
                        sm_scale: 1.0 / (head_dim as f32).sqrt(),
                        precision: Precision::Exact,
                    }
                    .expected();
                    for (precision, level) in runs() {
                        let case = Case {
                            coder: &coder,
                            keys: &keys[..num_tokens * head_dim],
                            queries: &queries,
                            sm_scale: 1.0 / (head_dim as f32).sqrt(),
                            precision,
                        };
                        let Scored { scores, rounding } = case.scores(level, &mut prepared);
                        let tolerance = case.tolerance(rounding);
                        if let Err(mismatch) = compare(&scores, &expected, tolerance) {
                            let label = format!(
                                "{format} {head_dim} {input:?} {level} {precision:?}, {num_heads} heads, {num_tokens} tokens"
                            );
                            panic!("{}", mismatch.at(label, inputs.seed()));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_scores_are_seen() {
    for (format, head_dim) in shapes(&[64]) {
        let mut inputs = Inputs::new(3);
        let keys = Input::Gaussian.keys(&mut inputs, fit_tokens(format, head_dim), head_dim);
        let coder = fitted(format, head_dim, &keys);
        let queries = inputs.gaussian_rows(3, head_dim, 1.5);
        for (precision, level) in runs() {
            let case = Case {
                coder: &coder,
                keys: &keys[..128 * head_dim],
                queries: &queries,
                sm_scale: 0.125,
                precision,
            };
            let expected = case.expected();
            let Scored { scores, rounding } = case.scores(level, &mut PreparedQueries::default());
            let tolerance = case.tolerance(rounding);
            if precision == Precision::Select {
                // The bound of the worst case is too wide for the subtlest damage.
                let damaged: Vec<f32> = scores.iter().map(|x| 1.5 * x).collect();
                assert!(compare(&scores, &expected, tolerance).is_ok(), "{format}");
                assert!(compare(&damaged, &expected, tolerance).is_err(), "{format} {level}");
                continue;
            }
            // Heads are the rows of scores here, and one "token" is all of a head's.
            let tried = Controls { num_heads: 1, head_dim: 128 }
                .assert_rejects(&scores, |scores| compare(scores, &expected, tolerance));
            assert!(tried.len() >= 7, "{tried:?}");
        }
    }
}

/// The root mean square of the errors over that of the scores.
fn relative_error(scores: &[f32], expected: &[f64]) -> f64 {
    let square = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let errors = square(&mut scores.iter().zip(expected).map(|(x, y)| f64::from(*x) - y));
    (errors / square(&mut expected.iter().copied())).sqrt()
}

#[test]
fn exact_scores_are_exact_and_selecting_ones_are_close() {
    for (format, head_dim) in shapes(&[64, 128]) {
        let mut inputs = Inputs::new(14);
        let keys = Input::Gaussian.keys(&mut inputs, fit_tokens(format, head_dim), head_dim);
        let coder = fitted(format, head_dim, &keys);
        let queries = inputs.gaussian_rows(3, head_dim, 1.5);
        for (precision, level) in runs() {
            let keys = &keys[..128 * head_dim];
            let case = Case { coder: &coder, keys, queries: &queries, sm_scale: 0.1, precision };
            let scored = case.scores(level, &mut PreparedQueries::default());
            let error = relative_error(&scored.scores, &case.expected());
            let bound = if precision == Precision::Exact { 2e-4 } else { 0.05 };
            assert!(error < bound, "{format} {head_dim} {precision:?} {level}: {error}");
        }
    }
}

#[test]
fn nothing_to_score_writes_nothing() {
    for (format, head_dim) in shapes(&[16]) {
        let keys = Inputs::new(1).gaussian_rows(fit_tokens(format, head_dim), head_dim, 1.0);
        let coder = fitted(format, head_dim, &keys);
        let codes = encoded(&coder, &keys[..128 * head_dim]);
        for level in Level::available() {
            let mut prepared = PreparedQueries::default();
            let mut out = [7.0; 4];
            coder.prepare(&[], 1.0, Precision::Exact, &mut prepared);
            coder.score(
                level,
                &prepared,
                &codes,
                128,
                ScoreRows { scores: &mut out, stride: 1, maxima: &mut [] },
            );
            coder.prepare(&keys[..head_dim], 1.0, Precision::Exact, &mut prepared);
            coder.score(
                level,
                &prepared,
                &codes,
                0,
                ScoreRows { scores: &mut out, stride: 1, maxima: &mut [] },
            );
            assert_eq!(out, [7.0; 4], "{format}");
        }
    }
}

#[test]
fn the_longest_rows_are_scored() {
    let head_dim = MAX_CODED_HEAD_DIM;
    for name in [
        "bf16",
        "fp8",
        "int8-token",
        "int4-token",
        "int3-token/128",
        "int6-token/32",
        "int8-channel/32",
        "rot-int4-token",
        "lm4",
        "alloc/8",
        "pq/4x16",
    ] {
        let format: KeyFormat = name.parse().unwrap();
        let mut inputs = Inputs::new(2);
        let keys = inputs.gaussian_rows(256, head_dim, 1.0);
        let coder = fitted(format, head_dim, &keys);
        let queries = inputs.gaussian_rows(2, head_dim, 1.0);
        for (precision, level) in runs() {
            let keys = &keys[..32 * head_dim];
            let case = Case { coder: &coder, keys, queries: &queries, sm_scale: 0.03, precision };
            let Scored { scores, rounding } = case.scores(level, &mut PreparedQueries::default());
            compare(&scores, &case.expected(), case.tolerance(rounding))
                .unwrap_or_else(|e| panic!("{}", e.at(name, inputs.seed())));
        }
    }
}
