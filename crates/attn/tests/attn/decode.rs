//! One decode step of a query group against attention in f64, over resident and host rows.
//!
//! What must not be read is NaN: rows that were not asked for, and the gaps between the scores of one
//! head and the next. What is read by mistake therefore spreads into the result.

use heterokv_attn::reference::{ReferenceHead, partial_softmax};
use heterokv_attn::{AttnState, GroupSum, HostScores, ResidentRows};
use heterokv_quant::rows::page_spans;
use heterokv_quant::{GroupSize, Level, PageRows, RowFormat, RowLayout, RowSource};
use heterokv_testkit::{Controls, Inputs, Mismatch, Sabotage, Tolerance, compare};
use proptest::prelude::*;

const NUM_ROWS: [usize; 8] = [0, 1, 63, 64, 65, 128, 129, 300];
const HEAD_DIMS: [usize; 5] = [8, 16, 64, 80, 128];
const MAX_HEADS: usize = 9;

/// Rows of one KV head in pages; `fails_at` is the page that cannot be read, and pages come in steps of `stride`
/// through the list, around and around.
struct Pages {
    layout: RowLayout,
    page_size: usize,
    bytes: Vec<u8>,
    fails_at: Option<u32>,
    stride: usize,
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("page {0} is lost")]
struct LostPage(u32);

impl RowSource for Pages {
    type Error = LostPage;

    fn layout(&self) -> RowLayout {
        self.layout
    }

    fn visit_rows(
        &self,
        positions: &[u32],
        visit: &mut dyn FnMut(PageRows<'_>),
    ) -> Result<(), LostPage> {
        let pages: Vec<_> = page_spans(positions, self.page_size as u32).collect();
        let order = (0..self.stride).flat_map(|first| (first..pages.len()).step_by(self.stride));
        for (page, span) in order.map(|place| pages[place].clone()) {
            if Some(page) == self.fails_at {
                return Err(LostPage(page));
            }
            let page_bytes = self.page_size * self.layout.row_bytes();
            let first = page as usize * page_bytes;
            let end = self.bytes.len().min(first + page_bytes);
            let first_row = page * self.page_size as u32;
            let (offset, rows) = (span.start, &positions[span]);
            visit(PageRows { bytes: &self.bytes[first..end], first_row, rows, offset });
        }
        Ok(())
    }
}

/// Keys and values of a number of tokens, and the queries of a group.
struct Case {
    seed: u64,
    num_heads: usize,
    head_dim: usize,
    /// `[num_heads, head_dim]`, times the scale.
    queries: Vec<f32>,
    /// `[num_rows, head_dim]`.
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Case {
    fn new(seed: u64, num_heads: usize, head_dim: usize, num_rows: usize) -> Self {
        let mut inputs = Inputs::new(seed);
        let scale = 1.5 / (head_dim as f32).sqrt();
        Self {
            seed,
            num_heads,
            head_dim,
            queries: inputs.gaussian_rows(num_heads, head_dim, scale),
            keys: inputs.gaussian_rows(num_rows, head_dim, 1.0),
            values: inputs.gaussian_rows(num_rows, head_dim, 1.0),
        }
    }

    fn num_rows(&self) -> usize {
        self.keys.len() / self.head_dim
    }

    /// What `x` is after it was stored.
    fn stored(&self, format: RowFormat, x: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0; format.bytes(self.head_dim)];
        let mut out = vec![0.0; x.len()];
        for (x, out) in x.chunks_exact(self.head_dim).zip(out.chunks_exact_mut(self.head_dim)) {
            format.encode(x, &mut bytes).expect("finite");
            format.decode(&bytes, out);
        }
        out
    }

    fn f16_bytes(&self, x: &[f32]) -> Vec<u8> {
        let rows = x.chunks_exact(self.head_dim).flat_map(|x| {
            let mut bytes = vec![0; 2 * self.head_dim];
            RowFormat::F16.encode(x, &mut bytes).expect("finite");
            bytes
        });
        rows.collect()
    }

