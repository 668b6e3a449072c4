//! Names of key formats, and the head dims that each holds.

use proptest::prelude::*;

use super::*;
use crate::GroupSize;

#[test]
fn every_name_is_read_back() {
    for format in formats() {
        assert_eq!(format.to_string().parse::<KeyFormat>().unwrap(), format);
    }
    for centibits in 50..=800 {
        let format = KeyFormat::Alloc { centibits };
        assert_eq!(format.to_string().parse::<KeyFormat>().unwrap(), format);
    }
}

#[test]
fn other_names_are_refused_with_the_known_ones() {
    for name in [
        "",
        " ",
        "f32",
        "F16",
        "f16 ",
        "fp16",
        "bf8",
        "fp8e4m3",
        "int",
        "int8",
        "int5-token",
        "int8-row",
        "int5-token/32",
        "int4-token/",
        "int4-token/16",
        "int4-token/032",
        "int4-token/256",
        "int5-channel/32",
        "int4-channel",
        "int4-channel/",
        "int4-channel/16",
        "int4-channel/256",
        "rot-",
        "rot-f16",
        "rot-lm2",
        "rot-int5-token",
        "rot-rot-int4-token",
        "rot-int4-token/16",
        "int4-rot-token",
        "lm",
        "lm0",
        "lm5",
        "lm5-plain",
        "lm-plain",
        "lm2-",
        "lm2-plain-plain",
        "lm2/plain",
        "lm+2",
        "lm2.0",
        "pq",
        "pq/",
        "pq/2",
        "pq/2x",
        "pq/3x16",
        "pq/2x8",
        "pq/2x8192",
        "pq/16x16",
        "pq/2x16+",
        "pq/2x16+x",
        "pq/2x16+x0",
        "pq/2x16+x9",
        "pq/2x16+x+1",
        "pq/2x16x1",
        "pq/2x16+1",
        "pq/2x16+x1+x1",
        "opq",
        "opq/",
        "opq/3x16",
        "rot-pq/2x16",
        "pq/2x17",
        "pq/+2x16",
        "pq/2x+16",
        "pq/2x16x2",
        "alloc",
        "alloc/",
        "alloc/0.49",
        "alloc/8.01",
        "alloc/-1",
        "alloc/nan",
        "alloc/inf",
        "alloc/2.004",
        "alloc/1e9",
        "alloc/99999999999999999999",
        "lm99999999999",
        "int8-channel/99999999999999999999",
        "mix:FILE",
    ] {
        let error = name.parse::<KeyFormat>().map(|f| f.to_string()).unwrap_err();
        let named =
            matches!(&error, Error::UnknownFormat { kind: "key", name: n, .. } if n == name);
        assert!(named && error.to_string().contains("pq/2xC"), "{name}: {error}");
    }
}

