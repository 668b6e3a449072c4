//! The heterogeneous KV cache: coded keys on the device, values on the host, one exact merge.
//!
//! A [`KvCache`] holds the keys and values of one sequence for every (layer, KV head) of a model. The
//! first tokens and the most recent ones stay exact on the device; the keys of all others stay there as
//! a few bits each, and their values (and, where the cache re-scores, their exact keys) live on the
//! host. A decode step scores the codes, selects, lets the host sum what was selected, and merges the
//! two partial results by their log-sum-exp (HCAttention, arXiv 2507.19823).
//!
//! Or some tokens stay and the others are forgotten ([`Eviction`]): then heads differ in length, keys and
//! values of what stays may be exact or coded, and pages go back to the allocator.
//!
//! How a cache is made is a [`CacheSpec`], one line that the command line and this library share.
//! `full`, the uncompressed cache, goes through the same calls.
//!
//! On the CPU path "device" is an arena of its own in RAM; its bytes are those of real allocations.
//!
//! This crate knows no model: see `examples/own_tensors.rs` for attention over a caller's own tensors.

mod allotment;
mod cache;
mod coded;
mod device;
mod drift;
mod error;
mod eviction;
mod exact;
mod head;
mod head_profile;
mod held;
mod hints;
mod host_step;
mod keys;
mod mix;
mod model_file;
mod plan;
mod policy;
mod presets;
mod profile;
mod prompt;
mod saved;
mod select;
mod spec;
mod times;
mod watch;

pub use cache::{AttentionCache, KvCache, KvShape, ReadStats};
pub use device::{
    DeviceCache, DeviceCachePlan, PromptOnDevice, PromptWatch, Reservation, TokenOnDevice,
};
pub use error::{Error, Result};
pub use eviction::{Eviction, Heads, Keep, Refresh};
pub use head_profile::{HeadMeasure, HeadProfile, SimilarityAt};
pub use heterokv_attn::{HeadShape, PrefillInput, PrefillPattern};
pub use heterokv_evict::HeadRole;
pub use heterokv_evict::RotaryTurns;
pub use heterokv_offload::{
    DiskOptions, DryRun, Error as StoreError, OsFiles, Reads, Stats as HostStats, Store,
    StoreOptions, Waits,
};
pub use heterokv_quant::{KeyFormat, Level, RowFormat};
pub use keys::Keys;
pub use mix::KeyMix;
pub use model_file::FileKind;
pub use plan::{CachePlan, DeviceBytes, full_bytes};
pub use presets::{MIN_TOKENS, MIN_TOKENS_BELOW_TEN_PERCENT};
pub use profile::Profile;
pub use prompt::{PromptLayer, prefill_layer};
pub use saved::SavedCache;
pub use spec::{CacheConfig, CacheSpec, HcaConfig, Place, RatioPromise, SPEC_GRAMMAR};
pub use times::StepTimes;
