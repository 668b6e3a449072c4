//! The heterogeneous KV cache: all layers and KV heads, and one attention step over them.

mod layers;
mod parts;
mod step;
mod weigh;

pub use layers::AttentionCache;

use std::time::Instant;

use heterokv_attn::{AttnError, HeadShape};
use heterokv_offload::{Arena, Sequence, Stats, Store};
use heterokv_quant::Level;

use self::step::HeadWork;
use crate::exact::EXACT_PAGE_TOKENS;
use crate::head::{HeadCache, Stores};
use crate::held::Held;
use crate::hints::Hints;
use crate::host_step::HostStep;
use crate::plan::{DeviceBytes, DevicePlan, full_bytes, host_shape};
use crate::policy::Policy;
use crate::select::{Group, HeadSelection};
use crate::spec::CacheConfig;
use crate::times::StepTimes;
use crate::{Error, Profile, Result};

/// What a cache needs to know of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvShape {
    /// Layers.
    pub num_layers: usize,
    /// Heads, channels and scale of every layer.
    pub heads: HeadShape,
}

impl KvShape {
    /// Every (layer, KV head), in the order of `[num_layers, num_kv_heads]`.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let num_kv_heads = self.heads.num_kv_heads;
        (0..self.num_layers).flat_map(move |layer| (0..num_kv_heads).map(move |head| (layer, head)))
    }
}

/// What the decode steps of a cache have read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReadStats {
    /// Attention steps, one per token and layer.
    pub steps: u64,
    /// Sum over steps and KV heads of coded rows fetched from the host over tokens held.
    fraction_sum: f64,
    /// KV heads of those steps.
    heads: u64,
    /// Bytes of rows fetched from the host.
    pub host_bytes: u64,
}

impl ReadStats {
    /// Counts a step over KV heads that hold so many tokens and fetch what was selected.
    pub(crate) fn count_rows(
        &mut self,
        num_tokens: impl Iterator<Item = usize>,
        selections: &[HeadSelection],
        step: &HostStep<'_>,
    ) {
        for (selection, num_tokens) in selections.iter().zip(num_tokens) {
            let rows = selection.positions.len();
            self.fraction_sum += rows as f64 / num_tokens.max(1) as f64;
            self.heads += 1;
            self.host_bytes += rows as u64 * step.row_bytes();
        }
    }

    /// Coded rows fetched per KV head over tokens in the cache, mean over steps, layers and heads;
    /// 0 before the first step.
    #[must_use]
    pub fn rows_read(&self) -> f64 {
        if self.heads == 0 { 0.0 } else { self.fraction_sum / self.heads as f64 }
    }
}

/// A KV cache of one sequence.
///
/// ```
/// use heterokv_cache::{CacheSpec, HeadShape, KvCache, KvShape, Level};
///
/// // One layer of four query heads, two KV heads, eight channels.
/// let shape = KvShape { num_layers: 1, heads: HeadShape::new(4, 2, 8)? };
/// let spec: CacheSpec = "keys=int4-token,values=int8@host,select=none,sinks=2,recent=4".parse()?;
/// let mut cache = KvCache::new(shape, spec.resolve(&shape, None)?, Level::detect(), None)?;
///
/// for token in 0..20 {
///     let k: Vec<f32> = (0..16).map(|i| ((token * 16 + i) as f32).sin()).collect();
///     cache.append(0, &k, &[0.5; 16])?;
/// }
/// let mut out = [0.0; 32];
/// cache.attend(0, &[1.0; 32], &mut out)?;
///
/// // Every value is one half, and so is every mean of them, up to the rounding of int8.
/// assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-3));
/// assert_eq!(cache.num_tokens(), 20);
/// assert!(cache.host_in_use_bytes() > 0, "14 tokens have left the window for the host");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct KvCache {
    shape: KvShape,
    config: CacheConfig,
    level: Level,
    device: Arena,
    host: Option<Sequence>,
    hints: Hints,
    /// `[num_layers, num_kv_heads]`.
    heads: Vec<HeadCache>,
    /// `[num_kv_heads]`.
    groups: Vec<Group>,
    /// `[num_kv_heads]`.
    work: Vec<HeadWork>,
    /// `[num_qo_heads, head_dim]`: the queries of a step times `sm_scale`.
    scaled: Vec<f32>,
    /// `[num_kv_heads][group_size, held]`: working memory for softmax weights that the policy looks
    /// at.
    weights: Vec<Vec<f32>>,
    /// `[num_kv_heads]`: what the last step of a layer fetched.
    selections: Vec<HeadSelection>,
    /// What decides which tokens are forgotten; none where none are.
    policy: Option<Policy>,
    stats: ReadStats,
    times: StepTimes,
}

