//! The generation loop: a prompt into a cache, then one token after the other out of it.
//!
//! A [`Generator`] owns the cache of one sequence. [`Generator::feed`] takes the prompt, and later what
//! further turns add; [`Generator::generate`] samples until something ends the reply. The token sampled
//! last is not in the cache yet when a reply ends; whatever comes next puts it there first.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Instant;

use crate::text::{LeadingSpace, SpecialTokens, StopMatcher, Tokenizer};
use crate::{CacheFigures, Decoder, Error, Progress, Result, Sampler, SamplerSettings, Session};

/// How a reply is made and what ends it. The default is greedy, without stop strings.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateSettings {
    /// How a token is chosen.
    pub sampler: SamplerSettings,
    /// Strings that end the reply and are not part of it; none of them empty.
    pub stops: Vec<String>,
    /// The reply has at most this many tokens.
    pub max_tokens: usize,
    /// Go on where the positions exceed what the model was trained for.
    pub allow_beyond_trained: bool,
}

impl Default for GenerateSettings {
    fn default() -> Self {
        Self {
            sampler: SamplerSettings::default(),
            stops: Vec::new(),
            max_tokens: 256,
            allow_beyond_trained: false,
        }
    }
}

/// What ended a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model produced a token that ends a text or a turn.
    EndToken,
    /// The text came to hold a stop string.
    StopString,
    /// The reply has as many tokens as allowed.
    MaxTokens,
    /// The callback asked for it.
    Interrupted,
}

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The tokens sampled, without the end token. Where a stop string ended the reply, its tokens are
    /// among them.
    pub tokens: Vec<u32>,
    /// Their text up to the stop string, control tokens left out.
    pub text: String,
    /// What ended the reply.
    pub finish: FinishReason,
    /// The end token, where one ended the reply.
    pub end_token: Option<u32>,
    /// Seconds until the first token was sampled.
    pub first_token_seconds: f64,
    /// Tokens that passed through the model one at a time.
    pub decode_steps: usize,
    /// Seconds that these took.
    pub decode_seconds: f64,
}

impl Generation {
    /// Tokens decoded per second; 0 where none was.
    #[must_use]
    pub fn decode_tokens_per_second(&self) -> f64 {
        if self.decode_steps == 0 { 0.0 } else { self.decode_steps as f64 / self.decode_seconds }
    }
}

/// A sequence that a model reads and continues.
#[derive(Debug)]
pub struct Generator<'m> {
    decoder: Box<dyn Decoder + 'm>,
    tokenizer: &'m Tokenizer,
    end_ids: BTreeSet<u32>,
    /// Rows of the output projection that the tokenizer has no token for; never sampled.
    nameless_ids: Vec<u32>,
    /// What was fed and what was sampled, end tokens not among it.
    history: Vec<u32>,
    /// The token sampled last, if the cache does not hold it.
    pending: Option<u32>,
}

impl<'m> Generator<'m> {
    /// A generator over `decoder`, which has taken nothing yet.
    #[must_use]
    pub fn new(decoder: Box<dyn Decoder + 'm>, tokenizer: &'m Tokenizer) -> Self {
        Self::resume(decoder, tokenizer, &[])
    }

    /// A generator over `decoder`, whose cache holds `tokens`.
    ///
    /// # Panics
    /// When it holds another number of tokens.
    #[must_use]
    pub fn resume(
        decoder: Box<dyn Decoder + 'm>,
        tokenizer: &'m Tokenizer,
        tokens: &[u32],
    ) -> Self {
        assert_eq!(decoder.num_tokens(), tokens.len(), "the tokens of the cache");
        let config = decoder.config();
        let ids = 0..u32::try_from(config.vocab_size).unwrap_or(u32::MAX);
        Self {
            end_ids: tokenizer.end_ids().iter().chain(&config.eos_token_ids).copied().collect(),
            nameless_ids: ids.filter(|&id| tokenizer.token_bytes(id).is_err()).collect(),
            history: tokens.to_vec(),
            pending: None,
            decoder,
            tokenizer,
        }
    }

    /// What the cache holds and what its steps have read.
    #[must_use]
    pub fn figures(&self) -> CacheFigures {
        self.decoder.figures()
    }

