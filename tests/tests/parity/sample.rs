//! The next token on devices, held to the rule of the sampler in f64.

use heterokv_attn::device::{Argmax, Picked, Sample};
use heterokv_model::sampler::{Sampler, SamplerSettings};
use heterokv_testkit::Inputs;

use crate::devices::places_or_skip;
use crate::sites::{Output, Site, upload};

/// How far from the edge of a token, as a share of all kept mass, a number may fall and the token be its neighbour's.
const SLACK: f64 = 2e-5;

/// Rows of a case.
const ROWS: usize = 24;

/// Settings but for the seed.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    vocab_size: usize,
    /// Deviation of the logits.
    spread: f32,
    /// Logits are multiples of this; 0 leaves them as they are.
    grain: f32,
    temperature: f32,
    top_k: Option<usize>,
    top_p: f32,
    min_p: f32,
}

fn cases() -> Vec<Case> {
    let plain = |name, vocab_size, spread, temperature| Case {
        name,
        vocab_size,
        spread,
        grain: 0.0,
        temperature,
        top_k: None,
        top_p: 1.0,
        min_p: 0.0,
    };
    vec![
        plain("one token", 1, 1.0, 1.0),
        plain("by id", 700, 2.0, 0.8),
        plain("cold", 500, 3.0, 0.05),
        plain("hot", 255, 1.0, 10.0),
        Case { top_k: Some(40), ..plain("top-k", 1000, 2.0, 1.0) },
        Case { top_k: Some(1), ..plain("the first", 300, 1.0, 1.0) },
        Case { top_k: Some(5000), ..plain("top-k beyond all", 257, 1.0, 1.0) },
        Case { top_p: 0.9, ..plain("top-p", 1000, 3.0, 1.0) },
        Case { top_p: 1e-6, ..plain("top-p of one", 400, 1.0, 1.0) },
        Case { min_p: 0.2, ..plain("min-p", 600, 2.0, 1.0) },
        Case { top_k: Some(50), top_p: 0.8, min_p: 0.05, ..plain("all of them", 2000, 2.5, 0.7) },
        Case { grain: 1.0, top_k: Some(37), ..plain("ties at top-k", 600, 1.0, 1.0) },
        Case { grain: 1.0, top_p: 0.6, ..plain("ties at top-p", 600, 1.0, 1.0) },
        Case { grain: 100.0, top_p: 0.5, ..plain("all equal", 300, 1.0, 1.0) },
    ]
}

impl Case {
    /// Logits of a row, a few of them impossible, none where it says so by name.
    fn logits(&self, inputs: &mut Inputs) -> Vec<f32> {
        let mut logits = inputs.gaussian_rows(1, self.vocab_size, self.spread);
        if self.grain > 0.0 {
            logits.iter_mut().for_each(|x| *x = (*x / self.grain).round() * self.grain);
        }
        for _ in 0..self.vocab_size / 50 {
            logits[inputs.below(self.vocab_size)] = f32::NEG_INFINITY;
        }
        logits
    }

    /// The kept tokens in the order in which they lie end to end, with their weights.
    fn kept(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut order: Vec<usize> =
            (0..logits.len()).filter(|&id| logits[id] > f32::NEG_INFINITY).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
        order.truncate(self.top_k.unwrap_or(usize::MAX));
        let highest = f64::from(logits[order[0]]);
        let weight =
            |id: usize| ((f64::from(logits[id]) - highest) / f64::from(self.temperature)).exp();
        let mut kept: Vec<(u32, f64)> = order.iter().map(|&id| (id as u32, weight(id))).collect();
        if self.top_p < 1.0 {
            let wanted = f64::from(self.top_p) * kept.iter().map(|(_, w)| w).sum::<f64>();
            let mut sum = 0.0;
            let enough = kept.iter().position(|(_, w)| {
                sum += w;
                sum >= wanted
            });
            kept.truncate(enough.map_or(kept.len(), |last| last + 1));
        }
        kept.retain(|(_, w)| *w >= f64::from(self.min_p));
        if self.top_p == 1.0 {
            kept.sort_by_key(|(id, _)| *id);
        }
        kept
    }

