//! A tokenizer from what a GGUF file says of its vocabulary.

use std::collections::{BTreeSet, HashMap};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::tokenizer::{AddedToken, AddedVocabulary};

use super::detokenize::LeadingSpace;
use super::pre_tokenizer::Words;
use super::spm::{Piece, SpmModel};
use super::token_table::{ByteAlphabet, TokenTable, byte_of_piece};
use super::tokenizer::{NamedTokens, Parts, Tokenizer};
use super::{Error, Result};

/// What a GGUF file says of its tokenizer: the values of its `tokenizer.ggml.*` fields as they
/// stand. Nothing here is checked before [`Tokenizer::from_gguf`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `pre`: the rule that cuts a text into words, for `gpt2`.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    /// May be empty for `gpt2`: every token is then normal.
    pub token_types: Vec<i32>,
    /// `scores`, by id; higher is merged earlier. For `llama`; may be empty for `gpt2`.
    pub scores: Vec<f32>,
    /// `merges`, two pieces with a space between, best first. For `gpt2`.
    pub merges: Vec<String>,
    /// `bos_token_id`: begins a text.
    pub bos_id: Option<u32>,
    /// `eos_token_id`: ends a text.
    pub eos_id: Option<u32>,
    /// `eot_token_id`: ends a turn.
    pub eot_id: Option<u32>,
    /// `eom_token_id`: ends a message.
    pub eom_id: Option<u32>,
    /// `unknown_token_id`: what has no token. Used by `llama`.
    pub unk_id: Option<u32>,
    /// `add_bos_token`. Where absent: yes for `llama` and `llama-bpe`, else no.
    pub add_bos: Option<bool>,
    /// `add_eos_token`. Where absent: no.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`, for `llama`. Where absent: yes.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    fn from_file(id: u32, value: i32) -> Result<Self> {
        match value {
            1 => Ok(Self::Normal),
            2 => Ok(Self::Unknown),
            3 => Ok(Self::Control),
            4 => Ok(Self::UserDefined),
            5 => Ok(Self::Unused),
            6 => Ok(Self::Byte),
            _ => Err(Error::TokenType { id, value }),
        }
    }

    /// Whether the token is skipped in output and read from a text only on request.
    fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control)
    }
}

impl Tokenizer {
    /// Rebuilds the tokenizer of a GGUF file.
    ///
    /// Of the kinds of `pre`, `qwen2` composes characters (NFC) as that model's own tokenizer
    /// does, although a GGUF file has no field for it.
    ///
    /// # Errors
    ///
    /// Every way in which the fields contradict one another, and models and pre-tokenizers that
    /// are not known; see [`Error`].
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self> {
        let by_token = vocab.check_tokens()?;
        let types = vocab.token_types()?;
        match vocab.model.as_str() {
            "gpt2" => vocab.byte_level(&by_token, &types),
            "llama" => vocab.sentencepiece(&types),
            name => Err(Error::UnknownModel { name: name.to_owned(), known: "gpt2, llama" }),
        }
    }
}

impl GgufVocab {
    fn byte_level(&self, by_token: &HashMap<&str, u32>, types: &[TokenType]) -> Result<Tokenizer> {
        let name = self.pre.as_deref().ok_or(Error::MissingPreTokenizer)?;
        let words = Words::by_name(name)?;
        check_length("scores", self.scores.len(), self.tokens.len(), true)?;

        let (model, table) = rayon::join(
            || self.merging(by_token, types, words.ignore_merges),
            || self.byte_level_table(types),
        );
        let model = model?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_normalizer(words.normalizer).map_err(Error::Tokenizers)?;
        inner.with_pre_tokenizer(Some(words.pre_tokenizer));
        self.finish(inner, None, table, types, words.add_bos, LeadingSpace::Keep)
    }

