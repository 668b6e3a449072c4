//! Host rows against f64: encoding errors, dot products and weighted sums on every level.

use heterokv_testkit::{Controls, Guarded, Inputs, Tolerance, assert_close, compare};
use proptest::prelude::*;

use super::*;

const FORMATS: [RowFormat; 2] = [RowFormat::F16, RowFormat::Int8];
const HEAD_DIMS: [usize; 12] = [1, 2, 7, 8, 9, 15, 16, 17, 64, 80, 127, 128];

/// Half a step of f16 at `x`.
fn f16_rounding(x: f64) -> f64 {
    x.abs() / 2048.0 + 2.0f64.powi(-25)
}

/// The largest error that `format` may make in any element of `x`, element by element.
fn allowed(format: RowFormat, x: &[f32], element: f32) -> f64 {
    match format {
        RowFormat::F16 => f16_rounding(element.into()),
        RowFormat::Int8 => {
            let largest = x.iter().fold(0.0, |m: f64, &x| m.max(f64::from(x).abs()));
            let step = largest / 127.0;
            // Half a step of the stored scale, or, for the largest, what rounding the scale moves it.
            let scale_error = f16_rounding(step);
            (0.5 * (step + scale_error)).max(127.0 * scale_error) + 1e-6 * largest
        }
    }
}

fn decoded(format: RowFormat, bytes: &[u8], head_dim: usize) -> Vec<f32> {
    let mut out = Guarded::new(head_dim);
    format.decode(bytes, out.payload_mut());
    out.check().unwrap().to_vec()
}

fn encoded(format: RowFormat, x: &[f32]) -> Vec<u8> {
    let mut out = Guarded::new(format.bytes(x.len()));
    format.encode(x, out.payload_mut()).unwrap();
    out.check_bands().unwrap().to_vec()
}

#[test]
fn decoded_values_are_within_the_bound_of_the_format() {
    for (seed, &head_dim) in HEAD_DIMS.iter().enumerate() {
        let mut inputs = Inputs::new(seed as u64);
        let cases = [
            inputs.gaussian_rows(1, head_dim, 1.0),
            inputs.gaussian_rows(1, head_dim, 1e4),
            inputs.gaussian_rows(1, head_dim, 1e-6),
            inputs.heavy_channels(1, head_dim, 1, 100.0),
            vec![0.0; head_dim],
            vec![-0.0; head_dim],
            vec![-3.25; head_dim],
            vec![f32::MIN_POSITIVE / 4.0; head_dim],
        ];
        for (format, x) in FORMATS.iter().flat_map(|f| cases.iter().map(move |x| (*f, x))) {
            let back = decoded(format, &encoded(format, x), head_dim);
            for (&got, &want) in back.iter().zip(x) {
                let error = (f64::from(got) - f64::from(want)).abs();
                let allowed = allowed(format, x, want);
                assert!(error <= allowed, "{format} {head_dim}: {want} became {got} ({allowed})");
            }
        }
    }
}

#[test]
fn the_bound_is_reached_and_so_can_fail() {
    let mut inputs = Inputs::new(4);
    for format in FORMATS {
        let x = inputs.gaussian_rows(1, 128, 1.0);
        let back = decoded(format, &encoded(format, &x), 128);
        let share = |(&got, &want): (&f32, &f32)| {
            (f64::from(got) - f64::from(want)).abs() / allowed(format, &x, want)
        };
        let worst = back.iter().zip(&x).map(share).fold(0.0, f64::max);
        assert!(worst > 0.8, "{format} uses {worst} of what it is allowed");
    }
}

