//! Both kernels against sums in f64 of the values that the vectors hold, on every level.

use heterokv_testkit::{Controls, Guarded, Inputs, Tolerance, compare};

use super::*;
use crate::grouped::{GroupSize, Grouped};
use crate::saturate::{to_bf16, to_f16, to_fp8};

const HEAD_DIMS: [usize; 14] = [1, 2, 7, 8, 9, 15, 16, 17, 32, 64, 80, 96, 127, 128];
const NUM_HEADS: [usize; 11] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17];
const COUNTS: [usize; 5] = [1, 2, 3, 17, 130];

/// Vectors of one format, and what they hold.
struct Case<V> {
    vector: V,
    num_heads: usize,
    count: usize,
    /// The bytes of every vector, one beside the next.
    bytes: Vec<u8>,
    /// `[count, head_dim]`.
    values: Vec<f64>,
    inputs: Inputs,
}

/// Calls `check` with every shape of every format.
fn for_each_case(check: impl Checked) {
    for (seed, &head_dim) in HEAD_DIMS.iter().enumerate() {
        let mut seed = 1000 * seed as u64;
        for num_heads in NUM_HEADS {
            for count in COUNTS {
                seed += 1;
                let shape = (seed, num_heads, count);
                let bf16 = |x: f32| to_bf16(x).to_le_bytes().to_vec();
                check.check(Case::of_elements(Bf16 { head_dim }, shape, bf16));
                check.check(Case::of_elements(Fp8 { head_dim }, shape, |x| vec![to_fp8(x)]));
                let f16 = |x: f32| to_f16(x).to_le_bytes().to_vec();
                check.check(Case::of_elements(F16 { head_dim }, shape, f16));
                check.check(Case::of_int8(Int8 { head_dim }, shape));
                let grouped = |bits| Grouped::new(bits, head_dim, GroupSize::G32);
                check.check(Case::<Integers<2>>::of_integers(grouped(2), shape));
                check.check(Case::<Integers<3>>::of_integers(grouped(3), shape));
                check.check(Case::<Integers<4>>::of_integers(grouped(4), shape));
                check.check(Case::<Integers<6>>::of_integers(grouped(6), shape));
                check.check(Case::<Integers<8>>::of_integers(grouped(8), shape));
                let grouped = |bits| Grouped::new(bits, head_dim, GroupSize::G64);
                check.check(Case::<Integers<4>>::of_integers(grouped(4), shape));
                check.check(Case::<Integers<6>>::of_integers(grouped(6), shape));
            }
        }
    }
}

/// A check of any format: a closure cannot be generic.
trait Checked {
    fn check<V: Vector>(&self, case: Case<V>);
}

impl<const BITS: u8> Case<Integers<BITS>> {
    fn of_integers(grouped: Grouped, (seed, num_heads, count): (u64, usize, usize)) -> Self {
        let mut inputs = Inputs::new(seed);
        let values = inputs.heavy_channels(count, grouped.head_dim(), 1, 5.0);
        let mut bytes = vec![0xA5; count * grouped.num_bytes()];
        let vectors = bytes.chunks_exact_mut(grouped.num_bytes());
        for (x, out) in values.chunks_exact(grouped.head_dim()).zip(vectors) {
            grouped.encode(x, out);
        }
        Self::new(Integers::new(grouped), num_heads, bytes, inputs)
    }
}

impl Case<Int8> {
    fn of_int8(vector: Int8, (seed, num_heads, count): (u64, usize, usize)) -> Self {
        let mut inputs = Inputs::new(seed);
        let vectors = (0..count).flat_map(|i| {
            let mut bytes: Vec<u8> = (0..vector.head_dim).map(|_| inputs.bits() as u8).collect();
            bytes.extend(to_f16(0.01 * (i % 7) as f32).to_le_bytes());
            bytes
        });
        let bytes = vectors.collect();
        Self::new(vector, num_heads, bytes, inputs)
    }
}

impl<V: Vector> Case<V> {
    /// Vectors whose elements are coded one by one.
    fn of_elements(
        vector: V,
        (seed, num_heads, count): (u64, usize, usize),
        coded: impl Fn(f32) -> Vec<u8>,
    ) -> Self {
        let mut inputs = Inputs::new(seed);
        let values = inputs.gaussian_rows(count, vector.head_dim(), 2.0);
        let bytes = values.iter().flat_map(|&x| coded(x)).collect();
        Self::new(vector, num_heads, bytes, inputs)
    }

