//! Rows of the `q8` compute form in bands of 16, so that a vector lane is a row.
//!
//! A band is a run of blocks of 32 columns, and a block has one 32-bit word of each row at a time: eight
//! codes of 4 bits or four of 8. Codes are stored unsigned, `code + centre`. Of the columns of a word, the
//! even ones lie in its low 16 bits and the odd ones in its high 16, lowest first, so that a mask (and a
//! shift) leaves two neighbours as 16-bit integers, which is what a multiply-add of pairs takes.

use half::f16;

use super::{BLOCK, TensorType, encode::Q8RowMut, unpack};

/// Rows of a band.
pub(crate) const BAND: usize = 16;

/// One 32-bit word of each row of a band.
pub(crate) type Words = [u32; BAND];

/// How a band holds codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeForm {
    /// Bits of a code: 4 or 8.
    pub(crate) bits: usize,
    /// What is added to a code, so that it is stored unsigned.
    pub(crate) centre: i32,
}

impl CodeForm {
    /// That of tensors of type `ty`: what a checkpoint has in 4 bits stays so.
    pub(super) fn of(ty: TensorType) -> Self {
        match ty {
            TensorType::Q4_0 => Self { bits: 4, centre: 8 },
            TensorType::Q4_1 | TensorType::Q4K => Self { bits: 4, centre: 0 },
            _ => Self { bits: 8, centre: 128 },
        }
    }

    /// Words of a block, for each row: 4 or 8.
    pub(crate) fn block_words(self) -> usize {
        self.bits
    }

    /// Columns of a word: 8 or 4.
    pub(crate) fn word_columns(self) -> usize {
        32 / self.bits
    }

    /// The code of a word's column.
    pub(crate) fn code(self, word: u32, column: usize) -> i32 {
        let code = word >> self.shift(column) & ((1 << self.bits) - 1);
        code.cast_signed() - self.centre
    }

    fn shift(self, column: usize) -> usize {
        self.bits * (column / 2) + 16 * (column % 2)
    }

    /// The word of as many codes as it has columns.
    fn word(self, codes: &[i8]) -> u32 {
        let stored = |code: &i8| (i32::from(*code) + self.centre).cast_unsigned();
        let columns = codes.iter().enumerate();
        columns.fold(0, |word, (column, code)| word | stored(code) << self.shift(column))
    }
}

/// The column of a block whose code is byte `byte` of step `step`, when the nibbles of a band's words are taken
/// where they lie: of 4-bit codes two steps a word, the low nibble of each byte before the high one; of 8-bit
/// codes, whose two nibbles are in one byte, one step.
#[inline(always)]
pub(crate) const fn column_at(bits: usize, step: usize, byte: usize) -> usize {
    let steps = 8 / bits;
    let bit = 8 * byte + 4 * (step % steps);
    step / steps * (32 / bits) + 2 * (bit % 16 / bits) + bit / 16
}

/// A matrix of whole bands; rows behind its last are zeros, as are columns.
#[derive(Debug)]
pub(super) struct Bands {
    form: CodeForm,
    /// `cols / 32`, rounded up.
    num_blocks: usize,
    /// `[num_bands, num_blocks, block_words]`.
    words: AlignedWords,
    /// `[num_bands, num_blocks]`, each of 16 rows.
    scales: Vec<[f16; BAND]>,
    /// `[num_bands, num_blocks]`, or empty if all are zero.
    offsets: Vec<[f16; BAND]>,
}

/// Consecutive bands, for kernels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BandRows<'a> {
    /// How codes are held.
    pub(crate) form: CodeForm,
    /// Blocks of 32 columns per row, not 0.
    pub(crate) num_blocks: usize,
    /// `[num_bands, num_blocks, block_words]`.
    pub(crate) words: &'a [Words],
    /// Scales `[num_bands, num_blocks]`, each of 16 rows.
    pub(crate) scales: &'a [[f16; BAND]],
    /// Offsets `[num_bands, num_blocks]`, each of 16 rows, or empty: all zero.
    pub(crate) offsets: &'a [[f16; BAND]],
}

/// One band that is being filled.
pub(super) struct BandMut<'a> {
    form: CodeForm,
    words: &'a mut [Words],
    scales: &'a mut [[f16; BAND]],
    offsets: &'a mut [[f16; BAND]],
}

