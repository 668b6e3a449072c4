//! Sessions of the default model: what one process has read, another goes on from, to the bit.

use std::sync::Arc;

use heterokv_cache::{CacheSpec, DeviceCache, KvShape, Level, OsFiles, Reservation};
use heterokv_model::{
    Checkpoint, ComputeType, Decoder, DeviceDecoder, DeviceModel, Error, HostDecoder, Model,
    Sampler, SamplerSettings, Session,
};

use crate::device::software_or_skip;
use crate::files::fixture;
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
    session: &Session,
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
        let (mut decoder, found) = resume(&model, &session, context, spec);
        assert_eq!(found, 0);
        decoder.feed(context, None).unwrap();
        decoder.save(&mut session, context).unwrap();
        let expected = greedy(&mut decoder, 12);
        drop((decoder, session));

        let mut without = HostDecoder::new(&model, cache(&model, spec));
        without.feed(context, None).unwrap();
        assert_eq!(greedy(&mut without, 12), expected, "{spec}: without a session");

        let session = open();
        let (mut decoder, found) = resume(&model, &session, context, spec);
        assert_eq!(found, CONTEXT_TOKENS);
        assert_eq!(greedy(&mut decoder, 12), expected, "{spec}: again");
        drop((decoder, session));

        // Further text is read over the cache as it is, whoever reads it.
        let mut at_once = HostDecoder::new(&model, cache(&model, spec));
        at_once.feed(context, None).unwrap();
        at_once.feed(&text[found..], None).unwrap();
        let expected = greedy(&mut at_once, 8);
        let mut session = open();
        let (mut decoder, found) = resume(&model, &session, text, spec);
        decoder.feed(&text[found..], None).unwrap();
        decoder.save(&mut session, text).unwrap();
        drop((decoder, session));
        let session = open();
        let (mut decoder, found) = resume(&model, &session, text, spec);
        assert_eq!(found, text.len());
        let seen = greedy(&mut decoder, 8);
        assert_eq!(seen, expected, "{spec}: grown");
        // The negative control: logits of another place are others.
        assert_ne!(seen[0], seen[1], "{spec}");
    }
}

/// Where a session is cut, nothing is known of what follows, on a device neither, whatever was read there before.
#[test]
fn a_session_that_is_cut_on_a_device() {
    let Some(device) = software_or_skip() else { return };
    let (level, compute) = (Level::detect(), ComputeType::F16);
    let checkpoint = Checkpoint::open(&fixture("llama3-rope-scaling.gguf")).unwrap();
    let model = DeviceModel::load(Arc::clone(&device), &checkpoint, compute, level, None).unwrap();
    let shape = model.kv_shape();
    let spec: CacheSpec =
        "keys=int4-token,values=f16@host,select=none,sinks=2,recent=4".parse().unwrap();
    let config = spec.resolve(&shape, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut session =
        Session::open(folder.path(), &checkpoint, &shape, &config, usize::MAX, OsFiles::default())
            .unwrap();
    let resume = |session: &Session, prompt: &[u32]| {
        let resumed = session.resume(prompt, (shape, config.clone()), level, None).unwrap();
        let reservation = Reservation { prompt_tokens: 40, total_tokens: 50 };
        let upload = |cache| DeviceCache::upload(Arc::clone(&device), cache, reservation);
        DeviceDecoder::resume(&model, resumed.try_map(upload).unwrap()).unwrap()
    };
    let text: Vec<u32> = (0..30).map(|token| token * 7 % 50).collect();
    let other: Vec<u32> = text[..20].iter().copied().chain([3, 1]).collect();

    let mut decoder = resume(&session, &text);
    assert!(matches!(decoder.logits(), Err(Error::EmptyPrompt)), "nothing was read yet");
    decoder.feed(&text, None).unwrap();
    decoder.save(&mut session, &text).unwrap();
    let expected = decoder.logits().unwrap();
    drop(decoder);
    let mut decoder = resume(&session, &text);
    assert_eq!(decoder.num_tokens(), 30);
    assert_eq!(decoder.logits().unwrap(), expected, "of all of it, what follows is saved");
    drop(decoder);

    let mut decoder = resume(&session, &other);
    assert_eq!(decoder.num_tokens(), 20);
    assert!(matches!(decoder.logits(), Err(Error::EmptyPrompt)), "of the 20th nothing is known");
    let mut sampler = Sampler::new(SamplerSettings::default()).unwrap();
    assert!(matches!(decoder.pick(&mut sampler, &[], &[]), Err(Error::EmptyPrompt)));
    assert!(matches!(decoder.save(&mut session, &other[..20]), Err(Error::EmptyPrompt)));
    assert_eq!(session.found(&text).unwrap(), 30, "nothing was saved");
    decoder.feed(&other[20..], None).unwrap();
    assert_ne!(decoder.logits().unwrap(), expected);
    decoder.pick(&mut sampler, &[], &[]).unwrap();
    decoder.save(&mut session, &other).unwrap();
    assert_eq!(session.found(&other).unwrap(), 22);
}