    /// What the bytes hold is what `eight` and `scale` say, which the tests of the formats hold to their definition.
    fn new(vector: V, num_heads: usize, bytes: Vec<u8>, inputs: Inputs) -> Self {
        let head_dim = vector.head_dim();
        let decoded = bytes.chunks_exact(vector.num_bytes()).flat_map(|bytes| {
            let chunks = (0..head_dim.div_ceil(LANES)).flat_map(|chunk| vector.eight(bytes, chunk));
            let all: Vec<f32> = chunks.collect();
            assert!(all[head_dim..].iter().all(|&x| x == 0.0), "nothing beyond the end");
            let scale = f64::from(vector.scale(bytes));
            all.into_iter().take(head_dim).map(move |x| scale * f64::from(x))
        });
        let values: Vec<f64> = decoded.collect();
        let count = values.len() / head_dim;
        Self { vector, num_heads, count, bytes, values, inputs }
    }

    fn label(&self, level: Level) -> String {
        let (format, head_dim) = (std::any::type_name::<V>(), self.vector.head_dim());
        format!("{format} {level}, {} heads of {head_dim}, {} vectors", self.num_heads, self.count)
    }

    /// `Σ |a b|` over the products of one result, times what one rounding per product and sum can do.
    fn tolerance(&self, sizes: f64, num_products: usize) -> Tolerance {
        let roundings = (num_products + 2) as f64 * f64::from(f32::EPSILON) / 2.0;
        Tolerance { absolute: roundings * sizes, relative: f64::from(f32::EPSILON) }
    }
}

struct Scores;

impl Checked for Scores {
    fn check<V: Vector>(&self, mut case: Case<V>) {
        let (head_dim, num_heads, count) = (case.vector.head_dim(), case.num_heads, case.count);
        let queries = case.inputs.gaussian_rows(num_heads, head_dim, 1.0);
        let products = |q: &[f32], x: &[f64]| -> Vec<f64> {
            q.iter().zip(x).map(|(&q, x)| f64::from(q) * x).collect()
        };
        let pairs = queries
            .chunks(head_dim)
            .flat_map(|q| case.values.chunks(head_dim).map(move |x| products(q, x)));
        let pairs: Vec<Vec<f64>> = pairs.collect();
        let expected: Vec<f64> = pairs.iter().map(|pair| pair.iter().sum()).collect();
        let size = |pair: &Vec<f64>| pair.iter().map(|x| x.abs()).sum::<f64>();
        let tolerance = case.tolerance(pairs.iter().map(size).fold(0.0, f64::max), head_dim);
        for level in Level::available() {
            let stride = count + 3;
            let mut out = Guarded::<f32>::new((num_heads - 1) * stride + count);
            let lists = (VectorList::Beside(&case.bytes), VectorList::NONE);
            score(level, case.vector, &queries, lists, out.payload_mut(), stride);
            let out = out.check_bands().expect("nothing outside is written");
            let written = out.iter().filter(|x| !x.is_nan()).count();
            assert_eq!(written, num_heads * count, "the gaps are left as they were");
            let scores: Vec<f32> =
                out.chunks(stride).flat_map(|row| &row[..count]).copied().collect();
            if let Err(mismatch) = compare(&scores, &expected, tolerance) {
                panic!("{}", mismatch.at(case.label(level), case.inputs.seed()));
            }
            // What is beside a vector, and where it lies, changes no bit.
            let vectors: Vec<&[u8]> = case.bytes.chunks_exact(case.vector.num_bytes()).collect();
            for (i, pair) in vectors.chunks(2).enumerate() {
                let list = VectorList::InRows { rows: pair, at: 0 };
                let mut two = vec![f32::NAN; 2 * num_heads];
                score(level, case.vector, &queries, (list, list), &mut two, 2);
                for (head, two) in two.chunks(2).enumerate() {
                    let of_head = &scores[head * count..][2 * i..][..pair.len()];
                    assert_eq!(two[..pair.len()], *of_head, "{}", case.label(level));
                }
            }
            if (head_dim, num_heads, count) == (64, 3, 17) {
                Controls { num_heads: 3, head_dim: 17 }
                    .assert_rejects(&scores, |scores| compare(scores, &expected, tolerance));
            }
        }
    }
}

#[test]
fn scores_are_those_of_f64() {
    for_each_case(Scores);
}

struct Sums;

