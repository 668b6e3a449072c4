//! Coded keys of which some stay: against lists of decoded keys, bit by bit.

use heterokv_quant::{FitInput, KeyFormat, Precision};
use heterokv_testkit::Inputs;
use proptest::prelude::*;

use super::*;

const HEAD_DIM: usize = 32;

/// Tokens to fit any of the formats.
const FIT_TOKENS: usize = 512;

/// Formats of every layout of codes, those of which tokens move first.
const FORMATS: [&str; 14] = [
    "f16",
    "int8-token",
    "int4-token",
    "int3-token/32",
    "rot-int4-token",
    "lm2",
    "lm3",
    "pq/2x16",
    "opq/4x64",
    "alloc/3.25",
    "int4-channel/64",
    "rot-int2-channel/32",
    "int3-channel/128",
    "pq/2x32+x2",
];

fn fitted(format: &str, inputs: &mut Inputs) -> (KeyCoder, Arena) {
    let format: KeyFormat = format.parse().unwrap();
    let input = FitInput {
        head_dim: HEAD_DIM,
        keys: &inputs.gaussian_rows(FIT_TOKENS, HEAD_DIM, 1.0),
        query_energy: &[1.0; HEAD_DIM],
        seed: 3,
        level: Level::detect(),
    };
    (KeyCoder::fit(format, &input).unwrap(), Arena::new("device"))
}

fn append(keys: &mut CodedKeys, arena: &Arena, inputs: &mut Inputs, num_tokens: usize) {
    let rows = inputs.gaussian_rows(num_tokens, HEAD_DIM, 1.0);
    keys.append(Level::detect(), arena, &rows, HEAD_DIM).unwrap();
}

/// Every token's key as it decodes, in bits.
fn decoded(keys: &CodedKeys) -> Vec<Vec<u32>> {
    let mut rows = vec![0.0; CODE_PAGE_TOKENS * HEAD_DIM];
    let mut all = Vec::new();
    for page in &keys.pages {
        keys.coder.decode(0, page.bytes(), &mut rows);
        all.extend(
            rows.chunks_exact(HEAD_DIM).map(|row| row.iter().map(|x| x.to_bits()).collect()),
        );
    }
    all.truncate(keys.num_tokens);
    all
}

/// Scores of one query on every level, in bits.
fn scores(keys: &CodedKeys) -> Vec<Vec<u32>> {
    let query: Vec<f32> = (0..HEAD_DIM).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut prepared = PreparedQueries::default();
    keys.coder.prepare(&query, 0.2, Precision::Exact, &mut prepared);
    let score = |level| {
        let mut all = Vec::new();
        for tile in 0..keys.num_tokens.div_ceil(SCORE_TILE) {
            let mut out = vec![0.0f32; SCORE_TILE];
            keys.score_tile(level, &prepared, tile, &mut out, &mut [f32::NEG_INFINITY]);
            all.extend(out.iter().map(|x| x.to_bits()));
        }
        all.truncate(keys.num_tokens);
        all
    };
    Level::available().into_iter().map(score).collect()
}

/// What a list of decoded keys becomes: a group that is whole stays, and others are encoded again.
fn kept_of(coder: &KeyCoder, before: &[Vec<u32>], kept: &[u32]) -> Vec<Vec<u32>> {
    let len = coder.layout().group_tokens;
    let of_group = |group: &[u32]| -> Vec<Vec<u32>> {
        let rows: Vec<Vec<u32>> = group.iter().map(|&t| before[t as usize].clone()).collect();
        let run: Vec<u32> = (group[0]..).take(len).collect();
        if run == group && (group[0] as usize).is_multiple_of(len) {
            return rows;
        }
        let mut keys: Vec<f32> = rows.concat().into_iter().map(f32::from_bits).collect();
        let mut codes = vec![0; coder.layout().bytes(len)];
        coder.encode(Level::detect(), 0, &keys, &mut codes).unwrap();
        coder.decode(0, &codes, &mut keys);
        keys.chunks(HEAD_DIM).map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
    };
    kept.chunks_exact(len).flat_map(of_group).collect()
}

/// Some of the tokens in whole groups: each stays by a draw of `share` in 8, and by runs.
fn pick(inputs: &mut Inputs, num_tokens: usize, group_tokens: usize, share: usize) -> Vec<u32> {
    let mut stays = true;
    let drawn = (0..num_tokens as u32).filter(|token| {
        if inputs.below(4) == 0 || token % 16 == 0 {
            stays = inputs.below(8) < share;
        }
        stays
    });
    let mut kept: Vec<u32> = drawn.collect();
    kept.truncate(kept.len() / group_tokens * group_tokens);
    kept
}

