//! The kernels that are measured, and the bytes that each must move.

use heterokv_attn::HeadShape;
use heterokv_attn::device::{DeviceCoders, DeviceMatrix, QueryEnergy, WeightForm};
use heterokv_quant::{KeyFormat, Result};

/// Scores are read by so many passes of a selection: statistics, three histograms, ties, and two that take.
const SELECT_PASSES: usize = 7;

/// What each kernel that codes keys is measured on; of the bits of `alloc`, those of `hca:12.5%`.
pub(super) const ENCODED: [KeyFormat; 4] = [
    KeyFormat::IntToken { bits: 4 },
    KeyFormat::LloydMax { bits: 2 },
    KeyFormat::Alloc { centibits: 350 },
    KeyFormat::IntChannel { bits: 2, group_tokens: 32 },
];

/// What `score_keys` is measured on: rows in f16, bytes, and integers per channel.
pub(super) const BY_CHANNEL: [KeyFormat; 3] = [
    KeyFormat::F16,
    KeyFormat::IntToken { bits: 8 },
    KeyFormat::IntChannel { bits: 2, group_tokens: 32 },
];

/// What `score_planes`, and what `score_groups` is measured on.
const IN_PLANES: KeyFormat = KeyFormat::IntToken { bits: 4 };
pub(super) const IN_GROUPS: KeyFormat = KeyFormat::Pq {
    width: GROUP_WIDTH as u8,
    code_bits: GROUP_BITS as u8,
    is_rotated: false,
    num_exact: 0,
};
const GROUP_WIDTH: usize = 4;
const GROUP_BITS: usize = 8;

/// The layer that kernels are measured on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) num_qo_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    /// Coded tokens of a KV head.
    pub(super) context: usize,
    /// Exact tokens of a KV head.
    pub(super) resident: usize,
    /// Tokens of a block of a prompt, and of keys that it sees.
    pub(super) block: usize,
    pub(super) seen: usize,
    /// Logits of a token.
    pub(super) vocab_size: usize,
}

impl Shape {
    /// For a look at the answers.
    pub(super) const SMALL: Self = Self {
        num_qo_heads: 4,
        num_kv_heads: 2,
        head_dim: 64,
        hidden_size: 256,
        intermediate_size: 512,
        context: 1000,
        resident: 40,
        block: 32,
        seen: 64,
        vocab_size: 1000,
    };

    /// A layer of Llama-3-8B.
    pub(super) fn llama(context: usize) -> Self {
        Self {
            num_qo_heads: 32,
            num_kv_heads: 8,
            head_dim: 128,
            hidden_size: 4096,
            intermediate_size: 14_336,
            context,
            resident: 4096,
            block: 256,
            seen: 4096,
            vocab_size: 128_256,
        }
    }

    pub(super) fn heads(&self) -> HeadShape {
        let sm_scale = 1.0 / (self.head_dim as f32).sqrt();
        let Self { num_qo_heads, num_kv_heads, head_dim, .. } = *self;
        HeadShape { num_qo_heads, num_kv_heads, head_dim, sm_scale }
    }

    fn qo_len(&self) -> usize {
        self.num_qo_heads * self.head_dim
    }

    fn kv_len(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

/// A kernel, and what it is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    Embed,
    RmsNorm,
    Gemv(WeightForm),
    Gemm,
    Rope,
    SwiGlu,
    QueryEnergy,
    Prefill,
    StoreRows,
    Encode(KeyFormat),
    FrameQueries,
    GroupTables,
    ScorePlanes,
    ScoreKeys(KeyFormat),
    ScoreGroups,
    Select,
    AttendRows,
    MergeStates,
    Argmax,
    Sample,
}

impl Kernel {
    pub(super) const ALL: [Self; 27] = [
        Self::Embed,
        Self::RmsNorm,
        Self::Gemv(WeightForm::F16),
        Self::Gemv(WeightForm::Q8),
        Self::Gemv(WeightForm::Q4),
        Self::Gemm,
        Self::Rope,
        Self::SwiGlu,
        Self::QueryEnergy,
        Self::Prefill,
        Self::StoreRows,
        Self::Encode(ENCODED[0]),
        Self::Encode(ENCODED[1]),
        Self::Encode(ENCODED[2]),
        Self::Encode(ENCODED[3]),
        Self::FrameQueries,
        Self::GroupTables,
        Self::ScorePlanes,
        Self::ScoreKeys(BY_CHANNEL[0]),
        Self::ScoreKeys(BY_CHANNEL[1]),
        Self::ScoreKeys(BY_CHANNEL[2]),
        Self::ScoreGroups,
        Self::Select,
        Self::AttendRows,
        Self::MergeStates,
        Self::Argmax,
        Self::Sample,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::RmsNorm => "rms_norm",
            Self::Gemv(_) => "gemv",
            Self::Gemm => "gemm",
            Self::Rope => "rope",
            Self::SwiGlu => "swiglu",
            Self::QueryEnergy => "query_energy",
            Self::Prefill => "prefill",
            Self::StoreRows => "store_rows",
            Self::Encode(KeyFormat::IntToken { .. }) => "encode_integers",
            Self::Encode(KeyFormat::LloydMax { .. }) => "encode_levels",
            Self::Encode(KeyFormat::Alloc { .. }) => "encode_allocated",
            Self::Encode(_) => "encode_channels",
            Self::FrameQueries => "frame_queries",
            Self::GroupTables => "group_tables",
            Self::ScorePlanes => "score_planes",
            Self::ScoreKeys(_) => "score_keys",
            Self::ScoreGroups => "score_groups",
            Self::Select => "top_p and its passes",
            Self::AttendRows => "attend_rows",
            Self::MergeStates => "merge_states",
            Self::Argmax => "argmax",
            Self::Sample => "sample",
        }
    }

