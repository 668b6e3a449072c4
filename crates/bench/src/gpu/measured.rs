//! Kernels on a device: what they need, how they are started, whether they are right, and how long they take.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use heterokv_attn::device::{
    Device, DeviceError, DeviceMatrix, Embed, Linear, MatrixRows, Prefill, QueryEnergy, RmsNorm,
    Rope, StoreRows, SwiGlu, WeightForm,
};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu, KernelTime};
use heterokv_quant::KeyFormat;

use super::kernels::{BY_CHANNEL, ENCODED, IN_GROUPS, Kernel, Shape};
use super::keys::{EncodeStage, GroupStage, KeyStage};
use super::stages::{CodeStage, PAGE_TOKENS, RowStage};
use super::tokens::TokenStage;
use crate::samples::Samples;

/// Bytes of a copy, and copies that are timed together.
const COPY_BYTES: u64 = 64 << 20;
const COPIES: u32 = 8;

/// What was measured.
pub(super) struct Measured {
    /// Bytes per second, read and written, of a copy from buffer to buffer.
    pub(super) copy: f64,
    /// Nanoseconds of each kernel.
    pub(super) kernels: Vec<(Kernel, Samples)>,
}

impl Measured {
    /// Of every kernel, once to see its answer and then `rounds` times.
    pub(super) fn of(gpu: Gpu, shape: &Shape, rounds: usize) -> Result<Self> {
        let stage = Stage::new(Device::new(Arc::new(gpu)), *shape)?;
        let copy = stage.copy_rate(rounds)?;
        let mut kernels = Vec::new();
        for kernel in Kernel::ALL {
            stage.forget()?;
            stage.run(kernel)?;
            stage.check(kernel).with_context(|| format!("{} is wrong", kernel.name()))?;
            let mut samples = Samples::default();
            for _ in 0..rounds {
                samples.push(stage.run(kernel)?);
            }
            kernels.push((kernel, samples));
        }
        Ok(Self { copy, kernels })
    }
}

/// Everything that kernels read and write, on the device.
pub(super) struct Stage {
    pub(super) device: Device,
    pub(super) shape: Shape,
    matrices: BTreeMap<&'static str, DeviceMatrix>,
    /// `[block, the widest row]`, f32: inputs, and results.
    x: Buffer,
    pub(super) y: Buffer,
    z: Buffer,
    ids: Buffer,
    turns: Buffer,
    /// `[seen, num_kv_heads, head_dim]`, f32.
    k: Buffer,
    v: Buffer,
    pub(super) lse: Buffer,
    pub(super) rows: RowStage,
    pub(super) codes: CodeStage,
    pub(super) encoders: HashMap<KeyFormat, EncodeStage>,
    pub(super) by_channel: HashMap<KeyFormat, KeyStage>,
    pub(super) groups: GroupStage,
    pub(super) tokens: TokenStage,
}

/// Numbers from −1 to 1 that look random and are the same in every run.
pub(super) fn number(i: usize) -> f32 {
    let mixed = (i as u32).wrapping_mul(0x9E37_79B9) ^ (i as u32 >> 7).wrapping_mul(0x85EB_CA6B);
    f32::from((mixed >> 16) as u16 as i16) / 32_768.0
}

/// So many of them from one on.
fn numbers(first: usize, len: usize) -> Vec<f32> {
    (first..first + len).map(number).collect()
}

/// Where the numbers of `z` and of values begin, apart from those of `x` and of keys, which begin at 0.
pub(super) const Z_FIRST: usize = 500_009;
pub(super) const V_FIRST: usize = 1_000_003;

/// What the norm adds to a mean of squares.
pub(super) const EPS: f32 = 1e-5;

/// The weight of a row and column, and how a form holds it.
pub(super) struct Weights {
    form: WeightForm,
    cols: usize,
}

/// 0.0078125 in f16, which is exact, beside an offset of 0.
const SCALE: u32 = 0x2000;

impl Weights {
    fn code(row: usize, col: usize) -> u32 {
        ((row * 31 + col * 17) % 16) as u32
    }

    pub(super) fn value(row: usize, col: usize) -> f64 {
        f64::from(Self::code(row, col)) / 128.0
    }
}

impl MatrixRows for Weights {
    type Error = DeviceError;