    /// Scores of every head over `keys`, and the softmax over those `taken`.
    fn scores(&self, keys: &[f32]) -> Vec<Vec<f64>> {
        let dot = |q: &[f32], k: &[f32]| -> f64 {
            q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum()
        };
        let heads = self.queries.chunks_exact(self.head_dim);
        heads.map(|q| keys.chunks_exact(self.head_dim).map(|k| dot(q, k)).collect()).collect()
    }

    /// The rows in a store of which only every `1 + gap`-th is asked for; the others are NaN.
    fn pages(&self, layout: RowLayout, page_size: usize, gap: usize) -> (Pages, Vec<u32>) {
        let positions: Vec<u32> =
            (0..self.num_rows()).map(|i| (i * (1 + gap) + i % (1 + gap)) as u32).collect();
        let row_bytes = layout.row_bytes();
        let len = positions.last().map_or(0, |&last| last as usize + 3) * row_bytes;
        let mut bytes = vec![0xFF; len];
        for (i, &row) in positions.iter().enumerate() {
            let span = i * self.head_dim..(i + 1) * self.head_dim;
            let out = &mut bytes[row as usize * row_bytes..][..row_bytes];
            layout.encode(&self.keys[span.clone()], &self.values[span], out).expect("finite");
        }
        (Pages { layout, page_size, bytes, fails_at: None, stride: 1 }, positions)
    }

    /// Compares with softmax over `scores` applied to `values`, head by head.
    fn check(
        &self,
        state: &AttnState,
        scores: &[Vec<f64>],
        values: &[f32],
    ) -> Result<(), Mismatch> {
        let heads: Vec<ReferenceHead> =
            scores.iter().map(|s| partial_softmax(s, values, self.head_dim)).collect();
        self.check_out(state.out(), scores, values)?;
        let lse: Vec<f64> = heads.iter().map(|head| head.lse).collect();
        // The largest score is below 30 here; a score is a sum of head_dim rounded products.
        let absolute = f64::from(f32::EPSILON) * 30.0 * (self.head_dim as f64).sqrt().max(8.0);
        compare(state.lse(), &lse, Tolerance { absolute, relative: 1e-6 })?;
        Ok(())
    }

    fn check_out(&self, out: &[f32], scores: &[Vec<f64>], values: &[f32]) -> Result<(), Mismatch> {
        let expected: Vec<f64> =
            scores.iter().flat_map(|s| partial_softmax(s, values, self.head_dim).out).collect();
        let naive: Vec<f32> = scores.iter().flat_map(|s| self.naive(s, values)).collect();
        let largest = values.iter().fold(1.0, |m: f64, &v| m.max(f64::from(v).abs()));
        let tolerance =
            Tolerance::derived(&naive, &expected, f64::from(f32::EPSILON), 16.0 * largest);
        compare(out, &expected, tolerance).map(drop)
    }

    /// Softmax of one head in f32, as a textbook writes it.
    fn naive(&self, scores: &[f64], values: &[f32]) -> Vec<f32> {
        let scores: Vec<f32> = scores.iter().map(|&s| s as f32).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut out = vec![0.0; self.head_dim];
        if max == f32::NEG_INFINITY {
            return out;
        }
        let mut sum = 0.0;
        for (score, value) in scores.iter().zip(values.chunks_exact(self.head_dim)) {
            let weight = (score - max).exp();
            sum += weight;
            out.iter_mut().zip(value).for_each(|(out, v)| *out += weight * v);
        }
        out.iter_mut().for_each(|out| *out /= sum);
        out
    }

    fn sum(&self) -> GroupSum {
        GroupSum::new(self.num_heads, self.head_dim)
    }

    fn state(&self, sum: &GroupSum) -> AttnState {
        let mut state = AttnState::empty(self.num_heads, self.head_dim);
        sum.merge_into(&mut state);
        state
    }

