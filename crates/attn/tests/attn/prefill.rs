//! Prefill against the f64 reference, on every level and over the table of cases below.

use heterokv_attn::reference::{ReferenceAttention, causal_attention};
use heterokv_attn::{AttnError, HeadShape, PrefillInput, PrefillOutput, prefill};
use heterokv_quant::Level;
use heterokv_testkit::inputs::constant_rows;
use heterokv_testkit::{Controls, Guarded, Inputs, Mismatch, Sabotage, Tolerance, compare};

/// What the tokens look like.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Gaussian,
    /// Two tokens whose keys are twenty times larger.
    Sinks,
    /// Two channels that are thirty times larger in every key.
    Heavy,
    /// All keys equal: a uniform softmax.
    Constant,
    Zeros,
    /// Scores of a size at which nearly all the mass is on one token.
    Peaked,
}

struct Case {
    heads: (usize, usize, usize),
    qo_len: usize,
    kv_len: usize,
    kind: Kind,
    seed: u64,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |heads, qo_len, kv_len, kind| {
        let seed = 100 + cases.len() as u64;
        cases.push(Case { heads, qo_len, kv_len, kind, seed });
    };
    // Every group size, at head sizes whole and not, over lengths around the panels of 16, the tiles of
    // 128 and the blocks of 384 rows (48 tokens at a group of 8, 128 at one of 3).
    for group_size in 1..=8 {
        for len in [1, 2, 15, 16, 17, 31, 47, 48, 49, 97] {
            add((group_size * 2, 2, 16), len, len, Kind::Gaussian);
        }
    }
    for head_dim in [1, 7, 8, 20, 64, 80, 96, 128] {
        for len in [1, 5, 16, 33, 67] {
            add((6, 2, head_dim), len, len, Kind::Gaussian);
        }
    }
    for len in [127, 128, 129, 131, 255, 256, 257] {
        add((9, 3, 64), len, len, Kind::Gaussian);
    }
    for len in [383, 384, 385] {
        add((1, 1, 8), len, len, Kind::Gaussian);
    }
    // More heads in a group than a block has rows.
    add((400, 1, 4), 3, 3, Kind::Gaussian);
    // The last queries over a longer context.
    for (qo_len, kv_len) in [(1, 2), (1, 128), (1, 129), (3, 300), (130, 131), (50, 200), (17, 145)]
    {
        add((9, 3, 64), qo_len, kv_len, Kind::Gaussian);
    }
    for kind in [Kind::Sinks, Kind::Heavy, Kind::Constant, Kind::Zeros, Kind::Peaked] {
        for len in [1, 17, 150] {
            add((4, 2, 32), len, len, kind);
        }
    }
    cases
}

struct Inputs3 {
    shape: HeadShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn name(&self, level: Level) -> String {
        let Self { heads, qo_len, kv_len, kind, .. } = self;
        format!("{level}, {heads:?}, {qo_len} over {kv_len}, {kind:?}")
    }

    fn inputs(&self) -> Inputs3 {
        let (num_qo_heads, num_kv_heads, head_dim) = self.heads;
        let shape = HeadShape::new(num_qo_heads, num_kv_heads, head_dim).expect("shape");
        let (qo_row, kv_row) = (shape.qo_row_len(), shape.kv_row_len());
        let mut inputs = Inputs::new(self.seed);
        let mut q = inputs.gaussian_rows(self.qo_len, qo_row, 1.0);
        let v = inputs.gaussian_rows(self.kv_len, kv_row, 1.0);
        let k = match self.kind {
            Kind::Gaussian => inputs.gaussian_rows(self.kv_len, kv_row, 1.0),
            Kind::Sinks => inputs.sink_tokens(self.kv_len, kv_row, 2, 20.0),
            Kind::Heavy => inputs.heavy_channels(self.kv_len, kv_row, 2, 30.0),
            Kind::Constant => constant_rows(self.kv_len, kv_row, 0.75),
            Kind::Zeros => {
                q.fill(0.0);
                constant_rows(self.kv_len, kv_row, 0.0)
            }
            Kind::Peaked => inputs.gaussian_rows(self.kv_len, kv_row, 40.0),
        };
        Inputs3 { shape, q, k, v }
    }
}

