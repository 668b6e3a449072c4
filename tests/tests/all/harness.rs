//! The quality harness can fail: faulty caches are put in the place of sound ones, and each is noticed. And it
//! repeats itself, to the bit, and goes on where it was stopped.

use std::path::Path;

use heterokv_cache::{AttentionCache, CacheSpec, KvCache, PromptLayer};
use heterokv_eval::{
    Candidate, Engine, Error, Gate, Inputs, Job, Memory, Outcome, Probe, Prompting, Replace,
    Results, Row, Run, Sample, Settings, Subject, Time, Watcher, aggregate, evaluate, task,
};
use heterokv_model::text::{GgufVocab, Tokenizer};
use heterokv_model::{ComputeType, Model};

use crate::determinism::{tiny_model, tokens};
use crate::smollm::{Smollm, config};

/// Tokens of a tiny context, and of what is fed behind it.
const CONTEXT_TOKENS: usize = 500;
const NUM_STEPS: usize = 24;

/// Codes of four bits that a head of 8 channels can have.
const TINY_SPEC: &str = "keys=int4-token,values=int8@host,select=top-p:0.95,min=64,recent=16";

/// The cache of that spec, as sound as it is.
pub(crate) fn candidate<'a>(model: &Model, spec: &str) -> Candidate<'a> {
    let parsed: CacheSpec = spec.parse().unwrap();
    let promise = parsed.promise();
    let config = config(model, spec);
    Candidate { name: spec.to_owned(), promise, config, profile: None, replace: None }
}

/// A tokenizer of as many tokens as the model has, none of which means anything.
pub(crate) fn meaningless_tokenizer(model: &Model) -> Tokenizer {
    let vocab = GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("llama-bpe".to_owned()),
        tokens: (0..model.config().vocab_size).map(|id| format!("t{id}")).collect(),
        eos_id: Some(2),
        add_bos: Some(false),
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf(&vocab).unwrap()
}

fn run() -> Run {
    Run {
        engine: "heterokv".to_owned(),
        version: "0".to_owned(),
        build: String::new(),
        commit: "unknown".to_owned(),
        model: "tiny".to_owned(),
        fingerprint: "tiny".to_owned(),
        conditions: String::new(),
        threads: rayon::current_num_threads(),
        seed: 0,
        command: String::new(),
        date: String::new(),
    }
}

/// Rows in memory, or in a file; and when to stop.
struct Rows {
    rows: Vec<Row>,
    results: Option<Results>,
    /// Rows after which the run is stopped.
    most: usize,
    contexts: usize,
}

impl Rows {
    fn in_memory() -> Self {
        Self { rows: Vec::new(), results: None, most: usize::MAX, contexts: 0 }
    }

    fn in_file(path: &Path, most: usize) -> Self {
        Self { results: Some(Results::open(path).unwrap()), most, ..Self::in_memory() }
    }
}

impl Watcher for Rows {
    fn is_done(&mut self, task: &str, sample: &Sample, cache: &str, inputs: &str) -> bool {
        let results = self.results.as_ref();
        results.is_some_and(|all| all.has(task, &sample.name, sample.length, cache, inputs))
    }

    fn begins(&mut self, _: usize, _: usize, _: &Sample) {
        self.contexts += 1;
    }

    fn reads(&mut self, _: usize, _: usize) {}

    fn probes(&mut self, _: &Job, _: usize, _: usize) {}

    fn row(&mut self, row: Row) -> heterokv_eval::Result<()> {
        if self.rows.len() == self.most {
            return Err(Error::NoContinuation);
        }
        self.rows.push(row.clone());
        self.results.as_mut().map_or(Ok(()), |results| results.push(row))
    }
}

