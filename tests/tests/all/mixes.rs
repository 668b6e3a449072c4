//! Mixes of key formats, from the measure on one text to the divergence on another.

use std::path::Path;

use heterokv_cache::{KeyFormat, KeyMix, MIN_TOKENS};
use heterokv_eval::{
    Error, ExactTokens, KeyUse, Sensitivity, SensitivitySettings, measure_sensitivity,
};
use heterokv_evict::{Rule, Selector};
use heterokv_model::{ComputeType, Model};
use heterokv_quant::Error as QuantError;

use crate::determinism::{check_alone, check_twice, tiny_model, tokens};
use crate::files::is_long;
use crate::quality::{Promise, Tier, hold};
use crate::smollm::Smollm;

/// As in the caches here.
const EXACT: ExactTokens = ExactTokens { sinks: 4, recent: 64 };

fn formats(names: &[&str]) -> Vec<KeyFormat> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn measure(model: &Model, num_tokens: usize, names: &[&str]) -> Result<Sensitivity, Error> {
    let settings = SensitivitySettings {
        formats: formats(names),
        exact: EXACT,
        key_use: KeyUse::Attend,
        num_steps: 16,
    };
    measure_sensitivity(model, &tokens(model, num_tokens), &settings, None)
}

#[test]
fn fewer_bits_cost_more_in_every_head() {
    let model = tiny_model();
    let (num_layers, heads) = (model.kv_shape().num_layers, model.kv_shape().heads);
    // The last one codes groups of tokens, which the text does not end with.
    let sensitivity = measure(&model, 500, &["alloc/1", "alloc/4", "f16", "int8-channel/32"]);
    let sensitivity = sensitivity.unwrap();
    for (layer, head) in (0..num_layers).flat_map(|l| (0..heads.num_kv_heads).map(move |h| (l, h)))
    {
        let [one, four, f16, int8] = *sensitivity.costs(layer, head) else {
            panic!("four formats")
        };
        println!("{layer} {head}: {one:e} {four:e} {int8:e} {f16:e}");
        assert!(one > 4.0 * four && one > 4.0 * int8, "{layer} {head}: {one} {four} {int8}");
        // What is left is the rounding of f16.
        assert!(int8 > f16 && (0.0..1e-6 * one).contains(&f16), "{layer} {head}: {int8} {f16}");
    }
}

/// What codes miss as they select costs less than what they misweigh; a selector that takes all misses nothing.
#[test]
fn keys_that_only_select_cost_less() {
    let model = tiny_model();
    let costs = |key_use| {
        let formats = formats(&["alloc/1", "alloc/4", "f16"]);
        let settings = SensitivitySettings { formats, exact: EXACT, key_use, num_steps: 16 };
        let text = tokens(&model, 500);
        let measured = measure_sensitivity(&model, &text, &settings, None).unwrap();
        let heads = (0..2).flat_map(|layer| (0..2).map(move |head| (layer, head)));
        let costs = heads.map(|(layer, head)| measured.costs(layer, head).to_vec());
        costs.collect::<Vec<_>>()
    };
    let selector = |rule| KeyUse::Select(Selector::new(rule, 0, usize::MAX).unwrap());
    let (attended, selected) = (costs(KeyUse::Attend), costs(selector(Rule::TopP(0.9))));
    for (attended, selected) in attended.iter().zip(&selected) {
        assert!(selected[0] < attended[0], "{attended:?} {selected:?}");
        // What even exact scores leave out is in all of them.
        let [one, four, f16] = selected[..] else { panic!("three formats") };
        assert!(one > 2.0 * f16 && (0.9..1.1).contains(&(four / f16)), "{selected:?}");
    }
    assert_eq!(costs(selector(Rule::All)), vec![vec![0.0; 3]; 4]);
}