#[track_caller]
fn check_bytes(keys: &CodedKeys, arena: &Arena) {
    let num_pages = keys.num_tokens.div_ceil(CODE_PAGE_TOKENS);
    let page = Arena::allocated_bytes(page_bytes(&keys.coder.layout()));
    assert_eq!(keys.page_bytes(), num_pages * page);
    assert_eq!(arena.in_use_bytes(), num_pages * page + keys.table_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_stays_is_as_before_and_pages_are_freed(
        format in 0..FORMATS.len(),
        steps in prop::collection::vec((1..7usize, 0..9usize), 1..6),
        seed: u64,
    ) {
        let mut inputs = Inputs::new(seed);
        let (coder, arena) = fitted(FORMATS[format], &mut inputs);
        let layout = coder.layout();
        let mut keys = CodedKeys::new(coder, &arena).unwrap();
        let mut expected: Vec<Vec<u32>> = Vec::new();
        for (appended, share) in steps {
            // Of formats whose tokens move, no whole pages.
            let appended = if layout.moves_tokens() { 131 * appended } else { 128 * appended };
            append(&mut keys, &arena, &mut inputs, appended);
            let before = decoded(&keys);
            prop_assert_eq!(&before[..expected.len()], &expected[..], "what stayed before");
            let (fork, scores_before) = (keys.fork(&Arena::new("fork")).unwrap(), scores(&keys));
            let kept = pick(&mut inputs, keys.num_tokens, layout.group_tokens, share);
            keys.keep(Level::detect(), &kept).unwrap();
            expected = kept_of(&keys.coder, &before, &kept);
            prop_assert_eq!(&decoded(&keys), &expected);
            prop_assert_eq!(&decoded(&fork), &before, "a copy shares nothing");
            check_bytes(&keys, &arena);
            if layout.moves_tokens() {
                // The last few, fewer than a vector, are summed in another order in some formats.
                let is_inner = |i: usize, num_tokens: usize| i < num_tokens / 8 * 8;
                let are_inner = |(i, token): &(usize, &u32)| {
                    is_inner(*i, kept.len()) && is_inner(**token as usize, before.len())
                };
                for (scores, scores_before) in scores(&keys).iter().zip(&scores_before) {
                    for (i, &token) in kept.iter().enumerate().filter(are_inner) {
                        prop_assert_eq!(scores[i], scores_before[token as usize]);
                    }
                }
            }
        }
    }
}

#[test]
fn all_none_and_the_first_stay() {
    for format in FORMATS {
        let mut inputs = Inputs::new(5);
        let (coder, arena) = fitted(format, &mut inputs);
        let mut keys = CodedKeys::new(coder, &arena).unwrap();
        keys.keep(Level::detect(), &[]).unwrap();
        append(&mut keys, &arena, &mut inputs, 512);
        let before = decoded(&keys);
        let all: Vec<u32> = (0..512).collect();
        for num_kept in [512, 256, 128, 0] {
            keys.keep(Level::detect(), &all[..num_kept]).unwrap();
            assert_eq!(decoded(&keys), before[..num_kept], "{format}");
            check_bytes(&keys, &arena);
        }
        append(&mut keys, &arena, &mut inputs, 128);
        assert_eq!(keys.num_tokens(), 128, "{format}");
    }
}

#[test]
fn whole_groups_that_begin_a_group_again_are_not_encoded_again() {
    let mut inputs = Inputs::new(6);
    let (coder, arena) = fitted("int2-channel/32", &mut inputs);
    let mut keys = CodedKeys::new(coder, &arena).unwrap();
    append(&mut keys, &arena, &mut inputs, 512);
    let before = decoded(&keys);
    let kept: Vec<u32> = (0..512).filter(|token| token / 32 % 3 != 1).collect();
    keys.keep(Level::detect(), &kept).unwrap();
    let expected: Vec<_> = kept.iter().map(|&token| before[token as usize].clone()).collect();
    assert_eq!(decoded(&keys), expected);
}

#[test]
fn damaged_codes_are_an_error_that_changes_nothing() {
    let mut inputs = Inputs::new(7);
    let (coder, arena) = fitted("int8-channel/64", &mut inputs);
    let mut keys = CodedKeys::new(coder, &arena).unwrap();
    append(&mut keys, &arena, &mut inputs, 512);
    // A scale that is no number, in a group behind others that are encoded again before it.
    keys.pages[3].bytes_mut()[..2].fill(0xFF);
    let before: Vec<Vec<u8>> = keys.pages();
    let kept: Vec<u32> = (64..512).collect::<Vec<_>>().into_iter().filter(|t| t % 2 == 0).collect();
    let kept = &kept[..192];
    assert!(kept.iter().any(|&token| token >= 384), "the damage is among them");
    let error = keys.keep(Level::detect(), kept).unwrap_err();
    assert!(matches!(error, crate::Error::Quant(_)), "{error}");
    assert_eq!((keys.pages(), keys.num_tokens()), (before, 512));
}

#[test]
fn tokens_that_are_not_held_not_in_order_or_no_whole_groups_are_refused() {
    for (format, kept) in
        [("f16", &[0, 128][..]), ("f16", &[5, 5]), ("f16", &[5, 4]), ("int4-channel/64", &[0])]
    {
        let mut inputs = Inputs::new(8);
        let (coder, arena) = fitted(format, &mut inputs);
        let mut keys = CodedKeys::new(coder, &arena).unwrap();
        append(&mut keys, &arena, &mut inputs, 128);
        let keep = std::panic::AssertUnwindSafe(|| keys.keep(Level::detect(), kept));
        assert!(std::panic::catch_unwind(keep).is_err(), "{format} {kept:?}");
    }
}
