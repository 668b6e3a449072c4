//! The heterogeneous KV cache of one sequence whose device is a GPU.
//!
//! What [`KvCache`](crate::KvCache) does with an arena in RAM happens here in buffers of a device, by the same plan and
//! to the same formats: exact rows of the first and the last tokens, codes of the keys in between. A step of a layer:
//!
//! 1. the token's key and value are stored in the window; the rows of tokens that leave it go to the host, and their keys
//!    are coded;
//! 2. the device works out the log-sum-exp of the resident tokens, scores the coded keys and selects (first submission);
//! 3. the device attends over the resident tokens (second submission), while the host sums the rows that were selected,
//!    re-scored by its exact keys where it has them;
//! 4. the host's state goes up, and the two merge.
//!
//! What crosses is counted: down the selected positions with their scores, the log-sum-exps, the token's key and value,
//! and its queries where rows are re-scored; up the host's state, and lists of pages and of keys to code, or codes where
//! keys are coded on the host. None of it grows with the context but for what is selected.
//!
//! `full` stays on the device altogether, and nothing waits for the host. So does a cache of exact rows that forgets tokens
//! behind the prompt ([`PromptWatch`]): each KV head has the rows that the host has chosen for it.

mod coded;
mod lists;
mod plan;
mod prompt;
mod results;
mod rows;
mod scratch;
mod step;
#[cfg(test)]
mod tests;
mod transfer;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;

use heterokv_attn::device::Device;
use heterokv_gpu::{Bound, Buffer, Commands, Gpu, Landing};
use heterokv_offload::{Sequence, Stats, Store};
use heterokv_quant::{FitInput, KeyCoder, Level};

use crate::cache::{ReadStats, check, check_token};
use crate::eviction::{Eviction, Keep};
use crate::head::normalised;
use crate::hints::Hints;
use crate::plan::{DeviceBytes, DevicePlan, full_bytes, host_shape};
use crate::policy::Policy;
use crate::spec::CacheConfig;
use crate::{AttentionCache, Error, KvShape, Profile, Result};

use coded::CodedSet;
use lists::{RowLists, States};
pub use plan::{DeviceCachePlan, Reservation};
pub use prompt::PromptOnDevice;
use rows::{RowPool, RowRun};
use scratch::{Scratch, ScratchShape};
pub use step::TokenOnDevice;
pub use watch::PromptWatch;

/// A KV cache of one sequence on a GPU.
#[derive(Debug)]
pub struct DeviceCache {
    device: Arc<Device>,
    shape: KvShape,
    config: CacheConfig,
    level: Level,
    rows: RowPool,
    layers: Vec<Layer>,
    host: Option<Sequence>,
    /// What decides which tokens of a prompt are held; none where all are.
    policy: Option<Policy>,
    hints: Hints,
    states: States,
    /// None where nothing is coded.
    scratch: Option<Scratch>,
    buffers: StepBuffers,
    landing: Landing,
    stats: ReadStats,
    /// A step has begun and not ended: tokens may be in one place and not in another.
    is_broken: bool,
}

/// That a step has begun.
#[derive(Debug)]
struct Entered;

/// What a step works in, for one layer after the other.
#[derive(Debug)]
struct StepBuffers {
    /// `[num_qo_heads, head_dim]`, f32: what a merge gives whose log-sum-exp alone is looked at.
    out: Buffer,
    /// `[num_qo_heads]`, f32: log-sum-exp of what was merged.
    lse: Buffer,
}

#[derive(Debug)]
struct Layer {
    heads: Vec<Head>,
    sets: Vec<CodedSet>,
    lists: RowLists,
    /// Selected tokens of a head for which there is room in the next landing.
    expected: usize,
}

/// One (layer, KV head).
#[derive(Debug)]
struct Head {
    /// None where all rows are exact.
    plan: Option<DevicePlan>,
    /// Its coded keys: a set, and a member of it.
    place: (usize, usize),
    /// Exact rows that stay.
    resident: RowRun,
    /// Tokens of the prompt that were forgotten.
    num_forgotten: usize,
    window: RowRun,
    /// Keys and values of the window as f16 holds them, for when they leave it.
    window_rows: VecDeque<[Vec<f32>; 2]>,
    /// Sum of q² per channel over the queries seen before there are tables.
    query_energy: Vec<f64>,
}

