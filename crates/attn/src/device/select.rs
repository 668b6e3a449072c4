//! Selection on a device: which coded tokens the query heads of a KV head take.
//!
//! What [`Selector::select`](heterokv_evict::Selector::select) does on the host, by the same rule: tokens in falling order
//! of weight, the lower position first among equals, until there are enough. A weight's bits order weights, and the key
//! of the last token taken is found in three passes over the scores, ten or twelve bits in each.

use bytemuck::{Pod, Zeroable};
use heterokv_evict::{Enough, Union};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu};
use heterokv_shaders as shaders;

use super::{Device, DeviceError, DeviceResult, Launch, Operand, check_len, word};
use crate::HeadShape;

/// Scores of a workgroup.
const CHUNK_TOKENS: usize = 4096;

/// Bins of a histogram.
const NUM_BINS: usize = 1024;

/// Words of what is known of a head.
pub(super) const CHOICE_WORDS: usize = 8;

/// Tokens of a KV head at most: sums of ten bits of each stay in 32.
const MAX_TOKENS: usize = 1 << 22;

/// Query heads of a KV head at most: each has a bit of a word.
const MAX_GROUP_SIZE: usize = 32;

/// The scores of a query head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ScoreRow {
    /// Where they begin.
    pub start: u32,
    /// How many there are: as many as of the other heads of the group.
    pub num_tokens: u32,
}

/// Memory of a selection, for one layer after the other; `M` is a buffer of some device.
#[derive(Debug)]
pub struct SelectScratch<M = Buffer> {
    num_chunks: usize,
    parts: M,
    choices: M,
    counts: M,
    rests: M,
    ties: M,
    taken: M,
    totals: M,
}

impl SelectScratch {
    /// Tokens of a KV head at most.
    pub const MAX_TOKENS: usize = MAX_TOKENS;

    /// Query heads of a KV head at most.
    pub const MAX_GROUP_SIZE: usize = MAX_GROUP_SIZE;

    /// For heads of at most `max_tokens` coded tokens.
    ///
    /// # Errors
    /// No memory, and [`DeviceError::Shape`] for more tokens than the kernels count.
    pub fn new(gpu: &Gpu, shape: &HeadShape, max_tokens: usize) -> DeviceResult<Self> {
        Self::of(shape, max_tokens, |label, num_bytes| Ok(gpu.buffer(label, num_bytes)?))
    }
}

impl<M> SelectScratch<M> {
    /// The same of buffers that `buffer` makes: what each is for and its bytes, which have to be zeros.
    ///
    /// # Errors
    /// Those of `buffer`, and [`DeviceError::Shape`] for more tokens than the kernels count.
    pub fn of<E: From<DeviceError>>(
        shape: &HeadShape,
        max_tokens: usize,
        mut buffer: impl FnMut(&'static str, u64) -> Result<M, E>,
    ) -> Result<Self, E> {
        if max_tokens > MAX_TOKENS {
            return Err(E::from(DeviceError::Shape {
                operation: "select",
                what: "tokens",
                value: max_tokens as u64,
                remedy: "a head can have 4,194,304",
            }));
        }
        let num_chunks = max_tokens.div_ceil(CHUNK_TOKENS).max(1);
        let HeadShape { num_qo_heads, num_kv_heads, .. } = *shape;
        let mut buffer = |label, words: usize| buffer(label, 4 * words as u64);
        Ok(Self {
            num_chunks,
            parts: buffer("selection: sums", num_qo_heads * num_chunks)?,
            choices: buffer("selection: choices", num_qo_heads * CHOICE_WORDS)?,
            counts: buffer("selection: counts", num_qo_heads * NUM_BINS)?,
            rests: buffer("selection: rests", num_qo_heads * NUM_BINS)?,
            ties: buffer("selection: ties", num_qo_heads * num_chunks)?,
            taken: buffer("selection: taken", num_kv_heads * num_chunks)?,
            totals: buffer("selection: totals", num_qo_heads)?,
        })
    }
}

impl SelectScratch {
    /// What holds the log-sum-exp of each query head over all its tokens, once a selection is made: see
    /// [`SelectScratch::lses`].
    #[must_use]
    pub fn choices(&self) -> &Buffer {
        &self.choices
    }

