//! One decode step of one layer: attention of a token's queries over everything that a cache holds.
//!
//! Before it is timed, the output of `full` is compared with attention in f64 over the same rows, and every other
//! cache's with that of `full`; after it, each is computed again and by a copy of the cache, and has to be the same
//! to the bit.

mod candidate;
mod slopes;

use anyhow::{Context as _, Result, ensure};
use heterokv_attn::reference::causal_attention;
use heterokv_cache::{KvCache, KvShape};

use candidate::Candidate;

use crate::bootstrap;
use crate::caches::{self, FULL, LADDER_BITS, Planned, distance, of_ladder};
use crate::interleave::interleaved;
use crate::machine::Ceilings;
use crate::memory::Room;
use crate::prompt_rows::{Context, PromptRows};
use crate::record::{Case, Record};
use crate::settings::Settings;

pub(crate) const SUITE: &str = "attention";

/// From a page of text to what no model of this size was trained for.
const CONTEXTS: [usize; 7] = [512, 2048, 8192, 32_768, 131_072, 524_288, 1 << 20];

/// From this length on the steps of the ladder are long enough for a slope.
const MIN_LADDER_TOKENS: usize = 8192;

/// How far `full` may be from the reference over the same rows: a few hundred roundings of f32.
const FULL_ERROR: f64 = 1e-4;

/// The least cosine to `full` of a preset's output over a text that was read: far below what any of them reaches,
/// and above what a cache with wrong rows does.
const REAL_COSINE: f64 = 0.7;

/// Measures every cache at every context.
///
/// # Errors
/// An answer that is wrong, bytes that are not those predicted, and what a cache refuses.
pub(crate) fn measure(
    settings: &Settings<'_>,
    rows: &PromptRows,
    ceilings: &Ceilings,
    room: Room,
    record: &mut Record,
) -> Result<()> {
    let shape = KvShape { num_layers: 1, heads: rows.shape.heads };
    for &num_tokens in settings.contexts_or(&CONTEXTS) {
        let planned = plan(settings, &shape, num_tokens, record)?;
        if planned.is_empty() {
            continue;
        }
        // Keys and values in f32, once more by head while they are stored, and a copy of the largest cache.
        let row_bytes = 2 * 4 * shape.heads.kv_row_len() as u64;
        let rows_bytes = row_bytes * num_tokens as u64 * 4 / 3;
        let copied = planned.iter().map(|(_, planned)| planned.total_bytes()).max().unwrap_or(0);
        let held: u64 = planned.iter().map(|(_, planned)| planned.total_bytes()).sum();
        if let Some(lack) = room.lack(rows_bytes + copied + held) {
            for (name, _) in planned {
                record.leave_out(name, lack.clone());
            }
            continue;
        }
        settings.say(&format!("{SUITE}: {num_tokens} tokens, {} caches", planned.len()));
        let cases = settings.pool.install(|| {
            at_context(settings, rows, ceilings, &shape, num_tokens, planned)
                .with_context(|| format!("{SUITE} at {num_tokens} tokens"))
        })?;
        record.cases.extend(cases);
    }
    slopes::derive(record);
    Ok(())
}

/// The caches wanted at one length, with the names of their cases; with any of them `full`.
fn plan(
    settings: &Settings<'_>,
    shape: &KvShape,
    num_tokens: usize,
    record: &mut Record,
) -> Result<Vec<(String, Planned)>> {
    let presets = settings.caches.iter().map(|spec| (format!("{SUITE}/{spec}"), spec.clone()));
    let ladder =
        LADDER_BITS.map(|bits| (format!("{SUITE}/{}", ladder_name(bits)), of_ladder(bits)));
    let has_ladder = num_tokens >= MIN_LADDER_TOKENS || !settings.contexts.is_empty();
    let ladder = ladder.into_iter().filter(|_| has_ladder);
    let all: Vec<_> =
        presets.chain(ladder).map(|(name, spec)| (format!("{name}@{num_tokens}"), spec)).collect();
    let is_any_wanted = all.iter().any(|(name, _)| settings.selection.wants(name));
    let mut planned = Vec::new();
    for (name, spec) in all {
        let is_wanted = settings.selection.wants(&name) || spec == FULL && is_any_wanted;
        if !is_wanted {
            continue;
        }
        match Planned::new(&spec, shape, num_tokens) {
            Ok(cache) => planned.push((name, cache)),
            Err(error) => record.leave_out(name, format!("{error:#}")),
        }
    }
    Ok(planned)
}

