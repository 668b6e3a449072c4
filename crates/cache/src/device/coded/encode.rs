//! Keys on the device that become codes there.

use std::collections::{BTreeMap, VecDeque};

use bytemuck::Zeroable;
use heterokv_attn::device::{Device, EncodeKeys, KeyRows, KeySpan};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu, Place};
use heterokv_quant::Level;

use super::CodedSet;
use crate::coded::CODE_PAGE_TOKENS;
use crate::{Error, Result};

/// Spans of a dispatch at most: fewer than any device's workgroups in a dimension, and as many as end where a binding may
/// begin.
const DISPATCH_SPANS: usize = 65_472;

/// Spans of 20 bytes between two places where a binding may begin, 256 bytes and their multiples.
pub(in crate::device) const ALIGNED_SPANS: usize = 64;

/// Where keys are that are to be coded.
pub(in crate::device) struct KeySource<'a> {
    pub(in crate::device) rows: KeyRows,
    /// From a token's key to the next one's, in words of 4 bytes.
    pub(in crate::device) key_stride: usize,
    /// Words of a key.
    pub(in crate::device) key_words: usize,
    pub(in crate::device) buffers: Vec<&'a Buffer>,
    /// Whether so many are coded but once, and the list of them is not worth keeping.
    pub(in crate::device) is_once: bool,
}

/// Keys of one KV head that lie in one buffer.
#[derive(Clone, Copy, Debug)]
pub(in crate::device) struct KeyStretch {
    /// Which buffer of the source.
    pub(in crate::device) buffer: usize,
    /// Where the first key begins, in words.
    pub(in crate::device) word: usize,
    pub(in crate::device) num_tokens: usize,
}

/// Keys of the members of a set that are to be coded, whole groups of each.
pub(in crate::device) struct KeysToCode<'a> {
    pub(in crate::device) source: &'a KeySource<'a>,
    /// By member, its keys on the device, in order.
    pub(in crate::device) stretches: Vec<Vec<KeyStretch>>,
    /// The same keys of a KV head `[n, head_dim]`, where the host has to code them.
    pub(in crate::device) on_host: &'a dyn Fn(usize) -> Vec<f32>,
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
    /// Adds the coding of keys behind those that are there: on the device, or on the host for formats that no kernel
    /// encodes.
    pub(in crate::device) fn code(
        &mut self,
        device: &Device,
        commands: &mut Commands<'_>,
        level: Level,
        keys: &KeysToCode<'_>,
    ) -> Result<()> {
        if keys.stretches.iter().all(Vec::is_empty) {
            return Ok(());
        }
        if self.encodes_on_device() {
            return self.encode(device, commands, keys.source, &keys.stretches);
        }
        for (member, kv_head) in self.heads.clone().into_iter().enumerate() {
            self.encode_on_host(device.gpu(), level, member, &(keys.on_host)(kv_head))?;
        }
        Ok(())
    }

    /// Adds the coding of keys on the device, of each member those of its stretches.
    ///
    /// # Errors
    /// Before every member has a coder; what the device lacks.
    fn encode(
        &mut self,
        device: &Device,
        commands: &mut Commands<'_>,
        source: &KeySource<'_>,
        members: &[Vec<KeyStretch>],
    ) -> Result<()> {
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
        self.write_spans(gpu, &pages)?;
        let dense = gathered.record(commands, source)?;
        let mut list: Vec<KeySpan> = Vec::new();
        for spans in placed.values() {
            list.extend(spans);
            list.resize(list.len().next_multiple_of(ALIGNED_SPANS), KeySpan::zeroed());
        }
        let once;
        let list = if source.is_once {
            once = gpu.upload("keys to code", bytemuck::cast_slice(&list))?;
            &once
        } else {
            self.leaving.set(gpu, list)?;
            self.leaving.buffer()
        };
        let coders = self.tables.as_ref().and_then(|tables| tables.coders.as_ref());
        let coders = coders.ok_or(Error::NotOnDevice { format: self.format })?;
        let buffers: Vec<&Buffer> = source.buffers.iter().copied().chain(&dense).collect();
        let mut first = 0;
        for (&(buffer, slab), spans) in &placed {
            for (index, part) in spans.chunks(DISPATCH_SPANS).enumerate() {
                let start = (first + index * DISPATCH_SPANS) * size_of::<KeySpan>();
                let num_tokens = part.iter().map(|span| span.num_tokens as usize);
                let encode = EncodeKeys {
                    coders,
                    rows: source.rows,
                    key_stride: match buffer == gathered.buffer {
                        true => source.key_words,
                        false => source.key_stride,
                    },
                    max_tokens: num_tokens.max().unwrap_or(0),
                    num_spans: part.len(),
                    spans: Bound::part(list, start as u64, size_of_val(part) as u64),
                    keys: Bound::all(buffers[buffer]),
                    codes: Bound::all(&self.pages.slabs()[slab]),
                };
                device.encode_keys(commands, &encode)?;
            }
            first += spans.len().next_multiple_of(ALIGNED_SPANS);
        }
        Ok(())
    }

    /// Gives the keys of a member their places: `push` gets the numbers of the buffer that a span's keys are in and of the
    /// one that its codes go to, the span, and the page. Keys of a block that lie apart are to be gathered first.
    fn place_member(
        &mut self,
        gpu: &Gpu,
        (member, stretches): (usize, &[KeyStretch]),
        source: &KeySource<'_>,
        gathered: &mut Gathered,
        mut push: impl FnMut((usize, usize), KeySpan, usize),
    ) -> Result<()> {
        let layout = self.layout;
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
            self.words += piece.num_tokens * source.key_words;
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
        let bytes = |words: usize| 4 * words as u64;
        let is_dense = source.key_stride == source.key_words;
        for (piece, word) in &self.copies {
            let from = source.buffers[piece.buffer];
            if is_dense {
                let words = piece.num_tokens * source.key_words;
                commands.copy((from, bytes(piece.word)), (&to, bytes(*word)), bytes(words))?;
                continue;
            }
            for token in 0..piece.num_tokens {
                let from = (from, bytes(piece.word + token * source.key_stride));
                let to = (&to, bytes(word + token * source.key_words));
                commands.copy(from, to, bytes(source.key_words))?;
            }
        }
        Ok(Some(to))
    }
}