impl KvCache {
    /// An empty cache whose host store is in RAM. With a `profile`, its tables are used and nothing
    /// is fitted on the prompt.
    ///
    /// # Errors
    /// When the options do not go together, the key format refuses the shape, or the profile is for
    /// another shape or format.
    pub fn new(
        shape: KvShape,
        config: CacheConfig,
        level: Level,
        profile: Option<&Profile>,
    ) -> Result<Self> {
        check(&shape, &config, profile)?;
        let host = match &config {
            CacheConfig::Hca(hca) if hca.has_rows() => {
                Some(Store::in_ram(host_shape(hca, &shape))?.sequence())
            }
            _ => None,
        };
        Self::with_host(shape, config, level, profile, host)
    }

    /// An empty cache whose rows on the host are in `store`, which is of the config's
    /// [shape](CacheConfig::store_shape). Where that has a disk, the cache can be
    /// [saved](KvCache::save), and a step asks for what the next layer will probably read, so that
    /// the disk reads it while this layer is computed.
    ///
    /// # Errors
    /// As [`KvCache::new`], and [`Error::OtherStore`].
    pub fn in_store(
        shape: KvShape,
        config: CacheConfig,
        level: Level,
        profile: Option<&Profile>,
        store: &Store,
    ) -> Result<Self> {
        check(&shape, &config, profile)?;
        if config.keeps_rows_on_device() {
            return Err(Error::Forgetful {
                cannot: "puts them into no store; use values=...@host, or leave the disk out",
            });
        }
        if *store.shape() != config.store_shape(&shape) {
            return Err(Error::OtherStore);
        }
        Self::with_host(shape, config, level, profile, Some(store.sequence()))
    }

    /// An empty cache of what was checked.
    pub(crate) fn with_host(
        shape: KvShape,
        config: CacheConfig,
        level: Level,
        profile: Option<&Profile>,
        host: Option<Sequence>,
    ) -> Result<Self> {
        let device = Arena::new("device");
        let head_dim = shape.heads.head_dim;
        let head = |place: (usize, usize)| match &config {
            CacheConfig::Full => Ok(HeadCache::exact(place, head_dim, EXACT_PAGE_TOKENS)),
            CacheConfig::Hca(config) => {
                let head = if config.is_exact() {
                    HeadCache::exact(place, head_dim, config.exact_page_tokens())
                } else {
                    let plan = DevicePlan::new(config.keys.format(place), config, &shape)?;
                    let coder = profile.map(|profile| profile.coder(place).clone());
                    HeadCache::hca(place, plan, head_dim, coder, &device)?
                };
                match &config.evict {
                    None => Ok(head),
                    Some(eviction) => {
                        let held = Held::new(&device, eviction.has_evidence(place))?;
                        Ok(head.forgetting(held, eviction.has_satellite(place)))
                    }
                }
            }
        };
        let heads: Result<_> = shape.places().map(head).collect();
        let heads = heads?;
        let groups = vec![Group::new(&shape.heads); shape.heads.num_kv_heads];
        let work = vec![HeadWork::new(&shape.heads); groups.len()];
        let selections = vec![HeadSelection::default(); groups.len()];
        let (hints, stats) = (Hints::new(shape.num_layers), ReadStats::default());
        let policy = match &config {
            CacheConfig::Full => None,
            CacheConfig::Hca(hca) => {
                let policy = hca.evict.as_ref().map(|eviction| Policy::new(hca, eviction, &shape));
                policy.transpose()?
            }
        };
        let times = StepTimes::default();
        let weights = vec![Vec::new(); shape.heads.num_kv_heads];
        Ok(Self {
            shape,
            config,
            level,
            device,
            host,
            hints,
            heads,
            groups,
            work,
            scaled: Vec::new(),
            weights,
            selections,
            policy,
            stats,
            times,
        })
    }

