//! What a run will need, held against the machine before anything large is allocated.

use anyhow::{Result, ensure};
use heterokv_cache::{CacheConfig, CachePlan, CacheSpec, KvShape};
use heterokv_model::{ModelConfig, prefill_bytes};

use crate::output::{bytes, count, say, tokens};

/// No context is longer; up to here no product of a length and a model's axes overflows.
const MAX_TOKENS: usize = 1 << 32;

/// The shape of a model's caches.
///
/// # Errors
/// Heads that attention cannot handle.
pub(crate) fn kv_shape(config: &ModelConfig) -> Result<KvShape> {
    let ModelConfig { num_layers, num_qo_heads, num_kv_heads, head_dim, .. } = *config;
    let heads = heterokv_cache::HeadShape::new(num_qo_heads, num_kv_heads, head_dim);
    Ok(KvShape { num_layers, heads: heads.map_err(heterokv_cache::Error::from)? })
}

/// What a cache takes for `num_tokens` tokens of a model.
///
/// # Errors
/// A cache that does not fit the model, and a length beyond all bounds.
pub(crate) fn plan(
    model: &ModelConfig,
    cache: &CacheConfig,
    num_tokens: usize,
) -> Result<CachePlan> {
    let shape = kv_shape(model)?;
    // Everything that is planned is at most some ten times the full cache.
    let per_token = 64u128
        * (shape.num_layers * shape.heads.num_qo_heads) as u128
        * shape.heads.head_dim as u128;
    ensure!(
        num_tokens <= MAX_TOKENS && per_token * (num_tokens as u128) < usize::MAX as u128,
        "{} tokens are more than can be planned for; the limit is {}",
        count(num_tokens),
        count(MAX_TOKENS)
    );
    Ok(CachePlan::new(cache, &shape, num_tokens)?)
}

/// Says so where a prompt is too short for the tables of a cache, whose keys then stay exact.
pub(crate) fn say_uncoded(spec: &CacheSpec, plan: &CachePlan) {
    if plan.num_tokens < plan.coded_from_tokens {
        say(&format!(
            "{spec}: {} are too few to fit the tables of all heads on, whose keys stay exact until there are {}; \
             a profile has them from the start",
            tokens(plan.num_tokens),
            count(plan.coded_from_tokens)
        ));
    }
}

/// Refuses a run that needs more memory than the machine has free.
///
/// `plans` are of all caches held at the same time, `num_prompt_tokens` what is processed at once. Where
/// the system does not say what is free, nothing is refused.
///
/// # Errors
/// When it does not fit.
pub(crate) fn check_memory(
    config: &ModelConfig,
    weight_bytes: u64,
    plans: &[CachePlan],
    num_prompt_tokens: usize,
) -> Result<()> {
    let caches = plans
        .iter()
        .map(|plan| (plan.device.total() + plan.host_bytes + plan.score_scratch_bytes) as u64);
    let caches = caches.fold(0u64, u64::saturating_add);
    let prefill = prefill_bytes(config, num_prompt_tokens).total();
    check_parts(&[
        ("weights", weight_bytes),
        ("cache", caches),
        ("the prompt while it is processed", prefill),
    ])
}

/// Refuses a run whose parts, by name, take more memory than the system leaves to this process.
///
/// # Errors
/// When they do not fit.
pub(crate) fn check_parts(parts: &[(&str, u64)]) -> Result<()> {
    let Some(available) = available_memory_bytes() else { return Ok(()) };
    let needed = parts.iter().fold(0u64, |sum, (_, part)| sum.saturating_add(*part));
    let named: Vec<String> =
        parts.iter().map(|(name, part)| format!("{name} {}", bytes(*part))).collect();
    ensure!(
        needed <= available,
        "this needs {} of memory ({}), and {} are free; use a shorter context or a smaller model",
        bytes(needed),
        named.join(", "),
        bytes(available)
    );
    Ok(())
}

/// The most memory that this process has held, where the system says so.
pub(crate) fn peak_memory_bytes() -> Option<u64> {
    memory_line("/proc/self/status", "VmHWM:")
}

