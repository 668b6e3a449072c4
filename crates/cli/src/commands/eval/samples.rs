//! The samples that the command line asks for.

use anyhow::{Context, Result};
use heterokv_eval::{Inputs, Job, Prompting, Settings, task};
use heterokv_model::text::ModelText;

use crate::args::{EvalArgs, SampleArgs};
use crate::load::read_text;
use crate::progress::Bar;
use crate::prompt::encode_plain;

/// All samples, task by task, lengths in order.
pub(super) fn make(args: &EvalArgs, text: &ModelText) -> Result<Vec<Job>> {
    let samples = &args.samples;
    let corpus = samples.corpus.as_deref().map(|path| encode_plain(text, &read_text(path)?));
    let corpus = corpus.transpose()?;
    let haystack = samples.haystack.as_deref().map(read_text).transpose()?;
    let prompting = if samples.chat { Prompting::chat(text)? } else { Prompting::plain(text) };
    let settings = settings(samples);
    let inputs = Inputs {
        prompting: &prompting,
        corpus: corpus.as_deref(),
        haystack: haystack.as_deref(),
        longbench: samples.longbench.as_deref(),
        longbench_prompts: samples.longbench_prompts.as_deref(),
        settings: &settings,
    };
    let _bar = Bar::spinner("making samples");
    let mut jobs = Vec::new();
    for name in &args.task {
        let task = task(name)?;
        for &context in &samples.context {
            let made = task.samples(&inputs, context).with_context(|| of_task(name, samples))?;
            jobs.extend(made.into_iter().map(|sample| Job::new(task.name(), sample)));
        }
    }
    Ok(jobs)
}

fn settings(samples: &SampleArgs) -> Settings {
    Settings {
        seed: samples.seed,
        num_samples: samples.samples,
        offsets: samples.token_offset.clone(),
        num_steps: samples.continuation,
        depths: samples.depth.iter().map(|percent| percent / 100.0).collect(),
    }
}

/// What a task could not make samples of.
fn of_task(name: &str, samples: &SampleArgs) -> String {
    let path = match name {
        "kl" | "recall" | "longgen" => &samples.corpus,
        "longbench" => &samples.longbench,
        _ => &samples.haystack,
    };
    match path {
        Some(path) => format!("task {name} with {}", path.display()),
        None => format!("task {name}"),
    }
}
