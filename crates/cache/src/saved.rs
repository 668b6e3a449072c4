//! A cache on disk: its state beside the rows of its host store, read back to the bit.
//!
//! What is attached to the saved sequence: the length of a header (4 bytes, little-endian), the header in JSON, the
//! companion's bytes, head by head the exact rows that stay, those of the window, and the tables and pages of the codes,
//! or what was seen of queries where there are none yet, with the positions of the tokens and what is known of them where
//! some are forgotten, and then what decides which. The header implies how long all of it is, so that no
//! count in it decides an allocation.

use std::io::{self, Write};

use half::f16;
use heterokv_offload::{Attachment, Sequence, Store};
use heterokv_quant::keys::Tables;
use heterokv_quant::{KeyCoder, KeyFormat, Level};
use serde::{Deserialize, Serialize};

use crate::cache::{KvCache, check};
use crate::coded::{CODE_PAGE_TOKENS, page_bytes};
use crate::held::Held;
use crate::plan::DevicePlan;
use crate::policy::SavedPolicy;
use crate::spec::{CacheConfig, HcaConfig};
use crate::{Error, Keys, KvShape, Profile, Result};

/// Version of all that is attached.
const VERSION: u32 = 2;

/// Most bytes of a header: some times what the most heads of any model take.
const MAX_HEADER_BYTES: usize = 64 << 20;

/// Bytes of a companion that are read at a time.
const READ_BYTES: usize = 1 << 20;

/// A cache that was [saved](KvCache::save), its header and companion read and nothing else. It stays what it is when
/// something else is saved under the name.
#[derive(Debug)]
pub struct SavedCache {
    header: Header,
    companion: Vec<u8>,
    // Before the rows, which keep the store that its file is of.
    data: Attachment,
    /// The rows, or why the store cannot have them.
    host: heterokv_offload::Result<Sequence>,
}

/// What the bytes behind it are.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    shape: String,
    /// The format of the keys, or of a mix those of all heads with blanks between them; empty where none are coded.
    keys: String,
    /// The other options of the spec, but for the file of a profile of heads.
    options: String,
    /// What that profile says of each head, with blanks between them; empty where there is none.
    #[serde(default)]
    roles: String,
    companion_bytes: u64,
    /// `[num_layers, num_kv_heads]`.
    heads: Vec<SavedHead>,
    /// What decides which tokens are forgotten; none where none are.
    policy: Option<SavedPolicy>,
}

/// The one field of every version.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// One (layer, KV head), in numbers of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedHead {
    /// Tokens taken in, forgotten ones included.
    pub(crate) seen: usize,
    /// Exact rows that stay.
    pub(crate) resident: usize,
    pub(crate) window: usize,
    /// Rows of the window's first page that were taken.
    pub(crate) window_start: usize,
    pub(crate) coded: usize,
    /// Values of each table, once there are tables.
    pub(crate) tables: Option<Vec<usize>>,
}

impl CacheConfig {
    /// Refuses caches of this kind that cannot be [saved](KvCache::save): before the work, which would be lost.
    ///
    /// # Errors
    /// [`Error::Forgetful`] where rows come back on drift, and where coded keys have their values on the device.
    pub fn check_saved(&self) -> Result<()> {
        if self.forgetting().is_some_and(|(config, _)| config.comes_back()) {
            return Err(Error::Forgetful {
                cannot: "is not saved where rows are to come back on drift; use another every=... for sessions",
            });
        }
        if self.keeps_rows_on_device() {
            return Err(Error::Forgetful {
                cannot: "and has rows of values on the device is not saved; use values=...@host for sessions",
            });
        }
        Ok(())
    }
}

impl KvCache {
    /// Saves the cache under a name in the folder of its store, in the place of what was saved there before, with bytes of
    /// the caller's beside it. When this returns, both survive whatever happens to the process and the machine; until then,
    /// and where it fails, what was saved before does. What is counted of reads is not saved.
    ///
    /// # Errors
    /// [`Error::MidToken`], as [`CacheConfig::check_saved`], and what the store refuses: one without a
    /// disk, a name, a disk that is full.
    pub fn save(&mut self, name: &str, companion: &[u8]) -> Result<()> {
        self.config().check_saved()?;
        let heads = self.saved_heads()?;
        let mut header = Header::new(&self.shape(), self.config(), companion.len(), heads);
        let (policy, heads, stores) = self.policy_mut();
        if let Some(policy) = &policy {
            header.policy = Some(policy.saved());
        }
        let host = stores.host.ok_or(heterokv_offload::Error::NoDisk)?;
        let saved = host.save_with(name, |out| {
            header.write(companion, out)?;
            heads.iter().try_for_each(|head| head.write(out))?;
            policy.as_ref().map_or(Ok(()), |policy| policy.write(out))
        });
        Ok(saved?)
    }