#[test]
fn dots_and_sums_are_those_of_f64_on_every_level() {
    for (seed, &head_dim) in HEAD_DIMS.iter().enumerate() {
        let mut inputs = Inputs::new(100 + seed as u64);
        for num_heads in [1, 2, 3, 4, 5, 8, 9] {
            let queries = inputs.gaussian_rows(num_heads, head_dim, 1.0);
            let start = inputs.gaussian_rows(num_heads, head_dim, 1.0);
            let weights = inputs.gaussian_rows(1, num_heads, 1.0);
            let x = inputs.gaussian_rows(1, head_dim, 2.0);
            for (format, level) in
                FORMATS.iter().flat_map(|f| Level::available().into_iter().map(move |l| (*f, l)))
            {
                let bytes = encoded(format, &x);
                let exact: Vec<f64> =
                    decoded(format, &bytes, head_dim).iter().map(|&x| x.into()).collect();
                let label = format!("{format} {level} {num_heads} heads of {head_dim}");
                let seed = inputs.seed();
                // One rounding per product and sum of terms of at most `size`.
                let size: f64 = exact.iter().map(|x| 6.0 * x.abs()).sum();
                let absolute = f64::from(f32::EPSILON) * (head_dim as f64 + 2.0) * size;
                let tolerance = Tolerance { absolute, relative: 0.0 };

                let stride = 3;
                let mut out = Guarded::<f32>::new((num_heads - 1) * stride + 1);
                format.dot(level, &queries, &bytes, out.payload_mut(), stride);
                let out = out.check_bands().unwrap();
                let dots: Vec<f32> = out.iter().copied().step_by(stride).collect();
                let written = out.iter().filter(|x| !x.is_nan()).count();
                assert_eq!(written, num_heads, "{label} writes one value per head");
                let dot = |q: &[f32]| -> f64 {
                    q.iter().zip(&exact).map(|(&q, x)| f64::from(q) * x).sum()
                };
                let expected: Vec<f64> = queries.chunks_exact(head_dim).map(dot).collect();
                assert_close(&label, seed, &dots, &expected, tolerance);

                let mut sums = Guarded::<f32>::new(num_heads * head_dim);
                sums.payload_mut().copy_from_slice(&start);
                format.add_scaled(level, &weights, &bytes, sums.payload_mut());
                let sums = sums.check().unwrap();
                let expected: Vec<f64> = (0..num_heads * head_dim)
                    .map(|i| {
                        let added = f64::from(weights[i / head_dim]) * exact[i % head_dim];
                        f64::from(start[i]) + added
                    })
                    .collect();
                let tolerance = Tolerance { absolute: 2e-5, relative: 1e-6 };
                assert_close(&label, seed, sums, &expected, tolerance);
                if num_heads == 9 && head_dim == 64 {
                    Controls { num_heads, head_dim }
                        .assert_rejects(sums, |sums| compare(sums, &expected, tolerance));
                }
            }
        }
    }
}

#[test]
fn every_half_and_every_code_is_widened_exactly() {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let codes: Vec<u8> = (0..=u8::MAX).collect();
    let with_scale = |codes: &[u8]| [codes, &f16::ONE.to_le_bytes()].concat();
    let rows: Vec<(RowFormat, Vec<u8>)> = halves
        .chunks(16)
        .map(|row| (RowFormat::F16, row.to_vec()))
        .chain(codes.chunks(8).map(|row| (RowFormat::Int8, with_scale(row))))
        .collect();
    for level in Level::available() {
        for (format, row) in &rows {
            let expected = decoded(*format, row, 8);
            let mut sums = [0.0; 8];
            format.add_scaled(level, &[1.0], row, &mut sums);
            for (place, (sum, x)) in sums.iter().zip(&expected).enumerate() {
                assert!(sum == x || (sum.is_nan() && x.is_nan()), "{format} {level}: {sum} {x}");
                // The other lanes would spread an infinity or a NaN over the sum.
                let mut one = row.clone();
                let len = format.bytes(8) - if *format == RowFormat::Int8 { 2 } else { 0 };
                for (i, byte) in one[..len].iter_mut().enumerate() {
                    *byte *= u8::from(i * 8 / len == place);
                }
                let mut dot = [f32::INFINITY];
                format.dot(level, &[1.0; 8], &one, &mut dot, 1);
                assert!(dot[0] == *x || (dot[0].is_nan() && x.is_nan()), "{format} {level}: {x}");
            }
        }
    }
}

