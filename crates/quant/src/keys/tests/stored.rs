//! What is stored: sizes, tables, rows that move, and what a coder refuses.

use half::f16;
use heterokv_testkit::{Guarded, Inputs};

use super::*;

fn keys_of(format: KeyFormat, head_dim: usize) -> Vec<f32> {
    Input::HeavyChannels.keys(&mut Inputs::new(21), fit_tokens(format, head_dim), head_dim)
}

#[test]
fn the_layout_is_what_is_written_and_held() {
    for (format, head_dim) in shapes(&[8, 16, 64, 80, 96, 128, 256]) {
        let keys = keys_of(format, head_dim);
        let coder = fitted(format, head_dim, &keys);
        let layout = format.layout(head_dim).unwrap();
        assert_eq!(coder.layout(), layout);
        // `encoded` asks for exactly this many bytes, and guards catch one more.
        let codes = encoded(&coder, &keys[..layout.block_tokens * head_dim]);
        assert_eq!(codes.len(), layout.block_bytes, "{format} {head_dim}");
        let tables = coder.tables();
        let held: usize = tables.iter().map(|(_, table)| 2 * table.len()).sum();
        assert_eq!(held, layout.table_bytes, "{format} {head_dim}");
        let names: Vec<&str> = tables.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, KeyCoder::table_names(format));
        let bits = 8.0 * (layout.block_bytes as f64 / layout.block_tokens as f64) / head_dim as f64;
        let with_tables = format.bits_per_element(head_dim, 1000).unwrap();
        let tables = 8.0 * held as f64 / 1000.0 / head_dim as f64;
        assert!((with_tables - bits - tables).abs() < 1e-12, "{format} {head_dim}");
    }
}

#[test]
fn every_byte_of_a_group_is_written() {
    for (format, head_dim) in shapes(&[16, 80]) {
        let keys = keys_of(format, head_dim);
        let coder = fitted(format, head_dim, &keys);
        let codes = |fill: u8| {
            let mut out = vec![fill; encoded(&coder, &keys[..128 * head_dim]).len()];
            coder.encode(Level::detect(), 0, &keys[..128 * head_dim], &mut out).unwrap();
            out
        };
        assert_eq!(codes(0x00), codes(0xFF), "{format} {head_dim}");
    }
}

#[test]
fn a_code_depends_on_its_group_alone_and_lies_in_its_slot() {
    for (format, head_dim) in shapes(&[16, 80]) {
        let keys = keys_of(format, head_dim);
        let coder = fitted(format, head_dim, &keys);
        let layout = coder.layout();
        let keys = &keys[..128 * head_dim];
        let together = encoded(&coder, keys);
        // Group by group, the last first: no group disturbs another.
        let mut codes = vec![0xA5; together.len()];
        for first in (0..128).step_by(layout.group_tokens).rev() {
            let group = &keys[first * head_dim..][..layout.group_tokens * head_dim];
            coder.encode(Level::detect(), first, group, &mut codes).unwrap();
        }
        assert_eq!(codes, together, "{format} {head_dim}");
        let expected = decoded(&coder, &together);
        for first in (0..128).step_by(layout.group_tokens) {
            let mut out = vec![0.0; layout.group_tokens * head_dim];
            coder.decode(first, &together, &mut out);
            assert_eq!(out, expected[first * head_dim..][..out.len()], "{format} {head_dim}");
        }
        // Groups in another order decode to the keys in that order.
        let group_len = layout.group_tokens * head_dim;
        let reversed: Vec<f32> = keys.rchunks(group_len).flatten().copied().collect();
        let expected: Vec<f32> = expected.rchunks(group_len).flatten().copied().collect();
        assert_eq!(decoded(&coder, &encoded(&coder, &reversed)), expected, "{format} {head_dim}");
    }
}

