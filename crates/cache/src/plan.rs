//! The bytes that a cache takes, component by component, by the functions that its allocations use.

mod forgetting;

use heterokv_offload::{DryRun, StoreShape};
use heterokv_quant::{KeyFormat, KeyLayout, RowFormat, RowLayout};

use crate::coded::{CODE_PAGE_TOKENS, CodedKeys};
use crate::exact::{EXACT_PAGE_TOKENS, ExactRows};
use crate::select::scratch_bytes;
use crate::spec::{CacheConfig, HcaConfig, Place};
use crate::{Error, KvShape, Result};

/// Tokens of a page of the recent window: small, since one page more than the window needs is held.
pub(crate) const WINDOW_PAGE_TOKENS: usize = 8;

/// Tokens of a page of exact rows in a cache that forgets: heads differ in length, and what a page is not full of is lost.
pub(crate) const KEPT_PAGE_TOKENS: usize = 16;

/// Coded tokens from which tables are fitted.
pub(crate) const FIT_TOKENS: usize = 256;

/// Most sinks and most recent tokens: beyond any context, and sums of them cannot overflow.
pub(crate) const MAX_EXACT_TOKENS: usize = 1 << 24;

/// Device bytes of a cache by component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceBytes {
    /// Exact keys and values that stay: the sinks, or the whole cache where it is `full`.
    pub resident: usize,
    /// Exact keys and values of the recent window, tokens awaiting encoding included.
    pub window: usize,
    /// Codes of keys, with their scales.
    pub codes: usize,
    /// Tables of the key coders.
    pub tables: usize,
    /// Values of coded tokens, where they are on the device.
    #[serde(default)]
    pub values: usize,
    /// What scorers gather of the tokens that are held, where some are forgotten.
    #[serde(default)]
    pub evidence: usize,
}

impl DeviceBytes {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> usize {
        let Self { resident, window, codes, tables, values, evidence } = self;
        resident + window + codes + tables + values + evidence
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.resident += other.resident;
        self.window += other.window;
        self.codes += other.codes;
        self.tables += other.tables;
        self.values += other.values;
        self.evidence += other.evidence;
    }

    fn times(self, num_heads: usize) -> Self {
        let Self { resident, window, codes, tables, values, evidence } = self;
        let [resident, window, codes, tables, values, evidence] =
            [resident, window, codes, tables, values, evidence].map(|bytes| bytes * num_heads);
        Self { resident, window, codes, tables, values, evidence }
    }
}

/// What a cache will hold at a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CachePlan {
    /// Tokens.
    pub num_tokens: usize,
    /// Bytes on the device after a prompt of that length.
    pub device: DeviceBytes,
    /// Most bytes on the device that so many tokens can take while tokens come one at a time: the window can begin
    /// anywhere in its pages, and tokens wait for their group.
    pub most_device_bytes: usize,
    /// Bytes on the host.
    pub host_bytes: usize,
    /// Pages that they are in.
    pub host_pages: usize,
    /// Those of them that are not full, and stay in RAM to take rows.
    pub host_open_pages: usize,
    /// Bytes of scratch for scores, weights and selections, shared by all layers, and of rows that may be on their way back
    /// from the host; not part of any ratio.
    pub score_scratch_bytes: usize,
    /// Bytes of the same tokens in a full f16 cache.
    pub full_bytes: usize,
    /// Tokens from which the keys of every head are coded, if the tables are fitted on the prompt; the keys of a
    /// shorter one stay exact in heads whose tables it is too short for. 0 where nothing is coded.
    pub coded_from_tokens: usize,
}

