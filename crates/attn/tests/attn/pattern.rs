//! Attention of a prompt that leaves tokens out, against the f64 reference over the tokens that it does not.

use std::num::NonZeroUsize;

use heterokv_attn::reference::{ReferenceAttention, head_attention};
use heterokv_attn::{
    AttnError, HeadShape, PrefillInput, PrefillOutput, PrefillPattern, PromptAttention, prefill,
};
use heterokv_quant::Level;
use heterokv_testkit::{Guarded, Inputs, Tolerance, compare};
use proptest::prelude::*;

/// Rounding of f32 over a few hundred tokens of gaussian inputs; what is left out weighs far more.
const TOLERANCE: Tolerance = Tolerance { absolute: 4e-6, relative: 1e-5 };

fn anchor(block: usize, recent: usize) -> PrefillPattern {
    PrefillPattern::Anchor { block: NonZeroUsize::new(block).expect("a block"), recent }
}

/// Whether the query of token `q` of `num_tokens` sees token `k`, as the pattern is written down.
fn sees(block: usize, recent: usize, num_tokens: usize, q: usize, k: usize) -> bool {
    let is_last = q + block >= num_tokens;
    let (is_anchor, is_own) = (k < block, k / block == q / block);
    let is_recent = k < q / block * block && k + recent >= q / block * block;
    k <= q && (is_last || is_anchor || is_own || is_recent)
}

