//! The floors of decoding speed with the full cache, on two threads.

use heterokv_model::ComputeType;

use crate::distance::Bars;
use crate::files::is_long;
use crate::smollm::{Smollm, cache, feed, timed};

/// Tokens held, and the least number of tokens decoded per second behind them.
const FLOORS: [(usize, f64); 2] = [(512, 26.0), (4096, 12.0)];

/// Tokens decoded in one run, and runs of which the fastest counts: a machine that does something else
/// meanwhile is not slower for it.
const STEPS: usize = 16;
const RUNS: usize = 6;

#[test]
fn decoding_is_fast_enough() {
    if !is_long() {
        println!("SKIPPED: speed is measured where every bar is (HETEROKV_LONG=1)");
        return;
    }
    let Some(smollm) = Smollm::or_skip() else { return };
    let model = smollm.load(ComputeType::Q8);
    let vocab_size = model.config().vocab_size;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let mut bars = Bars::default();
    for (num_tokens, floor) in FLOORS {
        let prompt: Vec<u32> = (0..num_tokens).map(|i| (i * 7919 % vocab_size) as u32).collect();
        let mut caches = [cache(&model, "full")];
        let (_, seconds) =
            timed(|| pool.install(|| model.prefill(&prompt, &mut caches, None).unwrap()));
        println!("prefill of {num_tokens} tokens: {:.1} tok/s", num_tokens as f64 / seconds);
        let mut fastest = 0.0_f64;
        for _ in 0..RUNS {
            let mut fork = caches[0].fork().unwrap();
            let fed = &prompt[..STEPS];
            let (_, seconds) = timed(|| pool.install(|| feed(&model, fed, &mut fork)));
            fastest = fastest.max(STEPS as f64 / seconds);
        }
        bars.at_least(&format!("decode at {num_tokens} tokens, tok/s"), fastest, floor);
    }
    bars.finish();
}
