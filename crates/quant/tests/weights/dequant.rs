//! Every tensor type against what the format's own Python package decodes.
//!
//! `fixtures/dequant.bin` is made by `fixtures/dequant.py`, which describes it.

use heterokv_quant::weights::{TensorType, dequantize};

const FIXTURE: &[u8] = include_bytes!("../fixtures/dequant.bin");

struct Case {
    ty: TensorType,
    source: &'static [u8],
    expected: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let mut rest = FIXTURE;
    let mut take = |len: usize| {
        let (head, tail) = rest.split_at(len);
        rest = tail;
        head
    };
    let number = |b: &[u8]| u32::from_le_bytes(b.try_into().expect("four bytes"));
    TensorType::ALL
        .map(|_| {
            let ty = TensorType::from_ggml(number(take(4))).expect("a known type");
            let (source_bytes, num_elements) = (number(take(4)), number(take(4)));
            let source = take(source_bytes as usize);
            let values = take(4 * num_elements as usize).chunks_exact(4);
            Case { ty, source, expected: values.map(|b| f32::from_bits(number(b))).collect() }
        })
        .into()
}

/// Where the two first differ in bits; two NaN are equal.
fn first_difference(actual: &[f32], expected: &[f32]) -> Option<usize> {
    assert_eq!(actual.len(), expected.len());
    actual.iter().zip(expected).position(|(a, e)| {
        let same = a.to_bits() == e.to_bits() || (a.is_nan() && e.is_nan());
        !same
    })
}

#[test]
fn equal_to_the_python_package_bit_for_bit() {
    let cases = cases();
    for ty in TensorType::ALL {
        let case = cases.iter().find(|case| case.ty == ty).expect("the fixture has every type");
        let mut actual = vec![f32::NAN; case.expected.len()];
        dequantize(ty, case.source, &mut actual).unwrap();
        if let Some(i) = first_difference(&actual, &case.expected) {
            panic!("{ty}: element {i} is {:e}, expected {:e}", actual[i], case.expected[i]);
        }
    }
}

#[test]
fn the_fixture_has_the_hard_cases() {
    for case in cases() {
        let values = &case.expected;
        assert!(values.len() >= 64, "{}", case.ty);
        assert!(values.iter().any(|v| *v < 0.0) && values.iter().any(|v| *v > 0.0), "{}", case.ty);
        // A minimum of zero turns −0 into 0 in most blocks, so only the other types must have one.
        let has_min = matches!(
            case.ty,
            TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K
        );
        let has_minus_zero = values.iter().any(|v| v.to_bits() == (-0.0f32).to_bits());
        assert!(has_min || has_minus_zero, "{}", case.ty);
        // The smallest subnormal f16 times a code of at most 127 * 63.
        assert!(values.iter().any(|v| *v != 0.0 && v.abs() < 5e-4), "{}", case.ty);
    }
}

#[test]
fn the_comparer_sees_one_bit_and_nan() {
    assert_eq!(first_difference(&[1.0, f32::NAN], &[1.0, f32::NAN]), None);
    assert_eq!(first_difference(&[1.0, 0.0], &[1.0, -0.0]), Some(1));
    assert_eq!(first_difference(&[f32::NAN], &[1.0]), Some(0));
    assert_eq!(first_difference(&[1.0], &[f32::from_bits(1.0f32.to_bits() + 1)]), Some(0));
}

#[test]
fn nan_and_infinite_scales_pass_through() {
    let nan = 0x7e00u16.to_le_bytes();
    for ty in [TensorType::Q8_0, TensorType::Q4_0, TensorType::Q5_0, TensorType::Q6K] {
        let mut bytes = vec![0x11; ty.block_bytes()];
        let at = if ty == TensorType::Q6K { 208 } else { 0 };
        bytes[at..at + 2].copy_from_slice(&nan);
        let mut out = vec![0.0; ty.block_len()];
        dequantize(ty, &bytes, &mut out).unwrap();
        assert!(out.iter().all(|v| v.is_nan()), "{ty}");
        bytes[at..at + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
        dequantize(ty, &bytes, &mut out).unwrap();
        assert!(out.iter().all(|v| v.is_infinite()), "{ty}");
    }
}
