//! Kernels on a device: what they need, how they are started, whether they are right, and how long they take.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use heterokv_attn::device::{
    AttendRows, Channel, Device, DeviceError, DeviceMatrix, Embed, Linear, MatrixRows, MergeStates,
    Prefill, PreparePlanes, QueryEnergy, RmsNorm, Rope, RowPart, RowSlot, ScorePlanes, ScoreRow,
    Select, SelectScratch, Span, StoreRows, SwiGlu, WeightForm,
};
use heterokv_evict::{Rule, Selector, Union};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu, Paged, Paging};
use heterokv_quant::Tail;

use super::kernels::{Kernel, Shape};
use crate::samples::Samples;

/// Bytes of a copy, and copies that are timed together.
const COPY_BYTES: u64 = 64 << 20;
const COPIES: u32 = 8;

/// Tokens of a page of exact rows.
const PAGE_TOKENS: usize = 64;

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
            stage.run(kernel)?;
            stage.check(kernel)?;
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
struct Stage {
    device: Device,
    shape: Shape,
    matrices: BTreeMap<&'static str, DeviceMatrix>,
    /// `[block, the widest row]`, f32: inputs, and results.
    x: Buffer,
    y: Buffer,
    z: Buffer,
    ids: Buffer,
    turns: Buffer,
    /// `[seen, num_kv_heads, head_dim]`, f32.
    k: Buffer,
    v: Buffer,
    lse: Buffer,
    rows: RowStage,
    codes: CodeStage,
}

struct RowStage {
    memory: Buffer,
    pages: Buffer,
    parts: Buffer,
    num_parts: usize,
    slots: Buffer,
    outs: Buffer,
    lses: Buffer,
    first: Buffer,
    state_ids: Buffer,
}

struct CodeStage {
    pages: Paged,
    spans: Buffer,
    num_spans: usize,
    tables: Buffer,
    finals: Buffer,
    channels: Buffer,
    planes: Buffer,
    scores: Buffer,
    score_rows: Buffer,
    scratch: SelectScratch,
    num_taken: Buffer,
    positions: Buffer,
    taken_scores: Buffer,
}

/// Numbers from −1 to 1 that look random and are the same in every run.
fn number(i: usize) -> f32 {
    let mixed = (i as u32).wrapping_mul(0x9E37_79B9) ^ (i as u32 >> 7).wrapping_mul(0x85EB_CA6B);
    f32::from((mixed >> 16) as u16 as i16) / 32_768.0
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(number).collect()
}

/// The weight of a row and column, and how a form holds it.
struct Weights {
    form: WeightForm,
    cols: usize,
}

/// 0.0078125 in f16, which is exact, beside an offset of 0.
const SCALE: u32 = 0x2000;

impl Weights {
    fn code(row: usize, col: usize) -> u32 {
        ((row * 31 + col * 17) % 16) as u32
    }