struct Prompt {
    shape: HeadShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Prompt {
    fn new(heads: (usize, usize, usize), num_tokens: usize, seed: u64) -> Self {
        let shape = HeadShape::new(heads.0, heads.1, heads.2).expect("shape");
        let mut inputs = Inputs::new(seed);
        let mut rows = |row_len| inputs.gaussian_rows(num_tokens, row_len, 1.0);
        let (q, k, v) =
            (rows(shape.qo_row_len()), rows(shape.kv_row_len()), rows(shape.kv_row_len()));
        Self { shape, q, k, v }
    }

    fn num_tokens(&self) -> usize {
        self.q.len() / self.shape.qo_row_len()
    }

    /// Outputs and lse, from calls of `call_tokens` each.
    fn attend(
        &self,
        level: Level,
        pattern: PrefillPattern,
        call_tokens: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let prompt =
            PromptAttention::new(level, self.shape, &self.k, &self.v, pattern).expect("a prompt");
        let mut out = Guarded::<f32>::new(self.q.len());
        let mut lse = Guarded::<f32>::new(self.q.len() / self.shape.head_dim);
        let row_len = self.shape.qo_row_len();
        let outs = out.payload_mut().chunks_mut(call_tokens * row_len);
        let lses = lse.payload_mut().chunks_mut(call_tokens * self.shape.num_qo_heads);
        let calls = self.q.chunks(call_tokens * row_len).zip(outs.zip(lses));
        for (call, (q, (out, lse))) in calls.enumerate() {
            let output = PrefillOutput { out, lse: Some(lse) };
            prompt.attend(call * call_tokens, q, output).expect("good queries");
        }
        (out.check().expect("out").to_vec(), lse.check().expect("lse").to_vec())
    }

    fn reference(&self, block: usize, recent: usize) -> ReferenceAttention {
        let mut result = ReferenceAttention::default();
        let num_tokens = self.num_tokens();
        for token in 0..num_tokens {
            let seen: Vec<usize> =
                (0..num_tokens).filter(|&k| sees(block, recent, num_tokens, token, k)).collect();
            for head in 0..self.shape.num_qo_heads {
                let head =
                    head_attention(&self.shape, &self.q, &self.k, &self.v, (token, head), &seen);
                result.out.extend(head.out);
                result.lse.push(head.lse);
            }
        }
        result
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn matches_the_masked_reference() {
    let heads = [(2, 1, 8), (6, 2, 16), (9, 3, 64)];
    // Blocks around tiles of 128 tokens and blocks of queries, and recent tokens that reach the anchor.
    let patterns =
        [(1, 0), (1, 3), (16, 0), (16, 20), (50, 7), (64, 64), (128, 0), (130, 1), (200, 300)];
    for (seed, heads) in heads.into_iter().enumerate() {
        for (block, recent) in patterns {
            for num_tokens in [1, 47, 301, 450] {
                let prompt = Prompt::new(heads, num_tokens, seed as u64);
                let reference = prompt.reference(block, recent);
                for level in Level::available() {
                    for call_tokens in [num_tokens, 97] {
                        let (out, lse) = prompt.attend(level, anchor(block, recent), call_tokens);
                        let case = format!("{level}, {heads:?}, {num_tokens} by {block}:{recent}");
                        compare(&out, &reference.out, TOLERANCE)
                            .and_then(|_| compare(&lse, &reference.lse, TOLERANCE))
                            .unwrap_or_else(|e| panic!("{}", e.at(case, seed as u64)));
                    }
                }
            }
        }
    }
}

#[test]
fn the_comparison_can_fail() {
    let prompt = Prompt::new((6, 2, 16), 300, 4);
    let reference = prompt.reference(50, 7);
    for level in Level::available() {
        let wrong =
            [anchor(50, 6), anchor(50, 8), anchor(49, 7), anchor(50, 0), PrefillPattern::Exact];
        for pattern in wrong {
            let (out, _) = prompt.attend(level, pattern, 300);
            assert!(compare(&out, &reference.out, TOLERANCE).is_err(), "{level}, {pattern}");
        }
    }
}

#[test]
fn a_block_that_holds_the_prompt_is_exact_to_the_bit() {
    let prompt = Prompt::new((9, 3, 64), 400, 5);
    for level in Level::available() {
        let (out, lse) = prompt.attend(level, PrefillPattern::Exact, 400);
        for block in [400, 401, usize::MAX] {
            let (other_out, other_lse) = prompt.attend(level, anchor(block, 0), 400);
            assert_eq!(bits(&out), bits(&other_out), "{level}, {block}");
            assert_eq!(bits(&lse), bits(&other_lse), "{level}, {block}");
        }
        // So is what reaches back to the anchor from any block.
        let (other_out, _) = prompt.attend(level, anchor(100, 400), 400);
        compare(&other_out, &out.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), TOLERANCE)
            .unwrap_or_else(|e| panic!("{level}: {e}"));
        let mut one_call = vec![0.0; prompt.q.len()];
        let input = PrefillInput { q: &prompt.q, k: &prompt.k, v: &prompt.v };
        let output = PrefillOutput { out: &mut one_call, lse: None };
        prefill(level, &prompt.shape, input, output).expect("good inputs");
        assert_eq!(bits(&one_call), bits(&out), "{level}");
    }
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let prompt = Prompt::new((9, 3, 64), 500, 6);
    for level in Level::available() {
        let mut first = None;
        for num_threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build();
            let run = pool.expect("threads").install(|| prompt.attend(level, anchor(60, 30), 500));
            let run = (bits(&run.0), bits(&run.1));
            assert!(*first.get_or_insert_with(|| run.clone()) == run, "{level}, {num_threads}");
        }
    }
}

#[test]
fn queries_beyond_the_prompt_are_refused() {
    let prompt = Prompt::new((4, 2, 8), 9, 7);
    let level = Level::detect();
    let attention = PromptAttention::new(level, prompt.shape, &prompt.k, &prompt.v, anchor(4, 0))
        .expect("a prompt");
    for (first, kv_len) in [(1, 8), (9, 0), (10, 0), (usize::MAX, 0)] {
        let mut out = vec![0.0; prompt.q.len()];
        let output = PrefillOutput { out: &mut out, lse: None };
        let error = attention.attend(first, &prompt.q, output);
        assert_eq!(error, Err(AttnError::QueriesExceedKeys { qo_len: 9, kv_len }));
        assert!(out.iter().all(|&x| x == 0.0), "nothing may be written");
    }
    assert_eq!(attention.attend(9, &[], PrefillOutput { out: &mut [], lse: None }), Ok(()));
}

proptest! {
    #[test]
    fn what_is_left_out_is_what_is_not_seen(
        block in 1_usize..40,
        recent in 0_usize..60,
        num_tokens in 1_usize..200,
        token in 0_usize..200,
    ) {
        let token = token % num_tokens;
        let left_out = anchor(block, recent).left_out(token, num_tokens);
        for key in 0..=token {
            prop_assert_eq!(sees(block, recent, num_tokens, token, key), !left_out.contains(&key));
        }
        prop_assert!(PrefillPattern::Exact.left_out(token, num_tokens).is_empty());
    }
}
