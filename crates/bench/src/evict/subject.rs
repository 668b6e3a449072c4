//! The model and the text of the suite; where only the way is tested, a tiny model, random tokens, and letters for words.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::Hasher;

use anyhow::{Context, Result, ensure};
use heterokv_attn::HeadShape;
use heterokv_cache::KvShape;
use heterokv_eval::Run;
use heterokv_model::text::{EncodeOptions, GgufVocab, ModelText, Tokenizer};
use heterokv_model::{Checkpoint, ComputeType, Model, ModelConfig};
use heterokv_quant::Level;

use crate::environment::Environment;
use crate::record::today;
use crate::subject::{Place, stem};

/// Form of the weights.
const COMPUTE: ComputeType = ComputeType::Q8;

/// Tokens of the text of a test.
const TEST_TOKENS: usize = 4000;

/// What a line that begins a chapter begins with.
const HEADING: &str = "CHAPTER ";

/// A checkpoint that is open, its weights not read yet, and a text.
pub(super) struct Opened {
    /// What rows call the model.
    pub(super) name: String,
    checkpoint: Checkpoint,
    pub(super) text: ModelText,
    /// The text, none where its tokens are random.
    written: Option<String>,
    /// Its tokens.
    pub(super) tokens: Vec<u32>,
}

impl Opened {
    /// Opens the model and reads the text.
    ///
    /// # Errors
    /// One that cannot be had.
    pub(super) fn new(place: &Place) -> Result<Self> {
        let checkpoint = Checkpoint::open(&place.model)?;
        let name = stem(&place.model);
        let Some(corpus) = &place.corpus else {
            let text = letters(checkpoint.config().vocab_size)?;
            let tokens = place.tokens(&checkpoint, TEST_TOKENS)?;
            return Ok(Self { name, checkpoint, text, written: None, tokens });
        };
        let written = fs::read_to_string(corpus).with_context(|| {
            format!("cannot read {}; pass a text by --corpus PATH", corpus.display())
        })?;
        let text = ModelText::of(&checkpoint)?;
        let tokens = encode(&text, &written)?;
        Ok(Self { name, checkpoint, text, written: Some(written), tokens })
    }

    pub(super) fn shape(&self) -> Result<KvShape> {
        let ModelConfig { num_layers, num_qo_heads, num_kv_heads, head_dim, .. } =
            *self.checkpoint.config();
        let heads = HeadShape::new(num_qo_heads, num_kv_heads, head_dim)?;
        Ok(KvShape { num_layers, heads })
    }

