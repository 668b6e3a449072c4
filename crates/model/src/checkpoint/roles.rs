//! Which tensors a model has, what each format calls them, and which shape each must have.

use crate::config::ModelConfig;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorRole {
    /// `[vocab_size, hidden_size]`.
    TokenEmbedding,
    /// RMS norm before the output projection, `[hidden_size]`.
    OutputNorm,
    /// `[vocab_size, hidden_size]`; the embedding itself where they are tied.
    Output,
    /// A tensor of the layer with this index.
    Layer(usize, LayerTensor),
}

/// The tensors of one layer. Matrices are `[outputs, inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// RMS norm before attention, `[hidden_size]`.
    AttnNorm,
    /// `[num_qo_heads * head_dim, hidden_size]`.
    Wq,
    /// `[num_kv_heads * head_dim, hidden_size]`.
    Wk,
    /// `[num_kv_heads * head_dim, hidden_size]`.
    Wv,
    /// `[hidden_size, num_qo_heads * head_dim]`.
    Wo,
    /// Bias of q, `[num_qo_heads * head_dim]`.
    BiasQ,
    /// Bias of k, `[num_kv_heads * head_dim]`.
    BiasK,
    /// Bias of v, `[num_kv_heads * head_dim]`.
    BiasV,
    /// Bias of the attention output, `[hidden_size]`.
    BiasO,
    /// RMS norm of each query head, `[head_dim]`.
    NormQ,
    /// RMS norm of each key head, `[head_dim]`.
    NormK,
    /// RMS norm before the MLP, `[hidden_size]`.
    FfnNorm,
    /// `[intermediate_size, hidden_size]`, the input of SiLU.
    Gate,
    /// `[intermediate_size, hidden_size]`.
    Up,
    /// `[hidden_size, intermediate_size]`.
    Down,
    /// Bias of the gate, `[intermediate_size]`.
    BiasGate,
    /// Bias of up, `[intermediate_size]`.
    BiasUp,
    /// Bias of down, `[hidden_size]`.
    BiasDown,
}

impl LayerTensor {
    /// Every tensor a layer may have.
    pub const ALL: [Self; 18] = [
        Self::AttnNorm,
        Self::Wq,
        Self::Wk,
        Self::Wv,
        Self::Wo,
        Self::BiasQ,
        Self::BiasK,
        Self::BiasV,
        Self::BiasO,
        Self::NormQ,
        Self::NormK,
        Self::FfnNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::BiasGate,
        Self::BiasUp,
        Self::BiasDown,
    ];

    /// Names after `model.layers.N.` and after `blk.N.`.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::AttnNorm => ("input_layernorm.weight", "attn_norm.weight"),
            Self::Wq => ("self_attn.q_proj.weight", "attn_q.weight"),
            Self::Wk => ("self_attn.k_proj.weight", "attn_k.weight"),
            Self::Wv => ("self_attn.v_proj.weight", "attn_v.weight"),
            Self::Wo => ("self_attn.o_proj.weight", "attn_output.weight"),
            Self::BiasQ => ("self_attn.q_proj.bias", "attn_q.bias"),
            Self::BiasK => ("self_attn.k_proj.bias", "attn_k.bias"),
            Self::BiasV => ("self_attn.v_proj.bias", "attn_v.bias"),
            Self::BiasO => ("self_attn.o_proj.bias", "attn_output.bias"),
            Self::NormQ => ("self_attn.q_norm.weight", "attn_q_norm.weight"),
            Self::NormK => ("self_attn.k_norm.weight", "attn_k_norm.weight"),
            Self::FfnNorm => ("post_attention_layernorm.weight", "ffn_norm.weight"),
            Self::Gate => ("mlp.gate_proj.weight", "ffn_gate.weight"),
            Self::Up => ("mlp.up_proj.weight", "ffn_up.weight"),
            Self::Down => ("mlp.down_proj.weight", "ffn_down.weight"),
            Self::BiasGate => ("mlp.gate_proj.bias", "ffn_gate.bias"),
            Self::BiasUp => ("mlp.up_proj.bias", "ffn_up.bias"),
            Self::BiasDown => ("mlp.down_proj.bias", "ffn_down.bias"),
        }
    }

    /// True for the projections and biases whose outputs RoPE turns.
    pub(super) fn is_rotated(self) -> bool {
        matches!(self, Self::Wq | Self::Wk | Self::BiasQ | Self::BiasK)
    }
}