    #[track_caller]
    fn assert(&self, label: &str, state: &AttnState, scores: &[Vec<f64>], values: &[f32]) {
        if let Err(mismatch) = self.check(state, scores, values) {
            let shape = format!(
                "{label}, {} rows, {} heads of {}",
                self.num_rows(),
                self.num_heads,
                self.head_dim
            );
            panic!("{}", mismatch.at(shape, self.seed));
        }
    }
}

/// Every case of the table on every level.
fn for_each_case(mut visit: impl FnMut(&Case, Level)) {
    let mut seed = 0;
    for num_rows in NUM_ROWS {
        for num_heads in 1..=MAX_HEADS {
            for head_dim in HEAD_DIMS {
                seed += 1;
                let case = Case::new(seed, num_heads, head_dim, num_rows);
                Level::available().into_iter().for_each(|level| visit(&case, level));
            }
        }
    }
}

/// Which tokens a head takes in masked cases; the last head of several takes none.
fn takes(case: &Case, head: usize, row: usize) -> bool {
    let none = case.num_heads > 1 && head + 1 == case.num_heads;
    !none && (row * 7 + head * 3) % 5 < 3
}

fn masked(case: &Case, mut scores: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    for (head, scores) in scores.iter_mut().enumerate() {
        for (row, score) in scores.iter_mut().enumerate() {
            if !takes(case, head, row) {
                *score = f64::NEG_INFINITY;
            }
        }
    }
    scores
}

/// `[num_heads, stride]` with NaN in the gaps, the last row without one.
fn with_stride(scores: &[Vec<f64>], stride: usize) -> Vec<f32> {
    let mut out = vec![];
    for scores in scores {
        out.resize(out.len().div_ceil(stride.max(1)) * stride, f32::NAN);
        out.extend(scores.iter().map(|&s| s as f32));
    }
    out
}

#[test]
fn resident_rows() {
    for_each_case(|case, level| {
        let (keys, values) = (case.f16_bytes(&case.keys), case.f16_bytes(&case.values));
        let mut sum = case.sum();
        // A second step in the same memory gives the same.
        for _ in 0..2 {
            sum.reset();
            sum.add_resident(level, &case.queries, ResidentRows { keys: &keys, values: &values });
            let stored = |x| case.stored(RowFormat::F16, x);
            let scores = case.scores(&stored(&case.keys));
            case.assert(&format!("{level}"), &case.state(&sum), &scores, &stored(&case.values));
        }
    });
}

#[test]
fn resident_rows_in_runs_and_their_scores() {
    for_each_case(|case, level| {
        let (keys, values) = (case.f16_bytes(&case.keys), case.f16_bytes(&case.values));
        let mut whole = case.sum();
        whole.add_resident(level, &case.queries, ResidentRows { keys: &keys, values: &values });
        let runs: Vec<ResidentRows<'_>> = keys
            .chunks(2 * case.head_dim * 37)
            .zip(values.chunks(2 * case.head_dim * 37))
            .map(|(keys, values)| ResidentRows { keys, values })
            .collect();
        let stride = case.num_rows() + 3;
        let mut scores = vec![f32::NAN; case.num_heads * stride];
        let mut sum = case.sum();
        sum.add_resident_runs(level, &case.queries, &runs, Some((&mut scores, stride)));
        // Where rows lie changes no bit.
        assert_eq!(case.state(&sum), case.state(&whole));
        let expected = case.scores(&case.stored(RowFormat::F16, &case.keys));
        for (head, expected) in expected.iter().enumerate() {
            let row = &scores[head * stride..][..stride];
            let (scores, gap) = row.split_at(case.num_rows());
            let near = |(score, expected): (&f32, &f64)| {
                (f64::from(*score) - expected).abs() <= 1e-4 * (1.0 + expected.abs())
            };
            assert!(scores.iter().zip(expected).all(near), "{level}: head {head}");
            assert!(gap.iter().all(|score| score.is_nan()), "what lies between is not written");
        }
    });
}

#[test]
fn host_rows_under_given_scores() {
    for_each_case(|case, level| {
        for (value, key) in [
            (RowFormat::F16, None),
            (RowFormat::Int8, Some(RowFormat::Int8)),
            (RowFormat::Int4 { group: GroupSize::G32 }, Some(RowFormat::F16)),
            (RowFormat::Int4 { group: GroupSize::G64 }, None),
        ] {
            let layout = RowLayout { key, value, head_dim: case.head_dim };
            let (pages, positions) = case.pages(layout, 37, 2);
            let scores = masked(case, case.scores(&case.keys));
            // What is given is f32, and so is what it is held to.
            let rounded: Vec<Vec<f64>> =
                scores.iter().map(|s| s.iter().map(|&s| f64::from(s as f32)).collect()).collect();
            let stride = case.num_rows() + 5;
            let given = with_stride(&scores, stride);
            let mut sum = case.sum();
            let scores = HostScores::Coded { scores: &given, stride };
            sum.add_host(level, &pages, &positions, scores).expect("no page is lost");
            let values = case.stored(value, &case.values);
            case.assert(&format!("coded {value} {level}"), &case.state(&sum), &rounded, &values);
        }
    });
}

#[test]
fn host_rows_that_are_scored_again() {
    for_each_case(|case, level| {
        for (key, value) in [
            (RowFormat::Int8, RowFormat::Int8),
            (RowFormat::F16, RowFormat::F16),
            (RowFormat::Int8, RowFormat::Int4 { group: GroupSize::G32 }),
        ] {
            let layout = RowLayout { key: Some(key), value, head_dim: case.head_dim };
            let (pages, positions) = case.pages(layout, 64, 1);
            let exact = case.scores(&case.stored(key, &case.keys));
            let values = case.stored(value, &case.values);
            let stride = case.num_rows() + 2;
            let taken: Vec<bool> = (0..case.num_heads * stride)
                .map(|i| i % stride >= case.num_rows() || takes(case, i / stride, i % stride))
                .collect();
            for (taken, expected) in
                [(None, exact.clone()), (Some((&taken[..], stride)), masked(case, exact))]
            {
                let mut sum = case.sum();
                let scores = HostScores::Exact { queries: &case.queries, taken };
                sum.add_host(level, &pages, &positions, scores).expect("no page is lost");
                let label = format!("exact {key} {level} masked {}", taken.is_some());
                case.assert(&label, &case.state(&sum), &expected, &values);
            }
        }
    });
}

#[test]
fn what_no_head_takes_leaves_an_empty_state() {
    let case = Case::new(5, 3, 16, 200);
    let layout = RowLayout { key: None, value: RowFormat::F16, head_dim: 16 };
    let (pages, positions) = case.pages(layout, 50, 0);
    let scores = vec![f32::NEG_INFINITY; 3 * 200];
    for level in Level::available() {
        let mut sum = case.sum();
        let given = HostScores::Coded { scores: &scores, stride: 200 };
        sum.add_host(level, &pages, &positions, given).expect("no page is lost");
        assert_eq!(case.state(&sum), AttnState::empty(3, 16));
        // What follows counts as if nothing had been before.
        let (keys, values) = (case.f16_bytes(&case.keys), case.f16_bytes(&case.values));
        let rows = ResidentRows { keys: &keys, values: &values };
        sum.add_resident(level, &case.queries, rows);
        let mut alone = case.sum();
        alone.add_resident(level, &case.queries, rows);
        assert_eq!(case.state(&sum), case.state(&alone));
    }
}

#[test]
fn far_scores_neither_overflow_nor_vanish() {
    // Falling and rising by more than f32's exponent holds, tile by tile.
    let case = Case::new(6, 2, 8, 300);
    let layout = RowLayout { key: None, value: RowFormat::F16, head_dim: 8 };
    let (pages, positions) = case.pages(layout, 300, 0);
    let values = case.stored(RowFormat::F16, &case.values);
    let rising: Vec<f64> = (0..300).map(|i| f64::from(i) * 10.0 - 1500.0).collect();
    let falling: Vec<f64> = rising.iter().rev().copied().collect();
    for level in Level::available() {
        let scores = [rising.clone(), falling.clone()];
        let given = with_stride(&scores, 300);
        let mut sum = case.sum();
        let coded = HostScores::Coded { scores: &given, stride: 300 };
        sum.add_host(level, &pages, &positions, coded).expect("no page is lost");
        let state = case.state(&sum);
        case.check_out(state.out(), &scores, &values).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn a_source_that_fails_half_way_is_an_error_and_a_reset_forgets_it() {
    let case = Case::new(7, 4, 64, 300);
    let layout = RowLayout { key: Some(RowFormat::F16), value: RowFormat::F16, head_dim: 64 };
    let (mut pages, positions) = case.pages(layout, 40, 0);
    let stored = |x| case.stored(RowFormat::F16, x);
    let (scores, values) = (case.scores(&stored(&case.keys)), stored(&case.values));
    for level in Level::available() {
        let mut sum = case.sum();
        for page in [0, 3, 7] {
            pages.fails_at = Some(page);
            let exact = HostScores::Exact { queries: &case.queries, taken: None };
            assert_eq!(sum.add_host(level, &pages, &positions, exact), Err(LostPage(page)));
            if page > 0 {
                let partial = case.check(&case.state(&sum), &scores, &values);
                assert!(partial.is_err(), "an incomplete sum is not taken for a complete one");
            }
            sum.reset();
            pages.fails_at = None;
            sum.add_host(level, &pages, &positions, exact).expect("no page is lost");
            case.assert("after a failure", &case.state(&sum), &scores, &values);
            sum.reset();
        }
    }
}

#[test]
fn the_order_in_which_pages_come_changes_no_bit() {
    let case = Case::new(10, 4, 64, 300);
    let layout = RowLayout { key: Some(RowFormat::Int8), value: RowFormat::Int8, head_dim: 64 };
    let (mut pages, positions) = case.pages(layout, 9, 1);
    let given = with_stride(&case.scores(&case.keys), 300);
    for level in Level::available() {
        let mut state_of = |stride: usize, scores: HostScores<'_>| {
            pages.stride = stride;
            let mut sum = case.sum();
            sum.add_host(level, &pages, &positions, scores).expect("no page is lost");
            case.state(&sum)
        };
        let exact = HostScores::Exact { queries: &case.queries, taken: None };
        for scores in [HostScores::Coded { scores: &given, stride: 300 }, exact] {
            let in_order = state_of(1, scores);
            for stride in [2, 7, 66] {
                assert_eq!(state_of(stride, scores), in_order, "{level} {stride}");
            }
        }
        let in_order = state_of(1, exact);
        let (other, _) = case.pages(layout, 11, 1);
        let mut sum = case.sum();
        sum.add_host(level, &other, &positions, exact).expect("no page is lost");
        assert_eq!(case.state(&sum), in_order, "{level}: pages of another size");
        // The same rows in two lists are another order of the same sums, and it shows.
        let mut sum = case.sum();
        let (first, rest) = positions.split_at(100);
        sum.add_host(level, &pages, first, exact).expect("no page is lost");
        sum.add_host(level, &pages, rest, exact).expect("no page is lost");
        assert_ne!(case.state(&sum), in_order, "{level}");
    }
}

#[test]
fn nan_is_not_lost() {
    let case = Case::new(8, 2, 16, 130);
    let layout = RowLayout { key: None, value: RowFormat::F16, head_dim: 16 };
    let (pages, positions) = case.pages(layout, 64, 0);
    for (level, place) in Level::available().into_iter().flat_map(|l| [0, 5, 129].map(|p| (l, p))) {
        let mut scores = with_stride(&case.scores(&case.keys), 130);
        scores[130 + place] = f32::NAN;
        let mut sum = case.sum();
        let coded = HostScores::Coded { scores: &scores, stride: 130 };
        sum.add_host(level, &pages, &positions, coded).expect("no page is lost");
        let state = case.state(&sum);
        assert!(state.out()[..16].iter().all(|x| x.is_finite()), "head 0 is well");
        assert!(state.out()[16..].iter().all(|x| x.is_nan()) && state.lse()[1].is_nan());
    }
}

#[test]
fn the_comparison_can_fail() {
    for head_dim in [16, 128] {
        let case = Case::new(9, 6, head_dim, 129);
        let (keys, values) = (case.f16_bytes(&case.keys), case.f16_bytes(&case.values));
        let stored = |x| case.stored(RowFormat::F16, x);
        let (scores, exact) = (case.scores(&stored(&case.keys)), stored(&case.values));
        let mut sum = case.sum();
        let rows = ResidentRows { keys: &keys, values: &values };
        sum.add_resident(Level::detect(), &case.queries, rows);
        let tried = Controls { num_heads: 6, head_dim }
            .assert_rejects(case.state(&sum).out(), |out| case.check_out(out, &scores, &exact));
        assert!(tried.contains(&Sabotage::SwappedHeads) && tried.contains(&Sabotage::ScaledRow));
        // One row too few, and keys that belong to other values.
        let short = ResidentRows {
            keys: &keys[..128 * 2 * head_dim],
            values: &values[..128 * 2 * head_dim],
        };
        let mut rotated = keys.clone();
        rotated.rotate_left(2 * head_dim);
        for rows in [short, ResidentRows { keys: &rotated, values: &values }] {
            let mut sum = case.sum();
            sum.add_resident(Level::detect(), &case.queries, rows);
            assert!(case.check(&case.state(&sum), &scores, &exact).is_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn splitting_anywhere_is_one_pass(
        seed: u64,
        num_rows in 0usize..400,
        num_heads in 1usize..6,
        cuts in prop::collection::vec(0.0..1.0f64, 0..6),
        scalar: bool,
        one_state: bool,
    ) {
        let case = Case::new(seed, num_heads, 16, num_rows);
        let level = if scalar { Level::SCALAR } else { Level::detect() };
        let (keys, values) = (case.f16_bytes(&case.keys), case.f16_bytes(&case.values));
        let mut cuts: Vec<usize> = cuts.iter().map(|at| (at * num_rows as f64) as usize).collect();
        cuts.extend([0, num_rows]);
        cuts.sort_unstable();
        let layout = RowLayout { key: Some(RowFormat::F16), value: RowFormat::F16, head_dim: 16 };
        let (pages, positions) = case.pages(layout, 64, 0);
        let mut state = AttnState::empty(num_heads, 16);
        let mut sum = case.sum();
        for (part, cut) in cuts.windows(2).enumerate() {
            let span = cut[0] * 32..cut[1] * 32;
            // Every other part comes from the host, in one sum or in one of its own.
            if part % 2 == 0 {
                let rows = ResidentRows { keys: &keys[span.clone()], values: &values[span] };
                sum.add_resident(level, &case.queries, rows);
            } else {
                let exact = HostScores::Exact { queries: &case.queries, taken: None };
                let positions = &positions[cut[0]..cut[1]];
                sum.add_host(level, &pages, positions, exact).expect("no page is lost");
            }
            if !one_state {
                sum.merge_into(&mut state);
                sum.reset();
            }
        }
        if one_state {
            sum.merge_into(&mut state);
        }
        let stored = |x| case.stored(RowFormat::F16, x);
        let scores = case.scores(&stored(&case.keys));
        let outcome = case.check(&state, &scores, &stored(&case.values));
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}
