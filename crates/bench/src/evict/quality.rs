//! Every preset at every ratio, on the same samples: rows into a file, as many caches at a time as memory holds.

use anyhow::{Result, ensure};
use heterokv_cache::{CachePlan, KvShape};
use heterokv_eval::{
    Candidate, Engine, Error, Inputs, Job, Prompting, Run, Settings, evaluate, task,
};
use heterokv_model::Model;

use super::grid::{Entry, Fit, Standing};
use super::table::{Board, Failure};
use super::watch::Watch;
use super::{CONTEXTS, Part, Suite, bars};
use crate::caches::TINY;
use crate::memory;
use crate::outcome::Table;

/// What random choices of samples begin with.
pub(super) const SEED: u64 = 0;

/// Tokens fed behind a context.
pub(super) const NUM_STEPS: usize = 256;

/// The same of a test.
pub(super) const FEW_STEPS: usize = 8;

/// What is measured: the text that follows, an early passage once more, a number in noise, and a fact among others of its
/// form.
pub(super) const TASKS: [&str; 4] = ["kl", "recall", "passkey", "multikey"];

/// Where things are hidden, 0 at the beginning of the text: depths at which the default model finds a pass key.
const DEPTHS: [f64; 3] = [0.1, 0.3, 0.5];

/// The file of rows in the folder of the results.
const RESULTS: &str = "evict.jsonl";

/// Measures what is asked for and not there, and holds it to the bars where asked to.
///
/// # Errors
/// Options that do not fit the model, a file of rows that is none or in use, too little memory, a text that is too short.
pub(super) fn run(suite: &Suite<'_>) -> Result<Vec<Part>> {
    let Suite { arguments, opened, environment, level, .. } = *suite;
    let shape = opened.shape()?;
    let fingerprint = opened.fingerprint();
    let fit = Fit { shape: &shape, fingerprint: &fingerprint, heads: arguments.heads.as_deref() };
    let mut entries = fit.entries(&arguments.presets, &arguments.ratios, &arguments.caches)?;
    if arguments.test {
        entries.extend(fit.specs(&TINY.map(str::to_owned)[1..])?);
    }
    for entry in &entries {
        if let Standing::Refused { word, reason } = &entry.standing {
            suite.say(&format!("{}: {word}: {reason}", entry.name));
        }
    }
    let (offsets, num_steps) = match arguments.test {
        true => (&[0, 300][..], FEW_STEPS),
        false => (&arguments.offsets[..], NUM_STEPS),
    };
    let contexts = suite.contexts(&CONTEXTS, &[520, 600]);
    let jobs = jobs(suite, &TASKS, &contexts, offsets, num_steps)?;
    let scratch = tempfile::tempdir()?;
    let path = match arguments.test {
        true => scratch.path().join(RESULTS),
        false => suite.out.path(RESULTS),
    };
    let of_run = opened.run(environment, level, arguments.threads)?;
    let mut failures = Vec::new();
    if arguments.quality {
        let digests = entries.iter().filter_map(Entry::candidate);
        let digests = digests.map(|candidate| (candidate.name.clone(), candidate.digest()));
        let of_any_build = arguments.any_build.then(|| digests.collect());
        let mut watch = Watch::new(&path, &of_run, of_any_build, arguments.test)?;
        let memory_bytes = (arguments.memory as u64) << 20;
        let quality =
            Quality { suite, shape, entries: &entries, jobs: &jobs, run: &of_run, memory_bytes };
        failures = quality.measure(&mut watch)?;
    }
    let rows = if path.exists() { heterokv_eval::read_rows(&path)? } else { Vec::new() };
    let board = Board::new(&rows, &jobs, &entries);
    let mut parts = Vec::new();
    if arguments.quality {
        let tables = vec![Table::new("evict-quality", board.sheet(&opened.name, &failures))];
        let is_whole = board.is_complete() || !failures.is_empty();
        ensure!(is_whole, "a cache that can be measured was not, and nothing says why");
        parts.push(Part { name: "quality", tables, is_held: failures.is_empty() });
    }
    if arguments.bars {
        parts.push(bars::part(&entries, &contexts, &|entry, context| {
            board.measured(entry, context)
        }));
    }
    Ok(parts)
}

/// The samples of these tasks, contexts in order.
pub(super) fn jobs(
    suite: &Suite<'_>,
    tasks: &[&str],
    contexts: &[usize],
    offsets: &[usize],
    num_steps: usize,
) -> Result<Vec<Job>> {
    let settings = Settings {
        seed: SEED,
        num_samples: 1,
        offsets: offsets.to_vec(),
        num_steps: Some(num_steps),
        depths: DEPTHS.to_vec(),
    };
    let prompting = Prompting::plain(&suite.opened.text);
    let inputs = Inputs {
        prompting: &prompting,
        corpus: Some(&suite.opened.tokens),
        haystack: None,
        longbench: None,
        longbench_prompts: None,
        settings: &settings,
    };
    let mut jobs = Vec::new();
    for &context in contexts {
        for &name in tasks {
            let samples = task(name)?.samples(&inputs, context)?;
            jobs.extend(samples.into_iter().map(|sample| Job::new(name, sample)));
        }
    }
    Ok(jobs)
}

/// What is to be measured, and with what.
struct Quality<'a> {
    suite: &'a Suite<'a>,
    shape: KvShape,
    entries: &'a [Entry],
    jobs: &'a [Job],
    run: &'a Run,
    /// What caches may take at a time.
    memory_bytes: u64,
}