impl TensorRole {
    /// Every role that a model of this configuration fills, layer by layer.
    pub fn all(config: &ModelConfig) -> impl Iterator<Item = Self> {
        let layers = (0..config.num_layers).flat_map(|layer_idx| {
            LayerTensor::ALL.into_iter().map(move |tensor| Self::Layer(layer_idx, tensor))
        });
        [Self::TokenEmbedding]
            .into_iter()
            .chain(layers)
            .chain([Self::OutputNorm, Self::Output])
            .filter(|role| role.is_used(config))
    }

    /// Whether it is the bias of a matrix.
    #[must_use]
    pub fn is_bias(self) -> bool {
        use LayerTensor::{BiasDown, BiasGate, BiasK, BiasO, BiasQ, BiasUp, BiasV};
        let biases = [BiasQ, BiasK, BiasV, BiasO, BiasGate, BiasUp, BiasDown];
        matches!(self, Self::Layer(_, tensor) if biases.contains(&tensor))
    }

    /// Whether a model of this configuration has such a tensor.
    #[must_use]
    pub fn is_used(self, config: &ModelConfig) -> bool {
        let Self::Layer(layer_idx, tensor) = self else { return true };
        layer_idx < config.num_layers
            && match tensor {
                LayerTensor::BiasQ | LayerTensor::BiasK | LayerTensor::BiasV => config.biases.qkv,
                LayerTensor::BiasO => config.biases.attn_output,
                LayerTensor::BiasGate | LayerTensor::BiasUp | LayerTensor::BiasDown => {
                    config.biases.mlp
                }
                LayerTensor::NormQ | LayerTensor::NormK => config.qk_norm,
                _ => true,
            }
    }

    /// The shape such a tensor must have, outermost axis first.
    #[must_use]
    pub fn shape(self, config: &ModelConfig) -> Vec<u64> {
        let ModelConfig { hidden_size, intermediate_size, vocab_size, head_dim, .. } = *config;
        let q_size = config.num_qo_heads * head_dim;
        let kv_size = config.num_kv_heads * head_dim;
        let shape = match self {
            Self::TokenEmbedding | Self::Output => vec![vocab_size, hidden_size],
            Self::OutputNorm => vec![hidden_size],
            Self::Layer(_, tensor) => match tensor {
                LayerTensor::AttnNorm
                | LayerTensor::FfnNorm
                | LayerTensor::BiasO
                | LayerTensor::BiasDown => vec![hidden_size],
                LayerTensor::Wq => vec![q_size, hidden_size],
                LayerTensor::Wk | LayerTensor::Wv => vec![kv_size, hidden_size],
                LayerTensor::Wo => vec![hidden_size, q_size],
                LayerTensor::BiasQ => vec![q_size],
                LayerTensor::BiasK | LayerTensor::BiasV => vec![kv_size],
                LayerTensor::NormQ | LayerTensor::NormK => vec![head_dim],
                LayerTensor::Gate | LayerTensor::Up => vec![intermediate_size, hidden_size],
                LayerTensor::Down => vec![hidden_size, intermediate_size],
                LayerTensor::BiasGate | LayerTensor::BiasUp => vec![intermediate_size],
            },
        };
        shape.into_iter().map(|len| len as u64).collect()
    }

    /// The name in a Hugging Face folder.
    pub(super) fn hf_name(self) -> String {
        match self {
            Self::TokenEmbedding => "model.embed_tokens.weight".to_owned(),
            Self::OutputNorm => "model.norm.weight".to_owned(),
            Self::Output => "lm_head.weight".to_owned(),
            Self::Layer(idx, tensor) => format!("model.layers.{idx}.{}", tensor.names().0),
        }
    }

    /// The name in a GGUF file.
    pub(super) fn gguf_name(self) -> String {
        match self {
            Self::TokenEmbedding => "token_embd.weight".to_owned(),
            Self::OutputNorm => "output_norm.weight".to_owned(),
            Self::Output => "output.weight".to_owned(),
            Self::Layer(idx, tensor) => format!("blk.{idx}.{}", tensor.names().1),
        }
    }
}
