//! Llama-family loader (safetensors, GGUF), tokenizer and forward pass over a heterogeneous KV cache.

pub mod sampler;
pub mod text;

pub use sampler::{Sampler, SamplerError, SamplerSettings};
