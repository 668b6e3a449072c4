//! The compute kernels of heterokv in WGSL, as text, and twins of most in CUDA C++.
//!
//! A [`Shader`] is one kernel: a file `wgsl/NAME.wgsl` whose head gives its formula, axes, grid, bindings, empty case
//! and accuracy. Some are written against an interface of which there are several implementations, the files in
//! `wgsl/parts`: sums over a workgroup with subgroup operations or without, weights in several forms. A [`Variant`]
//! chooses among them, and [`Shader::wgsl`] puts the text together.
//!
//! Every kernel has `main` as its entry point, a uniform `Params` at binding 0 of group 0 and its buffers at the
//! bindings from 1 on, in the order of [`Shader::bindings`]. The tests of this crate hold that against what the shader
//! itself says, in every variant, without a GPU.
//!
//! The kernels of attention and those that pick a token have a twin in CUDA C++, a file `cuda/NAME.cu`, which
//! [`Shader::cuda`] gives; the kernels that have none are listed in [`CUDA_GAPS`].
//!
//! This crate knows no GPU API and runs nothing.

mod cuda;

pub use cuda::{CUDA_GAPS, CudaKernel};

/// A kernel.
#[derive(Clone, Copy, Debug)]
pub struct Shader {
    /// Its name, that of its file.
    pub name: &'static str,
    /// What it does with each of its buffers.
    pub bindings: &'static [Access],
    body: &'static str,
    interfaces: &'static [Interface],
}

/// What a kernel does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It only reads it.
    Read,
    /// It writes it, and may read it.
    Write,
}

/// What a kernel leaves to a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interface {
    /// Sums and maxima over a workgroup.
    Reduce,
    /// A matrix of weights in one of several forms.
    Weights,
    /// Minus infinity.
    Infinity,
    /// What a search for a selection has found.
    Choice,
    /// Sums of the threads before each.
    Scan,
    /// What the terms of a sum are added in; comes first.
    Terms,
    /// Scale and zero of a token in a strip.
    Tails,
    /// Keys whose codes lie channel by channel, in one of several forms.
    Keys,
    /// Keys that are to be coded.
    KeySource,
    /// Codes of tokens in strips.
    Strips,
    /// The rotation of a key.
    Rotation,
    /// Scales in eighths of an octave.
    Octaves,
    /// Integers on a grid of such steps.
    Windows,
    /// Bits of f16.
    Halves,
    /// Integers with scale and zero in f16.
    Affine,
    /// Logits as integers.
    Logits,
}

/// How the threads of a workgroup add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// In workgroup memory: on every device.
    #[default]
    Workgroup,
    /// By subgroups, of whatever size the device has.
    Subgroup,
    /// By subgroups of that size, which are played in workgroup memory: for tests.
    Emulated(u32),
}

/// How weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightForm {
    /// Half precision.
    #[default]
    F16,
    /// 8-bit integers with a scale and an offset for every 32 columns.
    Q8,
    /// 4-bit integers with a scale and an offset for every 32 columns.
    Q4,
}

impl WeightForm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F16, Self::Q8, Self::Q4];

    /// Words of 4 bytes of the scale and offset of 32 columns.
    #[must_use]
    pub fn scale_words(self) -> usize {
        match self {
            Self::F16 => 0,
            Self::Q8 | Self::Q4 => 1,
        }
    }

    /// Words of 4 bytes of the codes of 32 columns.
    #[must_use]
    pub fn code_words(self) -> usize {
        match self {
            Self::F16 => 16,
            Self::Q8 => 8,
            Self::Q4 => 4,
        }
    }
}

/// How keys are held whose codes lie channel by channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyForm {
    /// Rows in half precision.
    #[default]
    Halves,
    /// Bytes in strips, with a scale and zero for each token.
    Bytes,
    /// Integers with a scale and zero for each channel of a block.
    Channels,
}

impl KeyForm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Halves, Self::Bytes, Self::Channels];
}

/// What the terms of a sum are added in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Single precision: on every device.
    #[default]
    F32,
    /// Half precision, a few terms at a time: for scores that only select, on devices that compute in it.
    F16,
}

impl Arithmetic {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F32, Self::F16];
}

/// A choice among the implementations of what a kernel leaves open. What it does not leave open is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Sums and maxima.
    pub reduction: Reduction,
    /// Weights.
    pub weights: WeightForm,
    /// Keys.
    pub keys: KeyForm,
    /// Terms of sums.
    pub arithmetic: Arithmetic,
}

/// All kernels.
pub const SHADERS: [&Shader; 29] = [
    &EMBED,
    &RMS_NORM,
    &GEMV,
    &GEMM,
    &ROPE,
    &SWIGLU,
    &PREFILL,
    &QUERY_ENERGY,
    &STORE_ROWS,
    &FRAME_QUERIES,
    &GROUP_TABLES,
    &SCORE_PLANES,
    &SCORE_LSE,
    &TOP_P_BEGIN,
    &TOP_P_COUNT,
    &TOP_P_FIND,
    &TOP_P_TIES,
    &SCAN_COUNTS,
    &TOP_P_TAKE,
    &ATTEND_ROWS,
    &MERGE_STATES,
    &SCORE_KEYS,
    &SCORE_GROUPS,
    &ENCODE_INTEGERS,
    &ENCODE_LEVELS,
    &ENCODE_ALLOCATED,
    &ENCODE_CHANNELS,
    &ARGMAX,
    &SAMPLE,
];

