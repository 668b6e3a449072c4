//! Any bytes as rows of the host store, any floats as what is to be stored in them.

#![no_main]

use heterokv_quant::{
    Error, GroupQueries, GroupSize, Level, RowFormat, RowLayout, ScoredVectors, VectorList, WeightedRows,
};
use heterokv_quant_fuzz::{bytes, floats};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

const FORMATS: [RowFormat; 5] = [
    RowFormat::F16,
    RowFormat::Int8,
    RowFormat::Int4 { group: GroupSize::G32 },
    RowFormat::Int4 { group: GroupSize::G64 },
    RowFormat::Int4 { group: GroupSize::G128 },
];

fuzz_target!(|data: &[u8]| {
    if let Ok(name) = str::from_utf8(data) {
        let _ = name.parse::<RowFormat>();
    }
    let mut input = Unstructured::new(data);
    let _ = read(&mut input).and_then(|()| store(&mut input));
});

fn read(input: &mut Unstructured<'_>) -> Result<()> {
    let format = *input.choose(&FORMATS)?;
    let head_dim = input.int_in_range(0..=130)?;
    let num_heads = input.int_in_range(0..=9)?;
    let gap = input.int_in_range(0..=2)?;
    let row = bytes(input, format.bytes(head_dim))?;
    let (queries, weights) = (floats(input, num_heads * head_dim)?, floats(input, num_heads)?);
    let mut out = vec![f32::NAN; head_dim];
    format.decode(&row, &mut out);
    for level in Level::available() {
        // The same row three times, with a gap between what belongs to two heads.
        let stride = 3 + gap;
        let vectors = VectorList::InRows { rows: &[&row[..]; 3], at: 0 };
        let mut scores = vec![0.0; (num_heads * stride).saturating_sub(gap)];
        let of_group = GroupQueries { queries: &queries, head_dim };
        let rows = ScoredVectors { queries: of_group, vectors, soon: VectorList::Beside(&row) };
        format.score(level, rows, &mut scores, stride);
        let mut sums = queries.clone();
        format.add_scaled(level, &weights, &row, &mut sums);
        let spread: Vec<f32> = weights.iter().flat_map(|&x| vec![x; stride]).collect();
        let soon = VectorList::NONE;
        let rows = WeightedRows { vectors, soon, weights: &spread, stride };
        format.weighted_sum(level, rows, &mut sums);
    }
    Ok(())
}

fn store(input: &mut Unstructured<'_>) -> Result<()> {
    let key = if input.arbitrary()? { Some(*input.choose(&FORMATS)?) } else { None };
    let layout =
        RowLayout { key, value: *input.choose(&FORMATS)?, head_dim: input.int_in_range(0..=130)? };
    let (key, value) = (floats(input, layout.head_dim)?, floats(input, layout.head_dim)?);
    let mut row = vec![0; layout.row_bytes()];
    let stored = layout.encode(&key, &value, &mut row);
    let of_key = layout.key.map_or(&[][..], |_| &key);
    let bad = |x: &[f32]| x.iter().position(|x| !x.is_finite());
    match (bad(of_key).or(bad(&value)), stored) {
        (None, Ok(())) => {
            let mut back = vec![f32::NAN; layout.head_dim];
            layout.value.decode(&row[layout.key_bytes()..], &mut back);
            assert!(back.iter().all(|x| x.is_finite()), "{back:?}");
        }
        (Some(place), Err(Error::NotFinite { channel, .. })) => assert_eq!(channel, place),
        (place, stored) => panic!("{place:?}: {stored:?}"),
    }
    Ok(())
}
