//! The text side of a checkpoint: its tokenizer and chat template, wherever its format keeps them.

use crate::gguf::Metadata;
use crate::text::{ChatTemplate, GgufVocab, HfText, Tokenizer};
use crate::{Checkpoint, Result};

/// A model's tokenizer and, where it has one, its chat template.
#[derive(Debug)]
pub struct ModelText {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The template by which messages become a prompt.
    pub chat_template: Option<ChatTemplate>,
}

impl ModelText {
    /// Reads the text side of `checkpoint`.
    ///
    /// # Errors
    /// A tokenizer that is missing, damaged or of an unknown kind, or a template that does not parse.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let (tokenizer, template) = match (checkpoint.gguf_metadata(), checkpoint.folder()) {
            (Some(metadata), _) => {
                let vocab = vocab(metadata)?;
                (Tokenizer::from_gguf(&vocab)?, vocab.chat_template)
            }
            (None, Some(folder)) => {
                let mut text = HfText::open(folder)?;
                (text.tokenizer, text.chat_templates.remove("default"))
            }
            (None, None) => unreachable!("a checkpoint is a GGUF file or a folder"),
        };
        let chat_template = template.as_deref().map(ChatTemplate::new).transpose()?;
        Ok(Self { tokenizer, chat_template })
    }
}

/// The `tokenizer.*` fields of a GGUF file.
fn vocab(metadata: &Metadata) -> Result<GgufVocab> {
    let text = |key| Ok::<_, crate::Error>(metadata.str(key)?.map(str::to_owned));
    let texts = |key| {
        let array = metadata.str_array(key)?.unwrap_or_default();
        Ok::<_, crate::Error>(array.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let token_types = metadata.u32_array("tokenizer.ggml.token_type")?.unwrap_or_default();
    Ok(GgufVocab {
        model: text("tokenizer.ggml.model")?.unwrap_or_default(),
        pre: text("tokenizer.ggml.pre")?,
        tokens: texts("tokenizer.ggml.tokens")?,
        token_types: token_types.into_iter().map(|kind| kind as i32).collect(),
        scores: metadata.f32_array("tokenizer.ggml.scores")?.unwrap_or_default(),
        merges: texts("tokenizer.ggml.merges")?,
        bos_id: metadata.u32("tokenizer.ggml.bos_token_id")?,
        eos_id: metadata.u32("tokenizer.ggml.eos_token_id")?,
        eot_id: metadata.u32("tokenizer.ggml.eot_token_id")?,
        eom_id: metadata.u32("tokenizer.ggml.eom_token_id")?,
        unk_id: metadata.u32("tokenizer.ggml.unknown_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
        chat_template: text("tokenizer.chat_template")?,
    })
}
