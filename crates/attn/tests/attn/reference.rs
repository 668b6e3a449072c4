//! The reference itself, on cases small enough to know by hand.

use heterokv_attn::HeadShape;
use heterokv_attn::reference::{
    ReferenceHead, causal_attention, merge, partial_softmax, subset_attention,
};

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12
}

#[test]
fn one_token_returns_its_value_and_its_score() {
    let shape = HeadShape { num_qo_heads: 1, num_kv_heads: 1, head_dim: 2, sm_scale: 0.5 };
    let result = causal_attention(&shape, &[1.0, 2.0], &[3.0, 4.0], &[7.0, -8.0]);
    assert_eq!(result.out, [7.0, -8.0]);
    assert_eq!(result.lse, [5.5]);
}

#[test]
fn equal_scores_average_and_causality_hides_the_future() {
    let shape = HeadShape { num_qo_heads: 2, num_kv_heads: 1, head_dim: 1, sm_scale: 1.0 };
    let result = causal_attention(&shape, &[0.0; 6], &[5.0, 6.0, 7.0], &[1.0, 3.0, 8.0]);
    for (out, expected) in result.out.iter().zip([1.0, 1.0, 2.0, 2.0, 4.0, 4.0]) {
        assert!(near(*out, expected), "{result:?}");
    }
    for (lse, count) in result.lse.iter().zip([1.0, 1.0, 2.0, 2.0, 3.0, 3.0_f64]) {
        assert!(near(*lse, count.ln()), "{result:?}");
    }
}

#[test]
fn groups_read_their_own_kv_head() {
    let shape = HeadShape { num_qo_heads: 4, num_kv_heads: 2, head_dim: 1, sm_scale: 1.0 };
    let v = [10.0, 20.0, 30.0, 40.0];
    let result = subset_attention(&shape, &[0.0; 4], &[0.0; 4], &v, &[vec![0], vec![0, 1]]);
    assert_eq!(result.out, [10.0, 10.0, 30.0, 30.0]);
    let nothing = subset_attention(&shape, &[0.0; 4], &[0.0; 4], &v, &[vec![], vec![]]);
    assert_eq!(nothing.out, [0.0; 4]);
    assert_eq!(nothing.lse, [f64::NEG_INFINITY; 4]);
}

#[test]
fn softmax_of_known_scores() {
    let result = partial_softmax(&[0.0, 3.0_f64.ln(), f64::NEG_INFINITY], &[4.0, 8.0, 99.0], 1);
    assert!(near(result.out[0], 7.0) && near(result.lse, 4.0_f64.ln()), "{result:?}");
    assert!(partial_softmax(&[f64::NAN], &[1.0], 1).out[0].is_nan());
}

#[test]
fn merge_weighs_by_lse() {
    let state = |out: f64, mass: f64| ReferenceHead { out: vec![out], lse: mass.ln() };
    let merged = merge(&[state(1.0, 1.0), state(5.0, 3.0), state(9.0, 0.0)], 1);
    assert!(near(merged.out[0], 4.0) && near(merged.lse, 4.0_f64.ln()), "{merged:?}");
    let empty = ReferenceHead { out: vec![0.0, 0.0], lse: f64::NEG_INFINITY };
    assert_eq!(merge(&[], 2), empty);
    assert_eq!(merge(&[empty.clone(), empty.clone()], 2), empty);
}
