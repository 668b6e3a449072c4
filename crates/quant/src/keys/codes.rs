//! The codes of tokens, in the layout that can be scanned fastest.
//!
//! A format says what a token's codes are, eight channels of one width after the other, and what scale
//! and zero follow them; where the bits lie is decided here: codes of 8 bits as rows of bytes
//! ([`ByteStrips`]), codes that nibbles can be summed from as planes ([`Planes`]), and others one token
//! after the other ([`CodedRows`]).

use super::moves::StripCells;
use super::planes::{Planes, STRIP};
use super::{Cell, ChannelCodes, CodePlane, PreparedQueries, Strips, Tail};
use crate::Level;
use crate::bits::{for_each_code, pack_row};
use crate::simd::bytes::ByteStrips;
use crate::simd::keys::{CodedRows, Values};
use crate::simd::planes;

/// Codes of many tokens, of one shape.
#[derive(Clone, Debug)]
pub(super) struct TokenCodes {
    widths: Vec<u8>,
    values: Values,
    layout: Layout,
}

#[derive(Clone, Debug)]
enum Layout {
    Planes(Planes),
    Bytes(ByteStrips),
    Rows(CodedRows),
}

impl TokenCodes {
    /// Tokens of `widths.len()` chunks of eight channels.
    pub(super) fn new(widths: Vec<u8>, values: Values, tail: Tail) -> Self {
        let layout = if values == Values::Integer && widths.iter().all(|&bits| bits == 8) {
            Layout::Bytes(ByteStrips::new(widths.len() * 8, tail))
        } else if let Some(planes) = Planes::new(&widths, &values, tail) {
            Layout::Planes(planes)
        } else {
            return Self::rows(widths, values, tail);
        };
        Self { widths, values, layout }
    }

    /// The same, one token after the other whatever the widths.
    pub(super) fn rows(widths: Vec<u8>, values: Values, tail: Tail) -> Self {
        let layout = Layout::Rows(CodedRows::new(widths.clone(), values.clone(), tail));
        Self { widths, values, layout }
    }

    pub(super) fn widths(&self) -> &[u8] {
        &self.widths
    }

    pub(super) fn head_dim(&self) -> usize {
        self.widths.len() * 8
    }

    /// The planes that the codes lie in, if they do.
    pub(super) fn planes(&self) -> Option<&Planes> {
        match &self.layout {
            Layout::Planes(planes) => Some(planes),
            Layout::Bytes(_) | Layout::Rows(_) => None,
        }
    }

    /// What `code` stands for, before scale and zero.
    pub(super) fn value(&self, code: u8) -> f32 {
        self.values.of(code)
    }

    /// Where codes lie, if in strips.
    pub(super) fn strips(&self) -> Option<Strips> {
        match &self.layout {
            Layout::Planes(planes) => Some(Strips {
                cell: Cell::Nibble,
                planes: planes.code_planes().collect(),
                tail: planes.tail(),
            }),
            Layout::Bytes(strips) => {
                let pair = |first_channel| CodePlane { first_channel, bits: 8, shift: 0 };
                let planes = (0..self.head_dim() as u32).step_by(2).map(pair).collect();
                Some(Strips { cell: Cell::Pair, planes, tail: strips.tail() })
            }
            Layout::Rows(_) => None,
        }
    }

    /// What a token has in a strip, if codes lie in strips.
    pub(super) fn strip_cells(&self) -> Option<StripCells> {
        match &self.layout {
            Layout::Planes(planes) => Some(planes.cells()),
            Layout::Bytes(strips) => Some(StripCells::new(0, self.head_dim() / 2, strips.tail())),
            Layout::Rows(_) => None,
        }
    }

    /// Strips of bytes, if there are.
    pub(super) fn channel_codes(&self) -> Option<ChannelCodes> {
        match &self.layout {
            Layout::Bytes(strips) => Some(ChannelCodes::Bytes { tail: strips.tail() }),
            Layout::Planes(_) | Layout::Rows(_) => None,
        }
    }

    /// Tokens whose codes share a block of bytes.
    pub(super) fn block_tokens(&self) -> usize {
        match &self.layout {
            Layout::Planes(_) | Layout::Bytes(_) => STRIP,
            Layout::Rows(_) => 1,
        }
    }

