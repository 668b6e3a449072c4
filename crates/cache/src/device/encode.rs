//! Keys on the device that become codes there.

use std::collections::{BTreeMap, VecDeque};

use bytemuck::Zeroable;
use heterokv_attn::device::{Device, EncodeKeys, KeyRows, KeySpan};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu, Place};

use super::coded::CodedSet;
use crate::Result;
use crate::coded::CODE_PAGE_TOKENS;

/// Spans of a dispatch at most: fewer than any device's workgroups in a dimension, and as many as end where a binding may
/// begin.
const DISPATCH_SPANS: usize = 65_472;

/// Spans of 20 bytes between two places where a binding may begin, 256 bytes and their multiples.
const ALIGNED_SPANS: usize = 64;

/// Where keys are that are to be coded.
pub(super) struct KeySource<'a> {
    pub(super) rows: KeyRows,
    /// From a token's key to the next one's, in words of 4 bytes.
    pub(super) key_stride: usize,
    /// Words of a key.
    pub(super) key_words: usize,
    pub(super) buffers: Vec<&'a Buffer>,
    /// Whether so many are coded but once, and the list of them is not worth keeping.
    pub(super) is_once: bool,
}

/// Keys of one KV head that lie in one buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyStretch {
    /// Which buffer of the source.
    pub(super) buffer: usize,
    /// Where the first key begins, in words.
    pub(super) word: usize,
    pub(super) num_tokens: usize,
}

/// By buffer of keys and buffer of codes, the spans of a dispatch.
type Placed = BTreeMap<(usize, usize), Vec<KeySpan>>;

/// Keys of a block that lie in several stretches, and are copied to where they follow each other.
struct Gathered {
    /// The number of their buffer.
    buffer: usize,
    words: usize,
    copies: Vec<(KeyStretch, usize)>,
}

impl CodedSet {
    /// Adds the coding of keys, whole groups of each member in the order of its stretches, behind those that are there;
    /// gives the bytes that crossed.
    pub(super) fn encode(
        &mut self,
        device: &Device,
        commands: &mut Commands<'_>,
        source: &KeySource<'_>,
        members: &[Vec<KeyStretch>],
    ) -> Result<u64> {
        let gpu = device.gpu();
        let mut gathered = Gathered { buffer: source.buffers.len(), words: 0, copies: Vec::new() };
        let (mut placed, mut pages) = (Placed::new(), Vec::new());
        for (member, stretches) in members.iter().enumerate() {
            self.place_member(
                gpu,
                (member, stretches),
                source,
                &mut gathered,
                |key, span, page| {
                    placed.entry(key).or_default().push(span);
                    pages.push(page);
                },
            )?;
        }
        let mut crossed = self.write_spans(gpu, &pages)?;
        let gathered = gathered.record(commands, source)?;
        let mut list: Vec<KeySpan> = Vec::new();
        for spans in placed.values() {
            list.extend(spans);
            list.resize(list.len().next_multiple_of(ALIGNED_SPANS), KeySpan::zeroed());
        }
        let once;
        let list = if source.is_once {
            once = gpu.upload("keys to code", bytemuck::cast_slice(&list))?;
            crossed += once.num_bytes();
            &once
        } else {
            crossed += self.set_leaving(gpu, list)?;
            self.leaving()
        };
        let buffers: Vec<&Buffer> = source.buffers.iter().copied().chain(&gathered).collect();
        let mut first = 0;
        for (&(buffer, slab), spans) in &placed {
            for (index, part) in spans.chunks(DISPATCH_SPANS).enumerate() {
                let start = (first + index * DISPATCH_SPANS) * size_of::<KeySpan>();
                let num_tokens = part.iter().map(|span| span.num_tokens as usize);
                let encode = EncodeKeys {
                    coders: self.on_device()?,
                    rows: source.rows,
                    key_stride: source.key_stride,
                    max_tokens: num_tokens.max().unwrap_or(0),
                    num_spans: part.len(),
                    spans: Bound::part(list, start as u64, size_of_val(part) as u64),
                    keys: Bound::all(buffers[buffer]),
                    codes: Bound::all(&self.slabs()[slab]),
                };
                device.encode_keys(commands, &encode)?;
            }
            first += spans.len().next_multiple_of(ALIGNED_SPANS);
        }
        Ok(crossed)
    }

    /// Gives the keys of a member their places.
    fn place_member(
        &mut self,
        gpu: &Gpu,
        (member, stretches): (usize, &[KeyStretch]),
        source: &KeySource<'_>,
        gathered: &mut Gathered,
        mut push: impl FnMut((usize, usize), KeySpan, usize),
    ) -> Result<()> {
        let layout = self.layout();
        let mut rest: VecDeque<KeyStretch> = stretches.iter().copied().collect();
        while let Some(first) = rest.front() {
            let slot = self.num_tokens(member) % CODE_PAGE_TOKENS;
            let count = match layout.group_tokens {
                1 => first.num_tokens.min(CODE_PAGE_TOKENS - slot),
                group_tokens => group_tokens,
            };
            let (buffer, word) = match take(&mut rest, count, source.key_stride)[..] {
                [one] => (one.buffer, one.word),
                ref several => gathered.add(several, source),
            };
            let page = self.extend(gpu, member, count)?;
            let Place { slab, word: page_word } = self.place_of(page);
            let (block, in_block) = (slot / layout.block_tokens, slot % layout.block_tokens);
            let span = KeySpan {
                coder: member as u32,
                key: word as u32,
                place: page_word + (block * layout.block_bytes / 4) as u32,
                slot: in_block as u32,
                num_tokens: count as u32,
            };
            push((buffer, slab), span, page);
        }
        Ok(())
    }
}

/// The first `count` keys, stretch by stretch, or all that there are.
fn take(rest: &mut VecDeque<KeyStretch>, count: usize, key_stride: usize) -> Vec<KeyStretch> {
    let (mut taken, mut missing) = (Vec::new(), count);
    while missing > 0
        && let Some(first) = rest.front_mut()
    {
        let num_tokens = first.num_tokens.min(missing);
        taken.push(KeyStretch { num_tokens, ..*first });
        first.word += num_tokens * key_stride;
        first.num_tokens -= num_tokens;
        missing -= num_tokens;
        if first.num_tokens == 0 {
            rest.pop_front();
        }
    }
    taken
}

impl Gathered {
    /// Where the keys will be: the buffer, and the word at which they begin.
    fn add(&mut self, pieces: &[KeyStretch], source: &KeySource<'_>) -> (usize, usize) {
        let start = self.words;
        for piece in pieces {
            self.copies.push((*piece, self.words));
            self.words += piece.num_tokens * source.key_stride;
        }
        (self.buffer, start)
    }

    /// Adds the copies; gives what they fill.
    fn record(
        &self,
        commands: &mut Commands<'_>,
        source: &KeySource<'_>,
    ) -> Result<Option<Buffer>> {
        if self.copies.is_empty() {
            return Ok(None);
        }
        let to = commands.gpu().buffer("keys of several stretches", 4 * self.words as u64)?;
        for (piece, word) in &self.copies {
            // What lies between two keys is copied with them; behind the last one there may be nothing.
            let words = (piece.num_tokens - 1) * source.key_stride + source.key_words;
            let from = (source.buffers[piece.buffer], 4 * piece.word as u64);
            commands.copy(from, (&to, 4 * *word as u64), 4 * words as u64)?;
        }
        Ok(Some(to))
    }
}