    /// Whether a number falls on a token, or next to it.
    fn accepts(&self, logits: &[f32], uniform: f32, id: u32) -> bool {
        let kept = self.kept(logits);
        let total: f64 = kept.iter().map(|(_, w)| w).sum();
        let Some(place) = kept.iter().position(|(kept, _)| *kept == id) else { return false };
        let before: f64 = kept[..place].iter().map(|(_, w)| w).sum();
        let (drawn, slack) = (f64::from(uniform) * total, SLACK * total);
        before - slack <= drawn && drawn <= before + kept[place].1 + slack
    }

    fn sample<S: Site>(&self, site: &S, logits: &[f32], uniforms: &[f32]) -> Vec<Picked> {
        let memories = site.memories();
        let [on_device, numbers] = [upload(memories, logits), upload(memories, uniforms)];
        let ids = Output::new(memories, uniforms.len());
        let sample = Sample {
            rows: uniforms.len(),
            vocab_size: self.vocab_size,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            logits: (&on_device).into(),
            uniforms: (&numbers).into(),
            ids: ids.bound(),
        };
        site.run(&[sample.launch().unwrap()]);
        ids.read(memories, self.name).iter().map(|id| Picked::of(id.to_bits())).collect()
    }
}

#[test]
fn sample() {
    sample_on(places_or_skip());
}

pub(crate) fn sample_on<S: Site>(sites: &[S]) {
    for (number, case) in cases().iter().enumerate() {
        let mut inputs = Inputs::new(1700 + number as u64);
        let rows: Vec<Vec<f32>> = (0..ROWS).map(|_| case.logits(&mut inputs)).collect();
        let mut uniforms: Vec<f32> = (0..ROWS).map(|_| inputs.unit()).collect();
        // The ends, too: the least, and the greatest below 1.
        (uniforms[0], uniforms[1]) = (0.0, 1.0 - f32::EPSILON / 2.0);
        for site in sites {
            let picked = case.sample(site, &rows.concat(), &uniforms);
            let mut num_refused = 0;
            for ((logits, &uniform), picked) in rows.iter().zip(&uniforms).zip(picked) {
                let label = format!("{}, {uniform}, on {}: {picked:?}", case.name, site.name());
                let Picked::Token(id) = picked else { panic!("{label}") };
                assert!(case.accepts(logits, uniform, id), "{label}");
                // A neighbour, an impossible token, and what another number draws are not accepted.
                let others = [id.wrapping_sub(1), id + 1, u32::MAX];
                let refused = others.iter().filter(|other| !case.accepts(logits, uniform, **other));
                num_refused += refused.count();
                num_refused += usize::from(!case.accepts(logits, (uniform + 0.5) % 1.0, id));
            }
            assert!(num_refused >= 2 * ROWS, "{}: only {num_refused} are refused", case.name);
        }
    }
}

/// The reference above is the rule of the sampler of the host, whose numbers are those of xoshiro256++.
#[test]
fn the_rule_is_that_of_the_host() {
    for (number, case) in cases().iter().enumerate() {
        let mut inputs = Inputs::new(1800 + number as u64);
        for seed in 0..40 {
            let logits = case.logits(&mut inputs);
            let Case { temperature, top_k, top_p, min_p, .. } = *case;
            let settings = SamplerSettings {
                temperature,
                top_k,
                top_p,
                min_p,
                seed,
                ..SamplerSettings::default()
            };
            let id = Sampler::new(settings).unwrap().sample(&logits, &[]).unwrap();
            assert!(case.accepts(&logits, first_uniform(seed), id), "{}: {id}", case.name);
        }
    }
}

