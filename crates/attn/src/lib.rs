//! Attention states that merge by log-sum-exp, with CPU kernels for prefill, resident rows and host rows.
//!
//! Whatever holds a part of a context answers with a partial [`AttnState`]: a normalised output and
//! the log-sum-exp of the scores behind it. Two such parts merge exactly into the attention over both,
//! which is what lets keys and values of one context live in different places and formats.
//!
//! - [`HeadShape`]: the heads of a layer and the scale of its scores.
//! - [`AttnState`], [`Accumulator`]: finished parts and the running softmax that makes them.
//! - [`prefill`], [`PromptAttention`]: causal attention over a whole prompt, exact or by a [`PrefillPattern`].
//! - [`reference`](mod@reference): the same in scalar f64, sharing no code with the kernels.
//! - [`device`]: the kernels of `heterokv-shaders` on a GPU, with their arguments checked.
//! - `cuda`, with the feature of that name: their twins in CUDA C++ on a GPU of NVIDIA's.
//! - [`simd`]: the vector code of this crate, and its only unsafe code beside the launches of `cuda`.
//!
//! This crate never allocates by the length of the context squared, never reads a file or a device,
//! never starts threads of its own (it runs on the caller's rayon pool), and knows no model, no page
//! and no policy. Softmax and every weight that multiplies a value are f32.

mod accumulator;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decode;
pub mod device;
mod error;
mod prefill;
pub mod reference;
mod shape;
pub mod simd;
mod state;
mod weights;

pub use accumulator::Accumulator;
pub use decode::{GroupSum, HostScores, ResidentRows};
pub use error::AttnError;
pub use prefill::{PrefillInput, PrefillOutput, PrefillPattern, PromptAttention, prefill};
pub use shape::HeadShape;
pub use state::AttnState;
pub use weights::PromptKeys;
