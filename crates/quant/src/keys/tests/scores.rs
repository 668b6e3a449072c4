//! Scores without decoding against `sm_scale · q · decode(codes)` in f64, on every level.

use heterokv_testkit::{Controls, Guarded, Inputs, Mismatch, Tolerance, compare};

use super::sizes::{norm, sizes};
use super::*;

const NUM_HEADS: [usize; 7] = [1, 2, 3, 4, 5, 8, 9];

/// Encoded keys that queries are scored against.
struct Case<'a> {
    coder: &'a KeyCoder,
    codes: Vec<u8>,
    /// `[num_tokens, head_dim]`.
    decoded: Vec<f32>,
    /// `[num_tokens]`, of what a score is summed from.
    sizes: Vec<f64>,
    sm_scale: f32,
}

/// Scores `[num_heads, num_tokens]`, and how far each may be from what is expected.
struct Scored {
    scores: Vec<f32>,
    allowed: Vec<f64>,
}

impl Scored {
    fn compare(&self, scores: &[f32], expected: &[f64]) -> Result<(), Mismatch> {
        assert_eq!(scores.len(), self.allowed.len());
        for (i, &absolute) in self.allowed.iter().enumerate() {
            let tolerance = Tolerance { absolute, relative: 0.0 };
            compare(&scores[i..=i], &expected[i..=i], tolerance)
                .map_err(|mismatch| mismatch.at(format!("score {i}"), 0))?;
        }
        Ok(())
    }
}

impl<'a> Case<'a> {
    fn new(coder: &'a KeyCoder, keys: &[f32], sm_scale: f32) -> Self {
        let codes = encoded(coder, keys);
        let mut decoded = decoded(coder, &codes);
        decoded.truncate(keys.len());
        let sizes = sizes(coder, &codes, &decoded);
        Self { coder, codes, decoded, sizes, sm_scale }
    }

    fn num_tokens(&self) -> usize {
        self.sizes.len()
    }

    fn expected(&self, queries: &[f32]) -> Vec<f64> {
        let head_dim = self.coder.head_dim;
        let dot = |q: &[f32], k: &[f32]| -> f64 {
            q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum()
        };
        let keys = self.decoded.chunks(head_dim);
        let scale = f64::from(self.sm_scale);
        let of_query = |q| keys.clone().map(move |k| scale * dot(q, k));
        queries.chunks(head_dim).flat_map(of_query).collect()
    }

    /// How far each score may be from what is expected: what the coder says of its own rounding, and the
    /// roundings of f32, by Cauchy and Schwarz of the query and of what the token's score is summed from.
    ///
    /// A term passes a sum over the channels, on either side a rotation's stages and at most eight of: `sm_scale`,
    /// a weight, the scale, the zero, the centre, a product and the sums of those. A stage is orthogonal but for
    /// its scale, so that its roundings count by lengths; in a learned rotation a coordinate is a sum over
    /// channels, whose roundings are as large in each of the coordinates. Products may fall below the normal
    /// numbers.
    fn allowed(&self, queries: &[f32], prepared: &PreparedQueries) -> Vec<f64> {
        let head_dim = self.coder.head_dim;
        let group_tokens = self.coder.layout().group_tokens;
        let channels = head_dim as f64;
        let mut roundings = channels + 2.0 * (channels.log2() + 8.0);
        let mut queries: Vec<f32> = queries.iter().map(|q| q * self.sm_scale).collect();
        if let KeyFormat::Pq { is_rotated, .. } = self.coder.format() {
            // The weights of keys divide queries.
            queries.copy_from_slice(&prepared.queries);
            roundings += if is_rotated { 2.0 * channels * channels.sqrt() } else { 0.0 };
        }
        let share = roundings * f64::from(f32::EPSILON) / 2.0;
        let of_query = |(head, query): (usize, &[f32])| -> Vec<f64> {
            let query = norm(query.iter().map(|&q| q.into()));
            let subnormal = roundings * f64::from(f32::MIN_POSITIVE * f32::EPSILON);
            // The tokens of a group are scored by the same tables.
            let of_group = |(group, sizes): (usize, &[f64])| -> Vec<f64> {
                let first = group * group_tokens;
                let rounding = self.coder.rounding(prepared, head, &self.codes, first);
                let beside = subnormal + f64::from(rounding);
                sizes.iter().map(|size| share * query * size + beside).collect()
            };
            self.sizes.chunks(group_tokens).enumerate().flat_map(of_group).collect()
        };
        queries.chunks(head_dim).enumerate().flat_map(of_query).collect()
    }

