//! Codes of 32 tokens as planes of nibbles: the layout that in-register look-ups scan.
//!
//! A strip holds the codes of [`STRIP`] tokens. A plane is one nibble of every token, 16 bytes: byte `2i`
//! holds the tokens `i` (lower nibble) and `16 + i`, byte `2i + 1` the tokens `8 + i` and `24 + i`, so
//! that sums over bytes of even and of odd place are those of neighbouring tokens. Then follow the
//! tails: the scales of all tokens, then their zeros. For a query, a nibble is an index into sixteen products
//! that are known before any token is seen, so a plane costs one shuffle of bytes for 32 tokens
//! (quick ADC, André, Kermarrec and Le Scouarnec, VLDB 2015) whatever the widths of the channels are.
//! Products to 16 bits are two such tables; where a nibble is a number of one channel, it is multiplied by a
//! word instead, the query rounded to 16 bits, which costs less.
//!
//! Channels come in chunks of eight of one width. A width is cut into parts of 4, 2 and 1 bits, the upper
//! bits first; a plane holds one part of 1, 2 or 4 neighbouring channels, the first channel in the lowest
//! bits:
//!
//! | width | planes of a chunk of eight channels |
//! | --- | --- |
//! | 1 | 2 of 4 channels |
//! | 2 | 4 of 2 channels |
//! | 3 | 4 of 2 channels (upper 2 bits), 2 of 4 channels (lowest bit) |
//! | 4 | 8 of 1 channel |
//! | 5 to 8 | 8 of 1 channel (upper 4 bits), then those of a width of what is left |
//!
//! Parts of 4 bits come first in a strip.

use super::moves::StripCells;
use super::{CodePlane, MAX_CODED_HEAD_DIM, Precision, PreparedQueries, Tail};
use crate::bits::CHUNK;
use crate::simd::keys::Values;

/// Tokens of a strip.
pub(crate) const STRIP: usize = 32;

/// Bytes of a plane: half a byte per token.
pub(crate) const PLANE_BYTES: usize = STRIP / 2;

/// Largest entry of a table of one byte, for [`Precision::Select`]: two of them add up inside a byte.
const SELECT_MAX: f32 = 127.0;

/// Largest entry of a table of two bytes, for [`Precision::Exact`].
const EXACT_MAX: f32 = 65_535.0;

/// Steps of words that a table of two bytes counts in: 15 times the largest word is about as much as the
/// largest entry.
pub(crate) const ENTRY_STEPS: u8 = 8;

/// The sums of a token stay inside 32 bits: eight channels have sixteen planes at most.
const _: () = {
    let largest = 2 * MAX_CODED_HEAD_DIM * ENTRY_STEPS as usize * EXACT_MAX as usize;
    assert!(largest < i32::MAX as usize);
};

/// Half of the largest nibble: what the nibbles of a plane are about on average.
const MIDDLE: f32 = 7.5;

/// One part of one to four neighbouring channels.
#[derive(Clone, Copy, Debug)]
struct Plane {
    first_channel: usize,
    /// Bits of a channel in this plane: 1, 2 or 4.
    bits: u8,
    /// The place of those bits in the channel's code.
    shift: u8,
}

impl Plane {
    fn num_channels(self) -> usize {
        4 / usize::from(self.bits)
    }

    fn mask(self) -> u8 {
        (1 << self.bits) - 1
    }
}

/// The shape of strips.
#[derive(Clone, Debug)]
pub(crate) struct Planes {
    widths: Vec<u8>,
    planes: Vec<Plane>,
    /// The first planes, whose nibbles are each a number of one channel; a multiple of 8.
    num_linear: usize,
    values: Values,
    tail: Tail,
}

impl Planes {
    /// Strips of `widths.len()` chunks of eight channels; none for a codebook whose codes do not lie in
    /// one nibble each, since only sums of integers can be taken apart.
    pub(crate) fn new(widths: &[u8], values: &Values, tail: Tail) -> Option<Self> {
        let whole = |bits: &u8| [0, 1, 2, 4].contains(bits);
        if matches!(values, Values::Levels(_)) && !widths.iter().all(whole) {
            return None;
        }
        let mut planes = Vec::new();
        for (chunk, &width) in widths.iter().enumerate() {
            let mut left = width;
            while left > 0 {
                let bits = [4, 2, 1].into_iter().find(|&bits| bits <= left).unwrap_or(1);
                left -= bits;
                let step = 4 / usize::from(bits);
                let channels = (chunk * CHUNK..(chunk + 1) * CHUNK).step_by(step);
                planes.extend(channels.map(|first_channel| Plane {
                    first_channel,
                    bits,
                    shift: left,
                }));
            }
        }
        planes.sort_by_key(|plane| plane.bits != 4);
        let num_linear = match values {
            Values::Integer => planes.iter().filter(|plane| plane.bits == 4).count(),
            Values::Levels(_) => 0,
        };
        Some(Self { widths: widths.to_vec(), planes, num_linear, values: values.clone(), tail })
    }