    /// The shape this cache was made for.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// How this cache was made.
    #[must_use]
    pub fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// Tokens held by the first layer, which is the first to take one.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.heads.first().map_or(0, HeadCache::num_tokens)
    }

    /// Device bytes by component, summed over what is allocated.
    #[must_use]
    pub fn device_bytes(&self) -> DeviceBytes {
        let mut bytes = DeviceBytes::default();
        self.heads.iter().for_each(|head| bytes.add(head.device_bytes()));
        debug_assert_eq!(bytes.total(), self.device.in_use_bytes());
        DeviceBytes { values: self.device_value_bytes(), ..bytes }
    }

    /// Bytes of the rows that are not on the host.
    fn device_value_bytes(&self) -> usize {
        let rows = self.host.as_ref().map_or(0, Sequence::in_use_bytes);
        if self.config.keeps_rows_on_device() { rows } else { 0 }
    }

    /// Bytes that the device arena has given out, and those of values that are on the device.
    #[must_use]
    pub fn device_in_use_bytes(&self) -> usize {
        self.device.in_use_bytes() + self.device_value_bytes()
    }

    /// Bytes of the pages in the host store; those shared with forks count in full.
    #[must_use]
    pub fn host_in_use_bytes(&self) -> usize {
        let rows = self.host.as_ref().map_or(0, Sequence::in_use_bytes);
        let expected = self.policy.as_ref().map_or(0, Policy::host_bytes);
        rows - self.device_value_bytes() + expected
    }

    /// The positions of the tokens that a head holds, ascending; empty where no tokens are
    /// forgotten and so all are held.
    ///
    /// # Panics
    /// When there is no such head.
    #[must_use]
    pub fn held_positions(&self, layer: usize, kv_head: usize) -> &[u32] {
        let num_kv_heads = self.shape.heads.num_kv_heads;
        assert!(kv_head < num_kv_heads, "a KV head of the layer");
        self.heads[layer * num_kv_heads + kv_head].positions()
    }

    /// Whether its rows on the host are in this store.
    #[must_use]
    pub fn is_in(&self, store: &Store) -> bool {
        self.host.as_ref().is_some_and(|host| host.store().is_same(store))
    }

    /// What the host store holds and has done, where there is one; forks share it.
    #[must_use]
    pub fn host_stats(&self) -> Option<Stats> {
        self.host.as_ref().map(|host| host.store().stats())
    }

    /// Device bytes over the bytes of the same tokens in a full f16 cache; 0 for an empty cache.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let full = full_bytes(&self.shape, self.num_tokens());
        if full == 0 { 0.0 } else { self.device_in_use_bytes() as f64 / full as f64 }
    }

    /// What the decode steps since the last [reset](KvCache::reset_stats) have read.
    #[must_use]
    pub fn stats(&self) -> ReadStats {
        self.stats
    }

    /// Where the time of these steps went.
    #[must_use]
    pub fn step_times(&self) -> StepTimes {
        self.times
    }

    /// Times that rows of satellites were chosen anew since the cache was made, where what heads
    /// look at has drifted.
    #[must_use]
    pub fn num_refreshes(&self) -> u64 {
        self.policy.as_ref().map_or(0, Policy::num_refreshes)
    }

    /// Starts counting anew.
    pub fn reset_stats(&mut self) {
        (self.stats, self.times) = (ReadStats::default(), StepTimes::default());
    }

    /// A cache with the same contents. It shares nothing with this one but pages of the host store,
    /// which neither changes.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn fork(&self) -> Result<Self> {
        let device = self.device.fresh();
        let heads: Result<_> = self.heads.iter().map(|head| head.fork(&device)).collect();
        let host = self.host.as_ref().map(Sequence::fork);
        let (config, groups) = (self.config.clone(), self.groups.clone());
        let weights = vec![Vec::new(); self.weights.len()];
        let work = vec![HeadWork::new(&self.shape.heads); groups.len()];
        let selections = vec![HeadSelection::default(); groups.len()];
        let hints = self.hints.clone();
        let policy = self.policy.as_ref().map(|policy| policy.fork(host.as_ref()));
        let heads = heads?;
        Ok(Self {
            config,
            heads,
            host,
            hints,
            device,
            groups,
            work,
            scaled: Vec::new(),
            weights,
            selections,
            policy,
            ..*self
        })
    }

    /// Forgets the tokens behind the longest prefix of at most `num_tokens` that can be left of
    /// every head, and says how many are left. The first tokens, those of the window and all of
    /// `full` go one by one; coded ones go by the groups of their format, counted from the first
    /// behind the sinks.
    ///
    /// What is left of the window stays exact and is shorter than `recent` until further tokens
    /// have come; a token that was coded stays coded. Tables stay, and so does what was seen of
    /// queries where there are none yet. A cache that forgets tokens holds, until the next one
    /// comes, what it held of those that are left: of a ratio of fewer tokens that can be more.
    pub fn truncate(&mut self, num_tokens: usize) -> usize {
        let mut left = num_tokens;
        loop {
            let cut = self.heads.iter().fold(left, |left, head| head.cut_at_most(left));
            if cut == left {
                break;
            }
            left = cut;
        }
        for head in &mut self.heads {
            head.truncate(left, self.host.as_mut());
        }
        self.hints.reset();
        if let Some(policy) = &mut self.policy {
            policy.reset();
        }
        left
    }

    /// Refuses a prompt that this cache cannot take.
    pub(crate) fn check_empty(&self, layer: usize) -> Result<()> {
        self.check_layer(layer)?;
        match self.heads[layer * self.shape.heads.num_kv_heads].num_tokens() {
            0 => Ok(()),
            num_tokens => Err(Error::NotEmpty { layer, num_tokens }),
        }
    }

    fn check_layer(&self, layer: usize) -> Result<()> {
        let num_layers = self.shape.num_layers;
        if layer < num_layers { Ok(()) } else { Err(Error::NoSuchLayer { layer, num_layers }) }
    }

    /// Appends one token to a layer: post-RoPE `k` and `v` `[num_kv_heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::Length`] and values that are not finite, before anything is
    /// stored; or no memory.
    pub fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<()> {
        let HeadShape { num_kv_heads, head_dim, .. } = self.shape.heads;
        self.check_layer(layer)?;
        check_token("k", k, num_kv_heads * head_dim)?;
        check_token("v", v, num_kv_heads * head_dim)?;
        let mut stores =
            Stores { level: self.level, device: &self.device, host: self.host.as_mut() };
        if let Some(policy) = &mut self.policy {
            let start = Instant::now();
            self.stats.host_bytes += policy.arrive(
                layer,
                &mut self.heads[layer * num_kv_heads..][..num_kv_heads],
                &stores,
            )?;
            policy.make_room(layer, &mut self.heads, &mut stores)?;
            self.times.policy += start.elapsed();
        }
        let heads = &mut self.heads[layer * num_kv_heads..][..num_kv_heads];
        let rows = k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim));
        for (kv_head, (head, (key, value))) in heads.iter_mut().zip(rows).enumerate() {
            match &self.policy {
                None => head.append(&mut stores, key, value)?,
                Some(policy) => {
                    let place = layer * num_kv_heads + kv_head;
                    let evidence = policy.evidence_of(place, head.num_tokens(), key, value)?;
                    head.append_with(&mut stores, key, value, evidence)?;
                }
            }
        }
        Ok(())
    }
}

/// Refuses what no cache can be made of.
pub(crate) fn check(
    shape: &KvShape,
    config: &CacheConfig,
    profile: Option<&Profile>,
) -> Result<()> {
    shape.heads.check()?;
    match (config, profile) {
        (CacheConfig::Full, Some(_)) => {
            Err(Error::Conflict { conflict: "full codes no keys and takes no profile" })
        }
        (CacheConfig::Full, None) => Ok(()),
        (CacheConfig::Hca(hca), profile) => {
            hca.check(shape)?;
            profile.map_or(Ok(()), |profile| profile.check(shape, &hca.keys))
        }
    }
}

/// One token's values: of the right number, and finite.
pub(crate) fn check_token(tensor: &'static str, values: &[f32], expected: usize) -> Result<()> {
    check_len(tensor, values.len(), expected)?;
    check_finite(tensor, values)
}

pub(crate) fn check_finite(tensor: &'static str, values: &[f32]) -> Result<()> {
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(index) => Err(AttnError::NotFinite { tensor, index, value: values[index] }.into()),
    }
}

pub(crate) fn check_len(tensor: &'static str, actual: usize, expected: usize) -> Result<()> {
    if actual == expected { Ok(()) } else { Err(Error::Length { tensor, actual, expected }) }
}