fn try_measure(
    model: &Model,
    tokenizer: &Tokenizer,
    jobs: &[Job],
    candidates: &[Candidate<'_>],
) -> heterokv_eval::Result<Vec<Row>> {
    let mut rows = Rows::in_memory();
    evaluate(Engine { model, tokenizer }, jobs, candidates, &run(), &mut rows)?;
    Ok(rows.rows)
}

fn tokens_job(context: &[u32], fed: &[u32]) -> Job {
    let sample = Sample {
        part: None,
        name: "tokens".to_owned(),
        length: context.len(),
        depth: None,
        context: context.to_vec(),
        probe: Probe::Tokens(fed.to_vec()),
    };
    Job::new("kl", sample)
}

/// What candidates do when `fed` is fed behind `context`; the last token is only predicted.
pub(crate) fn measure(
    model: &Model,
    candidates: &[Candidate<'_>],
    context: &[u32],
    fed: &[u32],
) -> Vec<Row> {
    let tokenizer = meaningless_tokenizer(model);
    try_measure(model, &tokenizer, &[tokens_job(context, fed)], candidates).unwrap()
}

/// What a fault does to a cache that is sound otherwise.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Attention outputs are off by this share of their size, at random.
    Noise(f32),
    /// The next token stands one place further on than it should.
    OffByOne,
    /// Compresses a prompt, and keeps what comes behind it exact as well.
    Hoards,
}

struct Faulty {
    cache: KvCache,
    /// What is kept exact besides.
    hoard: Option<KvCache>,
    fault: Fault,
    state: u32,
}

impl AttentionCache for Faulty {
    fn num_tokens(&self) -> usize {
        self.cache.num_tokens() + usize::from(self.fault == Fault::OffByOne)
    }

    fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> heterokv_cache::Result<()> {
        if let Some(hoard) = &mut self.hoard {
            hoard.append(layer, k, v)?;
        }
        self.cache.append(layer, k, v)
    }

    fn attend(&mut self, layer: usize, q: &[f32], out: &mut [f32]) -> heterokv_cache::Result<()> {
        self.cache.attend(layer, q, out)?;
        if let Fault::Noise(share) = self.fault {
            for x in out {
                self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let uniform = (self.state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                *x += share * uniform * x.abs();
            }
        }
        Ok(())
    }
}

impl Subject for Faulty {
    fn fork(&self) -> heterokv_eval::Result<Box<dyn Subject>> {
        let hoard = self.hoard.as_ref().map(KvCache::fork).transpose()?;
        Ok(Box::new(Self { cache: self.cache.fork()?, hoard, ..*self }))
    }

    fn memory(&self) -> Memory {
        let mut memory = self.cache.memory();
        memory.device.window += self.hoard.as_ref().map_or(0, KvCache::device_in_use_bytes);
        memory
    }

    fn rows_read(&self) -> f64 {
        self.cache.stats().rows_read()
    }
}

/// The figures of a sound cache are the gate; `replace` puts a faulty one in its place. The names of the figures that
/// are worse.
fn noticed(
    model: &Model,
    tokenizer: &Tokenizer,
    jobs: &[Job],
    spec: &str,
    replace: Replace<'_>,
) -> Vec<String> {
    let sound = candidate(model, spec);
    let figures = |candidate: &Candidate<'_>| {
        let rows = try_measure(model, tokenizer, jobs, std::slice::from_ref(candidate)).unwrap();
        aggregate(&rows)
    };
    let gate = Gate::of(&figures(&sound), "sound");
    assert_eq!(gate.regressions(&figures(&sound)), [], "a sound cache is let through");
    let faulty = figures(&Candidate { replace: Some(replace), ..sound });
    let worse = gate.regressions(&faulty);
    for one in &worse {
        println!("{spec}: {} {:?}, let through {:.6}", one.gated.figure, one.actual, one.bound);
    }
    worse.into_iter().map(|one| one.gated.figure).collect()
}

fn check_faults(model: &Model, tokenizer: &Tokenizer, jobs: &[Job], spec: &str) {
    for fault in [Fault::Noise(1.0), Fault::OffByOne] {
        let replace = |_: &[u32], cache| -> heterokv_eval::Result<Box<dyn Subject>> {
            Ok(Box::new(Faulty { cache, hoard: None, fault, state: 1 }))
        };
        let worse = noticed(model, tokenizer, jobs, spec, &replace);
        assert!(worse.iter().any(|figure| figure == "kl_mean"), "{worse:?}");
    }
}

/// Keys and values of a page of the context are gone, in every layer, and nothing else is changed.
fn lose_page(
    model: &Model,
    page: std::ops::Range<usize>,
) -> impl Fn(&[u32], KvCache) -> heterokv_eval::Result<Box<dyn Subject>> {
    move |context, cache| {
        let (shape, config) = (cache.shape(), cache.config().clone());
        let mut caches = [KvCache::new(shape, config, model.level(), None)?];
        let row_len = shape.heads.kv_row_len();
        let lost = page.start * row_len..page.end * row_len;
        model.observe(&[context], &mut |block| {
            if block.first > 0 {
                return;
            }
            let (mut k, mut v) = (block.k.to_vec(), block.v.to_vec());
            k[lost.clone()].fill(0.0);
            v[lost.clone()].fill(0.0);
            let mut prompt = PromptLayer::new(shape.heads, model.level(), &k, &v).unwrap();
            let mut out = vec![0.0; block.q.len()];
            prompt.attend(0, block.q, &mut out).unwrap();
            prompt.store(&mut caches, block.layer).unwrap();
        })?;
        let [cache] = caches;
        Ok(Box::new(cache))
    }
}

/// What does not compress, whatever was asked for.
fn check_uncompressed(model: &Model, tokenizer: &Tokenizer, jobs: &[Job], spec: &str) {
    let uncompressed = |context: &[u32], _| -> heterokv_eval::Result<Box<dyn Subject>> {
        let config = CacheSpec::full().resolve(&model.kv_shape(), None)?;
        let mut caches = [KvCache::new(model.kv_shape(), config, model.level(), None)?];
        model.prefill(context, &mut caches, None)?;
        let [cache] = caches;
        Ok(Box::new(cache))
    };
    let hoarding = |_: &[u32], cache: KvCache| -> heterokv_eval::Result<Box<dyn Subject>> {
        let config = CacheSpec::full().resolve(&model.kv_shape(), None)?;
        let hoard = Some(KvCache::new(model.kv_shape(), config, model.level(), None)?);
        Ok(Box::new(Faulty { cache, hoard, fault: Fault::Hoards, state: 1 }))
    };
    let faults: [Replace<'_>; 2] = [&uncompressed, &hoarding];
    for fault in faults {
        let faulty = Candidate { replace: Some(fault), ..candidate(model, spec) };
        let error = try_measure(model, tokenizer, jobs, &[faulty]).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::NotCompressed { .. }), "{text}");
        assert!(text.starts_with("compression was asked for and did not happen"), "{text}");
    }
}

