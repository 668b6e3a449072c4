//! The default model, SmolLM2-135M, and what the tests do with it.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use heterokv_cache::{CacheConfig, CacheSpec, KvCache, Level};
use heterokv_eval::{Inputs, Probe, Prompting, Settings, task};
use heterokv_model::text::{EncodeOptions, ModelText};
use heterokv_model::{Checkpoint, ComputeType, Model};

use crate::distance::argmax;
use crate::files::shared;

/// Each of these tests takes all cores and up to a gigabyte, and some measure time.
static TURN: Mutex<()> = Mutex::new(());

/// The default model's file, opened; tests that hold one run one at a time.
pub(crate) struct Smollm {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) text: ModelText,
    _turn: MutexGuard<'static, ()>,
}

impl Smollm {
    /// The model that `HETEROKV_MODEL` names; what cannot be opened fails. `None`, and a line that says
    /// so, where it names none.
    pub(crate) fn or_skip() -> Option<Self> {
        let Some(path) = std::env::var_os("HETEROKV_MODEL").map(PathBuf::from) else {
            println!("SKIPPED: no model (HETEROKV_MODEL names it)");
            return None;
        };
        // A test that failed has left nothing half done behind this lock.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || Checkpoint::open(&path).and_then(|c| Ok((ModelText::of(&c)?, c)));
        let (text, checkpoint) =
            open().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Some(Self { checkpoint, text, _turn: turn })
    }

    /// The weights in one form.
    pub(crate) fn load(&self, compute: ComputeType) -> Model {
        Model::load(&self.checkpoint, compute, Level::detect()).unwrap()
    }

    /// The ids of a text, nothing added around it.
    pub(crate) fn encode(&self, text: &str) -> Vec<u32> {
        let options = EncodeOptions { add_special: false, parse_special: true };
        self.text.tokenizer.encode(text, options).unwrap()
    }

    /// The ids of the shared corpus; `None`, and a line, where it is not there.
    pub(crate) fn corpus_or_skip(&self) -> Option<Vec<u32>> {
        let text = std::fs::read_to_string(shared("data/moby-dick.txt")?).unwrap();
        Some(self.encode(&text))
    }
}

/// A context, and what is fed behind it.
pub(crate) struct Window {
    pub(crate) context: Vec<u32>,
    pub(crate) fed: Vec<u32>,
}

impl Smollm {
    /// A window of a corpus as the task `kl` or `recall` cuts it.
    pub(crate) fn window(
        &self,
        name: &str,
        corpus: &[u32],
        offset: usize,
        context: usize,
        num_steps: usize,
    ) -> Window {
        let settings = Settings {
            seed: 0,
            num_samples: 1,
            offsets: vec![offset],
            num_steps: Some(num_steps),
            depths: Vec::new(),
        };
        let prompting = Prompting::plain(&self.text);
        let inputs = Inputs {
            prompting: &prompting,
            corpus: Some(corpus),
            haystack: None,
            longbench: None,
            longbench_prompts: None,
            settings: &settings,
        };
        let mut samples = task(name).unwrap().samples(&inputs, context).unwrap();
        let sample = samples.remove(0);
        let Probe::Tokens(mut fed) = sample.probe else { panic!("{name} feeds tokens") };
        // The last is only to be predicted.
        assert!(fed.pop().is_some() && fed.len() == num_steps && samples.is_empty());
        Window { context: sample.context, fed }
    }
}

/// What a spec means for a model.
#[track_caller]
pub(crate) fn config(model: &Model, spec: &str) -> CacheConfig {
    let spec: CacheSpec = spec.parse().unwrap();
    spec.resolve(&model.kv_shape(), None).unwrap()
}

/// An empty cache for a model.
#[track_caller]
pub(crate) fn cache(model: &Model, spec: &str) -> KvCache {
    KvCache::new(model.kv_shape(), config(model, spec), model.level(), None).unwrap()
}

/// The logits behind the last of these hidden states.
pub(crate) fn last_logits(model: &Model, hidden: &[f32]) -> Vec<f32> {
    model.logits(&hidden[hidden.len() - model.config().hidden_size..]).unwrap()
}

/// Logits `[num_tokens, vocab_size]` of tokens fed one at a time.
pub(crate) fn feed(model: &Model, tokens: &[u32], cache: &mut KvCache) -> Vec<f32> {
    let logits = |&token| model.logits(&model.extend(&[token], cache).unwrap()).unwrap();
    tokens.iter().flat_map(logits).collect()
}

/// The `num_tokens` most probable tokens, one after the other, behind a prompt whose last logits these
/// are.
pub(crate) fn greedy(
    model: &Model,
    mut logits: Vec<f32>,
    cache: &mut KvCache,
    num_tokens: usize,
) -> Vec<u32> {
    let mut ids = Vec::new();
    for _ in 0..num_tokens {
        let next = argmax(&logits);
        ids.push(next);
        logits = feed(model, &[next], cache);
    }
    ids
}

/// What the call gives, and the seconds that it takes.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed().as_secs_f64())
}
