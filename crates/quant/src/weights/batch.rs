//! Many input vectors, prepared once for a product in integers.

use std::ops::Range;

use arrayvec::ArrayVec;
use rayon::prelude::*;

use super::{
    BLOCK,
    bands::{CodeForm, column_at},
};
use crate::{Level, simd::weights as kernels};

/// Vectors that a kernel takes at a time.
pub(crate) const QUAD: usize = 4;

/// 32-bit words of a block of one vector, each of four codes.
pub(crate) const STEPS: usize = BLOCK / 4;

/// Vectors of a tile, for which blocks that stand out are collected.
pub(crate) const TILE_VECTORS: usize = 128;

/// A block stands out where its scale is so many times the mean of its vector's. In a model few channels are far larger
/// than all others; the elements beside them would have most of the error that 8 bits make. LLM.int8()
/// (arXiv 2208.07339, section 3.2) computes such channels in 16 bits.
const STANDING_OUT: f32 = 1.5;

/// Of so many vectors and fewer all blocks count as standing out: their product takes about as long as reading the
/// weights, twice as many operations hardly longer.
const FEW: usize = 8;

/// Vectors in blocks of 32 columns, `x ≈ scale * code` with codes of 8 bits, and twice that for blocks that stand out.
///
/// `scale` is the largest magnitude of the block divided by 127, so that each element is off by at most `scale / 2`
/// and a hundredth of that, 0.4 % of the block's largest. What that leaves of a block that
/// stands out is rounded in the same way and added: 0.0016 %. What is too small, or not finite, is as in
/// [`BlockVector`](super::BlockVector). How a vector is rounded does not depend on the others, but for whether they are
/// [few](FEW).
#[derive(Debug)]
pub(crate) struct Batch {
    num_vectors: usize,
    cols: usize,
    tiles: Vec<VectorTile>,
}

/// [`TILE_VECTORS`] vectors, or as many as are left.
#[derive(Debug)]
pub(crate) struct VectorTile {
    num_vectors: usize,
    num_blocks: usize,
    /// `[num_quads, num_blocks]`; vectors behind the last are zeros.
    blocks: Vec<QuadBlock>,
    /// In the order of their blocks.
    residuals: Vec<Residual>,
}

/// What rounding has left of one block of up to four vectors.
#[derive(Debug)]
pub(crate) struct Residual {
    /// Which block of the vectors.
    pub(crate) index: usize,
    /// Which vectors of the tile.
    pub(crate) vectors: ArrayVec<usize, QUAD>,
    /// Those behind the last vector are zeros.
    pub(crate) block: QuadBlock,
}

/// One block of four vectors.
#[derive(Clone, Debug, Default)]
pub(crate) struct QuadBlock {
    /// Four codes of each vector a step, the columns being those of [`column_at`].
    pub(crate) words: [[u32; QUAD]; STEPS],
    pub(crate) scales: [f32; QUAD],
    /// `scale * sum of codes`.
    pub(crate) sums: [f32; QUAD],
}

impl Batch {
    /// Quantizes `x [n, cols]`, neither of which is 0, for products with bands of `form`.
    pub(crate) fn quantize(level: Level, form: CodeForm, x: &[f32], cols: usize) -> Self {
        let num_vectors = x.len() / cols;
        let standing_out = if num_vectors <= FEW { 0.0 } else { STANDING_OUT };
        let tile = |x| VectorTile::quantize(level, form, x, cols, standing_out);
        Self { num_vectors, cols, tiles: x.par_chunks(TILE_VECTORS * cols).map(tile).collect() }
    }

    pub(crate) fn num_vectors(&self) -> usize {
        self.num_vectors
    }

    /// Of 32 columns each, the last perhaps of fewer.
    pub(crate) fn num_blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    /// Of [`TILE_VECTORS`] vectors each, but for the last.
    pub(crate) fn tiles(&self) -> &[VectorTile] {
        &self.tiles
    }