    /// What it is measured on.
    pub(super) fn what(self, shape: &Shape) -> String {
        let Shape { hidden_size, intermediate_size, context, resident, block, seen, .. } = *shape;
        let scored = |format| format!("{context} keys a head, {format}");
        match self {
            Self::Embed | Self::RmsNorm | Self::Rope | Self::SwiGlu | Self::QueryEnergy => {
                format!("{block} tokens")
            }
            Self::Gemv(form) => format!("[{intermediate_size}, {hidden_size}] {form:?}, 1 token"),
            Self::Gemm => format!("[{intermediate_size}, {hidden_size}] Q8, {block} tokens"),
            Self::Prefill => format!("{block} queries, {seen} keys"),
            Self::StoreRows | Self::FrameQueries => "1 token".to_owned(),
            Self::Encode(format) => format!("{block} tokens, {format}"),
            Self::GroupTables => format!("1 token, {IN_GROUPS}"),
            Self::ScorePlanes => scored(IN_PLANES),
            Self::ScoreKeys(format) => scored(format),
            Self::ScoreGroups => scored(IN_GROUPS),
            Self::Select => format!("{context} scores a head"),
            Self::AttendRows => format!("{resident} rows a head"),
            Self::MergeStates => "2 states a head".to_owned(),
            Self::Argmax | Self::Sample => format!("{} logits", shape.vocab_size),
        }
    }

    /// Operations in f32 of those whose time these can bound: products of blocks of a prompt.
    pub(super) fn flops(self, shape: &Shape) -> u64 {
        let Shape { hidden_size, intermediate_size, block, seen, .. } = *shape;
        let flops = match self {
            Self::Gemm => 2 * block * hidden_size * intermediate_size,
            // Scores and weighted sums; half of them are masked in a block that sees itself, few in one that sees much.
            Self::Prefill => 4 * block * seen * shape.qo_len(),
            _ => 0,
        };
        flops as u64
    }

    /// Bytes that are read and written once at least.
    ///
    /// # Errors
    /// A format that does not hold keys of this length.
    pub(super) fn bytes(self, shape: &Shape) -> Result<u64> {
        let Shape { num_qo_heads, num_kv_heads, head_dim, hidden_size, intermediate_size, .. } =
            *shape;
        let Shape { context, resident, block, seen, .. } = *shape;
        let (qo_len, kv_len) = (shape.qo_len(), shape.kv_len());
        let matrix = |form| DeviceMatrix::bytes(form, [intermediate_size, hidden_size]) as usize;
        let of_matrix =
            |form, tokens: usize| matrix(form) + 4 * tokens * (hidden_size + intermediate_size);
        let planes = num_kv_heads * head_dim * 16;
        let tables = 4 * num_qo_heads * (head_dim * 16 + 4);
        let group_tables = 4 * num_qo_heads * ((head_dim / GROUP_WIDTH) << GROUP_BITS);
        let codes =
            |format: KeyFormat, tokens| Ok(num_kv_heads * format.layout(head_dim)?.bytes(tokens));
        let scores = 4 * context * num_qo_heads;
        let bytes = match self {
            // Weights of a row in Q8, and what they become.
            Self::Embed => block * (hidden_size / 32 * 36 + 4 * hidden_size),
            Self::RmsNorm => 8 * block * hidden_size + 4 * hidden_size,
            Self::Gemv(form) => of_matrix(form, 1),
            Self::Gemm => of_matrix(WeightForm::Q8, block),
            Self::Rope => block * (8 * qo_len + 4 * head_dim),
            Self::SwiGlu => 12 * block * intermediate_size,
            Self::QueryEnergy => {
                4 * block * qo_len + 4 * block.div_ceil(QueryEnergy::STRETCH) * kv_len
            }
            Self::Prefill => 8 * block * qo_len + 8 * seen * kv_len,
            Self::StoreRows => 12 * kv_len,
            Self::FrameQueries => 4 * qo_len + 16 * kv_len + planes / 4 + tables,
            // Coordinates and centroids of two bytes each, and what ends the scores.
            Self::GroupTables => {
                4 * qo_len
                    + 8 * kv_len
                    + ((2 * kv_len) << GROUP_BITS)
                    + group_tables
                    + 16 * num_qo_heads
            }
            // But for where planes lie, which takes few bytes.
            Self::Encode(format) => {
                let of_coders = num_kv_heads * DeviceCoders::bytes_of_one(format, head_dim, 0);
                4 * block * kv_len + of_coders + codes(format, block)?
            }
            Self::ScorePlanes => codes(IN_PLANES, context)? + tables + scores,
            Self::ScoreKeys(format) => {
                codes(format, context)? + 4 * qo_len + 16 * num_qo_heads + scores
            }
            Self::ScoreGroups => codes(IN_GROUPS, context)? + group_tables + scores,
            Self::Select => SELECT_PASSES * 4 * context * num_qo_heads,
            Self::AttendRows => 4 * resident * kv_len + 8 * qo_len,
            Self::MergeStates => 12 * qo_len,
            Self::Argmax | Self::Sample => 4 * shape.vocab_size,
        };
        Ok(bytes as u64)
    }
}
