//! Roles of made-up heads, of which it is known what they attend to.

use heterokv_cache::HeadRole;

use super::*;

const BLOCK: usize = 20;
const NUM_BLOCKS: usize = 8;
const STEPS: usize = 4;

const MEASURE: HeadMeasure = HeadMeasure {
    prompt_tokens: BLOCK * NUM_BLOCKS,
    steps: STEPS,
    top_k: BLOCK,
    tau_stable: 0.5,
    tau_sim: 0.5,
    similarity: SimilarityAt::Prompt,
};

/// A head whose query heads attend, at the end of the prompt and at every step, to a block of the prompt each:
/// `blocks [1 + STEPS][group_size]`.
fn head(blocks: &[Vec<usize>]) -> HeadRows {
    let unit = |axis: usize| (0..NUM_BLOCKS).map(move |i| if i == axis { 4.0 } else { 0.0 });
    let (prompt_tokens, group_size) = (MEASURE.prompt_tokens, blocks[0].len());
    let mut keys: Vec<f32> = (0..prompt_tokens).flat_map(|p| unit(p / BLOCK)).collect();
    keys.extend(vec![0.0; STEPS * NUM_BLOCKS]);
    let mut queries = vec![0.0; (prompt_tokens - 1) * group_size * NUM_BLOCKS];
    queries.extend(blocks.iter().flatten().flat_map(|&block| unit(block)));
    HeadRows {
        head_dim: NUM_BLOCKS,
        group_size,
        sm_scale: 0.5,
        values: keys.clone(),
        keys,
        queries,
    }
}

/// The same block for the prompt's last query, and another for each step.
fn single(prompt: usize, steps: [usize; STEPS]) -> HeadRows {
    let steps = steps.into_iter().map(|block| vec![block]);
    head(&[vec![prompt]].into_iter().chain(steps).collect::<Vec<_>>())
}

fn block(index: usize) -> Vec<u32> {
    (index as u32 * BLOCK as u32..).take(BLOCK).collect()
}

#[test]
fn a_query_attends_to_what_weighs_most_in_the_mean_of_its_group() {
    let positions = attended(&single(2, [2, 5, 7, 0]), &MEASURE).unwrap();
    assert_eq!(positions, [2, 2, 5, 7, 0].map(block));
    // Two query heads that attend to different blocks, and room for both.
    let both = head(&vec![vec![1, 6]; 1 + STEPS]);
    let measure = HeadMeasure { top_k: 2 * BLOCK, ..MEASURE };
    let positions = attended(&both, &measure).unwrap();
    assert_eq!(positions, vec![[block(1), block(6)].concat(); 1 + STEPS]);
    // What weighs most is found with its neighbours.
    let few = HeadMeasure { top_k: BLOCK + 2, ..MEASURE };
    let positions = attended(&single(2, [2; STEPS]), &few).unwrap();
    assert_eq!(positions[0].first().zip(positions[0].last()), Some((&39, &60)));
}

#[test]
fn attention_goes_to_the_tokens_before_and_only_positions_of_the_prompt_count() {
    let mut rows = single(2, [2; STEPS]);
    // What comes behind the prompt takes nearly all of the attention, and the rest is divided as before.
    for step in 0..STEPS {
        rows.keys[(MEASURE.prompt_tokens + step) * NUM_BLOCKS + 2] = 8.0;
    }
    assert_eq!(attended(&rows, &MEASURE).unwrap(), vec![block(2); 1 + STEPS]);
    // A later token is not seen, whatever it is.
    let last = rows.keys.len() - NUM_BLOCKS;
    let before = attended(&rows, &MEASURE).unwrap();
    rows.keys[last..].fill(f32::NAN);
    let error = attended(&rows, &MEASURE).unwrap_err();
    assert!(matches!(error, heterokv_evict::Error::Weight { .. }), "{error}");
    let one_less = HeadMeasure { steps: STEPS - 1, ..MEASURE };
    assert_eq!(attended(&rows, &one_less).unwrap(), before[..STEPS]);
}

#[test]
fn roles_are_those_of_what_heads_attend_to() {
    // Alike at the end of the prompt, of which the second changes; one that changes; one that stays; and one that
    // half of the time is like the last.
    let heads = [
        single(1, [1, 1, 1, 1]),
        single(1, [3, 1, 6, 3]),
        single(2, [3, 4, 2, 5]),
        single(5, [5, 5, 0, 5]),
        single(7, [5, 5, 7, 1]),
    ];
    let attended: Vec<_> = heads.iter().map(|rows| attended(rows, &MEASURE).unwrap()).collect();
    let roles = |similarity| {
        let layer = LayerOverlaps::of(&attended, similarity);
        assert_eq!(layer.stability, [1.0, 0.0, 0.0, 1.0, 0.0]);
        classify(&layer.stability, &layer.similarity, 0.5, 0.5).unwrap()
    };
    use HeadRole::{Anchor, Pivot, Satellite, Volatile};
    let prompt = [Pivot, Satellite { pivot: 0 }, Volatile, Anchor, Volatile];
    assert_eq!(roles(SimilarityAt::Prompt), prompt);
    // At the steps the first two differ, and the last two are alike at two of four: the mean of 0 and 1.
    let steps = [Anchor, Volatile, Volatile, Pivot, Satellite { pivot: 3 }];
    assert_eq!(roles(SimilarityAt::Steps), steps);
}