    fn saved_heads(&mut self) -> Result<Vec<SavedHead>> {
        let expected = self.num_tokens();
        let num_kv_heads = self.shape().heads.num_kv_heads;
        let (heads, ..) = self.parts_mut();
        for (place, head) in heads.iter().enumerate() {
            let (layer, num_tokens) = (place / num_kv_heads, head.num_tokens());
            if num_tokens != expected {
                return Err(Error::MidToken { layer, num_tokens, expected });
            }
        }
        Ok(heads.iter().map(|head| head.saved()).collect())
    }
}

impl SavedCache {
    /// The cache that is saved under a name in the folder of a store, which need not be of its shape or model: what it is
    /// can be said of any.
    ///
    /// # Errors
    /// [`Error::OtherSave`] for another version, [`Error::DamagedSave`], and as
    /// [`Store::load_with`](heterokv_offload::Store::load_with).
    pub fn open(store: &Store, name: &str) -> Result<Self> {
        let (mut data, host) = store.load_with(name)?;
        let mut len = [0; 4];
        data.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_HEADER_BYTES || len as u64 > data.rest_bytes() {
            return Err(damaged("its header is longer than it can be"));
        }
        let mut bytes = vec![0; len];
        data.read_exact(&mut bytes)?;
        let header = Header::parse(&bytes)?;
        let companion_bytes = header.companion_bytes;
        if companion_bytes > data.rest_bytes() {
            return Err(damaged("it ends within what stands beside the cache"));
        }
        let mut companion = Vec::new();
        let mut left = companion_bytes as usize;
        while left > 0 {
            let (first, count) = (companion.len(), left.min(READ_BYTES));
            companion.resize(first + count, 0);
            data.read_exact(&mut companion[first..])?;
            left -= count;
        }
        Ok(Self { header, companion, data, host })
    }

    /// The caller's bytes.
    #[must_use]
    pub fn companion(&self) -> &[u8] {
        &self.companion
    }

    /// Tokens of the cache.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.header.heads.first().map_or(0, |head| head.seen)
    }

    /// Refuses another shape and another config than those of what is saved.
    ///
    /// # Errors
    /// [`Error::OtherSave`], that says what differs.
    pub fn check(&self, shape: &KvShape, config: &CacheConfig) -> Result<()> {
        let expected = Header::new(shape, config, 0, Vec::new());
        for (field, found, expected) in [
            ("a cache", &self.header.options, &expected.options),
            ("keys", &self.header.keys, &expected.keys),
            ("a shape", &self.header.shape, &expected.shape),
            ("roles and weights of heads", &self.header.roles, &expected.roles),
        ] {
            if found != expected {
                let (found, expected) = (found.clone(), expected.clone());
                return Err(Error::OtherSave { field, found, expected });
            }
        }
        Ok(())
    }

    /// The cache: what it gives is, to the bit, what the one that was saved gives. Rows on the host are read when they are
    /// asked for. With a `profile`, its tables must be those of the cache.
    ///
    /// # Errors
    /// As [`check`](Self::check) and [`KvCache::in_store`], [`Error::DamagedSave`], what the store refuses, and no memory.
    pub fn load(
        &self,
        shape: KvShape,
        config: CacheConfig,
        level: Level,
        profile: Option<&Profile>,
    ) -> Result<KvCache> {
        self.check_counts(&shape, &config, profile)?;
        let host = self.host.as_ref().map(Sequence::fork).map_err(Clone::clone)?;
        let mut data = self.data.clone();
        let mut cache = KvCache::with_host(shape, config, level, None, Some(host))?;
        let (heads, device, host) = cache.parts_mut();
        for ((place, head), saved) in shape.places().zip(heads).zip(&self.header.heads) {
            head.read(saved, device, &mut data)?;
            let rows = host.as_ref().map(|host| host.rows(place.0, place.1).num_rows());
            if rows != Some(saved.coded) {
                return Err(damaged("its rows on the host are not those of its codes"));
            }
            check_tables(head.tables(), profile.map(|profile| profile.coder(place)))?;
        }
        if let ((Some(policy), ..), Some(saved)) = (cache.policy_mut(), &self.header.policy) {
            policy.read(saved, &shape, &mut data)?;
        }
        Ok(cache)
    }

    /// Refuses what does not fit what is asked for, and lengths that contradict each other.
    fn check_counts(
        &self,
        shape: &KvShape,
        config: &CacheConfig,
        profile: Option<&Profile>,
    ) -> Result<()> {
        check(shape, config, profile)?;
        self.check(shape, config)?;
        let heads = &self.header.heads;
        if heads.len() != shape.places().count() {
            return Err(damaged("it is not of as many heads as its shape"));
        }
        let eviction = config.forgetting().map(|(_, eviction)| eviction);
        let num_tokens = self.num_tokens();
        let of_policy = match (eviction, &self.header.policy) {
            (None, None) => Some(0),
            (Some(_), Some(policy)) => policy.num_bytes(shape, num_tokens),
            _ => None,
        };
        let Some(mut num_bytes) = of_policy else {
            return Err(damaged("the numbers of what decides which tokens are forgotten are none"));
        };
        for (place, head) in shape.places().zip(heads) {
            let plan = match config {
                CacheConfig::Hca(hca) if !hca.is_exact() => {
                    Some(DevicePlan::new(hca.keys.format(place), hca, shape)?)
                }
                _ => None,
            };
            let of_rows = head.num_bytes(plan.as_ref(), shape.heads.head_dim);
            let of_held =
                head.num_held_bytes(eviction.map(|eviction| eviction.has_evidence(place)));
            let of_head = of_rows.zip(of_held).map(|(rows, held)| rows.saturating_add(held));
            let of_head = of_head.filter(|_| head.seen == num_tokens);
            let Some(of_head) = of_head else {
                let (layer, kv_head) = place;
                let reason =
                    format!("the counts of layer {layer}, KV head {kv_head} are no cache's");
                return Err(Error::DamagedSave { reason });
            };
            num_bytes = num_bytes.saturating_add(of_head);
        }
        if num_bytes != self.data.rest_bytes() {
            return Err(damaged("it is not as long as its header says"));
        }
        Ok(())
    }
}

