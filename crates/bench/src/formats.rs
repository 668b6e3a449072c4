//! The formats that are measured, by name: a new format joins by a line.

use heterokv_quant::KeyFormat;

/// What the scan and the encoders are timed on.
pub(crate) const TIMED: &[&str] = &[
    "f16",
    "int8-token",
    "int6-token",
    "int4-token",
    "int8-channel/64",
    "int4-channel/64",
    "int3-channel/64",
    "int2-channel/64",
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
        for list in [TIMED] {
            let formats = parse(list).expect("all are known");
            for (i, format) in formats.iter().enumerate() {
                assert!(!formats[..i].contains(format), "{format} stands twice");
                assert_eq!(format.to_string(), list[i]);
            }
        }
    }
}
