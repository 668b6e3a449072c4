//! How far caches are from the full one on SmolLM2-135M: the bars of the presets and of the key codes.
//!
//! The bars are the contract. They are never loosened, and nothing is tuned on these windows.

use std::borrow::Cow;

use heterokv_cache::{KvCache, MIN_TOKENS};
use heterokv_eval::{Distribution, kl_divergence};
use heterokv_model::{ComputeType, Model};
use heterokv_quant::KeyFormat;

use crate::distance::Bars;
use crate::files::is_long;
use crate::smollm::{Smollm, Window, cache, feed, timed};

/// A cache, its promised share of a full cache's bytes, and the bars it is held to.
pub(crate) struct Promise {
    pub(crate) spec: Cow<'static, str>,
    /// Percent of the bytes; `None` where the promise begins beyond this length.
    pub(crate) percent: Option<f64>,
    pub(crate) plain_kl: f64,
    pub(crate) recall_kl: Option<f64>,
    /// Share of plain steps with the same most probable token, over all offsets together.
    pub(crate) top1: Option<f64>,
    /// Rows read per KV head over tokens held; `None` where all are.
    pub(crate) rows_read: Option<f64>,
}

const PROMISES: [Promise; 6] = [
    Promise {
        spec: Cow::Borrowed("hca:25%"),
        percent: Some(25.0),
        plain_kl: 0.002,
        recall_kl: Some(0.01),
        top1: Some(0.955),
        rows_read: Some(0.30),
    },
    Promise {
        spec: Cow::Borrowed("hca:12.5%"),
        percent: Some(12.5),
        plain_kl: 0.010,
        recall_kl: Some(0.25),
        top1: Some(0.925),
        rows_read: Some(0.30),
    },
    Promise {
        spec: Cow::Borrowed("hca:6.25%"),
        percent: None,
        plain_kl: 0.06,
        recall_kl: None,
        top1: None,
        rows_read: Some(0.30),
    },
    Promise {
        spec: Cow::Borrowed("hca-rescore:25%"),
        percent: Some(25.0),
        plain_kl: 0.0015,
        recall_kl: Some(0.008),
        top1: Some(0.955),
        rows_read: Some(0.30),
    },
    Promise {
        spec: Cow::Borrowed("hca-rescore:12.5%"),
        percent: Some(12.5),
        plain_kl: 0.0015,
        recall_kl: Some(0.010),
        top1: Some(0.955),
        rows_read: Some(0.30),
    },
    Promise {
        spec: Cow::Borrowed("hca-rescore:6.25%"),
        percent: Some(6.25),
        plain_kl: 0.004,
        recall_kl: Some(0.025),
        top1: Some(0.945),
        rows_read: Some(0.30),
    },
];

/// A key format, the bits per element that it may take at the length where it is measured, tables
/// included, and what else its cache is.
struct Coded {
    keys: &'static str,
    bits: f64,
    rest: Rest,
    plain_kl: f64,
    recall_kl: f64,
}

