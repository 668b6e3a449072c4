//! Sessions of the default model: what one process has read, another goes on from, to the bit.

use heterokv_cache::{KvShape, Level, OsFiles};
use heterokv_model::{ComputeType, Decoder, HostDecoder, Model, Session};

use crate::smollm::{Smollm, cache, config};

/// Tokens of the context, and of what is read behind it.
const CONTEXT_TOKENS: usize = 1500;
const NEW_TOKENS: usize = 40;

/// The most probable tokens, one after the other, and the bits of the logits that they were chosen by.
fn greedy(decoder: &mut HostDecoder<'_>, num_tokens: usize) -> Vec<Vec<u32>> {
    let mut seen = Vec::new();
    for _ in 0..num_tokens {
        let logits = decoder.logits().unwrap();
        let best = crate::distance::argmax(&logits);
        decoder.feed(&[best], None).unwrap();
        seen.push(logits.iter().map(|x| x.to_bits()).collect());
    }
    seen
}

fn resume<'m>(
    model: &'m Model,
    session: &mut Session,
    prompt: &[u32],
    spec: &str,
) -> (HostDecoder<'m>, usize) {
    let config = (model.kv_shape(), config(model, spec));
    let resumed = session.resume(prompt, config, Level::detect(), None).unwrap();
    let found = resumed.num_tokens;
    (HostDecoder::resume(model, resumed), found)
}

#[test]
fn a_session_of_the_default_model_goes_on_to_the_bit() {
    let Some(smollm) = Smollm::or_skip() else { return };
    let Some(corpus) = smollm.corpus_or_skip() else { return };
    let model = smollm.load(ComputeType::Q8);
    let shape: KvShape = model.kv_shape();
    let text = &corpus[20_000..][..CONTEXT_TOKENS + NEW_TOKENS];
    let context = &text[..CONTEXT_TOKENS];
    for spec in ["full", "hca:12.5%", "hca-rescore:6.25%"] {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let config = config(&model, spec);
            Session::open(
                folder.path(),
                &smollm.checkpoint,
                &shape,
                &config,
                usize::MAX,
                OsFiles::default(),
            )
            .unwrap()
        };
        let mut session = open();
        let (mut decoder, found) = resume(&model, &mut session, context, spec);
        assert_eq!(found, 0);
        decoder.feed(context, None).unwrap();
        decoder.save(&session, context).unwrap();
        let expected = greedy(&mut decoder, 12);
        drop((decoder, session));

        let mut without = HostDecoder::new(&model, cache(&model, spec));
        without.feed(context, None).unwrap();
        assert_eq!(greedy(&mut without, 12), expected, "{spec}: without a session");

        let mut session = open();
        let (mut decoder, found) = resume(&model, &mut session, context, spec);
        assert_eq!(found, CONTEXT_TOKENS);
        assert_eq!(greedy(&mut decoder, 12), expected, "{spec}: again");
        drop((decoder, session));

        // Further text is read over the cache as it is, whoever reads it.
        let mut at_once = HostDecoder::new(&model, cache(&model, spec));
        at_once.feed(context, None).unwrap();
        at_once.feed(&text[found..], None).unwrap();
        let expected = greedy(&mut at_once, 8);
        let mut session = open();
        let (mut decoder, found) = resume(&model, &mut session, text, spec);
        decoder.feed(&text[found..], None).unwrap();
        decoder.save(&session, text).unwrap();
        drop((decoder, session));
        let mut session = open();
        let (mut decoder, found) = resume(&model, &mut session, text, spec);
        assert_eq!(found, text.len());
        let seen = greedy(&mut decoder, 8);
        assert_eq!(seen, expected, "{spec}: grown");
        // The negative control: logits of another place are others.
        assert_ne!(seen[0], seen[1], "{spec}");
    }
}
