//! `heterokv profile --heads`: what each KV head is to its cache, measured on a text and kept in a file.

mod budgets;

use anyhow::Result;
use heterokv_cache::{HeadMeasure, HeadProfile, HeadRole};
use heterokv_eval::measure_heads;

use crate::args::ProfileArgs;
use crate::load::{Opened, read_text};
use crate::output::{bytes, count, percent, print_line, say, table, tokens as counted};
use crate::progress::Bar;
use crate::prompt::{encode_plain, stretch};
use crate::requirement::check_memory;
use budgets::BudgetSearch;

/// Tokens of the prompt where none are asked for, and the positions of it that a query attends to, as published.
const PROMPT_TOKENS: usize = 5000;
const TOP_K: usize = 1024;

pub(super) fn run(args: &ProfileArgs) -> Result<()> {
    HeadProfile::check_writable(&args.out)?;
    let opened = Opened::new(&args.model)?;
    let config = opened.checkpoint.config();
    let search = args.measure.budgets.then_some(BudgetSearch { ratio: args.measure.ratio });
    let limit_tokens = config.max_context_tokens;
    let measure = measure(args, limit_tokens);
    measure.check()?;
    let (held_tokens, max_tokens) = (measure.prompt_tokens, measure.steps);
    let num_tokens = held_tokens.saturating_add(max_tokens);
    if num_tokens > limit_tokens && !args.allow_beyond_trained {
        Err(heterokv_model::Error::BeyondTrained { held_tokens, max_tokens, limit_tokens })?;
    }
    let tokens = encode_plain(&opened.text()?, &read_text(&args.corpus)?)?;
    let text = stretch(&args.corpus, &tokens, args.token_offset, num_tokens, "fewer --tokens")?;
    let plans = search.as_ref().map_or(Ok(vec![]), |search| search.plans(&opened, num_tokens))?;
    check_memory(config, opened.weight_bytes()?, &plans, num_tokens)?;
    say(&opened.first_line());
    let model = opened.load()?;
    let mut profile = {
        let bar = Bar::new("measuring the heads");
        let mut show = |done, total| bar.set(done, total);
        measure_heads(&model, text, &measure, &opened.fingerprint(), Some(&mut show))?
    };
    let mut found = None;
    if let Some(search) = search {
        let (with_budgets, line) =
            search.run(&model, text.split_at(held_tokens).into(), profile, &args.out)?;
        (profile, found) = (with_budgets, Some(line));
    }
    profile.save(&args.out)?;
    print_line(&format!("{}\n", roles(&profile)))?;
    print_line(&floor(&profile))?;
    found.map_or(Ok(()), |line| print_line(&line))?;
    print_line(&format!(
        "{}: heads of {}, measured on a prompt of {} and {} steps by its {} heaviest, {}",
        args.out.display(),
        opened.name,
        counted(measure.prompt_tokens),
        count(measure.steps),
        count(measure.top_k),
        bytes(std::fs::metadata(&args.out).map_or(0, |file| file.len()))
    ))?;
    Ok(())
}

/// How the heads are to be measured, of a model that was trained for `limit_tokens`.
fn measure(args: &ProfileArgs, limit_tokens: usize) -> HeadMeasure {
    let asked = &args.measure;
    let room = || PROMPT_TOKENS.min(limit_tokens.saturating_sub(asked.steps));
    let prompt_tokens = args.tokens.unwrap_or_else(room);
    let of_prompt = || TOP_K * prompt_tokens.min(PROMPT_TOKENS) / PROMPT_TOKENS;
    HeadMeasure {
        prompt_tokens,
        steps: asked.steps,
        top_k: asked.top_k.unwrap_or_else(of_prompt),
        tau_stable: asked.tau_stable,
        tau_sim: asked.tau_sim,
        similarity: asked.similarity,
    }
}

/// The roles, and how many heads have each.
fn roles(profile: &HeadProfile) -> String {
    let header = ["role", "heads"].map(str::to_owned);
    let rows = [
        ("anchor", HeadRole::Anchor),
        ("volatile", HeadRole::Volatile),
        ("pivot", HeadRole::Pivot),
        ("satellite", HeadRole::Satellite { pivot: 0 }),
    ];
    let same = |a: &HeadRole, b: &HeadRole| std::mem::discriminant(a) == std::mem::discriminant(b);
    let rows = rows.map(|(name, role)| {
        let heads = profile.roles().iter().filter(|other| same(other, &role)).count();
        vec![name.to_owned(), count(heads)]
    });
    table(&header, &rows)
}

/// What keeps all tokens, and how the others divide the rest.
fn floor(profile: &HeadProfile) -> String {
    let heads = profile.roles().len();
    let layers = (0..profile.num_layers())
        .flat_map(|layer| (0..profile.num_kv_heads()).map(move |head| (layer, head)));
    let weights = layers.map(|(layer, head)| profile.weight(layer, head)).filter(|&w| w > 0.0);
    let (mut compressed, mut least, mut most) = (0, f64::INFINITY, 0.0f64);
    for weight in weights {
        (compressed, least, most) = (compressed + 1, least.min(weight), most.max(weight));
    }
    let kept =
        format!("{} of {} KV heads keep all tokens", count(heads - compressed), count(heads));
    if compressed == 0 {
        return format!("{kept}: no cache by these roles is smaller than full");
    }
    format!(
        "{kept}: no ratio of {} or less; the others have {least:.2} to {most:.2} of the mean budget",
        percent(profile.full_share())
    )
}
