//! The bytes of a cache whose rows are exact ones on the device, or which forgets some of its tokens.

use heterokv_offload::StoreShape;

use super::{CachePlan, DeviceBytes, DevicePlan, host_shape};
use crate::allotment::Allotment;
use crate::drift::Drift;
use crate::exact::ExactRows;
use crate::held::Held;
use crate::select::scratch_bytes;
use crate::spec::{HcaConfig, Place};
use crate::{KvShape, Result};

/// Adds what the heads hold. Where what is kept depends on the text, the budget is shared out evenly.
pub(super) fn add(plan: &mut CachePlan, config: &HcaConfig, shape: &KvShape) -> Result<()> {
    let num_tokens = plan.num_tokens;
    let eviction = config.evict.as_ref();
    let allotment = eviction.map(|eviction| Allotment::new(config, eviction, shape)).transpose()?;
    let limits = match &allotment {
        Some(allotment) => allotment.limits(num_tokens)?,
        None => vec![usize::MAX; shape.places().count()],
    };
    let store = host_shape(config, shape);
    let store = StoreShape { num_layers: 1, num_kv_heads: 1, ..store };
    let (mut most_coded, mut most_watched) = (0, 0);
    // What is on its way to all layers, and what a layer's heads hold while it takes its place.
    let (mut coming, mut replaced) = (0, vec![0; shape.num_layers]);
    for (place, limit) in shape.places().zip(limits) {
        let held = limit.min(num_tokens);
        let head = HeadPlan::new(place, config, shape)?;
        let (device, coded) = head.after_prompt(held, &store);
        plan.device.add(device);
        let on_host = match eviction {
            Some(eviction) if eviction.has_satellite(place) => num_tokens,
            _ if config.values_on == Place::Host => coded,
            _ => 0,
        };
        if eviction.is_some_and(|eviction| eviction.has_satellite(place)) {
            let row_bytes = store.layout.row_bytes();
            coming += Drift::arrival_bytes(held, row_bytes);
            replaced[place.0] += held * row_bytes;
        }
        plan.host_bytes += store.bytes(on_host);
        plan.host_pages += on_host.div_ceil(store.page_size);
        plan.host_open_pages += usize::from(!on_host.is_multiple_of(store.page_size));
        plan.coded_from_tokens = plan.coded_from_tokens.max(head.coded_from_tokens());
        most_coded = most_coded.max(coded);
        if eviction.is_some_and(|eviction| eviction.may_watch(place)) {
            most_watched = most_watched.max(held);
        }
    }
    plan.most_device_bytes = match &allotment {
        Some(allotment) => allotment.most_bytes(num_tokens)?,
        None => plan.device.total(),
    };
    let weights = size_of::<f32>() * shape.heads.num_qo_heads * most_watched;
    let coming = coming + replaced.into_iter().max().unwrap_or(0);
    plan.score_scratch_bytes = scratch_bytes(&shape.heads, most_coded) + weights + coming;
    Ok(())
}

/// One (layer, KV head).
struct HeadPlan<'a> {
    place: (usize, usize),
    config: &'a HcaConfig,
    head_dim: usize,
    /// None where rows are exact.
    coded: Option<DevicePlan>,
}

impl<'a> HeadPlan<'a> {
    fn new(place: (usize, usize), config: &'a HcaConfig, shape: &KvShape) -> Result<Self> {
        let coded = match config.is_exact() {
            true => None,
            false => Some(DevicePlan::new(config.keys.format(place), config, shape)?),
        };
        Ok(Self { place, config, head_dim: shape.heads.head_dim, coded })
    }

    fn evidence(&self, held: usize) -> usize {
        let has_evidence = self.config.evict.as_ref().is_some_and(|e| e.has_evidence(self.place));
        if has_evidence { Held::evidence_bytes(held) } else { 0 }
    }

    fn exact_bytes(&self, held: usize) -> usize {
        ExactRows::bytes(self.head_dim, self.config.exact_page_tokens(), held)
    }

    /// Bytes with so many tokens, and how many of them are coded.
    fn after_prompt(&self, held: usize, store: &StoreShape) -> (DeviceBytes, usize) {
        let (mut bytes, coded) = match &self.coded {
            None => {
                let resident = self.exact_bytes(held);
                (DeviceBytes { resident, ..DeviceBytes::default() }, 0)
            }
            Some(plan) => (plan.after_prompt(held), plan.coded_after_prompt(held)),
        };
        if self.config.values_on == Place::Device {
            bytes.values = store.bytes(coded);
        }
        bytes.evidence = self.evidence(held);
        (bytes, coded)
    }

    fn coded_from_tokens(&self) -> usize {
        self.coded.as_ref().map_or(0, DevicePlan::coded_from_tokens)
    }
}
