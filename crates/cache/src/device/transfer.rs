//! A cache on its way from RAM to a device and back: what is saved of one continues on the other.

use std::sync::Arc;

use heterokv_attn::device::Device;
use heterokv_gpu::Gpu;

use super::{DeviceCache, Layer, Reservation};
use crate::cache::KvCache;
use crate::head::HeadContents;
use crate::{Error, Result};

/// Bytes that are read of the device at a time.
pub(super) const READ_BYTES: u64 = 16 << 20;

impl DeviceCache {
    /// A cache on a device with what `cache` holds, and room for what `reservation` says; its rows on the host stay where
    /// they are.
    ///
    /// # Errors
    /// As [`DeviceCache::new`].
    pub fn upload(
        device: Arc<Device>,
        mut cache: KvCache,
        reservation: Reservation,
    ) -> Result<Self> {
        let (shape, config, level) = (cache.shape(), cache.config().clone(), cache.level());
        let (heads, _, host) = cache.parts_mut();
        let host = host.take();
        let mut own = Self::with_host(device, shape, config, level, None, host, reservation)?;
        let Self { device, rows, layers, .. } = &mut own;
        let gpu = device.gpu();
        for ((layer, kv_head), head) in shape.places().zip(heads) {
            let num_forgotten = head.num_tokens() - head.num_held();
            let HeadContents { resident, window, coder, energy, pages, num_coded } =
                head.contents();
            let own: &mut Layer = &mut layers[layer];
            let head = &mut own.heads[kv_head];
            rows.extend(gpu, &mut head.resident, &resident[0], &resident[1])?;
            head.num_forgotten = num_forgotten;
            rows.extend(gpu, &mut head.window, &window[0], &window[1])?;
            let head_dim = shape.heads.head_dim;
            let keys = window[0].chunks_exact(head_dim);
            let tokens = keys.zip(window[1].chunks_exact(head_dim));
            head.window_rows.extend(tokens.map(|(key, value)| [key.to_vec(), value.to_vec()]));
            head.query_energy = energy;
            if let Some(coder) = coder {
                let (set, member) = head.place;
                own.sets[set].set_coder(gpu, member, coder)?;
                own.sets[set].restore(gpu, member, num_coded, &pages)?;
            }
        }
        Ok(own)
    }

    /// A cache in RAM with what this one holds; it shares the pages of the host store.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Forgetful`] for a cache that has forgotten tokens, and what the device or the machine's memory refuse.
    pub fn download(&self) -> Result<KvCache> {
        if self.is_broken {
            return Err(Error::Broken);
        }
        if self.config.forgetting().is_some() {
            let cannot =
                "does not come back from a GPU, where nothing says which tokens its rows are of";
            return Err(Error::Forgetful { cannot });
        }
        let gpu: &Gpu = self.device.gpu();
        let (shape, config) = (self.shape, self.config.clone());
        let host = self.host.as_ref().map(|host| host.fork());
        let mut cache = KvCache::with_host(shape, config, self.level, None, host)?;
        let (heads, arena, _) = cache.parts_mut();
        let heads = heads.chunks_exact_mut(shape.heads.num_kv_heads);
        for (own, heads) in self.layers.iter().zip(heads) {
            let codes: Result<Vec<_>> = own.sets.iter().map(|set| set.read(gpu)).collect();
            let mut codes = codes?;
            for (kv_head, head) in heads.iter_mut().enumerate() {
                let found = &own.heads[kv_head];
                let (set, member) = found.place;
                let set = own.sets.get(set);
                let rows = |which: usize| found.window_rows.iter().flat_map(move |row| &row[which]);
                head.fill(
                    arena,
                    HeadContents {
                        resident: self.rows.read(gpu, &found.resident)?,
                        window: [0, 1].map(|which| rows(which).copied().collect()),
                        coder: set.and_then(|set| set.coder(member)).cloned(),
                        energy: found.query_energy.clone(),
                        pages: set.map_or_else(Vec::new, |_| {
                            std::mem::take(&mut codes[found.place.0][member])
                        }),
                        num_coded: own.num_coded(kv_head),
                    },
                )?;
            }
        }
        Ok(cache)
    }
}
