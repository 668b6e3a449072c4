//! Windows of a corpus: what follows, what came before, and what the model itself goes on with.

use crate::task::{Inputs, Probe, Sample, Task};
use crate::{Error, Result};

/// Steps of `kl` and `recall`, where nothing else is asked for.
const NUM_STEPS: usize = 128;

/// Steps of `longgen`, where nothing else is asked for.
const NUM_OWN_STEPS: usize = 2000;

/// First context token of the passage that recall repeats.
const RECALL_FIRST: usize = 500;

/// The text that follows the context.
pub(super) struct Continuation;

/// A passage from early in the context, once more: what a cache has lost of it shows here, and hardly in plain
/// text.
pub(super) struct Recall;

/// What `full` itself says next: errors add up over a long text.
pub(super) struct OwnText;

impl Task for Continuation {
    fn name(&self) -> &'static str {
        "kl"
    }

    fn about(&self) -> &'static str {
        "KL, agreement and perplexity on the text that follows in the corpus"
    }

    fn samples(&self, inputs: &Inputs<'_>, context: usize) -> Result<Vec<Sample>> {
        let num_steps = inputs.settings.num_steps.unwrap_or(NUM_STEPS);
        windows(
            self.name(),
            inputs,
            context,
            num_steps,
            num_steps.saturating_add(1),
            |_, behind| Ok(Probe::Tokens(behind.to_vec())),
        )
    }
}

impl Task for Recall {
    fn name(&self) -> &'static str {
        "recall"
    }

    fn about(&self) -> &'static str {
        "the same on a passage from early in the context, repeated word for word: retrieval without instructions"
    }

    fn samples(&self, inputs: &Inputs<'_>, context: usize) -> Result<Vec<Sample>> {
        let num_steps = inputs.settings.num_steps.unwrap_or(NUM_STEPS);
        let end = RECALL_FIRST.saturating_add(num_steps).saturating_add(1);
        windows(self.name(), inputs, context, num_steps, 0, |tokens, _| {
            let passage = tokens.get(RECALL_FIRST..end);
            let passage =
                passage.ok_or(Error::ShortContext { first: RECALL_FIRST, end, context })?;
            Ok(Probe::Tokens(passage.to_vec()))
        })
    }
}

impl Task for OwnText {
    fn name(&self) -> &'static str {
        "longgen"
    }

    fn about(&self) -> &'static str {
        "the same on 2,000 tokens that the full cache itself goes on with, most probable token by token"
    }

    fn samples(&self, inputs: &Inputs<'_>, context: usize) -> Result<Vec<Sample>> {
        let num_steps = inputs.settings.num_steps.unwrap_or(NUM_OWN_STEPS);
        let own_text = |_: &[u32], _: &[u32]| Ok(Probe::OwnText { num_steps });
        windows(self.name(), inputs, context, num_steps, 0, own_text)
    }
}

/// A sample for each offset: `context` tokens, and what `probe` makes of them and of the `behind` tokens after them.
fn windows(
    task: &'static str,
    inputs: &Inputs<'_>,
    context: usize,
    num_steps: usize,
    behind: usize,
    probe: impl Fn(&[u32], &[u32]) -> Result<Probe>,
) -> Result<Vec<Sample>> {
    let input = "a text; give one with --corpus FILE";
    let corpus = inputs.corpus.ok_or(Error::MissingInput { task, input })?;
    if num_steps == 0 {
        return Err(Error::NoContinuation);
    }
    let window = |&offset: &usize| {
        let end = offset.saturating_add(context);
        let needed_tokens = end.saturating_add(behind);
        let corpus_tokens = corpus.len();
        if corpus_tokens < needed_tokens {
            let short =
                Error::ShortCorpus { task, corpus_tokens, needed_tokens, offset, context, behind };
            return Err(short);
        }
        let (tokens, behind) = corpus[offset..needed_tokens].split_at(context);
        Ok(Sample {
            part: None,
            name: format!("token {offset}, {num_steps} steps"),
            length: context,
            depth: None,
            context: tokens.to_vec(),
            probe: probe(tokens, behind)?,
        })
    };
    inputs.settings.offsets.iter().map(window).collect()
}