    fn value(row: usize, col: usize) -> f64 {
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

fn upload<T: bytemuck::NoUninit>(gpu: &Gpu, values: &[T]) -> Result<Buffer> {
    Ok(gpu.upload("a kernel's input", bytemuck::cast_slice(values))?)
}

fn room(gpu: &Gpu, len: usize) -> Result<Buffer> {
    Ok(gpu.buffer("a kernel's output", 4 * len as u64)?)
}

impl Stage {
    fn new(device: Device, shape: Shape) -> Result<Self> {
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
        let ids: Vec<u32> = (0..block).map(|i| (i * 37 % intermediate_size) as u32).collect();
        Ok(Self {
            matrices,
            x: upload(gpu, &numbers(wide))?,
            y: room(gpu, wide)?,
            z: upload(gpu, &numbers(wide))?,
            ids: upload(gpu, &ids)?,
            turns: upload(gpu, &numbers(block * heads.head_dim))?,
            k: upload(gpu, &numbers(seen * heads.kv_row_len()))?,
            v: upload(gpu, &numbers(seen * heads.kv_row_len()))?,
            lse: room(gpu, block * heads.num_qo_heads)?,
            rows: RowStage::new(gpu, &shape)?,
            codes: CodeStage::new(gpu, &shape)?,
            device,
            shape,
        })
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
        let mut commands = Commands::new(self.device.gpu());
        self.record(kernel, &mut commands)?;
        Ok(commands.submit_timed()?.iter().map(|time| time.nanoseconds).sum())
    }

    fn record(&self, kernel: Kernel, commands: &mut Commands<'_>) -> Result<()> {
        let Shape { hidden_size, intermediate_size, block, seen, .. } = self.shape;
        let (device, shape) = (&self.device, self.shape.heads());
        let [x, y, z, k, v] = [&self.x, &self.y, &self.z, &self.k, &self.v].map(Bound::all);
        let matrix = |form| &self.matrices[key(form)];
        match kernel {
            Kernel::Embed => {
                let (matrix, ids) = (matrix(WeightForm::Q8), Bound::all(&self.ids));
                device.embed(commands, &Embed { matrix, ids, tokens: block, y })?;
            }
            Kernel::RmsNorm => {
                let (rows, cols) = (block, hidden_size);
                let norm = RmsNorm { rows, cols, eps: 1e-5, weight: z, x, y };
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
                    lse: Bound::all(&self.lse),
                };
                device.prefill(commands, &prefill)?;
            }
            Kernel::StoreRows => {
                let store = StoreRows {
                    shape,
                    page_tokens: PAGE_TOKENS,
                    num_slots: shape.num_kv_heads,
                    slots: Bound::all(&self.rows.slots),
                    k: Bound::part(&self.k, 0, 4 * shape.kv_row_len() as u64),
                    v: Bound::part(&self.v, 0, 4 * shape.kv_row_len() as u64),
                    rows: Bound::all(&self.rows.memory),
                };
                device.store_rows(commands, &store)?;
            }
            Kernel::AttendRows => self.rows.attend(device, commands, &self.shape, x)?,
            Kernel::MergeStates => self.rows.merge(device, commands, &self.shape, [y, z])?,
            Kernel::PreparePlanes => self.codes.prepare(device, commands, &self.shape, x)?,
            Kernel::ScorePlanes => self.codes.score(device, commands, &self.shape)?,
            Kernel::Select => self.codes.select(device, commands, &self.shape)?,
        }
        Ok(())
    }

    /// Sees that what a kernel has written is right, for those whose answer is soon told, and finite for all.
    fn check(&self, kernel: Kernel) -> Result<()> {
        let gpu = self.device.gpu();
        let floats = |buffer: &Buffer, len: usize| -> Result<Vec<f32>> {
            Ok(bytemuck::pod_collect_to_vec(&gpu.read(buffer, 0, 4 * len as u64)?))
        };
        let Shape { hidden_size, intermediate_size, .. } = self.shape;
        let near = |what: &str, actual: f32, expected: f64, size: f64| {
            let off = (f64::from(actual) - expected).abs();
            let name = kernel.name();
            ensure!(off <= 1e-4 * size, "{name}: {what} is {actual}, and {expected} is right");
            Ok(())
        };
        let written = match kernel {
            Kernel::AttendRows => &self.rows.outs,
            Kernel::PreparePlanes => &self.codes.tables,
            Kernel::ScorePlanes => &self.codes.scores,
            Kernel::Select => &self.codes.taken_scores,
            Kernel::StoreRows => return Ok(()),
            _ => &self.y,
        };
        let len = (written.num_bytes() / 4).min(1 << 20) as usize;
        let values = floats(written, len)?;
        match kernel {
            Kernel::Gemv(_) | Kernel::Gemm => {
                for row in [0, 1, intermediate_size - 1] {
                    let terms = (0..hidden_size)
                        .map(|col| Weights::value(row, col) * f64::from(number(col)));
                    near(&format!("row {row}"), values[row], terms.sum(), hidden_size as f64)?;
                }
            }
            Kernel::ScorePlanes => self.codes.check(&self.shape, &values, near)?,
            // Minus infinity where a token is not taken.
            Kernel::Select => {}
            _ => ensure!(values.iter().all(|x| x.is_finite()), "{}: not finite", kernel.name()),
        }
        Ok(())
    }
}

impl RowStage {
    fn new(gpu: &Gpu, shape: &Shape) -> Result<Self> {
        let heads = shape.heads();
        let page_words = PAGE_TOKENS * heads.head_dim;
        let pages_of_head = shape.resident.div_ceil(PAGE_TOKENS);
        let num_pages = heads.num_kv_heads * pages_of_head;
        let pair = |i: usize| {
            let half = |x: f32| u32::from(half::f16::from_f32(x).to_bits());
            half(number(2 * i)) | half(number(2 * i + 1)) << 16
        };
        let memory: Vec<u32> = (0..num_pages * page_words).map(pair).collect();
        let pages: Vec<u32> = (0..num_pages).map(|page| (page * page_words) as u32).collect();
        let part_tokens = 8 * PAGE_TOKENS;
        let (mut parts, mut first, mut ids) = (Vec::new(), vec![0u32], Vec::new());
        for kv_head in 0..heads.num_kv_heads {
            let begin = parts.len() as u32;
            for start in (0..shape.resident).step_by(part_tokens) {
                let state = parts.len() as u32;
                parts.push(RowPart {
                    kv_head: kv_head as u32,
                    first_page: (kv_head * pages_of_head + start / PAGE_TOKENS) as u32,
                    num_tokens: part_tokens.min(shape.resident - start) as u32,
                    first_slot: 0,
                    state,
                });
            }
            // Its first and its last.
            ids.extend([begin, parts.len() as u32 - 1]);
            first.push(ids.len() as u32);
        }
        let slots: Vec<RowSlot> = (0..heads.num_kv_heads)
            .map(|head| RowSlot {
                token: 0,
                kv_head: head as u32,
                place: (head * pages_of_head * page_words) as u32,
            })
            .collect();
        let num_states = parts.len();
        Ok(Self {
            memory: upload(gpu, &memory)?,
            pages: upload(gpu, &pages)?,
            parts: upload(gpu, &parts)?,
            num_parts: num_states,
            slots: upload(gpu, &slots)?,
            outs: room(gpu, num_states * heads.group_size() * heads.head_dim)?,
            lses: room(gpu, num_states * heads.group_size())?,
            first: upload(gpu, &first)?,
            state_ids: upload(gpu, &ids)?,
        })
    }