impl Bands {
    /// `rows × num_blocks` zeros, neither of which is 0, for tensors of type `ty`.
    pub(super) fn zeros(ty: TensorType, rows: usize, num_blocks: usize) -> Self {
        let form = CodeForm::of(ty);
        let band_blocks = rows.div_ceil(BAND) * num_blocks;
        let num_offsets = if unpack::has_offset(ty) { band_blocks } else { 0 };
        Self {
            form,
            num_blocks,
            words: AlignedWords::zeros(band_blocks * form.block_words()),
            scales: vec![[f16::ZERO; BAND]; band_blocks],
            offsets: vec![[f16::ZERO; BAND]; num_offsets],
        }
    }

    /// Bytes of `rows` rows of `num_blocks` blocks of a tensor of type `ty`; None where that overflows.
    pub(super) fn bytes_of(ty: TensorType, rows: usize, num_blocks: usize) -> Option<usize> {
        let fields = if unpack::has_offset(ty) { 2 } else { 1 };
        let block = CodeForm::of(ty).block_words() * size_of::<u32>() + fields * size_of::<f16>();
        rows.checked_next_multiple_of(BAND)?.checked_mul(num_blocks)?.checked_mul(block)
    }

    /// Bytes held, padding included.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.words.get())
            + size_of_val(&self.scales[..])
            + size_of_val(&self.offsets[..])
    }

    /// Bands `first..first + num_bands`.
    pub(super) fn bands(&self, first: usize, num_bands: usize) -> BandRows<'_> {
        let Self { form, num_blocks, .. } = *self;
        let blocks = first * num_blocks..(first + num_bands) * num_blocks;
        let words = blocks.start * form.block_words()..blocks.end * form.block_words();
        BandRows {
            form,
            num_blocks,
            words: &self.words.get()[words],
            scales: &self.scales[blocks.clone()],
            offsets: if self.offsets.is_empty() { &[] } else { &self.offsets[blocks] },
        }
    }

    /// All bands, to be filled.
    pub(super) fn bands_mut(&mut self) -> Vec<BandMut<'_>> {
        let Self { form, num_blocks, .. } = *self;
        let mut offsets = self.offsets.chunks_exact_mut(num_blocks);
        let words = self.words.get_mut().chunks_exact_mut(num_blocks * form.block_words());
        words
            .zip(self.scales.chunks_exact_mut(num_blocks))
            .map(|(words, scales)| {
                let offsets = offsets.next().unwrap_or_default();
                BandMut { form, words, scales, offsets }
            })
            .collect()
    }

    /// Row `row`, as it would be held on its own; `codes [num_blocks · 32]`, `scales [num_blocks]`, and
    /// `offsets` as long or empty.
    pub(super) fn unpack_row(&self, row: usize, out: Q8RowMut<'_>) {
        let (band, lane) = (self.bands(row / BAND, 1), row % BAND);
        let words = band.words.iter().zip(out.codes.chunks_exact_mut(self.form.word_columns()));
        for (words, codes) in words {
            for (column, code) in codes.iter_mut().enumerate() {
                *code = self.form.code(words[lane], column) as i8;
            }
        }
        for (scale, of_band) in out.scales.iter_mut().zip(band.scales) {
            *scale = of_band[lane];
        }
        for (offset, of_band) in out.offsets.iter_mut().zip(band.offsets) {
            *offset = of_band[lane];
        }
    }

    /// True where blocks have an offset.
    pub(super) fn has_offsets(&self) -> bool {
        !self.offsets.is_empty()
    }

    /// Row `row`, decoded to `out [cols]`, `cols` being in the last block.
    pub(super) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let (band, lane, form) = (self.bands(row / BAND, 1), row % BAND, self.form);
        let blocks = out.chunks_mut(BLOCK).zip(band.words.chunks_exact(form.block_words()));
        for (block, (out, words)) in blocks.enumerate() {
            let scale = band.scales[block][lane].to_f32();
            let offset = band.offsets.get(block).map(|offsets| offsets[lane].to_f32());
            for (out, words) in out.chunks_mut(form.word_columns()).zip(words) {
                for (column, out) in out.iter_mut().enumerate() {
                    let product = scale * form.code(words[lane], column) as f32;
                    *out = offset.map_or(product, |offset| product + offset);
                }
            }
        }
    }
}

