//! A sequence: for every (layer, KV head) a list of pages of rows, with one writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::gather::{HeadRows, Reader};
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
        let layout = self.store.shape().layout;
        let head_dim = layout.head_dim;
        assert!(values.len().is_multiple_of(head_dim), "whole rows");
        let head_idx = self.head_idx(layer, kv_head);
        let rows = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        self.push_rows(head_idx, rows, |(key, value), place| {
            let encoded = layout.encode(key, value, place);
            encoded.map_err(|source| Error::Encode { layer, kv_head, source: Arc::new(source) })
        })
    }

    /// Adds rows to a head, each put into its place by `write`; those before one that fails are kept.
    fn push_rows<R>(
        &mut self,
        head_idx: usize,
        mut rows: impl ExactSizeIterator<Item = R>,
        write: impl Fn(R, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let shape = *self.store.shape();
        let row_bytes = shape.layout.row_bytes();
        while rows.len() > 0 {
            let (frame, num_rows) = self.open(head_idx)?;
            let first = *num_rows % shape.page_size * row_bytes;
            let places = frame.bytes_mut()[first..shape.page_bytes()].chunks_exact_mut(row_bytes);
            for (place, row) in places.zip(rows.by_ref()) {
                write(row, place)?;
                *num_rows += 1;
            }
            if num_rows.is_multiple_of(shape.page_size) {
                let page = self.seal(head_idx).expect("a page was just filled");
                Arc::make_mut(&mut self.heads[head_idx].full).push(page);
            }
        }
        Ok(())
    }

    /// Leaves the rows of one (layer, KV head) at `kept`, ascending positions of those that there are, in their order:
    /// their bytes stay as they are, and they have the positions from 0 on. Forks, readers, and what is saved keep all
    /// rows that they had.
    ///
    /// Full pages before the first row that goes are left where they are, and rows behind it are appended anew, with the
    /// budget and the disk as [`append`](Self::append) has them; pages that nobody has any more are freed then. For as
    /// long as that takes, both are there.
    ///
    /// # Errors
    /// [`Error::NoSuchRow`] and [`Error::RowOrder`] for positions that are none or do not ascend; [`Error::OutOfMemory`],
    /// and what a read or a write of a page fails with. The sequence has all its rows then, as before.
    ///
    /// # Panics
    /// When layer or head do not exist.
    pub fn keep(&mut self, layer: usize, kv_head: usize, kept: &[u32]) -> Result<()> {
        let page_size = self.store.shape().page_size;
        let head_idx = self.head_idx(layer, kv_head);
        self.rows(layer, kv_head).reader().check_ascending(kept)?;
        let num_in_place = kept.iter().zip(0..).take_while(|(row, i)| *row == i).count();
        if num_in_place == kept.len() {
            self.truncate(layer, kv_head, kept.len());
            return Ok(());
        }
        let rows = self.rows(layer, kv_head);
        let num_full = num_in_place / page_size;
        let before = &mut self.heads[head_idx];
        let head = Head {
            full: Arc::new(before.full[..num_full].to_vec()),
            tail: Tail::None,
            num_rows: num_full * page_size,
        };
        let before = std::mem::replace(before, head);
        let moved = self.move_rows(head_idx, rows.reader(), &kept[num_full * page_size..]);
        if moved.is_err() {
            self.heads[head_idx] = before;
        }
        moved
    }

    /// Appends rows of a reader as they are, those of a page at a time: none is held while room is made for them.
    fn move_rows(&mut self, head_idx: usize, from: &Reader, positions: &[u32]) -> Result<()> {
        let page_size = self.store.shape().page_size;
        let row_bytes = from.layout().row_bytes();
        let mut rows = from.zeros(page_size.min(positions.len()))?;
        for positions in positions.chunks(page_size) {
            let rows = &mut rows[..positions.len() * row_bytes];
            from.copy(positions, rows)?;
            self.push_rows(head_idx, rows.chunks_exact(row_bytes), |row, place| {
                place.copy_from_slice(row);
                Ok(())
            })?;
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
