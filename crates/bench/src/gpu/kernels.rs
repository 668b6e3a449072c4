//! The kernels that are measured, and the bytes that each must move.

use heterokv_attn::HeadShape;
use heterokv_attn::device::{DeviceMatrix, QueryEnergy, WeightForm};

/// Scores are read by so many passes of a selection: statistics, three histograms, ties, and two that take.
const SELECT_PASSES: usize = 7;

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
        block: 8,
        seen: 40,
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

/// One of them, on what it is measured.
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
    PreparePlanes,
    ScorePlanes,
    Select,
    AttendRows,
    MergeStates,
}

impl Kernel {
    pub(super) const ALL: [Self; 16] = [
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
        Self::PreparePlanes,
        Self::ScorePlanes,
        Self::Select,
        Self::AttendRows,
        Self::MergeStates,
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
            Self::PreparePlanes => "prepare_planes",
            Self::ScorePlanes => "score_planes",
            Self::Select => "top_p and its passes",
            Self::AttendRows => "attend_rows",
            Self::MergeStates => "merge_states",
        }
    }

    /// What it is measured on.
    pub(super) fn what(self, shape: &Shape) -> String {
        let Shape { hidden_size, intermediate_size, context, resident, block, seen, .. } = *shape;
        match self {
            Self::Embed | Self::RmsNorm | Self::Rope | Self::SwiGlu | Self::QueryEnergy => {
                format!("{block} tokens")
            }
            Self::Gemv(form) => format!("[{intermediate_size}, {hidden_size}] {form:?}, 1 token"),
            Self::Gemm => format!("[{intermediate_size}, {hidden_size}] Q8, {block} tokens"),
            Self::Prefill => format!("{block} queries, {seen} keys"),
            Self::StoreRows | Self::PreparePlanes => "1 token".to_owned(),
            Self::ScorePlanes => format!("{context} keys a head, int4-token"),
            Self::Select => format!("{context} scores a head"),
            Self::AttendRows => format!("{resident} rows a head"),
            Self::MergeStates => "2 states a head".to_owned(),
        }
    }

    /// Bytes that are read and written once at least.
    pub(super) fn bytes(self, shape: &Shape) -> u64 {
        let Shape { num_qo_heads, num_kv_heads, head_dim, hidden_size, intermediate_size, .. } =
            *shape;
        let Shape { context, resident, block, seen, .. } = *shape;
        let (qo_len, kv_len) = (shape.qo_len(), shape.kv_len());
        let matrix = |form| DeviceMatrix::bytes(form, [intermediate_size, hidden_size]) as usize;
        let of_matrix =
            |form, tokens: usize| matrix(form) + 4 * tokens * (hidden_size + intermediate_size);
        let planes = num_kv_heads * head_dim * 16;
        let tables = 4 * num_qo_heads * (head_dim * 16 + 4);
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
            Self::PreparePlanes => 4 * qo_len + 16 * kv_len + planes / 4 + tables,
            // Codes with a scale and a zero a key, tables, and scores.
            Self::ScorePlanes => {
                context * num_kv_heads * (head_dim / 2 + 4) + tables + 4 * context * num_qo_heads
            }
            Self::Select => SELECT_PASSES * 4 * context * num_qo_heads,
            Self::AttendRows => 4 * resident * kv_len + 8 * qo_len,
            Self::MergeStates => 12 * qo_len,
        };
        bytes as u64
    }
}