impl Header {
    fn new(
        shape: &KvShape,
        config: &CacheConfig,
        companion_bytes: usize,
        heads: Vec<SavedHead>,
    ) -> Self {
        let KvShape { num_layers, heads: of_layer } = shape;
        let mut config = config.clone();
        let mut roles = String::new();
        if let CacheConfig::Hca(HcaConfig { evict: Some(eviction), .. }) = &mut config {
            // A profile is what it says, not the file that it lies in.
            let heads = eviction.heads.take();
            roles = heads.map_or_else(String::new, |heads| heads.profile.said_of_heads().join(" "));
        }
        let options = config.to_string();
        let (keys, options) = match &config {
            CacheConfig::Full => (String::new(), options),
            CacheConfig::Hca(hca) => {
                // A mix is what it chose, not the file that it lies in.
                let keys = match &hca.keys {
                    Keys::Uniform(format) => format.to_string(),
                    Keys::Mix(_) => {
                        let names = shape.places().map(|place| hca.keys.format(place).to_string());
                        names.collect::<Vec<_>>().join(" ")
                    }
                };
                let options = options.strip_prefix(&format!("keys={},", hca.keys));
                (keys, options.expect("a config begins with its keys").to_owned())
            }
        };
        Self {
            version: VERSION,
            shape: format!(
                "{num_layers} layers of {} query and {} KV heads of {}, scale {}",
                of_layer.num_qo_heads, of_layer.num_kv_heads, of_layer.head_dim, of_layer.sm_scale
            ),
            keys,
            options,
            roles,
            companion_bytes: companion_bytes as u64,
            heads,
            policy: None,
        }
    }

    fn write(&self, companion: &[u8], out: &mut dyn Write) -> io::Result<()> {
        let header = serde_json::to_vec(self)?;
        out.write_all(&u32::try_from(header.len()).map_err(io::Error::other)?.to_le_bytes())?;
        out.write_all(&header)?;
        out.write_all(companion)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let in_words = |error: serde_json::Error| Error::DamagedSave { reason: error.to_string() };
        let Versioned { version } = serde_json::from_slice(bytes).map_err(in_words)?;
        if version != VERSION {
            return Err(other("version", &version.to_string(), &VERSION.to_string()));
        }
        serde_json::from_slice(bytes).map_err(in_words)
    }
}

impl SavedHead {
    /// Tokens held.
    pub(crate) fn num_held(&self) -> usize {
        self.resident.saturating_add(self.window).saturating_add(self.coded)
    }

