//! Attention over what is held and nothing else, the same on any number of threads and for heads in any order.

use super::*;

/// The negative control of every comparison with [`masked`]: one token more, one less, or another in its place is seen.
#[test]
fn a_token_that_is_not_held_is_seen() {
    let tokens = Tokens::new(1, shape(2, 4, 2, 16), 120);
    let history: Vec<usize> = (0..120).collect();
    for scorer in SCORERS {
        let way = Way { amount: Amount::Tokens(20), ..Way::new(EXACT, scorer, "uniform") };
        let mut cache = cache(&way.spec(&tokens.shape).1, tokens.shape);
        prefill(&tokens, std::slice::from_mut(&mut cache), 100);
        (100..120).for_each(|token| tokens.append(&mut cache, token));
        let held = held(&cache);
        let out = tokens.attend(&mut cache, 119);
        let distance = |held: &[Vec<u32>]| distance(&out, &masked(&tokens, held, &history, 119));
        assert!(distance(&held) < NEAR, "{way:?}");
        let forgotten = (0..120).find(|p| !held[0].contains(p)).expect("something is forgotten");
        for place in 0..held[0].len() {
            let mut changed = held.clone();
            changed[0].remove(place);
            let dropped = distance(&changed);
            changed = held.clone();
            changed[0][place] = forgotten;
            // A token of no weight can stand for another of none, which is also seen in f64, if hardly.
            assert!(dropped > 0.0 && distance(&changed) != distance(&held), "{way:?} {place}");
        }
        let mut fewer = held.clone();
        fewer[0].truncate(held[0].len() / 2);
        assert!(distance(&fewer) > 10.0 * NEAR, "{way:?}: {}", distance(&fewer));
        let mut other = held.clone();
        other[0] = (0..held[0].len() as u32).collect();
        assert!(other == held || distance(&other) > NEAR, "{way:?}");
    }
}

/// What attention over coded keys is near to: the same over the tokens held, nearer than to that over fewer or others.
#[test]
fn coded_keys_are_those_of_the_tokens_held() {
    for (i, layout) in CODED.into_iter().enumerate() {
        for scorer in ["window", "accumulated", "key-diff"] {
            let tokens = Tokens::new(i as u64, shape(2, 4, 2, 16), 420);
            let history: Vec<usize> = (0..420).collect();
            let way = Way { amount: Amount::Tokens(20), ..Way::new(layout, scorer, "uniform") };
            let mut cache = cache(&way.spec(&tokens.shape).1, tokens.shape);
            prefill(&tokens, std::slice::from_mut(&mut cache), 360);
            let (mut to_held, mut to_others) = (0.0, 0.0);
            for token in 360..420 {
                tokens.append(&mut cache, token);
                let held = held(&cache);
                let out = tokens.attend(&mut cache, token);
                let error = |held: &[Vec<u32>]| -> f64 {
                    let expected = masked(&tokens, held, &history, token);
                    out.iter().zip(expected).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum()
                };
                to_held += error(&held);
                // Every token of the coded ones a place further on.
                let later = |positions: &Vec<u32>| -> Vec<u32> {
                    positions.iter().map(|&p| (p + 1).min(token as u32)).collect()
                };
                to_others += error(&held.iter().map(later).collect::<Vec<_>>());
            }
            let bar = match layout {
                _ if layout.contains("lm2") => 0.5,
                _ if layout.contains("alloc") => 0.15,
                _ => 0.02,
            };
            assert!(to_held < bar * to_others, "{way:?}: {to_held} and {to_others}");
        }
    }
}

/// Outputs and positions of a cache that goes on behind a prompt.
fn trace(tokens: &Tokens, spec: &str, prompt: usize) -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    let mut cache = cache(spec, tokens.shape);
    prefill(tokens, std::slice::from_mut(&mut cache), prompt);
    let step = |token: usize| {
        tokens.append(&mut cache, token);
        (bits(&tokens.attend(&mut cache, token)), held(&cache))
    };
    (prompt..tokens.len).map(step).collect()
}

