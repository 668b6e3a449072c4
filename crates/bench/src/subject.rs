//! What the steps are measured on: a model and a text, or, where only the answers are tested, a tiny model.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use heterokv_attn::HeadShape;
use heterokv_cache::KvShape;
use heterokv_model::text::{EncodeOptions, ModelText};
use heterokv_model::{Checkpoint, ComputeType, Model};
use heterokv_quant::Level;
use heterokv_testkit::Inputs;

use crate::quality::default_corpus;

/// A random checkpoint of the tests, which every checkout has.
const TINY_MODEL: &str = "../../tests/fixtures/llama3-q8_0/model.gguf";

/// Where model and text are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) model: PathBuf,
    /// None: tokens drawn at random, as the tiny model has no tokenizer.
    pub(crate) corpus: Option<PathBuf>,
}

/// A model ready to compute, and tokens for it.
pub(crate) struct Subject {
    pub(crate) model: Model,
    pub(crate) tokens: Vec<u32>,
    /// What a record calls it.
    pub(crate) name: String,
}

impl Place {
    /// The tiny model of the tests.
    pub(crate) fn tiny() -> Self {
        Self { model: Path::new(env!("CARGO_MANIFEST_DIR")).join(TINY_MODEL), corpus: None }
    }

    /// The tiny model of the tests, or the model and the text that are asked for; the latter has a default.
    ///
    /// # Errors
    /// One that is not named or not there.
    pub(crate) fn asked(
        is_test: bool,
        model: &Option<PathBuf>,
        corpus: &Option<PathBuf>,
    ) -> Result<Self> {
        if is_test {
            return Ok(Self::tiny());
        }
        let model = model.clone();
        let model = model
            .context("this suite needs a model; pass --model PATH, or `--test` for the tiny one")?;
        let corpus = corpus.clone().unwrap_or_else(default_corpus);
        ensure!(
            corpus.is_file(),
            "there is no text {}; pass one by --corpus PATH",
            corpus.display()
        );
        ensure!(model.exists(), "there is no model {}; pass one by --model PATH", model.display());
        Ok(Self { model, corpus: Some(corpus) })
    }

    /// Loads the model and `num_tokens` tokens.
    ///
    /// # Errors
    /// A model or a text that cannot be had, and a text that is too short.
    pub(crate) fn load(&self, num_tokens: usize, level: Level) -> Result<Subject> {
        let checkpoint = Checkpoint::open(&self.model)?;
        let tokens = self.tokens(&checkpoint, num_tokens)?;
        let model = Model::load(&checkpoint, ComputeType::Q8, level)?;
        let name = self.name(&model.kv_shape(), ComputeType::Q8);
        Ok(Subject { model, tokens, name })
    }

    /// What a record calls the model, of this shape and in this form.
    pub(crate) fn name(&self, shape: &KvShape, compute: ComputeType) -> String {
        let HeadShape { num_qo_heads, num_kv_heads, head_dim, .. } = shape.heads;
        format!(
            "{}, {} layers, {num_qo_heads} query and {num_kv_heads} KV heads of {head_dim} channels, weights in {compute}",
            stem(&self.model),
            shape.num_layers,
        )
    }

    /// The first `num_tokens` tokens of the text, by the tokenizer of `checkpoint`.
    ///
    /// # Errors
    /// A text that cannot be had or is too short.
    pub(crate) fn tokens(&self, checkpoint: &Checkpoint, num_tokens: usize) -> Result<Vec<u32>> {
        let Some(corpus) = &self.corpus else {
            let mut inputs = Inputs::new(1);
            let vocab_size = checkpoint.config().vocab_size;
            return Ok((0..num_tokens).map(|_| inputs.below(vocab_size) as u32).collect());
        };
        read_tokens(checkpoint, corpus, num_tokens)
    }
}

fn read_tokens(checkpoint: &Checkpoint, corpus: &Path, num_tokens: usize) -> Result<Vec<u32>> {
    let shown = corpus.display();
    let text = fs::read_to_string(corpus)
        .with_context(|| format!("cannot read {shown}; pass a text by --corpus PATH"))?;
    let options = EncodeOptions { add_special: false, parse_special: true };
    let mut tokens = ModelText::of(checkpoint)?.tokenizer.encode(&text, options)?;
    ensure!(
        tokens.len() >= num_tokens,
        "{shown} has {} tokens, {num_tokens} are needed; pass a longer text by --corpus PATH",
        tokens.len()
    );
    tokens.truncate(num_tokens);
    Ok(tokens)
}

/// A file's name, which unlike its path says the same on every machine.
pub(crate) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    #[test]
    fn the_tiny_model_comes_with_tokens_of_its_own() {
        let subject = Place::tiny().load(100, Level::detect()).expect("every checkout has it");
        let vocab_size = subject.model.config().vocab_size;
        assert_eq!(subject.tokens.len(), 100);
        assert!(subject.tokens.iter().all(|&token| (token as usize) < vocab_size));
        assert!(subject.name.starts_with("model, "), "{}", subject.name);
    }

    #[test]
    fn kept_records_call_the_default_model_what_new_ones_do() {
        let place = Place { model: "SmolLM2-135M-Instruct.Q4_1.gguf".into(), corpus: None };
        let heads = HeadShape::new(9, 3, 64).expect("it is valid");
        let name = place.name(&KvShape { num_layers: 30, heads }, ComputeType::Q8);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/bench/record");
        for file in fs::read_dir(folder).expect("it is there") {
            let path = file.expect("it is listed").path();
            let record = Record::load(&path).expect("it is a record");
            assert_eq!(record.subject, name, "{}", path.display());
        }
    }

    #[test]
    fn a_missing_model_is_told() {
        let place = Place { model: "no-such-file.gguf".into(), corpus: None };
        let Err(error) = place.load(1, Level::SCALAR) else { panic!("there is no such file") };
        assert!(format!("{error:#}").contains("no-such-file.gguf"), "{error:#}");
    }
}
