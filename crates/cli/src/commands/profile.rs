//! `heterokv profile`: a key format's tables, fitted on a text and kept in a file.

use anyhow::{Context, Result, bail, ensure};
use heterokv_cache::{CacheConfig, KvCache, Profile};

use crate::args::ProfileArgs;
use crate::load::{Opened, read_text};
use crate::output::{bytes, count, print_line, say, tokens as counted};
use crate::progress::Bar;
use crate::prompt::encode_plain;
use crate::requirement::{check_memory, plan};

pub(super) fn run(args: &ProfileArgs) -> Result<()> {
    Profile::check_writable(&args.out)?;
    let opened = Opened::new(&args.model)?;
    let config = opened.checkpoint.config();
    let resolved = opened.resolve(&args.cache)?;
    let CacheConfig::Hca(hca) = &resolved else {
        bail!(
            "the full cache has no tables to fit; name one with coded keys, as in --cache hca:12.5%"
        );
    };
    let keys = hca.keys.to_string();
    let tokens = encode_plain(&opened.text()?, &read_text(&args.corpus)?)?;
    let end = args.token_offset.saturating_add(args.context);
    let window = tokens.get(args.token_offset..end).with_context(|| {
        format!(
            "{} has {}, {} from token {} are asked for; use a longer text or a lower --context",
            args.corpus.display(),
            counted(tokens.len()),
            count(args.context),
            count(args.token_offset)
        )
    })?;
    let limit_tokens = config.max_context_tokens;
    if window.len() > limit_tokens && !args.allow_beyond_trained {
        let held_tokens = window.len();
        Err(heterokv_model::Error::BeyondTrained { held_tokens, max_tokens: 0, limit_tokens })?;
    }
    let plan = plan(config, &resolved, window.len())?;
    check_memory(config, opened.weight_bytes()?, &[plan], window.len())?;
    ensure!(
        plan.num_tokens >= plan.coded_from_tokens,
        "{} are too few to fit the tables of {} on, which take {}; use a longer --context",
        counted(plan.num_tokens),
        args.cache,
        count(plan.coded_from_tokens)
    );
    say(&opened.first_line());
    let model = opened.load()?;
    let mut caches = [KvCache::new(model.kv_shape(), resolved, model.level(), None)?];
    {
        let bar = Bar::new("fitting on the text");
        let mut show = |done, total| bar.set(done, total);
        model.prefill(window, &mut caches, Some(&mut show))?;
    }
    let profile =
        Profile::of(&caches[0], &opened.fingerprint()).context("the text fitted no tables")?;
    profile.save(&args.out)?;
    print_line(&format!(
        "{}: tables of {keys} for {}, fitted on {}, {}; use with --profile",
        args.out.display(),
        opened.name,
        counted(window.len()),
        bytes(std::fs::metadata(&args.out).map_or(0, |file| file.len()))
    ))?;
    Ok(())
}