    fn attend(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
        q: Bound<'_>,
    ) -> Result<()> {
        let attend = AttendRows {
            shape: shape.heads(),
            page_tokens: PAGE_TOKENS,
            num_parts: self.num_parts,
            parts: Bound::all(&self.parts),
            pages: Bound::all(&self.pages),
            rows: Bound::all(&self.memory),
            q,
            writes_out: true,
            num_states: self.num_parts,
            out: Bound::all(&self.outs),
            lse: Bound::all(&self.lses),
        };
        Ok(device.attend_rows(commands, &attend)?)
    }

    fn merge(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
        [out, lse]: [Bound<'_>; 2],
    ) -> Result<()> {
        let merge = MergeStates {
            shape: shape.heads(),
            num_states: self.num_parts,
            first: Bound::all(&self.first),
            ids: Bound::all(&self.state_ids),
            outs: Bound::all(&self.outs),
            lses: Bound::all(&self.lses),
            out,
            lse,
        };
        Ok(device.merge_states(commands, &merge)?)
    }
}

impl CodeStage {
    fn new(gpu: &Gpu, shape: &Shape) -> Result<Self> {
        let heads = shape.heads();
        let num_planes = heads.head_dim;
        // Four strips of 32 tokens: planes of 16 bytes, a scale and a zero for each token.
        let page_bytes = 4 * (16 * num_planes + 128);
        let paging = Paging::new("codes", page_bytes as u64, gpu.limits().binding_bytes)?;
        let mut pages = Paged::new("codes", paging);
        let pages_of_head = shape.context.div_ceil(Span::TOKENS);
        let num_spans = heads.num_kv_heads * pages_of_head;
        pages.reserve(gpu, num_spans as u64)?;
        let page = Self::page(num_planes);
        let mut spans = Vec::with_capacity(num_spans);
        for page_number in 0..num_spans {
            pages.write(gpu, page_number as u64, 0, &page)?;
            let first = page_number % pages_of_head * Span::TOKENS;
            spans.push(Span {
                kv_head: (page_number / pages_of_head) as u32,
                place: paging.place(page_number as u64).word,
                num_tokens: Span::TOKENS.min(shape.context - first) as u32,
                first_token: first as u32,
            });
        }
        let channels: Vec<Channel> = (0..heads.num_kv_heads * heads.head_dim)
            .map(|i| Channel {
                order: (i % heads.head_dim) as u32,
                scale: 1.0,
                centre: 0.0,
                offset: 0.0,
            })
            .collect();
        let planes: Vec<u32> = (0..heads.num_kv_heads * num_planes)
            .map(|i| (i % num_planes) as u32 | 4 << 16)
            .collect();
        let score_rows: Vec<ScoreRow> = (0..heads.num_qo_heads)
            .map(|head| ScoreRow {
                start: (head * shape.context) as u32,
                num_tokens: shape.context as u32,
            })
            .collect();
        let kv_context = heads.num_kv_heads * shape.context;
        Ok(Self {
            pages,
            spans: upload(gpu, &spans)?,
            num_spans,
            tables: room(gpu, heads.num_qo_heads * num_planes * 16)?,
            finals: room(gpu, heads.num_qo_heads * 4)?,
            channels: upload(gpu, &channels)?,
            planes: upload(gpu, &planes)?,
            scores: room(gpu, heads.num_qo_heads * shape.context)?,
            score_rows: upload(gpu, &score_rows)?,
            scratch: SelectScratch::new(gpu, &heads, shape.context)?,
            num_taken: room(gpu, heads.num_kv_heads)?,
            positions: room(gpu, kv_context)?,
            taken_scores: room(gpu, heads.num_qo_heads * shape.context)?,
        })
    }

