//! `heterokv mix`: a key format for each head, chosen by what it costs on a text and kept in a file.

use anyhow::{Context, Result, ensure};
use heterokv_cache::{CacheConfig, CacheSpec, HcaConfig, KeyFormat, KeyMix};
use heterokv_eval::{ExactTokens, KeyUse, SensitivitySettings, measure_sensitivity};

use crate::args::MixArgs;
use crate::load::{Opened, read_text};
use crate::output::{count, print_line, say, table, tokens as counted};
use crate::progress::Bar;
use crate::prompt::{encode_plain, stretch};
use crate::requirement::{check_memory, kv_shape};

pub(super) fn run(args: &MixArgs) -> Result<()> {
    KeyMix::check_writable(&args.out)?;
    let opened = Opened::new(&args.model)?;
    let config = opened.checkpoint.config();
    let shape = kv_shape(config)?;
    let head_dim = shape.heads.head_dim;
    let tokens = encode_plain(&opened.text()?, &read_text(&args.corpus)?)?;
    let num_tokens = args.context.saturating_add(args.steps);
    let window =
        stretch(&args.corpus, &tokens, args.token_offset, num_tokens, "a lower --context")?;
    let (held_tokens, max_tokens) = (args.context, args.steps);
    let limit_tokens = config.max_context_tokens;
    if num_tokens > limit_tokens && !args.allow_beyond_trained {
        Err(heterokv_model::Error::BeyondTrained { held_tokens, max_tokens, limit_tokens })?;
    }
    check_memory(config, opened.weight_bytes()?, &[], num_tokens)?;
    let preset = preset(args, &opened)?;
    let settings = SensitivitySettings {
        formats: args.formats.clone(),
        exact: ExactTokens { sinks: preset.sinks, recent: preset.recent },
        key_use: match preset.rescore {
            None => KeyUse::Attend,
            Some(_) => KeyUse::Select(preset.selector()?),
        },
        num_steps: args.steps,
    };
    settings.check(head_dim, window.len()).with_context(|| {
        format!(
            "cannot measure the --formats at --context {}; give a longer --context or other --formats",
            count(args.context)
        )
    })?;
    check_bits(args, head_dim)?;
    say(&opened.first_line());
    let model = opened.load()?;
    let sensitivity = {
        let bar = Bar::new("measuring the heads");
        let mut show = |done, total| bar.set(done, total);
        measure_sensitivity(&model, window, &settings, Some(&mut show))?
    };
    let formats = sensitivity.mix(args.bits, args.context)?;
    let mix = KeyMix::create(&args.out, &opened.fingerprint(), &shape, formats)?;
    print_line(&format!("{}\n", histogram(&mix, head_dim, args.context)?))?;
    let out = args.out.display();
    print_line(&format!(
        "{out}: keys of {:.3} bits at {}, tables included, for {}; use with --cache {},keys=mix:{out}",
        mix.bits_per_element(args.context)?,
        counted(args.context),
        opened.name,
        preset_name(args)
    ))?;
    Ok(())
}

/// The preset for which the mix is.
fn preset_name(args: &MixArgs) -> &'static str {
    if args.rescore { "hca-rescore" } else { "hca" }
}

/// What stays exact in it and how it selects; its keys are what is looked for.
fn preset(args: &MixArgs, opened: &Opened) -> Result<HcaConfig> {
    let spec: CacheSpec = format!("{},keys=f16", preset_name(args)).parse()?;
    match opened.resolve(&spec)? {
        CacheConfig::Hca(config) => Ok(config),
        CacheConfig::Full => unreachable!("a preset with coded keys"),
    }
}

/// Refuses a size that no choice of formats can have, before anything is measured.
fn check_bits(args: &MixArgs, head_dim: usize) -> Result<()> {
    let mut least = f64::INFINITY;
    for format in &args.formats {
        least = least.min(bits(*format, head_dim, args.context)?);
    }
    ensure!(
        args.bits >= least,
        "--bits {} is less than the smallest of the formats takes: {least:.3} at {}, tables included; give \
         more bits, a longer --context or smaller --formats",
        args.bits,
        counted(args.context)
    );
    Ok(())
}

/// All bits of a coded element at `num_tokens` coded tokens.
fn bits(format: KeyFormat, head_dim: usize, num_tokens: usize) -> Result<f64> {
    let bits = format.bits_per_element(head_dim, num_tokens);
    Ok(bits.map_err(heterokv_cache::Error::from)?)
}

/// The formats by rising bits, and how many heads have each.
fn histogram(mix: &KeyMix, head_dim: usize, num_tokens: usize) -> Result<String> {
    let mut rows = Vec::new();
    for (format, heads) in mix.counts() {
        rows.push((bits(format, head_dim, num_tokens)?, format, heads));
    }
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let header = ["keys", "bits", "heads"].map(str::to_owned);
    let row = |(bits, format, heads): (f64, KeyFormat, usize)| {
        vec![format.to_string(), format!("{bits:.3}"), count(heads)]
    };
    Ok(table(&header, &rows.into_iter().map(row).collect::<Vec<_>>()))
}
