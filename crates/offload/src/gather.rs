//! Readers: pages that are in RAM at once, the others as they arrive.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrayvec::ArrayVec;
use heterokv_quant::rows::{page_spans, prefetch};
use heterokv_quant::{PageRows, RowLayout, RowRun, RowSource};

use crate::block::{Frames, Seat};
use crate::fetch::Fetch;
use crate::memory::SharedFrame;
use crate::page::Page;
use crate::pending::Pending;
use crate::queue::Priority;
use crate::sequence::{Head, Tail};
use crate::sync::SharedArc;
use crate::ticket::Ticket;
use crate::transfer::Shared;
use crate::{Error, Result, Store};

/// Rows whose pages in RAM a reader holds at a time: they are asked for together, and read without a lock or count between
/// them. Whoever sums them sums as many at a time.
const RUN_ROWS: usize = 128;

/// A reader of the rows that one (layer, KV head) had when it was made.
///
/// [`visit_rows`](RowSource::visit_rows) visits pages that are in RAM as they come in the list, and the others
/// as they arrive, a bounded number under way at a time. No row is copied and no lock is held during a visit. A
/// visit must not itself read from the store or append to it: it could wait for room that it holds.
#[derive(Clone, Debug)]
pub struct HeadRows {
    // Before the store, whose workers end with the last that has it.
    reader: Reader,
    store: Store,
}

/// The same without a hold on the store, for what the store does on its own.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    shared: Arc<Shared>,
    layer: usize,
    kv_head: usize,
    head: Head,
    /// What its reads from disk go before.
    priority: Priority,
}

/// Pages held in RAM until this is dropped.
#[derive(Debug)]
pub struct Pin {
    // Before the store, whose workers end with the last that has it.
    frames: Vec<SharedFrame>,
    _store: Store,
}

/// The index of a page, and which of the positions asked for lie in it.
type PageSpan = (u32, Range<usize>);

/// A page of a head: in RAM in any case, or wherever it is.
enum PageOf<'a> {
    Open(&'a SharedFrame),
    Page(&'a Arc<Page>),
}

/// Pages in RAM that a reader holds, [`RUN_ROWS`] at most; on the stack, so that a visit allocates nothing for them.
#[derive(Debug, Default)]
struct Run<'a> {
    /// Of a block each, with one of its seats.
    frames: ArrayVec<(Option<&'a Seat>, SharedArc<Frames>), RUN_ROWS>,
    /// Which of the lists has a page's frame, and where.
    pages: ArrayVec<(PageSpan, usize, usize), RUN_ROWS>,
}

impl HeadRows {
    pub(crate) fn new(store: Store, layer: usize, kv_head: usize, head: Head) -> Self {
        let (shared, priority) = (Arc::clone(store.shared()), Priority::Demand);
        Self { reader: Reader { shared, layer, kv_head, head, priority }, store }
    }

    /// Rows held.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.reader.head.num_rows
    }

    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Copies the rows at `positions` (ascending) in the background, by a thread of the store; one fetch of a store is
    /// done after the other. Pages that are not in RAM are read behind those that somebody waits for, with the hints, and
    /// room is made for them as for any reader's. The copy is the caller's and does not count in the budget.
    ///
    /// What is wrong with the positions, or goes wrong later, is for the result to say. No positions: no bytes.
    pub fn fetch(&self, positions: Vec<u32>) -> Fetch {
        let reader = Reader { priority: Priority::Prefetch, ..self.reader.clone() };
        Fetch::new(self.store.clone(), reader, positions)
    }

    /// Asks for the pages of the rows at `positions` (ascending), which will probably be read soon. A hint is
    /// not followed where there is no room without writing, or the queue is full.
    ///
    /// # Errors
    /// [`Error::NoSuchRow`]; what a read fails with is for the ticket to say.
    pub fn prefetch(&self, positions: &[u32]) -> Result<Ticket> {
        let Self { reader, store } = self;
        reader.check(positions)?;
        let mut num_here = 0;
        let mut missing = Vec::new();
        for (page_idx, _) in page_spans(positions, reader.page_size()) {
            match reader.page(page_idx) {
                PageOf::Page(page) if page.seat.is_empty() => missing.push(Arc::clone(page)),
                PageOf::Page(_) => num_here += 1,
                PageOf::Open(_) => {}
            }
        }
        Ok(Ticket::new(store.clone(), missing, num_here))
    }

    /// Brings the pages of the rows at `positions` (ascending) to RAM and holds them there.
    ///
    /// # Errors
    /// As [`visit_rows`](RowSource::visit_rows); nothing is pinned then.
    pub fn pin(&self, positions: &[u32]) -> Result<Pin> {
        self.reader.check(positions)?;
        let mut frames = BTreeMap::new();
        // A page may be shown in two runs.
        self.reader.visit(positions, &mut |run| {
            frames.extend(run.pages().map(|(span, frame)| (span.0, SharedArc::clone(frame))));
        })?;
        Ok(Pin { frames: frames.into_values().collect(), _store: self.store.clone() })
    }
}