impl DeviceCache {
    /// An empty cache with room for what `reservation` says, more is made as it is needed, and a host store in RAM. How much
    /// a budget keeps that finds it on the text is not known before, and room for its rows is made layer by layer. With a
    /// `profile`, its tables are used and nothing is fitted on the prompt.
    ///
    /// # Errors
    /// As [`KvCache::new`](crate::KvCache::new); [`Error::NotOnDevice`] for keys that have no kernels; and what the device
    /// lacks.
    pub fn new(
        device: Arc<Device>,
        shape: KvShape,
        config: CacheConfig,
        level: Level,
        profile: Option<&Profile>,
        reservation: Reservation,
    ) -> Result<Self> {
        check(&shape, &config, profile)?;
        let host = match config.coded() {
            None => None,
            Some(hca) => Some(Store::in_ram(host_shape(hca, &shape))?.sequence()),
        };
        Self::with_host(device, shape, config, level, profile, host, reservation)
    }

    /// An empty cache of what was checked.
    fn with_host(
        device: Arc<Device>,
        shape: KvShape,
        config: CacheConfig,
        level: Level,
        profile: Option<&Profile>,
        host: Option<Sequence>,
        reservation: Reservation,
    ) -> Result<Self> {
        let gpu = device.gpu();
        let plan = DeviceCachePlan::new(&config, &shape, gpu.limits(), reservation)?;
        let mut rows = RowPool::new(gpu, shape.heads.head_dim, plan.page_tokens)?;
        let is_known = |(_, eviction): (_, &Eviction)| eviction.keep != Keep::Own;
        if config.forgetting().is_none_or(is_known) {
            rows.reserve(gpu, plan.row_pages)?;
        }
        let mut layers = Vec::with_capacity(shape.num_layers);
        for index in 0..shape.num_layers {
            let mut layer = Layer::new(gpu, &config, &shape, &plan, index)?;
            if let Some(profile) = profile {
                for (kv_head, head) in layer.heads.iter().enumerate() {
                    let (set, member) = head.place;
                    let coder = profile.coder((index, kv_head)).clone();
                    layer.sets[set].set_coder(gpu, member, coder)?;
                }
            }
            layers.push(layer);
        }
        let policy = config.forgetting().map(|(hca, eviction)| Policy::new(hca, eviction, &shape));
        let heads = shape.heads;
        let row_bytes = 4 * heads.qo_row_len() as u64;
        let states = States::new(gpu, heads, plan.states)?;
        Ok(Self {
            rows,
            layers,
            host,
            policy: policy.transpose()?,
            hints: Hints::new(shape.num_layers),
            states,
            scratch: plan.scratch.map(|size| Scratch::new(gpu, heads, size)).transpose()?,
            buffers: StepBuffers {
                out: gpu.buffer("a token's outputs", row_bytes)?,
                lse: gpu.buffer("a token's lse", 4 * heads.num_qo_heads as u64)?,
            },
            landing: gpu.landing("a step's results", 0)?,
            stats: ReadStats::default(),
            is_broken: false,
            device,
            shape,
            config,
            level,
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
        let Some(layer) = self.layers.first() else { return 0 };
        layer.num_tokens(0)
    }

    /// Device bytes by component, as allocated: what is reserved is counted, used or not. Pages of the window are all
    /// pages of exact rows but those of the tokens that stay.
    #[must_use]
    pub fn device_bytes(&self) -> DeviceBytes {
        let page_bytes = RowPool::page_bytes(self.shape.heads.head_dim, self.rows.page_tokens());
        let heads = self.layers.iter().flat_map(|layer| &layer.heads);
        let resident = match self.config.coded() {
            None => self.rows.num_bytes(),
            Some(_) => heads.map(|head| head.resident.num_pages() as u64 * page_bytes).sum(),
        };
        let sets = || self.layers.iter().flat_map(|layer| &layer.sets);
        let lists: u64 = self.layers.iter().map(|layer| layer.lists.num_bytes()).sum();
        DeviceBytes {
            resident: resident as usize,
            window: (self.rows.num_bytes() - resident) as usize,
            codes: sets().map(CodedSet::page_bytes).sum::<u64>() as usize,
            tables: (sets().map(CodedSet::frame_bytes).sum::<u64>() + lists) as usize,
            ..DeviceBytes::default()
        }
    }

    /// Bytes of the pages in the host store, and of what is kept beside them.
    #[must_use]
    pub fn host_in_use_bytes(&self) -> usize {
        let rows = self.host.as_ref().map_or(0, Sequence::in_use_bytes);
        rows + self.policy.as_ref().map_or(0, Policy::host_bytes)
    }

    /// What the host store holds and has done, where there is one.
    #[must_use]
    pub fn host_stats(&self) -> Option<Stats> {
        self.host.as_ref().map(|host| host.store().stats())
    }

    /// Whether the cache needs to know how much a prompt's queries look at each channel: to fit tables on.
    #[must_use]
    pub fn needs_query_energy(&self) -> bool {
        let lacks_tables =
            |layer: &Layer| (0..layer.heads.len()).any(|head| !layer.has_coder(head));
        self.config.coded().is_some() && self.layers.iter().any(lacks_tables)
    }

    /// The device that it is on.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The host store, where there is one: what a lost device leaves.
    #[must_use]
    pub fn host(&self) -> Option<&Sequence> {
        self.host.as_ref()
    }

    /// Device bytes over the bytes of the same tokens in a full f16 cache; 0 for an empty cache.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let full = full_bytes(&self.shape, self.num_tokens());
        if full == 0 { 0.0 } else { self.device_bytes().total() as f64 / full as f64 }
    }

    /// What the decode steps since the last [reset](DeviceCache::reset_stats) have read.
    #[must_use]
    pub fn stats(&self) -> ReadStats {
        self.stats
    }

    /// Starts counting anew.
    pub fn reset_stats(&mut self) {
        self.stats = ReadStats::default();
    }

    /// What the sets need to work in where heads have so many coded tokens.
    fn scratch_shape(&self, max_tokens: usize) -> ScratchShape {
        let sets = || self.layers.iter().flat_map(|layer| &layer.sets);
        let heads = sets().map(|set| set.heads().len()).max().unwrap_or(0);
        let table_words = sets().map(CodedSet::table_words).max().unwrap_or(0);
        ScratchShape { heads, table_words, max_tokens }
    }

    /// Begins what leaves the cache of no further use if it fails.
    fn enter(&mut self) -> Result<Entered> {
        if std::mem::replace(&mut self.is_broken, true) {
            return Err(Error::Broken);
        }
        Ok(Entered)
    }

    /// Ends it.
    fn leave(&mut self, _: Entered) {
        self.is_broken = false;
    }

    fn check_layer(&self, layer: usize) -> Result<()> {
        let num_layers = self.shape.num_layers;
        if layer < num_layers { Ok(()) } else { Err(Error::NoSuchLayer { layer, num_layers }) }
    }
}

impl Layer {
    fn new(
        gpu: &Gpu,
        config: &CacheConfig,
        shape: &KvShape,
        plan: &DeviceCachePlan,
        index: usize,
    ) -> Result<Self> {
        let head_dim = shape.heads.head_dim;
        let mut sets = Vec::new();
        let mut places = vec![(0, 0); shape.heads.num_kv_heads];
        for (number, (format, heads)) in plan.sets(config, shape, index).into_iter().enumerate() {
            heads.iter().enumerate().for_each(|(m, &head)| places[head] = (number, m));
            let mut set = CodedSet::new(gpu, heads, format, head_dim)?;
            let coded = plan.coded_tokens(config, shape, format)?;
            set.reserve(gpu, coded)?;
            sets.push(set);
        }
        let head = |(kv_head, place): (usize, (usize, usize))| {
            let plan = match config.coded() {
                None => None,
                Some(hca) => Some(DevicePlan::new(hca.keys.format((index, kv_head)), hca, shape)?),
            };
            Ok(Head {
                plan,
                place,
                resident: RowRun::default(),
                num_forgotten: 0,
                window: RowRun::default(),
                window_rows: VecDeque::new(),
                query_energy: vec![0.0; head_dim],
            })
        };
        let heads: Result<_> = places.into_iter().enumerate().map(head).collect();
        Ok(Self { heads: heads?, sets, lists: RowLists::new(gpu)?, expected: step::EXPECTED_STEP })
    }