    /// Bytes of what is known of tokens held, with a number of each or without, where some are forgotten; none where the
    /// counts are no head's.
    fn num_held_bytes(&self, has_evidence: Option<bool>) -> Option<u64> {
        let num_held = self.num_held();
        // Positions are u32, and as many tokens can come again.
        let is_counted = i32::try_from(self.seen).is_ok() && num_held <= self.seen;
        match has_evidence {
            None => (num_held == self.seen).then_some(0),
            Some(has_evidence) => {
                is_counted.then(|| Held::saved_bytes(num_held, has_evidence) as u64)
            }
        }
    }

    /// Bytes of the rows of the head, of one of exact rows alone without a plan; none where its counts are no head's.
    fn num_bytes(&self, plan: Option<&DevicePlan>, head_dim: usize) -> Option<u64> {
        let rows = self.resident.checked_add(self.window)?.checked_mul(4 * head_dim)?;
        let is_counted = u32::try_from(self.num_held()).is_ok();
        let Some(plan) = plan else {
            let is_full = self.window == 0 && self.coded == 0 && self.tables.is_none();
            return (is_full && is_counted).then_some(rows as u64);
        };
        let is_behind_sinks = self.window == 0 && self.coded == 0 || self.resident == plan.sinks;
        let is_whole = plan.whole_groups(self.coded) == self.coded;
        if !is_counted || self.resident > plan.sinks || !is_behind_sinks || !is_whole {
            return None;
        }
        let Some(tables) = &self.tables else {
            return (self.coded == 0).then_some((rows + 8 * head_dim) as u64);
        };
        let layout = plan.format.layout(head_dim).ok()?;
        let mut table_bytes = 0usize;
        for len in tables {
            table_bytes = table_bytes.checked_add(len.checked_mul(2)?)?;
        }
        let is_all = tables.len() == KeyCoder::table_names(plan.format).len();
        let codes = self.coded.div_ceil(CODE_PAGE_TOKENS).checked_mul(page_bytes(&layout))?;
        let of_all = rows.checked_add(table_bytes)?.checked_add(codes)?;
        (is_all && table_bytes == layout.table_bytes).then_some(of_all as u64)
    }

    /// The coder of the tables that come next, if there are any.
    pub(crate) fn read_coder(
        &self,
        format: KeyFormat,
        head_dim: usize,
        data: &mut Attachment,
    ) -> Result<Option<KeyCoder>> {
        let Some(lens) = &self.tables else { return Ok(None) };
        let mut tables = Tables::new();
        for (&name, &len) in KeyCoder::table_names(format).iter().zip(lens) {
            let mut bytes = vec![0; 2 * len];
            data.read_exact(&mut bytes)?;
            let values = bytes.as_chunks::<2>().0.iter().map(|x| f16::from_le_bytes(*x));
            tables.push((name, values.collect()));
        }
        Ok(Some(KeyCoder::restore(format, head_dim, &tables)?))
    }

    /// What was seen of queries, which comes next where there are no tables.
    pub(crate) fn read_energy(&self, energy: &mut [f64], data: &mut Attachment) -> Result<()> {
        for sum in energy {
            let mut bytes = [0; 8];
            data.read_exact(&mut bytes)?;
            *sum = f64::from_le_bytes(bytes);
            if !(sum.is_finite() && *sum >= 0.0) {
                return Err(damaged("a sum of squares of queries is none"));
            }
        }
        Ok(())
    }
}

/// Writes the tables of a coder, one behind the other.
pub(crate) fn write_tables(coder: &KeyCoder, out: &mut dyn Write) -> io::Result<()> {
    let tables = coder.tables();
    let mut values = tables.iter().flat_map(|(_, table)| table);
    values.try_for_each(|x| out.write_all(&x.to_le_bytes()))
}

/// Refuses tables other than those of a profile, where there is one.
fn check_tables(found: Option<&KeyCoder>, of_profile: Option<&KeyCoder>) -> Result<()> {
    let Some(expected) = of_profile else { return Ok(()) };
    if found.map(KeyCoder::tables) == Some(expected.tables()) {
        return Ok(());
    }
    let found = if found.is_some() { "others" } else { "none yet" };
    Err(other("tables", found, "those of the profile"))
}

pub(crate) fn damaged(reason: &str) -> Error {
    Error::DamagedSave { reason: reason.to_owned() }
}

fn other(field: &'static str, found: &str, expected: &str) -> Error {
    let (found, expected) = (found.to_owned(), expected.to_owned());
    Error::OtherSave { field, found, expected }
}