impl Reader {
    /// Layout of a row.
    pub(crate) fn layout(&self) -> RowLayout {
        self.shared.shape.layout
    }

    /// Room for the bytes of so many rows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn zeros(&self, num_rows: usize) -> Result<Vec<u8>> {
        let Shared { shape, memory, .. } = &*self.shared;
        let len = num_rows * shape.layout.row_bytes();
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| memory.refusal(len, memory.in_use()))?;
        bytes.resize(len, 0);
        Ok(bytes)
    }

    /// Copies the rows at `positions`, which there are, into `out`, one after the other.
    ///
    /// # Errors
    /// As [`visit_rows`](RowSource::visit_rows).
    pub(crate) fn copy(&self, positions: &[u32], out: &mut [u8]) -> Result<()> {
        let row_bytes = self.layout().row_bytes();
        self.visit(positions, &mut |run| {
            for (span, frame) in run.pages() {
                let page = self.rows_of(positions, span, frame);
                for (i, row) in page.iter(row_bytes) {
                    out[i * row_bytes..][..row_bytes].copy_from_slice(row);
                }
            }
        })
    }

    fn visit(&self, positions: &[u32], show: &mut dyn FnMut(&Run<'_>)) -> Result<()> {
        let shared = &*self.shared;
        let mut pending = Pending::new(shared, self.priority);
        let [mut hits, mut misses, mut prefetch_hits, mut end] = [0; 4];
        let mut last_page = None;
        let mut spans = ArrayVec::new();
        let mut run = Run::default();
        while end < positions.len() {
            end = self.split(positions, end, &mut spans);
            // What lies apart is asked for together, a step before it is looked at: seats, blocks, lists, frames.
            self.pages(&spans).for_each(|page| prefetch(&page.seat));
            self.pages(&spans).for_each(|page| page.seat.prefetch());
            self.pages(&spans).for_each(|page| run.hold(&page.seat));
            let mut list = 0;
            for span in spans.drain(..) {
                // The last page of a run may go on in the next one.
                let is_first = last_page.replace(span.0) != Some(span.0);
                match self.page(span.0) {
                    PageOf::Open(frame) => run.push_alone(span, frame),
                    PageOf::Page(page) => match run.push(span, &page.seat, &mut list) {
                        Ok(()) if is_first => {
                            hits += 1;
                            prefetch_hits += usize::from(page.seat.note_read());
                        }
                        Ok(()) => {}
                        Err(span) if !is_first && goes_on(&mut pending, &span) => {}
                        Err(span) => {
                            misses += usize::from(is_first);
                            pending.ask(page, span)?;
                        }
                    },
                }
            }
            if !run.pages.is_empty() {
                show(&run);
            }
            run.release();
            shared.memory.nudge();
            while let Some((span, held)) = pending.try_take()? {
                show(&Run::of(span, held.frame()));
            }
        }
        shared.counters.hits.add(hits);
        shared.counters.misses.add(misses);
        shared.counters.prefetch_hits.add(prefetch_hits);
        while let Some((span, held)) = pending.take()? {
            show(&Run::of(span, held.frame()));
        }
        Ok(())
    }

    /// Splits [`RUN_ROWS`] positions from `start` on, or those that there are, at the boundaries of pages. Returns where
    /// they end.
    fn split(
        &self,
        positions: &[u32],
        start: usize,
        spans: &mut ArrayVec<PageSpan, RUN_ROWS>,
    ) -> usize {
        let page_size = self.page_size();
        let page_of = |row: u32| match page_size.is_power_of_two() {
            true => row >> page_size.trailing_zeros(),
            false => row / page_size,
        };
        let rows = &positions[start..positions.len().min(start + RUN_ROWS)];
        // A page has one row or a few, and no branch foretells which: each is noted, and the next takes its place
        // unless it was the first of its page.
        let mut firsts = [(0, 0); RUN_ROWS + 1];
        let (mut num_pages, mut last) = (0, None);
        for (i, &row) in rows.iter().enumerate() {
            let page = page_of(row);
            firsts[num_pages] = (page, start + i);
            num_pages += usize::from(last != Some(page));
            last = Some(page);
        }
        let end = start + rows.len();
        firsts[num_pages] = (0, end);
        let pages = firsts[..=num_pages].windows(2);
        spans.extend(pages.map(|pair| (pair[0].0, pair[0].1..pair[1].1)));
        end
    }

    /// Those of the pages that do not change.
    fn pages(&self, spans: &[PageSpan]) -> impl Iterator<Item = &Arc<Page>> {
        spans.iter().filter_map(|(page_idx, _)| match self.page(*page_idx) {
            PageOf::Open(_) => None,
            PageOf::Page(page) => Some(page),
        })
    }

    /// The rows of a page, of which some are asked for.
    fn rows_of<'a>(
        &self,
        positions: &'a [u32],
        (page_idx, span): &PageSpan,
        frame: &'a SharedFrame,
    ) -> PageRows<'a> {
        let first_row = page_idx * self.page_size();
        let num_rows = (self.head.num_rows - first_row as usize).min(self.page_size() as usize);
        PageRows {
            bytes: &frame.bytes()[..num_rows * self.layout().row_bytes()],
            first_row,
            rows: &positions[span.clone()],
            offset: span.start,
        }
    }

    fn page(&self, page_idx: u32) -> PageOf<'_> {
        match (self.head.full.get(page_idx as usize), &self.head.tail) {
            (Some(page), _) | (None, Tail::Part(page)) => PageOf::Page(page),
            (None, Tail::Open(frame)) => PageOf::Open(frame),
            (None, Tail::None) => unreachable!("every row of a head is on a page"),
        }
    }

    fn page_size(&self) -> u32 {
        self.shared.shape.page_size as u32
    }

    /// Refuses positions that are not there or do not ascend.
    pub(crate) fn check_ascending(&self, positions: &[u32]) -> Result<()> {
        self.check(positions)?;
        let Self { layer, kv_head, .. } = *self;
        match positions.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => {
                let (before, row) = (pair[0], pair[1]);
                Err(Error::RowOrder { row, before, layer, kv_head })
            }
            None => Ok(()),
        }
    }

    fn check(&self, positions: &[u32]) -> Result<()> {
        let num_rows = self.head.num_rows;
        let outside = positions.iter().find(|&&row| row as usize >= num_rows);
        let (layer, kv_head) = (self.layer, self.kv_head);
        outside.map_or(Ok(()), |&row| Err(Error::NoSuchRow { row, layer, kv_head, num_rows }))
    }
}