    /// Saves what the cache holds in the session that it was resumed from: all tokens but one that was sampled last.
    ///
    /// # Errors
    /// As [`Decoder::save`].
    pub fn save(&mut self, session: &mut Session) -> Result<()> {
        self.decoder.save(session, &self.history[..self.decoder.num_tokens()])
    }

    /// Starts to count anew what steps read.
    pub fn reset_stats(&mut self) {
        self.decoder.reset_stats();
    }

    /// Tokens of the sequence, whether the cache holds the last one yet or not.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.decoder.num_tokens() + usize::from(self.pending.is_some())
    }

    /// Takes a prompt, or what a further turn adds to it.
    ///
    /// The first call is exact; later ones attend over the compressed cache ([`Decoder::feed`]). After an error the
    /// generator is of no further use.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::TokenId`], and what the cache refuses.
    pub fn feed(&mut self, tokens: &[u32], progress: Option<Progress<'_>>) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.history.extend_from_slice(tokens);
        let tokens: Vec<u32> =
            self.pending.take().into_iter().chain(tokens.iter().copied()).collect();
        self.decoder.feed(&tokens, progress)
    }

    /// Continues the sequence. `on_text` is called after every token with the text that is complete with
    /// it, often a word, sometimes nothing; what it returns says whether to go on.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] if nothing was fed, [`Error::BeyondTrained`], settings or logits that
    /// cannot be sampled from, and what the cache refuses.
    pub fn generate(
        &mut self,
        settings: &GenerateSettings,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let start = Instant::now();
        self.check_length(settings)?;
        let mut sampler = Sampler::new(settings.sampler)?;
        let mut stops = StopMatcher::new(settings.stops.iter().cloned())?;
        let mut stream = self.tokenizer.decode_stream(SpecialTokens::Skip, LeadingSpace::Keep);
        let mut reply = Generation {
            tokens: Vec::new(),
            text: String::new(),
            finish: FinishReason::MaxTokens,
            end_token: None,
            first_token_seconds: 0.0,
            decode_steps: 0,
            decode_seconds: 0.0,
        };
        while reply.tokens.len() < settings.max_tokens {
            let step = Instant::now();
            if let Some(token) = self.pending.take() {
                self.decoder.feed(&[token], None)?;
            }
            let token = self.decoder.pick(&mut sampler, &self.history, &self.nameless_ids)?;
            if reply.tokens.is_empty() {
                reply.first_token_seconds = start.elapsed().as_secs_f64();
            } else {
                reply.decode_steps += 1;
                reply.decode_seconds += step.elapsed().as_secs_f64();
            }
            if self.end_ids.contains(&token) {
                reply.finish = FinishReason::EndToken;
                reply.end_token = Some(token);
                break;
            }
            self.history.push(token);
            self.pending = Some(token);
            reply.tokens.push(token);
            let found = stops.push(&stream.push(token)?);
            reply.text.push_str(&found.text);
            let flow = on_text(&found.text);
            if found.stop_idx.is_some() {
                reply.finish = FinishReason::StopString;
                return Ok(reply);
            }
            if flow.is_break() {
                reply.finish = FinishReason::Interrupted;
                break;
            }
        }
        // What may have become a stop string or a character has not.
        let mut rest = stops.push(&stream.finish()).text;
        rest.push_str(&stops.finish());
        if !rest.is_empty() {
            reply.text.push_str(&rest);
            // Nothing is left to break off.
            let _: ControlFlow<()> = on_text(&rest);
        }
        Ok(reply)
    }

    fn check_length(&self, settings: &GenerateSettings) -> Result<()> {
        if self.decoder.num_tokens() == 0 {
            return Err(Error::EmptyPrompt);
        }
        let held_tokens = self.num_tokens();
        let limit_tokens = self.decoder.config().max_context_tokens;
        let max_tokens = settings.max_tokens;
        if held_tokens.saturating_add(max_tokens) > limit_tokens && !settings.allow_beyond_trained {
            return Err(Error::BeyondTrained { held_tokens, max_tokens, limit_tokens });
        }
        Ok(())
    }
}