fn tiny_jobs(model: &Model) -> Vec<Job> {
    let all = tokens(model, CONTEXT_TOKENS + NUM_STEPS + 1);
    let (context, fed) = all.split_at(CONTEXT_TOKENS);
    vec![tokens_job(context, fed)]
}

#[test]
fn faulty_caches_are_noticed() {
    let model = tiny_model();
    let tokenizer = meaningless_tokenizer(&model);
    let jobs = tiny_jobs(&model);
    check_faults(&model, &tokenizer, &jobs, TINY_SPEC);
    check_uncompressed(&model, &tokenizer, &jobs, TINY_SPEC);
    let lose = lose_page(&model, 100..164);
    let worse = noticed(&model, &tokenizer, &jobs, TINY_SPEC, &lose);
    assert!(worse.iter().any(|figure| figure == "kl_mean"), "{worse:?}");
}

/// A pass key in the middle of some 2,000 tokens, by the task itself.
fn passkey_job(smollm: &Smollm) -> Job {
    let settings = Settings {
        seed: 0,
        num_samples: 1,
        offsets: Vec::new(),
        num_steps: None,
        depths: vec![0.5],
    };
    let prompting = Prompting::plain(&smollm.text);
    let inputs = Inputs {
        prompting: &prompting,
        corpus: None,
        haystack: None,
        longbench: None,
        longbench_prompts: None,
        settings: &settings,
    };
    let sample = task("passkey").unwrap().samples(&inputs, 2000).unwrap().remove(0);
    assert!(sample.context.len() <= 2000 && sample.context.len() > 1900);
    Job::new("passkey", sample)
}

#[test]
fn faulty_caches_are_noticed_on_the_default_model() {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(corpus) = smollm.corpus_or_skip() else { return };
    let model = smollm.load(ComputeType::Q8);
    let tokenizer = &smollm.text.tokenizer;
    let window = smollm.window("recall", &corpus, 20_000, 1500, 24);
    let mut fed = window.fed.clone();
    fed.push(0);
    let jobs = [tokens_job(&window.context, &fed)];
    check_faults(&model, tokenizer, &jobs, "hca-rescore:12.5%");
    check_uncompressed(&model, tokenizer, &jobs, "hca:12.5%");

    // The needle's page: the key is gone, and nothing else.
    let job = passkey_job(&smollm);
    let Probe::Questions(questions) = &job.sample.probe else { panic!("a question is asked") };
    let key = smollm.encode(&questions[0].references[0]);
    let context = &job.sample.context;
    let places = (0..context.len()).filter(|&at| context[at..].starts_with(&key));
    let places: Vec<usize> = places.collect();
    assert_eq!(places.len(), 2, "the key is said twice");
    let page = places[0] - 8..places[1] + key.len();
    let lose = lose_page(&model, page);
    let worse = noticed(&model, tokenizer, &[job], "hca:12.5%", &lose);
    assert!(worse.iter().any(|figure| figure == "score"), "{worse:?}");
}

