//! The host store: for every (layer, KV head) a list of pages of rows, in RAM.

use std::ops::Range;

use heterokv_quant::rows::page_spans;
use heterokv_quant::{PageRows, RowLayout, RowSource};

use crate::{Arena, Block, Error, Result};

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

impl StoreShape {
    /// Bytes that the store allocates for `num_rows` rows in every (layer, KV head).
    #[must_use]
    pub fn bytes(&self, num_rows: usize) -> usize {
        let pages = num_rows.div_ceil(self.page_size);
        self.num_layers * self.num_kv_heads * pages * Arena::allocated_bytes(self.page_bytes())
    }

    fn page_bytes(&self) -> usize {
        self.page_size * self.layout.row_bytes()
    }
}

/// Rows of a model's layers and KV heads in host memory.
#[derive(Debug)]
pub struct HostStore {
    shape: StoreShape,
    arena: Arena,
    /// `[num_layers · num_kv_heads]`.
    heads: Vec<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    blocks: Vec<Block>,
    num_rows: usize,
}

impl HostStore {
    /// An empty store whose pages come from `arena`.
    #[must_use]
    pub fn new(shape: StoreShape, arena: Arena) -> Self {
        let mut heads = Vec::new();
        heads.resize_with(shape.num_layers * shape.num_kv_heads, Pages::default);
        Self { shape, arena, heads }
    }

    /// Bytes that the store's pages take.
    #[must_use]
    pub fn in_use_bytes(&self) -> usize {
        self.arena.in_use_bytes()
    }

    /// Appends rows of one (layer, KV head): `keys` and `values` are `[n, head_dim]`, and the keys are
    /// dropped where the layout has none.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Encode`] for NaN and infinities. Rows before the one that
    /// failed are kept.
    ///
    /// # Panics
    /// When layer or head do not exist, or the lengths do not agree.
    pub fn append(
        &mut self,
        layer: usize,
        kv_head: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        assert_eq!(keys.len(), values.len());
        let shape = self.shape;
        let row_bytes = shape.layout.row_bytes();
        let pages = &mut self.heads[layer * shape.num_kv_heads + kv_head];
        let rows = keys.chunks_exact(shape.layout.head_dim);
        for (key, value) in rows.zip(values.chunks_exact(shape.layout.head_dim)) {
            let slot = pages.num_rows % shape.page_size;
            if pages.num_rows == pages.blocks.len() * shape.page_size {
                pages.blocks.push(self.arena.allocate(shape.page_bytes())?);
            }
            let page = pages.blocks.last_mut().expect("a page was just made sure of");
            let row = &mut page.bytes_mut()[slot * row_bytes..][..row_bytes];
            let encoded = shape.layout.encode(key, value, row);
            encoded.map_err(|source| Error::Encode { layer, kv_head, source })?;
            pages.num_rows += 1;
        }
        Ok(())
    }

    /// The rows of one (layer, KV head), to read.
    ///
    /// # Panics
    /// When layer or head do not exist.
    #[must_use]
    pub fn rows(&self, layer: usize, kv_head: usize) -> HeadRows<'_> {
        let pages = &self.heads[layer * self.shape.num_kv_heads + kv_head];
        HeadRows { shape: self.shape, layer, kv_head, pages }
    }

    /// A copy that shares nothing with this store, in an arena of its own.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn fork(&self) -> Result<Self> {
        let mut copy = Self::new(self.shape, self.arena.fresh());
        for (from, to) in self.heads.iter().zip(&mut copy.heads) {
            to.num_rows = from.num_rows;
            for block in &from.blocks {
                to.blocks.push(block.copy_to(&copy.arena)?);
            }
        }
        Ok(copy)
    }
}

/// A reader of the rows of one (layer, KV head).
#[derive(Clone, Copy, Debug)]
pub struct HeadRows<'a> {
    shape: StoreShape,
    layer: usize,
    kv_head: usize,
    pages: &'a Pages,
}

impl HeadRows<'_> {
    /// Rows held.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.pages.num_rows
    }
}

impl RowSource for HeadRows<'_> {
    type Error = Error;

    fn layout(&self) -> RowLayout {
        self.shape.layout
    }

    fn visit_rows(&self, positions: &[u32], visit: &mut dyn FnMut(PageRows<'_>)) -> Result<()> {
        if let Some(&row) = positions.iter().find(|&&row| row as usize >= self.pages.num_rows) {
            return Err(Error::NoSuchRow {
                row,
                layer: self.layer,
                kv_head: self.kv_head,
                num_rows: self.pages.num_rows,
            });
        }
        let page_size = self.shape.page_size as u32;
        for (page, span) in page_spans(positions, page_size) {
            let Range { start: offset, .. } = span;
            visit(PageRows {
                bytes: self.pages.blocks[page as usize].bytes(),
                first_row: page * page_size,
                rows: &positions[span],
                offset,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