    /// The model that merges words out of their bytes. Control tokens are not words of the language: kept out, so that no
    /// merge and no whole word can give one.
    fn merging(
        &self,
        by_token: &HashMap<&str, u32>,
        types: &[TokenType],
        ignore_merges: bool,
    ) -> Result<BPE> {
        let is_word = |id: u32| !types[id as usize].is_special();
        let wrong = |index: usize| Error::Merge { index, merge: self.merges[index].clone() };
        let mut words = Vocab::with_capacity(self.tokens.len());
        let mut longest_bytes = 0;
        for (id, token) in (0..).zip(&self.tokens).filter(|&(id, _)| is_word(id)) {
            longest_bytes = longest_bytes.max(token.len());
            words.insert(token.clone(), id);
        }
        let mut merges = Vec::with_capacity(self.merges.len());
        for (index, merge) in self.merges.iter().enumerate() {
            let (left, right) = merge.split_once(' ').ok_or_else(|| wrong(index))?;
            // What is longer than every word is none, and the model has no room to look it up.
            if left.len() + right.len() > longest_bytes {
                return Err(wrong(index));
            }
            merges.push((left.to_owned(), right.to_owned()));
        }
        // That the pieces are words is checked there, without saying which merge is wrong.
        let model = BPE::builder().vocab_and_merges(words, merges).ignore_merges(ignore_merges);
        model.build().map_err(|error| {
            let is_piece = |piece: &str| by_token.get(piece).copied().is_some_and(is_word);
            let is_wrong = |merge: &String| match merge.split_once(' ') {
                Some((left, right)) => {
                    ![left, right, &[left, right].concat()].into_iter().all(is_piece)
                }
                None => true,
            };
            self.merges.iter().position(is_wrong).map_or(Error::Tokenizers(error), wrong)
        })
    }

    fn byte_level_table(&self, types: &[TokenType]) -> TokenTable {
        let alphabet = ByteAlphabet::new();
        let mut table = TokenTable::default();
        for (id, token) in (0..).zip(&self.tokens) {
            let kind = types[id as usize];
            let is_raw = kind.is_special() || kind == TokenType::UserDefined;
            let bytes = if is_raw { token.as_bytes().to_vec() } else { alphabet.decode(token) };
            table.set(id, &bytes, kind.is_special());
        }
        table
    }

    fn sentencepiece(&self, types: &[TokenType]) -> Result<Tokenizer> {
        check_length("scores", self.scores.len(), self.tokens.len(), false)?;
        check_length("token_type", self.token_types.len(), self.tokens.len(), false)?;
        let mut pieces = HashMap::with_capacity(self.tokens.len());
        let mut byte_ids = vec![None; 256];
        let mut table = TokenTable::default();
        for (id, token) in (0..).zip(&self.tokens) {
            let (kind, score) = (types[id as usize], self.scores[id as usize]);
            if score.is_nan() {
                return Err(Error::Score { id });
            }
            match kind {
                TokenType::Byte => {
                    let wrong = || Error::ByteToken { id, token: token.clone() };
                    let byte = byte_of_piece(token).ok_or_else(wrong)?;
                    byte_ids[usize::from(byte)].get_or_insert(id);
                    table.set(id, &[byte], false);
                }
                TokenType::Control | TokenType::Unknown => {
                    table.set(id, token.as_bytes(), true);
                }
                TokenType::Normal | TokenType::UserDefined | TokenType::Unused => {
                    let unused = kind == TokenType::Unused;
                    pieces.insert(Box::from(token.as_str()), Piece { id, score, unused });
                    table.set(id, token.replace('▁', " ").as_bytes(), false);
                }
            }
        }
        let unk_id = self.check_id("unknown", self.unk_id)?;

        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        let mut steps = Vec::new();
        let space_prefix = self.add_space_prefix.unwrap_or(true);
        if space_prefix {
            steps.push(NormalizerWrapper::Prepend(Prepend::new("▁".to_owned())));
        }
        let escape = Replace::new(" ", "▁").map_err(Error::Tokenizers)?;
        steps.push(NormalizerWrapper::Replace(escape));
        let normalizer = NormalizerWrapper::Sequence(Sequence::new(steps));
        inner.with_normalizer(Some(normalizer)).map_err(Error::Tokenizers)?;
        let spm = SpmModel::new(pieces, byte_ids, unk_id);
        let leading_space = if space_prefix { LeadingSpace::Strip } else { LeadingSpace::Keep };
        self.finish(inner, Some(spm), table, types, true, leading_space)
    }

