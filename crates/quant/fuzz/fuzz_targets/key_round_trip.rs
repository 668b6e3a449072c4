//! Any keys, encoded with tables fitted on others or on themselves: refused by the place of the first that is
//! not finite, or decoded to finite keys.

#![no_main]

use heterokv_quant::{Error, FitInput, KeyCoder, KeyFormat, Level};
use heterokv_quant_fuzz::{fitted, floats, format, head_dim};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

/// What an output holds before it is written.
const POISON: u8 = 0xA5;

fuzz_target!(|data: &[u8]| {
    let _ = round_trip(&mut Unstructured::new(data));
});

fn round_trip(input: &mut Unstructured<'_>) -> Result<()> {
    let fits_itself = input.ratio(1, 8)?;
    // A fit costs a thousand times what an encoding does.
    let (format, head_dim) = (format(input)?, if fits_itself { 8 } else { head_dim(input)? });
    let Some(coder) = fitted(format, head_dim) else { return Ok(()) };
    let group_tokens = coder.layout().group_tokens;
    let num_groups = input.int_in_range(0..=8 / group_tokens + 1)?;
    let num_keys = num_groups * group_tokens * head_dim;
    let pattern = floats(input, input.len().div_ceil(4).clamp(1, num_keys.max(1)))?;
    let keys: Vec<f32> = pattern.iter().copied().cycle().take(num_keys).collect();

    encode_and_decode(coder, head_dim, &keys);
    if fits_itself && let Some(coder) = fit(format, head_dim, &pattern) {
        let restored = KeyCoder::restore(format, head_dim, &coder.tables());
        assert_eq!(restored.expect("a fit can be stored").tables(), coder.tables());
        encode_and_decode(&coder, head_dim, &keys);
    }
    Ok(())
}

/// A coder fitted on the pattern, repeated; `None` where that is refused for the right place.
fn fit(format: KeyFormat, head_dim: usize, pattern: &[f32]) -> Option<KeyCoder> {
    let num_tokens = format.layout(head_dim).ok()?.min_fit_tokens.max(1);
    let keys: Vec<f32> = pattern.iter().copied().cycle().take(num_tokens * head_dim).collect();
    let query_energy: Vec<f32> = pattern
        .iter()
        .map(|x| if x.is_finite() { x.abs() } else { 0.0 })
        .cycle()
        .take(head_dim)
        .collect();
    let input = FitInput { head_dim, keys: &keys, query_energy: &query_energy, seed: 1, level: Level::detect() };
    match KeyCoder::fit(format, &input) {
        Ok(coder) => {
            assert!(keys.iter().all(|x| x.is_finite()));
            Some(coder)
        }
        Err(error) => {
            assert_names_first(&error, &keys, head_dim);
            None
        }
    }
}

/// Encodes some groups of keys behind others, which stay as they are.
fn encode_and_decode(coder: &KeyCoder, head_dim: usize, keys: &[f32]) {
    let layout = coder.layout();
    let (num_tokens, first) = (keys.len() / head_dim, 2 * layout.group_tokens);
    let mut codes = vec![POISON; layout.bytes(first + num_tokens)];
    let decoded = |first: usize, num_tokens: usize, codes: &[u8]| {
        let mut out = vec![f32::NAN; num_tokens * head_dim];
        coder.decode(first, codes, &mut out);
        out
    };
    let bits = |keys: &[f32]| keys.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let before = bits(&decoded(0, first, &codes));
    if let Err(error) = coder.encode(Level::detect(), first, keys, &mut codes) {
        assert_names_first(&error, keys, head_dim);
        assert!(codes.iter().all(|&byte| byte == POISON), "nothing is written");
        return;
    }
    assert!(keys.iter().all(|x| x.is_finite()), "what is not finite is refused");
    assert_eq!(bits(&decoded(0, first, &codes)), before, "other tokens stay as they are");
    let back = decoded(first, num_tokens, &codes);
    assert!(back.iter().all(|x| x.is_finite()), "{} of {keys:?} is {back:?}", coder.format());
    coder.encode(Level::detect(), first, &back, &mut codes).expect("decoded keys are finite");
    let again = decoded(first, num_tokens, &codes);
    let is_norm_scaled = matches!(
        coder.format(),
        KeyFormat::LloydMax { .. } | KeyFormat::LloydMaxPlain { .. } | KeyFormat::Alloc { .. }
    );
    // A rotation there and back moves keys by roundings of f32.
    let is_rotated = matches!(
        coder.format(),
        KeyFormat::Rotated { .. } | KeyFormat::Pq { is_rotated: true, .. }
    );
    if !is_norm_scaled && !is_rotated {
        assert_eq!(back, again, "a second pass changes nothing");
    }
}

fn assert_names_first(error: &Error, keys: &[f32], head_dim: usize) {
    let first = keys.iter().position(|x| !x.is_finite()).expect("finite keys are not refused");
    let expected = (first / head_dim, first % head_dim);
    let Error::NotFinite { token, channel, value } = error else { panic!("{error}") };
    assert_eq!((*token, *channel), expected);
    assert_eq!(value.to_bits(), keys[first].to_bits());
}