    /// The vectors that the codes stand for, `[n, cols]`.
    pub(crate) fn values(&self, form: CodeForm) -> Vec<f32> {
        let mut values = vec![0.0; self.num_vectors * self.cols];
        for (tile, rows) in self.tiles.iter().zip(values.chunks_mut(TILE_VECTORS * self.cols)) {
            let mut add = |vector: usize, index: usize, block: [f32; BLOCK]| {
                let out = rows[vector * self.cols..][..self.cols][index * BLOCK..].iter_mut();
                out.zip(block).for_each(|(out, value)| *out += value);
            };
            for vector in 0..tile.num_vectors() {
                for (index, block) in tile.quad(vector / QUAD).iter().enumerate() {
                    add(vector, index, block.values(form, vector % QUAD));
                }
            }
            for Residual { index, vectors, block } in tile.residuals_in(0..tile.num_blocks) {
                for (slot, vector) in vectors.iter().enumerate() {
                    add(*vector, *index, block.values(form, slot));
                }
            }
        }
        values
    }
}

impl VectorTile {
    /// Blocks stand out whose scale is `standing_out` times the mean of their vector's.
    fn quantize(level: Level, form: CodeForm, x: &[f32], cols: usize, standing_out: f32) -> Self {
        let (num_vectors, num_blocks) = (x.len() / cols, cols.div_ceil(BLOCK));
        let mut blocks = vec![QuadBlock::default(); num_vectors.div_ceil(QUAD) * num_blocks];
        let quads = blocks.chunks_exact_mut(num_blocks).zip(x.chunks(QUAD * cols));
        quads.for_each(|(blocks, x)| kernels::quantize_quad(level, form, x, cols, blocks));

        let bounds = (0..num_vectors).map(|vector| {
            let quad = &blocks[vector / QUAD * num_blocks..][..num_blocks];
            let scales = quad.iter().map(|block| block.scales[vector % QUAD]);
            standing_out * scales.sum::<f32>() / num_blocks as f32
        });
        let bounds: Vec<f32> = bounds.collect();
        let mut residuals = Vec::new();
        for index in 0..num_blocks {
            let of_vector = |vector: usize| &blocks[vector / QUAD * num_blocks + index];
            let stands_out =
                |&vector: &usize| of_vector(vector).scales[vector % QUAD] > bounds[vector];
            let mut vectors = (0..num_vectors).filter(stands_out).peekable();
            while vectors.peek().is_some() {
                let vectors: ArrayVec<usize, QUAD> = vectors.by_ref().take(QUAD).collect();
                let mut left = [0.0; QUAD * BLOCK];
                for (left, &vector) in left.chunks_exact_mut(BLOCK).zip(&vectors) {
                    let rounded = of_vector(vector).values(form, vector % QUAD);
                    let x = x[vector * cols..][..cols][index * BLOCK..].iter().zip(rounded);
                    left.iter_mut().zip(x).for_each(|(left, (x, rounded))| *left = x - rounded);
                }
                let mut block = [QuadBlock::default()];
                kernels::quantize_quad(level, form, &left, BLOCK, &mut block);
                let [block] = block;
                residuals.push(Residual { index, vectors, block });
            }
        }
        Self { num_vectors, num_blocks, blocks, residuals }
    }

    pub(crate) fn num_vectors(&self) -> usize {
        self.num_vectors
    }

    /// The blocks of four vectors, `[num_blocks]`.
    pub(crate) fn quad(&self, quad: usize) -> &[QuadBlock] {
        &self.blocks[quad * self.num_blocks..][..self.num_blocks]
    }

    /// The residuals of some of the blocks.
    pub(crate) fn residuals_in(&self, blocks: Range<usize>) -> &[Residual] {
        let before = |end| self.residuals.partition_point(|residual| residual.index < end);
        &self.residuals[before(blocks.start)..before(blocks.end)]
    }
}

