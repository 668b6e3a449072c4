//! The generation loop over the small Llama fixture: what ends a reply, and what carries over to the next.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::Path;

use heterokv_cache::{CacheSpec, KvCache, Level};
use heterokv_model::text::{GgufVocab, Tokenizer};
use heterokv_model::{
    Checkpoint, ComputeType, Error, FinishReason, GenerateSettings, Generation, Generator,
    HostDecoder, Model, SamplerSettings,
};

/// Tokens 0 to 20 are letters, 21 is a control token; the model has 24, of which 2 ends a text.
const NUM_LETTERS: u32 = 21;
const VOCAB_SIZE: u32 = 24;

const PROMPT: [u32; 5] = [3, 9, 4, 17, 11];

fn model() -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-hf");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    Model::load(&checkpoint, ComputeType::F32, Level::detect()).unwrap()
}

fn tokenizer() -> Tokenizer {
    let letters = (b'a'..).take(NUM_LETTERS as usize).map(|c| char::from(c).to_string());
    let tokens: Vec<String> = letters.chain(["<|x|>".to_owned()]).collect();
    let token_types = tokens.iter().map(|t| if t.len() == 1 { 1 } else { 3 }).collect();
    let vocab = GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens,
        token_types,
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf(&vocab).unwrap()
}

fn cache(model: &Model) -> KvCache {
    let shape = model.kv_shape();
    let config = CacheSpec::full().resolve(&shape, None).unwrap();
    KvCache::new(shape, config, model.level(), None).unwrap()
}

/// Varied enough that no reply is one letter over and over.
fn settings(max_tokens: usize) -> GenerateSettings {
    let sampler = SamplerSettings { repetition_penalty: 1.5, ..SamplerSettings::default() };
    GenerateSettings { sampler, max_tokens, ..GenerateSettings::default() }
}

fn reply(generator: &mut Generator<'_>, settings: &GenerateSettings) -> Generation {
    generator.generate(settings, |_| ControlFlow::Continue(())).unwrap()
}

fn fed<'m>(model: &'m Model, tokenizer: &'m Tokenizer) -> Generator<'m> {
    let mut generator = Generator::new(Box::new(HostDecoder::new(model, cache(model))), tokenizer);
    generator.feed(&PROMPT, None).unwrap();
    generator
}

#[test]
fn nothing_to_go_on_from_is_an_error() {
    let (model, tokenizer) = (model(), tokenizer());
    let mut generator =
        Generator::new(Box::new(HostDecoder::new(&model, cache(&model))), &tokenizer);
    assert!(matches!(generator.feed(&[], None), Err(Error::EmptyPrompt)));
    let result = generator.generate(&settings(4), |_| ControlFlow::Continue(()));
    assert!(matches!(result, Err(Error::EmptyPrompt)));
    assert!(matches!(generator.feed(&[99], None), Err(Error::TokenId { token: 99, .. })));
}

#[test]
fn the_trained_context_is_a_limit() {
    let (model, tokenizer) = (model(), tokenizer());
    let limit = model.config().max_context_tokens;
    let mut generator = fed(&model, &tokenizer);
    let mut beyond = settings(limit - PROMPT.len() + 1);
    let result = generator.generate(&beyond, |_| ControlFlow::Continue(()));
    match result {
        Err(Error::BeyondTrained { held_tokens: 5, max_tokens, limit_tokens }) => {
            assert_eq!((max_tokens, limit_tokens), (limit - 4, limit));
        }
        other => panic!("{other:?}"),
    }
    beyond.allow_beyond_trained = true;
    let stopped = generator.generate(&beyond, |_| ControlFlow::Break(())).unwrap();
    assert_eq!(stopped.finish, FinishReason::Interrupted);
    assert_eq!(stopped.tokens.len(), 1);
}