/// What a step of the ladder is called.
fn ladder_name(bits: &str) -> String {
    format!("bits/alloc/{bits}")
}

fn at_context(
    settings: &Settings<'_>,
    rows: &PromptRows,
    ceilings: &Ceilings,
    shape: &KvShape,
    num_tokens: usize,
    planned: Vec<(String, Planned)>,
) -> Result<Vec<Case>> {
    let layer = rows.middle();
    let queries: Vec<&[f32]> = rows.queries(layer).collect();
    let context = rows.context(layer, num_tokens);
    let new =
        |planned: &Planned| KvCache::new(*shape, planned.config.clone(), settings.level, None);
    let mut filled: Vec<KvCache> =
        planned.iter().map(|(_, planned)| new(planned)).collect::<Result<_, _>>()?;
    context.store(&mut filled, 0, settings.level)?;
    let mut candidates = Vec::new();
    for ((name, planned), cache) in planned.into_iter().zip(filled) {
        let mut case = Case::new(SUITE, name);
        planned.count_bytes(&cache, &mut case)?;
        candidates.push(Candidate::new(case, planned, cache, &queries, settings.sample_seconds)?);
    }
    check_full(&candidates, shape, queries[0], &context)?;
    drop(context);
    compare_with_full(&mut candidates, rows.is_real(num_tokens))?;
    let samples = interleaved(&mut candidates, settings.num_rounds, Candidate::sample)?;
    let full = candidates.iter().position(|candidate| candidate.planned.spec == FULL);
    let full = full.map(|index| samples[index].as_slice().to_vec());
    let mut cases = Vec::new();
    for (candidate, samples) in candidates.into_iter().zip(&samples) {
        candidate.check_again()?;
        let reads = candidate.reads(shape, num_tokens)?;
        let Candidate { case, planned, .. } = candidate;
        let mut case = case.timed(samples);
        reads.describe(ceilings, samples.median(), &mut case);
        if let Some(full) = &full {
            let ratio = bootstrap::of_pairs(samples.as_slice(), full);
            case.set("ratio_to_full", ratio.median);
            case.set("ratio_to_full_low", ratio.low);
            case.set("ratio_to_full_high", ratio.high);
        }
        if !rows.is_real(num_tokens) {
            case.notes.push(format!("the first {} tokens over and over", rows.num_tokens));
        }
        cases.push(Case { cache: Some(planned.spec), context: Some(num_tokens), ..case });
    }
    Ok(cases)
}

/// Holds `full` to attention in f64 over the same rows, for the first of the queries.
fn check_full(
    candidates: &[Candidate<'_>],
    shape: &KvShape,
    query: &[f32],
    context: &Context<'_>,
) -> Result<()> {
    let Some(full) = candidates.iter().find(|candidate| candidate.planned.spec == FULL) else {
        return Ok(());
    };
    let expected = causal_attention(&shape.heads, query, &context.keys, &context.values).out;
    let expected: Vec<f32> = expected.iter().map(|&x| x as f32).collect();
    let (_, error) = distance(&full.before[..query.len()], &expected);
    // Written so that NaN fails.
    ensure!(
        error <= FULL_ERROR,
        "full is {error:.2e} from attention in f64, and may be {FULL_ERROR:.0e}"
    );
    Ok(())
}

/// Writes down how far every cache is from `full`; over a text that was read, presets have to be near.
fn compare_with_full(candidates: &mut [Candidate<'_>], is_real: bool) -> Result<()> {
    let full = candidates.iter().find(|candidate| candidate.planned.spec == FULL);
    let Some(full) = full.map(|full| full.before.clone()) else { return Ok(()) };
    for candidate in candidates {
        let (cosine, error) = caches::distance(&candidate.before, &full);
        let is_preset = !candidate.case.name.contains(&ladder_name(""));
        ensure!(
            cosine >= REAL_COSINE || !(is_real && is_preset) && cosine.is_finite(),
            "{}: the cosine to full is {cosine:.3}, and must be {REAL_COSINE}",
            candidate.planned.spec
        );
        candidate.case.set("cosine_to_full", cosine);
        candidate.case.set("relative_error_to_full", error);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