    /// What tells the model from every other.
    pub(super) fn fingerprint(&self) -> String {
        self.checkpoint.fingerprint().to_string()
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// A tensor that the form cannot hold.
    pub(super) fn model(&self, level: Level) -> Result<Model> {
        Ok(Model::load(&self.checkpoint, COMPUTE, level)?)
    }

    /// By what rows are made.
    ///
    /// # Errors
    /// Where this program cannot be read.
    pub(super) fn run(
        &self,
        environment: &Environment,
        level: Level,
        threads: usize,
    ) -> Result<Run> {
        let field = |name| {
            let mut fields = environment.fields();
            fields.find(|(field, _)| *field == name).map_or("", |(_, value)| value).to_owned()
        };
        let program = std::env::current_exe().context("cannot find this program")?;
        let program = fs::read(program).context("cannot read this program")?;
        let mut build = DefaultHasher::new();
        build.write(&program);
        Ok(Run {
            engine: "heterokv".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: format!("{:016x}", build.finish()),
            commit: field("commit"),
            model: self.name.clone(),
            fingerprint: self.fingerprint(),
            conditions: format!("{COMPUTE} weights, {level}"),
            threads,
            seed: super::quality::SEED,
            command: field("command"),
            date: today(),
        })
    }

    /// The first `num_tokens` tokens of two chapters of the text, by their numbers.
    ///
    /// # Errors
    /// A chapter that is not there or too short.
    pub(super) fn chapters(&self, numbers: [usize; 2], num_tokens: usize) -> Result<[Vec<u32>; 2]> {
        let chapter = |place: usize| {
            let number = numbers[place];
            let tokens = match &self.written {
                None => self.tokens[place * self.tokens.len() / 2..].to_vec(),
                Some(written) => {
                    let chapter = chapter(written, number).with_context(|| {
                        format!(
                            "no line of the text begins with `{HEADING}{number}`; name others by --chapters, or \
                             another text by --corpus"
                        )
                    })?;
                    encode(&self.text, chapter)?
                }
            };
            ensure!(
                tokens.len() >= num_tokens,
                "chapter {number} has {} tokens, {num_tokens} are needed; name a longer one by --chapters, or give \
                 a shorter --contexts",
                tokens.len()
            );
            Ok(tokens[..num_tokens].to_vec())
        };
        Ok([chapter(0)?, chapter(1)?])
    }
}

fn encode(text: &ModelText, written: &str) -> Result<Vec<u32>> {
    let options = EncodeOptions { add_special: false, parse_special: true };
    Ok(text.tokenizer.encode(written, options)?)
}

/// From the heading of a chapter to the next heading.
fn chapter(text: &str, number: usize) -> Option<&str> {
    let mut heads =
        text.match_indices(HEADING).filter(|(at, _)| *at == 0 || text[..*at].ends_with('\n'));
    let is_it = |at: usize| {
        let digits = &text[at + HEADING.len()..];
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse() == Ok(number)
    };
    let (begin, _) = heads.by_ref().find(|(at, _)| is_it(*at))?;
    let end = heads.next().map_or(text.len(), |(at, _)| at);
    Some(&text[begin..end])
}

/// A tokenizer of as many tokens as a tiny model has: letters, digits and the marks that the tasks write, one token each.
fn letters(vocab_size: usize) -> Result<ModelText> {
    // A blank and a line end as byte-level vocabularies write them.
    let written = "ĠĊ.?,abcdefghijklmnopqrstuvwxyz0123456789FHIMRTW";
    let mut tokens: Vec<String> = written.chars().map(String::from).collect();
    ensure!(
        tokens.len() < vocab_size,
        "a vocabulary of {vocab_size} tokens has no room for letters"
    );
    tokens.extend((tokens.len()..vocab_size).map(|id| format!("t{id}")));
    let vocab = GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("smollm".to_owned()),
        tokens,
        eos_id: Some(vocab_size as u32 - 1),
        add_bos: Some(false),
        ..GgufVocab::default()
    };
    Ok(ModelText { tokenizer: Tokenizer::from_gguf(&vocab)?, chat_template: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chapters_are_found_by_their_headings_alone() {
        let text = "CHAPTER 1. A\nsee CHAPTER 2 below\nCHAPTER 2. B\nb\nCHAPTER 21. C\nc";
        assert_eq!(chapter(text, 1), Some("CHAPTER 1. A\nsee CHAPTER 2 below\n"));
        assert_eq!(chapter(text, 2), Some("CHAPTER 2. B\nb\n"));
        assert_eq!(chapter(text, 21), Some("CHAPTER 21. C\nc"));
        assert_eq!(chapter(text, 3), None);
    }

    #[test]
    fn a_tiny_model_reads_letters_and_short_chapters_are_refused() {
        let opened = Opened::new(&Place::tiny()).expect("every checkout has it");
        let words = "The pass key is 17. Remember it.\n\nWhat is it?";
        let tokens = encode(&opened.text, words).expect("it has these letters");
        assert_eq!(tokens.len(), words.len());
        let [a, b] = opened.chapters([16, 32], 100).expect("there are enough tokens");
        assert!(a.len() == 100 && b.len() == 100 && a != b);
        let told = opened.chapters([16, 32], 3000).expect_err("there are not").to_string();
        assert!(told.contains("--chapters"), "{told}");
    }
}
