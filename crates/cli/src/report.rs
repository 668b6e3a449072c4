//! Where every byte of a cache is and how long a reply took, for `--stats` and `--json`.

mod store;

use heterokv_cache::{CacheConfig, CacheSpec, DeviceBytes, full_bytes};
use heterokv_model::{CacheFigures, Generation};
use serde::Serialize;

use crate::output::{self, bytes, count, percent, table, tokens};
use crate::requirement::peak_memory_bytes;
use store::StoreReport;

/// What was done with a prompt.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PromptFigures {
    pub(crate) num_tokens: usize,
    /// Those of them that a session had, where there is one.
    pub(crate) session_tokens: Option<usize>,
    /// What the others took.
    pub(crate) read_seconds: f64,
    /// What it took to save them.
    pub(crate) save_seconds: f64,
}

impl PromptFigures {
    /// Tokens read per second; 0 where none was.
    fn tokens_per_second(&self) -> f64 {
        match self.num_tokens - self.session_tokens.unwrap_or(0) {
            0 => 0.0,
            num_read => num_read as f64 / self.read_seconds,
        }
    }
}

/// What a cache holds and what a reply took.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Tokens that the cache holds.
    cached_tokens: usize,
    device: DeviceBytes,
    device_bytes: usize,
    host_bytes: usize,
    full_bytes: usize,
    ratio: f64,
    /// Share of the tokens whose rows a step fetched from the host.
    rows_read: f64,
    host_bytes_read_per_token: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_store: Option<StoreReport>,
    #[serde(flatten)]
    link: Option<Link>,
    prompt_tokens: usize,
    /// Tokens of the prompt that a session had; none without one.
    session_tokens: Option<usize>,
    prefill_seconds: f64,
    prefill_tok_s: f64,
    generated_tokens: usize,
    decode_seconds: f64,
    decode_tok_s: f64,
    /// From the start of the prompt on.
    first_token_seconds: f64,
    peak_memory_bytes: Option<u64>,
    #[serde(skip)]
    with_keys: bool,
}

/// What crosses between a GPU and its host, and what the GPU holds.
#[derive(Serialize)]
struct Link {
    to_host_bytes_per_token: f64,
    to_device_bytes_per_token: f64,
    /// Weights and all that is worked in included.
    gpu_bytes: u64,
    gpu_peak_bytes: u64,
}

impl Report {
    /// Reads the figures off a cache behind a reply to a prompt.
    pub(crate) fn new(cache: &CacheFigures, reply: &Generation, prompt: &PromptFigures) -> Self {
        let CacheFigures { shape, stats, .. } = *cache;
        let steps = stats.steps as f64 / shape.num_layers as f64;
        let per_token = |bytes: u64| if steps > 0.0 { bytes as f64 / steps } else { 0.0 };
        Self {
            cached_tokens: cache.num_tokens,
            device: cache.device,
            device_bytes: cache.device.total(),
            host_bytes: cache.host_bytes,
            full_bytes: full_bytes(&shape, cache.num_tokens),
            ratio: cache.ratio(),
            rows_read: stats.rows_read(),
            host_bytes_read_per_token: per_token(stats.host_bytes),
            host_store: cache.host.as_ref().map(StoreReport::new),
            link: cache.link.map(|link| Link {
                to_host_bytes_per_token: per_token(link.to_host_bytes),
                to_device_bytes_per_token: per_token(link.to_device_bytes),
                gpu_bytes: link.in_use_bytes,
                gpu_peak_bytes: link.peak_bytes,
            }),
            prompt_tokens: prompt.num_tokens,
            session_tokens: prompt.session_tokens,
            prefill_seconds: prompt.read_seconds,
            prefill_tok_s: prompt.tokens_per_second(),
            generated_tokens: reply.tokens.len(),
            decode_seconds: reply.decode_seconds,
            decode_tok_s: reply.decode_tokens_per_second(),
            first_token_seconds: prompt.read_seconds
                + prompt.save_seconds
                + reply.first_token_seconds,
            peak_memory_bytes: peak_memory_bytes(),
            with_keys: matches!(&cache.config, CacheConfig::Hca(hca) if hca.rescore.is_some()),
        }
    }

    /// Device bytes over those of a full cache.
    pub(crate) fn ratio(&self) -> f64 {
        self.ratio
    }

    /// The figures as a table.
    pub(crate) fn table(&self, spec: &CacheSpec) -> String {
        let row = |name: &str, value: String| vec![name.to_owned(), value];
        let size = |name: &str, n: usize| row(name, bytes(n as u64));
        let on_host = if self.with_keys { "host: values and exact keys" } else { "host: values" };
        let resident = if self.device.codes == 0 && self.device.window == 0 {
            "device: exact keys and values"
        } else {
            "device: first tokens, exact"
        };
        let mut rows = vec![
            row("cache", spec.to_string()),
            row("tokens in it", count(self.cached_tokens)),
            size(resident, self.device.resident),
            size("device: recent tokens, exact", self.device.window),
            size("device: key codes", self.device.codes),
            size("device: key tables", self.device.tables),
            size("device: values", self.device.values),
            size("device: evidence of tokens", self.device.evidence),
            size("device: all", self.device_bytes),
            size(on_host, self.host_bytes),
            size("the same tokens in a full f16 cache", self.full_bytes),
            row("device bytes of those", output::ratio(self.ratio, spec)),
            row("rows read", percent(self.rows_read)),
            row(
                "read from the host",
                format!("{}/token", bytes(self.host_bytes_read_per_token as u64)),
            ),
            row("prompt", self.speed(self.num_read(), self.prefill_tok_s)),
            row("reply", self.speed(self.generated_tokens, self.decode_tok_s)),
            row("time to first token", format!("{:.2} s", self.first_token_seconds)),
        ];
        rows.extend(self.session_tokens.map(|found| row("found in the session", tokens(found))));
        let of_store = self.host_store.iter().flat_map(StoreReport::rows);
        rows.extend(of_store.map(|(name, value)| row(name, value)));
        rows.extend(self.link.iter().flat_map(|link| {
            let per_token = |n: f64| format!("{}/token", bytes(n as u64));
            [
                row("from the GPU to the host", per_token(link.to_host_bytes_per_token)),
                row("from the host to the GPU", per_token(link.to_device_bytes_per_token)),
                row("memory of the GPU, weights included", bytes(link.gpu_bytes)),
                row("the most that it was", bytes(link.gpu_peak_bytes)),
            ]
        }));
        rows.extend(
            self.peak_memory_bytes.map(|peak| row("peak memory of the process", bytes(peak))),
        );
        table(&[], &rows)
    }

    /// Tokens of the prompt that no session had.
    fn num_read(&self) -> usize {
        self.prompt_tokens - self.session_tokens.unwrap_or(0)
    }

    fn speed(&self, num_tokens: usize, per_second: f64) -> String {
        format!("{}, {per_second:.1} tok/s", tokens(num_tokens))
    }
}