    fn write(
        &mut self,
        first_row: usize,
        codes: &mut [u32],
        scales: &mut [u32],
    ) -> Result<(), DeviceError> {
        scales.fill(SCALE);
        let per_word = 32 / self.form.code_words();
        let row_words = self.cols / per_word;
        for (word, at) in codes.iter_mut().zip(0..) {
            let (row, first) = (first_row + at / row_words, at % row_words * per_word);
            let bits = 32 / per_word;
            *word = (0..per_word).fold(0, |word, i| {
                let code = Self::code(row, first + i);
                let held = match self.form {
                    WeightForm::F16 => half::f16::from_f32(code as f32 / 128.0).to_bits().into(),
                    WeightForm::Q8 | WeightForm::Q4 => code,
                };
                word | held << (i * bits)
            });
        }
        Ok(())
    }
}

fn key(form: WeightForm) -> &'static str {
    match form {
        WeightForm::F16 => "f16",
        WeightForm::Q8 => "q8",
        WeightForm::Q4 => "q4",
    }
}

pub(super) fn upload<T: bytemuck::NoUninit>(gpu: &Gpu, values: &[T]) -> Result<Buffer> {
    Ok(gpu.upload("a kernel's input", bytemuck::cast_slice(values))?)
}

pub(super) fn room(gpu: &Gpu, len: usize) -> Result<Buffer> {
    Ok(gpu.buffer("a kernel's output", 4 * len as u64)?)
}

/// Sees that a number is right to within rounding, beside numbers of a size.
pub(super) fn near(what: &str, actual: f32, expected: f64, size: f64) -> Result<()> {
    let off = (f64::from(actual) - expected).abs();
    ensure!(off <= 1e-4 * size, "{what} is {actual}, and {expected} is right");
    Ok(())
}

impl Stage {
    /// The row of the matrix that is a token's embedding.
    pub(super) fn id(shape: &Shape, token: usize) -> u32 {
        ((token + 1) * 37 % shape.intermediate_size) as u32
    }

    pub(super) fn new(device: Device, shape: Shape) -> Result<Self> {
        let gpu = device.gpu();
        let Shape { hidden_size, intermediate_size, block, seen, .. } = shape;
        let mut matrices = BTreeMap::new();
        for form in WeightForm::ALL {
            let (size, mut rows) =
                ([intermediate_size, hidden_size], Weights { form, cols: hidden_size });
            let matrix = DeviceMatrix::upload(gpu, form, size, None, &mut rows)?;
            matrices.insert(key(form), matrix);
        }
        let heads = shape.heads();
        let wide = block * intermediate_size.max(hidden_size).max(heads.qo_row_len());
        let ids: Vec<u32> = (0..block).map(|token| Self::id(&shape, token)).collect();
        Ok(Self {
            matrices,
            x: upload(gpu, &numbers(0, wide))?,
            y: room(gpu, wide)?,
            z: upload(gpu, &numbers(Z_FIRST, wide))?,
            ids: upload(gpu, &ids)?,
            turns: upload(gpu, &numbers(0, block * heads.head_dim))?,
            k: upload(gpu, &numbers(0, seen * heads.kv_row_len()))?,
            v: upload(gpu, &numbers(V_FIRST, seen * heads.kv_row_len()))?,
            lse: room(gpu, block * heads.num_qo_heads)?,
            rows: RowStage::new(gpu, &shape)?,
            codes: CodeStage::new(gpu, &shape)?,
            encoders: ENCODED
                .into_iter()
                .map(|format| Ok((format, EncodeStage::new(gpu, &shape, format)?)))
                .collect::<Result<_>>()?,
            by_channel: BY_CHANNEL
                .into_iter()
                .map(|format| Ok((format, KeyStage::new(gpu, &shape, format)?)))
                .collect::<Result<_>>()?,
            groups: GroupStage::new(gpu, &shape, IN_GROUPS)?,
            tokens: TokenStage::new(gpu, &shape)?,
            device,
            shape,
        })
    }

    /// What kernels share to write to holds no answer any more.
    fn forget(&self) -> Result<()> {
        for buffer in [&self.y, &self.lse] {
            let nothing = vec![0xFF; buffer.num_bytes() as usize];
            self.device.gpu().write(buffer, 0, &nothing)?;
        }
        Ok(())
    }

