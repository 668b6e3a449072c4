//! Coded keys on a device: those of the KV heads of a layer that share a format, their scores and what is selected.

mod encode;
mod scan;

use heterokv_attn::HeadShape;
use heterokv_attn::device::{Device, DeviceCoders, KeySpan, ScoreRow, Select, Span};
use heterokv_evict::{Enough, Union};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu, Paged, Paging, Place};
use heterokv_quant::{KeyCoder, KeyFormat, KeyLayout, Level};

pub(super) use encode::{ALIGNED_SPANS, KeySource, KeyStretch, KeysToCode};
pub(super) use scan::table_words;
use scan::{Scan, ScannedSpans, has_scan};

use super::lists::GrowingList;
use super::scratch::Scratch;
use super::transfer::READ_BYTES;
use crate::coded::CODE_PAGE_TOKENS;
use crate::{Error, Result};

const _: () = assert!(CODE_PAGE_TOKENS == Span::TOKENS, "a page is what a workgroup scores");

/// Spans of a dispatch: fewer than any device's workgroups in a dimension, and whole multiples of what a binding of
/// spans may begin at.
const DISPATCH_SPANS: usize = 65_520;

/// The coded keys of some KV heads of one layer.
#[derive(Debug)]
pub(super) struct CodedSet {
    /// KV heads of the layer, rising.
    heads: Vec<usize>,
    format: KeyFormat,
    layout: KeyLayout,
    /// Words that a query is prepared to.
    table_words: usize,
    members: Vec<Member>,
    pages: Paged,
    /// By page.
    spans: Vec<Span>,
    spans_on_device: Buffer,
    rows: GrowingList<ScoreRow>,
    /// Keys that leave the window next.
    leaving: GrowingList<KeySpan>,
    /// Once every member has a coder.
    tables: Option<SetTables>,
}

/// What the coders of a set are on the device.
#[derive(Debug)]
struct SetTables {
    scan: Scan,
    /// None where keys are coded on the host.
    coders: Option<DeviceCoders>,
}

/// The coded keys of one KV head.
#[derive(Debug, Default)]
struct Member {
    coder: Option<KeyCoder>,
    num_tokens: usize,
    /// The number of the page that is not full yet.
    page: usize,
    /// What it holds, where keys are coded on the host.
    open: Vec<u8>,
}

/// What a selection is made by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) shape: HeadShape,
    pub(super) enough: Enough,
    pub(super) union: Union,
}

/// Bytes of a KV head's part of what queries are prepared and keys coded with, up to a few.
///
/// # Errors
/// [`Error::NotOnDevice`] for a format that no kernel scores.
pub(super) fn table_bytes(format: KeyFormat, head_dim: usize) -> Result<usize> {
    if !has_scan(format) {
        return Err(Error::NotOnDevice { format });
    }
    // Codes of a byte each are planes of two channels to what encodes them.
    let num_planes = format.num_planes(head_dim).max(head_dim / 2);
    Ok(scan::frame_bytes(format, head_dim)
        + DeviceCoders::bytes_of_one(format, head_dim, num_planes))
}

impl CodedSet {
    /// No keys yet.
    pub(super) fn new(
        gpu: &Gpu,
        heads: Vec<usize>,
        format: KeyFormat,
        head_dim: usize,
    ) -> Result<Self> {
        if !has_scan(format) {
            return Err(Error::NotOnDevice { format });
        }
        let layout = format.layout(head_dim)?;
        let page_bytes = layout.bytes(CODE_PAGE_TOKENS) as u64;
        let paging = Paging::new("key codes", page_bytes, gpu.limits().binding_bytes)?;
        let mut members = Vec::new();
        members.resize_with(heads.len(), Member::default);
        Ok(Self {
            heads,
            format,
            layout,
            table_words: table_words(format, head_dim),
            members,
            pages: Paged::new("key codes", paging),
            spans: Vec::new(),
            spans_on_device: gpu.buffer("spans of key codes", 0)?,
            rows: GrowingList::new(gpu, "rows of scores")?,
            leaving: GrowingList::new(gpu, "keys to code")?,
            tables: None,
        })
    }

    /// The KV heads.
    pub(super) fn heads(&self) -> &[usize] {
        &self.heads
    }

    /// Bytes of pages, with their spans.
    pub(super) fn page_bytes(&self) -> u64 {
        self.pages.num_bytes() + self.spans_on_device.num_bytes()
    }

    /// Bytes of what queries are prepared and keys coded with.
    pub(super) fn frame_bytes(&self) -> u64 {
        let tables = self.tables.as_ref().map_or(0, SetTables::num_bytes);
        tables + self.rows.buffer().num_bytes() + self.leaving.buffer().num_bytes()
    }

    /// Words that a query is prepared to.
    pub(super) fn table_words(&self) -> usize {
        self.table_words
    }

    /// Whether keys are coded on the device, and on the host otherwise.
    fn encodes_on_device(&self) -> bool {
        self.format.has_encoding()
    }

