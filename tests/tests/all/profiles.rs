//! Tables fitted on a text longer than a context, in pieces.

use heterokv_cache::{CacheConfig, Keys, KvCache, Profile};
use heterokv_eval::{
    Error, FitRows, Pieces, fit_profile, relative_energy, visit_fit_rows, visit_layers,
};
use heterokv_model::Model;

use crate::determinism::{tiny_model, tokens};
use crate::distance::bits;
use crate::smollm::{config, last_logits};

const PIECES: Pieces = Pieces { tokens: 300, sinks: 4 };

/// `[num_layers][num_kv_heads]`.
fn rows(model: &Model, text: &[u32]) -> Vec<Vec<FitRows>> {
    let mut layers = Vec::new();
    visit_fit_rows(model, text, PIECES, &mut |layer, rows| {
        assert_eq!(layer, layers.len(), "layer by layer");
        layers.push(rows);
        Ok(())
    })
    .unwrap();
    layers
}

fn keys(name: &str) -> Keys {
    Keys::Uniform(name.parse().unwrap())
}

#[test]
fn a_piece_is_a_prompt_of_its_own() {
    let model = tiny_model();
    let text = tokens(&model, 700);
    let together = rows(&model, &text);
    let mut apart: Vec<Vec<Vec<FitRows>>> = Vec::new();
    for piece in text.chunks(PIECES.tokens) {
        let mut layers = Vec::new();
        visit_layers(&model, &[piece], &mut |rows| {
            let rows = rows.heads.iter().map(|head| FitRows {
                keys: head.keys[PIECES.sinks * head.head_dim..].to_vec(),
                query_energy: relative_energy(&head.queries, head.head_dim),
            });
            layers.push(rows.collect());
            Ok(())
        })
        .unwrap();
        apart.push(layers);
    }
    assert_eq!(apart.len(), 3);
    let heads = model.kv_shape().heads;
    for (layer, rows) in together.iter().enumerate() {
        assert_eq!(rows.len(), heads.num_kv_heads);
        for (head, rows) in rows.iter().enumerate() {
            assert_eq!(rows.keys.len(), (700 - 3 * PIECES.sinks) * heads.head_dim);
            let apart: Vec<&FitRows> = apart.iter().map(|piece| &piece[layer][head]).collect();
            let keys: Vec<f32> = apart.iter().flat_map(|piece| piece.keys.clone()).collect();
            assert!(bits(&rows.keys) == bits(&keys), "{layer} {head}");
            for (channel, energy) in rows.query_energy.iter().enumerate() {
                let mean = apart.iter().map(|piece| piece.query_energy[channel]).sum::<f32>() / 3.0;
                assert!((energy - mean).abs() <= 1e-6 * mean, "{layer} {head} {channel}");
            }
        }
    }
    // Texts of one length and the same tokens are the same keys, wherever they stand.
    let twice = rows(&model, &[&text[..300], &text[..300]].concat());
    for rows in twice.iter().flatten() {
        let (one, other) = rows.keys.split_at(rows.keys.len() / 2);
        assert!(bits(one) == bits(other));
    }
    assert!(rows(&model, &[]).is_empty());
}

#[test]
fn a_profile_holds_what_the_pieces_fit_and_the_threads_do_not_show() {
    let model = tiny_model();
    let text = tokens(&model, 700);
    let spec = "keys=pq/4x128,values=int8@host,sinks=4,recent=16";
    let CacheConfig::Hca(hca) = config(&model, spec) else { panic!("not full") };
    let run = |num_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        let mut seen = Vec::new();
        let mut progress = |done: usize, total: usize| seen.push((done, total));
        let profile = pool.install(|| {
            fit_profile(&model, &text, PIECES, &hca.keys, "tiny", Some(&mut progress)).unwrap()
        });
        assert_eq!(seen, [(1, 2), (2, 2)]);
        decoded(&model, &profile, &text[..200], spec)
    };
    assert_eq!(run(1), run(3));
}

/// What a cache with a profile gives behind a prompt.
fn decoded(model: &Model, profile: &Profile, prompt: &[u32], spec: &str) -> Vec<u32> {
    let config = config(model, spec);
    let cache = KvCache::new(model.kv_shape(), config, model.level(), Some(profile));
    let mut caches = [cache.unwrap()];
    let hidden = model.prefill(prompt, &mut caches, None).unwrap();
    let mut logits = last_logits(model, &hidden);
    logits.extend(crate::smollm::feed(model, &prompt[..8], &mut caches[0]));
    bits(&logits)
}

#[test]
fn too_little_text_is_refused_before_any_work() {
    let model = tiny_model();
    let fit = |num_tokens, pieces, name| {
        let text = tokens(&model, num_tokens);
        fit_profile(&model, &text, pieces, &keys(name), "tiny", None).map(drop).unwrap_err()
    };
    for length in [0, 3, 4] {
        let error = fit(300, Pieces { tokens: length, sinks: 4 }, "f16");
        assert!(matches!(error, Error::ShortPieces { .. }), "{length}: {error}");
        assert!(error.to_string().contains("use longer pieces"), "{error}");
    }
    let error = fit(700, PIECES, "pq/4x512");
    let is_short = matches!(error, Error::ShortProfile { num_fitted: 688, needed: 1024, .. });
    assert!(is_short && error.to_string().contains("use more tokens"), "{error}");
    assert!(matches!(fit(4, PIECES, "f16"), Error::ShortProfile { .. }));
}