impl Inputs3 {
    fn reference(&self) -> ReferenceAttention {
        causal_attention(&self.shape, &self.q, &self.k, &self.v)
    }

    fn input(&self) -> PrefillInput<'_> {
        PrefillInput { q: &self.q, k: &self.k, v: &self.v }
    }

    /// Outputs and lse, from buffers that show what was not written and what should not have been.
    fn run(&self, level: Level) -> (Vec<f32>, Vec<f32>) {
        let mut out = Guarded::<f32>::new(self.q.len());
        let mut lse = Guarded::<f32>::new(self.q.len() / self.shape.head_dim);
        let output = PrefillOutput { out: out.payload_mut(), lse: Some(lse.payload_mut()) };
        prefill(level, &self.shape, self.input(), output).expect("good inputs");
        (out.check().expect("out").to_vec(), lse.check().expect("lse").to_vec())
    }

    /// The same in f32 as one would write it down: what the tolerances are derived from.
    fn naive(&self) -> (Vec<f32>, Vec<f32>) {
        let HeadShape { num_qo_heads, num_kv_heads, head_dim, sm_scale } = self.shape;
        let qo_len = self.q.len() / (num_qo_heads * head_dim);
        let offset = self.k.len() / (num_kv_heads * head_dim) - qo_len;
        let (mut outs, mut lses) = (Vec::new(), Vec::new());
        for (row, query) in self.q.chunks_exact(head_dim).enumerate() {
            let (token, head) = (row / num_qo_heads, row % num_qo_heads);
            let kv_head = head / (num_qo_heads / num_kv_heads);
            let kv = |tensor: &[f32], t: usize| {
                tensor[(t * num_kv_heads + kv_head) * head_dim..][..head_dim].to_vec()
            };
            let scores: Vec<f32> = (0..=offset + token)
                .map(|t| {
                    query.iter().zip(kv(&self.k, t)).map(|(q, k)| q * k).sum::<f32>() * sm_scale
                })
                .collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
            let mut out = vec![0.0; head_dim];
            for (t, score) in scores.iter().enumerate() {
                for (out, value) in out.iter_mut().zip(kv(&self.v, t)) {
                    *out += (score - max).exp() / sum * value;
                }
            }
            outs.extend(out);
            lses.push(max + sum.ln());
        }
        (outs, lses)
    }

    /// Tolerances for the outputs and for the lse.
    fn tolerances(&self, reference: &ReferenceAttention) -> (Tolerance, Tolerance) {
        let largest =
            |values: &[f32]| f64::from(values.iter().fold(0.0_f32, |m, x| m.max(x.abs())));
        let (naive_out, naive_lse) = self.naive();
        let epsilon = f64::from(f32::EPSILON);
        // A score's rounding error grows with its terms, and reaches weights and lse as it is.
        let score_norm = 1.0
            + largest(&self.q)
                * largest(&self.k)
                * f64::from(self.shape.sm_scale)
                * (self.shape.head_dim as f64).sqrt();
        let out_norm = largest(&self.v) * score_norm;
        (
            Tolerance::derived(&naive_out, &reference.out, epsilon, out_norm),
            Tolerance::derived(&naive_lse, &reference.lse, epsilon, score_norm),
        )
    }
}

#[test]
fn matches_the_reference_on_every_case_and_level() {
    let (mut num_compared, mut worst_share, mut worst_error) = (0, 0.0_f64, 0.0_f64);
    for case in cases() {
        let inputs = case.inputs();
        let reference = inputs.reference();
        let (out_tolerance, lse_tolerance) = inputs.tolerances(&reference);
        for level in Level::available() {
            let (out, lse) = inputs.run(level);
            let check = || -> Result<_, Mismatch> {
                let lse = compare(&lse, &reference.lse, lse_tolerance)?;
                Ok((lse, compare(&out, &reference.out, out_tolerance)?))
            };
            let (lse, out) =
                check().unwrap_or_else(|e| panic!("{}", e.at(case.name(level), case.seed)));
            num_compared += out.num_compared + lse.num_compared;
            worst_share = worst_share.max(out.worst_share).max(lse.worst_share);
            if matches!(case.kind, Kind::Gaussian) {
                worst_error = worst_error.max(out.max_error);
            }
        }
    }
    println!(
        "{num_compared} numbers, at worst {worst_share:.2} of the tolerance, largest gaussian error \
         {worst_error:e}"
    );
    assert!(num_compared > 1_000_000);
}