/// What the system and the control groups leave to this process; none where nothing says so.
fn available_memory_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let v2 = ["memory.max", "memory.current", "memory.stat"];
    let v1 = ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"];
    smallest_available(
        &read("/proc/meminfo"),
        &v2.map(|name| read(&format!("/sys/fs/cgroup/{name}"))),
        &v1.map(|name| read(&format!("/sys/fs/cgroup/memory/{name}"))),
    )
}

/// The least that `/proc/meminfo` and the control groups of version 2 and 1 (limit, usage, statistics) leave.
/// A text that is empty or says `max` sets no bound.
fn smallest_available(meminfo: &str, v2: &[String; 3], v1: &[String; 3]) -> Option<u64> {
    let group = |[limit, usage, stat]: &[String; 3], fields: [&str; 2]| {
        let limit: u64 = limit.trim().parse().ok()?;
        let usage: u64 = usage.trim().parse().ok()?;
        // Cached pages of files, a model's among them, are counted as used but given up when needed.
        let cached = fields.iter().filter_map(|field| {
            stat.lines().find_map(|line| {
                line.strip_prefix(field)?.strip_prefix(' ')?.trim().parse::<u64>().ok()
            })
        });
        let held = usage.saturating_sub(cached.fold(0, u64::saturating_add));
        Some(limit.saturating_sub(held))
    };
    let bounds = [
        line_bytes(meminfo, "MemAvailable:"),
        group(v2, ["inactive_file", "active_file"]),
        group(v1, ["total_inactive_file", "total_active_file"]),
    ];
    bounds.into_iter().flatten().min()
}

/// The bytes in a line of a file of the form `name 123 kB`.
fn memory_line(path: &str, name: &str) -> Option<u64> {
    line_bytes(&std::fs::read_to_string(path).ok()?, name)
}

fn line_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let config = ModelConfig::builtin("llama-3-8b").unwrap();
        let plan = plan(&config, &CacheConfig::Full, MAX_TOKENS).unwrap();
        if available_memory_bytes().is_some() {
            let error = check_memory(&config, 1 << 34, &[plan], MAX_TOKENS).unwrap_err();
            assert!(error.to_string().starts_with("this needs 642.0 TiB of memory"), "{error}");
            assert!(check_memory(&config, 0, &[], 1).is_ok());
        }
    }

    #[test]
    fn the_smallest_bound_holds() {
        let meminfo = "MemTotal: 9 kB\nMemAvailable:      8 kB\n";
        let group = |limit: &str, usage: &str, stat: &str| [limit, usage, stat].map(str::to_owned);
        let none = || group("", "", "");
        let v2 = || group("5000\n", "2000\n", "anon 9\ninactive_file 300\nactive_file 200\n");
        let v1 = |limit| group(limit, "900\n", "inactive_file 5\ntotal_inactive_file 100\n");
        let unbounded = "9223372036854771712\n";
        for (meminfo, v2, v1, expected) in [
            ("", none(), none(), None),
            (meminfo, none(), none(), Some(8192)),
            (meminfo, group("max\n", "2000\n", ""), v1(unbounded), Some(8192)),
            (meminfo, v2(), none(), Some(3500)),
            ("", none(), v1("1000\n"), Some(200)),
            (meminfo, v2(), v1("1000\n"), Some(200)),
            (meminfo, group("1000", "2000", "inactive_file 100"), none(), Some(0)),
            (meminfo, group("damaged", "2000", ""), group("1000", "", ""), Some(8192)),
        ] {
            assert_eq!(smallest_available(meminfo, &v2, &v1), expected, "{v2:?} {v1:?}");
        }
    }

    #[test]
    fn absurd_lengths_are_refused() {
        let config = ModelConfig::builtin("llama-3-8b").unwrap();
        for num_tokens in [MAX_TOKENS + 1, usize::MAX] {
            assert!(plan(&config, &CacheConfig::Full, num_tokens).is_err());
        }
    }
}