    /// Adds what both kinds share: added tokens, named tokens, what surrounds a text.
    fn finish(
        &self,
        mut inner: tokenizers::Tokenizer,
        spm: Option<SpmModel>,
        table: TokenTable,
        types: &[TokenType],
        default_add_bos: bool,
        leading_space: LeadingSpace,
    ) -> Result<Tokenizer> {
        let bos_id = self.check_id("beginning", self.bos_id)?;
        let eos_id = self.check_id("end", self.eos_id)?;
        let mut end_ids = BTreeSet::new();
        end_ids.extend(self.check_id("end of turn", self.eot_id)?);
        end_ids.extend(self.check_id("end of message", self.eom_id)?);

        let added = (0..).zip(&self.tokens).zip(types).filter_map(|((id, token), kind)| {
            let is_added = kind.is_special() || *kind == TokenType::UserDefined;
            let token = AddedToken::from(token.as_str(), kind.is_special()).normalized(false);
            is_added.then_some((id, token))
        });
        inner.with_added_vocabulary(added_vocabulary(added.collect(), None)?);

        let wants_bos = self.add_bos.unwrap_or(default_add_bos && bos_id.is_some());
        let prefix = around(wants_bos, bos_id, "beginning")?;
        let suffix = around(self.add_eos.unwrap_or(false), eos_id, "end")?;
        let named = NamedTokens { bos_id, eos_id };
        Ok(Tokenizer::from_parts(Parts {
            inner,
            spm,
            table,
            named,
            end_ids,
            prefix,
            suffix,
            leading_space,
        }))
    }

    /// Ids by token, having checked that every token has a text of its own.
    fn check_tokens(&self) -> Result<HashMap<&str, u32>> {
        if self.tokens.is_empty() {
            return Err(Error::EmptyVocab);
        }
        let mut by_token = HashMap::with_capacity(self.tokens.len());
        for (second, token) in (0..).zip(&self.tokens) {
            if token.is_empty() {
                return Err(Error::EmptyToken { id: second });
            }
            if let Some(first) = by_token.insert(token.as_str(), second) {
                return Err(Error::DuplicateToken { token: token.clone(), first, second });
            }
        }
        Ok(by_token)
    }

    fn token_types(&self) -> Result<Vec<TokenType>> {
        check_length("token_type", self.token_types.len(), self.tokens.len(), true)?;
        if self.token_types.is_empty() {
            return Ok(vec![TokenType::Normal; self.tokens.len()]);
        }
        (0..).zip(&self.token_types).map(|(id, &value)| TokenType::from_file(id, value)).collect()
    }

    fn check_id(&self, purpose: &'static str, id: Option<u32>) -> Result<Option<u32>> {
        let num_tokens = self.tokens.len();
        match id {
            Some(id) if id as usize >= num_tokens => {
                Err(Error::TokenId { purpose, id, num_tokens })
            }
            id => Ok(id),
        }
    }
}

/// Tokens that are found in a text before anything else happens to it.
pub(super) fn added_vocabulary(
    tokens: Vec<(u32, AddedToken)>,
    normalizer: Option<&NormalizerWrapper>,
) -> Result<AddedVocabulary> {
    // An added vocabulary takes the ids from a model that knows the tokens: one of only these.
    let by_token: Vocab = tokens.iter().map(|(id, token)| (token.content.clone(), *id)).collect();
    let model =
        BPE::builder().vocab_and_merges(by_token, Vec::new()).build().map_err(Error::Tokenizers)?;
    let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
    let mut added = AddedVocabulary::new();
    added
        .add_tokens(tokens.into_iter().map(|(_, token)| token), &model, normalizer)
        .map_err(Error::Tokenizers)?;
    // A token of which the normalizer leaves nothing would be found between any two characters.
    let is_empty = |&id: &u32| added.simple_id_to_token(id).is_some_and(|token| token.is_empty());
    if let Some(id) = ids.into_iter().find(is_empty) {
        return Err(Error::EmptyToken { id });
    }
    Ok(added)
}

fn check_length(
    array: &'static str,
    actual: usize,
    expected: usize,
    may_be_empty: bool,
) -> Result<()> {
    if actual == expected || (may_be_empty && actual == 0) {
        return Ok(());
    }
    Err(Error::ArrayLength { array, expected, actual })
}

/// What goes before or after every text: the token if it is wanted, else nothing.
fn around(wanted: bool, id: Option<u32>, purpose: &'static str) -> Result<Vec<u32>> {
    match (wanted, id) {
        (true, Some(id)) => Ok(vec![id]),
        (true, None) => Err(Error::MissingToken { purpose }),
        (false, _) => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests;
