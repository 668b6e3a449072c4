//! Llama-family loader (safetensors, GGUF), tokenizer and forward pass over a heterogeneous KV cache.

pub mod checkpoint;
pub mod config;
mod decoder;
mod device;
mod error;
mod forward;
mod generate;
pub mod gguf;
mod loader;
mod memory;
mod ops;
pub mod rope_config;
mod safetensors;
pub mod sampler;
mod session;
pub mod text;

pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use decoder::{CacheFigures, Decoder, HostDecoder, LinkFigures};
pub use device::{DeviceDecoder, DeviceModel, DeviceModelPlan};
pub use error::{Error, Result};
pub use forward::{Model, Observer, Progress, PromptBlock, Scratch};
pub use generate::{FinishReason, GenerateSettings, Generation, Generator};
pub use heterokv_quant::weights::ComputeType;
pub use memory::{PrefillBytes, f16_weight_bytes, held_weight_bytes, prefill_bytes};
pub use sampler::{Sampler, SamplerError, SamplerSettings};
pub use session::{Resumed, Session};