macro_rules! shader {
    ($(#[$doc:meta])* $constant:ident, $name:literal, $bindings:expr, $interfaces:expr) => {
        $(#[$doc])*
        pub const $constant: Shader = Shader {
            name: $name,
            bindings: $bindings,
            body: include_str!(concat!("../wgsl/", $name, ".wgsl")),
            interfaces: $interfaces,
        };
    };
}

use Access::{Read, Write};
use Interface::{
    Affine, Choice, Halves, Infinity, KeySource, Keys, Logits, Octaves, Reduce, Rotation, Scan,
    Strips, Tails, Terms, Weights, Windows,
};

shader!(
    /// Rows of the embedding.
    EMBED,
    "embed",
    &[Read, Read, Read, Write],
    &[Weights]
);
shader!(
    /// Root mean square norm of rows.
    RMS_NORM,
    "rms_norm",
    &[Read, Read, Write],
    &[Reduce]
);
shader!(
    /// Products of a weight matrix with a few vectors.
    GEMV,
    "gemv",
    &[Read, Read, Read, Read, Write],
    &[Weights]
);
shader!(
    /// Products of a weight matrix with many vectors.
    GEMM,
    "gemm",
    &[Read, Read, Read, Read, Write],
    &[Weights]
);
shader!(
    /// Rotary position embedding.
    ROPE,
    "rope",
    &[Read, Write],
    &[]
);
shader!(
    /// The gated activation of a feed-forward layer.
    SWIGLU,
    "swiglu",
    &[Read, Read, Write],
    &[]
);
shader!(
    /// Exact causal attention of a block of a prompt.
    PREFILL,
    "prefill",
    &[Read, Read, Read, Write, Write],
    &[]
);
shader!(
    /// How much the queries of a group look at each channel.
    QUERY_ENERGY,
    "query_energy",
    &[Read, Write],
    &[]
);
shader!(
    /// Exact keys and values into pages.
    STORE_ROWS,
    "store_rows",
    &[Read, Read, Read, Write],
    &[]
);
shader!(
    /// Queries in the frame of a key format, or as the tables by which nibble planes are scored.
    FRAME_QUERIES,
    "frame_queries",
    &[Read, Read, Read, Read, Read, Write, Write],
    &[Reduce]
);
shader!(
    /// Queries as the tables by which keys under product quantization are scored.
    GROUP_TABLES,
    "group_tables",
    &[Read, Read, Read, Read, Read, Write, Write],
    &[]
);
shader!(
    /// Scores of coded keys that lie in nibble planes.
    SCORE_PLANES,
    "score_planes",
    &[Read, Read, Read, Read, Write],
    &[Terms, Tails]
);
shader!(
    /// Log-sum-exp of the scores of each chunk of a row.
    SCORE_LSE,
    "score_lse",
    &[Read, Read, Write],
    &[Choice, Reduce, Infinity]
);
shader!(
    /// The normaliser of each head, and the mass that its coded tokens have to hold.
    TOP_P_BEGIN,
    "top_p_begin",
    &[Read, Read, Write],
    &[Choice, Reduce, Infinity]
);
shader!(
    /// A histogram of the keys of a head's tokens.
    TOP_P_COUNT,
    "top_p_count",
    &[Read, Read, Read, Write, Write],
    &[Choice]
);
shader!(
    /// The bin in which a head's selection ends.
    TOP_P_FIND,
    "top_p_find",
    &[Write, Write, Write],
    &[Choice]
);
shader!(
    /// How many tokens of each chunk have the key of a head's last token.
    TOP_P_TIES,
    "top_p_ties",
    &[Read, Read, Read, Write],
    &[Choice, Scan]
);
shader!(
    /// Sums of the counts before each, row by row.
    SCAN_COUNTS,
    "scan_counts",
    &[Write, Write],
    &[Scan]
);
shader!(
    /// The tokens that a KV head's group takes.
    TOP_P_TAKE,
    "top_p_take",
    &[Read, Read, Read, Read, Write, Write, Write],
    &[Choice, Scan, Infinity]
);
shader!(
    /// Attention of one token over exact rows, in parts.
    ATTEND_ROWS,
    "attend_rows",
    &[Read, Read, Read, Read, Write, Write],
    &[Reduce, Infinity]
);
shader!(
    /// The exact merge of attention states.
    MERGE_STATES,
    "merge_states",
    &[Read, Read, Read, Read, Write, Write],
    &[Reduce, Infinity]
);

shader!(
    /// Scores of keys whose codes lie channel by channel.
    SCORE_KEYS,
    "score_keys",
    &[Read, Read, Read, Read, Write],
    &[Keys]
);
shader!(
    /// Scores of keys under product quantization of more than 16 centroids.
    SCORE_GROUPS,
    "score_groups",
    &[Read, Read, Read, Write],
    &[]
);
shader!(
    /// Keys as integers with a scale and zero for each token.
    ENCODE_INTEGERS,
    "encode_integers",
    &[Read, Read, Read, Read, Write],
    &[KeySource, Strips, Rotation, Halves, Affine, Reduce]
);
shader!(
    /// Keys as numbers of the levels of a codebook.
    ENCODE_LEVELS,
    "encode_levels",
    &[Read, Read, Read, Read, Write, Read],
    &[KeySource, Strips, Rotation, Halves]
);
shader!(
    /// Keys as integers with a step for each channel and a scale for each token.
    ENCODE_ALLOCATED,
    "encode_allocated",
    &[Read, Read, Read, Read, Write],
    &[KeySource, Strips, Octaves]
);
shader!(
    /// Keys as integers with a scale and zero for each channel of a block.
    ENCODE_CHANNELS,
    "encode_channels",
    &[Read, Read, Write],
    &[KeySource, Halves, Affine, Octaves, Windows]
);
shader!(
    /// The token of the highest logit.
    ARGMAX,
    "argmax",
    &[Read, Write],
    &[Logits]
);
shader!(
    /// The next token, drawn.
    SAMPLE,
    "sample",
    &[Read, Read, Write],
    &[Logits, Reduce, Scan]
);

impl Shader {
    /// Its text in a variant.
    #[must_use]
    pub fn wgsl(&self, variant: Variant) -> String {
        let parts = self.interfaces.iter().flat_map(|interface| interface.parts(variant));
        parts.copied().chain([self.body]).collect::<Vec<_>>().join("\n")
    }

    /// The values of its override constants in a variant.
    #[must_use]
    pub fn constants(&self, variant: Variant) -> Vec<(&'static str, f64)> {
        match variant.reduction {
            Reduction::Emulated(size) if self.leaves(Reduce) => {
                vec![("EMULATED_SIZE", f64::from(size))]
            }
            _ => Vec::new(),
        }
    }

    /// Whether sums over a workgroup come in variants.
    #[must_use]
    pub fn has_reduction(&self) -> bool {
        self.leaves(Reduce)
    }

    /// Whether weights come in forms.
    #[must_use]
    pub fn has_weights(&self) -> bool {
        self.leaves(Weights)
    }

    /// Whether keys come in forms.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        self.leaves(Keys)
    }

    /// Whether terms are added in several kinds of numbers.
    #[must_use]
    pub fn has_arithmetic(&self) -> bool {
        self.leaves(Terms)
    }

    /// What of a variant it looks at: the same text has one name.
    #[must_use]
    pub fn narrowed(&self, variant: Variant) -> Variant {
        let Variant { reduction, weights, keys, arithmetic } = variant;
        Variant {
            reduction: if self.has_reduction() { reduction } else { Reduction::default() },
            weights: if self.has_weights() { weights } else { WeightForm::default() },
            keys: if self.has_keys() { keys } else { KeyForm::default() },
            arithmetic: if self.has_arithmetic() { arithmetic } else { Arithmetic::default() },
        }
    }

    fn leaves(&self, interface: Interface) -> bool {
        self.interfaces.contains(&interface)
    }
}

/// The text of a part.
macro_rules! part {
    ($name:literal) => {
        include_str!(concat!("../wgsl/parts/", $name, ".wgsl"))
    };
}

impl Interface {
    fn parts(self, variant: Variant) -> &'static [&'static str] {
        match self {
            Infinity => &[part!("infinity")],
            Choice => &[part!("choice")],
            Scan => &[part!("scan")],
            Tails => &[part!("tails")],
            KeySource => &[part!("key_source")],
            Strips => &[part!("strips")],
            Rotation => &[part!("rotation")],
            Octaves => &[part!("octaves")],
            Windows => &[part!("windows")],
            Halves => &[part!("halves")],
            Affine => &[part!("affine")],
            Logits => &[part!("logits")],
            Reduce => match variant.reduction {
                Reduction::Workgroup => &[part!("reduce_workgroup")],
                Reduction::Subgroup => &[part!("subgroup_native"), part!("reduce_subgroup")],
                Reduction::Emulated(_) => &[part!("subgroup_emulated"), part!("reduce_subgroup")],
            },
            Weights => match variant.weights {
                WeightForm::F16 => &[part!("weights_f16")],
                WeightForm::Q8 => &[part!("weights_q8")],
                WeightForm::Q4 => &[part!("weights_q4")],
            },
            Keys => match variant.keys {
                KeyForm::Halves => &[part!("keys_halves")],
                KeyForm::Bytes => &[part!("tails"), part!("keys_bytes")],
                KeyForm::Channels => &[part!("octaves"), part!("windows"), part!("keys_channels")],
            },
            Terms => match variant.arithmetic {
                Arithmetic::F32 => &[part!("terms_f32")],
                Arithmetic::F16 => &[part!("terms_f16")],
            },
        }
    }
}

#[cfg(test)]
mod tests;