    /// A page of codes: every page is the same.
    fn page(num_planes: usize) -> Vec<u8> {
        let mut page = Vec::new();
        for strip in 0..4 {
            page.extend((0..16 * num_planes).map(|i| (i * 7 + i / 16 * 3 + strip * 5) as u8));
            // Scales of 1/128 and zeros of 0, f16.
            page.extend([0x00, 0x20].repeat(32));
            page.extend([0; 64]);
        }
        page
    }

    fn prepare(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
        q: Bound<'_>,
    ) -> Result<()> {
        let heads = shape.heads();
        let gpu = device.gpu();
        let all: Vec<u32> = (0..heads.num_kv_heads as u32).collect();
        let [kv_heads, levels] = [upload(gpu, &all)?, upload(gpu, &[0.0f32])?];
        let prepare = PreparePlanes {
            shape: heads,
            num_heads: heads.num_kv_heads,
            num_planes: heads.head_dim,
            transform_block: 1,
            has_levels: false,
            kv_heads: Bound::all(&kv_heads),
            channels: Bound::all(&self.channels),
            planes: Bound::all(&self.planes),
            levels: Bound::all(&levels),
            q,
            tables: Bound::all(&self.tables),
            finals: Bound::all(&self.finals),
        };
        Ok(device.prepare_planes(commands, &prepare)?)
    }

    fn score(&self, device: &Device, commands: &mut Commands<'_>, shape: &Shape) -> Result<()> {
        let heads = shape.heads();
        let slab_pages = self.pages.paging().slab_pages() as usize;
        for (slab, codes) in self.pages.slabs().iter().enumerate() {
            let end = ((slab + 1) * slab_pages).min(self.num_spans);
            // As many as a dispatch can have everywhere, in steps that a binding can begin at.
            for first in (slab * slab_pages..end).step_by(65_520) {
                let num_spans = (end - first).min(65_520);
                let span_bytes = size_of::<Span>() as u64;
                let (start, len) = (first as u64 * span_bytes, num_spans as u64 * span_bytes);
                let score = ScorePlanes {
                    group_size: heads.group_size(),
                    num_planes: heads.head_dim,
                    tail: Tail::ScaleZero,
                    score_stride: shape.context,
                    num_spans,
                    spans: Bound::part(&self.spans, start, len),
                    codes: Bound::all(codes),
                    tables: Bound::all(&self.tables),
                    finals: Bound::all(&self.finals),
                    scores: Bound::all(&self.scores),
                };
                device.score_planes(commands, &score)?;
            }
        }
        Ok(())
    }

    fn select(&self, device: &Device, commands: &mut Commands<'_>, shape: &Shape) -> Result<()> {
        let heads = shape.heads();
        let selector = Selector::new(Rule::TopP(0.97), 0, usize::MAX)?;
        let gpu = device.gpu();
        let nothing = upload(gpu, &vec![f32::NEG_INFINITY; heads.num_qo_heads])?;
        let select = Select {
            shape: heads,
            max_tokens: shape.context,
            enough: selector.enough(),
            union: Union::Group,
            rows: Bound::all(&self.score_rows),
            scores: Bound::all(&self.scores),
            resident: Bound::all(&nothing),
            capacity: shape.context,
            num_taken: Bound::all(&self.num_taken),
            positions: Bound::all(&self.positions),
            taken_scores: Bound::all(&self.taken_scores),
        };
        Ok(device.select(commands, &select, &self.scratch)?)
    }

    /// The scores of some tokens of the first head, by the formula of the format.
    fn check(
        &self,
        shape: &Shape,
        scores: &[f32],
        near: impl Fn(&str, f32, f64, f64) -> Result<()>,
    ) -> Result<()> {
        let heads = shape.heads();
        let page = Self::page(heads.head_dim);
        for token in [0, 1, 40, 127, shape.context - 1] {
            let (strip, slot) = (token % 128 / 32, token % 32);
            let strip = &page[strip * (16 * heads.head_dim + 128)..];
            let nibble = |plane: usize| {
                strip[16 * plane + slot % 8 * 2 + slot / 8 % 2] >> (slot / 16 * 4) & 15
            };
            let terms = (0..heads.head_dim)
                .map(|c| f64::from(heads.sm_scale * number(c)) * f64::from(nibble(c)) / 128.0);
            near(&format!("token {token}"), scores[token], terms.sum(), 1.0)?;
        }
        Ok(())
    }
}
