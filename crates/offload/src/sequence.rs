//! A sequence: for every (layer, KV head) a list of pages of rows, with one writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::gather::HeadRows;
use crate::memory::{Frame, SharedFrame};
use crate::page::Page;
use crate::pending::Pending;
use crate::sync::SharedArc;
use crate::{Error, PageName, Result, Store};

/// Rows of a model's layers and KV heads.
///
/// Rows are appended by one writer, and read through [`rows`](Sequence::rows) by any number of readers, each of
/// the rows that there were when it was made. A [fork](Sequence::fork) shares all pages. Heads may have
/// different numbers of rows.
#[derive(Debug)]
pub struct Sequence {
    store: Store,
    /// Its number in the names of its pages.
    number: u32,
    /// `[num_layers · num_kv_heads]`.
    heads: Vec<Head>,
}

/// The rows of one (layer, KV head). Clones share the pages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    /// Full pages; copied where a reader or a fork has the list when it changes, once for many rows.
    pub(crate) full: Arc<Vec<Arc<Page>>>,
    /// The page that is not full.
    pub(crate) tail: Tail,
    pub(crate) num_rows: usize,
}

/// The page of a head that is not full.
#[derive(Clone, Debug, Default)]
pub(crate) enum Tail {
    /// All pages are full.
    #[default]
    None,
    /// It takes rows, in place where nobody shares it.
    Open(SharedFrame),
    /// The first rows of a page that does not change: the rest of a full one, or one that was saved.
    Part(Arc<Page>),
}

impl Sequence {
    pub(crate) fn new(store: Store, heads: Vec<Head>) -> Self {
        let number = store.shared().next_sequence.fetch_add(1, Ordering::Relaxed);
        Self { store, number, heads }
    }

    /// The store that it is of.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Bytes of its pages, in whichever tier; those shared with forks count in full.
    #[must_use]
    pub fn in_use_bytes(&self) -> usize {
        let num_pages =
            |head: &Head| head.full.len() + usize::from(!matches!(head.tail, Tail::None));
        let num_pages: usize = self.heads.iter().map(num_pages).sum();
        num_pages * self.store.shared().memory.frame_bytes()
    }

    /// Appends rows of one (layer, KV head): `keys` and `values` are `[n, head_dim]`, and the keys are
    /// dropped where the layout has none.
    ///
    /// Where the budget is used up, makes room: writes pages of this sequence to disk as long as it has some that are
    /// not there, and only then a batch of another's, so that nobody writes for a sequence that floods the store while
    /// there is something of its own to write. A frame that comes free is whoever's takes it first.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Encode`] for NaN and infinities, and what a write or read fails with
    /// where room had to be made or the last page had to be read. Rows before the one that failed are kept.
    ///
    /// # Panics
    /// When layer or head do not exist, the lengths do not agree, or are not whole rows.
    pub fn append(
        &mut self,
        layer: usize,
        kv_head: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        assert_eq!(keys.len(), values.len());
        let shape = *self.store.shape();
        let (head_dim, row_bytes) = (shape.layout.head_dim, shape.layout.row_bytes());
        assert!(values.len().is_multiple_of(head_dim), "whole rows");
        let head_idx = self.head_idx(layer, kv_head);
        let mut rows = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        while rows.len() > 0 {
            let (frame, num_rows) = self.open(head_idx)?;
            let first = *num_rows % shape.page_size * row_bytes;
            let places = frame.bytes_mut()[first..shape.page_bytes()].chunks_exact_mut(row_bytes);
            for (place, (key, value)) in places.zip(rows.by_ref()) {
                let encoded = shape.layout.encode(key, value, place);
                encoded.map_err(|source| Error::Encode {
                    layer,
                    kv_head,
                    source: Arc::new(source),
                })?;
                *num_rows += 1;
            }
            if num_rows.is_multiple_of(shape.page_size) {
                let page = self.seal(head_idx).expect("a page was just filled");
                Arc::make_mut(&mut self.heads[head_idx].full).push(page);
            }
        }
        Ok(())
    }