    /// Bytes per second of a copy.
    fn copy_rate(&self, rounds: usize) -> Result<f64> {
        let gpu = self.device.gpu();
        let bytes = COPY_BYTES.min(gpu.limits().binding_bytes);
        let [from, to] = [gpu.buffer("a copy", bytes)?, gpu.buffer("a copy", bytes)?];
        let mut samples = Samples::default();
        for round in 0..=rounds {
            let mut commands = Commands::new(gpu);
            for _ in 0..COPIES {
                commands.copy((&from, 0), (&to, 0), bytes)?;
            }
            gpu.wait()?;
            let start = Instant::now();
            commands.submit()?;
            gpu.wait()?;
            // The first one only warms up.
            if round > 0 {
                samples.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(2.0 * f64::from(COPIES) * bytes as f64 / samples.median())
    }

    /// Starts a kernel; gives the nanoseconds that the device spent in it.
    fn run(&self, kernel: Kernel) -> Result<f64> {
        Ok(self.times(kernel)?.iter().map(|time| time.nanoseconds).sum())
    }

    /// The times of all that is started.
    pub(super) fn times(&self, kernel: Kernel) -> Result<Vec<KernelTime>> {
        let mut commands = Commands::new(self.device.gpu());
        self.record(kernel, &mut commands)?;
        Ok(commands.submit_timed()?)
    }

    fn record(&self, kernel: Kernel, commands: &mut Commands<'_>) -> Result<()> {
        let Shape { hidden_size, intermediate_size, block, seen, .. } = self.shape;
        let (device, shape) = (&self.device, self.shape.heads());
        let [x, y, z, k, v, lse] =
            [&self.x, &self.y, &self.z, &self.k, &self.v, &self.lse].map(Bound::all);
        let matrix = |form| &self.matrices[key(form)];
        match kernel {
            Kernel::Embed => {
                let (matrix, ids) = (matrix(WeightForm::Q8), Bound::all(&self.ids));
                device.embed(commands, &Embed { matrix, ids, tokens: block, y })?;
            }
            Kernel::RmsNorm => {
                let (rows, cols) = (block, hidden_size);
                let norm = RmsNorm { rows, cols, eps: EPS, weight: z, x, y };
                device.rms_norm(commands, &norm)?;
            }
            Kernel::Gemv(form) => {
                let linear = Linear { matrix: matrix(form), tokens: 1, x, y, adds: false };
                device.linear(commands, &linear)?;
            }
            Kernel::Gemm => {
                let matrix = matrix(WeightForm::Q8);
                device.linear(commands, &Linear { matrix, tokens: block, x, y, adds: false })?;
            }
            Kernel::Rope => {
                let (num_heads, head_dim) = (shape.num_qo_heads, shape.head_dim);
                let turns = Bound::all(&self.turns);
                // In place, and of the same rows each time.
                commands.copy(
                    (&self.x, 0),
                    (&self.y, 0),
                    (4 * block * shape.qo_row_len()) as u64,
                )?;
                device.rope(commands, &Rope { tokens: block, num_heads, head_dim, turns, x: y })?;
            }
            Kernel::SwiGlu => {
                let len = block * intermediate_size;
                device.swiglu(commands, &SwiGlu { len, gate: x, up: z, y })?;
            }
            Kernel::QueryEnergy => {
                let energy = QueryEnergy { shape, tokens: block, q: x, energy: y };
                device.query_energy(commands, &energy)?;
            }
            Kernel::Prefill => {
                let prefill = Prefill {
                    shape,
                    qo_len: block,
                    kv_len: seen,
                    before: seen - block,
                    adds: false,
                    q: x,
                    k,
                    v,
                    out: y,
                    lse,
                };
                device.prefill(commands, &prefill)?;
            }
            // The second token's, in the place of the first.
            Kernel::StoreRows => {
                let row_bytes = 4 * shape.kv_row_len() as u64;
                let store = StoreRows {
                    shape,
                    page_tokens: PAGE_TOKENS,
                    num_slots: shape.num_kv_heads,
                    slots: Bound::all(&self.rows.slots),
                    k: Bound::part(&self.k, row_bytes, row_bytes),
                    v: Bound::part(&self.v, row_bytes, row_bytes),
                    rows: Bound::all(&self.rows.memory),
                };
                device.store_rows(commands, &store)?;
            }
            Kernel::AttendRows => self.rows.attend(device, commands, &self.shape, x)?,
            Kernel::MergeStates => self.rows.merge(device, commands, &self.shape, [y, lse])?,
            Kernel::FrameQueries => self.codes.prepare(device, commands, &self.shape, x)?,
            Kernel::ScorePlanes => self.codes.score(device, commands, &self.shape)?,
            Kernel::Select => self.codes.select(device, commands, &self.shape)?,
            Kernel::Encode(format) => {
                self.encoders[&format].encode(device, commands, &self.shape, k)?;
            }
            Kernel::GroupTables => self.groups.prepare(device, commands, &self.shape, x)?,
            Kernel::ScoreKeys(format) => {
                self.by_channel[&format].score(device, commands, &self.shape)?;
            }
            Kernel::ScoreGroups => self.groups.score(device, commands, &self.shape)?,
            Kernel::Argmax => self.tokens.argmax(device, commands, &self.shape)?,
            Kernel::Sample => self.tokens.sample(device, commands, &self.shape)?,
        }
        Ok(())
    }
}