/// Rows without what depends on the clock.
fn timeless(rows: &[Row]) -> Vec<Row> {
    let timeless = |row: &Row| {
        let mut row = row.clone();
        row.time = Time { prefill_seconds: 0.0, prefill_caches: 0, step_seconds: 0.0, ..row.time };
        row
    };
    rows.iter().map(timeless).collect()
}

fn check_repeats(model: &Model, tokenizer: &Tokenizer, jobs: &[Job], spec: &str) {
    let candidates = [Candidate::full(), candidate(model, spec)];
    let once = || timeless(&try_measure(model, tokenizer, jobs, &candidates).unwrap());
    let rows = once();
    assert_eq!(rows, once());
    let Outcome::Divergence { steps, .. } = &rows[0].outcome else { panic!("tokens were fed") };
    assert!(steps.kl.iter().all(|&kl| kl == 0.0), "full, decoded apart, is full");
}

/// Also a text of the model's own.
fn with_own_text(mut jobs: Vec<Job>) -> Vec<Job> {
    let mut own = jobs[0].clone();
    own.task = "longgen".to_owned();
    own.sample.probe = Probe::OwnText { num_steps: 20 };
    jobs.push(own);
    jobs
}

#[test]
fn a_run_repeats_itself_to_the_bit() {
    let model = tiny_model();
    let jobs = with_own_text(tiny_jobs(&model));
    check_repeats(&model, &meaningless_tokenizer(&model), &jobs, TINY_SPEC);
}

#[test]
fn a_run_repeats_itself_to_the_bit_on_the_default_model() {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(corpus) = smollm.corpus_or_skip() else { return };
    let model = smollm.load(ComputeType::Q8);
    let window = smollm.window("kl", &corpus, 60_000, 700, 12);
    let mut fed = window.fed.clone();
    fed.push(0);
    let jobs = with_own_text(vec![tokens_job(&window.context, &fed)]);
    check_repeats(&model, &smollm.text.tokenizer, &jobs, "hca:12.5%");
}

#[test]
fn a_run_goes_on_where_it_was_stopped() {
    let model = tiny_model();
    let tokenizer = meaningless_tokenizer(&model);
    let engine = Engine { model: &model, tokenizer: &tokenizer };
    let mut jobs = with_own_text(tiny_jobs(&model));
    let mut other = jobs[0].clone();
    other.sample.name = "others".to_owned();
    other.sample.context.reverse();
    jobs.push(other);
    let candidates =
        [Candidate::full(), candidate(&model, TINY_SPEC), candidate(&model, "keys=lm4,recent=16")];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.jsonl");
    let mut whole = Rows::in_file(&path, usize::MAX);
    evaluate(engine, &jobs, &candidates, &run(), &mut whole).unwrap();
    assert_eq!((whole.rows.len(), whole.contexts), (9, 2), "samples of one context share it");
    for most in 0..9 {
        let path = folder.path().join(format!("stopped-{most}.jsonl"));
        let mut rows = Rows::in_file(&path, most);
        evaluate(engine, &jobs, &candidates, &run(), &mut rows).unwrap_err();
        let mut first = std::mem::take(&mut rows.rows);
        drop(rows);
        let mut rows = Rows::in_file(&path, usize::MAX);
        evaluate(engine, &jobs, &candidates, &run(), &mut rows).unwrap();
        assert_eq!(rows.rows.len(), 9 - most, "nothing is measured twice");
        assert_eq!(rows.contexts, if most < 6 { 2 } else { 1 });
        first.append(&mut rows.rows);
        assert_eq!(timeless(&first), timeless(&whole.rows));
        drop(rows);
        assert_eq!(timeless(&heterokv_eval::read_rows(&path).unwrap()), timeless(&whole.rows));
        let mut rows = Rows::in_file(&path, 0);
        evaluate(engine, &jobs, &candidates, &run(), &mut rows).unwrap();
        assert_eq!(rows.contexts, 0, "what is finished costs nothing");
    }
}