#[test]
fn the_comparison_can_fail() {
    let case = Case { heads: (6, 2, 16), qo_len: 40, kv_len: 40, kind: Kind::Gaussian, seed: 3 };
    let inputs = case.inputs();
    let reference = inputs.reference();
    let (out_tolerance, lse_tolerance) = inputs.tolerances(&reference);
    for level in Level::available() {
        let (out, lse) = inputs.run(level);
        let tried = Controls { num_heads: 6, head_dim: 16 }
            .assert_rejects(&out, |out| compare(out, &reference.out, out_tolerance));
        assert_eq!(tried, Sabotage::ALL);
        let tried = Controls { num_heads: 6, head_dim: 1 }
            .assert_rejects(&lse, |lse| compare(lse, &reference.lse, lse_tolerance));
        assert_eq!(tried, Sabotage::ALL);
    }
}

#[test]
fn one_visible_token_too_many_or_too_few_is_seen() {
    let case = Case { heads: (3, 1, 16), qo_len: 130, kv_len: 131, kind: Kind::Gaussian, seed: 4 };
    let inputs = case.inputs();
    let reference = inputs.reference();
    let (out_tolerance, _) = inputs.tolerances(&reference);
    let kv_row = inputs.shape.kv_row_len();
    // Dropping the last key, or the first, moves what every query sees by one.
    let (dropped_last, dropped_first) = (130 * kv_row, kv_row);
    for range in [0..dropped_last, dropped_first..131 * kv_row] {
        let (k, v) = (inputs.k[range.clone()].to_vec(), inputs.v[range].to_vec());
        let shifted = Inputs3 { shape: inputs.shape, q: inputs.q.clone(), k, v };
        for level in Level::available() {
            let (out, _) = shifted.run(level);
            assert!(compare(&out, &reference.out, out_tolerance).is_err(), "{level}");
        }
    }
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let case = Case { heads: (9, 3, 64), qo_len: 500, kv_len: 517, kind: Kind::Sinks, seed: 5 };
    let inputs = case.inputs();
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for level in Level::available() {
        let mut first = None;
        for num_threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build();
            let (out, lse) = pool.expect("threads").install(|| inputs.run(level));
            let run = (bits(&out), bits(&lse));
            assert!(*first.get_or_insert_with(|| run.clone()) == run, "{level}, {num_threads}");
        }
    }
}

#[test]
fn chunks_of_queries_give_what_the_whole_gives() {
    let case = Case { heads: (4, 2, 32), qo_len: 200, kv_len: 200, kind: Kind::Gaussian, seed: 6 };
    let inputs = case.inputs();
    let reference = inputs.reference();
    let (out_tolerance, _) = inputs.tolerances(&reference);
    let (qo_row, kv_row) = (inputs.shape.qo_row_len(), inputs.shape.kv_row_len());
    for level in Level::available() {
        let mut out = Vec::new();
        for (start, end) in [(0, 61), (61, 62), (62, 200)] {
            let chunk = Inputs3 {
                shape: inputs.shape,
                q: inputs.q[start * qo_row..end * qo_row].to_vec(),
                k: inputs.k[..end * kv_row].to_vec(),
                v: inputs.v[..end * kv_row].to_vec(),
            };
            out.extend(chunk.run(level).0);
        }
        compare(&out, &reference.out, out_tolerance).unwrap_or_else(|e| panic!("{level}: {e}"));
    }
}

#[test]
fn no_queries_are_no_work_and_lse_is_optional() {
    let shape = HeadShape::new(4, 2, 8).expect("shape");
    for level in Level::available() {
        for kv_len in [0, 3] {
            let kv = vec![1.0; kv_len * shape.kv_row_len()];
            let input = PrefillInput { q: &[], k: &kv, v: &kv };
            let output = PrefillOutput { out: &mut [], lse: Some(&mut []) };
            assert_eq!(prefill(level, &shape, input, output), Ok(()));
        }
        let case = Case { heads: (4, 2, 8), qo_len: 9, kv_len: 9, kind: Kind::Gaussian, seed: 7 };
        let inputs = case.inputs();
        let mut out = vec![f32::NAN; inputs.q.len()];
        let output = PrefillOutput { out: &mut out, lse: None };
        assert_eq!(prefill(level, &shape, inputs.input(), output), Ok(()));
        assert_eq!(out, inputs.run(level).0);
    }
}