impl QuadBlock {
    /// What the codes of one of the vectors stand for.
    fn values(&self, form: CodeForm, vector: usize) -> [f32; BLOCK] {
        let mut values = [0.0; BLOCK];
        for (step, words) in self.words.iter().enumerate() {
            for (byte, code) in words[vector].to_le_bytes().into_iter().enumerate() {
                let code = f32::from(code.cast_signed());
                values[column_at(form.bits, step, byte)] = self.scales[vector] * code;
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::weights::{ComputeType, TensorType, WeightMatrix};

    fn form(bits: usize) -> CodeForm {
        CodeForm { bits, centre: 0 }
    }

    /// Normal-like vectors `[n, cols]`, in which column 37 is far larger than all others for every third.
    fn vectors(rng: &mut StdRng, n: usize, cols: usize) -> Vec<f32> {
        let mut draw = || (0..4).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>();
        let mut x: Vec<f32> = (0..n * cols).map(|_| draw()).collect();
        if cols > 37 {
            x.chunks_exact_mut(cols).step_by(3).for_each(|x| x[37] += 200.0);
        }
        x
    }

    const SHAPES: [[usize; 2]; 8] =
        [[1, 1], [5, 31], [4, 33], [7, 64], [127, 96], [128, 100], [130, 576], [259, 160]];

    #[test]
    fn elements_are_within_half_a_step_or_that_of_what_was_left() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut num_twice = 0;
        for [n, cols] in SHAPES {
            let x = vectors(&mut rng, n, cols);
            for level in Level::available() {
                for bits in [4, 8] {
                    let batch = Batch::quantize(level, form(bits), &x, cols);
                    let values = batch.values(form(bits));
                    for (vector, (x, values)) in
                        x.chunks_exact(cols).zip(values.chunks_exact(cols)).enumerate()
                    {
                        let tile = &batch.tiles()[vector / TILE_VECTORS];
                        let blocks = x.chunks(BLOCK).zip(values.chunks(BLOCK));
                        for (index, (x, values)) in blocks.enumerate() {
                            let twice = tile
                                .residuals_in(index..index + 1)
                                .iter()
                                .any(|r| r.vectors.contains(&(vector % TILE_VECTORS)));
                            num_twice += usize::from(twice);
                            let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                            let step = largest / if twice { 127.0 * 254.0 } else { 127.0 };
                            for (x, value) in x.iter().zip(values) {
                                let error = (x - value).abs();
                                let bound = 0.505 * step + 4e-7 * largest;
                                assert!(error <= bound, "{level} {bits} [{n}, {cols}]: {error}");
                            }
                        }
                    }
                }
            }
        }
        assert!(num_twice > 100, "{num_twice}");
    }

    #[test]
    fn blocks_that_stand_out_are_rounded_twice_and_no_others() {
        let mut rng = StdRng::seed_from_u64(2);
        let (n, cols) = (130, 256);
        let x = vectors(&mut rng, n, cols);
        let batch = Batch::quantize(Level::detect(), form(4), &x, cols);
        for (tile, first) in batch.tiles().iter().zip([0, TILE_VECTORS]) {
            let mut seen: Vec<(usize, usize)> = Vec::new();
            for residual in &tile.residuals {
                seen.extend(
                    residual.vectors.iter().map(|&vector| (residual.index, first + vector)),
                );
            }
            let end = first + tile.num_vectors();
            let expected = (first..end).filter(|vector| vector % 3 == 0).map(|vector| (1, vector));
            assert_eq!(seen, expected.collect::<Vec<_>>());
        }
        // Vectors without a far larger channel have none.
        let plain: Vec<f32> = (0..n * cols).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        let batch = Batch::quantize(Level::detect(), form(4), &plain, cols);
        assert!(batch.tiles().iter().all(|tile| tile.residuals.is_empty()));
    }

    #[test]
    fn levels_agree_bit_for_bit() {
        let mut rng = StdRng::seed_from_u64(3);
        for [n, cols] in SHAPES {
            let mut x = vectors(&mut rng, n, cols);
            x[0] = f32::from_bits(1);
            x[n * cols - 1] = f32::INFINITY;
            x[n * cols / 2] = f32::NAN;
            for bits in [4, 8] {
                let of = |level| format!("{:?}", Batch::quantize(level, form(bits), &x, cols));
                let expected = of(Level::SCALAR);
                for level in Level::available() {
                    assert_eq!(of(level), expected, "{level} {bits} [{n}, {cols}]");
                }
            }
        }
    }

    #[test]
    fn a_vector_is_the_same_in_any_company() {
        let mut rng = StdRng::seed_from_u64(4);
        let (n, cols) = (131, 160);
        let x = vectors(&mut rng, n, cols);
        let level = Level::detect();
        let together = Batch::quantize(level, form(8), &x, cols).values(form(8));
        // Few are another matter, as they are rounded twice.
        let some = (FEW + 1) * cols;
        for (x, together) in x.chunks(some).zip(together.chunks(some)) {
            let alone = Batch::quantize(level, form(8), x, cols).values(form(8));
            assert_eq!(alone == together, x.len() == some);
        }
    }

    /// A product is that of the values in f64, up to f32 sums: what kernels make of codes, scales, residuals,
    /// padding and the split into tasks.
    #[test]
    fn products_are_those_of_the_values() {
        let mut rng = StdRng::seed_from_u64(5);
        let mut num_seen = 0;
        let level = Level::detect();
        for ty in [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q8_0, TensorType::Q5_1] {
            for (rows, n, cols) in [
                (1, 5, 32),
                (15, 6, 64),
                (17, 128, 1024),
                (96, 129, 1056),
                (97, 130, 544),
                (200, 9, 2080),
            ] {
                let mut bytes = Vec::new();
                for _ in 0..rows * cols / ty.block_len() {
                    let block = bytes.len();
                    bytes.extend((0..ty.block_bytes()).map(|_| rng.random::<u8>()));
                    for field in bytes[block..]
                        .chunks_exact_mut(2)
                        .take(if ty.block_bytes() % 4 == 0 { 2 } else { 1 })
                    {
                        field.copy_from_slice(
                            &f16::from_f32(rng.random_range(-0.1..0.1)).to_le_bytes(),
                        );
                    }
                }
                let w = WeightMatrix::from_tensor(
                    ty,
                    &bytes,
                    [rows, cols],
                    |row| row,
                    ComputeType::Q8A8,
                    level,
                )
                .unwrap();
                let x = vectors(&mut rng, n, cols);
                let mut y = vec![f32::NAN; n * rows];
                w.gemm(&x, n, &mut y).unwrap();
                let form = CodeForm::of(ty);
                let batch = Batch::quantize(level, form, &x, cols);
                let values = batch.values(form);
                let mut row = vec![0.0; cols];
                for r in 0..rows {
                    w.row(r, &mut row).unwrap();
                    for (t, values) in values.chunks_exact(cols).enumerate() {
                        let terms =
                            || row.iter().zip(values).map(|(w, x)| f64::from(*w) * f64::from(*x));
                        let (expected, actual) = (terms().sum::<f64>(), f64::from(y[t * rows + r]));
                        let magnitude: f64 = values.iter().map(|x| f64::from(x.abs())).sum();
                        // Codes are at most 255 steps of 0.1.
                        let bound = 2f64.powi(-22) * 26.0 * magnitude;
                        let error = (actual - expected).abs();
                        assert!(
                            error <= bound,
                            "{ty} [{rows}, {cols}] {t} {r}: {actual} {expected}"
                        );
                        // A code more in the first column would be seen.
                        let step = f64::from(
                            batch.tiles()[t / TILE_VECTORS].quad(t % TILE_VECTORS / QUAD)[0].scales
                                [t % QUAD],
                        );
                        num_seen += usize::from((step * f64::from(row[0])).abs() - error > bound);
                    }
                }
            }
        }
        assert!(num_seen > 50_000, "{num_seen}");
    }
}
