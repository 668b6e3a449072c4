//! The softmax weights of a prompt's queries against f64.

use heterokv_attn::{AttnError, HeadShape, PromptKeys};
use heterokv_quant::Level;
use heterokv_testkit::Inputs;
use proptest::prelude::*;

/// `weights[head][token]` of a group over the keys that each token sees, in f64.
fn expected(
    shape: &HeadShape,
    kv_head: usize,
    (q, first): (&[f32], usize),
    k: &[f32],
) -> Vec<(usize, usize, Vec<f64>)> {
    let mut rows = Vec::new();
    for (i, token) in q.chunks_exact(shape.qo_row_len()).enumerate() {
        for head in 0..shape.group_size() {
            let qo_head = kv_head * shape.group_size() + head;
            let query = &token[qo_head * shape.head_dim..][..shape.head_dim];
            let score = |key: &[f32]| {
                let key = &key[kv_head * shape.head_dim..][..shape.head_dim];
                let products = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k));
                products.sum::<f64>() * f64::from(shape.sm_scale)
            };
            let seen = k.chunks_exact(shape.kv_row_len()).take(first + i + 1);
            let scores: Vec<f64> = seen.map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            rows.push((head, first + i, scores.iter().map(|s| (s - max).exp() / sum).collect()));
        }
    }
    rows
}

/// Whether visited rows are those expected, in their order, to within rounding.
fn agrees(found: &[(usize, usize, Vec<f32>)], expected: &[(usize, usize, Vec<f64>)]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, expected)| {
            (found.0, found.1, found.2.len()) == (expected.0, expected.1, expected.2.len())
                && found.2.iter().zip(&expected.2).all(|(w, e)| (f64::from(*w) - e).abs() < 1e-5)
        })
}

fn visited(
    level: Level,
    (shape, kv_head): (HeadShape, usize),
    (q, first): (&[f32], usize),
    k: &[f32],
) -> Vec<(usize, usize, Vec<f32>)> {
    let keys = PromptKeys::new(level, shape, kv_head, k).expect("whole tokens");
    let mut rows = Vec::new();
    keys.weights(q, first, |head, token, weights| {
        rows.push((head, token, weights.to_vec()));
        Ok::<(), AttnError>(())
    })
    .expect("finite inputs");
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn weights_are_those_of_causal_attention(
        seed in any::<u64>(),
        group_size in 1usize..4,
        num_kv_heads in 1usize..3,
        num_tokens in 1usize..1100,
        num_queries in 0usize..70,
    ) {
        let shape = HeadShape::new(group_size * num_kv_heads, num_kv_heads, 16).expect("a shape");
        let num_queries = num_queries.min(num_tokens);
        let mut inputs = Inputs::new(seed);
        let q = inputs.gaussian_rows(num_queries, shape.qo_row_len(), 1.0);
        let k = inputs.gaussian_rows(num_tokens, shape.kv_row_len(), 1.0);
        let (kv_head, first) = (num_kv_heads - 1, num_tokens - num_queries);
        let expected = expected(&shape, kv_head, (&q, first), &k);
        for level in Level::available() {
            let found = visited(level, (shape, kv_head), (&q, first), &k);
            prop_assert!(agrees(&found, &expected));
        }
    }
}

#[test]
fn the_comparer_sees_another_head_and_a_later_token() {
    let shape = HeadShape::new(4, 2, 16).expect("a shape");
    let mut inputs = Inputs::new(7);
    let q = inputs.gaussian_rows(3, shape.qo_row_len(), 1.0);
    let k = inputs.gaussian_rows(40, shape.kv_row_len(), 1.0);
    let found = visited(Level::detect(), (shape, 0), (&q, 37), &k);
    assert!(agrees(&found, &expected(&shape, 0, (&q, 37), &k)));
    assert!(!agrees(&found, &expected(&shape, 1, (&q, 37), &k)));
    assert!(!agrees(&found, &expected(&shape, 0, (&q, 36), &k)));
}

#[test]
fn bad_input_is_refused_and_a_visitor_ends_the_walk() {
    let shape = HeadShape::new(2, 1, 4).expect("a shape");
    let level = Level::detect();
    assert!(PromptKeys::new(level, shape, 0, &[0.0; 5]).is_err());
    assert!(PromptKeys::new(level, shape, 0, &[f32::NAN; 4]).is_err());
    let keys = PromptKeys::new(level, shape, 0, &[1.0; 12]).expect("three tokens");
    let never = |_: usize, _: usize, _: &[f32]| -> Result<(), AttnError> { panic!("no visit") };
    assert!(keys.weights(&[1.0; 7], 0, never).is_err(), "half a query");
    assert!(keys.weights(&[1.0; 16], 2, never).is_err(), "more queries than keys");
    assert!(keys.weights(&[f32::INFINITY; 8], 2, never).is_err());
    assert!(keys.weights(&[], 3, never).is_ok());
    let mut visits = 0;
    let stopped = keys.weights(&[1.0; 16], 1, |_, _, _| {
        visits += 1;
        Err(AttnError::HeadIndex { head: 9, num_heads: 1 })
    });
    assert!(matches!(stopped, Err(AttnError::HeadIndex { head: 9, .. })));
    assert_eq!(visits, 1);
}
