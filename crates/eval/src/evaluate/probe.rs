//! One probe, put to many caches.

use std::collections::BTreeSet;
use std::time::Instant;

use heterokv_model::Progress;
use heterokv_model::text::{LeadingSpace, SpecialTokens, StopMatcher};

use super::Engine;
use crate::divergence::{Distribution, Steps};
use crate::row::{Answer, Memory, Outcome};
use crate::subject::Subject;
use crate::task::Question;
use crate::{Error, Result};

/// How often memory is looked at while a probe goes on, beside before and behind it.
const MEMORY_SAMPLES: usize = 16;

/// A cache in the middle of a probe, and what was measured of it.
pub(super) struct Probed {
    /// The cache as it was named.
    name: String,
    pub(super) subject: Box<dyn Subject>,
    /// Before the probe, at steps of it, and behind it.
    pub(super) memory: Vec<Memory>,
    /// Of single tokens.
    pub(super) step_seconds: Vec<f64>,
    /// The last token of a reply, which is yet to be fed.
    pending: Option<u32>,
}

impl Probed {
    pub(super) fn new(name: &str, subject: Box<dyn Subject>) -> Self {
        let (name, memory) = (name.to_owned(), vec![subject.memory()]);
        Self { name, subject, memory, step_seconds: Vec::new(), pending: None }
    }

    /// One token through the model: the logits of the next.
    fn step(&mut self, engine: Engine<'_>, token: u32) -> Result<Vec<f32>> {
        let start = Instant::now();
        let hidden = engine.model.extend(&[token], &mut *self.subject)?;
        let logits = engine.model.logits(&hidden)?;
        self.step_seconds.push(start.elapsed().as_secs_f64());
        Ok(logits)
    }

    /// What is not finite is so of this cache.
    fn named(&self, error: Error) -> Error {
        match error {
            Error::NotFinite { what, step } => {
                Error::CacheNotFinite { cache: self.name.clone(), what, step }
            }
            other => other,
        }
    }

    fn look_at_memory(&mut self) {
        self.memory.push(self.subject.memory());
    }
}

/// What is fed.
#[derive(Clone, Copy)]
pub(super) enum Feed<'a> {
    /// These tokens but the last, each to predict the one behind it.
    Given(&'a [u32]),
    /// What the reference itself says next, end tokens apart, beginning with what it says behind the context.
    Own { num_steps: usize, last: &'a Distribution },
}

/// Feeds the same tokens to `reference` and to each of `probed`, step by step side by side, and compares what they say
/// comes next.
pub(super) fn diverge(
    engine: Engine<'_>,
    mut reference: Probed,
    probed: &mut [Probed],
    feed: Feed<'_>,
    progress: Progress<'_>,
) -> Result<Vec<Outcome>> {
    let unspoken = engine.unspoken_ids();
    let (num_steps, mut token) = match feed {
        Feed::Given(tokens) => (tokens.len().saturating_sub(1), tokens.first().copied()),
        Feed::Own { num_steps, last } => (num_steps, last.top_outside(&unspoken)),
    };
    let mut steps = vec![Steps::default(); probed.len()];
    let stride = num_steps.div_ceil(MEMORY_SAMPLES).max(1);
    for step in 0..num_steps {
        let Some(fed) = token else { break };
        let full = Distribution::of_logits(&reference.step(engine, fed)?);
        let next = match feed {
            Feed::Given(tokens) => tokens.get(step + 1).copied(),
            Feed::Own { .. } => full.top_outside(&unspoken),
        };
        let Some(next) = next else { break };
        for (probed, steps) in probed.iter_mut().zip(&mut steps) {
            let own = Distribution::of_logits(&probed.step(engine, fed)?);
            steps.push(&full, &own, next).map_err(|error| probed.named(error))?;
            if (step + 1) % stride == 0 || step + 1 == num_steps {
                probed.look_at_memory();
            }
        }
        token = Some(next);
        progress(step + 1, num_steps);
    }
    let outcome = |steps: Steps| {
        let summary = steps.summary().ok_or(Error::NoContinuation)?;
        Ok(Outcome::Divergence { summary, steps })
    };
    steps.into_iter().map(outcome).collect()
}

/// Asks each of `probed` all questions, each behind the reply to the one before.
pub(super) fn ask(
    engine: Engine<'_>,
    probed: &mut [Probed],
    questions: &[Question],
    progress: Progress<'_>,
) -> Result<Vec<Outcome>> {
    let words = Words { ends: engine.end_ids(), nameless: engine.nameless_ids() };
    let total = probed.len() * questions.len();
    let mut outcomes = Vec::new();
    for (place, probed) in probed.iter_mut().enumerate() {
        let mut answers = Vec::new();
        for (index, question) in questions.iter().enumerate() {
            answers.push(answer(engine, &words, probed, question)?);
            progress(place * questions.len() + index + 1, total);
        }
        let score = answers.iter().map(|answer| answer.score).sum::<f64>();
        let score = score / answers.len().max(1) as f64;
        outcomes.push(Outcome::Answers { score, answers });
    }
    Ok(outcomes)
}

/// Tokens that a reply does not go on behind, or cannot hold.
struct Words {
    ends: BTreeSet<u32>,
    nameless: BTreeSet<u32>,
}

/// The most probable reply, token by token.
fn answer(
    engine: Engine<'_>,
    words: &Words,
    probed: &mut Probed,
    question: &Question,
) -> Result<Answer> {
    let mut stops = StopMatcher::new(question.stops.iter().map(String::as_str))?;
    let mut stream = engine.tokenizer.decode_stream(SpecialTokens::Skip, LeadingSpace::Keep);
    let mut fed: Vec<u32> = probed.pending.take().into_iter().collect();
    fed.extend_from_slice(&question.tokens);
    let (last, before) = fed.split_last().ok_or(Error::NoContinuation)?;
    if !before.is_empty() {
        engine.model.extend(before, &mut *probed.subject)?;
    }
    let mut token = *last;
    let mut reply = String::new();
    for _ in 0..question.max_tokens {
        let says = Distribution::of_logits(&probed.step(engine, token)?);
        let Some(next) = says.top_outside(&words.nameless) else {
            let step = probed.step_seconds.len() - 1;
            return Err(probed.named(Error::NotFinite { what: "the distribution", step }));
        };
        token = next;
        probed.pending = None;
        if words.ends.contains(&token) {
            break;
        }
        probed.pending = Some(token);
        let found = stops.push(&stream.push(token)?);
        reply.push_str(&found.text);
        if found.stop_idx.is_some() {
            break;
        }
    }
    reply.push_str(&stops.push(&stream.finish()).text);
    reply.push_str(&stops.finish());
    probed.look_at_memory();
    let score = question.metric.score(&reply, &question.references);
    Ok(Answer {
        question: question.text.clone(),
        reply,
        references: question.references.clone(),
        metric: question.metric.name().to_owned(),
        score,
    })
}