#[test]
fn no_heads_and_no_elements_change_nothing() {
    for format in FORMATS {
        for (num_heads, head_dim) in [(0, 8), (3, 0), (0, 0)] {
            let bytes = vec![0x7f; format.bytes(head_dim)];
            let values = vec![1.0; num_heads * head_dim];
            for level in Level::available() {
                let mut out = [7.0; 5];
                format.dot(level, &values, &bytes, &mut out, 2);
                assert_eq!(out, [7.0; 5], "{format} {level} {num_heads} {head_dim}");
                format.add_scaled(level, &vec![1.0; num_heads], &bytes, &mut values.clone());
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_refused_and_named() {
    for format in FORMATS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 9];
            x[5] = bad;
            let mut out = Guarded::<u8>::new(format.bytes(9));
            let refused = format.encode(&x, out.payload_mut());
            assert!(matches!(refused, Err(Error::NotFinite { channel: 5, .. })), "{refused:?}");
            assert!(out.payload().iter().all(|&b| b == 0xA5), "nothing is written");
        }
        // The largest finite values are clamped to what f16 holds.
        let back = decoded(format, &encoded(format, &[f32::MAX, -f32::MAX, 0.0]), 3);
        assert!(back.iter().all(|x| x.is_finite()), "{back:?}");
        assert!(back[0] > 65_000.0 && back[1] < -65_000.0 && back[2] == 0.0, "{back:?}");
    }
}

#[test]
fn names_are_read_back_and_others_refused() {
    for format in FORMATS {
        assert_eq!(format.to_string().parse::<RowFormat>().unwrap(), format);
    }
    for name in ["", "f32", "int4", "F16", "int8 ", "int8-token"] {
        let error = name.parse::<RowFormat>().unwrap_err().to_string();
        assert!(error.contains("f16, int8"), "{error}");
    }
}

#[test]
fn a_row_is_key_then_value() {
    let (key, value) = ([1.0, 2.0, 3.0], [-4.0, 5.0, 0.5]);
    for (key_format, value_format) in [None, Some(RowFormat::F16), Some(RowFormat::Int8)]
        .into_iter()
        .flat_map(|k| FORMATS.map(|v| (k, v)))
    {
        let layout = RowLayout { key: key_format, value: value_format, head_dim: 3 };
        let mut row = vec![0; layout.row_bytes()];
        layout.encode(&key, &value, &mut row).unwrap();
        let mut expected = key_format.map_or(vec![], |format| encoded(format, &key));
        assert_eq!(expected.len(), layout.key_bytes());
        expected.extend(encoded(value_format, &value));
        assert_eq!(row, expected);
        let bad = layout.encode(&key, &[0.0, f32::NAN, 0.0], &mut row);
        assert!(matches!(bad, Err(Error::NotFinite { channel: 1, .. })));
    }
}

proptest! {
    #[test]
    fn spans_cover_the_positions_page_by_page(
        positions in prop::collection::btree_set(0u32..2000, 0..80),
        page_size in 1u32..70,
    ) {
        let positions: Vec<u32> = positions.into_iter().collect();
        let mut next = 0;
        let mut last_page = None;
        for (page, span) in page_spans(&positions, page_size) {
            prop_assert!(span.start == next && !span.is_empty());
            prop_assert!(last_page.is_none_or(|last| last < page), "a page comes once");
            prop_assert!(positions[span.clone()].iter().all(|row| row / page_size == page));
            (next, last_page) = (span.end, Some(page));
        }
        prop_assert_eq!(next, positions.len());
    }

    #[test]
    fn rows_of_a_page_are_found(picks in prop::collection::btree_set(0u32..10, 0..10), first in 0u32..1000) {
        let rows: Vec<u32> = picks.iter().map(|&row| row + first).collect();
        let bytes: Vec<u8> = (0..10).flat_map(|row| [row, row, row]).collect();
        let page = PageRows { bytes: &bytes, first_row: first, rows: &rows, offset: 7 };
        let found: Vec<(usize, u8)> = page.iter(3).map(|(i, row)| (i, row[0])).collect();
        let expected: Vec<(usize, u8)> =
            picks.iter().enumerate().map(|(i, &row)| (7 + i, row as u8)).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_finite_vector_is_encoded_to_finite_values(
        x in prop::collection::vec(any::<f32>().prop_filter("finite", |x| x.is_finite()), 1..40),
        int8: bool,
    ) {
        let format = FORMATS[usize::from(int8)];
        let back = decoded(format, &encoded(format, &x), x.len());
        prop_assert!(back.iter().all(|x| x.is_finite()));
        // A second pass of f16 changes nothing.
        if format == RowFormat::F16 {
            prop_assert_eq!(decoded(format, &encoded(format, &back), x.len()), back);
        }
    }
}
