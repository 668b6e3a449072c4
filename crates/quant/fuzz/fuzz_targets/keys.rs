//! Any bytes as a key format, as its fitted tables and as coded keys: an error, or a coder that decodes and
//! scores whatever it is given at every level.

#![no_main]

use half::f16;
use heterokv_quant::keys::Tables;
use heterokv_quant::{KeyCoder, KeyFormat, Level, Precision, PreparedQueries, ScoreRows};
use heterokv_quant_fuzz::{bytes, fitted, floats, format, format_of_parts, head_dim};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

/// Heads of a group: more than any kernel takes at once.
const MAX_HEADS: usize = 9;

fuzz_target!(|data: &[u8]| {
    name(data);
    let mut input = Unstructured::new(data);
    if let Ok(Some((coder, head_dim))) = restored(&mut input) {
        let _ = decode_and_score(&coder, head_dim, &mut input);
    }
});

/// Any text as a name.
fn name(data: &[u8]) {
    let Ok(Ok(format)) = str::from_utf8(data).map(str::parse::<KeyFormat>) else { return };
    assert_eq!(format.to_string().parse::<KeyFormat>().ok(), Some(format), "read back");
}

/// A coder from damaged tables with its head dim, if it is not refused and keys of it fit memory.
fn restored(input: &mut Unstructured<'_>) -> Result<Option<(KeyCoder, usize)>> {
    let (mut format, mut head_dim) = (format(input)?, head_dim(input)?);
    let Some(coder) = fitted(format, head_dim) else { return Ok(None) };
    let mut tables = coder.tables();
    for _ in 0..input.int_in_range(0..=8)? {
        damage(&mut tables, input)?;
    }
    if input.ratio(1, 8)? {
        format = format_of_parts(input)?;
        if input.arbitrary()? {
            head_dim = input.arbitrary()?;
        }
    }
    let coder = KeyCoder::restore(format, head_dim, &tables).ok();
    Ok(coder.filter(|_| head_dim <= 1024).map(|coder| (coder, head_dim)))
}

/// A value set to any bits, two values swapped, one raised by 1 and another lowered by it, or a table cut or
/// lost. Swaps and raises keep what orders are and widths add up to.
fn damage(tables: &mut Tables, input: &mut Unstructured<'_>) -> Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    let which = input.choose_index(tables.len())?;
    let table = &mut tables[which].1;
    if table.is_empty() {
        return Ok(());
    }
    let (a, b) = (input.choose_index(table.len())?, input.choose_index(table.len())?);
    match input.int_in_range(0..=15)? {
        0..=5 => table[a] = f16::from_bits(input.arbitrary()?),
        6..=9 => table.swap(a, b),
        10..=13 => {
            table[a] += f16::ONE;
            table[b] -= f16::ONE;
        }
        14 => table.truncate(a),
        _ => drop(tables.swap_remove(which)),
    }
    Ok(())
}

fn decode_and_score(coder: &KeyCoder, head_dim: usize, input: &mut Unstructured<'_>) -> Result<()> {
    let layout = coder.layout();
    let num_groups = input.int_in_range(0..=40 / layout.group_tokens + 1)?;
    let num_tokens = num_groups * layout.group_tokens;
    let codes = bytes(input, layout.bytes(num_tokens))?;

    let first = layout.group_tokens * input.int_in_range(0..=num_groups)?;
    let decoded = |fill: f32| {
        let mut out = vec![fill; (num_tokens - first) * head_dim];
        coder.decode(first, &codes, &mut out);
        out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(decoded(1.0), decoded(-2.0), "every element is written");

    let num_heads = input.int_in_range(0..=MAX_HEADS)?;
    let precision = *input.choose(&[Precision::Exact, Precision::Select])?;
    let sm_scale = f32::from_bits(input.arbitrary()?);
    let gap = input.int_in_range(0..=3)?;
    let queries = floats(input, num_heads * head_dim)?;
    let mut prepared = PreparedQueries::default();
    coder.prepare(&queries, sm_scale, precision, &mut prepared);
    for level in Level::available() {
        let stride = num_tokens + gap;
        let mut scores = vec![0.0; (num_heads * stride).saturating_sub(gap)];
        let mut maxima = vec![f32::NEG_INFINITY; num_heads];
        let out = ScoreRows { scores: &mut scores, stride, maxima: &mut maxima };
        coder.score(level, &prepared, &codes, num_tokens, out);
    }
    for (head, token) in (0..num_heads).zip(0..num_tokens) {
        std::hint::black_box(coder.rounding(&prepared, head, &codes, token));
    }
    Ok(())
}