    /// Strips of an even number of planes whose nibbles mean what a caller of [`Planes::fill_tables`] says.
    pub(crate) fn of_nibbles(num_planes: usize) -> Self {
        assert!(num_planes.is_multiple_of(2), "planes in pairs");
        let plane = |first_channel| Plane { first_channel, bits: 4, shift: 0 };
        let planes = (0..num_planes).map(plane).collect();
        let (widths, values) = (Vec::new(), Values::Integer);
        Self { widths, planes, num_linear: 0, values, tail: Tail::None }
    }

    /// Planes of a strip; an even number.
    pub(crate) fn num_planes(&self) -> usize {
        self.planes.len()
    }

    /// The planes, first in a strip, that are scored by words; the others are scored by tables.
    pub(crate) fn num_words(&self, precision: Precision) -> usize {
        match precision {
            Precision::Exact => self.num_linear,
            Precision::Select => 0,
        }
    }

    pub(super) fn values(&self) -> &Values {
        &self.values
    }

    /// What each plane holds.
    pub(super) fn code_planes(&self) -> impl Iterator<Item = CodePlane> {
        self.planes.iter().map(|plane| CodePlane {
            first_channel: plane.first_channel as u32,
            bits: plane.bits,
            shift: plane.shift,
        })
    }

    pub(crate) fn tail(&self) -> Tail {
        self.tail
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.num_planes() * PLANE_BYTES + STRIP * self.tail.bytes()
    }

    /// What a token has in a strip.
    pub(super) fn cells(&self) -> StripCells {
        StripCells::new(self.num_planes(), 0, self.tail)
    }

