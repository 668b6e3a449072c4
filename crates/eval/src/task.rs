//! Tasks: where samples come from, and what is asked of a cache.

mod corpus;
mod haystack;
mod longbench;
mod needle;
mod ruler;

use std::path::Path;

use crate::hash::hex_digest;
use crate::metric::Metric;
use crate::prompting::Prompting;
use crate::{Error, Result};

/// A way to put caches to the test.
///
/// A task makes samples: a context, which every cache takes in once, and a [`Probe`] behind it. What comes of the
/// probe is judged by [`evaluate`](crate::evaluate), the same for all tasks.
pub trait Task: Sync {
    /// The name by which it is asked for.
    fn name(&self) -> &'static str;

    /// What it measures, in one line, with its source.
    fn about(&self) -> &'static str;

    /// The samples of one context length, in tokens: at most that many each, as many as [`Settings`] ask for.
    /// The same inputs give the same samples.
    ///
    /// # Errors
    /// An input that is missing, too short or malformed.
    fn samples(&self, inputs: &Inputs<'_>, context: usize) -> Result<Vec<Sample>>;
}

/// All tasks, in the order in which they are listed.
#[must_use]
pub fn tasks() -> Vec<&'static dyn Task> {
    let mut all: Vec<&'static dyn Task> = vec![
        &corpus::Continuation,
        &corpus::Recall,
        &corpus::OwnText,
        &needle::PassKey,
        &needle::Needle,
        &needle::MultiKey,
        &needle::MultiTurn,
    ];
    all.extend(ruler::TASKS.iter().map(|task| task as &dyn Task));
    all.push(&longbench::LongBench);
    all
}

/// The task of that name.
///
/// # Errors
/// [`Error::NoSuchTask`], which names those that there are.
pub fn task(name: &str) -> Result<&'static dyn Task> {
    let all = tasks();
    all.iter().find(|task| task.name() == name).copied().ok_or_else(|| Error::NoSuchTask {
        name: name.to_owned(),
        known: all.iter().map(|task| task.name()).collect(),
    })
}

/// What tasks make samples of. What a task needs and does not get is an error when it is asked for samples.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// How texts become tokens.
    pub prompting: &'a Prompting<'a>,
    /// Tokens of a text.
    pub corpus: Option<&'a [u32]>,
    /// Text to hide needles in; generated where there is none.
    pub haystack: Option<&'a str>,
    /// Folder or file of LongBench's JSONL files.
    pub longbench: Option<&'a Path>,
    /// LongBench's own prompts, in the form of its `dataset2prompt.json`; ours where there are none.
    pub longbench_prompts: Option<&'a Path>,
    /// How many, where, how long.
    pub settings: &'a Settings,
}

/// How many samples there are, and what they are like.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What random choices begin with.
    pub seed: u64,
    /// Samples of a task at a length, at a depth where it has depths. Windows of a corpus are as many as `offsets`.
    pub num_samples: usize,
    /// Tokens of the corpus at which windows begin.
    pub offsets: Vec<usize>,
    /// Tokens fed behind a context; none leaves it to the task.
    pub num_steps: Option<usize>,
    /// Where needles are hidden: 0 at the beginning of the text, 1 at the end.
    pub depths: Vec<f64>,
}

/// A context, and what is asked behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The part of the task that is scored apart, as the datasets of LongBench are; none where the task is one.
    pub part: Option<String>,
    /// Tells it from the others of its task, part and length.
    pub name: String,
    /// Tokens that were asked for; the context has at most as many.
    pub length: usize,
    /// Where in the context the thing to be found is, from 0 to 1.
    pub depth: Option<f64>,
    /// What every cache takes in.
    pub context: Vec<u32>,
    /// What comes behind it.
    pub probe: Probe,
}

impl Sample {
    /// What tells its tokens, and what is asked behind them, from those of every other sample: 16 hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> String {
        let context: Vec<u8> = self.context.iter().flat_map(|token| token.to_le_bytes()).collect();
        hex_digest([context.as_slice(), format!("{:?}", self.probe).as_bytes()])
    }
}

/// What comes behind a context.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe {
    /// Tokens fed one at a time: `tokens[i]` at step i, after which `tokens[i + 1]` is to be predicted. One more than
    /// there are steps. Distributions are compared with those of `full`.
    Tokens(Vec<u32>),
    /// What `full` itself says next, most probable token by most probable token, fed in the same way to all.
    OwnText {
        /// Steps to be fed.
        num_steps: usize,
    },
    /// Questions, asked one after the other, each behind the reply to the one before.
    Questions(Vec<Question>),
}

/// A question, and what would be right.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// For people.
    pub text: String,
    /// What is fed, up to where the reply begins.
    pub tokens: Vec<u32>,
    /// Right answers.
    pub references: Vec<String>,
    /// How a reply is held against them.
    pub metric: Metric,
    /// Most tokens of the reply.
    pub max_tokens: usize,
    /// What ends the reply, beside the model's end tokens. Not part of the reply.
    pub stops: Vec<String>,
}