/// How coded keys are used.
#[derive(Clone, Copy)]
enum Rest {
    /// As the attention, over all tokens.
    Attention,
    /// To select rows, which exact keys on the host re-score.
    Selection { options: &'static str, rows_read: f64 },
}

const CODED: [Coded; 6] = [
    Coded {
        keys: "alloc/8",
        bits: 8.25,
        rest: Rest::Attention,
        plain_kl: 0.0002,
        recall_kl: 0.001,
    },
    Coded { keys: "alloc/4", bits: 4.25, rest: Rest::Attention, plain_kl: 0.002, recall_kl: 0.08 },
    Coded { keys: "alloc/3", bits: 3.25, rest: Rest::Attention, plain_kl: 0.008, recall_kl: 0.2 },
    Coded { keys: "alloc/2", bits: 2.25, rest: Rest::Attention, plain_kl: 0.03, recall_kl: 0.8 },
    Coded {
        keys: "alloc/2",
        bits: 2.25,
        rest: Rest::Selection { options: "select=top-p:0.95,min=256", rows_read: 0.25 },
        plain_kl: 0.0013,
        recall_kl: 0.006,
    },
    Coded {
        keys: "alloc/1",
        bits: 1.25,
        rest: Rest::Selection { options: "select=top-p:0.95,min=256", rows_read: 0.28 },
        plain_kl: 0.0022,
        recall_kl: 0.012,
    },
];

impl Coded {
    fn promise(&self) -> Promise {
        let (rest, rows_read) = match self.rest {
            Rest::Attention => ("values=f16@host,rescore=none,select=none".to_owned(), None),
            Rest::Selection { options, rows_read } => {
                let rest = format!("values=int8@host,rescore=int8@host,union=group,{options}");
                (rest, Some(rows_read))
            }
        };
        Promise {
            spec: format!("keys={},{rest},sinks=4,recent=64", self.keys).into(),
            percent: None,
            plain_kl: self.plain_kl,
            recall_kl: Some(self.recall_kl),
            top1: None,
            rows_read,
        }
    }
}

/// Where the windows begin, and how many tokens are fed behind each.
pub(crate) struct Tier {
    offsets: &'static [usize],
    steps: usize,
}

impl Tier {
    /// Every bar in full; else one window, a quarter of the steps, and the same bars.
    pub(crate) fn of(offsets: &'static [usize]) -> Self {
        if is_long() {
            Self { offsets, steps: 256 }
        } else {
            Self { offsets: &offsets[..1], steps: 64 }
        }
    }
}

/// What one cache did behind one context.
struct Fed {
    kl_mean: f64,
    num_agreeing: usize,
    rows_read: f64,
    ratio: f64,
    steps_per_second: f64,
}

fn distributions(model: &Model, window: &Window, cache: &mut KvCache) -> Vec<Distribution> {
    let logits = feed(model, &window.fed, cache);
    logits.chunks(model.config().vocab_size).map(Distribution::of_logits).collect()
}

fn feed_and_compare(
    model: &Model,
    window: &Window,
    cache: &mut KvCache,
    full: &[Distribution],
) -> Fed {
    cache.reset_stats();
    let (own, seconds) = timed(|| distributions(model, window, cache));
    assert_eq!(own.len(), full.len());
    let kl: f64 = full.iter().zip(&own).map(|(full, own)| kl_divergence(full, own)).sum();
    Fed {
        kl_mean: kl / own.len() as f64,
        num_agreeing: full.iter().zip(&own).filter(|(full, own)| full.top() == own.top()).count(),
        rows_read: cache.stats().rows_read(),
        ratio: cache.ratio(),
        steps_per_second: own.len() as f64 / seconds,
    }
}

#[test]
fn presets_keep_their_bars() {
    hold(&PROMISES, &Tier::of(&[20_000, 60_000]));
}

#[test]
fn key_codes_keep_their_bars() {
    let head_dim = 64;
    for coded in &CODED {
        let format: KeyFormat = coded.keys.parse().unwrap();
        let bits = format.bits_per_element(head_dim, MIN_TOKENS).unwrap();
        assert!(bits <= coded.bits, "{} takes {bits} bits of {}", coded.keys, coded.bits);
    }
    hold(&CODED.each_ref().map(Coded::promise), &Tier::of(&[45_000, 60_000]));
}

/// Measures every cache on every window and holds it to its bars.
pub(crate) fn hold(promises: &[Promise], tier: &Tier) {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(corpus) = smollm.corpus_or_skip() else { return };
    let model = smollm.load(ComputeType::Q8);
    let mut bars = Bars::default();
    let mut num_agreeing = vec![0; promises.len()];
    for &offset in tier.offsets {
        let cut = |task| smollm.window(task, &corpus, offset, MIN_TOKENS, tier.steps);
        let (plain, recall) = (cut("kl"), cut("recall"));
        assert_eq!(plain.context, recall.context);
        let mut caches = vec![cache(&model, "full")];
        caches.extend(promises.iter().map(|promise| cache(&model, &promise.spec)));
        let (hidden, seconds) = timed(|| model.prefill(&plain.context, &mut caches, None));
        assert!(hidden.is_ok());
        let rate = MIN_TOKENS as f64 / seconds;
        println!("offset {offset}: {rate:.1} tok/s into {} caches", caches.len());
        let mut full = caches.remove(0);
        let full_plain = distributions(&model, &plain, &mut full.fork().unwrap());
        let full_recall = distributions(&model, &recall, &mut full);
        for ((promise, cache), num_agreeing) in promises.iter().zip(caches).zip(&mut num_agreeing) {
            let Promise { ref spec, percent, plain_kl, recall_kl, rows_read, .. } = *promise;
            let mut fork = cache.fork().unwrap();
            let fed = feed_and_compare(&model, &plain, &mut fork, &full_plain);
            *num_agreeing += fed.num_agreeing;
            println!(
                "{spec} at {offset}: {}, ratio {:.2} %, plain {:.1} tok/s",
                cache.config(),
                100.0 * fed.ratio,
                fed.steps_per_second
            );
            bars.at_most(&format!("{spec} at {offset}: plain KL"), fed.kl_mean, plain_kl);
            if let Some(bar) = rows_read {
                bars.at_most(&format!("{spec} at {offset}: plain rows read"), fed.rows_read, bar);
            }
            if let Some(percent) = percent {
                let ratio = 100.0 * fed.ratio;
                bars.at_most(&format!("{spec} at {offset}: device bytes, %"), ratio, percent);
            }
            drop(fork);
            let mut cache = cache;
            let fed = feed_and_compare(&model, &recall, &mut cache, &full_recall);
            let what = format!("{spec} at {offset}: recall KL");
            match recall_kl {
                Some(bar) => bars.at_most(&what, fed.kl_mean, bar),
                None => println!("{what:<52} {:>11.6} (no bar)", fed.kl_mean),
            }
            if let Some(bar) = rows_read {
                bars.at_most(&format!("{spec} at {offset}: recall rows read"), fed.rows_read, bar);
            }
        }
    }
    let num_steps = (tier.steps * tier.offsets.len()) as f64;
    for (promise, num_agreeing) in promises.iter().zip(num_agreeing) {
        let (what, share) = (format!("{}: top-1", promise.spec), num_agreeing as f64 / num_steps);
        match promise.top1 {
            Some(bar) => bars.at_least(&what, share, bar),
            None => println!("{what:<52} {share:>11.6} (no bar)"),
        }
    }
    bars.finish();
}

/// A context beside which the window and the tables of the smallest preset weigh less.
const LONG_CONTEXT: usize = 7_900;

#[test]
fn the_smallest_preset_is_reported_at_a_longer_context() {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(corpus) = smollm.corpus_or_skip() else { return };
    if !is_long() {
        println!("SKIPPED: a context of {LONG_CONTEXT} tokens is for the long tier");
        return;
    }
    let model = smollm.load(ComputeType::Q8);
    let window = smollm.window("kl", &corpus, 20_000, LONG_CONTEXT, 128);
    let mut caches = ["full", "hca:6.25%", "hca-rescore:6.25%"].map(|spec| cache(&model, spec));
    model.prefill(&window.context, &mut caches, None).unwrap();
    let [mut full, hca, rescore] = caches;
    let full = distributions(&model, &window, &mut full);
    let mut bars = Bars::default();
    for (mut cache, spec, bar) in [(hca, "hca:6.25%", 0.06), (rescore, "hca-rescore:6.25%", 0.004)]
    {
        let fed = feed_and_compare(&model, &window, &mut cache, &full);
        println!("{spec} at {LONG_CONTEXT} tokens: ratio {:.2} %", 100.0 * fed.ratio);
        bars.at_most(&format!("{spec} at {LONG_CONTEXT} tokens: plain KL"), fed.kl_mean, bar);
    }
    bars.finish();
}