    /// The planes and the tails of a strip.
    pub(crate) fn split<'a>(&self, block: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        block.split_at(self.num_planes() * PLANE_BYTES)
    }

    /// Writes `codes [head_dim]` and the tail of the token in `slot`; other tokens stay as they are.
    pub(super) fn write(&self, block: &mut [u8], slot: usize, codes: &[u8], tail: &[u8]) {
        let (planes, tails) = block.split_at_mut(self.num_planes() * PLANE_BYTES);
        let (place, shift) = place_of(slot);
        for (plane, bytes) in self.planes.iter().zip(planes.chunks_exact_mut(PLANE_BYTES)) {
            let channels = &codes[plane.first_channel..][..plane.num_channels()];
            let parts = channels.iter().map(|code| code >> plane.shift & plane.mask());
            let nibble = parts.rev().fold(0, |nibble, part| nibble << plane.bits | part);
            bytes[place] = bytes[place] & !(15 << shift) | nibble << shift;
        }
        self.tail.write(tails, slot, tail);
    }

    /// Reads the codes of the token in `slot` into `codes [head_dim]`; returns its scale and zero.
    pub(super) fn read(&self, block: &[u8], slot: usize, codes: &mut [u8]) -> (f32, f32) {
        let (planes, tails) = self.split(block);
        let (place, shift) = place_of(slot);
        codes.fill(0);
        for (plane, bytes) in self.planes.iter().zip(planes.chunks_exact(PLANE_BYTES)) {
            let nibble = bytes[place] >> shift;
            let channels = &mut codes[plane.first_channel..][..plane.num_channels()];
            for (i, code) in channels.iter_mut().enumerate() {
                *code |= (nibble >> (i as u8 * plane.bits) & plane.mask()) << plane.shift;
            }
        }
        self.tail.read(tails, slot)
    }

    /// Fills the words and tables of `prepared`, whose queries are in the order of the codes.
    pub(super) fn prepare(&self, prepared: &mut PreparedQueries) {
        let head_dim = self.widths.len() * CHUNK;
        let queries = std::mem::take(&mut prepared.queries);
        let query = |head: usize| &queries[head * head_dim..][..head_dim];
        let slopes = |head: usize, slopes: &mut [f32]| {
            // The planes of a chunk lie side by side.
            let chunks = slopes.as_chunks_mut::<CHUNK>().0.iter_mut();
            for (slopes, plane) in chunks.zip(self.planes.iter().step_by(CHUNK)) {
                let query = &query(head)[plane.first_channel..][..CHUNK];
                let unit = f32::from(1u8 << plane.shift);
                slopes.iter_mut().zip(query).for_each(|(slope, q)| *slope = q * unit);
            }
        };
        let products = |head, plane: usize| self.products(self.planes[plane], query(head));
        self.fill(prepared, slopes, products);
        prepared.queries = queries;
    }

    /// Fills the tables of `prepared`: for each head and plane the sixteen `products(head, plane)` of its query
    /// with what a nibble can stand for.
    pub(super) fn fill_tables(
        &self,
        prepared: &mut PreparedQueries,
        products: impl Fn(usize, usize) -> [f32; 16],
    ) {
        self.fill(prepared, |_, _| (), products);
    }

    /// Fills the words and tables of `prepared`, in units of a step that the planes of a head share: `slopes_of`
    /// gives the products of a head's query with 1 for the planes that are scored by words, `products` for each
    /// other plane those with what the sixteen nibbles can stand for. What is left out of the tables, the
    /// least product of each plane, goes to the offsets, and so does what the rounding of words leaves out
    /// on average.
    fn fill(
        &self,
        prepared: &mut PreparedQueries,
        slopes_of: impl Fn(usize, &mut [f32]),
        products: impl Fn(usize, usize) -> [f32; 16],
    ) {
        let sets = Sets::of(prepared.precision);
        let num_words = self.num_words(prepared.precision);
        let num_tables = self.num_planes() - num_words;
        let (num_heads, set_len) = (prepared.num_heads, num_tables * 16);
        prepared.entries.clear();
        prepared.entries.resize(num_heads * sets.count * set_len, 0);
        prepared.words.clear();
        prepared.offsets.resize(num_heads, 0.0);
        if let Some(tables) = &mut prepared.plane_tables {
            let places = (0..num_heads).flat_map(|h| (0..self.num_planes()).map(move |p| (h, p)));
            tables.extend(places.flat_map(|(head, plane)| products(head, plane)));
            return;
        }
        let mut slopes = vec![0.0f32; num_words];
        let mut rows = vec![[0.0f32; 16]; num_tables];
        for head in 0..num_heads {
            slopes_of(head, &mut slopes);
            rows.iter_mut().zip(num_words..).for_each(|(row, plane)| *row = products(head, plane));
            let is_finite = slopes.iter().chain(rows.as_flattened()).all(|x| x.is_finite());
            if !is_finite {
                slopes.fill(0.0);
                rows.fill([0.0; 16]);
            }
            // The order of the bits of positive floats is their own, and integers come as vector code.
            let largest = slopes.iter().map(|slope| slope.abs().to_bits()).max().unwrap_or(0);
            let (largest, mut range) = (f32::from_bits(largest), 0.0f32);
            for row in &mut rows {
                let (low, high) = bounds(row);
                row.iter_mut().for_each(|x| *x -= low);
                prepared.offsets[head] += low;
                range = range.max(high - low);
            }
            let step = (largest / f32::from(i16::MAX)).max(range / sets.max_entry / sets.steps);
            // Of which there is an inverse.
            let step = step.max(f32::MIN_POSITIVE);
            let inverse = 1.0 / step;
            // A query that is not finite has no other scores than NaN.
            let step = if is_finite { step } else { f32::NAN };
            prepared.steps.push(step);
            // A word meets nibbles that are at most their middle away from it.
            let of_words = MIDDLE * largest_rounding(i16::MAX.into()) * num_words as f32;
            let of_tables = sets.steps * largest_rounding(sets.max_entry) * num_tables as f32;
            prepared.rounding.push(step * (of_words + of_tables));
            // Lane by lane, which compilers turn into vector code as they do not a sum in order.
            let mut left_out = [0.0; CHUNK];
            for slopes in slopes.as_chunks::<CHUNK>().0 {
                let words = slopes.map(|slope| nearest_integer(slope * inverse) as i16);
                for ((left_out, slope), word) in left_out.iter_mut().zip(slopes).zip(words) {
                    *left_out += slope - step * f32::from(word);
                }
                prepared.words.extend_from_slice(&words);
            }
            prepared.offsets[head] += MIDDLE * left_out.iter().sum::<f32>();
            let tables = &mut prepared.entries[head * sets.count * set_len..];
            let (low, high) = tables[..sets.count * set_len].split_at_mut(set_len);
            let low = low.as_chunks_mut::<16>().0;
            let inverse = inverse / sets.steps;
            for (i, (row, low)) in rows.iter().zip(low).enumerate() {
                let entries = row.map(|x| nearest_integer(x * inverse));
                *low = entries.map(|entry| entry as u8);
                if let Some(high) = high.as_chunks_mut::<16>().0.get_mut(i) {
                    *high = entries.map(|entry| (entry >> 8) as u8);
                }
            }
        }
    }

    /// The products of a query with what the sixteen nibbles of a plane stand for.
    fn products(&self, plane: Plane, query: &[f32]) -> [f32; 16] {
        let unit = f32::from(1u8 << plane.shift);
        let mut products = [0.0; 16];
        let queries = &query[plane.first_channel..][..plane.num_channels()];
        for (query, parts) in queries.iter().zip(parts(plane.bits)) {
            // Nibble by nibble, which compilers turn into vector code.
            let values = match &self.values {
                Values::Integer => parts.map(|part| unit * part),
                levels @ Values::Levels(_) => parts.map(|part| levels.of((unit * part) as u8)),
            };
            products.iter_mut().zip(values).for_each(|(product, value)| *product += query * value);
        }
        products
    }
}