#[test]
fn a_reply_in_two_parts_is_the_reply_in_one() {
    let (model, tokenizer) = (model(), tokenizer());
    let whole = reply(&mut fed(&model, &tokenizer), &settings(9));
    assert_eq!(whole.finish, FinishReason::MaxTokens, "the fixture no longer goes on for 9 tokens");
    assert_eq!(whole.tokens.len(), 9);
    assert_eq!(whole.decode_steps, 8);
    let mut generator = fed(&model, &tokenizer);
    let first = reply(&mut generator, &settings(4));
    assert_eq!(generator.figures().num_tokens, PROMPT.len() + 3, "the last one waits");
    assert_eq!(generator.num_tokens(), PROMPT.len() + 4);
    let second = reply(&mut generator, &settings(5));
    assert_eq!([first.tokens, second.tokens].concat(), whole.tokens);
    assert_eq!(first.text + &second.text, whole.text);
}

#[test]
fn a_later_turn_goes_on_behind_the_token_sampled_last() {
    let (model, tokenizer) = (model(), tokenizer());
    let mut generator = fed(&model, &tokenizer);
    let first = reply(&mut generator, &settings(3));
    let mut steps = Vec::new();
    generator.feed(&[5, 6], Some(&mut |done, total| steps.push((done, total)))).unwrap();
    assert_eq!(steps, [(3, 3)]);
    assert_eq!(generator.figures().num_tokens, PROMPT.len() + 3 + 2);
    let second = reply(&mut generator, &settings(4));

    let mut at_once = Generator::new(Box::new(HostDecoder::new(&model, cache(&model))), &tokenizer);
    at_once.feed(&[&PROMPT[..], &first.tokens, &[5, 6]].concat(), None).unwrap();
    assert_eq!(reply(&mut at_once, &settings(4)).tokens, second.tokens);
}

#[test]
fn end_tokens_end_and_are_not_part_of_the_reply() {
    let (model, tokenizer) = (model(), tokenizer());
    assert!(model.config().eos_token_ids.contains(&2));
    let mut ended = 0;
    for seed in 0..40 {
        let mut settings = settings(40);
        settings.sampler = SamplerSettings { temperature: 2.0, seed, ..SamplerSettings::default() };
        let mut generator = fed(&model, &tokenizer);
        let mut streamed = String::new();
        let reply = generator
            .generate(&settings, |text| {
                streamed.push_str(text);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(streamed, reply.text, "seed {seed}");
        let ends = &model.config().eos_token_ids;
        let named = |id: &u32| *id <= NUM_LETTERS && !ends.contains(id);
        assert!(reply.tokens.iter().all(named), "seed {seed}: {:?}", reply.tokens);
        let num_letters = reply.tokens.iter().filter(|&&id| id < NUM_LETTERS).count();
        assert_eq!(reply.text.len(), num_letters, "control tokens are not text");
        match reply.finish {
            FinishReason::EndToken => {
                assert!(ends.contains(&reply.end_token.unwrap()));
                assert_eq!(generator.num_tokens(), PROMPT.len() + reply.tokens.len());
                ended += 1;
            }
            finish => assert_eq!((finish, reply.end_token), (FinishReason::MaxTokens, None)),
        }
    }
    assert!(ended > 0, "of {VOCAB_SIZE} tokens none that ends was ever sampled");
}

#[test]
fn stop_strings_are_found_across_tokens() {
    let (model, tokenizer) = (model(), tokenizer());
    let whole = reply(&mut fed(&model, &tokenizer), &settings(9));
    let stop = whole.text[3..5].to_owned();
    let at = whole.text.find(&stop).unwrap();
    let mut settings = settings(9);
    settings.stops = vec![stop];
    let mut streamed = String::new();
    let stopped = fed(&model, &tokenizer)
        .generate(&settings, |text| {
            streamed.push_str(text);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(stopped.finish, FinishReason::StopString);
    assert_eq!(stopped.text, whole.text[..at]);
    assert_eq!(streamed, stopped.text, "nothing of a stop string is shown");
    assert_eq!(stopped.tokens, whole.tokens[..at + 2]);

    // What began like a stop string and was none is shown in the end.
    settings.stops = vec![format!("{}!", &whole.text[8..])];
    assert_eq!(reply(&mut fed(&model, &tokenizer), &settings).text, whole.text);
}
