//! Llama-family loader (safetensors, GGUF), tokenizer and forward pass over a heterogeneous KV cache.

pub mod checkpoint;
pub mod config;
mod error;
mod forward;
pub mod gguf;
mod ops;
pub mod rope_config;
mod safetensors;
pub mod sampler;
pub mod text;

pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use error::{Error, Result};
pub use forward::{Model, Progress};
pub use heterokv_quant::weights::ComputeType;
pub use sampler::{Sampler, SamplerError, SamplerSettings};
