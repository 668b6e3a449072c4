//! The shape of a store, and what follows from it without one.

use heterokv_quant::RowLayout;

use crate::disk::{HEADER_BYTES, SLOT_ALIGN};
use crate::{Arena, Error, Result};

/// Shape of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreShape {
    /// Layers of the model.
    pub num_layers: usize,
    /// KV heads of a layer.
    pub num_kv_heads: usize,
    /// Rows of a page.
    pub page_size: usize,
    /// Layout of a row.
    pub layout: RowLayout,
}

/// Where the pages of a store would be under a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DryRun {
    /// Pages in RAM.
    pub ram_pages: usize,
    /// Their bytes.
    pub ram_bytes: usize,
    /// Pages on disk only.
    pub disk_pages: usize,
    /// Their bytes in RAM, once they are read.
    pub disk_bytes: usize,
    /// Whether there is room for what must be in RAM at any time: the last pages, which take rows, and
    /// one page more.
    pub is_enough: bool,
    /// The least budget that is enough.
    pub least_bytes: usize,
}

impl StoreShape {
    /// The most that a page may hold.
    const MAX_PAGE_BYTES: usize = 1 << 30;

    /// Rows of a page that fills two blocks of a disk together with its header, one at least: less would leave parts of
    /// blocks unused, and more would be read for the sake of a few rows.
    #[must_use]
    pub fn page_size_of(layout: &RowLayout) -> usize {
        ((2 * SLOT_ALIGN - HEADER_BYTES) / layout.row_bytes().max(1)).max(1)
    }

    /// Bytes that the store allocates for `num_rows` rows in every (layer, KV head); the most that there are where it
    /// is more.
    #[must_use]
    pub fn bytes(&self, num_rows: usize) -> usize {
        self.num_pages(num_rows).saturating_mul(self.frame_bytes())
    }

    /// What a budget would hold in RAM of `num_rows` rows in every (layer, KV head), and what would be
    /// on disk.
    #[must_use]
    pub fn dry_run(&self, num_rows: usize, ram_budget_bytes: usize) -> DryRun {
        let num_pages = self.num_pages(num_rows);
        let num_open = if num_rows.is_multiple_of(self.page_size) { 0 } else { self.num_heads() };
        DryRun::new(num_pages, num_open, self.frame_bytes(), ram_budget_bytes)
    }

    fn num_pages(&self, num_rows: usize) -> usize {
        self.num_heads().saturating_mul(num_rows.div_ceil(self.page_size))
    }

    /// Pairs of layer and KV head.
    pub(crate) fn num_heads(&self) -> usize {
        self.num_layers * self.num_kv_heads
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.page_size * self.layout.row_bytes()
    }

    fn frame_bytes(&self) -> usize {
        Arena::allocated_bytes(self.page_bytes())
    }

    /// Refuses what no store can have.
    pub(crate) fn check(&self) -> Result<()> {
        Error::unless_within("number of layers", self.num_layers, 1..=1 << 16)?;
        Error::unless_within("number of KV heads", self.num_kv_heads, 1..=1 << 16)?;
        Error::unless_within("number of KV heads in all layers", self.num_heads(), 1..=1 << 20)?;
        Error::unless_within("head_dim", self.layout.head_dim, 1..=1 << 16)?;
        let most = Self::MAX_PAGE_BYTES / self.layout.row_bytes();
        Error::unless_within("page size in rows", self.page_size, 1..=most)
    }
}

impl DryRun {
    /// Where so many pages would be whose frames take `frame_bytes` each, `num_open` of them pages that take rows.
    #[must_use]
    pub fn new(
        num_pages: usize,
        num_open: usize,
        frame_bytes: usize,
        ram_budget_bytes: usize,
    ) -> Self {
        let max_frames = ram_budget_bytes / frame_bytes.max(1);
        let ram_pages = num_pages.min(max_frames);
        let disk_pages = num_pages - ram_pages;
        let least_pages = num_pages.min(num_open.saturating_add(1));
        let [ram_bytes, disk_bytes, least_bytes] =
            [ram_pages, disk_pages, least_pages].map(|pages| pages.saturating_mul(frame_bytes));
        let is_enough = max_frames >= least_pages;
        Self { ram_pages, ram_bytes, disk_pages, disk_bytes, is_enough, least_bytes }
    }
}