    /// Coded tokens of a KV head.
    fn num_coded(&self, kv_head: usize) -> usize {
        let (set, member) = self.heads[kv_head].place;
        self.sets.get(set).map_or(0, |set| set.num_tokens(member))
    }

    /// Tokens that a KV head has taken in.
    fn num_tokens(&self, kv_head: usize) -> usize {
        let head = &self.heads[kv_head];
        head.num_forgotten + head.resident.len() + head.window.len() + self.num_coded(kv_head)
    }

    /// Whether a KV head has its tables.
    fn has_coder(&self, kv_head: usize) -> bool {
        let (set, member) = self.heads[kv_head].place;
        self.sets.get(set).is_some_and(|set| set.coder(member).is_some())
    }

    /// Takes note of the squares of queries of a KV head's group, summed by channel, while it has no tables.
    fn add_query_energy(&mut self, kv_head: usize, energy: impl Iterator<Item = f64>) {
        if self.heads[kv_head].plan.is_none() || self.has_coder(kv_head) {
            return;
        }
        let sums = &mut self.heads[kv_head].query_energy;
        sums.iter_mut().zip(energy).for_each(|(sum, energy)| *sum += energy);
    }

    /// Sends tokens `[n, head_dim]` of a KV head, whole groups that are to be coded, to the host, and fits the tables on
    /// them if need be.
    fn hand_over(
        &mut self,
        gpu: &Gpu,
        level: Level,
        host: &mut Sequence,
        (layer, kv_head): (usize, usize),
        [keys, values]: [&[f32]; 2],
    ) -> Result<()> {
        let head = &self.heads[kv_head];
        let mut fitted = None;
        if !self.has_coder(kv_head)
            && let Some(plan) = &head.plan
        {
            let input = FitInput {
                head_dim: head.query_energy.len(),
                keys,
                query_energy: &normalised(&head.query_energy),
                seed: (layer as u64) << 32 | kv_head as u64,
                level,
            };
            fitted = Some(KeyCoder::fit(plan.format, &input)?);
        }
        // Before anything of the device: what one that is lost leaves is there.
        host.append(layer, kv_head, keys, values)?;
        if let Some(coder) = fitted {
            let (set, member) = head.place;
            self.sets[set].set_coder(gpu, member, coder)?;
        }
        Ok(())
    }
}

impl AttentionCache for DeviceCache {
    fn num_tokens(&self) -> usize {
        Self::num_tokens(self)
    }

    fn append(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<()> {
        let heads = self.shape.heads;
        self.check_layer(layer)?;
        check_token("k", k, heads.kv_row_len())?;
        check_token("v", v, heads.kv_row_len())?;
        let entered = self.enter()?;
        self.append_from_host(layer, k, v)?;
        self.leave(entered);
        Ok(())
    }

    fn attend(&mut self, layer: usize, q: &[f32], out: &mut [f32]) -> Result<()> {
        let len = self.shape.heads.qo_row_len();
        self.check_layer(layer)?;
        check_token("q", q, len)?;
        crate::cache::check_len("out", out.len(), len)?;
        let device = Arc::clone(&self.device);
        let gpu = device.gpu();
        let to = gpu.buffer("outputs", 4 * len as u64)?;
        let on_device = gpu.upload("queries", bytemuck::cast_slice(q))?;
        let entered = self.enter()?;
        let commands = Commands::new(gpu);
        let commands =
            self.attend_on_device(layer, commands, Bound::all(&on_device), Bound::all(&to), None)?;
        commands.submit()?;
        self.leave(entered);
        let bytes = gpu.read(&to, 0, 4 * len as u64)?;
        out.copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, f32>(&bytes));
        Ok(())
    }
}