impl BandMut<'_> {
    /// Takes row `lane` of the band from the form in which it would be held on its own.
    pub(super) fn put(&mut self, lane: usize, row: &Q8RowMut<'_>) {
        // The branch is out of the loops, so that each has shifts that are known when it is compiled.
        match self.form.bits {
            4 => self.put_codes(CodeForm { bits: 4, ..self.form }, lane, row.codes),
            _ => self.put_codes(CodeForm { bits: 8, ..self.form }, lane, row.codes),
        }
        for (of_band, scale) in self.scales.iter_mut().zip(&*row.scales) {
            of_band[lane] = *scale;
        }
        for (of_band, offset) in self.offsets.iter_mut().zip(&*row.offsets) {
            of_band[lane] = *offset;
        }
    }

    #[inline(always)]
    fn put_codes(&mut self, form: CodeForm, lane: usize, codes: &[i8]) {
        for (words, codes) in self.words.iter_mut().zip(codes.chunks_exact(form.word_columns())) {
            words[lane] = form.word(codes);
        }
    }
}

/// Words that begin with a cache line.
///
/// A vector of `u32` and not of a type with that alignment, since zeros of integers come from the system
/// and are not written before they are used.
#[derive(Debug)]
struct AlignedWords {
    buffer: Vec<u32>,
    /// Where in the buffer the first line begins.
    start: usize,
    len: usize,
}

impl AlignedWords {
    fn zeros(len: usize) -> Self {
        let buffer = vec![0u32; len * BAND + BAND - 1];
        let start = buffer.as_ptr().align_offset(size_of::<Words>()).min(BAND - 1);
        Self { buffer, start, len }
    }

    fn get(&self) -> &[Words] {
        &self.buffer[self.start..].as_chunks().0[..self.len]
    }

    fn get_mut(&mut self) -> &mut [Words] {
        &mut self.buffer[self.start..].as_chunks_mut().0[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_back_its_codes() {
        for ty in TensorType::ALL {
            let form = CodeForm::of(ty);
            let least = -form.centre;
            for turn in 0..1 << form.bits {
                let codes: Vec<i8> = (0..form.word_columns() as i32)
                    .map(|i| (least + (turn + i * 37) % (1 << form.bits)) as i8)
                    .collect();
                let word = form.word(&codes);
                for (column, code) in codes.iter().enumerate() {
                    assert_eq!(form.code(word, column), i32::from(*code), "{ty} {codes:?}");
                }
            }
        }
    }

    #[test]
    fn bytes_of_a_step_are_codes_of_its_columns() {
        for bits in [4, 8] {
            let form = CodeForm { bits, centre: 0 };
            let codes: [i8; BLOCK] =
                std::array::from_fn(|column| (column * 37 % (1 << bits.min(7))) as i8);
            let words: Vec<u32> =
                codes.chunks(form.word_columns()).map(|codes| form.word(codes)).collect();
            let mut seen = [0; BLOCK];
            for step in 0..BLOCK / 4 {
                for byte in 0..4 {
                    let stored = match bits {
                        4 => words[step / 2] >> (8 * byte + 4 * (step % 2)) & 15,
                        _ => words[step] >> (8 * byte) & 255,
                    };
                    let column = column_at(bits, step, byte);
                    seen[column] += 1;
                    assert_eq!(stored, codes[column] as u32, "{bits} {step} {byte}");
                }
            }
            assert_eq!(seen, [1; BLOCK], "{bits}");
        }
    }

    #[test]
    fn neighbours_are_the_halves_of_a_masked_word() {
        let nibbles = CodeForm::of(TensorType::Q4_1);
        let word = nibbles.word(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(word & 0x000f_000f, 0x0002_0001);
        assert_eq!(word >> 4 & 0x000f_000f, 0x0004_0003);
        let bytes = CodeForm { bits: 8, centre: 0 };
        assert_eq!(bytes.word(&[1, 2, 3, 4]) & 0x00ff_00ff, 0x0002_0001);
        assert_eq!(bytes.word(&[1, 2, 3, 4]) >> 8 & 0x00ff_00ff, 0x0004_0003);
    }

    #[test]
    fn words_begin_with_a_cache_line() {
        for len in [1, 3, 100, 100_000] {
            let words = AlignedWords::zeros(len);
            assert_eq!(words.get().len(), len);
            assert_eq!(words.get().as_ptr().align_offset(64), 0);
            assert!(words.get().iter().all(|words| *words == [0; BAND]));
        }
    }
}