    /// Forgets the rows of one (layer, KV head) from `num_rows` on; nothing where there are no more.
    ///
    /// # Panics
    /// When layer or head do not exist.
    pub fn truncate(&mut self, layer: usize, kv_head: usize, num_rows: usize) {
        let page_size = self.store.shape().page_size;
        let head_idx = self.head_idx(layer, kv_head);
        let head = &mut self.heads[head_idx];
        if num_rows >= head.num_rows {
            return;
        }
        head.num_rows = num_rows;
        let is_cut = !num_rows.is_multiple_of(page_size);
        if let Some(page) = head.full.get(num_rows / page_size).cloned() {
            head.tail = if is_cut { Tail::Part(page) } else { Tail::None };
            Arc::make_mut(&mut head.full).truncate(num_rows / page_size);
        } else if !is_cut {
            head.tail = Tail::None;
        }
    }

    /// The rows that one (layer, KV head) has now, to read; what is appended later is not among them.
    ///
    /// # Panics
    /// When layer or head do not exist.
    #[must_use]
    pub fn rows(&self, layer: usize, kv_head: usize) -> HeadRows {
        let head = self.heads[self.head_idx(layer, kv_head)].clone();
        HeadRows::new(self.store.clone(), layer, kv_head, head)
    }

    /// A sequence with the same rows. Its pages are those of this one; a last page that is not full is copied
    /// by whichever of the two appends to it first.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::new(self.store.clone(), self.heads.clone())
    }

    /// Turns pages that are not full into ones that do not change, and gives the heads. The next row is
    /// appended to a copy.
    pub(crate) fn rest(&mut self) -> &[Head] {
        for head_idx in 0..self.heads.len() {
            if let Some(page) = self.seal(head_idx) {
                self.heads[head_idx].tail = Tail::Part(page);
            }
        }
        &self.heads
    }

    /// Takes the open page of a head as one that does not change; none where it has no open page with rows.
    fn seal(&mut self, head_idx: usize) -> Option<Arc<Page>> {
        let shape = self.store.shape();
        let head = &mut self.heads[head_idx];
        let num_rows = head.num_rows - head.full.len() * shape.page_size;
        let Tail::Open(frame) = &head.tail else { return None };
        let frame = SharedArc::clone(frame);
        head.tail = Tail::None;
        let name = PageName {
            sequence: self.number,
            layer: (head_idx / shape.num_kv_heads) as u32,
            kv_head: (head_idx % shape.num_kv_heads) as u32,
            page_idx: head.full.len() as u32,
        };
        let before = head.full.last();
        (num_rows > 0).then(|| self.store.shared().seal(name, num_rows as u32, frame, before))
    }

    /// The page of a head that takes the next row, and the number of the head's rows.
    fn open(&mut self, head_idx: usize) -> Result<(&mut Frame, &mut usize)> {
        let shared = self.store.shared();
        let head = &mut self.heads[head_idx];
        let len = head.num_rows % shared.shape.page_size * shared.shape.layout.row_bytes();
        let is_own = match &mut head.tail {
            Tail::Open(frame) => SharedArc::get_mut(frame).is_some(),
            Tail::None | Tail::Part(_) => false,
        };
        if !is_own {
            let mut frame = shared.take_frame(self.number)?;
            let copy = &mut frame.bytes_mut()[..len];
            match &head.tail {
                Tail::None => {}
                Tail::Open(shared) => copy.copy_from_slice(&shared.bytes()[..len]),
                Tail::Part(page) => {
                    let read = Pending::of_page(shared, page)?;
                    copy.copy_from_slice(&read.frame().bytes()[..len]);
                }
            }
            head.tail = Tail::Open(SharedArc::new(frame));
        }
        let Tail::Open(frame) = &mut head.tail else { unreachable!("it was just made so") };
        let frame = SharedArc::get_mut(frame).expect("whoever shares it would have a copy");
        Ok((frame, &mut head.num_rows))
    }

    fn head_idx(&self, layer: usize, kv_head: usize) -> usize {
        let shape = self.store.shape();
        assert!(layer < shape.num_layers && kv_head < shape.num_kv_heads, "no such layer and head");
        layer * shape.num_kv_heads + kv_head
    }
}
