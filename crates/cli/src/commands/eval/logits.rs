//! Logits of a token list, for comparison with another engine.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use heterokv_cache::CacheConfig;
use heterokv_eval::logits_report;
use serde::Deserialize;

use crate::args::EvalArgs;
use crate::load::{Opened, read_text};
use crate::output::{print_line, say};
use crate::progress::Bar;
use crate::requirement::{check_memory, plan};

/// A token list as a file holds it.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenFile {
    Ids(Vec<u32>),
    Object { ids: Vec<u32> },
}

pub(super) fn run(args: &EvalArgs, path: &Path) -> Result<()> {
    let file: TokenFile = serde_json::from_str(&read_text(path)?).with_context(|| {
        format!(
            "{} should be a JSON array of token ids, or an object with one as `ids`",
            path.display()
        )
    })?;
    let (TokenFile::Ids(ids) | TokenFile::Object { ids }) = file;
    ensure!(!ids.is_empty(), "{} holds no token ids", path.display());
    let opened = Opened::new(&args.model)?;
    let config = opened.checkpoint.config();
    let limit_tokens = config.max_context_tokens;
    if ids.len() > limit_tokens && !args.terms.allow_beyond_trained {
        let held_tokens = ids.len();
        Err(heterokv_model::Error::BeyondTrained { held_tokens, max_tokens: 0, limit_tokens })?;
    }
    let plan = plan(config, &CacheConfig::Full, ids.len())?;
    check_memory(config, opened.weight_bytes()?, &[plan], ids.len())?;
    say(&opened.first_line());
    let model = opened.load()?;
    let report = {
        let _bar = Bar::spinner("computing the logits");
        logits_report(&model, &ids, &args.rows)?
    };
    print_line(&serde_json::to_string(&report)?)?;
    Ok(())
}
