//! How rows are split.

use super::*;

/// Rows whose every number says where it stands.
fn rows(num_tokens: usize) -> HeadRows {
    let count = |offset: usize, len: usize| (0..len).map(|i| (offset + i) as f32).collect();
    HeadRows {
        head_dim: 8,
        group_size: 2,
        sm_scale: 0.5,
        keys: count(0, 8 * num_tokens),
        values: count(10_000, 8 * num_tokens),
        queries: count(20_000, 16 * num_tokens),
    }
}

#[test]
fn every_token_is_coded_or_exact_and_the_last_ones_ask() {
    let exact = ExactTokens { sinks: 4, recent: 10 };
    let rows = rows(100);
    let sample = HeadSample::split(&rows, exact, 5).expect("there are enough");
    // Behind the coded ones are nine recent tokens, then the five that ask, the first of which is recent.
    assert_eq!(sample.num_coded(), 100 - 4 - 9 - 5);
    assert_eq!(sample.keys()[..8], rows.keys[4 * 8..5 * 8]);
    for (part, whole) in
        [(&sample.resident.keys, &rows.keys), (&sample.resident.values, &rows.values)]
    {
        assert_eq!(part.len(), 8 * (4 + 9 + 5));
        assert_eq!((&part[..32], &part[32..]), (&whole[..32], &whole[8 * 86..]));
    }
    assert_eq!(sample.queries(), &rows.queries[16 * 95..]);
    assert_eq!(sample.query_energy(), relative_energy(&rows.queries[..16 * 95], 8));
    // The last query is the last token's, and sees every exact token.
    assert_eq!(sample.visible(4) * 8, sample.resident.keys.len());
}

#[test]
fn a_text_that_leaves_nothing_to_code_is_refused() {
    let exact = ExactTokens { sinks: 4, recent: 10 };
    assert!(HeadSample::split(&rows(19), exact, 5).is_ok());
    for (num_tokens, exact, num_steps) in [
        (18, exact, 5),
        (0, exact, 5),
        (19, ExactTokens { sinks: 5, recent: 10 }, 5),
        (19, ExactTokens { sinks: usize::MAX, recent: usize::MAX }, usize::MAX),
    ] {
        let error = HeadSample::split(&rows(num_tokens), exact, num_steps).unwrap_err();
        assert!(matches!(error, Error::ShortSample { .. }), "{error}");
    }
    let error = HeadSample::split(&rows(19), exact, 0).unwrap_err();
    assert!(matches!(error, Error::NoContinuation), "{error}");
}

#[test]
fn columns_are_those_of_the_head() {
    let rows: Vec<f32> = (0..12).map(|x| x as f32).collect();
    assert_eq!(columns(&rows, 6, 1, 2), [2.0, 3.0, 8.0, 9.0]);
}

#[test]
fn energies_are_relative_to_their_mean() {
    assert_eq!(relative_energy(&[1.0, 3.0, -1.0, 3.0], 2), [0.2, 1.8]);
    assert_eq!(relative_energy(&[], 2), [1.0, 1.0]);
    assert_eq!(relative_energy(&[0.0; 4], 2), [1.0, 1.0]);
}
