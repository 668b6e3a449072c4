//! What a layer does beside attention: embedding, norm, products with weights, rotary embedding, activation.

use bytemuck::{Pod, Zeroable};
use heterokv_gpu::{Bound, Commands};
use heterokv_shaders::{self as shaders, Variant};

use super::matrix::Slab;
use super::{Device, DeviceError, DeviceMatrix, DeviceResult, Launch, check_len, word};

/// Up to so many vectors, weights are read once for each; more go through tiles.
const MAX_GEMV_TOKENS: usize = 4;

/// Rows that a workgroup of `gemv` multiplies, and the rows and vectors of a tile of `gemm`.
const GEMV_ROWS: u32 = 8;
const GEMM_TILE: u32 = 32;

/// Threads of the kernels that have one thread for each few elements.
const ELEMENT_THREADS: u32 = 64;

/// Rows of the embedding.
#[derive(Clone, Copy, Debug)]
pub struct Embed<'a> {
    /// The matrix `[vocab_size, hidden_size]`.
    pub matrix: &'a DeviceMatrix,
    /// Token ids `[tokens]`, u32, all below `vocab_size`.
    pub ids: Bound<'a>,
    /// Tokens.
    pub tokens: usize,
    /// `[tokens, hidden_size]`, f32.
    pub y: Bound<'a>,
}

/// Root mean square norm of rows.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// Rows.
    pub rows: usize,
    /// Their length.
    pub cols: usize,
    /// What is added to the mean of squares.
    pub eps: f32,
    /// `[cols]`, f32.
    pub weight: Bound<'a>,
    /// `[rows, cols]`, f32.
    pub x: Bound<'a>,
    /// `[rows, cols]`, f32.
    pub y: Bound<'a>,
}

/// A product with weights: `y = W x + bias`, or added to what `y` holds.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// The matrix `[rows, cols]`, with its bias.
    pub matrix: &'a DeviceMatrix,
    /// Vectors.
    pub tokens: usize,
    /// `[tokens, cols]`, f32.
    pub x: Bound<'a>,
    /// `[tokens, rows]`, f32.
    pub y: Bound<'a>,
    /// Whether the product is added to `y`: the residual stream.
    pub adds: bool,
}

/// Rotary position embedding, in place, in the half-split pairing.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Tokens.
    pub tokens: usize,
    /// Heads of a token.
    pub num_heads: usize,
    /// Channels of a head, an even number.
    pub head_dim: usize,
    /// Cosine and sine `[tokens, head_dim / 2, 2]`, f32.
    pub turns: Bound<'a>,
    /// `[tokens, num_heads, head_dim]`, f32.
    pub x: Bound<'a>,
}

