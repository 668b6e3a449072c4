//! Bad input: a typed error, no panic, and a cache as it was.

use heterokv_attn::AttnError;
use heterokv_cache::Error;

use super::*;

const SPECS: [&str; 4] =
    ["full", "keys=f16,recent=8", "keys=lm2,rescore=int8@host,recent=8", "hca:50%,recent=8"];
const BAD: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

fn is_not_finite(error: &Error, name: &str, place: usize) -> bool {
    let found = matches!(error, Error::Attn(AttnError::NotFinite { tensor, index, .. }) if (*tensor, *index) == (name, place));
    found && error.to_string().contains(name)
}

#[test]
fn a_token_that_is_not_finite_is_refused_and_nothing_changes() {
    let tokens = Tokens::new(1, shape(2, 4, 2, 8), 330);
    for spec in SPECS {
        let mut cache = tokens.cache(spec, 300, 320);
        let before = bits(&tokens.attend(&mut cache, 319));
        let bytes = cache.device_bytes();
        for bad in BAD {
            let good = vec![1.0f32; 16];
            let mut broken = good.clone();
            // In the second KV head: the first one must not take its half of the token either.
            broken[11] = bad;
            let error = cache.append(0, &broken, &good).unwrap_err();
            assert!(is_not_finite(&error, "k", 11), "{spec}: {error}");
            let error = cache.append(1, &good, &broken).unwrap_err();
            assert!(is_not_finite(&error, "v", 11), "{spec}: {error}");
            let mut query = vec![1.0; 32];
            query[30] = bad;
            let mut out = [7.0; 32];
            let error = cache.attend(0, &query, &mut out).unwrap_err();
            assert!(is_not_finite(&error, "q", 30), "{spec}: {error}");
            assert_eq!(out, [7.0; 32], "{spec}: nothing is written");
        }
        assert_eq!((cache.num_tokens(), cache.device_bytes()), (320, bytes), "{spec}");
        assert_eq!(before, bits(&tokens.attend(&mut cache, 319)), "{spec}");
        (320..330).for_each(|token| tokens.append(&mut cache, token));
        assert!(tokens.attend(&mut cache, 329).iter().all(|x| x.is_finite()), "{spec}");
    }
}

#[test]
fn queries_that_are_refused_do_not_reach_the_fit() {
    let tokens = Tokens::new(2, shape(1, 1, 1, 16), 400);
    let mut spoilt = cache("keys=alloc/2,recent=8", tokens.shape);
    let mut clean = cache("keys=alloc/2,recent=8", tokens.shape);
    for token in 0..400 {
        let _ = spoilt.attend(0, &[f32::NAN; 16], &mut [0.0; 16]);
        tokens.append(&mut spoilt, token);
        tokens.append(&mut clean, token);
    }
    assert_eq!(bits(&tokens.attend(&mut spoilt, 399)), bits(&tokens.attend(&mut clean, 399)));
}

#[test]
fn a_prompt_that_is_not_finite_is_refused_and_the_cache_stays_empty() {
    let tokens = Tokens::new(3, shape(1, 4, 2, 8), 300);
    for (spec, bad) in SPECS.iter().flat_map(|spec| BAD.map(|bad| (spec, bad))) {
        for name in ["q", "k", "v"] {
            let mut cache = cache(spec, tokens.shape);
            let mut parts = [tokens.q[0].clone(), tokens.k[0].clone(), tokens.v[0].clone()];
            let place = 4321;
            parts[["q", "k", "v"].iter().position(|n| *n == name).unwrap()][place] = bad;
            let input = PrefillInput { q: &parts[0], k: &parts[1], v: &parts[2] };
            let mut out = vec![0.0; parts[0].len()];
            let caches = std::slice::from_mut(&mut cache);
            let error = prefill_layer(caches, 0, input, &mut out).unwrap_err();
            assert!(is_not_finite(&error, name, place), "{spec}: {error}");
            assert_eq!((cache.num_tokens(), cache.device_in_use_bytes()), (0, 0), "{spec}");
        }
    }
}

#[test]
fn lengths_layers_and_shapes_that_do_not_fit_are_refused() {
    let tokens = Tokens::new(4, shape(2, 4, 2, 8), 20);
    for spec in SPECS {
        let mut cache = tokens.cache(spec, 10, 10);
        let (row, query) = ([0.5; 16], [0.5; 32]);
        let mut out = [0.0; 32];
        for (error, tensor) in [
            (cache.append(0, &row[1..], &row), "k"),
            (cache.append(0, &row, &row[1..]), "v"),
            (cache.attend(0, &query[1..], &mut out), "q"),
            (cache.attend(0, &query, &mut out[1..]), "out"),
        ] {
            let error = error.unwrap_err();
            assert!(matches!(&error, Error::Length { tensor: t, .. } if *t == tensor), "{error}");
        }
        for layer in [2, usize::MAX] {
            let missing = |error: Error| matches!(error, Error::NoSuchLayer { num_layers: 2, .. });
            assert!(missing(cache.append(layer, &row, &row).unwrap_err()));
            assert!(missing(cache.attend(layer, &query, &mut out).unwrap_err()));
            let input = PrefillInput { q: &[], k: &[], v: &[] };
            let caches = std::slice::from_mut(&mut cache);
            assert!(missing(prefill_layer(caches, layer, input, &mut []).unwrap_err()));
        }
        let input = PrefillInput { q: &query, k: &row, v: &row };
        let error =
            prefill_layer(std::slice::from_mut(&mut cache), 1, input, &mut out).unwrap_err();
        assert!(matches!(error, Error::NotEmpty { layer: 1, num_tokens: 10 }), "{error}");
        let mut pair = [super::cache(spec, tokens.shape), super::cache(spec, shape(2, 2, 2, 8))];
        let error = prefill_layer(&mut pair, 0, input, &mut out).unwrap_err();
        assert!(matches!(error, Error::DifferentShapes { index: 1 }), "{error}");
        let short = PrefillInput { q: &query, k: &row[..8], v: &row };
        assert!(prefill_layer(&mut pair[..1], 0, short, &mut out).is_err());
        assert!(prefill_layer(&mut pair[..1], 0, input, &mut out[1..]).is_err());
        assert_eq!((cache.num_tokens(), pair[0].num_tokens()), (10, 0));
    }
}

#[test]
fn configs_that_cannot_work_are_refused_before_anything_is_allocated() {
    let shape = shape(1, 2, 1, 64);
    let CacheConfig::Hca(good) = config("keys=int8-token", shape) else { panic!("not full") };
    let refused =
        |config| KvCache::new(shape, CacheConfig::Hca(config), Level::SCALAR, None).is_err();
    assert!(!refused(good.clone()));
    let mut bad = vec![good; 6];
    bad[0].recent = 0;
    bad[1].sinks = usize::MAX;
    bad[2].recent = usize::MAX - 3;
    (bad[3].min, bad[3].max) = (9, 8);
    bad[4].max = 0;
    (bad[5].renormalise, bad[5].rescore) = (false, Some(heterokv_cache::RowFormat::F16));
    for config in bad {
        assert!(refused(config.clone()), "{config}");
    }
    for head_dim in [12, 60] {
        let odd = super::shape(1, 2, 1, head_dim);
        assert!("keys=lm2".parse::<CacheSpec>().unwrap().resolve(&odd, None).is_err());
    }
    let mut heads = shape.heads;
    heads.num_kv_heads = 0;
    assert!(
        KvCache::new(KvShape { heads, ..shape }, CacheConfig::Full, Level::SCALAR, None).is_err()
    );
}