/// What each of the sixteen nibbles says of the channels of a plane, of so many bits each.
fn parts(bits: u8) -> &'static [[f32; 16]] {
    const fn of_nibbles<const CHANNELS: usize>() -> [[f32; 16]; CHANNELS] {
        let bits = 4 / CHANNELS;
        let mut parts = [[0.0; 16]; CHANNELS];
        let mut i = 0;
        while i < 16 * CHANNELS {
            let (channel, nibble) = (i / 16, i % 16);
            parts[channel][nibble] = (nibble >> (channel * bits) & ((1 << bits) - 1)) as f32;
            i += 1;
        }
        parts
    }
    static SINGLE: [[f32; 16]; 4] = of_nibbles();
    static DOUBLE: [[f32; 16]; 2] = of_nibbles();
    static WHOLE: [[f32; 16]; 1] = of_nibbles();
    match bits {
        1 => &SINGLE,
        2 => &DOUBLE,
        _ => &WHOLE,
    }
}

/// The byte of a plane in which the token of a slot lies, and the shift of its nibble.
pub(crate) const fn place_of(slot: usize) -> (usize, usize) {
    (slot % 8 * 2 + slot / 8 % 2, slot / PLANE_BYTES * 4)
}

/// How many sets of tables of bytes a head has, the largest entry that they say together, of which the first
/// holds the lower byte and the second the upper one, and the steps that an entry counts in.
pub(crate) struct Sets {
    pub(crate) count: usize,
    max_entry: f32,
    steps: f32,
}

impl Sets {
    pub(crate) fn of(precision: Precision) -> Self {
        match precision {
            Precision::Select => Self { count: 1, max_entry: SELECT_MAX, steps: 1.0 },
            Precision::Exact => {
                Self { count: 2, max_entry: EXACT_MAX, steps: f32::from(ENTRY_STEPS) }
            }
        }
    }
}

/// The integer that is nearest to `x`, up to 2^22 in size; in vector code on every CPU, which [`f32::round`] is
/// not.
pub(crate) fn nearest_integer(x: f32) -> i32 {
    /// A number whose last bit counts ones.
    const ONES: f32 = 12_582_912.0;
    (x + ONES).to_bits().wrapping_sub(ONES.to_bits()) as i32
}

/// The most by which an integer up to `largest` in size is off from the number that it is rounded from: half of one,
/// and what three roundings of f32 do on the way, of a difference, an inverse and a product.
pub(crate) fn largest_rounding(largest: f32) -> f32 {
    0.5 + 1.5 * f32::EPSILON * largest
}

/// The least and the largest, found lane by lane, which compilers turn into vector code.
fn bounds(values: &[f32; 16]) -> (f32, f32) {
    let [first, rest @ ..] = values.as_chunks::<4>().0 else { unreachable!("sixteen values") };
    let (mut low, mut high) = (*first, *first);
    for four in rest {
        for ((low, high), &x) in low.iter_mut().zip(&mut high).zip(four) {
            *low = if x < *low { x } else { *low };
            *high = if x > *high { x } else { *high };
        }
    }
    (low.into_iter().fold(low[0], f32::min), high.into_iter().fold(high[0], f32::max))
}