    fn block_bytes(&self) -> usize {
        match &self.layout {
            Layout::Planes(planes) => planes.block_bytes(),
            Layout::Bytes(strips) => strips.block_bytes(),
            Layout::Rows(rows) => rows.row_bytes(),
        }
    }

    /// Bytes of the blocks that hold a number of tokens.
    pub(super) fn bytes(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_tokens()) * self.block_bytes()
    }

    /// Writes the codes `[head_dim]` and the tail of `token`; other tokens stay as they are.
    pub(super) fn write(&self, blocks: &mut [u8], token: usize, codes: &[u8], tail: &[u8]) {
        let (bytes, slot) = (self.block_bytes(), token % self.block_tokens());
        let block = &mut blocks[token / self.block_tokens() * bytes..][..bytes];
        match &self.layout {
            Layout::Planes(planes) => planes.write(block, slot, codes, tail),
            Layout::Bytes(strips) => strips.write(block, slot, codes, tail),
            Layout::Rows(rows) => {
                let (packed, rest) = block.split_at_mut(rows.code_bytes());
                pack_row(codes, &self.widths, packed);
                rest.copy_from_slice(tail);
            }
        }
    }

    /// Reads the codes of `token` into `codes [head_dim]`; returns its scale and zero.
    pub(super) fn read(&self, blocks: &[u8], token: usize, codes: &mut [u8]) -> (f32, f32) {
        let (bytes, slot) = (self.block_bytes(), token % self.block_tokens());
        let block = &blocks[token / self.block_tokens() * bytes..][..bytes];
        match &self.layout {
            Layout::Planes(planes) => planes.read(block, slot, codes),
            Layout::Bytes(strips) => strips.read(block, slot, codes),
            Layout::Rows(rows) => {
                for_each_code(block, &self.widths, |channel, code| codes[channel] = code);
                rows.tail_of(block)
            }
        }
    }

    /// Decodes the tokens from `first_token` on into `out [n, head_dim]`: `zero + scale · value`.
    pub(super) fn decode(&self, first_token: usize, blocks: &[u8], out: &mut [f32]) {
        let mut codes = vec![0; self.head_dim()];
        for (i, out) in out.chunks_exact_mut(self.head_dim()).enumerate() {
            let (scale, zero) = self.read(blocks, first_token + i, &mut codes);
            for (out, &code) in out.iter_mut().zip(&codes) {
                *out = zero + scale * self.value(code);
            }
        }
    }

    /// Adds to `prepared`, whose queries are in the order of the codes, what `score` needs.
    pub(super) fn prepare(&self, prepared: &mut PreparedQueries) {
        match &self.layout {
            Layout::Planes(planes) => planes.prepare(prepared),
            Layout::Bytes(strips) => {
                prepared.words.clear();
                for query in prepared.queries.chunks_exact(self.head_dim()) {
                    let (step, rounding) = strips.round_query(query, &mut prepared.words);
                    prepared.steps.push(step);
                    prepared.rounding.push(rounding);
                }
            }
            Layout::Rows(_) => {}
        }
    }

    /// Scores the first `num_tokens` of `blocks` into `out[head · stride + token]`.
    pub(super) fn score(
        &self,
        level: Level,
        prepared: &PreparedQueries,
        blocks: &[u8],
        num_tokens: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        match &self.layout {
            Layout::Planes(planes) => {
                planes::score(planes, level, prepared, blocks, num_tokens, out, stride);
            }
            Layout::Bytes(strips) => {
                strips.score(level, prepared, blocks, num_tokens, out, stride);
            }
            Layout::Rows(rows) => rows.score(level, prepared, blocks, out, stride),
        }
    }

    /// The most by which the kernels' rounding of queries and tables moves the score of `token`.
    pub(super) fn rounding(
        &self,
        prepared: &PreparedQueries,
        head: usize,
        blocks: &[u8],
        token: usize,
    ) -> f32 {
        let rounding = prepared.rounding.get(head).copied().unwrap_or(0.0);
        let (scale, _) = self.read(blocks, token, &mut vec![0; self.head_dim()]);
        scale.abs() * rounding
    }
}