impl Checked for Sums {
    fn check<V: Vector>(&self, mut case: Case<V>) {
        let (head_dim, num_heads, count) = (case.vector.head_dim(), case.num_heads, case.count);
        let start = case.inputs.gaussian_rows(num_heads, head_dim, 1.0);
        let stride = count + 2;
        let mut weights = vec![f32::NAN; (num_heads - 1) * stride + count];
        for row in weights.chunks_mut(stride) {
            row[..count].copy_from_slice(&case.inputs.gaussian_rows(1, count, 1.0));
        }
        let (mut expected, mut largest) = (vec![], 0.0f64);
        for (i, &start) in start.iter().enumerate() {
            let (head, channel) = (i / head_dim, i % head_dim);
            let products = (0..count).map(|row| {
                f64::from(weights[head * stride + row]) * case.values[row * head_dim + channel]
            });
            let terms: Vec<f64> = products.chain([f64::from(start)]).collect();
            expected.push(terms.iter().sum::<f64>());
            largest = largest.max(terms.iter().map(|x| x.abs()).sum());
        }
        let tolerance = case.tolerance(largest, count);
        let vectors: Vec<&[u8]> = case.bytes.chunks_exact(case.vector.num_bytes()).collect();
        let in_rows = VectorList::InRows { rows: &vectors, at: 0 };
        for level in Level::available() {
            let mut sums = Guarded::<f32>::new(num_heads * head_dim);
            sums.payload_mut().copy_from_slice(&start);
            let beside = VectorList::Beside(&case.bytes);
            // What comes next is as many, fewer or lies otherwise: nothing is read of it.
            let lists = (beside, if num_heads % 2 == 0 { beside } else { in_rows });
            weighted_sum(level, case.vector, lists, &weights, stride, sums.payload_mut());
            let sums = sums.check().expect("nothing outside is written");
            let mut of_rows = start.clone();
            let fewer = VectorList::InRows { rows: &vectors[..count / 2], at: 0 };
            let lists = (in_rows, if num_heads % 2 == 0 { in_rows } else { fewer });
            weighted_sum(level, case.vector, lists, &weights, stride, &mut of_rows);
            assert_eq!(of_rows, sums, "where vectors lie changes no bit: {}", case.label(level));
            if let Err(mismatch) = compare(sums, &expected, tolerance) {
                panic!("{}", mismatch.at(case.label(level), case.inputs.seed()));
            }
            if (head_dim, num_heads, count) == (64, 9, 17) {
                Controls { num_heads, head_dim }
                    .assert_rejects(sums, |sums| compare(sums, &expected, tolerance));
            }
        }
    }
}

#[test]
fn weighted_sums_are_those_of_f64() {
    for_each_case(Sums);
}

#[test]
fn a_vector_that_would_begin_behind_all_memory_is_refused() {
    let row = [0u8; 16];
    let vectors = VectorList::InRows { rows: &[&row], at: usize::MAX - 7 };
    for level in Level::available() {
        let scored = std::panic::catch_unwind(|| {
            let lists = (vectors, VectorList::NONE);
            score(level, Bf16 { head_dim: 8 }, &[1.0; 8], lists, &mut [0.0], 1);
        });
        let panic = scored.expect_err("no row has a vector");
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        assert_eq!(text, Some("a vector in each row"), "{level}");
    }
}

#[test]
fn nothing_to_sum_or_to_score_changes_nothing() {
    for level in Level::available() {
        let (bytes, vector) = ([0u8; 16], Bf16 { head_dim: 8 });
        let mut out = [7.0; 8];
        let (beside, none) = (VectorList::Beside(&bytes), VectorList::NONE);
        let empty = Bf16 { head_dim: 0 };
        let no_bytes = VectorList::InRows { rows: &[&[]], at: 0 };
        score(level, vector, &[], (beside, beside), &mut out, 1);
        score(level, vector, &[1.0; 8], (none, beside), &mut out, 1);
        score(level, empty, &[], (no_bytes, none), &mut out, 1);
        weighted_sum(level, vector, (none, beside), &[], 1, &mut out);
        weighted_sum(level, vector, (beside, none), &[], 1, &mut []);
        weighted_sum(level, empty, (no_bytes, none), &[1.0], 1, &mut []);
        assert_eq!(out, [7.0; 8]);
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn forms_for_avx_512_are_run_or_counted_as_skipped() {
    if Level::avx512().is_none() {
        println!(
            "SKIPPED: this CPU has no AVX-512 with VBMI and VNNI; quant's forms for it were not run"
        );
    }
}