    /// Scores with a stride that leaves gaps, which must stay untouched.
    fn scores(
        &self,
        queries: &[f32],
        level: Level,
        precision: Precision,
        prepared: &mut PreparedQueries,
    ) -> Scored {
        let (num_tokens, num_heads) = (self.num_tokens(), queries.len() / self.coder.head_dim);
        let stride = num_tokens + 3;
        let mut out = Guarded::<f32>::new((num_heads - 1) * stride + num_tokens);
        self.coder.prepare(queries, self.sm_scale, precision, prepared);
        let mut maxima = vec![f32::NEG_INFINITY; num_heads];
        let rows = ScoreRows { scores: out.payload_mut(), stride, maxima: &mut maxima };
        self.coder.score(level, prepared, &self.codes, num_tokens, rows);
        let out = out.check_bands().expect("nothing outside is written");
        for (i, x) in out.iter().enumerate() {
            assert!(i % stride < num_tokens || x.is_nan(), "gap {i} was written");
        }
        for (row, &maximum) in out.chunks(stride).zip(&maxima) {
            assert_eq!(row[..num_tokens].iter().copied().fold(f32::MIN, f32::max), maximum);
        }
        let scores = out.chunks(stride).flat_map(|row| &row[..num_tokens]).copied().collect();
        Scored { scores, allowed: self.allowed(queries, prepared) }
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
        for input in Input::ALL {
            let mut inputs = Inputs::new(1000 + seed as u64);
            let keys = input.keys(&mut inputs, fit_tokens(format, head_dim).max(384), head_dim);
            let coder = fitted(format, head_dim, &keys);
            let group = coder.layout().group_tokens;
            let counts = if group == 1 { vec![1, 2, 7, 64] } else { vec![group, 3 * group] };
            let sm_scale = 1.0 / (head_dim as f32).sqrt();
            for num_tokens in counts {
                let case = Case::new(&coder, &keys[..num_tokens * head_dim], sm_scale);
                for num_heads in NUM_HEADS {
                    let queries = inputs.gaussian_rows(num_heads, head_dim, 1.5);
                    let expected = case.expected(&queries);
                    for (precision, level) in runs() {
                        let scored = case.scores(&queries, level, precision, &mut prepared);
                        if let Err(mismatch) = scored.compare(&scored.scores, &expected) {
                            panic!(
                                "{format} {head_dim} {input:?} {level} {precision:?}, {num_heads} heads, \
                                 {num_tokens} tokens, seed {}: {mismatch}",
                                inputs.seed()
                            );
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
        let case = Case::new(&coder, &keys[..128 * head_dim], 0.125);
        let expected = case.expected(&queries);
        for (precision, level) in runs() {
            let scored = case.scores(&queries, level, precision, &mut PreparedQueries::default());
            let scores = &scored.scores;
            assert!(scored.compare(scores, &expected).is_ok(), "{format}");
            for i in 0..scores.len() {
                let mut damaged = scores.clone();
                // From one end of what is allowed to beyond the other, and a rounding of f32.
                damaged[i] += 2.01 * scored.allowed[i] as f32 + scores[i].abs() * f32::EPSILON;
                assert!(scored.compare(&damaged, &expected).is_err(), "{format} {level} {i}");
            }
            if precision == Precision::Select {
                // The bound of the worst case is too wide for the subtlest damage.
                let damaged: Vec<f32> = scores.iter().map(|x| 1.5 * x).collect();
                assert!(scored.compare(&damaged, &expected).is_err(), "{format} {level}");
                continue;
            }
            // Heads are the rows of scores here, and one "token" is all of a head's.
            let tried = Controls { num_heads: 1, head_dim: 128 }
                .assert_rejects(scores, |scores| scored.compare(scores, &expected));
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
        let case = Case::new(&coder, &keys[..128 * head_dim], 0.1);
        let expected = case.expected(&queries);
        for (precision, level) in runs() {
            let scored = case.scores(&queries, level, precision, &mut PreparedQueries::default());
            let error = relative_error(&scored.scores, &expected);
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
        let case = Case::new(&coder, &keys[..32 * head_dim], 0.03);
        let expected = case.expected(&queries);
        for (precision, level) in runs() {
            let scored = case.scores(&queries, level, precision, &mut PreparedQueries::default());
            scored
                .compare(&scored.scores, &expected)
                .unwrap_or_else(|e| panic!("{name} {level} {precision:?}: {e}"));
        }
    }
}

#[test]
fn a_query_that_is_not_finite_has_no_finite_scores_and_harms_no_other() {
    let mut prepared = PreparedQueries::default();
    for (format, head_dim) in shapes(&[64, 96]) {
        let mut inputs = Inputs::new(31);
        let keys = Input::Gaussian.keys(&mut inputs, fit_tokens(format, head_dim), head_dim);
        let coder = fitted(format, head_dim, &keys);
        let codes = encoded(&coder, &keys[..128 * head_dim]);
        let queries = inputs.gaussian_rows(2, head_dim, 1.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut damaged = queries.clone();
            damaged[3] = bad;
            for (precision, level) in runs() {
                let mut scores = |queries: &[f32]| {
                    coder.prepare(queries, 1.0, precision, &mut prepared);
                    let mut scores = vec![0.0; 2 * 128];
                    let rows = ScoreRows { scores: &mut scores, stride: 128, maxima: &mut [] };
                    coder.score(level, &prepared, &codes, 128, rows);
                    scores
                };
                let (found, right) = (scores(&damaged), scores(&queries));
                let name = format!("{format} {head_dim} {bad} {level} {precision:?}");
                assert!(found[..128].iter().all(|x| !x.is_finite()), "{name}: {:?}", &found[..4]);
                assert_eq!(found[128..], right[128..], "{name}");
            }
        }
    }
}

#[test]
#[should_panic = "queries for this coder"]
fn queries_of_another_coder_are_refused() {
    let keys = Inputs::new(1).gaussian_rows(128, 64, 1.0);
    let [a, b] = ["int8-token", "f16"].map(|name| fitted(name.parse().unwrap(), 64, &keys));
    let mut prepared = PreparedQueries::default();
    a.prepare(&keys[..64], 1.0, Precision::Exact, &mut prepared);
    let rows = ScoreRows { scores: &mut [0.0; 128], stride: 128, maxima: &mut [] };
    b.score(Level::SCALAR, &prepared, &encoded(&b, &keys), 128, rows);
}