#[test]
fn scores_that_overflow_are_seen_as_nan() {
    for level in Level::available() {
        let shape = HeadShape::new(1, 1, 8).expect("shape");
        let (huge, v) = (vec![1e30; 3 * 8], vec![1.0; 3 * 8]);
        let inputs = Inputs3 { shape, q: huge.clone(), k: huge, v };
        let mut out = vec![0.0; 24];
        let output = PrefillOutput { out: &mut out, lse: None };
        prefill(level, &shape, inputs.input(), output).expect("finite inputs");
        assert!(out.iter().all(|x| x.is_nan()), "{level}: {out:?}");
    }
}

#[test]
fn bad_calls_are_refused_before_anything_is_written() {
    let shape = HeadShape::new(4, 2, 8).expect("shape");
    let good = (vec![0.5; 3 * 32], vec![0.5; 3 * 16], vec![0.5; 3 * 16]);
    let refuse = |shape: HeadShape, q: &[f32], k: &[f32], v: &[f32], out_len: usize, lse_len| {
        let mut out = Guarded::<f32>::new(out_len);
        let mut lse = Guarded::<f32>::new(lse_len);
        let output = PrefillOutput { out: out.payload_mut(), lse: Some(lse.payload_mut()) };
        let error = prefill(Level::detect(), &shape, PrefillInput { q, k, v }, output);
        assert!(out.check().is_err() && lse.check().is_err(), "nothing may be written");
        error.expect_err("a bad call")
    };
    let (q, k, v) = (&good.0[..], &good.1[..], &good.2[..]);
    for heads in [(0, 2, 8), (4, 0, 8), (4, 2, 0), (4, 3, 8), (usize::MAX - 1, 2, 8)] {
        let (num_qo_heads, num_kv_heads, head_dim) = heads;
        let bad = HeadShape { num_qo_heads, num_kv_heads, head_dim, sm_scale: 1.0 };
        assert!(matches!(refuse(bad, q, k, v, 96, 12), AttnError::HeadShape { .. }), "{heads:?}");
    }
    for sm_scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let bad = HeadShape { sm_scale, ..shape };
        assert!(matches!(refuse(bad, q, k, v, 96, 12), AttnError::SmScale { .. }), "{sm_scale}");
    }
    let ragged = |tensor, len, row_len| AttnError::RaggedRows { tensor, len, row_len };
    assert_eq!(refuse(shape, &q[1..], k, v, 96, 12), ragged("q", 95, 32));
    assert_eq!(refuse(shape, q, &k[1..], v, 96, 12), ragged("k", 47, 16));
    let length = |tensor, expected, actual| AttnError::Length { tensor, expected, actual };
    assert_eq!(refuse(shape, q, k, &v[1..], 96, 12), length("v", 48, 47));
    assert_eq!(refuse(shape, q, k, v, 97, 12), length("out", 96, 97));
    assert_eq!(refuse(shape, q, k, v, 96, 11), length("lse", 12, 11));
    let queries = AttnError::QueriesExceedKeys { qo_len: 3, kv_len: 2 };
    assert_eq!(refuse(shape, q, &k[16..], &v[16..], 96, 12), queries);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for tensor in 0..3 {
            let mut bad = good.clone();
            let (name, values) = [("q", &mut bad.0), ("k", &mut bad.1), ("v", &mut bad.2)]
                .into_iter()
                .nth(tensor)
                .expect("three");
            values[41] = value;
            let error = refuse(shape, &bad.0, &bad.1, &bad.2, 96, 12);
            let expected = |error: &AttnError| matches!(error, AttnError::NotFinite { tensor, index: 41, .. } if *tensor == name);
            assert!(expected(&error), "{error}");
        }
    }
}
