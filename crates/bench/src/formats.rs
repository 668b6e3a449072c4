//! The formats that are measured, by name: a new format joins by a line.

use heterokv_quant::KeyFormat;

/// What the scan and the encoders are timed on.
pub(crate) const TIMED: &[&str] = &[
    "f16",
    "bf16",
    "fp8",
    "int8-token",
    "int6-token",
    "int4-token",
    "int3-token",
    "int2-token",
    "int4-token/64",
    "int8-channel/64",
    "int4-channel/64",
    "int3-channel/64",
    "int2-channel/64",
    "rot-int4-token",
    "lm2-plain",
    "lm4",
    "lm3",
    "lm2",
    "lm1",
    "alloc/8",
    "alloc/6",
    "alloc/4",
    "alloc/3",
    "alloc/2",
    "alloc/1",
    "pq/2x256",
    "pq/2x64",
    "pq/2x16",
    "pq/4x256",
    "pq/4x16",
    "pq/8x256",
    "opq/4x256",
    "pq/4x256+x1",
];

/// What the rate–distortion report measures: every size that may be the best of its bits.
pub(crate) const COMPARED: &[&str] = &[
    "f16",
    "int8-token",
    "int6-token",
    "int4-token",
    "int8-channel/32",
    "int8-channel/64",
    "int8-channel/128",
    "int4-channel/32",
    "int4-channel/64",
    "int4-channel/128",
    "int3-channel/32",
    "int3-channel/64",
    "int3-channel/128",
    "int2-channel/32",
    "int2-channel/64",
    "int2-channel/128",
    "lm4",
    "lm3",
    "lm2",
    "lm1",
    "alloc/7.75",
    "alloc/7",
    "alloc/6.5",
    "alloc/6",
    "alloc/5.5",
    "alloc/5",
    "alloc/4.75",
    "alloc/4.25",
    "alloc/4",
    "alloc/3.75",
    "alloc/3.5",
    "alloc/3.25",
    "alloc/3",
    "alloc/2.75",
    "alloc/2.5",
    "alloc/2.25",
    "alloc/2",
    "alloc/1.75",
    "alloc/1.5",
    "alloc/1.25",
    "alloc/1",
    "pq/2x256",
    "pq/2x128",
    "pq/2x64",
    "pq/2x32",
    "pq/2x16",
    "pq/4x256",
    "pq/4x128",
    "pq/4x64",
    "pq/4x32",
    "pq/4x16",
    "pq/2x4096",
    "pq/2x1024",
    "pq/4x4096",
    "pq/8x256",
    "pq/8x16",
    "opq/2x256",
    "opq/2x16",
    "opq/4x256",
    "opq/4x16",
    "opq/8x256",
    "pq/2x16+x1",
    "pq/4x256+x1",
    "opq/4x256+x1",
];

/// Names turned into formats.
///
/// # Errors
/// The first name that is none.
pub(crate) fn parse(names: &[impl AsRef<str>]) -> heterokv_quant::Result<Vec<KeyFormat>> {
    names.iter().map(|name| name.as_ref().parse()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_format_and_stands_once() {
        for list in [TIMED, COMPARED] {
            let formats = parse(list).expect("all are known");
            for (i, format) in formats.iter().enumerate() {
                assert!(!formats[..i].contains(format), "{format} stands twice");
                assert_eq!(format.to_string(), list[i]);
            }
        }
    }
}
