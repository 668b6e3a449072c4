//! Where the host store of a cache has its rows.

use heterokv_offload::{DiskOptions, Sequence, Store, StoreOptions};

use crate::plan::host_shape;
use crate::spec::HcaConfig;
use crate::{KvShape, Result};

/// What the host store of a cache may take.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Bytes of rows in RAM at a time, as [`StoreOptions::ram_budget_bytes`] counts them.
    pub ram_budget_bytes: usize,
    /// Where rows go that RAM has no room for; without, a full budget is an error.
    pub disk: Option<DiskOptions>,
}

impl Default for HostOptions {
    /// RAM alone, as much as the machine gives.
    fn default() -> Self {
        Self { ram_budget_bytes: usize::MAX, disk: None }
    }
}

impl HostOptions {
    /// An empty store of the rows of a cache.
    pub(crate) fn open(self, config: &HcaConfig, shape: &KvShape) -> Result<Sequence> {
        let Self { ram_budget_bytes, disk } = self;
        let shape = host_shape(config, shape);
        Ok(Store::open(StoreOptions { shape, ram_budget_bytes, disk })?.sequence())
    }
}