impl CachePlan {
    /// What `config` holds after a prompt of `num_tokens` on a model of `shape`.
    ///
    /// # Errors
    /// When a key format or a mix of them refuses the shape.
    pub fn new(config: &CacheConfig, shape: &KvShape, num_tokens: usize) -> Result<Self> {
        let mut plan = Self {
            num_tokens,
            device: DeviceBytes::default(),
            most_device_bytes: 0,
            host_bytes: 0,
            host_pages: 0,
            host_open_pages: 0,
            score_scratch_bytes: 0,
            full_bytes: full_bytes(shape, num_tokens),
            coded_from_tokens: 0,
        };
        match config {
            CacheConfig::Full => {
                let head_dim = shape.heads.head_dim;
                let resident = ExactRows::bytes(head_dim, EXACT_PAGE_TOKENS, num_tokens);
                let of_head = DeviceBytes { resident, ..DeviceBytes::default() };
                plan.device = of_head.times(shape.num_layers * shape.heads.num_kv_heads);
                plan.most_device_bytes = plan.device.total();
            }
            CacheConfig::Hca(config) if config.evict.is_some() || config.is_exact() => {
                config.keys.check(shape)?;
                forgetting::add(&mut plan, config, shape)?;
            }
            CacheConfig::Hca(config) => {
                config.keys.check(shape)?;
                let mut most_coded = 0;
                for (format, num_heads) in config.keys.counts(shape) {
                    let of_head = DevicePlan::new(format, config, shape)?;
                    let coded = of_head.coded_after_prompt(num_tokens);
                    let host = host_shape(config, shape);
                    let host = StoreShape { num_layers: 1, num_kv_heads: num_heads, ..host };
                    let is_open = !coded.is_multiple_of(host.page_size);
                    plan.host_pages += num_heads * coded.div_ceil(host.page_size);
                    plan.host_open_pages += if is_open { num_heads } else { 0 };
                    let mut device = of_head.after_prompt(num_tokens).times(num_heads);
                    let rows = host.bytes(coded);
                    if config.values_on == Place::Device {
                        device.values = rows;
                        plan.most_device_bytes += rows;
                    } else {
                        plan.host_bytes += rows;
                    }
                    plan.device.add(device);
                    plan.most_device_bytes += num_heads * of_head.most_bytes(num_tokens);
                    most_coded = most_coded.max(coded);
                    plan.coded_from_tokens =
                        plan.coded_from_tokens.max(of_head.coded_from_tokens());
                }
                plan.score_scratch_bytes = scratch_bytes(&shape.heads, most_coded);
            }
        }
        Ok(plan)
    }

    /// What a budget would hold of the host's rows in RAM, and what would be on disk.
    #[must_use]
    pub fn host_dry_run(&self, ram_budget_bytes: usize) -> DryRun {
        let frame_bytes = self.host_bytes / self.host_pages.max(1);
        DryRun::new(self.host_pages, self.host_open_pages, frame_bytes, ram_budget_bytes)
    }

    /// Device bytes over the bytes of a full f16 cache.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.device.total() as f64 / self.full_bytes.max(1) as f64
    }
}

/// Bytes of `num_tokens` in a full f16 cache: what ratios are relative to.
#[must_use]
pub fn full_bytes(shape: &KvShape, num_tokens: usize) -> usize {
    4 * shape.num_layers * shape.heads.num_kv_heads * shape.heads.head_dim * num_tokens
}

impl CacheConfig {
    /// The shape of the host store of a cache; where it is `full`, of one that stays without rows.
    #[must_use]
    pub fn store_shape(&self, shape: &KvShape) -> StoreShape {
        match self {
            Self::Full => host_shape(&HcaConfig::PLAIN, shape),
            Self::Hca(config) => host_shape(config, shape),
        }
    }
}

/// The shape of the host store of a config.
pub(crate) fn host_shape(config: &HcaConfig, shape: &KvShape) -> StoreShape {
    let head_dim = shape.heads.head_dim;
    // Rows that come back are whole ones.
    let key = if config.comes_back() { Some(RowFormat::F16) } else { config.rescore };
    let layout = RowLayout { key, value: config.values, head_dim };
    StoreShape {
        num_layers: shape.num_layers,
        num_kv_heads: shape.heads.num_kv_heads,
        page_size: StoreShape::page_size_of(&layout),
        layout,
    }
}

/// The device bytes of one (layer, KV head) of an `hca` cache as a function of its length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DevicePlan {
    /// How the keys are coded.
    pub(crate) format: KeyFormat,
    layout: KeyLayout,
    head_dim: usize,
    /// First tokens, exact.
    pub(crate) sinks: usize,
    /// Last tokens, exact.
    pub(crate) recent: usize,
}

impl DevicePlan {
    /// Of a head of `config` whose keys are coded in `format`, whatever its keys say.
    pub(crate) fn new(format: KeyFormat, config: &HcaConfig, shape: &KvShape) -> Result<Self> {
        let head_dim = shape.heads.head_dim;
        let layout = format.layout(head_dim)?;
        if config.sinks.max(config.recent) > MAX_EXACT_TOKENS {
            return Err(Error::Conflict {
                conflict: "sinks and recent must be at most 16,777,216",
            });
        }
        let HcaConfig { sinks, recent, .. } = *config;
        Ok(Self { format, layout, head_dim, sinks, recent })
    }

