//! Weight formats: what the tensors of a checkpoint are stored as.

mod types;

pub use types::{TensorType, ggml_name};