/// The gated activation.
#[derive(Clone, Copy, Debug)]
pub struct SwiGlu<'a> {
    /// Elements, a multiple of 4.
    pub len: usize,
    /// `[len]`, f32.
    pub gate: Bound<'a>,
    /// `[len]`, f32.
    pub up: Bound<'a>,
    /// `[len]`, f32.
    pub y: Bound<'a>,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct EmbedParams {
    first_row: u32,
    rows: u32,
    num_blocks: u32,
    tokens: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RmsNormParams {
    rows: u32,
    cols: u32,
    eps: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GemvParams {
    rows: u32,
    num_blocks: u32,
    y_first: u32,
    y_stride: u32,
    add: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GemmParams {
    rows: u32,
    num_blocks: u32,
    y_first: u32,
    y_stride: u32,
    add: u32,
    tokens: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RopeParams {
    tokens: u32,
    num_heads: u32,
    half: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SwiGluParams {
    num_fours: u32,
}

impl<'a> Embed<'a> {
    /// Its launches, one for each part of the matrix.
    ///
    /// # Errors
    /// [`DeviceError::Length`].
    pub fn launches(&self) -> DeviceResult<Vec<Launch<Bound<'a>>>> {
        const NAME: &str = "embed";
        let Self { matrix, ids, tokens, y } = self;
        check_len(NAME, "ids", ids, *tokens as u64)?;
        check_len(NAME, "y", y, *tokens as u64 * matrix.cols() as u64)?;
        let tokens = word(NAME, "tokens", *tokens as u64)?;
        let of_slab = |slab: &'a Slab| {
            let params = EmbedParams {
                first_row: word(NAME, "rows", slab.first_row as u64)?,
                rows: word(NAME, "rows", slab.rows as u64)?,
                num_blocks: matrix.num_blocks(),
                tokens,
            };
            let buffers = [Bound::all(&slab.codes), Bound::all(&slab.scales), *ids, *y];
            let launch = Launch::new(&shaders::EMBED, &params, buffers, [tokens, 1, 1]);
            Ok(Launch { variant: in_form(matrix), ..launch })
        };
        matrix.slabs().iter().map(of_slab).collect()
    }
}

impl<'a> RmsNorm<'a> {
    /// Its launch, checked.
    ///
    /// # Errors
    /// [`DeviceError::Length`].
    pub fn launch(&self) -> DeviceResult<Launch<Bound<'a>>> {
        const NAME: &str = "rms_norm";
        let Self { rows, cols, eps, weight, x, y } = self;
        let len = *rows as u64 * *cols as u64;
        check_len(NAME, "weight", weight, *cols as u64)?;
        check_len(NAME, "x", x, len)?;
        check_len(NAME, "y", y, len)?;
        word(NAME, "elements", len)?;
        let params = RmsNormParams { rows: *rows as u32, cols: *cols as u32, eps: *eps };
        let groups = if len == 0 { 0 } else { params.rows };
        Ok(Launch::new(&shaders::RMS_NORM, &params, [*weight, *x, *y], [groups, 1, 1]))
    }
}

impl<'a> Linear<'a> {
    /// Its launches, one for each part of the matrix.
    ///
    /// # Errors
    /// [`DeviceError::Length`].
    pub fn launches(&self) -> DeviceResult<Vec<Launch<Bound<'a>>>> {
        const NAME: &str = "linear";
        let Self { matrix, tokens, x, y, adds } = self;
        let (num_tokens, rows, cols) = (*tokens as u64, matrix.rows() as u64, matrix.cols() as u64);
        check_len(NAME, "x", x, num_tokens * cols)?;
        check_len(NAME, "y", y, num_tokens * rows)?;
        word(NAME, "elements", num_tokens * rows.max(cols))?;
        let of_slab = |slab: &'a Slab| {
            let params = GemmParams {
                rows: slab.rows as u32,
                num_blocks: matrix.num_blocks(),
                y_first: slab.first_row as u32,
                y_stride: rows as u32,
                add: u32::from(*adds),
                tokens: num_tokens as u32,
            };
            let buffers =
                [Bound::all(&slab.codes), Bound::all(&slab.scales), Bound::all(&slab.bias), *x, *y];
            let launch = if self.is_few() {
                let GemmParams { rows, num_blocks, y_first, y_stride, add, tokens } = params;
                let params = GemvParams { rows, num_blocks, y_first, y_stride, add };
                let grid = [rows.div_ceil(GEMV_ROWS), tokens, 1];
                Launch::new(&shaders::GEMV, &params, buffers, grid)
            } else {
                let tiles = |count: u32| count.div_ceil(GEMM_TILE);
                let grid = [tiles(params.rows), tiles(params.tokens), 1];
                Launch::new(&shaders::GEMM, &params, buffers, grid)
            };
            Launch { variant: in_form(matrix), ..launch }
        };
        Ok(matrix.slabs().iter().map(of_slab).collect())
    }

    fn is_few(&self) -> bool {
        self.tokens <= MAX_GEMV_TOKENS
    }
}

impl<'a> Rope<'a> {
    /// Its launch, checked.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and [`DeviceError::Shape`] for an odd `head_dim`.
    pub fn launch(&self) -> DeviceResult<Launch<Bound<'a>>> {
        const NAME: &str = "rope";
        let Self { tokens, num_heads, head_dim, turns, x } = self;
        if !head_dim.is_multiple_of(2) {
            let value = *head_dim as u64;
            let (what, remedy) = ("a head_dim", "channels turn in pairs");
            return Err(DeviceError::Shape { operation: NAME, what, value, remedy });
        }
        let pairs = (*tokens * head_dim / 2) as u64 * *num_heads as u64;
        check_len(NAME, "turns", turns, (*tokens * head_dim) as u64)?;
        check_len(NAME, "x", x, 2 * pairs)?;
        let pairs = word(NAME, "elements", 2 * pairs)? / 2;
        let params = RopeParams {
            tokens: *tokens as u32,
            num_heads: *num_heads as u32,
            half: *head_dim as u32 / 2,
        };
        let grid = [pairs.div_ceil(ELEMENT_THREADS), 1, 1];
        Ok(Launch::new(&shaders::ROPE, &params, [*turns, *x], grid))
    }
}

