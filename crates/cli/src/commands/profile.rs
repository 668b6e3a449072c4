//! `heterokv profile`: a key format's tables, fitted on a text and kept in a file; or, with `--heads`, the roles of
//! KV heads.

mod heads;

use anyhow::{Result, bail, ensure};
use heterokv_cache::{CacheConfig, Error, Keys, KvShape, Profile};
use heterokv_eval::{Pieces, fit_profile};

use crate::args::ProfileArgs;
use crate::load::{Opened, read_text};
use crate::output::{bytes, count, print_line, say, tokens as counted};
use crate::progress::Bar;
use crate::prompt::{encode_plain, stretch};
use crate::requirement::{check_memory, kv_shape};

/// Tokens of the text where none are asked for.
const TEXT_TOKENS: usize = 4096;

/// Tokens of a piece where none are asked for: a context that most models know.
const PIECE_TOKENS: usize = 4096;

pub(super) fn run(args: &ProfileArgs) -> Result<()> {
    if args.heads {
        return heads::run(args);
    }
    Profile::check_writable(&args.out)?;
    let opened = Opened::new(&args.model)?;
    let config = opened.checkpoint.config();
    let CacheConfig::Hca(hca) = opened.resolve(&args.cache)? else {
        bail!(
            "the full cache has no tables to fit; name one with coded keys, as in --cache hca:12.5%"
        );
    };
    let shape = kv_shape(config)?;
    check_tables(&hca.keys, &shape)?;
    let tokens = encode_plain(&opened.text()?, &read_text(&args.corpus)?)?;
    let num_tokens = args.tokens.unwrap_or(TEXT_TOKENS);
    let text = stretch(&args.corpus, &tokens, args.token_offset, num_tokens, "fewer --tokens")?;
    let limit_tokens = config.max_context_tokens;
    let piece_tokens = args.piece.unwrap_or(PIECE_TOKENS.min(limit_tokens));
    let held_tokens = piece_tokens.min(text.len());
    if held_tokens > limit_tokens && !args.allow_beyond_trained {
        Err(heterokv_model::Error::BeyondTrained { held_tokens, max_tokens: 0, limit_tokens })?;
    }
    let pieces = Pieces { tokens: piece_tokens, sinks: hca.sinks };
    pieces.check(&hca.keys, &shape, text.len())?;
    // The keys of one layer, and the hidden states, are those of all pieces, as of one prompt.
    check_memory(config, opened.weight_bytes()?, &[], text.len())?;
    say(&opened.first_line());
    let model = opened.load()?;
    let profile = {
        let bar = Bar::new("fitting on the text");
        let mut show = |done, total| bar.set(done, total);
        let fingerprint = opened.fingerprint();
        fit_profile(&model, text, pieces, &hca.keys, &fingerprint, Some(&mut show))?
    };
    profile.save(&args.out)?;
    print_line(&format!(
        "{}: tables of {} for {}, fitted on {} in pieces of {}, {}; use with --profile",
        args.out.display(),
        hca.keys,
        opened.name,
        counted(text.len()),
        count(held_tokens),
        bytes(std::fs::metadata(&args.out).map_or(0, |file| file.len()))
    ))?;
    Ok(())
}

/// Refuses keys that have nothing to fit.
fn check_tables(keys: &Keys, shape: &KvShape) -> Result<()> {
    let mut table_bytes = 0;
    for format in keys.formats(shape)? {
        table_bytes += format.layout(shape.heads.head_dim).map_err(Error::from)?.table_bytes;
    }
    ensure!(
        table_bytes > 0,
        "keys={keys} has no tables and needs no profile; name a format with tables, such as \
         keys=pq/2x256"
    );
    Ok(())
}