#[test]
fn restored_tables_score_to_the_bit() {
    for (format, head_dim) in shapes(&[8, 16, 64, 80, 128]) {
        let keys = keys_of(format, head_dim);
        let coder = fitted(format, head_dim, &keys);
        let restored = KeyCoder::restore(format, head_dim, &coder.tables()).unwrap();
        let keys = &keys[..128 * head_dim];
        let codes = encoded(&coder, keys);
        assert_eq!(codes, encoded(&restored, keys), "{format}");
        let queries = Inputs::new(4).gaussian_rows(3, head_dim, 1.0);
        let scores = |coder: &KeyCoder, level| {
            let mut prepared = PreparedQueries::default();
            coder.prepare(&queries, 0.1, Precision::Exact, &mut prepared);
            let mut out = vec![0.0f32; 3 * 128];
            let rows = ScoreRows { scores: &mut out, stride: 128, maxima: &mut [] };
            coder.score(level, &prepared, &codes, 128, rows);
            out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        for level in Level::available() {
            assert_eq!(scores(&coder, level), scores(&restored, level), "{format} {level}");
        }
    }
}

#[test]
fn damaged_tables_are_refused() {
    for (format, head_dim) in shapes(&[16, 64]) {
        let coder = fitted(format, head_dim, &keys_of(format, head_dim));
        let tables = coder.tables();
        let refused = |tables: &Tables| KeyCoder::restore(format, head_dim, tables).unwrap_err();
        for i in 0..tables.len() {
            let mut missing = tables.clone();
            missing.remove(i);
            assert!(matches!(refused(&missing), Error::Table { actual: 0, .. }), "{format}");
            let mut short = tables.clone();
            short[i].1.pop();
            assert!(matches!(refused(&short), Error::Table { .. }), "{format}");
            let mut long = tables.clone();
            long[i].1.push(f16::ZERO);
            assert!(matches!(refused(&long), Error::Table { .. }), "{format}");
            for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
                let mut broken = tables.clone();
                broken[i].1[1] = bad;
                let error = refused(&broken);
                let named = matches!(&error, Error::TableValue { table, place: 1, .. } if *table == tables[i].0);
                assert!(named, "{format}: {error}");
            }
        }
        let longer = KeyCoder::restore(format, head_dim + 16, &tables);
        match longer {
            Ok(_) => assert!(tables.is_empty(), "{format}"),
            Err(Error::HeadDim { .. }) => {}
            Err(error) => {
                assert!(
                    matches!(error, Error::Table { .. }) && !tables.is_empty(),
                    "{format}: {error}"
                );
            }
        }
    }
}

#[test]
fn orders_and_widths_that_no_fit_gives_are_refused() {
    let (format, head_dim) = ("alloc/2".parse::<KeyFormat>().unwrap(), 64);
    let tables = fitted(format, head_dim, &keys_of(format, head_dim)).tables();
    let order = tables.iter().position(|(name, _)| *name == "order").unwrap();
    let widths = tables.iter().position(|(name, _)| *name == "widths").unwrap();
    let with = |table: usize, place: usize, value: f32| {
        let mut tables = tables.clone();
        tables[table].1[place] = f16::from_f32(value);
        KeyCoder::restore(format, head_dim, &tables).unwrap_err().to_string()
    };
    let first = tables[order].1[0].to_f32();
    for bad in [first, -1.0, 64.0, 0.5, 65_504.0] {
        let error = with(order, 5, bad);
        assert!(error.contains("'order'"), "{bad}: {error}");
    }
    for bad in [9.0, -1.0, 2.5] {
        let error = with(widths, 0, bad);
        assert!(error.contains("'widths'"), "{bad}: {error}");
    }
    let other = if tables[widths].1[7].to_f32() == 0.0 { 1.0 } else { 0.0 };
    let error = with(widths, 7, other);
    assert!(error.contains("bytes, expected 16"), "{error}");
}

#[test]
fn keys_that_are_not_finite_are_refused_by_token_and_channel() {
    for (format, head_dim) in shapes(&[16, 80]) {
        let keys = keys_of(format, head_dim);
        let coder = fitted(format, head_dim, &keys);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut keys = keys.clone();
            keys[77 * head_dim + 9] = bad;
            let named = |error: &Error| matches!(error, Error::NotFinite { token: 77, channel: 9, value } if value.to_bits() == bad.to_bits());
            let coded = &keys[..128 * head_dim];
            let len = encoded(&coder, &keys_of(format, head_dim)[..128 * head_dim]).len();
            let mut out = Guarded::<u8>::new(len);
            let error = coder.encode(Level::detect(), 0, coded, out.payload_mut()).unwrap_err();
            assert!(named(&error), "{format}: {error}");
            assert!(out.payload().iter().all(|&b| b == 0xA5), "{format}: nothing is written");
            let query_energy = &vec![1.0; head_dim];
            let input =
                FitInput { head_dim, keys: &keys, query_energy, seed: 0, level: Level::detect() };
            let error = KeyCoder::fit(format, &input).unwrap_err();
            assert!(named(&error), "{format}: {error}");
        }
    }
}

#[test]
fn a_fit_refuses_what_does_not_agree() {
    for (format, head_dim) in shapes(&[16]) {
        let keys = keys_of(format, head_dim);
        let fit = |keys: &[f32], query_energy: &[f32]| {
            KeyCoder::fit(
                format,
                &FitInput { head_dim, keys, query_energy, seed: 0, level: Level::detect() },
            )
        };
        let ones = vec![1.0; head_dim];
        assert!(fit(&keys, &ones).is_ok());
        let error = fit(&keys, &ones[1..]).unwrap_err();
        assert!(matches!(error, Error::LengthMismatch { what: "query_energy", .. }), "{error}");
        let error = fit(&keys[1..], &ones).unwrap_err();
        assert!(matches!(error, Error::LengthMismatch { what: "keys", .. }), "{error}");
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            let mut energy = ones.clone();
            energy[3] = bad;
            let error = fit(&keys, &energy).unwrap_err();
            assert!(matches!(error, Error::QueryEnergy { channel: 3, .. }), "{error}");
        }
        let needed = format.layout(head_dim).unwrap().min_fit_tokens;
        if needed > 0 {
            let error = fit(&keys[..(needed - 1) * head_dim], &ones).unwrap_err();
            let named = matches!(&error, Error::TooFewTokens { tokens, needed: n, .. } if (*tokens, *n) == (needed - 1, needed));
            assert!(named, "{error}");
        } else {
            assert!(fit(&[], &ones).is_ok(), "{format} has nothing to fit");
        }
    }
}

