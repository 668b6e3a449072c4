//! How byte-level vocabularies cut a text into words before any merge, by the name that a GGUF
//! file gives in `tokenizer.ggml.pre`.

use tokenizers::normalizers::{NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::{Error, Result};

/// Contractions, letters, digits, other signs, each with one leading space; then spaces
/// (Radford et al. 2019, the published encoder of GPT-2).
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// As published with Llama 3: contractions in any case, digits in threes, line ends kept together.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// As published with Qwen2: the pattern of Llama 3 with every digit alone.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The words of one family of byte-level vocabularies.
pub(super) struct Words {
    /// What happens to the text first.
    pub(super) normalizer: Option<NormalizerWrapper>,
    /// The cut into words, ending with the change to the byte alphabet.
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    /// Whether a word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with the beginning token where the file does not say.
    pub(super) add_bos: bool,
}

impl Words {
    /// The rules that `name` stands for.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPreTokenizer`] for a name that is not known.
    pub(super) fn by_name(name: &str) -> Result<Self> {
        // Qwen2's own tokenizer composes characters first; the file has no field for it.
        let (patterns, nfc, ignore_merges): (&[&str], _, _) = match name {
            "gpt-2" | "default" => (&[GPT2], false, false),
            // Every digit is a word of its own, and what lies between follows GPT-2.
            "smollm" => (&[r"\p{N}", GPT2], false, false),
            "llama-bpe" => (&[LLAMA3], false, true),
            "qwen2" => (&[QWEN2], true, false),
            _ => {
                return Err(Error::UnknownPreTokenizer {
                    name: name.to_owned(),
                    known: "default, gpt-2, llama-bpe, qwen2, smollm",
                });
            }
        };
        let mut steps = Vec::with_capacity(patterns.len() + 1);
        for pattern in patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(Error::Tokenizers)?;
            steps.push(PreTokenizerWrapper::Split(split));
        }
        steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
        Ok(Self {
            normalizer: nfc.then_some(NormalizerWrapper::NFC(NFC)),
            pre_tokenizer: PreTokenizerWrapper::Sequence(Sequence::new(steps)),
            ignore_merges,
            add_bos: name == "llama-bpe",
        })
    }
}