    /// Coded tokens of the member that has most.
    pub(super) fn max_tokens(&self) -> usize {
        self.members.iter().map(|member| member.num_tokens).max().unwrap_or(0)
    }

    /// Coded tokens of a member.
    pub(super) fn num_tokens(&self, member: usize) -> usize {
        self.members[member].num_tokens
    }

    /// The coder of a member, once there is one.
    pub(super) fn coder(&self, member: usize) -> Option<&KeyCoder> {
        self.members[member].coder.as_ref()
    }

    /// Gives a member its coder; with the last one their tables go to the device.
    pub(super) fn set_coder(&mut self, gpu: &Gpu, member: usize, coder: KeyCoder) -> Result<()> {
        self.members[member].coder = Some(coder);
        let coders: Option<Vec<&KeyCoder>> =
            self.members.iter().map(|member| member.coder.as_ref()).collect();
        if let Some(coders) = coders {
            self.tables = Some(SetTables {
                scan: Scan::new(gpu, &self.heads, &coders)?,
                coders: (self.encodes_on_device())
                    .then(|| DeviceCoders::upload(gpu, &coders))
                    .transpose()?,
            });
        }
        Ok(())
    }

    /// Makes room for so many tokens of every member.
    pub(super) fn reserve(&mut self, gpu: &Gpu, num_tokens: usize) -> Result<()> {
        self.reserve_pages(gpu, (self.heads.len() * num_tokens.div_ceil(CODE_PAGE_TOKENS)) as u64)
    }

    fn reserve_pages(&mut self, gpu: &Gpu, num_pages: u64) -> Result<()> {
        self.pages.reserve(gpu, num_pages)?;
        let span_bytes = num_pages * size_of::<Span>() as u64;
        if span_bytes > self.spans_on_device.num_bytes() {
            self.spans_on_device = gpu.buffer("spans of key codes", span_bytes)?;
            gpu.write(&self.spans_on_device, 0, bytemuck::cast_slice(&self.spans))?;
        }
        Ok(())
    }

    /// Encodes `keys [n, head_dim]`, n whole groups, on the host behind those of a member.
    fn encode_on_host(
        &mut self,
        gpu: &Gpu,
        level: Level,
        member: usize,
        keys: &[f32],
    ) -> Result<()> {
        let coder =
            self.members[member].coder.clone().ok_or(Error::NotOnDevice { format: self.format })?;
        let (head_dim, layout) = (coder.head_dim(), self.layout);
        let (mut rest, mut pages) = (keys, Vec::new());
        while !rest.is_empty() {
            let slot = self.members[member].num_tokens % CODE_PAGE_TOKENS;
            let count = (CODE_PAGE_TOKENS - slot).min(rest.len() / head_dim);
            let (now, later) = rest.split_at(count * head_dim);
            let page = self.extend(gpu, member, count)?;
            let own = &mut self.members[member];
            if slot == 0 {
                own.open.clear();
                own.open.resize(layout.bytes(CODE_PAGE_TOKENS), 0);
            }
            coder.encode(level, slot, now, &mut own.open)?;
            // Whole blocks of tokens, of which the first may have been there in part, and whole words.
            let first = layout.bytes(slot / layout.block_tokens * layout.block_tokens) / 4 * 4;
            let end = layout.bytes(slot + count).next_multiple_of(4);
            self.pages.write(gpu, page as u64, first as u64, &own.open[first..end])?;
            pages.push(page);
            rest = later;
        }
        self.write_spans(gpu, &pages)
    }

    /// Gives a member that has no tokens yet `num_tokens`, whose codes are in whole `pages`.
    pub(super) fn restore(
        &mut self,
        gpu: &Gpu,
        member: usize,
        num_tokens: usize,
        pages: &[Vec<u8>],
    ) -> Result<()> {
        let mut written = Vec::with_capacity(pages.len());
        for (first, bytes) in (0..num_tokens).step_by(CODE_PAGE_TOKENS).zip(pages) {
            let count = (num_tokens - first).min(CODE_PAGE_TOKENS);
            let page = self.extend(gpu, member, count)?;
            let mut words = bytes.clone();
            words.resize(bytes.len().next_multiple_of(4), 0);
            self.pages.write(gpu, page as u64, 0, &words)?;
            if !self.encodes_on_device() {
                self.members[member].open.clone_from(bytes);
            }
            written.push(page);
        }
        self.write_spans(gpu, &written)
    }

