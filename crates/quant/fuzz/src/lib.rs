//! What the targets draw from the fuzzer's bytes: formats, fitted coders, floats of any bits.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use heterokv_quant::{FitInput, GroupSize, KeyCoder, KeyFormat, Level, SharedScale};
use libfuzzer_sys::arbitrary::{Result, Unstructured};

/// One of every family, and of every width where widths take different ways through the code.
const FORMATS: &[&str] = &[
    "f16",
    "bf16",
    "fp8",
    "int8-token",
    "int6-token",
    "int4-token",
    "int3-token",
    "int2-token",
    "int8-token/32",
    "int6-token/64",
    "int4-token/32",
    "int3-token/64",
    "int2-token/32",
    "int8-channel/32",
    "int4-channel/64",
    "int3-channel/32",
    "int2-channel/128",
    "rot-int4-token",
    "rot-int3-token/32",
    "rot-int6-channel/64",
    "lm1",
    "lm2",
    "lm3",
    "lm4",
    "lm2-plain",
    "pq/2x16",
    "pq/2x32",
    "pq/4x128",
    "pq/4x256",
    "pq/8x16",
    "pq/8x1024",
    "opq/4x32",
    "pq/2x16+x2",
    "opq/2x16+x1",
    "alloc/0.5",
    "alloc/1.25",
    "alloc/2",
    "alloc/3.25",
    "alloc/6",
    "alloc/8",
];

/// Small ones, since the fuzzer has to find every byte, and shapes that are no power of two.
const HEAD_DIMS: &[usize] = &[8, 16, 24, 64, 80];

/// A format that has a name.
pub fn format(input: &mut Unstructured<'_>) -> Result<KeyFormat> {
    Ok(input.choose(FORMATS)?.parse().expect("these are names of formats"))
}

/// A format made of its parts, most of which have no name.
pub fn format_of_parts(input: &mut Unstructured<'_>) -> Result<KeyFormat> {
    Ok(match input.int_in_range(0..=8)? {
        0 => *input.choose(&[KeyFormat::F16, KeyFormat::Bf16, KeyFormat::Fp8])?,
        1 => KeyFormat::IntToken { bits: input.arbitrary()? },
        2 => KeyFormat::IntChannel { bits: input.arbitrary()?, group_tokens: input.arbitrary()? },
        3 => KeyFormat::LloydMax { bits: input.arbitrary()? },
        4 => KeyFormat::Pq {
            width: input.arbitrary()?,
            code_bits: input.arbitrary()?,
            is_rotated: input.arbitrary()?,
            num_exact: input.arbitrary()?,
        },
        5 => KeyFormat::LloydMaxPlain { bits: input.arbitrary()? },
        6 => KeyFormat::IntTokenGroups { bits: input.arbitrary()?, group: group_size(input)? },
        7 => {
            let scale = match input.int_in_range(0..=2)? {
                0 => SharedScale::Token,
                1 => SharedScale::TokenGroups(group_size(input)?),
                _ => SharedScale::Channel(input.arbitrary()?),
            };
            KeyFormat::Rotated { bits: input.arbitrary()?, scale }
        }
        _ => KeyFormat::Alloc { centibits: input.arbitrary()? },
    })
}

fn group_size(input: &mut Unstructured<'_>) -> Result<GroupSize> {
    input.choose(&GroupSize::ALL).copied()
}

/// A head dim that some format holds.
pub fn head_dim(input: &mut Unstructured<'_>) -> Result<usize> {
    input.choose(HEAD_DIMS).copied()
}

/// `len` floats of any bits, zeros where the bytes end.
pub fn floats(input: &mut Unstructured<'_>, len: usize) -> Result<Vec<f32>> {
    let mut bytes = vec![0; 4 * len];
    input.fill_buffer(&mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
}

/// `len` bytes in memory of just that length, zeros where the input ends.
pub fn bytes(input: &mut Unstructured<'_>, len: usize) -> Result<Box<[u8]>> {
    let mut bytes = vec![0; len].into_boxed_slice();
    input.fill_buffer(&mut bytes)?;
    Ok(bytes)
}

/// A coder with tables fitted on a wave, made once for each format and head dim; `None` where the format does
/// not hold such heads.
pub fn fitted(format: KeyFormat, head_dim: usize) -> Option<&'static KeyCoder> {
    static CODERS: LazyLock<Mutex<HashMap<(KeyFormat, usize), Option<&'static KeyCoder>>>> =
        LazyLock::new(Mutex::default);
    let mut coders = CODERS.lock().expect("nothing panics while it holds the coders");
    *coders.entry((format, head_dim)).or_insert_with(|| {
        let num_tokens = format.layout(head_dim).ok()?.min_fit_tokens.max(256);
        let wave = |i: usize| (i as f32 * 0.37).sin() * (1 + i % head_dim % 5) as f32;
        let keys: Vec<f32> = (0..num_tokens * head_dim).map(wave).collect();
        let input = FitInput { head_dim, keys: &keys, query_energy: &vec![1.0; head_dim], seed: 0, level: Level::detect() };
        Some(Box::leak(Box::new(KeyCoder::fit(format, &input).expect("these keys can be fitted"))))
    })
}
