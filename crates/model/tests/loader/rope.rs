//! RoPE frequencies beside numbers computed in f64 by a separate program, from the scalar forms that
//! Meta (Llama 3.1) and the YaRN authors published.

use heterokv_model::rope_config::{RopeConfig, RopeScaling};

/// Fails unless pair `i` has frequency `expected`, for each given pair, within one part in 2^23.
#[track_caller]
fn check(theta: f64, head_dim: usize, scaling: RopeScaling, expected: &[(usize, f64)]) {
    let found = RopeConfig { theta, scaling }.inverse_frequencies(head_dim);
    assert_eq!(found.len(), head_dim / 2);
    for &(pair, expected) in expected {
        let error = (f64::from(found[pair]) - expected).abs();
        assert!(error <= 1.2e-7 * expected, "pair {pair}: {} is not {expected}", found[pair]);
    }
}

#[test]
fn unscaled_and_linear() {
    let powers = [(0, 1.0), (1, 0.1), (2, 0.01), (3, 0.001)];
    check(10_000.0, 8, RopeScaling::None, &powers);
    let halves = [(0, 0.5), (1, 0.05), (2, 0.005), (3, 0.0005)];
    check(10_000.0, 8, RopeScaling::Linear { factor: 2.0 }, &halves);
    let by_pair = [(0, 1.0), (1, 0.05), (2, 0.0025), (3, 0.000_125)];
    check(10_000.0, 8, RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]), &by_pair);
}

#[test]
fn llama3() {
    let scaling = |original_context_tokens| RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context_tokens,
    };
    let tiny = [(0, 1.0), (1, 4.700_753_866e-3), (2, 1.767_766_953e-4), (3, 6.647_869_871e-6)];
    check(500_000.0, 8, scaling(64), &tiny);
    // Llama 3.1 8B: kept up to pair 28, blended, divided from pair 35 on.
    let llama_31 = [
        (0, 1.000000000e+00),
        (10, 1.286873734e-01),
        (20, 1.656044008e-02),
        (28, 3.211445995e-03),
        (29, 2.166570764e-03),
        (30, 1.371893568e-03),
        (31, 8.567514129e-04),
        (34, 1.785078128e-04),
        (35, 9.556212354e-05),
        (36, 7.784655274e-05),
        (40, 3.428102196e-05),
        (63, 3.068925989e-07),
    ];
    check(500_000.0, 128, scaling(8192), &llama_31);
}

#[test]
fn yarn() {
    let scaling = RopeScaling::Yarn {
        factor: 4.0,
        original_context_tokens: 32_768,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.0,
        truncate: true,
    };
    let qwen = [
        (0, 1.0),
        (10, 1.154_781_985e-1),
        (22, 8.659_643_234e-3),
        (23, 6.978_305_849e-3),
        (24, 5.375_321_491e-3),
        (30, 1.064_360_981e-3),
        (39, 6.490_394_321e-5),
        (40, 4.445_698_525e-5),
        (63, 3.102_344_402e-7),
    ];
    check(1e6, 128, scaling, &qwen);
    let scaling = RopeScaling::Yarn {
        factor: 8.0,
        original_context_tokens: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.0,
        truncate: false,
    };
    let not_rounded = [
        (0, 1.0),
        (1, 1.789_761_458e-1),
        (2, 1.319_445_354e-2),
        (3, 3.952_847_075e-3),
        (4, 1.25e-3),
        (7, 3.952_847_075e-5),
    ];
    check(10_000.0, 16, scaling, &not_rounded);
}