#[test]
fn the_measure_does_not_depend_on_threads_and_reports_every_layer() {
    let model = tiny_model();
    let settings = SensitivitySettings {
        formats: formats(&["alloc/2", "lm2"]),
        exact: EXACT,
        key_use: KeyUse::Attend,
        num_steps: 16,
    };
    let run = |num_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        let mut seen = Vec::new();
        let mut progress = |done: usize, total: usize| seen.push((done, total));
        let text = tokens(&model, 400);
        let measured = pool.install(|| {
            measure_sensitivity(&model, &text, &settings, Some(&mut progress)).unwrap()
        });
        assert_eq!(seen, [(1, 2), (2, 2)]);
        measured
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn what_cannot_be_measured_or_chosen_is_an_error() {
    let model = tiny_model();
    let error = measure(&model, 4 + 63 + 16, &["f16"]).unwrap_err();
    assert!(matches!(error, Error::ShortSample { num_tokens: 83, .. }), "{error}");
    let error = measure(&model, 300, &["alloc/2"]).unwrap_err();
    assert!(matches!(error, Error::Quant(QuantError::TooFewTokens { .. })), "{error}");
    let error = measure(&model, 300, &["f16", "int4-token/64"]).unwrap_err();
    assert!(matches!(error, Error::Quant(QuantError::GroupTooLong { .. })), "{error}");
    let error = measure(&model, 300, &[]).unwrap().mix(8.0, 4096).unwrap_err();
    assert!(matches!(error, Error::Quant(QuantError::NoCandidates { .. })), "{error}");
    let measured = measure(&model, 400, &["alloc/1", "alloc/4"]).unwrap();
    for bits in [0.0, -1.0, f64::NAN, 2.0] {
        let error = measured.mix(bits, 4096).unwrap_err();
        assert!(matches!(error, Error::Quant(QuantError::Budget { .. })), "{bits}: {error}");
    }
}

/// A mix in a file, and the beginning of a spec that names it.
fn saved(model: &Model, formats: Vec<KeyFormat>, path: &Path) -> (KeyMix, String) {
    let mix = KeyMix::create(path, "measured", &model.kv_shape(), formats).unwrap();
    (mix, format!("keys=mix:{}", path.display()))
}

#[test]
fn a_mix_keeps_its_bits_and_is_a_cache_like_any_other() {
    let model = tiny_model();
    let measured = measure(&model, 500, &["alloc/1", "alloc/2", "alloc/4", "alloc/8"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.mix");
    let mut last = 0.0;
    for bits in [2.25, 3.0, 4.5, 9.5, f64::INFINITY] {
        let (mix, _) = saved(&model, measured.mix(bits, 4096).unwrap(), &path);
        let reached = mix.bits_per_element(4096).unwrap();
        assert!(reached <= bits && reached >= last, "{reached} of {bits}");
        last = reached;
    }
    let (mix, keys) = saved(&model, measured.mix(4.0, 4096).unwrap(), &path);
    assert!(mix.counts().len() > 1, "heads are not alike: {:?}", mix.counts());
    let specs = ["rescore=none", "rescore=int8@host"]
        .map(|rest| format!("{keys},values=int8@host,{rest},select=top-p:0.9,min=8,recent=16"));
    let specs = [specs[0].as_str(), &specs[1]];
    check_twice(&model, &specs);
    check_alone(&model, &["full", specs[0], specs[1]]);
}

/// Where the measured text begins: none of the windows of the bars.
const MEASURED_OFFSET: usize = 120_000;

/// Bits per element, uniform codes that take no more, and the bars that these are held to.
struct Size {
    bits: f64,
    uniform: &'static str,
    key_use: KeyUse,
    rest: &'static str,
    bars: Promise,
}

/// The bars of the key codes of those sizes, held by mixes that were measured on other text, beside the
/// uniform codes and mixes of their very size.
#[test]
fn mixes_keep_the_bars_of_their_size() {
    if !is_long() {
        println!("SKIPPED: a mix is measured for the long tier");
        return;
    }
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(corpus) = smollm.corpus_or_skip() else { return };
    let model = smollm.load(ComputeType::Q8);
    let selector = Selector::new(Rule::TopP(0.95), 256, usize::MAX).unwrap();
    let bars = |plain_kl, recall_kl, rows_read| Promise {
        spec: "".into(),
        percent: None,
        plain_kl,
        recall_kl: Some(recall_kl),
        top1: None,
        rows_read,
    };
    let sizes = [
        Size {
            bits: 2.25,
            uniform: "alloc/2",
            key_use: KeyUse::Attend,
            rest: "values=f16@host,rescore=none,select=none,sinks=4,recent=64",
            bars: bars(0.03, 0.8, None),
        },
        Size {
            bits: 1.25,
            uniform: "alloc/1",
            key_use: KeyUse::Select(selector),
            rest: "values=int8@host,rescore=int8@host,union=group,select=top-p:0.95,min=256,sinks=4,recent=64",
            bars: bars(0.0022, 0.012, Some(0.28)),
        },
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut promises = Vec::new();
    for Size { bits, uniform, key_use, rest, bars } in sizes {
        let ladder = (2..=16).map(|quarters| KeyFormat::Alloc { centibits: 25 * quarters });
        let settings =
            SensitivitySettings { formats: ladder.collect(), exact: EXACT, key_use, num_steps: 64 };
        let text = &corpus[MEASURED_OFFSET..][..MIN_TOKENS + settings.num_steps];
        let measured = measure_sensitivity(&model, text, &settings, None).unwrap();
        let format: KeyFormat = uniform.parse().unwrap();
        let uniform_bits = format.bits_per_element(64, MIN_TOKENS).unwrap();
        println!("{uniform} takes {uniform_bits:.3} bits");
        let spec = |keys: String| Promise { spec: format!("{keys},{rest}").into(), ..bars };
        for bits in [bits, uniform_bits] {
            let path = folder.path().join(format!("{bits:.3}.mix"));
            let (mix, keys) = saved(&model, measured.mix(bits, MIN_TOKENS).unwrap(), &path);
            let reached = mix.bits_per_element(MIN_TOKENS).unwrap();
            assert!(reached <= bits, "{reached} bits of {bits}");
            let counts = mix.counts();
            let counts = counts.iter().map(|(format, heads)| format!(" {heads} {format}"));
            println!("a mix of {reached:.3} bits of {bits:.3}:{}", counts.collect::<String>());
            promises.push(spec(keys));
        }
        promises.push(spec(format!("keys={uniform}")));
    }
    // Whoever holds bars loads the model, one at a time.
    drop(model);
    drop(smollm);
    hold(&promises, &Tier::of(&[45_000, 60_000]));
}