    /// Log-sum-exp of each query head (natural logarithm), out of the bytes of [`SelectScratch::choices`].
    #[must_use]
    pub fn lses(choices: &[u8]) -> Vec<f32> {
        let words = choices.as_chunks::<4>().0.iter().step_by(CHOICE_WORDS);
        words.map(|word| f32::from_le_bytes(*word)).collect()
    }

    /// Bytes of the choices of so many query heads.
    #[must_use]
    pub fn choice_bytes(num_qo_heads: usize) -> u64 {
        (4 * CHOICE_WORDS * num_qo_heads) as u64
    }

    /// Bytes that [`SelectScratch::new`] takes.
    #[must_use]
    pub fn bytes(shape: &HeadShape, max_tokens: usize) -> u64 {
        let num_chunks = max_tokens.div_ceil(CHUNK_TOKENS).max(1);
        let of_qo_head = 2 * num_chunks + CHOICE_WORDS + 2 * NUM_BINS + 1;
        let words = shape.num_qo_heads * of_qo_head + shape.num_kv_heads * num_chunks;
        4 * words as u64
    }
}

/// The coded tokens that each KV head's group takes.
#[derive(Clone, Copy, Debug)]
pub struct Select<B> {
    /// The heads; a group has 32 at most.
    pub shape: HeadShape,
    /// The most coded tokens of a head.
    pub max_tokens: usize,
    /// When a query head has taken enough.
    pub enough: Enough,
    /// Whose tokens a query head attends to.
    pub union: Union,
    /// [`ScoreRow`] `[num_qo_heads]`.
    pub rows: B,
    /// Scores, f32, as the rows say.
    pub scores: B,
    /// Log-sum-exp of the resident tokens `[num_qo_heads]`, f32, natural logarithm; minus infinity where there are none.
    pub resident: B,
    /// Tokens that there is room for, of each KV head.
    pub capacity: usize,
    /// How many tokens each KV head takes `[num_kv_heads]`, u32.
    pub num_taken: B,
    /// Which `[num_kv_heads, capacity]`, u32, rising.
    pub positions: B,
    /// Their scores `[num_qo_heads, capacity]`, f32; minus infinity where a query head does not take a token.
    pub taken_scores: B,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ChunksParams {
    num_chunks: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ScanParams {
    num_counts: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct BeginParams {
    num_chunks: u32,
    top_p: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CountParams {
    shift: u32,
    rest_shift: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct FindParams {
    shift: u32,
    rest_unit: f32,
    at_least: u32,
    at_most: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TakeParams {
    group_size: u32,
    num_chunks: u32,
    capacity: u32,
    is_shared: u32,
    writes: u32,
}

/// Bits below those that a pass finds, how many of them are dropped from sums, and what a sum then counts in.
const LEVELS: [(u32, u32, f32); 3] =
    [(20, 10, 1.0 / 8192.0), (10, 0, 1.0 / 8_388_608.0), (0, 0, 0.0)];

impl<B: Operand> Select<B> {
    /// What runs, one after the other.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and [`DeviceError::Shape`] for more tokens than `scratch` is for and for groups of more
    /// than 32.
    pub fn launches<'a, M>(&self, scratch: &'a SelectScratch<M>) -> DeviceResult<Vec<Launch<B>>>
    where
        B: From<&'a M>,
    {
        const NAME: &str = "select";
        let HeadShape { num_qo_heads, num_kv_heads, .. } = self.shape;
        let group_size = self.shape.group_size();
        let bad = |what, value: usize, remedy| {
            Err(DeviceError::Shape { operation: NAME, what, value: value as u64, remedy })
        };
        let num_chunks = self.max_tokens.div_ceil(CHUNK_TOKENS);
        if num_chunks > scratch.num_chunks {
            return bad("tokens", self.max_tokens, "make the scratch for as many");
        }
        if group_size > MAX_GROUP_SIZE {
            return bad("a group_size", group_size, "a group can have 32 query heads");
        }
        let capacity = self.capacity;
        check_len(NAME, "rows", &self.rows, 2 * num_qo_heads as u64)?;
        check_len(NAME, "resident", &self.resident, num_qo_heads as u64)?;
        check_len(NAME, "num_taken", &self.num_taken, num_kv_heads as u64)?;
        check_len(NAME, "positions", &self.positions, (num_kv_heads * capacity) as u64)?;
        check_len(NAME, "taken_scores", &self.taken_scores, (num_qo_heads * capacity) as u64)?;
        let chunks = num_chunks as u32;
        let of_chunks = ChunksParams { num_chunks: chunks };
        let counts_of_chunks = ScanParams { num_counts: chunks };
        let by_head = [chunks, num_qo_heads as u32, 1];
        let heads = [num_qo_heads as u32, 1, 1];
        let mut launches = Vec::new();
        let [parts, choices] = [&scratch.parts, &scratch.choices].map(B::from);
        let [counts, rests] = [&scratch.counts, &scratch.rests].map(B::from);
        let [ties, taken, totals] = [&scratch.ties, &scratch.taken, &scratch.totals].map(B::from);

        let of_scores = [self.rows, self.scores];
        let buffers = [&of_scores[..], &[parts]].concat();
        launches.push(Launch::new(&shaders::SCORE_LSE, &of_chunks, buffers, by_head));
        let params = BeginParams { num_chunks: chunks, top_p: self.enough.mass };
        let buffers = [self.resident, parts, choices];
        launches.push(Launch::new(&shaders::TOP_P_BEGIN, &params, buffers, heads));
        for (shift, rest_shift, rest_unit) in LEVELS {
            let params = CountParams { shift, rest_shift };
            let buffers = [&of_scores[..], &[choices, counts, rests]].concat();
            launches.push(Launch::new(&shaders::TOP_P_COUNT, &params, buffers, by_head));
            let clamped = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            let params = FindParams {
                shift,
                rest_unit,
                at_least: clamped(self.enough.at_least),
                at_most: clamped(self.enough.at_most),
            };
            let buffers = [choices, counts, rests];
            launches.push(Launch::new(&shaders::TOP_P_FIND, &params, buffers, heads));
        }
        let buffers = [&of_scores[..], &[choices, ties]].concat();
        launches.push(Launch::new(&shaders::TOP_P_TIES, &of_chunks, buffers, by_head));
        launches.push(Launch::new(&shaders::SCAN_COUNTS, &counts_of_chunks, [ties, totals], heads));
        for writes in [0, 1] {
            let params = TakeParams {
                group_size: group_size as u32,
                num_chunks: chunks,
                capacity: word(NAME, "a capacity", capacity as u64)?,
                is_shared: u32::from(self.union == Union::Group),
                writes,
            };
            let outputs = [choices, ties, taken, self.positions, self.taken_scores];
            let buffers = [&of_scores[..], &outputs].concat();
            let grid = [chunks, num_kv_heads as u32, 1];
            launches.push(Launch::new(&shaders::TOP_P_TAKE, &params, buffers, grid));
            if writes == 0 {
                let grid = [num_kv_heads as u32, 1, 1];
                let buffers = [taken, self.num_taken];
                launches.push(Launch::new(&shaders::SCAN_COUNTS, &counts_of_chunks, buffers, grid));
            }
        }
        Ok(launches)
    }
}

impl Device {
    /// Adds [`Select`] to `commands`: some fifteen dispatches.
    ///
    /// # Errors
    /// As [`Select::launches`], and those of the device.
    pub fn select(
        &self,
        commands: &mut Commands<'_>,
        select: &Select<Bound<'_>>,
        scratch: &SelectScratch,
    ) -> DeviceResult<()> {
        let launches = select.launches(scratch)?;
        launches.iter().try_for_each(|launch| self.launch(commands, launch))
    }
}

#[cfg(test)]
pub(super) fn twins() -> Vec<super::reflection::Twin> {
    super::reflection::twins! {
        Params of SCORE_LSE, TOP_P_TIES = ChunksParams { num_chunks };
        Params of SCAN_COUNTS = ScanParams { num_counts };
        ScoreRow of SCORE_LSE, TOP_P_COUNT, TOP_P_TIES, TOP_P_TAKE = ScoreRow { start, num_tokens };
        Params of TOP_P_BEGIN = BeginParams { num_chunks, top_p };
        Params of TOP_P_COUNT = CountParams { shift, rest_shift };
        Params of TOP_P_FIND = FindParams { shift, rest_unit, at_least, at_most };
        Params of TOP_P_TAKE =
            TakeParams { group_size, num_chunks, capacity, is_shared, writes };
    }
}