    /// The pages of each member, oldest first.
    pub(super) fn read(&self, gpu: &Gpu) -> Result<Vec<Vec<Vec<u8>>>> {
        let mut pages = vec![Vec::new(); self.members.len()];
        let (paging, spans) = (self.pages.paging(), &self.spans);
        let at_once = (READ_BYTES / paging.page_bytes()).clamp(1, paging.slab_pages());
        let len = self.layout.bytes(CODE_PAGE_TOKENS);
        for (slab, buffer) in self.pages.slabs().iter().enumerate() {
            let first = slab as u64 * paging.slab_pages();
            let end = (first + paging.slab_pages()).min(spans.len() as u64);
            for page in (first..end).step_by(at_once as usize) {
                let count = at_once.min(end - page);
                let start = 4 * u64::from(paging.place(page).word);
                let bytes = gpu.read(buffer, start, paging.bytes(count))?;
                let bytes = bytes.chunks_exact(paging.page_bytes() as usize);
                for (span, bytes) in spans[page as usize..].iter().zip(bytes) {
                    // Pages of a member are made in the order of its tokens.
                    pages[span.kv_head as usize].push(bytes[..len].to_vec());
                }
            }
        }
        Ok(pages)
    }

    /// Makes a member longer by tokens that fit in its page, a new one where the last is full; gives the page.
    fn extend(&mut self, gpu: &Gpu, member: usize, count: usize) -> Result<usize> {
        if self.members[member].num_tokens.is_multiple_of(CODE_PAGE_TOKENS) {
            let page = self.spans.len();
            if page as u64 == self.pages.num_pages() {
                // Beyond what was planned: an eighth more, so that growing stays rare.
                self.reserve_pages(gpu, (page + page / 8 + 1) as u64)?;
            }
            self.spans.push(Span {
                kv_head: member as u32,
                place: self.place_of(page).word,
                num_tokens: 0,
                first_token: self.members[member].num_tokens as u32,
            });
            self.members[member].page = page;
        }
        let own = &mut self.members[member];
        own.num_tokens += count;
        self.spans[own.page].num_tokens += count as u32;
        Ok(own.page)
    }

    /// Makes the device know the spans of pages that have grown.
    fn write_spans(&self, gpu: &Gpu, pages: &[usize]) -> Result<()> {
        let (Some(&first), Some(&last)) = (pages.iter().min(), pages.iter().max()) else {
            return Ok(());
        };
        // Members grow together, so that what lies between is little.
        let spans: &[u8] = bytemuck::cast_slice(&self.spans[first..=last]);
        Ok(gpu.write(&self.spans_on_device, (first * size_of::<Span>()) as u64, spans)?)
    }

    /// Where a page is.
    fn place_of(&self, page: usize) -> Place {
        self.pages.paging().place(page as u64)
    }

    /// Adds the scores of queries `[num_qo_heads, head_dim]` against all keys, and the selection among them, given the
    /// log-sum-exp of the resident tokens in `scratch.resident`.
    pub(super) fn select(
        &mut self,
        device: &Device,
        commands: &mut Commands<'_>,
        choice: Choice,
        q: Bound<'_>,
        scratch: &Scratch,
    ) -> Result<()> {
        let Some(SetTables { scan, .. }) = &self.tables else {
            return Err(Error::NotOnDevice { format: self.format });
        };
        let group_size = choice.shape.group_size();
        let num_heads = self.heads.len();
        scan.prepare(device, commands, choice.shape, q, scratch)?;
        let spans = self.spans.len();
        let slab_pages = self.pages.paging().slab_pages() as usize;
        for (slab, codes) in self.pages.slabs().iter().enumerate() {
            let end = ((slab + 1) * slab_pages).min(spans);
            for first in (slab * slab_pages..end).step_by(DISPATCH_SPANS) {
                let num_spans = DISPATCH_SPANS.min(end - first);
                let bytes = size_of::<Span>() as u64;
                let scanned = ScannedSpans {
                    num_spans,
                    spans: Bound::part(
                        &self.spans_on_device,
                        first as u64 * bytes,
                        num_spans as u64 * bytes,
                    ),
                    codes: Bound::all(codes),
                };
                scan.score(device, commands, group_size, scanned, scratch)?;
            }
        }
        let rows = self.members.iter().enumerate().flat_map(|(member, own)| {
            (0..group_size).map(move |g| ScoreRow {
                start: ((member * group_size + g) * scratch.max_tokens()) as u32,
                num_tokens: own.num_tokens as u32,
            })
        });
        self.rows.set(device.gpu(), rows.collect())?;
        let shape = HeadShape {
            num_qo_heads: num_heads * group_size,
            num_kv_heads: num_heads,
            ..choice.shape
        };
        let select = Select {
            shape,
            max_tokens: self.max_tokens(),
            enough: choice.enough,
            union: choice.union,
            rows: Bound::all(self.rows.buffer()),
            scores: Bound::all(&scratch.scores),
            resident: Bound::all(&scratch.resident),
            capacity: scratch.max_tokens(),
            num_taken: Bound::all(&scratch.num_taken),
            positions: Bound::all(&scratch.positions),
            taken_scores: Bound::all(&scratch.taken_scores),
        };
        Ok(device.select(commands, &select, &scratch.select)?)
    }
}

impl SetTables {
    fn num_bytes(&self) -> u64 {
        self.scan.num_bytes() + self.coders.as_ref().map_or(0, DeviceCoders::num_bytes)
    }
}