#[test]
fn threads_change_no_bit() {
    let tokens = Tokens::new(5, shape(2, 6, 3, 16), 430);
    let pool = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads of a test")
    };
    let (one, two) = (pool(1), pool(2));
    let layouts = [EXACT, CODED[1], CODED[3], CODED[4]];
    for (i, scorer) in SCORERS.into_iter().enumerate() {
        let (layout, budget) = (layouts[i % layouts.len()], BUDGETS[i % BUDGETS.len()]);
        let spec = Way::new(layout, scorer, budget).spec(&tokens.shape).1;
        let expected = one.install(|| trace(&tokens, &spec, 370));
        assert!(two.install(|| trace(&tokens, &spec, 370)) == expected, "{spec}");
    }
}

/// The same tokens with the KV heads and their groups in reverse order.
fn reversed(tokens: &Tokens) -> Tokens {
    let KvShape { heads, .. } = tokens.shape;
    let turned = |rows: &Vec<f32>, len: usize| -> Vec<f32> {
        let row_len = heads.num_kv_heads * len;
        rows.chunks_exact(row_len)
            .flat_map(|row| row.chunks_exact(len).rev().flatten())
            .copied()
            .collect()
    };
    let group_len = heads.group_size() * heads.head_dim;
    Tokens {
        shape: tokens.shape,
        len: tokens.len,
        q: tokens.q.iter().map(|q| turned(q, group_len)).collect(),
        k: tokens.k.iter().map(|k| turned(k, heads.head_dim)).collect(),
        v: tokens.v.iter().map(|v| turned(v, heads.head_dim)).collect(),
    }
}

#[test]
fn heads_in_another_order_give_the_same_in_that_order() {
    let tokens = Tokens::new(6, shape(2, 6, 3, 16), 200);
    let turned = reversed(&tokens);
    let (num_heads, group_len) = (3, 2 * 16);
    // Whoever shares by one order of all heads breaks ties by it.
    let budgets = BUDGETS.iter().filter(|budget| **budget != "global");
    for (i, budget) in budgets.enumerate() {
        for (j, scorer) in SCORERS.into_iter().enumerate() {
            // Votes and positions of tokens are often equal.
            if budget.starts_with("adaptive")
                && (scorer.starts_with("votes") || scorer == "position")
            {
                continue;
            }
            let layout = if (i + j) % 2 == 0 { EXACT } else { CODED[1] };
            let spec = Way::new(layout, scorer, budget).spec(&tokens.shape).1;
            let there = trace(&tokens, &spec, 150);
            for (here, there) in trace(&turned, &spec, 150).into_iter().zip(there) {
                let layers = there.1.chunks_exact(num_heads);
                let positions: Vec<_> =
                    layers.flat_map(|heads| heads.iter().rev()).cloned().collect();
                assert_eq!(here.1, positions, "{spec}");
                let layers = there.0.chunks_exact(num_heads * group_len);
                let out: Vec<u32> = layers
                    .flat_map(|row| row.chunks_exact(group_len).rev().flatten())
                    .copied()
                    .collect();
                assert!(here.0 == out, "{spec}");
            }
        }
    }
}

/// Without rotary turns nothing can be expected of queries, and without a look at queries nothing is known of tokens.
#[test]
fn what_was_not_watched_is_refused() {
    let tokens = Tokens::new(7, shape(1, 2, 1, 8), 40);
    let heads = tokens.shape.heads;
    let caches = |scorer| {
        let spec = Way::new(EXACT, scorer, "uniform").spec(&tokens.shape).1;
        [cache(&spec, tokens.shape)]
    };
    let prompt =
        || PromptLayer::new(heads, Level::detect(), &tokens.k[0], &tokens.v[0]).expect("a prompt");
    let error = prompt().watch(&caches("expected"), None).unwrap_err();
    assert!(matches!(error, Error::NoRotary), "{error}");
    let mut window = caches("window");
    let error = prompt().store(&mut window, 0).unwrap_err();
    assert!(matches!(error, Error::NotWatched { layer: 0 }), "{error}");
    let watched = prompt().watch(&caches("accumulated"), None).expect("attention needs no turns");
    let error = watched.store(&mut window, 0).unwrap_err();
    assert!(matches!(error, Error::NotWatched { layer: 0 }), "{error}");
}