impl RowSource for HeadRows {
    type Error = Error;

    fn layout(&self) -> RowLayout {
        self.reader.layout()
    }

    fn visit_rows(&self, positions: &[u32], visit: &mut dyn FnMut(PageRows<'_>)) -> Result<()> {
        let reader = &self.reader;
        reader.check(positions)?;
        reader.visit(positions, &mut |run| {
            run.pages().for_each(|(span, frame)| visit(reader.rows_of(positions, span, frame)));
        })
    }

    fn visit_runs(&self, positions: &[u32], visit: &mut dyn FnMut(RowRun<'_>)) -> Result<()> {
        let reader = &self.reader;
        reader.check(positions)?;
        let row_bytes = self.layout().row_bytes();
        reader.visit(positions, &mut |run| {
            // Lists that are filled where they are; collecting them would copy all of their room.
            let mut pages = ArrayVec::<_, RUN_ROWS>::new();
            let mut rows = ArrayVec::<_, RUN_ROWS>::new();
            pages.extend(run.pages().map(|(span, frame)| reader.rows_of(positions, span, frame)));
            // Pages between them may be on disk.
            for pages in pages.chunk_by(|page, next| page.offset + page.rows.len() == next.offset) {
                let offset = pages[0].offset;
                let len: usize = pages.iter().map(|page| page.rows.len()).sum();
                let (mut page, mut page_end) = (0, offset + pages[0].rows.len());
                for (i, position) in (offset..).zip(&positions[offset..][..len]) {
                    // No branch foretells where a page ends.
                    page += usize::from(i == page_end);
                    let PageRows { bytes, first_row, offset, rows: of_page } = pages[page];
                    page_end = offset + of_page.len();
                    let at = (position - first_row) as usize * row_bytes;
                    let row = &bytes[at..][..row_bytes];
                    prefetch(row);
                    // A large page that was waited for may have more rows than a run.
                    if rows.is_full() {
                        visit(RowRun { offset: i - rows.len(), rows: &rows });
                        rows.clear();
                    }
                    rows.push(row);
                }
                visit(RowRun { offset: offset + len - rows.len(), rows: &rows });
                rows.clear();
            }
        })
    }
}

impl<'a> Run<'a> {
    fn of(span: PageSpan, frame: &SharedFrame) -> Self {
        let mut run = Self::default();
        run.push_alone(span, frame);
        run
    }

    /// Holds nothing any more, and keeps its memory.
    fn release(&mut self) {
        self.frames.clear();
        self.pages.clear();
    }

    /// Takes hold of the block of a seat, unless it is that of the seat before.
    fn hold(&mut self, seat: &'a Seat) {
        let last = self.frames.last().and_then(|(last, _)| *last);
        if !last.is_some_and(|last| seat.is_beside(last)) {
            let frames = seat.frames();
            prefetch(&*frames);
            self.frames.push((Some(seat), frames));
        }
    }

    /// Adds a page of a block that is held, whose list is this one or a later one; gives it back where it is not in RAM.
    fn push(&mut self, span: PageSpan, seat: &Seat, list: &mut usize) -> Result<(), PageSpan> {
        while !self.frames[*list].0.is_some_and(|held| seat.is_beside(held)) {
            *list += 1;
        }
        let Some(frame) = &self.frames[*list].1[seat.idx()] else { return Err(span) };
        prefetch(&**frame);
        self.pages.push((span, *list, seat.idx()));
        Ok(())
    }

    /// Adds a page of which only this frame is held.
    fn push_alone(&mut self, span: PageSpan, frame: &SharedFrame) {
        let mut frames = Frames::default();
        frames[0] = Some(SharedArc::clone(frame));
        self.pages.push((span, self.frames.len(), 0));
        self.frames.push((None, SharedArc::new(frames)));
    }

    fn pages(&self) -> impl Iterator<Item = (&PageSpan, &SharedFrame)> {
        self.pages.iter().map(|(span, list, idx)| {
            (span, self.frames[*list].1[*idx].as_ref().expect("it was seen to be there"))
        })
    }
}

impl Pin {
    /// Pages held.
    #[must_use]
    pub fn num_pages(&self) -> usize {
        self.frames.len()
    }
}

/// Adds rows to those that wait for the page asked for last, if they do and it is theirs: a page is asked for once.
fn goes_on(pending: &mut Pending<'_, PageSpan>, (page_idx, span): &PageSpan) -> bool {
    match pending.last_mut() {
        Some((asked, rows)) if asked == page_idx && rows.end == span.start => {
            rows.end = span.end;
            true
        }
        _ => false,
    }
}