#[test]
fn formats_of_parts_that_no_name_has_are_refused() {
    let mut named = formats();
    let product = |width, code_bits, num_exact| KeyFormat::Pq {
        width,
        code_bits,
        is_rotated: false,
        num_exact,
    };
    named.extend([2, 4, 8].map(|width| product(width, 4, 0)));
    named.extend((4..=12).map(|code_bits| product(2, code_bits, 0)));
    named.extend((0..=8).map(|num_exact| product(2, 4, num_exact)));
    let parts = (0..=u8::MAX).flat_map(|part| {
        [
            KeyFormat::IntToken { bits: part },
            KeyFormat::IntChannel { bits: part, group_tokens: 32 },
            KeyFormat::IntChannel { bits: 4, group_tokens: part },
            KeyFormat::IntTokenGroups { bits: part, group: GroupSize::G32 },
            KeyFormat::Rotated { bits: part, scale: SharedScale::Token },
            KeyFormat::Rotated { bits: part, scale: SharedScale::TokenGroups(GroupSize::G32) },
            KeyFormat::Rotated { bits: 4, scale: SharedScale::Channel(part) },
            KeyFormat::LloydMax { bits: part },
            KeyFormat::LloydMaxPlain { bits: part },
            product(part, 4, 0),
            product(2, part, 0),
            product(2, 4, part),
        ]
    });
    let widths = [0, 49, 801, u16::MAX].map(|centibits| KeyFormat::Alloc { centibits });
    for format in parts.chain(widths) {
        let name = format.to_string();
        match format.layout(64) {
            Ok(_) => assert!(named.contains(&format), "{name}"),
            Err(Error::UnknownFormat { name: refused, .. }) => {
                assert!(!named.contains(&format) && refused == name, "{name}");
                assert!(name.parse::<KeyFormat>().is_err(), "{name}");
                let restored = KeyCoder::restore(format, 64, &vec![]);
                assert!(matches!(restored, Err(Error::UnknownFormat { .. })), "{name}");
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn head_dims_that_do_not_fit_are_refused_by_name() {
    for format in formats() {
        for head_dim in 0..=300 {
            let multiple = match format {
                KeyFormat::F16 | KeyFormat::Bf16 | KeyFormat::Fp8 => 1,
                KeyFormat::Pq { width, .. } => 2 * usize::from(width),
                _ => 8,
            };
            let fits = head_dim > 0 && head_dim % multiple == 0;
            let input = FitInput {
                head_dim,
                keys: &[],
                query_energy: &[],
                seed: 0,
                level: Level::detect(),
            };
            match format.layout(head_dim) {
                Ok(layout) => {
                    assert!(fits && layout.block_bytes > 0 && layout.group_tokens > 0);
                }
                Err(Error::HeadDim { head_dim: h, multiple_of, format: name }) => {
                    assert!(!fits && (h, multiple_of) == (head_dim, multiple));
                    assert!(
                        format
                            .to_string()
                            .trim_start_matches('o')
                            .starts_with(name.split('-').next().unwrap())
                    );
                    assert!(matches!(KeyCoder::fit(format, &input), Err(Error::HeadDim { .. })));
                }
                Err(Error::GroupTooLong { group, head_dim: h, format: name }) => {
                    assert!(fits && group > h && h == head_dim && name == format.to_string());
                    assert!(matches!(
                        KeyCoder::fit(format, &input),
                        Err(Error::GroupTooLong { .. })
                    ));
                }
                Err(error) => panic!("{format} {head_dim}: {error}"),
            }
        }
        for head_dim in [1040, 65_536, usize::MAX - 15] {
            let refused = matches!(format.layout(head_dim), Err(Error::HeadDimTooLong { .. }));
            let holds = format.is_plain() && head_dim <= 65_536;
            assert_ne!(refused, holds, "{format} {head_dim}");
        }
    }
}

#[test]
fn a_row_of_any_whole_bytes_has_its_format() {
    for head_dim in [8usize, 16, 64, 80, 96, 128, 256] {
        assert_eq!(KeyFormat::alloc_of_row_bytes(0, head_dim), None);
        assert_eq!(KeyFormat::alloc_of_row_bytes(head_dim + 2, head_dim), None);
        // A byte of scale, and from half a bit to eight per channel.
        for row_bytes in head_dim.div_ceil(16) + 1..=head_dim + 1 {
            let format = KeyFormat::alloc_of_row_bytes(row_bytes, head_dim).unwrap();
            let layout = format.layout(head_dim).unwrap();
            assert_eq!(layout.block_bytes, row_bytes * layout.block_tokens, "{head_dim}");
        }
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        if let Ok(format) = text.parse::<KeyFormat>() {
            prop_assert_eq!(format.to_string().parse::<KeyFormat>().unwrap(), format);
        }
    }

    #[test]
    fn no_near_miss_panics(
        text in "(rot-|)(f16|bf16|fp8|int|lm|o?pq/|alloc/)[0-9.x+-]{0,9}(-token|-token/|-channel/|-plain|)[0-9]{0,4}",
    ) {
        if let Ok(format) = text.parse::<KeyFormat>() {
            prop_assert_eq!(format.to_string().parse::<KeyFormat>().unwrap(), format);
            prop_assert!(format.layout(128).is_ok());
        }
    }
}