/// The first number of xoshiro256++ (Blackman and Vigna 2019), seeded by SplitMix64, from 0 to below 1.
fn first_uniform(seed: u64) -> f32 {
    let mut seeds = Inputs::new(seed);
    let state: [u64; 4] = std::array::from_fn(|_| seeds.bits());
    let first = state[0].wrapping_add(state[3]).rotate_left(23).wrapping_add(state[0]);
    ((first >> 40) as f64 / (1u64 << 24) as f64) as f32
}

#[test]
fn argmax() {
    argmax_on(places_or_skip());
}

pub(crate) fn argmax_on<S: Site>(sites: &[S]) {
    for site in sites {
        for (vocab_size, grain) in [(1, 0.0), (255, 0.0), (256, 1.0), (257, 0.0), (3000, 1.0)] {
            let mut inputs = Inputs::new(1900 + vocab_size as u64);
            let mut logits = inputs.gaussian_rows(ROWS, vocab_size, 2.0);
            if grain > 0.0 {
                logits.iter_mut().for_each(|x| *x = x.round());
            }
            let expected = logits.chunks_exact(vocab_size).map(|row| {
                let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                Picked::Token(row.iter().position(|x| *x == best).unwrap() as u32)
            });
            let picked = picked(site, &logits, vocab_size);
            assert_eq!(picked, expected.collect::<Vec<_>>(), "{vocab_size}, on {}", site.name());
            // The last of a row is seen, too.
            let last = Picked::Token(vocab_size as u32 - 1);
            logits[vocab_size - 1] = 100.0;
            assert_eq!(self::picked(site, &logits, vocab_size)[0], last, "on {}", site.name());
        }
    }
}

fn picked<S: Site>(site: &S, logits: &[f32], vocab_size: usize) -> Vec<Picked> {
    let memories = site.memories();
    let rows = logits.len() / vocab_size;
    let (on_device, ids) = (upload(memories, logits), Output::new(memories, rows));
    let argmax = Argmax { rows, vocab_size, logits: (&on_device).into(), ids: ids.bound() };
    site.run(&[argmax.launch().unwrap()]);
    ids.read(memories, "argmax").iter().map(|id| Picked::of(id.to_bits())).collect()
}

#[test]
fn logits_that_give_no_token_say_so() {
    no_token_on(places_or_skip());
}

/// Rows of which no token, or none but one, can be taken.
pub(crate) fn no_token_on<S: Site>(sites: &[S]) {
    let none = f32::NEG_INFINITY;
    let rows = [
        ([none, none, none, none], Picked::NoToken),
        ([none, f32::MIN, none, none], Picked::Token(1)),
        ([0.0, -0.0, none, none], Picked::Token(0)),
        ([-0.0, 0.0, none, none], Picked::Token(0)),
        ([1.0, f32::NAN, 0.0, none], Picked::BadLogit),
        ([1.0, -f32::NAN, 0.0, none], Picked::BadLogit),
        ([1.0, 2.0, f32::INFINITY, none], Picked::BadLogit),
        ([none, none, none, f32::INFINITY], Picked::BadLogit),
    ];
    let logits: Vec<f32> = rows.iter().flat_map(|(row, _)| *row).collect();
    let expected: Vec<Picked> = rows.iter().map(|(_, picked)| *picked).collect();
    let greedy = Case {
        name: "no token",
        vocab_size: 4,
        spread: 1.0,
        grain: 0.0,
        temperature: 1.0,
        top_k: Some(1),
        top_p: 1.0,
        min_p: 0.0,
    };
    for site in sites {
        assert_eq!(picked(site, &logits, 4), expected, "argmax, on {}", site.name());
        for top_p in [1.0, 0.5] {
            let case = Case { top_p, ..greedy };
            let drawn = case.sample(site, &logits, &[0.5; 8]);
            assert_eq!(drawn, expected, "sample, top-p {top_p}, on {}", site.name());
        }
    }
}