impl Quality<'_> {
    /// Measures what has no row yet, one context after the other; gives what could not be measured.
    fn measure(&self, watch: &mut Watch) -> Result<Vec<Failure>> {
        let ready: Vec<&Candidate<'static>> =
            self.entries.iter().filter_map(Entry::candidate).collect();
        let mut turns = Vec::new();
        for jobs in by_context(self.jobs) {
            let is_left = |candidate: &&&Candidate<'static>| {
                jobs.iter().any(|job| watch.is_left(job, candidate, self.run))
            };
            let left: Vec<&Candidate<'static>> = ready.iter().filter(is_left).copied().collect();
            turns.extend(self.groups(&left, &jobs)?.into_iter().map(|group| (jobs.clone(), group)));
        }
        if turns.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(lack) = memory::lack(self.memory_bytes) {
            anyhow::bail!("{lack}; let caches take less at a time by --memory");
        }
        for (jobs, group) in &turns {
            for job in jobs {
                let is_left = |candidate: &&Candidate<'_>| watch.is_left(job, candidate, self.run);
                let num_left = group.iter().filter(is_left).count();
                watch.expect(job, num_left);
            }
        }
        let model = self.suite.opened.model(self.suite.level)?;
        let mut failures = Vec::new();
        for (jobs, group) in &turns {
            let Err(error) = self.evaluate(&model, jobs, group, watch) else { continue };
            // Which of several it was, each alone tells; what came before the error has its rows.
            if group.len() == 1 {
                failures.push(failure(error, &group[0], jobs)?);
                continue;
            }
            self.suite.say(&format!("{error}; each of {} caches alone", group.len()));
            check_is_of_cache(&error)?;
            for candidate in group {
                if let Err(error) =
                    self.evaluate(&model, jobs, std::slice::from_ref(candidate), watch)
                {
                    failures.push(failure(error, candidate, jobs)?);
                }
            }
        }
        Ok(failures)
    }

    fn evaluate(
        &self,
        model: &Model,
        jobs: &[Job],
        group: &[Candidate<'static>],
        watch: &mut Watch,
    ) -> heterokv_eval::Result<()> {
        let tokenizer = &self.suite.opened.text.tokenizer;
        let engine = Engine { model, tokenizer };
        evaluate(engine, jobs, group, self.run, watch)
    }

    /// The caches in groups that fit into memory beside the full cache that they are held against, each twice: a probe
    /// works on a fork.
    fn groups(
        &self,
        candidates: &[&Candidate<'static>],
        jobs: &[Job],
    ) -> Result<Vec<Vec<Candidate<'static>>>> {
        let longest = jobs.iter().map(|job| job.sample.context.len()).max().unwrap_or(0);
        let bytes = |candidate: &Candidate<'_>| -> Result<u64> {
            let plan = CachePlan::new(&candidate.config, &self.shape, longest + NUM_STEPS)?;
            let scratch = plan.score_scratch_bytes;
            Ok((2 * (plan.most_device_bytes + scratch) + plan.host_bytes) as u64)
        };
        let full = bytes(&Candidate::full())?;
        let mut groups: Vec<Vec<Candidate<'static>>> = Vec::new();
        let mut taken = u64::MAX;
        for candidate in candidates {
            let needed = bytes(candidate)?;
            if taken.saturating_add(needed) > self.memory_bytes {
                groups.push(Vec::new());
                taken = full;
            }
            taken = taken.saturating_add(needed);
            groups.last_mut().expect("one was begun").push((*candidate).clone());
        }
        Ok(groups)
    }
}

/// The jobs of each context, contexts in order.
fn by_context(jobs: &[Job]) -> Vec<Vec<Job>> {
    let mut turns: Vec<Vec<Job>> = Vec::new();
    for job in jobs {
        match turns.iter_mut().find(|turn| turn[0].sample.context == job.sample.context) {
            Some(turn) => turn.push(job.clone()),
            None => turns.push(vec![job.clone()]),
        }
    }
    turns
}

/// What a cache could not do.
fn failure(error: Error, candidate: &Candidate<'_>, jobs: &[Job]) -> Result<Failure> {
    check_is_of_cache(&error)?;
    eprintln!("evict: {} at {} tokens: {error}", candidate.name, jobs[0].sample.length);
    Ok(Failure { name: candidate.name.clone(), context: jobs[0].sample.length })
}

/// Rows that cannot be written end the run: no other cache's can be, either.
fn check_is_of_cache(error: &Error) -> Result<()> {
    ensure!(!matches!(error, Error::Io { .. } | Error::InUse { .. }), "{error}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use heterokv_eval::{Probe, Sample};

    use super::*;

    #[test]
    fn jobs_of_one_context_go_together() {
        let job = |name: &str, context: &[u32]| {
            let sample = Sample {
                part: None,
                name: name.to_owned(),
                length: 2,
                depth: None,
                context: context.to_vec(),
                probe: Probe::OwnText { num_steps: 1 },
            };
            Job::new("kl", sample)
        };
        let jobs = [job("a", &[1, 2]), job("b", &[3, 4]), job("c", &[1, 2])];
        let turns = by_context(&jobs);
        let names =
            |turn: &Vec<Job>| turn.iter().map(|j| j.sample.name.clone()).collect::<String>();
        assert_eq!(turns.iter().map(names).collect::<Vec<_>>(), ["ac", "b"]);
    }
}
