//! What a token allocates on its way through a model: numbers that may only go down.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::System;
use std::path::Path;

use heterokv_cache::{AttentionCache, CacheSpec, KvCache, Level};
use heterokv_model::{Checkpoint, ComputeType, Model, Sampler, SamplerSettings, Scratch};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PROMPT: [u32; 5] = [3, 9, 4, 17, 11];

/// Tokens that are counted together, behind as many that are not.
const STEPS: usize = 16;

/// A cache that holds nothing and allocates nothing: attention gives the queries back.
struct Nothing {
    num_tokens: usize,
}

impl AttentionCache for Nothing {
    fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    fn append(&mut self, layer: usize, _: &[f32], _: &[f32]) -> heterokv_cache::Result<()> {
        self.num_tokens += usize::from(layer == 0);
        Ok(())
    }

    fn attend(&mut self, _: usize, q: &[f32], out: &mut [f32]) -> heterokv_cache::Result<()> {
        out.copy_from_slice(q);
        Ok(())
    }
}

fn model(compute: ComputeType) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-hf");
    Model::load(&Checkpoint::open(&folder).unwrap(), compute, Level::detect()).unwrap()
}

/// Allocations of one token, from its embedding to the next one's id, the mean of several.
fn per_token(model: &Model, cache: &mut dyn AttentionCache) -> usize {
    let mut scratch = Scratch::default();
    let mut sampler = Sampler::new(SamplerSettings::default()).unwrap();
    let (mut token, mut hidden) = (PROMPT[0], Vec::new());
    let mut steps = || {
        for _ in 0..STEPS {
            let last = model.extend_in(&mut scratch, &[token], cache).unwrap();
            hidden.clear();
            hidden.extend_from_slice(last);
            let logits = model.logits_in(&mut scratch, &hidden).unwrap();
            token = sampler.sample(logits, &PROMPT).unwrap();
        }
    };
    steps();
    let region = Region::new(ALLOCATOR);
    steps();
    let change = region.change();
    (change.allocations + change.reallocations).div_ceil(STEPS)
}

/// One test, as what another thread allocates would be counted too.
#[test]
fn a_token_allocates_little() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let nothing = || Nothing { num_tokens: 0 };
        assert_eq!(per_token(&model(ComputeType::F32), &mut nothing()), 0, "f32 weights");

        assert_eq!(per_token(&model(ComputeType::Q8), &mut nothing()), 0, "q8 weights");

        // The counter counts.
        let region = Region::new(ALLOCATOR);
        drop(std::hint::black_box(vec![0u8; 100]));
        assert_eq!(region.change().allocations, 1);

        // What attention of a layer allocates, over exact rows, whose pages have room, and behind a selection.
        let model = model(ComputeType::F32);
        let prompt: Vec<u32> = (0..400).map(|position| position % 20).collect();
        for (spec, most) in [
            ("full", 0),
            ("hca,keys=int8-token,sinks=2,recent=8", 13),
            ("hca-rescore,keys=int4-token,sinks=2,recent=8", 15),
        ] {
            let config =
                spec.parse::<CacheSpec>().unwrap().resolve(&model.kv_shape(), None).unwrap();
            let mut cache = KvCache::new(model.kv_shape(), config, model.level(), None).unwrap();
            model.prefill(&prompt, std::slice::from_mut(&mut cache), None).unwrap();
            let of_layer = per_token(&model, &mut cache).div_ceil(model.config().num_layers);
            assert!(of_layer <= most, "a layer of {spec}: {of_layer}");
        }
    });
}