#[test]
fn a_fit_depends_on_its_seed_and_on_nothing_else() {
    for (format, head_dim) in shapes(&[16, 64]) {
        let keys = keys_of(format, head_dim);
        let query_energy: Vec<f32> = (0..head_dim).map(|c| 0.1 + c as f32).collect();
        let fit = |seed, num_threads, level| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
            let query_energy = &query_energy;
            let input = FitInput { head_dim, keys: &keys, query_energy, seed, level };
            let coder = pool.install(|| KeyCoder::fit(format, &input).unwrap());
            let mut codes = vec![0; coder.layout().bytes(128)];
            coder.encode(level, 0, &keys[..128 * head_dim], &mut codes).unwrap();
            (coder.tables(), codes)
        };
        let tables = fit(1, 1, Level::SCALAR);
        for level in Level::available() {
            assert_eq!(tables, fit(1, 1, level), "{format} on {level}");
        }
        assert_eq!(tables, fit(1, 3, Level::SCALAR), "{format} on three threads");
        if matches!(format, KeyFormat::Pq { .. }) {
            assert_ne!(tables, fit(2, 1, Level::SCALAR), "{format} draws");
        }
    }
}

#[test]
fn a_rotation_or_weight_that_no_fit_gives_is_refused() {
    let (format, head_dim) = ("opq/2x16".parse::<KeyFormat>().unwrap(), 16);
    let tables = fitted(format, head_dim, &keys_of(format, head_dim)).tables();
    let with = |name: &str, change: &dyn Fn(&mut [f16])| {
        let mut tables = tables.clone();
        change(&mut tables.iter_mut().find(|(n, _)| *n == name).unwrap().1);
        KeyCoder::restore(format, head_dim, &tables).map_err(|error| error.to_string())
    };
    assert!(with("rotation", &|_| ()).is_ok());
    let refused = |change: &dyn Fn(&mut [f16])| {
        let error = with("rotation", change).unwrap_err();
        assert!(error.contains("'rotation'"), "{error}");
    };
    refused(&|rotation| rotation[..head_dim].fill(f16::ZERO));
    refused(&|rotation| rotation.copy_within(..head_dim, head_dim));
    refused(&|rotation| rotation.iter_mut().for_each(|x| *x *= f16::from_f32(3.0)));
    for bad in [0.0, -0.5, 1e-7, 2.0] {
        let error = with("weights", &|weights| weights[3] = f16::from_f32(bad)).unwrap_err();
        assert!(error.contains("'weights'") && error.ends_with('3'), "{bad}: {error}");
    }
}

#[test]
fn steps_and_weights_that_no_fit_gives_are_refused() {
    let format: KeyFormat = "alloc/2".parse().unwrap();
    let keys = Inputs::new(2).gaussian_rows(fit_tokens(format, 64), 64, 1.0);
    let tables = fitted(format, 64, &keys).tables();
    for (name, bad) in [("step", -1.0), ("weight", 0.0), ("weight", -1.0), ("weight", 60_000.0)] {
        let mut broken = tables.clone();
        let table = broken.iter_mut().find(|(n, _)| *n == name).expect("it has the table");
        table.1[3] = f16::from_f32(bad);
        let refused = KeyCoder::restore(format, 64, &broken);
        assert!(
            matches!(&refused, Err(Error::TableValue { table, place: 3, .. }) if *table == name),
            "{refused:?}"
        );
    }
}

#[test]
fn the_unit_of_query_energy_says_nothing() {
    let mut inputs = Inputs::new(4);
    for name in ["alloc/3", "pq/4x16", "opq/4x16"] {
        let format: KeyFormat = name.parse().unwrap();
        let keys = inputs.gaussian_rows(fit_tokens(format, 64), 64, 1.0);
        let energy: Vec<f32> = (0..64).map(|i| 2f32.powi(i % 5)).collect();
        let tables = |unit: f32| {
            let query_energy: Vec<f32> = energy.iter().map(|e| e * unit).collect();
            let input = FitInput {
                head_dim: 64,
                keys: &keys,
                query_energy: &query_energy,
                seed: 1,
                level: Level::detect(),
            };
            KeyCoder::fit(format, &input).unwrap().tables()
        };
        for exponent in [-40, 40] {
            assert!(tables(2f32.powi(exponent)) == tables(1.0), "{name} 2^{exponent}");
        }
    }
}