    /// Tokens beyond sinks and window with which coding begins.
    pub(crate) fn fit_tokens(&self) -> usize {
        match self.layout.min_fit_tokens {
            0 => self.layout.group_tokens,
            tokens => tokens.max(FIT_TOKENS),
        }
    }

    /// Tokens of the shortest prompt of which some are coded.
    pub(crate) fn coded_from_tokens(&self) -> usize {
        self.sinks + self.recent + self.fit_tokens()
    }

    /// Coded tokens after a prompt of `num_tokens`.
    pub(crate) fn coded_after_prompt(&self, num_tokens: usize) -> usize {
        let candidates = num_tokens.saturating_sub(self.sinks + self.recent);
        if candidates < self.fit_tokens() {
            return 0;
        }
        self.whole_groups(candidates)
    }

    /// Of a window of so many tokens, those that have grown out of it and can be coded now.
    pub(crate) fn leaving(&self, window_tokens: usize, has_tables: bool) -> usize {
        let candidates = window_tokens.saturating_sub(self.recent);
        if !has_tables && candidates < self.fit_tokens() {
            return 0;
        }
        self.whole_groups(candidates)
    }

    /// The most tokens that the window holds on the way from a prompt to so many tokens in all.
    pub(crate) fn most_window(&self, prompt_tokens: usize, total_tokens: usize) -> usize {
        let is_fitted = self.coded_after_prompt(prompt_tokens) > 0;
        let waiting = if is_fitted { self.layout.group_tokens } else { self.fit_tokens() };
        (self.recent + waiting).min(total_tokens.saturating_sub(self.sinks))
    }

    /// Bytes after a prompt of `num_tokens`, whose window begins at the start of a page.
    pub(crate) fn after_prompt(&self, num_tokens: usize) -> DeviceBytes {
        let coded = self.coded_after_prompt(num_tokens);
        let sinks = num_tokens.min(self.sinks);
        self.bytes(sinks, coded, num_tokens - sinks - coded)
    }

    /// The largest share of a full f16 cache that any length from `min_tokens` on can take, at any
    /// place of the window in its pages.
    pub(crate) fn worst_ratio(&self, min_tokens: usize) -> f64 {
        // Beyond one page of codes more, a longer context only amortises what is fixed.
        let lengths = min_tokens..=min_tokens + 2 * CODE_PAGE_TOKENS;
        let ratio = |num_tokens: usize| {
            self.most_bytes(num_tokens) as f64 / (4 * self.head_dim * num_tokens) as f64
        };
        lengths.map(ratio).fold(0.0, f64::max)
    }

    /// The most bytes that `num_tokens` can take, at any place of the window in its pages.
    pub(crate) fn most_bytes(&self, num_tokens: usize) -> usize {
        let sinks = num_tokens.min(self.sinks);
        let coded = self.coded_after_prompt(num_tokens);
        // One group more can be waiting, and the window can begin at the end of a page.
        let waiting = self.layout.group_tokens - 1 + WINDOW_PAGE_TOKENS - 1;
        self.bytes(sinks, coded, num_tokens - sinks - coded + waiting).total()
    }

    /// The whole groups among `candidates` tokens.
    pub(crate) fn whole_groups(&self, candidates: usize) -> usize {
        candidates / self.layout.group_tokens * self.layout.group_tokens
    }

    fn bytes(&self, sinks: usize, coded: usize, window: usize) -> DeviceBytes {
        let (tables, codes) = CodedKeys::bytes(&self.layout, coded);
        DeviceBytes {
            resident: ExactRows::bytes(self.head_dim, sink_page_tokens(self.sinks), sinks),
            window: ExactRows::bytes(self.head_dim, WINDOW_PAGE_TOKENS, window),
            codes,
            tables: if coded == 0 { 0 } else { tables },
            ..DeviceBytes::default()
        }
    }
}

/// Tokens of a page that holds the sinks.
pub(crate) fn sink_page_tokens(sinks: usize) -> usize {
    sinks.clamp(1, EXACT_PAGE_TOKENS)
}