impl<'a> SwiGlu<'a> {
    /// Its launch, checked.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and [`DeviceError::Shape`] for a length that is not in fours.
    pub fn launch(&self) -> DeviceResult<Launch<Bound<'a>>> {
        const NAME: &str = "swiglu";
        let Self { len, gate, up, y } = self;
        if !len.is_multiple_of(4) {
            let (what, value, remedy) = ("a length", *len as u64, "elements come in fours");
            return Err(DeviceError::Shape { operation: NAME, what, value, remedy });
        }
        for (tensor, bound) in [("gate", gate), ("up", up), ("y", y)] {
            check_len(NAME, tensor, bound, *len as u64)?;
        }
        let num_fours = word(NAME, "elements", *len as u64)? / 4;
        let grid = [num_fours.div_ceil(ELEMENT_THREADS), 1, 1];
        Ok(Launch::new(&shaders::SWIGLU, &SwiGluParams { num_fours }, [*gate, *up, *y], grid))
    }
}

/// The form of a matrix, chosen.
fn in_form(matrix: &DeviceMatrix) -> Variant {
    Variant { weights: matrix.form(), ..Variant::default() }
}

impl Device {
    /// Adds [`Embed`] to `commands`.
    ///
    /// # Errors
    /// As [`Embed::launches`], and those of the device.
    pub fn embed(&self, commands: &mut Commands<'_>, embed: &Embed<'_>) -> DeviceResult<()> {
        let launches = embed.launches()?;
        launches.into_iter().try_for_each(|launch| self.launch_spread(commands, launch, 1))
    }

    /// Adds [`RmsNorm`] to `commands`.
    ///
    /// # Errors
    /// As [`RmsNorm::launch`], and those of the device.
    pub fn rms_norm(&self, commands: &mut Commands<'_>, norm: &RmsNorm<'_>) -> DeviceResult<()> {
        self.launch_spread(commands, norm.launch()?, 1)
    }

    /// Adds [`Linear`] to `commands`: a dispatch for each part of the matrix.
    ///
    /// # Errors
    /// As [`Linear::launches`], and those of the device.
    pub fn linear(&self, commands: &mut Commands<'_>, linear: &Linear<'_>) -> DeviceResult<()> {
        linear.launches()?.into_iter().try_for_each(|launch| {
            if linear.is_few() {
                self.launch_spread(commands, launch, 2)
            } else {
                self.launch(commands, &launch)
            }
        })
    }

    /// Adds [`Rope`] to `commands`.
    ///
    /// # Errors
    /// As [`Rope::launch`], and those of the device.
    pub fn rope(&self, commands: &mut Commands<'_>, rope: &Rope<'_>) -> DeviceResult<()> {
        self.launch_spread(commands, rope.launch()?, 1)
    }

    /// Adds [`SwiGlu`] to `commands`.
    ///
    /// # Errors
    /// As [`SwiGlu::launch`], and those of the device.
    pub fn swiglu(&self, commands: &mut Commands<'_>, swiglu: &SwiGlu<'_>) -> DeviceResult<()> {
        self.launch_spread(commands, swiglu.launch()?, 1)
    }
}

#[cfg(test)]
pub(super) fn twins() -> Vec<super::reflection::Twin> {
    super::reflection::twins! {
        Params of EMBED = EmbedParams { first_row, rows, num_blocks, tokens };
        Params of RMS_NORM = RmsNormParams { rows, cols, eps };
        Params of GEMV = GemvParams { rows, num_blocks, y_first, y_stride, add };
        Params of GEMM = GemmParams { rows, num_blocks, y_first, y_stride, add, tokens };
        Params of ROPE = RopeParams { tokens, num_heads, half };
        Params of SWIGLU = SwiGluParams { num_fours };
    }
}
