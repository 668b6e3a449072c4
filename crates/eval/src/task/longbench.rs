//! LongBench: real tasks over long texts, from files that the user has.

mod dataset;
mod prompts;
mod record;
#[cfg(test)]
mod tests;

use self::dataset::Dataset;
use self::prompts::Prompts;
use self::record::Record;
use super::{Inputs, Probe, Question, Sample, Task};
use crate::prompting::{Asked, Prompting};
use crate::{Error, Result};

const NAME: &str = "longbench";

/// The 21 datasets of LongBench (arXiv 2308.14508), by its reply lengths and metrics, and prompts of its form.
///
/// The prompts are worded here, not there. Scores can be compared among caches; with published tables only where
/// LongBench's own prompts are given, its `dataset2prompt.json`.
///
/// A prompt has three parts: an instruction, the record's text, and the question with what else stands behind the
/// text. The first two are what caches take in; the question is fed behind. A prompt longer than the context asked
/// for loses its middle, and the first and the last half of that many tokens stay, as in LongBench. Unlike there, the
/// tokens of the chat template are among those asked for, so that the context is never longer, and a context that
/// leaves nothing of the record's text is an error. As there, few-shot and
/// code datasets do without the chat template.
///
/// Every dataset in the files gives as many samples as are asked for, drawn by seed, no record twice; a larger number
/// adds to those that a smaller one gives. The records of `<dataset>_e`, of LongBench-E, are those of a dataset of its
/// own with the prompt of `<dataset>`; they are read where their file is given, not from a folder.
#[derive(Debug)]
pub(crate) struct LongBench;

impl Task for LongBench {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "answers, summaries, classes and code over real long texts (LongBench, arXiv 2308.14508)"
    }

    fn samples(&self, inputs: &Inputs<'_>, context: usize) -> Result<Vec<Sample>> {
        let path = inputs.longbench.ok_or(Error::MissingInput {
            task: NAME,
            input: "a folder of LongBench's JSONL files, or one of them (--longbench)",
        })?;
        let prompts = Prompts::read(inputs.longbench_prompts)?;
        let records = record::drawn(path, inputs.settings)?;
        let plain = inputs.prompting.without_chat();
        let sample = |(dataset, record): (&Dataset, Record)| {
            let prompting = if dataset.chat { inputs.prompting } else { &plain };
            let prompt = Prompt::new(&plain, prompts.of(dataset)?, &record)?;
            let fitted = prompt.fitted(prompting, context)?;
            let question = Question {
                text: prompt.question.trim().to_owned(),
                tokens: fitted.question,
                metric: dataset.metric(&record),
                references: record.answers,
                max_tokens: dataset.max_tokens,
                stops: Vec::new(),
            };
            Ok(Sample {
                name: record.id,
                part: Some(record.dataset),
                length: context,
                depth: None,
                context: fitted.asked.context,
                probe: Probe::Questions(vec![question]),
            })
        };
        records.into_iter().map(sample).collect()
    }
}

/// A prompt as it is before it is cut.
struct Prompt<'a> {
    /// The tokenizer, without a chat template.
    plain: &'a Prompting<'a>,
    /// Instruction and text.
    text: String,
    /// What stands behind the text.
    question: String,
    /// Tokens of `text`, with those that begin one.
    text_tokens: Vec<u32>,
    /// How many of them are the instruction.
    num_instruction_tokens: usize,
    /// Tokens of `question`.
    question_tokens: Vec<u32>,
}

/// A prompt that fits a context.
struct Fitted {
    asked: Asked,
    /// Tokens of the question.
    question: Vec<u32>,
}

impl Fitted {
    fn num_tokens(&self) -> usize {
        self.asked.context.len() + self.question.len()
    }
}

impl<'a> Prompt<'a> {
    fn new(plain: &'a Prompting<'a>, prompt: &str, record: &Record) -> Result<Self> {
        let (instruction, question) = prompts::filled(prompt, record);
        let text = format!("{instruction}{}", record.context);
        let num_instruction_tokens = plain.encode(&instruction)?.len();
        let asked = plain.context(&text)?;
        let question_tokens = plain.first_question(&asked, &question, "")?;
        let text_tokens = asked.context;
        Ok(Self { plain, text, question, text_tokens, num_instruction_tokens, question_tokens })
    }

    /// The prompt, cut so that `context` tokens hold it all, those of the chat template too.
    fn fitted(&self, prompting: &Prompting<'_>, context: usize) -> Result<Fitted> {
        let fewest = self.fewest();
        let mut limit = context.max(fewest);
        loop {
            let fitted = self.cut_to(prompting, limit)?;
            let needed_tokens = fitted.num_tokens();
            if needed_tokens <= context {
                return Ok(fitted);
            }
            if limit == fewest {
                return Err(Error::ShortTaskContext { task: NAME, context, needed_tokens });
            }
            // The template takes its share, and texts put together again may have more tokens than their parts had.
            limit = limit.saturating_sub(needed_tokens - context).max(fewest);
        }
    }

    /// The fewest tokens that leave some of the record's text: half of them are more than the instruction, or more
    /// than the question.
    fn fewest(&self) -> usize {
        let half = self.num_instruction_tokens.min(self.question_tokens.len()) + 1;
        (2 * half).min(self.text_tokens.len() + self.question_tokens.len())
    }

    /// The prompt with the first and the last half of `limit` of its own tokens.
    fn cut_to(&self, prompting: &Prompting<'_>, limit: usize) -> Result<Fitted> {
        let (text, question) = self.middle_cut(limit)?;
        let asked = prompting.context(&text)?;
        let question = prompting.first_question(&asked, &question, "")?;
        Ok(Fitted { asked, question })
    }

    /// Text and question without what lies between the first and the last half of `limit` tokens.
    fn middle_cut(&self, limit: usize) -> Result<(String, String)> {
        let (text, question) = (&self.text_tokens, &self.question_tokens);
        let num_tokens = text.len() + question.len();
        if num_tokens <= limit {
            return Ok((self.text.clone(), self.question.clone()));
        }
        // The end of the first half, and the beginning of the last.
        let (end, start) = (limit / 2, num_tokens - limit / 2);
        let cut = |tokens: &[u32], end: usize, start: usize| {
            let (end, start) = (end.min(tokens.len()), start.min(tokens.len()));
            // A cut may go through a character.
            let head = self.plain.decode(&tokens[..end])?;
            let tail = self.plain.decode(&tokens[start..])?;
            let is_broken = char::REPLACEMENT_CHARACTER;
            let (head, tail) =
                (head.trim_end_matches(is_broken), tail.trim_start_matches(is_broken));
            Ok::<_, Error>(format!("{head}{tail}"))
        };
        if start <= text.len() {
            return Ok((cut(text, end, start)?, self.question.clone()));
        }
        let behind = |place: usize| place.saturating_sub(text.len());
        let text = if end >= text.len() { self.text.clone() } else { cut(text, end, text.len())? };
        Ok((text, cut(question, behind(end), behind(start))?))
    }
}
